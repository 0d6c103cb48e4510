//! Rolling updates: slots of an older spec get a task of the current one, some at a time.
//!
//! Everything an update knows is in the objects, so it goes on under a new leader: a slot is
//! updated when it has a task of the current spec made since [`Update::started_at`]; that task has
//! come through when it ran or ended; it failed when it ended before it had run for the monitor
//! time.

use std::sync::Arc;
use std::time::Duration;

use swarm_proto::id::TaskId;
use swarm_proto::pb::update_status::UpdateState;
use swarm_proto::service::{FailureAction, Mode, UpdateConfig, UpdateOrder};
use swarm_proto::task_state::TaskState;
use swarm_proto::time::Timestamp;

use super::replicated::new_task;
use super::restart::wait_for;
use super::slot::{self, Standing, ended_by_itself, is_live};
use super::template::Templates;
use crate::manager::plan::{Ctx, has_stopped};
use crate::manager::store::{Change, Service, State, Task, Update};

/// An update or rollback is being rolled out.
pub(crate) fn under_way(service: &Service) -> bool {
    direction(service).is_some()
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Direction {
    Forward,
    Back,
}

fn direction(service: &Service) -> Option<Direction> {
    match service.update.as_ref()?.state {
        UpdateState::Updating => Some(Direction::Forward),
        UpdateState::RollbackStarted => Some(Direction::Back),
        UpdateState::Unknown
        | UpdateState::Paused
        | UpdateState::Completed
        | UpdateState::RollbackPaused
        | UpdateState::RollbackCompleted => None,
    }
}

/// Stays as it is until its user changes the service.
fn is_paused(service: &Service) -> bool {
    service.update.as_ref().is_some_and(|update| {
        matches!(
            update.state,
            UpdateState::Paused | UpdateState::RollbackPaused
        )
    })
}

/// Whether a slot has to be updated and no update says so yet.
pub(crate) fn may_begin(state: &State, service: &Service, tasks: &[Arc<Task>]) -> bool {
    !service.old_specs.is_empty()
        && !under_way(service)
        && !is_paused(service)
        && is_outdated(state, service, &Templates::of(service), tasks)
}

/// Begins, goes on with, or ends the update of a service.
pub(crate) fn plan(cx: &mut Ctx, service: &Service, tasks: &[Arc<Task>]) {
    let replicated = match service.spec.mode {
        Mode::Replicated { .. } => true,
        // The control API takes no services of these modes.
        Mode::Global | Mode::ReplicatedJob { .. } | Mode::GlobalJob => false,
    };
    let idle = service.old_specs.is_empty() && !under_way(service);
    if !replicated || idle || service.removed || is_paused(service) {
        return;
    }
    let templates = Templates::of(service);
    let Some((direction, begun)) = begin(cx, service, &templates, tasks) else {
        return;
    };
    let config = match direction {
        Direction::Forward => &service.spec.update,
        Direction::Back => &service.spec.rollback,
    };
    let slots: Vec<Progress<'_>> = slot::each(tasks)
        .map(|tasks| Progress::of(&cx.state, (service, &templates), begun, config, tasks))
        .collect();
    // One that begins here has failed in nothing yet; and what it would do about a failure needs
    // the version that its beginning gets.
    if under_way(service)
        && let Some(task) = too_many_failures(&slots, config)
        && stop(cx, service, direction, config.failure_action, (begun, task))
    {
        return;
    }
    go_on(cx, service, (direction, begun), config, &slots);
}

/// The update's direction and beginning; begins one where something is out of date.
fn begin(
    cx: &mut Ctx,
    service: &Service,
    templates: &Templates<'_>,
    tasks: &[Arc<Task>],
) -> Option<(Direction, Timestamp)> {
    if let (Some(direction), Some(update)) = (direction(service), &service.update) {
        return Some((direction, update.started_at));
    }
    let mut outdated =
        slot::each(tasks).filter(|tasks| is_outdated(&cx.state, service, templates, tasks));
    outdated.next()?;
    let begun = cx.now;
    set_update(
        cx,
        service,
        Update {
            state: UpdateState::Updating,
            started_at: begun,
            completed_at: Timestamp::ZERO,
            message: "update in progress".to_owned(),
        },
    );
    Some((Direction::Forward, begun))
}

fn set_update(cx: &mut Ctx, service: &Service, update: Update) {
    let (id, spec_version) = (service.id, service.spec_version);
    cx.change(Change::SetUpdate {
        id,
        spec_version,
        update,
    });
}

/// Has nothing of the current spec, but something of an older one.
fn is_outdated(
    state: &State,
    service: &Service,
    templates: &Templates<'_>,
    tasks: &[Arc<Task>],
) -> bool {
    match Standing::of(service, tasks) {
        Standing::Live => {
            let mut live = tasks.iter().filter(|task| is_live(task));
            live.all(|task| templates.is_outdated(state, task))
        }
        Standing::Done => tasks
            .last()
            .is_some_and(|t| templates.is_outdated(state, t)),
        Standing::Free => false,
    }
}

/// How far one slot is.
#[derive(Debug)]
struct Progress<'a> {
    tasks: &'a [Arc<Task>],
    step: Step,
    /// The task by which the update of this slot counts as failed.
    failed: Option<(Timestamp, TaskId)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// Not concerned: it was up to date when the update began, or has nothing to update.
    Untouched,
    /// Its turn is to come.
    Waiting,
    /// Its new task has not come up yet.
    Starting,
    /// Its new task came up, or ended, then.
    Through(Timestamp),
}

