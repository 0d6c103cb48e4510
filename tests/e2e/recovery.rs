//! A cluster that lost its managers: it goes on with one of them, or from a backup, and no container notices.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use harness::cluster::{Cluster, LIMIT};
use harness::lab::lab::available;
use harness::lab::node::{Options, REMOTE_API_PORT};
use harness::lab::{Node, binaries, eventually};
use nix::sys::signal::Signal;

use super::refusals::last_words;

/// `node ls` on a node: by name, the status and the manager status.
fn nodes(on: &Node) -> Result<BTreeMap<String, (String, String)>, String> {
    let format = "{{.Name}}={{.Status}}={{.ManagerStatus}}";
    let shown = on.ctl(&["node", "ls", "--format", format]);
    let shown = shown.map_err(|error| error.to_string())?;
    if shown.code != 0 {
        return Err(shown.stderr);
    }
    let lines = shown.stdout.lines().filter_map(|line| {
        let (name, rest) = line.split_once('=')?;
        let (status, manager) = rest.split_once('=')?;
        Some((
            name.to_owned(),
            (status.to_lowercase(), manager.to_lowercase()),
        ))
    });
    Ok(lines.collect())
}

/// Waits until a node shows these nodes so; the leader's status ends with a star.
#[track_caller]
fn wait_nodes(on: &Node, expected: &[(&str, &str, &str)]) {
    eventually(&format!("{expected:?}"), LIMIT, || {
        let all = nodes(on)?;
        let is = |(name, status, manager): &(&str, &str, &str)| {
            all.get(*name) == Some(&((*status).to_owned(), (*manager).to_owned()))
        };
        match expected.iter().all(is) {
            true => Ok(()),
            false => Err(format!("{all:?}")),
        }
    });
}

/// Runs swarmd to its end; its exit code, and what it says.
fn swarmd(arguments: &[&str]) -> (i32, String) {
    let mut command = Command::new(binaries::find("swarmd").unwrap());
    let output = command.args(arguments).output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text).into_owned();
    (output.status.code().unwrap_or(128), text)
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[track_caller]
fn wait_log(node: &Node, words: &str) {
    eventually(&format!("{words:?} in the log"), LIMIT, || {
        let log = node.log_tail(400);
        match log.contains(words) {
            true => Ok(()),
            false => Err(log),
        }
    });
}

#[test]
fn containerd_one_manager_of_three_goes_on_and_the_others_are_fenced() {
    if !available("a cluster that lost its majority") {
        return;
    }
    let mut cluster = Cluster::start(1);
    for name in ["n3", "n4"] {
        cluster.add_manager(name);
    }
    let up = [
        ("n1", "reachable *"),
        ("n3", "reachable"),
        ("n4", "reachable"),
        ("n2", ""),
    ];
    wait_nodes(
        cluster.node("n1"),
        &up.map(|(name, manager)| (name, "ready", manager)),
    );
    cluster.create_web("web", 4, &[]);
    cluster.wait_running("web", 4, LIMIT);
    let before = ["n2", "n4"].map(|name| cluster.containers(name));
    assert!(before.iter().all(|held| !held.is_empty()), "{before:?}");

    // Two of three are gone: nobody leads, until the third is told to go on alone.
    for name in ["n1", "n3", "n4"] {
        cluster.node_mut(name).stop(Signal::SIGKILL).unwrap();
    }
    let n4 = text(cluster.node("n4").state_dir()).to_owned();
    let (code, dumped) = swarmd(&["raft", "dump", "--entries", "--objects", "--state-dir", &n4]);
    assert_eq!(code, 0, "{dumped}");
    assert!(
        dumped.contains("\"web\"") && dumped.contains("createService"),
        "{dumped}"
    );
    for secret in ["SWMTKN-1", "PRIVATE KEY"] {
        assert!(!dumped.contains(secret), "{secret} shows");
    }
    cluster
        .node_mut("n4")
        .start_again_with(&["--force-new-cluster"])
        .unwrap();
    cluster.node_mut("n4").wait_ready().unwrap();
    wait_nodes(
        cluster.node("n4"),
        &[("n4", "ready", "reachable *"), ("n2", "ready", "")],
    );
    let scale = [
        "service",
        "update",
        "--detach",
        "--label-add",
        "kept=yes",
        "web",
    ];
    cluster.node("n4").ctl(&scale).unwrap().ok();

    the_old_ones_come_back(&mut cluster);
    fenced_for_good(&mut cluster);
    let after = ["n2", "n4"].map(|name| cluster.containers(name));
    for (before, after) in before.iter().zip(&after) {
        let kept = before.iter().all(|(id, pid)| after.get(id) == Some(pid));
        assert!(kept, "{before:?} became {after:?}");
    }
    and_join_again(&mut cluster);
}

