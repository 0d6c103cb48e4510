//! Channels to managers.
//!
//! A channel reconnects by itself and takes the node's current certificate and roots for each new
//! connection. A connection is handed over only after the manager has said something: with TLS 1.3 a
//! refusal of our certificate arrives after our side of the handshake is done, and would otherwise
//! show up as a broken first request without a reason.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use swarm_proto::id::NodeId;
use swarm_proto::pb::GetRootCaCertificateRequest;
use swarm_proto::pb::ca_client::CaClient;
use tokio::io::AsyncBufReadExt as _;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::transport::{Channel, Endpoint, Uri};
use tower::util::BoxCloneSyncService;

use super::connect_error::{ConnectError, chain_text, explain_tls, refused};
use super::root::RootDigest;
use super::tls::{self, SecurityConfig};
use super::x509;
use super::{CA_SERVER_NAME, PeerIdentity, Role};
use crate::clock::Clock;

/// Time for TCP, TLS and the first word of the manager together. SwarmKit's dial timeout is 5 s.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long to wait for the manager's HTTP/2 settings before using the connection anyway: a server
/// may lawfully speak second.
const FIRST_WORD: Duration = Duration::from_secs(1);
/// Time for one request to the CA; SwarmKit's.
pub(crate) const CA_RPC_TIMEOUT: Duration = Duration::from_secs(5);
/// Bytes a manager may send on one stream before it waits for us: a part of the assignments goes out
/// at once instead of in pieces of 64 KiB (HTTP/2's default), a round trip each.
const STREAM_WINDOW: u32 = 2 << 20;
/// The same for all streams of a connection.
const CONNECTION_WINDOW: u32 = 4 << 20;
/// A connection is probed after this long without traffic, and given up after as long again:
/// a manager that lost power is noticed within 10 s.
const KEEPALIVE: Duration = Duration::from_secs(5);

/// A channel to the manager at `addr` (host:port), as this node. Returns once it is connected.
///
/// # Errors
/// Why not, in words for the operator.
pub async fn connect(addr: &str, security: &SecurityConfig) -> Result<Channel, ConnectError> {
    let dialer = Dialer::of_node(addr, security)?;
    dialer.connect().await
}

/// Like [`connect`], but connects with the first request: use [`ConnectError::find`] on its status.
///
/// # Errors
/// When `addr` is no address.
pub fn connect_lazy(addr: &str, security: &SecurityConfig) -> Result<Channel, ConnectError> {
    let dialer = Dialer::of_node(addr, security)?;
    let endpoint = dialer.endpoint()?;
    Ok(endpoint.connect_with_connector_lazy(dialer.into_service()))
}

/// Like [`connect`], and to this node only: whoever else answers at `addr` is hung up on.
///
/// # Errors
/// Why not, in words for the operator.
pub(crate) async fn connect_to(
    node: NodeId,
    addr: &str,
    security: &SecurityConfig,
) -> Result<Channel, ConnectError> {
    let dialer = Dialer::of_node(addr, security)?.expecting(node);
    dialer.connect().await
}

/// Like [`connect_lazy`], and to this node only.
///
/// # Errors
/// When `addr` is no address.
pub(crate) fn connect_lazy_to(
    node: NodeId,
    addr: &str,
    security: &SecurityConfig,
) -> Result<Channel, ConnectError> {
    let dialer = Dialer::of_node(addr, security)?.expecting(node);
    let endpoint = dialer.endpoint()?;
    Ok(endpoint.connect_with_connector_lazy(dialer.into_service()))
}

/// Which manager answers at `addr`.
///
/// # Errors
/// Why none does, in words for the operator.
pub(crate) async fn who_is_at(
    addr: &str,
    security: &SecurityConfig,
) -> Result<NodeId, ConnectError> {
    let dialer = Dialer::of_node(addr, security)?;
    let stream = dialer.dial().await?;
    dialer.node_of(&stream)
}

