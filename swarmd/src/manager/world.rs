//! A small cluster in a few words, for the tests of the pass.
//!
//! ```text
//! nodes a b(drain) c(cpu=2 zone=x) / service web x3 (cpu=1 constraint=node.labels.zone==x) / go
//! fail web.1 / tick 5 / drain a / update web image=v2 / scale web 5 / show
//! ```
//!
//! After every command passes run over what changed until they find nothing more to do; then a pass
//! over everything must find nothing either, and no node may be promised more than it has.

mod words;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use swarm_proto::id::{NodeId, ServiceId, TaskId};
use swarm_proto::pb;
use swarm_proto::resources::parse_generic;
use swarm_proto::service::ServiceSpec;
use swarm_proto::task_state::TaskState;
use swarm_proto::time::Timestamp;

use words::{amend, words};

use super::plan::{Dirty, Plan, mix, pass};
use super::store::{Change, Entry, Event, Meta, Report, State, Task, Text, apply, testing};

/// A cluster, its time, and what its next pass has to look at.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) state: State,
    pub(crate) now: Timestamp,
    pub(crate) wake_at: Option<Timestamp>,
    dirty: Dirty,
    seed: u64,
    names: BTreeMap<NodeId, String>,
    specs: BTreeMap<String, pb::ServiceSpec>,
}

/// Runs a script and gives what its last `show` showed.
pub(crate) fn show(script: &str) -> String {
    World::new(script).show()
}

/// Runs a script and compares the end.
#[track_caller]
pub(crate) fn check(script: &str, expected: &str) {
    assert_eq!(show(script), expected, "{script}");
}

fn node_id(name: &str) -> NodeId {
    let raw = name.bytes().fold(0_u128, |raw, b| raw << 8 | u128::from(b));
    NodeId::from_raw(raw)
}

fn service_id(name: &str) -> ServiceId {
    let raw = name.bytes().fold(0_u128, |raw, b| raw << 8 | u128::from(b));
    ServiceId::from_raw(raw)
}

impl World {
    pub(crate) fn new(script: &str) -> Self {
        Self::seeded(script, 7)
    }

    pub(crate) fn seeded(script: &str, seed: u64) -> Self {
        let mut world = Self {
            state: State::default(),
            now: Timestamp::from_millis(1_700_000_000_000),
            wake_at: None,
            dirty: Dirty::all(),
            seed,
            names: BTreeMap::new(),
            specs: BTreeMap::new(),
        };
        world.run(script);
        world
    }

    pub(crate) fn run(&mut self, script: &str) {
        for command in script.split(" / ").flat_map(str::lines) {
            let command = command.trim();
            if !command.is_empty() {
                self.command(command);
                self.settle();
            }
        }
    }

    fn command(&mut self, command: &str) {
        let (verb, rest) = command.split_once(' ').unwrap_or((command, ""));
        let (object, args) = rest.split_once(' ').unwrap_or((rest, ""));
        match verb {
            "nodes" => self.nodes(rest),
            "service" => self.service(object, args),
            "update" => self.update(object, args),
            "scale" => self.update(object, &format!("x{args}")),
            "rollback" => {
                let service = self.state.service_by_name(object).unwrap();
                let (id, expected) = (service.id, service.meta.version);
                let message = "by hand".to_owned();
                self.apply(vec![Change::RollbackService {
                    id,
                    expected,
                    message,
                    swap: true,
                }]);
            }
            "rm" => self.apply(vec![Change::RemoveService {
                id: service_id(object),
            }]),
            "rmnode" => self.apply(vec![Change::RemoveNode {
                id: node_id(object),
                force: true,
                refused_until: Timestamp::MAX,
            }]),
            "drain" => self.availability(object, pb::node_spec::Availability::Drain),
            "pause" => self.availability(object, pb::node_spec::Availability::Pause),
            "activate" => self.availability(object, pb::node_spec::Availability::Active),
            "down" => self.node_status(object, pb::node_status::State::Down),
            "unknown" => self.node_status(object, pb::node_status::State::Unknown),
            "up" => self.node_status(object, pb::node_status::State::Ready),
            "set" => self.describe(object, args),
            "may-fail" => {
                if let Some(task) = self.on_a_node(object) {
                    self.report(&task, TaskState::Failed);
                }
            }
            "may-delete" => {
                if let Some(task) = self.on_a_node(object) {
                    self.apply(vec![Change::DeleteTasks {
                        tasks: vec![task.id],
                    }]);
                }
            }
            "fail" => self.end(object, TaskState::Failed),
            "reject" => self.end(object, TaskState::Rejected),
            "complete" => self.end(object, TaskState::Complete),
            "delete" => {
                let id = self.live(object).id;
                self.apply(vec![Change::DeleteTasks { tasks: vec![id] }]);
            }
            "step" => {
                self.agents();
            }
            "go" => self.go(),
            "tick" => self.tick(object),
            "history" => self.history(object.parse().unwrap()),
            _ => panic!("no such command: {command}"),
        }
    }

