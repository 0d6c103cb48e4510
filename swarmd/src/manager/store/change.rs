//! Every way in which the state can change: a closed set.
//!
//! A change carries everything it needs (ids, times, random choices are already in it) and what it
//! expects; [`mod@super::apply`] refuses a stale one. Changes that touch many tasks are one change: ten
//! thousand tasks of one service enter the log once.

use std::collections::BTreeMap;
use std::sync::Arc;

use swarm_proto::id::{NodeId, ServiceId, TaskId};
use swarm_proto::pb;
use swarm_proto::resources::Generic;
use swarm_proto::service::ServiceSpec;
use swarm_proto::task_state::TaskState;
use swarm_proto::time::Timestamp;

use super::state::{Cluster, Container, Node, Retirement, Text, Update};

/// One log entry: changes applied in order, each taken or rejected by itself.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// When it was proposed. Apply knows no other "now"; it counts as the time of the entry before
    /// it where it is earlier.
    pub now: Timestamp,
    /// What changes.
    pub changes: Vec<Change>,
}

/// One change.
#[derive(Debug, Clone, PartialEq)]
pub enum Change {
    /// Bootstrap: makes the cluster object. Rejected when there is one.
    CreateCluster(Arc<Cluster>),
    /// Control API, CA: replaces the cluster object. `meta.version` is the version it was read at.
    UpdateCluster(Arc<Cluster>),

    /// CA: a new node. Rejected when the id exists.
    CreateNode(Arc<Node>),
    /// Control API: the operator's part of a node.
    UpdateNode {
        /// Which node.
        id: NodeId,
        /// The version it was read at.
        expected: u64,
        /// Name and labels.
        annotations: pb::Annotations,
        /// Role it should have.
        desired_role: pb::NodeRole,
        /// Membership.
        membership: pb::node_spec::Membership,
        /// Availability.
        availability: pb::node_spec::Availability,
        /// Where it is reached as a manager; empty leaves it to the manager.
        addresses: Vec<String>,
        /// Managers that are given up as voters so that this one can go: both, or neither.
        give_up: Vec<(NodeId, Retirement)>,
    },
    /// Leader: whether a manager is given up as a voter.
    SetRetirement {
        /// Which node.
        node: NodeId,
        /// None takes it back.
        retirement: Option<Retirement>,
    },
    /// CA: the certificate's part of a node.
    SetNodeCertificate {
        /// Which node.
        id: NodeId,
        /// Its role from now on.
        role: pb::NodeRole,
        /// Its certificate.
        certificate: Box<pb::Certificate>,
    },
    /// Pass: these nodes are to renew their certificates. Nodes that are gone are left out.
    AskRenewal {
        /// Which nodes.
        nodes: Vec<NodeId>,
    },
    /// Dispatcher: whether a node is there.
    SetNodeStatus {
        /// Which node.
        id: NodeId,
        /// The state.
        state: pb::node_status::State,
        /// Why.
        message: String,
        /// Its address; none leaves it as it is.
        addr: Option<String>,
        /// What it says of itself; none leaves it as it is.
        description: Option<Arc<pb::NodeDescription>>,
    },
    /// Control API: removes a node; its live tasks become ORPHANED and its certificate is refused until `refused_until`.
    RemoveNode {
        /// Which node.
        id: NodeId,
        /// Also when it is READY.
        force: bool,
        /// Expiry of its certificate and some grace.
        refused_until: Timestamp,
    },

