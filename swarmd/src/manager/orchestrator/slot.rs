//! What the tasks of one slot say about it.

use std::sync::Arc;

use swarm_proto::id::ServiceId;
use swarm_proto::service::{RestartCondition, RestartPolicy};
use swarm_proto::task_state::TaskState;

use crate::manager::store::{Service, State, Task};

/// Whether a slot needs a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Standing {
    /// It has a task that should run.
    Live,
    /// Its last task has ended, and the restart policy leaves it at that.
    Done,
    /// It has nothing, or only what was told to go.
    Free,
}

impl Standing {
    /// `tasks` are the slot's, the oldest first.
    pub(crate) fn of(service: &Service, tasks: &[Arc<Task>]) -> Self {
        if tasks.iter().any(|t| is_live(t)) {
            return Self::Live;
        }
        let Some(last) = tasks.last() else {
            return Self::Free;
        };
        let left = last.desired != TaskState::Remove && ended_by_itself(last);
        if left && !may_restart(service, tasks, last) {
            Self::Done
        } else {
            Self::Free
        }
    }
}

/// Should run, whether or not it does.
pub(crate) fn is_live(task: &Task) -> bool {
    task.desired <= TaskState::Complete
}

/// Ended of its own accord: it is for the restart policy to say what follows. What was stopped, or
/// lost with its node, or evicted by the constraint enforcer, is moved, not restarted.
pub(crate) fn ended_by_itself(task: &Task) -> bool {
    let ended = matches!(
        task.status.state,
        TaskState::Complete | TaskState::Failed | TaskState::Rejected
    );
    ended && !task.status.evicted
}

/// The restart policy of the spec that a task runs.
pub(crate) fn restart_policy(service: &Service, task: &Task) -> RestartPolicy {
    service
        .spec_of(task.spec_version)
        .map(|spec| spec.task.restart.clone())
        .unwrap_or_default()
}

/// Whether the restart policy replaces a task that ended by itself.
///
/// Attempts are the tasks of the same spec that ended by themselves in this slot before; those
/// count that lie within the window before this end. So the answer stays the same ever after.
pub(crate) fn may_restart(service: &Service, slot: &[Arc<Task>], ended: &Task) -> bool {
    let policy = restart_policy(service, ended);
    let allowed = match policy.condition {
        RestartCondition::None => false,
        RestartCondition::OnFailure => ended.status.state != TaskState::Complete,
        RestartCondition::Any => true,
    };
    if !allowed || policy.max_attempts == 0 {
        return allowed;
    }
    let at = ended.status.applied_at;
    let attempts = slot.iter().filter(|t| {
        let before = (t.meta.created_at, t.id) < (ended.meta.created_at, ended.id);
        let recent = policy.window.is_zero() || at.since(t.status.applied_at) < policy.window;
        before && recent && t.spec_version == ended.spec_version && ended_by_itself(t)
    });
    u64::try_from(attempts.count()).is_ok_and(|n| n < policy.max_attempts)
}

/// One slot's tasks, the oldest first.
pub(crate) fn tasks(state: &State, service: ServiceId, slot: u64) -> Vec<Arc<Task>> {
    let mut tasks: Vec<_> = state.slot_tasks(service, slot).cloned().collect();
    tasks.sort_by_key(|t| (t.meta.created_at, t.id));
    tasks
}

/// All of a service's tasks by slot, the oldest of a slot first.
pub(crate) fn all_tasks(state: &State, service: ServiceId) -> Vec<Arc<Task>> {
    let mut tasks: Vec<_> = state.service_tasks(service).cloned().collect();
    tasks.sort_by_key(|t| (t.slot, t.meta.created_at, t.id));
    tasks
}

/// Cuts a list sorted by slot into slots.
pub(crate) fn each(tasks: &[Arc<Task>]) -> impl Iterator<Item = &[Arc<Task>]> {
    tasks.chunk_by(|a, b| a.slot == b.slot)
}
