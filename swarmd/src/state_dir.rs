//! The state directory: one swarmd at a time, and no file half-written at bootstrap.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

/// Marks a bootstrap under way: what lies beside it was never part of a cluster.
const BOOTSTRAP: &str = "bootstrap";
const LOCK: &str = "lock";

/// The locked state directory; free again when dropped.
#[derive(Debug)]
pub(crate) struct StateDir {
    path: PathBuf,
    _lock: nix::fcntl::Flock<File>,
}

/// Why the state directory can't be used.
#[derive(Debug, thiserror::Error)]
pub enum StateDirError {
    /// Another swarmd has it.
    #[error("state dir {} is in use by another swarmd; stop it, or choose another with --state-dir", .0.display())]
    InUse(PathBuf),
    /// The system says no.
    #[error("state dir {}: {reason}", path.display())]
    Io {
        /// The directory or file.
        path: PathBuf,
        /// What the system said.
        reason: std::io::Error,
    },
}

impl StateDir {
    /// Makes the directory if need be (mode 0700) and locks it.
    ///
    /// # Errors
    /// When another swarmd has it, or it can't be made or written.
    pub(crate) fn open(path: &Path) -> Result<Self, StateDirError> {
        let io = |reason| StateDirError::Io {
            path: path.to_owned(),
            reason,
        };
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .map_err(io)?;
        // Containers are given absolute paths below it.
        let path = path.canonicalize().map_err(io)?;
        let lock = path.join(LOCK);
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&lock)
            .map_err(|reason| StateDirError::Io {
                path: lock.clone(),
                reason,
            })?;
        match nix::fcntl::Flock::lock(file, nix::fcntl::FlockArg::LockExclusiveNonblock) {
            Ok(lock) => Ok(Self { path, _lock: lock }),
            Err((_, nix::errno::Errno::EWOULDBLOCK)) => Err(StateDirError::InUse(path)),
            Err((_, errno)) => Err(StateDirError::Io {
                path: lock,
                reason: errno.into(),
            }),
        }
    }

    /// Its absolute path.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether there is consensus state.
    pub(crate) fn has_raft(&self) -> bool {
        self.path.join("raft").exists()
    }

    /// Marks the start of a bootstrap. What an earlier one left that did not finish goes.
    ///
    /// # Errors
    /// When a file can't be written or removed.
    pub(crate) fn begin_bootstrap(&self) -> Result<(), StateDirError> {
        let marker = self.path.join(BOOTSTRAP);
        if marker.exists() && self.has_raft() {
            self.remove("raft")?;
        }
        let write = || {
            let mut file = File::create(&marker)?;
            file.write_all(b"a bootstrap that did not finish; see swarmd's state_dir\n")?;
            file.sync_all()
        };
        write().map_err(|reason| StateDirError::Io {
            path: marker.clone(),
            reason,
        })
    }

    /// Whether a bootstrap began here and did not finish.
    pub(crate) fn in_bootstrap(&self) -> bool {
        self.path.join(BOOTSTRAP).exists()
    }

    /// The identity is on disk: the cluster is founded.
    ///
    /// # Errors
    /// When the marker can't be removed.
    pub(crate) fn end_bootstrap(&self) -> Result<(), StateDirError> {
        let marker = self.path.join(BOOTSTRAP);
        match std::fs::remove_file(&marker) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(StateDirError::Io {
                path: marker,
                reason: e,
            }),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// Removes everything of the cluster that was left; the directory itself stays.
    ///
    /// # Errors
    /// The first entry that can't be removed; the others are gone all the same.
    pub(crate) fn clear(&self) -> Result<(), StateDirError> {
        let io = |reason| StateDirError::Io {
            path: self.path.clone(),
            reason,
        };
        let mut first = None;
        for entry in std::fs::read_dir(&self.path).map_err(io)? {
            let name = entry.map_err(io)?.file_name();
            if name == LOCK {
                continue;
            }
            if let Err(e) = self.remove(&name) {
                first.get_or_insert(e);
            }
        }
        first.map_or(Ok(()), Err)
    }

    fn remove(&self, name: impl AsRef<Path>) -> Result<(), StateDirError> {
        let path = self.path.join(name);
        let removed = if path.is_dir() {
            std::fs::remove_dir_all(&path)
        } else {
            std::fs::remove_file(&path)
        };
        removed.map_err(|reason| StateDirError::Io { path, reason })
    }
}
