//! The scenarios of SwarmKit's integration tests, each on real processes: here, or where the table says.
//!
//! | SwarmKit | here |
//! |---|---|
//! | ClusterCreate, ServiceCreate, NodeOps, DemotePromote, PromoteDemote, DemotePromoteLeader, DemoteLeader, DemoteDownedManager, DemoteToSingleManager | `containerd_roles_go_back_and_forth_under_sixty_replicas` |
//! | ServiceCreateLateBind, RestartLeader, NodeRejoins, RepeatedRootRotation | `containerd_a_leader_that_restarts_is_all_that_is_missed` |
//! | NodeJoinWithWrongCerts | `containerd_nodes_of_another_cluster_join_by_no_mistake` |
//! | AutolockManagers | `autolock` |
//! | ForceNewCluster | `certificates` |
//! | SuccessfulRootRotation | `ca` |
//! | MixedFIPSCluster… | a token of a FIPS cluster is refused: `containerd_nodes_of_another_cluster_join_by_no_mistake`; there is no FIPS mode |

use std::collections::BTreeMap;

use harness::cluster::{Cluster, LIMIT, Task};
use harness::lab::eventually;
use harness::lab::lab::available;
use harness::lab::node::Options;
use nix::sys::signal::Signal;

use super::ca::wait_root;
use super::managers::{persist, wait_managers};
use super::refusals::last_words;

const REPLICAS: usize = 60;

/// What `node inspect` on one node shows of another.
#[track_caller]
fn shown(cluster: &Cluster, on: &str, format: &str, of: &str) -> String {
    persist(
        cluster,
        on,
        &["node", "inspect", "--format", format, "--", of],
    )
    .ok()
    .to_lowercase()
}

#[track_caller]
fn wait_role(cluster: &Cluster, on: &str, name: &str, role: &str) {
    eventually(&format!("{name} is a {role}"), LIMIT, || {
        match shown(cluster, on, "{{.Role}}", name) {
            is if is.contains(role) => Ok(()),
            is => Err(is),
        }
    });
}

/// Tasks that are meant to run, as a manager other than n1 may show them.
#[track_caller]
fn running(cluster: &Cluster, on: &str) -> Vec<String> {
    let list = [
        "task",
        "ls",
        "--no-trunc",
        "--filter",
        "desired-state=running",
        "--format",
        "{{.ID}}",
    ];
    let mut ids: Vec<String> = persist(cluster, on, &list)
        .ok()
        .lines()
        .map(str::to_owned)
        .collect();
    ids.sort();
    ids
}

fn ids<'a>(tasks: impl Iterator<Item = &'a Task>) -> Vec<String> {
    let mut ids: Vec<String> = tasks.map(|task| task.id.clone()).collect();
    ids.sort();
    ids
}

#[test]
fn containerd_roles_go_back_and_forth_under_sixty_replicas() {
    if !available("roles that go back and forth") {
        return;
    }
    let all = ["n1", "n4", "n5"];
    let mut cluster = Cluster::start(0);
    // Who is stopped for a moment keeps its tasks, however slow this host is; of nodes that register from now on.
    cluster
        .ctl(&["cluster", "update", "--heartbeatperiod", "60s"])
        .ok();
    for name in ["n2", "n3", "n6"] {
        cluster.add_worker(name);
    }
    for name in ["n4", "n5"] {
        cluster.add_manager(name);
    }
    wait_managers(&cluster, "n1", &all);
    cluster.wait_ready(6);
    cluster.create_web("web", REPLICAS, &[]);
    let before = cluster.wait_running("web", REPLICAS, LIMIT);

    // A worker up and down.
    persist(&cluster, "n1", &["node", "promote", "n2"]).ok();
    wait_managers(&cluster, "n1", &["n1", "n2", "n4", "n5"]);
    persist(&cluster, "n1", &["node", "demote", "n2"]).ok();
    wait_role(&cluster, "n1", "n2", "worker");
    wait_managers(&cluster, "n1", &all);

    // A manager down and up, in one breath and not.
    persist(&cluster, "n1", &["node", "demote", "n4"]).ok();
    persist(&cluster, "n1", &["node", "promote", "n4"]).ok();
    wait_managers(&cluster, "n4", &all);
    persist(&cluster, "n1", &["node", "demote", "n5"]).ok();
    wait_role(&cluster, "n1", "n5", "worker");
    persist(&cluster, "n1", &["node", "promote", "n5"]).ok();
    wait_managers(&cluster, "n5", &all);

    // The leader, which says so itself.
    let leader = wait_managers(&cluster, "n1", &all);
    let other = all.into_iter().find(|name| *name != leader).unwrap();
    persist(&cluster, &leader, &["node", "demote", &leader]).ok();
    wait_role(&cluster, other, &leader, "worker");
    persist(&cluster, other, &["node", "promote", &leader]).ok();
    wait_managers(&cluster, other, &all);

    // One that is down: it comes back as a worker, with its containers.
    let held = cluster.containers("n5");
    cluster.node_mut("n5").stop(Signal::SIGKILL).unwrap();
    persist(&cluster, "n1", &["node", "demote", "n5"]).ok();
    wait_managers(&cluster, "n1", &["n1", "n4"]);
    cluster.node_mut("n5").start_again().unwrap();
    wait_role(&cluster, "n1", "n5", "worker");
    eventually("n5 is ready", LIMIT, || {
        match shown(&cluster, "n1", "{{.Status.State}}", "n5") {
            state if state.contains("ready") => Ok(()),
            state => Err(state),
        }
    });
    assert_eq!(cluster.containers("n5"), held);

    // Down to a single one, which is not the one that founded the cluster.
    persist(&cluster, "n4", &["node", "demote", "n1"]).ok();
    assert_eq!(wait_managers(&cluster, "n4", &["n4"]), "n4");
    wait_role(&cluster, "n4", "n1", "worker");
    assert_eq!(
        running(&cluster, "n4"),
        ids(before.iter()),
        "a change of role replaced a task"
    );

    // A worker goes for good: what it ran runs elsewhere, and nothing else moves.
    cluster.node_mut("n6").stop(Signal::SIGKILL).unwrap();
    persist(&cluster, "n4", &["node", "rm", "--force", "n6"]).ok();
    let stayed = ids(before.iter().filter(|task| task.node != "n6"));
    eventually("sixty replicas on five nodes", LIMIT, || {
        let now = running(&cluster, "n4");
        let kept = stayed.iter().all(|id| now.contains(id));
        match now.len() == REPLICAS && kept && now.len() > stayed.len() {
            true => Ok(()),
            false => Err(format!("{} of {REPLICAS}, kept: {kept}", now.len())),
        }
    });
}

