//! The agent: runs on this node what the managers assign to it, and says how it goes.
//!
//! ```text
//! manager --assignments--> session -> worker -> one task driver each -> executor
//! manager <---statuses---- reporter <- statuses <-'
//!                             |  worker
//!                           storage (what a restart goes on with)
//! ```
//!
//! - `session`: finds a manager, registers, beats, receives. `managers`: pure; whom to ask next.
//! - `assigned`: pure; what a message means for the tasks there are. `worker`: the loop that does it.
//! - `task`: one driver a task, which takes the steps of [`agent_runtime::step`].
//! - `reporter`: the newest status of each task, to disk and to the manager in batches.
//! - `operations`: how long the executor takes, for metrics.
//! - `storage`: assignments and statuses on disk.
//!
//! Stopping the agent stops no container (promise P8): drivers are dropped, and the next run asks
//! the runtime what there is. Only [`Agent::leave`], or a manager, removes tasks.
//!
//! The agent knows managers by their wire alone.

pub mod assigned;
mod leave;
mod managers;
pub(crate) mod operations;
mod reporter;
mod session;
mod storage;
mod task;
#[cfg(test)]
mod tests;
mod worker;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use agent_runtime::{Executor, NodeFacts};
use rand::SeedableRng as _;
use rand::rngs::StdRng;
use swarm_proto::pb;
use swarm_proto::time::Timestamp;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;

pub use leave::{LeaveError, Left};
pub use storage::StorageError;

use crate::ca::{ConnectError, SecurityConfig};
use crate::clock::Clock;
use leave::LeaveRequest;
use managers::Managers;
use operations::Operations;
use reporter::{Link, Reporter, Statuses};
use session::Session;
use storage::{Restored, Storage};
use task::Shared;
use worker::Worker;

/// Messages between session and worker: one in work, one that waits; the stream holds back the rest.
const WORKER_QUEUE: usize = 1;
/// Pause after the runtime's connection could not be watched.
const HEALTH_PAUSE: Duration = Duration::from_secs(1);

/// Connects to managers as this node.
#[tonic::async_trait]
pub trait Connect: Send + Sync + std::fmt::Debug + 'static {
    /// A connection to the manager at `addr`.
    ///
    /// # Errors
    /// Why not, in words for the operator.
    async fn connect(&self, addr: &str) -> Result<Channel, ConnectError>;

    /// Which certificates this node uses; managers follow rotations by it.
    fn tls_info(&self) -> Option<pb::NodeTlsInfo>;

    /// Returns once it uses others than these. Cancel-safe.
    async fn tls_differs(&self, from: Option<&pb::NodeTlsInfo>);
}

#[tonic::async_trait]
impl Connect for SecurityConfig {
    async fn connect(&self, addr: &str) -> Result<Channel, ConnectError> {
        crate::ca::connect(addr, self).await
    }

    fn tls_info(&self) -> Option<pb::NodeTlsInfo> {
        Some(self.identity().tls_info())
    }

    async fn tls_differs(&self, from: Option<&pb::NodeTlsInfo>) {
        let mut changes = self.changes();
        while self.tls_info().as_ref() == from {
            if changes.next().await.is_none() {
                return std::future::pending().await;
            }
        }
    }
}

/// What an agent needs.
#[derive(Debug)]
pub struct AgentConfig {
    /// Where it keeps its file, in `worker/`.
    pub state_dir: PathBuf,
    /// Who this node is.
    pub node: NodeFacts,
    /// Runs the tasks.
    pub executor: Arc<dyn Executor>,
    /// Reaches the managers.
    pub connector: Arc<dyn Connect>,
    /// The time.
    pub clock: Clock,
    /// Addresses of managers (host:port) to ask when those of the last session don't answer.
    pub managers: Vec<String>,
}

/// How the agent does.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct AgentStatus {
    /// The manager it has a session with; none without one.
    pub manager_addr: Option<String>,
    /// How many tasks it holds, ended ones that are not removed yet included.
    pub tasks: usize,
}

