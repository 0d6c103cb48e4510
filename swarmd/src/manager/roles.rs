//! Managers that are to be managers no more are taken out of consensus.
//!
//! Who is a manager is said by the node objects; who votes, by consensus. This brings the second in line with the first,
//! one member at a time, and only where those that stay have a majority; and it keeps the membership's addresses those that
//! the managers are at ([`super::addresses`]), and gives up managers that are dead ([`super::autopilot`]). [`next`] decides from values; [`Roles::run`] carries it out while this manager
//! leads. Becoming a member goes the other way: the manager asks ([`super::joining`]).

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use swarm_proto::id::NodeId;
use swarm_proto::pb;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::addresses::{self, Known, Move};
use super::autopilot::{self, Care, Look, Silence};
use super::members::HEARD_WITHIN;
use super::raft::{MemberStatus, Membership, Published, RaftId, RaftStatus, Whereabouts};
use super::store::machine::StoreMachine;
use super::store::{Change, State};
use super::writer::Store;
use crate::ca::SecurityConfig;
use crate::clock::{Clock, Monotonic};

/// Pause before what failed or had to wait is looked at again.
const AGAIN: Duration = Duration::from_secs(1);
/// Pause before an address where the manager did not answer is tried again.
const PROVE_AGAIN: Duration = Duration::from_secs(5);

/// What to do about the members.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Step {
    /// This one goes.
    Remove(RaftId),
    /// The leader goes, so another one has to lead first.
    HandOver(RaftId),
    /// Someone should go, and without it there would be no majority.
    Wait(RaftId),
    /// This one is elsewhere.
    Move(Move),
    /// This one is dead, or was.
    Care(Care),
}

/// The next step, if there is one.
fn next(
    state: &State,
    status: &RaftStatus,
    (moves, care): (Vec<Move>, Option<Care>),
) -> Option<Step> {
    // While a cluster is founded its first manager is a member before it is a node.
    state.cluster.as_ref()?;
    let moved = moves.into_iter().next().map(Step::Move);
    let first = care.map(Step::Care).or(moved);
    match leaves(state, status) {
        // What has to wait is in nobody's way; and who is dead may be what it waits for.
        None | Some(Step::Wait(_)) if first.is_some() => first,
        step => step,
    }
}

/// Who should be a member no more.
fn leaves(state: &State, status: &RaftStatus) -> Option<Step> {
    let stays = |member: &MemberStatus| {
        let id: Option<NodeId> = member.member.node_id.parse().ok();
        let node = id.and_then(|id| state.nodes.get(&id));
        node.is_some_and(|n| n.desired_role == pb::NodeRole::Manager)
    };
    let goes = status.members.iter().filter(|(_, m)| !stays(m));
    let goes: Vec<RaftId> = goes.map(|(id, _)| *id).collect();
    // The leader last: the others' removal needs it.
    let id = *goes.iter().find(|id| **id != status.id).or(goes.first())?;
    if let Err(Lost { .. }) = status_without(status, id) {
        return Some(Step::Wait(id));
    }
    if id != status.id {
        return Some(Step::Remove(id));
    }
    let others = status
        .members
        .iter()
        .filter(|(other, m)| **other != id && m.voter);
    let best = others.max_by_key(|(other, m)| (m.matched, **other));
    best.map(|(other, _)| Step::HandOver(*other))
}

/// Whether a member answers the leader.
pub(super) fn is_up(status: &RaftStatus, id: RaftId, member: &MemberStatus) -> bool {
    id == status.id || member.heard.is_some_and(|ago| ago < HEARD_WITHIN)
}

/// Removing a member would stop the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{rest} of {voters} managers would be left, {needed} of them have to be up, and {up} are")]
pub(crate) struct Lost {
    voters: usize,
    rest: usize,
    needed: usize,
    up: usize,
}

/// Whether those that stay have a majority that is up, as the leader sees it.
///
/// # Errors
/// The arithmetic, where they have not.
pub(crate) fn status_without(status: &RaftStatus, id: RaftId) -> Result<(), Lost> {
    let voters = status.members.values().filter(|m| m.voter).count();
    if status.members.get(&id).is_none_or(|m| !m.voter) {
        return Ok(());
    }
    let others = status
        .members
        .iter()
        .filter(|(other, m)| **other != id && m.voter);
    let up = others.filter(|(other, m)| is_up(status, **other, m));
    let (rest, up) = (voters.saturating_sub(1), up.count());
    let needed = rest / 2 + 1;
    if rest > 0 && up >= needed {
        return Ok(());
    }
    Err(Lost {
        voters,
        rest,
        needed,
        up,
    })
}

