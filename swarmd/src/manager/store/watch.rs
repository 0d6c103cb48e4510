//! Who wants to know what changed: an ordered, gap-free stream of commits, or an explicit error.
//!
//! The hub keeps the newest commits in a ring bounded by the number of commits and events it holds. A subscriber
//! reads at its own pace; one that falls behind the ring is told so and starts over from a view
//! (promise P3). Nothing queues per subscriber, so a slow one costs no memory.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;

use super::{Event, State};

/// Events kept for subscribers that lag. At about 700 bytes an event with its old object, they stay below 12 MiB.
pub const RING_EVENTS_MAX: usize = 16_384;
/// Commits kept for them. Each keeps the part of the state that the next ones replaced, some KiB even for one task.
pub const RING_COMMITS_MAX: usize = 1_024;

/// One log entry that changed something.
#[derive(Debug, Clone)]
pub struct Commit {
    /// Its log index.
    pub version: u64,
    /// The state after it.
    pub state: State,
    /// What it did, in order.
    pub events: Vec<Event>,
}

/// Publishes commits.
#[derive(Debug, Clone)]
pub struct Hub {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    ring: Mutex<Ring>,
    version: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Ring {
    state: State,
    commits: VecDeque<Arc<Commit>>,
    events: usize,
    /// Sequence number of the first commit in the ring.
    first: u64,
}

/// A subscriber fell behind the ring; it has to start over from a view.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "the watch fell behind by more than {RING_COMMITS_MAX} commits or {RING_EVENTS_MAX} events; read the objects and watch again"
)]
pub struct Lagged;

impl Default for Hub {
    fn default() -> Self {
        Self::new(State::default())
    }
}

impl Hub {
    /// A hub that starts from a state.
    pub fn new(state: State) -> Self {
        let version = watch::Sender::new(state.version);
        let ring = Mutex::new(Ring {
            state,
            ..Ring::default()
        });
        Self {
            shared: Arc::new(Shared { ring, version }),
        }
    }

    /// The newest state.
    pub fn view(&self) -> State {
        self.lock().state.clone()
    }

    /// The newest version; changes are announced to those who wait on it.
    pub fn version(&self) -> watch::Receiver<u64> {
        self.shared.version.subscribe()
    }

    /// The newest state, and every commit after it.
    pub fn subscribe(&self) -> (State, Subscription) {
        let ring = self.lock();
        let next = ring.first + ring.commits.len() as u64;
        let subscription = Subscription {
            hub: self.clone(),
            next,
            version: self.shared.version.subscribe(),
        };
        (ring.state.clone(), subscription)
    }

    /// Every commit after `version`, as far as the ring reaches back.
    ///
    /// # Errors
    /// [`Lagged`] when commits after `version` have left the ring, or it is beyond the present.
    pub fn subscribe_from(&self, version: u64) -> Result<Subscription, Lagged> {
        let ring = self.lock();
        let kept_from = ring
            .commits
            .front()
            .map_or(ring.state.version, |c| c.version - 1);
        // Without commits in the ring only the present can be continued. What is beyond the present was seen in another
        // life of the cluster, before a restore.
        if version < kept_from.min(ring.state.version) || version > ring.state.version {
            return Err(Lagged);
        }
        let skip = ring
            .commits
            .iter()
            .take_while(|c| c.version <= version)
            .count() as u64;
        Ok(Subscription {
            hub: self.clone(),
            next: ring.first + skip,
            version: self.shared.version.subscribe(),
        })
    }

    /// Announces what one log entry did. Called by the one who applies, in log order.
    pub fn publish(&self, state: State, events: Vec<Event>) {
        let version = state.version;
        let mut ring = self.lock();
        ring.state = state.clone();
        if !events.is_empty() {
            ring.events += events.len();
            ring.commits.push_back(Arc::new(Commit {
                version,
                state,
                events,
            }));
            while ring.commits.len() > 1
                && (ring.events > RING_EVENTS_MAX || ring.commits.len() > RING_COMMITS_MAX)
            {
                if let Some(gone) = ring.commits.pop_front() {
                    ring.events -= gone.events.len();
                    ring.first += 1;
                }
            }
        }
        drop(ring);
        self.shared.version.send_replace(version);
    }

