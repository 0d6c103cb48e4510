//! A manager in memory, with the few requests of the flows under test, over a pipe.
//!
//! What becomes of a service depends on its image: `nginx` runs at once, `broken` is rejected again and
//! again, `stuck` has no node, `slow` never gets further than PREPARING.

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use prost::Message;
use swarm_proto::own::operator_server::{Operator, OperatorServer};
use swarm_proto::{own, pb};
use tonic::server::{Grpc, NamedService, UnaryService};
use tonic::transport::{Channel, Endpoint, Server};
use tonic::{Request, Response, Status};
use tonic_prost::ProstCodec;

use crate::clock::Clock;

/// A clock on which waiting takes no time.
#[derive(Debug, Default)]
pub(super) struct FakeClock(Mutex<Duration>);

/// A day after the objects of the fake were made.
const START: Duration = Duration::from_secs(86_400);

impl Clock for FakeClock {
    fn now(&self) -> SystemTime {
        UNIX_EPOCH + START + *self.0.lock().unwrap()
    }

    fn sleep(&self, duration: Duration) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        *self.0.lock().unwrap() += duration;
        Box::pin(tokio::task::yield_now())
    }
}

#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) nodes: Vec<pb::Node>,
    pub(super) services: Vec<pb::Service>,
    pub(super) tasks: Vec<pb::Task>,
    pub(super) cluster: pb::Cluster,
    /// Requests that change something, in order.
    pub(super) writes: Vec<String>,
    /// Writes to refuse as out of sequence.
    pub(super) races: u32,
    /// Counts of tasks to answer with UNAVAILABLE.
    pub(super) away: u32,
    pub(super) made: u64,
    /// This manager waits for its unlock key.
    pub(super) locked: bool,
}

pub(super) type Shared = Arc<Mutex<State>>;

pub(super) fn node(id: &str, hostname: &str, role: pb::NodeRole) -> pb::Node {
    pb::Node {
        id: format!("{id:0>25}"),
        role: role.into(),
        meta: Some(pb::Meta {
            version: Some(pb::Version { index: 1 }),
            ..Default::default()
        }),
        spec: Some(pb::NodeSpec {
            desired_role: role.into(),
            membership: pb::node_spec::Membership::Accepted.into(),
            ..Default::default()
        }),
        description: Some(pb::NodeDescription {
            hostname: hostname.to_owned(),
            resources: Some(pb::Resources {
                nano_cpus: 2_000_000_000,
                memory_bytes: 4 << 30,
                ..Default::default()
            }),
            ..Default::default()
        }),
        status: Some(pb::NodeStatus {
            state: pb::node_status::State::Ready.into(),
            addr: format!("10.0.0.{id}"),
            ..Default::default()
        }),
        manager_status: (role == pb::NodeRole::Manager).then(|| pb::ManagerStatus {
            addr: format!("10.0.0.{id}:4242"),
            leader: true,
            reachability: pb::raft_member_status::Reachability::Reachable.into(),
            ..Default::default()
        }),
        ..Default::default()
    }
}

impl State {
    fn id(&mut self, prefix: &str) -> String {
        self.made += 1;
        format!("{prefix}{:0>24}", self.made)
    }

    fn image(service: &pb::Service) -> String {
        let task = service.spec.as_ref().unwrap().task.as_ref().unwrap();
        let Some(pb::task_spec::Runtime::Container(container)) = &task.runtime else {
            panic!("unexpected runtime {:?}", task.runtime);
        };
        container.image.clone()
    }

    fn replicas(service: &pb::Service) -> u64 {
        let mode = &service.spec.as_ref().unwrap().mode;
        let Some(pb::service_spec::Mode::Replicated(replicated)) = mode else {
            panic!("unexpected mode {mode:?}");
        };
        replicated.replicas
    }

