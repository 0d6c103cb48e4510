//! What tasks take of their nodes, as those say with each heartbeat: in the leader's memory alone.
//! Nothing is decided by it.

use swarm_proto::id::{NodeId, TaskId};
use swarm_proto::pb;
use swarm_proto::time::Timestamp;

use crate::manager::store::State;

/// What the tasks of one node take.
#[derive(Debug, Default)]
pub(super) struct Usage {
    /// Sorted by id.
    tasks: Vec<(TaskId, pb::TaskUsage)>,
}

impl Usage {
    /// What a node says, as far as it speaks of its own tasks.
    pub(super) fn of(
        state: &State,
        node: NodeId,
        said: Vec<pb::TaskUsage>,
        now: Timestamp,
    ) -> Self {
        let own = |usage: pb::TaskUsage| {
            let id: TaskId = usage.task_id.parse().ok()?;
            let task = state.tasks.get(&id)?;
            let usage = pb::TaskUsage {
                heard_at: now.to_wire(),
                ..usage
            };
            (task.node == Some(node)).then_some((id, usage))
        };
        let mut tasks: Vec<_> = said.into_iter().filter_map(own).collect();
        tasks.sort_unstable_by_key(|(id, _)| *id);
        tasks.dedup_by_key(|(id, _)| *id);
        Self { tasks }
    }

    pub(super) fn of_task(&self, task: TaskId) -> Option<pb::TaskUsage> {
        let at = self.tasks.binary_search_by_key(&task, |(id, _)| *id).ok()?;
        self.tasks.get(at).map(|(_, usage)| usage.clone())
    }
}
