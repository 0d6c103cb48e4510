//! Replicated services: as many slots as replicas.
//!
//! A slot that lost its tasks is filled again; free slots are taken from the lowest. When there
//! are too many, those go first that lose least: without a node, not running, on the nodes that
//! have most of them, and then the highest.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use swarm_proto::id::{NodeId, TaskId};
use swarm_proto::service::Mode;
use swarm_proto::task_state::TaskState;
use swarm_proto::time::Timestamp;

use super::slot::{self, Standing, is_live};
use crate::manager::plan::Ctx;
use crate::manager::store::{NewTask, Service, Task};

/// Makes the number of slots right.
pub(crate) fn plan(cx: &mut Ctx, service: &Service, tasks: &[Arc<Task>]) {
    if service.removed {
        remove(cx, tasks);
        return;
    }
    match service.spec.mode {
        Mode::Replicated { replicas } => reconcile(cx, service, replicas, tasks),
        // The control API takes no services of these modes.
        Mode::Global | Mode::ReplicatedJob { .. } | Mode::GlobalJob => {}
    }
}

fn reconcile(cx: &mut Ctx, service: &Service, replicas: u64, tasks: &[Arc<Task>]) {
    let (mut taken, mut free) = (Vec::new(), Vec::new());
    for tasks in slot::each(tasks) {
        match Standing::of(service, tasks) {
            Standing::Live | Standing::Done => taken.push(tasks),
            Standing::Free => free.push(tasks),
        }
    }
    let have = u64::try_from(taken.len()).unwrap_or(u64::MAX);
    if have > replicas {
        let keep = usize::try_from(replicas).unwrap_or(usize::MAX);
        for tasks in excess(&taken, keep) {
            remove(cx, tasks);
        }
    }
    let filled = fill(cx, service, &taken, replicas.saturating_sub(have));
    for tasks in free {
        let slot = tasks.first().map_or(0, |task| task.slot);
        if !filled.contains(&slot) {
            remove(cx, tasks);
        }
    }
}

fn remove(cx: &mut Ctx, tasks: &[Arc<Task>]) {
    let staying = tasks.iter().filter(|task| task.desired < TaskState::Remove);
    cx.set_desired(staying.map(|task| task.id).collect(), TaskState::Remove);
}

/// Creates tasks in the lowest free slots; gives these slots.
fn fill(cx: &mut Ctx, service: &Service, taken: &[&[Arc<Task>]], missing: u64) -> BTreeSet<u64> {
    let numbers: BTreeSet<u64> = taken
        .iter()
        .filter_map(|tasks| tasks.first())
        .map(|task| task.slot)
        .collect();
    let count = usize::try_from(missing).unwrap_or(usize::MAX);
    let slots: Vec<u64> = (1..)
        .filter(|slot| !numbers.contains(slot))
        .take(count)
        .collect();
    let ids = cx.task_ids(slots.len());
    for (id, slot) in ids.into_iter().zip(&slots) {
        cx.create(service, new_task(id, *slot));
    }
    slots.into_iter().collect()
}

/// A task that may start at once.
pub(crate) fn new_task(id: TaskId, slot: u64) -> NewTask {
    NewTask {
        id,
        slot,
        desired: TaskState::Running,
        node: None,
        generic: BTreeMap::new(),
        start_at: Timestamp::ZERO,
        after: None,
    }
}

/// The slots that go when only so many are kept.
fn excess<'a>(slots: &[&'a [Arc<Task>]], keep: usize) -> Vec<&'a [Arc<Task>]> {
    let mut ranked: Vec<Rank<'a>> = slots.iter().map(|tasks| Rank::of(tasks)).collect();
    ranked.sort_by_key(|rank| (!rank.running, rank.slot));
    // How many slots of the service the node has before this one, in the order of keeping.
    let mut on_node: BTreeMap<NodeId, u32> = BTreeMap::new();
    for rank in &mut ranked {
        match rank.node {
            Some(node) => {
                let count = on_node.entry(node).or_default();
                rank.nth = *count;
                *count += 1;
            }
            None => rank.nth = u32::MAX,
        }
    }
    ranked.sort_by_key(|rank| (!rank.running, rank.nth, rank.slot));
    ranked
        .into_iter()
        .skip(keep)
        .map(|rank| rank.tasks)
        .collect()
}

struct Rank<'a> {
    tasks: &'a [Arc<Task>],
    slot: u64,
    running: bool,
    node: Option<NodeId>,
    nth: u32,
}

impl<'a> Rank<'a> {
    fn of(tasks: &'a [Arc<Task>]) -> Self {
        let live = || tasks.iter().filter(|task| is_live(task));
        Self {
            tasks,
            slot: tasks.first().map_or(0, |task| task.slot),
            running: live().any(|task| task.status.state == TaskState::Running),
            node: live().find_map(|task| task.node),
            nth: 0,
        }
    }
}