/// They are a majority of what was, and hear that it is over.
fn the_old_ones_come_back(cluster: &mut Cluster) {
    for name in ["n1", "n3"] {
        cluster.node_mut(name).start_again().unwrap();
    }
    for name in ["n1", "n3"] {
        wait_log(cluster.node(name), "this manager is fenced");
        let told = eventually("an answer", LIMIT, || {
            let shown = cluster.node(name).ctl(&["node", "ls"]);
            let shown = shown.map_err(|error| error.to_string())?;
            match shown.stderr.contains("fenced") {
                true => Ok(shown.stderr),
                false => Err(shown.stderr),
            }
        });
        assert!(told.contains("swarmd leave --force"), "{told}");
    }
}

/// Neither a restart nor the absence of the new cluster lets an old pair lead again; and health says so.
fn fenced_for_good(cluster: &mut Cluster) {
    for name in ["n1", "n3"] {
        cluster.node_mut(name).stop(Signal::SIGTERM).unwrap();
        // A flag that was left in the settings of one does not make it go on above the others.
        let node = cluster.node_mut(name);
        node.start_again_with(&["--force-new-cluster"]).unwrap();
        let log = last_words(node);
        assert!(log.contains("--force-new-cluster=2-"), "{log}");
        node.start_again().unwrap();
    }
    let healthy = |cluster: &Cluster| {
        let socket = cluster.node("n1").socket();
        swarmd(&["healthcheck", "--listen-control-api", text(&socket)])
    };
    eventually("n1 says how it is", LIMIT, || match healthy(cluster) {
        (1, told) if told.contains("this manager is fenced") => Ok(()),
        (code, told) => Err(format!("{code} {told}")),
    });
    // Their agents work for the cluster that goes on.
    let fenced = [
        ("n1", "ready", "unreachable"),
        ("n3", "ready", "unreachable"),
    ];
    wait_nodes(cluster.node("n4"), &fenced);
}

