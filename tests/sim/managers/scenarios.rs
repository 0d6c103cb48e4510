//! Named stories: the thirteen consistency bugs that etcd's users and tests found, and what this simulation found here.
//!
//! Each fails if we had the bug. Where ours can't have it, the story shows what takes its place.

use std::sync::Arc;
use std::time::Duration;

use harness::sim::specs;
use swarm_proto::id::NodeId;
use swarm_proto::pb;
use swarmd::manager::raft::Start;
use swarmd::manager::store::watch::{Lagged, RING_COMMITS_MAX};
use swarmd::manager::store::{Change, Event, State};
use tokio::task::JoinSet;

use super::clients::{Door, register_id};
use super::cluster::Cluster;
use super::disk::Health;
use super::fate::{Ran, drive_with};
use super::history::Ask;

pub(super) type Broken = Vec<String>;

/// Tells the story of some managers, several times with different chance; it ends with a calm cluster.
pub(super) fn story(size: u64, tell: impl AsyncFn(&mut Cluster) -> Result<(), Broken>) {
    for seed in 1..=3 {
        let ran: Result<Ran, String> = drive_with(seed, size, async |cluster| {
            tell(cluster).await?;
            cluster.calm_down().await
        });
        if let Err(broken) = ran {
            panic!("{broken}");
        }
    }
}

pub(super) fn a_follower(cluster: &Cluster) -> Result<u64, Broken> {
    let (_, leader) = cluster.leader().ok_or("nobody leads").map_err(one)?;
    let mut others = cluster.managers.keys().filter(|id| **id != leader);
    others.next().copied().ok_or("it is alone").map_err(one)
}

fn door(cluster: &Cluster, id: u64) -> Result<Door, Broken> {
    let doors = cluster.shared.doors.lock().unwrap();
    doors.get(&id).cloned().ok_or("it is down").map_err(one)
}

fn leader(cluster: &Cluster) -> Result<Door, Broken> {
    cluster.shared.leader().ok_or("nobody leads").map_err(one)
}

pub(super) fn one(text: impl ToString) -> Broken {
    vec![text.to_string()]
}

pub(super) async fn put(cluster: &mut Cluster, object: u64) -> Result<u64, Broken> {
    cluster.put(object).await.map_err(one)
}

/// Writes to every register, some rounds.
async fn puts(cluster: &mut Cluster, rounds: u64) -> Result<u64, Broken> {
    let mut version = 0;
    for round in 0..rounds {
        version = put(cluster, round % super::clients::REGISTERS).await?;
    }
    Ok(version)
}

async fn write(cluster: &Cluster, changes: Vec<Change>) -> Result<u64, Broken> {
    let door = leader(cluster)?;
    let now = door.store.time(&door.clock);
    let written = door.store.write(now, changes).await.map_err(one)?;
    Ok(written.version)
}

/// Cuts a manager off from all others.
pub(super) fn isolate(cluster: &Cluster, id: u64) {
    for other in cluster.managers.keys() {
        cluster.network.cut(id, *other);
        cluster.network.cut(*other, id);
    }
}

/// Everybody takes a snapshot, and purges the log before it.
async fn compact(cluster: &mut Cluster) {
    for manager in cluster.managers.values() {
        if let Some(up) = &manager.up {
            let _ = up.raft.take_snapshot().await;
        }
    }
    cluster.run_for(Duration::from_millis(200)).await;
}

/// etcd #13766: a crash under load left the applied index ahead of the data. Here the state is rebuilt from snapshot and log,
/// which can't differ; the story crashes managers at any disk operation under load.
#[test]
fn etcd_13766_a_crash_under_load_leaves_no_inconsistent_revision() {
    story(3, async |cluster| {
        cluster.open();
        for _ in 0..10 {
            let ids: Vec<u64> = cluster.managers.keys().copied().collect();
            let id = cluster.random.pick(&ids);
            let soon = cluster.random.below(80);
            cluster.managers[&id].disk.burn_down(soon);
            cluster.run_for(Duration::from_millis(400)).await;
            cluster.kill(id, true);
            let _ = cluster.start(id, Start::Join).await;
        }
        cluster.broken()
    });
}