/// What the managers said of themselves and of this node last.
pub type Notices = watch::Receiver<Option<Arc<pb::SessionMessage>>>;

/// Addresses of the managers of the last session, as they lie in a state directory; none where that can't be read.
#[must_use]
pub fn known_managers(state_dir: &Path, node: &str, now: Timestamp) -> Vec<String> {
    let opened = Storage::open(state_dir, node, now);
    let managers = opened.map(|(_, restored)| restored.managers);
    let peers = managers.unwrap_or_default().into_iter();
    peers.filter_map(|m| Some(m.peer?.addr)).collect()
}

/// Runs the tasks of one node.
#[derive(Debug)]
pub struct Agent {
    config: AgentConfig,
    storage: Arc<Storage>,
    restored: Mutex<Option<Restored>>,
    status: watch::Sender<AgentStatus>,
    notices: watch::Sender<Option<Arc<pb::SessionMessage>>>,
    leave: mpsc::Sender<LeaveRequest>,
    leaving: Mutex<Option<mpsc::Receiver<LeaveRequest>>>,
    operations: Arc<Operations>,
}

impl Agent {
    /// Opens the agent's file. Blocks on the disk; nothing runs yet.
    ///
    /// # Errors
    /// See [`StorageError`]. A damaged file is moved aside instead.
    pub fn new(config: AgentConfig) -> Result<Self, StorageError> {
        let now = config.clock.now();
        let (storage, restored) = Storage::open(&config.state_dir, &config.node.id, now)?;
        let (leave, leaving) = mpsc::channel(1);
        Ok(Self {
            config,
            storage: Arc::new(storage),
            restored: Mutex::new(Some(restored)),
            status: watch::Sender::default(),
            notices: watch::Sender::default(),
            leave,
            leaving: Mutex::new(Some(leaving)),
            operations: Arc::default(),
        })
    }

    /// How it does, from now on.
    #[must_use]
    pub fn status(&self) -> watch::Receiver<AgentStatus> {
        self.status.subscribe()
    }

    /// How long its executor takes.
    pub(crate) fn operations(&self) -> Arc<Operations> {
        Arc::clone(&self.operations)
    }

    /// What managers say of this node: its role, its certificate's state, the root to trust.
    #[must_use]
    pub fn notices(&self) -> Notices {
        self.notices.subscribe()
    }

    /// Managers to ask before one has spoken: those of the last session, then the operator's.
    #[must_use]
    pub fn last_managers(&self) -> Vec<String> {
        let restored = self.restored.lock();
        let restored = restored.unwrap_or_else(PoisonError::into_inner);
        let last = restored
            .as_ref()
            .map(|restored| restored.managers.as_slice());
        let peers = last
            .unwrap_or_default()
            .iter()
            .filter_map(|m| m.peer.as_ref());
        let mut addrs: Vec<String> = peers.map(|peer| peer.addr.clone()).collect();
        for addr in &self.config.managers {
            if !addrs.contains(addr) {
                addrs.push(addr.clone());
            }
        }
        addrs
    }

    /// Takes up the tasks of the last run and does what managers say, until `shutdown`. Containers go
    /// on. Runs once; a second call returns at once.
    pub async fn run(&self, shutdown: CancellationToken) {
        let restored = take(&self.restored);
        let leaving = take(&self.leaving);
        let (Some(restored), Some(mut leaving)) = (restored, leaving) else {
            return;
        };
        let mut parts = self.start(restored);
        loop {
            tokio::select! {
                biased;
                () = shutdown.cancelled() => break,
                Some(request) = leaving.recv() => {
                    let answer = parts.leave(&self.config, request.force);
                    let left = tokio::select! {
                        biased;
                        () = shutdown.cancelled() => Err(LeaveError::NotRunning),
                        left = answer => left,
                    };
                    // Who asked may have gone away.
                    let _ = request.answer.send(left);
                }
            }
        }
        let statuses = Arc::clone(&parts.statuses);
        // Dropped, not stopped: containers go on. Waited for, so that nobody holds the file.
        parts.sessions.shutdown().await;
        parts.running.shutdown().await;
        drop(parts);
        let _ = reporter::save(&statuses, &self.storage).await;
    }

