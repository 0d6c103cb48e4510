//! The task reaper: history is kept so long, and what was told to go is deleted once it has gone.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use swarm_proto::pb;
use swarm_proto::service::RestartCondition;
use swarm_proto::task_state::TaskState;

use super::slot::{self, is_live};
use super::update;
use crate::manager::plan::{Ctx, chunks};
use crate::manager::store::{Change, Service, State, Task, Text};

/// Tasks kept a slot when the cluster sets nothing (SwarmKit's default).
const HISTORY: i64 = 5;
/// How long a node is down before its tasks count as lost (SwarmKit's `nodeDown` period).
const ORPHAN_AFTER: Duration = Duration::from_secs(24 * 3600);
/// Status message of a task that was told to stop before it had a node.
const NEVER_PLACED: &str = "task was told to stop before it had a node";

/// Ends what never got a node, and deletes what nobody needs any more.
pub(crate) fn plan(cx: &mut Ctx, service: &Service, tasks: &[Arc<Task>]) {
    let keep = keep(&cx.state, service);
    let renewed = renewed(cx, service, tasks);
    let (mut end, mut delete) = (Vec::new(), Vec::new());
    for slot in slot::each(tasks) {
        if let [only] = slot
            && is_live(only)
        {
            continue;
        }
        let renewed = slot
            .first()
            .is_some_and(|task| renewed.contains(&task.slot));
        let unplaced = slot.iter().filter(|t| !is_live(t) && is_unplaced(t));
        end.extend(
            unplaced
                .filter(|t| t.desired != TaskState::Remove)
                .map(|t| t.id),
        );
        delete.extend(deletable(slot, keep, usize::from(renewed)));
    }
    for tasks in chunks(end) {
        cx.change(Change::EndTasks {
            tasks,
            state: TaskState::Shutdown,
            message: NEVER_PLACED.into(),
            err: Text::default(),
        });
    }
    for tasks in chunks(delete) {
        cx.change(Change::DeleteTasks { tasks });
    }
}

/// Slots that get a task by this very plan: it counts, though it is not among the slot's tasks yet.
fn renewed(cx: &Ctx, service: &Service, tasks: &[Arc<Task>]) -> BTreeSet<u64> {
    if tasks.is_empty() {
        return BTreeSet::new();
    }
    let versions = (service.id, 0)..=(service.id, u64::MAX);
    let created = cx.created.range(versions).flat_map(|(_, tasks)| tasks);
    created.map(|task| task.slot).collect()
}

/// Has no node and has not ended.
fn is_unplaced(task: &Task) -> bool {
    task.status.state < TaskState::Assigned
}

/// Tasks kept a slot, the live one included; none keeps all.
fn keep(state: &State, service: &Service) -> Option<usize> {
    let orchestration = state
        .cluster
        .as_ref()
        .and_then(|c| c.spec.orchestration.as_ref());
    let limit = orchestration.map_or(HISTORY, |o| o.task_history_retention_limit);
    // Negative: keep all.
    let limit = usize::try_from(limit).ok()?;
    let policy = &service.spec.task.restart;
    let attempts = match policy.condition {
        RestartCondition::None => 0,
        // They are counted by looking at them.
        RestartCondition::OnFailure | RestartCondition::Any => match policy.max_attempts {
            0 => 0,
            n => usize::try_from(n).unwrap_or(usize::MAX).saturating_add(1),
        },
    };
    // So are the failures of an update.
    let update = if update::under_way(service) { 2 } else { 0 };
    Some(limit.max(attempts).max(update))
}

/// `slot` is in order of age; `created` tasks follow. The last task stays while its slot is in use:
/// it says whether the slot is done.
fn deletable(
    slot: &[Arc<Task>],
    keep: Option<usize>,
    created: usize,
) -> Vec<swarm_proto::id::TaskId> {
    let gone = |t: &Task| t.status.state.is_terminal() || is_unplaced(t);
    let removed = slot
        .iter()
        .filter(|t| t.desired == TaskState::Remove && gone(t));
    let mut ids: Vec<_> = removed.map(|t| t.id).collect();
    let staying = slot
        .iter()
        .filter(|t| t.desired != TaskState::Remove)
        .count()
        .saturating_add(created);
    let excess = keep.map_or(0, |keep| staying.saturating_sub(keep));
    let old = slot
        .iter()
        .rev()
        .skip(1_usize.saturating_sub(created))
        .rev()
        .filter(|t| !is_live(t) && t.desired != TaskState::Remove && t.status.state.is_terminal());
    ids.extend(old.take(excess).map(|t| t.id));
    ids
}

/// Gives up the tasks of nodes that have been down for long.
pub(crate) fn plan_lost_nodes(cx: &mut Ctx) {
    let mut lost = Vec::new();
    let mut wake_at = None;
    for node in cx.state.nodes.values() {
        if node.status.state != pb::node_status::State::Down {
            continue;
        }
        let due = node.status.since.after(ORPHAN_AFTER);
        let open =
            |t: &&Arc<Task>| t.status.state >= TaskState::Assigned && !t.status.state.is_terminal();
        let mut tasks = cx
            .state
            .node_tasks(node.id)
            .filter(open)
            .map(|t| t.id)
            .peekable();
        if tasks.peek().is_none() {
            continue;
        }
        if due <= cx.now {
            lost.extend(tasks);
        } else {
            wake_at = Some(wake_at.map_or(due, |at| due.min(at)));
        }
    }
    if let Some(at) = wake_at {
        cx.wake(at);
    }
    for tasks in chunks(lost) {
        cx.change(Change::OrphanTasks {
            tasks,
            message: "node is down for too long".into(),
        });
    }
}
