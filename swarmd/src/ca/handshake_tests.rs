//! Real TLS on loopback under a real tonic server: who gets in, as whom, and what the refused read.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use swarm_proto::id::NodeId;
use swarm_proto::pb;
use swarm_proto::pb::ca_client::CaClient;
use swarm_proto::pb::ca_server::{Ca, CaServer};
use swarm_proto::pb::issuance_status::State;
use swarm_proto::pb::node_ca_server::{NodeCa, NodeCaServer};
use swarm_proto::pb::node_spec::Availability;
use swarm_proto::time::Timestamp;
use tokio::io::AsyncReadExt as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Server};
use tonic::{Request, Response, Status};

use super::root::DEFAULT_NODE_CERT_LIFE;
use super::testing::{NOW, TestCa};
use super::*;
use crate::clock::{Clock, ManualClock};

/// A node that the manager renews nothing for.
const REMOVED: u128 = 13;
/// Nobody listens there.
const NOBODY: &str = "127.0.0.1:1";
/// Some seconds into the certificates' life: they are made at [`NOW`].
const LATER: Timestamp = Timestamp(NOW.0 + 60_000_000_000);

/// A CA as the managers will serve it, over a map in the place of the store.
#[derive(Debug)]
struct TestServer {
    ca: TestCa,
    tokens: ClusterTokens,
    clock: Clock,
    nodes: Mutex<BTreeMap<NodeId, (Role, pb::Certificate)>>,
}

impl TestServer {
    fn peer<T>(request: &Request<T>) -> Peer {
        request
            .extensions()
            .get::<Peer>()
            .cloned()
            .expect("every request says who asks")
    }
}

#[derive(Debug, Clone)]
struct Service(Arc<TestServer>);

#[tonic::async_trait]
impl Ca for Service {
    async fn get_root_ca_certificate(
        &self,
        _: Request<pb::GetRootCaCertificateRequest>,
    ) -> Result<Response<pb::GetRootCaCertificateResponse>, Status> {
        let certificate = self.0.ca.root.cert_pem().as_bytes().to_vec();
        Ok(Response::new(pb::GetRootCaCertificateResponse {
            certificate,
        }))
    }

    /// Says who asks.
    async fn get_unlock_key(
        &self,
        request: Request<pb::GetUnlockKeyRequest>,
    ) -> Result<Response<pb::GetUnlockKeyResponse>, Status> {
        let text = match TestServer::peer(&request) {
            Peer::Local => "local".to_owned(),
            Peer::Remote { identity: None, .. } => "nobody".to_owned(),
            Peer::Remote {
                identity: Some(peer),
                ..
            } => {
                format!(
                    "{} {} {}",
                    peer.node_id.raw(),
                    peer.role,
                    peer.cluster_id.raw()
                )
            }
        };
        Ok(Response::new(pb::GetUnlockKeyResponse {
            unlock_key: text.into(),
            version: None,
        }))
    }
}

#[tonic::async_trait]
impl NodeCa for Service {
    async fn issue_node_certificate(
        &self,
        request: Request<pb::IssueNodeCertificateRequest>,
    ) -> Result<Response<pb::IssueNodeCertificateResponse>, Status> {
        let s = &self.0;
        let Peer::Remote { identity, .. } = TestServer::peer(&request) else {
            unreachable!()
        };
        let request = request.into_inner();
        let ask = IssueRequest {
            csr: &request.csr,
            token: &request.token,
        };
        let (cluster, now) = (s.ca.cluster_id, s.clock.now());
        let decision = decide_issue(&ask, identity.as_ref(), cluster, &s.tokens, now)
            .map_err(|refusal| Status::invalid_argument(refusal.to_string()))?;
        let mut nodes = s.nodes.lock().unwrap();
        let (node_id, role) = match decision {
            IssueDecision::Create { role } => (NodeId::from_raw(1000 + nodes.len() as u128), role),
            IssueDecision::Renew { node_id } | IssueDecision::RenewExpired { node_id, .. } => (
                node_id,
                nodes.get(&node_id).map_or(Role::Worker, |(role, _)| *role),
            ),
        };
        if node_id == NodeId::from_raw(REMOVED) {
            return Err(Status::permission_denied("it was removed"));
        }
        let subject = NodeSubject {
            node_id,
            role,
            cluster_id: cluster,
        };
        let pem =
            s.ca.root
                .issue(&request.csr, &subject, DEFAULT_NODE_CERT_LIFE, now)
                .unwrap();
        // SwarmKit's clients believe only the certificate that repeats their CSR.
        let certificate = pb::Certificate {
            certificate: pem.into(),
            csr: request.csr,
            ..Default::default()
        };
        nodes.insert(node_id, (role, certificate));
        let node_id = node_id.to_string();
        Ok(Response::new(pb::IssueNodeCertificateResponse {
            node_id,
            ..Default::default()
        }))
    }

