//! What must hold, said without the code under test.

use std::collections::{BTreeMap, BTreeSet};
use std::mem::discriminant;

use swarm_proto::id::{NodeId, ServiceId};
use swarm_proto::pb::update_status::UpdateState;
use swarm_proto::resources::Generic;
use swarm_proto::service::{Mode, ServiceSpec};
use swarm_proto::task_state::{Owner, TaskState};
use swarmd::manager::store::{
    Applied, Change, Entry, Event, Node, Service, State, Task, Usage, apply,
};

/// Promises an entry breaks. `state` is the state after it.
pub fn of_entry(state: &State, entry: &Entry, applied: &Applied) -> Vec<String> {
    let owners: Vec<Owner> = entry.changes.iter().filter_map(owner).collect();
    let mut broken = Vec::new();
    for event in &applied.events {
        if let Event::Task {
            old,
            new: Some(new),
        } = event
        {
            match old {
                Some(old) => of_move(&mut broken, &owners, old, new),
                None => of_new(&mut broken, new),
            }
        }
    }
    for (node, usage) in &state.index.usage {
        for (port, count) in &usage.ports {
            if *count > 1 {
                broken.push(format!("node {node}: port {port:?} is taken {count} times"));
            }
        }
    }
    broken
}

/// Who may write a task's status by this change.
fn owner(change: &Change) -> Option<Owner> {
    match change {
        Change::CreateTasks { .. }
        | Change::PlaceTasks { .. }
        | Change::ExplainTasks { .. }
        | Change::EndTasks { .. } => Some(Owner::Pass),
        Change::ReportStatus { .. } => Some(Owner::Agent),
        Change::RemoveNode { .. } | Change::OrphanTasks { .. } => Some(Owner::Node),
        Change::CreateCluster(_)
        | Change::UpdateCluster(_)
        | Change::CreateNode(_)
        | Change::UpdateNode { .. }
        | Change::SetNodeCertificate { .. }
        | Change::AskRenewal { .. }
        | Change::SetNodeStatus { .. }
        | Change::CreateService { .. }
        | Change::UpdateService { .. }
        | Change::RollbackService { .. }
        | Change::RemoveService { .. }
        | Change::SetUpdate { .. }
        | Change::SetDesired { .. }
        | Change::DeleteTasks { .. }
        | Change::SetRetirement { .. } => None,
    }
}

fn of_new(broken: &mut Vec<String>, new: &Task) {
    let fits = match new.node {
        Some(_) => new.status.state == TaskState::Assigned,
        None => new.status.state <= TaskState::Pending,
    };
    if !fits {
        let state = new.status.state;
        broken.push(format!(
            "task {} begins as {state} on {:?}",
            new.id, new.node
        ));
    }
}

fn of_move(broken: &mut Vec<String>, owners: &[Owner], old: &Task, new: &Task) {
    let id = new.id;
    let (from, to) = (old.status.state, new.status.state);
    if from != to && !owners.iter().any(|owner| from.may_become(to, *owner)) {
        broken.push(format!("task {id}: {from} -> {to} by {owners:?}"));
    }
    if new.desired < old.desired {
        broken.push(format!(
            "task {id}: desired {} -> {}",
            old.desired, new.desired
        ));
    }
    if old.node.is_some() && new.node != old.node {
        broken.push(format!(
            "task {id} moved from {:?} to {:?}",
            old.node, new.node
        ));
    }
    let on_node = to >= TaskState::Assigned && to <= TaskState::Running;
    if on_node && new.node.is_none() {
        broken.push(format!("task {id} is {to} without a node"));
    }
    if (old.service, old.slot, old.spec_version) != (new.service, new.slot, new.spec_version) {
        broken.push(format!("task {id} became another task"));
    }
}

/// Promises the decisions of a plan break, on the state that it was made from.
pub fn of_plan(
    state: &State,
    entries: &[Vec<Change>],
    now: swarm_proto::time::Timestamp,
) -> Vec<String> {
    let mut after = state.clone();
    for changes in entries {
        let version = after.version + 1;
        let changes = changes.clone();
        apply(&mut after, version, &Entry { now, changes });
    }
    let placed = after.tasks.values().filter(|task| {
        let before = state.tasks.get(&task.id).and_then(|t| t.node);
        task.node.is_some() && before.is_none()
    });
    let mut broken = Vec::new();
    for task in placed {
        if let (Some(node), Some(spec)) = (
            task.node.and_then(|id| after.nodes.get(&id)),
            after.task_spec(task),
        ) {
            let mut why = Vec::new();
            of_placement(&mut why, &after, (task, spec), node);
            let name = &spec.name;
            broken.extend(why.iter().map(|why| {
                format!(
                    "{name}.{} ({}) was placed on {}: {why}",
                    task.slot, task.id, node.id
                )
            }));
        }
    }
    broken
}

