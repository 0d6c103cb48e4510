//! The agent with simulated containers, against a scripted manager on in-process connections.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use agent_runtime::simulated::{
    Reach, Script, SimulatedConfig, SimulatedExecutor, SimulatedRuntime,
};
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

use super::{Agent, AgentConfig, Connect, LeaveError};
use crate::ca::ConnectError;
use crate::clock::Clock;

type Messages<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;
type Feed = mpsc::Sender<Result<pb::AssignmentsMessage, Status>>;

/// What the manager saw, and what it is to say.
#[derive(Debug, Default, Clone)]
struct Seen {
    sessions: Vec<pb::SessionRequest>,
    beats: usize,
    statuses: BTreeMap<TaskId, pb::TaskStatus>,
    requests: usize,
    left: bool,
    /// Assignment streams opened so far.
    streams: usize,
    /// Refuses statuses of this task.
    foreign: Option<TaskId>,
}

#[derive(Debug, Clone)]
struct Manager {
    seen: Arc<watch::Sender<Seen>>,
    feed: Arc<Mutex<Option<Feed>>>,
    feeds: mpsc::Sender<Feed>,
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
struct Wire {
    accept: mpsc::Sender<Result<DuplexStream, std::io::Error>>,
    up: Arc<watch::Sender<bool>>,
    dialled: Arc<Mutex<Vec<String>>>,
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
        None
    }
}

struct Bed {
    dir: tempfile::TempDir,
    runtime: Arc<SimulatedRuntime>,
    script: Script,
    manager: Manager,
    feeds: mpsc::Receiver<Feed>,
    wire: Wire,
    seen: watch::Receiver<Seen>,
    tasks: JoinSet<()>,
    sequence: u64,
}

struct Running {
    agent: Arc<Agent>,
    stop: CancellationToken,
    done: JoinSet<()>,
}

impl Running {
    async fn stop(mut self) {
        self.stop.cancel();
        self.done.join_next().await.unwrap().unwrap();
    }
}