    async fn node_certificate_status(
        &self,
        request: Request<pb::NodeCertificateStatusRequest>,
    ) -> Result<Response<pb::NodeCertificateStatusResponse>, Status> {
        let id: NodeId = request.into_inner().node_id.parse().unwrap();
        let certificate = self
            .0
            .nodes
            .lock()
            .unwrap()
            .get(&id)
            .map(|(_, c)| c.clone());
        let state = if certificate.is_some() {
            State::Issued
        } else {
            State::Pending
        };
        let status = Some(pb::IssuanceStatus {
            state: state.into(),
            ..Default::default()
        });
        Ok(Response::new(pb::NodeCertificateStatusResponse {
            status,
            certificate,
        }))
    }
}

/// A manager on loopback. Dropping it stops it.
struct Manager {
    addr: SocketAddr,
    server: Arc<TestServer>,
    security: SecurityConfig,
    time: ManualClock,
    _task: JoinSet<()>,
}

impl Manager {
    async fn start(limits: ListenLimits) -> Self {
        Self::start_as(TestCa::new(1), Role::Manager, limits).await
    }

    async fn start_as(ca: TestCa, role: Role, limits: ListenLimits) -> Self {
        let (clock, time) = Clock::manual(LATER);
        let security = SecurityConfig::new(ca.identity(1, role), clock.clone()).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let incoming = TlsIncoming::new(listener, security.clone(), limits).unwrap();
        let addr = incoming.local_addr();
        let token = || JoinToken::generate(ca.root.digest()).unwrap();
        let tokens = ClusterTokens {
            worker: token(),
            manager: token(),
        };
        let server = Arc::new(TestServer {
            ca,
            tokens,
            clock,
            nodes: Mutex::default(),
        });
        let service = Service(Arc::clone(&server));
        let mut task = JoinSet::new();
        task.spawn(async move {
            Server::builder()
                .add_service(CaServer::new(service.clone()))
                .add_service(NodeCaServer::new(service))
                .serve_with_incoming(incoming)
                .await
                .unwrap();
        });
        Self {
            addr,
            server,
            security,
            time,
            _task: task,
        }
    }

    fn addr(&self) -> String {
        self.addr.to_string()
    }

    fn node(&self, node: u128, role: Role) -> SecurityConfig {
        self.with(self.server.ca.identity(node, role))
    }

    fn with(&self, identity: NodeIdentity) -> SecurityConfig {
        SecurityConfig::new(identity, Clock::manual(LATER).0).unwrap()
    }
}

/// What the manager says who we are.
async fn who(channel: Channel) -> String {
    let answer = CaClient::new(channel)
        .get_unlock_key(pb::GetUnlockKeyRequest {})
        .await
        .unwrap();
    String::from_utf8(answer.into_inner().unlock_key).unwrap()
}

async fn refused(addr: &str, security: &SecurityConfig) -> ConnectError {
    connect(addr, security).await.expect_err("must be refused")
}

#[tokio::test]
async fn nodes_are_known_by_their_certificates() {
    let manager = Manager::start(ListenLimits::default()).await;
    let worker = manager.node(7, Role::Worker);
    assert_eq!(
        who(connect(&manager.addr(), &worker).await.unwrap()).await,
        "7 worker 1"
    );
    let other = manager.node(8, Role::Manager);
    assert_eq!(
        who(connect_lazy(&manager.addr(), &other).unwrap()).await,
        "8 manager 1"
    );
}

