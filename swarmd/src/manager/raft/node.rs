//! One manager's consensus: starts it, watches it, changes its members, stops it.

use std::collections::BTreeMap;
use std::sync::Arc;

use openraft::Raft;
use openraft::async_runtime::WatchReceiver as _;
use openraft::errors::Fatal;
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::config::{ConfigError, RaftConfig};
use super::dial::Dialer;
use super::dir::RaftDir;
use super::encryption::random;
use super::epoch::Epoch;
use super::error::StorageError;
use super::freshness::Freshness;
use super::gate::{Fenced, Gate};
use super::log_store::LogCloser;
use super::membership::{Membership, MembershipError};
use super::network::Network;
use super::propose::Proposer;
use super::rotation::RaftKeys;
use super::server::RaftService;
use super::snapshot::SnapshotStore;
use super::state_machine::{Machine, Published, StateMachine};
use super::status::{self, Leadership, RaftStatus, watch_leadership};
use super::types::{Member, RaftId, Types};
use super::whereabouts::Whereabouts;
use crate::latency::Histogram;
use crate::process;

/// What to do when there is no state on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// Found a cluster of this one member.
    Found,
    /// Wait until a leader adds this member.
    Join,
}

/// How long consensus takes.
#[derive(Clone, Debug, Default)]
pub(crate) struct RaftLatencies {
    /// A proposal, until it is applied here or has failed.
    pub(crate) transaction: Arc<Histogram>,
    /// Making a snapshot of the state, until it is in place.
    pub(crate) snapshot: Arc<Histogram>,
}

/// Why consensus didn't start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The state on disk.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// The cluster was recovered without this member.
    #[error("{0}")]
    Fenced(Box<Fenced>),
    /// openraft, over what it found on disk.
    #[error("raft does not start: {0}")]
    Raft(String),
}

/// A running member. Dropping it without [`RaftNode::shutdown`] loses nothing that was
/// acknowledged.
pub struct RaftNode<M: Machine> {
    raft: Raft<Types, StateMachine<M>>,
    id: RaftId,
    proposer: Proposer<M>,
    snapshots: Arc<SnapshotStore>,
    keys: RaftKeys,
    gate: Arc<Gate>,
    freshness: Arc<Freshness>,
    whereabouts: Arc<Whereabouts>,
    closer: LogCloser,
    stop: CancellationToken,
    tasks: JoinSet<()>,
}

impl<M: Machine> RaftNode<M> {
    /// Opens or makes the state on disk and starts. Returns as soon as proposals can be queued; a
    /// sole member leads within milliseconds.
    ///
    /// # Errors
    /// When the configuration or the state on disk is not usable.
    pub async fn start(
        config: RaftConfig,
        start: Start,
        machine: M,
        dialer: Arc<dyn Dialer>,
    ) -> Result<Self, StartError> {
        let settings = Arc::new(config.openraft()?);
        let (disk, state_dir) = (config.disk.clone(), config.state_dir.clone());
        let (new, seal) = (config.id, config.seal.clone());
        let election = config.timing.election();
        let opening = process::blocking(move || RaftDir::open(&disk, (&state_dir, seal), new));
        let dir = opening.await.map_err(raft_error)??;
        let (id, gate) = (dir.id, dir.gate);
        if let Some(fenced) = gate.fenced() {
            dir.log.closer().close().await;
            return Err(StartError::Fenced(Box::new(fenced)));
        }
        let closer = dir.log.closer();
        let wanted = Arc::new(Notify::new());
        let bytes = config.snapshots.bytes;
        let snapshots = Arc::clone(&dir.snapshots);
        let keys = RaftKeys {
            dek: dir.dek,
            log: dir.log.keys(),
            snapshots: Arc::clone(&snapshots),
        };
        let state_machine = StateMachine::new(machine, dir.snapshots, bytes, Arc::clone(&wanted));
        let published = state_machine.published();
        let whereabouts = Whereabouts::new(config.says);
        let freshness = Arc::new(Freshness::new(boot()?, election));
        let (epochs, places) = (Arc::clone(&gate), Arc::clone(&whereabouts));
        let network = Network::new(id, dialer, epochs, places, Arc::clone(&freshness));
        let raft = Raft::new(id, settings, network, dir.log, state_machine).await;
        let raft = raft.map_err(raft_error)?;
        freshness.follow(raft.metrics());
        let (leadership, leader) = watch::channel(Leadership::None);
        let mut node = Self {
            proposer: Proposer::new(raft.clone(), leader, published.clone()),
            raft,
            id,
            snapshots,
            keys,
            gate,
            freshness,
            whereabouts,
            closer,
            stop: CancellationToken::new(),
            tasks: JoinSet::new(),
        };
        node.spawn(watch_leadership(node.raft.clone(), leadership, published));
        let (members, follow) = (Arc::clone(&node.whereabouts), node.membership());
        node.spawn(follow.follow(move |now| members.members(&now)));
        node.spawn(take_snapshots(node.raft.clone(), wanted));
        node.spawn(stop_fenced(node.raft.clone(), Arc::clone(&node.gate)));
        if let Err(error) = node.begin(start, config.member).await {
            node.shutdown().await;
            return Err(error);
        }
        Ok(node)
    }

