//! Metrics for Prometheus, by HTTP on `--listen-metrics`.
//!
//! ```text
//! GET /metrics ─ look at the node, the state, consensus and the tasks as they are now ─ text
//! ```
//!
//! Nothing is counted on the side but how long things take ([`crate::latency`]): the rest is read from what decides, when
//! it is asked for. Names that SwarmKit has are kept; the others are ours: docs/metrics.md lists all. The text is
//! OpenMetrics, which Prometheus asks for first.
//!
//! Whoever reaches the address reads them: they name nodes and tasks, and no secret.

mod text;

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use agent_runtime::Executor;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::agent::AgentStatus;
use crate::agent::operations::Operations;
use crate::ca::SecurityConfig;
use crate::clock::Clock;
use crate::manager::raft::{Leadership, Membership, RaftLatencies};
use crate::manager::store::machine::StoreMachine;
use crate::manager::writer::Store;
use text::{Manager, Node, Numbers};

/// Who asks is a scraper or two.
const CONNECTIONS_MAX: usize = 32;
/// Time for a request to come whole; a connection that says nothing ends.
const REQUEST_MAX: Duration = Duration::from_secs(10);
/// Pause after a connection could not be taken.
const ACCEPT_AGAIN: Duration = Duration::from_secs(1);
const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// What a manager has, beyond a node.
#[derive(Clone)]
pub(crate) struct ManagerSources {
    pub(crate) store: Store,
    pub(crate) membership: Membership<StoreMachine>,
    pub(crate) leadership: watch::Receiver<Leadership>,
    pub(crate) raft: RaftLatencies,
}

/// What there is to look at.
#[derive(Clone)]
pub(crate) struct Sources {
    pub(crate) security: SecurityConfig,
    pub(crate) agent: watch::Receiver<AgentStatus>,
    pub(crate) executor: Arc<dyn Executor>,
    /// How long it takes.
    pub(crate) operations: Arc<Operations>,
    pub(crate) manager: Option<ManagerSources>,
}

impl Sources {
    async fn numbers(&self) -> Numbers {
        let identity = self.security.identity();
        let agent = self.agent.borrow().clone();
        let node = Node {
            cluster: identity.cluster_id().to_string(),
            id: identity.node_id().to_string(),
            certificate_ends: identity.not_after(),
            in_session: agent.manager_addr.is_some(),
            tasks: agent.tasks,
        };
        let usage = self.executor.usage().await;
        let manager = self.manager.clone().map(|sources| {
            let leads = sources.leadership.borrow().term().is_some();
            let latencies = text::latencies(sources.store.latencies(), &sources.raft);
            let status = sources.membership.status();
            Manager::of(&sources.store.view(), &status, leads).taking(latencies)
        });
        Numbers {
            node,
            usage,
            operations: self.operations.counts(),
            manager,
        }
    }
}

/// Serves until it is cancelled.
pub(crate) async fn serve(
    listener: TcpListener,
    sources: Sources,
    clock: Clock,
    cancel: CancellationToken,
) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut connections = JoinSet::new();
    let accept = async {
        loop {
            while connections.try_join_next().is_some() {}
            // Others wait in the listener's queue.
            let Ok(place) = Arc::clone(&places).acquire_owned().await else {
                return;
            };
            let stream = match listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "metrics: no connection could be taken");
                    clock.sleep(ACCEPT_AGAIN).await;
                    continue;
                }
            };
            let sources = sources.clone();
            connections.spawn(async move {
                let _place = place;
                let answer = service_fn(move |request| answer(sources.clone(), request));
                let served = http1::Builder::new()
                    .timer(TokioTimer::new())
                    .header_read_timeout(REQUEST_MAX)
                    .serve_connection(TokioIo::new(stream), answer)
                    .await;
                if let Err(error) = served {
                    tracing::debug!(%error, "metrics: a connection broke");
                }
            });
        }
    };
    let _ = cancel.run_until_cancelled(accept).await;
}

async fn answer(
    sources: Sources,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let (status, kind, text) = match (request.method(), request.uri().path()) {
        (&Method::GET | &Method::HEAD, "/metrics") => match sources.numbers().await.text() {
            Ok(text) => (StatusCode::OK, CONTENT_TYPE, text),
            Err(error) => (
                StatusCode::INTERNAL_SERVER_ERROR,
                "text/plain",
                format!("metrics can't be written: {error}\n"),
            ),
        },
        _ => (
            StatusCode::NOT_FOUND,
            "text/plain",
            "metrics are at /metrics\n".to_owned(),
        ),
    };
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    let kind = header::HeaderValue::from_static(kind);
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    Ok(response)
}
