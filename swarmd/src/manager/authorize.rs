//! Who may call what: one table for every RPC that is served, and the layer that enforces it.
//!
//! Invariants:
//! - A handler runs only after the table has let its caller in, and finds the [`Caller`] in the
//!   request's extensions. Handlers know nothing of TLS.
//! - What is not in the table is UNIMPLEMENTED for everybody, so a stranger learns nothing. A test
//!   compares the table with the descriptors: a new RPC fails the build's tests until it has a row.
//! - A certificate counts only if it is of this cluster (O), not expired *now* (a connection may
//!   outlive its certificate) and not revoked.
//! - An identity that is forwarded in metadata counts only from a manager; from anyone else the
//!   request is refused. The metadata are SwarmKit's.

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;

use http::HeaderMap;
use swarm_proto::id::{ClusterId, NodeId};
use swarm_proto::time::Timestamp;
use tonic::Status;
use tonic::metadata::{AsciiMetadataValue, MetadataMap};

use crate::ca::{Peer, PeerIdentity, Role};

mod layer;
mod table;

pub use layer::{Authorize, AuthorizeLayer};
pub use table::{Access, TABLE, access_of, is_leaders};

/// Who made a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Who {
    /// Someone at this host's control socket.
    Local,
    /// A node of this cluster.
    Node(PeerIdentity),
    /// Nobody known. Reaches [`Access::Insecure`] RPCs only.
    Nobody {
        /// A certificate that was shown and does not count: of another cluster, or expired.
        presented: Option<PeerIdentity>,
    },
}

/// The caller of an RPC; in the extensions of each request that reaches a handler.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// Who it is.
    pub who: Who,
    /// Where the request first entered the cluster; `None` for the control socket.
    pub remote: Option<SocketAddr>,
    /// The manager that forwarded it, if one did.
    pub forwarded_by: Option<NodeId>,
    /// A manager sent it on already; it must not travel further.
    pub redirected: bool,
}

impl Caller {
    /// The caller of a request that passed the layer.
    ///
    /// # Errors
    /// INTERNAL when the server was built without the layer.
    pub fn of<T>(request: &tonic::Request<T>) -> Result<&Self, Status> {
        request
            .extensions()
            .get()
            .ok_or_else(|| Status::internal("the server does not authorize this request"))
    }

    /// The calling node.
    ///
    /// # Errors
    /// PERMISSION_DENIED when no node calls, but an operator or nobody.
    pub fn node(&self) -> Result<&PeerIdentity, Status> {
        match &self.who {
            Who::Node(peer) => Ok(peer),
            Who::Local | Who::Nobody { .. } => Err(Status::permission_denied(
                "only a node can ask this, with its certificate",
            )),
        }
    }

    /// Without a certificate that counts, and not on the control socket.
    #[must_use]
    pub fn is_anonymous(&self) -> bool {
        matches!(self.who, Who::Nobody { .. })
    }

    /// The certificate that came with the request, whether it counts or not: for deciding about a
    /// new one.
    #[must_use]
    pub fn certificate(&self) -> Option<&PeerIdentity> {
        match &self.who {
            Who::Node(peer) => Some(peer),
            Who::Local => None,
            Who::Nobody { presented } => presented.as_ref(),
        }
    }

    /// Marks a request that this manager sends to the leader on behalf of the caller. An operator's
    /// request goes as the manager's own.
    pub fn forward(&self, own: NodeId, metadata: &mut MetadataMap) {
        let mut put = |key: &'static str, value: String| {
            if let Ok(value) = AsciiMetadataValue::try_from(value) {
                metadata.insert(key, value);
            }
        };
        put(REDIRECT, own.to_string());
        if self.who == Who::Local {
            return;
        }
        put(FORWARDED, "true".to_owned());
        if let Some(peer) = self.certificate() {
            put(FORWARDED_CN, peer.node_id.to_string());
            put(FORWARDED_OU, peer.role.organizational_unit().to_owned());
            put(FORWARDED_ORG, peer.cluster_id.to_string());
            put(FORWARDED_NOT_AFTER, peer.not_after.0.to_string());
        }
        if let Some(remote) = self.remote {
            put(FORWARDED_ADDR, remote.to_string());
        }
    }
}

