//! Autolock: managers that are locked when they start, the key that opens them, and how another one takes its place.

use std::fs;

use harness::cluster::{Cluster, LIMIT};
use harness::lab::lab::available;
use harness::lab::node::Options;
use harness::lab::{Node, eventually};
use nix::sys::signal::Signal;
use swarmd::ca::UnlockKey;

use super::managers::{persist, wait_managers};

const NAMES: [&str; 3] = ["n1", "n2", "n3"];

/// Whether a manager's two secrets are sealed; an error where one is and the other is not.
fn is_sealed(node: &Node) -> Result<bool, String> {
    let read = |path: &str| {
        let path = node.state_dir().join(path);
        fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))
    };
    let key = !read("certificates/swarm-node.key")?.contains("PRIVATE KEY");
    let dek = read("raft/dek")?.starts_with("swarm-raft-dek-1 sealed\n");
    match key == dek {
        true => Ok(key),
        false => Err(format!(
            "TLS key sealed: {key}, key of the log sealed: {dek}"
        )),
    }
}

#[track_caller]
fn wait_sealed(node: &Node, wanted: bool) {
    let what = format!("the secrets of {} are sealed: {wanted}", node.host.name);
    eventually(&what, LIMIT, || match is_sealed(node)? == wanted {
        true => Ok(()),
        false => Err("they are otherwise".to_owned()),
    });
}

/// Waits until swarmd's log has a line for so many times.
#[track_caller]
fn wait_logged(node: &Node, text: &str, times: usize) {
    eventually(
        &format!("{text:?} in the log of {}", node.host.name),
        LIMIT,
        || {
            let log = node.log_tail(usize::MAX);
            match log.matches(text).count() >= times {
                true => Ok(()),
                false => Err(node.log_tail(20)),
            }
        },
    );
}

const NEW_DEK: &str = "sealed by a new data encryption key";

/// Starts a manager that was stopped, and sees that it is locked: it says so, does nothing, and is not well.
#[track_caller]
fn start_locked(node: &mut Node) {
    node.start_again().unwrap();
    node.wait_ready().unwrap();
    let listed = node.ctl(&["node", "ls"]).unwrap();
    assert_eq!(listed.code, 1, "{listed:?}");
    assert!(
        listed.stderr.contains("this manager is locked"),
        "{listed:?}"
    );
    assert!(
        listed.stderr.contains("swarmctl cluster unlock"),
        "{listed:?}"
    );
    let version = node.ctl(&["version"]).unwrap().ok();
    assert!(version.contains(", locked)"), "{version}");
    let leave = node.ctl(&["node", "leave", "--force"]).unwrap().refused();
    assert!(leave.contains("this manager is locked"), "{leave}");
    let log = node.log_tail(10);
    assert!(log.contains("locked and waits for its unlock key"), "{log}");
}

/// Gives a locked manager a key; what is said where it is refused.
fn unlock(node: &Node, key: &str) -> Result<(), String> {
    let said = node.ctl_given(&["cluster", "unlock"], key).unwrap();
    match said.code {
        0 => Ok(()),
        _ => Err(said.stderr),
    }
}

fn key_of(cluster: &Cluster, on: &str) -> String {
    persist(cluster, on, &["cluster", "unlock-key", "--quiet"]).ok()
}

