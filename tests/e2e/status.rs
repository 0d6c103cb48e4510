//! How a cluster says that it is: whole, short of a manager, and without a leader; and what it still tells then.

use std::fs::File;
use std::time::Duration;

use harness::cluster::{Cluster, LIMIT};
use harness::lab::eventually;
use harness::lab::lab::available;
use harness::lab::node::Output;
use harness::lab::node::REMOTE_API_PORT;
use nix::sched::{CloneFlags, setns};
use nix::sys::signal::Signal;
use swarm_proto::pb;
use swarm_proto::pb::health_check_response::ServingStatus;
use swarm_proto::pb::health_client::HealthClient;
use swarmd::ca::connect;

use super::abuse::security;
use super::managers::{managers, persist, wait_managers, with_managers};

/// A manager that hears no leader serves no more after 5 s; as much again for a machine that is busy.
const TOLD_WITHIN: Duration = Duration::from_secs(10);

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
    let mut cluster = with_managers(0, &["n2", "n3"]);
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

/// What the health service of a manager says, asked over TLS from its own host: also of one that is cut off.
fn health(cluster: &Cluster, name: &str, service: &str) -> Result<ServingStatus, String> {
    let node = cluster.node(name);
    let (security, netns) = (security(node), node.host.netns_path());
    let address = format!("127.0.0.1:{REMOTE_API_PORT}");
    let request = pb::HealthCheckRequest {
        service: service.to_owned(),
    };
    let asked = async move {
        let channel = connect(&address, &security)
            .await
            .map_err(|error| error.to_string())?;
        let answer = HealthClient::new(channel).check(request).await;
        let answer = answer.map_err(|status| status.to_string())?;
        Ok(answer.into_inner().status())
    };
    // A namespace belongs to a thread, and so do the sockets that are made on it.
    let thread = std::thread::spawn(move || {
        setns(File::open(netns).unwrap(), CloneFlags::CLONE_NEWNET).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        runtime.unwrap().block_on(asked)
    });
    thread.join().unwrap()
}

/// Waits until a manager says so of itself, of consensus and of its API.
#[track_caller]
fn wait_health(cluster: &Cluster, name: &str, expected: ServingStatus, limit: Duration) {
    eventually(&format!("{name} says {expected:?}"), limit, || {
        for service in ["", "Raft", "ControlAPI"] {
            match health(cluster, name, service)? {
                status if status == expected => {}
                status => return Err(format!("{service:?} is {status:?}")),
            }
        }
        Ok(())
    });
}

#[test]
fn containerd_a_manager_that_is_cut_off_says_so_and_serves_again() {
    if !available("managers that are cut off") {
        return;
    }
    const NAMES: [&str; 3] = ["n1", "n2", "n3"];
    let cluster = with_managers(0, &["n2", "n3"]);
    for name in NAMES {
        wait_health(&cluster, name, ServingStatus::Serving, LIMIT);
    }
    let unknown = health(&cluster, "n1", "Nonsense").unwrap_err();
    assert!(unknown.contains("unknown service"), "{unknown}");

    // The leader, and one that follows.
    for leads in [true, false] {
        let leader = wait_managers(&cluster, "n1", &NAMES);
        let cut = NAMES.into_iter().find(|name| (*name == leader) == leads);
        let cut = cut.unwrap();
        cluster.node(cut).host.cut().unwrap();
        wait_health(&cluster, cut, ServingStatus::NotServing, TOLD_WITHIN);

        // The others go on, and say that it is missing.
        let others: Vec<&str> = NAMES.into_iter().filter(|name| *name != cut).collect();
        for name in &others {
            wait_health(&cluster, name, ServingStatus::Serving, LIMIT);
        }
        let on = others.first().unwrap();
        eventually(&format!("{cut} is missed"), LIMIT, || {
            match managers(&cluster, on)?.get(cut) {
                Some(status) if status == "unreachable" => Ok(()),
                status => Err(format!("{status:?}")),
            }
        });

        // It says why, and what can be done.
        let none = wait_status(&cluster, cut, "unavailable");
        assert_eq!(none.code, 4, "{}", none.stderr);
        let why = "there is no leader: 2 of 3 managers must be up and reach each other";
        assert!(none.stdout.contains(why), "{}", none.stdout);
        for name in &others {
            let address = cluster.node(name).host.address.to_string();
            assert!(none.stdout.contains(&address), "{}", none.stdout);
        }
        assert_eq!(health(&cluster, cut, "Raft"), Ok(ServingStatus::NotServing));

        cluster.node(cut).host.mend().unwrap();
        wait_health(&cluster, cut, ServingStatus::Serving, LIMIT);
        wait_status(&cluster, cut, "healthy");
    }
}