/// etcd #14370: a single member acknowledged a write before it was on disk. The story cuts the power of the only manager at any
/// moment; clients' histories tell what was lost.
#[test]
fn etcd_14370_a_single_manager_loses_no_write_in_a_power_cut() {
    story(1, async |cluster| {
        cluster.open();
        for _ in 0..25 {
            let pause = cluster.random.millis(1, 300);
            cluster.run_for(pause).await;
            let id = 1;
            if cluster.random.per_mille(500) {
                let soon = cluster.random.below(30);
                cluster.managers[&id].disk.burn_down(soon);
                cluster.run_for(Duration::from_millis(300)).await;
            }
            cluster.kill(id, true);
            let _ = cluster.start(id, Start::Join).await;
        }
        cluster.broken()
    });
}

/// etcd #14571: who had come by a snapshot decided about entries otherwise than who had applied them all, because the snapshot
/// lacked what the decision hung on. The story brings a manager up by snapshot, and has everybody decide about stale changes,
/// names that are taken, and removed nodes.
#[test]
fn etcd_14571_who_came_by_a_snapshot_decides_like_the_others() {
    story(3, async |cluster| {
        let late = a_follower(cluster)?;
        cluster.kill(late, false);
        puts(cluster, 100).await?;
        compact(cluster).await;
        let _ = cluster.start(late, Start::Join).await;
        let node = specs::node(NodeId::from_raw(77), "a");
        let refused_until = swarm_proto::time::Timestamp::MAX;
        let remove = Change::RemoveNode {
            id: node.id,
            force: true,
            refused_until,
        };
        let again = Change::CreateNode(Arc::new(node.clone()));
        write(cluster, vec![again.clone(), remove]).await?;
        // Who restarts has the blacklist from the snapshot.
        compact(cluster).await;
        let other = a_follower(cluster)?;
        cluster.kill(other, true);
        let _ = cluster.start(other, Start::Join).await;
        write(cluster, vec![again]).await?;
        puts(cluster, 8).await?;
        cluster.run_for(Duration::from_secs(1)).await;
        for id in cluster.managers.keys() {
            let there = cluster
                .state(*id)
                .is_some_and(|state| state.nodes.contains_key(&node.id));
            if there {
                return Err(one(format!("manager {id} took a removed node back")));
            }
        }
        cluster.broken()
    });
}

/// etcd #14685: a crash while the database was rewritten left another revision. Here a snapshot replaces the log's beginning;
/// the story crashes a manager, with its power, at every one of the disk operations of that.
#[test]
fn etcd_14685_a_crash_while_the_log_is_compacted_loses_nothing() {
    story(3, async |cluster| {
        for operation in 0..45 {
            puts(cluster, 3).await?;
            let id = a_follower(cluster)?;
            let manager = &cluster.managers[&id];
            manager.disk.burn_down(operation);
            if let Some(up) = &manager.up {
                let _ = up.raft.take_snapshot().await;
            }
            cluster.run_for(Duration::from_millis(120)).await;
            cluster.kill(id, true);
            let _ = cluster.start(id, Start::Join).await;
        }
        cluster.broken()
    });
}

/// etcd #15220: a watcher was told of progress up to a revision before it had the events up to there. Here progress is the
/// hub's version; the story holds it against what a subscription has.
#[test]
fn etcd_15220_progress_is_told_after_what_it_is_about() {
    story(3, async |cluster| {
        cluster.open();
        let id = a_follower(cluster)?;
        let door = door(cluster, id)?;
        let (state, mut commits) = door.store.hub().subscribe();
        let progress = door.store.hub().version();
        let mut seen = state.version;
        for _ in 0..200 {
            cluster.run_for(Duration::from_millis(7)).await;
            let told = *progress.borrow();
            let view: State = door.store.view();
            while let Some(commit) = commits.try_next().map_err(one)? {
                seen = commit.version;
            }
            if view.version < told {
                return Err(one(format!(
                    "told of {told}, the state is at {}",
                    view.version
                )));
            }
            // Entries that change nothing have no commit: none up to the told version may follow.
            let late = commits.try_next().map_err(one)?;
            if let Some(late) = late.filter(|late| late.version <= told) {
                return Err(one(format!(
                    "{} came after progress {told}, {seen}",
                    late.version
                )));
            }
        }
        cluster.broken()
    });
}

