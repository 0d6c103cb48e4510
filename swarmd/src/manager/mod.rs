//! The manager: one log, one writer, one pass.
//!
//! ```text
//! control socket ─┐
//! other nodes ────┴─ authorize ─ controlapi, caserver, dispatcher ─ writer ─ raft ─ store::apply
//!                                                                     ▲               │ commits
//!                                                       control_loop: pass ◄──────────┘
//! ```
//!
//! - [`store`]: the state and the only ways to change it.
//! - [`raft`]: the log; [`writer`]: the door to it.
//! - [`plan`]: what should change: one pass over orchestrator and scheduler.
//! - [`controlapi`], [`caserver`]: requests become changes.
//! - [`authorize`]: who may call what: one table.

pub mod authorize;
pub mod bootstrap;
pub mod caserver;
pub mod control_loop;
pub mod controlapi;
pub mod convert;
pub mod dispatcher;
mod health;
mod orchestrator;
pub mod plan;
pub mod raft;
pub mod scheduler;
pub(crate) mod server;
pub mod store;
#[cfg(test)]
pub(crate) mod world;
pub mod writer;

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use rand::TryRng as _;
use swarm_proto::id::NodeId;
use swarm_proto::{own, pb};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;

use crate::ca::{SecurityConfig, connect_lazy};
use crate::clock::Clock;
use controlapi::ControlApi;
use dispatcher::Dispatcher;
use raft::{
    DialError, Dialer, Leadership, Member, RaftConfig, RaftId, RaftNode, RaftService,
    SnapshotLimits, Start, StartError, Timing,
};
use store::machine::StoreMachine;
use store::watch::Hub;
use writer::{RaftDoor, Store};

/// How much a node prefers a manager: all are alike, as in SwarmKit.
const MANAGER_WEIGHT: i64 = 10;

/// A number for a new object's id.
pub(crate) fn random_id() -> u128 {
    // The system's generator does not fail on Linux once the system has started; were it to, apply
    // rejects the id as taken.
    let mut bytes = [0; 16];
    let _ = rand::rngs::SysRng.try_fill_bytes(&mut bytes);
    u128::from_be_bytes(bytes)
}

/// Fresh randomness for the pass.
fn seed() -> u64 {
    u64::try_from(random_id() & u128::from(u64::MAX)).unwrap_or_default()
}

/// A node's number among the managers: the low half of its id, which is random.
pub(crate) fn raft_id(node: NodeId) -> RaftId {
    let low = u64::try_from(node.raw() & u128::from(u64::MAX)).unwrap_or(u64::MAX);
    low.max(1)
}

/// What a manager needs to know before it starts.
#[derive(Debug, Clone)]
pub(crate) struct ManagerConfig {
    /// This node.
    pub(crate) node_id: NodeId,
    /// Where `raft/` lies.
    pub(crate) state_dir: PathBuf,
    /// Heartbeats and elections.
    pub(crate) timing: Timing,
    /// Where other managers reach this one.
    pub(crate) addresses: Vec<String>,
    /// Found a cluster, or wait to be added to one.
    pub(crate) start: Start,
}

/// A running manager.
pub(crate) struct Manager {
    raft: RaftNode<StoreMachine>,
    store: Store,
    clock: Clock,
    dispatcher: Dispatcher,
    members: Arc<Members>,
    security: Arc<OnceLock<SecurityConfig>>,
}

impl Manager {
    /// Opens the log and takes part in consensus. Nothing is served yet.
    pub(crate) async fn start(config: ManagerConfig, clock: Clock) -> Result<Self, StartError> {
        let hub = Hub::default();
        let security = Arc::new(OnceLock::new());
        let raft_config = RaftConfig {
            id: raft_id(config.node_id),
            member: Member {
                node_id: config.node_id.to_string(),
                addresses: config.addresses.clone(),
            },
            state_dir: config.state_dir,
            timing: config.timing,
            snapshots: SnapshotLimits::default(),
        };
        let machine = StoreMachine::new(hub.clone());
        let dialer = Arc::new(MtlsDialer(Arc::clone(&security)));
        let raft = RaftNode::start(raft_config, config.start, machine, dialer).await?;
        let store = Store::new(Arc::new(RaftDoor::new(raft.proposer())), hub);
        let members = Members {
            own: config.node_id,
            addr: config.addresses.into_iter().next().unwrap_or_default(),
            leadership: raft.leadership(),
        };
        let own = pb::WeightedPeer {
            peer: Some(pb::Peer {
                node_id: config.node_id.to_string(),
                addr: members.addr.clone(),
            }),
            weight: MANAGER_WEIGHT,
        };
        let (_, managers) = watch::channel(vec![own]);
        let dispatcher = Dispatcher::new(store.clone(), clock.clone(), managers);
        Ok(Self {
            raft,
            store,
            clock,
            dispatcher,
            members: Arc::new(members),
            security,
        })
    }

