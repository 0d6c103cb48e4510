//! The cluster's state: objects in persistent maps, and the indexes that planners and the API read.
//!
//! A [`State`] is a value. Cloning one is a few reference counts, so every reader holds an immutable
//! view for as long as it likes, and a planner tries its changes on a scratch copy. Only
//! [`mod@super::apply`] changes objects, through `put_*` and `take_*` in [`super::index`], which keep
//! the indexes true.
//!
//! Invariants:
//! - a stored task carries no spec: it names a service and a spec version, and the service keeps
//!   every version that a task still refers to;
//! - a removed service stays, marked `removed`, until its last task is gone;
//! - an index holds nothing that can't be derived from the objects.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use imbl::{OrdMap, OrdSet};
use swarm_proto::id::{ClusterId, NodeId, ServiceId, TaskId};
use swarm_proto::pb;
use swarm_proto::placement::Platform;
use swarm_proto::resources::{Generic, Resources};
use swarm_proto::service::{HostPort, ServiceSpec};
use swarm_proto::task_state::TaskState;
use swarm_proto::time::{Timestamp, duration_from_wire};

/// Life of a node certificate when the cluster sets none: SwarmKit's 2160 h.
const DEFAULT_CERT_EXPIRY: Duration = Duration::from_secs(2160 * 3600);

/// Everything the managers agree on.
#[derive(Debug, Clone, Default)]
pub struct State {
    /// Index of the last log entry applied.
    pub version: u64,
    /// The cluster's time: the latest that an entry was proposed at. It never goes back, whatever
    /// the managers' clocks do.
    pub now: Timestamp,
    /// The cluster object; none before bootstrap.
    pub cluster: Option<Arc<Cluster>>,
    /// Nodes by id.
    pub nodes: OrdMap<NodeId, Arc<Node>>,
    /// Services by id, removed ones with tasks left included.
    pub services: OrdMap<ServiceId, Arc<Service>>,
    /// Tasks by id.
    pub tasks: OrdMap<TaskId, Arc<Task>>,
    /// Derived look-ups.
    pub index: Index,
}

/// Look-ups derived from the objects.
#[derive(Debug, Clone, Default)]
pub struct Index {
    /// Service by lower-case name; removed services are not here.
    pub service_names: OrdMap<String, ServiceId>,
    /// Tasks of each service that has some, by slot.
    pub service_tasks: OrdMap<ServiceId, OrdSet<(u64, TaskId)>>,
    /// Tasks of each node that has some.
    pub node_tasks: OrdMap<NodeId, OrdSet<TaskId>>,
    /// Live tasks without a node: what the scheduler has to place.
    pub unplaced: OrdSet<(ServiceId, TaskId)>,
    /// Tasks held until a time, or until another has stopped ([`Task::hold`]):
    /// these by when they stop waiting, see [`STOP_WAIT`].
    pub held: OrdSet<(Timestamp, TaskId)>,
    /// How many tasks refer to each version of a service's spec.
    pub spec_refs: OrdMap<(ServiceId, u64), u32>,
    /// What the tasks on a node take from it.
    pub usage: OrdMap<NodeId, Arc<Usage>>,
}

/// When an object was made and last changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Meta {
    /// Index of the log entry that changed it last; clients send it back with an update.
    pub version: u64,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it was changed last.
    pub updated_at: Timestamp,
}

/// The cluster object: one, made at bootstrap.
#[derive(Debug, Clone, PartialEq)]
pub struct Cluster {
    /// Its id: O of every certificate.
    pub id: ClusterId,
    /// Version and times.
    pub meta: Meta,
    /// What the operator set.
    pub spec: pb::ClusterSpec,
    /// CA certificate, key and join tokens.
    pub root_ca: pb::RootCa,
    /// Certificates of removed nodes, until when each stays refused.
    pub blacklist: BTreeMap<NodeId, Timestamp>,
    /// Keys that unlock managers; empty without autolock.
    pub unlock_keys: Vec<pb::EncryptionKey>,
    /// What is kept of managers besides their nodes; only where there is something.
    pub managers: BTreeMap<NodeId, ManagerNote>,
}

/// What is kept of a manager besides its node.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ManagerNote {
    /// Operator: where it is reached; empty leaves it to the manager.
    pub addresses: Vec<String>,
    /// Leader: it is given up as a voter, or was demoted.
    pub retired: Option<Retirement>,
}

