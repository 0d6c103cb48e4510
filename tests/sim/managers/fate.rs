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
    /// Virtual time from the end of the faults to convergence.
    pub(crate) converged_after: Duration,
}

/// What may happen, and how often compared with the others.
const FATES: [(u64, Fate); 17] = [
    (8, Fate::Kill),
    (8, Fate::KillAtDisk),
    (8, Fate::KillAtMessage),
    (16, Fate::Start),
    (3, Fate::Stop),
    (6, Fate::Isolate),
    (5, Fate::OneWay),
    (4, Fate::Split),
    (3, Fate::Flap),
    (10, Fate::Heal),
    (6, Fate::Weather),
    (3, Fate::Full),
    (4, Fate::Slow),
    (6, Fate::Well),
    (4, Fate::Clock),
    (3, Fate::Replace),
    (5, Fate::Lead),
];

/// Something that befalls a cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Kill,
    KillAtDisk,
    KillAtMessage,
    Start,
    Stop,
    Isolate,
    OneWay,
    Split,
    Flap,
    Heal,
    Weather,
    Full,
    Slow,
    Well,
    Clock,
    Replace,
    Lead,
}

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
            Ok(Ran {
                trace: cluster.trace.text(),
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
    let mut chosen = Fate::Heal;
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
        Fate::Kill | Fate::KillAtDisk | Fate::KillAtMessage | Fate::Start | Fate::Stop => {
            of_process(cluster, chosen, id).await;
        }
        Fate::Isolate | Fate::OneWay | Fate::Split | Fate::Flap | Fate::Heal | Fate::Weather => {
            of_network(cluster, chosen, &ids, id).await;
        }
        Fate::Full | Fate::Slow | Fate::Well | Fate::Clock => of_host(cluster, chosen, id),
        Fate::Replace => replace(cluster, id).await,
        Fate::Lead => lead(cluster, id).await,
    }
}

async fn of_process(cluster: &mut Cluster, fate: Fate, id: u64) {
    let power = cluster.random.per_mille(500);
    let soon = cluster.random.below(60);
    match fate {
        Fate::KillAtDisk => cluster.managers[&id].disk.burn_down(soon),
        Fate::KillAtMessage => cluster.network.burn_down(id, soon),
        Fate::Start => {
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
        Fate::Stop => cluster.stop(id).await,
        _ => cluster.kill(id, power),
    }
}

async fn of_network(cluster: &mut Cluster, fate: Fate, ids: &[u64], id: u64) {
    let others = ids.iter().copied().filter(|other| *other != id);
    let fair = cluster.random.per_mille(400);
    match fate {
        Fate::Isolate => {
            for other in others {
                cluster.network.cut(id, other);
                cluster.network.cut(other, id);
            }
        }
        Fate::OneWay => {
            let in_ = cluster.random.per_mille(500);
            for other in others {
                match in_ {
                    true => cluster.network.cut(other, id),
                    false => cluster.network.cut(id, other),
                }
            }
        }
        Fate::Split => {
            let half = ids.len() / 2;
            for one in &ids[..half] {
                for two in &ids[half..] {
                    cluster.network.cut(*one, *two);
                    cluster.network.cut(*two, *one);
                }
            }
        }
        Fate::Flap => {
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
        Fate::Weather => {
            let random = &mut cluster.random;
            let mut up_to = |most| if fair { 0 } else { random.below(most) };
            let weather = Weather {
                lost: up_to(40),
                late: up_to(150),
                doubled: up_to(300),
            };
            cluster.network.set_weather(weather);
        }
        _ => cluster.network.heal(),
    }
}

fn of_host(cluster: &mut Cluster, fate: Fate, id: u64) {
    let slow = 20 + cluster.random.below(400);
    let jump = i64::try_from(cluster.random.below(7_200_000)).unwrap() - 3_600_000;
    match (fate, &cluster.managers[&id]) {
        (Fate::Full, manager) => manager.disk.set(Health::Full),
        (Fate::Slow, manager) => manager.disk.set(Health::Slow(slow)),
        (Fate::Clock, manager) => {
            if let Some(up) = &manager.up {
                up.clock.set_ahead_ms(jump);
            }
        }
        _ => {
            for manager in cluster.managers.values() {
                manager.disk.set(Health::Well);
            }
        }
    }
}

/// A manager leaves the cluster for good, and another one comes.
async fn replace(cluster: &mut Cluster, id: u64) {
    // Membership is changed by a healthy cluster; who leaves may be its leader.
    if !cluster.managers.values().all(|m| m.up.is_some()) || cluster.expel(id).await.is_err() {
        return;
    }
    cluster.kill(id, true);
    cluster.managers.remove(&id);
    if let Ok(new) = cluster.add(Start::Join).await {
        let _ = cluster.admit(new).await;
    }
}

/// The leader hands over.
async fn lead(cluster: &mut Cluster, id: u64) {
    let Some((_, leader)) = cluster.leader() else {
        return;
    };
    let Some(up) = &cluster.managers[&leader].up else {
        return;
    };
    let membership = up.raft.membership();
    let handed = membership.transfer_leader(id);
    let _ = tokio::time::timeout(Duration::from_secs(1), handed).await;
}