    /// From now on this node can talk to other managers.
    pub(crate) fn secure(&self, security: &SecurityConfig) {
        // Set once: the handle itself follows renewals.
        let _ = self.security.set(security.clone());
    }

    pub(crate) fn store(&self) -> &Store {
        &self.store
    }

    pub(crate) fn clock(&self) -> &Clock {
        &self.clock
    }

    pub(crate) fn dispatcher(&self) -> &Dispatcher {
        &self.dispatcher
    }

    pub(crate) fn leadership(&self) -> watch::Receiver<Leadership> {
        self.raft.leadership()
    }

    pub(crate) fn control_api(&self) -> ControlApi {
        ControlApi::new(
            self.store.clone(),
            self.clock.clone(),
            Arc::clone(&self.members) as _,
        )
    }

    pub(crate) fn raft_service(&self) -> own::raft_server::RaftServer<RaftService<StoreMachine>> {
        self.raft.service().into_server()
    }

    /// Runs what only a leader does, while this manager leads.
    pub(crate) async fn lead(
        leadership: watch::Receiver<Leadership>,
        store: Store,
        clock: Clock,
        dispatcher: Dispatcher,
        cancel: CancellationToken,
    ) {
        let mut leadership = leadership;
        loop {
            let term = leadership.borrow_and_update().term();
            let stop = cancel.child_token();
            let mut duties = JoinSet::new();
            if let Some(term) = term {
                tracing::info!(term, "this manager leads");
                let pass = control_loop::run(store.clone(), clock.clone(), seed(), stop.clone());
                duties.spawn(async move {
                    // It ends by itself only with the leadership, which is noticed here too.
                    if let Err(error) = pass.await {
                        tracing::info!(%error, "the control loop has ended");
                    }
                });
                duties.spawn({
                    let (dispatcher, stop) = (dispatcher.clone(), stop.clone());
                    async move { dispatcher.run(stop).await }
                });
            }
            // Until the term changes: another leader, or this one again later.
            let ended = tokio::select! {
                biased;
                () = cancel.cancelled() => true,
                changed = leadership.wait_for(|now| now.term() != term) => changed.is_err(),
            };
            stop.cancel();
            while let Some(ended) = duties.join_next().await {
                if let Err(error) = ended {
                    tracing::error!(%error, "a duty of the leader ended badly");
                }
            }
            if ended {
                return;
            }
        }
    }

    /// Ends when consensus stops for good, with the reason.
    pub(crate) fn stopped(&self) -> impl Future<Output = Option<String>> + Send + 'static {
        self.raft.stopped()
    }

    /// Closes the log.
    pub(crate) async fn shutdown(self) {
        self.raft.shutdown().await;
    }
}

/// What consensus knows of the managers.
#[derive(Debug)]
struct Members {
    own: NodeId,
    addr: String,
    leadership: watch::Receiver<Leadership>,
}

impl controlapi::Managers for Members {
    fn status_of(&self, node: NodeId) -> Option<pb::ManagerStatus> {
        if node != self.own {
            return None;
        }
        let leader = self.leadership.borrow().term().is_some();
        Some(pb::ManagerStatus {
            raft_id: raft_id(node),
            addr: self.addr.clone(),
            leader,
            reachability: pb::raft_member_status::Reachability::Reachable.into(),
        })
    }
}

/// Reaches other managers with this node's certificate.
struct MtlsDialer(Arc<OnceLock<SecurityConfig>>);

impl Dialer for MtlsDialer {
    fn dial(&self, _: &Member, address: &str) -> Result<Channel, DialError> {
        let error = |reason: String| DialError {
            address: address.to_owned(),
            reason,
        };
        let security = self
            .0
            .get()
            .ok_or_else(|| error("this node has no certificate yet".into()))?;
        connect_lazy(address, security).map_err(|e| error(e.to_string()))
    }
}
