//! Many nodes in one process: each joins, keeps a session over a connection of its own, and reports
//! every task it is assigned as RUNNING. Nothing is kept on disk: the manager is what is measured.

use std::sync::Arc;
use std::time::Duration;

use swarm_proto::pb;
use swarm_proto::pb::dispatcher_client::DispatcherClient;
use swarm_proto::pb::node_spec::Availability;
use swarm_proto::pb::update_task_status_request::TaskStatusUpdate;
use swarmd::ca::{JoinRequest, SecurityConfig, connect, join};
use swarmd::clock::Clock;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tonic::transport::Channel;

use super::Failure;
use super::report::say;

/// The argument that makes this program a load.
pub(crate) const COMMAND: &str = "load";
/// Nodes that join at one time.
const JOINING: usize = 16;
/// Files a process may have open: a connection a node.
const FILES: u64 = 16_384;

/// Runs the nodes until one fails, or the process is killed.
pub(crate) async fn run(addr: &str, token: &str, nodes: usize) -> Result<(), Failure> {
    let file = nix::sys::resource::Resource::RLIMIT_NOFILE;
    let (_, most) = nix::sys::resource::getrlimit(file)?;
    nix::sys::resource::setrlimit(file, FILES.min(most), most)?;
    let places = Arc::new(Semaphore::new(JOINING));
    let mut running = JoinSet::new();
    for number in 0..nodes {
        let node = Node {
            number,
            addr: addr.to_owned(),
            token: token.to_owned(),
            places: Arc::clone(&places),
        };
        running.spawn(node.run());
    }
    while let Some(ended) = running.join_next().await {
        ended?.inspect_err(|error| say(&format!("load: {error}")))?;
    }
    Ok(())
}

struct Node {
    number: usize,
    addr: String,
    token: String,
    places: Arc<Semaphore>,
}

impl Node {
    async fn run(self) -> Result<(), Failure> {
        let clock = Clock::real();
        let place = self.places.acquire().await?;
        let request = JoinRequest {
            addrs: vec![self.addr.clone()],
            token: self.token.parse()?,
            availability: Availability::Active,
        };
        let identity = join(&request, &clock).await?;
        let security = SecurityConfig::new(identity, clock)?;
        let channel = connect(&self.addr, &security).await?;
        let mut client = DispatcherClient::new(channel).max_decoding_message_size(16 << 20);
        let mut session = client.session(self.registration()).await?.into_inner();
        let first = session.message().await?.ok_or("no session")?;
        drop(place);
        let id = first.session_id;
        let mut works = JoinSet::new();
        works.spawn(beat(client.clone(), id.clone()));
        works.spawn(work(client, id));
        works.spawn(async move {
            while session.message().await?.is_some() {}
            Err("the session ended".into())
        });
        match works.join_next().await {
            Some(ended) => ended?,
            None => Ok(()),
        }
    }

    fn registration(&self) -> pb::SessionRequest {
        let description = pb::NodeDescription {
            hostname: format!("load-{}", self.number),
            platform: Some(pb::Platform {
                architecture: "amd64".to_owned(),
                os: "linux".to_owned(),
            }),
            resources: Some(pb::Resources {
                nano_cpus: 4_000_000_000,
                memory_bytes: 8 << 30,
                generic: Vec::new(),
            }),
            engine: Some(pb::EngineDescription {
                engine_version: "load".to_owned(),
                ..Default::default()
            }),
            ..Default::default()
        };
        pb::SessionRequest {
            description: Some(description),
            session_id: String::new(),
        }
    }
}

type Client = DispatcherClient<Channel>;

async fn beat(mut client: Client, session_id: String) -> Result<(), Failure> {
    loop {
        let request = pb::HeartbeatRequest {
            session_id: session_id.clone(),
            ..Default::default()
        };
        let answer = client.heartbeat(request).await?.into_inner();
        let seconds = answer.period.map_or(5, |period| period.seconds.max(1));
        tokio::time::sleep(Duration::from_secs(seconds.unsigned_abs())).await;
    }
}

/// Reports what is assigned as RUNNING, message by message.
async fn work(mut client: Client, session_id: String) -> Result<(), Failure> {
    let request = pb::AssignmentsRequest {
        session_id: session_id.clone(),
        accepts_parts: true,
    };
    let mut stream = client.assignments(request).await?.into_inner();
    while let Some(message) = stream.message().await? {
        let updates: Vec<_> = message.changes.into_iter().filter_map(running).collect();
        if updates.is_empty() {
            continue;
        }
        let request = pb::UpdateTaskStatusRequest {
            session_id: session_id.clone(),
            updates,
        };
        client.update_task_status(request).await?;
    }
    Err("the assignments ended".into())
}

/// The report on a task that was assigned; none on what is to be removed.
fn running(change: pb::AssignmentChange) -> Option<TaskStatusUpdate> {
    if change.action() != pb::assignment_change::AssignmentAction::Update {
        return None;
    }
    match change.assignment?.item? {
        pb::assignment::Item::Task(task) => {
            let container = pb::ContainerStatus {
                container_id: format!("sim-{}", task.id),
                ..Default::default()
            };
            let status = pb::TaskStatus {
                state: pb::TaskState::Running.into(),
                message: "started".to_owned(),
                timestamp: task.status.and_then(|status| status.timestamp),
                runtime_status: Some(pb::task_status::RuntimeStatus::Container(container)),
                ..Default::default()
            };
            Some(TaskStatusUpdate {
                task_id: task.id,
                status: Some(status),
            })
        }
        pb::assignment::Item::Secret(_)
        | pb::assignment::Item::Config(_)
        | pb::assignment::Item::Volume(_) => None,
    }
}