/// A manager that is given up as a voter, or was demoted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Retirement {
    /// Its number in consensus.
    pub raft_id: u64,
    /// When that was decided.
    pub at: Timestamp,
    /// Why.
    pub reason: String,
    /// It is no member any more; until then that is only decided.
    pub done: bool,
    /// It was not dead, but demoted: its number is kept in case it is promoted again before it became a worker.
    pub demoted: bool,
}

/// A node, from the moment a certificate was asked for it.
#[derive(Debug, Clone, PartialEq)]
pub struct Node {
    /// Its id: CN of its certificate.
    pub id: NodeId,
    /// Version and times.
    pub meta: Meta,
    /// Operator: name and labels.
    pub annotations: pb::Annotations,
    /// Operator: the role it should have.
    pub desired_role: pb::NodeRole,
    /// Operator: whether it may be in the cluster.
    pub membership: pb::node_spec::Membership,
    /// Operator: whether it takes tasks.
    pub availability: pb::node_spec::Availability,
    /// CA: the role its certificate has.
    pub role: pb::NodeRole,
    /// CA: its certificate and the state of issuing it.
    pub certificate: pb::Certificate,
    /// Dispatcher: what the node said of itself; none before its first session.
    pub description: Option<Arc<pb::NodeDescription>>,
    /// `description`'s resources, parsed.
    pub resources: Resources,
    /// `description`'s platform, in normal form.
    pub platform: Platform,
    /// Dispatcher: whether it is there.
    pub status: NodeStatus,
    /// Recent failures of tasks on this node, oldest first; the scheduler prefers other nodes.
    pub failures: Vec<Failure>,
}

/// Whether a node is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeStatus {
    /// READY, DOWN, DISCONNECTED, or UNKNOWN after a change of leader.
    pub state: pb::node_status::State,
    /// Why.
    pub message: String,
    /// Address the manager sees.
    pub addr: String,
    /// Since when.
    pub since: Timestamp,
}

/// A task of this service and spec version failed here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Failure {
    /// Whose task.
    pub service: ServiceId,
    /// Of which spec version.
    pub spec_version: u64,
    /// When.
    pub at: Timestamp,
}

/// A service.
#[derive(Debug, Clone, PartialEq)]
pub struct Service {
    /// Its id.
    pub id: ServiceId,
    /// Version and times.
    pub meta: Meta,
    /// What it should be.
    pub spec: Arc<ServiceSpec>,
    /// Version of the last change of its task template or ports; tasks of another version are out
    /// of date. A change of replicas alone does not move it.
    pub spec_version: u64,
    /// What it was before the last update; a rollback goes back to it.
    pub previous: Option<SpecVersion>,
    /// Older specs that tasks still refer to, by version.
    pub old_specs: BTreeMap<u64, Arc<ServiceSpec>>,
    /// The update under way, or the last one.
    pub update: Option<Update>,
    /// Removed by its user; stays until its tasks are gone.
    pub removed: bool,
}

/// A spec and its version.
#[derive(Debug, Clone, PartialEq)]
pub struct SpecVersion {
    /// The version.
    pub version: u64,
    /// The spec.
    pub spec: Arc<ServiceSpec>,
}

/// How an update goes. Written by the pass alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Update {
    /// Where it is.
    pub state: pb::update_status::UpdateState,
    /// When it began.
    pub started_at: Timestamp,
    /// When it ended; never while it goes on.
    pub completed_at: Timestamp,
    /// In words.
    pub message: String,
}

/// A task.
#[derive(Debug, Clone, PartialEq)]
pub struct Task {
    /// Its id.
    pub id: TaskId,
    /// Version and times.
    pub meta: Meta,
    /// Whose task.
    pub service: ServiceId,
    /// Which of the service's slots, from 1; zero for tasks of a global service.
    pub slot: u64,
    /// Which version of the service's spec it runs.
    pub spec_version: u64,
    /// Pass: where it runs.
    pub node: Option<NodeId>,
    /// Pass: where it should get to.
    pub desired: TaskState,
    /// Pass: what it waits for at desired READY. Few do.
    pub hold: Option<Box<Hold>>,
    /// Pass: the generic resources it was given.
    pub generic: Option<Box<BTreeMap<String, Generic>>>,
    /// Agent (and pass, while it has no node): where it is.
    pub status: Status,
}

/// What a task waits for before it may run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hold {
    /// Until then; zero for no such time.
    pub start_at: Timestamp,
    /// Until that task has stopped.
    pub after: Option<TaskId>,
}

