//! One node: finds out who it is, starts manager and agent, and stops them in reverse order.
//!
//! ```text
//! state dir ─ identity on disk? ── yes ─┬─ worker ──────────────────────── agent
//!                  │ no                 └─ manager ─ raft ─ servers ─ loop ─ agent
//!                  ├─ --join-addr: join, keep the certificate
//!                  └─ found a cluster: raft first, certificate last
//! ```
//!
//! Where a manager's identity is sealed it waits for the unlock key before all that (`locked`).
//!
//! Stopping (also by a crash) leaves containers running (promise P8). Leaving is another thing: an
//! order over the control socket that empties the node.

mod forced;
mod identity;
mod locked;
mod running;

use std::net::SocketAddr;
use std::sync::Arc;

use agent_runtime::{Executor, NodeFacts};
use swarm_proto::id::NodeId;
use swarm_proto::pb::node_spec::Availability;
use tokio::net::TcpListener;
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::agent::{Agent, AgentConfig, AgentStatus};
use crate::ca::{
    ControlSocket, IdentityDir, NodeIdentity, Renewer, Role, SecurityConfig, UnlockKey,
};
use crate::clock::Clock;
use crate::config::{Config, ExecutorKind};
use crate::images::{LocalImages, RegistryResolver};
use crate::manager::raft::{Fenced, FencedService, Gate, Start, StorageError, Timing};
use crate::manager::recovery::{self, Forced};
use crate::manager::stale;
use crate::manager::{Manager, ManagerConfig, bootstrap, server};
use crate::operator::{ClusterState, Facts, LeaveOrder, Operator};
use crate::seal::{Seal, Sealing};
use crate::state_dir::StateDir;
use crate::worker_api::{self, AskManager};
use crate::{executors, host, service_manager};
use forced::{force_new_cluster, start_anew};
use identity::start_identity;
use locked::Lock;
use running::{End, Running, heed};

/// Leave orders that wait while one is carried out.
const LEAVE_QUEUE: usize = 4;

