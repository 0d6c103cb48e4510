//! Certificates that are to end sooner, and what an expired one is good for. That a node's last one is renewed by its key
//! takes months; the CA's own tests turn the clock.

use std::time::Duration;

use harness::cluster::{Cluster, LIMIT};
use harness::lab::eventually;
use harness::lab::lab::available;
use nix::sys::signal::Signal;
use swarmd::ca::{IdentityDir, RootCa};
use swarmd::clock::Clock;

use super::ca::{own_root, wait_root};
use super::certificates::{expire, refusal};
use super::managers::{persist, with_managers};

const HOUR: Duration = Duration::from_secs(3600);
const NAMES: [&str; 5] = ["n1", "n2", "n3", "n4", "n5"];

/// How long a node's certificate is still valid.
fn left(cluster: &Cluster, name: &str) -> Duration {
    // Not loaded: that is for who writes there too.
    let dir = IdentityDir::new(cluster.node(name).state_dir());
    let peer = dir.certified().unwrap();
    peer.not_after.since(Clock::real().now())
}

/// Stops a node, and has its certificate end two days before.
fn expire_while_off(cluster: &mut Cluster, name: &str, root: &RootCa) {
    cluster.node_mut(name).stop(Signal::SIGTERM).unwrap();
    expire(cluster.node(name).state_dir(), root);
}

#[track_caller]
fn wait_logged(cluster: &Cluster, names: &[&str], text: &str) {
    eventually(&format!("{text:?} in a log of {names:?}"), LIMIT, || {
        let logs = names
            .iter()
            .map(|name| cluster.node(name).log_tail(usize::MAX));
        match logs.into_iter().any(|log| log.contains(text)) {
            true => Ok(()),
            false => Err("it is not there".to_owned()),
        }
    });
}

#[test]
fn containerd_certificates_end_sooner_and_only_the_last_of_a_node_is_good_after_that() {
    if !available("certificates that end") {
        return;
    }
    let mut cluster = with_managers(2, &["n4", "n5"]);
    cluster.create_web("web", 5, &[]);
    cluster.wait_running("web", 5, LIMIT);
    // Under a root whose key the test has.
    let files = tempfile::tempdir().unwrap();
    let (cert, key) = own_root(files.path());
    let [cert, key] = [&cert, &key].map(|file| file.to_str().unwrap());
    let rotate = [
        "cluster",
        "ca",
        "--rotate",
        "--quiet",
        "--ca-cert",
        cert,
        "--ca-key",
        key,
    ];
    let root = persist(&cluster, "n1", &rotate).ok();
    wait_root(&cluster, &NAMES, &root);
    let read = |file| std::fs::read_to_string(file).unwrap();
    let root = RootCa::from_pem(&read(cert), &read(key)).unwrap();

    // A shorter life counts for the certificates that are there.
    assert!(NAMES.iter().all(|name| left(&cluster, name) > 24 * HOUR));
    persist(&cluster, "n1", &["cluster", "update", "--certexpiry", "2h"]).ok();
    eventually("all certificates end within two hours", LIMIT, || {
        let longest = NAMES.iter().map(|name| left(&cluster, name)).max();
        match longest.is_some_and(|longest| longest <= 2 * HOUR) {
            true => Ok(()),
            false => Err(format!("{longest:?}")),
        }
    });

    // A node's last certificate is renewed also after its end. Another one that names it is not, whoever signed it: what a
    // node had in the past would let everybody in who finds it.
    let before = cluster.containers("n2");
    expire_while_off(&mut cluster, "n2", &root);
    let told = refusal(cluster.node_mut("n2"));
    assert!(
        told.contains("was issued another certificate since"),
        "{told}"
    );
    assert_eq!(cluster.containers("n2"), before, "containers of n2");

    // One that was removed meanwhile is told that.
    expire_while_off(&mut cluster, "n3", &root);
    persist(&cluster, "n1", &["node", "rm", "--force", "n3"]).ok();
    let told = refusal(cluster.node_mut("n3"));
    assert!(told.contains("was removed from the cluster"), "{told}");
    let managers = ["n1", "n4", "n5"];
    let text = "a node with an expired certificate gets no new one";
    wait_logged(&cluster, &managers, text);
}
