//! Reads that a manager answers from what it has, for operators who ask for that.
//!
//! A read is linearizable unless the caller says otherwise (promise P2): it goes to the leader, which makes sure that it
//! leads. That needs a majority. With the metadata `swarm-stale` a read on the control socket is answered at once by the
//! manager at hand, and the answer says what it is worth: the index of the log that the state is of, and by how much it
//! may lag at most.

use std::fmt;

use http::{HeaderName, HeaderValue};
use swarm_proto::own::operator_server::OperatorServer;
use swarm_proto::pb::control_server::ControlServer;
use swarm_proto::stale::{AGE_MS, INDEX, STALE};
use tonic::Status;
use tonic::body::Body;
use tonic::service::Routes;
use tower::Service as _;

use super::raft::Membership;
use super::store::machine::StoreMachine;
use super::{Manager, server};
use crate::operator::Operator;

/// Answers reads from the state at hand.
#[derive(Clone)]
pub(crate) struct Stale {
    routes: Routes,
    membership: Membership<StoreMachine>,
}

impl fmt::Debug for Stale {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stale").finish_non_exhaustive()
    }
}

impl Stale {
    pub(crate) fn new(manager: &Manager, operator: &Operator) -> Self {
        let api = ControlServer::new(manager.control_api().stale());
        let operator = OperatorServer::new(operator.stale());
        let limit = server::MESSAGE_MAX;
        Self {
            routes: Routes::default()
                .add_service(api.max_decoding_message_size(limit))
                .add_service(operator.max_decoding_message_size(limit)),
            membership: manager.membership(),
        }
    }

    /// What the state at hand is worth.
    fn label(&self) -> [(&'static str, Option<u64>); 2] {
        // The age first: what is applied meanwhile makes the state only newer.
        let age = self.membership.age();
        let millis = age.map(|age| u64::try_from(age.as_millis()).unwrap_or(u64::MAX));
        [
            (AGE_MS, millis),
            (INDEX, Some(self.membership.status().applied)),
        ]
    }

    pub(super) async fn answer(mut self, request: http::Request<Body>) -> http::Response<Body> {
        if !is_read(request.uri().path()) {
            let text =
                "only what reads the cluster can be answered without the leader: leave out --stale";
            return Status::invalid_argument(text).into_http();
        }
        let label = self.label();
        let mut answer = match self.routes.call(request).await {
            Ok(answer) => answer,
            Err(never) => match never {},
        };
        for (name, value) in label {
            if let Some(value) = value {
                let name = HeaderName::from_static(name);
                answer.headers_mut().insert(name, HeaderValue::from(value));
            }
        }
        answer
    }
}

/// Whether a request reads the cluster's state, and nothing else.
fn is_read(path: &str) -> bool {
    let Some((service, method)) = path.strip_prefix('/').and_then(|p| p.split_once('/')) else {
        return false;
    };
    match service {
        "docker.swarmkit.v1.Control" => method.starts_with("Get") || method.starts_with("List"),
        "swarm.v1.Operator" => method == "ExplainTask",
        _ => false,
    }
}

/// Whether the caller takes what is here.
pub(super) fn is_asked(request: &http::Request<Body>) -> bool {
    request.headers().contains_key(STALE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_reads_are_answered_so() {
        for (path, read) in [
            ("/docker.swarmkit.v1.Control/ListNodes", true),
            ("/docker.swarmkit.v1.Control/GetService", true),
            ("/docker.swarmkit.v1.Control/UpdateNode", false),
            ("/docker.swarmkit.v1.CA/GetUnlockKey", false),
            ("/swarm.v1.Operator/ExplainTask", true),
            ("/swarm.v1.Operator/Backup", false),
            ("/swarm.v1.Images/ListImages", false),
            ("", false),
        ] {
            assert_eq!(is_read(path), read, "{path}");
        }
    }
}
