//! What nodes say of their tasks: checked, batched, written.
//!
//! Everything that arrives while a write is under way goes into the next one, so an idle manager
//! answers at once and a busy one writes large entries. A request is answered after its write.
//!
//! A worker is not trusted: it may speak of its own tasks only, and its texts are cut to size.

use std::collections::BTreeMap;
use std::sync::Arc;

use swarm_proto::id::{NodeId, TaskId};
use swarm_proto::pb;
use swarm_proto::task_state::TaskState;
use swarm_proto::time::Timestamp;
use tokio::sync::{mpsc, oneshot};

use crate::clock::Clock;
use crate::manager::store::{Change, Container, Report, State, Task, Text};
use crate::manager::writer::{Store, WriteError};

/// Reports in one log entry at most (SwarmKit's batch).
pub const BATCH_REPORTS_MAX: usize = 10_000;
/// Bytes of reports in one log entry, about; stays below the log's limit of an entry.
pub const BATCH_BYTES_MAX: usize = 1 << 20;
/// Requests that wait for their write; beyond, nodes wait for a place.
const QUEUE_MAX: usize = 1024;
/// Bytes of a message or an error kept of a status.
pub const TEXT_BYTES_MAX: usize = 1024;
/// Ports kept of a status.
const PORTS_MAX: usize = 256;
/// Bytes of a report beyond its texts: id, state, time, framing.
const REPORT_BYTES: usize = 48;

/// Why a request was refused as a whole.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// A task of another node.
    #[error("task {task} does not belong to node {node}")]
    Foreign {
        /// The task.
        task: TaskId,
        /// Who asked.
        node: NodeId,
    },
    /// Not one of the wire's states.
    #[error("task {task}: {state} is no task state")]
    State {
        /// The task.
        task: TaskId,
        /// What was sent.
        state: i32,
    },
}

/// Checks a request and keeps what is news: unknown tasks, steps back and what is known already are
/// dropped.
///
/// # Errors
/// See [`Refusal`].
pub fn check(
    state: &State,
    node: NodeId,
    updates: Vec<pb::update_task_status_request::TaskStatusUpdate>,
) -> Result<Vec<Report>, Refusal> {
    let mut texts = Texts::default();
    let mut reports = Vec::with_capacity(updates.len());
    for update in updates {
        let Some(task) = update
            .task_id
            .parse()
            .ok()
            .and_then(|id: TaskId| state.tasks.get(&id))
        else {
            continue;
        };
        if task.node != Some(node) {
            return Err(Refusal::Foreign {
                task: task.id,
                node,
            });
        }
        let Some(status) = update.status else {
            continue;
        };
        let Some(to) = TaskState::from_wire(status.state) else {
            return Err(Refusal::State {
                task: task.id,
                state: status.state,
            });
        };
        let report = report(task.id, to, status, &mut texts);
        if is_news(task, &report) {
            reports.push(report);
        }
    }
    Ok(reports)
}

fn report(task: TaskId, state: TaskState, status: pb::TaskStatus, texts: &mut Texts) -> Report {
    let ports = status.port_status.map(|p| p.ports).unwrap_or_default();
    let port = |port: pb::PortConfig| pb::PortConfig {
        name: cut(&port.name).to_owned(),
        ..port
    };
    let ports: Box<[_]> = ports.into_iter().take(PORTS_MAX).map(port).collect();
    let container = status.runtime_status.map(|runtime| match runtime {
        pb::task_status::RuntimeStatus::Container(container) => container,
    });
    let container = (container.is_some() || !ports.is_empty()).then(|| {
        let container = container.unwrap_or_default();
        Box::new(Container {
            id: cut(&container.container_id).into(),
            pid: container.pid,
            exit_code: container.exit_code,
            ports,
        })
    });
    Report {
        task,
        state,
        at: Timestamp::from_wire(status.timestamp.as_ref()),
        message: texts.share(&status.message),
        err: texts.share(&status.err),
        container,
    }
}

fn is_news(task: &Task, report: &Report) -> bool {
    let known = &task.status;
    if known.state.is_terminal() || report.state < known.state {
        return false;
    }
    report.state != known.state
        || report.message != known.message
        || report.err != known.err
        || (report.container.is_some() && report.container != known.container)
}

/// Texts that many tasks have in common are one in memory.
#[derive(Debug, Default)]
struct Texts(BTreeMap<Text, ()>);

impl Texts {
    fn share(&mut self, text: &str) -> Text {
        let text = cut(text);
        if let Some((known, ())) = self.0.get_key_value(text) {
            return Arc::clone(known);
        }
        let new = Text::from(text);
        self.0.insert(Arc::clone(&new), ());
        new
    }
}

fn cut(text: &str) -> &str {
    text.get(..text.floor_char_boundary(TEXT_BYTES_MAX))
        .unwrap_or(text)
}

