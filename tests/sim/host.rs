//! A node: its agent, what is on its disk, what its runtime holds.
//!
//! What a message means is decided by the real [`assigned::plan`], what is to be done for a task by
//! the real [`step::next`] and [`step::after`]. The runtime is a map of containers that survives the
//! agent; its calls take time, fail, or are cut off by a crash at any point. What the agent does
//! around that follows `swarmd::agent`.
//!
//! Here is what a node is, and how it starts and ends; the rest by what it talks to.

mod runtime;
mod session;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use agent_runtime::step::{self, After, Outcome, Step, Want};
use agent_runtime::{Error, Exit, Handle, Observed};
use swarm_proto::id::{NodeId, TaskId};
use swarm_proto::pb;
use swarm_proto::pb::update_task_status_request::TaskStatusUpdate;
use swarmd::agent::assigned::{self, Message};

use super::world::{Answer, Due, Request, World};

/// Time for a request (the agent's).
const REQUEST_LIMIT: Duration = Duration::from_secs(5);
/// Time for a request that registers or reports (the agent's).
const LONG_LIMIT: Duration = Duration::from_secs(10);
/// Pause after a call or a report that failed (the agent's first).
const PAUSE: Duration = Duration::from_secs(1);

/// A node.
#[derive(Debug)]
pub struct Host {
    /// Its id.
    pub id: NodeId,
    /// Its name.
    pub name: String,
    /// What it says of itself.
    pub description: pb::NodeDescription,
    /// No message gets through.
    pub cut_off: bool,
    /// Its runtime can't be reached.
    pub runtime_away: bool,
    /// What its agent finds after a restart.
    disk: BTreeMap<TaskId, Kept>,
    /// What its runtime holds.
    pub containers: BTreeMap<TaskId, Container>,
    /// Its agent; none while it is down.
    daemon: Option<Daemon>,
}

/// A task on disk.
#[derive(Debug, Clone)]
struct Kept {
    want: Want,
    status: pb::TaskStatus,
    fate: Fate,
}

/// What its image does, whatever the faults are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// It runs.
    Runs,
    /// `missing`: there is no such image.
    Missing,
    /// `crash`: it ends with code 1 a second after its start.
    Crashes,
}

impl Fate {
    fn of(task: &pb::Task) -> Self {
        let runtime = task.spec.as_ref().and_then(|spec| spec.runtime.as_ref());
        match runtime {
            Some(pb::task_spec::Runtime::Container(container)) => {
                match container.image.split(':').next() {
                    Some("missing") => Self::Missing,
                    Some("crash") => Self::Crashes,
                    _ => Self::Runs,
                }
            }
            _ => Self::Runs,
        }
    }
}

/// A container.
#[derive(Debug, Clone)]
pub struct Container {
    token: u64,
    /// Where it is.
    pub state: ContainerState,
}

/// Where a container is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ContainerState {
    /// Can be started.
    Created,
    /// Runs.
    Running,
    /// Has ended with this code.
    Exited(u32),
}

#[derive(Debug)]
struct Daemon {
    boot: u64,
    link: Link,
    /// A session to go on with.
    resumable: u64,
    drivers: BTreeMap<TaskId, Driver>,
    statuses: BTreeMap<TaskId, pb::TaskStatus>,
    unsent: BTreeSet<TaskId>,
    in_flight: Option<InFlight>,
    report_called: bool,
    /// Containers of an earlier daemon that no manager has spoken of yet.
    leftovers: BTreeSet<TaskId>,
}

