//! The door through which everything that changes the state goes.
//!
//! A write is a list of changes; it comes back when it is applied, with one result a change. The
//! implementation behind it is the Raft proposer; tests use [`MemoryDoor`].

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use swarm_proto::time::Timestamp;

use super::latencies::Latencies;
use super::raft::{Command, ProposeError, Proposer};
use super::store::machine::StoreMachine;
use super::store::watch::Hub;
use super::store::{Applied, Change, Entry, Rejected, State, apply, codec};
use crate::clock::{Clock, Monotonic};

/// What became of a write.
#[derive(Debug, Clone)]
pub struct Written {
    /// The log index it was applied at.
    pub version: u64,
    /// One result a change, in order.
    pub results: Vec<Result<(), Rejected>>,
}

/// Why a write was not taken. It may still have been when the connection to the leader was lost.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WriteError {
    /// This manager does not lead.
    #[error("this manager is not the leader{}", .leader.as_ref().map(|l| format!("; the leader is {l}")).unwrap_or_default())]
    NotLeader {
        /// Address of the leader, when known.
        leader: Option<String>,
    },
    /// Nobody leads: most managers are not reachable.
    #[error("the cluster has no leader: {0}")]
    NoLeader(String),
    /// More than one log entry may hold.
    #[error("the change is too large: {bytes} bytes, at most {max}")]
    TooLarge {
        /// Its size.
        bytes: usize,
        /// The limit.
        max: usize,
    },
    /// The manager stops.
    #[error("the manager is shutting down")]
    ShuttingDown,
    /// It was proposed, and nobody knows whether it was taken.
    #[error("{0}")]
    Unknown(String),
    /// Too much is under way.
    #[error("{0}")]
    Overloaded(String),
    /// The log can't be written.
    #[error("the log can't be written: {0}")]
    Storage(String),
}

/// Takes writes.
#[tonic::async_trait]
pub trait WriteDoor: Send + Sync + std::fmt::Debug {
    /// Writes an entry and returns once it is applied here.
    async fn write(&self, entry: Entry) -> Result<Written, WriteError>;

    /// Returns once the state here holds every write acknowledged before the call.
    async fn read_barrier(&self) -> Result<(), WriteError>;
}

/// The door to the log.
pub struct RaftDoor {
    proposer: Proposer<StoreMachine>,
}

impl std::fmt::Debug for RaftDoor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RaftDoor").finish_non_exhaustive()
    }
}

impl RaftDoor {
    /// A door that proposes.
    pub fn new(proposer: Proposer<StoreMachine>) -> Self {
        Self { proposer }
    }
}

#[tonic::async_trait]
impl WriteDoor for RaftDoor {
    async fn write(&self, entry: Entry) -> Result<Written, WriteError> {
        let encoded = codec::encode_entry(&entry).into();
        let proposed = self
            .proposer
            .propose(Command::with_decoded(encoded, entry))
            .await?;
        Ok(Written::clone(&proposed.outcome))
    }

    async fn read_barrier(&self) -> Result<(), WriteError> {
        Ok(self.proposer.read_barrier().await?)
    }
}

impl From<ProposeError> for WriteError {
    fn from(error: ProposeError) -> Self {
        match error {
            ProposeError::NotLeader { member, .. } => Self::NotLeader {
                leader: member.and_then(|m| m.addresses.into_iter().next()),
            },
            ProposeError::NoLeader { .. } => Self::NoLeader(error.to_string()),
            ProposeError::OutcomeUnknown { .. } => Self::Unknown(error.to_string()),
            ProposeError::TooLarge { size, limit } => Self::TooLarge {
                bytes: size,
                max: limit,
            },
            ProposeError::Overloaded { .. } => Self::Overloaded(error.to_string()),
            ProposeError::ShuttingDown => Self::ShuttingDown,
            ProposeError::Failed(reason) => Self::Storage(reason),
        }
    }
}

/// How far a clock may be behind the cluster's time without being moved forward: the clocks of managers agree within
/// less, and apply evens that out.
const CLOCK_BACK_MAX: Duration = Duration::from_secs(1);

/// A handle on the door and on what comes out of it.
#[derive(Debug, Clone)]
pub struct Store {
    door: Arc<dyn WriteDoor>,
    hub: Hub,
    ahead: Arc<Mutex<Ahead>>,
    latencies: Arc<Latencies>,
}

/// By how much the cluster's time is ahead of this manager's clock.
#[derive(Debug, Default)]
struct Ahead {
    by: Duration,
    /// The clock, wall and monotonic, when it was asked last.
    last: Option<(Timestamp, Monotonic)>,
}

