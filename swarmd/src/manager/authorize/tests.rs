//! Every RPC of the API as nobody, worker, manager, foreign cluster and expired certificate.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::time::Duration;

use prost::Message as _;
use tonic::Code;
use tonic::body::Body;
use tower::{Layer as _, ServiceExt as _};

use super::*;
use crate::ca::SecurityConfig;
use crate::ca::testing::{NOW, TestCa};
use crate::clock::Clock;

const ADDR: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 1);

/// Every RPC of the descriptors, as a request path.
fn served() -> Vec<String> {
    let set = prost_types::FileDescriptorSet::decode(swarm_proto::DESCRIPTORS).unwrap();
    let mut paths = Vec::new();
    for file in &set.file {
        for service in &file.service {
            for method in &service.method {
                paths.push(format!(
                    "/{}.{}/{}",
                    file.package(),
                    service.name(),
                    method.name()
                ));
            }
        }
    }
    paths.sort();
    paths
}

#[test]
fn the_table_has_every_rpc_exactly_once() {
    let mut table: Vec<String> = TABLE
        .iter()
        .flat_map(|(service, methods)| methods.iter().map(move |(m, _)| format!("/{service}/{m}")))
        .collect();
    table.sort();
    assert_eq!(table, served());
    let of_swarmkit = table
        .iter()
        .filter(|p| p.starts_with("/docker.swarmkit.v1."))
        .count();
    assert_eq!(of_swarmkit, 60);
}

fn peer(node: u128, role: Role, cluster: u128, not_after: Timestamp) -> PeerIdentity {
    PeerIdentity {
        node_id: NodeId::from_raw(node),
        role,
        cluster_id: ClusterId::from_raw(cluster),
        not_after,
    }
}

fn valid(role: Role) -> PeerIdentity {
    peer(5, role, 1, NOW.after(Duration::from_secs(3600)))
}

fn remote(identity: Option<PeerIdentity>) -> Peer {
    Peer::Remote {
        addr: ADDR,
        identity,
    }
}

fn callers() -> BTreeMap<&'static str, Option<Peer>> {
    let later = NOW.after(Duration::from_secs(3600));
    BTreeMap::from([
        ("local", Some(Peer::Local)),
        ("unknown connection", None),
        ("nobody", Some(remote(None))),
        ("worker", Some(remote(Some(valid(Role::Worker))))),
        ("manager", Some(remote(Some(valid(Role::Manager))))),
        (
            "foreign manager",
            Some(remote(Some(peer(5, Role::Manager, 2, later)))),
        ),
        (
            "expired manager",
            Some(remote(Some(peer(5, Role::Manager, 1, NOW)))),
        ),
        (
            "removed manager",
            Some(remote(Some(peer(666, Role::Manager, 1, later)))),
        ),
    ])
}

/// Sends one request through the layer; the handler answers with OK and hands out its caller.
async fn call(
    path: &str,
    peer: Option<Peer>,
    metadata: &MetadataMap,
) -> Result<(Caller, HeaderMap), Status> {
    let security = SecurityConfig::new(
        TestCa::new(1).identity(1, Role::Manager),
        Clock::manual(NOW).0,
    )
    .unwrap();
    let layer = AuthorizeLayer::new(security, |node| node == NodeId::from_raw(666));
    let handler = tower::service_fn(|request: http::Request<Body>| async move {
        let mut response = Status::ok("").into_http::<Body>();
        let seen = (
            request.extensions().get::<Caller>().unwrap().clone(),
            request.headers().clone(),
        );
        response.extensions_mut().insert(seen);
        Ok::<_, Infallible>(response)
    });
    let mut request = http::Request::post(path).body(Body::empty()).unwrap();
    *request.headers_mut() = metadata.clone().into_headers();
    if let Some(peer) = peer {
        request.extensions_mut().insert(peer);
    }
    let response = layer.layer(handler).oneshot(request).await.unwrap();
    match Status::from_header_map(response.headers()) {
        Some(status) if status.code() != Code::Ok => Err(status),
        _ => Ok(response
            .extensions()
            .get::<(Caller, HeaderMap)>()
            .unwrap()
            .clone()),
    }
}

/// The specification, written without the table: who gets which code where.
fn expected(path: &str, caller: &str) -> Code {
    let insecure = matches!(
        path,
        "/docker.swarmkit.v1.CA/GetRootCACertificate"
            | "/docker.swarmkit.v1.NodeCA/IssueNodeCertificate"
            | "/docker.swarmkit.v1.NodeCA/NodeCertificateStatus"
    );
    let local_only = matches!(
        path,
        "/swarm.v1.Operator/LocalStatus" | "/swarm.v1.Operator/Leave" | "/swarm.v1.Operator/Unlock"
    ) || path.starts_with("/swarm.v1.Images/");
    let for_workers = ["Dispatcher", "ResourceAllocator", "LogBroker"]
        .iter()
        .any(|service| path.contains(&format!(".{service}/")))
        || path == "/swarm.v1.Membership/LeaveCluster";
    match caller {
        "local" => Code::Ok,
        "removed manager" => Code::PermissionDenied,
        _ if insecure => Code::Ok,
        _ if local_only => Code::PermissionDenied,
        "manager" => Code::Ok,
        "worker" if for_workers => Code::Ok,
        "worker" | "foreign manager" => Code::PermissionDenied,
        "nobody" | "unknown connection" | "expired manager" => Code::Unauthenticated,
        other => panic!("{other}"),
    }
}