fn and_join_again(cluster: &mut Cluster) {
    let n4 = cluster.node("n4");
    n4.ctl(&["node", "demote", "n1"]).unwrap().ok();
    wait_nodes(n4, &[("n1", "ready", "")]);
    eventually("n1 is a worker", LIMIT, || {
        let shown = n4.ctl(&["node", "inspect", "--format", "{{.Role}}", "n1"]);
        let role = shown
            .map_err(|error| error.to_string())?
            .stdout
            .to_lowercase();
        match role.contains("worker") {
            true => Ok(()),
            false => Err(role),
        }
    });
    n4.ctl(&["node", "promote", "n1"]).unwrap().ok();
    wait_nodes(
        n4,
        &[("n1", "ready", "reachable"), ("n4", "ready", "reachable *")],
    );
    cluster
        .node("n3")
        .ctl(&["node", "leave", "--force"])
        .unwrap()
        .ok();
    let n4 = cluster.node("n4");
    wait_nodes(n4, &[("n3", "down", "unreachable")]);
    n4.ctl(&["node", "demote", "n3"]).unwrap().ok();
    n4.ctl(&["node", "rm", "n3"]).unwrap().ok();
    // The flag that made it go on alone does so once: others have joined since.
    let n4 = cluster.node_mut("n4");
    n4.stop(Signal::SIGTERM).unwrap();
    n4.start_again_with(&["--force-new-cluster"]).unwrap();
    n4.wait_ready().unwrap();
    wait_log(n4, "is not again, because other managers have joined since");
    eventually("n1 takes part", LIMIT, || {
        match nodes(cluster.node("n4"))?.get("n1") {
            Some((_, manager)) if manager.starts_with("reachable") => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
    // A start without the flag ends the recovery: nothing of before stays, and it is a cluster as any.
    cluster.node_mut("n4").stop(Signal::SIGTERM).unwrap();
    cluster.node_mut("n4").start_again().unwrap();
    cluster.node_mut("n4").wait_ready().unwrap();
    let names = fs::read_dir(cluster.node("n4").state_dir()).unwrap();
    let names: Vec<_> = names.map(|entry| entry.unwrap().file_name()).collect();
    let kept = names
        .iter()
        .filter(|name| name.to_string_lossy().starts_with("raft."));
    assert_eq!(kept.count(), 0, "{names:?}");
}

#[test]
fn containerd_a_backup_becomes_a_cluster_elsewhere_and_workers_come_with_their_containers() {
    if !available("a restore") {
        return;
    }
    let mut cluster = Cluster::start(1);
    cluster.ctl(&["node", "drain", "n1"]).ok();
    cluster.create_web("web", 2, &[]);
    cluster.wait_running("web", 2, LIMIT);
    let before = cluster.containers("n2");
    assert_eq!(before.len(), 2);
    let state = cluster.node("n1").state_dir().to_owned();
    let file = state.with_file_name("cluster.backup");
    cluster.ctl(&["cluster", "backup", text(&file)]).ok();
    let again = cluster.ctl(&["cluster", "backup", text(&file)]).refused();
    assert!(again.contains("--force"), "{again}");
    cluster.node_mut("n1").stop(Signal::SIGKILL).unwrap();

    let target = state.with_file_name("n3");
    refusals(&file, &state, &target);
    let host = cluster.lab.host("n3").unwrap();
    let address = format!("{}:{REMOTE_API_PORT}", host.address);
    let restore = ["restore", text(&file), "--state-dir", text(&target)];
    let more = ["--advertise-remote-api", &address];
    let (code, told) = swarmd(&[&restore[..], &more].concat());
    assert_eq!(code, 0, "{told}");
    assert!(
        told.contains(&address) && told.contains("--join-addr"),
        "{told}"
    );
    let options = cluster.lab.options();
    cluster.add_node("n3", options);
    cluster.node_mut("n3").wait_ready().unwrap();
    wait_nodes(cluster.node("n3"), &[("n3", "ready", "reachable *")]);

    // The worker is told where its cluster is: no token, the same node, the same containers.
    cluster.node_mut("n2").stop(Signal::SIGTERM).unwrap();
    let options = Options {
        more: vec!["--join-addr".to_owned(), address],
        ..cluster.lab.options()
    };
    cluster.add_node("n2", options);
    wait_nodes(
        cluster.node("n3"),
        &[("n2", "ready", ""), ("n1", "down", "unreachable")],
    );
    eventually("both tasks run", LIMIT, || {
        let shown = cluster
            .node("n3")
            .ctl(&["service", "ls", "--format", "{{.Replicas}}"]);
        let shown = shown.map_err(|error| error.to_string())?;
        match shown.stdout.trim() {
            "2/2" => Ok(()),
            other => Err(format!("{other}{}", shown.stderr)),
        }
    });
    assert_eq!(cluster.containers("n2"), before);

    // The manager of the backup comes back, and hears of it.
    cluster.node_mut("n1").start_again().unwrap();
    wait_log(cluster.node("n1"), "this manager is fenced");
}

/// What can't be restored is told, and leaves nothing behind.
fn refusals(file: &Path, full: &Path, target: &Path) {
    let whole = fs::read(file).unwrap();
    let other = file.with_extension("other");
    let restore = |file: &Path, dir: &Path| {
        let (code, told) = swarmd(&["restore", text(file), "--state-dir", text(dir)]);
        assert_eq!(code, 1, "{told}");
        assert!(!target.exists(), "{told}");
        told
    };
    let told = restore(file, full);
    assert!(told.contains("is not empty"), "{told}");
    let mut altered = whole.clone();
    let middle = altered.len() / 2;
    *altered.get_mut(middle).unwrap() ^= 1;
    for (content, words) in [
        (altered, "is damaged"),
        (whole.get(..middle).unwrap().to_vec(), "is cut short"),
        (b"#!/bin/sh\n".to_vec(), "is no backup"),
        (b"SWRMBAK7....".to_vec(), "format 7"),
    ] {
        fs::write(&other, content).unwrap();
        let told = restore(&other, target);
        assert!(told.contains(words), "{told}");
        let (code, told) = swarmd(&["restore", "--check", text(&other)]);
        assert!(code == 1 && told.contains(words), "{told}");
    }
    let (code, told) = swarmd(&["restore", "--check", text(file)]);
    assert!(code == 0 && told.contains("Services"), "{told}");
}
