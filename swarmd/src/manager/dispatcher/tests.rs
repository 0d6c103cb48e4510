//! The dispatcher over an in-memory store, called through gRPC on an in-process connection.

use std::sync::Arc;
use std::time::Duration;

use swarm_proto::id::{ClusterId, NodeId, ServiceId, TaskId};
use swarm_proto::pb;
use swarm_proto::pb::assignment_change::AssignmentAction;
use swarm_proto::pb::assignments_message::Type;
use swarm_proto::pb::dispatcher_client::DispatcherClient;
use swarm_proto::pb::dispatcher_server::DispatcherServer;
use swarm_proto::service::{Mode, ServiceSpec, TaskPolicy, UpdateConfig};
use swarm_proto::task_state::TaskState;
use swarm_proto::time::Timestamp;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tonic::metadata::MetadataValue;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint, Server};
use tonic::{Code, Request, Status};

use super::Dispatcher;
use crate::ca::{PeerIdentity, Role};
use crate::clock::{Clock, ManualClock};
use crate::manager::authorize::{Caller, Who};
use crate::manager::store::{Change, NewTask, Placement, State, Task, testing};
use crate::manager::writer::Store;

const START: Timestamp = Timestamp::from_millis(1_700_000_000_000);
const SERVICE: ServiceId = ServiceId::from_raw(77);

type Client = DispatcherClient<InterceptedService<Channel, As>>;

/// Calls as a node.
#[derive(Clone)]
struct As(NodeId);

impl tonic::service::Interceptor for As {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        let value = MetadataValue::try_from(self.0.to_string()).unwrap();
        request.metadata_mut().insert("caller", value);
        Ok(request)
    }
}

/// Stands for the authorisation layer: takes the caller's word for who it is.
fn believe(mut request: Request<()>) -> Result<Request<()>, Status> {
    let Some(caller) = request.metadata().get("caller") else {
        return Ok(request);
    };
    let peer = PeerIdentity {
        node_id: caller.to_str().unwrap().parse().unwrap(),
        role: Role::Worker,
        cluster_id: ClusterId::from_raw(1),
        not_after: Timestamp::MAX,
    };
    request.extensions_mut().insert(Caller {
        who: Who::Node(peer),
        remote: Some("10.0.0.7:1234".parse().unwrap()),
        forwarded_by: None,
        redirected: false,
    });
    Ok(request)
}

struct Bed {
    store: Store,
    hand: ManualClock,
    clock: Clock,
    dispatcher: Dispatcher,
    managers: watch::Sender<Vec<pb::WeightedPeer>>,
    leading: CancellationToken,
    channel: Channel,
    tasks: JoinSet<()>,
}

impl Bed {
    async fn new() -> Self {
        let (clock, hand) = Clock::manual(START);
        let store = Store::in_memory();
        let (managers, seen) = watch::channel(Vec::new());
        let dispatcher = Dispatcher::new(store.clone(), clock.clone(), seen);
        let mut tasks = JoinSet::new();
        let (near, far) = tokio::io::duplex(1 << 20);
        let served = dispatcher.clone();
        tasks.spawn(async move {
            let incoming = futures::stream::iter([Ok::<_, std::io::Error>(far)]);
            let incoming = futures::StreamExt::chain(incoming, futures::stream::pending());
            Server::builder()
                .add_service(DispatcherServer::with_interceptor(served, believe))
                .serve_with_incoming(incoming)
                .await
                .unwrap();
        });
        let mut near = Some(near);
        let connector = tower::service_fn(move |_: http::Uri| {
            let io = near.take().map(hyper_util::rt::TokioIo::new);
            async move { io.ok_or_else(|| std::io::Error::other("only one connection")) }
        });
        let channel = Endpoint::from_static("http://in-process")
            .connect_with_connector(connector)
            .await
            .unwrap();
        let mut bed = Self {
            store,
            hand,
            clock,
            dispatcher,
            managers,
            leading: CancellationToken::new(),
            channel,
            tasks,
        };
        bed.lead().await;
        bed
    }

    async fn lead(&mut self) {
        self.leading = CancellationToken::new();
        let (dispatcher, leading) = (self.dispatcher.clone(), self.leading.clone());
        self.tasks
            .spawn(async move { dispatcher.run(leading).await });
        while self.dispatcher.term().is_err() {
            tokio::task::yield_now().await;
        }
    }

