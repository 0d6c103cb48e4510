//! Managers at other addresses: one, all of them, and what the operator says of that.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use harness::cluster::{Cluster, LIMIT};
use harness::lab::eventually;
use harness::lab::lab::available;
use harness::lab::node::{Options, REMOTE_API_PORT};
use nix::sys::signal::Signal;

use super::managers::{managers, persist, wait_managers};

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

/// Names of hosts, as their resolvers have them.
struct Names {
    file: PathBuf,
    addresses: BTreeMap<String, Ipv4Addr>,
}

impl Names {
    /// The name of a host, with the port of its manager.
    fn of(name: &str) -> String {
        format!("{name}.swarm.test:{REMOTE_API_PORT}")
    }

    /// From now on the name leads there.
    fn lead(&mut self, name: &str, address: Ipv4Addr) {
        self.addresses.insert(name.to_owned(), address);
        let lines = self.addresses.iter();
        let lines: String = lines
            .map(|(name, address)| format!("{address} {name}.swarm.test\n"))
            .collect();
        std::fs::write(&self.file, lines).unwrap();
    }

    /// Of a node that says its name, and joins by a manager's.
    fn options(&self, name: &str, token: Option<String>) -> Options {
        Options {
            join: token.map(|token| (Self::of("n1"), token)),
            advertise: Some(Self::of(name)),
            hosts: Some(self.file.clone()),
            ..Options::default()
        }
    }
}

/// Three managers and a worker that know each other by names alone.
fn named() -> (Cluster, Names) {
    let mut names = Names {
        file: PathBuf::new(),
        addresses: BTreeMap::new(),
    };
    let mut cluster = Cluster::found(|lab| {
        names.file = lab.site.run().join("names");
        for name in ["n1", "n2", "n3", "n4"] {
            names.lead(name, lab.host(name).unwrap().address);
        }
        names.options("n1", None)
    });
    for (name, role) in [("n2", "manager"), ("n3", "manager"), ("n4", "worker")] {
        let token = cluster.token(role);
        cluster.add_node(name, names.options(name, Some(token)));
    }
    wait_managers(&cluster, "n1", &NAMES);
    cluster.wait_ready(4);
    (cluster, names)
}

#[test]
fn containerd_a_manager_is_found_where_its_name_leads() {
    if !available("managers that are known by their names") {
        return;
    }
    let (mut cluster, mut names) = named();
    for name in NAMES {
        wait_at(&cluster, "n1", name, &[&Names::of(name)]);
        wait_known(&cluster, "n4", &Names::of(name));
    }
    let leader = wait_managers(&cluster, "n1", &NAMES);
    let mut followers = ["n2", "n3"].into_iter().filter(|name| *name != leader);
    let moved = followers.next().unwrap();
    let other = if moved == "n2" { "n3" } else { "n2" };

    // Its host gets another address while it runs. As long as the name leads to the old one, nobody finds it.
    cluster.node_mut(moved).host.readdress(121).unwrap();
    eventually(&format!("{moved} is missed"), LIMIT, || {
        match managers(&cluster, "n1")?.get(moved) {
            Some(status) if status == "unreachable" => Ok(()),
            status => Err(format!("{status:?}")),
        }
    });
    names.lead(moved, cluster.node(moved).host.address);
    wait_managers(&cluster, "n1", &NAMES);
    wait_at(&cluster, "n1", moved, &[&Names::of(moved)]);

    // It is a part of the majority there.
    cluster.node_mut(other).stop(Signal::SIGKILL).unwrap();
    let create = ["service", "create", "--detach", "--no-resolve-image"];
    let web = ["--name", "kept", "--image", "web", "--replicas", "0"];
    persist(&cluster, "n1", &[&create[..], &web].concat()).ok();

    // One that was away meanwhile, and one that joins now, find it too.
    cluster.node_mut(other).start_again().unwrap();
    wait_managers(&cluster, "n1", &NAMES);
    cluster.node_mut("n4").stop(Signal::SIGTERM).unwrap();
    cluster.node_mut("n4").told_of(&Names::of(moved));
    start(&mut cluster, "n4");
    cluster.wait_ready(4);
}
