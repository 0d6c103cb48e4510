//! Faults upon faults on three managers and three workers, while a client creates, scales, changes and removes services.
//!
//! Every answer that the cluster has given must hold, whatever happens to one host at a time: killed and paused
//! processes, cables that are cut, also for one direction alone, a full disk, a containerd that is killed. What the
//! client was not told may have happened or not. At the end all is mended, and the cluster has to become what its
//! answers said: each service with its replicas, each replica with one container.
//!
//! One minute of it by default; `SWARM_CHAOS_SECONDS` says how long (`make test-chaos`: five minutes), `SWARM_CHAOS_SEED`
//! which faults.
#![expect(
    clippy::disallowed_methods,
    reason = "it runs for a time, and the environment says for how long"
)]

mod client;
mod faults;

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use harness::cluster::Cluster;
use harness::lab::eventually;
use harness::lab::lab::available;
use rand::SeedableRng as _;
use rand::rngs::StdRng;

use client::{Client, Tally};
use faults::Faults;

const MANAGERS: [&str; 3] = ["n1", "n2", "n3"];
const WORKERS: [&str; 3] = ["n4", "n5", "n6"];
/// Time in which a cluster without faults gets to where it should be: a worker that was cut off counts as lost only
/// after three heartbeats, and its containers end when it is back.
const SETTLE: Duration = Duration::from_secs(120);

fn setting(name: &str, default: u64) -> u64 {
    let set = std::env::var(name).ok();
    set.map_or(default, |text| text.parse().unwrap())
}

#[test]
fn containerd_what_was_acknowledged_survives_any_fault() {
    if !available("faults on managers and workers") {
        return;
    }
    let seconds = Duration::from_secs(setting("SWARM_CHAOS_SECONDS", 60));
    let seed = setting("SWARM_CHAOS_SEED", 1);
    let mut cluster = start();
    let sockets = MANAGERS.map(|name| cluster.node(name).socket());
    let client = Client::new(sockets, cluster.image.clone(), StdRng::seed_from_u64(seed));
    let mut faults = Faults::new(StdRng::seed_from_u64(seed ^ 1));
    let over = AtomicBool::new(false);
    let (mut client, tally) = std::thread::scope(|scope| {
        let working = scope.spawn(|| client.run(&over));
        let until = Instant::now() + seconds;
        while Instant::now() < until && !working.is_finished() {
            faults.one(&mut cluster);
        }
        over.store(true, Ordering::Relaxed);
        working.join().unwrap()
    });
    faults.mend_all(&mut cluster);
    cluster.wait_ready(MANAGERS.len() + WORKERS.len());
    client.check_all();
    settle(&cluster, &client);
    report(&faults, &tally, seconds);
}

/// Three managers, one of them with a small disk of its own, and three workers, all READY.
fn start() -> Cluster {
    let mut cluster = Cluster::start(0);
    faults::small_disk(&cluster, faults::SMALL_DISK);
    for name in MANAGERS.iter().skip(1) {
        cluster.add_manager(name);
    }
    for name in WORKERS {
        cluster.add_worker(name);
    }
    cluster.wait_ready(MANAGERS.len() + WORKERS.len());
    cluster
}

/// Waits until each service has its replicas, and the hosts run these containers and no other.
fn settle(cluster: &Cluster, client: &Client) {
    let mut wanted = BTreeSet::new();
    for (name, replicas) in client.services() {
        for task in cluster.wait_running(name, replicas, SETTLE) {
            wanted.insert(task.container);
        }
    }
    eventually("one container for each task, and no other", SETTLE, || {
        let hosts = cluster.names().into_iter();
        let running = hosts.flat_map(|host| cluster.containers(&host).into_keys());
        let running: BTreeSet<String> = running.collect();
        match running == wanted {
            true => Ok(()),
            false => Err(format!("{running:?} for {wanted:?}")),
        }
    });
}

fn report(faults: &Faults, tally: &Tally, seconds: Duration) {
    println!(
        "chaos: {} s, {} faults {:?}, {} operations acknowledged, {} errors seen {:?}, {} answers checked, {} lost",
        seconds.as_secs(),
        faults.count(),
        faults.counts(),
        tally.acknowledged,
        tally.errors(),
        tally.codes,
        tally.checked,
        tally.lost,
    );
    assert!(faults.count() > 0, "no fault was brought about");
    assert!(tally.acknowledged > 0, "nothing was acknowledged");
    assert_eq!(tally.lost, 0, "{:#?}", tally.violations);
}
