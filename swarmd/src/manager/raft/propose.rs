//! The single door for writes, and the barrier for reads.
//!
//! A proposal waits for room, goes through the log, and returns when it is durable on a quorum and
//! applied here. Right after an election a leader refuses writes for some milliseconds (its lease
//! is not confirmed yet) and for a moment there may be no leader at all: that is retried here, up to
//! a deadline, and callers never see it.

use std::sync::Arc;
use std::time::Duration;

use openraft::async_runtime::WatchReceiver as _;
use openraft::errors::{
    ClientWriteError, Fatal, ForwardReason, ForwardToLeader, LinearizableReadError, RaftError,
};
use openraft::{Raft, ReadPolicy};
use tokio::sync::{Semaphore, SemaphorePermit, watch};
use tokio::time::{Instant, timeout};

use super::state_machine::{Machine, Published, StateMachine};
use super::status::Leadership;
use super::types::{Command, Member, RaftId, Types};
use crate::latency::Histogram;

/// Largest command, bytes. An entry must fit a replication message and one transaction with room.
pub const MAX_COMMAND: usize = 4 << 20;
/// What planners should fill one command up to, bytes: SwarmKit's limit for a transaction. Larger
/// ones are accepted up to [`MAX_COMMAND`], so an object that doesn't split still fits.
pub const TARGET_COMMAND: usize = 3 << 19;
/// Proposals under way at once; more wait.
const MAX_PROPOSALS: usize = 4096;
/// Bytes of proposals under way at once, in units of [`BYTE_UNIT`]: 64 MiB.
const MAX_BYTE_UNITS: usize = 64 << 10;
const BYTE_UNIT: usize = 1 << 10;
/// How long each part of a proposal or a read may take before the caller is told: finding room,
/// finding a leader, going through the log.
const DEADLINE: Duration = Duration::from_secs(10);
/// Pause between tries while there is no leader that takes writes.
const RETRY: Duration = Duration::from_millis(2);
/// Tries without a leader: [`DEADLINE`] of pauses.
const TRIES: u32 = 5000;

/// An applied proposal.
#[derive(Debug)]
pub struct Proposed<O> {
    /// The log entry it became: the version of every object it wrote.
    pub index: u64,
    /// What applying it answered.
    pub outcome: Arc<O>,
}

/// Why a proposal or a read failed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ProposeError {
    /// Another manager leads: ask it.
    #[error("this manager is not the leader: ask manager {leader}")]
    NotLeader {
        /// The leader's raft id.
        leader: RaftId,
        /// Where it is.
        member: Option<Member>,
    },
    /// Nothing was proposed.
    #[error(
        "the cluster has no leader after {waited:?}: a majority of managers must be up and reach each other"
    )]
    NoLeader {
        /// How long was waited.
        waited: Duration,
    },
    /// Proposed, and then leadership was lost or time ran out. It may have been applied.
    #[error(
        "the outcome of the write is unknown after {waited:?}: look at the object before trying again"
    )]
    OutcomeUnknown {
        /// How long was waited.
        waited: Duration,
    },
    /// Nothing was proposed.
    #[error("a change of {size} bytes is over the limit of {limit} bytes: split it")]
    TooLarge {
        /// The command's size.
        size: usize,
        /// [`MAX_COMMAND`].
        limit: usize,
    },
    /// Nothing was proposed: too much is under way.
    #[error(
        "the manager is overloaded: the write found no room within {waited:?}; try again later"
    )]
    Overloaded {
        /// How long was waited.
        waited: Duration,
    },
    /// The manager is going down.
    #[error("the manager is shutting down: ask another one")]
    ShuttingDown,
    /// Consensus stopped for good on this manager.
    #[error("raft on this manager has failed: {0}")]
    Failed(String),
}

/// Proposes commands; cheap to clone.
pub struct Proposer<M: Machine> {
    raft: Raft<Types, StateMachine<M>>,
    room: Arc<Room>,
    /// How long proposals take.
    took: Arc<Histogram>,
    leadership: watch::Receiver<Leadership>,
    published: watch::Receiver<Published<M::View>>,
}

struct Room {
    count: Semaphore,
    bytes: Semaphore,
}

impl<M: Machine> Proposer<M> {
    pub(crate) fn new(
        raft: Raft<Types, StateMachine<M>>,
        leadership: watch::Receiver<Leadership>,
        published: watch::Receiver<Published<M::View>>,
    ) -> Self {
        Self {
            raft,
            room: Arc::new(Room {
                count: Semaphore::new(MAX_PROPOSALS),
                bytes: Semaphore::new(MAX_BYTE_UNITS),
            }),
            took: Arc::default(),
            leadership,
            published,
        }
    }

    /// How long proposals take, those that fail included.
    pub(crate) fn took(&self) -> Arc<Histogram> {
        Arc::clone(&self.took)
    }

