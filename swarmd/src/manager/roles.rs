//! Managers that are to be managers no more are taken out of consensus.
//!
//! Who is a manager is said by the node objects; who votes, by consensus. This brings the second in line with the first,
//! one member at a time, and only where those that stay have a majority. [`next`] decides from values; [`run`] carries it
//! out while this manager leads. Becoming a member goes the other way: the manager asks ([`super::joining`]).

use std::time::Duration;

use swarm_proto::id::NodeId;
use swarm_proto::pb;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::members::HEARD_WITHIN;
use super::raft::{MemberStatus, Membership, Published, RaftId, RaftStatus};
use super::store::State;
use super::store::machine::StoreMachine;
use crate::clock::Clock;

/// Pause before what failed or had to wait is looked at again.
const AGAIN: Duration = Duration::from_secs(1);

/// What to do about the members.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// This one goes.
    Remove(RaftId),
    /// The leader goes, so another one has to lead first.
    HandOver(RaftId),
    /// Someone should go, and without it there would be no majority.
    Wait(RaftId),
}

/// The next step, if there is one.
fn next(state: &State, status: &RaftStatus) -> Option<Step> {
    // While a cluster is founded its first manager is a member before it is a node.
    state.cluster.as_ref()?;
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
    let is_up = |(other, m): &(&RaftId, &MemberStatus)| {
        **other == status.id || m.heard.is_some_and(|ago| ago < HEARD_WITHIN)
    };
    let (rest, up) = (voters.saturating_sub(1), others.filter(is_up).count());
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

/// Keeps the members in line with the nodes, until cancelled.
pub(crate) async fn run(
    membership: Membership<StoreMachine>,
    mut published: watch::Receiver<Published<State>>,
    clock: Clock,
    cancel: CancellationToken,
) {
    let mut told = None;
    let work = async {
        loop {
            let state = published.borrow_and_update().view.clone();
            let step = next(&state, &membership.status());
            let done = match step {
                None => Ok(()),
                Some(Step::Remove(id)) => membership.remove(id).await,
                Some(Step::HandOver(to)) => membership.transfer_leader(to).await,
                Some(Step::Wait(_)) => Ok(()),
            };
            match (step, done) {
                (Some(step), Err(error)) => {
                    tracing::warn!(?step, %error, "can't change the members yet")
                }
                (Some(Step::Remove(id)), Ok(())) => {
                    tracing::info!(raft.id = id, "a manager is no member any more")
                }
                (Some(Step::Wait(id)), Ok(())) if told != step => {
                    tracing::warn!(
                        raft.id = id,
                        "a manager can't be removed: the others have no majority without it"
                    );
                }
                (_, Ok(())) | (None, Err(_)) => {}
            }
            told = step;
            let pause = async {
                match step {
                    None => std::future::pending().await,
                    Some(_) => clock.sleep(AGAIN).await,
                }
            };
            tokio::select! {
                biased;
                changed = published.changed() => if changed.is_err() { return },
                () = pause => {}
            }
        }
    };
    let _ = cancel.run_until_cancelled(work).await;
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
        RaftStatus {
            id: 1,
            term: 1,
            leader: Some(1),
            last_log: 0,
            applied: 0,
            snapshot: 0,
            purged: 0,
            members: (1..4)
                .map(|id| (id, member(id)))
                .collect::<BTreeMap<_, _>>(),
        }
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
        assert_eq!(next(&state, &three(&[])), None, "no cluster yet");
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
        assert_eq!(next(&state, &three(&[])), Some(Step::Remove(2)));
        let mut two = three(&[]);
        two.members.remove(&2);
        assert_eq!(next(&state, &two), Some(Step::HandOver(3)));
        assert_eq!(next(&state, &three(&[3])), Some(Step::Wait(2)));
    }
}
