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
//! - `renewal`: part of it: which nodes renew their certificates, and when a new root has taken over.
//! - [`controlapi`], [`caserver`]: requests become changes. `signer`: certificates, by the `authority` that signs them.
//! - `stale`: reads without the leader, for who asks for them; `consensus_view`: how the managers are.
//! - [`authorize`]: who may call what: one table; `forward`: what the leader answers goes to it; `strangers`: room for those without a certificate.
//! - `latencies`: how long its parts take, for metrics.
//! - `autolock`: how this manager's secrets lie on disk.
//! - [`backup`], `recovery`: the state as a file, and a cluster that goes on from one; `fencing`: who was left behind.
//! - `members`, `joining`, `roles`: the managers, how one becomes a member, and how one ceases to be.
//! - `addresses`, `seeking`: where they are, and how one that has lost the others finds them; `autopilot`: who is dead.

mod addresses;
mod authority;
pub mod authorize;
pub(crate) mod autolock;
mod autopilot;
pub mod backup;
pub mod bootstrap;
pub mod caserver;
mod consensus_view;
pub mod control_loop;
pub mod controlapi;
pub mod convert;
pub mod dispatcher;
mod expired;
mod fencing;
pub(crate) mod forward;
mod health;
pub(crate) mod joining;
pub(crate) mod latencies;
mod members;
mod orchestrator;
pub mod plan;
pub mod raft;
pub(crate) mod recovery;
pub(crate) mod renewal;
mod roles;
pub mod scheduler;
pub(crate) mod seeking;
pub(crate) mod server;
mod serving;
pub(crate) mod signer;
pub(crate) mod stale;
pub mod store;
mod strangers;
#[cfg(test)]
pub(crate) mod world;
pub mod writer;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use rand::TryRng as _;
use swarm_proto::id::NodeId;
use swarm_proto::own;
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::ca::{IdentityDir, SecurityConfig, connect_lazy_to};
use crate::clock::Clock;
use crate::seal::Seal;
use autolock::Keeper;
use controlapi::ControlApi;
use dispatcher::Dispatcher;
use fencing::Teller;
use forward::Forwarder;
use members::{Members, MembershipServer};
use raft::{
    DialError, Dialer, Disk, Fenced, Gate, Leadership, Line, Member, Membership, RaftConfig,
    RaftId, RaftLatencies, RaftNode, RaftService, SnapshotLimits, Start, StartError, Timing,
};
use roles::Roles;
use seeking::Seeker;
use serving::Serving;
use signer::Signer;
use store::machine::StoreMachine;
use store::watch::Hub;
use writer::{RaftDoor, Store};

/// Pause before duties that ended by themselves begin again.
const DUTY_PAUSE: Duration = Duration::from_millis(200);
/// Longest wait for another manager to take over the leadership.
const HAND_OVER: Duration = Duration::from_secs(2);

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

/// A number among the managers that nobody had before.
fn new_raft_id() -> RaftId {
    let low = u64::try_from(random_id() & u128::from(u64::MAX)).unwrap_or(u64::MAX);
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
    /// Where others reach this one, as far as it can tell.
    pub(crate) addresses: Vec<String>,
    /// The same as the other managers are told; an unspecified address is the one it calls from.
    pub(crate) says: Vec<String>,
    /// The addresses of this host, best first.
    pub(crate) here: fn() -> Vec<IpAddr>,
    /// Found a cluster, or wait to be added to one.
    pub(crate) start: Start,
    /// Asks registries what tags mean.
    pub(crate) resolver: Arc<dyn controlapi::ImageResolver>,
    /// How this manager's secrets lie on disk.
    pub(crate) seal: Seal,
}

/// What a manager answers operators from, beyond SwarmKit's API.
#[derive(Debug, Clone)]
pub struct Answers {
    pub(crate) store: Store,
    pub(crate) backups: backup::Source,
    pub(crate) membership: Membership<StoreMachine>,
}

