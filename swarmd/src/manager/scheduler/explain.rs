//! Answers to "why is this task where it is?".

use std::collections::BTreeMap;
use std::sync::Arc;

use swarm_proto::amount::{self, count};
use swarm_proto::own::{ExplainTaskResponse, NodeVerdict};
use swarm_proto::placement::Placement;
use swarm_proto::resources::{Generic, Reservations};
use swarm_proto::task_state::TaskState;
use swarm_proto::time::Timestamp;

use super::filter::{self, Filter};
use super::table::{Group, Row, Table};
use crate::manager::orchestrator::slot;
use crate::manager::plan::{Loss, has_stopped, lost_node};
use crate::manager::store::{Node, Service, State, Task};

/// Says why a task is where it is, or why it is nowhere.
pub fn explain(state: &State, task: &Task, now: Timestamp) -> ExplainTaskResponse {
    let mut answer = ExplainTaskResponse::default();
    let Some(service) = state.services.get(&task.service) else {
        answer.summary = format!("the service of task {} is gone", task.id);
        return answer;
    };
    let spec = service.spec_of(task.spec_version).unwrap_or(&service.spec);
    let group = Group {
        service: service.id,
        version: task.spec_version,
        spec,
    };
    let name = format!("{}.{}", service.spec.name, task.slot);
    answer.summary = match stage(task) {
        Stage::Waiting => {
            let table = Table::of(state, now, 0);
            answer.nodes = table.rows.iter().map(|row| verdict(row, &group)).collect();
            waiting(task, &name, &answer.nodes)
        }
        Stage::Placed => {
            answer.reasons.extend(placement(state, task, &group));
            placed(state, task, &name)
        }
        Stage::Stopping => format!("{name} is being stopped{}", on_node(state, task)),
        Stage::Ended => format!("{name} has ended{}: {}", on_node(state, task), ending(task)),
    };
    answer.reasons.extend(holds(state, task, now));
    answer.reasons.extend(told_to_stop(state, service, task));
    answer.reasons.extend(predecessor(state, task));
    if !task.status.err.is_empty() && !answer.summary.contains(&*task.status.err) {
        answer
            .reasons
            .push(format!("its last error: {}", task.status.err));
    }
    answer
}

#[derive(Debug, Clone, Copy)]
enum Stage {
    Waiting,
    Placed,
    Stopping,
    Ended,
}

fn stage(task: &Task) -> Stage {
    if task.status.state.is_terminal() {
        Stage::Ended
    } else if !slot::is_live(task) {
        Stage::Stopping
    } else if task.node.is_none() {
        Stage::Waiting
    } else {
        Stage::Placed
    }
}

fn waiting(task: &Task, name: &str, nodes: &[NodeVerdict]) -> String {
    let fitting = nodes.iter().filter(|node| node.fits).count();
    match (fitting, task.status.err.is_empty()) {
        (0, _) if nodes.is_empty() => format!("{name} has no node: the cluster has none"),
        (0, true) => format!("{name} has no node: none of {} can take it", nodes.len()),
        (0, false) => format!("{name} has no node: {}", task.status.err),
        (_, _) => format!("{name} has no node yet: it is about to get one of {fitting} that fit"),
    }
}

fn placed(state: &State, task: &Task, name: &str) -> String {
    let node = on_node(state, task);
    match task.status.state {
        TaskState::Running => format!("{name} runs{node}"),
        TaskState::Ready if task.desired == TaskState::Ready => {
            format!("{name} is ready{node} and held back")
        }
        TaskState::Assigned => {
            format!("{name} is assigned{node}, whose agent has not taken it yet")
        }
        TaskState::Preparing => {
            format!("{name} is being prepared{node}: its image is pulled, its container made")
        }
        TaskState::New
        | TaskState::Pending
        | TaskState::Accepted
        | TaskState::Ready
        | TaskState::Starting
        | TaskState::Complete
        | TaskState::Shutdown
        | TaskState::Failed
        | TaskState::Rejected
        | TaskState::Remove
        | TaskState::Orphaned => {
            let state = task.status.state.as_str().to_lowercase();
            format!("{name} is {state}{node}: {}", task.status.message)
        }
    }
}

