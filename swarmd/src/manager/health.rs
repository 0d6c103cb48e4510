//! gRPC health, by SwarmKit's service names.

use swarm_proto::pb;
use swarm_proto::pb::health_check_response::ServingStatus;
use swarm_proto::pb::health_server::Health;
use tonic::{Request, Response, Status};

use super::serving::Serving;

/// Answers for `Raft`, `ControlAPI`, and the server as a whole (an empty name).
#[derive(Debug, Clone)]
pub(crate) struct HealthServer {
    /// None on a manager that takes no part in consensus.
    serving: Option<Serving>,
}

impl HealthServer {
    /// Serving while a leader is there that has a majority.
    pub(crate) fn new(serving: Option<Serving>) -> Self {
        Self { serving }
    }
}

#[tonic::async_trait]
impl Health for HealthServer {
    async fn check(
        &self,
        request: Request<pb::HealthCheckRequest>,
    ) -> Result<Response<pb::HealthCheckResponse>, Status> {
        let name = request.into_inner().service;
        if !["", "Raft", "ControlAPI"].contains(&name.as_str()) {
            return Err(Status::not_found(format!("unknown service {name:?}")));
        }
        let status = match self.serving.as_ref().is_some_and(Serving::serves) {
            true => ServingStatus::Serving,
            false => ServingStatus::NotServing,
        };
        Ok(Response::new(pb::HealthCheckResponse {
            status: status.into(),
        }))
    }
}
