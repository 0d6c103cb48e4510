//! The only clock of swarmd: wall time, monotonic time and sleeping.
//!
//! Everything that needs the time holds a [`Clock`] (cheap to clone) instead of asking the system,
//! so tests and the simulator can decide what time it is. Two kinds of time, never mixed:
//! - [`Clock::now`] is wall time, for timestamps in objects and certificate validity. It may jump.
//! - [`Clock::monotonic`] only goes forward, for timeouts and backoff.
//!
//! The real clock's monotonic part is tokio's, so `tokio::time::pause` works on it.

#![expect(
    clippy::disallowed_methods,
    reason = "the one place that reads the system's clocks"
)]

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use swarm_proto::time::Timestamp;
use tokio::sync::watch;

/// How often a sleep towards a wall time looks again at the wall clock, which may have been set
/// meanwhile.
const WALL_RECHECK: Duration = Duration::from_secs(30);

/// A point of monotonic time: the distance from the clock's own origin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Monotonic(Duration);

impl Monotonic {
    /// This point plus `by`, saturating.
    #[must_use]
    pub const fn after(self, by: Duration) -> Self {
        Self(self.0.saturating_add(by))
    }

    /// How long after `earlier` this is; zero if it is before.
    #[must_use]
    pub const fn since(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}

/// The work did not finish within its time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no answer within {0:?}")]
pub struct Elapsed(pub Duration);

/// A source of time. Clones share one time.
#[derive(Debug, Clone)]
pub struct Clock(Kind);

#[derive(Debug, Clone)]
enum Kind {
    Real {
        origin: tokio::time::Instant,
    },
    Simulated {
        origin: tokio::time::Instant,
        start: Timestamp,
        ahead_ms: Arc<AtomicI64>,
    },
    Manual(Arc<watch::Sender<ManualTime>>),
}

#[derive(Debug, Clone, Copy)]
struct ManualTime {
    wall: Timestamp,
    monotonic: Duration,
}

/// The hand that sets the wall clock of a simulated host.
#[derive(Debug, Clone)]
pub struct SimulatedClock(Arc<AtomicI64>);

impl SimulatedClock {
    /// Sets the wall clock so much ahead of the true time, or behind it.
    pub fn set_ahead_ms(&self, ahead_ms: i64) {
        self.0.store(ahead_ms, Ordering::Relaxed);
    }
}

/// The hand that moves a manual clock.
#[derive(Debug, Clone)]
pub struct ManualClock(Arc<watch::Sender<ManualTime>>);

impl ManualClock {
    /// Moves both times forward and wakes the sleepers whose time has come.
    pub fn advance(&self, by: Duration) {
        self.0.send_modify(|t| {
            t.wall = t.wall.after(by);
            t.monotonic = t.monotonic.saturating_add(by);
        });
    }

    /// Sets the wall clock only, as an administrator or NTP does; monotonic time stays.
    pub fn set_wall(&self, wall: Timestamp) {
        self.0.send_modify(|t| t.wall = wall);
    }
}

impl Default for Clock {
    fn default() -> Self {
        Self::real()
    }
}

impl Clock {
    /// The system's clock.
    #[must_use]
    pub fn real() -> Self {
        Self(Kind::Real {
            origin: tokio::time::Instant::now(),
        })
    }

    /// A clock that shows `start` now, and goes with tokio's time, which a simulation has paused.
    #[must_use]
    pub fn simulated(start: Timestamp) -> (Self, SimulatedClock) {
        let ahead_ms = Arc::new(AtomicI64::new(0));
        let clock = Self(Kind::Simulated {
            origin: tokio::time::Instant::now(),
            start,
            ahead_ms: Arc::clone(&ahead_ms),
        });
        (clock, SimulatedClock(ahead_ms))
    }

    /// A clock that stands at `start` until its [`ManualClock`] moves it.
    #[must_use]
    pub fn manual(start: Timestamp) -> (Self, ManualClock) {
        let time = ManualTime {
            wall: start,
            monotonic: Duration::ZERO,
        };
        let sender = Arc::new(watch::Sender::new(time));
        (Self(Kind::Manual(Arc::clone(&sender))), ManualClock(sender))
    }

