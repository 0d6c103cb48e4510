//! The state directory: one swarmd at a time, and no file half-written at bootstrap.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

/// Marks a bootstrap under way: what lies beside it was never part of a cluster.
const BOOTSTRAP: &str = "bootstrap";
/// Marks a manager that is not a member of consensus yet; names the manager it asks.
const JOINING: &str = "joining";
/// Names the manager that this node joined through: the first to ask until others are known.
const MANAGER: &str = "manager";
/// Data of named volumes: the operator's, not the cluster's.
const VOLUMES: &str = "volumes";
const LOCK: &str = "lock";
/// Where the log of a member is moved that is one no more.
pub(crate) const RETIRED: &str = "raft.retired";
/// Marks a restore under way: what lies beside it is not whole.
const RESTORING: &str = "restoring";

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
    /// A restore was cut off in it.
    #[error("state dir {} holds a restore that did not finish: run `swarmd restore` again", .0.display())]
    Restoring(PathBuf),
    /// It holds something.
    #[error("state dir {} is not empty ({found} is in it): a restore needs one that is; name another with --state-dir, or move its content away", path.display())]
    NotEmpty {
        /// The directory.
        path: PathBuf,
        /// What is in it.
        found: String,
    },
    /// There is none.
    #[error("state dir {} does not exist; name the one of a node with --state-dir", .0.display())]
    Absent(PathBuf),
    /// The system says no.
    #[error("state dir {}: {reason}", path.display())]
    Io {
        /// The directory or file.
        path: PathBuf,
        /// What the system said.
        reason: std::io::Error,
    },
}

