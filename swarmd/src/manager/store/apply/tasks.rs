//! Changes of tasks.

use std::sync::Arc;
use std::time::Duration;

use swarm_proto::id::{NodeId, ServiceId, TaskId};
use swarm_proto::task_state::{Owner, TaskState};
use swarm_proto::time::Timestamp;

use super::{ASSIGNED, At, FAILURE_WINDOW, FAILURES_MAX, Rejected, node, out_of_sequence};
use crate::manager::store::change::{NewTask, Placement, Report};
use crate::manager::store::index::Txn;
use crate::manager::store::state::{Failure, Hold, State, Status, Task, Text};

pub(super) fn create_tasks(
    txn: &mut Txn<'_>,
    at: At,
    id: ServiceId,
    spec_version: u64,
    tasks: &[NewTask],
) -> Result<(), Rejected> {
    let Some(service) = txn.state.service(id) else {
        return Err(Rejected::NotFound {
            kind: "service",
            name: id.to_string(),
        });
    };
    if service.spec_of(spec_version).is_none() {
        return Err(out_of_sequence("service", id));
    }
    let (pending, assigned) = (Text::default(), Text::from(ASSIGNED));
    let first = txn.state.service_tasks(id).next().is_none();
    for new in tasks {
        if txn.state.tasks.contains_key(&new.id) {
            continue;
        }
        // A node that was drained or lost meanwhile takes nothing; the pass sees the task unplaced.
        let node = new.node.filter(|id| takes_tasks(txn.state, *id));
        let (state, message) = match node {
            Some(_) => (TaskState::Assigned, &assigned),
            None => (TaskState::New, &pending),
        };
        let given = node.is_some() && !new.generic.is_empty();
        let mut meta = at.created();
        if !first {
            meta.created_at = youngest(txn.state, id, new.slot, at.now);
        }
        txn.add_task(Task {
            id: new.id,
            meta,
            service: id,
            slot: new.slot,
            spec_version,
            node,
            desired: new.desired,
            hold: Hold::new(new.start_at, new.after),
            generic: given.then(|| Box::new(new.generic.clone())),
            status: Status {
                state,
                at: at.now,
                applied_at: at.now,
                message: Arc::clone(message),
                err: Arc::clone(&pending),
                ..Status::default()
            },
        });
    }
    Ok(())
}

/// A time of creation after that of every task in the slot: their order tells which one replaced
/// which, also where the clocks of two leaders differ.
fn youngest(state: &State, service: ServiceId, slot: u64, now: Timestamp) -> Timestamp {
    let others = state.slot_tasks(service, slot).map(|t| t.meta.created_at);
    let last = others.max().unwrap_or(Timestamp::ZERO);
    now.max(last.after(Duration::from_nanos(1)))
}

fn takes_tasks(state: &State, id: NodeId) -> bool {
    state.nodes.get(&id).is_some_and(|node| node.takes_tasks())
}

pub(super) fn place_task(txn: &mut Txn<'_>, at: At, placement: &Placement, message: &Text) {
    // A node that was drained or lost meanwhile takes nothing; the pass sees the task unplaced.
    if !takes_tasks(txn.state, placement.node) {
        return;
    }
    txn.change_task(placement.task, |task| {
        let free = task.node.is_none_or(|n| n == placement.node);
        let from = task.status.state;
        if !free || !from.may_become(TaskState::Assigned, Owner::Pass) {
            return None;
        }
        let given = !placement.generic.is_empty();
        let mut task = task.clone();
        task.node = Some(placement.node);
        task.generic = given.then(|| Box::new(placement.generic.clone()));
        task.status.state = TaskState::Assigned;
        task.status.at = at.now;
        task.status.applied_at = at.now;
        task.status.message = Arc::clone(message);
        task.status.err = Text::default();
        task.meta = at.updated(task.meta);
        Some(task)
    });
}

pub(super) fn explain_task(txn: &mut Txn<'_>, at: At, id: TaskId, err: &Text) {
    txn.change_task(id, |task| {
        let told = task.status.err == *err && task.status.state == TaskState::Pending;
        if task.status.state > TaskState::Pending || told {
            return None;
        }
        let mut task = task.clone();
        if task.status.state == TaskState::New {
            task.status.state = TaskState::Pending;
            task.status.at = at.now;
            task.status.message = "pending task scheduling".into();
        }
        task.status.err = Arc::clone(err);
        task.status.applied_at = at.now;
        task.meta = at.updated(task.meta);
        Some(task)
    });
}

pub(super) fn set_desired(txn: &mut Txn<'_>, at: At, id: TaskId, desired: TaskState) {
    txn.change_task(id, |task| {
        if task.desired >= desired {
            return None;
        }
        let mut task = task.clone();
        task.desired = desired;
        task.hold = None;
        task.meta = at.updated(task.meta);
        Some(task)
    });
}

pub(super) fn end_task(
    txn: &mut Txn<'_>,
    at: At,
    id: TaskId,
    (owner, state): (Owner, TaskState),
    (message, err): (&Text, &Text),
) {
    txn.change_task(id, |task| {
        if !task.status.state.may_become(state, owner) {
            return None;
        }
        let mut task = task.clone();
        task.status.state = state;
        task.status.at = at.now;
        task.status.applied_at = at.now;
        task.status.message = Arc::clone(message);
        task.status.err = Arc::clone(err);
        task.status.evicted = state == TaskState::Rejected;
        task.meta = at.updated(task.meta);
        Some(task)
    });
}

pub(super) fn report_status(txn: &mut Txn<'_>, at: At, node: NodeId, report: &Report) {
    let mut failure = None;
    txn.change_task(report.task, |task| {
        if task.node != Some(node) {
            return None;
        }
        let from = task.status.state;
        let again = from == report.state && !from.is_terminal() && from >= TaskState::Assigned;
        if !again && !from.may_become(report.state, Owner::Agent) {
            return None;
        }
        let failed = matches!(report.state, TaskState::Failed | TaskState::Rejected);
        if failed && task.desired <= TaskState::Complete {
            failure = Some(Failure {
                service: task.service,
                spec_version: task.spec_version,
                at: at.now,
            });
        }
        let mut task = task.clone();
        if !again {
            task.status.applied_at = at.now;
        }
        if report.state == TaskState::Running && !again {
            task.status.running_at = at.now;
        }
        task.status.state = report.state;
        task.status.at = report.at;
        task.status.message = Arc::clone(&report.message);
        task.status.err = Arc::clone(&report.err);
        if let Some(container) = &report.container {
            task.status.container = Some(container.clone());
        }
        task.meta = at.updated(task.meta);
        Some(task)
    });
    if let Some(failure) = failure {
        record_failure(txn, node, failure);
    }
}

/// Remembers a failure on its node: part of the object, so a new leader knows it too.
fn record_failure(txn: &mut Txn<'_>, id: NodeId, failure: Failure) {
    let Ok(mut node) = node(txn.state, id) else {
        return;
    };
    node.failures
        .retain(|f| failure.at.since(f.at) < FAILURE_WINDOW);
    if node.failures.len() >= FAILURES_MAX {
        node.failures.remove(0);
    }
    node.failures.push(failure);
    // The version stays: an operator's update of the node does not conflict with a failing task.
    txn.put_node(node);
}