impl Hold {
    /// None where there is nothing to wait for.
    pub fn new(start_at: Timestamp, after: Option<TaskId>) -> Option<Box<Self>> {
        let waits = !start_at.is_zero() || after.is_some();
        waits.then(|| Box::new(Self { start_at, after }))
    }
}

/// Where a task is.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Status {
    /// The state.
    pub state: TaskState,
    /// When it got there, by the clock of who reports it.
    pub at: Timestamp,
    /// When a manager recorded the state.
    pub applied_at: Timestamp,
    /// When a manager recorded that the task runs; zero before, and kept after its end.
    pub running_at: Timestamp,
    /// In words.
    pub message: Text,
    /// What went wrong, or why it is not placed.
    pub err: Text,
    /// The pass took it from its node: it is moved, not restarted.
    pub evicted: bool,
    /// Its container, once there is one.
    pub container: Option<Box<Container>>,
}

/// How long a task waits for the one it replaces to stop (SwarmKit's restart `TaskTimeout`); then
/// it starts regardless.
pub const STOP_WAIT: Duration = Duration::from_secs(60);

/// A short text shared by many tasks.
pub type Text = Arc<str>;

/// A task's container.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Container {
    /// The runtime's id of it.
    pub id: Box<str>,
    /// Process id on its node.
    pub pid: i32,
    /// Exit code, once ended.
    pub exit_code: i32,
    /// Ports in use on its node.
    pub ports: Box<[pb::PortConfig]>,
}

/// What the tasks on a node take from it.
///
/// A reservation is held until the task has ended, also while it is being stopped; a task counts as
/// active only while it should run.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Usage {
    /// Reserved billionths of a CPU.
    pub nano_cpus: i64,
    /// Reserved bytes of memory.
    pub memory_bytes: i64,
    /// Claimed generic resources.
    pub generic: GenericUsage,
    /// Ports taken, with how many tasks hold each.
    pub ports: BTreeMap<HostPort, u32>,
    /// Active tasks.
    pub active: u32,
    /// Active tasks by service.
    pub by_service: BTreeMap<ServiceId, u32>,
}

/// Claimed generic resources of a node. Counts and names are apart: a node that begins to name what it only counted
/// has tasks that hold some of either form.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GenericUsage {
    /// How many of a kind.
    counts: BTreeMap<String, u64>,
    /// By kind and name, how many tasks hold it: more than one only where the node's facts changed under them.
    names: BTreeMap<String, BTreeMap<String, u32>>,
}

impl GenericUsage {
    /// A task has got these.
    pub(crate) fn take(&mut self, kind: &str, amount: &Generic) {
        match amount {
            Generic::Count(0) => {}
            Generic::Count(by) => {
                let held = self.counts.entry(kind.to_owned()).or_default();
                *held = held.saturating_add(*by);
            }
            Generic::Names(names) => {
                for name in names {
                    let held = self.names.entry(kind.to_owned()).or_default();
                    *held.entry(name.clone()).or_default() += 1;
                }
            }
        }
    }

    /// A task holds these no more.
    pub(crate) fn release(&mut self, kind: &str, amount: &Generic) {
        match amount {
            Generic::Count(by) => {
                if let Some(held) = self.counts.get_mut(kind) {
                    *held = held.saturating_sub(*by);
                }
                self.counts.retain(|_, held| *held > 0);
            }
            Generic::Names(names) => {
                if let Some(held) = self.names.get_mut(kind) {
                    held.retain(|name, tasks| {
                        *tasks = tasks.saturating_sub(u32::from(names.contains(name)));
                        *tasks > 0
                    });
                }
                self.names.retain(|_, held| !held.is_empty());
            }
        }
    }

    /// What is held of each kind, in each form.
    pub fn each(&self) -> impl Iterator<Item = (&String, Generic)> {
        let counts = self.counts.iter();
        let counts = counts.map(|(kind, held)| (kind, Generic::Count(*held)));
        let names = self.names.iter();
        let names =
            names.map(|(kind, held)| (kind, Generic::Names(held.keys().cloned().collect())));
        counts.chain(names)
    }
}

impl Task {
    /// When it may start; zero for at once.
    pub fn start_at(&self) -> Timestamp {
        self.hold.as_ref().map_or(Timestamp::ZERO, |h| h.start_at)
    }

    /// The task that has to stop before.
    pub fn after(&self) -> Option<TaskId> {
        self.hold.as_ref()?.after
    }

