//! The root CA is replaced while the cluster runs.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;

use harness::cluster::{Cluster, LIMIT};
use harness::lab::eventually;
use harness::lab::lab::available;
use nix::sys::signal::Signal;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, KeyPair};
use swarmd::ca::NodeIdentity;

use super::managers::{persist, wait_managers, with_managers};
use super::refusals::last_words;

const ALL: [&str; 5] = ["n1", "n2", "n3", "n4", "n5"];

/// The roots that a node trusts, as its state directory has them.
fn roots(cluster: &Cluster, name: &str) -> String {
    let path = cluster.node(name).state_dir();
    fs::read_to_string(path.join("certificates/swarm-root-ca.crt")).unwrap()
}

/// The certificates of all nodes are under this root alone, and all of them trust it alone.
#[track_caller]
pub(super) fn wait_root(cluster: &Cluster, names: &[&str], root: &str) {
    eventually("all nodes trust the new root alone", LIMIT, || {
        for name in names {
            let trusted = roots(cluster, name);
            if trusted.trim_end() != root {
                return Err(format!("{name} trusts\n{trusted}"));
            }
            // Read only: the node writes there. Three files that change together may not fit for a moment.
            let read = |file: &str| {
                let path = cluster
                    .node(name)
                    .state_dir()
                    .join("certificates")
                    .join(file);
                fs::read_to_string(path).map_err(|error| error.to_string())
            };
            let (cert, key) = (read("swarm-node.crt")?, read("swarm-node.key")?);
            let identity = NodeIdentity::from_pem(&cert, &key, &trusted);
            identity.map_err(|error| format!("{name}: {error}"))?;
        }
        Ok(())
    });
}

/// Starts a change of root, and returns the new root as it is under way.
#[track_caller]
fn rotate(cluster: &Cluster, on: &str) -> String {
    let before = under_way(cluster, on);
    persist(cluster, on, &["cluster", "ca", "--rotate", "--detach"]).ok();
    let now = under_way(cluster, on);
    assert_ne!(before, now);
    now
}

/// The certificate of the next root; empty where the root is not being changed.
#[track_caller]
fn under_way(cluster: &Cluster, on: &str) -> String {
    let format = "{{if .RootCa.RootRotation}}{{json .RootCa.RootRotation.CaCert}}{{end}}";
    let inspect = ["cluster", "inspect", "--format", format];
    persist(cluster, on, &inspect).ok()
}

#[track_caller]
fn wait_over(cluster: &Cluster, on: &str) {
    eventually("the change of root is over", LIMIT, || {
        match under_way(cluster, on).as_str() {
            "" => Ok(()),
            _ => Err(cluster
                .node(on)
                .ctl(&["cluster", "inspect"])
                .unwrap()
                .stdout),
        }
    });
}

fn containers(cluster: &Cluster, names: &[&str]) -> BTreeMap<String, String> {
    names
        .iter()
        .flat_map(|name| cluster.containers(name))
        .collect()
}

/// A root of the operator's own, as files.
pub(super) fn own_root(dir: &std::path::Path) -> (PathBuf, PathBuf) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params
        .distinguished_name
        .push(DnType::CommonName, "a root of our own");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let cert = params.self_signed(&key).unwrap();
    let (cert_file, key_file) = (dir.join("root.pem"), dir.join("root.key"));
    fs::write(&cert_file, cert.pem()).unwrap();
    fs::write(&key_file, key.serialize_pem()).unwrap();
    (cert_file, key_file)
}

#[test]
fn containerd_the_root_is_replaced_under_a_running_cluster() {
    if !available("replacing the root CA") {
        return;
    }
    let mut cluster = Cluster::start(0);
    for name in ["n2", "n3"] {
        cluster.add_manager(name);
    }
    for name in ["n4", "n5"] {
        cluster.add_worker(name);
    }
    wait_managers(&cluster, "n2", &["n1", "n2", "n3"]);
    cluster.wait_ready(5);
    cluster.create_web("web", 5, &[]);
    let tasks = cluster.wait_running("web", 5, LIMIT);
    let running = containers(&cluster, &ALL);

    let first = persist(&cluster, "n1", &["cluster", "ca"]).ok();
    let tokens = ["worker", "manager"].map(|role| cluster.token(role));
    let told = persist(&cluster, "n2", &["cluster", "ca", "--rotate"]);
    assert!(
        told.stderr
            .contains("of 5 nodes have a certificate under the new root"),
        "{told:?}"
    );
    let second = told.ok();
    assert_ne!(first, second);
    assert_eq!(persist(&cluster, "n3", &["cluster", "ca"]).ok(), second);
    wait_root(&cluster, &ALL, &second);
    cluster.wait_ready(5);
    wait_managers(&cluster, "n3", &["n1", "n2", "n3"]);
    assert_eq!(cluster.wait_running("web", 5, LIMIT), tasks);
    assert_eq!(containers(&cluster, &ALL), running);

    tokens_follow(&mut cluster, &tokens);
    // Restarted with the token that it once joined with, and with what it has on disk.
    for name in ["n3", "n4"] {
        cluster.node_mut(name).stop(Signal::SIGTERM).unwrap();
        cluster.node_mut(name).start_again().unwrap();
        cluster.node_mut(name).wait_ready().unwrap();
    }
    cluster.wait_ready(6);

    // Again, to a root of the operator's own, without the leader of before.
    let dir = tempfile::tempdir().unwrap();
    let (cert, key) = own_root(dir.path());
    let (cert, key) = (cert.to_str().unwrap(), key.to_str().unwrap());
    let given = [
        "cluster",
        "ca",
        "--rotate",
        "--quiet",
        "--ca-cert",
        cert,
        "--ca-key",
        key,
    ];
    let third = persist(&cluster, "n3", &given);
    assert_eq!(third.stderr, "");
    let third = third.ok();
    assert_eq!(third, fs::read_to_string(cert).unwrap().trim_end());
    wait_root(&cluster, &ALL, &third);
    cluster.wait_ready(6);
    assert_eq!(cluster.wait_running("web", 5, LIMIT), tasks);
    assert_eq!(containers(&cluster, &ALL), running);
}