#[test]
fn containerd_managers_start_locked_and_take_a_new_key() {
    if !available("autolock") {
        return;
    }
    let mut cluster = Cluster::start(0);
    cluster.add_manager("n2");
    wait_managers(&cluster, "n1", &["n1", "n2"]);
    wait_sealed(cluster.node("n2"), false);
    let none = persist(&cluster, "n2", &["cluster", "unlock-key"]).refused();
    assert!(none.contains("autolock is off"), "{none}");

    let on = cluster.node("n1").ctl(&["cluster", "update", "--autolock"]);
    let on = on.unwrap();
    assert!(
        on.stderr.contains("    SWMKEY-1-"),
        "the key is told at once: {on:?}"
    );
    // One that joins now never has a secret in plain text.
    cluster.add_manager("n3");
    wait_managers(&cluster, "n1", &NAMES);
    for name in NAMES {
        wait_sealed(cluster.node(name), true);
    }
    for name in ["n1", "n2"] {
        wait_logged(cluster.node(name), NEW_DEK, 1);
    }
    let key = key_of(&cluster, "n2");
    assert!(on.stderr.contains(&key));
    let inspected = persist(
        &cluster,
        "n3",
        &["cluster", "inspect", "--format", "{{json .}}"],
    )
    .ok();
    assert!(
        !inspected.contains("SWMKEY") && !inspected.contains("UnlockKeys\":[{"),
        "{inspected}"
    );

    cluster.node_mut("n3").stop(Signal::SIGTERM).unwrap();
    start_locked(cluster.node_mut("n3"));
    let other = UnlockKey::generate().unwrap().reveal();
    let refused = unlock(cluster.node("n3"), &other).unwrap_err();
    assert!(
        refused.contains("does not unlock this manager"),
        "{refused}"
    );
    let refused = unlock(cluster.node("n3"), &key[..30]).unwrap_err();
    assert!(refused.contains("invalid unlock key"), "{refused}");
    unlock(cluster.node("n3"), &key).unwrap();
    wait_managers(&cluster, "n3", &NAMES);
    let again = unlock(cluster.node("n3"), &key).unwrap_err();
    assert!(again.contains("not locked"), "{again}");

    let new = a_rotation_while_one_is_down(&mut cluster, &key);
    a_rotation_that_is_cut_off(&mut cluster, &new);
    off_again(&mut cluster);
}

/// The one that is down still needs the old key, and takes the new one when it is back.
fn a_rotation_while_one_is_down(cluster: &mut Cluster, old: &str) -> String {
    cluster.node_mut("n2").stop(Signal::SIGTERM).unwrap();
    let rotate = ["cluster", "unlock-key", "--rotate", "--quiet"];
    let new = persist(cluster, "n1", &rotate).ok();
    assert_ne!(new, old);
    start_locked(cluster.node_mut("n2"));
    let refused = unlock(cluster.node("n2"), &new).unwrap_err();
    assert!(refused.contains("the key from before"), "{refused}");
    unlock(cluster.node("n2"), old).unwrap();
    wait_managers(cluster, "n2", &NAMES);
    wait_logged(cluster.node("n2"), "sealed by the new unlock key", 1);
    wait_logged(cluster.node("n2"), NEW_DEK, 2);

    cluster.node_mut("n2").stop(Signal::SIGKILL).unwrap();
    start_locked(cluster.node_mut("n2"));
    let refused = unlock(cluster.node("n2"), old).unwrap_err();
    assert!(
        refused.contains("does not unlock this manager"),
        "{refused}"
    );
    unlock(cluster.node("n2"), &new).unwrap();
    wait_managers(cluster, "n2", &NAMES);
    new
}

/// Killed at some moment of a rotation, a manager opens by the old key or by the new one, and ends with the new one.
fn a_rotation_that_is_cut_off(cluster: &mut Cluster, old: &str) {
    let mut old = old.to_owned();
    for round in 0..4 {
        let rotate = ["cluster", "unlock-key", "--rotate", "--quiet"];
        let new = persist(cluster, "n1", &rotate).ok();
        std::thread::sleep(std::time::Duration::from_millis(round * 7));
        cluster.node_mut("n3").stop(Signal::SIGKILL).unwrap();
        start_locked(cluster.node_mut("n3"));
        let n3 = cluster.node("n3");
        if let Err(refused) = unlock(n3, &old) {
            let opened = unlock(n3, &new);
            assert!(opened.is_ok(), "round {round}: {refused} {opened:?}");
        }
        wait_managers(cluster, "n3", &NAMES);
        // Once it has settled the new key alone opens it.
        eventually("n3 is sealed for one key", LIMIT, || {
            let dek = fs::read_to_string(cluster.node("n3").state_dir().join("raft/dek"));
            let dek = dek.map_err(|error| error.to_string())?;
            let id = |node: &Node| fs::read_to_string(node.state_dir().join("raft/dek"));
            let leader = id(cluster.node("n1")).map_err(|error| error.to_string())?;
            let ids = |text: &str| -> Vec<String> {
                let slots = text.lines().filter(|line| line.starts_with("slot "));
                slots
                    .filter_map(|slot| Some(slot.split(' ').nth(2)?.to_owned()))
                    .collect()
            };
            match ids(&dek).len() == 1 && ids(&dek) == ids(&leader) {
                true => Ok(()),
                false => Err(format!("{:?} and {:?}", ids(&dek), ids(&leader))),
            }
        });
        old = new;
    }
}

