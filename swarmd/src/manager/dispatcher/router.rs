//! Who has to look: reads every commit once and wakes only the streams of the nodes it concerns.
//!
//! A stream's mailbox holds which tasks to look at, not what became of them: the stream looks at
//! the newest state when its connection has room, so a slow node costs a set of ids and misses
//! intermediate states, never the last one.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use swarm_proto::id::{NodeId, TaskId};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::assignments;
use crate::manager::store::Event;
use crate::manager::store::watch::{Commit, Hub};

/// Task ids kept for a stream that does not take them; beyond, it looks at all of its tasks. 2 MiB.
const PENDING_MAX: usize = 100_000;

/// What a stream has to look at.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Pending {
    /// These tasks.
    pub(super) tasks: BTreeSet<TaskId>,
    /// All tasks of the node.
    pub(super) everything: bool,
    /// Since when there is something.
    pub(super) since: Option<Instant>,
}

/// Where the router leaves word for one stream.
#[derive(Debug, Default)]
pub(super) struct Mailbox {
    pending: Mutex<Pending>,
    arrived: Notify,
}

impl Mailbox {
    /// What there is to look at, at once.
    pub(super) fn take(&self) -> Pending {
        std::mem::take(&mut *self.lock())
    }

    /// Returns when there may be something. Cancel-safe.
    pub(super) async fn arrived(&self) {
        self.arrived.notified().await;
    }

    fn put(&self, tasks: &[TaskId]) {
        let mut pending = self.lock();
        pending.since.get_or_insert_with(Instant::now);
        if !pending.everything {
            pending.tasks.extend(tasks);
        }
        if pending.tasks.len() > PENDING_MAX {
            pending.tasks.clear();
            pending.everything = true;
        }
        drop(pending);
        self.arrived.notify_one();
    }

    fn put_everything(&self) {
        let mut pending = self.lock();
        pending.since.get_or_insert_with(Instant::now);
        pending.tasks.clear();
        pending.everything = true;
        drop(pending);
        self.arrived.notify_one();
    }

    fn lock(&self) -> MutexGuard<'_, Pending> {
        // Nothing panics while the lock is held.
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a stream is interested in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Interest {
    /// The node's tasks.
    Tasks,
    /// The node object and the cluster.
    Node,
}

type Key = (Interest, NodeId, u64);

/// The mailboxes of all streams.
#[derive(Debug, Default)]
pub(super) struct Router {
    streams: Mutex<Streams>,
}

#[derive(Debug, Default)]
struct Streams {
    boxes: BTreeMap<Key, Arc<Mailbox>>,
    serial: u64,
}

/// A stream's place in the router; gives it up when dropped.
#[derive(Debug)]
pub(super) struct Registration {
    router: Arc<Router>,
    key: Key,
    pub(super) mailbox: Arc<Mailbox>,
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.router.lock().boxes.remove(&self.key);
    }
}

impl Router {
    /// A mailbox that hears of every commit from now on.
    pub(super) fn register(self: &Arc<Self>, node: NodeId, interest: Interest) -> Registration {
        let mut streams = self.lock();
        streams.serial += 1;
        let key = (interest, node, streams.serial);
        let mailbox = Arc::new(Mailbox::default());
        streams.boxes.insert(key, Arc::clone(&mailbox));
        drop(streams);
        Registration {
            router: Arc::clone(self),
            key,
            mailbox,
        }
    }

    /// Reads commits until it is dropped.
    pub(super) async fn run(self: Arc<Self>, hub: Hub) {
        let (_, mut commits) = hub.subscribe();
        self.wake_all();
        loop {
            match commits.next().await {
                Ok(commit) => self.route(&commit),
                Err(lagged) => {
                    tracing::debug!(error = %lagged, "dispatcher looks at all nodes again");
                    (_, commits) = hub.subscribe();
                    self.wake_all();
                }
            }
        }
    }

    fn route(&self, commit: &Commit) {
        let mut tasks: BTreeMap<NodeId, Vec<TaskId>> = BTreeMap::new();
        let mut nodes: BTreeSet<NodeId> = BTreeSet::new();
        let mut cluster = false;
        for event in &commit.events {
            match event {
                Event::Task { old, new } => {
                    let (old, new) = (old.as_deref(), new.as_deref());
                    let Some(id) = new.or(old).map(|t| t.id) else {
                        continue;
                    };
                    for node in assignments::concerned(old, new).into_iter().flatten() {
                        tasks.entry(node).or_default().push(id);
                    }
                }
                Event::Node { old, new } => {
                    nodes.extend(new.as_ref().or(old.as_ref()).map(|n| n.id));
                }
                Event::Cluster { .. } => cluster = true,
                Event::Service { .. } => {}
            }
        }
        if tasks.is_empty() && nodes.is_empty() && !cluster {
            return;
        }
        let streams = self.lock();
        for (node, ids) in &tasks {
            streams.of(Interest::Tasks, *node).for_each(|b| b.put(ids));
        }
        for node in &nodes {
            streams.of(Interest::Node, *node).for_each(|b| b.put(&[]));
        }
        if cluster {
            let all = streams.boxes.iter();
            all.filter(|((interest, ..), _)| *interest == Interest::Node)
                .for_each(|(_, mailbox)| mailbox.put(&[]));
        }
    }

    fn wake_all(&self) {
        for mailbox in self.lock().boxes.values() {
            mailbox.put_everything();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Streams> {
        // Nothing panics while the lock is held.
        self.streams.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Streams {
    fn of(&self, interest: Interest, node: NodeId) -> impl Iterator<Item = &Arc<Mailbox>> {
        let range = (interest, node, 0)..=(interest, node, u64::MAX);
        self.boxes.range(range).map(|(_, mailbox)| mailbox)
    }
}
