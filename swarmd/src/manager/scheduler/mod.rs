//! The scheduler: which task goes to which node.
//!
//! Tasks of one service and spec version are alike, so they are one group: the filters look once at
//! every node, and say how many tasks of the group it has room for; then the tasks are dealt out,
//! each to the node that is least by: many recent failures of this very spec, tasks of this
//! service, tasks in all, and a draw by the seed. With spread preferences a tree of label values
//! stands above the nodes, and its branches are kept even, level by level.
//!
//! - `facts`: what placement looks at. `table`: nodes and what is taken on them.
//! - `filter`: who can take a task. `tree`: who does. [`explain`]: why, or why not.
//!
//! What a node has left is counted by the store's own rules ([`Usage::take`]), so nothing is
//! promised twice.
//!
//! [`Usage::take`]: super::store::Usage

pub mod explain;
pub(crate) mod facts;
mod filter;
mod table;
mod tree;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;

use swarm_proto::id::{ServiceId, TaskId};
use swarm_proto::resources::Generic;
use swarm_proto::service::ServiceSpec;

use super::plan::{Ctx, Dirty, chunks};
use super::store::apply::ASSIGNED;
use super::store::{Change, Placement, State, Text};
use table::{Group, Table};

/// Places what has no node, or says why it can't.
pub(crate) fn plan(cx: &mut Ctx, dirty: &Dirty) {
    let mut groups = waiting(&cx.state, dirty);
    for key in cx.created.keys() {
        groups.entry(*key).or_default();
    }
    if groups.is_empty() {
        return;
    }
    let mut table = Table::of(&cx.state, cx.now, cx.seed);
    let mut placements = Vec::new();
    let mut reasons: BTreeMap<Text, Vec<TaskId>> = BTreeMap::new();
    for ((service, version), tasks) in groups {
        let Some(spec) = spec_of(&cx.state, service, version) else {
            continue;
        };
        let group = Group {
            service,
            version,
            spec: &spec,
        };
        let mut created = cx.created.remove(&(service, version)).unwrap_or_default();
        let mut seats = table.seat(&group, tasks.len() + created.len()).into_iter();
        let mut rest = Vec::new();
        for task in tasks {
            match seats.next() {
                Some((node, generic)) => placements.push(Placement {
                    task,
                    node,
                    generic,
                }),
                None => rest.push(task),
            }
        }
        for task in &mut created {
            match seats.next() {
                Some((node, generic)) => (task.node, task.generic) = (Some(node), generic),
                None => rest.push(task.id),
            }
        }
        if !created.is_empty() {
            cx.created.insert((service, version), created);
        }
        if !rest.is_empty() {
            let reason = Text::from(filter::summary(&table, &group));
            rest.retain(|id| !says(&cx.state, *id, &reason));
            reasons.entry(reason).or_default().extend(rest);
        }
    }
    let message = Text::from(ASSIGNED);
    for placements in chunks(placements) {
        let message = Arc::clone(&message);
        cx.change_last(Change::PlaceTasks {
            placements,
            message,
        });
    }
    for (err, tasks) in reasons {
        for tasks in chunks(tasks) {
            cx.change_last(Change::ExplainTasks {
                tasks,
                err: Arc::clone(&err),
            });
        }
    }
}

/// A seat for one task.
type Seat = (swarm_proto::id::NodeId, BTreeMap<String, Generic>);

/// Tasks without a node that may have got a chance, by service and spec version.
fn waiting(state: &State, dirty: &Dirty) -> BTreeMap<(ServiceId, u64), Vec<TaskId>> {
    let mut groups: BTreeMap<(ServiceId, u64), Vec<TaskId>> = BTreeMap::new();
    let all = dirty.all || dirty.room;
    let services = state.services.values();
    for service in services.filter(|s| all || dirty.unplaced.contains(&s.id)) {
        let range = (service.id, TaskId::MIN)..=(service.id, TaskId::MAX);
        let ids = state.index.unplaced.range(range).map(|(_, id)| *id);
        if service.old_specs.is_empty() {
            // All of one version: no need to look at each.
            let ids: Vec<TaskId> = ids.collect();
            if !ids.is_empty() {
                groups.insert((service.id, service.spec_version), ids);
            }
            continue;
        }
        for task in ids.filter_map(|id| state.tasks.get(&id)) {
            let group = groups.entry((service.id, task.spec_version));
            group.or_default().push(task.id);
        }
    }
    groups
}

fn spec_of(state: &State, service: ServiceId, version: u64) -> Option<Arc<ServiceSpec>> {
    state.services.get(&service)?.spec_of(version).cloned()
}

/// Whether the task says so already.
fn says(state: &State, task: TaskId, reason: &Text) -> bool {
    let task = state.tasks.get(&task);
    task.is_some_and(|task| task.status.err == *reason && task.status.state != Default::default())
}
