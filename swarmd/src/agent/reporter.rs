//! Tells the manager where tasks are: the newest status of each, in as few requests as it takes.
//!
//! Drivers put statuses into [`Statuses`]; what is newer replaces what was not sent yet, so the
//! table is as large as the node has tasks. One loop sends everything new in one request, and only
//! then looks again: an idle agent reports at once, a busy one in batches. A status is sent until a
//! manager has taken it. A task that is on its way waits [`SEND_LAG`] at most for others: each request is a write of the
//! managers, and mostly the next step is done by then. What managers decide by goes at once.
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
use swarm_proto::pb::TaskState;
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
/// How long a status that nobody decides by may wait for others.
const SEND_LAG: Duration = Duration::from_millis(100);
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
    due: Due,
}

/// When what is not sent yet has to be.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Due {
    /// There is nothing.
    #[default]
    Never,
    /// Within [`SEND_LAG`].
    Soon,
    /// At once.
    Now,
}

impl Due {
    /// The states before RUNNING are steps of the task's own, but for READY, which a task may be kept in until it replaces
    /// another one.
    fn of(status: &pb::TaskStatus) -> Self {
        let on_its_way = matches!(
            status.state(),
            TaskState::Assigned | TaskState::Accepted | TaskState::Preparing | TaskState::Starting
        );
        if on_its_way && status.err.is_empty() {
            Self::Soon
        } else {
            Self::Now
        }
    }
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
        inner.due = inner.due.max(Due::of(&status));
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
        inner.due = Due::Now;
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
        if inner.unsent.is_empty() {
            inner.due = Due::Never;
        }
        batch
    }

    /// Waits until something has to be sent.
    async fn until_due(&self, clock: &Clock) {
        let due = || self.lock().due;
        while due() == Due::Never {
            self.changed.notified().await;
        }
        let mut lag = std::pin::pin!(clock.sleep(SEND_LAG));
        while due() == Due::Soon {
            tokio::select! {
                biased;
                () = self.changed.notified() => {}
                () = lag.as_mut() => return,
            }
        }
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
        let mut inner = self.lock();
        inner.unsent.extend(batch.iter().map(|(id, _)| *id));
        inner.due = Due::Now;
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
            self.statuses.until_due(&self.clock).await;
            // Tasks that are about to move on do so first: one status less to send.
            tokio::task::yield_now().await;
            let Some(link) = self.link.borrow_and_update().clone() else {
                match self.link.changed().await {
                    Ok(()) => continue,
                    // The agent ends.
                    Err(_) => return,
                }
            };
            if !self.send(link, &mut limit).await {
                self.clock.sleep(PAUSE).await;
            }
        }
    }

    /// False for what a manager has not taken, and may take later.
    async fn send(&self, link: Link, limit: &mut usize) -> bool {
        let batch = self.statuses.take_unsent(*limit);
        if batch.is_empty() {
            return true;
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
            return true;
        };
        // One task that is not this node's spoils the batch: it is found by halving.
        let spoiled = status.code() == Code::PermissionDenied;
        if spoiled && batch.len() == 1 {
            tracing::warn!(
                error = status.message(),
                "the manager refuses a task's status"
            );
            return true;
        }
        self.statuses.not_sent(&batch);
        if spoiled {
            *limit = batch.len() / 2;
            return true;
        }
        tracing::debug!(error = %status, statuses = batch.len(), "task statuses are not reported yet");
        false
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

#[cfg(test)]
mod tests {
    use super::*;

    fn status(state: TaskState, err: &str) -> Arc<pb::TaskStatus> {
        Arc::new(pb::TaskStatus {
            state: state.into(),
            err: err.to_owned(),
            ..Default::default()
        })
    }

    /// How long these wait to be sent, put one at the beginning and the others after 30 ms each.
    async fn lag(statuses: &[Arc<pb::TaskStatus>]) -> Duration {
        let (table, clock) = (Statuses::default(), Clock::real());
        let begin = tokio::time::Instant::now();
        let puts = async {
            for status in statuses {
                table.put(TaskId::from_raw(1), Arc::clone(status));
                clock.sleep(Duration::from_millis(30)).await;
            }
            std::future::pending().await
        };
        tokio::select! {
            biased;
            () = table.until_due(&clock) => begin.elapsed(),
            () = puts => Duration::MAX,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_managers_decide_by_goes_at_once_and_steps_wait_for_others() {
        use TaskState::{Failed, Preparing, Ready, Running, Starting};
        let on_its_way = [status(Preparing, ""), status(Starting, "")];
        assert_eq!(lag(&on_its_way).await, SEND_LAG);
        for now in [Ready, Running, Failed] {
            assert_eq!(lag(&[status(now, "")]).await, Duration::ZERO, "{now:?}");
        }
        let trouble = [status(Preparing, "no such image")];
        assert_eq!(lag(&trouble).await, Duration::ZERO);
        let done = [status(Starting, ""), status(Running, "")];
        assert_eq!(lag(&done).await, Duration::from_millis(30));
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_not_taken_is_due_again_and_what_was_is_not() {
        let table = Statuses::default();
        table.put(TaskId::from_raw(1), status(TaskState::Preparing, ""));
        let batch = table.take_unsent(BATCH_MAX);
        assert_eq!(table.lock().due, Due::Never);
        table.not_sent(&batch);
        assert_eq!(table.lock().due, Due::Now);
        assert_eq!(table.take_unsent(BATCH_MAX).len(), 1);
    }
}
