//! Several managers: joining, the loss of the leader, roles that change.

use std::collections::BTreeMap;

use harness::cluster::{Cluster, LIMIT};
use harness::lab::eventually;
use harness::lab::lab::available;
use nix::sys::signal::Signal;

/// Manager status by node name, as `node ls` on one node shows it; empty for workers.
fn managers(cluster: &Cluster, on: &str) -> Result<BTreeMap<String, String>, String> {
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
fn wait_managers(cluster: &Cluster, on: &str, names: &[&str]) -> String {
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

#[test]
fn containerd_three_managers_survive_the_loss_of_their_leader() {
    if !available("three managers") {
        return;
    }
    let mut cluster = Cluster::start(0);
    for name in ["n2", "n3"] {
        cluster.add_manager(name);
    }
    assert_eq!(wait_managers(&cluster, "n2", &["n1", "n2", "n3"]), "n1");
    cluster.wait_ready(3);

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
    cluster.node("n3").ctl(&create).unwrap().ok();
    let before = cluster.wait_running("web", 3, LIMIT);
    for name in ["n1", "n2", "n3"] {
        let shown =
            cluster
                .node(name)
                .ctl(&["service", "ls", "--format", "{{.Name}} {{.Replicas}}"]);
        assert_eq!(shown.unwrap().ok(), "web 3/3", "on {name}");
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
    cluster
        .node("n3")
        .ctl(&[
            "service",
            "update",
            "--detach",
            "--label-add",
            "kept=yes",
            "web",
        ])
        .unwrap()
        .ok();

    // The first one comes back as a follower, finds what it missed, and its containers untouched.
    cluster.node_mut("n1").start_again().unwrap();
    cluster.node_mut("n1").wait_ready().unwrap();
    let now = wait_managers(&cluster, "n1", &["n1", "n2", "n3"]);
    assert_ne!(now, "n1", "nobody hands the leadership back");
    let labels = [
        "service",
        "inspect",
        "--format",
        "{{json .Spec.Annotations.Labels}}",
        "web",
    ];
    let labels = cluster.node("n1").ctl(&labels).unwrap().ok();
    assert!(labels.contains("kept"), "{labels}");
    cluster.wait_ready(3);
    let after = cluster.wait_running("web", 3, LIMIT);
    assert_eq!(before, after, "a change of leader replaced a task");
    an_orderly_stop_hands_over(&mut cluster);
}

/// The leader of three is stopped in order: the next request is answered, and it comes back.
fn an_orderly_stop_hands_over(cluster: &mut Cluster) {
    let leader = wait_managers(cluster, "n1", &["n1", "n2", "n3"]);
    cluster.node_mut(&leader).stop(Signal::SIGTERM).unwrap();
    let scale = cluster
        .node("n1")
        .ctl(&["service", "scale", "--detach", "web=2"]);
    scale.unwrap().ok();
    cluster.node_mut(&leader).start_again().unwrap();
    cluster.node_mut(&leader).wait_ready().unwrap();
    cluster.wait_running("web", 2, LIMIT);
}

#[test]
fn containerd_roles_change_and_no_container_notices() {
    if !available("promotion and demotion") {
        return;
    }
    let mut cluster = Cluster::start(1);
    cluster.create_web("web", 2, &[]);
    let before = cluster.wait_running("web", 2, LIMIT);

    cluster.ctl(&["node", "promote", "n2"]).ok();
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
    let refused = cluster.ctl(&["node", "demote", "n2"]).refused();
    assert!(
        refused.contains("2 of 3 managers would be left, 2 of them have to be up, and 1 are"),
        "{refused}"
    );

    // One that is down is demoted and removed, and refused when it comes back.
    cluster.ctl(&["node", "demote", "n3"]).ok();
    wait_managers(&cluster, "n1", &["n1", "n2"]);
    cluster.ctl(&["node", "rm", "--force", "n3"]).ok();

    // The leader is demoted: the other one leads, and it goes on as a worker.
    assert_eq!(wait_managers(&cluster, "n2", &["n1", "n2"]), "n1");
    cluster.ctl(&["node", "demote", "n1"]).ok();
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
    let after = cluster.node("n2").ctl(&tasks).unwrap().ok();
    let mut after: Vec<&str> = after.lines().collect();
    let mut expected: Vec<&str> = before.iter().map(|task| task.id.as_str()).collect();
    after.sort_unstable();
    expected.sort_unstable();
    assert_eq!(after, expected, "a change of role replaced a task");

    let last = cluster
        .node("n2")
        .ctl(&["node", "demote", "n2"])
        .unwrap()
        .refused();
    assert!(last.contains("last manager"), "{last}");
}
