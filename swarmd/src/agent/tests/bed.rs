//! A scripted manager, the way to it that can be cut, and the agent under test.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use agent_runtime::simulated::{Script, SimulatedConfig, SimulatedExecutor, SimulatedRuntime};
use agent_runtime::{Exit, NodeFacts};
use futures::Stream;
use swarm_proto::id::TaskId;
use swarm_proto::own::membership_server::{Membership, MembershipServer};
use swarm_proto::own::{
    JoinManagersRequest, JoinManagersResponse, LeaveClusterRequest, LeaveClusterResponse,
};
use swarm_proto::pb;
use swarm_proto::pb::TaskState;
use swarm_proto::pb::assignment_change::AssignmentAction;
use swarm_proto::pb::assignments_message::Type;
use swarm_proto::pb::dispatcher_server::{Dispatcher, DispatcherServer};
use tokio::io::DuplexStream;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint, Server};
use tonic::{Request, Response, Status};

use crate::agent::{Agent, AgentConfig, Connect};
use crate::ca::ConnectError;
use crate::clock::Clock;

pub(super) type Messages<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;
pub(super) type Feed = mpsc::Sender<Result<pb::AssignmentsMessage, Status>>;

/// What the manager saw, and what it is to say.
#[derive(Debug, Default, Clone)]
pub(super) struct Seen {
    pub(super) sessions: Vec<pb::SessionRequest>,
    pub(super) beats: usize,
    pub(super) statuses: BTreeMap<TaskId, pb::TaskStatus>,
    pub(super) requests: usize,
    pub(super) left: bool,
    /// Assignment streams opened so far.
    pub(super) streams: usize,
    /// Refuses statuses of this task.
    pub(super) foreign: Option<TaskId>,
}

#[derive(Debug, Clone)]
pub(super) struct Manager {
    pub(super) seen: Arc<watch::Sender<Seen>>,
    pub(super) feed: Arc<Mutex<Option<Feed>>>,
    pub(super) feeds: mpsc::Sender<Feed>,
}

#[tonic::async_trait]
impl Dispatcher for Manager {
    type SessionStream = Messages<pb::SessionMessage>;
    type TasksStream = Messages<pb::TasksMessage>;
    type AssignmentsStream = ReceiverStream<Result<pb::AssignmentsMessage, Status>>;

    async fn session(
        &self,
        request: Request<pb::SessionRequest>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let mut number = 0;
        self.seen.send_modify(|seen| {
            seen.sessions.push(request.into_inner());
            number = seen.sessions.len();
        });
        let first = pb::SessionMessage {
            session_id: format!("session-{number}"),
            managers: vec![pb::WeightedPeer {
                peer: Some(pb::Peer {
                    node_id: String::new(),
                    addr: "learnt".to_owned(),
                }),
                weight: 10,
            }],
            ..Default::default()
        };
        let messages = futures::stream::iter([Ok(first)]);
        let messages = futures::StreamExt::chain(messages, futures::stream::pending());
        Ok(Response::new(Box::pin(messages)))
    }

    async fn heartbeat(
        &self,
        _: Request<pb::HeartbeatRequest>,
    ) -> Result<Response<pb::HeartbeatResponse>, Status> {
        self.seen.send_modify(|seen| seen.beats += 1);
        Ok(Response::new(pb::HeartbeatResponse {
            period: Some(prost_types::Duration {
                seconds: 5,
                nanos: 0,
            }),
        }))
    }

    async fn update_task_status(
        &self,
        request: Request<pb::UpdateTaskStatusRequest>,
    ) -> Result<Response<pb::UpdateTaskStatusResponse>, Status> {
        let updates = request.into_inner().updates;
        let mut answer = Ok(Response::new(pb::UpdateTaskStatusResponse {}));
        self.seen.send_modify(|seen| {
            seen.requests += 1;
            let foreign = seen.foreign.map(|id| id.to_string());
            if updates.iter().any(|u| Some(&u.task_id) == foreign.as_ref()) {
                answer = Err(Status::permission_denied("not yours"));
                return;
            }
            for update in updates {
                let id = update.task_id.parse().unwrap();
                seen.statuses.insert(id, update.status.unwrap());
            }
        });
        answer
    }

    async fn update_volume_status(
        &self,
        _: Request<pb::UpdateVolumeStatusRequest>,
    ) -> Result<Response<pb::UpdateVolumeStatusResponse>, Status> {
        Err(Status::unimplemented("no"))
    }

    async fn tasks(
        &self,
        _: Request<pb::TasksRequest>,
    ) -> Result<Response<Self::TasksStream>, Status> {
        Err(Status::unimplemented("no"))
    }

    async fn assignments(
        &self,
        request: Request<pb::AssignmentsRequest>,
    ) -> Result<Response<Self::AssignmentsStream>, Status> {
        assert!(request.into_inner().accepts_parts);
        let (feed, stream) = mpsc::channel(16);
        *self.feed.lock().unwrap() = Some(feed.clone());
        self.feeds.try_send(feed).unwrap();
        self.seen.send_modify(|seen| seen.streams += 1);
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}

#[tonic::async_trait]
impl Membership for Manager {
    async fn leave_cluster(
        &self,
        _: Request<LeaveClusterRequest>,
    ) -> Result<Response<LeaveClusterResponse>, Status> {
        self.seen.send_modify(|seen| seen.left = true);
        Ok(Response::new(LeaveClusterResponse {}))
    }