    /// Tells the managers that this node leaves, then stops and removes all of its tasks and whatever
    /// else the executor made. The node's certificate and state directory stay: they are the
    /// node's. With `force` also when no manager can be told.
    ///
    /// # Errors
    /// See [`LeaveError`]; the node goes on as before when no manager was told.
    pub async fn leave(&self, force: bool) -> Result<Left, LeaveError> {
        let (answer, left) = oneshot::channel();
        let request = LeaveRequest { force, answer };
        let sent = self.leave.send(request).await;
        sent.map_err(|_| LeaveError::NotRunning)?;
        left.await.map_err(|_| LeaveError::NotRunning)?
    }

    fn start(&self, restored: Restored) -> Parts {
        let config = &self.config;
        let clock = config.clock.clone();
        let statuses: Arc<Statuses> = Arc::default();
        let (recovery, recovered) = watch::channel(0);
        let (link, links) = watch::channel(None);
        let (commands, queue) = mpsc::channel(WORKER_QUEUE);
        let shared = Arc::new(Shared {
            executor: Arc::clone(&config.executor),
            statuses: Arc::clone(&statuses),
            clock: clock.clone(),
            recovered,
            operations: self.operations(),
        });
        let session = Session {
            connector: Arc::clone(&config.connector),
            executor: Arc::clone(&config.executor),
            hostname: config.node.hostname.clone(),
            clock: clock.clone(),
            storage: Arc::clone(&self.storage),
            statuses: Arc::clone(&statuses),
            managers: self.managers(&restored),
            description: restored.description.clone(),
            worker: commands.clone(),
            link,
            notices: self.notices.clone(),
            status: self.status.clone(),
        };
        let worker = Worker::new(
            shared,
            Arc::clone(&self.storage),
            config.node.clone(),
            self.status.clone(),
        );
        let reporter = Reporter {
            statuses: Arc::clone(&statuses),
            storage: Arc::clone(&self.storage),
            link: links.clone(),
            clock: clock.clone(),
        };
        let mut running = JoinSet::new();
        running.spawn(watch_runtime(Arc::clone(&config.executor), recovery, clock));
        running.spawn(worker.run(restored, queue));
        running.spawn(reporter.run());
        let mut sessions = JoinSet::new();
        sessions.spawn(session.run());
        Parts {
            running,
            sessions,
            statuses,
            link: links,
            worker: commands,
        }
    }

    fn managers(&self, restored: &Restored) -> Managers {
        // Nodes that start in the same nanosecond differ by their id.
        let now = u64::try_from(self.config.clock.now().0).unwrap_or_default();
        let id = self.config.node.id.bytes();
        let seed = id.fold(now, |seed, byte| seed.rotate_left(5) ^ u64::from(byte));
        Managers::new(
            self.config.managers.clone(),
            &restored.managers,
            StdRng::seed_from_u64(seed),
        )
    }
}

fn take<T>(slot: &Mutex<Option<T>>) -> Option<T> {
    // Nothing panics while the lock is held.
    slot.lock().unwrap_or_else(PoisonError::into_inner).take()
}

/// All that runs of an agent; ends when dropped.
#[derive(Debug)]
struct Parts {
    running: JoinSet<()>,
    sessions: JoinSet<()>,
    statuses: Arc<Statuses>,
    link: watch::Receiver<Option<Link>>,
    worker: mpsc::Sender<worker::Command>,
}

/// Tells the drivers when the runtime was away and is back.
async fn watch_runtime(executor: Arc<dyn Executor>, recovery: watch::Sender<u64>, clock: Clock) {
    loop {
        match executor.healthy().await {
            Ok(()) => {
                tracing::info!("the container runtime is back");
                recovery.send_modify(|count| *count += 1);
            }
            Err(error) => {
                tracing::debug!(%error, "the container runtime can't be watched");
                clock.sleep(HEALTH_PAUSE).await;
            }
        }
    }
}