    /// Lets time pass, with every pass that becomes due.
    fn tick(&mut self, by: &str) {
        let end = self.now.after(Duration::from_secs_f64(by.parse().unwrap()));
        while let Some(at) = self.wake_at.filter(|at| *at <= end) {
            assert!(at >= self.now, "wakes in the past");
            self.now = at;
            self.settle();
            assert!(
                self.wake_at.is_none_or(|next| next > at),
                "wakes without end"
            );
        }
        self.now = end;
    }

    /// Every agent does its part, until nothing moves.
    fn go(&mut self) {
        for _ in 0..1_000 {
            if !self.agents() {
                return;
            }
            self.settle();
        }
        panic!("never at rest");
    }

    /// Agents of READY nodes bring their tasks one step to where they should be.
    pub(crate) fn agents(&mut self) -> bool {
        let mut reports = Vec::new();
        for task in self.state.tasks.values() {
            let node = task.node.and_then(|id| self.state.nodes.get(&id));
            let Some(node) = node.filter(|n| n.status.state == pb::node_status::State::Ready)
            else {
                continue;
            };
            if task.status.state.is_terminal() {
                continue;
            }
            let state = task.desired.min(TaskState::Shutdown);
            if state > task.status.state {
                reports.push((node.id, report(task.id, state)));
            }
        }
        let changes = reports
            .into_iter()
            .map(|(node, report)| Change::ReportStatus {
                node,
                reports: vec![report],
            });
        let changes: Vec<Change> = changes.collect();
        let any = !changes.is_empty();
        self.apply(changes);
        any
    }

    fn end(&mut self, name: &str, state: TaskState) {
        let task = self.live(name);
        self.report(&task, state);
    }

    fn on_a_node(&self, name: &str) -> Option<Arc<Task>> {
        let (service, slot) = name.split_once('.').unwrap();
        let mut tasks = self
            .state
            .slot_tasks(service_id(service), slot.parse().unwrap());
        let placed = |t: &&Arc<Task>| t.node.is_some() && !t.status.state.is_terminal();
        tasks.find(placed).cloned()
    }

    fn report(&mut self, task: &Task, state: TaskState) {
        let node = task.node.expect("has a node");
        let reports = vec![report(task.id, state)];
        self.apply(vec![Change::ReportStatus { node, reports }]);
    }

    /// `web.1`: the task that should run.
    pub(crate) fn live(&self, name: &str) -> Arc<Task> {
        let (service, slot) = name.split_once('.').unwrap();
        let tasks = self
            .state
            .slot_tasks(service_id(service), slot.parse().unwrap());
        let mut tasks: Vec<_> = tasks
            .filter(|t| t.desired <= TaskState::Running)
            .cloned()
            .collect();
        tasks.sort_by_key(|t| (t.meta.created_at, t.meta.version));
        tasks.pop().unwrap_or_else(|| panic!("no live task {name}"))
    }

    fn nodes(&mut self, list: &str) {
        let mut rest = list.trim();
        while !rest.is_empty() {
            let end = rest.find(['(', ' ']).unwrap_or(rest.len());
            let (name, tail) = rest.split_at(end);
            let (args, tail) = match tail.strip_prefix('(') {
                Some(tail) => tail.split_once(')').unwrap(),
                None => ("", tail),
            };
            self.node(name, args);
            rest = tail.trim_start();
        }
    }

    fn node(&mut self, name: &str, args: &str) {
        let id = node_id(name);
        self.names.insert(id, name.to_owned());
        let node = Arc::new(testing::new_node(id));
        self.apply(vec![Change::CreateNode(node)]);
        self.describe(name, args);
        self.node_status(name, pb::node_status::State::Ready);
        for (word, _) in words(args) {
            if matches!(word.as_str(), "drain" | "pause" | "down" | "unknown") {
                self.command(&format!("{word} {name}"));
            }
        }
    }