/// Old tokens pin a root that is gone; the new ones let a node in.
fn tokens_follow(cluster: &mut Cluster, old: &[String; 2]) {
    let new = ["worker", "manager"].map(|role| cluster.token(role));
    let all: BTreeSet<&String> = old.iter().chain(&new).collect();
    assert_eq!(all.len(), 4);
    let join = Some((cluster.join_address(), old[0].clone()));
    let mut refused = cluster.lab.node("n9", join).unwrap();
    let log = last_words(&mut refused);
    assert!(log.contains("join"), "{log}");
    cluster.add_worker("n6");
    cluster.wait_ready(6);
}

#[test]
fn containerd_a_change_of_root_waits_for_who_is_down_and_gives_way_to_the_next() {
    if !available("changes of the root CA that overtake each other") {
        return;
    }
    let mut cluster = with_managers(2, &["n4", "n5"]);
    cluster.create_web("web", 3, &[]);
    let first = cluster.ctl(&["cluster", "ca"]).ok();

    for name in ["n2", "n3", "n5"] {
        cluster.node_mut(name).stop(Signal::SIGKILL).unwrap();
    }
    let one = rotate(&cluster, "n1");
    eventually("three nodes are waited for", LIMIT, || {
        let shown = cluster.ctl(&["cluster", "inspect"]).ok();
        match shown.contains("under way, waits for 3 nodes") {
            true => Ok(()),
            false => Err(shown),
        }
    });
    // Not over, and the old root is what joiners pin.
    assert_eq!(cluster.ctl(&["cluster", "ca"]).ok(), first);
    cluster.add_worker("n6");
    eventually("who joins meanwhile is not waited for", LIMIT, || {
        let shown = cluster.ctl(&["cluster", "inspect"]).ok();
        let joined = cluster
            .ctl(&["node", "ls", "--format", "{{.Name}} {{.Status}}"])
            .ok();
        match joined.to_lowercase().contains("n6 ready") && shown.contains("waits for 3 nodes") {
            true => Ok(()),
            false => Err(format!("{joined}\n{shown}")),
        }
    });

    // Another change takes its place; the nodes that have the one before turn to it.
    let two = rotate(&cluster, "n4");
    assert_ne!(one, two);
    for name in ["n2", "n5"] {
        cluster.node_mut(name).start_again().unwrap();
        cluster.node_mut(name).wait_ready().unwrap();
    }
    eventually("one node is waited for", LIMIT, || {
        let shown = cluster.ctl(&["cluster", "inspect"]).ok();
        match shown.contains("under way, waits for 1 node\n") {
            true => Ok(()),
            false => Err(shown),
        }
    });
    assert_eq!(under_way(&cluster, "n5"), two);
    cluster.ctl(&["node", "rm", "--force", "n3"]).ok();
    wait_over(&cluster, "n1");
    let root = cluster.ctl(&["cluster", "ca"]).ok();
    assert_ne!(root, first);
    wait_root(&cluster, &["n1", "n2", "n4", "n5", "n6"], &root);
    wait_managers(&cluster, "n5", &["n1", "n4", "n5"]);

    // The one that was removed trusts nothing that is there now, and is refused.
    cluster.node_mut("n3").start_again().unwrap();
    eventually("n3 is told", LIMIT, || {
        let log = cluster.node("n3").log_tail(20);
        match log.contains("no session with a manager") {
            true => Ok(()),
            false => Err(log),
        }
    });
    cluster.node_mut("n3").stop(Signal::SIGKILL).unwrap();

    // Two in a row, without waiting for the first.
    rotate(&cluster, "n1");
    let told = cluster.ctl(&["cluster", "ca", "--rotate", "--quiet"]).ok();
    wait_root(&cluster, &["n1", "n2", "n4", "n5", "n6"], &told);
    cluster.wait_ready(5);
    cluster.wait_running("web", 3, LIMIT);
}
