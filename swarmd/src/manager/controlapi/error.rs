//! The only place where a reason becomes a gRPC code.

use swarm_proto::id::InvalidId;
use swarm_proto::service::InvalidSpec;
use tonic::{Code, Status};

use crate::manager::forward::turn_away;
use crate::manager::store::Rejected;
use crate::manager::store::watch::Lagged;
use crate::manager::writer::WriteError;

/// Why a request was refused.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The state did not allow it.
    #[error(transparent)]
    Rejected(#[from] Rejected),
    /// It could not be written.
    #[error(transparent)]
    Write(#[from] WriteError),
    /// The spec is not valid.
    #[error("invalid spec: {0}")]
    InvalidSpec(#[from] InvalidSpec),
    /// A field of the request is missing or not valid.
    #[error("{0}")]
    InvalidArgument(String),
    /// There is no such object.
    #[error("{kind} {name} not found")]
    NotFound {
        /// `service`, `node`, `task`, `cluster`.
        kind: &'static str,
        /// What was asked for.
        name: String,
    },
    /// This version does not serve it.
    #[error("{0}")]
    Unimplemented(String),
    /// It can't be done in this state.
    #[error("{0}")]
    FailedPrecondition(String),
    /// A watch fell behind.
    #[error(transparent)]
    Lagged(#[from] Lagged),
}

impl Error {
    /// An id that is no id names nothing.
    pub(crate) fn no_such(error: &InvalidId) -> Self {
        Self::NotFound {
            kind: error.kind,
            name: error.text.clone(),
        }
    }
}

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        let code = match &error {
            Error::Rejected(Rejected::NotFound { .. }) | Error::NotFound { .. } => Code::NotFound,
            Error::Rejected(Rejected::Exists { .. }) => Code::AlreadyExists,
            Error::Rejected(Rejected::OutOfSequence { .. } | Rejected::Conflict { .. })
            | Error::FailedPrecondition(_) => Code::FailedPrecondition,
            Error::Write(
                WriteError::NotLeader { .. } | WriteError::NoLeader(_) | WriteError::ShuttingDown,
            ) => Code::Unavailable,
            Error::Write(WriteError::TooLarge { .. } | WriteError::Overloaded(_)) => {
                Code::ResourceExhausted
            }
            Error::Write(WriteError::Unknown(_)) => Code::DeadlineExceeded,
            Error::Write(WriteError::Storage(_)) => Code::Internal,
            Error::InvalidSpec(_) | Error::InvalidArgument(_) => Code::InvalidArgument,
            Error::Unimplemented(_) => Code::Unimplemented,
            Error::Lagged(_) => Code::Aborted,
        };
        let status = Self::new(code, error.to_string());
        // It was not proposed: another manager may be asked.
        let not_proposed = matches!(error, Error::Write(WriteError::NotLeader { .. }));
        match not_proposed {
            true => turn_away(status),
            false => status,
        }
    }
}
