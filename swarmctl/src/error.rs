//! How a command can fail, what the operator reads, and the exit code. The only place that knows gRPC codes.

use std::error::Error as _;
use std::fmt;
use std::io;

use tonic::Code;

use crate::spec::Problems;
use crate::terminal::Terminal;

/// How a run ended; documented in `swarmctl --help`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExitCode {
    /// Done.
    Ok,
    /// The manager refused the request.
    Refused,
    /// The command line is wrong; nothing was sent.
    Usage,
    /// No object, or more than one, has the given name.
    NotFound,
    /// The manager can't be reached, or does not answer.
    Unreachable,
    /// The service was changed but did not converge.
    NotConverged,
    /// Reading or writing failed on this side.
    Local,
    /// Ctrl-C while waiting; the change itself stands.
    Interrupted,
}

impl ExitCode {
    /// The number the shell sees.
    #[must_use]
    pub fn code(self) -> u8 {
        match self {
            Self::Ok => 0,
            Self::Refused => 1,
            Self::Usage => 2,
            Self::NotFound => 3,
            Self::Unreachable => 4,
            Self::NotConverged => 5,
            Self::Local => 6,
            Self::Interrupted => 130,
        }
    }
}

impl From<ExitCode> for std::process::ExitCode {
    fn from(code: ExitCode) -> Self {
        Self::from(code.code())
    }
}

/// What kinds of object can be named on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Node,
    Service,
    Task,
    Cluster,
    Network,
    Image,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Node => "node",
            Self::Service => "service",
            Self::Task => "task",
            Self::Cluster => "cluster",
            Self::Network => "network",
            Self::Image => "image",
        })
    }
}

/// Who answers a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Whom {
    /// The managers, through the local swarmd.
    Managers,
    /// The local swarmd itself: about what is on this node.
    Node,
}

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("{0}")]
    Usage(Problems),
    #[error(
        "a {kind} is named by its ID, a unique prefix of it, or its name; an empty name names nothing"
    )]
    Unnamed { kind: Kind },
    #[error("{kind} {name} not found; `swarmctl {kind} ls` lists what there is")]
    NotFound { kind: Kind, name: String },
    #[error("{kind} {name} is ambiguous, use an ID of: {}", candidates.join(", "))]
    Ambiguous {
        kind: Kind,
        name: String,
        candidates: Vec<String>,
    },
    #[error("{what}: {}", explain(status, *whom))]
    Refused {
        what: String,
        status: Box<tonic::Status>,
        whom: Whom,
    },
    #[error("{what}: {reason}")]
    Rejected { what: String, reason: String },
    #[error("can't reach swarmd at {path}: {reason}")]
    Unreachable { path: String, reason: String },
    #[error("the cluster takes no changes now")]
    Unavailable,
    #[error("service {service} has not converged: {reason}")]
    NotConverged { service: String, reason: String },
    #[error("interrupted; {what} goes on, `{look}` shows how far it is")]
    Interrupted { what: String, look: String },
    #[error("{what}: {source}")]
    Local {
        what: &'static str,
        source: io::Error,
    },
    #[error("--format: {0}")]
    Template(String),
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
    Many(Vec<Error>),
}

impl Error {
    /// A request that failed while doing `what` ("create service web").
    pub(crate) fn refused(what: impl Into<String>, status: tonic::Status) -> Self {
        Self::Refused {
            what: what.into(),
            status: Box::new(status),
            whom: Whom::Managers,
        }
    }

    /// A request about this node that failed while doing `what` ("remove image").
    pub(crate) fn refused_here(what: impl Into<String>, status: tonic::Status) -> Self {
        Self::Refused {
            what: what.into(),
            status: Box::new(status),
            whom: Whom::Node,
        }
    }

    /// Both values, or the errors of both.
    pub(crate) fn both<A, B>(a: Result<A, Self>, b: Result<B, Self>) -> Result<(A, B), Self> {
        match (a, b) {
            (Ok(a), Ok(b)) => Ok((a, b)),
            (Err(a), Err(b)) => Err(Self::Many(vec![a, b])),
            (Err(error), Ok(_)) | (Ok(_), Err(error)) => Err(error),
        }
    }

    /// True where asking again may help: no leader just now, or the local swarmd restarts.
    pub(crate) fn is_passing(&self) -> bool {
        match self {
            Self::Refused { status, whom, .. } => judge(status, *whom).0 == ExitCode::Unreachable,
            Self::Unreachable { .. } | Self::Unavailable => true,
            Self::Usage(_)
            | Self::Unnamed { .. }
            | Self::NotFound { .. }
            | Self::Ambiguous { .. }
            | Self::Rejected { .. }
            | Self::NotConverged { .. }
            | Self::Interrupted { .. }
            | Self::Local { .. }
            | Self::Template(_)
            | Self::Many(_) => false,
        }
    }

