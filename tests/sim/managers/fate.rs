//! What befalls a cluster: one run of a seed.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use swarmd::manager::raft::Start;

use super::cluster::Cluster;
use super::disk::Health;
use super::network::Weather;

/// What a run was.
#[derive(Debug)]
pub(crate) struct Ran {
    /// Everything that happened.
    pub(crate) trace: String,
    /// Log entries that changed something.
    pub(crate) entries: u64,
    /// Operations on registers with an answer, and without.
    pub(crate) operations: (usize, usize),
    /// How many leaderships there were.
    pub(crate) leaderships: usize,
    /// How many snapshots one manager sent to another.
    pub(crate) snapshots: usize,
    /// Virtual time from the end of the faults to convergence.
    pub(crate) converged_after: Duration,
}

/// Something that befalls a cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Process(OfProcess),
    Network(OfNetwork),
    Host(OfHost),
    /// A manager leaves for good, and another one comes.
    Replace,
    /// The leader hands over.
    HandOver,
    /// A manager's host gets another address.
    Move,
    /// The same while it is cut off: nobody hears of it before it is back.
    MoveUnseen,
    /// A manager's certificate has ended.
    Lapse,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum OfProcess {
    Kill,
    KillAtDisk,
    KillAtMessage,
    Start,
    Stop,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum OfNetwork {
    Isolate,
    OneWay,
    Split,
    Flap,
    Heal,
    Weather,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum OfHost {
    Full,
    Slow,
    Well,
    Clock,
}

/// What may happen, and how often compared with the others.
const FATES: [(u64, Fate); 20] = [
    (8, Fate::Process(OfProcess::Kill)),
    (8, Fate::Process(OfProcess::KillAtDisk)),
    (8, Fate::Process(OfProcess::KillAtMessage)),
    (16, Fate::Process(OfProcess::Start)),
    (3, Fate::Process(OfProcess::Stop)),
    (6, Fate::Network(OfNetwork::Isolate)),
    (5, Fate::Network(OfNetwork::OneWay)),
    (4, Fate::Network(OfNetwork::Split)),
    (3, Fate::Network(OfNetwork::Flap)),
    (10, Fate::Network(OfNetwork::Heal)),
    (6, Fate::Network(OfNetwork::Weather)),
    (3, Fate::Host(OfHost::Full)),
    (4, Fate::Host(OfHost::Slow)),
    (6, Fate::Host(OfHost::Well)),
    (4, Fate::Host(OfHost::Clock)),
    (3, Fate::Replace),
    (5, Fate::HandOver),
    (5, Fate::Move),
    (3, Fate::MoveUnseen),
    (5, Fate::Lapse),
];

/// Runs one seed.
///
/// # Errors
/// What is wrong, and what happened before it.
pub(crate) fn run(seed: u64, steps: u64) -> Result<Ran, String> {
    drive(seed, async |cluster| {
        cluster.open();
        for _ in 0..steps {
            befall(cluster).await;
            let pause = cluster.random.millis(20, 600);
            cluster.run_for(pause).await;
            cluster.broken()?;
        }
        cluster.calm_down().await
    })
    .map_err(|text| format!("{text}replay: make sim SEED={seed} N=1 STEPS={steps}\n"))
}

/// Runs something on a cluster of 3 or 5 managers, in virtual time, on this thread alone.
///
/// # Errors
/// What is wrong, and what happened before it.
pub(crate) fn drive(
    seed: u64,
    story: impl AsyncFnOnce(&mut Cluster) -> Result<Duration, Vec<String>>,
) -> Result<Ran, String> {
    let size = if seed.is_multiple_of(4) { 5 } else { 3 };
    drive_with(seed, size, story)
}

/// The same on a cluster of so many managers.
///
/// # Errors
/// What is wrong, and what happened before it.
pub(crate) fn drive_with(
    seed: u64,
    size: u64,
    story: impl AsyncFnOnce(&mut Cluster) -> Result<Duration, Vec<String>>,
) -> Result<Ran, String> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap();
    let mut last = String::new();
    let ran = catch_unwind(AssertUnwindSafe(|| {
        runtime.block_on(async {
            let mut cluster = Cluster::found(seed, size).await.map_err(|e| vec![e])?;
            let ended = story(&mut cluster).await;
            last = cluster.trace.last();
            let converged_after = ended?;
            let trace = cluster.trace.text();
            Ok(Ran {
                // Request and response begin with a head each.
                snapshots: trace.matches(" Snapshot 0 bytes").count() / 2,
                trace,
                entries: cluster.witness.newest(),
                operations: cluster.shared.history().counts(),
                leaderships: cluster.witness.leaderships(),
                converged_after,
            })
        })
    }));
    let broken: Vec<String> = match ran {
        Ok(Ok(ran)) => return Ok(ran),
        Ok(Err(broken)) => broken,
        Err(panic) => {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
            vec![format!("panic: {}", text.unwrap_or("of another kind"))]
        }
    };
    Err(format!(
        "seed {seed}, {size} managers: promise broken\n{last}\n  {}\n",
        broken.join("\n  ")
    ))
}

async fn befall(cluster: &mut Cluster) {
    let total = FATES.iter().map(|(weight, _)| weight).sum();
    let mut at = cluster.random.below(total);
    let mut chosen = Fate::Network(OfNetwork::Heal);
    for (weight, fate) in FATES {
        if at < weight {
            chosen = fate;
            break;
        }
        at -= weight;
    }
    let ids: Vec<u64> = cluster.managers.keys().copied().collect();
    let id = cluster.random.pick(&ids);
    cluster.trace.say(format_args!("fate: {chosen:?} {id}"));
    match chosen {
        Fate::Process(fate) => of_process(cluster, fate, id).await,
        Fate::Network(fate) => of_network(cluster, fate, &ids, id).await,
        Fate::Host(fate) => of_host(cluster, fate, id),
        Fate::Replace => replace(cluster, id).await,
        Fate::HandOver => hand_over(cluster, id).await,
        Fate::Move => cluster.relocate(id).await,
        Fate::Lapse => cluster.lapse(id).await,
        Fate::MoveUnseen => {
            of_network(cluster, OfNetwork::Isolate, &ids, id).await;
            cluster.relocate(id).await;
        }
    }
}

async fn of_process(cluster: &mut Cluster, fate: OfProcess, id: u64) {
    let power = cluster.random.per_mille(500);
    let soon = cluster.random.below(60);
    match fate {
        OfProcess::KillAtDisk => cluster.managers[&id].disk.burn_down(soon),
        OfProcess::KillAtMessage => cluster.network.burn_down(id, soon),
        OfProcess::Start => {
            let down: Vec<u64> = cluster
                .managers
                .values()
                .filter(|m| m.up.is_none())
                .map(|m| m.id)
                .collect();
            if let Some(id) = cluster.random.any(down) {
                let _ = cluster.start(id, Start::Join).await;
                // It may not get far.
                if cluster.random.per_mille(100) {
                    cluster.managers[&id].disk.burn_down(soon);
                }
            }
        }
        OfProcess::Stop => cluster.stop(id).await,
        OfProcess::Kill => cluster.kill(id, power),
    }
}

async fn of_network(cluster: &mut Cluster, fate: OfNetwork, ids: &[u64], id: u64) {
    let others = ids.iter().copied().filter(|other| *other != id);
    let fair = cluster.random.per_mille(400);
    match fate {
        OfNetwork::Isolate => {
            for other in others {
                cluster.network.cut(id, other);
                cluster.network.cut(other, id);
            }
        }
        OfNetwork::OneWay => {
            let in_ = cluster.random.per_mille(500);
            for other in others {
                match in_ {
                    true => cluster.network.cut(other, id),
                    false => cluster.network.cut(id, other),
                }
            }
        }
        OfNetwork::Split => {
            let half = ids.len() / 2;
            for one in &ids[..half] {
                for two in &ids[half..] {
                    cluster.network.cut(*one, *two);
                    cluster.network.cut(*two, *one);
                }
            }
        }
        OfNetwork::Flap => {
            for _ in 0..6 {
                for other in ids {
                    cluster.network.cut(id, *other);
                    cluster.network.cut(*other, id);
                }
                let pause = cluster.random.millis(20, 200);
                cluster.run_for(pause).await;
                cluster.network.heal();
                cluster.run_for(pause).await;
            }
        }
        OfNetwork::Weather => {
            let random = &mut cluster.random;
            let mut up_to = |most| if fair { 0 } else { random.below(most) };
            let weather = Weather {
                lost: up_to(40),
                late: up_to(150),
                doubled: up_to(300),
            };
            cluster.network.set_weather(weather);
        }
        OfNetwork::Heal => cluster.network.heal(),
    }
}

fn of_host(cluster: &mut Cluster, fate: OfHost, id: u64) {
    let slow = 20 + cluster.random.below(400);
    let jump = i64::try_from(cluster.random.below(7_200_000)).unwrap() - 3_600_000;
    let manager = &cluster.managers[&id];
    match fate {
        OfHost::Full => manager.disk.set(Health::Full),
        OfHost::Slow => manager.disk.set(Health::Slow(slow)),
        OfHost::Clock => {
            if let Some(up) = &manager.up {
                up.clock.set_ahead_ms(jump);
            }
        }
        OfHost::Well => {
            for manager in cluster.managers.values() {
                manager.disk.set(Health::Well);
            }
        }
    }
}

/// A manager leaves the cluster for good, and another one comes.
async fn replace(cluster: &mut Cluster, id: u64) {
    // Membership is changed by a healthy cluster; who leaves may be its leader.
    if !cluster.managers.values().all(|m| m.up.is_some()) || cluster.somebody_lapsed() {
        return;
    }
    // One that has moved may have to be found by the one that goes: it does not look for the others here.
    if !cluster.correct_address().await && !cluster.correct_address().await {
        return;
    }
    if cluster.expel(id).await.is_err() {
        return;
    }
    cluster.kill(id, true);
    cluster.managers.remove(&id);
    if let Ok(new) = cluster.add(Start::Join).await {
        let _ = cluster.admit(new).await;
    }
}

/// The leader hands over.
async fn hand_over(cluster: &mut Cluster, id: u64) {
    let Some((_, leader)) = cluster.leader() else {
        return;
    };
    let Some(up) = &cluster.managers[&leader].up else {
        return;
    };
    let membership = up.raft.membership();
    // It is refused where there is nobody to take over.
    let handed = membership.transfer_leader(id);
    let _ = tokio::time::timeout(Duration::from_secs(1), handed).await;
}