    /// Starts over from a state that no log entry led to: an installed snapshot. Subscribers lag.
    pub fn reset(&self, state: State) {
        let version = state.version;
        let mut ring = self.lock();
        ring.first += ring.commits.len() as u64 + 1;
        ring.commits.clear();
        ring.events = 0;
        ring.state = state;
        drop(ring);
        self.shared.version.send_replace(version);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Ring> {
        // Nothing panics while the lock is held; were it to, the ring is still whole.
        self.shared
            .ring
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// Reads commits in order.
#[derive(Debug)]
pub struct Subscription {
    hub: Hub,
    next: u64,
    version: watch::Receiver<u64>,
}

impl Subscription {
    /// The next commit; waits for it.
    ///
    /// # Errors
    /// [`Lagged`] when it has left the ring already.
    pub async fn next(&mut self) -> Result<Arc<Commit>, Lagged> {
        loop {
            // Marked as seen before looking, so that a commit in between wakes the wait below.
            self.version.mark_unchanged();
            if let Some(commit) = self.try_next()? {
                return Ok(commit);
            }
            // The hub lives as long as this subscription, so the sender is never gone.
            let _ = self.version.changed().await;
        }
    }

    /// The next commit if there is one.
    ///
    /// # Errors
    /// [`Lagged`] when it has left the ring already.
    pub fn try_next(&mut self) -> Result<Option<Arc<Commit>>, Lagged> {
        let ring = self.hub.lock();
        let offset = self.next.checked_sub(ring.first).ok_or(Lagged)?;
        let commit = usize::try_from(offset)
            .ok()
            .and_then(|i| ring.commits.get(i))
            .cloned();
        if commit.is_some() {
            self.next += 1;
        }
        Ok(commit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event() -> Event {
        Event::Task {
            old: None,
            new: None,
        }
    }

    fn publish(hub: &Hub, version: u64, events: usize) {
        let state = State {
            version,
            ..State::default()
        };
        hub.publish(state, vec![event(); events]);
    }

    #[tokio::test]
    async fn commits_arrive_in_order_and_without_gaps() {
        let hub = Hub::default();
        publish(&hub, 1, 1);
        let (view, mut sub) = hub.subscribe();
        assert_eq!(view.version, 1);
        for version in 2..100 {
            publish(&hub, version, 1);
        }
        for version in 2..100 {
            assert_eq!(sub.next().await.unwrap().version, version);
        }
        assert!(sub.try_next().unwrap().is_none());
    }

    #[tokio::test]
    async fn waits_for_the_next_commit() {
        let hub = Hub::default();
        let (_, mut sub) = hub.subscribe();
        let mut reader = std::pin::pin!(sub.next());
        // Polled once and found nothing: it waits.
        assert!(futures::poll!(&mut reader).is_pending());
        publish(&hub, 7, 1);
        assert_eq!(reader.await.unwrap().version, 7);
    }

    #[test]
    fn a_subscriber_that_falls_behind_is_told() {
        let hub = Hub::default();
        let (_, mut sub) = hub.subscribe();
        for version in 1..=3 {
            publish(&hub, version, RING_EVENTS_MAX);
        }
        assert_eq!(sub.try_next().unwrap_err(), Lagged);
        assert_eq!(hub.subscribe_from(1).unwrap_err(), Lagged);
        assert_eq!(
            hub.subscribe_from(2)
                .unwrap()
                .try_next()
                .unwrap()
                .unwrap()
                .version,
            3
        );
    }

    #[test]
    fn small_commits_are_bounded_by_their_number() {
        let hub = Hub::default();
        let (_, mut sub) = hub.subscribe();
        let commits = RING_COMMITS_MAX as u64;
        for version in 1..=commits {
            publish(&hub, version, 1);
        }
        assert_eq!(sub.try_next().unwrap().unwrap().version, 1);
        publish(&hub, commits + 1, 1);
        publish(&hub, commits + 2, 1);
        assert_eq!(sub.try_next().unwrap_err(), Lagged);
        assert_eq!(hub.lock().commits.len(), RING_COMMITS_MAX);
    }

    #[test]
    fn a_version_that_is_not_there_yet_is_refused() {
        let hub = Hub::default();
        publish(&hub, 5, 1);
        assert!(hub.subscribe_from(5).is_ok());
        assert_eq!(hub.subscribe_from(6).unwrap_err(), Lagged);
    }

    #[test]
    fn a_snapshot_ends_every_subscription() {
        let hub = Hub::default();
        publish(&hub, 1, 1);
        let (_, mut sub) = hub.subscribe();
        hub.reset(State {
            version: 50,
            ..State::default()
        });
        assert_eq!(sub.try_next().unwrap_err(), Lagged);
        assert_eq!(hub.view().version, 50);
    }
}
