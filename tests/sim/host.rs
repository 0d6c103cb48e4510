//! A node: its agent, what is on its disk, what its runtime holds.
//!
//! What a message means is decided by the real [`assigned::plan`], what is to be done for a task by
//! the real [`step::next`] and [`step::after`]. The runtime is a map of containers that survives the
//! agent; its calls take time, fail, or are cut off by a crash at any point. What the agent does
//! around that follows `swarmd::agent`.

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

    /// A timer of the session.
    pub fn session_is_due(&mut self, node: NodeId, boot: u64, timer: u64) {
        let Some((daemon, _)) = self.daemon(node, boot) else {
            return;
        };
        match daemon.link {
            Link::Away(at) if at == timer => self.register(node, boot),
            Link::Trying(_, at) if at == timer => self.disconnect(node, boot),
            Link::Up(up) if up.timer == timer && up.beating => self.disconnect(node, boot),
            Link::Up(up) if up.timer == timer => {
                let timer = self.number();
                if let Some((daemon, _)) = self.daemon(node, boot) {
                    daemon.link = Link::Up(Up {
                        timer,
                        beating: true,
                        ..up
                    });
                }
                self.request(node, boot, Request::Beat(up.session));
                self.after(REQUEST_LIMIT, Due::Session(node, boot, timer));
            }
            Link::Away(_) | Link::Trying(..) | Link::Up(_) => {}
        }
    }

    fn register(&mut self, node: NodeId, boot: u64) {
        let (attempt, timer) = (self.number(), self.number());
        let Some(host) = self.hosts.get_mut(&node) else {
            return;
        };
        let description = Box::new(host.description.clone());
        let Some(daemon) = &mut host.daemon else {
            return;
        };
        daemon.link = Link::Trying(attempt, timer);
        let resumed = daemon.resumable;
        self.request(node, boot, Request::Register(attempt, resumed, description));
        self.after(LONG_LIMIT, Due::Session(node, boot, timer));
    }

    fn disconnect(&mut self, node: NodeId, boot: u64) {
        let timer = self.number();
        let delay = self.random.millis(100, 4_000);
        let Some((daemon, _)) = self.daemon(node, boot) else {
            return;
        };
        daemon.link = Link::Away(timer);
        self.after(delay, Due::Session(node, boot, timer));
    }

    /// The leader says something.
    pub fn host_hears(&mut self, node: NodeId, boot: u64, answer: Answer) {
        let Some((daemon, _)) = self.daemon(node, boot) else {
            return;
        };
        match (answer, daemon.link) {
            (Answer::Session(attempt, session), Link::Trying(ours, _)) if attempt == ours => {
                self.connected(node, boot, (attempt, session));
            }
            (Answer::Refused(session), Link::Up(up)) if up.session == session => {
                daemon.resumable = 0;
                self.disconnect(node, boot);
            }
            (Answer::Broken(stream), Link::Up(up)) if stream == (up.attempt, up.session) => {
                self.disconnect(node, boot);
            }
            (Answer::Period(session, period), Link::Up(up))
                if up.session == session && up.beating =>
            {
                let timer = self.number();
                if let Some((daemon, _)) = self.daemon(node, boot) {
                    daemon.link = Link::Up(Up {
                        timer,
                        beating: false,
                        ..up
                    });
                }
                self.after(period, Due::Session(node, boot, timer));
            }
            (Answer::Recorded(_, number), _) => self.recorded(node, boot, number),
            (Answer::Assignments(stream, message), Link::Up(up))
                if stream == (up.attempt, up.session) =>
            {
                self.assigned(node, boot, up, *message);
            }
            (
                Answer::Session(..)
                | Answer::Refused(_)
                | Answer::Broken(_)
                | Answer::Period(..)
                | Answer::Assignments(..),
                _,
            ) => {}
        }
    }

    fn connected(&mut self, node: NodeId, boot: u64, (attempt, session): (u64, u64)) {
        let timer = self.number();
        let Some((daemon, _)) = self.daemon(node, boot) else {
            return;
        };
        if daemon.resumable != session {
            // A manager that knows nothing: all is news.
            daemon.unsent.extend(daemon.statuses.keys());
        }
        daemon.resumable = session;
        daemon.link = Link::Up(Up {
            attempt,
            session,
            sequence: 0,
            timer,
            beating: false,
        });
        // The first beat comes soon.
        let delay = self.random.millis(10, 1_000);
        self.after(delay, Due::Session(node, boot, timer));
        self.call_report(node, boot);
    }

    fn assigned(&mut self, node: NodeId, boot: u64, up: Up, message: pb::AssignmentsMessage) {
        let complete = message.r#type() == pb::assignments_message::Type::Complete;
        let applies_to = message.applies_to.parse().unwrap_or(0_u64);
        let results_in = message.results_in.parse().unwrap_or(0_u64);
        if results_in <= up.sequence {
            return;
        }
        if applies_to != up.sequence {
            self.say(format!("{node}: a message is missing in the stream"));
            self.disconnect(node, boot);
            return;
        }
        let Some((daemon, _)) = self.daemon(node, boot) else {
            return;
        };
        daemon.link = Link::Up(Up {
            sequence: results_in,
            ..up
        });
        let known = daemon.drivers.iter();
        let known = known.map(|(id, driver)| (*id, driver.want)).collect();
        let (update, remove) = tasks_of(message);
        let mut assigned = BTreeSet::new();
        let plan = if complete {
            assigned.extend(update.iter().map(|(id, _)| *id));
            assigned::plan(&known, Message::Complete(update))
        } else {
            assigned::plan(&known, Message::Incremental { update, remove })
        };
        for (id, task) in plan.start {
            self.take_up(node, boot, id, &task);
        }
        for ((id, _), want) in plan.change {
            self.want(node, boot, id, want);
        }
        for id in plan.remove {
            self.want(node, boot, id, Want::Gone);
        }
        if complete {
            self.remove_leftovers(node, &assigned);
        }
    }

    /// Removes what an earlier daemon left and no manager wants.
    fn remove_leftovers(&mut self, node: NodeId, assigned: &BTreeSet<TaskId>) {
        let Some(host) = self.hosts.get_mut(&node) else {
            return;
        };
        let Some(daemon) = &mut host.daemon else {
            return;
        };
        let leftovers = std::mem::take(&mut daemon.leftovers);
        host.containers
            .retain(|id, _| assigned.contains(id) || !leftovers.contains(id));
    }

    fn take_up(&mut self, node: NodeId, boot: u64, id: TaskId, task: &pb::Task) {
        let want = Want::of(task.desired_state());
        let status = task.status.clone().unwrap_or_default();
        let fate = Fate::of(task);
        let Some((daemon, disk)) = self.daemon(node, boot) else {
            return;
        };
        let kept = Kept {
            want,
            status: status.clone(),
            fate,
        };
        disk.insert(id, kept);
        daemon.statuses.insert(id, status);
        let driver = Driver {
            want,
            fate,
            ask: daemon.leftovers.remove(&id),
            observed: None,
            call: None,
        };
        daemon.drivers.insert(id, driver);
        self.drive(node, boot, id);
    }

    fn want(&mut self, node: NodeId, boot: u64, id: TaskId, want: Want) {
        let Some((daemon, disk)) = self.daemon(node, boot) else {
            return;
        };
        let Some(driver) = daemon.drivers.get_mut(&id) else {
            return;
        };
        driver.want = want;
        if want == Want::Gone {
            // On disk it is none of ours any more; what is left of it is a leftover.
            disk.remove(&id);
        } else if let Some(kept) = disk.get_mut(&id) {
            kept.want = want;
        }
        self.drive(node, boot, id);
    }

    // The reporter.

    fn call_report(&mut self, node: NodeId, boot: u64) {
        let Some((daemon, _)) = self.daemon(node, boot) else {
            return;
        };
        if daemon.report_called || daemon.unsent.is_empty() {
            return;
        }
        daemon.report_called = true;
        let delay = self.random.millis(0, 20);
        self.after(delay, Due::Report(node, boot));
    }

    /// Saves statuses and sends them.
    pub fn report(&mut self, node: NodeId, boot: u64) {
        let number = self.number();
        let Some((daemon, disk)) = self.daemon(node, boot) else {
            return;
        };
        daemon.report_called = false;
        for (id, kept) in disk.iter_mut() {
            if let Some(status) = daemon.statuses.get(id) {
                kept.status.clone_from(status);
            }
        }
        let Link::Up(up) = daemon.link else { return };
        if let Some(lost) = daemon.in_flight.take() {
            // Not answered in time: sent again.
            daemon.unsent.extend(lost.tasks.into_keys());
        }
        let unsent = std::mem::take(&mut daemon.unsent);
        let tasks = unsent.into_iter();
        let tasks: BTreeMap<TaskId, pb::TaskStatus> = tasks
            .filter_map(|id| Some((id, daemon.statuses.get(&id)?.clone())))
            .collect();
        if tasks.is_empty() {
            return;
        }
        let updates = tasks.iter().map(|(id, status)| TaskStatusUpdate {
            task_id: id.to_string(),
            status: Some(status.clone()),
        });
        let request = Request::Statuses(up.session, number, updates.collect());
        daemon.in_flight = Some(InFlight { number, tasks });
        // The timer of the request: found unanswered, it is sent again.
        daemon.report_called = true;
        self.request(node, boot, request);
        self.after(LONG_LIMIT, Due::Report(node, boot));
    }

    fn recorded(&mut self, node: NodeId, boot: u64, number: u64) {
        let Some((daemon, _)) = self.daemon(node, boot) else {
            return;
        };
        let ours = daemon
            .in_flight
            .as_ref()
            .is_some_and(|sent| sent.number == number);
        if !ours {
            return;
        }
        daemon.in_flight = None;
        daemon.report_called = false;
        let forgotten = daemon.statuses.keys().copied();
        let forgotten =
            forgotten.filter(|id| !daemon.drivers.contains_key(id) && !daemon.unsent.contains(id));
        for id in forgotten.collect::<Vec<_>>() {
            daemon.statuses.remove(&id);
        }
        self.call_report(node, boot);
    }

    // The tasks' drivers.

    /// Takes a task's steps until one takes time.
    fn drive(&mut self, node: NodeId, boot: u64, task: TaskId) {
        loop {
            let now = self.now;
            let Some(host) = self.hosts.get_mut(&node) else {
                return;
            };
            let observed = host.observe(task);
            let away = host.runtime_away;
            let Some(daemon) = host.daemon.as_mut().filter(|d| d.boot == boot) else {
                return;
            };
            let Some(driver) = daemon.drivers.get_mut(&task) else {
                return;
            };
            let Some(status) = daemon.statuses.get_mut(&task) else {
                return;
            };
            if let Some(call) = driver.call {
                let stops = driver.want >= Want::Stop;
                match call.what {
                    What::Step(step @ (Step::Prepare | Step::Start | Step::Wait)) if stops => {
                        driver.call = None;
                        if self.random.per_mille(500) {
                            self.take_effect(node, task, step);
                        }
                        continue;
                    }
                    What::Pause => driver.call = None,
                    What::Step(_) => return,
                }
            }
            let asks = driver.ask && driver.want < Want::Stop && !step::is_terminal(status.state());
            if asks && away {
                self.pause(node, boot, task);
                return;
            }
            if asks {
                driver.ask = false;
                driver.observed = Some(observed);
            }
            let next = step::next(driver.want, status.state(), driver.observed.as_ref());
            match next {
                Step::Enter(_) | Step::Lost | Step::Hold => {
                    let done = step::after(status.state(), next, Outcome::Done { notice: None });
                    match done {
                        After::Advance(change) => {
                            change.write(status, now.to_wire().unwrap_or_default());
                            daemon.unsent.insert(task);
                            self.call_report(node, boot);
                        }
                        After::Again => {}
                        After::Retry(_) | After::Await | After::Forget | After::Hold => return,
                    }
                }
                Step::Prepare | Step::Start | Step::Wait | Step::Shutdown | Step::Remove => {
                    driver.observed = None;
                    self.call(node, boot, task, next);
                    return;
                }
            }
        }
    }

    /// Makes a runtime call.
    fn call(&mut self, node: NodeId, boot: u64, task: TaskId, step: Step) {
        let number = self.number();
        let Some(host) = self.hosts.get_mut(&node) else {
            return;
        };
        let waits = step == Step::Wait && !host.runtime_away;
        let runs = matches!(host.observe(task), Observed::Running(_));
        let Some(daemon) = &mut host.daemon else {
            return;
        };
        if let Some(driver) = daemon.drivers.get_mut(&task) {
            let what = What::Step(step);
            driver.call = Some(Call { number, what });
        }
        if waits && runs {
            // Its end is told when it comes.
            return;
        }
        let delay = match step {
            Step::Prepare => self.random.millis(5, 800),
            Step::Start => self.random.millis(1, 200),
            Step::Shutdown => self.random.millis(1, 2_000),
            Step::Remove | Step::Wait => self.random.millis(1, 50),
            Step::Enter(_) | Step::Lost | Step::Hold => Duration::ZERO,
        };
        self.after(delay, Due::Call(node, boot, task, number));
    }

    fn pause(&mut self, node: NodeId, boot: u64, task: TaskId) {
        let number = self.number();
        let Some((daemon, _)) = self.daemon(node, boot) else {
            return;
        };
        if let Some(driver) = daemon.drivers.get_mut(&task) {
            let what = What::Pause;
            driver.call = Some(Call { number, what });
        }
        self.after(PAUSE, Due::Call(node, boot, task, number));
    }

    /// A runtime call, or a pause, ends.
    pub fn call_ends(&mut self, node: NodeId, boot: u64, task: TaskId, number: u64) {
        let now = self.now;
        let Some(host) = self.hosts.get_mut(&node) else {
            return;
        };
        let away = host.runtime_away;
        let Some(daemon) = host.daemon.as_mut().filter(|d| d.boot == boot) else {
            return;
        };
        let Some(driver) = daemon.drivers.get_mut(&task) else {
            return;
        };
        let Some(call) = driver.call.filter(|call| call.number == number) else {
            return;
        };
        driver.call = None;
        let What::Step(step) = call.what else {
            self.drive(node, boot, task);
            return;
        };
        let outcome = if away {
            Outcome::Failed(unavailable())
        } else {
            self.outcome(node, task, step)
        };
        let Some((daemon, _)) = self.daemon(node, boot) else {
            return;
        };
        let Some(status) = daemon.statuses.get_mut(&task) else {
            return;
        };
        match step::after(status.state(), step, outcome) {
            After::Advance(change) => {
                change.write(status, now.to_wire().unwrap_or_default());
                if step == Step::Start {
                    note_container(status, task);
                }
                daemon.unsent.insert(task);
                self.call_report(node, boot);
                self.drive(node, boot, task);
            }
            After::Again | After::Hold => self.drive(node, boot, task),
            After::Retry(change) => {
                change.write(status, now.to_wire().unwrap_or_default());
                daemon.unsent.insert(task);
                self.call_report(node, boot);
                self.pause(node, boot, task);
            }
            After::Await => {
                if let Some(driver) = daemon.drivers.get_mut(&task) {
                    driver.ask = true;
                }
                self.pause(node, boot, task);
            }
            After::Forget => {
                daemon.drivers.remove(&task);
                if !daemon.unsent.contains(&task) {
                    daemon.statuses.remove(&task);
                }
            }
        }
    }

    /// What a runtime call comes to.
    fn outcome(&mut self, node: NodeId, task: TaskId, step: Step) -> Outcome {
        if step == Step::Wait {
            let host = self.hosts.get(&node);
            return match host.map(|h| h.observe(task)) {
                Some(Observed::Exited(_, exit)) => Outcome::Exited(exit),
                Some(Observed::Running(_)) => Outcome::Done { notice: None },
                Some(Observed::Absent | Observed::Created(_)) | None => {
                    Outcome::Failed(Error::Fatal("the container is gone".to_owned()))
                }
            };
        }
        if step == Step::Prepare && self.fate(node, task) == Fate::Missing {
            let text = "image missing:latest: not found in the registry";
            return Outcome::Failed(Error::Fatal(text.to_owned()));
        }
        // What is there already is found by a call that is made again.
        let observed = self.hosts.get(&node).map(|host| host.observe(task));
        let may_fail = matches!(
            (step, observed),
            (Step::Prepare, Some(Observed::Absent)) | (Step::Start, Some(Observed::Created(_)))
        );
        if may_fail && self.random.per_mille(self.faults.failing) {
            return Outcome::Failed(Error::Fatal(format!("{step:?} failed")));
        }
        if self.random.per_mille(self.faults.temporary) {
            return Outcome::Failed(Error::Temporary(format!("{step:?} did not work")));
        }
        self.take_effect(node, task, step);
        Outcome::Done { notice: None }
    }

    fn fate(&self, node: NodeId, task: TaskId) -> Fate {
        let daemon = self.hosts.get(&node).and_then(|host| host.daemon.as_ref());
        let driver = daemon.and_then(|daemon| daemon.drivers.get(&task));
        driver.map_or(Fate::Runs, |driver| driver.fate)
    }

    /// What a call does to the runtime; again it changes nothing.
    fn take_effect(&mut self, node: NodeId, task: TaskId, step: Step) {
        let token = self.number();
        let crashes = self.fate(node, task) == Fate::Crashes;
        let exiting = self.random.per_mille(self.faults.exiting);
        let Some(host) = self.hosts.get_mut(&node) else {
            return;
        };
        match step {
            Step::Prepare => {
                let state = ContainerState::Created;
                host.containers
                    .entry(task)
                    .or_insert(Container { token, state });
            }
            Step::Start => {
                let Some(container) = host.containers.get_mut(&task) else {
                    return;
                };
                if container.state == ContainerState::Created {
                    container.state = ContainerState::Running;
                    let token = container.token;
                    if crashes {
                        let life = Duration::from_secs(1);
                        self.after(life, Due::Exit(node, task, token));
                    } else if exiting {
                        let life = self.random.millis(10, 20_000);
                        self.after(life, Due::Exit(node, task, token));
                    }
                }
            }
            Step::Shutdown => {
                if let Some(container) = host.containers.get_mut(&task)
                    && container.state == ContainerState::Running
                {
                    container.state = ContainerState::Exited(143);
                }
            }
            Step::Remove => {
                host.containers.remove(&task);
            }
            Step::Wait | Step::Enter(_) | Step::Lost | Step::Hold => {}
        }
    }

    /// A container ends by itself.
    pub fn container_ends(&mut self, node: NodeId, task: TaskId, token: u64) {
        let crashes = self.fate(node, task) == Fate::Crashes;
        let code = u32::from(self.random.per_mille(600) || crashes);
        let Some(host) = self.hosts.get_mut(&node) else {
            return;
        };
        let Some(container) = host.containers.get_mut(&task) else {
            return;
        };
        if container.token != token || container.state != ContainerState::Running {
            return;
        }
        container.state = ContainerState::Exited(code);
        let Some(daemon) = &host.daemon else { return };
        let boot = daemon.boot;
        let call = daemon.drivers.get(&task).and_then(|d| d.call);
        if let Some(Call {
            number,
            what: What::Step(Step::Wait),
        }) = call
        {
            self.call_ends(node, boot, task, number);
        }
    }
}

/// The tasks that a message brings, and those that it takes away.
fn tasks_of(message: pb::AssignmentsMessage) -> (Vec<assigned::Task>, Vec<TaskId>) {
    let (mut update, mut remove) = (Vec::new(), Vec::new());
    for change in message.changes {
        let action = change.action();
        let Some(pb::assignment::Item::Task(task)) = change.assignment.and_then(|a| a.item) else {
            continue;
        };
        let id: TaskId = task.id.parse().expect("an id");
        match action {
            pb::assignment_change::AssignmentAction::Update => update.push((id, Arc::new(task))),
            pb::assignment_change::AssignmentAction::Remove => remove.push(id),
        }
    }
    (update, remove)
}

fn unavailable() -> Error {
    Error::Unavailable {
        runtime: "the simulated runtime".to_owned(),
        reason: "it is away".to_owned(),
    }
}

fn note_container(status: &mut pb::TaskStatus, task: TaskId) {
    let container = pb::ContainerStatus {
        container_id: format!("sim-{task}"),
        pid: 1,
        exit_code: 0,
    };
    status.runtime_status = Some(pb::task_status::RuntimeStatus::Container(container));
}