/// Without autolock all secrets are plain text again, and no manager asks for a key.
fn off_again(cluster: &mut Cluster) {
    persist(cluster, "n2", &["cluster", "update", "--autolock=false"]).ok();
    for name in NAMES {
        wait_sealed(cluster.node(name), false);
    }
    cluster.node_mut("n2").stop(Signal::SIGTERM).unwrap();
    cluster.node_mut("n2").start_again().unwrap();
    wait_managers(cluster, "n2", &NAMES);
    let rotate = ["cluster", "unlock-key", "--rotate"];
    let refused = persist(cluster, "n1", &rotate).refused();
    assert!(refused.contains("autolock is off"), "{refused}");

    // A manager that becomes a worker has nothing to lock, whatever the setting.
    persist(cluster, "n1", &["cluster", "update", "--autolock"]).ok();
    wait_sealed(cluster.node("n3"), true);
    persist(cluster, "n1", &["node", "demote", "n3"]).ok();
    eventually("n3 is a worker with a key in plain text", LIMIT, || {
        let key = cluster
            .node("n3")
            .state_dir()
            .join("certificates/swarm-node.key");
        let key = fs::read_to_string(key).map_err(|error| error.to_string())?;
        match key.contains("PRIVATE KEY") {
            true => Ok(()),
            false => Err(cluster.node("n3").log_tail(5)),
        }
    });
    // And one that is promoted is sealed from the start.
    persist(cluster, "n1", &["node", "promote", "n3"]).ok();
    wait_managers(cluster, "n3", &NAMES);
    wait_sealed(cluster.node("n3"), true);
}

#[test]
fn containerd_a_cluster_is_founded_locked() {
    if !available("autolock from the start") {
        return;
    }
    let mut cluster = Cluster::start(0);
    let options = Options {
        more: vec!["--autolock".to_owned()],
        ..Options::default()
    };
    let mut node = cluster.outsider("solo", options);
    node.wait_ready().unwrap();
    assert_eq!(is_sealed(&node), Ok(true), "from the first moment");
    let key = node
        .ctl(&["cluster", "unlock-key", "--quiet"])
        .unwrap()
        .ok();
    node.stop(Signal::SIGKILL).unwrap();

    // With the key at hand it needs nobody.
    node.start_again_with(&["--unlock-key", &key]).unwrap();
    eventually("it leads again", LIMIT, || {
        let shown = node
            .ctl(&["node", "ls"])
            .map_err(|error| error.to_string())?;
        match shown.code {
            0 => Ok(()),
            _ => Err(shown.stderr),
        }
    });
    node.stop(Signal::SIGTERM).unwrap();

    // Another cluster's key: it says so, and waits.
    let other = UnlockKey::generate().unwrap().reveal();
    node.start_again_with(&["--unlock-key", &other]).unwrap();
    node.wait_ready().unwrap();
    let log = node.log_tail(5);
    assert!(
        log.contains("--unlock-key: this manager stays locked"),
        "{log}"
    );
    assert!(!log.contains(other.as_str()), "a key is a secret: {log}");
    unlock(&node, &key).unwrap();
    node.stop(Signal::SIGTERM).unwrap();
    // It also ends in order while it is locked.
    start_locked(&mut node);
    assert_eq!(node.stop(Signal::SIGTERM).unwrap(), Some(0));
}