/// What the members are kept by.
pub(crate) struct Roles {
    pub(crate) membership: Membership<StoreMachine>,
    pub(crate) store: Store,
    pub(crate) published: watch::Receiver<Published<State>>,
    pub(crate) whereabouts: Arc<Whereabouts>,
    pub(crate) security: Arc<OnceLock<SecurityConfig>>,
    /// The addresses of this host.
    pub(crate) here: fn() -> Vec<IpAddr>,
    pub(crate) clock: Clock,
}

impl Roles {
    /// Keeps the members in line with the nodes, until cancelled.
    pub(crate) async fn run(self: Arc<Self>, cancel: CancellationToken) {
        let mut published = self.published.clone();
        let (mut told, mut unproved) = (None, Unproved::default());
        let (mut silence, mut looked) = (Silence::default(), None);
        let work = async {
            loop {
                let state = published.borrow_and_update().view.clone();
                let status = self.membership.status();
                let now = self.clock.monotonic();
                // Not with every commit: nothing of it is in a hurry.
                let mut moves = match looked.is_none_or(|last: Monotonic| now >= last.after(AGAIN))
                {
                    true => {
                        looked = Some(now);
                        let known = Known::read(&self.whereabouts, self.here);
                        addresses::moves(&state, &status, &known)
                    }
                    false => Vec::new(),
                };
                moves.retain(|m| !unproved.waits(m, now));
                let silent = silence.look(&status, now);
                let care = autopilot::next(Look {
                    state: &state,
                    status: &status,
                    silent: &silent,
                    now: self.store.time(&self.clock),
                });
                let step = next(&state, &status, (moves, care));
                match &step {
                    None => {}
                    Some(Step::Move(to)) => {
                        let moved = self.carry_out(to).await;
                        unproved.note(to, moved, self.clock.monotonic());
                    }
                    Some(Step::Care(care)) => self.care(care).await,
                    Some(step) => self.change(step, told.as_ref()).await,
                }
                told = step;
                tokio::select! {
                    biased;
                    changed = published.changed() => if changed.is_err() { return },
                    // Also for what is in no object: who answers, and where.
                    () = self.clock.sleep(AGAIN) => {}
                }
            }
        };
        let _ = cancel.run_until_cancelled(work).await;
    }

    async fn change(&self, step: &Step, told: Option<&Step>) {
        let done = match step {
            Step::Remove(id) => self.membership.remove(*id).await,
            Step::HandOver(to) => self.membership.transfer_leader(*to).await,
            Step::Wait(_) | Step::Move(_) | Step::Care(_) => Ok(()),
        };
        match (step, done) {
            (step, Err(error)) => {
                tracing::warn!(?step, %error, "can't change the members yet");
            }
            (Step::Remove(id), Ok(())) => {
                tracing::info!(raft.id = id, "a manager is no member any more");
            }
            (Step::Wait(id), Ok(())) if told != Some(step) => {
                tracing::warn!(
                    raft.id = id,
                    "a manager can't be removed: the others have no majority without it"
                );
            }
            (Step::HandOver(_) | Step::Wait(_) | Step::Move(_) | Step::Care(_), Ok(())) => {}
        }
    }

    /// Goes a step further with one that is dead, or was.
    async fn care(&self, care: &Care) {
        match care {
            Care::Remove(id) => match self.membership.remove(*id).await {
                Ok(()) => tracing::warn!(raft.id = id, "a dead manager votes no more"),
                Err(error) => {
                    tracing::warn!(raft.id = id, %error, "can't remove a dead manager yet")
                }
            },
            Care::Note(node, retirement) => {
                let change = Change::SetRetirement {
                    node: *node,
                    retirement: retirement.clone(),
                };
                let written = self
                    .store
                    .write(self.store.time(&self.clock), vec![change])
                    .await;
                match (written, retirement) {
                    (Err(error), _) => {
                        tracing::warn!(node.id = %node, %error, "can't write down yet how a manager stands")
                    }
                    (Ok(_), Some(retired)) if !retired.done => {
                        tracing::warn!(node.id = %node, reason = retired.reason, "a manager is dead, and is given up as a voter");
                    }
                    (Ok(_), Some(_)) => {}
                    (Ok(_), None) => {
                        tracing::info!(node.id = %node, "a manager that was given up is back")
                    }
                }
            }
        }
    }

