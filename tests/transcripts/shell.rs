//! A shell on a node of a simulated cluster.

use std::ffi::OsString;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use agent_runtime::simulated::{SimulatedConfig, SimulatedExecutor, SimulatedRuntime};
use harness::sim::World;
use harness::sim::host::Host;
use harness::sim::specs;
use hyper_util::rt::TokioIo;
use swarm_proto::id::{NodeId, TaskId};
use swarm_proto::own::operator_server::{Operator, OperatorServer};
use swarm_proto::{own, pb};
use swarmctl::{Environment, ExitCode, Terminal};
use swarmd::images::LocalImages;
use swarmd::manager::backup;
use swarmd::manager::bootstrap;
use swarmd::manager::caserver::CaServer;
use swarmd::manager::controlapi::{ControlApi, Managers};
use swarmd::manager::scheduler::explain::explain;
use swarmd::manager::store::{Change, Entry};
use swarmd::manager::writer::{Store, WriteDoor, WriteError, Written};
use swarmd::worker_api::{self, AskManager};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tonic::service::Routes;
use tonic::transport::{Channel, Endpoint, Server};
use tonic::{Request, Response, Status};

use super::names::Names;

/// Nodes of the cluster; n1 is the manager.
const NODES: u128 = 4;
/// The manager.
const MANAGER: NodeId = NodeId::from_raw(1);
/// Where other nodes reach it.
const MANAGER_ADDR: &str = "10.0.0.1:4242";
/// Buffer of the connection between swarmctl and the manager.
const PIPE_BYTES: usize = 1 << 16;

type Shared = Arc<Mutex<World>>;

fn lock(world: &Shared) -> MutexGuard<'_, World> {
    world.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A cluster and a shell on one of its nodes.
#[derive(Debug)]
pub(crate) struct Shell {
    world: Shared,
    /// The node on which the shell is.
    here: Arc<Mutex<NodeId>>,
    manager: Channel,
    worker: Channel,
    names: Names,
    _servers: JoinSet<()>,
}

impl Shell {
    /// A manager and three workers that have just come up.
    pub(crate) async fn new() -> Self {
        let world = World::new(1);
        let (hub, clock) = (world.log.hub.clone(), world.clock.clone());
        let world: Shared = Arc::new(Mutex::new(world));
        let store = Store::new(Arc::new(Door(Arc::clone(&world))), hub);
        let founder = bootstrap::Founder {
            node_id: MANAGER,
            availability: pb::node_spec::Availability::Active,
            unlock_key: None,
            external_cas: Vec::new(),
        };
        bootstrap::found(&store, &clock, founder).await.unwrap();
        {
            let mut world = lock(&world);
            world.lead(0);
            for number in 1..=NODES {
                let id = NodeId::from_raw(number);
                let name = format!("n{number}");
                let description = description(&name);
                world.hosts.insert(id, Host::new(id, &name, description));
                if id != MANAGER {
                    let mut node = specs::node(id, "a");
                    node.annotations = pb::Annotations::default();
                    world.write(vec![Change::CreateNode(Arc::new(node))]);
                }
                world.start_daemon(id);
            }
            world.run_for(Duration::from_secs(2));
        }
        let here = Arc::new(Mutex::new(MANAGER));
        let ca = CaServer::new(store.clone(), clock.clone(), Arc::new(OneManager));
        let api = ControlApi::new(store, clock, Arc::new(OneManager));
        let local = Local(Arc::clone(&world), Arc::clone(&here));
        let mut servers = JoinSet::new();
        let of_manager = Routes::default()
            .add_service(pb::control_server::ControlServer::new(api.clone()))
            .add_service(pb::watch_server::WatchServer::new(api))
            .add_service(pb::ca_server::CaServer::new(ca))
            .add_service(OperatorServer::new(local.clone()))
            .add_service(images().into_server());
        let (_, known) = watch::channel(vec![MANAGER_ADDR.to_owned()]);
        let of_worker = worker_api::routes(local, images(), AskManager::new(known));
        Self {
            world,
            here,
            manager: serve(of_manager, &mut servers).await,
            worker: serve(of_worker, &mut servers).await,
            names: Names::default(),
            _servers: servers,
        }
    }

    /// Runs a command line, and gives what it prints.
    pub(crate) async fn run(&mut self, line: &str) -> String {
        let (line, head) = match line.split_once(" | head -") {
            Some((line, count)) => (line, count.parse().unwrap()),
            None => (line, usize::MAX),
        };
        let clock = Arc::new(Virtual(Arc::clone(&self.world)));
        let here = *self.here.lock().unwrap();
        let channel = match here == MANAGER {
            true => &self.manager,
            false => &self.worker,
        };
        let mut environment = Environment::over(channel.clone(), clock);
        environment
            .variables
            .insert("EDITION".to_owned(), "first".to_owned());
        let (mut terminal, stdout, stderr) = Terminal::captured();
        let code = swarmctl::run(words(line), environment, &mut terminal).await;
        let mut out = String::new();
        for line in stdout.take().lines().take(head) {
            out.push_str(&format!("{}\n", line.trim_end()));
        }
        for line in stderr.take().lines() {
            out.push_str(format!("! {line}").trim_end());
            out.push('\n');
        }
        if code != ExitCode::Ok {
            out.push_str(&format!("[{}]\n", code.code()));
        }
        let world = lock(&self.world);
        assert!(world.log.broken.is_empty(), "{:?}", world.log.broken);
        self.names.learn(&world);
        self.names.replace(&out)
    }

