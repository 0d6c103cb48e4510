//! Managers that are dead: they vote no more after a while, and join again when they are back.

use harness::cluster::{Cluster, LIMIT};
use harness::lab::eventually;
use harness::lab::lab::available;
use nix::sys::signal::Signal;

use super::managers::{managers, persist, wait_managers};

const NAMES: [&str; 3] = ["n1", "n2", "n3"];

fn inspect(cluster: &Cluster, format: &str, name: &str) -> String {
    persist(
        cluster,
        "n1",
        &["node", "inspect", "--format", format, name],
    )
    .ok()
}

/// Waits until this manager is shown so.
#[track_caller]
fn wait_shown(cluster: &Cluster, name: &str, expected: &str) {
    eventually(
        &format!("{name} is {expected}"),
        LIMIT,
        || match managers(cluster, "n1")?.get(name) {
            Some(status) if status == expected => Ok(()),
            status => Err(format!("{status:?}")),
        },
    );
}

#[test]
fn containerd_a_dead_manager_votes_no_more_and_joins_again() {
    if !available("managers that are given up") {
        return;
    }
    let mut cluster = Cluster::start(0);
    // Containers stay where they are while swarmd is away: a heartbeat is long here, for nodes that register from now on.
    let update = ["cluster", "update", "--heartbeatperiod", "60s"];
    persist(&cluster, "n1", &update).ok();
    for name in ["n2", "n3"] {
        cluster.add_manager(name);
    }
    wait_managers(&cluster, "n1", &NAMES);
    cluster.wait_ready(3);
    cluster.create_web("web", 3, &[]);
    let held = cluster.containers("n3");
    let first = inspect(&cluster, "{{.ManagerStatus.RaftID}}", "n3");

    persist(
        &cluster,
        "n1",
        &["cluster", "update", "--dead-manager-grace", "5s"],
    )
    .ok();
    cluster.node_mut("n3").stop(Signal::SIGKILL).unwrap();
    wait_shown(&cluster, "n3", "removed");
    let shown = persist(&cluster, "n1", &["node", "inspect", "n3"]).ok();
    assert!(
        shown.contains("of the 2 voting managers that are left 2 have to be up, and 2 were"),
        "{shown}"
    );

    // The two go on, and it comes back as another member.
    persist(&cluster, "n1", &["cluster", "update", "--taskhistory", "3"]).ok();
    cluster.node_mut("n3").start_again().unwrap();
    wait_managers(&cluster, "n1", &NAMES);
    wait_managers(&cluster, "n3", &NAMES);
    let again = inspect(&cluster, "{{.ManagerStatus.RaftID}}", "n3");
    assert_ne!(first, again);
    eventually("nothing is said of it any more", LIMIT, || {
        match inspect(&cluster, "{{.RetiredReason}}", "n3").as_str() {
            "" => Ok(()),
            reason => Err(reason.to_owned()),
        }
    });
    assert_eq!(cluster.containers("n3"), held);

    // By force, and at once: what is down is given up so that another one can go.
    persist(
        &cluster,
        "n1",
        &["cluster", "update", "--dead-manager-grace", "0s"],
    )
    .ok();
    cluster.node_mut("n3").stop(Signal::SIGKILL).unwrap();
    wait_shown(&cluster, "n3", "unreachable");
    let refused = persist(&cluster, "n1", &["node", "demote", "n2"]).refused();
    assert!(
        refused.contains("2 of 3 managers would be left, 2 of them have to be up, and 1 are")
            && refused.contains("--force, which gives them up as voters before: n3"),
        "{refused}"
    );
    let forced = persist(&cluster, "n1", &["node", "demote", "--force", "n2"]);
    assert!(
        forced.stderr.contains("going on, as --force says"),
        "{forced:?}"
    );
    forced.ok();
    wait_managers(&cluster, "n1", &["n1"]);
    cluster.node_mut("n3").start_again().unwrap();
    wait_managers(&cluster, "n1", &["n1", "n3"]);
}
