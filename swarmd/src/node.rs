//! One node: finds out who it is, starts manager and agent, and stops them in reverse order.
//!
//! ```text
//! state dir ─ identity on disk? ── yes ─┬─ worker ──────────────────────── agent
//!                  │ no                 └─ manager ─ raft ─ servers ─ loop ─ agent
//!                  ├─ --join-addr: join, keep the certificate
//!                  └─ found a cluster: raft first, certificate last
//! ```
//!
//! Stopping (also by a crash) leaves containers running (promise P8). Leaving is another thing: an
//! order over the control socket that empties the node.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use agent_runtime::{Executor, NodeFacts};
use swarm_proto::id::NodeId;
use swarm_proto::pb::node_spec::Availability;
use swarm_proto::{own, pb};
use tokio::net::TcpListener;
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;

use crate::agent::{Agent, AgentConfig, AgentStatus, Notices};
use crate::ca::{
    ControlSocket, ExpiredCertificate, IdentityDir, JoinRequest, ListenLimits, NodeIdentity,
    Renewer, Role, SecurityConfig, TlsIncoming, join,
};
use crate::clock::Clock;
use crate::config::{Config, ExecutorKind};
use crate::executors;
use crate::manager::authorize::AuthorizeLayer;
use crate::manager::raft::{Start, Timing};
use crate::manager::{Manager, ManagerConfig, bootstrap, random_id, server};
use crate::operator::{ClusterState, Facts, LeaveOrder, Operator};
use crate::state_dir::StateDir;
use crate::worker_api::{self, AskManager};

/// Longest orderly stop, as in SwarmKit; what is not done then is cut off. Nothing is lost by it.
const STOP_MAX: Duration = Duration::from_secs(8);
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
    /// Anything else that keeps the node from running.
    #[error("{0}")]
    Refused(String),
}

/// Runs until cancelled, left, or broken.
///
/// # Errors
/// Why it did not start, or had to stop.
pub async fn run(config: Config, cancel: CancellationToken) -> Result<(), NodeError> {
    raise_file_limit();
    let clock = Clock::real();
    let state = StateDir::open(&config.state_dir)?;
    let socket = ControlSocket::bind(&config.listen_control_api, clock.clone()).await?;
    let known = start_identity(&config, &state, &clock).await?;
    let site = Site {
        config,
        state,
        clock,
        cancel,
    };
    match known {
        Known::Identity(identity) if identity.role() == Role::Worker => {
            run_worker(site, socket, identity).await
        }
        Known::Identity(_) | Known::Founder { .. } => run_manager(site, socket, known).await,
    }
}