#[tokio::test]
async fn without_a_certificate_one_is_nobody() {
    let manager = Manager::start(ListenLimits::default()).await;
    let root = fetch_root(
        &manager.addr(),
        manager.server.ca.root.digest(),
        &Clock::real(),
    )
    .await;
    let clock = Clock::manual(LATER).0;
    let channel = super::connect::connect_pinned(&manager.addr(), &root.unwrap(), &clock).await;
    assert_eq!(who(channel.unwrap()).await, "nobody");
}

#[tokio::test]
async fn a_foreign_node_and_a_foreign_manager_refuse_each_other() {
    let manager = Manager::start(ListenLimits::default()).await;
    // The foreigner does not trust the manager.
    let foreigner = manager.with(TestCa::new(1).identity(7, Role::Manager));
    let error = refused(&manager.addr(), &foreigner).await;
    assert!(
        matches!(error, ConnectError::ForeignManager { .. }),
        "{error}"
    );
    // A foreigner that trusts this manager all the same is refused by the manager.
    let both = [
        TestCa::new(1).root.cert_pem(),
        manager.server.ca.root.cert_pem(),
    ]
    .concat();
    let stranger = TestCa::new(1).identity(7, Role::Manager);
    let roots = [stranger.root_pem(), &both].concat();
    let error = refused(
        &manager.addr(),
        &manager.with(stranger.with_roots(&roots).unwrap()),
    )
    .await;
    assert!(matches!(error, ConnectError::OwnRefused { .. }), "{error}");
}

#[tokio::test]
async fn expired_certificates_are_told_apart() {
    let manager = Manager::start(ListenLimits::default()).await;
    let brief = manager
        .server
        .ca
        .identity_for(7, Role::Worker, Duration::from_secs(30));
    // Let in, as one whose time is over, for renewing it: the same node, as long as it has the key.
    let clock = Clock::manual(LATER).0;
    let renewed = renew_expired(&brief, &[manager.addr()], &clock)
        .await
        .unwrap();
    assert_eq!(renewed.node_id(), brief.node_id());
    renewed.check_time(LATER).unwrap();
    // A refusal is the answer, whoever else is not there.
    let ca = &manager.server.ca;
    let removed = ca.identity_for(REMOVED, Role::Worker, Duration::from_secs(30));
    for addrs in [
        [manager.addr(), NOBODY.to_owned()],
        [NOBODY.to_owned(), manager.addr()],
    ] {
        let error = renew_expired(&removed, &addrs, &clock).await.unwrap_err();
        assert!(error.to_string().contains("it was removed"), "{error}");
    }
    let foreign = TestCa::new(1);
    let foreign = foreign.identity_for(7, Role::Worker, Duration::from_secs(30));
    let own_root = manager.server.ca.root.cert_pem();
    assert!(foreign.with_roots(own_root).is_err());
    let addr = [manager.addr()];
    let error = renew_expired(&foreign, &addr, &clock).await.unwrap_err();
    assert!(
        matches!(
            error,
            RenewError::Connect(ConnectError::ForeignManager { .. })
        ),
        "{error}"
    );
    // One that trusts this manager all the same is refused by the manager: that a certificate is over does not say whose
    // it was.
    let both = [foreign.root_pem(), own_root].concat();
    let foreign = foreign.with_roots(&both).unwrap();
    let error = renew_expired(&foreign, &addr, &clock).await.unwrap_err();
    assert!(
        matches!(error, RenewError::Connect(ConnectError::OwnRefused { .. })),
        "{error}"
    );

    // The node's clock says that the manager's certificate is over.
    let late = NOW.after(DEFAULT_NODE_CERT_LIFE + Duration::from_secs(1));
    let worker = manager.server.ca.identity(7, Role::Worker);
    let worker = SecurityConfig::new(worker, Clock::manual(late).0).unwrap();
    let error = refused(&manager.addr(), &worker).await;
    assert!(
        matches!(error, ConnectError::ManagerExpired { .. }),
        "{error}"
    );

    // A lazy channel's first request says the same.
    let channel = connect_lazy(&manager.addr(), &worker).unwrap();
    let status = CaClient::new(channel)
        .get_unlock_key(pb::GetUnlockKeyRequest {})
        .await;
    let found = ConnectError::find(&status.unwrap_err());
    assert!(
        matches!(found, Some(ConnectError::ManagerExpired { .. })),
        "{found:?}"
    );
}

