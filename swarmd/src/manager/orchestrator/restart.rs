//! Restarts: in every slot one task that should run, and it does so when it is due.
//!
//! Replacing a task means: it should be shut down, and another one in its slot should run, at once
//! or held at desired READY until the delay has passed or the old one has stopped. Restarting what
//! ended by itself is up to the restart policy; moving what lost its node is not a restart and
//! always happens.

use std::sync::Arc;

use swarm_proto::id::TaskId;
use swarm_proto::service::Mode;
use swarm_proto::task_state::TaskState;
use swarm_proto::time::Timestamp;

use super::replicated::new_task;
use super::slot::{self, ended_by_itself, is_live, may_restart, restart_policy};
use super::update;
use crate::manager::plan::{Ctx, Loss, has_stopped, lost_node};
use crate::manager::store::state::STOP_WAIT;
use crate::manager::store::{NewTask, Service, State, Task};

/// Replaces and promotes tasks of a replicated service.
pub(crate) fn plan(cx: &mut Ctx, service: &Service, tasks: &[Arc<Task>]) {
    let replicated = match service.spec.mode {
        Mode::Replicated { .. } => true,
        // The control API takes no services of these modes.
        Mode::Global | Mode::ReplicatedJob { .. } | Mode::GlobalJob => false,
    };
    if !replicated || service.removed {
        return;
    }
    let mut stop = Vec::new();
    let mut promote = Vec::new();
    for slot in slot::each(tasks) {
        plan_slot(cx, service, slot, (&mut stop, &mut promote));
    }
    cx.set_desired(stop, TaskState::Shutdown);
    cx.set_desired(promote, TaskState::Running);
}

fn plan_slot(
    cx: &mut Ctx,
    service: &Service,
    slot: &[Arc<Task>],
    (stop, promote): (&mut Vec<TaskId>, &mut Vec<TaskId>),
) {
    let surplus = surplus(service, slot);
    for task in slot.iter().filter(|task| is_live(task)) {
        if surplus.contains(&task.id) {
            stop.push(task.id);
            continue;
        }
        let Some(end) = End::of(&cx.state, task) else {
            if is_held(task) && is_due(cx, task) {
                promote.push(task.id);
            }
            continue;
        };
        if end == End::ByItself && task.start_at() > cx.now {
            // It failed while it was held, as with an image that can't be pulled. Its own delay
            // paces the attempts; without it they would follow each other at once.
            cx.wake(task.start_at());
            continue;
        }
        stop.push(task.id);
        if !is_replaced(service, slot, task, end) {
            continue;
        }
        let id = cx.task_id();
        let replacement = replacement(&cx.state, (service, task), end, (id, cx.now));
        cx.create(service, replacement);
    }
}

/// Live tasks that one slot has too many: an update that starts the new task first has done so, or
/// two entries of one plan were applied under different leaders.
fn surplus(service: &Service, slot: &[Arc<Task>]) -> Vec<TaskId> {
    let live = || {
        let live = slot.iter().filter(|task| is_live(task));
        live.filter(|task| !task.status.state.is_terminal())
    };
    if live().nth(1).is_none() {
        return Vec::new();
    }
    let current = || live().filter(|task| task.spec_version == service.spec_version);
    let running = current().rfind(|task| task.status.state == TaskState::Running);
    if let Some(running) = running {
        return live()
            .map(|task| task.id)
            .filter(|id| *id != running.id)
            .collect();
    }
    // Outdated ones serve until the new one runs; of several new ones the last is kept.
    let last = current().next_back().map(|task| task.id);
    current()
        .map(|task| task.id)
        .filter(|id| Some(*id) != last)
        .collect()
}

/// Why a task that should run does not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// It ended; up to the restart policy.
    ByItself,
    /// It was ended by others.
    Evicted,
    /// Its node can't keep it.
    Lost(Loss),
}

impl End {
    fn of(state: &State, task: &Task) -> Option<Self> {
        if task.status.state.is_terminal() {
            return Some(if ended_by_itself(task) {
                Self::ByItself
            } else {
                Self::Evicted
            });
        }
        lost_node(state, task).map(Self::Lost)
    }
}

fn is_replaced(service: &Service, slot: &[Arc<Task>], task: &Task, end: End) -> bool {
    let others = slot
        .iter()
        .filter(|other| other.id != task.id && is_live(other) && !other.status.state.is_terminal());
    for other in others {
        // Another one serves the slot; while an update goes on it is replaced by the next attempt.
        if other.spec_version == service.spec_version || !update::under_way(service) {
            return false;
        }
    }
    match end {
        End::ByItself => may_restart(service, slot, task),
        End::Evicted | End::Lost(_) => true,
    }
}

fn replacement(
    state: &State,
    (service, task): (&Service, &Task),
    end: End,
    (id, now): (TaskId, Timestamp),
) -> NewTask {
    let mut new = new_task(id, task.slot);
    // What has not started itself waits for another one still; so does what follows it.
    new.after = wait_for(state, task);
    match end {
        // Elsewhere there is nothing to pace.
        End::ByItself if lost_node(state, task).is_some() => {}
        End::ByItself => {
            // What failed while it was held failed as if at the time when it was to start.
            let ended = task.status.applied_at.max(task.start_at());
            let due = ended.after(restart_policy(service, task).delay);
            if due > now {
                new.start_at = due;
            }
        }
        End::Evicted | End::Lost(_) => {}
    }
    if new.after.is_some() || !new.start_at.is_zero() {
        new.desired = TaskState::Ready;
    }
    new
}

/// The task that has to stop before one may start that replaces `task`.
pub(crate) fn wait_for(state: &State, task: &Task) -> Option<TaskId> {
    let before = task.after().and_then(|id| state.tasks.get(&id));
    if let Some(before) = before.filter(|before| !has_stopped(state, before)) {
        // It has not started itself yet: it waits for that one.
        return Some(before.id);
    }
    (!has_stopped(state, task)).then_some(task.id)
}

fn is_held(task: &Task) -> bool {
    task.desired == TaskState::Ready
}

/// Whether a held task may start now; asks for a pass when time alone will make it so.
fn is_due(cx: &mut Ctx, task: &Task) -> bool {
    if task.start_at() > cx.now {
        cx.wake(task.start_at());
        return false;
    }
    let before = task.after().and_then(|id| cx.state.tasks.get(&id));
    let stopped = before.is_none_or(|before| has_stopped(&cx.state, before));
    let until = task.meta.created_at.after(STOP_WAIT);
    if stopped || until <= cx.now {
        return true;
    }
    cx.wake(until);
    false
}