/// Statuses under way.
#[derive(Debug)]
struct InFlight {
    number: u64,
    tasks: BTreeMap<TaskId, pb::TaskStatus>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Link {
    /// No session; tries again when this timer is due.
    Away(u64),
    /// Registering, given up when this timer is due: attempt, timer.
    Trying(u64, u64),
    /// A session.
    Up(Up),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Up {
    attempt: u64,
    session: u64,
    /// Last message of the stream.
    sequence: u64,
    timer: u64,
    /// A beat is under way: the timer ends the session.
    beating: bool,
}

#[derive(Debug)]
struct Driver {
    want: Want,
    fate: Fate,
    ask: bool,
    observed: Option<Observed>,
    call: Option<Call>,
}

#[derive(Debug, Clone, Copy)]
struct Call {
    number: u64,
    what: What,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum What {
    /// A runtime call.
    Step(Step),
    /// Only time passes.
    Pause,
}

impl Host {
    /// A node that is off.
    pub fn new(id: NodeId, name: &str, description: pb::NodeDescription) -> Self {
        Self {
            id,
            name: name.to_owned(),
            description,
            cut_off: false,
            runtime_away: false,
            disk: BTreeMap::new(),
            containers: BTreeMap::new(),
            daemon: None,
        }
    }

    /// Its agent runs.
    pub fn is_up(&self) -> bool {
        self.daemon.is_some()
    }

    /// How it is, for the case that something is wrong.
    pub fn summary(&self) -> String {
        let daemon = self.daemon.as_ref();
        format!(
            "node {} {} cut off: {}, link {:?}, unsent {:?}, in flight {:?}",
            self.name,
            self.id,
            self.cut_off,
            daemon.map(|d| d.link),
            daemon.map(|d| &d.unsent),
            daemon.map(|d| d.in_flight.is_some()),
        )
    }

    /// Tasks whose containers run.
    pub fn running(&self) -> impl Iterator<Item = TaskId> {
        let running = self.containers.iter();
        let running = running.filter(|(_, c)| c.state == ContainerState::Running);
        running.map(|(id, _)| *id)
    }

    fn observe(&self, task: TaskId) -> Observed {
        let handle = Handle {
            container_id: format!("sim-{task}"),
            ..Handle::default()
        };
        match self.containers.get(&task).map(|c| &c.state) {
            None => Observed::Absent,
            Some(ContainerState::Created) => Observed::Created(handle),
            Some(ContainerState::Running) => Observed::Running(handle),
            Some(ContainerState::Exited(code)) => Observed::Exited(handle, exit(*code)),
        }
    }
}

fn exit(code: u32) -> Exit {
    Exit {
        code,
        oom: false,
        detail: None,
    }
}

impl World {
    fn daemon(
        &mut self,
        node: NodeId,
        boot: u64,
    ) -> Option<(&mut Daemon, &mut BTreeMap<TaskId, Kept>)> {
        let host = self.hosts.get_mut(&node)?;
        let daemon = host.daemon.as_mut().filter(|d| d.boot == boot)?;
        Some((daemon, &mut host.disk))
    }

    /// Starts a node's agent: it takes up what is on its disk.
    pub fn start_daemon(&mut self, node: NodeId) {
        let boot = self.number();
        let timer = self.number();
        let Some(host) = self.hosts.get_mut(&node).filter(|h| h.daemon.is_none()) else {
            return;
        };
        let mut statuses = BTreeMap::new();
        let mut drivers = BTreeMap::new();
        for (task, kept) in &host.disk {
            statuses.insert(*task, kept.status.clone());
            let driver = Driver {
                want: kept.want,
                fate: kept.fate,
                ask: true,
                observed: None,
                call: None,
            };
            drivers.insert(*task, driver);
        }
        let tasks: Vec<TaskId> = drivers.keys().copied().collect();
        let held = host.containers.keys().copied();
        let leftovers = held.filter(|id| !drivers.contains_key(id)).collect();
        host.daemon = Some(Daemon {
            boot,
            link: Link::Away(timer),
            resumable: 0,
            drivers,
            statuses,
            unsent: BTreeSet::new(),
            in_flight: None,
            report_called: false,
            leftovers,
        });
        self.say(format!("{node} starts with {} tasks", tasks.len()));
        for task in tasks {
            self.drive(node, boot, task);
        }
        let delay = self.random.millis(1, 100);
        self.after(delay, Due::Session(node, boot, timer));
    }

    /// The agent ends at once. Calls under way have had their effect, or not; containers go on.
    pub fn kill_daemon(&mut self, node: NodeId) {
        let Some(daemon) = self.hosts.get_mut(&node).and_then(|h| h.daemon.take()) else {
            return;
        };
        self.say(format!("{node} is killed"));
        for (task, driver) in daemon.drivers {
            if let Some(Call {
                what: What::Step(step),
                ..
            }) = driver.call
                && self.random.per_mille(500)
            {
                self.take_effect(node, task, step);
            }
        }
    }

    /// The node leaves the cluster: its tasks are removed, and the leader hears of it. How many
    /// tasks there were.
    pub fn leave(&mut self, node: NodeId) -> u64 {
        let Some(host) = self.hosts.get_mut(&node) else {
            return 0;
        };
        let tasks = host.daemon.take().map_or(0, |daemon| daemon.drivers.len());
        host.containers.clear();
        host.disk.clear();
        self.node_leaves(node);
        tasks as u64
    }

    /// What is on the disk is lost.
    pub fn lose_disk(&mut self, node: NodeId) {
        if let Some(host) = self.hosts.get_mut(&node).filter(|h| h.daemon.is_none()) {
            host.disk.clear();
        }
    }

    /// The whole host restarts: no container is left.
    pub fn power_cut(&mut self, node: NodeId) {
        self.kill_daemon(node);
        if let Some(host) = self.hosts.get_mut(&node) {
            host.containers.clear();
        }
    }

    /// The runtime goes away or is back.
    pub fn set_runtime(&mut self, node: NodeId, away: bool) {
        let Some(host) = self.hosts.get_mut(&node) else {
            return;
        };
        host.runtime_away = away;
        let Some(daemon) = &host.daemon else { return };
        let boot = daemon.boot;
        let waiting = daemon.drivers.iter().filter_map(|(task, driver)| {
            let call = driver.call?;
            let concerned = match call.what {
                What::Step(step) => away && step == Step::Wait,
                What::Pause => !away,
            };
            concerned.then_some((*task, call.number))
        });
        for (task, call) in waiting.collect::<Vec<_>>() {
            self.call_ends(node, boot, task, call);
        }
    }

    /// A running container of a node ends.
    pub fn kill_container(&mut self, node: NodeId, task: TaskId) {
        let Some(host) = self.hosts.get(&node) else {
            return;
        };
        if let Some(container) = host.containers.get(&task) {
            let token = container.token;
            self.container_ends(node, task, token);
        }
    }

    // The session.
}