/// Node names with their state, as one manager shows them.
fn states(cluster: &Cluster, on: &str) -> Result<BTreeMap<String, String>, String> {
    let output = cluster
        .node(on)
        .ctl(&["node", "ls", "--format", "{{.Name}} {{.Status}}"]);
    let output = output.map_err(|error| error.to_string())?;
    let lines = output
        .stdout
        .lines()
        .filter_map(|line| line.split_once(' '));
    let states: BTreeMap<_, _> = lines
        .map(|(name, state)| (name.to_owned(), state.to_lowercase()))
        .collect();
    match states.is_empty() {
        true => Err(output.stderr),
        false => Ok(states),
    }
}

#[test]
fn containerd_a_leader_that_restarts_is_all_that_is_missed() {
    if !available("a leader that restarts") {
        return;
    }
    let managers = ["n1", "n2", "n3"];
    let mut cluster = Cluster::start(0);
    seven_nodes_that_come_early(&mut cluster);
    wait_managers(&cluster, "n1", &managers);
    cluster.wait_ready(8);
    cluster.create_web("web", REPLICAS, &[]);
    let before = cluster.wait_running("web", REPLICAS, LIMIT);

    // The leader is killed and comes back: nobody else is ever shown as down (a new leader has not
    // heard of anybody yet, and says so).
    let leader = wait_managers(&cluster, "n1", &managers);
    let other = managers.into_iter().find(|name| *name != leader).unwrap();
    let id = shown(&cluster, other, "{{.ID}}", &leader);
    cluster.node_mut(&leader).stop(Signal::SIGKILL).unwrap();
    let mut missed = Vec::new();
    let mut look = |cluster: &Cluster| {
        let seen = states(cluster, other)?;
        missed.extend(
            seen.iter()
                .filter(|(name, state)| **name != leader && *state == "down")
                .map(|(name, _)| name.clone()),
        );
        Ok::<_, String>(seen)
    };
    eventually("the leader is missed", LIMIT, || {
        match look(&cluster)?.get(&leader) {
            Some(state) if state != "ready" => Ok(()),
            state => Err(format!("{state:?}")),
        }
    });
    cluster.node_mut(&leader).start_again().unwrap();
    eventually("all are ready", LIMIT, || {
        let seen = look(&cluster)?;
        match seen.values().all(|state| state == "ready") {
            true => Ok(()),
            false => Err(format!("{seen:?}")),
        }
    });
    assert!(missed.is_empty(), "{missed:?}");
    wait_managers(&cluster, other, &managers);
    assert_eq!(shown(&cluster, other, "{{.ID}}", &leader), id);
    assert_eq!(
        running(&cluster, other),
        ids(before.iter()),
        "a restart of the leader replaced a task"
    );

    // A worker that restarts is the node that it was.
    let id = shown(&cluster, other, "{{.ID}}", "n8");
    let held = cluster.containers("n8");
    cluster.node_mut("n8").stop(Signal::SIGKILL).unwrap();
    cluster.node_mut("n8").start_again().unwrap();
    cluster.node_mut("n8").wait_ready().unwrap();
    cluster.wait_ready(8);
    assert_eq!(shown(&cluster, other, "{{.ID}}", "n8"), id);
    assert_eq!(cluster.containers("n8"), held);

    three_changes_of_root(&cluster, other);
    assert_eq!(running(&cluster, other), ids(before.iter()));
}

