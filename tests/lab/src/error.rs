//! Why a lab could not be built, used or removed.

use std::path::PathBuf;

/// Each names what was attempted and what the machine said.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A program is not installed.
    #[error("{program} is not installed; run: make deps")]
    Missing {
        /// Its name on the search path.
        program: String,
    },
    /// A program failed.
    #[error("{line}: {status}: {output}")]
    Command {
        /// The command line.
        line: String,
        /// How it ended.
        status: String,
        /// What it wrote to stderr and stdout.
        output: String,
    },
    /// A file or directory could not be used.
    #[error("{action} {}", path.display())]
    File {
        /// What was attempted, as a verb: `write`.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// Something expected did not happen in time.
    #[error("{what}: not within {seconds} s; last seen: {last}")]
    Timeout {
        /// What was waited for.
        what: String,
        /// For how long.
        seconds: u64,
        /// The state at the end.
        last: String,
    },
    /// A server did not do as asked.
    #[error("{address}: {request}: {reason}")]
    Http {
        /// Host and port.
        address: String,
        /// Method and path.
        request: String,
        /// What it answered.
        reason: String,
    },
    /// The lab can't be built in the machine's present state.
    #[error("{0}")]
    Refused(String),
    /// Several things went wrong while cleaning up, which goes on after each.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Several(Vec<Error>),
}

impl Error {
    /// For `map_err` on file operations.
    pub(crate) fn file(
        action: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::File {
            action,
            path,
            source,
        }
    }

    /// The error with its causes, on one line.
    pub fn chain(&self) -> String {
        let mut text = self.to_string();
        let mut source = std::error::Error::source(self);
        while let Some(cause) = source {
            text.push_str(&format!(": {cause}"));
            source = cause.source();
        }
        text
    }
}