    /// Proposes a command and waits until it is applied here.
    ///
    /// Dropping the future doesn't take the command back.
    ///
    /// # Errors
    /// See [`ProposeError`]. Only after [`ProposeError::OutcomeUnknown`] may the command have been
    /// applied.
    pub async fn propose(&self, command: Command) -> Result<Proposed<M::Outcome>, ProposeError> {
        let _timed = self.took.timed();
        let size = command.bytes().len();
        if size > MAX_COMMAND {
            return Err(ProposeError::TooLarge {
                size,
                limit: MAX_COMMAND,
            });
        }
        let _room = self.room.take(size).await?;
        let began = Instant::now();
        for _ in 0..TRIES {
            self.check_running()?;
            let write = self.raft.client_write(command.clone());
            let waiting = timeout(DEADLINE, write).await;
            let refused = match waiting.map_err(|_| outcome_unknown(began))? {
                Ok(response) => {
                    return Ok(Proposed {
                        index: response.log_id.index,
                        outcome: response.data.outcome().ok_or_else(no_outcome)?,
                    });
                }
                Err(RaftError::APIError(ClientWriteError::ForwardToLeader(to))) => to,
                Err(RaftError::APIError(ClientWriteError::LogEntryDiscarded(_))) => {
                    return Err(outcome_unknown(began));
                }
                Err(RaftError::APIError(
                    other @ (ClientWriteError::ChangeMembershipError(_)
                    | ClientWriteError::PreconditionFailed(_)),
                )) => return Err(ProposeError::Failed(other.to_string())),
                // Consensus stopped while it had the command: others may have it too, and commit it.
                Err(RaftError::Fatal(_)) => return Err(outcome_unknown(began)),
            };
            self.wait_for_leader(refused).await?;
        }
        Err(ProposeError::NoLeader { waited: DEADLINE })
    }

    /// Nothing is proposed to consensus that has stopped: that is for sure only before it has the command.
    fn check_running(&self) -> Result<(), ProposeError> {
        let running = self.raft.metrics().borrow_watched().running_state.clone();
        running.map_err(failed)
    }

    /// Waits until this manager's state holds everything acknowledged before the call. After it,
    /// [`Proposer::view`] is a linearizable read.
    ///
    /// # Errors
    /// As for a proposal; nothing is ever written.
    pub async fn read_barrier(&self) -> Result<(), ProposeError> {
        let barrier = timeout(DEADLINE, self.pass_barrier()).await;
        barrier.unwrap_or(Err(ProposeError::NoLeader { waited: DEADLINE }))
    }

    async fn pass_barrier(&self) -> Result<(), ProposeError> {
        loop {
            let barrier = self.raft.ensure_linearizable(ReadPolicy::ReadIndex);
            let refused = match barrier.await {
                Ok(_) => return Ok(()),
                Err(RaftError::APIError(LinearizableReadError::ForwardToLeader(to))) => to,
                // Some followers don't answer; they may be back before the deadline.
                Err(RaftError::APIError(LinearizableReadError::QuorumNotEnough(_))) => {
                    ForwardToLeader::empty()
                }
                Err(RaftError::Fatal(fatal)) => return Err(failed(fatal)),
            };
            self.wait_for_leader(refused).await?;
        }
    }

    /// The newest applied state. Stale unless [`Proposer::read_barrier`] came before.
    pub fn view(&self) -> M::View {
        self.published.borrow().view.clone()
    }

    /// Changes with every applied entry.
    pub fn published(&self) -> watch::Receiver<Published<M::View>> {
        self.published.clone()
    }

    /// Whether this manager leads, and who else does.
    pub fn leadership(&self) -> watch::Receiver<Leadership> {
        self.leadership.clone()
    }

    /// Pauses if trying again makes sense.
    async fn wait_for_leader(&self, refused: ForwardToLeader<Types>) -> Result<(), ProposeError> {
        let own = *self.raft.node_id();
        match (refused.reason, refused.leader_id) {
            (ForwardReason::NotLeader, Some(leader)) if leader != own => {
                return Err(ProposeError::NotLeader {
                    leader,
                    member: refused.leader_node,
                });
            }
            // No leader yet, no lease yet, or leadership on its way to someone.
            (
                ForwardReason::NotLeader
                | ForwardReason::LeaseExpired
                | ForwardReason::LeadershipTransfer,
                _,
            ) => {}
        }
        tokio::time::sleep(RETRY).await;
        Ok(())
    }
}

impl Room {
    async fn take(
        &self,
        size: usize,
    ) -> Result<(SemaphorePermit<'_>, SemaphorePermit<'_>), ProposeError> {
        let units = u32::try_from(size.div_ceil(BYTE_UNIT)).unwrap_or(u32::MAX);
        let both = async { tokio::try_join!(self.count.acquire(), self.bytes.acquire_many(units)) };
        match timeout(DEADLINE, both).await {
            Ok(Ok(permits)) => Ok(permits),
            Ok(Err(_closed)) => Err(ProposeError::ShuttingDown),
            Err(_) => Err(ProposeError::Overloaded { waited: DEADLINE }),
        }
    }
}

fn outcome_unknown(began: Instant) -> ProposeError {
    let waited = began.elapsed();
    ProposeError::OutcomeUnknown { waited }
}

fn no_outcome() -> ProposeError {
    ProposeError::Failed("the state machine gave no outcome for a command".to_owned())
}

pub(crate) fn failed(fatal: Fatal<Types>) -> ProposeError {
    match fatal {
        Fatal::Stopped => ProposeError::ShuttingDown,
        Fatal::Panicked => ProposeError::Failed("a task of raft panicked".to_owned()),
        Fatal::StorageError(error) => ProposeError::Failed(error.to_string()),
    }
}

impl<M: Machine> Clone for Proposer<M> {
    fn clone(&self) -> Self {
        Self {
            raft: self.raft.clone(),
            room: Arc::clone(&self.room),
            took: Arc::clone(&self.took),
            leadership: self.leadership.clone(),
            published: self.published.clone(),
        }
    }
}

impl<M: Machine> std::fmt::Debug for Proposer<M> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Proposer({})", self.raft.node_id())
    }
}
