//! What tasks take of their nodes, as operators and Prometheus see it.

use harness::cluster::{Cluster, LIMIT};
use harness::lab::eventually;
use harness::lab::lab::available;
use harness::lab::node::Options;
use nix::sys::signal::Signal;

use super::managers::{persist, wait_managers};

const PORT: u16 = 9323;

/// The value of a sample, by its name and labels.
fn sample(text: &str, name: &str) -> Option<f64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.trim().parse().ok()
}

#[test]
fn containerd_tasks_say_what_they_take_and_nodes_what_they_are() {
    if !available("what tasks take") {
        return;
    }
    let mut cluster = Cluster::start(0);
    for (name, role) in [("n2", "manager"), ("n3", "worker")] {
        let options = Options {
            join: Some((cluster.join_address(), cluster.token(role))),
            more: vec!["--listen-metrics".to_owned(), format!("0.0.0.0:{PORT}")],
            ..cluster.lab.options()
        };
        cluster.add_node(name, options);
    }
    cluster.wait_ready(3);
    cluster.create_web("web", 1, &["--constraint", "node.hostname==n3"]);
    let tasks = cluster.wait_running("web", 1, LIMIT);
    let [task] = tasks.as_slice() else {
        panic!("{tasks:#?}")
    };

    // With the next heartbeat, on a follower as on the leader.
    for name in ["n1", "n2"] {
        eventually("its usage in task inspect", LIMIT, || {
            let shown = cluster.node(name).ctl(&["task", "inspect", "web.1"]);
            let shown = shown.map_err(|error| error.to_string())?;
            let has = |word: &str| {
                shown
                    .stdout
                    .lines()
                    .any(|line| line.trim().starts_with(word))
            };
            match has("CPU time") && has("Processes") && has("Measured") {
                true => Ok(()),
                false => Err(shown.stdout),
            }
        });
    }
    let template = "{{.Usage.Pids}}";
    let pids = cluster
        .ctl(&["task", "inspect", "web.1", "--format", template])
        .ok();
    assert!(pids.trim().parse::<u64>().unwrap() > 0, "{pids}");

    of_a_worker(&cluster, &task.id);
    of_a_manager(&cluster);
    of_the_leader(&mut cluster);
    let node = cluster.ctl(&["node", "inspect", "n3"]).ok();
    for word in ["Kernel features", "cgroup-v", "Disk"] {
        assert!(node.contains(word), "{node}");
    }
}

fn of_a_worker(cluster: &Cluster, task: &str) {
    let of_worker = cluster.get("n3", PORT, "/metrics").unwrap();
    let labelled = |name: &str| format!("swarm_task_{name}{{task_id=\"{}\"}}", task);
    assert!(
        sample(&of_worker, &labelled("memory_bytes")).unwrap() > 100_000.0,
        "{of_worker}"
    );
    assert!(
        sample(&of_worker, &labelled("pids")) >= Some(1.0),
        "{of_worker}"
    );
    assert!(
        sample(&of_worker, &labelled("cpu_seconds_total")).is_some(),
        "{of_worker}"
    );
    assert_eq!(sample(&of_worker, "swarm_node_manager"), Some(0.0));
    assert!(!of_worker.contains("swarm_manager_"), "{of_worker}");
    for operation in ["prepare", "start"] {
        let name =
            format!("swarm_executor_operation_latency_seconds_count{{operation=\"{operation}\"}}");
        assert_eq!(sample(&of_worker, &name), Some(1.0), "{of_worker}");
    }
    assert!(of_worker.ends_with("# EOF\n"), "{of_worker}");
}

/// How long its parts take. The one that led until now serves no metrics: it does from its next start on.
fn of_the_leader(cluster: &mut Cluster) {
    let follower = cluster.get("n2", PORT, "/metrics").unwrap();
    let scheduled = "swarm_dispatcher_scheduling_delay_seconds";
    let count = format!("{scheduled}_count");
    assert_eq!(sample(&follower, &count), Some(0.0), "{follower}");

    cluster.node_mut("n1").stop(Signal::SIGTERM).unwrap();
    let told = format!("0.0.0.0:{PORT}");
    let n1 = cluster.node_mut("n1");
    n1.start_again_with(&["--listen-metrics", &told]).unwrap();
    let leader = wait_managers(cluster, "n2", &["n1", "n2"]);
    persist(cluster, "n2", &["service", "scale", "web=3"]).ok();
    let told = eventually("the delay of three tasks less one", LIMIT, || {
        let told = cluster.get(&leader, PORT, "/metrics")?;
        match sample(&told, &count) {
            Some(2.0) => Ok(told),
            _ => Err(told),
        }
    });
    let sum = sample(&told, &format!("{scheduled}_sum")).unwrap();
    assert!(sum > 0.0 && sum < 2.0 * LIMIT.as_secs_f64(), "{told}");
    let all = format!("{scheduled}_bucket{{le=\"+Inf\"}}");
    assert_eq!(sample(&told, &all), Some(2.0), "{told}");
    // Nodes that say that their tasks run are connected to this leader: what is to go is news for them, while what is
    // to run can have been in the first that they were told.
    persist(cluster, &leader, &["service", "scale", "web=1"]).ok();
    let told = eventually("news for a node to be counted", LIMIT, || {
        let told = cluster.get(&leader, PORT, "/metrics")?;
        match sample(&told, "swarm_dispatcher_assignment_latency_seconds_count") {
            Some(count) if count >= 1.0 => Ok(told),
            _ => Err(told),
        }
    });
    for name in [
        "raft_transaction",
        "store_write_tx",
        "store_read_tx",
        "store_batch",
        "manager_pass",
        "dispatcher_status",
        "dispatcher_assignment",
    ] {
        let value = |what: &str| sample(&told, &format!("swarm_{name}_latency_seconds_{what}"));
        assert!(value("count") >= Some(1.0), "{name} in {told}");
        assert!(value("sum") > Some(0.0), "{name} in {told}");
    }
}

fn of_a_manager(cluster: &Cluster) {
    let of_manager = cluster.get("n2", PORT, "/metrics").unwrap();
    for (name, value) in [
        ("swarm_node_manager", 1.0),
        ("swarm_manager_leader", 0.0),
        ("swarm_manager_nodes{state=\"ready\"}", 3.0),
        ("swarm_manager_nodes{state=\"down\"}", 0.0),
        ("swarm_manager_tasks_total{state=\"running\"}", 1.0),
        ("swarm_manager_services_total", 1.0),
        ("swarm_raft_voters", 2.0),
    ] {
        assert_eq!(
            sample(&of_manager, name),
            Some(value),
            "{name} in {of_manager}"
        );
    }
    assert!(
        cluster
            .get("n2", PORT, "/")
            .unwrap_err()
            .contains("/metrics")
    );
}