    async fn write(&self, changes: Vec<Change>) {
        let written = self.store.write(self.clock.now(), changes).await.unwrap();
        for result in written.results {
            result.unwrap();
        }
    }

    /// A node that was READY before, so that tasks can be placed there.
    async fn add_node(&self, id: NodeId) {
        let ready = Change::SetNodeStatus {
            id,
            state: pb::node_status::State::Ready,
            message: String::new(),
            addr: None,
            description: None,
        };
        let create = Change::CreateNode(Arc::new(testing::new_node(id)));
        self.write(vec![create, ready]).await;
    }

    fn client(&self, node: NodeId) -> Client {
        DispatcherClient::with_interceptor(self.channel.clone(), As(node))
    }

    /// A session of a node: its id and its stream.
    async fn session(&self, node: NodeId) -> (String, tonic::Streaming<pb::SessionMessage>) {
        let request = pb::SessionRequest {
            description: Some(pb::NodeDescription {
                hostname: "host".to_owned(),
                ..Default::default()
            }),
            session_id: String::new(),
        };
        let answer = self.client(node).session(request).await.unwrap();
        let mut stream = answer.into_inner();
        let first = stream.message().await.unwrap().unwrap();
        (first.session_id, stream)
    }

    async fn assignments(
        &self,
        node: NodeId,
        session: &str,
    ) -> tonic::Streaming<pb::AssignmentsMessage> {
        let request = pb::AssignmentsRequest {
            session_id: session.to_owned(),
            accepts_parts: true,
        };
        let answer = self.client(node).assignments(request).await;
        answer.unwrap().into_inner()
    }

    async fn create_tasks(&self, ids: std::ops::Range<u128>, on: NodeId) {
        if self.store.view().service(SERVICE).is_none() {
            let spec = spec();
            self.write(vec![Change::CreateService { id: SERVICE, spec }])
                .await;
        }
        let spec_version = self.store.view().services[&SERVICE].spec_version;
        let tasks = ids.clone().map(|id| NewTask {
            id: TaskId::from_raw(id),
            slot: u64::try_from(id).unwrap(),
            desired: TaskState::Running,
            node: None,
            generic: Default::default(),
            start_at: Timestamp::ZERO,
            after: None,
        });
        let create = Change::CreateTasks {
            service: SERVICE,
            spec_version,
            tasks: tasks.collect(),
        };
        let placements = ids.map(|id| Placement {
            task: TaskId::from_raw(id),
            node: on,
            generic: Default::default(),
        });
        let place = Change::PlaceTasks {
            placements: placements.collect(),
            message: "scheduler assigned task to node".into(),
        };
        self.write(vec![create, place]).await;
    }

    async fn until(&self, what: &str, check: impl Fn(&State) -> bool) {
        let mut version = self.store.hub().version();
        let waited = async {
            loop {
                version.mark_unchanged();
                if check(&self.store.view()) {
                    return;
                }
                version.changed().await.unwrap();
            }
        };
        let limit = Duration::from_secs(30);
        tokio::time::timeout(limit, waited).await.expect(what);
    }

    fn task(&self, id: u128) -> Arc<Task> {
        Arc::clone(&self.store.view().tasks[&TaskId::from_raw(id)])
    }

    fn node_state(&self, id: NodeId) -> pb::node_status::State {
        self.store.view().nodes[&id].status.state
    }
}

fn spec() -> Arc<ServiceSpec> {
    Arc::new(ServiceSpec {
        wire: Arc::new(pb::ServiceSpec {
            annotations: Some(pb::Annotations {
                name: "web".to_owned(),
                ..Default::default()
            }),
            task: Some(pb::TaskSpec::default()),
            ..Default::default()
        }),
        name: "web".to_owned(),
        mode: Mode::Replicated { replicas: 1 },
        task: TaskPolicy::default(),
        update: UpdateConfig::default(),
        rollback: UpdateConfig::default(),
        ports: Vec::new(),
    })
}

fn report(id: u128, state: TaskState) -> pb::update_task_status_request::TaskStatusUpdate {
    pb::update_task_status_request::TaskStatusUpdate {
        task_id: TaskId::from_raw(id).to_string(),
        status: Some(pb::TaskStatus {
            timestamp: START.to_wire(),
            state: state.to_wire(),
            message: "said".to_owned(),
            ..Default::default()
        }),
    }
}

