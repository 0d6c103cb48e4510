//! Who takes part in consensus: looking at it, and changing it. Cheap to clone.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use openraft::Instant as _;
use openraft::async_runtime::WatchReceiver as _;
use openraft::errors::{ClientWriteError, RaftError};
use openraft::{ChangeMembers, Raft, ServerState};

use super::freshness::Freshness;
use super::state_machine::{Machine, StateMachine};
use super::status::{self, RaftStatus};
use super::types::{Member, RaftId, Types};

/// Why a change of members failed.
#[derive(Debug, thiserror::Error)]
pub enum MembershipError {
    /// Another manager leads.
    #[error("this manager is not the leader: change members on manager {leader:?}")]
    NotLeader {
        /// The leader, if known.
        leader: Option<RaftId>,
    },
    /// openraft refused.
    #[error("the member change is refused: {0}")]
    Refused(String),
    /// Consensus stopped.
    #[error("raft on this manager has stopped: {0}")]
    Stopped(String),
}

/// The members of consensus.
pub struct Membership<M: Machine> {
    raft: Raft<Types, StateMachine<M>>,
    freshness: Arc<Freshness>,
}

impl<M: Machine> Membership<M> {
    pub(super) fn new(raft: Raft<Types, StateMachine<M>>, freshness: Arc<Freshness>) -> Self {
        Self { raft, freshness }
    }

    /// The most by which this manager's state lags behind what was acknowledged; nothing where it has heard no leader
    /// since it started.
    pub fn age(&self) -> Option<Duration> {
        let metrics = self.raft.metrics().borrow_watched().clone();
        if metrics.state == ServerState::Leader {
            // Alone it has the agreement of all there are.
            let alone = metrics.membership_config.voter_ids().eq([metrics.id]);
            let agreed = metrics.last_quorum_acked.map(|acked| acked.elapsed());
            return if alone { Some(Duration::ZERO) } else { agreed };
        }
        let applied = metrics.last_applied.map_or(0, |id| id.index);
        self.freshness.age(applied)
    }

    /// Where consensus stands now.
    pub fn status(&self) -> RaftStatus {
        status::read(&self.raft)
    }

    /// Calls `look` with who takes part, now and whenever that or who leads changes, until consensus stops.
    pub async fn follow(self, mut look: impl FnMut(BTreeMap<RaftId, Member>)) {
        let mut metrics = self.raft.server_metrics();
        let mut last = None;
        loop {
            let now: BTreeMap<RaftId, Member> = {
                let metrics = metrics.borrow_watched();
                let members = metrics.membership_config.nodes();
                members.map(|(id, member)| (*id, member.clone())).collect()
            };
            if last.as_ref() != Some(&now) {
                look(now.clone());
                last = Some(now);
            }
            if metrics.changed().await.is_err() {
                return;
            }
        }
    }

    /// Adds a voting member, or corrects its addresses. Returns when it has caught up and votes.
    ///
    /// # Errors
    /// When this manager doesn't lead or another change is under way.
    pub async fn add(&self, id: RaftId, member: Member) -> Result<(), MembershipError> {
        let known = self.status().members.get(&id).cloned();
        let voter = known.as_ref().is_some_and(|known| known.voter);
        if known.is_some() {
            self.correct(id, member.clone()).await?;
        }
        if !voter {
            // Also for one that learns already: it must have caught up before a majority needs it.
            let added = self.raft.add_learner(id, member, true).await;
            added.map_err(membership_error)?;
            self.change(ChangeMembers::AddVoterIds(BTreeSet::from([id])))
                .await?;
        }
        Ok(())
    }

    /// Corrects the addresses of a member.
    ///
    /// # Errors
    /// When this manager doesn't lead or another change is under way.
    pub async fn correct(&self, id: RaftId, member: Member) -> Result<(), MembershipError> {
        let known = self.status().members.get(&id).cloned();
        if known.is_none_or(|known| known.member == member) {
            return Ok(());
        }
        let nodes = BTreeMap::from([(id, member)]);
        self.change(ChangeMembers::SetNodes(nodes)).await
    }

    /// Removes a member. Whether the rest keeps a majority is the caller's question.
    ///
    /// # Errors
    /// When this manager doesn't lead, or it would be the last voter.
    pub async fn remove(&self, id: RaftId) -> Result<(), MembershipError> {
        let Some(known) = self.status().members.get(&id).cloned() else {
            return Ok(());
        };
        let ids = BTreeSet::from([id]);
        let change = match known.voter {
            true => ChangeMembers::RemoveVoters(ids),
            false => ChangeMembers::RemoveNodes(ids),
        };
        self.change(change).await
    }

    async fn change(&self, change: ChangeMembers<RaftId, Member>) -> Result<(), MembershipError> {
        // Not retained: who is removed as a voter is removed altogether.
        let changed = self.raft.change_membership(change, false).await;
        changed.map(drop).map_err(membership_error)
    }

    /// Hands leadership to another voter, if this manager leads. One try, not waited for: the new
    /// leader shows in [`super::RaftNode::leadership`], and is someone else if `to` doesn't take it.
    ///
    /// # Errors
    /// When `to` is no other voter, or consensus has stopped.
    pub async fn transfer_leader(&self, to: RaftId) -> Result<(), MembershipError> {
        let status = self.status();
        // A leader that hands over takes no more writes until another one leads: without one to take over, for ever.
        if to == status.id || status.members.get(&to).is_none_or(|member| !member.voter) {
            return Err(MembershipError::Refused(format!(
                "manager {to} can't take over the leadership: it is not another voting manager"
            )));
        }
        let asked = self.raft.trigger().transfer_leader(to).await;
        asked.map_err(|e| MembershipError::Stopped(e.to_string()))
    }
}

fn membership_error(error: RaftError<Types, ClientWriteError<Types>>) -> MembershipError {
    match error {
        RaftError::APIError(
            ClientWriteError::ForwardToLeader(to) | ClientWriteError::LogEntryDiscarded(to),
        ) => MembershipError::NotLeader {
            leader: to.leader_id,
        },
        RaftError::APIError(
            refused @ (ClientWriteError::ChangeMembershipError(_)
            | ClientWriteError::PreconditionFailed(_)),
        ) => MembershipError::Refused(refused.to_string()),
        RaftError::Fatal(fatal) => MembershipError::Stopped(fatal.to_string()),
    }
}

impl<M: Machine> Clone for Membership<M> {
    fn clone(&self) -> Self {
        Self {
            raft: self.raft.clone(),
            freshness: Arc::clone(&self.freshness),
        }
    }
}

impl<M: Machine> std::fmt::Debug for Membership<M> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Membership({})", self.raft.node_id())
    }
}
