//! gRPC health, by SwarmKit's service names.

use swarm_proto::pb;
use swarm_proto::pb::health_check_response::ServingStatus;
use swarm_proto::pb::health_server::Health;
use tokio::sync::watch;
use tonic::{Request, Response, Status};

use super::raft::Leadership;

/// Answers for `Raft`, `ControlAPI`, and the server as a whole (an empty name).
#[derive(Debug, Clone)]
pub(crate) struct HealthServer {
    leadership: watch::Receiver<Leadership>,
}

impl HealthServer {
    /// Serving while a leader is known.
    pub(crate) fn new(leadership: watch::Receiver<Leadership>) -> Self {
        Self { leadership }
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
        let status = match *self.leadership.borrow() {
            Leadership::None => ServingStatus::NotServing,
            Leadership::Follower { .. } | Leadership::Leader { .. } => ServingStatus::Serving,
        };
        Ok(Response::new(pb::HealthCheckResponse {
            status: status.into(),
        }))
    }
}
