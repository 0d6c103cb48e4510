//! Messages that are too large, on the control socket and over the network.

use std::path::PathBuf;
use std::time::Duration;

use harness::cluster::Cluster;
use harness::lab::lab::available;
use hyper_util::rt::TokioIo;
use swarm_proto::pb;
use swarm_proto::pb::control_client::ControlClient;
use swarmd::ca::{ExpiredCertificate, IdentityDir, SecurityConfig, connect};
use swarmd::clock::Clock;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

/// What a manager takes in one message.
const LIMIT_BYTES: usize = 4 << 20;

/// Over the control socket.
pub(super) async fn local(socket: PathBuf) -> Channel {
    let dial = tower::service_fn(move |_: http::Uri| {
        let socket = socket.clone();
        async move {
            tokio::net::UnixStream::connect(socket)
                .await
                .map(TokioIo::new)
        }
    });
    let endpoint = Endpoint::from_static("http://swarmd.invalid");
    endpoint.connect_with_connector(dial).await.unwrap()
}

/// Over the network, as the manager itself: nobody else may use the control API there.
async fn remote(cluster: &Cluster) -> Channel {
    let clock = Clock::real();
    let dir = IdentityDir::new(cluster.node("n1").state_dir());
    let identity = dir.load(clock.now(), ExpiredCertificate::Refuse);
    let identity = identity.unwrap().unwrap();
    let security = SecurityConfig::new(identity, clock).unwrap();
    connect(&cluster.join_address(), &security).await.unwrap()
}

pub(super) async fn create(channel: Channel, name: &str, bytes: usize) -> Result<(), Status> {
    let container = pb::ContainerSpec {
        image: "web".to_owned(),
        env: vec![format!("LONG={}", "x".repeat(bytes))],
        ..Default::default()
    };
    let spec = pb::ServiceSpec {
        annotations: Some(pb::Annotations {
            name: name.to_owned(),
            ..Default::default()
        }),
        task: Some(pb::TaskSpec {
            runtime: Some(pb::task_spec::Runtime::Container(container)),
            ..Default::default()
        }),
        mode: Some(pb::service_spec::Mode::Replicated(
            pb::ReplicatedService::default(),
        )),
        ..Default::default()
    };
    let request = pb::CreateServiceRequest {
        spec: Some(spec),
        ..Default::default()
    };
    let mut client = ControlClient::new(channel);
    client.create_service(request).await.map(drop)
}

#[tokio::test]
async fn containerd_a_message_that_is_too_large_is_refused_and_the_manager_goes_on() {
    if !available("messages that are too large") {
        return;
    }
    let cluster = Cluster::start(0);
    let doors = [
        ("local", local(cluster.node("n1").socket()).await),
        ("remote", remote(&cluster).await),
    ];
    for (name, channel) in doors {
        for bytes in [LIMIT_BYTES + 1, 8 * LIMIT_BYTES] {
            let refused = create(channel.clone(), "large", bytes).await.unwrap_err();
            assert_eq!(refused.code(), Code::OutOfRange, "{name}: {refused}");
            let text = refused.message();
            assert!(text.contains(&LIMIT_BYTES.to_string()), "{name}: {text}");
        }
        // The same connection is good for what is small enough, and others never noticed.
        let sent = tokio::time::timeout(
            Duration::from_secs(30),
            create(channel.clone(), name, 1_000),
        );
        sent.await.unwrap().unwrap();
    }
    let listed = cluster
        .ctl(&["service", "ls", "--format", "{{.Name}}"])
        .ok();
    let mut listed: Vec<&str> = listed.lines().collect();
    listed.sort_unstable();
    assert_eq!(listed, ["local", "remote"]);
    let log = cluster.node("n1").log_tail(200);
    assert!(!log.contains("panicked"), "{log}");
}