impl Answers {
    /// The same from the state as it is here, without asking the others whether it is the newest.
    pub(crate) fn stale(&self) -> Self {
        Self {
            store: self.store.stale(),
            ..self.clone()
        }
    }

    /// Consensus as this manager sees it now.
    pub(crate) fn consensus(&self) -> own::ConsensusView {
        consensus_view::look(&self.membership, &self.store.view())
    }
}

/// A running manager.
pub(crate) struct Manager {
    raft: RaftNode<StoreMachine>,
    store: Store,
    clock: Clock,
    dispatcher: Dispatcher,
    members: Arc<Members>,
    silent: Arc<roles::Silent>,
    security: Arc<OnceLock<SecurityConfig>>,
    signer: Signer,
    node_id: NodeId,
    resolver: Arc<dyn controlapi::ImageResolver>,
    state_dir: PathBuf,
    addresses: Vec<String>,
    here: fn() -> Vec<IpAddr>,
    election: Duration,
    /// Keeps the list of managers that nodes are told.
    tasks: JoinSet<()>,
}

impl Manager {
    /// Opens the log and takes part in consensus. Nothing is served yet.
    pub(crate) async fn start(config: ManagerConfig, clock: Clock) -> Result<Self, StartError> {
        let hub = Hub::default();
        let security = Arc::new(OnceLock::new());
        let (state_dir, addresses) = (config.state_dir.clone(), config.addresses.clone());
        let raft_config = RaftConfig {
            id: new_raft_id(),
            member: Member {
                node_id: config.node_id.to_string(),
                addresses: config.addresses.clone(),
            },
            says: config.says,
            state_dir: config.state_dir,
            timing: config.timing,
            disk: Disk::default(),
            snapshots: SnapshotLimits::default(),
            seal: config.seal,
        };
        let machine = StoreMachine::new(hub.clone());
        let dialer = Arc::new(MtlsDialer(Arc::clone(&security)));
        let raft = RaftNode::start(raft_config, config.start, machine, dialer).await?;
        let store = Store::new(Arc::new(RaftDoor::new(raft.proposer())), hub);
        let (told, managers) = watch::channel(Vec::new());
        let silent = Arc::new(watch::Sender::new(BTreeMap::new()));
        let mut tasks = JoinSet::new();
        tasks.spawn(raft.membership().follow(move |members| {
            told.send_replace(members::peers(&members));
        }));
        let dispatcher = Dispatcher::new(store.clone(), clock.clone(), managers);
        Ok(Self {
            store,
            dispatcher,
            members: Arc::new(Members::new(raft.membership(), Arc::clone(&silent))),
            silent,
            signer: Signer::new(Arc::clone(&security), clock.clone()),
            clock,
            security,
            node_id: config.node_id,
            resolver: config.resolver,
            state_dir,
            addresses,
            here: config.here,
            election: config.timing.election(),
            tasks,
            raft,
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

    pub(crate) fn managers(&self) -> Arc<dyn controlapi::Managers> {
        Arc::clone(&self.members) as _
    }

    /// Signs certificates in this manager's name.
    pub(crate) fn signer(&self) -> Signer {
        self.signer.clone()
    }

    pub(crate) fn control_api(&self) -> ControlApi {
        ControlApi::new(self.store.clone(), self.clock.clone(), self.managers())
            .resolving(Arc::clone(&self.resolver))
            .measuring(Arc::new(self.dispatcher.clone()))
            .signing(self.signer())
    }

    pub(crate) fn membership_server(&self) -> MembershipServer {
        MembershipServer {
            dispatcher: self.dispatcher.clone(),
            store: self.store.clone(),
            membership: self.raft.membership(),
            security: Arc::clone(&self.security),
            gate: self.raft.gate(),
        }
    }

    /// This member's number.
    pub(crate) fn raft_id(&self) -> RaftId {
        self.raft.status().id
    }

    /// What keeps messages of another epoch out.
    pub(crate) fn gate(&self) -> Arc<Gate> {
        self.raft.gate()
    }

    /// Ends when this manager hears that the cluster was recovered without it.
    pub(crate) fn fenced(&self) -> impl Future<Output = Fenced> + Send + 'static {
        self.raft.fenced()
    }

    /// Tells the managers that a recovery left behind.
    pub(crate) fn teller(&self, security: SecurityConfig) -> Teller {
        Teller {
            raft_dir: self.state_dir.join(raft::DIR),
            gate: self.raft.gate(),
            addresses: self.addresses.clone(),
            store: self.store.clone(),
            security,
        }
    }

    /// Looks for the other managers where the operator says that one is.
    pub(crate) fn seeker(&self, security: SecurityConfig, told: Vec<String>) -> Seeker {
        Seeker {
            own: self.node_id,
            security,
            whereabouts: self.raft.whereabouts(),
            membership: self.raft.membership(),
            told,
        }
    }

    /// What backups are made of.
    pub(crate) fn backups(&self) -> backup::Source {
        let membership = self.raft.membership();
        let place = (self.raft.gate(), self.state_dir.join(raft::DIR));
        backup::Source::new(self.raft.published(), membership, place)
    }

    /// What this node's operators are answered from.
    pub(crate) fn answers(&self) -> Answers {
        Answers {
            store: self.store.clone(),
            backups: self.backups(),
            membership: self.raft.membership(),
        }
    }

    /// Sends on what the leader answers, while this manager is not it.
    pub(crate) fn forwarder(&self, security: SecurityConfig) -> Forwarder {
        Forwarder::new(
            self.node_id,
            security,
            self.serving(),
            self.raft.whereabouts(),
        )
    }

    /// Whether there is a leader to serve by.
    pub(crate) fn serving(&self) -> Serving {
        Serving::new(
            self.raft.leadership(),
            self.raft.membership(),
            self.election,
        )
    }

    /// Who takes part in consensus.
    pub(crate) fn membership(&self) -> Membership<StoreMachine> {
        self.raft.membership()
    }

    /// Lets another manager lead, where this one does and there is another: nobody then has to find out that it is gone.
    pub(crate) async fn hand_over(&self) {
        let mut leadership = self.raft.leadership();
        if leadership.borrow().term().is_none() {
            return;
        }
        let status = self.raft.status();
        let others = status
            .members
            .iter()
            .filter(|(id, member)| **id != status.id && member.voter && member.heard.is_some());
        let Some((next, _)) = others.max_by_key(|(id, member)| (member.matched, **id)) else {
            return;
        };
        if let Err(error) = self.raft.membership().transfer_leader(*next).await {
            tracing::warn!(%error, "can't hand the leadership over");
            return;
        }
        let gone = leadership.wait_for(|now| matches!(now, Leadership::Follower { .. }));
        match self.clock.timeout(HAND_OVER, gone).await {
            Ok(_) => tracing::info!("another manager leads now"),
            Err(_) => {
                tracing::warn!("no other manager took the leadership over within {HAND_OVER:?}")
            }
        }
    }

    /// Why this manager should not leave unasked.
    pub(crate) fn why_stay(&self) -> String {
        let status = self.raft.status();
        let voters = status.members.values().filter(|m| m.voter).count();
        if voters <= 1 {
            return "this node is the only manager: leaving destroys the cluster and all it knows; say --force to do that"
                .to_owned();
        }
        let (rest, majority) = (voters - 1, (voters - 1) / 2 + 1);
        format!(
            "this node is a manager: without it {rest} of {voters} remain, and {majority} of them must be up; demote it \
             first (`swarmctl node demote {}` on a manager), or say --force",
            self.node_id
        )
    }

    pub(crate) fn raft_service(&self) -> own::raft_server::RaftServer<RaftService<StoreMachine>> {
        self.raft.service().into_server()
    }

    /// Keeps this manager's files sealed as the cluster wants.
    pub(crate) fn keeper(&self, seal: Seal, dir: IdentityDir, renew_now: Arc<Notify>) -> Keeper {
        Keeper {
            state_dir: self.state_dir.clone(),
            seal,
            dir,
            keys: self.raft.keys(),
            published: self.raft.published(),
            renew_now,
            clock: self.clock.clone(),
        }
    }

    /// How long consensus takes.
    pub(crate) fn raft_latencies(&self) -> RaftLatencies {
        self.raft.latencies()
    }

    /// What only a leader does.
    pub(crate) fn duties(&self) -> Duties {
        Duties {
            leadership: self.raft.leadership(),
            store: self.store.clone(),
            clock: self.clock.clone(),
            dispatcher: self.dispatcher.clone(),
            roles: Arc::new(Roles {
                membership: self.raft.membership(),
                store: self.store.clone(),
                published: self.raft.published(),
                whereabouts: self.raft.whereabouts(),
                security: Arc::clone(&self.security),
                here: self.here,
                silent: Arc::clone(&self.silent),
                clock: self.clock.clone(),
            }),
        }
    }

    /// Ends when consensus stops for good, with the reason.
    pub(crate) fn stopped(&self) -> impl Future<Output = Option<String>> + Send + 'static {
        self.raft.stopped()
    }

    /// Closes the log.
    pub(crate) async fn shutdown(mut self) {
        self.raft.shutdown().await;
        self.tasks.shutdown().await;
    }
}

/// What only a leader does.
pub(crate) struct Duties {
    leadership: watch::Receiver<Leadership>,
    store: Store,
    clock: Clock,
    dispatcher: Dispatcher,
    roles: Arc<Roles>,
}

impl Duties {
    /// Does it while this manager leads, until cancelled.
    pub(crate) async fn run(mut self, cancel: CancellationToken) {
        loop {
            let term = self.leadership.borrow_and_update().term();
            let stop = cancel.child_token();
            let mut duties = JoinSet::new();
            if let Some(term) = term {
                tracing::info!(term, "this manager leads");
                let (store, clock) = (self.store.clone(), self.clock.clone());
                let pass = control_loop::run(store, clock, seed(), stop.clone());
                duties.spawn(async move {
                    if let Err(error) = pass.await {
                        tracing::info!(%error, "the control loop has ended");
                    }
                });
                let (dispatcher, leading) = (self.dispatcher.clone(), stop.clone());
                duties.spawn(async move { dispatcher.run(leading).await });
                duties.spawn(Arc::clone(&self.roles).run(stop.clone()));
            }
            // Until the term changes: another leader, or this one again later. A duty that ends by itself begins again:
            // a leader that does only a part of its work would look healthy and be none.
            let (ended, pause) = tokio::select! {
                biased;
                () = cancel.cancelled() => (true, Duration::ZERO),
                changed = self.leadership.wait_for(|now| now.term() != term) => {
                    (changed.is_err(), Duration::ZERO)
                }
                Some(first) = duties.join_next() => {
                    tracing::warn!(error = first.err().map(tracing::field::display), "a duty of the leader ended by itself; all begin again");
                    (false, DUTY_PAUSE)
                }
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
            self.clock.sleep(pause).await;
        }
    }
}

/// Reaches other managers with this node's certificate, each by its own.
struct MtlsDialer(Arc<OnceLock<SecurityConfig>>);

impl Dialer for MtlsDialer {
    fn dial(&self, member: &Member, address: &str) -> Result<Line, DialError> {
        let error = |reason: String| DialError {
            address: address.to_owned(),
            reason,
        };
        let security = self
            .0
            .get()
            .ok_or_else(|| error("this node has no certificate yet".into()))?;
        let node = member.node_id.parse();
        let node = node.map_err(|_| error(format!("{:?} is no node", member.node_id)))?;
        let channel = connect_lazy_to(node, address, security).map_err(|e| error(e.to_string()))?;
        Ok(channel.into())
    }
}
