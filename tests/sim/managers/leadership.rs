//! Stories of who leads, who votes, and who knows it.

use std::time::Duration;

use swarmd::manager::raft::{Membership, Start};
use swarmd::manager::store::machine::StoreMachine;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::cluster::Cluster;
use super::scenarios::{Broken, a_follower, isolate, one, put, story};

/// Cuts two groups of managers off from each other.
fn split(cluster: &Cluster, some: &[u64], others: &[u64]) {
    for (one, other) in some
        .iter()
        .flat_map(|one| others.iter().map(move |other| (one, other)))
    {
        cluster.network.cut(*one, *other);
        cluster.network.cut(*other, *one);
    }
}

fn membership(cluster: &Cluster, id: u64) -> Result<Membership<StoreMachine>, Broken> {
    let up = cluster.managers[&id].up.as_ref();
    let up = up.ok_or("it is down").map_err(one)?;
    Ok(up.raft.membership())
}

/// The leader, and the others.
fn parts(cluster: &Cluster) -> Result<(u64, Vec<u64>), Broken> {
    let (_, leader) = cluster.leader().ok_or("nobody leads").map_err(one)?;
    let others = cluster.managers.keys().filter(|id| **id != leader);
    Ok((leader, others.copied().collect()))
}

/// A leader that is cut off with a minority goes on leading it. What these have is as old as the split, and they know.
#[test]
fn who_follows_a_leader_without_a_majority_knows_how_old_its_state_is() {
    story(5, async |cluster| {
        put(cluster, 0).await?;
        let (leader, others) = parts(cluster)?;
        let follower = others[0];
        cluster.run_for(Duration::from_secs(1)).await;
        split(cluster, &[leader, follower], &others[1..]);
        let began = Instant::now();
        cluster.run_for(Duration::from_secs(6)).await;
        put(cluster, 0).await?;
        for id in [leader, follower] {
            let membership = membership(cluster, id)?;
            let lost = began.elapsed();
            for (what, age) in [("state", membership.age()), ("leader", membership.led())] {
                let age = age.unwrap_or(Duration::MAX);
                if age < lost || age > lost + Duration::from_secs(1) {
                    let text = format!("{lost:?} after the split the {what} of {id} has {age:?}");
                    return Err(one(text));
                }
            }
        }
        for id in &others[1..] {
            let age = membership(cluster, *id)?.age().unwrap_or(Duration::MAX);
            if age > Duration::from_secs(1) {
                return Err(one(format!("{id} of the majority is {age:?} behind")));
            }
        }
        cluster.broken()
    });
}

/// A voter is taken in, or out, by a leader that dies at any moment of it, as does who asked for it. Nothing is left half-way:
/// with two sets of voters a majority of each would be needed for ever, and nobody would say so.
#[test]
fn a_leader_that_dies_over_a_change_of_members_leaves_none_half_way() {
    story(3, async |cluster| {
        let new = cluster.add(Start::Join).await.map_err(one)?;
        for pause in 0..16 {
            let (_, id) = cluster.leader().ok_or("nobody leads").map_err(one)?;
            let up = cluster.managers[&id].up.as_ref();
            let membership = up.ok_or("it is down").map_err(one)?.raft.membership();
            let mut asked = JoinSet::new();
            let votes = membership.status().votes(new);
            let network = cluster.network.clone();
            asked.spawn(async move {
                let status = membership.status();
                match votes {
                    true if status.id == new => Ok(()),
                    true => membership.remove(new, &status).await,
                    false => {
                        membership
                            .add(new, super::manager::member(&network, new))
                            .await
                    }
                }
            });
            cluster.run_for(Duration::from_millis(1 + pause)).await;
            asked.shutdown().await;
            cluster.kill(id, false);
            cluster.run_for(Duration::from_secs(2)).await;
            let _ = cluster.start(id, Start::Join).await;
            cluster.run_for(Duration::from_secs(1)).await;
            for (id, manager) in &cluster.managers {
                let status = manager.up.as_ref().map(|up| up.raft.status());
                let joint = status.map(|status| status.joint).unwrap_or_default();
                if !joint.is_empty() {
                    return Err(one(format!("{pause} ms: manager {id} knows {joint:?}")));
                }
            }
        }
        cluster.admit(new).await.map_err(one)?;
        cluster.broken()
    });
}

/// Who restarts and hears nobody remembers who led, and knows that this says nothing.
#[test]
fn a_manager_that_restarts_alone_knows_of_no_leader() {
    story(3, async |cluster| {
        put(cluster, 0).await?;
        let id = a_follower(cluster)?;
        isolate(cluster, id);
        cluster.stop(id).await;
        let _ = cluster.start(id, Start::Join).await;
        cluster.run_for(Duration::from_secs(2)).await;
        let membership = membership(cluster, id)?;
        match (membership.age(), membership.led(), membership.silence()) {
            (None, None, None) => {}
            other => return Err(one(format!("it has heard {other:?}"))),
        }
        cluster.network.heal();
        cluster.run_for(Duration::from_secs(6)).await;
        let age = membership.age().unwrap_or(Duration::MAX);
        match age < Duration::from_secs(1) {
            true => cluster.broken(),
            false => Err(one(format!("it is {age:?} behind"))),
        }
    });
}

/// openraft #2080: a leader that reaches one manager kept that one from voting with the two others that it reaches, though these
/// three are a majority. Nothing could be written for as long as that lasted.
#[test]
fn a_leader_that_reaches_few_does_not_keep_a_majority_from_electing() {
    story(5, async |cluster| {
        put(cluster, 0).await?;
        let (leader, others) = parts(cluster)?;
        cluster.kill(others[0], false);
        split(cluster, &[leader], &others[2..]);
        put(cluster, 0).await?;
        match cluster.leader() {
            Some((_, now)) if now != leader => cluster.broken(),
            other => Err(one(format!("{other:?} leads"))),
        }
    });
}

/// Nobody needs a manager that has not caught up: one that is down before it does costs the only manager nothing.
#[test]
fn who_has_not_caught_up_does_not_vote() {
    story(1, async |cluster| {
        put(cluster, 0).await?;
        let new = cluster.add(Start::Join).await.map_err(one)?;
        cluster.kill(new, false);
        let admitted = cluster.admit(new).await;
        let (_, leader) = cluster.leader().ok_or("nobody leads").map_err(one)?;
        let members = membership(cluster, leader)?.status().members;
        if admitted.is_ok() || members.get(&new).is_none_or(|new| new.voter) {
            return Err(one(format!("{admitted:?}, {members:?}")));
        }
        put(cluster, 0).await?;
        cluster.start(new, Start::Join).await.map_err(one)?;
        cluster.admit(new).await.map_err(one)?;
        cluster.broken()
    });
}
