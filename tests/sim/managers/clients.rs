//! Who uses the cluster: clients of registers, an operator of services, the agents of fifty nodes.
//!
//! They know the managers by their doors, ask any of them, and follow where they are sent.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use harness::sim::random::Random;
use harness::sim::specs;
use swarm_proto::id::{NodeId, ServiceId};
use swarm_proto::pb;
use swarm_proto::pb::restart_policy::RestartCondition;
use swarm_proto::pb::update_config::FailureAction;
use swarm_proto::task_state::TaskState;
use swarm_proto::time::{Timestamp, duration_to_wire};
use swarmd::clock::Clock;
use swarmd::manager::raft::Leadership;
use swarmd::manager::store::{Change, Node, Report, Service, State, Task, Text};
use swarmd::manager::writer::{Store, WriteError, Written};
use swarmd::process::Process;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use super::history::{Ask, History, Id, Told};
use super::trace::Trace;

/// Nodes with an agent.
pub(crate) const AGENTS: u64 = 50;
/// Objects whose history is checked.
pub(crate) const REGISTERS: u64 = 4;
/// Services the operator works on.
const SERVICES: u64 = 3;
/// The registers' node ids begin here.
const FIRST_REGISTER: u64 = 1_000;
/// How long a client waits for an answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// The label a register's value is in.
const VALUE: &str = "value";

/// A way into a manager that is up.
#[derive(Debug, Clone)]
pub(crate) struct Door {
    /// Its process: no answer comes from one that is dead.
    pub(crate) process: Process,
    /// Its store.
    pub(crate) store: Store,
    /// Its clock.
    pub(crate) clock: Clock,
    /// Whether it leads.
    pub(crate) leadership: watch::Receiver<Leadership>,
}

/// What clients share.
#[derive(Debug, Clone)]
pub(crate) struct Shared {
    /// Managers that are up.
    pub(crate) doors: Arc<Mutex<BTreeMap<u64, Door>>>,
    /// What registers were asked and told.
    pub(crate) history: Arc<Mutex<History>>,
    /// What happens.
    pub(crate) trace: Trace,
    /// Everybody goes home.
    pub(crate) stop: Arc<AtomicBool>,
    /// Promises that were broken.
    pub(crate) broken: Arc<Mutex<Vec<String>>>,
}

/// What became of a write.
#[derive(Debug)]
enum Outcome {
    Written(Written),
    /// Nothing was written.
    Not,
    /// Nobody knows.
    Unknown,
}

impl Shared {
    /// Nobody is up yet.
    pub(crate) fn new(trace: Trace) -> Self {
        Self {
            doors: Arc::default(),
            history: Arc::default(),
            trace,
            stop: Arc::default(),
            broken: Arc::default(),
        }
    }