#[tokio::test]
async fn a_worker_is_no_manager() {
    let impostor = Manager::start_as(TestCa::new(1), Role::Worker, ListenLimits::default()).await;
    let error = refused(&impostor.addr(), &impostor.node(7, Role::Worker)).await;
    assert!(matches!(error, ConnectError::NotAManager { .. }), "{error}");
}

#[tokio::test]
async fn silence_and_other_protocols_are_named() {
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let identity = TestCa::new(1).identity(7, Role::Worker);
    let (clock, time) = Clock::manual(LATER);
    let node = SecurityConfig::new(identity, clock).unwrap();
    let addr = silent.local_addr().unwrap().to_string();
    let (error, ()) = tokio::join!(refused(&addr, &node), async {
        let _held = silent.accept().await.unwrap();
        time.advance(super::connect::CONNECT_TIMEOUT);
    });
    assert!(matches!(error, ConnectError::Timeout { .. }), "{error}");

    let (error, ()) = tokio::join!(refused(&addr, &node), async {
        let (mut stream, _) = silent.accept().await.unwrap();
        tokio::io::AsyncWriteExt::write_all(&mut stream, b"HTTP/1.1 400 Bad Request\r\n\r\n")
            .await
            .unwrap();
        let _ = stream.read_to_end(&mut Vec::new()).await;
    });
    assert!(matches!(error, ConnectError::Tls { .. }), "{error}");

    drop(silent);
    let error = refused(&addr, &node).await;
    assert!(matches!(error, ConnectError::Unreachable { .. }), "{error}");
    assert!(error.is_transient());
}

#[tokio::test]
async fn certificates_are_swapped_without_a_restart() {
    let manager = Manager::start(ListenLimits::default()).await;
    let worker = manager.node(7, Role::Worker);
    let mut changes = worker.changes();
    let before = connect(&manager.addr(), &worker).await.unwrap();
    assert_eq!(who(before.clone()).await, "7 worker 1");
    worker
        .update(manager.server.ca.identity(7, Role::Manager))
        .unwrap();
    assert_eq!(changes.next().await.unwrap().role(), Role::Manager);
    // The old connection goes on as it was; a new one has the new certificate.
    assert_eq!(who(before).await, "7 worker 1");
    assert_eq!(
        who(connect(&manager.addr(), &worker).await.unwrap()).await,
        "7 manager 1"
    );

    // The same on the listening side: a manager whose certificate is over renews and is reached.
    manager.time.set_wall(NOW.after(DEFAULT_NODE_CERT_LIFE * 3));
    let other = manager.server.ca.identity(8, Role::Worker);
    assert!(matches!(
        worker.update(other),
        Err(TlsError::OtherNode { .. })
    ));
    manager
        .security
        .update(manager.server.ca.identity(1, Role::Manager))
        .unwrap();
    // By then the worker's is over too, which the manager tells by the end that it names.
    connect(&manager.addr(), &worker).await.unwrap();
}

#[tokio::test]
async fn roots_are_swapped_without_a_restart() {
    let manager = Manager::start(ListenLimits::default()).await;
    let new_ca = TestCa::new(1);
    let both = [manager.server.ca.root.cert_pem(), new_ca.root.cert_pem()].concat();
    let new_node = manager.with(new_ca.identity(7, Role::Worker).with_roots(&both).unwrap());
    let error = refused(&manager.addr(), &new_node).await;
    assert!(matches!(error, ConnectError::OwnRefused { .. }), "{error}");
    manager.security.update_roots(&both).unwrap();
    assert_eq!(
        who(connect(&manager.addr(), &new_node).await.unwrap()).await,
        "7 worker 1"
    );
    assert!(matches!(
        manager.security.update_roots(new_ca.root.cert_pem()),
        Err(TlsError::Identity(IdentityError::ForeignRoot))
    ));
}