/// Asks the manager at `addr` for its root certificate and accepts it only if it is the one with
/// this digest. Returns its PEM.
///
/// # Errors
/// When the manager can't be reached or has another root.
pub async fn fetch_root(
    addr: &str,
    expected: RootDigest,
    clock: &Clock,
) -> Result<String, ConnectError> {
    let config = tls::unverified_client(clock)?;
    let channel = Dialer::of_joiner(addr, config, clock)?.connect().await?;
    let mut client = CaClient::new(channel).max_decoding_message_size(2 * x509::MAX_PEM_BYTES);
    let request = client.get_root_ca_certificate(GetRootCaCertificateRequest {});
    let answer = match clock.timeout(CA_RPC_TIMEOUT, request).await {
        Ok(Ok(answer)) => answer.into_inner().certificate,
        Ok(Err(status)) => return Err(refused(addr, &status)),
        Err(elapsed) => {
            return Err(ConnectError::Timeout {
                addr: addr.into(),
                limit: elapsed.0,
            });
        }
    };
    let found = RootDigest::of(&answer);
    if found != expected {
        return Err(ConnectError::DigestMismatch {
            addr: addr.into(),
            expected,
            found,
        });
    }
    let unusable = |reason: String| ConnectError::Refused {
        addr: addr.into(),
        message: format!("its root certificate can't be used: {reason}"),
    };
    x509::certs_from_pem(&answer).map_err(|e| unusable(e.to_string()))?;
    String::from_utf8(answer).map_err(|e| unusable(e.to_string()))
}

/// A channel of a node that has no certificate yet to a manager under this root.
pub(crate) async fn connect_pinned(
    addr: &str,
    root_pem: &str,
    clock: &Clock,
) -> Result<Channel, ConnectError> {
    Dialer::of_joiner(addr, tls::pinned_client(root_pem, clock)?, clock)?
        .connect()
        .await
}

/// Where the configuration of the next connection comes from.
#[derive(Debug, Clone)]
enum ConfigSource {
    Node(SecurityConfig),
    Joiner(Arc<ClientConfig>),
}

/// Makes connections to one address.
#[derive(Debug, Clone)]
struct Dialer {
    addr: Arc<str>,
    source: ConfigSource,
    name: ServerName<'static>,
    /// The node that has to answer, where it matters which.
    node: Option<NodeId>,
    clock: Clock,
}

type Connection = TokioIo<TlsStream<TcpStream>>;

impl Dialer {
    fn of_node(addr: &str, security: &SecurityConfig) -> Result<Self, ConnectError> {
        let name = Role::Manager.organizational_unit();
        let source = ConfigSource::Node(security.clone());
        Self::new(addr, source, name, security.clock())
    }

    fn of_joiner(
        addr: &str,
        config: Arc<ClientConfig>,
        clock: &Clock,
    ) -> Result<Self, ConnectError> {
        Self::new(addr, ConfigSource::Joiner(config), CA_SERVER_NAME, clock)
    }

    fn new(
        addr: &str,
        source: ConfigSource,
        name: &'static str,
        clock: &Clock,
    ) -> Result<Self, ConnectError> {
        let invalid = || ConnectError::Address {
            addr: addr.to_owned(),
        };
        let (host, port) = addr.rsplit_once(':').ok_or_else(invalid)?;
        if host.is_empty() || port.parse::<u16>().is_err() {
            return Err(invalid());
        }
        let name = ServerName::try_from(name).map_err(|_| invalid())?;
        Ok(Self {
            addr: addr.into(),
            source,
            name,
            node: None,
            clock: clock.clone(),
        })
    }

    fn expecting(mut self, node: NodeId) -> Self {
        self.node = Some(node);
        self
    }

    fn endpoint(&self) -> Result<Endpoint, ConnectError> {
        let invalid = |_| ConnectError::Address {
            addr: self.addr.to_string(),
        };
        // TLS is below tonic, so the scheme says http.
        Ok(Endpoint::from_shared(format!("http://{}", self.addr))
            .map_err(invalid)?
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .http2_keep_alive_interval(KEEPALIVE)
            .keep_alive_timeout(KEEPALIVE)
            .keep_alive_while_idle(true))
    }

