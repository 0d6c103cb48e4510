//! What an operator asks of the node at hand, beyond SwarmKit's API: why a task is where it is, how
//! this node is, and to leave the cluster.

use swarm_proto::own;
use swarm_proto::own::operator_server::Operator as Service;
use swarm_proto::time::Timestamp;
use tokio::sync::{mpsc, oneshot, watch};
use tonic::{Request, Response, Status};

use crate::agent::AgentStatus;
use crate::ca::{Role, SecurityConfig};
use crate::manager::{Answers, backup};
use crate::worker_api::AskManager;

/// What does not change while swarmd runs.
#[derive(Debug, Clone)]
pub struct Facts {
    /// The name this node reports.
    pub hostname: String,
    /// What runs its tasks.
    pub executor: &'static str,
}

/// A request to leave, and where the answer goes.
#[derive(Debug)]
pub struct LeaveOrder {
    /// Also where no manager can be told, or this is the last one.
    pub force: bool,
    /// What came of it.
    pub answer: oneshot::Sender<Result<own::LeaveResponse, String>>,
}

/// What answers a question about the whole cluster.
#[derive(Debug, Clone)]
pub enum ClusterState {
    /// This node is a manager.
    Here(Answers),
    /// This node is a worker, or a manager that is fenced.
    Elsewhere(AskManager),
}

impl ClusterState {
    fn here(&self) -> Result<&Answers, Status> {
        match self {
            Self::Here(answers) => Ok(answers),
            Self::Elsewhere(ask) => Err(ask.refusal()),
        }
    }
}

/// Serves `Operator` on this node.
#[derive(Debug, Clone)]
pub struct Operator {
    security: SecurityConfig,
    facts: Facts,
    agent: watch::Receiver<AgentStatus>,
    leave: mpsc::Sender<LeaveOrder>,
    cluster: ClusterState,
}

impl Operator {
    /// The same, answering without asking the other managers.
    pub(crate) fn stale(&self) -> Self {
        let cluster = match &self.cluster {
            ClusterState::Here(answers) => ClusterState::Here(answers.stale()),
            ClusterState::Elsewhere(ask) => ClusterState::Elsewhere(ask.clone()),
        };
        Self {
            cluster,
            ..self.clone()
        }
    }

    /// For a node.
    pub fn new(
        security: SecurityConfig,
        facts: Facts,
        agent: watch::Receiver<AgentStatus>,
        leave: mpsc::Sender<LeaveOrder>,
        cluster: ClusterState,
    ) -> Self {
        Self {
            security,
            facts,
            agent,
            leave,
            cluster,
        }
    }
}

#[tonic::async_trait]
impl Service for Operator {
    type BackupStream = backup::Pieces;

    async fn backup(
        &self,
        _: Request<own::BackupRequest>,
    ) -> Result<Response<backup::Pieces>, Status> {
        let here = self.cluster.here()?;
        // With everything in it that was acknowledged before it was asked for.
        let read = here.store.read().await;
        read.map_err(crate::manager::controlapi::Error::from)?;
        let now = self.security.clock().now();
        Ok(Response::new(here.backups.backup(now).await?))
    }

    async fn consensus(
        &self,
        _: Request<own::ConsensusRequest>,
    ) -> Result<Response<own::ConsensusView>, Status> {
        let here = self.cluster.here()?;
        // A leader that others have left behind does not know it before it asks them.
        let read = here.store.read().await;
        read.map_err(crate::manager::controlapi::Error::from)?;
        Ok(Response::new(here.consensus()))
    }

    async fn explain_task(
        &self,
        request: Request<own::ExplainTaskRequest>,
    ) -> Result<Response<own::ExplainTaskResponse>, Status> {
        let store = &self.cluster.here()?.store;
        let text = request.into_inner().task_id;
        let not_found = || Status::not_found(format!("task {text} not found"));
        let id: swarm_proto::id::TaskId = text.parse().map_err(|_| not_found())?;
        let state = store
            .read()
            .await
            .map_err(crate::manager::controlapi::Error::from)?;
        let task = state.tasks.get(&id).ok_or_else(not_found)?;
        let now = store.time(self.security.clock());
        Ok(Response::new(crate::manager::scheduler::explain::explain(
            &state, task, now,
        )))
    }

    async fn local_status(
        &self,
        _: Request<own::LocalStatusRequest>,
    ) -> Result<Response<own::LocalStatusResponse>, Status> {
        let identity = self.security.identity();
        let agent = self.agent.borrow().clone();
        Ok(Response::new(own::LocalStatusResponse {
            node_id: identity.node_id().to_string(),
            cluster_id: identity.cluster_id().to_string(),
            hostname: self.facts.hostname.clone(),
            role: identity.role().word().to_owned(),
            manager_addr: agent.manager_addr.unwrap_or_default(),
            tasks: agent.tasks as u64,
            executor: self.facts.executor.to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            locked: false,
            fenced: match &self.cluster {
                ClusterState::Here(_) => String::new(),
                ClusterState::Elsewhere(ask) => ask.fenced().unwrap_or_default().to_owned(),
            },
            certificate_ends: seconds(identity.not_after()),
            certificate_begins: seconds(identity.not_before()),
            consensus: match &self.cluster {
                ClusterState::Here(here) => Some(here.consensus()),
                ClusterState::Elsewhere(_) => None,
            },
        }))
    }

    async fn unlock(
        &self,
        _: Request<own::UnlockRequest>,
    ) -> Result<Response<own::UnlockResponse>, Status> {
        let role = self.security.identity().role();
        Err(Status::failed_precondition(match role {
            Role::Manager => "this manager is not locked",
            Role::Worker => "this node is a worker: only managers are ever locked",
        }))
    }

    async fn leave(
        &self,
        request: Request<own::LeaveRequest>,
    ) -> Result<Response<own::LeaveResponse>, Status> {
        let (answer, answered) = oneshot::channel();
        let order = LeaveOrder {
            force: request.into_inner().force,
            answer,
        };
        let stopping = || Status::unavailable("swarmd is shutting down");
        self.leave.send(order).await.map_err(|_| stopping())?;
        match answered.await {
            Ok(Ok(left)) => Ok(Response::new(left)),
            Ok(Err(reason)) => Err(Status::failed_precondition(reason)),
            Err(_) => Err(stopping()),
        }
    }
}

/// Seconds since 1970; 0 for a time that can't be told.
fn seconds(time: Timestamp) -> i64 {
    time.to_wire().map_or(0, |time| time.seconds)
}