    /// The history.
    pub(crate) fn history(&self) -> MutexGuard<'_, History> {
        self.history.lock().unwrap()
    }

    /// The door of the manager that says it leads.
    pub(crate) fn leader(&self) -> Option<Door> {
        let doors = self.doors.lock().unwrap();
        let mut doors = doors.values();
        let leads =
            |door: &&Door| !door.process.is_dead() && door.leadership.borrow().term().is_some();
        doors.find(leads).cloned()
    }

    fn any(&self, random: &mut Random) -> Option<Door> {
        let doors: Vec<Door> = self.doors.lock().unwrap().values().cloned().collect();
        random.any(doors)
    }

    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    async fn write(&self, door: &Door, changes: Vec<Change>) -> Outcome {
        let now = door.store.time(&door.clock);
        match timeout(PATIENCE, door.store.write(now, changes)).await {
            Ok(Ok(written)) => Outcome::Written(written),
            // No answer comes from the dead.
            _ if door.process.is_dead() => Outcome::Unknown,
            Err(_) | Ok(Err(WriteError::Unknown(_))) => Outcome::Unknown,
            Ok(Err(
                WriteError::NotLeader { .. }
                | WriteError::NoLeader(_)
                | WriteError::TooLarge { .. }
                | WriteError::Overloaded(_)
                | WriteError::ShuttingDown
                | WriteError::Storage(_),
            )) => Outcome::Not,
        }
    }

    /// Reads a register as it must be now.
    ///
    /// # Errors
    /// When the manager can't be sure.
    pub(crate) async fn read(&self, door: &Door, object: u64) -> Result<Option<Known>, ()> {
        let id = self.history().begin(object, Ask::Read);
        let Ok(Ok(state)) = timeout(PATIENCE, door.store.read()).await else {
            self.history().withdraw(id);
            return Err(());
        };
        if door.process.is_dead() {
            self.history().withdraw(id);
            return Err(());
        }
        let found = known(&state, object);
        let value = found.map(|known| known.by);
        self.trace
            .say(format_args!("{id}: register {object} is {found:?}"));
        self.history().end(id, Told::Value(value));
        Ok(found)
    }

    /// Asks for a change of a register; what is known of it afterwards.
    pub(crate) async fn change(
        &self,
        door: &Door,
        object: u64,
        ask: Ask,
        version: u64,
    ) -> Option<Known> {
        let id = self.history().begin(object, ask);
        let change = register_change(object, id, ask, version);
        let outcome = self.write(door, vec![change]).await;
        let mut history = self.history();
        match outcome {
            Outcome::Written(written) => match written.results.first() {
                Some(Ok(())) => {
                    let version = written.version;
                    self.trace.say(format_args!(
                        "{id}: {ask:?} of register {object} is done at {version}"
                    ));
                    history.end(id, Told::Done(version));
                    return Some(Known { by: id, version });
                }
                refused => {
                    self.trace.say(format_args!(
                        "{id}: {ask:?} of register {object}: {refused:?}"
                    ));
                    history.end(id, Told::Refused);
                }
            },
            Outcome::Not => history.withdraw(id),
            Outcome::Unknown => self.trace.say(format_args!(
                "{id}: {ask:?} of register {object}: nobody knows"
            )),
        }
        None
    }
}

/// What is known of a register: who wrote it, and its version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Known {
    /// The operation.
    pub(crate) by: Id,
    /// The version.
    pub(crate) version: u64,
}

/// The node that is a register.
pub(crate) fn register_id(object: u64) -> NodeId {
    NodeId::from_raw(u128::from(FIRST_REGISTER + object))
}

/// A register as a state has it.
pub(crate) fn known(state: &State, object: u64) -> Option<Known> {
    let node = state.nodes.get(&register_id(object))?;
    let value = node.annotations.labels.get(VALUE)?;
    Some(Known {
        by: value.parse().unwrap(),
        version: node.meta.version,
    })
}

fn register(object: u64, id: Id) -> Node {
    let mut node = specs::node(register_id(object), "none");
    let labels = &mut node.annotations.labels;
    labels.insert(VALUE.to_owned(), id.to_string());
    node.availability = pb::node_spec::Availability::Pause;
    node
}

fn register_change(object: u64, id: Id, ask: Ask, version: u64) -> Change {
    let node = register(object, id);
    match ask {
        Ask::Create => Change::CreateNode(Arc::new(node)),
        Ask::Change(_) => Change::UpdateNode {
            id: node.id,
            expected: version,
            annotations: node.annotations,
            desired_role: node.desired_role,
            membership: node.membership,
            availability: node.availability,
            addresses: Vec::new(),
            give_up: Vec::new(),
        },
        Ask::Remove | Ask::Read => Change::RemoveNode {
            id: node.id,
            force: true,
            // Forgotten with the next entry: it may come again.
            refused_until: Timestamp::ZERO,
        },
    }
}

/// A client of the registers.
pub(crate) async fn client(shared: Shared, mut random: Random) {
    let mut known: BTreeMap<u64, Known> = BTreeMap::new();
    while !shared.stopped() {
        sleep(random.millis(20, 300)).await;
        let object = random.below(REGISTERS);
        let door = match random.per_mille(700) {
            true => shared.leader(),
            false => shared.any(&mut random),
        };
        let Some(door) = door else { continue };
        let before = known.get(&object).copied();
        let after = match (random.below(10), before) {
            (0..=3, _) => match shared.read(&door, object).await {
                Ok(found) => found,
                Err(()) => before,
            },
            (4, _) => {
                shared.change(&door, object, Ask::Remove, 0).await;
                None
            }
            (_, None) => shared.change(&door, object, Ask::Create, 0).await,
            (_, Some(now)) => {
                let ask = Ask::Change(now.by);
                shared.change(&door, object, ask, now.version).await
            }
        };
        match after {
            Some(after) => drop(known.insert(object, after)),
            None => drop(known.remove(&object)),
        }
    }
}

