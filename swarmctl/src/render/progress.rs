//! Whether a service has converged, can still do so, or can't: a pure judge of what the manager shows, and
//! the text of it.
//!
//! Converged means: as many tasks of the current spec run as are wanted, no rollout is under way, and both
//! have held for a moment. It can't converge any more when the rollout was paused or rolled back, when a
//! slot failed again and again without running, or when the restart policy leaves a slot empty.

mod text;

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime};

use swarm_proto::pb;
use swarm_proto::pb::restart_policy::RestartCondition;
use swarm_proto::pb::service_spec::Mode;
use swarm_proto::pb::update_status::UpdateState;
use swarm_proto::pb::{RestartPolicy, TaskState};

use crate::resolve::created;

pub(crate) use text::{details, headline, reasons, share};

/// How long the wanted state has to hold: a container that crashes at start is gone by then.
pub(crate) const STABLE: Duration = Duration::from_secs(1);
/// Failures of one slot, none of them followed by a run, after which waiting is pointless.
const FAILURES_MAX: usize = 3;
/// How long a slot may be empty before that is taken for the last word of the restart policy.
const EMPTY_SLOT: Duration = Duration::from_secs(2);
/// More tasks than this are shown as a total only, as Docker does.
pub(crate) const LINES_MAX: u64 = 20;

/// What the manager shows of a service at one moment.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seen {
    pub(crate) service: pb::Service,
    pub(crate) desired: u64,
    pub(crate) running: u64,
    pub(crate) completed: u64,
    /// All tasks of the service; `None` where they were not asked for this time.
    pub(crate) tasks: Option<Vec<pb::Task>>,
}

/// What is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Goal {
    /// The spec that was sent.
    Spec,
    /// The previous spec: that the rollout was rolled back is the aim.
    Rollback,
}

/// What to make of what is seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Waiting,
    /// It has converged, if it stays so.
    Settling,
    Converged,
    Hopeless(String),
}

/// Judges one change of one service from its first look to its end.
#[derive(Debug)]
pub(crate) struct Judge {
    goal: Goal,
    /// Tasks that had ended before the change; their failures are no news.
    old: Option<BTreeSet<String>>,
    settled_since: Option<SystemTime>,
    empty_since: BTreeMap<String, SystemTime>,
}

impl Judge {
    pub(crate) fn new(goal: Goal) -> Self {
        Self {
            goal,
            old: None,
            settled_since: None,
            empty_since: BTreeMap::new(),
        }
    }

    pub(crate) fn look(&mut self, seen: &Seen, now: SystemTime) -> Verdict {
        if let Some(reason) = stopped(&seen.service, self.goal) {
            return Verdict::Hopeless(reason);
        }
        if let Some(tasks) = &seen.tasks {
            let ended = || {
                tasks
                    .iter()
                    .filter(|task| ended(task))
                    .map(|task| task.id.clone())
                    .collect()
            };
            self.old.get_or_insert_with(ended);
            if let Some(reason) = self.failing(seen, tasks, now) {
                return Verdict::Hopeless(reason);
            }
        }
        if !reached(seen) {
            self.settled_since = None;
            return Verdict::Waiting;
        }
        let since = *self.settled_since.get_or_insert(now);
        let held = now.duration_since(since).unwrap_or_default();
        if held >= STABLE || job_total(&seen.service).is_some() {
            Verdict::Converged
        } else {
            Verdict::Settling
        }
    }

    /// Why a slot will never run, if one won't.
    fn failing(&mut self, seen: &Seen, tasks: &[pb::Task], now: SystemTime) -> Option<String> {
        let old = self.old.get_or_insert_default();
        let policy = seen
            .service
            .spec
            .as_ref()
            .and_then(|spec| spec.task.as_ref()?.restart);
        for (slot, mut tasks) in slots(tasks) {
            tasks.sort_by_key(|task| created(task));
            let newest = *tasks.last()?;
            let failed: Vec<&&pb::Task> = tasks
                .iter()
                .filter(|task| failed(task) && !old.contains(&task.id))
                .collect();
            let runs = tasks
                .iter()
                .any(|task| task.status_state() == TaskState::Running);
            if runs || failed.is_empty() {
                self.empty_since.remove(&slot);
                continue;
            }
            if failed.len() >= FAILURES_MAX {
                let name = name(&seen.service, newest);
                let last = failed.last().map(|task| cause(task)).unwrap_or_default();
                return Some(format!(
                    "task {name} failed {} times, the last time: {last}",
                    failed.len()
                ));
            }
            if ended(newest) && left_empty(policy.as_ref(), newest, failed.len()) {
                let since = *self.empty_since.entry(slot).or_insert(now);
                if now.duration_since(since).unwrap_or_default() >= EMPTY_SLOT {
                    let (name, cause) = (name(&seen.service, newest), cause(newest));
                    return Some(format!(
                        "task {name} is not restarted by the restart policy, it ended with: {cause}"
                    ));
                }
            }
        }
        None
    }
}