/// etcd #15271: a watch that moved to a partitioned member travelled back in time. Here a manager that is behind refuses to go
/// on from where it has not been.
#[test]
fn etcd_15271_a_watch_does_not_travel_back_behind_a_partition() {
    story(3, async |cluster| {
        puts(cluster, 5).await?;
        let stale = a_follower(cluster)?;
        isolate(cluster, stale);
        let newest = puts(cluster, 10).await?;
        let door = door(cluster, stale)?;
        match door.store.hub().subscribe_from(newest) {
            Err(Lagged) => {}
            Ok(_) => return Err(one("a stale manager took up a watch from its future")),
        }
        cluster.network.heal();
        cluster.run_for(Duration::from_secs(3)).await;
        let mut commits = door.store.hub().subscribe_from(newest).map_err(one)?;
        puts(cluster, 4).await?;
        cluster.run_for(Duration::from_secs(1)).await;
        let mut last = newest;
        while let Some(commit) = commits.try_next().map_err(one)? {
            if commit.version <= last {
                return Err(one(format!("{} came after {last}", commit.version)));
            }
            last = commit.version;
        }
        match last > newest {
            true => cluster.broken(),
            false => Err(one("the watch saw nothing more")),
        }
    });
}

/// etcd #17247: a transaction's event reached watchers twice. The story writes entries of several changes, some refused, and
/// counts.
#[test]
fn etcd_17247_an_entry_of_several_changes_is_seen_once() {
    story(3, async |cluster| {
        puts(cluster, 4).await?;
        let mut subscriptions = Vec::new();
        for id in cluster.managers.keys() {
            let door = door(cluster, *id)?;
            subscriptions.push((*id, door.store.hub().subscribe()));
        }
        let node = specs::node(NodeId::from_raw(78), "a");
        let create = Change::CreateNode(Arc::new(node.clone()));
        // The second one is refused, and leaves no event.
        let version = write(cluster, vec![create.clone(), create]).await?;
        cluster.run_for(Duration::from_secs(1)).await;
        for (id, (_, mut commits)) in subscriptions {
            let mut found = 0;
            while let Some(commit) = commits.try_next().map_err(one)? {
                let about = |event: &&Event| matches!(event, Event::Node { new: Some(new), .. } if new.id == node.id);
                let events = commit.events.iter().filter(about).count();
                if events > 0 && commit.version != version {
                    return Err(one(format!(
                        "manager {id} told of it at {}",
                        commit.version
                    )));
                }
                found += events;
            }
            if found != 1 {
                return Err(one(format!("manager {id} told of it {found} times")));
            }
        }
        cluster.broken()
    });
}

/// etcd #17529: a slow watcher lost events, silently. Here it is told that it has.
#[test]
fn etcd_17529_a_slow_watcher_is_told_what_it_missed() {
    story(3, async |cluster| {
        let id = a_follower(cluster)?;
        let slow = door(cluster, id)?;
        let (_, mut commits) = slow.store.hub().subscribe();
        let leader = leader(cluster)?;
        let nodes = RING_COMMITS_MAX as u64 + 50;
        let mut writes = JoinSet::new();
        for number in 0..nodes {
            let node = specs::node(NodeId::from_raw(u128::from(10_000 + number)), "a");
            let leader = leader.clone();
            writes.spawn(async move {
                let change = Change::CreateNode(Arc::new(node));
                let now = leader.store.time(&leader.clock);
                leader.store.write(now, vec![change]).await.is_ok()
            });
        }
        let written = writes.join_all().await;
        if !written.iter().all(|written| *written) {
            return Err(one("not all was written"));
        }
        // Those that follow this manager meanwhile begin anew, too.
        cluster.run_for(Duration::from_secs(5)).await;
        match commits.try_next() {
            Err(Lagged) => cluster.broken(),
            Ok(commit) => Err(one(format!(
                "it goes on with {:?}, as if nothing were missing",
                commit.map(|commit| commit.version)
            ))),
        }
    });
}

/// etcd #17780: a crash during compaction made revisions go back. The story cuts the power of all managers while they compact;
/// versions that clients were given have to grow.
#[test]
fn etcd_17780_versions_grow_over_a_crash_while_compacting() {
    story(3, async |cluster| {
        let mut last = 0;
        for _ in 0..6 {
            let version = puts(cluster, 30).await?;
            if version <= last {
                return Err(one(format!("version {version} after {last}")));
            }
            last = version;
            let ids: Vec<u64> = cluster.managers.keys().copied().collect();
            for id in &ids {
                let soon = cluster.random.below(40);
                cluster.managers[id].disk.burn_down(soon);
            }
            compact(cluster).await;
            for id in &ids {
                cluster.kill(*id, true);
            }
            for id in &ids {
                let _ = cluster.start(*id, Start::Join).await;
            }
        }
        cluster.broken()
    });
}

