//! The managers' certificates: how long each is valid, by whose clock, and how it is renewed.
//!
//! A call goes through only where both ends take the other's certificate, each by its own clock; a stream that is there
//! goes on. Who is past half of the life of its certificate asks the leader for another one, also after its end: by its
//! key, as `ca.rs` does it. The leader knows who is still a manager only with a majority.

use std::time::Duration;

use swarm_proto::time::Timestamp;
use swarmd::manager::raft::Start;
use tokio::time::{Instant, timeout};

use super::cluster::Cluster;
use super::scenarios::{a_follower, isolate, one, put, story};

/// How long a certificate is valid: longer than clocks are wrong by, and than a run takes.
const LIFE: Duration = Duration::from_secs(2 * 3600);
/// How far in the past the end of one that lapses is, at most.
const LAPSED_MAX: Duration = Duration::from_secs(600);
/// How long the answer to a renewal is waited for, and between two tries.
const ANSWER: Duration = Duration::from_secs(1);

/// Who renews, and when that was begun.
pub(crate) type Renewing = std::collections::BTreeMap<u64, Instant>;

/// A certificate that is issued at that time.
pub(crate) fn issued(now: Timestamp) -> Timestamp {
    now.after(LIFE)
}

impl Cluster {
    /// The certificate of a manager has ended, as of one that was off for long; one at a time, and only where the others are
    /// a majority, for without one nobody can be given another certificate (an operator starts such a cluster by
    /// `--force-new-cluster`).
    pub(crate) async fn lapse(&mut self, id: u64) {
        let Ok((leader, membership)) = self.leaders_membership() else {
            return;
        };
        let door = self.shared.doors.lock().unwrap().get(&leader).cloned();
        let Some(door) = door else { return };
        // It leads, and nobody with another idea of who votes can.
        let read = timeout(ANSWER, door.process.run(door.store.read())).await;
        let status = membership.status();
        let voters = status.members.values().filter(|member| member.voter);
        let spared = voters.count() > 2 && status.settled;
        if !matches!(read, Ok(Ok(_))) || !spared || self.somebody_lapsed() {
            return;
        }
        let now = self.now();
        let ago = self.random.millis(0, LAPSED_MAX.as_secs() * 1_000);
        self.network.certify(id, now.before(ago));
        self.trace.say(format_args!(
            "{id} has a certificate that ended {ago:?} ago"
        ));
    }

    /// Whether a certificate has ended.
    pub(crate) fn somebody_lapsed(&self) -> bool {
        let now = self.now();
        let mut ids = self.managers.keys();
        ids.any(|id| self.network.certificate(*id) <= now)
    }

    /// Whoever is to renew its certificate asks the leader.
    pub(crate) fn renew(&mut self) {
        let Some((_, leader)) = self.leader() else {
            return;
        };
        let door = self.shared.doors.lock().unwrap().get(&leader).cloned();
        let Some(door) = door else { return };
        for (id, manager) in &self.managers {
            let Some(up) = &manager.up else { continue };
            let half = self.network.certificate(*id).before(LIFE / 2);
            let begun = self.renewing.get(id);
            if up.time.now() < half || begun.is_some_and(|begun| begun.elapsed() < ANSWER) {
                continue;
            }
            // Who asks does not show what has ended, and looks at what it is shown.
            let reached = *id == leader
                || self.network.reaches(*id, leader) && self.network.takes(*id, leader);
            if !reached {
                continue;
            }
            self.renewing.insert(*id, Instant::now());
            let (id, network, trace) = (*id, self.network.clone(), self.trace.clone());
            let (door, asking) = (door.clone(), up.process.clone());
            self.tasks.spawn(async move {
                let read = door.process.run(door.store.read());
                if let Ok(Ok(_)) = timeout(ANSWER, read).await
                    && !asking.is_dead()
                    && (id == leader || network.reaches(id, leader))
                {
                    network.certify(id, issued(door.clock.now()));
                    trace.say(format_args!("{id} has a new certificate"));
                }
            });
        }
    }
}

fn ended(cluster: &Cluster, id: u64) -> bool {
    cluster.network.certificate(id) <= cluster.now()
}

#[test]
fn who_was_off_until_its_certificate_ended_is_given_another_one() {
    story(3, async |cluster| {
        put(cluster, 0).await?;
        let id = a_follower(cluster)?;
        cluster.lapse(id).await;
        cluster.kill(id, true);
        cluster.run_for(Duration::from_secs(3)).await;
        if !ended(cluster, id) {
            return Err(one("it was renewed while it was off"));
        }
        put(cluster, 0).await?;
        cluster.start(id, Start::Join).await.map_err(one)?;
        cluster.run_for(Duration::from_secs(10)).await;
        match ended(cluster, id) {
            true => Err(one("it has no new certificate")),
            false => cluster.broken(),
        }
    });
}

#[test]
fn who_reaches_no_majority_is_given_no_certificate() {
    story(3, async |cluster| {
        put(cluster, 0).await?;
        let (_, id) = cluster.leader().ok_or("nobody leads").map_err(one)?;
        cluster.lapse(id).await;
        isolate(cluster, id);
        cluster.run_for(Duration::from_secs(6)).await;
        if !ended(cluster, id) {
            return Err(one("it was given one by nobody"));
        }
        put(cluster, 0).await?;
        cluster.network.heal();
        cluster.run_for(Duration::from_secs(10)).await;
        match ended(cluster, id) {
            true => Err(one("it has no new certificate")),
            false => cluster.broken(),
        }
    });
}
