//! The dispatcher: tells nodes what to run, and hears from them how it goes.
//!
//! ```text
//! store commits -> router -> mailboxes -> streams -> agents
//!                                                     | heartbeats, statuses
//! store  <- one write at a time <- status, heartbeat <-
//! ```
//!
//! - [`assignments`]: pure; what a node has to be told.
//! - `router`: reads each commit once, wakes the streams it concerns.
//! - `stream`: a node's streams, polled by their connections.
//! - `sessions`, [`heartbeat`]: who is there; pure, with the shell that marks nodes DOWN.
//! - [`status`]: checks and batches what nodes report.
//! - `server`: the RPCs.
//!
//! It serves while this manager leads ([`Dispatcher::run`]); sessions live no longer than that. The
//! dispatcher alone writes whether a node is there. It decides nothing about tasks.

pub mod assignments;
pub mod heartbeat;
mod router;
mod server;
mod sessions;
pub mod status;
mod stream;
#[cfg(test)]
mod tests;
mod usage;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use swarm_proto::id::{NodeId, TaskId};
use swarm_proto::pb;
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::clock::Clock;
use heartbeat::Patience;
use router::Router;
use sessions::Sessions;

use super::store::Change;
use super::writer::Store;

/// Time to tell the cluster that this dispatcher stops; the next leader finds out by itself.
const FAREWELL: Duration = Duration::from_secs(2);

/// Serves nodes while this manager leads. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Dispatcher {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    store: Store,
    clock: Clock,
    managers: watch::Receiver<Vec<pb::WeightedPeer>>,
    term: Mutex<Option<Arc<Term>>>,
}

/// What lives as long as this manager leads.
#[derive(Debug)]
struct Term {
    store: Store,
    clock: Clock,
    managers: watch::Receiver<Vec<pb::WeightedPeer>>,
    sessions: Mutex<Sessions>,
    router: Arc<Router>,
    statuses: status::Intake,
    /// Someone is waited for who was not before.
    expiry_changed: Notify,
    /// Parent of every session's token.
    stopped: CancellationToken,
}

impl Dispatcher {
    /// A dispatcher over a store. `managers` are the addresses to tell nodes, as consensus knows
    /// them.
    #[must_use]
    pub fn new(
        store: Store,
        clock: Clock,
        managers: watch::Receiver<Vec<pb::WeightedPeer>>,
    ) -> Self {
        let inner = Inner {
            store,
            clock,
            managers,
            term: Mutex::new(None),
        };
        Self {
            inner: Arc::new(inner),
        }
    }

    /// Serves until `leading` is cancelled; then says that the nodes are disconnected, as far as the
    /// store still takes it, and ends their sessions. Dropped, it ends them without a word.
    pub async fn run(&self, leading: CancellationToken) {
        let (statuses, queue) = status::queue();
        let inner = &self.inner;
        let term = Arc::new(Term {
            store: inner.store.clone(),
            clock: inner.clock.clone(),
            managers: inner.managers.clone(),
            sessions: Mutex::default(),
            router: Arc::default(),
            statuses,
            expiry_changed: Notify::new(),
            stopped: CancellationToken::new(),
        });
        let mut tasks = JoinSet::new();
        tasks.spawn(Arc::clone(&term.router).run(term.store.hub().clone()));
        tasks.spawn(status::run(term.store.clone(), term.clock.clone(), queue));
        term.expect_nodes().await;
        tasks.spawn(heartbeat::run(Arc::clone(&term)));
        let serving = Serving::start(inner, &term);
        tracing::info!("dispatcher serves");
        leading.cancelled().await;
        // New calls are turned away before the nodes are called disconnected.
        serving.close();
        term.say_farewell().await;
        drop(serving);
        tasks.shutdown().await;
        tracing::info!("dispatcher stopped");
    }

    /// What a task takes of its node, as that said with its last heartbeat; none where this manager
    /// does not lead.
    #[must_use]
    pub fn usage(&self, node: NodeId, task: TaskId) -> Option<pb::TaskUsage> {
        self.term().ok()?.sessions().usage(node, task)
    }

    fn term(&self) -> Result<Arc<Term>, tonic::Status> {
        lock(&self.inner.term).clone().ok_or_else(|| {
            tonic::Status::unavailable("this manager does not lead: ask another, or try again")
        })
    }
}

/// The term is open to calls for as long as this lives; its sessions end with it.
struct Serving<'a> {
    inner: &'a Inner,
    stopped: CancellationToken,
}

impl<'a> Serving<'a> {
    fn start(inner: &'a Inner, term: &Arc<Term>) -> Self {
        *lock(&inner.term) = Some(Arc::clone(term));
        Self {
            inner,
            stopped: term.stopped.clone(),
        }
    }

    /// Turns new calls away; sessions go on until the drop.
    fn close(&self) {
        *lock(&self.inner.term) = None;
    }
}

impl Drop for Serving<'_> {
    fn drop(&mut self) {
        self.close();
        self.stopped.cancel();
    }
}

impl Term {
    fn sessions(&self) -> MutexGuard<'_, Sessions> {
        lock(&self.sessions)
    }

    /// Nodes that an earlier leader had sessions with get time to find this one. Until they do they
    /// are UNKNOWN: nothing new is placed there, and nothing is replaced.
    async fn expect_nodes(&self) {
        let state = self.store.view();
        let now = self.clock.monotonic();
        let period = heartbeat::period(&state);
        let mut changes = Vec::new();
        for node in state.nodes.values() {
            // A node without a description never had a session; nothing runs there.
            if node.status.state == pb::node_status::State::Down || node.description.is_none() {
                continue;
            }
            let mut sessions = self.sessions();
            sessions
                .expiry
                .beat(node.id, now, period, Patience::Unknown);
            changes.push(Change::SetNodeStatus {
                id: node.id,
                state: pb::node_status::State::Unknown,
                message: "node moved to \"unknown\" state due to leadership change in cluster"
                    .to_owned(),
                addr: None,
                description: None,
            });
        }
        self.write_nodes(changes).await;
    }

    async fn say_farewell(&self) {
        let nodes: Vec<_> = self.sessions().nodes().collect();
        let changes = nodes.into_iter().map(|id| Change::SetNodeStatus {
            id,
            state: pb::node_status::State::Disconnected,
            message: "the manager stopped".to_owned(),
            addr: None,
            description: None,
        });
        let write = self.write_nodes(changes.collect());
        if let Err(elapsed) = self.clock.timeout(FAREWELL, write).await {
            tracing::debug!(error = %elapsed, "nodes are not marked as disconnected");
        }
    }

    /// Writes what became of nodes; false where it may not have been. Without leadership it is the next leader's word that
    /// counts, and it starts by expecting all nodes.
    async fn write_nodes(&self, changes: Vec<Change>) -> bool {
        if changes.is_empty() {
            return true;
        }
        let written = self
            .store
            .write(self.store.time(&self.clock), changes)
            .await;
        if let Err(error) = &written {
            tracing::warn!(%error, "the state of nodes is not recorded");
        }
        written.is_ok()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What is behind our locks is whole between any two statements.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