/// etcd #18089: the deletion at the revision that was compacted was dropped from watches. The story removes an object, compacts
/// right there, and goes on from before.
#[test]
fn etcd_18089_a_deletion_is_seen_though_the_log_ends_with_it() {
    story(3, async |cluster| {
        for _ in 0..4 {
            let before = put(cluster, 0).await?;
            remove(cluster).await?;
            compact(cluster).await;
            for id in cluster.managers.keys() {
                sees_removal(&door(cluster, *id)?, before)?;
            }
        }
        cluster.broken()
    });
}

/// Removes register 0, by a client.
async fn remove(cluster: &mut Cluster) -> Result<u64, Broken> {
    let door = leader(cluster)?;
    let removed = cluster.shared.change(&door, 0, Ask::Remove, 0).await;
    let known = removed.ok_or("it was not removed").map_err(one)?;
    Ok(known.version)
}

/// Whoever goes on from `before` is told of the removal, or that something is missing.
fn sees_removal(door: &Door, before: u64) -> Result<(), Broken> {
    let Ok(mut commits) = door.store.hub().subscribe_from(before) else {
        return Ok(());
    };
    while let Some(commit) = commits.try_next().map_err(one)? {
        let gone = |event: &Event| matches!(event, Event::Node { old: Some(old), new: None } if old.id == register_id(0));
        if commit.events.iter().any(gone) {
            return Ok(());
        }
    }
    Err(one(format!(
        "a watch from {before} does not see the removal"
    )))
}

/// etcd #18667: a transaction that read a compacted revision was decided by each member as far as it had compacted. Here a change
/// expects a version of the object itself; the story has managers of different histories decide about old ones.
#[test]
fn etcd_18667_a_change_against_a_compacted_version_is_refused_by_all() {
    story(3, async |cluster| {
        let old = put(cluster, 0).await?;
        let late = a_follower(cluster)?;
        cluster.kill(late, true);
        puts(cluster, 90).await?;
        compact(cluster).await;
        let _ = cluster.start(late, Start::Join).await;
        cluster.run_for(Duration::from_secs(1)).await;
        let door = leader(cluster)?;
        let stale = cluster.shared.change(&door, 0, Ask::Change(0), old).await;
        if stale.is_some() {
            return Err(one("a change against a compacted version was taken"));
        }
        puts(cluster, 8).await?;
        cluster.broken()
    });
}

/// etcd #19179: a watch opened at the compacted revision missed a deletion. The story restarts managers from a snapshot that ends
/// right before, at, or after a removal, and opens watches there.
#[test]
fn etcd_19179_a_watch_from_the_snapshots_version_sees_what_follows() {
    story(3, async |cluster| {
        let before = put(cluster, 0).await?;
        compact(cluster).await;
        let id = a_follower(cluster)?;
        cluster.stop(id).await;
        let _ = cluster.start(id, Start::Join).await;
        cluster.run_for(Duration::from_secs(1)).await;
        let removal = remove(cluster).await?;
        cluster.run_for(Duration::from_secs(1)).await;
        for version in [before - 1, before, removal - 1] {
            sees_removal(&door(cluster, id)?, version)?;
        }
        compact(cluster).await;
        cluster.stop(id).await;
        let _ = cluster.start(id, Start::Join).await;
        cluster.run_for(Duration::from_secs(1)).await;
        sees_removal(&door(cluster, id)?, removal - 1)?;
        cluster.broken()
    });
}

/// etcd #20221: a watch from a future revision got old events. Here it is refused.
#[test]
fn etcd_20221_a_watch_from_the_future_is_refused() {
    story(3, async |cluster| {
        let newest = puts(cluster, 6).await?;
        cluster.run_for(Duration::from_secs(1)).await;
        for id in cluster.managers.keys() {
            let door = door(cluster, *id)?;
            for future in [newest + 1, newest + 1_000] {
                let at = door.store.view().version;
                if future > at && door.store.hub().subscribe_from(future).is_ok() {
                    return Err(one(format!("{id} at {at} took a watch from {future}")));
                }
            }
        }
        cluster.broken()
    });
}

