//! The raft directory: made whole or not at all.
//!
//! ```text
//! raft/id           this member's number, chosen when the directory was made
//! raft/epoch        which life of the cluster it takes part in, see gate.rs
//! raft/dek          data encryption key, sealed with autolock
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

use super::dek_file::DekFile;
use super::disk::Disk;
use super::epoch::Epoch;
use super::error::StorageError;
use super::gate::Gate;
use super::log_file::{Loaded, LogFile};
use super::log_store::LogStore;
use super::snapshot::SnapshotStore;
use super::types::RaftId;
use crate::seal::Seal;

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
    pub(crate) dek: Arc<DekFile>,
    pub(crate) gate: Arc<Gate>,
}

/// Whether `seal` opens the keys of `state_dir/raft`, where there are any.
///
/// # Errors
/// Why not.
pub(crate) fn check_key(state_dir: &Path, seal: &Seal) -> Result<(), StorageError> {
    let path = state_dir.join(DIR).join(DEK);
    match path.exists() {
        true => DekFile::read(&Disk::Real, &path, seal.clone()).map(drop),
        false => Ok(()),
    }
}

impl RaftDir {
    /// Opens `state_dir/raft`, which is made, for member `new` of no epoch yet, when it doesn't exist. Blocks on the disk.
    pub(crate) fn open(
        disk: &Disk,
        (state_dir, seal): (&Path, Seal),
        new: RaftId,
    ) -> Result<Self, StorageError> {
        let dir = state_dir.join(DIR);
        if !is_present(disk, &dir)? {
            return create(disk, state_dir, (&dir, seal), new);
        }
        let gate = Arc::new(Gate::open(disk, &dir)?);
        let (id_path, dek_path) = (dir.join(ID), dir.join(DEK));
        let (log_path, snapshots_path) = (dir.join(LOG), dir.join(SNAPSHOTS));
        for path in [&id_path, &dek_path, &log_path, &snapshots_path] {
            if !disk.exists(path) {
                return Err(StorageError::Missing {
                    path: path.clone(),
                    beside: dir,
                });
            }
        }
        let dek = Arc::new(DekFile::read(disk, &dek_path, seal)?);
        let (log, loaded) = LogFile::open(disk, &log_path, (&dek.keys(), &dek_path))?;
        let log = LogStore::over(log, loaded)?;
        let snapshots = Arc::new(SnapshotStore::open(disk, &snapshots_path, &dek.keys())?);
        let id = read_id(disk, &id_path)?;
        let opened = Self {
            id,
            log,
            snapshots,
            dek,
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
pub(crate) fn is_present(disk: &Disk, dir: &Path) -> Result<bool, StorageError> {
    Ok(disk.list(dir)?.is_some_and(|files| !files.is_empty()))
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

pub(crate) fn read_id(disk: &Disk, path: &Path) -> Result<RaftId, StorageError> {
    let text = disk.read(path)?;
    let text = String::from_utf8_lossy(&text);
    let id = text.split(' ').next().and_then(|id| id.parse().ok());
    id.filter(|id| id_text(*id) == text).ok_or_else(|| {
        let record = "the member's number".to_owned();
        StorageError::damaged(path, record, "it does not match its check")
    })
}

fn create(
    disk: &Disk,
    state_dir: &Path,
    (dir, seal): (&Path, Seal),
    id: RaftId,
) -> Result<RaftDir, StorageError> {
    let new: PathBuf = state_dir.join(NEW_DIR);
    disk.remove_all(&new)?;
    disk.create_dir(&new)?;
    disk.create_dir(&new.join(SNAPSHOTS))?;
    disk.write_new(&new.join(ID), id_text(id).as_bytes())?;
    Gate::create(disk, &new, Epoch::NONE)?;
    let dek = DekFile::create(disk, (&new.join(DEK), &dir.join(DEK)), seal)?;
    let keys = dek.keys();
    // It stays open over the rename: opening again would cost a dozen syncs of a first start.
    let log = LogFile::create(disk, (&new.join(LOG), &dir.join(LOG)), keys.newest())?;
    disk.sync_dir(&new)?;
    disk.rename(&new, dir)?;
    disk.sync_dir(state_dir)?;
    Ok(RaftDir {
        id,
        log: LogStore::over(log, Loaded::default())?,
        snapshots: Arc::new(SnapshotStore::open(disk, &dir.join(SNAPSHOTS), &keys)?),
        dek: Arc::new(dek),
        gate: Arc::new(Gate::open(disk, dir)?),
    })
}
