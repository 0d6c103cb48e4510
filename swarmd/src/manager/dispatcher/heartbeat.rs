//! When a node that says nothing counts as gone.
//!
//! [`Expiry`] is pure: it is told of beats and asked who is late. The shell around it marks late
//! nodes DOWN, so that the pass runs their tasks elsewhere, and gives them up after a day.
//!
//! A node is late three periods after its last beat. With the default of 5 s that is 15 s, which
//! leaves 5 s of the 20 s in which the tasks of a cut-off node have to run elsewhere. After a change
//! of leader nodes get twice that: they have to find the new leader first, and nothing is replaced
//! on its account.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use swarm_proto::cluster::HEARTBEAT_PERIOD_MIN;
use swarm_proto::id::NodeId;
use swarm_proto::pb;
use swarm_proto::time::duration_from_wire;

use super::Term;
use crate::clock::Monotonic;
use crate::manager::store::{Change, State};

/// Period of heartbeats where the cluster sets none (SwarmKit's default).
pub const PERIOD_DEFAULT: Duration = Duration::from_secs(5);
/// Nodes are told periods that differ by up to this, so that they don't beat together (SwarmKit's).
const EPSILON: Duration = Duration::from_millis(500);
/// Periods without a beat after which a node is late (SwarmKit's).
const GRACE: u32 = 3;
/// The same after a change of leader (SwarmKit's).
const GRACE_UNKNOWN: u32 = 2 * GRACE;

/// Who is late.
#[derive(Debug, Default)]
pub struct Expiry {
    by_node: BTreeMap<NodeId, Monotonic>,
    by_time: BTreeSet<(Monotonic, NodeId)>,
}

/// How long a node may stay silent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Patience {
    /// It has a session.
    Session,
    /// It had one with an earlier leader.
    Unknown,
}

impl Patience {
    fn grace(self, period: Duration) -> Duration {
        match self {
            Self::Session => period * GRACE,
            Self::Unknown => period * GRACE_UNKNOWN,
        }
    }
}

impl Expiry {
    /// A sign of life.
    pub fn beat(&mut self, node: NodeId, now: Monotonic, period: Duration, patience: Patience) {
        self.expect(node, now.after(patience.grace(period)));
    }

    /// The node is late after this.
    pub fn expect(&mut self, node: NodeId, deadline: Monotonic) {
        if let Some(old) = self.by_node.insert(node, deadline) {
            self.by_time.remove(&(old, node));
        }
        self.by_time.insert((deadline, node));
    }

    /// The node is no longer waited for.
    pub fn forget(&mut self, node: NodeId) {
        if let Some(old) = self.by_node.remove(&node) {
            self.by_time.remove(&(old, node));
        }
    }

    /// The nodes that are late; they are no longer waited for.
    pub fn expired(&mut self, now: Monotonic) -> Vec<NodeId> {
        let mut late = Vec::new();
        while let Some((deadline, node)) = self.by_time.first().copied()
            && deadline <= now
        {
            self.forget(node);
            late.push(node);
        }
        late
    }

    /// When the next node is late, unless it beats before.
    #[must_use]
    pub fn next(&self) -> Option<Monotonic> {
        self.by_time.first().map(|(deadline, _)| *deadline)
    }
}

/// Pause before a node is marked DOWN again where that could not be written.
const DOWN_AGAIN: Duration = Duration::from_secs(1);

/// The period of heartbeats that the cluster is set to.
#[must_use]
pub fn period(state: &State) -> Duration {
    let set = state
        .cluster
        .as_ref()
        .and_then(|c| c.spec.dispatcher.as_ref()?.heartbeat_period)
        .and_then(|period| duration_from_wire(&period))
        .filter(|period| !period.is_zero());
    set.unwrap_or(PERIOD_DEFAULT).max(HEARTBEAT_PERIOD_MIN)
}

