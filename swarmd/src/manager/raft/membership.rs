//! Who takes part in consensus: looking at it, and changing it. Cheap to clone.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use openraft::async_runtime::WatchReceiver as _;
use openraft::entry::RaftPayload as _;
use openraft::errors::{ClientWriteError, RaftError};
use openraft::raft::Precondition;
use openraft::{ChangeMembers, Raft};

use super::freshness::Freshness;
use super::state_machine::{Machine, StateMachine};
use super::status::{self, RaftStatus};
use super::types::{self, EntryPayload, Member, RaftId, Types};

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

    /// The most by which this manager's state lags behind what was acknowledged; nothing where that is not known since it
    /// started.
    pub fn age(&self) -> Option<Duration> {
        self.freshness.age()
    }

    /// How long ago a majority had a leader, as far as this manager knows; nothing where it knows of none since it started.
    pub fn led(&self) -> Option<Duration> {
        self.freshness.led()
    }

    /// How long ago this manager heard a leader, with a majority or without; nothing where it has heard none since it started.
    pub fn silence(&self) -> Option<Duration> {
        self.freshness.silence()
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
        let learned = self.learn(id, member).await?;
        self.let_vote(id, &learned).await
    }

    /// Has a member learn the log, or corrects its addresses. Returns who the members are once it has all that was there
    /// before: from the moment on at which it votes a majority may need it.
    ///
    /// # Errors
    /// When this manager doesn't lead (any more), another change is under way, or the member is removed meanwhile.
    pub async fn learn(&self, id: RaftId, member: Member) -> Result<RaftStatus, MembershipError> {
        let before = self.status();
        uniform(&before)?;
        let known = before.members.get(&id);
        if known.is_some() {
            self.correct(id, member.clone()).await?;
        }
        if known.is_some_and(|known| known.voter) {
            return Ok(self.status());
        }
        // openraft's own wait is for a learner that needs no snapshot: it may lag behind by the entries of two.
        let added = self.raft.add_learner(id, member, false).await;
        let added = added.map_err(membership_error)?.log_id.index;
        self.until_matched(id, added).await
    }

    /// Waits until a learner has the log up to there.
    async fn until_matched(&self, id: RaftId, end: u64) -> Result<RaftStatus, MembershipError> {
        let mut metrics = self.raft.metrics();
        loop {
            let status = self.status();
            if status.leader != Some(status.id) {
                return Err(MembershipError::NotLeader {
                    leader: status.leader,
                });
            }
            match status.members.get(&id) {
                Some(known) if known.matched.is_some_and(|matched| matched >= end) => {
                    return Ok(status);
                }
                Some(_) => {}
                None => {
                    return Err(MembershipError::Refused(format!(
                        "manager {id} was removed while it caught up"
                    )));
                }
            }
            if metrics.changed().await.is_err() {
                return Err(MembershipError::Stopped("it was shut down".to_owned()));
            }
        }
    }

    /// Has a member vote that has learned, where the members still are those of `decided`.
    ///
    /// # Errors
    /// When this manager doesn't lead, the node is no member, or the members have changed or are changing.
    pub async fn let_vote(&self, id: RaftId, decided: &RaftStatus) -> Result<(), MembershipError> {
        match decided.members.get(&id) {
            Some(known) if known.voter => return Ok(()),
            Some(_) => {}
            None => {
                return Err(MembershipError::Refused(format!(
                    "manager {id} is no member"
                )));
            }
        }
        uniform(decided)?;
        let mut voters: BTreeSet<RaftId> = decided.configs().into_iter().flatten().collect();
        voters.insert(id);
        self.append(decided, voters, nodes(decided)).await
    }

    /// Corrects the addresses of a member.
    ///
    /// # Errors
    /// When this manager doesn't lead or another change is under way.
    pub async fn correct(&self, id: RaftId, member: Member) -> Result<(), MembershipError> {
        let status = self.status();
        let known = status.members.get(&id);
        if known.is_none_or(|known| known.member == member) {
            return Ok(());
        }
        // One entry, as long as no other change is half-way.
        uniform(&status)?;
        let nodes = BTreeMap::from([(id, member)]);
        let change = ChangeMembers::SetNodes(nodes);
        let changed = self.raft.change_membership(change, false).await;
        changed.map(drop).map_err(membership_error)
    }

    /// Removes a member, where the members still are those of `decided`. Whether the rest keeps a majority is the caller's
    /// question.
    ///
    /// # Errors
    /// When this manager doesn't lead, is the one to go, or the members have changed or are changing.
    pub async fn remove(&self, id: RaftId, decided: &RaftStatus) -> Result<(), MembershipError> {
        if !decided.members.contains_key(&id) {
            return Ok(());
        }
        if id == decided.id {
            return Err(MembershipError::Refused(format!(
                "manager {id} leads, and can't take itself out: another one has to lead first"
            )));
        }
        uniform(decided)?;
        let mut voters: BTreeSet<RaftId> = decided.configs().into_iter().flatten().collect();
        voters.remove(&id);
        let mut nodes = nodes(decided);
        nodes.remove(&id);
        self.append(decided, voters, nodes).await
    }

    /// Ends a change that stopped half-way: only `voters` vote from now on, which is one of the sets of `decided`.
    ///
    /// # Errors
    /// When this manager doesn't lead, or the members have changed or are changing.
    pub async fn finish(
        &self,
        voters: BTreeSet<RaftId>,
        decided: &RaftStatus,
    ) -> Result<(), MembershipError> {
        let mut nodes = nodes(decided);
        // Who votes no more is removed altogether; who learns goes on with it.
        nodes.retain(|id, _| voters.contains(id) || !decided.joint.iter().any(|c| c.contains(id)));
        self.append(decided, voters, nodes).await
    }

    /// Says who the members are from now on, in one entry: nothing is left half-way by a leader that dies over it.
    ///
    /// That is safe for one voter more or less: then every majority of before and every one of after have a member in
    /// common. openraft refuses any other difference, and looks that the entry before is committed, that this leader has
    /// committed one of its own term, and that the members are still those of `decided`.
    async fn append(
        &self,
        decided: &RaftStatus,
        voters: BTreeSet<RaftId>,
        nodes: BTreeMap<RaftId, Member>,
    ) -> Result<(), MembershipError> {
        let members = types::Membership::new(vec![voters], nodes);
        let members = members.map_err(|error| MembershipError::Refused(error.to_string()))?;
        let unchanged = Precondition::LastMembershipLogId {
            last_membership_log_id: decided.membership,
        };
        let appended = self
            .raft
            .append_membership(members, EntryPayload::blank(), [unchanged])
            .await;
        appended.map(drop).map_err(membership_error)
    }

    /// Leaves a change half-way, as a leader of an earlier version did that died over it.
    #[cfg(test)]
    pub(crate) async fn half_way(&self, sets: Vec<BTreeSet<RaftId>>) {
        let members = types::Membership::new(sets, nodes(&self.status())).unwrap();
        let appended = self
            .raft
            .append_membership(members, EntryPayload::blank(), []);
        appended.await.unwrap();
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

/// Nothing is changed where a change is half-way: that one is finished first.
fn uniform(status: &RaftStatus) -> Result<(), MembershipError> {
    match status.joint.is_empty() {
        true => Ok(()),
        false => Err(MembershipError::Refused(
            "another change of the members is half-way; the leader finishes it".to_owned(),
        )),
    }
}

fn nodes(status: &RaftStatus) -> BTreeMap<RaftId, Member> {
    let members = status.members.iter();
    members
        .map(|(id, known)| (*id, known.member.clone()))
        .collect()
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