/// Writes a note of one line.
///
/// # Errors
/// When the file can't be written.
pub(crate) fn write_note(path: &Path, text: &str) -> Result<(), StateDirError> {
    let write = || {
        let mut file = File::create(path)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()
    };
    write().map_err(|reason| StateDirError::Io {
        path: path.to_owned(),
        reason,
    })
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

    /// Locks the directory of a node that does not run.
    ///
    /// # Errors
    /// When there is none, or swarmd runs on it.
    pub(crate) fn open_stopped(path: &Path) -> Result<Self, StateDirError> {
        match path.join(LOCK).exists() || path.join("raft").exists() {
            true => Self::open(path),
            false => Err(StateDirError::Absent(path.to_owned())),
        }
    }

    /// Whether a restore may go into this directory: it is not there, or empty, or an earlier restore did not finish.
    ///
    /// # Errors
    /// When something is in it.
    pub(crate) fn check_empty(path: &Path) -> Result<(), StateDirError> {
        let io = |reason| StateDirError::Io {
            path: path.to_owned(),
            reason,
        };
        if path.join(RESTORING).exists() {
            return Ok(());
        }
        let entries = match std::fs::read_dir(path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            entries => entries.map_err(io)?,
        };
        for entry in entries {
            let name = entry.map_err(io)?.file_name();
            // What a file system of its own begins with.
            if name != LOCK && name != "lost+found" {
                return Err(StateDirError::NotEmpty {
                    path: path.to_owned(),
                    found: name.to_string_lossy().into_owned(),
                });
            }
        }
        Ok(())
    }

    /// Begins a restore: into an empty directory, or one that an earlier restore did not finish.
    ///
    /// # Errors
    /// When something is in it.
    pub(crate) fn begin_restore(&self) -> Result<(), StateDirError> {
        Self::check_empty(&self.path)?;
        if self.path.join(RESTORING).exists() {
            // The mark stays: a cut in the middle is one of this restore.
            return self.clear_but(&[RESTORING]);
        }
        self.note(RESTORING, "a restore that did not finish; run it again\n")?;
        self.sync()
    }

    /// The restore is whole.
    ///
    /// # Errors
    /// When the mark can't be removed.
    pub(crate) fn end_restore(&self) -> Result<(), StateDirError> {
        self.sync()?;
        self.remove_if_there(RESTORING)?;
        self.sync()
    }

    /// The restore failed: nothing stays.
    ///
    /// # Errors
    /// The first entry that can't be removed.
    pub(crate) fn undo_restore(&self) -> Result<(), StateDirError> {
        self.clear_but(&[RESTORING])?;
        self.remove_if_there(RESTORING)?;
        self.remove_if_there(LOCK)
    }

    /// Whether a restore ended that was begun here.
    ///
    /// # Errors
    /// When it did not.
    pub(crate) fn check_restored(&self) -> Result<(), StateDirError> {
        match self.path.join(RESTORING).exists() {
            true => Err(StateDirError::Restoring(self.path.clone())),
            false => Ok(()),
        }
    }

    fn sync(&self) -> Result<(), StateDirError> {
        let synced = File::open(&self.path).and_then(|dir| dir.sync_all());
        synced.map_err(|reason| StateDirError::Io {
            path: self.path.clone(),
            reason,
        })
    }

    /// Its absolute path.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether there is consensus state. An empty directory is none: a log that was lost must not begin anew.
    pub(crate) fn has_raft(&self) -> bool {
        let entries = std::fs::read_dir(self.path.join("raft"));
        entries.is_ok_and(|mut entries| entries.next().is_some())
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
        self.remove_if_there(BOOTSTRAP)
    }

    fn remove_if_there(&self, name: &str) -> Result<(), StateDirError> {
        let path = self.path.join(name);
        match std::fs::remove_file(&path) {
            Err(reason) if reason.kind() != std::io::ErrorKind::NotFound => {
                Err(StateDirError::Io { path, reason })
            }
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// Marks that this manager is to become a member of consensus, by asking the manager at `via`. Comes before its
    /// certificate is on disk: a manager with a certificate, without a log and without this mark has lost its log.
    ///
    /// # Errors
    /// When the file can't be written.
    pub(crate) fn begin_join(&self, via: &str) -> Result<(), StateDirError> {
        self.note(JOINING, via)
    }

    /// Keeps the address of the manager that this node joins through.
    ///
    /// # Errors
    /// When the file can't be written.
    pub(crate) fn remember_manager(&self, addr: &str) -> Result<(), StateDirError> {
        self.note(MANAGER, addr)
    }

    /// The manager that this node joined through.
    ///
    /// # Errors
    /// When the file is there and can't be read.
    pub(crate) fn remembered_manager(&self) -> Result<Option<String>, StateDirError> {
        self.read_note(MANAGER)
    }

    /// Where [`Self::remember_manager`] keeps it.
    pub(crate) fn manager_note(&self) -> PathBuf {
        self.path.join(MANAGER)
    }

    fn note(&self, name: &str, text: &str) -> Result<(), StateDirError> {
        write_note(&self.path.join(name), text)
    }

    fn read_note(&self, name: &str) -> Result<Option<String>, StateDirError> {
        let path = self.path.join(name);
        match std::fs::read_to_string(&path) {
            Ok(text) => Ok(Some(text.trim().to_owned()).filter(|text| !text.is_empty())),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(reason) => Err(StateDirError::Io { path, reason }),
        }
    }

    /// The manager to ask, where this one is not a member yet.
    ///
    /// # Errors
    /// When the mark is there and can't be read.
    pub(crate) fn joining(&self) -> Result<Option<String>, StateDirError> {
        self.read_note(JOINING)
    }

    /// Removes the log of a member that is one no more, and marks that this manager is to become another one. Moved aside first:
    /// half a log would look like damage.
    ///
    /// # Errors
    /// When a file can't be written or moved.
    pub(crate) fn begin_anew(&self, via: &str) -> Result<(), StateDirError> {
        self.begin_join(via)?;
        self.remove_if_there_dir(RETIRED)?;
        let (raft, aside) = (self.path.join("raft"), self.path.join(RETIRED));
        std::fs::rename(&raft, &aside)
            .map_err(|reason| StateDirError::Io { path: raft, reason })?;
        self.sync()?;
        self.remove_if_there_dir(RETIRED)
    }

    fn remove_if_there_dir(&self, name: &str) -> Result<(), StateDirError> {
        match self.path.join(name).exists() {
            true => self.remove(name),
            false => Ok(()),
        }
    }

    /// Where the mark of [`Self::begin_join`] is.
    pub(crate) fn joining_marker(&self) -> PathBuf {
        self.path.join(JOINING)
    }

    /// This manager is a member, or will not be one.
    ///
    /// # Errors
    /// When the mark can't be removed.
    pub(crate) fn end_join(&self) -> Result<(), StateDirError> {
        self.remove_if_there(JOINING)
    }

    /// Removes what only a manager has. Its log must not vote again: it comes back as a new member or not at all.
    ///
    /// # Errors
    /// When something can't be removed.
    pub(crate) fn forget_manager(&self) -> Result<(), StateDirError> {
        self.end_join()?;
        for entry in std::fs::read_dir(&self.path)
            .into_iter()
            .flatten()
            .flatten()
        {
            // What recoveries replaced.
            if entry.file_name().as_encoded_bytes().starts_with(b"raft.") {
                self.remove(entry.file_name())?;
            }
        }
        match self.has_raft() {
            true => self.remove("raft"),
            false => Ok(()),
        }
    }

    /// Removes everything of the cluster that was left; the directory itself stays, and so do volumes.
    ///
    /// # Errors
    /// The first entry that can't be removed; the others are gone all the same.
    pub(crate) fn clear(&self) -> Result<(), StateDirError> {
        self.clear_but(&[])
    }

    fn clear_but(&self, stays: &[&str]) -> Result<(), StateDirError> {
        let io = |reason| StateDirError::Io {
            path: self.path.clone(),
            reason,
        };
        let mut first = None;
        for entry in std::fs::read_dir(&self.path).map_err(io)? {
            let name = entry.map_err(io)?.file_name();
            if name == LOCK || name == VOLUMES || stays.iter().any(|stays| name == *stays) {
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
