//! Connections to managers: what a dialer is, and what all connections have in common.

use std::time::Duration;

use tonic::transport::{Channel, Endpoint};

use super::types::Member;

/// How long a TCP connection may take.
const CONNECT: Duration = Duration::from_secs(2);
/// How often a connection is probed, and how long the answer may take.
const KEEP_ALIVE: Duration = Duration::from_secs(3);

/// Makes connections to managers.
pub trait Dialer: Send + Sync + 'static {
    /// A channel to `address` that connects when it is used. The other side must prove that it is
    /// `member`.
    ///
    /// # Errors
    /// When the address can't be one.
    fn dial(&self, member: &Member, address: &str) -> Result<Channel, DialError>;
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
    fn dial(&self, _member: &Member, address: &str) -> Result<Channel, DialError> {
        let endpoint =
            Channel::from_shared(format!("http://{address}")).map_err(|e| DialError {
                address: address.to_owned(),
                reason: e.to_string(),
            })?;
        Ok(manager_endpoint(endpoint).connect_lazy())
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
