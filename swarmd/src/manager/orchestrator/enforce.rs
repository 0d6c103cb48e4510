//! The constraint enforcer: a task whose node no longer meets what it asks for is rejected, and so
//! replaced elsewhere.
//!
//! A change of the *node* evicts; a change of the *service* moves its tasks by an update, some at a
//! time. So a task is evicted when its node meets neither the constraints it was placed by nor
//! those of the current spec.

use std::collections::BTreeMap;
use std::sync::Arc;

use swarm_proto::id::NodeId;
use swarm_proto::pb;
use swarm_proto::placement::Placement;
use swarm_proto::resources::{Generic, Resources};
use swarm_proto::task_state::TaskState;

use super::Work;
use crate::manager::plan::{Ctx, Dirty, chunks};
use crate::manager::scheduler::facts::Facts;
use crate::manager::store::{Change, Node, Service, State, Task, Usage};

/// Status message of an evicted task (SwarmKit's words).
const MESSAGE: &str = "task rejected by constraint enforcer";
/// Status error of an evicted task (SwarmKit's words).
const ERROR: &str = "assigned node no longer meets constraints";

/// Rejects tasks on nodes that no longer suit them.
pub(crate) fn plan(cx: &mut Ctx, dirty: &Dirty, work: &mut Work) {
    let nodes: Vec<Arc<Node>> = if dirty.all {
        cx.state.nodes.values().cloned().collect()
    } else {
        let nodes = dirty.nodes.iter();
        nodes
            .filter_map(|id| cx.state.nodes.get(id))
            .cloned()
            .collect()
    };
    let mut evicted = Vec::new();
    for node in nodes.iter().filter(|node| enforces(node)) {
        evicted.extend(misplaced(&cx.state, node));
        evicted.extend(crowded_out(&cx.state, node));
    }
    for service in work.whole_services(&cx.state) {
        if !service.removed {
            evicted.extend(service_misplaced(&cx.state, &service));
        }
    }
    evicted.sort_unstable_by_key(|task| task.id);
    evicted.dedup_by_key(|task| task.id);
    if evicted.is_empty() {
        return;
    }
    for task in &evicted {
        work.touch(task.service, task.slot);
    }
    for tasks in chunks(evicted.iter().map(|task| task.id).collect()) {
        cx.change(Change::EndTasks {
            tasks,
            state: TaskState::Rejected,
            message: MESSAGE.into(),
            err: ERROR.into(),
        });
    }
}

/// A drained node loses its tasks anyway, a paused one keeps them.
fn enforces(node: &Node) -> bool {
    node.availability == pb::node_spec::Availability::Active && node.description.is_some()
}

/// On its node, and should stay.
fn stays(task: &Task) -> bool {
    task.is_active() && task.node.is_some()
}

fn misplaced(state: &State, node: &Node) -> Vec<Arc<Task>> {
    let facts = Facts::of(node);
    let tasks = state.node_tasks(node.id).filter(|task| stays(task));
    tasks
        .filter(|task| !suits(state, &facts, task))
        .cloned()
        .collect()
}

/// The same, for the tasks of a service whose spec has changed. Those of the current spec count too:
/// it may be one that the service has gone back to, and the one between them suited their nodes.
fn service_misplaced(state: &State, service: &Service) -> Vec<Arc<Task>> {
    if service.spec.task.placement.constraints.is_empty() {
        return Vec::new();
    }
    let mut verdicts: BTreeMap<(NodeId, u64), bool> = BTreeMap::new();
    let tasks = state.service_tasks(service.id).filter(|task| stays(task));
    let misplaced = tasks.filter(|task| {
        let Some(node) = task.node.and_then(|id| state.nodes.get(&id)) else {
            return false;
        };
        let key = (node.id, task.spec_version);
        let verdict = verdicts
            .entry(key)
            .or_insert_with(|| enforces(node) && !suits(state, &Facts::of(node), task));
        *verdict
    });
    misplaced.cloned().collect()
}

fn suits(state: &State, facts: &Facts<'_>, task: &Task) -> bool {
    let holds = |placement: &Placement| {
        placement.constraints.is_empty() || placement.constraints_hold(&facts.view())
    };
    let Some(service) = state.service(task.service) else {
        return true;
    };
    let own = service.spec_of(task.spec_version);
    own.is_none_or(|spec| holds(&spec.task.placement)) || holds(&service.spec.task.placement)
}

/// Tasks for which a node that shrank has no room any more: the youngest go.
fn crowded_out(state: &State, node: &Node) -> Vec<Arc<Task>> {
    let over = state
        .index
        .usage
        .get(&node.id)
        .is_some_and(|usage| exceeds(usage, &node.resources));
    if !over {
        return Vec::new();
    }
    let mut tasks: Vec<_> = state.node_tasks(node.id).filter(|t| stays(t)).collect();
    tasks.sort_by_key(|task| (task.meta.created_at, task.id));
    let nothing = BTreeMap::new();
    let mut free = node.resources.clone();
    let mut evicted = Vec::new();
    for task in tasks {
        let Some(spec) = state.task_spec(task) else {
            continue;
        };
        let generic = task.generic.as_deref().unwrap_or(&nothing);
        let mut amounts = spec.task.reservations.clone();
        amounts.generic.clear();
        let has = |(kind, held): (&String, &Generic)| has_generic(&free, kind, held);
        if free.fits(&amounts) && generic.iter().all(has) {
            free.deduct(&amounts, generic);
        } else {
            evicted.push(Arc::clone(task));
        }
    }
    evicted
}

fn exceeds(usage: &Usage, total: &Resources) -> bool {
    (usage.nano_cpus > 0 && usage.nano_cpus > total.nano_cpus)
        || (usage.memory_bytes > 0 && usage.memory_bytes > total.memory_bytes)
        || !usage
            .generic
            .each()
            .all(|(kind, held)| has_generic(total, kind, &held))
}

/// Whether what is held is there, in the form in which it is held.
fn has_generic(total: &Resources, kind: &str, held: &Generic) -> bool {
    match (total.generic.get(kind), held) {
        (Some(Generic::Count(have)), Generic::Count(held)) => held <= have,
        (Some(Generic::Names(have)), Generic::Names(held)) => held.is_subset(have),
        (Some(Generic::Count(_)), Generic::Names(_))
        | (Some(Generic::Names(_)), Generic::Count(_))
        | (None, _) => held.is_empty(),
    }
}