    /// Should run and has not ended.
    pub fn is_active(&self) -> bool {
        self.desired <= TaskState::Complete && !self.status.state.is_terminal()
    }

    /// Has a node and has not ended: its resources are taken.
    pub fn holds_resources(&self) -> bool {
        self.node.is_some() && !self.status.state.is_terminal()
    }
}

impl Service {
    /// The spec of one of its tasks; every version that a task refers to is kept.
    pub fn spec_of(&self, version: u64) -> Option<&Arc<ServiceSpec>> {
        if version == self.spec_version {
            return Some(&self.spec);
        }
        self.old_specs.get(&version)
    }
}

impl State {
    /// A service that its user has not removed.
    pub fn service(&self, id: ServiceId) -> Option<&Arc<Service>> {
        self.services.get(&id).filter(|s| !s.removed)
    }

    /// A service by name, without regard to case.
    pub fn service_by_name(&self, name: &str) -> Option<&Arc<Service>> {
        self.index
            .service_names
            .get(&name.to_lowercase())
            .and_then(|id| self.services.get(id))
    }

    /// A service's tasks, by slot.
    pub fn service_tasks(&self, id: ServiceId) -> impl Iterator<Item = &Arc<Task>> {
        let tasks = self.index.service_tasks.get(&id).into_iter().flatten();
        tasks.filter_map(|(_, task)| self.tasks.get(task))
    }

    /// The tasks of one slot, oldest id first (ids are random: sort by time where order matters).
    pub fn slot_tasks(&self, id: ServiceId, slot: u64) -> impl Iterator<Item = &Arc<Task>> {
        let tasks = self.index.service_tasks.get(&id).into_iter();
        tasks
            .flat_map(move |tasks| tasks.range((slot, TaskId::MIN)..=(slot, TaskId::MAX)))
            .filter_map(|(_, task)| self.tasks.get(task))
    }

    /// A node's tasks, by id.
    pub fn node_tasks(&self, id: NodeId) -> impl Iterator<Item = &Arc<Task>> {
        let tasks = self.index.node_tasks.get(&id).into_iter().flatten();
        tasks.filter_map(|task| self.tasks.get(task))
    }

    /// Live tasks without a node, by service.
    pub fn unplaced(&self) -> impl Iterator<Item = &Arc<Task>> {
        self.index
            .unplaced
            .iter()
            .filter_map(|(_, task)| self.tasks.get(task))
    }

    /// The spec a task runs.
    pub fn task_spec(&self, task: &Task) -> Option<&Arc<ServiceSpec>> {
        self.services
            .get(&task.service)
            .and_then(|s| s.spec_of(task.spec_version))
    }
}

impl Node {
    /// READY and ACTIVE: the scheduler may use it.
    pub fn takes_tasks(&self) -> bool {
        self.status.state == pb::node_status::State::Ready
            && self.availability == pb::node_spec::Availability::Active
            && self.membership == pb::node_spec::Membership::Accepted
    }

    /// DOWN or drained: its tasks run elsewhere.
    pub fn is_invalid(&self) -> bool {
        self.status.state == pb::node_status::State::Down
            || self.availability == pb::node_spec::Availability::Drain
    }

    /// The latest end of all certificates that it was issued; none where an earlier version issued them and did not note it.
    pub fn certificates_end(&self) -> Option<Timestamp> {
        let ends = [
            &self.certificate.not_after,
            &self.certificate.longest_not_after,
        ];
        let ends = ends.into_iter().flatten();
        ends.map(|end| Timestamp::from_wire(Some(end))).max()
    }
}

impl Cluster {
    /// How long a node certificate lives; 90 days when unset.
    pub fn node_cert_expiry(&self) -> Duration {
        let set = self
            .spec
            .ca_config
            .as_ref()
            .and_then(|c| c.node_cert_expiry.as_ref());
        set.and_then(duration_from_wire)
            .filter(|d| !d.is_zero())
            .unwrap_or(DEFAULT_CERT_EXPIRY)
    }

    /// How long a manager may be dead before it is given up as a voter; none for ever.
    pub fn dead_manager_grace(&self) -> Option<Duration> {
        let raft = self.spec.raft.as_ref();
        let set = raft.and_then(|raft| raft.dead_manager_grace.as_ref());
        let grace = set.and_then(duration_from_wire);
        let grace = grace.unwrap_or(swarm_proto::cluster::DEAD_MANAGER_GRACE);
        (!grace.is_zero()).then_some(grace)
    }
}
