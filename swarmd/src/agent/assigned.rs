//! What an assignment message means for the tasks this node has: pure.
//!
//! Invariants: what is wanted of a task only ever grows; a task goes away only because a manager
//! says so, by taking it out of a complete set or by name.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use agent_runtime::step::Want;
use swarm_proto::id::TaskId;
use swarm_proto::pb;

/// What a manager says this node is to run.
#[derive(Debug, Clone, PartialEq)]
pub enum Message {
    /// These tasks and no others.
    Complete(Vec<Task>),
    /// These as well, those no longer.
    Incremental {
        /// New, or to get elsewhere.
        update: Vec<Task>,
        /// No longer this node's.
        remove: Vec<TaskId>,
    },
}

/// A task with its id parsed.
pub type Task = (TaskId, Arc<pb::Task>);

/// What has to be done about a message.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Plan {
    /// Tasks that are new here.
    pub start: Vec<Task>,
    /// Tasks that should get elsewhere.
    pub change: Vec<(Task, Want)>,
    /// Tasks to be removed.
    pub remove: Vec<TaskId>,
}

/// Compares what there is with what a manager says.
#[must_use]
pub fn plan(known: &BTreeMap<TaskId, Want>, message: Message) -> Plan {
    let mut plan = Plan::default();
    let (update, remove) = match message {
        Message::Complete(tasks) => {
            let assigned: BTreeSet<TaskId> = tasks.iter().map(|(id, _)| *id).collect();
            let gone = known.keys().copied();
            let gone = gone.filter(|id| !assigned.contains(id)).collect();
            (tasks, gone)
        }
        Message::Incremental { update, remove } => (update, remove),
    };
    for (id, task) in update {
        let want = Want::of(task.desired_state());
        match known.get(&id) {
            None => plan.start.push((id, task)),
            Some(known) if want > *known => plan.change.push(((id, task), want)),
            Some(_) => {}
        }
    }
    for id in remove {
        // A second word about what is going already is no news.
        if known.get(&id).is_some_and(|want| *want < Want::Gone) {
            plan.remove.push(id);
        }
    }
    plan
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use pb::TaskState;

    fn task(id: u128, desired: TaskState) -> Task {
        let id = TaskId::from_raw(id);
        let task = pb::Task {
            id: id.to_string(),
            desired_state: desired.into(),
            ..Default::default()
        };
        (id, Arc::new(task))
    }

    fn apply(known: &mut BTreeMap<TaskId, Want>, message: Message) -> Plan {
        let plan = plan(known, message);
        for (id, task) in &plan.start {
            known.insert(*id, Want::of(task.desired_state()));
        }
        for ((id, _), want) in &plan.change {
            known.insert(*id, *want);
        }
        for id in &plan.remove {
            known.insert(*id, Want::Gone);
        }
        plan
    }

    #[test]
    fn a_complete_set_takes_away_what_is_not_in_it() {
        let mut known = BTreeMap::new();
        let (a, b) = (task(1, TaskState::Running), task(2, TaskState::Running));
        let first = apply(&mut known, Message::Complete(vec![a.clone(), b.clone()]));
        assert_eq!(first.start, [a.clone(), b.clone()]);
        let same = apply(&mut known, Message::Complete(vec![a.clone(), b.clone()]));
        assert_eq!(same, Plan::default(), "a reconnect changes nothing");
        let less = apply(&mut known, Message::Complete(vec![b]));
        assert_eq!(less.remove, [a.0]);
    }

    #[test]
    fn what_is_wanted_only_grows() {
        let mut known = BTreeMap::new();
        let update = |desired| Message::Incremental {
            update: vec![task(1, desired)],
            remove: vec![],
        };
        apply(&mut known, update(TaskState::Ready));
        assert_eq!(
            apply(&mut known, update(TaskState::Running)).change[0].1,
            Want::Run
        );
        assert_eq!(apply(&mut known, update(TaskState::Ready)), Plan::default());
        assert_eq!(
            apply(&mut known, update(TaskState::Remove)).change[0].1,
            Want::Stop
        );
        let remove = Message::Incremental {
            update: vec![],
            remove: vec![TaskId::from_raw(1), TaskId::from_raw(9)],
        };
        assert_eq!(
            apply(&mut known, remove.clone()).remove,
            [TaskId::from_raw(1)]
        );
        assert_eq!(apply(&mut known, remove), Plan::default());
    }

    proptest! {
        #[test]
        fn a_complete_set_leads_to_exactly_that_set(
            steps in prop::collection::vec((prop::collection::btree_set(0u128..8, 0..8), any::<bool>()), 1..12),
        ) {
            let mut known = BTreeMap::new();
            for (ids, complete) in steps {
                let tasks: Vec<Task> = ids.iter().map(|id| task(*id, TaskState::Running)).collect();
                if complete {
                    apply(&mut known, Message::Complete(tasks));
                    // What went away is done with at once here; a node takes its time.
                    known.retain(|_, want| *want < Want::Gone);
                    let here: BTreeSet<u128> = known.keys().map(|id| id.raw()).collect();
                    prop_assert_eq!(here, ids);
                } else {
                    let remove = tasks.iter().map(|t| t.0).collect();
                    apply(&mut known, Message::Incremental { update: vec![], remove });
                    known.retain(|_, want| *want < Want::Gone);
                }
            }
        }
    }
}
