//! Several managers: joining, the loss of the leader, roles that change.

use std::collections::BTreeMap;
use std::fs::File;
use std::net::TcpListener;
use std::path::Path;

use harness::cluster::{Cluster, LIMIT};
use harness::lab::eventually;
use harness::lab::lab::available;
use harness::lab::node::Output;
use nix::sched::{CloneFlags, setns};
use nix::sys::signal::Signal;

/// Exit code of swarmctl where no leader answers.
const UNREACHABLE: i32 = 4;

/// Manager status by node name, as `node ls` on one node shows it; empty for workers.
pub(super) fn managers(cluster: &Cluster, on: &str) -> Result<BTreeMap<String, String>, String> {
    let shown = cluster
        .node(on)
        .ctl(&["node", "ls", "--format", "{{.Name}}={{.ManagerStatus}}"])
        .map_err(|error| error.to_string())?;
    if shown.code != 0 {
        return Err(shown.stderr);
    }
    let lines = shown.stdout.lines().filter_map(|line| line.split_once('='));
    Ok(lines
        .map(|(name, status)| {
            // The leader has a star.
            let status = match status.strip_suffix(" *") {
                Some(_) => "leader".to_owned(),
                None => status.to_lowercase(),
            };
            (name.to_owned(), status)
        })
        .collect())
}

/// Waits until exactly these nodes are managers, all there and one of them leading; returns the leader.
#[track_caller]
pub(super) fn wait_managers(cluster: &Cluster, on: &str, names: &[&str]) -> String {
    eventually(
        &format!("managers {names:?} as {on} shows them"),
        LIMIT,
        || {
            let all = managers(cluster, on)?;
            let present = |(name, status): (&String, &String)| {
                let there = ["leader", "reachable"].contains(&status.as_str());
                there == names.contains(&name.as_str())
            };
            let leader = all.iter().find(|(_, status)| *status == "leader");
            let known = names.iter().all(|name| all.contains_key(*name));
            match (known && all.iter().all(present), leader) {
                (true, Some((leader, _))) => Ok(leader.clone()),
                (_, _) => Err(format!("{all:?}")),
            }
        },
    )
}

/// A cluster of n1, so many workers from n2 on, and these managers, all there.
#[track_caller]
pub(super) fn with_managers(workers: usize, names: &[&str]) -> Cluster {
    let mut cluster = Cluster::start(workers);
    for name in names {
        cluster.add_manager(name);
    }
    wait_managers(&cluster, "n1", &[&["n1"], names].concat());
    cluster.wait_ready(1 + workers + names.len());
    cluster
}

/// Runs swarmctl on a node until a leader has answered: while leadership changes hands a request is turned away, and it is
/// the caller's to ask again.
#[track_caller]
pub(super) fn persist(cluster: &Cluster, on: &str, arguments: &[&str]) -> Output {
    eventually(&format!("{arguments:?} on {on}"), LIMIT, || {
        let output = cluster.node(on).ctl(arguments);
        let output = output.map_err(|error| error.to_string())?;
        match output.code {
            UNREACHABLE => Err(output.stderr),
            _ => Ok(output),
        }
    })
}

