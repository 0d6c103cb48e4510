//! How old the state of a manager may be that answers without asking the others.
//!
//! A follower's state is as new as the last message of a leader whose committed entries it has all applied: whatever was
//! acknowledged before that message was sent is in it. How long ago that message came is the most by which it lags.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// What the leader's messages said of how far the others are.
#[derive(Debug, Default)]
pub(crate) struct Freshness(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    /// All that was committed then is applied.
    caught_up: Option<Instant>,
    /// The first message since whose commits are not all applied yet, and the last of them.
    behind: Option<(Instant, u64)>,
}

impl Inner {
    fn see(&mut self, applied: u64) {
        if let Some((at, _)) = self.behind.take_if(|(_, committed)| *committed <= applied) {
            self.caught_up = Some(at);
        }
    }
}

impl Freshness {
    /// A leader says that entries up to `committed` are; up to `applied` they are applied here.
    pub(super) fn heard(&self, committed: u64, applied: u64) {
        let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        inner.see(applied);
        let now = Instant::now();
        if committed <= applied {
            inner.caught_up = Some(now);
            inner.behind = None;
        } else {
            inner.behind.get_or_insert((now, committed));
        }
    }

    /// The most by which a state of this index lags; nothing where no leader was heard since the start.
    pub(super) fn age(&self, applied: u64) -> Option<Duration> {
        let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        inner.see(applied);
        inner.caught_up.map(|at| at.elapsed())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_state_is_as_old_as_the_message_it_has_caught_up_with() {
        let second = Duration::from_secs(1);
        let freshness = Freshness::default();
        assert_eq!(freshness.age(0), None, "nobody was heard");
        freshness.heard(5, 3);
        assert_eq!(freshness.age(4), None, "never caught up");
        tokio::time::advance(second).await;
        assert_eq!(freshness.age(5), Some(second), "since that message");
        tokio::time::advance(second).await;
        freshness.heard(5, 5);
        assert_eq!(freshness.age(5), Some(Duration::ZERO));
        // It falls behind: later messages say nothing of what came before the first.
        freshness.heard(9, 5);
        tokio::time::advance(second).await;
        freshness.heard(12, 5);
        tokio::time::advance(second).await;
        assert_eq!(freshness.age(5), Some(2 * second));
        assert_eq!(freshness.age(9), Some(2 * second), "what the first said");
        assert_eq!(freshness.age(12), Some(2 * second), "at most");
    }
}