const FORWARDED: &str = "forwarded_cert";
const FORWARDED_CN: &str = "forwarded_cert_cn";
const FORWARDED_OU: &str = "forwarded_cert_ou";
const FORWARDED_ORG: &str = "forwarded_cert_org";
/// Ours: SwarmKit does not forward the end of validity.
const FORWARDED_NOT_AFTER: &str = "forwarded_cert_not_after";
const FORWARDED_ADDR: &str = "remote_addr";
const REDIRECT: &str = "redirect";
const FORWARDING_KEYS: [&str; 7] = [
    FORWARDED,
    FORWARDED_CN,
    FORWARDED_OU,
    FORWARDED_ORG,
    FORWARDED_NOT_AFTER,
    FORWARDED_ADDR,
    REDIRECT,
];

/// Why a request was not let in.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// No such RPC.
    #[error("no such method")]
    Unknown,
    /// No certificate.
    #[error(
        "a certificate of this cluster is needed: join first with `swarmd --join-addr ADDR --join-token TOKEN`"
    )]
    NoCertificate,
    /// The certificate's time is over.
    #[error("the certificate of node {0} has expired: restart swarmd there, it names the way out")]
    Expired(NodeId),
    /// The certificate's O.
    #[error("node {node_id} belongs to cluster {cluster_id}, not to this one")]
    ForeignCluster {
        /// Who asked.
        node_id: NodeId,
        /// Its cluster.
        cluster_id: ClusterId,
    },
    /// The node was removed.
    #[error(
        "node {0} was removed from the cluster: `swarmd leave` on it ends its tasks, and lets it join again"
    )]
    Revoked(NodeId),
    /// The certificate's OU.
    #[error("node {node_id} is a {role}, and this needs a manager")]
    Role {
        /// Who asked.
        node_id: NodeId,
        /// Its role.
        role: Role,
    },
    /// The control socket is needed.
    #[error("this can be asked on the node's own control socket only")]
    LocalOnly,
    /// Forwarding is the managers' privilege.
    #[error("only managers forward requests of others")]
    NoForwarder,
    /// Forwarded metadata that don't parse.
    #[error("the forwarded identity is malformed: {0}")]
    BadForward(&'static str),
}

impl From<&Refusal> for Status {
    fn from(refusal: &Refusal) -> Self {
        let text = refusal.to_string();
        match refusal {
            Refusal::Unknown => Self::unimplemented(text),
            Refusal::NoCertificate | Refusal::Expired(_) => Self::unauthenticated(text),
            Refusal::ForeignCluster { .. }
            | Refusal::Revoked(_)
            | Refusal::Role { .. }
            | Refusal::LocalOnly
            | Refusal::NoForwarder => Self::permission_denied(text),
            Refusal::BadForward(_) => Self::invalid_argument(text),
        }
    }
}

/// What certificates are judged by.
#[derive(Clone, Copy)]
pub struct Rules<'a> {
    /// This cluster.
    pub cluster_id: ClusterId,
    /// Wall time.
    pub now: Timestamp,
    /// Whether a node's certificates were revoked (SwarmKit's blacklist).
    pub revoked: &'a (dyn Fn(NodeId) -> bool + Send + Sync),
}

impl fmt::Debug for Rules<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rules")
            .field("cluster_id", &self.cluster_id)
            .field("now", &self.now)
            .finish_non_exhaustive()
    }
}

impl Rules<'_> {
    fn check(&self, peer: &PeerIdentity) -> Result<(), Refusal> {
        let node_id = peer.node_id;
        if peer.cluster_id != self.cluster_id {
            return Err(Refusal::ForeignCluster {
                node_id,
                cluster_id: peer.cluster_id,
            });
        }
        if self.now >= peer.not_after {
            return Err(Refusal::Expired(node_id));
        }
        if (self.revoked)(node_id) {
            return Err(Refusal::Revoked(node_id));
        }
        Ok(())
    }

    fn check_role(&self, peer: &PeerIdentity, roles: &[Role]) -> Result<(), Refusal> {
        self.check(peer)?;
        if roles.contains(&peer.role) {
            return Ok(());
        }
        Err(Refusal::Role {
            node_id: peer.node_id,
            role: peer.role,
        })
    }
}

