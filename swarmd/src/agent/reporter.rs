//! Tells the manager where tasks are: the newest status of each, in as few requests as it takes.
//!
//! Drivers put statuses into [`Statuses`]; what is newer replaces what was not sent yet, so the
//! table is as large as the node has tasks. One loop sends everything new in one request, and only
//! then looks again: an idle agent reports at once, a busy one in batches. A status is sent until a
//! manager has taken it.
//!
//! Beside it, what is new is written to disk, [`SAVE_LAG`] after it has come, whether managers answer
//! or not: a task's way to RUNNING is one transaction, not five, and no sync of the disk stands
//! between two of its steps. A swarmd that is killed meanwhile finds an older status there, asks the runtime, and takes the steps again,
//! which find them done.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use swarm_proto::id::TaskId;
use swarm_proto::pb;
use swarm_proto::pb::dispatcher_client::DispatcherClient;
use swarm_proto::pb::update_task_status_request::TaskStatusUpdate;
use tokio::sync::{Notify, watch};
use tonic::transport::Channel;
use tonic::{Code, Status};

use super::storage::Storage;
use crate::clock::Clock;

/// Statuses in one request; with the texts of a status at their longest it stays below gRPC's 4 MiB.
pub(super) const BATCH_MAX: usize = 10_000;
/// Bytes of a request, about.
const BATCH_BYTES_MAX: usize = 2 << 20;
/// Time for one request. It waits for a write of the managers.
const REQUEST_LIMIT: Duration = Duration::from_secs(10);
/// How long a status may be in memory alone.
const SAVE_LAG: Duration = Duration::from_millis(250);
/// Pause after a request, or a write to disk, that failed.
const PAUSE: Duration = Duration::from_secs(1);

/// A session to send through.
#[derive(Debug, Clone)]
pub(super) struct Link {
    /// The connection to the manager.
    pub(super) channel: Channel,
    /// Its address.
    pub(super) addr: String,
    /// The session's id.
    pub(super) session: String,
}

/// The newest status of every task of this node.
#[derive(Debug, Default)]
pub(super) struct Statuses {
    inner: Mutex<Inner>,
    /// There may be something to send.
    changed: Notify,
    /// There may be something to save.
    unsaved: Notify,
}

#[derive(Debug, Default)]
struct Inner {
    newest: BTreeMap<TaskId, Arc<pb::TaskStatus>>,
    unsaved: BTreeSet<TaskId>,
    unsent: BTreeSet<TaskId>,
}

type Batch = Vec<(TaskId, Arc<pb::TaskStatus>)>;

impl Statuses {
    /// A status from disk: known, not news.
    pub(super) fn restore(&self, id: TaskId, status: Arc<pb::TaskStatus>) {
        self.lock().newest.insert(id, status);
    }

    /// A task's new status.
    pub(super) fn put(&self, id: TaskId, status: Arc<pb::TaskStatus>) {
        let mut inner = self.lock();
        inner.newest.insert(id, status);
        inner.unsaved.insert(id);
        inner.unsent.insert(id);
        drop(inner);
        self.changed.notify_one();
        self.unsaved.notify_one();
    }

    /// The task is removed. What was not sent of it nobody asks for any more: the manager has
    /// removed it first.
    pub(super) fn forget(&self, id: TaskId) {
        let mut inner = self.lock();
        inner.unsaved.remove(&id);
        inner.unsent.remove(&id);
        inner.newest.remove(&id);
    }

    /// A manager that knows nothing: all is news.
    pub(super) fn resend_all(&self) {
        let mut inner = self.lock();
        inner.unsent = inner.newest.keys().copied().collect();
        drop(inner);
        self.changed.notify_one();
    }

    /// The newest status of a task.
    pub(super) fn get(&self, id: TaskId) -> Option<Arc<pb::TaskStatus>> {
        self.lock().newest.get(&id).cloned()
    }

    fn take_unsaved(&self) -> Batch {
        let mut inner = self.lock();
        let ids = std::mem::take(&mut inner.unsaved);
        ids.into_iter()
            .filter_map(|id| Some((id, Arc::clone(inner.newest.get(&id)?))))
            .collect()
    }

    fn take_unsent(&self, limit: usize) -> Batch {
        let mut inner = self.lock();
        let mut batch = Vec::new();
        let mut bytes = 0;
        while batch.len() < limit
            && bytes < BATCH_BYTES_MAX
            && let Some(id) = inner.unsent.pop_first()
        {
            if let Some(status) = inner.newest.get(&id) {
                bytes += prost::Message::encoded_len(status.as_ref()) + 32;
                batch.push((id, Arc::clone(status)));
            }
        }
        batch
    }