    /// Corrects where a member is.
    async fn carry_out(&self, to: &Move) -> Result<(), String> {
        if to.to_prove {
            let security = self.security.get();
            let security = security.ok_or("this manager is starting")?;
            addresses::prove(&to.member, security).await?;
        }
        let corrected = self.membership.correct(to.id, to.member.clone()).await;
        corrected.map_err(|error| error.to_string())?;
        tracing::info!(node.id = to.member.node_id, addresses = ?to.member.addresses, "a manager is known by another address");
        Ok(())
    }
}

/// Addresses that were not taken over.
#[derive(Debug, Default)]
struct Unproved(BTreeMap<RaftId, (Move, Monotonic)>);

impl Unproved {
    fn waits(&self, to: &Move, now: Monotonic) -> bool {
        let known = self.0.get(&to.id);
        known.is_some_and(|(known, at)| known == to && now < at.after(PROVE_AGAIN))
    }

    fn note(&mut self, to: &Move, moved: Result<(), String>, now: Monotonic) {
        let Err(reason) = moved else {
            self.0.remove(&to.id);
            return;
        };
        let before = self.0.insert(to.id, (to.clone(), now));
        if before.is_none_or(|(known, _)| known != *to) {
            tracing::warn!(node.id = to.member.node_id, addresses = ?to.member.addresses, reason, "a manager is not known by its new address yet");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::manager::raft::{Member, MemberStatus};

    /// Members 1 to 3 as the leader 1 sees them; those in `down` don't answer.
    fn three(down: &[RaftId]) -> RaftStatus {
        let member = |id: RaftId| MemberStatus {
            member: Member {
                node_id: NodeId::from_raw(u128::from(id)).to_string(),
                addresses: vec![],
            },
            voter: true,
            matched: Some(id),
            heard: (!down.contains(&id)).then_some(Duration::ZERO),
        };
        RaftStatus::led(
            (1..4)
                .map(|id| (id, member(id)))
                .collect::<BTreeMap<_, _>>(),
        )
    }

    #[test]
    fn a_majority_of_the_rest_must_be_up() {
        assert_eq!(status_without(&three(&[]), 2), Ok(()));
        assert_eq!(
            status_without(&three(&[2]), 2),
            Ok(()),
            "the one that is down goes"
        );
        let lost = status_without(&three(&[2]), 3).unwrap_err();
        assert_eq!(
            lost.to_string(),
            "2 of 3 managers would be left, 2 of them have to be up, and 1 are"
        );
        assert_eq!(status_without(&three(&[]), 9), Ok(()), "no member");
        let mut one = three(&[]);
        one.members.retain(|id, _| *id == 1);
        assert!(status_without(&one, 1).is_err(), "the last one");
    }

    #[test]
    fn the_leader_goes_last_and_hands_over() {
        use crate::manager::store::testing::node;
        use std::sync::Arc;
        let mut state = State::default();
        assert_eq!(
            next(&state, &three(&[]), (vec![], None)),
            None,
            "no cluster yet"
        );
        let root = crate::ca::RootCa::generate(swarm_proto::time::Timestamp(1)).unwrap();
        let cluster = crate::manager::bootstrap::cluster(&root, swarm_proto::time::Timestamp(1));
        state.cluster = Some(Arc::new(cluster.unwrap()));
        let mut put = |id: u8, role| {
            let mut node = node(id);
            node.desired_role = role;
            state.nodes.insert(node.id, Arc::new(node));
        };
        for id in 1..4 {
            put(id, pb::NodeRole::Manager);
        }
        put(1, pb::NodeRole::Worker);
        put(2, pb::NodeRole::Worker);
        assert_eq!(
            next(&state, &three(&[]), (vec![], None)),
            Some(Step::Remove(2))
        );
        let mut two = three(&[]);
        two.members.remove(&2);
        assert_eq!(next(&state, &two, (vec![], None)), Some(Step::HandOver(3)));
        assert_eq!(
            next(&state, &three(&[3]), (vec![], None)),
            Some(Step::Wait(2))
        );
    }
}