    /// Brings the tasks of a service in line with its spec.
    fn reconcile(&mut self, id: &str) {
        let service = self
            .services
            .iter()
            .find(|service| service.id == id)
            .unwrap()
            .clone();
        let (replicas, spec) = (Self::replicas(&service), service.spec.clone().unwrap());
        let wanted = spec.task.clone();
        self.tasks
            .retain(|task| task.service_id != id || (task.slot <= replicas && task.spec == wanted));
        let (state, err) = match Self::image(&service).as_str() {
            "broken" => (
                pb::TaskState::Rejected,
                "image broken: not found in the registry",
            ),
            "stuck" => (
                pb::TaskState::Pending,
                "no suitable node (2 nodes: 2 insufficient memory)",
            ),
            "slow" => (pb::TaskState::Preparing, ""),
            _ => (pb::TaskState::Running, ""),
        };
        for slot in 1..=replicas {
            let alive = self.tasks.iter().any(|task| {
                task.service_id == id
                    && task.slot == slot
                    && task.status.as_ref().unwrap().state() <= pb::TaskState::Running
            });
            if alive {
                continue;
            }
            let task_id = self.id("t");
            let seconds = i64::try_from(self.made).unwrap();
            let made = Some(prost_types::Timestamp { seconds, nanos: 0 });
            self.tasks.push(pb::Task {
                id: task_id,
                slot,
                service_id: id.to_owned(),
                service_annotations: spec.annotations.clone(),
                spec: wanted.clone(),
                desired_state: pb::TaskState::Running.into(),
                node_id: if state == pb::TaskState::Pending {
                    String::new()
                } else {
                    self.nodes.last().unwrap().id.clone()
                },
                meta: Some(pb::Meta {
                    created_at: made,
                    ..Default::default()
                }),
                status: Some(pb::TaskStatus {
                    state: state.into(),
                    err: err.to_owned(),
                    timestamp: made,
                    ..Default::default()
                }),
                ..Default::default()
            });
        }
    }

    fn create_service(
        &mut self,
        request: pb::CreateServiceRequest,
    ) -> Result<pb::CreateServiceResponse, Status> {
        let spec = request.spec.unwrap();
        let name = spec.annotations.as_ref().unwrap().name.clone();
        self.writes.push(format!("create service {name}"));
        if self
            .services
            .iter()
            .any(|service| crate::resolve::service_name(service) == name)
        {
            return Err(Status::already_exists(format!(
                "name conflicts with an existing object: service {name} already exists"
            )));
        }
        let service = pb::Service {
            id: self.id("s"),
            meta: Some(pb::Meta {
                version: Some(pb::Version { index: 1 }),
                ..Default::default()
            }),
            spec: Some(spec),
            ..Default::default()
        };
        self.services.push(service.clone());
        self.reconcile(&service.id);
        Ok(pb::CreateServiceResponse {
            service: Some(service),
            ..Default::default()
        })
    }

    fn update_service(
        &mut self,
        request: pb::UpdateServiceRequest,
    ) -> Result<pb::UpdateServiceResponse, Status> {
        self.writes
            .push(format!("update service {}", request.service_id));
        if self.races > 0 {
            self.races -= 1;
            return Err(Status::failed_precondition("update out of sequence"));
        }
        let service = self
            .services
            .iter_mut()
            .find(|service| service.id == request.service_id)
            .unwrap();
        let before = service.spec.clone();
        service.spec = match request.rollback() {
            pb::update_service_request::Rollback::None => request.spec,
            pb::update_service_request::Rollback::Previous => service.previous_spec.clone(),
        };
        service.previous_spec = before;
        let service = service.clone();
        self.reconcile(&service.id);
        Ok(pb::UpdateServiceResponse {
            service: Some(service),
            ..Default::default()
        })
    }

    fn list_tasks(&mut self, request: pb::ListTasksRequest) -> pb::ListTasksResponse {
        let filters = request.filters.unwrap();
        for id in &filters.service_ids {
            self.reconcile(id);
        }
        let any = |list: &[String], text: &str| {
            list.is_empty() || list.iter().any(|one| text.starts_with(one.as_str()))
        };
        let tasks = self.tasks.iter().filter(|task| {
            any(&filters.service_ids, &task.service_id)
                && any(&filters.node_ids, &task.node_id)
                && any(&filters.id_prefixes, &task.id)
                && (filters.desired_states.is_empty()
                    || filters.desired_states.contains(&task.desired_state))
        });
        pb::ListTasksResponse {
            tasks: tasks.cloned().collect(),
        }
    }