    /// What could not be saved is new still.
    fn not_saved(&self, batch: &Batch) {
        let mut inner = self.lock();
        let Inner {
            newest, unsaved, ..
        } = &mut *inner;
        unsaved.extend(
            batch
                .iter()
                .map(|(id, _)| *id)
                .filter(|id| newest.contains_key(id)),
        );
    }

    fn not_sent(&self, batch: &Batch) {
        self.lock().unsent.extend(batch.iter().map(|(id, _)| *id));
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Nothing panics while the lock is held.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Saves and sends until it is dropped.
#[derive(Debug)]
pub(super) struct Reporter {
    pub(super) statuses: Arc<Statuses>,
    pub(super) storage: Arc<Storage>,
    pub(super) link: watch::Receiver<Option<Link>>,
    pub(super) clock: Clock,
}

impl Reporter {
    pub(super) async fn run(self) {
        let (statuses, storage) = (Arc::clone(&self.statuses), Arc::clone(&self.storage));
        let saves = keep_saved(statuses, storage, self.clock.clone());
        tokio::join!(saves, self.keep_sent());
    }

    async fn keep_sent(mut self) {
        let mut limit = BATCH_MAX;
        loop {
            // Tasks that are about to move on do so first: one status less to send.
            tokio::task::yield_now().await;
            match self.send(&mut limit).await {
                Sent::Some => {}
                Sent::Nothing => tokio::select! {
                    biased;
                    () = self.statuses.changed.notified() => {}
                    Ok(()) = self.link.changed() => {}
                },
                Sent::Failed => self.clock.sleep(PAUSE).await,
            }
        }
    }

    async fn send(&mut self, limit: &mut usize) -> Sent {
        let Some(link) = self.link.borrow_and_update().clone() else {
            return Sent::Nothing;
        };
        let batch = self.statuses.take_unsent(*limit);
        if batch.is_empty() {
            return Sent::Nothing;
        }
        let request = request(&link, &batch);
        let mut client = DispatcherClient::new(link.channel);
        let sent = client.update_task_status(request);
        let answer = match self.clock.timeout(REQUEST_LIMIT, sent).await {
            Ok(answer) => answer.map(|_| ()),
            Err(elapsed) => Err(Status::deadline_exceeded(elapsed.to_string())),
        };
        let Err(status) = answer else {
            *limit = limit.saturating_mul(2).min(BATCH_MAX);
            return Sent::Some;
        };
        // One task that is not this node's spoils the batch: it is found by halving.
        let spoiled = status.code() == Code::PermissionDenied;
        if spoiled && batch.len() == 1 {
            tracing::warn!(
                error = status.message(),
                "the manager refuses a task's status"
            );
            return Sent::Some;
        }
        self.statuses.not_sent(&batch);
        if spoiled {
            *limit = batch.len() / 2;
            return Sent::Some;
        }
        tracing::debug!(error = %status, statuses = batch.len(), "task statuses are not reported yet");
        Sent::Failed
    }
}

async fn keep_saved(statuses: Arc<Statuses>, storage: Arc<Storage>, clock: Clock) {
    loop {
        statuses.unsaved.notified().await;
        clock.sleep(SAVE_LAG).await;
        while save(&statuses, &storage).await.is_err() {
            clock.sleep(PAUSE).await;
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sent {
    Some,
    Nothing,
    Failed,
}

fn request(link: &Link, batch: &Batch) -> pb::UpdateTaskStatusRequest {
    let updates = batch.iter().map(|(id, status)| TaskStatusUpdate {
        task_id: id.to_string(),
        status: Some(status.as_ref().clone()),
    });
    pb::UpdateTaskStatusRequest {
        session_id: link.session.clone(),
        updates: updates.collect(),
    }
}

/// Writes what is new to disk.
pub(super) async fn save(statuses: &Statuses, storage: &Arc<Storage>) -> Result<(), ()> {
    let batch = statuses.take_unsaved();
    if batch.is_empty() {
        return Ok(());
    }
    let storage = Arc::clone(storage);
    let write = tokio::task::spawn_blocking(move || {
        let result = storage.record(&batch);
        (batch, result)
    });
    match write.await {
        Ok((_, Ok(()))) => Ok(()),
        Ok((batch, Err(error))) => {
            tracing::error!(%error, "task statuses are not saved");
            statuses.not_saved(&batch);
            Err(())
        }
        // The runtime shuts down.
        Err(_) => Err(()),
    }
}