fn update(
    session: &str,
    updates: Vec<pb::update_task_status_request::TaskStatusUpdate>,
) -> pb::UpdateTaskStatusRequest {
    pb::UpdateTaskStatusRequest {
        session_id: session.to_owned(),
        updates,
    }
}

/// Ids and desired states of the tasks a message updates, ids of those it removes.
fn content(message: &pb::AssignmentsMessage) -> (Vec<(TaskId, i32)>, Vec<TaskId>) {
    let (mut updated, mut removed) = (Vec::new(), Vec::new());
    for change in &message.changes {
        let Some(pb::assignment::Item::Task(task)) = &change.assignment.as_ref().unwrap().item
        else {
            panic!("not a task");
        };
        let id = task.id.parse().unwrap();
        match change.action() {
            AssignmentAction::Update => updated.push((id, task.desired_state)),
            AssignmentAction::Remove => removed.push(id),
        }
    }
    (updated, removed)
}

const N1: NodeId = NodeId::from_raw(1);
const N2: NodeId = NodeId::from_raw(2);

#[tokio::test]
async fn a_session_makes_a_node_ready_and_hears_of_changes() {
    let bed = Bed::new().await;
    let unknown = bed.client(N1).session(pb::SessionRequest::default()).await;
    assert_eq!(unknown.unwrap_err().code(), Code::NotFound);
    bed.write(vec![Change::CreateNode(Arc::new(testing::new_node(N1)))])
        .await;
    let (first, mut stream) = bed.session(N1).await;
    let stored = Arc::clone(&bed.store.view().nodes[&N1]);
    assert_eq!(stored.status.state, pb::node_status::State::Ready);
    assert_eq!(stored.status.addr, "10.0.0.7");
    assert_eq!(stored.description.as_ref().unwrap().hostname, "host");

    bed.managers.send_replace(vec![pb::WeightedPeer::default()]);
    let message = stream.message().await.unwrap().unwrap();
    assert_eq!(message.managers.len(), 1);
    let change = Change::UpdateNode {
        id: N1,
        expected: stored.meta.version,
        annotations: pb::Annotations::default(),
        desired_role: pb::NodeRole::Manager,
        membership: pb::node_spec::Membership::Accepted,
        availability: pb::node_spec::Availability::Drain,
        addresses: Vec::new(),
        give_up: Vec::new(),
    };
    bed.write(vec![change]).await;
    let message = stream.message().await.unwrap().unwrap();
    let spec = message.node.unwrap().spec.unwrap();
    assert_eq!(spec.desired_role(), pb::NodeRole::Manager);

    let (second, _stream) = bed.session(N1).await;
    assert_ne!(first, second);
    let ended = stream.message().await.unwrap_err();
    assert_eq!(ended.code(), Code::Aborted);
    let old = pb::HeartbeatRequest {
        session_id: first,
        ..Default::default()
    };
    let refused = bed.client(N1).heartbeat(old).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    let new = pb::HeartbeatRequest {
        session_id: second,
        ..Default::default()
    };
    let period = bed.client(N1).heartbeat(new).await.unwrap().into_inner();
    let period = period.period.unwrap();
    assert!((4..=5).contains(&period.seconds), "{period:?}");
}

#[tokio::test]
async fn nobody_speaks_for_a_node() {
    let bed = Bed::new().await;
    bed.add_node(N1).await;
    let mut client = DispatcherClient::new(bed.channel.clone());
    let refused = client.session(pb::SessionRequest::default()).await;
    assert!(refused.is_err());
    let (session, _stream) = bed.session(N1).await;
    bed.add_node(N2).await;
    let stolen = pb::AssignmentsRequest {
        session_id: session,
        accepts_parts: true,
    };
    let refused = bed.client(N2).assignments(stolen).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
}

#[tokio::test]
async fn registering_too_often_is_refused() {
    let bed = Bed::new().await;
    bed.add_node(N1).await;
    let mut kept = Vec::new();
    for _ in 0..3 {
        kept.push(bed.session(N1).await);
    }
    let refused = bed.client(N1).session(pb::SessionRequest::default()).await;
    assert_eq!(refused.unwrap_err().code(), Code::Unavailable);
    let (id, _) = kept.pop().unwrap();
    let resumed = pb::SessionRequest {
        session_id: id.clone(),
        description: None,
    };
    let mut stream = bed.client(N1).session(resumed).await.unwrap().into_inner();
    assert_eq!(stream.message().await.unwrap().unwrap().session_id, id);
}

