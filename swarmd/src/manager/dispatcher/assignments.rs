//! What a node is to run, as the difference to what it was told: pure.
//!
//! A node is assigned every task that names it and has been ASSIGNED; of what happens to such a task
//! afterwards only a change of its desired state is news, since its status comes from the node
//! itself and its spec never changes. A deleted task is taken away.
//!
//! Invariants, checked by the property test below:
//! - applying the changes to what was sent gives what is wanted;
//! - looking at the tasks that [`concerned`] names is as good as looking at all.

use std::collections::{BTreeMap, BTreeSet};

use swarm_proto::id::{NodeId, TaskId};
use swarm_proto::pb;
use swarm_proto::task_state::TaskState;

use crate::manager::convert::TaskRenderer;
use crate::manager::store::{State, Task};

/// Bytes of changes in one message, about. gRPC's default limit is 4 MiB, and one more task with
/// the largest spec has to fit.
pub const PART_BYTES: usize = 1 << 20;
/// Bytes of a removal on the wire: an id and its framing.
const REMOVAL_BYTES: usize = 40;

/// What a node was told: its tasks, each with the desired state it was sent with.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sent {
    tasks: BTreeMap<TaskId, TaskState>,
}

/// What has to be said of one task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Delta {
    /// It is new to the node, or should get elsewhere than the node was told.
    Update(TaskId),
    /// It is no longer the node's.
    Remove(TaskId),
}

/// The desired state to send where the task is one of the node's.
fn wanted(task: &Task, node: NodeId) -> Option<TaskState> {
    (task.node == Some(node) && task.status.state >= TaskState::Assigned).then_some(task.desired)
}

/// The nodes that have to be told of a change of a task; at most the old one and the new one.
#[must_use]
pub fn concerned(old: Option<&Task>, new: Option<&Task>) -> [Option<NodeId>; 2] {
    let key = |task: &Task| {
        task.node
            .and_then(|node| wanted(task, node).map(|desired| (node, desired)))
    };
    let (old, new) = (old.and_then(key), new.and_then(key));
    if old == new {
        return [None, None];
    }
    let node = |key: Option<(NodeId, TaskState)>| key.map(|(node, _)| node);
    let (old, new) = (node(old), node(new));
    [old.filter(|_| old != new), new]
}

impl Sent {
    /// What has to be said of one task; recorded as said.
    pub fn take(&mut self, state: &State, node: NodeId, id: TaskId) -> Option<Delta> {
        match state.tasks.get(&id).and_then(|task| wanted(task, node)) {
            Some(desired) => {
                let before = self.tasks.insert(id, desired);
                (before != Some(desired)).then_some(Delta::Update(id))
            }
            None => self.tasks.remove(&id).map(|_| Delta::Remove(id)),
        }
    }

    /// The tasks that may have to be spoken of when nothing is known of what changed.
    #[must_use]
    pub fn candidates(&self, state: &State, node: NodeId) -> BTreeSet<TaskId> {
        let held = self.tasks.keys().copied();
        held.chain(state.node_tasks(node).map(|t| t.id)).collect()
    }

    /// How many tasks the node was told of.
    #[must_use]
    pub fn len(&self) -> usize {
        self.tasks.len()
    }

    /// Whether the node was told of none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.tasks.is_empty()
    }
}

/// All that has to be said, recorded as said.
pub fn diff(sent: &mut Sent, state: &State, node: NodeId) -> Vec<Delta> {
    let candidates = sent.candidates(state, node);
    candidates
        .into_iter()
        .filter_map(|id| sent.take(state, node, id))
        .collect()
}

/// Puts as much of `todo` as fits `limit` bytes on the wire, in the order of ids. Empty when
/// nothing of `todo` was news.
pub fn next_part(
    sent: &mut Sent,
    todo: &mut BTreeSet<TaskId>,
    (state, node): (&State, NodeId),
    limit: usize,
) -> Vec<pb::AssignmentChange> {
    let mut changes = Vec::new();
    let mut renderer = TaskRenderer::new(state);
    let mut bytes = 0;
    while bytes < limit
        && let Some(id) = todo.pop_first()
    {
        match sent.take(state, node, id) {
            Some(Delta::Update(id)) => {
                let Some(task) = state.tasks.get(&id) else {
                    continue;
                };
                let (task, size) = renderer.render_sized(task);
                bytes += size;
                changes.push(change(
                    task,
                    pb::assignment_change::AssignmentAction::Update,
                ));
            }
            Some(Delta::Remove(id)) => {
                let task = pb::Task {
                    id: id.to_string(),
                    ..Default::default()
                };
                bytes += REMOVAL_BYTES;
                changes.push(change(
                    task,
                    pb::assignment_change::AssignmentAction::Remove,
                ));
            }
            None => {}
        }
    }
    changes
}