    fn into_service(self) -> BoxCloneSyncService<Uri, Connection, ConnectError> {
        BoxCloneSyncService::new(tower::service_fn(move |_: Uri| {
            let dialer = self.clone();
            async move { dialer.dial().await.map(TokioIo::new) }
        }))
    }

    async fn connect(self) -> Result<Channel, ConnectError> {
        let (endpoint, addr) = (self.endpoint()?, Arc::clone(&self.addr));
        endpoint
            .connect_with_connector(self.into_service())
            .await
            .map_err(|error| {
                ConnectError::find(&error).unwrap_or_else(|| ConnectError::Transport {
                    addr: addr.to_string(),
                    reason: chain_text(&error),
                })
            })
    }

    async fn dial(&self) -> Result<TlsStream<TcpStream>, ConnectError> {
        let limit = CONNECT_TIMEOUT;
        match self.clock.timeout(limit, self.handshake()).await {
            Ok(result) => result,
            Err(_) => Err(ConnectError::Timeout {
                addr: self.addr.to_string(),
                limit,
            }),
        }
    }

    async fn handshake(&self) -> Result<TlsStream<TcpStream>, ConnectError> {
        let stream = TcpStream::connect(&*self.addr)
            .await
            .map_err(|e| self.explain(e))?;
        stream.set_nodelay(true).map_err(|e| self.explain(e))?;
        let config = match &self.source {
            ConfigSource::Node(security) => security.client_config(),
            ConfigSource::Joiner(config) => Arc::clone(config),
        };
        let mut stream = TlsConnector::from(config)
            .connect(self.name.clone(), stream)
            .await
            .map_err(|e| self.explain(e))?;
        if let Some(expected) = self.node {
            let found = self.node_of(&stream)?;
            if found != expected {
                let addr = self.addr.to_string();
                return Err(ConnectError::OtherNode {
                    addr,
                    expected,
                    found,
                });
            }
        }
        match self.clock.timeout(FIRST_WORD, stream.fill_buf()).await {
            Ok(Ok([])) => Err(self.explain(io::ErrorKind::UnexpectedEof.into())),
            Ok(Ok(_)) | Err(_) => Ok(stream),
            Ok(Err(error)) => Err(self.explain(error)),
        }
    }

    /// Whose certificate it is that TLS has verified.
    fn node_of(&self, stream: &TlsStream<TcpStream>) -> Result<NodeId, ConnectError> {
        let (_, session) = stream.get_ref();
        let certificate = session.peer_certificates().and_then(|chain| chain.first());
        let identity = certificate.map(|certificate| PeerIdentity::from_der(certificate));
        let reason = match identity {
            Some(Ok(identity)) => return Ok(identity.node_id),
            Some(Err(error)) => error.to_string(),
            None => "it shows no certificate".to_owned(),
        };
        let addr = self.addr.to_string();
        Err(ConnectError::Tls { addr, reason })
    }

    fn explain(&self, error: io::Error) -> ConnectError {
        let addr = self.addr.to_string();
        let tls = error
            .get_ref()
            .and_then(|e| e.downcast_ref::<rustls::Error>());
        match tls {
            Some(tls) => explain_tls(addr, tls),
            None => ConnectError::Unreachable {
                addr,
                source: Arc::new(error),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ca::testing::TestCa;

    #[tokio::test]
    async fn addresses_are_checked_before_anything_is_dialled() {
        let identity = TestCa::new(1).identity(1, Role::Worker);
        let security = SecurityConfig::new(identity, Clock::real()).unwrap();
        for addr in [
            "",
            "host",
            "10.0.0.1",
            "10.0.0.1:",
            ":4242",
            "10.0.0.1:99999",
            "a b:1",
        ] {
            let refused = connect_lazy(addr, &security);
            assert!(
                matches!(refused, Err(ConnectError::Address { .. })),
                "{addr:?}"
            );
        }
        for addr in ["10.0.0.1:4242", "manager.local:4242", "[::1]:4242"] {
            assert!(connect_lazy(addr, &security).is_ok(), "{addr}");
        }
    }
}
