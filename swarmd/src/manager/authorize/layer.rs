//! The tower layer that puts the table before every handler.

use std::fmt;
use std::sync::Arc;
use std::task::{Context, Poll};

use swarm_proto::id::NodeId;
use tonic::Status;
use tonic::body::Body;
use tower::{Layer, Service};

use super::{FORWARDING_KEYS, Rules, authorize};
use crate::ca::{Peer, SecurityConfig};

type Revoked = Arc<dyn Fn(NodeId) -> bool + Send + Sync>;

/// The tower layer that enforces [`super::TABLE`]: the outermost one that sees a request's path.
#[derive(Clone)]
pub struct AuthorizeLayer {
    security: SecurityConfig,
    revoked: Revoked,
}

impl fmt::Debug for AuthorizeLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AuthorizeLayer")
            .field("security", &self.security)
            .finish_non_exhaustive()
    }
}

impl AuthorizeLayer {
    /// Judges by this node's cluster and clock; `revoked` says which nodes were removed.
    pub fn new(
        security: SecurityConfig,
        revoked: impl Fn(NodeId) -> bool + Send + Sync + 'static,
    ) -> Self {
        Self {
            security,
            revoked: Arc::new(revoked),
        }
    }
}

impl<S> Layer<S> for AuthorizeLayer {
    type Service = Authorize<S>;

    fn layer(&self, inner: S) -> Authorize<S> {
        Authorize {
            inner,
            layer: self.clone(),
        }
    }
}

/// See [`AuthorizeLayer`].
#[derive(Debug, Clone)]
pub struct Authorize<S> {
    inner: S,
    layer: AuthorizeLayer,
}

impl<S, B> Service<http::Request<B>> for Authorize<S>
where
    S: Service<http::Request<B>, Response = http::Response<Body>>,
{
    type Response = http::Response<Body>;
    type Error = S::Error;
    type Future =
        futures::future::Either<std::future::Ready<Result<Self::Response, S::Error>>, S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: http::Request<B>) -> Self::Future {
        let rules = Rules {
            cluster_id: self.layer.security.identity().cluster_id(),
            now: self.layer.security.clock().now(),
            revoked: &*self.layer.revoked,
        };
        let peer = request.extensions().get::<Peer>();
        match authorize(request.uri().path(), peer, request.headers(), &rules) {
            Ok(caller) => {
                for key in FORWARDING_KEYS {
                    request.headers_mut().remove(key);
                }
                request.extensions_mut().insert(caller);
                futures::future::Either::Right(self.inner.call(request))
            }
            Err(refusal) => {
                tracing::debug!(path = request.uri().path(), ?peer, %refusal, "refused a request");
                let response = Status::from(&refusal).into_http();
                futures::future::Either::Left(std::future::ready(Ok(response)))
            }
        }
    }
}