#[tokio::test]
async fn every_rpc_as_everybody() {
    let mut tried = 0;
    for path in served() {
        for (name, peer) in callers() {
            let result = call(&path, peer, &MetadataMap::new()).await;
            let code = result.as_ref().map_or_else(Status::code, |_| Code::Ok);
            assert_eq!(code, expected(&path, name), "{path} as {name}");
            tried += 1;
        }
    }
    assert_eq!(tried, served().len() * callers().len());
}

#[tokio::test]
async fn unknown_paths_say_nothing() {
    let paths = [
        "/",
        "/docker.swarmkit.v1.Control/Nope",
        "/docker.swarmkit.v1.Raft/Join",
        "/x",
    ];
    for path in paths {
        for (name, peer) in callers() {
            let status = call(path, peer, &MetadataMap::new()).await.unwrap_err();
            assert_eq!(status.code(), Code::Unimplemented, "{path} as {name}");
            assert_eq!(status.message(), "no such method");
        }
    }
}

const ISSUE: &str = "/docker.swarmkit.v1.NodeCA/IssueNodeCertificate";
const SESSION: &str = "/docker.swarmkit.v1.Dispatcher/Session";

#[tokio::test]
async fn a_certificate_that_does_not_count_is_kept_for_the_ca() {
    for name in ["foreign manager", "expired manager"] {
        let (caller, _) = call(ISSUE, callers()[name].clone(), &MetadataMap::new())
            .await
            .unwrap();
        assert!(
            matches!(caller.who, Who::Nobody { presented: Some(_) }),
            "{name}"
        );
        assert!(caller.certificate().is_some() && caller.node().is_err());
    }
}

fn forwarded(who: Who) -> MetadataMap {
    let caller = Caller {
        who,
        remote: Some(ADDR),
        forwarded_by: None,
        redirected: false,
    };
    let mut metadata = MetadataMap::new();
    caller.forward(NodeId::from_raw(9), &mut metadata);
    metadata
}

#[tokio::test]
async fn a_manager_forwards_for_others() {
    let worker = valid(Role::Worker);
    let metadata = forwarded(Who::Node(worker.clone()));
    let via = Some(remote(Some(valid(Role::Manager))));
    let (caller, headers) = call(SESSION, via.clone(), &metadata).await.unwrap();
    assert_eq!(caller.node().unwrap(), &worker);
    assert_eq!(caller.remote, Some(ADDR));
    assert_eq!(caller.forwarded_by, Some(NodeId::from_raw(5)));
    assert!(caller.redirected);
    assert!(
        headers.is_empty(),
        "handlers can't be fooled by leftovers: {headers:?}"
    );

    // The forwarded identity is judged, not the forwarder's.
    let status = call("/swarm.v1.Raft/Vote", via.clone(), &metadata)
        .await
        .unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied);

    let nobody = forwarded(Who::Nobody { presented: None });
    let (caller, _) = call(ISSUE, via.clone(), &nobody).await.unwrap();
    assert_eq!(caller.who, Who::Nobody { presented: None });
    assert_eq!(
        call(SESSION, via.clone(), &nobody)
            .await
            .unwrap_err()
            .code(),
        Code::Unauthenticated
    );

    let operator = forwarded(Who::Local);
    let (caller, _) = call("/swarm.v1.Operator/ExplainTask", via, &operator)
        .await
        .unwrap();
    assert_eq!(
        caller.node().unwrap().role,
        Role::Manager,
        "goes as the manager's own"
    );
    assert!(caller.redirected && caller.forwarded_by.is_none());
}

#[tokio::test]
async fn nobody_else_forwards() {
    let metadata = forwarded(Who::Node(valid(Role::Manager)));
    for name in [
        "local",
        "nobody",
        "unknown connection",
        "worker",
        "foreign manager",
        "removed manager",
    ] {
        for path in [SESSION, ISSUE] {
            let status = call(path, callers()[name].clone(), &metadata)
                .await
                .unwrap_err();
            assert_eq!(status.code(), Code::PermissionDenied, "{path} as {name}");
        }
    }
    let status = call(SESSION, callers()["expired manager"].clone(), &metadata)
        .await
        .unwrap_err();
    assert_eq!(status.code(), Code::Unauthenticated);
}

#[tokio::test]
async fn forwarded_nonsense_is_refused() {
    let via = Some(remote(Some(valid(Role::Manager))));
    for key in [
        FORWARDED_CN,
        FORWARDED_OU,
        FORWARDED_ORG,
        FORWARDED_NOT_AFTER,
    ] {
        let mut metadata = forwarded(Who::Node(valid(Role::Worker)));
        metadata.insert(key, AsciiMetadataValue::from_static("nonsense"));
        let status = call(SESSION, via.clone(), &metadata).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{key}");
    }
    // As SwarmKit's managers do: no end of validity.
    let mut metadata = forwarded(Who::Node(valid(Role::Worker)));
    metadata.remove(FORWARDED_NOT_AFTER);
    assert!(call(SESSION, via, &metadata).await.is_ok());
}
