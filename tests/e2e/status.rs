//! How a cluster says that it is: whole, short of a manager, and without a leader; and what it still tells then.

use harness::cluster::{Cluster, LIMIT};
use harness::lab::eventually;
use harness::lab::lab::available;
use harness::lab::node::Output;
use nix::sys::signal::Signal;

use super::managers::{persist, wait_managers};

/// Waits until the status as a node shows it has a verdict, and returns all of it.
#[track_caller]
fn wait_status(cluster: &Cluster, on: &str, verdict: &str) -> Output {
    let line = format!("Verdict: {verdict}");
    eventually(&format!("{on} says {verdict}"), LIMIT, || {
        let output = cluster.node(on).ctl(&["cluster", "status"]);
        let output = output.map_err(|error| error.to_string())?;
        match output.stdout.contains(&line) {
            true => Ok(output),
            false => Err(format!("{}{}", output.stdout, output.stderr)),
        }
    })
}

#[test]
fn containerd_a_cluster_says_how_it_is_with_and_without_a_leader() {
    if !available("the status of three managers") {
        return;
    }
    let mut cluster = Cluster::start(0);
    for name in ["n2", "n3"] {
        cluster.add_manager(name);
    }
    wait_managers(&cluster, "n1", &["n1", "n2", "n3"]);
    cluster.wait_ready(3);
    let image = cluster.image.clone();
    let create = ["service", "create", "--name", "web", "--image", &image];
    persist(&cluster, "n3", &create).ok();
    cluster.wait_running("web", 1, LIMIT);

    // Also a follower knows: the leader has said.
    let whole = wait_status(&cluster, "n3", "healthy");
    assert_eq!(whole.code, 0, "{}", whole.stderr);
    assert!(whole.stdout.contains("3 of 3 ready"), "{}", whole.stdout);
    let own = persist(&cluster, "n3", &["node", "inspect", "self"]).ok();
    assert!(own.contains("Own view"), "{own}");
    assert!(own.contains("Certificate ends"), "{own}");

    cluster.node_mut("n2").stop(Signal::SIGKILL).unwrap();
    let short = wait_status(&cluster, "n3", "degraded");
    assert_eq!(short.code, 0, "{}", short.stderr);
    let text = "2 of 3 must be up: none more may fail";
    assert!(short.stdout.contains(text), "{}", short.stdout);

    // Without a majority: what is missing, and what this manager has, labelled.
    cluster.node_mut("n1").stop(Signal::SIGKILL).unwrap();
    let none = wait_status(&cluster, "n3", "unavailable");
    assert_eq!(none.code, 4, "{}", none.stderr);
    assert!(none.stdout.contains("(10."), "{}", none.stdout);
    let list = ["service", "ls", "--stale", "--format", "{{.Name}}"];
    let stale = cluster.node("n3").ctl(&list).unwrap();
    assert_eq!((stale.code, stale.stdout.as_str()), (0, "web\n"));
    assert!(
        stale
            .stderr
            .contains("stale: the state of this manager, log index")
    );
    assert!(stale.stderr.contains("behind"), "{}", stale.stderr);
    let write = ["service", "rm", "--stale", "web"];
    let refused = cluster.node("n3").ctl(&write).unwrap();
    assert_ne!(refused.code, 0, "{}", refused.stdout);
    assert!(
        refused.stderr.contains("only what reads"),
        "{}",
        refused.stderr
    );

    cluster.node_mut("n1").start_again().unwrap();
    cluster.node_mut("n2").start_again().unwrap();
    wait_status(&cluster, "n3", "healthy");
}