fn of_placement(
    broken: &mut Vec<String>,
    state: &State,
    (task, spec): (&Task, &ServiceSpec),
    node: &Node,
) {
    let usage = state.index.usage.get(&node.id);
    let usage = &usage.map(|u| u.as_ref().clone()).unwrap_or_default();
    if !node.takes_tasks() {
        broken.push("it takes no tasks".to_owned());
    }
    let reserved = &spec.task.reservations;
    if reserved.nano_cpus > 0 && usage.nano_cpus > node.resources.nano_cpus {
        broken.push(format!(
            "{} of {} CPUs",
            usage.nano_cpus, node.resources.nano_cpus
        ));
    }
    if reserved.memory_bytes > 0 && usage.memory_bytes > node.resources.memory_bytes {
        broken.push(format!(
            "{} of {} bytes",
            usage.memory_bytes, node.resources.memory_bytes
        ));
    }
    if let Some(given) = task.generic.as_deref() {
        for (kind, given) in given {
            of_generic(broken, kind, given, (node, usage));
        }
    }
    // Tasks of another spec have another limit.
    let max = spec.task.placement.max_replicas;
    let alike = state.node_tasks(node.id).filter(|other| {
        other.is_active()
            && (other.service, other.spec_version) == (task.service, task.spec_version)
    });
    let here = alike.count() as u64;
    if max > 0 && here > max {
        broken.push(format!("{here} of at most {max} replicas"));
    }
    let placement = spec.wire.task.as_ref().and_then(|t| t.placement.as_ref());
    for constraint in placement
        .map(|p| p.constraints.as_slice())
        .unwrap_or_default()
    {
        if !holds(constraint, node) {
            broken.push(format!("{constraint} does not hold"));
        }
    }
}

fn of_generic(
    broken: &mut Vec<String>,
    kind: &str,
    given: &Generic,
    (node, usage): (&Node, &Usage),
) {
    let have = node.resources.generic.get(kind);
    let same_form = |amount: &Generic| discriminant(amount) == discriminant(given);
    let mut taken = usage.generic.each();
    let taken = taken.find(|(of, amount)| of.as_str() == kind && same_form(amount));
    let taken = taken.map(|(_, amount)| amount);
    let fits = match (have, &taken, given) {
        (Some(Generic::Count(have)), Some(Generic::Count(taken)), Generic::Count(_)) => {
            taken <= have
        }
        (Some(Generic::Names(have)), Some(Generic::Names(taken)), Generic::Names(given)) => {
            taken.is_subset(have) && given.is_subset(taken)
        }
        _ => false,
    };
    if !fits {
        broken.push(format!(
            "{kind}: given {given:?}, taken {taken:?} of {have:?}"
        ));
    }
}

/// Whether a constraint on a label of the node holds.
pub fn holds(constraint: &str, node: &Node) -> bool {
    let text = constraint.strip_prefix("node.labels.");
    let text = text.unwrap_or_else(|| panic!("unexpected constraint {constraint}"));
    let parts = text.split_once("==").map(|parts| (parts, true));
    let parts = parts.or_else(|| text.split_once("!=").map(|parts| (parts, false)));
    let ((label, value), equal) =
        parts.unwrap_or_else(|| panic!("unexpected constraint {constraint}"));
    let labels = &node.annotations.labels;
    (labels.get(label).map_or("", String::as_str) == value) == equal
}

/// What is missing until every service has exactly what it asks for; empty once it has.
pub fn not_converged(state: &State) -> Vec<String> {
    let mut missing = Vec::new();
    for task in state.tasks.values() {
        if !state.services.contains_key(&task.service) {
            missing.push(format!("task {} has no service", task.id));
        }
    }
    for service in state.services.values() {
        of_service(&mut missing, state, service);
    }
    missing
}

fn of_service(missing: &mut Vec<String>, state: &State, service: &Service) {
    let name = &service.spec.name;
    if service.removed {
        missing.push(format!("{name} is removed and has tasks left"));
        return;
    }
    if let Some(update) = &service.update {
        match update.state {
            UpdateState::Unknown | UpdateState::Completed | UpdateState::RollbackCompleted => {}
            UpdateState::Updating
            | UpdateState::Paused
            | UpdateState::RollbackStarted
            | UpdateState::RollbackPaused => {
                missing.push(format!("{name}: {:?} {}", update.state, update.message));
            }
        }
    }
    let Mode::Replicated { replicas } = service.spec.mode else {
        missing.push(format!("{name}: unexpected mode"));
        return;
    };
    let mut slots: BTreeMap<u64, u64> = BTreeMap::new();
    for task in state.service_tasks(service.id) {
        let (is, wanted) = (task.status.state, task.desired);
        match (is, wanted) {
            (TaskState::Running, TaskState::Running) => {
                *slots.entry(task.slot).or_default() += 1;
                if task.spec_version != service.spec_version {
                    missing.push(format!("{name}.{} runs an old spec", task.slot));
                }
            }
            _ if is.is_terminal() && wanted == TaskState::Shutdown => {}
            _ => missing.push(format!(
                "{name}.{} ({}) on {:?}: {is}, should be {wanted}: {}",
                task.slot, task.id, task.node, task.status.err
            )),
        }
    }
    let twice = slots.iter().find(|(_, count)| **count != 1);
    if let Some((slot, count)) = twice {
        missing.push(format!("{name}.{slot} runs {count} times"));
    }
    if slots.len() as u64 != replicas {
        missing.push(format!("{name}: {} of {replicas} slots run", slots.len()));
    }
}

/// Services and the nodes on which their running tasks are, to compare with what really runs.
pub fn placed(state: &State) -> BTreeSet<(NodeId, swarm_proto::id::TaskId)> {
    let running = state.tasks.values();
    let running = running.filter(|t| t.status.state == TaskState::Running);
    running.filter_map(|t| Some((t.node?, t.id))).collect()
}

/// How many nodes meet the constraints of a spec.
pub fn suitable(state: &State, constraints: &[String]) -> u64 {
    let nodes = state.nodes.values();
    nodes
        .filter(|node| constraints.iter().all(|c| holds(c, node)))
        .count() as u64
}

/// The names of services by id.
pub fn service_ids(state: &State) -> Vec<ServiceId> {
    let services = state.services.values().filter(|s| !s.removed);
    services.map(|s| s.id).collect()
}