/// What a node has before it is anything.
struct Site {
    config: Config,
    state: StateDir,
    clock: Clock,
    cancel: CancellationToken,
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

async fn start_identity(
    config: &Config,
    state: &StateDir,
    clock: &Clock,
) -> Result<Known, NodeError> {
    let dir = IdentityDir::new(state.path());
    if let Some(identity) = known_identity(config, &dir, clock)? {
        state.end_bootstrap()?;
        return Ok(Known::Identity(identity));
    }
    let availability = first_availability(config).await;
    if let Some(join_to) = &config.join {
        let request = JoinRequest {
            addrs: vec![join_to.addr.clone()],
            token: join_to.token.clone(),
            availability,
        };
        let identity = join(&request, clock).await?;
        dir.store(&identity)?;
        return Ok(Known::Identity(identity));
    }
    if config.join_addr.is_some() {
        return Err(NodeError::Refused(
            "--join-addr: this node has no certificate yet and needs --join-token; get one on a \
             manager with `swarmctl cluster join-token worker`"
                .to_owned(),
        ));
    }
    if state.has_raft() && !state.in_bootstrap() {
        return Err(NodeError::Refused(format!(
            "state dir {} has a cluster's log and no certificate: restore its certificates \
             directory, or start over with an empty --state-dir",
            state.path().display()
        )));
    }
    Ok(Known::Founder {
        node_id: NodeId::from_raw(random_id()),
        availability,
    })
}

/// The identity on disk. Expired, it is of use only to a manager that is about to replace it.
fn known_identity(
    config: &Config,
    dir: &IdentityDir,
    clock: &Clock,
) -> Result<Option<NodeIdentity>, NodeError> {
    if config.force_new_cluster {
        let known = dir.load(clock.now(), ExpiredCertificate::Allow)?;
        if known.as_ref().is_some_and(|i| i.role() == Role::Manager) {
            return Ok(known);
        }
    }
    Ok(dir.load(clock.now(), ExpiredCertificate::Refuse)?)
}

/// A node that can't run containers joins drained: visible, and given nothing.
async fn first_availability(config: &Config) -> Availability {
    if config.executor != ExecutorKind::Containerd || executors::reachable(config).await {
        return config.availability;
    }
    tracing::warn!(
        address = config.engine_addr,
        "containerd is not reachable: this node starts drained and runs no tasks; start \
         containerd, then run `swarmctl node activate` for it"
    );
    Availability::Drain
}

/// What both kinds of node run on.
struct Running {
    config: Config,
    state: StateDir,
    security: SecurityConfig,
    clock: Clock,
    cancel: CancellationToken,
    tasks: JoinSet<()>,
    agent: Arc<Agent>,
    leave: mpsc::Receiver<LeaveOrder>,
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
) -> Result<(), NodeError> {
    let security = SecurityConfig::new(identity, site.clock.clone())?;
    let managers = site.config.join_addr.iter().cloned().collect();
    let (mut running, ports) = start(site, security, managers).await?;
    let ask = AskManager::new(ports.managers.clone());
    let cluster = ClusterState::Elsewhere(ask.clone());
    let operator = ports.operator(running.security.clone(), cluster);
    running.serve_socket(socket, worker_api::routes(operator, ask));
    let left = running
        .until_end(std::future::pending(), Role::Worker)
        .await;
    running.stop(None, left).await
}

async fn run_manager(site: Site, socket: ControlSocket, known: Known) -> Result<(), NodeError> {
    let clock = site.clock.clone();
    let listen = site.config.listen_remote_api;
    let listener = TcpListener::bind(listen)
        .await
        .map_err(|reason| NodeError::Listen {
            addr: listen,
            reason,
        })?;
    let (manager, identity) = start_manager(&site, known).await?;
    let security = SecurityConfig::new(identity, clock)?;
    manager.secure(&security);
    let incoming = TlsIncoming::new(listener, security.clone(), ListenLimits::default()).map_err(
        |reason| NodeError::Listen {
            addr: listen,
            reason,
        },
    )?;
    // The agent on this host talks to its manager over the wire, like any other.
    let own = local_address(incoming.local_addr()).to_string();
    let (mut running, ports) = start(site, security, vec![own]).await?;
    let cluster = ClusterState::Here(manager.store().clone());
    let operator = ports.operator(running.security.clone(), cluster);
    let routes = server::routes(&manager, operator);
    running.serve_socket(socket, routes.clone());
    running.serve_remote(incoming, routes, &manager);
    running.tasks.spawn(Manager::lead(
        manager.leadership(),
        manager.store().clone(),
        manager.clock().clone(),
        manager.dispatcher().clone(),
        running.cancel.clone(),
    ));
    let broken = manager.stopped();
    let left = running.until_end(broken, Role::Manager).await;
    running.stop(Some(manager), left).await
}

async fn start_manager(site: &Site, known: Known) -> Result<(Manager, NodeIdentity), NodeError> {
    let Site {
        config,
        state,
        clock,
        cancel: _,
    } = site;
    let (node_id, start) = match &known {
        Known::Identity(identity) => (identity.node_id(), Start::Join),
        Known::Founder { node_id, .. } => (*node_id, Start::Found),
    };
    match start {
        Start::Found => state.begin_bootstrap()?,
        Start::Join if !state.has_raft() => {
            return Err(NodeError::Refused(format!(
                "state dir {} has a manager's certificate and no log (raft/ is missing): restore \
                 it, or remove the directory and join again",
                state.path().display()
            )));
        }
        Start::Join => {}
    }
    let addr = advertised(config);
    let manager_config = ManagerConfig {
        node_id,
        state_dir: state.path().to_owned(),
        timing: Timing {
            tick: crate::config::TICK,
            heartbeat_ticks: config.heartbeat_ticks,
            election_ticks: config.election_ticks,
        },
        addresses: vec![addr],
        start,
    };
    let manager = Manager::start(manager_config, clock.clone()).await?;
    let identity = match known {
        Known::Identity(old) if config.force_new_cluster => {
            let identity = bootstrap::reissue(manager.store(), clock, &old).await?;
            IdentityDir::new(state.path()).store(&identity)?;
            tracing::warn!(
                node.id = %identity.node_id(),
                "started the cluster anew with a new certificate; leave --force-new-cluster out \
                 from now on"
            );
            identity
        }
        Known::Identity(identity) => identity,
        Known::Founder {
            node_id,
            availability,
        } => {
            let identity = bootstrap::found(manager.store(), clock, node_id, availability).await?;
            IdentityDir::new(state.path()).store(&identity)?;
            state.end_bootstrap()?;
            tracing::info!(
                cluster.id = %identity.cluster_id(),
                node.id = %identity.node_id(),
                "founded a cluster; `swarmctl cluster join-token worker` tells how nodes join it"
            );
            identity
        }
    };
    Ok((manager, identity))
}

/// Starts what every node has: the agent and the renewal of its certificate.
async fn start(
    site: Site,
    security: SecurityConfig,
    managers: Vec<String>,
) -> Result<(Running, Ports), NodeError> {
    let Site {
        config,
        state,
        clock,
        cancel,
    } = site;
    let identity = security.identity();
    let executor: Arc<dyn Executor> =
        executors::open(&config, state.path(), identity.node_id(), clock.clone()).await?;
    let (leave_order, leave) = mpsc::channel(LEAVE_QUEUE);
    let hostname = hostname(&config);
    let facts = Facts {
        hostname: hostname.clone(),
        executor: executor.name(),
    };
    let agent_config = AgentConfig {
        state_dir: state.path().to_owned(),
        node: NodeFacts {
            id: identity.node_id().to_string(),
            hostname,
            os: "linux".to_owned(),
            arch: agent_runtime::host::architecture().to_owned(),
        },
        executor,
        connector: Arc::new(security.clone()),
        clock: clock.clone(),
        managers,
    };
    let agent = Arc::new(Agent::new(agent_config)?);
    let mut tasks = JoinSet::new();
    let (known, managers) = watch::channel(agent.last_managers());
    let renew_now = Arc::new(Notify::new());
    tasks.spawn(heed(
        agent.notices(),
        known,
        Arc::clone(&renew_now),
        cancel.clone(),
    ));
    let renewer = Renewer {
        security: security.clone(),
        dir: IdentityDir::new(state.path()),
        managers: managers.clone(),
        renew_now,
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
        cancel,
        tasks,
        agent,
        leave,
    };
    Ok((running, ports))
}

impl Running {
    fn layer(&self, manager: Option<&Manager>) -> AuthorizeLayer {
        let store = manager.map(|m| m.store().clone());
        AuthorizeLayer::new(self.security.clone(), move |node| {
            let cluster = store.as_ref().and_then(|s| s.view().cluster);
            cluster.is_some_and(|c| c.blacklist.contains_key(&node))
        })
    }