fn ending(task: &Task) -> String {
    let state = task.status.state.as_str().to_lowercase();
    if !task.status.err.is_empty() {
        // It tells the exit code too; the message is of the step before.
        return format!("{state}: {}", task.status.err);
    }
    let exit = task.status.container.as_ref().map(|c| c.exit_code);
    match exit.filter(|code| *code != 0) {
        Some(code) => format!("{state} with exit code {code}"),
        None if task.status.message.is_empty() => state,
        None => format!("{state}, {}", task.status.message),
    }
}

fn on_node(state: &State, task: &Task) -> String {
    let Some(id) = task.node else {
        return String::new();
    };
    match state.nodes.get(&id) {
        Some(node) => format!(" on {}", hostname(node)),
        None => format!(" on node {id}, which is gone"),
    }
}

fn hostname(node: &Node) -> String {
    let name = node.description.as_ref().map(|d| d.hostname.clone());
    name.filter(|name| !name.is_empty())
        .unwrap_or_else(|| node.id.to_string())
}

/// Why the task is on its node.
fn placement(state: &State, task: &Task, group: &Group<'_>) -> Vec<String> {
    let mut reasons = Vec::new();
    let Some(node) = task.node.and_then(|id| state.nodes.get(&id)) else {
        return reasons;
    };
    let Placement {
        constraints,
        spread,
        ..
    } = &group.spec.task.placement;
    if !constraints.is_empty() {
        let listed: Vec<String> = constraints.iter().map(ToString::to_string).collect();
        reasons.push(format!(
            "the node meets its constraints: {}",
            listed.join(", ")
        ));
    }
    if !group.spec.task.reservations.is_empty() {
        let wanted = amounts(&group.spec.task.reservations);
        reasons.push(format!("the node had {wanted} to reserve for it"));
    }
    for preference in spread {
        reasons.push(format!("the service is spread over {}", preference.over));
    }
    let usage = state.index.usage.get(&node.id);
    let (of_service, all) = usage.map_or((0, 0), |usage| {
        (
            usage.by_service.get(&group.service).copied().unwrap_or(0),
            usage.active,
        )
    });
    let nodes = state
        .nodes
        .values()
        .filter(|node| node.takes_tasks())
        .fold(0, |nodes, _| nodes + 1);
    reasons.push(format!(
        "the node has {of_service} of the {} of the service that should run, and {} in all; {} {} \
         tasks",
        count(active(state, group), "task"),
        count(all.into(), "task"),
        count(nodes, "node"),
        if nodes == 1 { "takes" } else { "take" },
    ));
    if lost_node(state, task) == Some(Loss::Drained) {
        reasons.push("the node is drained: the task is about to move".to_owned());
    }
    reasons
}

fn active(state: &State, group: &Group<'_>) -> u64 {
    state
        .service_tasks(group.service)
        .filter(|task| task.is_active())
        .fold(0, |tasks, _| tasks + 1)
}

/// What keeps the task from starting.
fn holds(state: &State, task: &Task, now: Timestamp) -> Vec<String> {
    let mut reasons = Vec::new();
    if !slot::is_live(task) || task.desired != TaskState::Ready {
        return reasons;
    }
    if task.start_at() > now {
        let left = amount::wait(task.start_at().since(now));
        let what = if task.status.state.is_terminal() {
            "it is replaced"
        } else {
            "it starts"
        };
        reasons.push(format!("{what} in {left}: the restart policy's delay"));
    }
    let before = task.after().and_then(|id| state.tasks.get(&id));
    if let Some(before) = before.filter(|before| !has_stopped(state, before)) {
        reasons.push(format!(
            "it starts when task {} has stopped, which is {}",
            before.id,
            before.status.state.as_str().to_lowercase()
        ));
    }
    reasons
}

/// Why it should not run any more.
fn told_to_stop(state: &State, service: &Service, task: &Task) -> Option<String> {
    if slot::is_live(task) {
        return None;
    }
    let newer = state
        .slot_tasks(service.id, task.slot)
        .find(|t| slot::is_live(t));
    Some(match (service.removed, task.desired, newer) {
        (true, ..) => "its service was removed".to_owned(),
        (false, TaskState::Remove, _) => "its service was scaled down".to_owned(),
        (false, _, Some(newer)) if newer.spec_version != task.spec_version => {
            format!("an update replaced it by task {}", newer.id)
        }
        (false, _, Some(newer)) => format!("task {} replaced it", newer.id),
        (false, _, None) => "the restart policy does not replace it".to_owned(),
    })
}

