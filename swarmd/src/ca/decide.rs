//! Whether a request for a node certificate is served, and as what. Pure.
//!
//! Three ways in, tried in this order:
//! 1. A valid certificate of this cluster renews itself: same node, whatever token is sent along.
//!    The role is what the node's object says, which the caller of this function looks up.
//! 2. A current join token makes a new node with the token's role.
//! 3. A certificate of this cluster whose time is over renews itself too: its holder has shown the
//!    key, and was off when it was time to renew. The caller of this function bounds how often.
//!
//! A certificate of another cluster counts for nothing: its holder needs a token.

use swarm_proto::id::{ClusterId, NodeId};
use swarm_proto::time::Timestamp;

use super::token::{JoinToken, TokenError};
use super::{PeerIdentity, Role};

/// The cluster's current join tokens.
#[derive(Debug, Clone)]
pub struct ClusterTokens {
    /// Makes workers.
    pub worker: JoinToken,
    /// Makes managers.
    pub manager: JoinToken,
}

impl ClusterTokens {
    /// The role a presented token gives. Both are compared, so the time taken says nothing.
    #[must_use]
    pub fn role_of(&self, presented: &JoinToken) -> Option<Role> {
        match (
            self.manager.matches(presented),
            self.worker.matches(presented),
        ) {
            (true, _) => Some(Role::Manager),
            (false, true) => Some(Role::Worker),
            (false, false) => None,
        }
    }
}

/// What IssueNodeCertificate was asked.
#[derive(Debug, Clone, Copy)]
pub struct IssueRequest<'a> {
    /// The PEM of the CSR; only checked to be there (signing reads it).
    pub csr: &'a [u8],
    /// The join token as sent; empty for a renewal.
    pub token: &'a str,
}

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IssueDecision {
    /// Create a node object with a new id and this role, then sign.
    Create {
        /// By the token.
        role: Role,
    },
    /// Sign again for the node that asks; its role is that of its object.
    Renew {
        /// By the certificate.
        node_id: NodeId,
    },
    /// The same, although its certificate has expired: if it is the last one that the node was issued. Others of the
    /// past would be keys to the cluster for ever.
    RenewExpired {
        /// By the certificate.
        node_id: NodeId,
        /// Its end.
        not_after: Timestamp,
    },
}

/// Why not. The texts are for the operator of the asking node.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IssueRefusal {
    /// No CSR.
    #[error("the request has no certificate signing request")]
    NoCsr,
    /// Neither certificate nor token.
    #[error(
        "a join token is needed to join this cluster: get one on a manager with `swarmctl cluster join-token worker`"
    )]
    TokenNeeded,
    /// The certificate is of no use and there is no token.
    #[error(
        "the certificate of node {node_id} does not count here ({reason}), and no join token was given: get one on a manager with `swarmctl cluster join-token worker`"
    )]
    CertificateUseless {
        /// By the certificate.
        node_id: NodeId,
        /// "it is of another cluster".
        reason: &'static str,
    },
    /// Not a token at all.
    #[error(transparent)]
    Malformed(#[from] TokenError),
    /// A token that pins another root.
    #[error(
        "the join token is for another cluster: get this cluster's on a manager with `swarmctl cluster join-token worker`"
    )]
    ForeignToken,
    /// The right cluster and the wrong secret.
    #[error(
        "the join token is not valid (any more): it was rotated, or mistyped; get the current one on a manager with `swarmctl cluster join-token worker`"
    )]
    WrongToken,
}

