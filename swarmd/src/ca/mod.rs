//! Identity of nodes: the root CA, join tokens, node certificates and TLS.
//!
//! A node's identity is its key. The certificate says who it is: CN = node id, OU = role,
//! O = cluster id, issued by the cluster's root, which a joiner pins by the digest in its token.
//! Addresses prove nothing. Both manager and agent use this module; it depends on neither.
//!
//! | file | is |
//! |---|---|
//! | `root` | the root CA: made, loaded, issues node certificates |
//! | `roots` | changing the root: cross-signing, and texts with two roots |
//! | `token` | `SWMTKN-1-…` join tokens and `SWMKEY-1-…` unlock keys |
//! | `decide` | pure: may this request for a certificate be served, and as what |
//! | `identity`, `keyfile` | a node's certificate, key and root, in memory and in the state directory |
//! | `tls` | rustls configurations that can be swapped while listeners and channels live |
//! | `incoming`, `control_socket` | connections for a tonic server, each with its [`Peer`] |
//! | `connect`, `connect_error` | channels to managers, and why there is none |
//! | `client` | the node's side of NodeCA: join, renew |
//! | `cfssl`, `external` | external CAs: what is said to them, and how they are reached |
//! | `x509` | reading certificates |

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;

use swarm_proto::id::{ClusterId, NodeId};
use swarm_proto::pb;
use swarm_proto::time::Timestamp;

pub(crate) mod cfssl;
pub mod client;
pub mod connect;
mod connect_error;
pub mod control_socket;
pub mod decide;
pub(crate) mod external;
pub mod identity;
pub mod incoming;
pub mod keyfile;
pub mod renewer;
pub mod root;
pub mod roots;
mod slots;
pub mod tls;
pub mod token;
mod x509;

#[cfg(test)]
mod handshake_tests;
#[cfg(test)]
pub(crate) mod testing;

pub(crate) use client::fetch_sealing;
pub use client::{
    JoinError, JoinRequest, RenewError, join, renew, renew_anywhere, renew_expired, renewal_time,
};
pub use connect::{connect, connect_lazy, fetch_root};
pub(crate) use connect::{connect_lazy_to, connect_to, who_is_at};
pub use connect_error::ConnectError;
pub use control_socket::{ControlSocket, ControlSocketError};
pub use decide::{ClusterTokens, IssueDecision, IssueRefusal, IssueRequest, decide_issue};
pub use identity::{IdentityError, NodeIdentity};
pub use incoming::{ListenLimits, TlsIncoming};
pub use keyfile::{ExpiredCertificate, IdentityDir, StateFileError};
pub use renewer::Renewer;
pub(crate) use renewer::keep;
pub use root::{IssueError, NodeSubject, RootCa, RootDigest, RootError};
pub use tls::{SecurityConfig, TlsError};
pub use token::{JoinToken, TokenError, UnlockKey, UnlockKeyError};

/// The name that only managers' certificates carry beside their role: what a joiner, who knows no
/// node yet, verifies.
pub const CA_SERVER_NAME: &str = "swarm-ca";

/// What a node is in the cluster, as its certificate says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// Runs tasks; is not trusted beyond them.
    Worker,
    /// Takes part in consensus and serves the API.
    Manager,
}

impl Role {
    /// The certificate's OU, and one of its subject alternative names.
    #[must_use]
    pub const fn organizational_unit(self) -> &'static str {
        match self {
            Self::Worker => "swarm-worker",
            Self::Manager => "swarm-manager",
        }
    }

    /// The inverse of [`Self::organizational_unit`].
    #[must_use]
    pub fn from_organizational_unit(text: &str) -> Option<Self> {
        [Self::Worker, Self::Manager]
            .into_iter()
            .find(|r| r.organizational_unit() == text)
    }

    /// The word an operator uses.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Worker => "worker",
            Self::Manager => "manager",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

impl From<Role> for pb::NodeRole {
    fn from(role: Role) -> Self {
        match role {
            Role::Worker => Self::Worker,
            Role::Manager => Self::Manager,
        }
    }
}

impl From<pb::NodeRole> for Role {
    fn from(role: pb::NodeRole) -> Self {
        match role {
            pb::NodeRole::Worker => Self::Worker,
            pb::NodeRole::Manager => Self::Manager,
        }
    }
}

/// Who a verified certificate says its holder is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerIdentity {
    /// The certificate's CN.
    pub node_id: NodeId,
    /// The certificate's OU.
    pub role: Role,
    /// The certificate's O.
    pub cluster_id: ClusterId,
    /// End of the certificate's validity. A connection may outlive it; a request may not.
    pub not_after: Timestamp,
}

impl PeerIdentity {
    /// Reads the identity from a DER certificate. Does not verify it: that is TLS's work.
    pub(crate) fn from_der(der: &[u8]) -> Result<Self, x509::SubjectError> {
        let facts = x509::facts(der)?;
        let role = Role::from_organizational_unit(&facts.organizational_unit)
            .ok_or(x509::SubjectError::Role(facts.organizational_unit))?;
        Ok(Self {
            node_id: NodeId::from_str(&facts.common_name)?,
            role,
            cluster_id: ClusterId::from_str(&facts.organization)?,
            not_after: facts.not_after,
        })
    }
}

/// Who is at the other end of an accepted connection. tonic puts it into every request's extensions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Peer {
    /// The control socket: whoever may open the file.
    Local,
    /// A TLS connection.
    Remote {
        /// Where it came from.
        addr: SocketAddr,
        /// The verified client certificate, if one was given.
        identity: Option<PeerIdentity>,
    },
}
