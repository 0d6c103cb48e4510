//! The control API: each handler parses, makes one change, writes it, and renders what came of it.
//!
//! No check that could race is here: `store::apply` does those. What this version does not serve is
//! answered with UNIMPLEMENTED and the reason. `error` is the only map from reasons to codes.

mod cluster;
pub(crate) mod error;
mod filter;
mod image;
mod node;

mod root_ca;
mod rpc;
mod service;
mod support;
mod task;
#[cfg(test)]
pub(in crate::manager) mod testing;
#[cfg(test)]
mod tests;
pub(crate) mod watchapi;

use std::sync::Arc;

use swarm_proto::id::{NodeId, TaskId};
use swarm_proto::pb;
use tokio_util::task::TaskTracker;

use crate::clock::Clock;
use crate::manager::dispatcher::Dispatcher;
use crate::manager::signer::Signer;
use crate::manager::store::{Change, Rejected};
use crate::manager::writer::Store;

pub(crate) use error::Error;
pub use image::ImageResolver;

/// What Raft knows of the managers.
pub trait Managers: Send + Sync + std::fmt::Debug {
    /// The manager's part of a node; none for a worker.
    fn status_of(&self, node: NodeId) -> Option<pb::ManagerStatus>;

    /// Whether those that stay have a majority without this one.
    ///
    /// # Errors
    /// The arithmetic, where they have not.
    fn may_go(&self, node: NodeId) -> Result<(), String>;

    /// Those that vote and don't answer, with their numbers in consensus.
    fn dead(&self) -> Vec<(NodeId, u64)>;

    /// Whether those are dead: who has just begun to lead has heard nobody yet.
    fn knows_who_is_dead(&self) -> bool;
}

/// What tasks take of their nodes.
pub trait Usages: Send + Sync + std::fmt::Debug {
    /// As the node said last; none where that is not known.
    fn of(&self, node: NodeId, task: TaskId) -> Option<pb::TaskUsage>;
}

impl Usages for Dispatcher {
    fn of(&self, node: NodeId, task: TaskId) -> Option<pb::TaskUsage> {
        self.usage(node, task)
    }
}

/// Serves `Control`, `Watch` and the manager's half of `Operator`.
#[derive(Debug, Clone)]
pub struct ControlApi {
    store: Store,
    clock: Clock,
    managers: Arc<dyn Managers>,
    /// Owns the watches' tasks.
    watches: TaskTracker,
    /// Asks registries; none leaves images as they are named.
    resolver: Option<Arc<dyn ImageResolver>>,
    usages: Option<Arc<dyn Usages>>,
    signer: Signer,
}

impl ControlApi {
    /// An API over a store.
    pub fn new(store: Store, clock: Clock, managers: Arc<dyn Managers>) -> Self {
        Self {
            store,
            signer: Signer::new(Arc::default(), clock.clone()),
            clock,
            managers,
            watches: TaskTracker::new(),
            resolver: None,
            usages: None,
        }
    }

    /// The same, resolving images by `resolver` where a request asks for it.
    #[must_use]
    pub fn resolving(self, resolver: Arc<dyn ImageResolver>) -> Self {
        Self {
            resolver: Some(resolver),
            ..self
        }
    }

    /// The same, saying what tasks take.
    #[must_use]
    pub fn measuring(self, usages: Arc<dyn Usages>) -> Self {
        Self {
            usages: Some(usages),
            ..self
        }
    }

    /// The same, reaching external CAs as this manager.
    #[must_use]
    pub(crate) fn signing(self, signer: Signer) -> Self {
        Self { signer, ..self }
    }

    /// The same, reading the state as it is here; it writes nothing.
    #[must_use]
    pub(crate) fn stale(&self) -> Self {
        Self {
            store: self.store.stale(),
            ..self.clone()
        }
    }

    /// Writes one change and returns once it is applied.
    async fn write(&self, change: Change) -> Result<(), Error> {
        let written = self
            .store
            .write(self.store.time(&self.clock), vec![change])
            .await?;
        let result: Option<Result<(), Rejected>> = written.results.into_iter().next();
        Ok(result.unwrap_or(Ok(()))?)
    }
}

fn required<T>(value: Option<T>, field: &str) -> Result<T, Error> {
    value.ok_or_else(|| Error::InvalidArgument(format!("{field}: is required")))
}

fn version_of(version: Option<&pb::Version>) -> Result<u64, Error> {
    let version = version.ok_or_else(|| {
        Error::InvalidArgument("version: send the object's version with an update".to_owned())
    })?;
    Ok(version.index)
}