    /// Labels, resources, platform, plugins of a node, anew.
    fn describe(&mut self, name: &str, args: &str) {
        let mut description = pb::NodeDescription {
            hostname: name.to_owned(),
            engine: Some(pb::EngineDescription::default()),
            ..Default::default()
        };
        let mut resources = pb::Resources {
            nano_cpus: 64_000_000_000,
            memory_bytes: 1 << 40,
            ..Default::default()
        };
        let mut labels = BTreeMap::new();
        let mut addr = String::new();
        for (key, value) in words(args) {
            let engine = description.engine.as_mut().unwrap();
            match key.as_str() {
                "drain" | "pause" | "down" | "unknown" => {}
                "cpu" => resources.nano_cpus = value.parse::<i64>().unwrap() * 1_000_000_000,
                "mem" => resources.memory_bytes = value.parse::<i64>().unwrap() << 20,
                "generic" => {
                    let generic = parse_generic(&value.replace(':', "=")).unwrap();
                    resources.generic = swarm_proto::resources::generic_to_wire(&generic);
                }
                "platform" => {
                    let (os, architecture) = value.split_once('-').unwrap();
                    let (os, architecture) = (os.to_owned(), architecture.to_owned());
                    description.platform = Some(pb::Platform { os, architecture });
                }
                "plugin" => {
                    let (kind, name) = value.split_once(':').unwrap();
                    let (r#type, name) = (kind.to_owned(), name.to_owned());
                    engine.plugins.push(pb::PluginDescription { r#type, name });
                }
                "ip" => addr = value,
                _ => match key.strip_prefix("engine.") {
                    Some(label) => {
                        engine.labels.insert(label.to_owned(), value);
                    }
                    None => {
                        labels.insert(key, value);
                    }
                },
            }
        }
        description.resources = Some(resources);
        let node = self.state.nodes.get(&node_id(name)).unwrap();
        let change = Change::SetNodeStatus {
            id: node.id,
            state: node.status.state,
            message: String::new(),
            addr: Some(addr),
            description: Some(Arc::new(description)),
        };
        self.apply(vec![change]);
        let annotations = pb::Annotations {
            labels,
            ..Default::default()
        };
        let availability = self.state.nodes[&node_id(name)].availability;
        self.update_node(name, annotations, availability);
    }

    fn availability(&mut self, name: &str, availability: pb::node_spec::Availability) {
        let annotations = self.state.nodes[&node_id(name)].annotations.clone();
        self.update_node(name, annotations, availability);
    }

    fn update_node(
        &mut self,
        name: &str,
        annotations: pb::Annotations,
        availability: pb::node_spec::Availability,
    ) {
        let node = &self.state.nodes[&node_id(name)];
        let change = Change::UpdateNode {
            id: node.id,
            expected: node.meta.version,
            annotations,
            desired_role: node.desired_role,
            membership: node.membership,
            availability,
            addresses: Vec::new(),
            give_up: Vec::new(),
        };
        self.apply(vec![change]);
    }

    fn node_status(&mut self, name: &str, state: pb::node_status::State) {
        self.apply(vec![Change::SetNodeStatus {
            id: node_id(name),
            state,
            message: String::new(),
            addr: None,
            description: None,
        }]);
    }

    fn service(&mut self, name: &str, args: &str) {
        let container = pb::ContainerSpec {
            image: "v1".to_owned(),
            ..Default::default()
        };
        let mut spec = pb::ServiceSpec {
            annotations: Some(pb::Annotations {
                name: name.to_owned(),
                ..Default::default()
            }),
            task: Some(pb::TaskSpec {
                runtime: Some(pb::task_spec::Runtime::Container(container)),
                ..Default::default()
            }),
            mode: Some(pb::service_spec::Mode::Replicated(pb::ReplicatedService {
                replicas: 1,
            })),
            ..Default::default()
        };
        amend(&mut spec, args);
        self.specs.insert(name.to_owned(), spec.clone());
        let spec = Arc::new(ServiceSpec::try_from(spec).unwrap());
        self.apply(vec![Change::CreateService {
            id: service_id(name),
            spec,
        }]);
    }

    fn update(&mut self, name: &str, args: &str) {
        let spec = self.specs.get_mut(name).unwrap();
        amend(spec, args);
        let spec = Arc::new(ServiceSpec::try_from(spec.clone()).unwrap());
        let id = service_id(name);
        let expected = self.state.services[&id].meta.version;
        self.apply(vec![Change::UpdateService { id, expected, spec }]);
    }

    fn history(&mut self, limit: i64) {
        let mut cluster = super::store::Cluster {
            id: swarm_proto::id::ClusterId::from_raw(1),
            meta: Meta::default(),
            spec: pb::ClusterSpec::default(),
            root_ca: pb::RootCa::default(),
            blacklist: BTreeMap::new(),
            unlock_keys: Vec::new(),
            managers: std::collections::BTreeMap::new(),
        };
        cluster.spec.orchestration = Some(pb::OrchestrationConfig {
            task_history_retention_limit: limit,
        });
        self.apply(vec![Change::CreateCluster(Arc::new(cluster))]);
    }

    /// Applies changes as one entry; none may be refused.
    pub(crate) fn apply(&mut self, changes: Vec<Change>) {
        let entry = Entry {
            now: self.now,
            changes,
        };
        let version = self.state.version + 1;
        let applied = apply(&mut self.state, version, &entry);
        for (result, change) in applied.results.iter().zip(&entry.changes) {
            assert_eq!(*result, Ok(()), "{change:?}");
        }
        self.note(&applied.events);
    }

    fn note(&mut self, events: &[Event]) {
        for event in events {
            self.dirty.note(event);
        }
    }

    pub(crate) fn pass(&mut self, dirty: &Dirty) -> Plan {
        self.seed = mix(self.seed);
        pass(&self.state, dirty, self.now, self.seed)
    }

    /// Passes until there is nothing to do.
    pub(crate) fn settle(&mut self) {
        for _ in 0..50 {
            let dirty = std::mem::take(&mut self.dirty);
            let plan = self.pass(&dirty);
            self.wake_at = plan.wake_at;
            self.dirty = Dirty::after(&plan);
            if plan.changes.is_empty() {
                let full = self.pass(&Dirty::all());
                assert_eq!(full.changes, [], "a full pass finds more");
                assert_eq!(
                    full.wake_at, plan.wake_at,
                    "a full pass wakes at another time"
                );
                self.check_promises();
                return;
            }
            for changes in plan.entries() {
                self.apply(changes);
            }
        }
        panic!("never settles");
    }

    /// Nothing is promised twice.
    fn check_promises(&self) {
        for node in self.state.nodes.values() {
            let mut free = node.resources.clone();
            let mut ports = std::collections::BTreeSet::new();
            let holding = self.state.node_tasks(node.id).filter(|t| t.is_active());
            for task in holding {
                let policy = &self.state.task_spec(task).unwrap().task;
                // A paused node that shrank keeps what it has.
                let fits = free.fits(&policy.reservations);
                assert!(
                    fits || node.availability == pb::node_spec::Availability::Pause,
                    "{} is over-committed",
                    self.names[&node.id]
                );
                if fits {
                    free.deduct(
                        &policy.reservations,
                        &task.generic.clone().unwrap_or_default(),
                    );
                }
                for port in &policy.host_ports {
                    assert!(ports.insert(*port), "port {port} is taken twice");
                }
            }
        }
    }

    /// Tasks that should run, and where they are.
    pub(crate) fn show(&self) -> String {
        let live = |t: &&Arc<Task>| t.desired <= TaskState::Running;
        self.lines(&live)
    }

    /// All tasks.
    pub(crate) fn show_all(&self) -> String {
        self.lines(&|_| true)
    }

    fn lines(&self, filter: &dyn Fn(&&Arc<Task>) -> bool) -> String {
        let mut tasks: Vec<_> = self.state.tasks.values().filter(filter).collect();
        let name = |t: &Task| self.state.services[&t.service].spec.name.clone();
        tasks.sort_by_key(|t| (name(t), t.slot, t.meta.created_at, t.desired));
        let lines = tasks.into_iter().map(|task| {
            let node = task
                .node
                .map_or("-".to_owned(), |id| self.names[&id].clone());
            let state = task.status.state.as_str().to_lowercase();
            let desired = if task.desired == TaskState::Running {
                String::new()
            } else {
                format!(">{}", task.desired.as_str().to_lowercase())
            };
            let err = match &*task.status.err {
                "" => String::new(),
                err => format!(" ({err})"),
            };
            format!("{}.{}@{node} {state}{desired}{err}", name(task), task.slot)
        });
        lines.collect::<Vec<_>>().join("; ")
    }

    /// How many active tasks each node has: `a:2 b:1`.
    pub(crate) fn spread(&self) -> String {
        let count = |id: &NodeId| self.state.node_tasks(*id).filter(|t| t.is_active()).count();
        let nodes = self
            .names
            .iter()
            .filter(|(id, _)| self.state.nodes.contains_key(*id));
        let nodes = nodes.map(|(id, name)| format!("{name}:{}", count(id)));
        nodes.collect::<Vec<_>>().join(" ")
    }

    /// The images of the tasks that should run, by slot.
    pub(crate) fn images(&self, service: &str) -> String {
        let tasks = self.state.service_tasks(service_id(service));
        let live = tasks.filter(|t| t.desired <= TaskState::Running);
        let images = live.map(|t| {
            let spec = self.state.task_spec(t).unwrap();
            format!("{}:{}", t.slot, spec.container().unwrap().image)
        });
        images.collect::<Vec<_>>().join(" ")
    }

    /// State and message of a service's update.
    pub(crate) fn update_state(&self, service: &str) -> String {
        let service = &self.state.services[&service_id(service)];
        let update = service.update.as_ref();
        update.map_or("none".to_owned(), |u| {
            format!("{} {}", u.state.as_str_name(), u.message)
        })
    }
}

fn report(task: TaskId, state: TaskState) -> Report {
    Report {
        task,
        state,
        at: Timestamp(1),
        message: Text::from("reported"),
        err: Text::default(),
        container: None,
    }
}
