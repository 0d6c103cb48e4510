//! A node while it runs: what it serves, what ends it, and its stop in reverse order of starting.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use swarm_proto::{own, pb};
use tokio::net::TcpListener;
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;

use super::NodeError;
use crate::agent::{Agent, AgentStatus, Notices};
use crate::ca::{ControlSocket, ListenLimits, Role, SecurityConfig, TlsIncoming};
use crate::clock::Clock;
use crate::config::Config;
use crate::host;
use crate::manager::authorize::AuthorizeLayer;
use crate::manager::forward::{ForwardLayer, Forwarder};
use crate::manager::joining::Joiner;
use crate::manager::raft::Fenced;
use crate::manager::stale::Stale;
use crate::manager::{Manager, server};
use crate::metrics;
use crate::operator::LeaveOrder;
use crate::service_manager;
use crate::state_dir::{StateDir, write_note};

/// Longest orderly stop, as in SwarmKit; what is not done then is cut off. Nothing is lost by it.
const STOP_MAX: Duration = Duration::from_secs(8);

/// Time for the agent to end by itself.
const AGENT_STOP: Duration = Duration::from_secs(2);
/// Time for requests that are under way; streams don't end by themselves and are cut off then.
const REQUESTS_STOP: Duration = Duration::from_millis(500);

/// Pause before an address that is in use is tried again.
const BIND_AGAIN: Duration = Duration::from_secs(1);

/// How a node's run ended, where it was no error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// It was told to stop.
    Stopped,
    /// It left the cluster.
    Left,
    /// The cluster was recovered without this manager, or more of that is known.
    Fenced,
    /// Its certificate has another role now.
    Role(Role),
    /// The managers gave this one up as a voter: it joins them anew.
    Retired,
}

/// What both kinds of node run on.
pub(super) struct Running {
    pub(super) config: Config,
    pub(super) state: StateDir,
    pub(super) security: SecurityConfig,
    pub(super) clock: Clock,
    /// The node is asked to stop; what it runs goes on until that is ready to stop.
    pub(super) asked: CancellationToken,
    /// What runs has to stop.
    pub(super) cancel: CancellationToken,
    /// This manager has to stop asking to be a member.
    pub(super) joining: CancellationToken,
    pub(super) tasks: JoinSet<()>,
    pub(super) servers: JoinSet<()>,
    pub(super) agent: Arc<Agent>,
    /// What runs this node's tasks.
    pub(super) executor: Arc<dyn agent_runtime::Executor>,
    pub(super) leave: mpsc::Receiver<LeaveOrder>,
    /// Has this node's certificate renewed.
    pub(super) renew_now: Arc<Notify>,
}

impl Running {
    fn layer(&self, manager: Option<&Manager>) -> AuthorizeLayer {
        let store = manager.map(|m| m.store().clone());
        AuthorizeLayer::new(self.security.clone(), move |node| {
            let cluster = store.as_ref().and_then(|s| s.view().cluster);
            cluster.is_some_and(|c| c.blacklist.contains_key(&node))
        })
    }

    /// Serves operators; on a manager, what the leader answers is sent on, unless they take what is here.
    pub(super) fn serve_socket(
        &mut self,
        socket: ControlSocket,
        routes: Routes,
        (forwarder, stale): (Option<Arc<Forwarder>>, Option<Stale>),
    ) {
        let cancel = self.cancel.clone();
        let layer = self.layer(None);
        tracing::info!(path = %socket.path().display(), "control socket is open");
        self.servers.spawn(async move {
            let mut server = server::builder()
                .layer(layer)
                .layer(ForwardLayer { forwarder, stale });
            let server = server.add_routes(routes);
            let stop = cancel.cancelled_owned();
            if let Err(error) = server.serve_with_incoming_shutdown(socket, stop).await {
                tracing::error!(%error, "the control socket failed");
            }
        });
    }