/// Found here: a leader that stopped in order, or whose disk was full, said that it had not taken a write that others then
/// committed. Whoever is told so asks another manager, and the write is made twice.
#[test]
fn a_write_that_a_stopping_leader_has_sent_out_is_not_called_untaken() {
    story(3, async |cluster| {
        for pause in 0..8 {
            put(cluster, 0).await?;
            let (_, id) = cluster.leader().ok_or("nobody leads").map_err(one)?;
            let full = pause % 2 == 1;
            cluster.managers[&id].disk.set(Health::Slow(30));
            let mut writes = JoinSet::new();
            for object in 1..4 {
                let (shared, door) = (cluster.shared.clone(), leader(cluster)?);
                writes.spawn(async move {
                    shared.change(&door, object, Ask::Remove, 0).await;
                    shared.change(&door, object, Ask::Create, 0).await;
                });
            }
            cluster.run_for(Duration::from_millis(pause)).await;
            match full {
                true => cluster.managers[&id].disk.set(Health::Full),
                false => cluster.stop(id).await,
            }
            writes.join_all().await;
            cluster.run_for(Duration::from_secs(1)).await;
            cluster.managers[&id].disk.set(Health::Well);
            let _ = cluster.start(id, Start::Join).await;
        }
        cluster.broken()
    });
}

/// Found here (seed 1129, 40 steps): a leader that was told to hand over to itself, or to a manager without a vote, took no
/// more writes for ever where nobody else votes.
#[test]
fn a_leader_that_can_hand_over_to_nobody_goes_on() {
    story(1, async |cluster| {
        for to in [1, 2] {
            let door = cluster.managers[&1]
                .up
                .as_ref()
                .map(|up| up.raft.membership());
            let membership = door.ok_or("it is down").map_err(one)?;
            let handed = membership.transfer_leader(to).await;
            if handed.is_ok() {
                return Err(one(format!("it hands over to {to}")));
            }
            put(cluster, 0).await?;
        }
        cluster.broken()
    });
}

/// The simulation has teeth: with disks that forget what they say they keep, writes are lost, and that is found.
#[test]
fn disks_that_lie_are_found_out() {
    let ran = drive_with(1, 1, async |cluster| {
        cluster.open();
        cluster.managers[&1].disk.set(Health::Lying);
        for _ in 0..20 {
            cluster.run_for(Duration::from_millis(300)).await;
            cluster.kill(1, true);
            let _ = cluster.start(1, Start::Join).await;
        }
        cluster.calm_down().await
    });
    let broken = ran.err().unwrap_or_default();
    let found = [
        "no linear history",
        "damaged",
        "is missing",
        "has version",
        "has another",
    ];
    assert!(found.iter().any(|what| broken.contains(what)), "{broken}");
}

/// The same for reads: one that asks no majority is told apart from the others.
#[test]
fn a_read_without_a_barrier_is_found_out() {
    let ran = drive_with(1, 3, async |cluster| {
        put(cluster, 0).await?;
        let stale = a_follower(cluster)?;
        cluster.run_for(Duration::from_secs(1)).await;
        isolate(cluster, stale);
        put(cluster, 0).await?;
        let state = door(cluster, stale)?.store.view();
        let found = super::clients::known(&state, 0).map(|known| known.by);
        let mut history = cluster.shared.history();
        let read = history.begin(0, Ask::Read);
        history.end(read, super::history::Told::Value(found));
        match history.check() {
            broken if broken.is_empty() => Ok(Duration::ZERO),
            broken => Err(broken),
        }
    });
    let broken = ran.err().unwrap_or_default();
    assert!(broken.contains("no linear history"), "{broken}");
}

/// The nodes of a cluster that nobody works with stay as they are, whoever leads.
#[test]
fn a_cluster_without_faults_stays_with_its_leader() {
    story(5, async |cluster| {
        let (term, _) = cluster.leader().ok_or("nobody leads").map_err(one)?;
        puts(cluster, 20).await?;
        cluster.run_for(Duration::from_secs(20)).await;
        match cluster.leader() {
            Some((now, _)) if now == term => {}
            other => return Err(one(format!("term {term} became {other:?}"))),
        }
        let id = a_follower(cluster)?;
        let nodes = cluster.state(id).map_or(0, |state| state.nodes.len());
        let ready = |state: State| {
            let nodes = state.nodes.values();
            nodes
                .filter(|n| n.status.state == pb::node_status::State::Ready)
                .count()
        };
        match cluster.state(id).map(ready) {
            Some(count) if count as u64 == super::clients::AGENTS => cluster.broken(),
            other => Err(one(format!("{other:?} of {nodes} nodes are ready"))),
        }
    });
}
