//! A node's identity: certificate chain, key and the root it trusts, checked to belong together.
//!
//! Invariant: a [`NodeIdentity`] that exists has a key that fits its certificate, a chain that leads
//! to its root, and a subject that names a node. Its validity in time is asked for separately, since
//! it changes while the value lives.

use std::fmt;
use std::sync::Arc;

use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use swarm_proto::id::{ClusterId, NodeId};
use swarm_proto::pb;
use swarm_proto::time::Timestamp;
use zeroize::Zeroizing;

use super::root::{RootDigest, format_time};
use super::x509::{self, PemProblem, SubjectError};
use super::{PeerIdentity, Role};

/// Why certificate, key and root make no identity.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// The certificate's PEM.
    #[error("the node certificate can't be used: {0}")]
    Certificate(PemProblem),
    /// The key's PEM.
    #[error("the node key can't be used: {0}")]
    Key(PemProblem),
    /// The root's PEM.
    #[error("the root certificate can't be used: {0}")]
    Root(PemProblem),
    /// The subject names no node.
    #[error(transparent)]
    Subject(#[from] SubjectError),
    /// Key and certificate are of different pairs.
    #[error("the node key does not belong to the node certificate")]
    KeyMismatch,
    /// Another cluster's certificate.
    #[error(
        "the node certificate was not issued by the root certificate: they are of different clusters"
    )]
    ForeignRoot,
    /// Past its end.
    #[error("the node certificate expired at {not_after}, and it is {now}")]
    Expired {
        /// End of validity.
        not_after: String,
        /// The clock.
        now: String,
    },
    /// Before its beginning.
    #[error(
        "the node certificate is valid from {not_before}, and this host's clock says {now}: set the clock"
    )]
    NotYetValid {
        /// Beginning of validity.
        not_before: String,
        /// The clock.
        now: String,
    },
}

/// Who this node is. Cheap to clone.
#[derive(Clone)]
pub struct NodeIdentity(Arc<Parts>);

struct Parts {
    peer: PeerIdentity,
    not_before: Timestamp,
    cert_pem: String,
    key_pem: Zeroizing<String>,
    root_pem: String,
    roots: Vec<CertificateDer<'static>>,
    issuer: CertificateDer<'static>,
    certified: Arc<CertifiedKey>,
}

impl fmt::Debug for NodeIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NodeIdentity")
            .field("peer", &self.0.peer)
            .field("not_before", &self.0.not_before)
            .field("root", &self.root_digest())
            .finish_non_exhaustive()
    }
}

impl NodeIdentity {
    /// Puts the three PEM texts together. `cert_pem` is leaf first, `root_pem` may hold several roots.
    ///
    /// # Errors
    /// Which of the three can't be used, or which two don't belong together. Expiry is not looked at.
    pub fn from_pem(cert_pem: &str, key_pem: &str, root_pem: &str) -> Result<Self, IdentityError> {
        let chain =
            x509::certs_from_pem(cert_pem.as_bytes()).map_err(IdentityError::Certificate)?;
        let roots = x509::certs_from_pem(root_pem.as_bytes()).map_err(IdentityError::Root)?;
        let key = x509::key_from_pem(key_pem.as_bytes()).map_err(IdentityError::Key)?;
        let leaf = chain
            .first()
            .ok_or(IdentityError::Certificate(PemProblem::Empty))?;
        let peer = PeerIdentity::from_der(leaf)?;
        let not_before = x509::facts(leaf)?.not_before;
        let certified = certified_key(&chain, key.into())?;
        let issuing_root = x509::issuing_root(&chain, &roots).ok_or(IdentityError::ForeignRoot)?;
        let issuer = chain.get(1).unwrap_or(issuing_root).clone();
        Ok(Self(Arc::new(Parts {
            peer,
            not_before,
            cert_pem: cert_pem.to_owned(),
            key_pem: Zeroizing::new(key_pem.to_owned()),
            root_pem: root_pem.to_owned(),
            roots,
            issuer,
            certified,
        })))
    }