/// Reports that wait for their write.
#[derive(Debug)]
pub(super) struct Job {
    node: NodeId,
    reports: Vec<Report>,
    bytes: usize,
    done: oneshot::Sender<Result<(), WriteError>>,
}

/// Takes reports to the writer.
#[derive(Debug, Clone)]
pub(super) struct Intake(mpsc::Sender<Job>);

/// A queue and its two ends.
pub(super) fn queue() -> (Intake, mpsc::Receiver<Job>) {
    let (sender, receiver) = mpsc::channel(QUEUE_MAX);
    (Intake(sender), receiver)
}

impl Intake {
    /// Writes reports; comes back when they are written.
    pub(super) async fn write(&self, node: NodeId, reports: Vec<Report>) -> Result<(), WriteError> {
        let mut waiting = Vec::new();
        for (reports, bytes) in chunks(reports) {
            let (done, written) = oneshot::channel();
            let job = Job {
                node,
                reports,
                bytes,
                done,
            };
            let sent = self.0.send(job).await;
            sent.map_err(|_| WriteError::ShuttingDown)?;
            waiting.push(written);
        }
        for written in waiting {
            written.await.map_err(|_| WriteError::ShuttingDown)??;
        }
        Ok(())
    }
}

/// Splits reports so that each chunk fits one log entry.
fn chunks(reports: Vec<Report>) -> Vec<(Vec<Report>, usize)> {
    let mut chunks = Vec::new();
    let mut chunk = Vec::new();
    let mut bytes = 0;
    for report in reports {
        let size = size_of_report(&report);
        if chunk.len() >= BATCH_REPORTS_MAX || (bytes + size > BATCH_BYTES_MAX && bytes > 0) {
            chunks.push((std::mem::take(&mut chunk), bytes));
            bytes = 0;
        }
        bytes += size;
        chunk.push(report);
    }
    if !chunk.is_empty() {
        chunks.push((chunk, bytes));
    }
    chunks
}

fn size_of_report(report: &Report) -> usize {
    let container = report.container.as_ref().map_or(0, |c| {
        let ports = c.ports.iter().map(|p| 24 + p.name.len()).sum::<usize>();
        16 + c.id.len() + ports
    });
    REPORT_BYTES + report.message.len() + report.err.len() + container
}

/// Writes what arrives until the queue is closed.
pub(super) async fn run(store: Store, clock: Clock, mut queue: mpsc::Receiver<Job>) {
    let mut held = None;
    while let Some(first) = match held.take() {
        Some(job) => Some(job),
        None => queue.recv().await,
    } {
        let mut batch = Batch::default();
        batch.add(first);
        while let Ok(job) = queue.try_recv() {
            if !batch.has_room(&job) {
                held = Some(job);
                break;
            }
            batch.add(job);
        }
        batch.write(&store, &clock).await;
    }
}

#[derive(Debug, Default)]
struct Batch {
    changes: Vec<Change>,
    done: Vec<oneshot::Sender<Result<(), WriteError>>>,
    reports: usize,
    bytes: usize,
}

impl Batch {
    fn has_room(&self, job: &Job) -> bool {
        self.reports + job.reports.len() <= BATCH_REPORTS_MAX
            && self.bytes + job.bytes <= BATCH_BYTES_MAX
    }

    fn add(&mut self, job: Job) {
        self.reports += job.reports.len();
        self.bytes += job.bytes;
        self.done.push(job.done);
        self.changes.push(Change::ReportStatus {
            node: job.node,
            reports: job.reports,
        });
    }

    /// The tasks that run from now on, with when each was made.
    fn starting(&self, state: &State) -> BTreeMap<TaskId, Timestamp> {
        let reports = self.changes.iter().filter_map(|change| {
            let Change::ReportStatus { reports, .. } = change else {
                return None;
            };
            Some(reports)
        });
        let running = reports
            .flatten()
            .filter(|report| report.state == TaskState::Running);
        let tasks = running.filter_map(|report| state.tasks.get(&report.task));
        tasks
            .filter(|task| task.status.state < TaskState::Running)
            .map(|task| (task.id, task.meta.created_at))
            .collect()
    }

    async fn write(self, store: &Store, clock: &Clock) {
        let starting = self.starting(&store.view());
        // A report that does not hold any more is dropped by apply; only the write itself can fail.
        let written = store
            .write(store.time(clock), self.changes)
            .await
            .map(|_| ());
        match &written {
            Ok(()) => {
                let now = store.time(clock);
                for made in starting.into_values() {
                    store.latencies().scheduling.record(now.since(made));
                }
            }
            Err(error) => {
                tracing::debug!(%error, reports = self.reports, "task statuses are not written");
            }
        }
        for done in self.done {
            // A node that went away meanwhile reports again when it is back.
            let _ = done.send(written.clone());
        }
    }
}