    /// Does what a directive says:
    ///
    /// - `advance 5s`: time passes;
    /// - `on n2`: the shell is on that node from now on;
    /// - `fail node n2`, `start node n2`: its power is cut, or is back;
    /// - `cut off node n2`, `reconnect node n2`: no message gets through, or all do again;
    /// - `kill task web.1`: its container ends;
    /// - `change the leader`: another manager takes over.
    pub(crate) fn direct(&mut self, directive: &str) {
        let mut world = lock(&self.world);
        let words: Vec<&str> = directive.split(' ').collect();
        match words.as_slice() {
            ["advance", time] => {
                let seconds = time.strip_suffix('s').unwrap().parse().unwrap();
                world.run_for(Duration::from_secs(seconds));
            }
            ["on", name] => *self.here.lock().unwrap() = node_of(&world, name),
            ["fail", "node", name] => {
                let id = node_of(&world, name);
                world.power_cut(id);
            }
            ["start", "node", name] => {
                let id = node_of(&world, name);
                world.start_daemon(id);
            }
            ["cut", "off", "node", name] => set_cut_off(&mut world, name, true),
            ["reconnect", "node", name] => set_cut_off(&mut world, name, false),
            ["kill", "task", name] => kill(&mut world, name),
            ["change", "the", "leader"] => world.end_term(),
            _ => panic!("unknown directive: {directive}"),
        }
    }
}

/// The images of a host that has none yet.
fn images() -> LocalImages {
    let config = SimulatedConfig::default();
    LocalImages::new(Arc::new(SimulatedExecutor::new(
        SimulatedRuntime::new(),
        config,
    )))
}

fn node_of(world: &World, name: &str) -> NodeId {
    let host = world.hosts.values().find(|host| host.name == name);
    host.unwrap_or_else(|| panic!("no node {name}")).id
}

fn set_cut_off(world: &mut World, name: &str, cut_off: bool) {
    let id = node_of(world, name);
    world.hosts.get_mut(&id).unwrap().cut_off = cut_off;
}

fn kill(world: &mut World, name: &str) {
    let (service, slot) = name.split_once('.').unwrap();
    let slot: u64 = slot.parse().unwrap();
    let state = &world.log.state;
    let service = state.service_by_name(service).unwrap().id;
    let hosts = world.hosts.values();
    let running: Vec<(NodeId, TaskId)> = hosts
        .flat_map(|host| host.running().map(|task| (host.id, task)))
        .collect();
    let (node, task) = running
        .into_iter()
        .find(|(_, task)| {
            let task = &state.tasks[task];
            (task.service, task.slot) == (service, slot)
        })
        .unwrap_or_else(|| panic!("no container of {name} runs"));
    world.kill_container(node, task);
}

fn description(name: &str) -> pb::NodeDescription {
    pb::NodeDescription {
        hostname: name.to_owned(),
        platform: Some(pb::Platform {
            os: "linux".to_owned(),
            architecture: "x86_64".to_owned(),
        }),
        resources: Some(pb::Resources {
            nano_cpus: 2_000_000_000,
            memory_bytes: 4 << 30,
            ..Default::default()
        }),
        engine: Some(pb::EngineDescription {
            engine_version: "1.6.20".to_owned(),
            ..Default::default()
        }),
        ..Default::default()
    }
}

/// Splits a line as a shell does, as far as the transcripts go.
fn words(line: &str) -> Vec<OsString> {
    let mut words = Vec::new();
    let (mut word, mut quote, mut open) = (String::new(), None, false);
    for letter in line.chars() {
        match (quote, letter) {
            (Some(end), _) if letter == end => quote = None,
            (None, '\'' | '"') => (quote, open) = (Some(letter), true),
            (None, ' ') => {
                if open {
                    words.push(OsString::from(std::mem::take(&mut word)));
                }
                open = false;
            }
            (Some(_) | None, _) => {
                word.push(letter);
                open = true;
            }
        }
    }
    if open {
        words.push(OsString::from(word));
    }
    words
}

/// The write door of the simulated log.
#[derive(Debug)]
struct Door(Shared);

#[tonic::async_trait]
impl WriteDoor for Door {
    async fn write(&self, entry: Entry) -> Result<Written, WriteError> {
        let mut world = lock(&self.0);
        let applied = world.commit("api", entry.now, entry.changes);
        Ok(Written {
            version: world.log.state.version,
            results: applied.results,
        })
    }

    async fn read_barrier(&self) -> Result<(), WriteError> {
        Ok(())
    }
}

/// n1 leads.
#[derive(Debug)]
struct OneManager;

impl Managers for OneManager {
    fn dead(&self) -> Vec<(NodeId, u64)> {
        Vec::new()
    }