    /// The same certificate and key with other roots, for root rotation.
    ///
    /// # Errors
    /// When the certificate does not lead to any of the new roots.
    pub fn with_roots(&self, root_pem: &str) -> Result<Self, IdentityError> {
        Self::from_pem(&self.0.cert_pem, &self.0.key_pem, root_pem)
    }

    /// Whether the certificate is valid now.
    ///
    /// # Errors
    /// [`IdentityError::Expired`] or [`IdentityError::NotYetValid`].
    pub fn check_time(&self, now: Timestamp) -> Result<(), IdentityError> {
        if now >= self.not_after() {
            let (not_after, now) = (format_time(self.not_after()), format_time(now));
            return Err(IdentityError::Expired { not_after, now });
        }
        if now < self.not_before() {
            let (not_before, now) = (format_time(self.not_before()), format_time(now));
            return Err(IdentityError::NotYetValid { not_before, now });
        }
        Ok(())
    }

    /// The node's id.
    #[must_use]
    pub fn node_id(&self) -> NodeId {
        self.0.peer.node_id
    }

    /// The node's role by its certificate.
    #[must_use]
    pub fn role(&self) -> Role {
        self.0.peer.role
    }

    /// The cluster the node belongs to.
    #[must_use]
    pub fn cluster_id(&self) -> ClusterId {
        self.0.peer.cluster_id
    }

    /// As others see this node.
    #[must_use]
    pub fn as_peer(&self) -> &PeerIdentity {
        &self.0.peer
    }

    /// Beginning of validity.
    #[must_use]
    pub fn not_before(&self) -> Timestamp {
        self.0.not_before
    }

    /// End of validity.
    #[must_use]
    pub fn not_after(&self) -> Timestamp {
        self.0.peer.not_after
    }

    /// The certificate chain, leaf first.
    #[must_use]
    pub fn cert_pem(&self) -> &str {
        &self.0.cert_pem
    }

    /// The private key, PKCS#8: for the key file only.
    #[must_use]
    pub fn key_pem(&self) -> &str {
        &self.0.key_pem
    }

    /// The trusted root certificate, or several during a root rotation.
    #[must_use]
    pub fn root_pem(&self) -> &str {
        &self.0.root_pem
    }

    /// Digest of the roots as they travel: what tokens pin.
    #[must_use]
    pub fn root_digest(&self) -> RootDigest {
        RootDigest::of(self.0.root_pem.as_bytes())
    }

    /// What the node reports of itself in its description, for root rotation.
    #[must_use]
    pub fn tls_info(&self) -> pb::NodeTlsInfo {
        let (subject, key) = x509::parse(&self.0.issuer).map_or_else(
            |_| (Vec::new(), Vec::new()),
            |c| (c.subject().as_raw().to_vec(), c.public_key().raw.to_vec()),
        );
        pb::NodeTlsInfo {
            trust_root: self.0.root_pem.clone().into_bytes(),
            cert_issuer_subject: subject,
            cert_issuer_public_key: key,
            // What it opens a session with, the manager sees.
            shown_not_after: None,
        }
    }

    pub(crate) fn certified(&self) -> Arc<CertifiedKey> {
        Arc::clone(&self.0.certified)
    }

    pub(crate) fn roots(&self) -> &[CertificateDer<'static>] {
        &self.0.roots
    }
}

fn certified_key(
    chain: &[CertificateDer<'static>],
    key: PrivateKeyDer<'static>,
) -> Result<Arc<CertifiedKey>, IdentityError> {
    let key = rustls::crypto::ring::sign::any_supported_type(&key)
        .map_err(|e| IdentityError::Key(PemProblem::Corrupted(e.to_string())))?;
    let certified = CertifiedKey::new(chain.to_vec(), key);
    match certified.keys_match() {
        Ok(()) => Ok(Arc::new(certified)),
        Err(_) => Err(IdentityError::KeyMismatch),
    }
}
