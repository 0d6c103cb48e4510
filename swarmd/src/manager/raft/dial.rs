//! Connections to managers: what a dialer is, and what all connections have in common.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use http::{Request, Response};
use tonic::body::Body;
use tonic::transport::{Channel, Endpoint};
use tower::Service;
use tower::util::BoxCloneSyncService;

use super::types::Member;

/// How long a TCP connection may take.
const CONNECT: Duration = Duration::from_secs(2);
/// How often a connection is probed, and how long the answer may take.
const KEEP_ALIVE: Duration = Duration::from_secs(3);

/// Makes connections to managers.
pub trait Dialer: Send + Sync + 'static {
    /// A line to `address` that connects when it is used. The other side must prove that it is
    /// `member`.
    ///
    /// # Errors
    /// When the address can't be one.
    fn dial(&self, member: &Member, address: &str) -> Result<Line, DialError>;
}

/// A line to a manager: gRPC requests go in.
#[derive(Clone, Debug)]
pub enum Line {
    /// Over the network.
    Channel(Channel),
    /// Within a simulation.
    Simulated(BoxCloneSyncService<Request<Body>, Response<Body>, LineError>),
}

/// Why a request got no response: the network's part of it.
pub type LineError = Box<dyn std::error::Error + Send + Sync>;

impl From<Channel> for Line {
    fn from(channel: Channel) -> Self {
        Self::Channel(channel)
    }
}

impl Service<Request<Body>> for Line {
    type Response = Response<Body>;
    type Error = LineError;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, LineError>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), LineError>> {
        match self {
            Self::Channel(channel) => channel.poll_ready(cx).map_err(Into::into),
            Self::Simulated(service) => service.poll_ready(cx),
        }
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        match self {
            Self::Channel(channel) => {
                let response = channel.call(request);
                Box::pin(async move { Ok(response.await?) })
            }
            Self::Simulated(service) => service.call(request),
        }
    }
}

/// An address that can't be dialled.
#[derive(Debug, thiserror::Error)]
#[error("manager address {address:?} is not usable ({reason}): expected host:port")]
pub struct DialError {
    /// The address.
    pub address: String,
    /// What is wrong with it.
    pub reason: String,
}

/// Dials without TLS. For tests in one process only.
#[derive(Debug)]
pub struct PlainDialer;

impl Dialer for PlainDialer {
    fn dial(&self, _member: &Member, address: &str) -> Result<Line, DialError> {
        let endpoint =
            Channel::from_shared(format!("http://{address}")).map_err(|e| DialError {
                address: address.to_owned(),
                reason: e.to_string(),
            })?;
        Ok(manager_endpoint(endpoint).connect_lazy().into())
    }
}

/// The settings of every connection to a manager, for any [`Dialer`]: small messages go at once, and
/// a silent peer is noticed.
pub fn manager_endpoint(endpoint: Endpoint) -> Endpoint {
    endpoint
        .tcp_nodelay(true)
        .connect_timeout(CONNECT)
        .http2_keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE)
        .keep_alive_while_idle(true)
}