    async fn join_managers(
        &self,
        _: Request<JoinManagersRequest>,
    ) -> Result<Response<JoinManagersResponse>, Status> {
        Err(Status::unimplemented("no agent asks this"))
    }
}

/// The way to the manager; can be cut.
#[derive(Debug, Clone)]
pub(super) struct Wire {
    pub(super) accept: mpsc::Sender<Result<DuplexStream, std::io::Error>>,
    pub(super) up: Arc<watch::Sender<bool>>,
    pub(super) dialled: Arc<Mutex<Vec<String>>>,
    /// Which certificate the node uses.
    pub(super) tls: Arc<watch::Sender<Option<pb::NodeTlsInfo>>>,
}

#[tonic::async_trait]
impl Connect for Wire {
    async fn connect(&self, addr: &str) -> Result<Channel, ConnectError> {
        self.dialled.lock().unwrap().push(addr.to_owned());
        let unreachable = || ConnectError::Unreachable {
            addr: addr.to_owned(),
            source: Arc::new(std::io::Error::other("cut")),
        };
        if !*self.up.borrow() {
            return Err(unreachable());
        }
        let (near, mut far_near) = tokio::io::duplex(1 << 16);
        let (mut near_far, far) = tokio::io::duplex(1 << 16);
        let mut up = self.up.subscribe();
        // Owned by the connection: ends with it, or with the wire.
        #[expect(clippy::disallowed_methods, reason = "a test's wire")]
        tokio::spawn(async move {
            tokio::select! {
                _ = tokio::io::copy_bidirectional(&mut far_near, &mut near_far) => {}
                _ = up.wait_for(|up| !up) => {}
            }
        });
        self.accept.send(Ok(far)).await.map_err(|_| unreachable())?;
        let mut near = Some(hyper_util::rt::TokioIo::new(near));
        let connector = tower::service_fn(move |_: http::Uri| {
            let io = near.take();
            async move { io.ok_or_else(|| std::io::Error::other("one connection")) }
        });
        let endpoint = Endpoint::from_static("http://in-process");
        let channel = endpoint.connect_with_connector(connector).await;
        channel.map_err(|_| unreachable())
    }

    fn tls_info(&self) -> Option<pb::NodeTlsInfo> {
        self.tls.borrow().clone()
    }

    async fn tls_differs(&self, from: Option<&pb::NodeTlsInfo>) {
        let mut tls = self.tls.subscribe();
        let _ = tls.wait_for(|now| now.as_ref() != from).await;
    }
}

pub(super) struct Bed {
    pub(super) dir: tempfile::TempDir,
    pub(super) runtime: Arc<SimulatedRuntime>,
    pub(super) script: Script,
    pub(super) manager: Manager,
    pub(super) feeds: mpsc::Receiver<Feed>,
    pub(super) wire: Wire,
    pub(super) seen: watch::Receiver<Seen>,
    pub(super) tasks: JoinSet<()>,
    pub(super) sequence: u64,
}

pub(super) struct Running {
    pub(super) agent: Arc<Agent>,
    pub(super) stop: CancellationToken,
    pub(super) done: JoinSet<()>,
}

impl Running {
    pub(super) async fn stop(mut self) {
        self.stop.cancel();
        self.done.join_next().await.unwrap().unwrap();
    }
}

impl Bed {
    pub(super) fn new() -> Self {
        let (feeds_in, feeds) = mpsc::channel(64);
        let (accept, accepted) = mpsc::channel(16);
        let (sender, seen) = watch::channel(Seen::default());
        let manager = Manager {
            seen: Arc::new(sender),
            feed: Arc::default(),
            feeds: feeds_in,
        };
        let mut tasks = JoinSet::new();
        let served = manager.clone();
        tasks.spawn(async move {
            Server::builder()
                .add_service(DispatcherServer::new(served.clone()))
                .add_service(MembershipServer::new(served))
                .serve_with_incoming(ReceiverStream::new(accepted))
                .await
                .unwrap();
        });
        Self {
            dir: tempfile::tempdir().unwrap(),
            runtime: SimulatedRuntime::new(),
            script: Script::default(),
            manager,
            feeds,
            wire: Wire {
                accept,
                up: Arc::new(watch::Sender::new(true)),
                dialled: Arc::default(),
                tls: Arc::default(),
            },
            seen,
            tasks,
            sequence: 0,
        }
    }