    /// Serves metrics, where that is asked for.
    pub(super) async fn serve_metrics(
        &mut self,
        manager: Option<&Manager>,
    ) -> Result<(), NodeError> {
        let Some(addr) = self.config.listen_metrics else {
            return Ok(());
        };
        let listener = TcpListener::bind(addr).await;
        let listener = listener.map_err(|reason| NodeError::ListenMetrics { addr, reason })?;
        let sources = metrics::Sources {
            security: self.security.clone(),
            agent: self.agent.status(),
            executor: Arc::clone(&self.executor),
            operations: self.agent.operations(),
            manager: manager.map(|manager| metrics::ManagerSources {
                store: manager.store().clone(),
                membership: manager.membership(),
                leadership: manager.leadership(),
                raft: manager.raft_latencies(),
            }),
        };
        tracing::info!(address = %addr, "metrics are served");
        let serve = metrics::serve(listener, sources, self.clock.clone(), self.cancel.clone());
        self.servers.spawn(serve);
        Ok(())
    }

    /// Keeps the address of the manager that a worker talks to: should this node be promoted, it joins through that one.
    pub(super) fn remember_managers(&mut self) {
        let (mut status, cancel) = (self.agent.status(), self.cancel.clone());
        let note = self.state.manager_note();
        let follow = async move {
            let mut last = None;
            loop {
                let now = status.borrow_and_update().manager_addr.clone();
                if let Some(addr) = now.filter(|addr| last.as_ref() != Some(addr)) {
                    let (note, text) = (note.clone(), addr.clone());
                    let written = tokio::task::spawn_blocking(move || write_note(&note, &text));
                    if let Ok(Err(error)) = written.await {
                        tracing::warn!(%error, "can't keep the address of a manager");
                    }
                    last = Some(addr);
                }
                if status.changed().await.is_err() {
                    return;
                }
            }
        };
        self.tasks.spawn(async move {
            let _ = cancel.run_until_cancelled(follow).await;
        });
    }

    /// Tells the service manager that this node is up, and from now on how it goes.
    pub(super) fn tell_ready(&mut self, role: Role) {
        service_manager::ready();
        let (agent, cancel) = (self.agent.status(), self.cancel.clone());
        self.tasks.spawn(async move {
            let told = service_manager::follow(role, agent);
            let _ = cancel.run_until_cancelled(told).await;
        });
    }

    /// The same on a manager that is fenced.
    pub(super) fn tell_fenced(&mut self, fenced: &Fenced) {
        service_manager::ready();
        service_manager::status(&fenced.to_string());
    }

    /// Tells the managers that a recovery left behind, if there are some.
    pub(super) fn tell_former(&mut self, manager: &Manager) {
        let teller = manager.teller(self.security.clone());
        let cancel = self.cancel.clone();
        self.tasks.spawn(async move {
            let _ = cancel.run_until_cancelled(teller.run()).await;
        });
    }

    /// Serves the other nodes.
    pub(super) fn serve_remote(
        &mut self,
        (addr, listener): (SocketAddr, Option<TcpListener>),
        routes: Routes,
        manager: Option<(&Manager, Arc<Forwarder>)>,
    ) {
        let cancel = self.cancel.clone();
        let layer = self.layer(manager.as_ref().map(|(manager, _)| *manager));
        let forwarder = manager.map(|(_, forwarder)| forwarder);
        let (security, clock) = (self.security.clone(), self.clock.clone());
        self.servers.spawn(async move {
            let listener = match listener {
                Some(listener) => Some(listener),
                None => cancel.run_until_cancelled(bind(addr, clock)).await,
            };
            let Some(listener) = listener else { return };
            let incoming = match TlsIncoming::new(listener, security, ListenLimits::default()) {
                Ok(incoming) => incoming,
                Err(error) => {
                    tracing::error!(%error, address = %addr, "the manager API failed");
                    return;
                }
            };
            tracing::info!(address = %incoming.local_addr(), "manager API is open");
            let mut server = server::builder().layer(layer).layer(ForwardLayer {
                forwarder,
                stale: None,
            });
            let server = server.add_routes(routes);
            let stop = cancel.cancelled_owned();
            if let Err(error) = server.serve_with_incoming_shutdown(incoming, stop).await {
                tracing::error!(%error, "the manager API failed");
            }
        });
    }