impl Bed {
    fn new() -> Self {
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
            },
            seen,
            tasks,
            sequence: 0,
        }
    }

    fn start(&self) -> Running {
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
    async fn accept(&mut self, tasks: &[pb::Task]) -> Feed {
        let feed = self.feeds.recv().await.unwrap();
        self.sequence = 0;
        self.send(&feed, Type::Complete, tasks, &[]).await;
        feed
    }

    async fn send(&mut self, feed: &Feed, kind: Type, update: &[pb::Task], remove: &[u128]) {
        let message = self.message(kind, update, remove);
        feed.send(Ok(message)).await.unwrap();
    }

    fn message(
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

    async fn until(&mut self, what: &str, check: impl FnMut(&Seen) -> bool) -> Seen {
        let waited = self.seen.wait_for(check);
        let limit = Duration::from_secs(600);
        let seen = tokio::time::timeout(limit, waited).await;
        seen.unwrap_or_else(|_| panic!("never: {what}"))
            .unwrap()
            .clone()
    }

    async fn until_state(&mut self, id: u128, state: TaskState) -> pb::TaskStatus {
        let id = TaskId::from_raw(id);
        let what = format!("{id} is {}", state.as_str_name());
        let is = move |seen: &Seen| seen.statuses.get(&id).is_some_and(|s| s.state() == state);
        let seen = self.until(&what, is).await;
        seen.statuses[&id].clone()
    }

    fn running(&self) -> Vec<String> {
        self.runtime.running()
    }
}

fn task(id: u128, desired: TaskState) -> pb::Task {
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

fn names(ids: &[u128]) -> Vec<String> {
    ids.iter()
        .map(|id| TaskId::from_raw(*id).to_string())
        .collect()
}

/// Waits for something that no message tells of.
async fn eventually(what: &str, mut check: impl FnMut() -> bool) {
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

#[tokio::test(start_paused = true)]
async fn a_task_runs_stops_and_goes() {
    let mut bed = Bed::new();
    let running = bed.start();
    let feed = bed.accept(&[task(1, TaskState::Running)]).await;
    let status = bed.until_state(1, TaskState::Running).await;
    let Some(pb::task_status::RuntimeStatus::Container(container)) = status.runtime_status else {
        panic!("no container");
    };
    assert!(container.container_id.contains(&names(&[1])[0]));
    assert_eq!(bed.running(), names(&[1]));
    assert_eq!(running.agent.status().borrow().tasks, 1);
    assert_eq!(
        running.agent.status().borrow().manager_addr.as_deref(),
        Some("join")
    );

    let held = task(2, TaskState::Ready);
    bed.send(&feed, Type::Incremental, &[held], &[]).await;
    bed.until_state(2, TaskState::Ready).await;
    bed.send(
        &feed,
        Type::Incremental,
        &[task(2, TaskState::Running)],
        &[],
    )
    .await;
    bed.until_state(2, TaskState::Running).await;

    bed.send(
        &feed,
        Type::Incremental,
        &[task(1, TaskState::Shutdown)],
        &[],
    )
    .await;
    bed.until_state(1, TaskState::Shutdown).await;
    assert_eq!(bed.running(), names(&[2]));
    let runtime = Arc::clone(&bed.runtime);
    eventually("what was stopped is cleared", || {
        runtime.held() == names(&[2])
    })
    .await;
    assert_eq!(
        running.agent.status().borrow().tasks,
        2,
        "the manager still asks for its status"
    );
    bed.send(&feed, Type::Incremental, &[], &[1, 2]).await;
    eventually("both are gone", || runtime.held().is_empty()).await;
    let mut status = running.agent.status();
    status.wait_for(|s| s.tasks == 0).await.unwrap();
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_container_that_ends_is_reported() {
    let mut bed = Bed::new();
    let _running = bed.start();
    bed.accept(&[task(1, TaskState::Running), task(2, TaskState::Running)])
        .await;
    bed.until_state(1, TaskState::Running).await;
    bed.until_state(2, TaskState::Running).await;
    let exit = |code, oom| Exit {
        code,
        oom,
        detail: None,
    };
    bed.runtime.end(&names(&[1])[0], exit(0, false)).unwrap();
    bed.until_state(1, TaskState::Complete).await;
    bed.runtime.end(&names(&[2])[0], exit(137, true)).unwrap();
    let status = bed.until_state(2, TaskState::Failed).await;
    assert!(
        status.err.contains("137") && status.err.contains("memory"),
        "{}",
        status.err
    );
}

#[tokio::test(start_paused = true)]
async fn a_restart_touches_no_container() {
    let mut bed = Bed::new();
    let running = bed.start();
    let tasks: Vec<_> = (1..=20).map(|id| task(id, TaskState::Running)).collect();
    bed.accept(&tasks).await;
    bed.until("all run", |s| {
        s.statuses
            .values()
            .filter(|s| s.state() == TaskState::Running)
            .count()
            == 20
    })
    .await;
    running.stop().await;
    assert_eq!(bed.running().len(), 20);

    // No manager answers, and meanwhile one container ended.
    bed.wire.up.send_replace(false);
    let exit = Exit {
        code: 1,
        oom: false,
        detail: None,
    };
    bed.runtime.end(&names(&[7])[0], exit).unwrap();
    let running = bed.start();
    let mut status = running.agent.status();
    status.wait_for(|s| s.tasks == 20).await.unwrap();
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(bed.running().len(), 19);
    bed.wire.up.send_replace(true);
    bed.until_state(7, TaskState::Failed).await;
    let dialled = bed.wire.dialled.lock().unwrap().clone();
    assert!(
        dialled.iter().skip(1).any(|addr| addr == "learnt"),
        "managers of the last session"
    );
    bed.accept(&tasks).await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(bed.running().len(), 19);
    assert_eq!(bed.runtime.held().len(), 20);
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn leftovers_go_only_when_a_manager_has_spoken() {
    let mut bed = Bed::new();
    let running = bed.start();
    bed.accept(&[task(1, TaskState::Running), task(2, TaskState::Running)])
        .await;
    bed.until_state(1, TaskState::Running).await;
    bed.until_state(2, TaskState::Running).await;
    running.stop().await;

    // The agent's file is lost: both are in the runtime only.
    std::fs::remove_dir_all(bed.dir.path().join("worker")).unwrap();
    bed.wire.up.send_replace(false);
    let running = bed.start();
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(bed.running(), names(&[1, 2]), "no manager, nothing removed");
    bed.wire.up.send_replace(true);
    let seen = bed.seen.borrow().statuses.clone();
    bed.accept(&[task(1, TaskState::Running)]).await;
    let runtime = Arc::clone(&bed.runtime);
    eventually("2 is removed", || runtime.held() == names(&[1])).await;
    assert_eq!(bed.running(), names(&[1]));
    bed.until("1 is adopted", |s| {
        s.statuses[&TaskId::from_raw(1)] != seen[&TaskId::from_raw(1)]
    })
    .await;
    bed.until_state(1, TaskState::Running).await;
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn what_a_manager_gave_up_is_stopped() {
    let mut bed = Bed::new();
    let running = bed.start();
    bed.accept(&[task(1, TaskState::Running)]).await;
    bed.until_state(1, TaskState::Running).await;
    running.stop().await;
    std::fs::remove_dir_all(bed.dir.path().join("worker")).unwrap();
    let _running = bed.start();
    let mut orphaned = task(1, TaskState::Shutdown);
    orphaned
        .status
        .as_mut()
        .unwrap()
        .set_state(TaskState::Orphaned);
    bed.accept(&[orphaned]).await;
    let runtime = Arc::clone(&bed.runtime);
    eventually("stopped", || runtime.running().is_empty()).await;
}

#[tokio::test(start_paused = true)]
async fn a_cut_connection_changes_nothing_and_the_session_goes_on() {
    let mut bed = Bed::new();
    let _running = bed.start();
    let feed = bed
        .accept(&[task(1, TaskState::Running), task(2, TaskState::Running)])
        .await;
    bed.until_state(1, TaskState::Running).await;
    bed.until_state(2, TaskState::Running).await;
    bed.wire.up.send_replace(false);
    let exit = Exit {
        code: 3,
        oom: false,
        detail: None,
    };
    bed.runtime.end(&names(&[2])[0], exit).unwrap();
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(bed.running(), names(&[1]));
    drop(feed);
    bed.wire.up.send_replace(true);
    bed.until_state(2, TaskState::Failed).await;
    let seen = bed
        .until("a second session", |s| s.sessions.len() == 2)
        .await;
    assert_eq!(seen.sessions[1].session_id, "session-1");
    assert_eq!(
        seen.sessions[1].description.as_ref().unwrap().hostname,
        "host"
    );
}

#[tokio::test(start_paused = true)]
async fn a_gap_in_the_assignments_leads_to_a_new_session() {
    let mut bed = Bed::new();
    let _running = bed.start();
    let feed = bed.accept(&[task(1, TaskState::Running)]).await;
    bed.until_state(1, TaskState::Running).await;
    let mut gap = bed.message(Type::Incremental, &[], &[1]);
    gap.applies_to = "77".to_owned();
    feed.send(Ok(gap)).await.unwrap();
    bed.accept(&[task(1, TaskState::Running)]).await;
    let seen = bed
        .until("a second session", |s| s.sessions.len() == 2)
        .await;
    assert_eq!(seen.sessions[1].session_id, "", "registers again");
    assert_eq!(bed.running(), names(&[1]));
}

#[tokio::test(start_paused = true)]
async fn parts_of_a_complete_set_are_one_set() {
    let mut bed = Bed::new();
    let running = bed.start();
    bed.accept(&[task(1, TaskState::Running), task(2, TaskState::Running)])
        .await;
    bed.until_state(1, TaskState::Running).await;
    bed.until_state(2, TaskState::Running).await;
    running.stop().await;
    let running = bed.start();
    let feed = bed.feeds.recv().await.unwrap();
    bed.sequence = 0;
    let mut first = bed.message(Type::Complete, &[task(1, TaskState::Running)], &[]);
    first.more = true;
    feed.send(Ok(first)).await.unwrap();
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert_eq!(bed.running(), names(&[1, 2]), "half a set removes nothing");
    let tasks = [task(2, TaskState::Running), task(3, TaskState::Running)];
    bed.send(&feed, Type::Complete, &tasks, &[]).await;
    bed.until_state(3, TaskState::Running).await;
    assert_eq!(bed.running(), names(&[1, 2, 3]));
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn many_tasks_take_few_requests() {
    let mut bed = Bed::new();
    let _running = bed.start();
    let tasks: Vec<_> = (1..=2000).map(|id| task(id, TaskState::Running)).collect();
    bed.accept(&tasks).await;
    let seen = bed
        .until("all run", |seen| {
            let mut states = seen.statuses.values();
            seen.statuses.len() == 2000 && states.all(|s| s.state() == TaskState::Running)
        })
        .await;
    assert!(seen.requests < 100, "{} requests", seen.requests);
}

#[tokio::test(start_paused = true)]
async fn one_foreign_task_does_not_spoil_the_others() {
    let mut bed = Bed::new();
    let foreign = TaskId::from_raw(33);
    bed.manager
        .seen
        .send_modify(|seen| seen.foreign = Some(foreign));
    let _running = bed.start();
    let tasks: Vec<_> = (1..=100).map(|id| task(id, TaskState::Running)).collect();
    bed.accept(&tasks).await;
    let seen = bed
        .until("all others run", |seen| {
            seen.statuses
                .values()
                .filter(|s| s.state() == TaskState::Running)
                .count()
                == 99
        })
        .await;
    assert!(!seen.statuses.contains_key(&foreign));
}

#[tokio::test(start_paused = true)]
async fn tasks_outlive_the_runtimes_absence() {
    let mut bed = Bed::new();
    let running = bed.start();
    let feed = bed.accept(&[task(1, TaskState::Running)]).await;
    bed.until_state(1, TaskState::Running).await;
    bed.runtime.set_up(Reach::Down);
    bed.send(
        &feed,
        Type::Incremental,
        &[task(2, TaskState::Running)],
        &[],
    )
    .await;
    tokio::time::sleep(Duration::from_secs(50)).await;
    let states = bed.seen.borrow().statuses.clone();
    assert_eq!(states[&TaskId::from_raw(1)].state(), TaskState::Running);
    assert_eq!(states[&TaskId::from_raw(2)].state(), TaskState::Preparing);
    bed.runtime.set_up(Reach::Up);
    bed.until_state(2, TaskState::Running).await;
    let exit = Exit {
        code: 1,
        oom: false,
        detail: None,
    };
    bed.runtime.end(&names(&[1])[0], exit).unwrap();
    bed.until_state(1, TaskState::Failed).await;
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_restart_without_the_runtime_waits_for_it() {
    let mut bed = Bed::new();
    let running = bed.start();
    bed.accept(&[task(1, TaskState::Running)]).await;
    bed.until_state(1, TaskState::Running).await;
    running.stop().await;
    bed.runtime.set_up(Reach::Down);
    let running = bed.start();
    bed.accept(&[task(1, TaskState::Running)]).await;
    tokio::time::sleep(Duration::from_secs(100)).await;
    assert_eq!(
        bed.seen.borrow().statuses[&TaskId::from_raw(1)].state(),
        TaskState::Running
    );
    bed.runtime.set_up(Reach::Up);
    tokio::time::sleep(Duration::from_secs(40)).await;
    assert_eq!(bed.running(), names(&[1]));
    let exit = Exit {
        code: 1,
        oom: false,
        detail: None,
    };
    bed.runtime.end(&names(&[1])[0], exit).unwrap();
    bed.until_state(1, TaskState::Failed).await;
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_long_pull_is_given_up_when_the_task_is_to_stop() {
    let mut bed = Bed::new();
    bed.script.prepare = Duration::from_secs(3600);
    let _running = bed.start();
    let feed = bed.accept(&[task(1, TaskState::Running)]).await;
    bed.until_state(1, TaskState::Preparing).await;
    bed.send(
        &feed,
        Type::Incremental,
        &[task(1, TaskState::Shutdown)],
        &[],
    )
    .await;
    let started = tokio::time::Instant::now();
    bed.until_state(1, TaskState::Shutdown).await;
    assert!(started.elapsed() < Duration::from_secs(60));
}

#[tokio::test(start_paused = true)]
async fn temporary_failures_are_tried_again_and_said() {
    let mut bed = Bed::new();
    bed.script.retry_prepare = 3;
    let _running = bed.start();
    bed.accept(&[task(1, TaskState::Running)]).await;
    let status = bed.until_state(1, TaskState::Preparing).await;
    assert!(status.err.contains("not this time"), "{}", status.err);
    let status = bed.until_state(1, TaskState::Running).await;
    assert_eq!(status.err, "");
}

#[tokio::test(start_paused = true)]
async fn leaving_tells_the_managers_and_empties_the_node() {
    let mut bed = Bed::new();
    let running = bed.start();
    let tasks: Vec<_> = (1..=5).map(|id| task(id, TaskState::Running)).collect();
    bed.accept(&tasks).await;
    bed.until_state(5, TaskState::Running).await;
    let left = running.agent.leave(false).await.unwrap();
    assert_eq!((left.removed_tasks, left.acknowledged), (5, true));
    assert!(bed.seen.borrow().left);
    assert!(bed.runtime.held().is_empty());
    assert_eq!(running.agent.status().borrow().tasks, 0);
    running.stop().await;
    let running = bed.start();
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(
        running.agent.status().borrow().tasks,
        0,
        "nothing comes back"
    );
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn leaving_without_a_manager_takes_force() {
    let mut bed = Bed::new();
    let running = bed.start();
    bed.accept(&[task(1, TaskState::Running)]).await;
    bed.until_state(1, TaskState::Running).await;
    bed.wire.up.send_replace(false);
    let mut status = running.agent.status();
    status.wait_for(|s| s.manager_addr.is_none()).await.unwrap();
    let refused = running.agent.leave(false).await.unwrap_err();
    assert!(
        matches!(refused, LeaveError::NotAcknowledged(_)),
        "{refused}"
    );
    assert_eq!(bed.running(), names(&[1]));
    let left = running.agent.leave(true).await.unwrap();
    assert_eq!((left.removed_tasks, left.acknowledged), (1, false));
    assert!(bed.runtime.held().is_empty());
    running.stop().await;
    assert!(bed.dir.path().join("worker/tasks.db").exists());
}

#[tokio::test(start_paused = true)]
async fn a_node_beats() {
    let mut bed = Bed::new();
    let _running = bed.start();
    bed.accept(&[]).await;
    bed.until("three beats", |s| s.beats >= 3).await;
    assert_eq!(bed.seen.borrow().sessions.len(), 1);
    assert_eq!(bed.tasks.len(), 1);
}
