//! Why there is no connection to a manager: TLS's and tonic's reasons in words for the operator.

use std::error::Error as StdError;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use rustls::{AlertDescription, CertificateError};
use swarm_proto::id::NodeId;

use super::root::RootDigest;
use super::tls::TlsError;

/// Why there is no connection to a manager.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ConnectError {
    /// Not host:port.
    #[error("{addr:?} is no address: expected HOST:PORT, as in 10.0.0.1:4242")]
    Address {
        /// As given.
        addr: String,
    },
    /// TCP failed.
    #[error(
        "can't reach the manager at {addr}: {source}; check the address, the firewall, and that swarmd runs there"
    )]
    Unreachable {
        /// The manager's address.
        addr: String,
        /// The system's reason.
        source: Arc<io::Error>,
    },
    /// Nothing came.
    #[error("the manager at {addr} does not answer within {} s; check the address, the firewall, and that swarmd runs there", limit.as_secs())]
    Timeout {
        /// The manager's address.
        addr: String,
        /// What was waited.
        limit: Duration,
    },
    /// The manager's certificate is not the cluster's.
    #[error(
        "the manager at {addr} belongs to another cluster: its certificate was not issued by this cluster's root; check the address"
    )]
    ForeignManager {
        /// The manager's address.
        addr: String,
    },
    /// A node answers, and it is no manager.
    #[error(
        "the node at {addr} is not a manager: its certificate does not carry that role; check the address"
    )]
    NotAManager {
        /// The manager's address.
        addr: String,
    },
    /// Another manager answers than the one that is meant.
    #[error(
        "another node answers at {addr}: node {found}, and node {expected} is meant; see where that one is now with `swarmctl node set-addr`"
    )]
    OtherNode {
        /// The address.
        addr: String,
        /// Who is meant.
        expected: NodeId,
        /// Who answers.
        found: NodeId,
    },
    /// The manager's certificate is out of its time.
    #[error(
        "the certificate of the manager at {addr} is expired or not yet valid: compare the clocks of both hosts, and see the manager's log for a failed renewal"
    )]
    ManagerExpired {
        /// The manager's address.
        addr: String,
    },
    /// Our certificate is out of its time.
    #[error(
        "the manager at {addr} refuses this node's certificate because it has expired: check this host's clock; otherwise join again with `swarmd --join-addr {addr} --join-token TOKEN` and an empty state directory"
    )]
    OwnExpired {
        /// The manager's address.
        addr: String,
    },
    /// Our certificate is of another cluster.
    #[error(
        "the manager at {addr} refuses this node's certificate ({alert}): they are of different clusters; check the address"
    )]
    OwnRefused {
        /// The manager's address.
        addr: String,
        /// TLS's word for it.
        alert: String,
    },
    /// Any other failure of TLS.
    #[error(
        "no TLS with {addr}: {reason}; check that this is the port of swarmd's --listen-remote-api"
    )]
    Tls {
        /// The manager's address.
        addr: String,
        /// TLS's reason.
        reason: String,
    },
    /// The root certificate that was served is not the one the token pins.
    #[error(
        "the join token is for another cluster than the manager at {addr}: the token pins root {expected}, the manager has {found}; check the address, or get this cluster's token with `swarmctl cluster join-token worker` there"
    )]
    DigestMismatch {
        /// The manager's address.
        addr: String,
        /// By the token.
        expected: RootDigest,
        /// By the manager.
        found: RootDigest,
    },
    /// A request failed on a working connection.
    #[error("the manager at {addr} refuses: {message}")]
    Refused {
        /// The manager's address.
        addr: String,
        /// Its words.
        message: String,
    },
    /// Our own side.
    #[error(transparent)]
    Own(#[from] TlsError),
    /// tonic failed in a way that has no name of its own.
    #[error("no connection to {addr}: {reason}")]
    Transport {
        /// The manager's address.
        addr: String,
        /// All reasons, outermost first.
        reason: String,
    },
}

impl ConnectError {
    /// Whether trying again, at this address, may help.
    #[must_use]
    pub const fn is_transient(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::Timeout { .. } | Self::Transport { .. } => true,
            Self::Address { .. }
            | Self::ForeignManager { .. }
            | Self::NotAManager { .. }
            | Self::OtherNode { .. }
            | Self::ManagerExpired { .. }
            | Self::OwnExpired { .. }
            | Self::OwnRefused { .. }
            | Self::Tls { .. }
            | Self::DigestMismatch { .. }
            | Self::Refused { .. }
            | Self::Own(_) => false,
        }
    }

    /// Finds what this module said inside an error of tonic's, for example a request's status.
    #[must_use]
    pub fn find(error: &(dyn StdError + 'static)) -> Option<Self> {
        let mut next = Some(error);
        while let Some(error) = next {
            if let Some(found) = error.downcast_ref::<Self>() {
                return Some(found.clone());
            }
            next = error.source();
        }
        None
    }
}

/// A failed request in this module's terms.
pub(crate) fn refused(addr: &str, status: &tonic::Status) -> ConnectError {
    if let Some(found) = ConnectError::find(status) {
        return found;
    }
    let addr = addr.to_owned();
    #[allow(
        clippy::wildcard_enum_match_arm,
        reason = "gRPC's codes, most of which are refusals"
    )]
    match status.code() {
        tonic::Code::Unavailable
        | tonic::Code::Unknown
        | tonic::Code::Aborted
        | tonic::Code::Cancelled
        | tonic::Code::ResourceExhausted
        | tonic::Code::DeadlineExceeded => ConnectError::Transport {
            addr,
            reason: status.message().to_owned(),
        },
        _ => ConnectError::Refused {
            addr,
            message: status.message().to_owned(),
        },
    }
}

#[allow(
    clippy::wildcard_enum_match_arm,
    reason = "rustls' non-exhaustive enums"
)]
pub(crate) fn explain_tls(addr: String, error: &rustls::Error) -> ConnectError {
    match error {
        rustls::Error::InvalidCertificate(problem) => match problem {
            CertificateError::UnknownIssuer | CertificateError::BadSignature => {
                ConnectError::ForeignManager { addr }
            }
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                ConnectError::NotAManager { addr }
            }
            CertificateError::Expired
            | CertificateError::ExpiredContext { .. }
            | CertificateError::NotValidYet
            | CertificateError::NotValidYetContext { .. } => ConnectError::ManagerExpired { addr },
            other => ConnectError::Tls {
                addr,
                reason: other.to_string(),
            },
        },
        rustls::Error::AlertReceived(AlertDescription::CertificateExpired) => {
            ConnectError::OwnExpired { addr }
        }
        rustls::Error::AlertReceived(
            alert @ (AlertDescription::UnknownCA
            | AlertDescription::BadCertificate
            | AlertDescription::CertificateUnknown
            | AlertDescription::DecryptError
            | AlertDescription::AccessDenied),
        ) => ConnectError::OwnRefused {
            addr,
            alert: format!("{alert:?}"),
        },
        other => ConnectError::Tls {
            addr,
            reason: other.to_string(),
        },
    }
}

/// All reasons of an error, outermost first.
pub(crate) fn chain_text(error: &dyn StdError) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(error) = next {
        text.push_str(": ");
        text.push_str(&error.to_string());
        next = error.source();
    }
    text
}