    fn statuses(
        &self,
        request: &pb::ListServiceStatusesRequest,
    ) -> pb::ListServiceStatusesResponse {
        let status = |id: &String| {
            let running = |task: &&pb::Task| {
                &task.service_id == id
                    && task.status.as_ref().unwrap().state() == pb::TaskState::Running
            };
            let service = self.services.iter().find(|service| &service.id == id);
            pb::list_service_statuses_response::ServiceStatus {
                service_id: id.clone(),
                desired_tasks: service.map_or(0, Self::replicas),
                running_tasks: self.tasks.iter().filter(running).count() as u64,
                completed_tasks: 0,
            }
        };
        pb::ListServiceStatusesResponse {
            statuses: request.services.iter().map(status).collect(),
        }
    }

    fn statuses_if_there(
        &mut self,
        request: &pb::ListServiceStatusesRequest,
    ) -> Result<pb::ListServiceStatusesResponse, Status> {
        if self.away == 0 {
            return Ok(self.statuses(request));
        }
        self.away -= 1;
        Err(Status::unavailable("no leader"))
    }

    fn list_services(&self, request: pb::ListServicesRequest) -> pb::ListServicesResponse {
        let filters = request.filters.unwrap();
        let services = self.services.iter().filter(|service| {
            (filters.names.is_empty()
                || filters
                    .names
                    .contains(&crate::resolve::service_name(service)))
                && (filters.id_prefixes.is_empty()
                    || filters
                        .id_prefixes
                        .iter()
                        .any(|prefix| service.id.starts_with(prefix)))
        });
        pb::ListServicesResponse {
            services: services.cloned().collect(),
        }
    }

    fn list_nodes(&self, request: pb::ListNodesRequest) -> pb::ListNodesResponse {
        let filters = request.filters.unwrap();
        let nodes = self.nodes.iter().filter(|node| {
            (filters.names.is_empty() || filters.names.contains(&crate::resolve::node_name(node)))
                && (filters.id_prefixes.is_empty()
                    || filters
                        .id_prefixes
                        .iter()
                        .any(|prefix| node.id.starts_with(prefix)))
                && (filters.roles.is_empty() || filters.roles.contains(&node.role))
        });
        pb::ListNodesResponse {
            nodes: nodes.cloned().collect(),
        }
    }

    fn update_node(&mut self, request: pb::UpdateNodeRequest) -> pb::UpdateNodeResponse {
        self.writes.push(format!("update node {}", request.node_id));
        let node = self
            .nodes
            .iter_mut()
            .find(|node| node.id == request.node_id)
            .unwrap();
        node.spec = request.spec;
        pb::UpdateNodeResponse {
            node: Some(node.clone()),
        }
    }

    fn update_cluster(&mut self, request: &pb::UpdateClusterRequest) -> pb::UpdateClusterResponse {
        self.cluster.spec.clone_from(&request.spec);
        if request
            .rotation
            .is_some_and(|rotation| rotation.worker_join_token)
        {
            let root = self.cluster.root_ca.get_or_insert_default();
            root.join_tokens.get_or_insert_default().worker = "SWMTKN-1-root-new".to_owned();
        }
        pb::UpdateClusterResponse {
            cluster: Some(self.cluster.clone()),
        }
    }
}

fn one<T>(found: Option<&T>) -> Result<Option<T>, Status>
where
    T: Clone,
{
    found
        .cloned()
        .map(Some)
        .ok_or_else(|| Status::not_found("not found"))
}

/// The control service by method name: the generated trait would want all 43 methods.
#[derive(Clone)]
struct Control(Shared);