/// Why a node did not start, or stopped by itself.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// The state directory.
    #[error(transparent)]
    StateDir(#[from] crate::state_dir::StateDirError),
    /// The certificate and key.
    #[error(transparent)]
    Identity(#[from] crate::ca::StateFileError),
    /// Joining.
    #[error(transparent)]
    Join(#[from] crate::ca::JoinError),
    /// The control socket.
    #[error(transparent)]
    ControlSocket(#[from] crate::ca::ControlSocketError),
    /// TLS.
    #[error(transparent)]
    Tls(#[from] crate::ca::TlsError),
    /// Consensus.
    #[error(transparent)]
    Raft(#[from] crate::manager::raft::StartError),
    /// The log on disk.
    #[error(transparent)]
    Log(#[from] StorageError),
    /// Starting a cluster anew.
    #[error(transparent)]
    Recovery(#[from] recovery::RecoveryError),
    /// Founding a cluster.
    #[error(transparent)]
    Bootstrap(#[from] bootstrap::BootstrapError),
    /// What runs tasks.
    #[error("executor: {0}")]
    Executor(#[from] agent_runtime::Error),
    /// The agent.
    #[error(transparent)]
    Agent(#[from] crate::agent::StorageError),
    /// A listening address.
    #[error(
        "can't listen on {addr}: {reason}; free it, or choose another with --listen-remote-api"
    )]
    Listen {
        /// The address.
        addr: SocketAddr,
        /// What the system said.
        reason: std::io::Error,
    },
    /// The address for metrics.
    #[error(
        "can't serve metrics on {addr}: {reason}; free it, or choose another with --listen-metrics"
    )]
    ListenMetrics {
        /// The address.
        addr: SocketAddr,
        /// What the system said.
        reason: std::io::Error,
    },
    /// Anything else that keeps the node from running.
    #[error("{0}")]
    Refused(String),
}

/// Runs until cancelled, left, or broken.
///
/// # Errors
/// Why it did not start, or had to stop.
pub async fn run(mut config: Config, cancel: CancellationToken) -> Result<(), NodeError> {
    host::raise_file_limit();
    let mut promoted = false;
    // A key that was given once is not asked for again when only the role changes.
    let seal = Seal::default();
    loop {
        // What runs is stopped by its own token: the node may go on after it.
        let given = (config.clone(), seal.clone());
        let end = run_once(given, cancel.child_token(), promoted).await?;
        match end {
            End::Role(role) if !cancel.is_cancelled() => promoted = role == Role::Manager,
            End::Fenced | End::Retired if !cancel.is_cancelled() => promoted = false,
            End::Role(_) | End::Fenced | End::Retired | End::Stopped | End::Left => return Ok(()),
        }
        // An order is carried out once.
        config.force_new_cluster = None;
    }
}

/// Runs in one role.
async fn run_once(
    (config, seal): (Config, Seal),
    cancel: CancellationToken,
    promoted: bool,
) -> Result<End, NodeError> {
    let clock = Clock::real();
    let state = StateDir::open(&config.state_dir)?;
    state.check_restored()?;
    recovery::settle(state.path())?;
    let mut socket = ControlSocket::bind(&config.listen_control_api, clock.clone()).await?;
    let lock = Lock {
        state_dir: state.path().to_owned(),
        hostname: host::hostname(&config),
        seal: seal.clone(),
        clock: clock.clone(),
    };
    let given = config.unlock_key.as_ref();
    if !lock.opened(given, &mut socket, &cancel).await? {
        return Ok(End::Stopped);
    }
    // Joining waits for managers that may never answer.
    service_manager::status(
        "starting; waits for managers where this node is not in the cluster yet",
    );
    let identity = cancel.run_until_cancelled(start_identity(&config, (&state, &seal), &clock));
    let Some(known) = identity.await else {
        return Ok(End::Stopped);
    };
    let known = known?;
    let site = Site {
        config,
        state,
        seal,
        clock,
        cancel,
        promoted,
    };
    match known {
        Known::Identity(identity) if identity.role() == Role::Worker => {
            run_worker(site, socket, identity).await
        }
        Known::Identity(identity) if site.config.force_new_cluster.is_none() => {
            let gate = Gate::of_state_dir(site.state.path())?;
            match gate.and_then(|gate| Some((gate.fenced()?, gate))) {
                Some(fenced) => run_fenced(site, socket, identity, fenced).await,
                None => run_manager(site, socket, Known::Identity(identity)).await,
            }
        }
        Known::Identity(_) | Known::Founder { .. } => run_manager(site, socket, known).await,
    }
}

/// What a node has before it is anything.
struct Site {
    config: Config,
    state: StateDir,
    seal: Seal,
    clock: Clock,
    cancel: CancellationToken,
    /// This process ran the node as a worker before.
    promoted: bool,
}

/// Who this node is at its start.
enum Known {
    /// It has a certificate.
    Identity(NodeIdentity),
    /// It founds a cluster: its certificate comes with it.
    Founder {
        node_id: NodeId,
        availability: Availability,
    },
}

/// A node that can't run containers joins drained: visible, and given nothing.
pub(crate) async fn first_availability(config: &Config) -> Availability {
    match config.executor {
        ExecutorKind::Simulated => return config.availability,
        ExecutorKind::None => return Availability::Drain,
        ExecutorKind::Containerd if executors::reachable(config).await => {
            return config.availability;
        }
        ExecutorKind::Containerd => {}
    }
    tracing::warn!(
        address = config.engine_addr,
        "containerd is not reachable: this node starts drained and runs no tasks; start \
         containerd, then run `swarmctl node activate` for it"
    );
    Availability::Drain
}

/// The ends of the channels that the control socket's services hold.
struct Ports {
    leave: mpsc::Sender<LeaveOrder>,
    agent: watch::Receiver<AgentStatus>,
    facts: Facts,
    managers: watch::Receiver<Vec<String>>,
}

impl Ports {
    fn operator(self, security: SecurityConfig, cluster: ClusterState) -> Operator {
        Operator::new(security, self.facts, self.agent, self.leave, cluster)
    }
}

async fn run_worker(
    site: Site,
    socket: ControlSocket,
    identity: NodeIdentity,
) -> Result<End, NodeError> {
    // What a manager that was demoted leaves behind.
    site.state.forget_manager()?;
    site.seal.forget();
    let security = SecurityConfig::new(identity, site.clock.clone())?;
    let managers = match site.config.join_addrs.clone() {
        none if none.is_empty() => site.state.remembered_manager()?.into_iter().collect(),
        told => told,
    };
    let (mut running, ports) = start(site, security, managers).await?;
    let ask = AskManager::new(ports.managers.clone());
    let cluster = ClusterState::Elsewhere(ask.clone());
    let operator = ports.operator(running.security.clone(), cluster);
    let images = LocalImages::new(Arc::clone(&running.executor));
    running.serve_socket(
        socket,
        worker_api::routes(operator, images, ask),
        (None, None),
    );
    running.serve_metrics(None).await?;
    running.remember_managers();
    running.tell_ready(Role::Worker);
    let end = running.until_end(None, std::future::pending()).await;
    running.stop(None, end).await
}

/// A manager that is fenced: it goes on with its tasks, tells who asks what happened, and waits for the operator.
async fn run_fenced(
    site: Site,
    socket: ControlSocket,
    identity: NodeIdentity,
    (fenced, gate): (Fenced, Gate),
) -> Result<End, NodeError> {
    tracing::error!(epoch = %fenced.own, by = %fenced.by, "{fenced}");
    let listen = site.config.listen_remote_api;
    let listener = TcpListener::bind(listen).await;
    let listener = listener.map_err(|reason| NodeError::Listen {
        addr: listen,
        reason,
    })?;
    let security = SecurityConfig::new(identity, site.clock.clone())?;
    let mut managers = fenced.managers.clone();
    managers.extend(site.config.join_addrs.clone());
    managers.extend(site.state.remembered_manager()?);
    let (mut running, ports) = start(site, security, managers).await?;
    let ask = AskManager::new(ports.managers.clone()).because(fenced.to_string());
    let cluster = ClusterState::Elsewhere(ask.clone());
    let operator = ports.operator(running.security.clone(), cluster);
    let images = LocalImages::new(Arc::clone(&running.executor));
    let gate = Arc::new(gate);
    let news = gate.until_news();
    let routes = worker_api::routes(operator, images, ask);
    running.serve_socket(
        socket,
        routes.add_service(server::no_leader()),
        (None, None),
    );
    running.serve_remote(
        (listen, Some(listener)),
        server::fenced(FencedService(gate)),
        None,
    );
    running.serve_metrics(None).await?;
    running.tell_fenced(&fenced);
    let end = running.until_end(None, news).await;
    running.stop(None, end).await
}

async fn run_manager(site: Site, socket: ControlSocket, known: Known) -> Result<End, NodeError> {
    let clock = site.clock.clone();
    let listen = site.config.listen_remote_api;
    let failed = |reason| NodeError::Listen {
        addr: listen,
        reason,
    };
    let listener = match TcpListener::bind(listen).await {
        Ok(listener) => Some(listener),
        // A worker that was promoted goes on with its tasks; it becomes a member when the others reach it.
        Err(reason) if site.promoted => {
            tracing::error!(error = %failed(reason), "this node can't be a manager yet; trying again");
            None
        }
        Err(reason) => return Err(failed(reason)),
    };
    let (manager, identity) = start_manager(&site, known).await?;
    let (seal, dir) = (site.seal.clone(), identity_dir(&site));
    let security = SecurityConfig::new(identity, clock)?;
    manager.secure(&security);
    let bound = listener.as_ref().and_then(|l| l.local_addr().ok());
    // The agent on this host talks to its manager over the wire, like any other.
    let own = host::local_address(bound.unwrap_or(listen)).to_string();
    // One that is no member yet knows no leader, and would keep its agent waiting for one.
    let mut managers: Vec<String> = site.state.joining()?.into_iter().collect();
    managers.push(own);
    let (mut running, ports) = start(site, security, managers).await?;
    let cluster = ClusterState::Here(manager.answers());
    let known = ports.managers.clone();
    let operator = ports.operator(running.security.clone(), cluster);
    let stale = stale::Stale::new(&manager, &operator);
    let routes = server::routes(&manager, operator);
    let forwarder = Arc::new(manager.forwarder(running.security.clone()));
    // Images are this node's own affair: nobody asks for them from elsewhere.
    let images = LocalImages::new(Arc::clone(&running.executor)).into_server();
    let local = routes.clone().add_service(images);
    let beside = (Some(Arc::clone(&forwarder)), Some(stale));
    running.serve_socket(socket, local, beside);
    running.serve_remote((listen, listener), routes, Some((&manager, forwarder)));
    running.serve_metrics(Some(&manager)).await?;
    running.join_managers(&manager, known)?;
    running.seek_managers(&manager);
    running.tell_ready(Role::Manager);
    let duties = manager.duties();
    running.tasks.spawn(duties.run(running.cancel.clone()));
    let keeper = manager.keeper(seal, dir, Arc::clone(&running.renew_now));
    running.tasks.spawn(keeper.run(running.cancel.clone()));
    running.tell_former(&manager);
    let fenced = manager.fenced();
    let fenced = async move { drop(fenced.await) };
    let end = running.until_end(Some(&manager), fenced).await;
    running.stop(Some(manager), end).await
}

fn identity_dir(site: &Site) -> IdentityDir {
    IdentityDir::sealed(site.state.path(), site.seal.clone())
}

async fn start_manager(site: &Site, known: Known) -> Result<(Manager, NodeIdentity), NodeError> {
    let Site {
        config,
        state,
        seal,
        clock,
        ..
    } = site;
    let mut unlock_key = None;
    let (node_id, start) = match &known {
        Known::Identity(identity) => (identity.node_id(), Start::Join),
        Known::Founder { node_id, .. } => (*node_id, Start::Found),
    };
    match start {
        Start::Found => {
            state.end_join()?;
            state.begin_bootstrap()?;
            unlock_key = first_unlock_key(config, seal)?;
        }
        Start::Join => {}
    }
    let addresses = host::advertised(config);
    let mut forced = None;
    if let Known::Identity(identity) = &known {
        if let Some(order) = config.force_new_cluster {
            let order = (order, addresses.clone());
            forced = Some(force_new_cluster(site, identity, order).await?);
        } else if !state.has_raft() {
            begin_join(state, config)?;
        }
    }
    let manager_config = manager_config(site, (node_id, start), addresses);
    let manager = Manager::start(manager_config, clock.clone()).await?;
    let identity = match (known, forced) {
        (Known::Identity(old), Some(Forced::Alone | Forced::Now { .. })) => {
            start_anew(site, &manager, &old).await?
        }
        // A new certificate is a write, for which the others may be needed, and nobody is reached before there is one. The
        // mark stays as long as the flag does.
        (Known::Identity(identity), Some(Forced::Before { .. })) => identity,
        (Known::Identity(identity), None) => {
            recovery::proved(state.path())?;
            identity
        }
        (
            Known::Founder {
                node_id,
                availability,
            },
            _,
        ) => {
            let founder = bootstrap::Founder {
                node_id,
                availability,
                unlock_key,
                external_cas: site.config.external_cas.clone(),
            };
            found(site, &manager, founder).await?
        }
    };
    Ok((manager, identity))
}

fn manager_config(
    site: &Site,
    (node_id, start): (NodeId, Start),
    addresses: Vec<String>,
) -> ManagerConfig {
    let config = &site.config;
    ManagerConfig {
        node_id,
        state_dir: site.state.path().to_owned(),
        timing: Timing {
            tick: crate::config::TICK,
            heartbeat_ticks: config.heartbeat_ticks,
            election_ticks: config.election_ticks,
        },
        addresses,
        says: host::said(config),
        here: host::addresses,
        start,
        resolver: Arc::new(RegistryResolver(config.registries.clone())),
        seal: site.seal.clone(),
    }
}

/// Founds a cluster, in the log of its first manager and in its identity on disk.
async fn found(
    site: &Site,
    manager: &Manager,
    founder: bootstrap::Founder,
) -> Result<NodeIdentity, NodeError> {
    let identity = bootstrap::found(manager.store(), &site.clock, founder).await?;
    identity_dir(site).store(&identity)?;
    site.state.end_bootstrap()?;
    tracing::info!(
        cluster.id = %identity.cluster_id(),
        node.id = %identity.node_id(),
        "founded a cluster; `swarmctl cluster join-token worker` tells how nodes join it"
    );
    if site.config.autolock {
        tracing::warn!(
            "autolock is on: without its unlock key this manager can't be started again; show it with `swarmctl cluster unlock-key` and keep it somewhere else"
        );
    }
    Ok(identity)
}

/// The key of a cluster that is founded with locked managers: before its first manager's first secret is written.
fn first_unlock_key(config: &Config, seal: &Seal) -> Result<Option<UnlockKey>, NodeError> {
    if !config.autolock {
        return Ok(None);
    }
    let key = UnlockKey::generate().map_err(|error| NodeError::Refused(error.to_string()))?;
    seal.adopt(&Sealing {
        key: Some(key.clone()),
        version: 0,
    });
    Ok(Some(key))
}

/// A manager without a log: it just joined or was promoted; or the log is lost, and then the others refuse it.
fn begin_join(state: &StateDir, config: &Config) -> Result<(), NodeError> {
    let via = match state.joining()? {
        Some(via) => Some(via),
        None => state.remembered_manager()?,
    };
    let via = via.or_else(|| config.join_addrs.first().cloned());
    let via = via.ok_or_else(|| {
        NodeError::Refused(format!(
            "state dir {} has a manager's certificate and no log (raft/ is missing): restore it, or \
             remove this manager from the cluster (`swarmctl node demote` and `node rm` on another), move the \
             whole directory away and join again",
            state.path().display()
        ))
    })?;
    Ok(state.begin_join(&via)?)
}

fn node_facts(identity: &NodeIdentity, hostname: String) -> NodeFacts {
    NodeFacts {
        id: identity.node_id().to_string(),
        hostname,
        os: "linux".to_owned(),
        arch: agent_runtime::host::architecture().to_owned(),
    }
}

/// Starts what every node has: the agent and the renewal of its certificate.
async fn start(
    site: Site,
    security: SecurityConfig,
    managers: Vec<String>,
) -> Result<(Running, Ports), NodeError> {
    let dir = identity_dir(&site);
    let Site {
        config,
        state,
        seal: _,
        clock,
        cancel: asked,
        promoted: _,
    } = site;
    let cancel = CancellationToken::new();
    let identity = security.identity();
    let executor: Arc<dyn Executor> =
        executors::open(&config, state.path(), identity.node_id(), clock.clone()).await?;
    let (leave_order, leave) = mpsc::channel(LEAVE_QUEUE);
    let hostname = host::hostname(&config);
    let facts = Facts {
        hostname: hostname.clone(),
        executor: executor.name(),
    };
    let agent_config = AgentConfig {
        state_dir: state.path().to_owned(),
        node: node_facts(&identity, hostname),
        executor: Arc::clone(&executor),
        connector: Arc::new(security.clone()),
        clock: clock.clone(),
        managers,
    };
    let agent = Arc::new(Agent::new(agent_config)?);
    let mut tasks = JoinSet::new();
    let (known, managers) = watch::channel(agent.last_managers());
    let renew_now = Arc::new(Notify::new());
    let (told_roots, roots) = watch::channel(String::new());
    tasks.spawn(heed(
        agent.notices(),
        (known, agent.status()),
        (security.clone(), told_roots, Arc::clone(&renew_now)),
        cancel.clone(),
    ));
    let renewer = Renewer {
        security: security.clone(),
        dir,
        managers: managers.clone(),
        roots,
        renew_now: Arc::clone(&renew_now),
    };
    tasks.spawn(renewer.run(cancel.clone()));
    let ports = Ports {
        leave: leave_order,
        agent: agent.status(),
        facts,
        managers,
    };
    let running = Running {
        config,
        state,
        security,
        clock,
        asked,
        joining: cancel.child_token(),
        cancel,
        tasks,
        servers: JoinSet::new(),
        agent,
        executor,
        leave,
        renew_now,
    };
    Ok((running, ports))
}