#[test]
fn containerd_three_managers_survive_the_loss_of_their_leader() {
    if !available("three managers") {
        return;
    }
    let mut cluster = with_managers(0, &["n2", "n3"]);

    // A manager that does not lead takes every request, and gives the leader's answer.
    let image = cluster.image.clone();
    let create = [
        "service",
        "create",
        "--name",
        "web",
        "--image",
        &image,
        "--replicas",
        "3",
    ];
    persist(&cluster, "n3", &create).ok();
    let before = cluster.wait_running("web", 3, LIMIT);
    for name in ["n1", "n2", "n3"] {
        let list = ["service", "ls", "--format", "{{.Name}} {{.Replicas}}"];
        let shown = persist(&cluster, name, &list).ok();
        assert_eq!(shown, "web 3/3", "on {name}");
    }

    cluster.node_mut("n1").stop(Signal::SIGKILL).unwrap();
    // The two that are left elect one of them; what was acknowledged is there.
    let leader = eventually("another leader", LIMIT, || {
        let all = managers(&cluster, "n2")?;
        let leader = all.iter().find(|(_, status)| *status == "leader");
        leader
            .map(|(name, _)| name.clone())
            .filter(|name| name != "n1")
            .ok_or(format!("{all:?}"))
    });
    assert!(["n2", "n3"].contains(&leader.as_str()), "{leader}");
    let label = [
        "service",
        "update",
        "--detach",
        "--label-add",
        "kept=yes",
        "web",
    ];
    persist(&cluster, "n3", &label).ok();

    // The first one comes back as a follower, finds what it missed, and its containers untouched.
    cluster.node_mut("n1").start_again().unwrap();
    cluster.node_mut("n1").wait_ready().unwrap();
    wait_managers(&cluster, "n1", &["n1", "n2", "n3"]);
    let labels = [
        "service",
        "inspect",
        "--format",
        "{{json .Spec.Annotations.Labels}}",
        "web",
    ];
    let labels = persist(&cluster, "n1", &labels).ok();
    assert!(labels.contains("kept"), "{labels}");
    cluster.wait_ready(3);
    let after = cluster.wait_running("web", 3, LIMIT);
    assert_eq!(before, after, "a change of leader replaced a task");
    an_orderly_stop_hands_over(&mut cluster);
}

/// The leader of three is stopped in order: the next request is answered, and it comes back.
fn an_orderly_stop_hands_over(cluster: &mut Cluster) {
    let names = ["n1", "n2", "n3"];
    let leader = wait_managers(cluster, "n1", &names);
    cluster.node_mut(&leader).stop(Signal::SIGTERM).unwrap();
    let other = names.into_iter().find(|name| *name != leader).unwrap();
    let scale = ["service", "scale", "--detach", "web=2"];
    // Not turned away: while leadership changes hands a request waits.
    cluster.node(other).ctl(&scale).unwrap().ok();
    let log = cluster.node(&leader).log_tail(50);
    assert!(log.contains("another manager leads now"), "{log}");
    cluster.node_mut(&leader).start_again().unwrap();
    cluster.node_mut(&leader).wait_ready().unwrap();
    cluster.wait_running("web", 2, LIMIT);
}

/// A listener on a host, held by the test.
fn listen_on(netns: &Path, port: u16) -> TcpListener {
    let netns = File::open(netns).unwrap();
    // A namespace belongs to a thread; the socket stays where it was made.
    let bound = std::thread::spawn(move || {
        setns(netns, CloneFlags::CLONE_NEWNET).unwrap();
        TcpListener::bind(("0.0.0.0", port)).unwrap()
    });
    bound.join().unwrap()
}