    fn serve_socket(&mut self, socket: ControlSocket, routes: Routes) {
        let cancel = self.cancel.clone();
        let layer = self.layer(None);
        tracing::info!(path = %socket.path().display(), "control socket is open");
        self.tasks.spawn(async move {
            let server = server::builder().layer(layer).add_routes(routes);
            let stop = cancel.cancelled_owned();
            if let Err(error) = server.serve_with_incoming_shutdown(socket, stop).await {
                tracing::error!(%error, "the control socket failed");
            }
        });
    }

    fn serve_remote(&mut self, incoming: TlsIncoming, routes: Routes, manager: &Manager) {
        let cancel = self.cancel.clone();
        let layer = self.layer(Some(manager));
        tracing::info!(address = %incoming.local_addr(), "manager API is open");
        self.tasks.spawn(async move {
            let server = server::builder().layer(layer).add_routes(routes);
            let stop = cancel.cancelled_owned();
            if let Err(error) = server.serve_with_incoming_shutdown(incoming, stop).await {
                tracing::error!(%error, "the manager API failed");
            }
        });
    }

    /// Runs the agent until the node is stopped, left, or broken. Says whether it was left.
    async fn until_end(
        &mut self,
        broken: impl Future<Output = Option<String>>,
        role: Role,
    ) -> Result<bool, NodeError> {
        let agent = Arc::clone(&self.agent);
        let cancel = self.cancel.clone();
        let mut running = std::pin::pin!(agent.run(cancel.clone()));
        let mut broken = std::pin::pin!(broken);
        loop {
            tokio::select! {
                biased;
                () = cancel.cancelled() => return Ok(false),
                () = &mut running => return Ok(false),
                reason = &mut broken => {
                    let reason = reason.unwrap_or_else(|| "it was shut down".to_owned());
                    return Err(NodeError::Refused(format!("consensus stopped: {reason}")));
                }
                order = self.leave.recv() => {
                    let Some(order) = order else { return Ok(false) };
                    // The agent carries the order out: it has to go on meanwhile.
                    let left = tokio::select! {
                        biased;
                        () = cancel.cancelled() => return Ok(false),
                        () = &mut running => return Ok(false),
                        left = leave(&self.agent, order, role) => left,
                    };
                    if left {
                        return Ok(true);
                    }
                }
            }
        }
    }

