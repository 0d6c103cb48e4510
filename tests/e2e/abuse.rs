//! Who has no business with a manager: each is told, or dropped, and the cluster serves the others meanwhile.

use harness::cluster::{Cluster, LIMIT};
use harness::lab::Node;
use harness::lab::eventually;
use harness::lab::lab::available;
use harness::lab::node::Options;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::Signal;
use swarm_proto::pb;
use swarm_proto::pb::ca_client::CaClient;
use swarm_proto::pb::control_client::ControlClient;
use swarmd::ca::{ExpiredCertificate, IdentityDir, SecurityConfig, connect};
use swarmd::clock::Clock;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tonic::Code;

use super::managers::persist;
use super::refusals::last_words;

const SILENT: usize = 10_000;
/// Connections that are made at the same time.
const AT_ONCE: usize = 200;
/// What a manager may hold with all of them, in KiB; it is some 30 MiB without.
pub(super) const MEMORY_KIB_MAX: u64 = 128 << 10;

/// What a node is to others.
pub(super) fn security(node: &Node) -> SecurityConfig {
    let clock = Clock::real();
    let dir = IdentityDir::new(node.state_dir());
    let identity = dir.load(clock.now(), ExpiredCertificate::Refuse);
    SecurityConfig::new(identity.unwrap().unwrap(), clock).unwrap()
}

/// Connections that never speak, as far as they are taken.
async fn silence(address: &str) -> Vec<TcpStream> {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, most, most).unwrap();
    let mut open = Vec::new();
    for _ in 0..SILENT / AT_ONCE {
        let mut dials = JoinSet::new();
        for _ in 0..AT_ONCE {
            dials.spawn(TcpStream::connect(address.to_owned()));
        }
        while let Some(dialled) = dials.join_next().await {
            open.push(dialled.unwrap().unwrap());
        }
    }
    open
}

pub(super) fn memory_kib(node: &Node) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", node.pid().unwrap())).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:"));
    let kib = line.unwrap().split_whitespace().nth(1);
    kib.unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn containerd_ten_thousand_that_never_speak_keep_nobody_out() {
    if !available("connections that never speak") {
        return;
    }
    let mut cluster = Cluster::start(1);
    let address = cluster.join_address();
    let silent = silence(&address).await;
    assert_eq!(silent.len(), SILENT);
    // Nor do those that speak nonsense: no greeting, and half of one.
    for nonsense in [&[0xff_u8; 16 << 10][..], &[0x16, 3, 1, 0x02, 0, 1, 0, 1]] {
        let mut stream = TcpStream::connect(&address).await.unwrap();
        // It may be cut off before all of it is written.
        let _ = stream.write_all(nonsense).await;
    }

    cluster.create_web("web", 2, &[]);
    cluster.wait_running("web", 2, LIMIT);
    cluster.add_worker("n3");
    cluster.wait_ready(3);
    let held = memory_kib(cluster.node("n1"));
    assert!(held < MEMORY_KIB_MAX, "{held} KiB");
    drop(silent);
    let log = cluster.node("n1").log_tail(usize::MAX);
    assert!(!log.contains("panicked"), "{log}");
    let events = ["node", "ls", "--format", "{{.Name}} {{.Status}}"];
    assert!(!cluster.ctl(&events).ok().to_lowercase().contains("down"));
}

#[tokio::test(flavor = "multi_thread")]
async fn containerd_who_is_not_entitled_is_told_and_gets_nothing() {
    if !available("who is not entitled") {
        return;
    }
    let mut cluster = Cluster::start(2);
    cluster.create_web("web", 3, &[]);
    let before = cluster.wait_running("web", 3, LIMIT);
    let address = cluster.join_address();

    // A worker's certificate opens no manager's door.
    let worker = connect(&address, &security(cluster.node("n2")))
        .await
        .unwrap();
    let mut control = ControlClient::new(worker.clone());
    let listed = control.list_nodes(pb::ListNodesRequest::default()).await;
    let refused = listed.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied, "{refused}");
    let mut ca = CaClient::new(worker);
    let key = ca.get_unlock_key(pb::GetUnlockKeyRequest::default()).await;
    let refused = key.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied, "{refused}");

    // A manager of another cluster is a stranger.
    let mut founder = cluster.outsider("f1", cluster.lab.options());
    founder.wait_ready().unwrap();
    let foreign = connect(&address, &security(&founder)).await.unwrap_err();
    assert!(foreign.to_string().contains("another cluster"), "{foreign}");

    // A token that was replaced joins nobody.
    let old = cluster.token("worker");
    let rotate = ["cluster", "join-token", "--rotate", "--quiet", "worker"];
    assert_ne!(persist(&cluster, "n1", &rotate).ok(), old);
    let options = Options {
        join: Some((address, old)),
        ..cluster.lab.options()
    };
    let mut late = cluster.outsider("x1", options);
    let told = last_words(&mut late);
    assert!(told.contains("token"), "{told}");

    // Nor does a node come back that was removed.
    cluster.node_mut("n3").stop(Signal::SIGKILL).unwrap();
    persist(&cluster, "n1", &["node", "rm", "--force", "n3"]).ok();
    cluster.node_mut("n3").start_again().unwrap();
    eventually("n3 says that it was removed", LIMIT, || {
        let log = cluster.node("n3").log_tail(20);
        match log.contains("was removed from the cluster") {
            true => Ok(()),
            false => Err(log),
        }
    });

    // All that it has changed is where the removed node's task runs.
    eventually("three replicas on two nodes", LIMIT, || {
        let tasks = cluster.running("web");
        let mut kept = before.iter().filter(|task| task.node != "n3");
        let kept = kept.all(|task| tasks.contains(task));
        match tasks.len() == 3 && kept {
            true => Ok(()),
            false => Err(format!("{tasks:?}")),
        }
    });
    let log = cluster.node("n1").log_tail(usize::MAX);
    assert!(!log.contains("panicked"), "{log}");
}
