//! Tasks on real hosts: spread, scaled, replaced, found again, reached.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use harness::cluster::{Cluster, LIMIT, Task};
use harness::lab::lab::available;
use harness::lab::{eventually, sweep};
use nix::sys::signal::Signal;

/// Promised for the tasks of a worker that was cut off: they run elsewhere within this time.
const FAILOVER: Duration = Duration::from_secs(20);

/// Tasks a node.
fn spread(tasks: &[Task]) -> BTreeMap<&str, usize> {
    let mut spread = BTreeMap::new();
    for task in tasks {
        *spread.entry(task.node.as_str()).or_default() += 1;
    }
    spread
}

fn ids(tasks: &[Task]) -> BTreeSet<&str> {
    tasks.iter().map(|task| task.id.as_str()).collect()
}

#[test]
fn containerd_replicas_spread_over_six_hosts_scale_and_leave_nothing() {
    if !available("replicas on six hosts") {
        return;
    }
    let mut cluster = Cluster::start(5);
    cluster.create_web("web", 5, &[]);
    let five = cluster.wait_running("web", 5, LIMIT);
    assert_eq!(
        spread(&five).len(),
        5,
        "five tasks on six empty hosts are on five of them: {five:#?}"
    );

    cluster.ctl(&["service", "scale", "web=30"]).ok();
    let thirty = cluster.wait_running("web", 30, LIMIT);
    assert!(
        spread(&thirty).values().all(|count| *count == 5),
        "{:?}",
        spread(&thirty)
    );
    assert!(
        ids(&thirty).is_superset(&ids(&five)),
        "scaling up replaced a task"
    );
    for name in cluster.names() {
        assert_eq!(cluster.containers(&name).len(), 5, "containers on {name}");
    }

    cluster.ctl(&["service", "scale", "web=2"]).ok();
    cluster.wait_running("web", 2, LIMIT);
    cluster.ctl(&["service", "rm", "web"]).ok();
    cluster.wait_nothing_held();

    // A worker that leaves takes everything of its own with it, down to its containerd namespace.
    cluster.node("n2").ctl(&["node", "leave"]).unwrap().ok();
    let namespace = cluster.node("n2").host.namespace.clone();
    eventually("removal of the containerd namespace", LIMIT, || {
        let listed = cluster
            .lab
            .containerd
            .ctr("default", &["namespaces", "ls", "-q"]);
        let listed = listed.map_err(|error| error.to_string())?;
        if listed.lines().all(|line| line != namespace) {
            Ok(())
        } else {
            Err(listed)
        }
    });
    let ended = cluster.node_mut("n2").wait_ended(LIMIT).unwrap();
    assert_eq!(ended, Some(0), "swarmd ends by itself after it has left");

    let site = cluster.lab.site.clone();
    drop(cluster);
    assert_eq!(sweep::left(&site).unwrap(), Vec::<String>::new());
}

#[test]
fn containerd_a_killed_container_is_replaced_in_its_slot() {
    if !available("a killed container") {
        return;
    }
    let cluster = Cluster::start(2);
    cluster.create_web("web", 3, &["--restart-delay", "1s"]);
    let before = cluster.wait_running("web", 3, LIMIT);
    let killed = &before[1];
    let host = cluster.node(&killed.node).host.clone();
    cluster
        .lab
        .containerd
        .ctr(
            &host.namespace,
            &["tasks", "kill", "-s", "SIGKILL", &killed.container],
        )
        .unwrap();

    let after = eventually("a new task in the slot", LIMIT, || {
        let tasks = cluster.running("web");
        let new = tasks.len() == 3 && tasks.iter().all(|task| task.id != killed.id);
        if new {
            Ok(tasks)
        } else {
            Err(format!("{tasks:#?}"))
        }
    });
    let slots: Vec<&str> = after.iter().map(|task| task.slot.as_str()).collect();
    assert_eq!(slots, ["1", "2", "3"]);
    let kept: Vec<&Task> = after
        .iter()
        .filter(|task| before.iter().any(|old| old.id == task.id))
        .collect();
    assert_eq!(
        kept.len(),
        2,
        "only the killed task is replaced: {after:#?}"
    );
    let history = cluster.all_tasks("web");
    let old = history
        .iter()
        .find(|task| task.id == killed.id)
        .expect("the killed task is in the history");
    assert_eq!(old.state, "failed");
    assert!(old.error.contains("137"), "the exit code is told: {old:#?}");
}

