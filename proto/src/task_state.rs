//! A task's states, their order, and who may move a task from one to the next.
//!
//! The table is SwarmKit's TLA+ model as a constant: `apply` refuses what it does not allow, and
//! the simulator checks every change against it.

use crate::pb;

/// Where a task is, or should get to. Only ever grows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
#[repr(u16)]
pub enum TaskState {
    /// Created by the orchestrator.
    #[default]
    New = 0,
    /// Has its networks and ports; waits for a node.
    Pending = 64,
    /// Has a node.
    Assigned = 192,
    /// The agent has it.
    Accepted = 256,
    /// The executor pulls and creates.
    Preparing = 320,
    /// Can start; held here while desired is READY.
    Ready = 384,
    /// Being started.
    Starting = 448,
    /// Runs (and is healthy, where health is checked).
    Running = 512,
    /// Ended by itself with exit code 0.
    Complete = 576,
    /// Stopped on request.
    Shutdown = 640,
    /// Ended by itself with an error.
    Failed = 704,
    /// Could not be started at all.
    Rejected = 768,
    /// Desired only: delete once stopped.
    Remove = 800,
    /// Its node is gone.
    Orphaned = 832,
}

/// The part of the system that makes a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owner {
    /// The control pass: orchestrators, allocator, scheduler.
    Pass,
    /// The node's agent, through the dispatcher.
    Agent,
    /// The dispatcher itself, or removal of a node.
    Node,
}

impl TaskState {
    /// All states, in order.
    pub const ALL: [Self; 14] = [
        Self::New,
        Self::Pending,
        Self::Assigned,
        Self::Accepted,
        Self::Preparing,
        Self::Ready,
        Self::Starting,
        Self::Running,
        Self::Complete,
        Self::Shutdown,
        Self::Failed,
        Self::Rejected,
        Self::Remove,
        Self::Orphaned,
    ];

    /// Ended: nothing runs and nothing will.
    pub fn is_terminal(self) -> bool {
        self >= Self::Complete
    }

    /// Whether `owner` may move a task from this state to `to`.
    ///
    /// | owner | from | to |
    /// |---|---|---|
    /// | pass | NEW, PENDING | PENDING, ASSIGNED; SHUTDOWN for what never got a node |
    /// | pass | ASSIGNED..RUNNING | REJECTED (its node no longer meets the constraints) |
    /// | agent | ASSIGNED..RUNNING | any later one up to REJECTED |
    /// | node | ASSIGNED..RUNNING | ORPHANED |
    pub fn may_become(self, to: Self, owner: Owner) -> bool {
        let unplaced = self <= Self::Pending;
        let on_node = self >= Self::Assigned && self <= Self::Running;
        match owner {
            Owner::Pass if unplaced => {
                matches!(to, Self::Pending | Self::Assigned | Self::Shutdown) && to > self
            }
            Owner::Pass => on_node && to == Self::Rejected,
            Owner::Agent => on_node && to > self && to <= Self::Rejected,
            Owner::Node => on_node && to == Self::Orphaned,
        }
    }

    /// The name users see: `RUNNING`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::New => "NEW",
            Self::Pending => "PENDING",
            Self::Assigned => "ASSIGNED",
            Self::Accepted => "ACCEPTED",
            Self::Preparing => "PREPARING",
            Self::Ready => "READY",
            Self::Starting => "STARTING",
            Self::Running => "RUNNING",
            Self::Complete => "COMPLETE",
            Self::Shutdown => "SHUTDOWN",
            Self::Failed => "FAILED",
            Self::Rejected => "REJECTED",
            Self::Remove => "REMOVE",
            Self::Orphaned => "ORPHANED",
        }
    }

    /// The wire value.
    pub fn to_wire(self) -> i32 {
        i32::from(self as u16)
    }

    /// From the wire; unknown values are none.
    pub fn from_wire(wire: i32) -> Option<Self> {
        Self::ALL.into_iter().find(|s| s.to_wire() == wire)
    }
}

impl From<TaskState> for pb::TaskState {
    fn from(state: TaskState) -> Self {
        // Every one of our values is a wire value: the test below walks them.
        pb::TaskState::try_from(state.to_wire()).unwrap_or(pb::TaskState::New)
    }
}

impl std::fmt::Display for TaskState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_state_is_a_wire_state_of_the_same_name() {
        for state in TaskState::ALL {
            let wire = pb::TaskState::try_from(state.to_wire()).unwrap();
            assert_eq!(wire.as_str_name(), state.as_str());
            assert_eq!(TaskState::from_wire(state.to_wire()), Some(state));
        }
    }

    #[test]
    fn each_move_has_one_owner_and_goes_forward() {
        for from in TaskState::ALL {
            for to in TaskState::ALL {
                let owners = [Owner::Pass, Owner::Agent, Owner::Node]
                    .into_iter()
                    .filter(|o| from.may_become(to, *o))
                    .count();
                assert!(owners == 0 || to > from, "{from} -> {to}");
                assert!(owners == 0 || !from.is_terminal(), "{from} -> {to}");
                // REJECTED is the one state both the agent and the enforcer may set.
                assert!(owners <= 1 || to == TaskState::Rejected, "{from} -> {to}");
            }
        }
    }
}
