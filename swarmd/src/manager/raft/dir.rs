//! The raft directory: made whole or not at all.
//!
//! ```text
//! raft/id           this member's number, chosen when the directory was made
//! raft/epoch        which life of the cluster it takes part in, see gate.rs
//! raft/dek          data encryption key
//! raft/log.redb     log, vote, positions
//! raft/snapshots/   snapshot-<index>-<term>.snap
//! ```
//!
//! A new directory is prepared under another name and renamed, so one that exists is complete: a
//! missing or empty file in it is damage, never a first start. That matters because a manager that
//! forgot its vote or its log could break promises it made to others.
//!
//! The number goes with the directory: a manager that was demoted, or lost its state, and joins again is another member.
//! Under its old number it would read its own past in the log that it is given: that it is a voter, or even the only one.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use ring::digest::{SHA256, digest};

use super::encryption::Dek;
use super::epoch::Epoch;
use super::error::StorageError;
use super::files;
use super::gate::Gate;
use super::log_file::{Loaded, LogFile};
use super::log_store::LogStore;
use super::snapshot::SnapshotStore;
use super::types::RaftId;

pub(crate) const DIR: &str = "raft";
const NEW_DIR: &str = "raft.new";
pub(crate) const ID: &str = "id";
pub(crate) const DEK: &str = "dek";
pub(crate) const LOG: &str = "log.redb";
pub(crate) const SNAPSHOTS: &str = "snapshots";

/// The open parts of a raft directory.
#[derive(Debug)]
pub(crate) struct RaftDir {
    pub(crate) id: RaftId,
    pub(crate) log: LogStore,
    pub(crate) snapshots: Arc<SnapshotStore>,
    pub(crate) gate: Arc<Gate>,
}

impl RaftDir {
    /// Opens `state_dir/raft`, which is made, for member `new` of no epoch yet, when it doesn't exist. Blocks on the disk.
    pub(crate) fn open(state_dir: &Path, new: RaftId) -> Result<Self, StorageError> {
        let dir = state_dir.join(DIR);
        if !is_present(&dir)? {
            return create(state_dir, &dir, new);
        }
        let gate = Arc::new(Gate::open(&dir)?);
        let (id_path, dek_path) = (dir.join(ID), dir.join(DEK));
        let (log_path, snapshots_path) = (dir.join(LOG), dir.join(SNAPSHOTS));
        for path in [&id_path, &dek_path, &log_path, &snapshots_path] {
            if !path.exists() {
                return Err(StorageError::Missing {
                    path: path.clone(),
                    beside: dir,
                });
            }
        }
        let dek = Arc::new(Dek::read(&dek_path)?);
        let (log, loaded) = LogFile::open(&log_path, &dek, &dek_path)?;
        let log = LogStore::over(log, loaded)?;
        let snapshots = Arc::new(SnapshotStore::open(&snapshots_path, dek)?);
        let id = read_id(&id_path)?;
        let opened = Self {
            id,
            log,
            snapshots,
            gate,
        };
        opened.check_tail(&log_path)?;
        Ok(opened)
    }

    /// Everything known to be committed must be there, in the log or in a snapshot; and the log
    /// must go on where the snapshot ends.
    fn check_tail(&self, log_path: &Path) -> Result<(), StorageError> {
        let positions = self.log.positions();
        let snapshot = self.snapshots.current().and_then(|s| s.meta.last_log_id);
        let damaged = |record: String| StorageError::damaged(log_path, record, "they are missing");
        if let Some(committed) = positions.committed {
            let end = positions.last.max(snapshot).map_or(0, |id| id.index + 1);
            if end <= committed.index {
                return Err(damaged(format!("log entries {end} to {}", committed.index)));
            }
        }
        if let Some(purged) = positions.purged
            && snapshot.is_none_or(|snapshot| snapshot.index < purged.index)
        {
            let from = snapshot.map_or(0, |snapshot| snapshot.index + 1);
            return Err(damaged(format!(
                "log entries {from} to {}, which the snapshot should hold",
                purged.index
            )));
        }
        Ok(())
    }
}

/// True if there is a raft directory with anything in it.
pub(crate) fn is_present(dir: &Path) -> Result<bool, StorageError> {
    match std::fs::read_dir(dir) {
        Ok(mut entries) => Ok(entries.next().is_some()),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(StorageError::io("open", dir)(e)),
    }
}

/// The number with a check: with another one the manager would wait for a cluster that does not know it.
pub(crate) fn id_text(id: RaftId) -> String {
    let hash = digest(&SHA256, &id.to_be_bytes());
    let check = hash
        .as_ref()
        .iter()
        .take(4)
        .map(|byte| format!("{byte:02x}"));
    format!("{id} {}\n", check.collect::<String>())
}

pub(crate) fn read_id(path: &Path) -> Result<RaftId, StorageError> {
    let text = std::fs::read(path).map_err(StorageError::io("read", path))?;
    let text = String::from_utf8_lossy(&text);
    let id = text.split(' ').next().and_then(|id| id.parse().ok());
    id.filter(|id| id_text(*id) == text).ok_or_else(|| {
        let record = "the member's number".to_owned();
        StorageError::damaged(path, record, "it does not match its check")
    })
}

fn create(state_dir: &Path, dir: &Path, id: RaftId) -> Result<RaftDir, StorageError> {
    let new: PathBuf = state_dir.join(NEW_DIR);
    match std::fs::remove_dir_all(&new) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            return Err(StorageError::io("remove", &new)(e));
        }
        _ => {}
    }
    files::create_dir(&new)?;
    files::create_dir(&new.join(SNAPSHOTS))?;
    files::write_new(&new.join(ID), id_text(id).as_bytes())?;
    Gate::create(&new, Epoch::NONE)?;
    let dek = Dek::generate()?;
    dek.write_new(&new.join(DEK))?;
    // It stays open over the rename: opening again would cost a dozen syncs of a first start.
    let log = LogFile::create(&new.join(LOG), &dir.join(LOG), &dek)?;
    files::sync_dir(&new)?;
    std::fs::rename(&new, dir).map_err(StorageError::io("rename", &new))?;
    files::sync_dir(state_dir)?;
    Ok(RaftDir {
        id,
        log: LogStore::over(log, Loaded::default())?,
        snapshots: Arc::new(SnapshotStore::open(&dir.join(SNAPSHOTS), Arc::new(dek))?),
        gate: Arc::new(Gate::open(dir)?),
    })
}