    /// Control API: a new service. Rejected when its name is taken.
    CreateService {
        /// Its id.
        id: ServiceId,
        /// Its spec.
        spec: Arc<ServiceSpec>,
    },
    /// Control API: a new spec for a service. Rejected when it was changed since, or renamed.
    UpdateService {
        /// Which service.
        id: ServiceId,
        /// The version it was read at.
        expected: u64,
        /// The new spec.
        spec: Arc<ServiceSpec>,
    },
    /// Control API, pass: goes back to the previous spec.
    RollbackService {
        /// Which service.
        id: ServiceId,
        /// The version it was read at.
        expected: u64,
        /// Why, for the update's message.
        message: String,
        /// What it goes back from becomes the previous spec, so that the way is open again. Not for
        /// an update that failed.
        swap: bool,
    },
    /// Control API: removes a service; the pass then removes its tasks.
    RemoveService {
        /// Which service.
        id: ServiceId,
    },
    /// Pass: how the update of a service goes. Rejected when the spec changed since.
    SetUpdate {
        /// Which service.
        id: ServiceId,
        /// The spec version this is about.
        spec_version: u64,
        /// The progress.
        update: Update,
    },

    /// Pass: new tasks of one service and spec version.
    CreateTasks {
        /// Whose.
        service: ServiceId,
        /// Of which spec version.
        spec_version: u64,
        /// Which.
        tasks: Vec<NewTask>,
    },
    /// Pass: gives tasks a node. A placement whose task or node is gone is dropped.
    PlaceTasks {
        /// Which task goes where.
        placements: Vec<Placement>,
        /// The status message.
        message: Text,
    },
    /// Pass: says why tasks are not placed (or, with an empty text, that nothing is in the way).
    ExplainTasks {
        /// Which tasks.
        tasks: Vec<TaskId>,
        /// Why.
        err: Text,
    },
    /// Pass: where tasks should get to from now on. Never goes back.
    SetDesired {
        /// Which tasks.
        tasks: Vec<TaskId>,
        /// Where to.
        desired: TaskState,
    },
    /// Pass: ends tasks without their agent: what never got a node (SHUTDOWN), what its node may no longer run (REJECTED).
    EndTasks {
        /// Which tasks.
        tasks: Vec<TaskId>,
        /// SHUTDOWN, or REJECTED: these count as evicted.
        state: TaskState,
        /// The status message.
        message: Text,
        /// The status error; may be empty.
        err: Text,
    },
    /// Dispatcher: the tasks of a node that has been gone for long.
    OrphanTasks {
        /// Which tasks.
        tasks: Vec<TaskId>,
        /// The status message.
        message: Text,
    },
    /// Pass (history), control API: deletes tasks.
    DeleteTasks {
        /// Which tasks.
        tasks: Vec<TaskId>,
    },
    /// Agent: where its tasks are. Steps back are dropped.
    ReportStatus {
        /// The node that reports; only its own tasks are changed.
        node: NodeId,
        /// The reports.
        reports: Vec<Report>,
    },
}

/// A task to make.
#[derive(Debug, Clone, PartialEq)]
pub struct NewTask {
    /// Its id.
    pub id: TaskId,
    /// Its slot; zero with a node for global services.
    pub slot: u64,
    /// RUNNING, or READY while it is held.
    pub desired: TaskState,
    /// The node, where it is decided already: the task is made ASSIGNED. A node that takes no tasks
    /// any more leaves it unplaced.
    pub node: Option<NodeId>,
    /// The generic resources it is given on that node.
    pub generic: BTreeMap<String, Generic>,
    /// Held until then.
    pub start_at: Timestamp,
    /// Held until that task has stopped.
    pub after: Option<TaskId>,
}

/// A task gets a node.
#[derive(Debug, Clone, PartialEq)]
pub struct Placement {
    /// Which task.
    pub task: TaskId,
    /// Its node.
    pub node: NodeId,
    /// The generic resources it is given.
    pub generic: BTreeMap<String, Generic>,
}

/// An agent says where a task is.
#[derive(Debug, Clone, PartialEq)]
pub struct Report {
    /// Which task.
    pub task: TaskId,
    /// Where it is.
    pub state: TaskState,
    /// When it got there, by the node's clock.
    pub at: Timestamp,
    /// In words.
    pub message: Text,
    /// What went wrong.
    pub err: Text,
    /// Its container.
    pub container: Option<Box<Container>>,
}