    async fn begin(&self, start: Start, member: Member) -> Result<(), StartError> {
        let initialized = self.raft.is_initialized().await.map_err(raft_error)?;
        match start {
            Start::Found if !initialized => {
                self.gate.found()?;
                let members = BTreeMap::from([(self.id, member)]);
                self.raft.initialize(members).await.map_err(raft_error)?;
            }
            Start::Found | Start::Join => {
                // Alone, there is nobody to wait for.
                if self.raft.voter_ids().eq([self.id]) {
                    self.raft.trigger().elect(false).await.map_err(raft_error)?;
                }
            }
        }
        Ok(())
    }

    fn spawn(&mut self, task: impl Future<Output = ()> + Send + 'static) {
        let stop = self.stop.clone();
        self.tasks.spawn(async move {
            let _ = stop.run_until_cancelled(task).await;
        });
    }

    /// The door for writes.
    pub fn proposer(&self) -> Proposer<M> {
        self.proposer.clone()
    }

    /// The gRPC service for the other managers.
    pub fn service(&self) -> RaftService<M> {
        let snapshots = Arc::clone(&self.snapshots);
        let keeps = (snapshots, self.gate.clone(), self.whereabouts());
        let freshness = Arc::clone(&self.freshness);
        RaftService::new(self.raft.clone(), self.id, keeps, freshness)
    }

    /// Whether this manager leads, and who else does.
    pub fn leadership(&self) -> watch::Receiver<Leadership> {
        self.proposer.leadership()
    }

    /// Changes with every applied entry.
    pub fn published(&self) -> watch::Receiver<Published<M::View>> {
        self.proposer.published()
    }

    /// Where consensus stands now.
    pub fn status(&self) -> RaftStatus {
        status::read(&self.raft)
    }

    /// Waits until consensus stands so; each change of where it stands is looked at.
    #[cfg(test)]
    pub(crate) async fn until(&self, stands: impl Fn(&RaftStatus) -> bool) {
        let mut metrics = self.raft.metrics();
        while !stands(&self.status()) {
            metrics.changed().await.expect("consensus goes on");
        }
    }

    /// The life of the cluster that this member takes part in.
    pub fn epoch(&self) -> Epoch {
        self.gate.epoch()
    }

    /// Ends when this member hears that the cluster went on without it; consensus stops then.
    pub fn fenced(&self) -> impl Future<Output = Fenced> + Send + 'static {
        self.gate.until_fenced()
    }

    /// Where the members are.
    pub(crate) fn whereabouts(&self) -> Arc<Whereabouts> {
        Arc::clone(&self.whereabouts)
    }

    pub(crate) fn gate(&self) -> Arc<Gate> {
        Arc::clone(&self.gate)
    }

    /// Who takes part.
    pub fn membership(&self) -> Membership<M> {
        Membership::new(self.raft.clone(), Arc::clone(&self.freshness))
    }

    /// How long consensus takes.
    pub(crate) fn latencies(&self) -> RaftLatencies {
        RaftLatencies {
            transaction: self.proposer.took(),
            snapshot: self.snapshots.built(),
        }
    }

    /// What its files are sealed by.
    pub(crate) fn keys(&self) -> RaftKeys {
        self.keys.clone()
    }

    /// Takes a snapshot soon.
    ///
    /// # Errors
    /// When consensus has stopped.
    pub async fn take_snapshot(&self) -> Result<(), MembershipError> {
        let asked = self.raft.trigger().snapshot().await;
        asked.map_err(|e| MembershipError::Stopped(e.to_string()))
    }

    /// Ends when consensus stops: the reason if it failed, nothing after a shutdown. A manager must
    /// not go on without it.
    pub fn stopped(&self) -> impl Future<Output = Option<String>> + Send + 'static {
        // These change seldom, the others with every entry; both end with consensus.
        let (metrics, mut seldom) = (self.raft.metrics(), self.raft.server_metrics());
        async move {
            while seldom.changed().await.is_ok() {}
            let state = metrics.borrow_watched().running_state.clone();
            match state {
                Ok(()) | Err(Fatal::Stopped) => None,
                Err(failed) => Some(failed.to_string()),
            }
        }
    }

    /// Stops: what was acknowledged is durable, the files are closed and may be opened again.
    pub async fn shutdown(mut self) {
        if let Err(error) = self.raft.shutdown().await {
            tracing::warn!(?error, "raft ended badly");
        }
        self.stop.cancel();
        while self.tasks.join_next().await.is_some() {}
        self.snapshots.close().await;
        self.closer.close().await;
    }
}

/// Takes the snapshots that are due by bytes; those due by entries openraft takes itself.
async fn take_snapshots<M: Machine>(raft: Raft<Types, StateMachine<M>>, wanted: Arc<Notify>) {
    loop {
        wanted.notified().await;
        if raft.trigger().snapshot().await.is_err() {
            return;
        }
    }
}

/// A fenced member takes no part: also one that would be a majority by itself.
async fn stop_fenced<M: Machine>(raft: Raft<Types, StateMachine<M>>, gate: Arc<Gate>) {
    gate.until_fenced().await;
    if let Err(error) = raft.shutdown().await {
        tracing::warn!(?error, "raft ended badly");
    }
}

/// A number that no other start of a member has.
fn boot() -> Result<u64, StorageError> {
    let bytes = random()?;
    Ok(bytes
        .iter()
        .fold(0, |all, byte| all << 8 | u64::from(*byte)))
}

fn raft_error(error: impl std::fmt::Display) -> StartError {
    StartError::Raft(error.to_string())
}

impl<M: Machine> std::fmt::Debug for RaftNode<M> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "RaftNode({})", self.id)
    }
}
