//! A certificate that has expired: its node says so with the way out, and nothing is lost.

use std::fs;
use std::path::Path;
use std::time::Duration;

use harness::cluster::{Cluster, LIMIT};
use harness::lab::Node;
use harness::lab::lab::available;
use nix::sys::signal::Signal;
use rcgen::{CertificateParams, KeyPair};
use swarmd::ca::{ExpiredCertificate, IdentityDir, NodeIdentity, NodeSubject, RootCa};
use swarmd::clock::Clock;

use super::refusals::last_words;

const DAY: Duration = Duration::from_secs(24 * 3600);

/// Replaces the node's certificate by one that was over yesterday, under this root.
pub(super) fn expire(state: &Path, root: &RootCa) {
    let dir = IdentityDir::new(state);
    let now = Clock::real().now();
    let identity = dir.load(now, ExpiredCertificate::Refuse).unwrap();
    let identity = identity.unwrap();
    let subject = NodeSubject {
        node_id: identity.node_id(),
        role: identity.role(),
        cluster_id: identity.cluster_id(),
    };
    let two_days_ago = now.before(2 * DAY);
    let key = KeyPair::from_pem(identity.key_pem()).unwrap();
    let request = CertificateParams::default()
        .serialize_request(&key)
        .unwrap();
    let request = request.pem().unwrap();
    let certificate = root.issue(request.as_bytes(), &subject, DAY, two_days_ago);
    let expired =
        NodeIdentity::from_pem(&certificate.unwrap(), identity.key_pem(), root.cert_pem());
    dir.store(&expired.unwrap()).unwrap();
}

/// The same under a root that is not the cluster's, of which no manager takes it.
fn expire_beyond_renewal(state: &Path) {
    let week_ago = Clock::real().now().before(7 * DAY);
    expire(state, &RootCa::generate(week_ago).unwrap());
}

/// Starts a node that ends by itself; what it says then.
#[track_caller]
pub(super) fn refusal(node: &mut Node) -> String {
    node.start_again().unwrap();
    let log = last_words(node);
    assert!(log.contains("certificate expired at"), "{log}");
    log
}

#[test]
fn containerd_an_expired_certificate_is_told_with_the_way_out_and_loses_nothing() {
    if !available("an expired certificate") {
        return;
    }
    let mut cluster = Cluster::start(1);
    cluster.create_web("web", 4, &[]);
    cluster.wait_running("web", 4, LIMIT);

    // A worker: its containers stay, and it joins again as the text says.
    let before = cluster.containers("n2");
    assert_eq!(before.len(), 2);
    cluster.node_mut("n2").stop(Signal::SIGTERM).unwrap();
    expire_beyond_renewal(cluster.node("n2").state_dir());
    let told = refusal(cluster.node_mut("n2"));
    assert!(told.contains("--join-token"), "{told}");
    assert_eq!(cluster.containers("n2"), before, "containers of n2");
    let certificates = cluster.node("n2").state_dir().join("certificates");
    fs::rename(&certificates, certificates.with_extension("expired")).unwrap();
    cluster.node_mut("n2").start_again().unwrap();
    cluster.wait_ready(2);
    cluster.wait_running("web", 4, LIMIT);

    // The manager: the cluster is there again with a new certificate, also without the flag then.
    let before = cluster.containers("n1");
    assert!(!before.is_empty());
    cluster.node_mut("n1").stop(Signal::SIGTERM).unwrap();
    expire_beyond_renewal(cluster.node("n1").state_dir());
    let told = refusal(cluster.node_mut("n1"));
    assert!(told.contains("--force-new-cluster"), "{told}");
    for more in [&["--force-new-cluster"][..], &[]] {
        cluster.node_mut("n1").start_again_with(more).unwrap();
        cluster.node_mut("n1").wait_ready().unwrap();
        cluster.wait_ready(2);
        cluster.wait_running("web", 4, LIMIT);
        let after = cluster.containers("n1");
        assert!(
            before.iter().all(|(id, pid)| after.get(id) == Some(pid)),
            "{before:?} became {after:?}"
        );
        cluster.node_mut("n1").stop(Signal::SIGTERM).unwrap();
    }
}