fn ask(addrs: &[String], token: &JoinToken) -> JoinRequest {
    JoinRequest {
        addrs: addrs.to_vec(),
        token: token.clone(),
        availability: Availability::Active,
    }
}

#[tokio::test]
async fn nodes_join_and_renew() {
    let manager = Manager::start(ListenLimits::default()).await;
    let clock = Clock::manual(LATER).0;
    let tokens = &manager.server.tokens;
    for (token, role) in [
        (&tokens.worker, Role::Worker),
        (&tokens.manager, Role::Manager),
    ] {
        let identity = join(&ask(&[manager.addr()], token), &clock).await.unwrap();
        assert_eq!(
            (identity.role(), identity.cluster_id()),
            (role, manager.server.ca.cluster_id)
        );
        let security = manager.with(identity.clone());
        let channel = connect(&manager.addr(), &security).await.unwrap();
        // The managers promote it meanwhile.
        if let Some(node) = manager
            .server
            .nodes
            .lock()
            .unwrap()
            .get_mut(&identity.node_id())
        {
            node.0 = Role::Manager;
        }
        let renewed = renew(&identity, channel, &clock).await.unwrap();
        assert_eq!(renewed.node_id(), identity.node_id());
        assert_eq!(renewed.role(), Role::Manager);
        assert_ne!(renewed.key_pem(), identity.key_pem(), "a new key each time");
    }
}

#[tokio::test]
async fn wrong_and_foreign_tokens_fail_at_once_with_the_reason() {
    let manager = Manager::start(ListenLimits::default()).await;
    let clock = Clock::manual(LATER).0;
    let rotated = JoinToken::generate(manager.server.ca.root.digest()).unwrap();
    let error = join(&ask(&[manager.addr()], &rotated), &clock)
        .await
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("rotated") && error.contains("join-token worker"),
        "{error}"
    );
    let foreign = JoinToken::generate(TestCa::new(2).root.digest()).unwrap();
    let error = join(&ask(&[manager.addr()], &foreign), &clock)
        .await
        .unwrap_err()
        .to_string();
    assert!(error.contains("another cluster"), "{error}");
    assert!(matches!(
        join(&ask(&[], &foreign), &clock).await,
        Err(JoinError::NoAddress)
    ));
}

#[tokio::test]
async fn unreachable_managers_are_given_up_after_some_rounds() {
    let closed = {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        listener.local_addr().unwrap().to_string()
    };
    let (clock, time) = Clock::manual(LATER);
    let begin = clock.monotonic();
    let token = JoinToken::generate(TestCa::new(1).root.digest()).unwrap();
    let request = ask(&[closed], &token);
    // Time flies for it: how often is of no matter, only that it ends by itself.
    let flying = async {
        loop {
            tokio::time::sleep(Duration::from_millis(20)).await;
            time.advance(Duration::from_secs(1));
        }
    };
    let error = tokio::select! {
        result = join(&request, &clock) => result.unwrap_err(),
        () = flying => unreachable!(),
    };
    let JoinError::Failed {
        last,
        others_failed: 0,
    } = error
    else {
        panic!("{error}")
    };
    assert!(last.is_transient(), "{last}");
    assert!(
        clock.monotonic().since(begin) >= Duration::from_secs(8),
        "four pauses of 2 s"
    );
}