    /// Stops in reverse order of starting, within [`STOP_MAX`]; forgets the cluster if it was left.
    async fn stop(
        mut self,
        manager: Option<Manager>,
        end: Result<bool, NodeError>,
    ) -> Result<(), NodeError> {
        self.cancel.cancel();
        let orderly = async {
            while self.tasks.join_next().await.is_some() {}
            if let Some(manager) = manager {
                manager.shutdown().await;
            }
        };
        if self.clock.timeout(STOP_MAX, orderly).await.is_err() {
            tracing::warn!("connections were still open after {STOP_MAX:?}; closing them");
        }
        self.tasks.abort_all();
        if end? {
            self.state.clear()?;
            tracing::info!(
                state_dir = %self.config.state_dir.display(),
                "left the cluster; the state dir is empty"
            );
        }
        Ok(())
    }
}

/// Follows what managers say of themselves and of this node's certificate.
async fn heed(
    mut notices: Notices,
    managers: watch::Sender<Vec<String>>,
    renew_now: Arc<Notify>,
    cancel: CancellationToken,
) {
    let follow = async {
        while notices.changed().await.is_ok() {
            let Some(message) = notices.borrow_and_update().clone() else {
                continue;
            };
            let peers = message.managers.iter().filter_map(|m| m.peer.as_ref());
            let addrs: Vec<String> = peers.map(|p| p.addr.clone()).collect();
            if !addrs.is_empty() {
                managers.send_replace(addrs);
            }
            let status = message
                .node
                .as_ref()
                .and_then(|n| n.certificate.as_ref()?.status.as_ref());
            if status.is_some_and(|s| s.state() == pb::issuance_status::State::Rotate) {
                renew_now.notify_one();
            }
        }
    };
    // Without an agent there is nobody to follow; the renewer goes on by its own clock.
    let _ = cancel.run_until_cancelled(follow).await;
}

/// Carries out an order to leave. True when the node has left.
async fn leave(agent: &Agent, order: LeaveOrder, role: Role) -> bool {
    if role == Role::Manager && !order.force {
        let reason = "this node is the only manager: leaving destroys the cluster and all it \
                      knows; say --force to do that"
            .to_owned();
        let _ = order.answer.send(Err(reason));
        return false;
    }
    match agent.leave(order.force).await {
        Ok(left) => {
            let _ = order.answer.send(Ok(own::LeaveResponse {
                removed_tasks: left.removed_tasks,
                acknowledged: left.acknowledged,
            }));
            true
        }
        Err(error) => {
            let _ = order.answer.send(Err(error.to_string()));
            false
        }
    }
}

/// A manager holds a connection a node, and an agent some files a task: the soft limit of 1,024 that
/// hosts start with is too low, the hard one is meant for this.
fn raise_file_limit() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(error) = raised {
        tracing::warn!(%error, "can't raise the limit of open files");
    }
}

/// How to reach, from this host, what listens on `addr`.
fn local_address(addr: SocketAddr) -> SocketAddr {
    match addr {
        SocketAddr::V4(v4) if v4.ip().is_unspecified() => (Ipv4Addr::LOCALHOST, v4.port()).into(),
        SocketAddr::V6(v6) if v6.ip().is_unspecified() => (Ipv6Addr::LOCALHOST, v6.port()).into(),
        SocketAddr::V4(_) | SocketAddr::V6(_) => addr,
    }
}

/// Where others reach this manager: as told, else where it listens, else the first address of this
/// host that is not its loopback's.
fn advertised(config: &Config) -> String {
    if let Some(told) = &config.advertise_remote_api {
        return told.clone();
    }
    let listen = config.listen_remote_api;
    if !listen.ip().is_unspecified() {
        return listen.to_string();
    }
    let of_host = nix::ifaddrs::getifaddrs().ok().and_then(|all| {
        let mut all = all.filter_map(|i| i.address?.as_sockaddr_in().map(|a| a.ip()));
        all.find(|ip| !ip.is_loopback() && !ip.is_link_local())
    });
    let addr = SocketAddr::from((of_host.unwrap_or(Ipv4Addr::LOCALHOST), listen.port()));
    tracing::info!(address = %addr, "other nodes are told this address; --advertise-remote-api sets another");
    addr.to_string()
}

fn hostname(config: &Config) -> String {
    config.hostname.clone().unwrap_or_else(|| {
        let name = nix::unistd::gethostname()
            .ok()
            .and_then(|n| n.into_string().ok());
        name.unwrap_or_else(|| "localhost".to_owned())
    })
}
