//! How often nodes whose certificate has expired may ask for another one: seldom, each and together.
//!
//! In the memory of one leader: another one begins to count anew.

use std::collections::VecDeque;
use std::time::Duration;

use swarm_proto::id::NodeId;

use crate::clock::Monotonic;

/// One node asks once within this time.
const PER_NODE: Duration = Duration::from_secs(10);
/// All nodes ask so often within [`TOGETHER_WINDOW`]: as often as they are asked in a change of root.
const TOGETHER_MAX: usize = 30;
/// See [`TOGETHER_MAX`].
const TOGETHER_WINDOW: Duration = Duration::from_secs(3);

/// Not now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum NotNow {
    /// This node.
    #[error(
        "node {0} asked to renew its expired certificate less than {PER_NODE:?} ago; it may try again later"
    )]
    Node(NodeId),
    /// All nodes.
    #[error("too many nodes renew an expired certificate at this time; try again later")]
    Together,
}

/// Who asked lately, the latest last: at most [`TOGETHER_MAX`] for each window within [`PER_NODE`].
#[derive(Debug, Default)]
pub(super) struct Expired(VecDeque<(Monotonic, NodeId)>);

impl Expired {
    /// Counts a request that is served.
    pub(super) fn admit(&mut self, node: NodeId, now: Monotonic) -> Result<(), NotNow> {
        while self
            .0
            .front()
            .is_some_and(|(at, _)| now.since(*at) >= PER_NODE)
        {
            self.0.pop_front();
        }
        if self.0.iter().any(|(_, other)| *other == node) {
            return Err(NotNow::Node(node));
        }
        let recent = self
            .0
            .iter()
            .filter(|(at, _)| now.since(*at) < TOGETHER_WINDOW);
        if recent.count() >= TOGETHER_MAX {
            return Err(NotNow::Together);
        }
        self.0.push_back((now, node));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;

    #[test]
    fn each_seldom_and_all_together_not_too_often() {
        let (clock, _) = Clock::manual(swarm_proto::time::Timestamp::from_millis(1));
        let start = clock.monotonic();
        let at = |ms: u64| start.after(Duration::from_millis(ms));
        let id = NodeId::from_raw;
        let mut expired = Expired::default();
        assert_eq!(expired.admit(id(1), at(0)), Ok(()));
        assert_eq!(expired.admit(id(1), at(9_999)), Err(NotNow::Node(id(1))));
        assert_eq!(expired.admit(id(1), at(10_000)), Ok(()));
        for n in 2..31 {
            assert_eq!(expired.admit(id(n), at(11_000)), Ok(()), "{n}");
        }
        assert_eq!(expired.admit(id(31), at(12_999)), Err(NotNow::Together));
        assert_eq!(expired.admit(id(31), at(13_000)), Ok(()));
    }
}