    pub(super) fn start(&self) -> Running {
        let config = SimulatedConfig {
            script: self.script.clone(),
            ..SimulatedConfig::default()
        };
        let agent = Arc::new(
            Agent::new(AgentConfig {
                state_dir: self.dir.path().to_owned(),
                node: NodeFacts {
                    id: "node".to_owned(),
                    hostname: "host".to_owned(),
                    ..NodeFacts::default()
                },
                executor: Arc::new(SimulatedExecutor::new(Arc::clone(&self.runtime), config)),
                connector: Arc::new(self.wire.clone()),
                clock: Clock::real(),
                managers: vec!["join".to_owned()],
            })
            .unwrap(),
        );
        let stop = CancellationToken::new();
        let mut done = JoinSet::new();
        let (runs, token) = (Arc::clone(&agent), stop.clone());
        done.spawn(async move { runs.run(token).await });
        Running { agent, stop, done }
    }

    /// The next assignment stream; it starts with this complete set.
    pub(super) async fn accept(&mut self, tasks: &[pb::Task]) -> Feed {
        let feed = self.feeds.recv().await.unwrap();
        self.sequence = 0;
        self.send(&feed, Type::Complete, tasks, &[]).await;
        feed
    }

    pub(super) async fn send(
        &mut self,
        feed: &Feed,
        kind: Type,
        update: &[pb::Task],
        remove: &[u128],
    ) {
        let message = self.message(kind, update, remove);
        feed.send(Ok(message)).await.unwrap();
    }

    pub(super) fn message(
        &mut self,
        kind: Type,
        update: &[pb::Task],
        remove: &[u128],
    ) -> pb::AssignmentsMessage {
        let change = |task: pb::Task, action: AssignmentAction| pb::AssignmentChange {
            assignment: Some(pb::Assignment {
                item: Some(pb::assignment::Item::Task(task)),
            }),
            action: action.into(),
        };
        let update = update
            .iter()
            .map(|t| change(t.clone(), AssignmentAction::Update));
        let remove = remove.iter().map(|id| {
            let id = TaskId::from_raw(*id).to_string();
            let task = pb::Task {
                id,
                ..Default::default()
            };
            change(task, AssignmentAction::Remove)
        });
        let applies_to = match self.sequence {
            0 => String::new(),
            at => at.to_string(),
        };
        self.sequence += 1;
        pb::AssignmentsMessage {
            r#type: kind.into(),
            applies_to,
            results_in: self.sequence.to_string(),
            changes: update.chain(remove).collect(),
            more: false,
        }
    }

    /// As [`Bed::accept`], for tasks that are to run and do when this returns.
    pub(super) async fn accept_running(&mut self, ids: &[u128]) -> Feed {
        let tasks: Vec<_> = ids.iter().map(|id| task(*id, TaskState::Running)).collect();
        let feed = self.accept(&tasks).await;
        for id in ids {
            self.until_state(*id, TaskState::Running).await;
        }
        feed
    }

    /// Assigns this task too, or anew.
    pub(super) async fn update(&mut self, feed: &Feed, task: pb::Task) {
        self.send(feed, Type::Incremental, &[task], &[]).await;
    }

    /// Ends a task's container.
    pub(super) fn end(&self, id: u128, code: u32) {
        let exit = Exit {
            code,
            oom: false,
            detail: None,
        };
        self.runtime.end(&names(&[id])[0], exit).unwrap();
    }

    pub(super) async fn until(&mut self, what: &str, check: impl FnMut(&Seen) -> bool) -> Seen {
        let waited = self.seen.wait_for(check);
        let limit = Duration::from_secs(600);
        let seen = tokio::time::timeout(limit, waited).await;
        seen.unwrap_or_else(|_| panic!("never: {what}"))
            .unwrap()
            .clone()
    }

    pub(super) async fn until_state(&mut self, id: u128, state: TaskState) -> pb::TaskStatus {
        let id = TaskId::from_raw(id);
        let what = format!("{id} is {}", state.as_str_name());
        let is = move |seen: &Seen| seen.statuses.get(&id).is_some_and(|s| s.state() == state);
        let seen = self.until(&what, is).await;
        seen.statuses[&id].clone()
    }

    pub(super) fn running(&self) -> Vec<String> {
        self.runtime.running()
    }
}

pub(super) fn task(id: u128, desired: TaskState) -> pb::Task {
    pb::Task {
        id: TaskId::from_raw(id).to_string(),
        desired_state: desired.into(),
        spec: Some(pb::TaskSpec {
            runtime: Some(pb::task_spec::Runtime::Container(pb::ContainerSpec {
                image: "web".to_owned(),
                ..Default::default()
            })),
            ..Default::default()
        }),
        status: Some(pb::TaskStatus {
            state: TaskState::Assigned.into(),
            ..Default::default()
        }),
        ..Default::default()
    }
}

pub(super) fn names(ids: &[u128]) -> Vec<String> {
    ids.iter()
        .map(|id| TaskId::from_raw(*id).to_string())
        .collect()
}

/// Waits for something that no message tells of.
pub(super) async fn eventually(what: &str, mut check: impl FnMut() -> bool) {
    let waited = async {
        while !check() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let limit = Duration::from_secs(600);
    tokio::time::timeout(limit, waited)
        .await
        .unwrap_or_else(|_| panic!("never: {what}"));
}
