//! rustls configurations of a node, replaced whole when certificate or root change.
//!
//! Invariants:
//! - TLS 1.2 or later, ALPN `h2`, ring for all cryptography.
//! - A server takes a client certificate if one is given, and then it must lead to the cluster's
//!   root: who comes without one reaches the CA's RPCs only (the authorisation table says so). So does
//!   who comes with one whose time is over: it is shown for getting the next one.
//! - A client takes a server only if its certificate leads to the cluster's root **and** names
//!   `swarm-manager`. Host names and addresses are never looked at.
//! - No session is resumed: a resumed session would not check the certificate's time again.
//!
//! A [`SecurityConfig`] is a handle: listeners and channels ask it for the current configuration at
//! each new connection, so renewal and root rotation need no restart and drop no connection.

use std::sync::Arc;
use std::time::Duration;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::sign::SingleCertAndKey;
use rustls::time_provider::TimeProvider;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, RootCertStore,
    ServerConfig, SignatureScheme,
};
use swarm_proto::time::Timestamp;
use tokio::sync::watch;

use super::identity::{IdentityError, NodeIdentity};
use super::x509::{self, PemProblem};
use super::{CA_SERVER_NAME, Role};
use crate::clock::Clock;

/// Certificates end at whole seconds.
const SECOND: Duration = Duration::from_secs(1);
/// The protocol of gRPC.
const ALPN: &[u8] = b"h2";
/// The protocol of web servers.
const WEB_ALPN: &[u8] = b"http/1.1";

/// Why no TLS configuration could be made.
#[derive(Debug, Clone, thiserror::Error)]
pub enum TlsError {
    /// rustls refuses certificate, key or root.
    #[error("TLS can't use this node's certificates: {0}")]
    Config(Arc<rustls::Error>),
    /// The root certificate.
    #[error("TLS can't use the cluster's root certificate: {0}")]
    Root(String),
    /// An update would make this another node.
    #[error("the new certificate is for {new}, and this node is {current}")]
    OtherNode {
        /// Node id and cluster id of the refused certificate.
        new: String,
        /// Node id and cluster id in use.
        current: String,
    },
    /// New roots don't fit the certificate in use.
    #[error(transparent)]
    Identity(#[from] IdentityError),
}

impl From<rustls::Error> for TlsError {
    fn from(error: rustls::Error) -> Self {
        Self::Config(Arc::new(error))
    }
}

impl TimeProvider for Clock {
    fn current_time(&self) -> Option<UnixTime> {
        let since_epoch = self.now().since(Timestamp::ZERO);
        Some(UnixTime::since_unix_epoch(since_epoch))
    }
}

/// What one connection is made with.
#[derive(Debug)]
struct Current {
    identity: NodeIdentity,
    server: Arc<ServerConfig>,
    client: Arc<ClientConfig>,
}

/// This node's identity and the TLS configurations made from it. Clones share one state.
#[derive(Debug, Clone)]
pub struct SecurityConfig {
    current: Arc<watch::Sender<Arc<Current>>>,
    clock: Clock,
}

impl SecurityConfig {
    /// TLS as this node.
    ///
    /// # Errors
    /// When rustls refuses the certificate or the root.
    pub fn new(identity: NodeIdentity, clock: Clock) -> Result<Self, TlsError> {
        let current = Arc::new(Current::new(identity, &clock)?);
        Ok(Self {
            current: Arc::new(watch::Sender::new(current)),
            clock,
        })
    }

    /// The identity in use.
    #[must_use]
    pub fn identity(&self) -> NodeIdentity {
        self.current.borrow().identity.clone()
    }

    /// The clock certificates are checked against.
    #[must_use]
    pub fn clock(&self) -> &Clock {
        &self.clock
    }