#[test]
fn containerd_restarts_of_swarmd_and_containerd_touch_no_container() {
    if !available("restarts of swarmd and containerd") {
        return;
    }
    let mut cluster = Cluster::start(2);
    cluster.create_web("web", 6, &[]);
    let before = cluster.wait_running("web", 6, LIMIT);
    let containers = |cluster: &Cluster| -> Vec<BTreeMap<String, String>> {
        cluster
            .names()
            .iter()
            .map(|name| cluster.containers(name))
            .collect()
    };
    let processes = containers(&cluster);
    let unchanged = |cluster: &Cluster, after: &str| {
        cluster.wait_ready(3);
        let tasks = cluster.wait_running("web", 6, LIMIT);
        assert_eq!(tasks, before, "the tasks after {after}");
        assert_eq!(
            containers(cluster),
            processes,
            "the containers and their processes after {after}"
        );
        assert_eq!(
            ids(&cluster.all_tasks("web")),
            ids(&before),
            "no task was replaced by {after}"
        );
    };

    for (name, signal) in [
        ("n2", Signal::SIGKILL),
        ("n2", Signal::SIGTERM),
        ("n1", Signal::SIGKILL),
        ("n1", Signal::SIGTERM),
    ] {
        let code = cluster.node_mut(name).stop(signal).unwrap();
        assert_eq!(
            code,
            (signal == Signal::SIGTERM).then_some(0),
            "exit code of {name} after {signal}"
        );
        assert_eq!(
            containers(&cluster),
            processes,
            "containers while {name} is down"
        );
        cluster.node_mut(name).start_again().unwrap();
        cluster.node_mut(name).wait_ready().unwrap();
        unchanged(&cluster, &format!("{signal} to {name}"));
    }

    cluster.lab.containerd.stop(Signal::SIGTERM).unwrap();
    cluster.lab.containerd.start_again().unwrap();
    unchanged(&cluster, "a restart of containerd");

    // Adopted for good: they can still be stopped and replaced.
    cluster.ctl(&["service", "scale", "web=3"]).ok();
    cluster.wait_running("web", 3, LIMIT);
    cluster.ctl(&["service", "rm", "web"]).ok();
    cluster.wait_nothing_held();
}

#[test]
fn containerd_tasks_of_a_cut_off_worker_run_elsewhere_and_its_old_ones_go() {
    if !available("a worker that is cut off") {
        return;
    }
    let cluster = Cluster::start(3);
    cluster.create_web("web", 8, &[]);
    let before = cluster.wait_running("web", 8, LIMIT);
    assert_eq!(spread(&before).get("n3"), Some(&2), "{:?}", spread(&before));
    let worker = cluster.node("n3").host.clone();

    worker.cut().unwrap();
    eventually("all tasks on the other hosts", FAILOVER, || {
        let elsewhere: Vec<Task> = cluster
            .running("web")
            .into_iter()
            .filter(|task| task.node != "n3")
            .collect();
        if elsewhere.len() == 8 {
            Ok(())
        } else {
            Err(format!("{elsewhere:#?}"))
        }
    });
    assert_eq!(
        cluster.containers("n3").len(),
        2,
        "a worker without a manager keeps its containers"
    );

    worker.mend().unwrap();
    cluster.wait_ready(4);
    cluster.wait_held_at_most("n3", 0);
    let after = cluster.wait_running("web", 8, LIMIT);
    assert_eq!(
        spread(&after).get("n3"),
        None,
        "a node that comes back gets no task of a service that is complete"
    );
}