fn change(task: pb::Task, action: pb::assignment_change::AssignmentAction) -> pb::AssignmentChange {
    pb::AssignmentChange {
        assignment: Some(pb::Assignment {
            item: Some(pb::assignment::Item::Task(task)),
        }),
        action: action.into(),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;
    use swarm_proto::id::ServiceId;

    use super::*;
    use crate::manager::store::{Meta, Status};

    const NODE: NodeId = NodeId::from_raw(1);

    fn task(id: u128, node: Option<u128>, state: TaskState, desired: TaskState) -> Task {
        Task {
            id: TaskId::from_raw(id),
            meta: Meta::default(),
            service: ServiceId::from_raw(1),
            slot: 1,
            spec_version: 1,
            node: node.map(NodeId::from_raw),
            desired,
            hold: None,
            generic: None,
            status: Status {
                state,
                ..Status::default()
            },
        }
    }

    fn of_node(state: &mut State, node: NodeId) -> &mut imbl::OrdSet<TaskId> {
        state.index.node_tasks.entry(node).or_default()
    }

    fn put(state: &mut State, task: Task) -> Option<Arc<Task>> {
        let old = state.tasks.insert(task.id, Arc::new(task.clone()));
        if let Some(node) = old.as_ref().and_then(|t| t.node) {
            of_node(state, node).remove(&task.id);
        }
        if let Some(node) = task.node {
            of_node(state, node).insert(task.id);
        }
        old
    }

    fn take(state: &mut State, id: TaskId) -> Option<Arc<Task>> {
        let old = state.tasks.remove(&id)?;
        if let Some(node) = old.node {
            of_node(state, node).remove(&id);
        }
        Some(old)
    }

    #[test]
    fn only_news_is_sent() {
        let mut state = State::default();
        let mut sent = Sent::default();
        let id = TaskId::from_raw(5);
        let mut check = |state: &State, expected: &[Delta], what: &str| {
            assert_eq!(diff(&mut sent, state, NODE), expected, "{what}");
            assert_eq!(diff(&mut sent, state, NODE), [], "{what}, again");
        };
        let running = TaskState::Running;
        put(&mut state, task(5, Some(1), TaskState::Pending, running));
        check(&state, &[], "a task that is not assigned yet");
        put(&mut state, task(5, Some(1), TaskState::Assigned, running));
        check(&state, &[Delta::Update(id)], "assigned");
        put(&mut state, task(5, Some(1), TaskState::Running, running));
        check(&state, &[], "a change of status");
        put(&mut state, task(5, Some(1), running, TaskState::Shutdown));
        check(
            &state,
            &[Delta::Update(id)],
            "a change of the desired state",
        );
        put(&mut state, task(5, Some(2), running, TaskState::Shutdown));
        check(&state, &[Delta::Remove(id)], "another node's");
        put(&mut state, task(5, Some(1), running, TaskState::Shutdown));
        check(&state, &[Delta::Update(id)], "back");
        take(&mut state, id);
        check(&state, &[Delta::Remove(id)], "deleted");
    }

    #[test]
    fn a_large_set_comes_in_parts() {
        let mut state = State::default();
        for id in 0..1000 {
            put(
                &mut state,
                task(id, Some(1), TaskState::Assigned, TaskState::Running),
            );
        }
        let mut sent = Sent::default();
        let mut todo = sent.candidates(&state, NODE);
        let mut parts = Vec::new();
        while !todo.is_empty() {
            let part = next_part(&mut sent, &mut todo, (&state, NODE), 64 << 10);
            let message = pb::AssignmentsMessage {
                changes: part,
                ..Default::default()
            };
            assert!(prost::Message::encoded_len(&message) < 70 << 10);
            parts.push(message);
        }
        assert!(parts.len() > 3);
        assert_eq!(parts.iter().map(|p| p.changes.len()).sum::<usize>(), 1000);
        assert_eq!(sent.len(), 1000);
    }

    /// One change of the state: the task, and what it becomes; none deletes it.
    type Step = (u128, Option<(Option<u128>, TaskState, TaskState)>);

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let state = || prop::sample::select(TaskState::ALL.to_vec());
        let becomes = prop::option::of((prop::option::of(1u128..3), state(), state()));
        prop::collection::vec((0u128..6, becomes), 0..60)
    }

    proptest! {
        #[test]
        fn the_changes_lead_to_what_is_wanted(steps in steps(), flush in prop::collection::vec(any::<bool>(), 60)) {
            let mut state = State::default();
            let mut sent = Sent::default();
            let mut todo = BTreeSet::new();
            let mut agent: BTreeMap<String, i32> = BTreeMap::new();
            for ((id, becomes), flush) in steps.into_iter().zip(flush) {
                let id = TaskId::from_raw(id);
                let old = match becomes {
                    Some((node, at, desired)) => put(&mut state, task(id.raw(), node, at, desired)),
                    None => take(&mut state, id),
                };
                let new = state.tasks.get(&id).cloned();
                if concerned(old.as_deref(), new.as_deref()).contains(&Some(NODE)) {
                    todo.insert(id);
                }
                if !flush { continue; }
                while !todo.is_empty() {
                    let part = next_part(&mut sent, &mut todo, (&state, NODE), 500);
                    for change in part {
                        let Some(pb::assignment::Item::Task(task)) = change.assignment.unwrap().item else { panic!() };
                        if change.action == 0 { agent.insert(task.id, task.desired_state); } else { agent.remove(&task.id); }
                    }
                }
                let want: BTreeMap<String, i32> = state.node_tasks(NODE)
                    .filter_map(|t| wanted(t, NODE).map(|d| (t.id.to_string(), d.to_wire()))).collect();
                prop_assert_eq!(&agent, &want);
                prop_assert_eq!(diff(&mut sent.clone(), &state, NODE), []);
            }
        }
    }
}