/// The task before it in its slot, and how that one ended.
fn predecessor(state: &State, task: &Task) -> Option<String> {
    let slot = slot::tasks(state, task.service, task.slot);
    let before: Option<&Arc<Task>> = slot.iter().take_while(|t| t.id != task.id).last();
    let before = before?;
    let end = if before.status.state.is_terminal() {
        ending(before)
    } else if lost_node(state, before).is_some() {
        "lost its node".to_owned()
    } else {
        "is being stopped".to_owned()
    };
    Some(format!(
        "it replaced task {}{}: {end}",
        before.id,
        on_node(state, before)
    ))
}

fn verdict(row: &Row, group: &Group<'_>) -> NodeVerdict {
    let refusing = Filter::ALL
        .into_iter()
        .filter(|filter| filter.room(row, group) == 0);
    let reasons: Vec<String> = refusing.map(|filter| detail(filter, row, group)).collect();
    NodeVerdict {
        node_id: row.node.id.to_string(),
        hostname: hostname(&row.node),
        fits: reasons.is_empty(),
        reasons,
    }
}

/// What exactly is in the way on one node.
fn detail(filter: Filter, row: &Row, group: &Group<'_>) -> String {
    let task = &group.spec.task;
    match filter {
        Filter::Ready => {
            let state = row.node.status.state.as_str_name().to_lowercase();
            let availability = row.node.availability.as_str_name().to_lowercase();
            format!("not available for new tasks: {state}, {availability}")
        }
        Filter::Resources => {
            let (free, wanted) = (row.free(), &task.reservations);
            let asked = |wanted: i64, free: i64| if wanted > 0 { free.max(0) } else { 0 };
            let generic = wanted.generic.keys().map(|kind| {
                let free = free.generic.get(kind).map_or(0, Generic::len);
                (kind.clone(), free)
            });
            let free = Reservations {
                nano_cpus: asked(wanted.nano_cpus, free.nano_cpus),
                memory_bytes: asked(wanted.memory_bytes, free.memory_bytes),
                generic: generic.collect(),
            };
            let (wanted, left) = (amounts(&task.reservations), amounts(&free));
            format!("insufficient resources: {wanted} wanted, {left} left")
        }
        Filter::Plugins => {
            let missing = filter::missing_plugin(row, group);
            let missing = missing.map(|p| format!("{} {}", p.kind.to_lowercase(), p.name));
            format!("missing plugin: {}", missing.unwrap_or_default())
        }
        Filter::Constraints => {
            let failing = task
                .placement
                .constraints
                .iter()
                .filter(|c| !c.holds(&row.facts()));
            let failing: Vec<String> = failing.map(ToString::to_string).collect();
            format!(
                "scheduling constraints not satisfied: {}",
                failing.join(", ")
            )
        }
        Filter::Platform => {
            let (os, arch) = (&row.node.platform.os, &row.node.platform.arch);
            format!("unsupported platform: the node is {os}/{arch}")
        }
        Filter::HostPorts => {
            let taken = task
                .host_ports
                .iter()
                .filter(|p| row.usage.ports.contains_key(p));
            let taken: Vec<String> = taken.map(ToString::to_string).collect();
            format!("host-mode port already in use: {}", taken.join(", "))
        }
        Filter::MaxReplicas => format!(
            "max replicas per node limit exceed: it has {} of at most {}",
            row.tasks_of(group.service),
            task.placement.max_replicas
        ),
    }
}

/// `0.5 CPUs, 64 MiB memory, 2 gpu`
fn amounts(amounts: &Reservations) -> String {
    let mut parts = BTreeMap::new();
    if amounts.nano_cpus > 0 {
        let unit = match amounts.nano_cpus {
            1_000_000_000 => "CPU",
            _ => "CPUs",
        };
        let cpus = amount::cpus(amounts.nano_cpus);
        parts.insert(0, format!("{cpus} {unit}"));
    }
    if amounts.memory_bytes > 0 {
        let memory = amount::bytes(amounts.memory_bytes);
        parts.insert(1, format!("{memory} memory"));
    }
    for (index, (kind, count)) in amounts.generic.iter().enumerate() {
        parts.insert(2 + index, format!("{count} {kind}"));
    }
    if parts.is_empty() {
        return "nothing".to_owned();
    }
    let parts: Vec<String> = parts.into_values().collect();
    parts.join(", ")
}