#[test]
fn containerd_what_cannot_be_placed_says_why_until_it_can() {
    if !available("tasks that can't be placed") {
        return;
    }
    let mut cluster = Cluster::start(1);
    let create = |cluster: &Cluster, name: &str, more: &[&str]| {
        let more = [&["--detach"], more].concat();
        cluster.create(name, &cluster.image, &more);
    };
    create(
        &cluster,
        "labelled",
        &["--constraint", "node.labels.disk==ssd"],
    );
    create(
        &cluster,
        "elsewhere",
        &["--constraint", "node.hostname==n3"],
    );
    create(&cluster, "huge", &["--memory-reservation", "1000g"]);
    let reason = |service: &str, part: &str| {
        eventually(
            &format!("the reason why {service} is pending"),
            LIMIT,
            || {
                let tasks = cluster.all_tasks(service);
                let why = cluster.ctl(&["task", "why", &format!("{service}.1")]);
                let listed = cluster.ctl(&["service", "ps", "--no-trunc", service]);
                let told = why.stdout.contains(part) && listed.stdout.contains(part);
                let pending = tasks.len() == 1 && tasks[0].state == "pending";
                if told && pending {
                    Ok(())
                } else {
                    Err(format!(
                        "{tasks:?}\n{}{}{}",
                        why.stdout, why.stderr, listed.stdout
                    ))
                }
            },
        );
    };
    reason("labelled", "constraint");
    reason("elsewhere", "constraint");
    reason("huge", "insufficient resources");
    let why = cluster.ctl(&["task", "why", "huge.1"]).ok();
    assert!(
        why.contains("memory"),
        "each node says which resource is missing: {why}"
    );

    cluster
        .ctl(&["node", "update", "n2", "--label-add", "disk=ssd"])
        .ok();
    let where_and_why = |placed: &[harness::cluster::Task]| -> (String, String) {
        let task = &placed[0];
        (task.node.clone(), task.error.clone())
    };
    let placed = cluster.wait_running("labelled", 1, LIMIT);
    assert_eq!(where_and_why(&placed), ("n2".into(), String::new()));
    cluster.add_worker("n3");
    let placed = cluster.wait_running("elsewhere", 1, LIMIT);
    assert_eq!(where_and_why(&placed), ("n3".into(), String::new()));
    assert_eq!(cluster.all_tasks("huge")[0].state, "pending");
}

#[test]
fn containerd_published_ports_answer_and_ends_are_told() {
    if !available("published ports") {
        return;
    }
    let cluster = Cluster::start(1);
    let publish = ["--publish", "mode=host,target=8080,published=18080"];
    let short = ["--restart-delay", "1s", "--stop-grace-period", "1s"];
    cluster.create_web("web", 2, &[&publish[..], &short].concat());
    let tasks = cluster.wait_running("web", 2, LIMIT);
    assert_eq!(
        spread(&tasks).len(),
        2,
        "a port is taken once on each host: {tasks:#?}"
    );

    for task in &tasks {
        let text = eventually("answer of the task", LIMIT, || {
            cluster.get(&task.node, 18080, "/")
        });
        let expected = [
            format!("task: web.{}.{}\n", task.slot, task.id),
            format!("node: {}\n", task.node),
        ];
        assert!(
            expected.iter().all(|line| text.contains(line)),
            "{expected:?} {text}"
        );
        let client = format!("client: {}:", cluster.lab.site.gateway());
        assert!(
            text.contains(&client),
            "the task sees its client's own address: {text}"
        );
    }

    // A task that ends by itself is replaced, and its exit code is told.
    let crashed = &tasks[0];
    let _cut_short = cluster.get(&crashed.node, 18080, "/crash?code=42");
    let told = eventually("the exit code", LIMIT, || {
        let history = cluster.all_tasks("web");
        let old = history.iter().find(|task| task.id == crashed.id).cloned();
        old.filter(|task| task.state == "failed")
            .ok_or(format!("{history:#?}"))
    });
    assert!(told.error.contains("42"), "{told:#?}");
    cluster.wait_running("web", 2, LIMIT);

    // A task that does not end when it is asked to is killed after its grace period.
    let _no_answer = cluster.get(&tasks[1].node, 18080, "/hang");
    cluster.ctl(&["service", "rm", "web"]).ok();
    cluster.wait_nothing_held();
}
