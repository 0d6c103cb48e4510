//! Reads that a manager answers from what it has, for operators who ask for that.
//!
//! A read is linearizable unless the caller says otherwise (promise P2): it goes to the leader, which makes sure that it
//! leads. That needs a majority. With the metadata `swarm-stale` a read on the control socket is answered at once by the
//! manager at hand, and the answer says what it is worth: the index of the log that the state is of, and by how much it
//! may lag at most.

use std::pin::Pin;
use std::task::{Context, Poll};

use futures::future::Either;
use http::{HeaderName, HeaderValue};
use swarm_proto::own::operator_server::OperatorServer;
use swarm_proto::pb::control_server::ControlServer;
use swarm_proto::stale::{AGE_MS, INDEX, STALE};
use tonic::Status;
use tonic::body::Body;
use tonic::service::Routes;
use tower::{Layer, Service};

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

    async fn answer(mut self, request: http::Request<Body>) -> http::Response<Body> {
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

/// Answers the requests that ask for it by [`Stale`]; none on a node without state.
#[derive(Clone)]
pub(crate) struct StaleLayer(pub(crate) Option<Stale>);

impl<S> Layer<S> for StaleLayer {
    type Service = StaleService<S>;

    fn layer(&self, inner: S) -> StaleService<S> {
        StaleService {
            inner,
            stale: self.0.clone(),
        }
    }
}

/// See [`StaleLayer`].
#[derive(Clone)]
pub(crate) struct StaleService<S> {
    inner: S,
    stale: Option<Stale>,
}

type Answer<E> = Pin<Box<dyn Future<Output = Result<http::Response<Body>, E>> + Send>>;

impl<S> Service<http::Request<Body>> for StaleService<S>
where
    S: Service<http::Request<Body>, Response = http::Response<Body>>,
{
    type Response = http::Response<Body>;
    type Error = S::Error;
    type Future = Either<S::Future, Answer<S::Error>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        match &self.stale {
            Some(stale) if request.headers().contains_key(STALE) => {
                let stale = stale.clone();
                Either::Right(Box::pin(async move { Ok(stale.answer(request).await) }))
            }
            Some(_) | None => Either::Left(self.inner.call(request)),
        }
    }
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