    /// Looks for the other managers where the operator says that one is, while there is no leader.
    pub(super) fn seek_managers(&mut self, manager: &Manager) {
        let told = self.config.join_addrs.clone();
        let seeker = manager.seeker(self.security.clone(), told);
        let cancel = self.cancel.clone();
        self.tasks.spawn(async move {
            let _ = cancel.run_until_cancelled(seeker.run()).await;
        });
    }

    /// Takes part in consensus as soon as the managers let this one in, where it does not yet.
    pub(super) fn join_managers(
        &mut self,
        manager: &Manager,
        known: watch::Receiver<Vec<String>>,
    ) -> Result<(), NodeError> {
        let Some(via) = self.state.joining()? else {
            return Ok(());
        };
        let joiner = Joiner {
            security: self.security.clone(),
            membership: manager.membership(),
            gate: manager.gate(),
            addresses: host::said(&self.config),
            told: self
                .config
                .join_addrs
                .iter()
                .cloned()
                .chain([via])
                .collect(),
            known,
        };
        let marker = self.state.joining_marker();
        let cancel = self.joining.clone();
        self.tasks.spawn(async move {
            if cancel.run_until_cancelled(joiner.run()).await.is_none() {
                return;
            }
            // Left behind, it makes the next start look once whether this manager votes.
            if let Err(error) = tokio::fs::remove_file(&marker).await {
                tracing::warn!(path = %marker.display(), %error, "can't remove a mark that is done with");
            }
        });
        Ok(())
    }

    /// Runs the agent until the node is stopped, left, fenced, broken, or has another role.
    pub(super) async fn until_end(
        &mut self,
        manager: Option<&Manager>,
        fenced: impl Future<Output = ()>,
    ) -> Result<End, NodeError> {
        let agent = Arc::clone(&self.agent);
        let cancel = self.cancel.clone();
        let role = self.security.identity().role();
        let mut identities = self.security.changes();
        let other_role = async {
            loop {
                match identities.next().await {
                    Some(identity) if identity.role() != role => return identity.role(),
                    Some(_) => {}
                    None => std::future::pending().await,
                }
            }
        };
        let broken = async {
            match manager {
                Some(manager) => manager.stopped().await,
                None => std::future::pending().await,
            }
        };
        let retired = given_up(agent.notices(), manager.map(Manager::raft_id));
        let mut retired = std::pin::pin!(retired);
        let mut running = std::pin::pin!(agent.run(cancel.clone()));
        let mut broken = std::pin::pin!(broken);
        let mut fenced = std::pin::pin!(fenced);
        let mut other_role = std::pin::pin!(other_role);
        loop {
            tokio::select! {
                biased;
                // It ends with the token, after it has written down what it knows.
                () = &mut running => return Ok(End::Stopped),
                () = late(&self.clock, &cancel) => return Ok(End::Stopped),
                () = self.asked.cancelled(), if !cancel.is_cancelled() => {
                    // While this one still serves: so it hears of the next leader, and sends requests on to it.
                    if let Some(manager) = manager {
                        manager.hand_over().await;
                    }
                    cancel.cancel();
                }
                // Before what it does to consensus.
                () = &mut fenced => return Ok(End::Fenced),
                reason = &mut broken => {
                    let reason = reason.unwrap_or_else(|| "it was shut down".to_owned());
                    return Err(NodeError::Refused(format!("consensus stopped: {reason}")));
                }
                role = &mut other_role => return Ok(End::Role(role)),
                () = &mut retired => return Ok(End::Retired),
                order = self.leave.recv() => {
                    let Some(order) = order else { return Ok(End::Stopped) };
                    // The agent carries the order out: it has to go on meanwhile.
                    let left = tokio::select! {
                        biased;
                        () = &mut running => return Ok(End::Stopped),
                        () = self.asked.cancelled() => None,
                        left = leave(&self.agent, order, manager, &self.joining) => Some(left),
                    };
                    match left {
                        Some(true) => return Ok(End::Left),
                        Some(false) => {}
                        // The agent still has to write down what it knows.
                        None => cancel.cancel(),
                    }
                }
            }
        }
    }