/// The period to tell one node: up to 500 ms, and a tenth, off. `random` is any number.
#[must_use]
pub fn spread(period: Duration, random: u32) -> Duration {
    let epsilon = EPSILON.min(period / 10);
    (period - epsilon) + (2 * epsilon).mul_f64(f64::from(random) / f64::from(u32::MAX))
}

/// Marks late nodes DOWN.
pub(super) async fn run(term: Arc<Term>) {
    loop {
        let next = term.sessions().expiry.next();
        let due = async {
            match next {
                Some(at) => term.clock.sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            () = term.expiry_changed.notified() => continue,
            () = due => {}
        }
        let late = term.sessions().expire(term.clock.monotonic());
        if !late.is_empty() {
            mark_down(&term, late).await;
        }
    }
}

async fn mark_down(term: &Term, late: Vec<(NodeId, Patience)>) {
    let state = term.store.view();
    let changes = late.iter().filter_map(|(id, patience)| {
        let node = state.nodes.get(id)?;
        let message = match patience {
            Patience::Session => "heartbeat failure",
            Patience::Unknown => "heartbeat failure for node in \"unknown\" state",
        };
        tracing::info!(node.id = %id, reason = message, "node is down");
        (node.status.state != pb::node_status::State::Down).then(|| Change::SetNodeStatus {
            id: *id,
            state: pb::node_status::State::Down,
            message: message.to_owned(),
            addr: None,
            description: None,
        })
    });
    if !term.write_nodes(changes.collect()).await {
        // Not known to be DOWN, so it is still waited for: else it would stay READY, and its tasks where they are.
        let again = term.clock.monotonic().after(DOWN_AGAIN);
        for (id, _) in late {
            let mut sessions = term.sessions();
            if !sessions.has(id) {
                sessions.expiry.expect(id, again);
            }
        }
        return;
    }
    // A node that registers meanwhile has its session before it writes READY: whichever of the two
    // writes came last, the node is READY in the end.
    let back = late
        .iter()
        .filter(|(id, _)| term.sessions().has(*id))
        .map(|(id, _)| Change::SetNodeStatus {
            id: *id,
            state: pb::node_status::State::Ready,
            message: String::new(),
            addr: None,
            description: None,
        });
    let back: Vec<Change> = back.collect();
    if !back.is_empty() {
        term.write_nodes(back).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;
    use swarm_proto::time::Timestamp;

    const A: NodeId = NodeId::from_raw(1);
    const B: NodeId = NodeId::from_raw(2);

    #[test]
    fn beats_put_off_and_silence_expires() {
        let (clock, _hand) = Clock::manual(Timestamp::ZERO);
        let start = clock.monotonic();
        let at = |s| start.after(Duration::from_secs(s));
        let mut expiry = Expiry::default();
        expiry.beat(A, at(0), PERIOD_DEFAULT, Patience::Session);
        expiry.beat(B, at(0), PERIOD_DEFAULT, Patience::Unknown);
        assert_eq!(expiry.next(), Some(at(15)));
        assert_eq!(expiry.expired(at(14)), []);
        expiry.beat(A, at(14), PERIOD_DEFAULT, Patience::Session);
        assert_eq!(expiry.expired(at(28)), []);
        assert_eq!(expiry.expired(at(29)), [A]);
        assert_eq!(expiry.expired(at(30)), [B]);
        assert_eq!(expiry.next(), None);
        expiry.beat(A, at(40), PERIOD_DEFAULT, Patience::Session);
        expiry.forget(A);
        assert_eq!(expiry.expired(at(100)), []);
    }

    #[test]
    fn periods_are_spread() {
        let five = Duration::from_secs(5);
        assert_eq!(spread(five, 0), Duration::from_millis(4500));
        assert_eq!(spread(five, u32::MAX), Duration::from_millis(5500));
        let short = Duration::from_millis(200);
        assert_eq!(spread(short, 0), Duration::from_millis(180));
    }
}
