//! What can go wrong with consensus state on disk, in words an operator can act on.

use std::io;
use std::path::{Path, PathBuf};

/// What to do about state that is damaged or gone. Part of the message of every such error.
const WAY_OUT: &str = "stop swarmd and restore the raft directory from a backup, or, if other \
                       managers are healthy, remove this manager from the cluster, move the whole \
                       state directory away (volumes/ can be kept) and join again";

/// A failure of the raft directory: the log, its key, or a snapshot.
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    /// The operating system refused.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried, an imperative.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// Another process holds the log.
    #[error("{} is in use: stop the other swarmd that runs on this state directory", path.display())]
    InUse {
        /// The log.
        path: PathBuf,
    },
    /// The bytes are not what was written.
    #[error("{} is damaged: {record}: {problem}; {WAY_OUT}", path.display())]
    Damaged {
        /// The damaged file.
        path: PathBuf,
        /// Which part of it.
        record: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A file that belongs to the others is not there.
    #[error("{} is missing, though {} exists; {WAY_OUT}", path.display(), beside.display())]
    Missing {
        /// The absent file.
        path: PathBuf,
        /// The file that shows it was there.
        beside: PathBuf,
    },
    /// The key file is sound but is not the key of this log.
    #[error("the key in {} does not open {}: they come from different nodes or backups; {WAY_OUT}", key.display(), path.display())]
    WrongKey {
        /// The key file.
        key: PathBuf,
        /// The sealed file.
        path: PathBuf,
    },
    /// The key is itself sealed by an unlock key.
    #[error("the key in {} is locked ({protection}): unlock this manager first", key.display())]
    Locked {
        /// The key file.
        key: PathBuf,
        /// How it is protected.
        protection: String,
    },
    /// The key is sealed by another unlock key.
    #[error("{}: {reason}; a manager that was down while the key was rotated is unlocked by the key from before", key.display())]
    OtherKey {
        /// The key file.
        key: PathBuf,
        /// Which one it is sealed for.
        reason: String,
    },
    /// Another version's layout.
    #[error("{} has format {found}, this swarmd reads {expected}: run the version that wrote it", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// Its format.
        found: String,
        /// The format that can be read.
        expected: &'static str,
    },
    /// An earlier write failed, so nothing after it may be acknowledged.
    #[error("{} takes no more writes after a failed one: {first}", path.display())]
    Poisoned {
        /// The log.
        path: PathBuf,
        /// The first failure.
        first: String,
    },
    /// The log was closed.
    #[error("{} is closed: swarmd is shutting down", path.display())]
    Closed {
        /// The log.
        path: PathBuf,
    },
}

impl StorageError {
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io {
            action,
            path,
            source,
        }
    }

    pub(crate) fn damaged(
        path: &Path,
        record: impl Into<String>,
        problem: impl std::fmt::Display,
    ) -> Self {
        Self::Damaged {
            path: path.to_owned(),
            record: record.into(),
            problem: problem.to_string(),
        }
    }
}

/// openraft's storage traits speak `io::Error`.
impl From<StorageError> for io::Error {
    fn from(error: StorageError) -> Self {
        io::Error::other(error)
    }
}
