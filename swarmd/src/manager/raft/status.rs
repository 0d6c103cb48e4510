//! Who leads, and where consensus stands.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use openraft::Instant as _;
use openraft::async_runtime::WatchReceiver as _;
use openraft::{Raft, ServerState};
use tokio::sync::watch;

use super::state_machine::{Machine, Published, StateMachine};
use super::types::{LogId, Member, RaftId, Types};

/// Who leads.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Leadership {
    /// Nobody that is known here.
    #[default]
    None,
    /// Another manager.
    Follower {
        /// Its raft id.
        leader: RaftId,
        /// Where it is.
        member: Option<Member>,
    },
    /// This manager, and its state holds all that earlier leaders acknowledged.
    Leader {
        /// Since when: each leadership has a term of its own.
        term: u64,
    },
}

impl Leadership {
    /// The term, if this manager leads.
    pub fn term(&self) -> Option<u64> {
        match self {
            Self::Leader { term } => Some(*term),
            Self::None | Self::Follower { .. } => None,
        }
    }
}

/// A look at consensus, for status output and metrics.
#[derive(Clone, Debug)]
pub struct RaftStatus {
    /// This manager.
    pub id: RaftId,
    /// The current term.
    pub term: u64,
    /// Who leads.
    pub leader: Option<RaftId>,
    /// The log's end.
    pub last_log: u64,
    /// Up to here the state is applied.
    pub applied: u64,
    /// Up to here a snapshot holds the state, 0 without one.
    pub snapshot: u64,
    /// Up to here the log is gone, 0 if it is whole.
    pub purged: u64,
    /// Members, and whether they vote.
    pub members: BTreeMap<RaftId, MemberStatus>,
    /// Who the members are is there to stay, as far as this manager knows: a majority has it.
    pub settled: bool,
    /// The sets of voters, where a change stopped half-way: each of them has to agree to everything. Empty where there is
    /// one set, as there always is but where an earlier version left a change undone.
    pub joint: Vec<BTreeSet<RaftId>>,
    /// The entry that says who the members are; what is decided from them holds only while it is the last such entry.
    pub(crate) membership: Option<LogId>,
}

impl RaftStatus {
    /// Whether this member votes, and that is there to stay.
    pub fn votes(&self, id: RaftId) -> bool {
        let voter = self.members.get(&id).is_some_and(|member| member.voter);
        voter && self.settled && self.joint.is_empty()
    }

    /// The sets of voters of which a majority each has to agree; one but where a change is half-way.
    pub fn configs(&self) -> Vec<BTreeSet<RaftId>> {
        if !self.joint.is_empty() {
            return self.joint.clone();
        }
        let voters = self.members.iter().filter(|(_, member)| member.voter);
        vec![voters.map(|(id, _)| *id).collect()]
    }
}

/// A member as this manager sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberStatus {
    /// Identity and addresses.
    pub member: Member,
    /// False for a learner, which doesn't count for majorities.
    pub voter: bool,
    /// The last entry it is known to have; only a leader knows.
    pub matched: Option<u64>,
    /// How long ago it answered; only a leader knows, and nothing before the first answer.
    pub heard: Option<Duration>,
}

#[cfg(test)]
impl RaftStatus {
    /// Member 1 leads these, with nothing in the log.
    pub(crate) fn led(members: BTreeMap<RaftId, MemberStatus>) -> Self {
        Self {
            id: 1,
            term: 1,
            leader: Some(1),
            last_log: 0,
            applied: 0,
            snapshot: 0,
            purged: 0,
            settled: true,
            joint: Vec::new(),
            membership: None,
            members,
        }
    }
}

/// Where consensus stands now.
pub(crate) fn read<M: Machine>(raft: &Raft<Types, StateMachine<M>>) -> RaftStatus {
    let metrics = raft.metrics().borrow_watched().clone();
    let index = |id: &Option<LogId>| id.map_or(0, |id| id.index);
    let membership = &metrics.membership_config;
    let voters: BTreeSet<RaftId> = membership.voter_ids().collect();
    let matched = |id: &RaftId| {
        let replication = metrics.replication.as_ref()?;
        Some(replication.get(id)?.as_ref()?.index)
    };
    let heard = |id: &RaftId| {
        let heartbeats = metrics.heartbeat.as_ref()?;
        Some(heartbeats.get(id)?.as_ref()?.elapsed())
    };
    let members = membership.nodes().map(|(id, member)| {
        let status = MemberStatus {
            member: member.clone(),
            voter: voters.contains(id),
            matched: matched(id),
            heard: heard(id),
        };
        (*id, status)
    });
    RaftStatus {
        settled: *membership.log_id() <= metrics.last_applied,
        joint: match membership.membership().get_joint_config() {
            joint if joint.len() > 1 => joint.clone(),
            _one => Vec::new(),
        },
        membership: *membership.log_id(),
        id: metrics.id,
        term: metrics.current_term,
        leader: metrics.current_leader,
        last_log: metrics.last_log_index.unwrap_or(0),
        applied: index(&metrics.last_applied),
        snapshot: index(&metrics.snapshot),
        purged: index(&metrics.purged),
        members: members.collect(),
    }
}

/// Tells who leads. This manager counts as leader only once it has applied an entry of its own
/// term: until then its state may lack what an earlier leader acknowledged.
pub(crate) async fn watch_leadership<M: Machine>(
    raft: Raft<Types, StateMachine<M>>,
    leadership: watch::Sender<Leadership>,
    mut published: watch::Receiver<Published<M::View>>,
) {
    let mut metrics = raft.server_metrics();
    loop {
        let now = {
            let metrics = metrics.borrow_watched();
            let applied = published.borrow_and_update();
            let term = metrics.vote.leader_id.term;
            let own_entry = applied.leader == metrics.id && applied.term == term;
            match (metrics.state, metrics.current_leader) {
                (ServerState::Leader, _) if own_entry => Leadership::Leader { term },
                (ServerState::Leader, _) | (_, None) => Leadership::None,
                (_, Some(leader)) => Leadership::Follower {
                    leader,
                    member: metrics.membership_config.get_node(&leader).cloned(),
                },
            }
        };
        let waits_for_entry = now == Leadership::None;
        leadership.send_if_modified(|shown| {
            let changed = *shown != now;
            *shown = now;
            changed
        });
        tokio::select! {
            biased;
            changed = metrics.changed() => if changed.is_err() { break },
            applied = published.changed(), if waits_for_entry => if applied.is_err() { break },
        }
    }
    leadership.send_replace(Leadership::None);
}