    pub(crate) fn exit_code(&self) -> ExitCode {
        match self {
            Self::Usage(_) | Self::Unnamed { .. } | Self::Template(_) => ExitCode::Usage,
            Self::NotFound { .. } | Self::Ambiguous { .. } => ExitCode::NotFound,
            Self::Refused { status, whom, .. } => judge(status, *whom).0,
            Self::Rejected { .. } => ExitCode::Refused,
            Self::Unreachable { .. } | Self::Unavailable => ExitCode::Unreachable,
            Self::NotConverged { .. } => ExitCode::NotConverged,
            Self::Interrupted { .. } => ExitCode::Interrupted,
            Self::Local { .. } => ExitCode::Local,
            Self::Many(errors) => errors.first().map_or(ExitCode::Ok, Self::exit_code),
        }
    }

    /// Tells the operator. A closed stdout (`swarmctl task ls | head`) is the reader's choice, not a failure.
    pub(crate) fn report(&self, terminal: &mut Terminal) -> ExitCode {
        if let Self::Local { source, .. } = self
            && source.kind() == io::ErrorKind::BrokenPipe
        {
            return ExitCode::Ok;
        }
        let text: String = self
            .to_string()
            .lines()
            .map(|line| format!("swarmctl: {line}\n"))
            .collect();
        // A stderr that can't be written to leaves only the exit code to speak.
        let _unheard = terminal.stderr.text(&text);
        self.exit_code()
    }
}

/// The manager's own words, then the way out where the code implies one.
fn explain(status: &tonic::Status, whom: Whom) -> String {
    let message = match status.message() {
        "" => status.code().description(),
        message => message,
    };
    match judge(status, whom).1 {
        "" => message.to_owned(),
        // swarmd says itself what it does not serve; silence is that of a stranger.
        _ if status.code() == Code::Unimplemented && !status.message().is_empty() => {
            message.to_owned()
        }
        hint => format!("{message} ({hint})"),
    }
}

/// The exit code and the hint of an answer.
fn judge(status: &tonic::Status, whom: Whom) -> (ExitCode, &'static str) {
    // Only a status made on this side has a source: nobody answered, whatever code the transport chose.
    if status.source().is_some() {
        return (
            ExitCode::Unreachable,
            "the connection to swarmd broke; is it running? its log says more",
        );
    }
    match status.code() {
        Code::Ok => (ExitCode::Ok, ""),
        Code::InvalidArgument
        | Code::AlreadyExists
        | Code::FailedPrecondition
        | Code::OutOfRange => (ExitCode::Refused, ""),
        Code::NotFound => (ExitCode::NotFound, ""),
        Code::PermissionDenied | Code::Unauthenticated => (
            ExitCode::Refused,
            match whom {
                Whom::Managers => "is this the control socket of a manager?",
                Whom::Node => "is this the control socket of swarmd?",
            },
        ),
        Code::Aborted => (
            ExitCode::Refused,
            "somebody else changed it at the same time; try again",
        ),
        Code::ResourceExhausted => (
            ExitCode::Refused,
            match whom {
                Whom::Managers => "a limit of the manager was reached",
                Whom::Node => "a limit of swarmd was reached",
            },
        ),
        Code::Unimplemented => (
            ExitCode::Refused,
            match whom {
                Whom::Managers => "this manager does not serve that request",
                Whom::Node => "this swarmd does not serve that request",
            },
        ),
        Code::Internal | Code::DataLoss | Code::Unknown => (
            ExitCode::Refused,
            "the log of swarmd on this host says more",
        ),
        Code::Cancelled | Code::DeadlineExceeded => (
            ExitCode::Unreachable,
            match whom {
                Whom::Managers => {
                    "the manager did not answer in time; has the cluster a leader? see: swarmctl node ls"
                }
                Whom::Node => "swarmd did not answer in time; its log on this host says more",
            },
        ),
        Code::Unavailable => (
            ExitCode::Unreachable,
            match whom {
                Whom::Managers => "is swarmd running, and a majority of managers with it?",
                Whom::Node => "does containerd on this host run, and answer? see: swarmd doctor",
            },
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_carries_the_message_and_the_way_out() {
        let error = Error::refused(
            "create service web",
            tonic::Status::already_exists("name taken"),
        );
        assert_eq!(error.to_string(), "create service web: name taken");
        assert_eq!(error.exit_code(), ExitCode::Refused);
        let error = Error::refused("list nodes", tonic::Status::unavailable(""));
        assert!(error.to_string().contains("is swarmd running"), "{error}");
        assert_eq!(error.exit_code().code(), 4);
    }

    #[test]
    fn what_is_on_a_node_is_no_matter_of_managers() {
        for code in [
            Code::Unavailable,
            Code::DeadlineExceeded,
            Code::Cancelled,
            Code::PermissionDenied,
            Code::ResourceExhausted,
            Code::Unimplemented,
        ] {
            let status = || tonic::Status::new(code, "");
            let here = Error::refused_here("list images", status());
            let text = here.to_string();
            assert!(
                !text.contains("manager") && !text.contains("leader"),
                "{text}"
            );
            let there = Error::refused("list nodes", status());
            assert_eq!(here.exit_code(), there.exit_code());
        }
    }

    #[test]
    fn the_first_of_several_errors_gives_the_code() {
        let missing = |name: &str| Error::NotFound {
            kind: Kind::Service,
            name: name.to_owned(),
        };
        let error = Error::Many(vec![missing("a"), missing("b")]);
        assert_eq!(error.exit_code(), ExitCode::NotFound);
        assert_eq!(error.to_string().lines().count(), 2);
    }
}