    /// Uses a renewed identity for all connections from now on. Existing ones go on.
    ///
    /// # Errors
    /// When it is another node's or another cluster's, or rustls refuses it.
    pub fn update(&self, identity: NodeIdentity) -> Result<(), TlsError> {
        let (new, current) = (identity.as_peer(), self.identity());
        let current = current.as_peer();
        if (new.node_id, new.cluster_id) != (current.node_id, current.cluster_id) {
            return Err(TlsError::OtherNode {
                new: format!("node {} of cluster {}", new.node_id, new.cluster_id),
                current: format!("node {} of cluster {}", current.node_id, current.cluster_id),
            });
        }
        self.current
            .send_replace(Arc::new(Current::new(identity, &self.clock)?));
        Ok(())
    }

    /// Trusts these roots from now on (one, or old and new during a rotation).
    ///
    /// # Errors
    /// When the certificate in use leads to none of them.
    pub fn update_roots(&self, root_pem: &str) -> Result<(), TlsError> {
        self.update(self.identity().with_roots(root_pem)?)
    }

    /// Tells of updates: the receiver's value is the identity in use.
    #[must_use]
    pub fn changes(&self) -> IdentityChanges {
        IdentityChanges(self.current.subscribe())
    }

    pub(crate) fn server_config(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.current.borrow().server)
    }

    pub(crate) fn client_config(&self) -> Arc<ClientConfig> {
        Arc::clone(&self.current.borrow().client)
    }
}

/// A subscription to a [`SecurityConfig`]'s updates.
#[derive(Debug)]
pub struct IdentityChanges(watch::Receiver<Arc<Current>>);

impl IdentityChanges {
    /// The next identity; waits for an update that was not seen yet. `None` when the handle is gone.
    pub async fn next(&mut self) -> Option<NodeIdentity> {
        self.0.changed().await.ok()?;
        Some(self.0.borrow_and_update().identity.clone())
    }
}

impl Current {
    fn new(identity: NodeIdentity, clock: &Clock) -> Result<Self, TlsError> {
        let roots = Arc::new(root_store(identity.roots())?);
        Ok(Self {
            server: Arc::new(server_config(&identity, &roots, clock)?),
            client: Arc::new(client_config(Some(&identity), &roots, clock)?),
            identity,
        })
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn root_store(roots: &[CertificateDer<'static>]) -> Result<RootCertStore, TlsError> {
    let mut store = RootCertStore::empty();
    for root in roots {
        store.add(root.clone())?;
    }
    Ok(store)
}

fn server_config(
    identity: &NodeIdentity,
    roots: &Arc<RootCertStore>,
    clock: &Clock,
) -> Result<ServerConfig, TlsError> {
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::clone(roots), provider())
        .allow_unauthenticated()
        .build()
        .map_err(|e| TlsError::Root(e.to_string()))?;
    let verifier = Arc::new(ExpiredToo(verifier));
    let mut config = ServerConfig::builder_with_details(provider(), Arc::new(clock.clone()))
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(identity.certified())));
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}

/// Without an identity: a joiner that has pinned the root.
fn client_config(
    identity: Option<&NodeIdentity>,
    roots: &Arc<RootCertStore>,
    clock: &Clock,
) -> Result<ClientConfig, TlsError> {
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::clone(roots), provider())
        .build()
        .map_err(|e| TlsError::Root(e.to_string()))?;
    let builder = ClientConfig::builder_with_details(provider(), Arc::new(clock.clone()))
        .with_safe_default_protocol_versions()?
        .with_webpki_verifier(verifier);
    let config = match identity {
        Some(identity) => builder
            .with_client_cert_resolver(Arc::new(SingleCertAndKey::from(identity.certified()))),
        None => builder.with_no_client_auth(),
    };
    Ok(finish_client(config))
}

fn finish_client(mut config: ClientConfig) -> ClientConfig {
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.resumption = Resumption::disabled();
    config
}