#[test]
fn containerd_roles_change_and_no_container_notices() {
    if !available("promotion and demotion") {
        return;
    }
    let mut cluster = Cluster::start(1);
    cluster.create_web("web", 2, &[]);
    let before = cluster.wait_running("web", 2, LIMIT);

    // A worker whose manager port somebody has goes on with its tasks, and is a manager once the port is free.
    let taken = listen_on(&cluster.node("n2").host.netns_path(), 4242);
    persist(&cluster, "n1", &["node", "promote", "n2"]).ok();
    eventually("n2 says what is in its way", LIMIT, || {
        let log = cluster.node("n2").log_tail(20);
        match log.contains("can't be a manager yet") {
            true => Ok(()),
            false => Err(log),
        }
    });
    assert_eq!(cluster.running("web"), before);
    drop(taken);
    wait_managers(&cluster, "n1", &["n1", "n2"]);
    eventually("n2 answers as a manager", LIMIT, || {
        managers(&cluster, "n2").map(drop)
    });

    // Without a third, neither may be lost: the arithmetic is told.
    cluster.add_manager("n3");
    wait_managers(&cluster, "n1", &["n1", "n2", "n3"]);
    cluster.node_mut("n3").stop(Signal::SIGKILL).unwrap();
    eventually("n3 is missed", LIMIT, || {
        match managers(&cluster, "n1")?.get("n3") {
            Some(status) if status == "unreachable" => Ok(()),
            status => Err(format!("{status:?}")),
        }
    });
    let refused = persist(&cluster, "n1", &["node", "demote", "n2"]).refused();
    assert!(
        refused.contains("2 of 3 managers would be left, 2 of them have to be up, and 1 are"),
        "{refused}"
    );

    // One that is down is demoted and removed, and refused when it comes back.
    persist(&cluster, "n1", &["node", "demote", "n3"]).ok();
    wait_managers(&cluster, "n1", &["n1", "n2"]);
    persist(&cluster, "n1", &["node", "rm", "--force", "n3"]).ok();

    // The leader is demoted: the other one leads, and it goes on as a worker.
    persist(&cluster, "n2", &["node", "demote", "n1"]).ok();
    assert_eq!(wait_managers(&cluster, "n2", &["n2"]), "n2");
    eventually("n1 is a worker", LIMIT, || {
        let shown = cluster
            .node("n2")
            .ctl(&["node", "inspect", "--format", "{{.Role}}", "n1"]);
        let role = shown.map_err(|error| error.to_string())?;
        match role.stdout.to_lowercase().contains("worker") {
            true => Ok(()),
            false => Err(format!("{}{}", role.stdout, role.stderr)),
        }
    });
    let tasks = [
        "task",
        "ls",
        "--format",
        "{{.ID}}",
        "--no-trunc",
        "--filter",
        "desired-state=running",
    ];
    let after = persist(&cluster, "n2", &tasks).ok();
    let mut after: Vec<&str> = after.lines().collect();
    let mut expected: Vec<&str> = before.iter().map(|task| task.id.as_str()).collect();
    after.sort_unstable();
    expected.sort_unstable();
    assert_eq!(after, expected, "a change of role replaced a task");

    let last = persist(&cluster, "n2", &["node", "demote", "n2"]).refused();
    assert!(last.contains("last manager"), "{last}");

    // The one that founded the cluster comes back as a manager: it joins like any other.
    persist(&cluster, "n2", &["node", "promote", "n1"]).ok();
    wait_managers(&cluster, "n1", &["n1", "n2"]);
}

#[test]
fn containerd_a_manager_that_is_demoted_and_promoted_again_is_a_member_again() {
    if !available("demotion and promotion at once") {
        return;
    }
    const NAMES: [&str; 3] = ["n1", "n2", "n3"];
    let mut cluster = with_managers(0, &["n2", "n3"]);
    let number = |cluster: &Cluster, name: &str| {
        let inspect = ["node", "inspect", "--format", "{{.ManagerStatus.RaftID}}"];
        persist(cluster, "n1", &[&inspect[..], &[name]].concat()).ok()
    };

    // While it is down: it comes back with a manager's certificate and log, and both are what it should have.
    let before = number(&cluster, "n3");
    cluster.node_mut("n3").stop(Signal::SIGKILL).unwrap();
    persist(&cluster, "n1", &["node", "demote", "n3"]).ok();
    wait_managers(&cluster, "n1", &["n1", "n2"]);
    persist(&cluster, "n1", &["node", "promote", "n3"]).ok();
    cluster.node_mut("n3").start_again().unwrap();
    wait_managers(&cluster, "n1", &NAMES);
    wait_managers(&cluster, "n3", &NAMES);
    assert_ne!(number(&cluster, "n3"), before);

    // While it is up, before it has asked for another certificate.
    for _ in 0..3 {
        persist(&cluster, "n1", &["node", "demote", "n2"]).ok();
        persist(&cluster, "n1", &["node", "promote", "n2"]).ok();
        eventually("n2 votes, and nothing is left to do", LIMIT, || {
            let shown = managers(&cluster, "n2")?;
            let known = cluster.node("n1").ctl(&["node", "inspect", "n2"]);
            let known = known.map_err(|error| error.to_string())?.stdout;
            match shown.get("n2").map(String::as_str) {
                Some("leader" | "reachable") => Ok(()),
                status => Err(format!("{status:?}: {known}")),
            }
        });
        wait_managers(&cluster, "n2", &NAMES);
    }
}
