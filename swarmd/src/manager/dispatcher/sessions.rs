//! Who has a session, and how often a node may ask for one.
//!
//! A session lives in the memory of one leader. A node has one; registering again closes the old.

use std::collections::BTreeMap;
use std::time::Duration;

use swarm_proto::id::{NodeId, TaskId};
use swarm_proto::pb;
use tokio_util::sync::CancellationToken;

use super::heartbeat::{Expiry, Patience};
use super::usage::Usage;
use crate::clock::Monotonic;

/// Registrations a node may make within [`RATE_WINDOW`] (SwarmKit's).
pub(super) const RATE_MAX: u32 = 3;
/// See [`RATE_MAX`].
pub(super) const RATE_WINDOW: Duration = Duration::from_secs(8);

/// A node's session.
#[derive(Debug, Clone)]
pub(super) struct Session {
    /// Shown with every request.
    pub(super) id: String,
    /// Cancelled when it ends: its streams end with it.
    pub(super) closed: CancellationToken,
}

/// A node that said it leaves may not register for this long: its own farewell would be overtaken.
pub(super) const LEAVE_WINDOW: Duration = Duration::from_secs(15);

/// Why a node may not register now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum NotNow {
    /// Too many registrations.
    #[error(
        "the node registers too often: more than {RATE_MAX} times within {RATE_WINDOW:?}; it may try again later"
    )]
    TooOften,
    /// It said that it leaves.
    #[error("the node said that it leaves; it may register again after {LEAVE_WINDOW:?}")]
    Leaves,
}

/// Not the node's session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the session is not valid (any more): the node has to register again")]
pub(super) struct NoSession;

/// All sessions of this leader.
#[derive(Debug, Default)]
pub(super) struct Sessions {
    by_node: BTreeMap<NodeId, Session>,
    attempts: BTreeMap<NodeId, (Monotonic, u32)>,
    leaving: BTreeMap<NodeId, Monotonic>,
    usage: BTreeMap<NodeId, Usage>,
    pub(super) expiry: Expiry,
}

impl Sessions {
    /// What the tasks of a node with a session take, as it said last.
    pub(super) fn note_usage(&mut self, node: NodeId, usage: Usage) {
        self.usage.insert(node, usage);
    }

    /// What a task takes.
    pub(super) fn usage(&self, node: NodeId, task: TaskId) -> Option<pb::TaskUsage> {
        self.by_node.get(&node)?;
        self.usage.get(&node)?.of_task(task)
    }

    /// The node is about to leave.
    pub(super) fn leave(&mut self, node: NodeId, now: Monotonic) {
        self.leaving
            .retain(|_, since| now.since(*since) <= LEAVE_WINDOW);
        self.leaving.insert(node, now);
    }

    /// It could not leave after all.
    pub(super) fn stay(&mut self, node: NodeId) {
        self.leaving.remove(&node);
    }

    /// Counts a registration.
    pub(super) fn admit(&mut self, node: NodeId, now: Monotonic) -> Result<(), NotNow> {
        let leaves = self.leaving.get(&node);
        if leaves.is_some_and(|since| now.since(*since) <= LEAVE_WINDOW) {
            return Err(NotNow::Leaves);
        }
        let (since, count) = self.attempts.entry(node).or_insert((now, 0));
        if now.since(*since) > RATE_WINDOW {
            (*since, *count) = (now, 0);
        }
        *count += 1;
        if *count > RATE_MAX {
            return Err(NotNow::TooOften);
        }
        Ok(())
    }

    /// Opens a session; the node's old one ends.
    pub(super) fn open(&mut self, node: NodeId, session: Session) {
        if let Some(old) = self.by_node.insert(node, session) {
            old.closed.cancel();
        }
    }

    /// Ends the node's session if it is this one, or whichever it is.
    pub(super) fn close(&mut self, node: NodeId, id: Option<&str>) {
        let ours = |s: &Session| id.is_none_or(|id| s.id == id);
        if self.by_node.get(&node).is_some_and(ours)
            && let Some(old) = self.by_node.remove(&node)
        {
            old.closed.cancel();
            self.expiry.forget(node);
            self.usage.remove(&node);
        }
    }

    /// Ends the node's session if it is this one; the node is still waited for.
    pub(super) fn abandon(&mut self, node: NodeId, id: &str) {
        if self.by_node.get(&node).is_some_and(|s| s.id == id)
            && let Some(old) = self.by_node.remove(&node)
        {
            old.closed.cancel();
        }
    }

    /// The node's session, if it is this one.
    pub(super) fn check(&self, node: NodeId, id: &str) -> Result<&Session, NoSession> {
        self.by_node
            .get(&node)
            .filter(|s| s.id == id)
            .ok_or(NoSession)
    }

    /// Ends the sessions of late nodes; nodes that had none yet with this leader are named too.
    pub(super) fn expire(&mut self, now: Monotonic) -> Vec<(NodeId, Patience)> {
        let late = self.expiry.expired(now);
        late.into_iter()
            .map(|node| match self.by_node.remove(&node) {
                Some(session) => {
                    session.closed.cancel();
                    (node, Patience::Session)
                }
                None => (node, Patience::Unknown),
            })
            .collect()
    }

    /// Whether the node has a session.
    pub(super) fn has(&self, node: NodeId) -> bool {
        self.by_node.contains_key(&node)
    }

    /// The nodes that have a session.
    pub(super) fn nodes(&self) -> impl Iterator<Item = NodeId> {
        self.by_node.keys().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;
    use swarm_proto::time::Timestamp;

    const NODE: NodeId = NodeId::from_raw(1);

    fn session(id: &str) -> Session {
        Session {
            id: id.to_owned(),
            closed: CancellationToken::new(),
        }
    }

    #[test]
    fn registrations_are_limited() {
        let (clock, hand) = Clock::manual(Timestamp::ZERO);
        let mut sessions = Sessions::default();
        for _ in 0..RATE_MAX {
            assert_eq!(sessions.admit(NODE, clock.monotonic()), Ok(()));
        }
        assert_eq!(
            sessions.admit(NODE, clock.monotonic()),
            Err(NotNow::TooOften)
        );
        assert_eq!(
            sessions.admit(NodeId::from_raw(2), clock.monotonic()),
            Ok(())
        );
        hand.advance(RATE_WINDOW + Duration::from_millis(1));
        assert_eq!(sessions.admit(NODE, clock.monotonic()), Ok(()));
    }

    #[test]
    fn a_new_session_ends_the_old_one() {
        let mut sessions = Sessions::default();
        let (old, new) = (session("old"), session("new"));
        sessions.open(NODE, old.clone());
        sessions.open(NODE, new.clone());
        assert!(old.closed.is_cancelled());
        assert!(sessions.check(NODE, "old").is_err());
        assert!(sessions.check(NODE, "new").is_ok());
        sessions.close(NODE, Some("old"));
        assert!(!new.closed.is_cancelled());
        sessions.close(NODE, None);
        assert!(new.closed.is_cancelled());
    }
}