/// For a web server under these roots, which is told by its host name. This node's certificate is shown where one is asked
/// for.
pub(crate) fn web_client(
    identity: &NodeIdentity,
    root_pem: &[u8],
    clock: &Clock,
) -> Result<ClientConfig, TlsError> {
    let root = |problem: PemProblem| TlsError::Root(problem.to_string());
    let roots = root_store(&x509::certs_from_pem(root_pem).map_err(root)?)?;
    let mut config = client_config(Some(identity), &Arc::new(roots), clock)?;
    config.alpn_protocols = vec![WEB_ALPN.to_vec()];
    Ok(config)
}

/// Checks a chain, leaf first, of a node with this role as its peers do that trust these roots.
///
/// # Errors
/// Why they would not take it.
pub(crate) fn verify(
    (chain, role): (&[CertificateDer<'static>], Role),
    roots: &[CertificateDer<'static>],
    now: Timestamp,
) -> Result<(), rustls::Error> {
    let general = |e: &dyn std::fmt::Display| rustls::Error::General(e.to_string());
    let mut store = RootCertStore::empty();
    for root in roots {
        store.add(root.clone())?;
    }
    let (roots, now) = (Arc::new(store), now.since(Timestamp::ZERO));
    let (leaf, between) = chain
        .split_first()
        .ok_or(rustls::Error::NoCertificatesPresented)?;
    let now = UnixTime::since_unix_epoch(now);
    let clients = WebPkiClientVerifier::builder_with_provider(Arc::clone(&roots), provider());
    let clients = clients.build().map_err(|e| general(&e))?;
    clients.verify_client_cert(leaf, between, now)?;
    if role != Role::Manager {
        return Ok(());
    }
    let servers = WebPkiServerVerifier::builder_with_provider(roots, provider());
    let servers = servers.build().map_err(|e| general(&e))?;
    for name in [role.organizational_unit(), CA_SERVER_NAME] {
        let name = ServerName::try_from(name).map_err(|e| general(&e))?;
        servers.verify_server_cert(leaf, between, &name, &[], now)?;
    }
    Ok(())
}

/// For a joiner that holds the root certificate and no identity yet.
pub(crate) fn pinned_client(root_pem: &str, clock: &Clock) -> Result<Arc<ClientConfig>, TlsError> {
    let root = |problem: PemProblem| TlsError::Root(problem.to_string());
    let roots = root_store(&x509::certs_from_pem(root_pem.as_bytes()).map_err(root)?)?;
    Ok(Arc::new(client_config(None, &Arc::new(roots), clock)?))
}

/// For fetching the root certificate, whose bytes are then checked against the token's digest.
/// Nothing else may be asked or told over such a connection.
pub(crate) fn unverified_client(clock: &Clock) -> Result<Arc<ClientConfig>, TlsError> {
    let config = ClientConfig::builder_with_details(provider(), Arc::new(clock.clone()))
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyServer(provider())))
        .with_no_client_auth();
    Ok(Arc::new(finish_client(config)))
}

/// Takes a client certificate also after its end, as it was before that.
#[derive(Debug)]
struct ExpiredToo(Arc<dyn ClientCertVerifier>);

impl ClientCertVerifier for ExpiredToo {
    fn offer_client_auth(&self) -> bool {
        self.0.offer_client_auth()
    }

    fn client_auth_mandatory(&self) -> bool {
        self.0.client_auth_mandatory()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.0.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let verified = self.0.verify_client_cert(end_entity, intermediates, now);
        let Err(rustls::Error::InvalidCertificate(
            CertificateError::Expired | CertificateError::ExpiredContext { .. },
        )) = &verified
        else {
            return verified;
        };
        // Its last second.
        let end = x509::facts(end_entity).map(|facts| facts.not_after.before(SECOND));
        let end = end.map(|end| end.since(Timestamp::ZERO));
        match end {
            Ok(end) if end < Duration::from_secs(now.as_secs()) => {
                let end = UnixTime::since_unix_epoch(end);
                self.0.verify_client_cert(end_entity, intermediates, end)
            }
            Ok(_) | Err(_) => verified,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}

/// Accepts any certificate, but only from who holds its key.
#[derive(Debug)]
struct AnyServer(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyServer {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, cert, dss, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