/// The rollout's own end, where it is not the one that is wanted.
fn stopped(service: &pb::Service, goal: Goal) -> Option<String> {
    let status = service.update_status.as_ref()?;
    let what = match (status.state(), goal) {
        (UpdateState::Paused, _) => "the update was paused",
        (UpdateState::RollbackPaused, _) => "the rollback was paused",
        (UpdateState::RollbackCompleted, Goal::Spec) => "the update was rolled back",
        (
            UpdateState::Unknown
            | UpdateState::Updating
            | UpdateState::Completed
            | UpdateState::RollbackStarted
            | UpdateState::RollbackCompleted,
            Goal::Spec | Goal::Rollback,
        ) => return None,
    };
    Some(if status.message.is_empty() {
        what.to_owned()
    } else {
        format!("{what}: {}", status.message)
    })
}

fn reached(seen: &Seen) -> bool {
    if let Some(total) = job_total(&seen.service) {
        return seen.completed >= total.unwrap_or(seen.desired).max(1);
    }
    let rolling = seen
        .service
        .update_status
        .as_ref()
        .is_some_and(|status| match status.state() {
            UpdateState::Updating | UpdateState::RollbackStarted => true,
            UpdateState::Unknown
            | UpdateState::Paused
            | UpdateState::Completed
            | UpdateState::RollbackPaused
            | UpdateState::RollbackCompleted => false,
        });
    let Some(tasks) = &seen.tasks else {
        return false;
    };
    let current = tasks
        .iter()
        .filter(|task| task.status_state() == TaskState::Running);
    !rolling
        && seen.running == seen.desired
        && current
            .into_iter()
            .all(|task| is_current(&seen.service, task))
}

/// A running task with desired state above RUNNING is on its way out and does not count.
fn is_current(service: &pb::Service, task: &pb::Task) -> bool {
    let wanted = service.spec.as_ref().and_then(|spec| spec.task.as_ref());
    task.desired_state > i32::from(TaskState::Running)
        || task.spec_version == service.spec_version
        || task.spec.as_ref() == wanted
}

/// For a job, how many tasks have to complete, where the spec says so.
fn job_total(service: &pb::Service) -> Option<Option<u64>> {
    match service.spec.as_ref().and_then(|spec| spec.mode.as_ref())? {
        Mode::ReplicatedJob(job) => Some(Some(job.total_completions)),
        Mode::GlobalJob(_) => Some(None),
        Mode::Replicated(_) | Mode::Global(_) => None,
    }
}

fn slots(tasks: &[pb::Task]) -> BTreeMap<String, Vec<&pb::Task>> {
    let mut slots = BTreeMap::<String, Vec<&pb::Task>>::new();
    for task in tasks {
        let slot = if task.slot > 0 {
            format!("{:09}", task.slot)
        } else {
            task.node_id.clone()
        };
        slots.entry(slot).or_default().push(task);
    }
    slots
}

/// Whether the policy replaces a task that ended like this one.
fn left_empty(policy: Option<&RestartPolicy>, task: &pb::Task, failures: usize) -> bool {
    let Some(policy) = policy else { return false };
    let spent = policy.max_attempts > 0
        && u64::try_from(failures).is_ok_and(|failures| failures > policy.max_attempts);
    match policy.condition() {
        RestartCondition::None => true,
        RestartCondition::OnFailure => spent || task.status_state() == TaskState::Complete,
        RestartCondition::Any => spent,
    }
}

/// Shorthand for the state a task reports.
pub(crate) trait StatusState {
    fn status_state(&self) -> TaskState;
}

impl StatusState for pb::Task {
    fn status_state(&self) -> TaskState {
        self.status
            .as_ref()
            .map_or(TaskState::New, pb::TaskStatus::state)
    }
}

fn ended(task: &pb::Task) -> bool {
    task.status_state() > TaskState::Running
}

fn failed(task: &pb::Task) -> bool {
    matches!(task.status_state(), TaskState::Failed | TaskState::Rejected)
}

fn name(service: &pb::Service, task: &pb::Task) -> String {
    let service = crate::resolve::service_name(service);
    if task.slot > 0 {
        format!("{service}.{}", task.slot)
    } else {
        format!("{service} on {}", task.node_id)
    }
}

/// Why a task is in its state: the error, else the message.
pub(crate) fn cause(task: &pb::Task) -> String {
    let Some(status) = &task.status else {
        return String::new();
    };
    let text = if status.err.is_empty() {
        &status.message
    } else {
        &status.err
    };
    if text.is_empty() {
        status.state().as_str_name().to_owned()
    } else {
        text.clone()
    }
}

#[cfg(test)]
mod tests;