    /// Wall time.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        match &self.0 {
            Kind::Real { .. } => {
                let since_epoch = SystemTime::now()
                    .duration_since(UNIX_EPOCH)
                    .unwrap_or(Duration::ZERO);
                Timestamp::ZERO.after(since_epoch)
            }
            Kind::Simulated {
                origin,
                start,
                ahead_ms,
            } => {
                let now = start.after(origin.elapsed());
                let ahead = ahead_ms.load(Ordering::Relaxed);
                let by = Duration::from_millis(ahead.unsigned_abs());
                match ahead < 0 {
                    true => now.before(by),
                    false => now.after(by),
                }
            }
            Kind::Manual(time) => time.borrow().wall,
        }
    }

    /// Monotonic time.
    #[must_use]
    pub fn monotonic(&self) -> Monotonic {
        Monotonic(match &self.0 {
            Kind::Real { origin } | Kind::Simulated { origin, .. } => origin.elapsed(),
            Kind::Manual(time) => time.borrow().monotonic,
        })
    }

    /// Returns once `deadline` is reached. Cancel-safe.
    pub async fn sleep_until(&self, deadline: Monotonic) {
        match &self.0 {
            Kind::Real { origin } | Kind::Simulated { origin, .. } => {
                // An unrepresentable deadline is one that never comes.
                match origin.checked_add(deadline.0) {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            }
            Kind::Manual(time) => {
                let mut time = time.subscribe();
                // Fails only when the sender is gone, and this clock holds it.
                if time.wait_for(|t| t.monotonic >= deadline.0).await.is_err() {
                    std::future::pending::<()>().await;
                }
            }
        }
    }

    /// Returns after `duration`. Cancel-safe.
    pub async fn sleep(&self, duration: Duration) {
        self.sleep_until(self.monotonic().after(duration)).await;
    }

    /// Returns once the wall clock shows `deadline`, also when it was set meanwhile. Cancel-safe.
    pub async fn sleep_until_wall(&self, deadline: Timestamp) {
        match &self.0 {
            Kind::Real { .. } | Kind::Simulated { .. } => loop {
                let left = deadline.since(self.now());
                if left.is_zero() {
                    return;
                }
                self.sleep(left.min(WALL_RECHECK)).await;
            },
            Kind::Manual(time) => {
                let mut time = time.subscribe();
                if time.wait_for(|t| t.wall >= deadline).await.is_err() {
                    std::future::pending::<()>().await;
                }
            }
        }
    }

    /// Runs `work` for at most `limit`; then drops it.
    ///
    /// # Errors
    /// [`Elapsed`] when the limit came first.
    pub async fn timeout<F: Future>(&self, limit: Duration, work: F) -> Result<F::Output, Elapsed> {
        tokio::select! {
            biased;
            output = work => Ok(output),
            () = self.sleep(limit) => Err(Elapsed(limit)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt as _;

    const START: Timestamp = Timestamp::from_millis(1_700_000_000_000);

    #[tokio::test]
    async fn a_manual_clock_moves_only_by_hand() {
        let (clock, hand) = Clock::manual(START);
        let mut sleep = Box::pin(clock.sleep(Duration::from_secs(10)));
        assert!(sleep.as_mut().now_or_never().is_none());
        hand.advance(Duration::from_secs(9));
        assert!(sleep.as_mut().now_or_never().is_none());
        hand.advance(Duration::from_secs(1));
        sleep.await;
        assert_eq!(clock.now(), START.after(Duration::from_secs(10)));
    }

    #[tokio::test]
    async fn setting_the_wall_clock_wakes_wall_sleepers_only() {
        let (clock, hand) = Clock::manual(START);
        let mut by_wall = Box::pin(clock.sleep_until_wall(START.after(Duration::from_secs(60))));
        let mut by_monotonic = Box::pin(clock.sleep(Duration::from_secs(60)));
        assert!(by_wall.as_mut().now_or_never().is_none());
        hand.set_wall(START.after(Duration::from_secs(3600)));
        by_wall.await;
        assert!(by_monotonic.as_mut().now_or_never().is_none());
    }

    #[tokio::test]
    async fn a_timeout_reports_its_limit() {
        let (clock, hand) = Clock::manual(START);
        let limit = Duration::from_secs(5);
        assert_eq!(clock.timeout(limit, async { 7 }).await, Ok(7));
        let (out, ()) = tokio::join!(clock.timeout(limit, std::future::pending::<()>()), async {
            hand.advance(limit);
        });
        assert_eq!(out, Err(Elapsed(limit)));
    }

    #[tokio::test(flavor = "current_thread")]
    async fn the_real_clock_follows_tokio() {
        let clock = Clock::real();
        let before = clock.monotonic();
        clock.sleep(Duration::from_millis(1)).await;
        assert!(clock.monotonic().since(before) >= Duration::from_millis(1));
        assert!(clock.now() > START);
    }
}