/// Decides. `caller` is the verified client certificate, if there was one.
///
/// # Errors
/// The refusal, to be answered as INVALID_ARGUMENT.
pub fn decide_issue(
    request: &IssueRequest<'_>,
    caller: Option<&PeerIdentity>,
    cluster_id: ClusterId,
    tokens: &ClusterTokens,
    now: Timestamp,
) -> Result<IssueDecision, IssueRefusal> {
    if request.csr.is_empty() {
        return Err(IssueRefusal::NoCsr);
    }
    let useless = match caller {
        None => None,
        Some(peer) if peer.cluster_id != cluster_id => Some((peer, "it is of another cluster")),
        Some(peer) if now >= peer.not_after && request.token.is_empty() => {
            return Ok(IssueDecision::RenewExpired {
                node_id: peer.node_id,
                not_after: peer.not_after,
            });
        }
        Some(peer) if now >= peer.not_after => None,
        Some(peer) => {
            return Ok(IssueDecision::Renew {
                node_id: peer.node_id,
            });
        }
    };
    if request.token.is_empty() {
        return Err(match useless {
            None => IssueRefusal::TokenNeeded,
            Some((peer, reason)) => IssueRefusal::CertificateUseless {
                node_id: peer.node_id,
                reason,
            },
        });
    }
    let token: JoinToken = request.token.parse()?;
    match tokens.role_of(&token) {
        Some(role) => Ok(IssueDecision::Create { role }),
        None if token.digest() != tokens.worker.digest() => Err(IssueRefusal::ForeignToken),
        None => Err(IssueRefusal::WrongToken),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ca::RootDigest;

    const CLUSTER: ClusterId = ClusterId::from_raw(1);
    const NOW: Timestamp = Timestamp::from_millis(1_763_700_000_000);

    fn tokens(root: u8) -> ClusterTokens {
        let digest = RootDigest([root; 32]);
        let token = || JoinToken::generate(digest).unwrap();
        ClusterTokens {
            worker: token(),
            manager: token(),
        }
    }

    fn peer(cluster: u128, not_after: Timestamp) -> PeerIdentity {
        PeerIdentity {
            node_id: NodeId::from_raw(42),
            role: Role::Worker,
            cluster_id: ClusterId::from_raw(cluster),
            not_after,
        }
    }

    fn decide(
        token: &str,
        caller: Option<&PeerIdentity>,
        tokens: &ClusterTokens,
    ) -> Result<IssueDecision, IssueRefusal> {
        decide_issue(
            &IssueRequest { csr: b"csr", token },
            caller,
            CLUSTER,
            tokens,
            NOW,
        )
    }

    #[test]
    fn a_token_makes_a_node_with_its_role() {
        let t = tokens(1);
        for (token, role) in [(&t.worker, Role::Worker), (&t.manager, Role::Manager)] {
            let decision = decide(&token.reveal(), None, &t);
            assert_eq!(decision, Ok(IssueDecision::Create { role }));
        }
    }

    #[test]
    fn a_certificate_renews_itself_and_needs_no_token() {
        let t = tokens(1);
        let valid = peer(1, Timestamp::MAX);
        let renew = Ok(IssueDecision::Renew {
            node_id: valid.node_id,
        });
        assert_eq!(decide("", Some(&valid), &t), renew);
        // A worker can't promote itself with a manager token: it stays who it is.
        assert_eq!(decide(&t.manager.reveal(), Some(&valid), &t), renew);
    }

    #[test]
    fn an_expired_certificate_renews_itself() {
        let t = tokens(1);
        let expired = peer(1, NOW);
        let renew = Ok(IssueDecision::RenewExpired {
            node_id: expired.node_id,
            not_after: NOW,
        });
        assert_eq!(decide("", Some(&expired), &t), renew);
        let foreign = peer(2, NOW);
        assert!(decide("", Some(&foreign), &t).is_err());
    }

    #[test]
    fn foreign_and_expired_certificates_with_a_token_are_new_nodes() {
        let t = tokens(1);
        let foreign = peer(2, Timestamp::MAX);
        assert!(matches!(
            decide("", Some(&foreign), &t),
            Err(IssueRefusal::CertificateUseless { .. })
        ));
        for caller in [foreign, peer(1, NOW)] {
            let created = decide(&t.worker.reveal(), Some(&caller), &t);
            assert_eq!(created, Ok(IssueDecision::Create { role: Role::Worker }));
        }
    }

    #[test]
    fn every_wrong_token_has_its_reason() {
        let t = tokens(1);
        let (rotated, foreign) = (tokens(1), tokens(2));
        assert_eq!(decide("", None, &t), Err(IssueRefusal::TokenNeeded));
        assert_eq!(
            decide(&rotated.worker.reveal(), None, &t),
            Err(IssueRefusal::WrongToken)
        );
        assert_eq!(
            decide(&foreign.manager.reveal(), None, &t),
            Err(IssueRefusal::ForeignToken)
        );
        assert!(matches!(
            decide("SWMTKN-1-x", None, &t),
            Err(IssueRefusal::Malformed(_))
        ));
        let no_csr = IssueRequest {
            csr: b"",
            token: &t.worker.reveal(),
        };
        assert_eq!(
            decide_issue(&no_csr, None, CLUSTER, &t, NOW),
            Err(IssueRefusal::NoCsr)
        );
    }
}