impl NamedService for Control {
    const NAME: &'static str = "docker.swarmkit.v1.Control";
}

struct Answer<F>(F);

impl<Q, A, F: FnMut(Q) -> Result<A, Status>> UnaryService<Q> for Answer<F> {
    type Response = A;
    type Future = Ready<Result<Response<A>, Status>>;

    fn call(&mut self, request: Request<Q>) -> Self::Future {
        ready((self.0)(request.into_inner()).map(Response::new))
    }
}

type Http = http::Request<tonic::body::Body>;

async fn answer<Q, A>(
    request: Http,
    f: impl FnMut(Q) -> Result<A, Status>,
) -> http::Response<tonic::body::Body>
where
    Q: Message + Default + 'static,
    A: Message + Default + 'static,
{
    Grpc::new(ProstCodec::<A, Q>::default())
        .unary(Answer(f), request)
        .await
}

impl tower::Service<Http> for Control {
    type Response = http::Response<tonic::body::Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, http: Http) -> Self::Future {
        let state = self.0.clone();
        Box::pin(async move {
            let lock = || state.lock().unwrap();
            let method = http.uri().path().rsplit('/').next().unwrap().to_owned();
            Ok(match method.as_str() {
                "ListNodes" => answer(http, |q| Ok(lock().list_nodes(q))).await,
                "GetNode" => {
                    answer(http, |q: pb::GetNodeRequest| {
                        let node = one(lock().nodes.iter().find(|node| node.id == q.node_id))?;
                        Ok(pb::GetNodeResponse { node })
                    })
                    .await
                }
                "UpdateNode" => answer(http, |q| Ok(lock().update_node(q))).await,
                "ListServices" => answer(http, |q| Ok(lock().list_services(q))).await,
                "GetService" => {
                    answer(http, |q: pb::GetServiceRequest| {
                        let service = one(lock()
                            .services
                            .iter()
                            .find(|service| service.id == q.service_id))?;
                        Ok(pb::GetServiceResponse { service })
                    })
                    .await
                }
                "CreateService" => answer(http, |q| lock().create_service(q)).await,
                "UpdateService" => answer(http, |q| lock().update_service(q)).await,
                "RemoveService" => {
                    answer(http, |q: pb::RemoveServiceRequest| {
                        let mut state = lock();
                        state.services.retain(|service| service.id != q.service_id);
                        state.tasks.retain(|task| task.service_id != q.service_id);
                        Ok(pb::RemoveServiceResponse {})
                    })
                    .await
                }
                "ListServiceStatuses" => answer(http, |q| lock().statuses_if_there(&q)).await,
                "ListTasks" => answer(http, |q| Ok(lock().list_tasks(q))).await,
                "GetTask" => {
                    answer(http, |q: pb::GetTaskRequest| {
                        let task = one(lock().tasks.iter().find(|task| task.id == q.task_id))?;
                        Ok(pb::GetTaskResponse { task })
                    })
                    .await
                }
                "ListClusters" => {
                    answer(http, |_: pb::ListClustersRequest| {
                        Ok(pb::ListClustersResponse {
                            clusters: vec![lock().cluster.clone()],
                        })
                    })
                    .await
                }
                "UpdateCluster" => answer(http, |q| Ok(lock().update_cluster(&q))).await,
                other => Status::unimplemented(other.to_owned()).into_http(),
            })
        })
    }
}

#[tonic::async_trait]
impl Operator for Control {
    type BackupStream = tokio_stream::Iter<std::vec::IntoIter<Result<own::BackupPart, Status>>>;

    /// A file of ten bytes; cut off where no service is there.
    async fn backup(
        &self,
        _: Request<own::BackupRequest>,
    ) -> Result<Response<Self::BackupStream>, Status> {
        use own::backup_part::Part;
        let whole = !self.0.lock().unwrap().services.is_empty();
        let header = own::BackupHeader {
            cluster_id: "c1".to_owned(),
            index: 7,
            nodes: 2,
            ..Default::default()
        };
        let mut parts = vec![
            Part::Header(header),
            Part::Data(b"01234".to_vec().into()),
            Part::Data(b"56789".to_vec().into()),
        ];
        if whole {
            parts.push(Part::End(10));
        }
        let parts: Vec<_> = parts
            .into_iter()
            .map(|part| Ok(own::BackupPart { part: Some(part) }))
            .collect();
        Ok(Response::new(tokio_stream::iter(parts)))
    }