#[tokio::test]
async fn what_a_node_says_anew_is_stored_also_with_the_session_it_had() {
    let bed = Bed::new().await;
    bed.add_node(N1).await;
    let (id, mut stream) = bed.session(N1).await;
    let resume = async |hostname: &str| {
        let request = pb::SessionRequest {
            description: Some(pb::NodeDescription {
                hostname: hostname.to_owned(),
                ..Default::default()
            }),
            session_id: id.clone(),
        };
        let answer = bed.client(N1).session(request).await.unwrap();
        let mut stream = answer.into_inner();
        let first = stream.message().await.unwrap().unwrap();
        (first.session_id, stream)
    };
    let (same, _kept) = resume("host").await;
    assert_eq!(same, id);
    let (new, _kept) = resume("other").await;
    assert_ne!(new, id);
    let stored = Arc::clone(&bed.store.view().nodes[&N1]);
    assert_eq!(stored.description.as_ref().unwrap().hostname, "other");
    let ended = stream.message().await.unwrap_err();
    assert_eq!(ended.code(), Code::Aborted);
}

#[tokio::test]
async fn assignments_are_complete_then_incremental() {
    let bed = Bed::new().await;
    bed.add_node(N1).await;
    bed.create_tasks(10..13, N1).await;
    let (session, _stream) = bed.session(N1).await;
    let mut stream = bed.assignments(N1, &session).await;
    let complete = stream.message().await.unwrap().unwrap();
    assert_eq!(complete.r#type(), Type::Complete);
    assert!(!complete.more);
    let running = TaskState::Running.to_wire();
    let ids = |range: std::ops::Range<u128>| range.map(TaskId::from_raw);
    let expected: Vec<_> = ids(10..13).map(|id| (id, running)).collect();
    assert_eq!(content(&complete), (expected, vec![]));

    // Status changes and other nodes' tasks are no news: the next message is about 13 and 10.
    let said = update(&session, vec![report(11, TaskState::Running)]);
    bed.client(N1).update_task_status(said).await.unwrap();
    bed.add_node(N2).await;
    bed.create_tasks(20..22, N2).await;
    bed.create_tasks(13..14, N1).await;
    let next = stream.message().await.unwrap().unwrap();
    assert_eq!(next.r#type(), Type::Incremental);
    assert_eq!(next.applies_to, complete.results_in);
    assert_eq!(
        content(&next),
        (vec![(TaskId::from_raw(13), running)], vec![])
    );

    let stop = Change::SetDesired {
        tasks: vec![TaskId::from_raw(11)],
        desired: TaskState::Shutdown,
    };
    let delete = Change::DeleteTasks {
        tasks: vec![TaskId::from_raw(10)],
    };
    bed.write(vec![stop, delete]).await;
    let last = stream.message().await.unwrap().unwrap();
    assert_eq!(last.applies_to, next.results_in);
    let stopped = (TaskId::from_raw(11), TaskState::Shutdown.to_wire());
    assert_eq!(content(&last), (vec![stopped], vec![TaskId::from_raw(10)]));
}

#[tokio::test]
async fn a_slow_node_gets_all_that_it_missed() {
    let bed = Bed::new().await;
    bed.add_node(N1).await;
    let (session, _stream) = bed.session(N1).await;
    let mut stream = bed.assignments(N1, &session).await;
    stream.message().await.unwrap().unwrap();
    // More events than the hub keeps, in entries that the node does not read in between.
    for part in 0..10u128 {
        bed.create_tasks(part * 4000 + 1..(part + 1) * 4000 + 1, N1)
            .await;
    }
    let mut seen = 0;
    let mut version = String::new();
    while seen < 40_000 {
        let message = stream.message().await.unwrap().unwrap();
        assert!(version.is_empty() || message.applies_to == version);
        version = message.results_in.clone();
        assert!(prost::Message::encoded_len(&message) < 4 << 20);
        seen += message.changes.len();
    }
    assert_eq!(seen, 40_000);
}

#[tokio::test]
async fn a_large_complete_set_comes_in_parts() {
    let bed = Bed::new().await;
    bed.add_node(N1).await;
    bed.create_tasks(1..10_001, N1).await;
    let (session, _stream) = bed.session(N1).await;
    let mut stream = bed.assignments(N1, &session).await;
    let (mut seen, mut parts) = (0, 0);
    loop {
        let message = stream.message().await.unwrap().unwrap();
        assert_eq!(message.r#type(), Type::Complete);
        seen += message.changes.len();
        parts += 1;
        if !message.more {
            break;
        }
    }
    assert_eq!(seen, 10_000);
    assert!(parts > 1);
}

#[tokio::test]
async fn statuses_are_written_before_the_answer_and_only_for_own_tasks() {
    let bed = Bed::new().await;
    bed.add_node(N1).await;
    bed.add_node(N2).await;
    bed.create_tasks(10..11, N1).await;
    bed.create_tasks(20..21, N2).await;
    let (session, _stream) = bed.session(N1).await;
    let mut client = bed.client(N1);
    let said = vec![
        report(99, TaskState::Running),
        report(10, TaskState::Running),
    ];
    client
        .update_task_status(update(&session, said))
        .await
        .unwrap();
    assert_eq!(bed.task(10).status.state, TaskState::Running);
    assert_eq!(bed.task(10).status.message.as_ref(), "said");

    let version = bed.store.view().version;
    let again = vec![report(10, TaskState::Running), report(10, TaskState::Ready)];
    client
        .update_task_status(update(&session, again))
        .await
        .unwrap();
    assert_eq!(
        bed.store.view().version,
        version,
        "nothing new, nothing written"
    );

    let foreign = vec![
        report(10, TaskState::Failed),
        report(20, TaskState::Running),
    ];
    let refused = client.update_task_status(update(&session, foreign)).await;
    assert_eq!(refused.unwrap_err().code(), Code::PermissionDenied);
    assert_eq!(bed.task(10).status.state, TaskState::Running);
    let refused = client.update_task_status(update("no", vec![])).await;
    assert_eq!(refused.unwrap_err().code(), Code::InvalidArgument);
}

#[tokio::test]
async fn long_texts_are_cut() {
    let bed = Bed::new().await;
    bed.add_node(N1).await;
    bed.create_tasks(10..11, N1).await;
    let (session, _stream) = bed.session(N1).await;
    let mut said = report(10, TaskState::Running);
    said.status.as_mut().unwrap().message = "ü".repeat(100_000);
    let request = update(&session, vec![said]);
    bed.client(N1).update_task_status(request).await.unwrap();
    assert_eq!(
        bed.task(10).status.message.len(),
        super::status::TEXT_BYTES_MAX
    );
}

#[tokio::test]
async fn a_silent_node_is_down_and_its_session_over() {
    let bed = Bed::new().await;
    bed.add_node(N1).await;
    bed.add_node(N2).await;
    let (_, mut silent) = bed.session(N1).await;
    let (beating, _stream) = bed.session(N2).await;
    for _ in 0..3 {
        bed.hand.advance(Duration::from_millis(4900));
        let beat = pb::HeartbeatRequest {
            session_id: beating.clone(),
            ..Default::default()
        };
        bed.client(N2).heartbeat(beat).await.unwrap();
    }
    assert_eq!(bed.node_state(N1), pb::node_status::State::Ready);
    bed.hand.advance(Duration::from_millis(300));
    let down = |id: NodeId| {
        move |state: &State| state.nodes[&id].status.state == pb::node_status::State::Down
    };
    bed.until("N1 is down", down(N1)).await;
    assert_eq!(
        bed.store.view().nodes[&N1].status.message,
        "heartbeat failure"
    );
    assert_eq!(silent.message().await.unwrap_err().code(), Code::Aborted);
    assert_eq!(bed.node_state(N2), pb::node_status::State::Ready);
    bed.session(N1).await;
    assert_eq!(bed.node_state(N1), pb::node_status::State::Ready);
}

#[tokio::test]
async fn a_new_leader_expects_the_nodes_of_the_old_one() {
    let mut bed = Bed::new().await;
    for id in [N1, N2] {
        bed.add_node(id).await;
    }
    let (_, mut stream) = bed.session(N1).await;
    let (_, _stream) = bed.session(N2).await;
    bed.leading.cancel();
    assert_eq!(stream.message().await.unwrap_err().code(), Code::Aborted);
    bed.until("disconnected", |state| {
        let mut nodes = state.nodes.values();
        nodes.all(|n| n.status.state == pb::node_status::State::Disconnected)
    })
    .await;
    let refused = bed.client(N1).session(pb::SessionRequest::default()).await;
    assert_eq!(refused.unwrap_err().code(), Code::Unavailable);

    bed.lead().await;
    assert_eq!(bed.node_state(N1), pb::node_status::State::Unknown);
    bed.hand.advance(Duration::from_secs(14));
    let (session, _stream) = bed.session(N1).await;
    bed.hand.advance(Duration::from_secs(14));
    let beat = pb::HeartbeatRequest {
        session_id: session,
        ..Default::default()
    };
    bed.client(N1).heartbeat(beat).await.unwrap();
    assert_eq!(
        bed.node_state(N2),
        pb::node_status::State::Unknown,
        "28 s of 30 s"
    );
    bed.hand.advance(Duration::from_secs(3));
    bed.until("N2 is down", |state| {
        state.nodes[&N2].status.state == pb::node_status::State::Down
    })
    .await;
    assert_eq!(bed.node_state(N1), pb::node_status::State::Ready);
}

#[tokio::test]
async fn a_node_that_leaves_is_down_at_once() {
    let bed = Bed::new().await;
    bed.add_node(N1).await;
    let (_, mut stream) = bed.session(N1).await;
    bed.dispatcher.leave(N1).await.unwrap();
    let node = Arc::clone(&bed.store.view().nodes[&N1]);
    assert_eq!(node.status.state, pb::node_status::State::Down);
    assert_eq!(node.status.message, "node left the cluster");
    assert_eq!(stream.message().await.unwrap_err().code(), Code::Aborted);
}

#[tokio::test]
async fn older_agents_get_whole_lists() {
    let bed = Bed::new().await;
    bed.add_node(N1).await;
    bed.create_tasks(10..12, N1).await;
    let (session_id, _stream) = bed.session(N1).await;
    let request = pb::TasksRequest { session_id };
    let mut stream = bed.client(N1).tasks(request).await.unwrap().into_inner();
    assert_eq!(stream.message().await.unwrap().unwrap().tasks.len(), 2);
    bed.create_tasks(12..13, N1).await;
    assert_eq!(stream.message().await.unwrap().unwrap().tasks.len(), 3);
}

#[tokio::test]
async fn a_node_says_what_its_own_tasks_take() {
    let bed = Bed::new().await;
    for id in [N1, N2] {
        bed.add_node(id).await;
    }
    bed.create_tasks(10..12, N1).await;
    bed.create_tasks(20..21, N2).await;
    let (session, stream) = bed.session(N1).await;
    let of = |task: u128, memory_bytes: u64| pb::TaskUsage {
        task_id: TaskId::from_raw(task).to_string(),
        memory_bytes,
        ..Default::default()
    };
    let nonsense = pb::TaskUsage::default();
    let beat = |usage: Vec<pb::TaskUsage>| pb::HeartbeatRequest {
        session_id: session.clone(),
        usage,
    };
    let memory = |node: NodeId, task: u128| {
        let usage = bed.dispatcher.usage(node, TaskId::from_raw(task));
        usage.map(|usage| (usage.memory_bytes, usage.heard_at.is_some()))
    };
    // Of others it may not speak.
    let said = vec![of(11, 7), of(10, 5), of(20, 9), nonsense];
    bed.client(N1).heartbeat(beat(said)).await.unwrap();
    assert_eq!(memory(N1, 10), Some((5, true)));
    assert_eq!(memory(N1, 11), Some((7, true)));
    assert_eq!((memory(N1, 20), memory(N2, 20)), (None, None));
    // One that has ended takes nothing.
    bed.client(N1)
        .heartbeat(beat(vec![of(11, 8)]))
        .await
        .unwrap();
    assert_eq!((memory(N1, 10), memory(N1, 11)), (None, Some((8, true))));
    // What a silent node said is old.
    drop(stream);
    bed.hand.advance(Duration::from_secs(60));
    bed.until("N1 is down", |state| {
        state.nodes[&N1].status.state == pb::node_status::State::Down
    })
    .await;
    assert_eq!(memory(N1, 11), None);
}