#[tokio::test]
async fn the_renewer_renews_stores_and_swaps() {
    let manager = Manager::start(ListenLimits::default()).await;
    let identity = manager.server.ca.identity(7, Role::Worker);
    let tmp = tempfile::tempdir().unwrap();
    let dir = IdentityDir::new(tmp.path());
    dir.store(&identity).unwrap();
    let security = manager.with(identity.clone());
    let mut changes = security.changes();
    let wake = Arc::new(tokio::sync::Notify::new());
    let (_managers, known) = tokio::sync::watch::channel(vec![manager.addr()]);
    let renewer = Renewer {
        security,
        dir: dir.clone(),
        managers: known,
        roots: tokio::sync::watch::channel(String::new()).1,
        renew_now: Arc::clone(&wake),
    };
    let cancel = CancellationToken::new();
    let mut tasks = JoinSet::new();
    tasks.spawn(renewer.run(cancel.clone()));
    wake.notify_one();
    let renewed = changes.next().await.unwrap();
    assert_ne!(renewed.cert_pem(), identity.cert_pem());
    let on_disk = dir
        .load(LATER, ExpiredCertificate::Refuse)
        .unwrap()
        .unwrap();
    assert_eq!(
        on_disk.cert_pem(),
        renewed.cert_pem(),
        "stored before it is used"
    );
    cancel.cancel();
    tasks.join_next().await.unwrap().unwrap();
}

/// Reads until the other side closes; any error is a close too.
async fn closed(mut stream: TcpStream) {
    let mut sink = [0; 64];
    while let Ok(1..) = stream.read(&mut sink).await {}
}

#[tokio::test]
async fn silent_connections_make_room_and_time_out() {
    let limits = ListenLimits {
        max_handshakes: 4,
        ..ListenLimits::default()
    };
    let manager = Manager::start(limits).await;
    let mut silent = Vec::new();
    for _ in 0..4 {
        silent.push(TcpStream::connect(manager.addr).await.unwrap());
    }
    // The fifth pushes out the first.
    silent.push(TcpStream::connect(manager.addr).await.unwrap());
    closed(silent.remove(0)).await;
    // A node still gets in while all slots are taken by the silent.
    let worker = manager.node(7, Role::Worker);
    assert_eq!(
        who(connect(&manager.addr(), &worker).await.unwrap()).await,
        "7 worker 1"
    );
    manager.time.advance(limits.handshake_timeout);
    for stream in silent {
        closed(stream).await;
    }
}

#[tokio::test]
async fn connections_without_a_certificate_are_few_and_short() {
    let limits = ListenLimits {
        max_anonymous: 1,
        ..ListenLimits::default()
    };
    let manager = Manager::start(limits).await;
    let clock = Clock::manual(LATER).0;
    let root = manager.server.ca.root.cert_pem();
    let raw = async || {
        let config = super::tls::pinned_client(root, &clock).unwrap();
        let stream = TcpStream::connect(manager.addr).await.unwrap();
        let name = rustls::pki_types::ServerName::try_from("swarm-ca").unwrap();
        tokio_rustls::TlsConnector::from(config)
            .connect(name, stream)
            .await
            .unwrap()
    };
    let mut first = raw().await;
    let mut second = raw().await;
    let mut sink = Vec::new();
    // hyper says goodbye in its own way; all that matters is that it ends.
    let _ = first.read_to_end(&mut sink).await;
    let worker = manager.node(7, Role::Worker);
    let channel = connect(&manager.addr(), &worker).await.unwrap();
    manager.time.advance(limits.anonymous_life);
    let _ = second.read_to_end(&mut sink).await;
    assert_eq!(
        who(channel).await,
        "7 worker 1",
        "nodes with a certificate are not touched"
    );
}

/// Few enough for the usual limit of 1024 file descriptors; the rule is the same for ten thousand.
const FLOOD: usize = 500;

#[tokio::test]
async fn a_flood_of_silence_does_not_keep_nodes_out() {
    let limits = ListenLimits {
        max_handshakes: 32,
        ..ListenLimits::default()
    };
    let manager = Manager::start(limits).await;
    let mut silent = Vec::new();
    for _ in 0..FLOOD {
        silent.push(TcpStream::connect(manager.addr).await.unwrap());
    }
    let worker = manager.node(7, Role::Worker);
    assert_eq!(
        who(connect(&manager.addr(), &worker).await.unwrap()).await,
        "7 worker 1"
    );
    // All but the last are gone already, without any time having passed.
    for stream in silent.drain(..FLOOD - limits.max_handshakes) {
        closed(stream).await;
    }
}