    async fn explain_task(
        &self,
        _: Request<own::ExplainTaskRequest>,
    ) -> Result<Response<own::ExplainTaskResponse>, Status> {
        let verdict = |hostname: &str, reason: &str| own::NodeVerdict {
            node_id: "n".to_owned(),
            hostname: hostname.to_owned(),
            fits: reason.is_empty(),
            reasons: vec![reason.to_owned()]
                .into_iter()
                .filter(|reason| !reason.is_empty())
                .collect(),
        };
        Ok(Response::new(own::ExplainTaskResponse {
            summary: "no node has the memory it reserves".to_owned(),
            reasons: vec!["it reserves 64 GiB".to_owned()],
            nodes: vec![
                verdict("worker-1", "insufficient memory: 64 GiB wanted, 4 GiB free"),
                verdict("manager-1", ""),
            ],
        }))
    }

    async fn consensus(
        &self,
        _: Request<own::ConsensusRequest>,
    ) -> Result<Response<own::ConsensusView>, Status> {
        Ok(Response::new(own::ConsensusView::default()))
    }

    async fn local_status(
        &self,
        _: Request<own::LocalStatusRequest>,
    ) -> Result<Response<own::LocalStatusResponse>, Status> {
        let state = self.0.lock().unwrap();
        Ok(Response::new(own::LocalStatusResponse {
            node_id: state.nodes[0].id.clone(),
            hostname: "manager-1".to_owned(),
            role: "manager".to_owned(),
            executor: "simulated".to_owned(),
            version: "0.1.0".to_owned(),
            locked: state.locked,
            ..Default::default()
        }))
    }

    async fn leave(
        &self,
        request: Request<own::LeaveRequest>,
    ) -> Result<Response<own::LeaveResponse>, Status> {
        if !request.into_inner().force {
            return Err(Status::failed_precondition(
                "this is the last manager; --force leaves anyway",
            ));
        }
        Ok(Response::new(own::LeaveResponse {
            removed_tasks: 1,
            acknowledged: false,
            reason: "10.0.0.9:4242: the cluster has no leader".to_owned(),
        }))
    }

    async fn unlock(
        &self,
        request: Request<own::UnlockRequest>,
    ) -> Result<Response<own::UnlockResponse>, Status> {
        match request.into_inner().unlock_key.as_str() {
            "SWMKEY-1-right" => Ok(Response::new(own::UnlockResponse {})),
            _ => Err(Status::failed_precondition(
                "this key does not unlock this manager",
            )),
        }
    }
}

/// Serves `state` over a pipe; the connection ends when the channel is dropped.
pub(super) async fn serve(state: Shared) -> Channel {
    let (client, server) = tokio::io::duplex(1 << 16);
    let incoming = tokio_stream::StreamExt::chain(
        tokio_stream::once(Ok::<_, std::io::Error>(server)),
        tokio_stream::pending(),
    );
    let control = Control(state);
    let serving = Server::builder()
        .add_service(control.clone())
        .add_service(OperatorServer::new(control))
        .serve_with_incoming(incoming);
    #[allow(
        clippy::disallowed_methods,
        reason = "it ends with the runtime of the test"
    )]
    tokio::spawn(serving);
    let mut client = Some(client);
    let connector = tower::service_fn(move |_: http::Uri| {
        let stream = client.take().map(hyper_util::rt::TokioIo::new);
        async move { stream.ok_or_else(|| std::io::Error::other("the pipe is used up")) }
    });
    Endpoint::from_static("http://fake.invalid")
        .connect_with_connector(connector)
        .await
        .unwrap()
}
