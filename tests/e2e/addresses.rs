//! Managers at other addresses: one, all of them, and what the operator says of that.

use std::path::Path;

use harness::cluster::{Cluster, LIMIT};
use harness::lab::eventually;
use harness::lab::lab::available;
use harness::lab::node::REMOTE_API_PORT;
use nix::sys::signal::Signal;

use super::managers::{persist, wait_managers};

const NAMES: [&str; 3] = ["n1", "n2", "n3"];

fn address(cluster: &Cluster, name: &str) -> String {
    format!("{}:{REMOTE_API_PORT}", cluster.node(name).host.address)
}

/// Waits until consensus has a manager at exactly these addresses.
#[track_caller]
fn wait_at(cluster: &Cluster, on: &str, name: &str, addresses: &[&str]) {
    let expected = addresses.join(",");
    let format = "{{range .ManagerStatus.Addrs}}{{.}},{{end}}";
    eventually(&format!("{name} is at {expected}"), LIMIT, || {
        let shown = cluster
            .node(on)
            .ctl(&["node", "inspect", "--format", format, name]);
        let shown = shown.map_err(|error| error.to_string())?;
        match shown.stdout.trim_end().trim_end_matches(',') == expected {
            true => Ok(()),
            false => Err(format!("{}{}", shown.stdout, shown.stderr)),
        }
    });
}

/// Waits until the worker's agent has been told of a manager there, and keeps that over a restart.
#[track_caller]
fn wait_known(cluster: &Cluster, name: &str, address: &str) {
    let files = || {
        let dir: &Path = cluster.node(name).state_dir();
        let all = walk(dir);
        let known = all.iter().any(|file| {
            let bytes = std::fs::read(file).unwrap_or_default();
            bytes
                .windows(address.len())
                .any(|part| part == address.as_bytes())
        });
        known.then_some(()).ok_or("not yet".to_owned())
    };
    eventually(&format!("{name} knows {address}"), LIMIT, files);
}

fn walk(dir: &Path) -> Vec<std::path::PathBuf> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let each = entries.map(|entry| entry.path());
    each.flat_map(|path| match path.is_dir() {
        true => walk(&path),
        false => vec![path],
    })
    .collect()
}

#[track_caller]
fn start(cluster: &mut Cluster, name: &str) {
    cluster.node_mut(name).start_again().unwrap();
}

/// Stops a node, and gives its host another address; it is not started again.
fn move_node(cluster: &mut Cluster, name: &str, last: u8) {
    let node = cluster.node_mut(name);
    node.stop(Signal::SIGTERM).unwrap();
    node.readdress(last).unwrap();
}

#[test]
fn containerd_a_manager_at_another_address_is_found_again() {
    if !available("managers that move") {
        return;
    }
    let mut cluster = Cluster::start(0);
    for name in ["n2", "n3"] {
        cluster.add_manager(name);
    }
    cluster.add_worker("n4");
    wait_managers(&cluster, "n1", &NAMES);
    cluster.wait_ready(4);
    cluster.create_web("web", 4, &[]);
    let before = cluster.wait_running("web", 4, LIMIT);
    let held = cluster.containers("n2");

    // A follower, which says where it is.
    move_node(&mut cluster, "n2", 102);
    start(&mut cluster, "n2");
    wait_managers(&cluster, "n1", &NAMES);
    let at = address(&cluster, "n2");
    wait_at(&cluster, "n1", "n2", &[&at]);
    wait_known(&cluster, "n4", &at);

    // Another one, which does not: what the others see counts.
    cluster.node_mut("n3").say_no_address();
    move_node(&mut cluster, "n3", 103);
    start(&mut cluster, "n3");
    wait_managers(&cluster, "n1", &NAMES);
    wait_at(&cluster, "n1", "n3", &[&address(&cluster, "n3")]);

    // A manager that leads from its new address on.
    let leader = wait_managers(&cluster, "n1", &NAMES);
    move_node(&mut cluster, &leader, 101);
    start(&mut cluster, &leader);
    let other = NAMES.into_iter().find(|name| *name != leader).unwrap();
    wait_managers(&cluster, other, &NAMES);
    wait_at(&cluster, other, &leader, &[&address(&cluster, &leader)]);
    cluster.node_mut(&leader).wait_ready().unwrap();

    // Every node reports, at whichever manager it is; nothing was replaced, and no container touched.
    cluster.wait_ready(4);
    assert_eq!(cluster.wait_running("web", 4, LIMIT), before);
    assert_eq!(cluster.containers("n2"), held);
    persist(&cluster, "n1", &["service", "scale", "web=5"]).ok();

    the_operator_says_where_a_manager_is(&cluster);
    all_managers_move(&mut cluster);
}

/// What the operator says counts, and what leads nowhere does no harm.
fn the_operator_says_where_a_manager_is(cluster: &Cluster) {
    let (at, leader) = (address(cluster, "n2"), wait_managers(cluster, "n1", &NAMES));
    let other = NAMES
        .into_iter()
        .find(|name| *name != leader && *name != "n1");
    let other = other.unwrap();
    let real = address(cluster, other);
    let set = ["node", "set-addr", other, "nowhere.invalid:4242", &real];
    persist(cluster, "n1", &set).ok();
    wait_at(cluster, "n1", other, &["nowhere.invalid:4242", &real]);
    wait_managers(cluster, "n1", &NAMES);
    persist(cluster, "n1", &["node", "set-addr", other, "--auto"]).ok();
    wait_at(cluster, "n1", other, &[&real]);
    let refused = persist(cluster, "n1", &["node", "set-addr", "n4", &at]).refused();
    assert!(refused.contains("is a worker"), "{refused}");
}

/// A new subnet: each of three managers is elsewhere at its next start, and two of them are told of one.
fn all_managers_move(cluster: &mut Cluster) {
    let before = cluster.wait_running("web", 5, LIMIT);
    for name in NAMES {
        cluster.node_mut(name).stop(Signal::SIGKILL).unwrap();
    }
    for (last, name) in (111..).zip(NAMES) {
        cluster.node_mut(name).readdress(last).unwrap();
    }
    let one = address(cluster, "n1");
    start(cluster, "n1");
    for name in ["n2", "n3"] {
        cluster.node_mut(name).told_of(&one);
        start(cluster, name);
    }
    wait_managers(cluster, "n1", &NAMES);
    for name in NAMES {
        wait_at(cluster, "n1", name, &[&address(cluster, name)]);
    }
    // The worker knew only where they were.
    cluster.node_mut("n4").stop(Signal::SIGTERM).unwrap();
    cluster.node_mut("n4").told_of(&one);
    start(cluster, "n4");
    cluster.wait_ready(4);
    assert_eq!(cluster.wait_running("web", 5, LIMIT), before);
}
