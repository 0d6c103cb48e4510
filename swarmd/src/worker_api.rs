//! What the control socket of a worker serves, and of a manager that is fenced: `Operator` and `Images`, as on any node,
//! and for everything that only managers serve the answer whom to ask instead.

use std::convert::Infallible;

use swarm_proto::own::operator_server::{Operator, OperatorServer};
use tokio::sync::watch;
use tonic::Status;
use tonic::body::Body;
use tonic::service::Routes;

use crate::images::LocalImages;

/// Managers named in one answer; any of them serves every request, so more would be no help.
const NAMED_MAX: usize = 5;

/// The managers that this worker knows: where to ask what it can't answer itself.
#[derive(Debug, Clone)]
pub struct AskManager {
    known: watch::Receiver<Vec<String>>,
    fenced: Option<String>,
}

impl AskManager {
    /// Names the managers (host:port) of `known`, as they are when somebody asks.
    #[must_use]
    pub fn new(known: watch::Receiver<Vec<String>>) -> Self {
        Self {
            known,
            fenced: None,
        }
    }

    /// The same on a manager that is fenced, for this reason.
    #[must_use]
    pub fn because(self, fenced: String) -> Self {
        Self {
            fenced: Some(fenced),
            ..self
        }
    }

    /// Why this node, a manager, does not answer itself.
    #[must_use]
    pub fn fenced(&self) -> Option<&str> {
        self.fenced.as_deref()
    }

    /// The answer to a request for a manager.
    #[must_use]
    pub fn refusal(&self) -> Status {
        let known = self.known.borrow();
        let named = known.get(..NAMED_MAX).unwrap_or(&known).join(", ");
        let managers = match known.len() {
            0 => "it has not heard of any manager yet".to_owned(),
            1 => format!("the manager it knows is at {named}"),
            2..=NAMED_MAX => format!("the managers it knows are at {named}"),
            more => format!(
                "the managers it knows are at {named} and {} more",
                more - NAMED_MAX
            ),
        };
        if let Some(fenced) = &self.fenced {
            return Status::failed_precondition(format!("{fenced}; {managers}"));
        }
        Status::failed_precondition(format!(
            "this node is a worker: ask a manager, with swarmctl on its host; {managers}"
        ))
    }
}

/// The services of a worker's control socket.
pub fn routes(operator: impl Operator, images: LocalImages, ask: AskManager) -> Routes {
    let elsewhere = tower::service_fn(move |_: http::Request<_>| {
        let answer = ask.refusal().into_http::<Body>();
        async move { Ok::<_, Infallible>(answer) }
    });
    let own = Routes::new(OperatorServer::new(operator)).add_service(images.into_server());
    own.into_axum_router().fallback_service(elsewhere).into()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use swarm_proto::own;
    use tonic::{Code, Request, Response};
    use tower::ServiceExt as _;

    use super::*;
    use crate::manager::authorize::TABLE;

    struct Unasked;

    #[tonic::async_trait]
    impl Operator for Unasked {
        type BackupStream = crate::manager::backup::Pieces;

        async fn backup(
            &self,
            _: Request<own::BackupRequest>,
        ) -> Result<Response<Self::BackupStream>, Status> {
            Err(Status::aborted("asked"))
        }

        async fn consensus(
            &self,
            _: Request<own::ConsensusRequest>,
        ) -> Result<Response<own::ConsensusView>, Status> {
            Err(Status::aborted("asked"))
        }

        async fn explain_task(
            &self,
            _: Request<own::ExplainTaskRequest>,
        ) -> Result<Response<own::ExplainTaskResponse>, Status> {
            Err(Status::aborted("asked"))
        }

        async fn local_status(
            &self,
            _: Request<own::LocalStatusRequest>,
        ) -> Result<Response<own::LocalStatusResponse>, Status> {
            Err(Status::aborted("asked"))
        }

        async fn leave(
            &self,
            _: Request<own::LeaveRequest>,
        ) -> Result<Response<own::LeaveResponse>, Status> {
            Err(Status::aborted("asked"))
        }

        async fn unlock(
            &self,
            _: Request<own::UnlockRequest>,
        ) -> Result<Response<own::UnlockResponse>, Status> {
            Err(Status::aborted("asked"))
        }
    }

    #[tokio::test]
    async fn every_rpc_is_answered_here_or_names_the_managers() {
        let (_known, managers) = watch::channel(vec!["10.0.0.1:4242".to_owned()]);
        let none = Arc::new(agent_runtime::none::NoExecutor::new("for a test"));
        let images = LocalImages::new(none);
        let routes = routes(Unasked, images, AskManager::new(managers));
        let rpcs = TABLE
            .iter()
            .flat_map(|(service, methods)| methods.iter().map(move |(rpc, _)| (*service, *rpc)));
        for (service, rpc) in rpcs {
            let request = http::Request::post(format!("http://swarmd.invalid/{service}/{rpc}"))
                .header("content-type", "application/grpc")
                // One empty message.
                .body("\0".repeat(5))
                .unwrap();
            let answer = routes.clone().oneshot(request).await.unwrap();
            let status = Status::from_header_map(answer.headers()).unwrap();
            if service == "swarm.v1.Images" {
                let text = status.message();
                assert!(!text.contains("ask a manager"), "{service}/{rpc}: {text}");
                continue;
            }
            if service == "swarm.v1.Operator" {
                assert_eq!(status.code(), Code::Aborted, "{service}/{rpc}");
                continue;
            }
            assert_eq!(status.code(), Code::FailedPrecondition, "{service}/{rpc}");
            let text = status.message();
            assert!(text.contains("10.0.0.1:4242"), "{service}/{rpc}: {text}");
        }
    }

    #[test]
    fn names_some_managers() {
        let told = |known: &[&str]| {
            let known = known.iter().map(|&addr| addr.to_owned()).collect();
            let (_known, managers) = watch::channel(known);
            AskManager::new(managers).refusal().message().to_owned()
        };
        assert!(told(&[]).ends_with("; it has not heard of any manager yet"));
        assert!(told(&["10.0.0.1:4242"]).ends_with("; the manager it knows is at 10.0.0.1:4242"));
        assert!(told(&["a:1", "b:1"]).ends_with("; the managers it knows are at a:1, b:1"));
        assert!(told(&["a", "b", "c", "d", "e", "f", "g"]).ends_with("a, b, c, d, e and 2 more"));
    }
}