/// They come while the manager they join is not there yet.
fn seven_nodes_that_come_early(cluster: &mut Cluster) {
    let (address, worker, manager) = (
        cluster.join_address(),
        cluster.token("worker"),
        cluster.token("manager"),
    );
    cluster.node_mut("n1").stop(Signal::SIGTERM).unwrap();
    for name in ["n2", "n3", "n4", "n5", "n6", "n7", "n8"] {
        let token = if name < "n4" { &manager } else { &worker };
        let options = Options {
            join: Some((address.clone(), token.clone())),
            ..cluster.lab.options()
        };
        cluster.add_node(name, options);
    }
    eventually("n8 has asked in vain", LIMIT, || {
        let log = cluster.node("n8").log_tail(20);
        match log.contains(&address) {
            true => Ok(()),
            false => Err(log),
        }
    });
    cluster.node_mut("n1").start_again().unwrap();
    cluster.node_mut("n1").wait_ready().unwrap();
}

/// Each before the one before is through: the last one counts.
fn three_changes_of_root(cluster: &Cluster, on: &str) {
    for _ in 0..3 {
        persist(
            cluster,
            on,
            &["cluster", "ca", "--rotate", "--detach", "--quiet"],
        )
        .ok();
    }
    eventually("the change of root is over", LIMIT, || {
        let log = persist(
            cluster,
            on,
            &[
                "cluster",
                "inspect",
                "--format",
                "{{json .RootCA.RootRotation}}",
            ],
        )
        .ok();
        match log.as_str() {
            "null" => Ok(()),
            _ => Err(log),
        }
    });
    let root = persist(cluster, on, &["cluster", "ca"]).ok();
    let names = cluster.names();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    wait_root(cluster, &names, &root);
}

#[test]
fn containerd_nodes_of_another_cluster_join_by_no_mistake() {
    if !available("nodes of another cluster") {
        return;
    }
    let mut cluster = Cluster::start(0);
    let (address, token) = (cluster.join_address(), cluster.token("worker"));
    let mut founder = cluster.outsider("f1", cluster.lab.options());
    founder.wait_ready().unwrap();
    let foreign = founder.ctl(&["cluster", "join-token", "--quiet", "worker"]);
    let options = Options {
        join: Some((
            format!("{}:4242", founder.host.address),
            foreign.unwrap().ok(),
        )),
        ..cluster.lab.options()
    };
    let mut worker = cluster.outsider("f2", options);
    worker.wait_ready().unwrap();

    // Told to join the first cluster, it is told at once that it has one.
    founder.stop(Signal::SIGTERM).unwrap();
    founder
        .start_again_with(&["--join-addr", &address, "--join-token", &token])
        .unwrap();
    let told = last_words(&mut founder);
    assert!(told.contains("swarmd leave"), "{told}");

    // Not told so, a worker whose manager does not come back asks on.
    worker.stop(Signal::SIGTERM).unwrap();
    worker.start_again().unwrap();
    eventually("f2 says whom it misses", LIMIT, || {
        let log = worker.log_tail(20);
        match log.contains(&founder.host.address.to_string()) {
            true => Ok(()),
            false => Err(log),
        }
    });
    assert!(worker.is_running());
    founder.start_again().unwrap();
    founder.wait_ready().unwrap();
    eventually("f2 is ready again", LIMIT, || {
        let list = founder.ctl(&["node", "ls", "--format", "{{.Name}} {{.Status}}"]);
        let listed = list.map_err(|error| error.to_string())?.stdout;
        match listed.to_lowercase().contains("f2 ready") {
            true => Ok(()),
            false => Err(listed),
        }
    });

    // SwarmKit's tokens of clusters that demand FIPS are told apart.
    let fips = token.replacen("SWMTKN-1-", "SWMTKN-2-1-", 1);
    let options = Options {
        join: Some((address, fips)),
        ..cluster.lab.options()
    };
    let mut node = cluster.outsider("f3", options);
    let told = last_words(&mut node);
    assert!(told.contains("FIPS"), "{told}");
    let listed = cluster.ctl(&["node", "ls", "--format", "{{.Name}}"]).ok();
    assert_eq!(listed, "n1", "nobody has joined");
}