    fn knows_who_is_dead(&self) -> bool {
        true
    }

    fn status_of(&self, node: NodeId) -> Option<pb::ManagerStatus> {
        (node == MANAGER).then(|| pb::ManagerStatus {
            addr: MANAGER_ADDR.to_owned(),
            leader: true,
            reachability: pb::raft_member_status::Reachability::Reachable.into(),
            ..Default::default()
        })
    }

    fn may_go(&self, node: NodeId) -> Result<(), String> {
        match node == MANAGER {
            true => Err("it is the only one".to_owned()),
            false => Ok(()),
        }
    }
}

/// What the node at hand answers itself.
#[derive(Debug, Clone)]
struct Local(Shared, Arc<Mutex<NodeId>>);

#[tonic::async_trait]
impl Operator for Local {
    type BackupStream = backup::Pieces;

    async fn backup(
        &self,
        _: Request<own::BackupRequest>,
    ) -> Result<Response<backup::Pieces>, Status> {
        if *self.1.lock().unwrap() != MANAGER {
            return Err(Status::failed_precondition(
                "this node is a worker: ask a manager, with swarmctl on its host",
            ));
        }
        let (state, now) = {
            let world = lock(&self.0);
            (world.log.state.clone(), world.now)
        };
        let header = backup::header_of(&state, state.version, now);
        Ok(Response::new(backup::send(header, state, ())))
    }

    async fn explain_task(
        &self,
        request: Request<own::ExplainTaskRequest>,
    ) -> Result<Response<own::ExplainTaskResponse>, Status> {
        let world = lock(&self.0);
        let id = request.into_inner().task_id.parse::<TaskId>();
        let task = id.ok().and_then(|id| world.log.state.tasks.get(&id));
        let task = task.ok_or_else(|| Status::not_found("task not found"))?;
        Ok(Response::new(explain(&world.log.state, task, world.now)))
    }

    async fn consensus(
        &self,
        _: Request<own::ConsensusRequest>,
    ) -> Result<Response<own::ConsensusView>, Status> {
        let world = lock(&self.0);
        Ok(Response::new(own::ConsensusView {
            term: 1,
            leader: MANAGER.to_string(),
            managers: vec![own::ManagerView {
                node_id: MANAGER.to_string(),
                hostname: world.hosts[&MANAGER].name.clone(),
                addresses: vec!["10.0.0.1:4242".to_owned()],
                voter: true,
                answers: true,
                ..Default::default()
            }],
            ..Default::default()
        }))
    }

    async fn local_status(
        &self,
        _: Request<own::LocalStatusRequest>,
    ) -> Result<Response<own::LocalStatusResponse>, Status> {
        let world = lock(&self.0);
        let here = *self.1.lock().unwrap();
        let role = if here == MANAGER { "manager" } else { "worker" };
        Ok(Response::new(own::LocalStatusResponse {
            node_id: here.to_string(),
            hostname: world.hosts[&here].name.clone(),
            role: role.to_owned(),
            executor: "simulated".to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            ..Default::default()
        }))
    }

    async fn leave(
        &self,
        _: Request<own::LeaveRequest>,
    ) -> Result<Response<own::LeaveResponse>, Status> {
        let mut world = lock(&self.0);
        let here = *self.1.lock().unwrap();
        Ok(Response::new(own::LeaveResponse {
            removed_tasks: world.leave(here),
            acknowledged: true,
            reason: String::new(),
        }))
    }

    async fn unlock(
        &self,
        _: Request<own::UnlockRequest>,
    ) -> Result<Response<own::UnlockResponse>, Status> {
        Err(Status::failed_precondition("this manager is not locked"))
    }
}

/// swarmctl's clock: waiting lets the world go on.
#[derive(Debug)]
struct Virtual(Shared);

impl swarmctl::Clock for Virtual {
    fn now(&self) -> SystemTime {
        let now = lock(&self.0).now;
        UNIX_EPOCH + Duration::from_nanos(now.0.unsigned_abs())
    }

    fn sleep(&self, duration: Duration) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        lock(&self.0).run_for(duration);
        Box::pin(async {
            // What the world did reaches those who watch it.
            for _ in 0..16 {
                tokio::task::yield_now().await;
            }
        })
    }
}

/// Serves what a control socket does over a pipe.
async fn serve(routes: Routes, servers: &mut JoinSet<()>) -> Channel {
    let (client, server) = tokio::io::duplex(PIPE_BYTES);
    let incoming = tokio_stream::StreamExt::chain(
        tokio_stream::once(Ok::<_, std::io::Error>(server)),
        tokio_stream::pending(),
    );
    let serving = Server::builder()
        .add_routes(routes)
        .serve_with_incoming(incoming);
    servers.spawn(async move { serving.await.unwrap() });
    let mut client = Some(client);
    let connector = tower::service_fn(move |_: http::Uri| {
        let client = client.take().map(TokioIo::new);
        async move { client.ok_or_else(|| std::io::Error::other("there is one connection")) }
    });
    Endpoint::from_static("http://swarmd.invalid")
        .connect_with_connector(connector)
        .await
        .unwrap()
}