    /// Stops in reverse order of starting, within [`STOP_MAX`]; forgets the cluster if it was left.
    pub(super) async fn stop(
        mut self,
        manager: Option<Manager>,
        end: Result<End, NodeError>,
    ) -> Result<End, NodeError> {
        // Where the node was asked to stop that is done.
        if let Some(manager) = manager.as_ref().filter(|_| !self.asked.is_cancelled()) {
            manager.hand_over().await;
        }
        self.cancel.cancel();
        let orderly = async {
            while self.tasks.join_next().await.is_some() {}
            let requests = async { while self.servers.join_next().await.is_some() {} };
            // Streams are cut off: their clients find another manager.
            let _ = self.clock.timeout(REQUESTS_STOP, requests).await;
        };
        if self.clock.timeout(STOP_MAX, orderly).await.is_err() {
            tracing::warn!("what was under way has not ended after {STOP_MAX:?}; it is cut off");
        }
        self.servers.shutdown().await;
        self.tasks.shutdown().await;
        // Also after that: a log that was closed needs no repair.
        if let Some(manager) = manager
            && self
                .clock
                .timeout(STOP_MAX, manager.shutdown())
                .await
                .is_err()
        {
            tracing::warn!("the log was not closed within {STOP_MAX:?}; the next start repairs it");
        }
        let end = end?;
        match end {
            End::Left => {
                self.state.clear()?;
                tracing::info!(
                    state_dir = %self.config.state_dir.display(),
                    "left the cluster; of the state dir only volumes are kept"
                );
            }
            End::Role(role) => tracing::info!(%role, "this node goes on in another role"),
            End::Fenced => tracing::info!("this node goes on without consensus"),
            End::Retired => {
                // Its own manager may have passed on to it what the leader said, and knows no leader when it begins anew.
                let via = another_manager(&self.agent.notices(), &self.security);
                let via = via.or_else(|| self.agent.status().borrow().manager_addr.clone());
                let via = via.or_else(|| self.agent.last_managers().into_iter().next());
                self.state.begin_anew(&via.unwrap_or_default())?;
                tracing::warn!(
                    "this manager was given up while it was away, or demoted and promoted again; its log is put aside, and \
                     it joins as a new member"
                );
            }
            End::Stopped => {}
        }
        Ok(end)
    }
}

/// Listens, as soon as that can be done.
async fn bind(addr: SocketAddr, clock: Clock) -> TcpListener {
    loop {
        clock.sleep(BIND_AGAIN).await;
        if let Ok(listener) = TcpListener::bind(addr).await {
            return listener;
        }
    }
}

/// Some time after the token was cancelled.
async fn late(clock: &Clock, cancel: &CancellationToken) {
    cancel.cancelled().await;
    clock.sleep(AGENT_STOP).await;
}