impl Ahead {
    /// The cluster's time is at least `known`; what is the time now?
    fn time(&mut self, known: Timestamp, (wall, monotonic): (Timestamp, Monotonic)) -> Timestamp {
        if let Some((last_wall, last_monotonic)) = self.last.replace((wall, monotonic)) {
            // A clock that is put right makes up itself for what it lacked.
            let gained = wall.since(last_wall);
            let gained = gained.saturating_sub(monotonic.since(last_monotonic));
            if gained > CLOCK_BACK_MAX {
                self.by = self.by.saturating_sub(gained);
            }
        }
        if known.since(wall.after(self.by)) > CLOCK_BACK_MAX {
            self.by = known.since(wall);
            tracing::warn!(
                lacking = ?self.by,
                "this manager's clock is behind the cluster's time; is it synchronised? Delays go by the cluster's time"
            );
        }
        wall.after(self.by)
    }
}

impl Store {
    /// Joins a door with the hub that its writes come out of.
    pub fn new(door: Arc<dyn WriteDoor>, hub: Hub) -> Self {
        Self {
            door,
            hub,
            ahead: Arc::default(),
            latencies: Arc::default(),
        }
    }

    /// The same state, read as it is here, without asking the others whether it is the newest.
    #[must_use]
    pub(crate) fn stale(&self) -> Self {
        Self {
            door: Arc::new(StaleDoor),
            ..self.clone()
        }
    }

    /// A store without a log, for tests.
    pub fn in_memory() -> Self {
        let hub = Hub::default();
        Self::new(
            Arc::new(MemoryDoor {
                hub: hub.clone(),
                state: Mutex::default(),
            }),
            hub,
        )
    }

    /// The newest state.
    pub fn view(&self) -> State {
        self.hub.view()
    }

    /// Where commits are announced.
    pub fn hub(&self) -> &Hub {
        &self.hub
    }

    /// The newest state, with every write in it that was acknowledged before the call (promise P2).
    ///
    /// # Errors
    /// When this manager can't be sure: it does not lead, or nobody does.
    pub async fn read(&self) -> Result<State, WriteError> {
        let _timed = self.latencies.read.timed();
        self.door.read_barrier().await?;
        Ok(self.hub.view())
    }

    /// The cluster's time, by this manager's clock.
    ///
    /// A clock that was set back, or is behind that of the last leader, would stop every delay until it had caught up:
    /// the log's time does not go back. It is moved forward by what it lacks instead.
    #[must_use]
    pub fn time(&self, clock: &Clock) -> Timestamp {
        // The clock is read last: what was written here before was written by an earlier reading of it.
        let known = self.hub.view().now;
        let mut ahead = self.ahead();
        ahead.time(known, (clock.now(), clock.monotonic()))
    }

    /// The wall time at which the cluster's time will be `at`.
    #[must_use]
    pub fn wall_time(&self, at: Timestamp) -> Timestamp {
        at.before(self.ahead().by)
    }

    fn ahead(&self) -> MutexGuard<'_, Ahead> {
        self.ahead.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes changes. `now` is the cluster's time ([`Self::time`]), or was when they were planned.
    ///
    /// # Errors
    /// See [`WriteError`]; results of single changes are in [`Written`].
    pub async fn write(&self, now: Timestamp, changes: Vec<Change>) -> Result<Written, WriteError> {
        let _timed = self.latencies.write.timed();
        self.door.write(Entry { now, changes }).await
    }

    /// How long this manager's parts take: with the store, because all that is measured has it.
    pub(crate) fn latencies(&self) -> &Latencies {
        &self.latencies
    }
}

/// Lets nothing in, and every read out.
#[derive(Debug)]
struct StaleDoor;

#[tonic::async_trait]
impl WriteDoor for StaleDoor {
    async fn write(&self, _: Entry) -> Result<Written, WriteError> {
        Err(WriteError::NotLeader { leader: None })
    }

    async fn read_barrier(&self) -> Result<(), WriteError> {
        Ok(())
    }
}

/// Applies at once, in memory.
#[derive(Debug)]
pub struct MemoryDoor {
    hub: Hub,
    state: Mutex<State>,
}

#[tonic::async_trait]
impl WriteDoor for MemoryDoor {
    async fn write(&self, entry: Entry) -> Result<Written, WriteError> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let version = state.version + 1;
        let Applied { results, events } = apply(&mut state, version, &entry);
        self.hub.publish(state.clone(), events);
        Ok(Written { version, results })
    }

    async fn read_barrier(&self) -> Result<(), WriteError> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_clock_that_is_put_right_takes_the_time_no_further() {
        let hour = Duration::from_secs(3600);
        let start = Timestamp::from_millis(1_700_000_000_000);
        let (clock, hand) = Clock::manual(start);
        let store = Store::in_memory();
        store.write(store.time(&clock), Vec::new()).await.unwrap();
        hand.set_wall(start.before(hour));
        assert_eq!(store.time(&clock), start, "no step back");
        hand.advance(Duration::from_secs(5));
        let later = start.after(Duration::from_secs(5));
        assert_eq!(store.time(&clock), later, "and it goes on");
        assert_eq!(store.wall_time(later), later.before(hour));
        hand.set_wall(later);
        assert_eq!(store.time(&clock), later, "nor forward");
        hand.set_wall(later.after(hour));
        assert_eq!(
            store.time(&clock),
            later.after(hour),
            "it follows the clock"
        );
    }
}