fn service_id(number: u64) -> ServiceId {
    ServiceId::from_raw(u128::from(number) + 1)
}

/// A service, in some version and size.
fn service(random: &mut Random, number: u64) -> pb::ServiceSpec {
    pb::ServiceSpec {
        annotations: Some(pb::Annotations {
            name: format!("s{number}"),
            ..Default::default()
        }),
        task: Some(pb::TaskSpec {
            runtime: Some(pb::task_spec::Runtime::Container(pb::ContainerSpec {
                image: format!("app:{}", random.below(4)),
                ..Default::default()
            })),
            restart: Some(pb::RestartPolicy {
                condition: RestartCondition::Any.into(),
                delay: Some(duration_to_wire(Duration::from_millis(500))),
                ..Default::default()
            }),
            ..Default::default()
        }),
        mode: Some(specs::replicated(1 + random.below(6))),
        update: Some(pb::UpdateConfig {
            parallelism: random.below(3),
            failure_action: FailureAction::Continue.into(),
            ..Default::default()
        }),
        ..Default::default()
    }
}

/// Makes, changes and removes services.
pub(crate) async fn operator(shared: Shared, mut random: Random) {
    while !shared.stopped() {
        sleep(random.millis(100, 600)).await;
        let Some(door) = shared.leader() else {
            continue;
        };
        let number = random.below(SERVICES);
        let state = door.store.view();
        let there: Option<&Arc<Service>> = state.services.get(&service_id(number));
        let spec = specs::parsed(service(&mut random, number));
        let id = service_id(number);
        let change = match there {
            None => Change::CreateService { id, spec },
            Some(there) if there.removed => continue,
            Some(_) if random.per_mille(100) => Change::RemoveService { id },
            Some(there) => Change::UpdateService {
                id,
                expected: there.meta.version,
                spec,
            },
        };
        shared.write(&door, vec![change]).await;
    }
}

/// Nodes that are up, and the cluster they are in.
pub(crate) fn nodes(random: &mut Random) -> Vec<Change> {
    let mut changes = vec![Change::CreateCluster(Arc::new(specs::cluster()))];
    for number in 0..AGENTS {
        let id = NodeId::from_raw(u128::from(number) + 1);
        let description = specs::description(random, &format!("n{number}"));
        changes.push(Change::CreateNode(Arc::new(specs::node(id, "a"))));
        changes.push(Change::SetNodeStatus {
            id,
            state: pb::node_status::State::Ready,
            message: String::new(),
            addr: None,
            description: Some(Arc::new(description)),
        });
    }
    changes
}

/// The agents of all nodes: each does what it is told, a step at a time, and says so.
pub(crate) async fn agents(shared: Shared, mut random: Random, failing: u64) {
    while !shared.stopped() {
        sleep(random.millis(50, 200)).await;
        let Some(door) = shared.leader() else {
            continue;
        };
        let state = door.store.view();
        let mut changes = Vec::new();
        for number in 0..AGENTS {
            let node = NodeId::from_raw(u128::from(number) + 1);
            let reports: Vec<Report> = state
                .node_tasks(node)
                .filter_map(|task| progress(&mut random, task, failing))
                .collect();
            if !reports.is_empty() {
                changes.push(Change::ReportStatus { node, reports });
            }
        }
        if !changes.is_empty() {
            shared.write(&door, changes).await;
        }
    }
}

fn progress(random: &mut Random, task: &Task, failing: u64) -> Option<Report> {
    let state = task.status.state;
    let on_node = state >= TaskState::Assigned && state <= TaskState::Running;
    let next = if !on_node || random.per_mille(200) {
        return None;
    } else if task.desired > TaskState::Running {
        TaskState::Shutdown
    } else if random.per_mille(failing) {
        TaskState::Failed
    } else if state < TaskState::Ready {
        random.pick(&[TaskState::Preparing, TaskState::Ready])
    } else if task.desired == TaskState::Running {
        TaskState::Running
    } else {
        return None;
    };
    (next > state).then(|| Report {
        task: task.id,
        state: next,
        at: Timestamp::from_millis(1_700_000_000_000),
        message: Text::from("so it is"),
        err: Text::default(),
        container: None,
    })
}