/// Follows what managers say of themselves and of this node's certificate.
pub(super) async fn heed(
    mut notices: Notices,
    (managers, status): (watch::Sender<Vec<String>>, watch::Receiver<AgentStatus>),
    (security, told_roots, renew_now): (SecurityConfig, watch::Sender<String>, Arc<Notify>),
    cancel: CancellationToken,
) {
    // What the operator said stays: what managers say of themselves may lead nowhere from here.
    let told = managers.borrow().clone();
    let mut asked = Vec::new();
    let follow = async {
        while notices.changed().await.is_ok() {
            let Some(message) = notices.borrow_and_update().clone() else {
                continue;
            };
            let peers = message.managers.iter().filter_map(|m| m.peer.as_ref());
            let mut addrs: Vec<String> = status.borrow().manager_addr.iter().cloned().collect();
            for addr in peers.map(|p| &p.addr).chain(&told) {
                if !addrs.contains(addr) {
                    addrs.push(addr.clone());
                }
            }
            managers.send_replace(addrs);
            // Before a certificate is asked for that may be of the next root.
            let roots = String::from_utf8_lossy(&message.root_ca);
            if !roots.is_empty() && *told_roots.borrow() != roots {
                told_roots.send_replace(roots.into_owned());
            }
            let is_asked = asks_to_renew(&message, &mut asked);
            if is_asked || asks_for_another_role(&message, &security) {
                renew_now.notify_one();
            }
        }
    };
    // Without an agent there is nobody to follow; the renewer goes on by its own clock.
    let _ = cancel.run_until_cancelled(follow).await;
}

/// Returns when a manager says that the member of this number was given up as a voter.
async fn given_up(mut notices: Notices, id: Option<u64>) {
    loop {
        let node = notices
            .borrow_and_update()
            .clone()
            .and_then(|m| m.node.clone());
        if node.is_some_and(|node| Some(node.retired_raft_id) == id && node.retired_raft_id != 0) {
            return;
        }
        if notices.changed().await.is_err() {
            std::future::pending().await
        }
    }
}

/// Where one of the other managers is, as the managers said last.
fn another_manager(notices: &Notices, security: &SecurityConfig) -> Option<String> {
    let own = security.identity().node_id().to_string();
    let last = notices.borrow();
    let mut peers = last
        .as_ref()?
        .managers
        .iter()
        .filter_map(|m| m.peer.as_ref());
    peers.find(|p| p.node_id != own).map(|p| p.addr.clone())
}

/// The managers want another certificate in place of one; said again of the same one it is no news.
fn asks_to_renew(message: &pb::SessionMessage, asked: &mut Vec<u8>) -> bool {
    let certificate = message.node.as_ref().and_then(|n| n.certificate.as_ref());
    let Some(certificate) = certificate else {
        return false;
    };
    let status = certificate.status.as_ref();
    let rotate = status.is_some_and(|s| s.state() == pb::issuance_status::State::Rotate);
    if !rotate || *asked == certificate.certificate {
        return false;
    }
    asked.clone_from(&certificate.certificate);
    true
}

/// Promoted or demoted: the role comes with the next certificate.
fn asks_for_another_role(message: &pb::SessionMessage, security: &SecurityConfig) -> bool {
    let spec = message.node.as_ref().and_then(|node| node.spec.as_ref());
    spec.is_some_and(|spec| {
        let role = match spec.desired_role() {
            pb::NodeRole::Worker => Role::Worker,
            pb::NodeRole::Manager => Role::Manager,
        };
        role != security.identity().role()
    })
}

/// Carries out an order to leave. True when the node has left.
async fn leave(
    agent: &Agent,
    order: LeaveOrder,
    manager: Option<&Manager>,
    joining: &CancellationToken,
) -> bool {
    if let Some(manager) = manager
        && !order.force
    {
        let _ = order.answer.send(Err(manager.why_stay()));
        return false;
    }
    // Taken out, it would ask to be let in again.
    joining.cancel();
    if let Some(manager) = manager {
        // The managers that stay take it out of consensus; the leader can't do that to itself.
        manager.hand_over().await;
    }
    match agent.leave(order.force).await {
        Ok(left) => {
            let _ = order.answer.send(Ok(own::LeaveResponse {
                removed_tasks: left.removed_tasks,
                acknowledged: left.untold.is_none(),
                reason: left.untold.unwrap_or_default(),
            }));
            true
        }
        Err(error) => {
            let _ = order.answer.send(Err(error.to_string()));
            false
        }
    }
}