impl<'a> Progress<'a> {
    fn of(
        state: &State,
        (service, templates): (&Service, &Templates<'_>),
        begun: Timestamp,
        config: &UpdateConfig,
        tasks: &'a [Arc<Task>],
    ) -> Self {
        let new = || {
            let current = tasks
                .iter()
                .filter(|t| t.spec_version == service.spec_version);
            current.filter(|t| t.meta.created_at >= begun && t.desired != TaskState::Remove)
        };
        let failed = new().filter(|task| failed_early(task, config.monitor));
        let failed = failed.map(|task| (task.status.applied_at, task.id)).max();
        let step = if is_outdated(state, service, templates, tasks) {
            Step::Waiting
        } else if new().next().is_none() {
            Step::Untouched
        } else {
            let through = new().filter_map(|task| came_through(task)).min();
            through.map_or(Step::Starting, Step::Through)
        };
        Self {
            tasks,
            step,
            failed,
        }
    }

    /// A task of it runs.
    fn serves(&self) -> bool {
        let mut tasks = self.tasks.iter();
        tasks.any(|task| is_live(task) && task.status.state == TaskState::Running)
    }

    fn number(&self) -> u64 {
        self.tasks.first().map_or(0, |task| task.slot)
    }
}

/// When a new task ran, or else ended.
fn came_through(task: &Task) -> Option<Timestamp> {
    if !task.status.running_at.is_zero() {
        return Some(task.status.running_at);
    }
    ended_by_itself(task).then_some(task.status.applied_at)
}

fn failed_early(task: &Task, monitor: Duration) -> bool {
    let (running_at, ended_at) = (task.status.running_at, task.status.applied_at);
    ended_by_itself(task) && (running_at.is_zero() || ended_at.since(running_at) < monitor)
}

/// The last failure, when there are more than the config tolerates.
fn too_many_failures(slots: &[Progress<'_>], config: &UpdateConfig) -> Option<TaskId> {
    let concerned = slots.iter().filter(|slot| slot.step != Step::Untouched);
    let total = u64::try_from(concerned.count()).unwrap_or(u64::MAX);
    let failed = u64::try_from(slots.iter().filter(|s| s.failed.is_some()).count());
    let tolerated = u64::from(config.max_failure_ppm).saturating_mul(total);
    let over = failed.unwrap_or(u64::MAX).saturating_mul(1_000_000) > tolerated;
    let last = slots.iter().filter_map(|slot| slot.failed).max();
    last.filter(|_| over).map(|(_, task)| task)
}

/// Acts on too many failures; false to go on.
fn stop(
    cx: &mut Ctx,
    service: &Service,
    direction: Direction,
    action: FailureAction,
    (begun, task): (Timestamp, TaskId),
) -> bool {
    let back = match action {
        FailureAction::Continue => return false,
        FailureAction::Pause => false,
        // A rollback has nothing to go back to.
        FailureAction::Rollback => direction == Direction::Forward && service.previous.is_some(),
    };
    let why = |what: &str| format!("{what} due to failure or early termination of task {task}");
    if back {
        // What follows from it depends on the version it gets.
        cx.deferred.insert(service.id);
        cx.change_last(Change::RollbackService {
            id: service.id,
            expected: service.meta.version,
            message: why("update rolled back"),
            swap: false,
        });
        return true;
    }
    let (state, message) = match direction {
        Direction::Forward => (UpdateState::Paused, why("update paused")),
        Direction::Back => (UpdateState::RollbackPaused, why("rollback paused")),
    };
    let completed_at = Timestamp::ZERO;
    set_update(
        cx,
        service,
        Update {
            state,
            started_at: begun,
            completed_at,
            message,
        },
    );
    true
}

/// Updates the next slots, or ends the update.
fn go_on(
    cx: &mut Ctx,
    service: &Service,
    (direction, begun): (Direction, Timestamp),
    config: &UpdateConfig,
    slots: &[Progress<'_>],
) {
    let mut waiting: Vec<&Progress<'_>> = Vec::new();
    let (mut busy, mut starting) = (0_u64, false);
    let mut done_at = begun;
    for slot in slots {
        match slot.step {
            Step::Untouched => {}
            Step::Waiting => waiting.push(slot),
            Step::Starting => {
                starting = true;
                busy += 1;
            }
            Step::Through(at) => {
                done_at = done_at.max(at.after(config.monitor));
                let pause = at.after(config.delay);
                if pause > cx.now {
                    busy += 1;
                    cx.wake(pause);
                }
            }
        }
    }
    if waiting.is_empty() && !starting {
        finish(cx, service, (direction, begun), done_at);
        return;
    }
    // Slots that serve nobody first: nothing is lost there.
    waiting.sort_by_key(|slot| (slot.serves(), slot.number()));
    let room = match config.parallelism {
        0 => usize::MAX,
        n => usize::try_from(n.saturating_sub(busy)).unwrap_or(usize::MAX),
    };
    for slot in waiting.into_iter().take(room) {
        replace(cx, service, config.order, slot.tasks);
    }
}

fn finish(
    cx: &mut Ctx,
    service: &Service,
    (direction, begun): (Direction, Timestamp),
    done_at: Timestamp,
) {
    if done_at > cx.now {
        cx.wake(done_at);
        return;
    }
    let (state, message) = match direction {
        Direction::Forward => (UpdateState::Completed, "update completed"),
        Direction::Back => (UpdateState::RollbackCompleted, "rollback completed"),
    };
    set_update(
        cx,
        service,
        Update {
            state,
            started_at: begun,
            completed_at: cx.now,
            message: message.to_owned(),
        },
    );
}

/// Gives a slot a task of the current spec.
fn replace(cx: &mut Ctx, service: &Service, order: UpdateOrder, tasks: &[Arc<Task>]) {
    let Some(slot) = tasks.first().map(|task| task.slot) else {
        return;
    };
    let mut new = new_task(cx.task_id(), slot);
    let live = tasks.iter().filter(|task| is_live(task));
    let (up, down): (Vec<_>, Vec<_>) = live.partition(|task| !has_stopped(&cx.state, task));
    let mut stop: Vec<TaskId> = down.iter().map(|task| task.id).collect();
    match order {
        UpdateOrder::StopFirst => {
            stop.extend(up.iter().map(|task| task.id));
            new.after = up.last().and_then(|task| wait_for(&cx.state, task));
        }
        // The old ones go when the new one runs.
        UpdateOrder::StartFirst => {}
    }
    if new.after.is_some() {
        new.desired = TaskState::Ready;
    }
    cx.set_desired(stop, TaskState::Shutdown);
    cx.create(service, new);
}