/// Decides whether a request is let in, and as whose. Pure.
///
/// # Errors
/// The refusal.
pub fn authorize(
    path: &str,
    peer: Option<&Peer>,
    headers: &HeaderMap,
    rules: &Rules<'_>,
) -> Result<Caller, Refusal> {
    let access = access_of(path).ok_or(Refusal::Unknown)?;
    let mut caller = identify(peer, headers, rules)?;
    match (access, &caller.who) {
        (Access::Roles(roles), Who::Local) if roles.contains(&Role::Manager) => {}
        (Access::Insecure | Access::LocalOnly, Who::Local) => {}
        (Access::Roles(_), Who::Local) => return Err(Refusal::NoCertificate),
        (Access::LocalOnly, Who::Node(_) | Who::Nobody { .. }) => return Err(Refusal::LocalOnly),
        (Access::Roles(roles), Who::Node(node)) => rules.check_role(node, roles)?,
        (Access::Roles(_), Who::Nobody { .. }) => return Err(Refusal::NoCertificate),
        (Access::Insecure, Who::Nobody { .. }) => {}
        (Access::Insecure, Who::Node(node)) => match rules.check(node) {
            Ok(()) => {}
            Err(Refusal::ForeignCluster { .. } | Refusal::Expired(_)) => {
                caller.who = Who::Nobody {
                    presented: Some(node.clone()),
                };
            }
            Err(refusal) => return Err(refusal),
        },
    }
    Ok(caller)
}

/// Who asks, by connection and, from a manager, by metadata. Whether they count comes later.
fn identify(
    peer: Option<&Peer>,
    headers: &HeaderMap,
    rules: &Rules<'_>,
) -> Result<Caller, Refusal> {
    let redirected = headers.contains_key(REDIRECT);
    let who_is = |identity: Option<PeerIdentity>| {
        identity.map_or(Who::Nobody { presented: None }, Who::Node)
    };
    let (identity, remote) = match peer {
        Some(Peer::Remote { addr, identity }) => (identity.as_ref(), Some(*addr)),
        Some(Peer::Local) if headers.contains_key(FORWARDED) => return Err(Refusal::NoForwarder),
        Some(Peer::Local) => {
            return Ok(Caller {
                who: Who::Local,
                remote: None,
                forwarded_by: None,
                redirected,
            });
        }
        // A connection that does not say who is there is nobody's.
        None => (None, None),
    };
    if !headers.contains_key(FORWARDED) {
        return Ok(Caller {
            who: who_is(identity.cloned()),
            remote,
            forwarded_by: None,
            redirected,
        });
    }
    let forwarder = identity.ok_or(Refusal::NoForwarder)?;
    if forwarder.role != Role::Manager {
        return Err(Refusal::NoForwarder);
    }
    rules.check(forwarder)?;
    Ok(Caller {
        who: who_is(forwarded_identity(headers, forwarder)?),
        remote: header(headers, FORWARDED_ADDR).and_then(|addr| addr.parse().ok()),
        forwarded_by: Some(forwarder.node_id),
        redirected: true,
    })
}

fn header<'h>(headers: &'h HeaderMap, key: &str) -> Option<&'h str> {
    headers
        .get(key)?
        .to_str()
        .ok()
        .filter(|text| !text.is_empty())
}

fn forwarded_identity(
    headers: &HeaderMap,
    forwarder: &PeerIdentity,
) -> Result<Option<PeerIdentity>, Refusal> {
    let Some(common_name) = header(headers, FORWARDED_CN) else {
        return Ok(None);
    };
    let role = header(headers, FORWARDED_OU).and_then(Role::from_organizational_unit);
    let cluster_id = header(headers, FORWARDED_ORG).and_then(|o| ClusterId::from_str(o).ok());
    let not_after = match header(headers, FORWARDED_NOT_AFTER) {
        Some(text) => Timestamp(
            text.parse()
                .map_err(|_| Refusal::BadForward("end of validity"))?,
        ),
        // The forwarder has checked it; it can't vouch for longer than its own time.
        None => forwarder.not_after,
    };
    Ok(Some(PeerIdentity {
        node_id: NodeId::from_str(common_name).map_err(|_| Refusal::BadForward("node id"))?,
        role: role.ok_or(Refusal::BadForward("role"))?,
        cluster_id: cluster_id.ok_or(Refusal::BadForward("cluster id"))?,
        not_after,
    }))
}

#[cfg(test)]
mod tests;
