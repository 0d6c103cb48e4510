//! A new raft directory out of a recovered state: one member, a new number, a new epoch, its log beginning after a snapshot.
//!
//! ```text
//! raft.recovering   being written; a start removes it
//! raft.recovered    complete and durable; renamed to raft as the last step
//! raft.before-…     the directory that was replaced, kept until a start without --force-new-cluster succeeds, or the
//!                   recovered cluster has its managers locked by another key
//! raft.retired      of a member that is one no more, where its removal was cut off; a start removes it
//! ```
//!
//! A power cut leaves the old directory in place, or the new one, or, between the two last renames, none and a complete
//! new one: [`settle`] finishes that.
//!
//! The log's index goes on far above the last one ([`INDEX_GAP`]): what the lost managers wrote after it had versions of
//! their own, and a client that still holds one of these must not be taken for up to date.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use openraft::vote::RaftLeaderId as _;

use super::dek_file::DekFile;
use super::dir::{DEK, DIR, ID, LOG, SNAPSHOTS, id_text, is_present};
use super::disk::Disk;
use super::encryption::{Dek, DekRing};
use super::epoch::Epoch;
use super::error::StorageError;
use super::former::{self, Former};
use super::gate::Gate;
use super::log_file::{self, LogFile, Place, STATE};
use super::snapshot::SnapshotStore;
use super::state_machine::Machine;
use super::types::{
    LogId, Member, Membership, RaftId, SnapshotMeta, StoredMembership, Types, Vote,
};
use super::wire;
use crate::seal::Seal;
use crate::state_dir::RETIRED;

type LeaderId = openraft::alias::LeaderIdOf<Types>;

const UNFINISHED: &str = "raft.recovering";
const RECOVERED: &str = "raft.recovered";
const BEFORE: &str = "raft.before-epoch-";
/// In a raft directory: it was made by --force-new-cluster, and no start without that flag has followed.
const FORCED: &str = "forced";

/// Versions that the lost managers may have given after the recovered state: a week at 1,000 writes a second.
pub(crate) const INDEX_GAP: u64 = 1_000_000_000;

/// What the new directory is made of.
#[derive(Debug)]
pub(crate) struct Rebuilt<'a, V> {
    pub(crate) view: &'a V,
    /// The last entry that is in it.
    pub(crate) index: u64,
    /// The highest term that was seen.
    pub(crate) term: u64,
    pub(crate) epoch: Epoch,
    /// The only member, and its new number.
    pub(crate) id: RaftId,
    pub(crate) member: Member,
    /// The members that are left behind.
    pub(crate) former: Vec<Former>,
    /// Whether a flag did this that may be given again.
    pub(crate) forced: bool,
    /// What protects the new directory's keys.
    pub(crate) seal: Seal,
}

impl<V> Rebuilt<'_, V> {
    fn leader(&self) -> LeaderId {
        LeaderId::new(self.term + 1, self.id)
    }

    fn last(&self) -> LogId {
        LogId {
            leader_id: self.leader(),
            index: self.index.saturating_add(INDEX_GAP),
        }
    }

    fn meta(&self) -> Result<SnapshotMeta, StorageError> {
        let nodes = BTreeMap::from([(self.id, self.member.clone())]);
        let voters = vec![BTreeSet::from([self.id])];
        let membership = Membership::new(voters, nodes)
            .map_err(|e| StorageError::damaged(Path::new(DIR), "the new membership", e))?;
        Ok(SnapshotMeta {
            last_log_id: Some(self.last()),
            last_membership: StoredMembership::new(Some(self.last()), membership),
        })
    }

    /// Writes the directory under a name of its own; returns once it is complete and durable. Blocks on the disk.
    pub(crate) fn prepare<M: Machine<View = V>>(
        &self,
        state_dir: &Path,
        step: &mut dyn FnMut() -> Result<(), StorageError>,
    ) -> Result<(), StorageError> {
        let new = state_dir.join(UNFINISHED);
        remove_dir(&new)?;
        step()?;
        Disk::Real.create_dir(&new)?;
        step()?;
        Disk::Real.create_dir(&new.join(SNAPSHOTS))?;
        Disk::Real.write_new(&new.join(ID), id_text(self.id).as_bytes())?;
        step()?;
        Gate::create(&Disk::Real, &new, self.epoch)?;
        former::write(&new, &self.former)?;
        step()?;
        if self.forced {
            let text =
                b"made by --force-new-cluster; gone with the first start without that flag\n";
            Disk::Real.write_new(&new.join(FORCED), text)?;
        }
        let at = (&new.join(DEK), &state_dir.join(DIR).join(DEK));
        let keys = DekFile::create(&Disk::Real, (at.0, at.1), self.seal.clone())?.keys();
        step()?;
        self.write_log(&new, keys.newest())?;
        step()?;
        self.write_snapshot::<M>(&new, &keys)?;
        Disk::Real.sync_dir(&new)?;
        step()?;
        let recovered = state_dir.join(RECOVERED);
        remove_dir(&recovered)?;
        std::fs::rename(&new, &recovered).map_err(StorageError::io("rename", &new))?;
        Disk::Real.sync_dir(state_dir)
    }

    /// An empty log after the snapshot, and a vote above all that were given.
    fn write_log(&self, new: &Path, dek: &Dek) -> Result<(), StorageError> {
        let path = new.join(LOG);
        let log = LogFile::create(&Disk::Real, (&path, &path), dek)?;
        let vote = Vote::new(self.term + 2, self.id);
        let (vote, last) = (wire::vote(&vote), wire::log_id(&self.last()));
        let records = [
            (
                log_file::VOTE,
                log.seal(1, Place::State(log_file::VOTE), &vote)?,
            ),
            (
                log_file::PURGED,
                log.seal(2, Place::State(log_file::PURGED), &last)?,
            ),
            (
                log_file::COMMITTED,
                log.seal(3, Place::State(log_file::COMMITTED), &last)?,
            ),
        ];
        let write = || -> Result<(), redb::Error> {
            let txn = log.db().begin_write()?;
            {
                let mut state = txn.open_table(STATE)?;
                for (name, record) in &records {
                    state.insert(*name, record.as_slice())?;
                }
            }
            txn.commit()?;
            Ok(())
        };
        write().map_err(|e| log.fault("write", e))
    }

    fn write_snapshot<M: Machine<View = V>>(
        &self,
        new: &Path,
        keys: &DekRing,
    ) -> Result<(), StorageError> {
        let store = SnapshotStore::open(&Disk::Real, &new.join(SNAPSHOTS), keys)?;
        let meta = self.meta()?;
        let mut writer = store.create(&meta)?;
        let path = writer.path().to_owned();
        M::write_snapshot(self.view, &mut writer).map_err(StorageError::io("write", &path))?;
        let file = store.finish(writer, meta)?;
        store.install(file).map(drop)
    }
}

/// Puts a prepared directory in the place of the one that is there, which is kept beside it. Blocks on the disk.
pub(crate) fn put_in_place(
    state_dir: &Path,
    epoch: Epoch,
    step: &mut dyn FnMut() -> Result<(), StorageError>,
) -> Result<(), StorageError> {
    let (dir, recovered) = (state_dir.join(DIR), state_dir.join(RECOVERED));
    if dir.exists() {
        let kept = state_dir.join(format!("{BEFORE}{epoch}"));
        std::fs::rename(&dir, &kept).map_err(StorageError::io("rename", &dir))?;
        // In this order also on disk.
        Disk::Real.sync_dir(state_dir)?;
        step()?;
    }
    std::fs::rename(&recovered, &dir).map_err(StorageError::io("rename", &recovered))?;
    Disk::Real.sync_dir(state_dir)?;
    step()
}

/// Finishes or undoes a recovery that a power cut broke off. Called before anything else looks at the directory.
pub(crate) fn settle(state_dir: &Path) -> Result<(), StorageError> {
    let (dir, recovered) = (state_dir.join(DIR), state_dir.join(RECOVERED));
    remove_dir(&state_dir.join(UNFINISHED))?;
    remove_dir(&state_dir.join(RETIRED))?;
    if !recovered.exists() {
        return Ok(());
    }
    if is_present(&Disk::Real, &dir)? {
        return remove_dir(&recovered);
    }
    std::fs::rename(&recovered, &dir).map_err(StorageError::io("rename", &recovered))?;
    Disk::Real.sync_dir(state_dir)?;
    tracing::warn!("a recovery that was cut off half-way is finished");
    Ok(())
}

/// Whether --force-new-cluster made this raft directory and every start since had that flag.
pub(crate) fn is_forced(state_dir: &Path) -> bool {
    state_dir.join(DIR).join(FORCED).exists()
}

/// The directories that have been replaced: by recoveries, and of a member that is one no more.
pub(crate) fn kept(state_dir: &Path) -> Result<Vec<PathBuf>, StorageError> {
    let mut all = Disk::Real.list(state_dir)?.unwrap_or_default();
    all.retain(|path| {
        let name = path.file_name().and_then(|name| name.to_str());
        name.is_some_and(|name| name.starts_with(BEFORE) || name == RETIRED)
    });
    Ok(all)
}

/// The recovery has proved itself: what it replaced goes, and the flag counts again.
pub(crate) fn forget(state_dir: &Path) -> Result<(), StorageError> {
    Disk::Real.remove(&state_dir.join(DIR).join(FORCED))?;
    forget_replaced(state_dir).map(drop)
}

/// Removes the directories that have been replaced; returns how many. Their keys lie in them as they did at that
/// time, so they must not stay where files are locked, or the unlock key is replaced.
pub(crate) fn forget_replaced(state_dir: &Path) -> Result<usize, StorageError> {
    let kept = kept(state_dir)?;
    kept.iter().try_for_each(|dir| remove_dir(dir))?;
    if !kept.is_empty() {
        Disk::Real.sync_dir(state_dir)?;
    }
    Ok(kept.len())
}

fn remove_dir(dir: &Path) -> Result<(), StorageError> {
    match std::fs::remove_dir_all(dir) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            Err(StorageError::io("remove", dir)(e))
        }
        _ => Ok(()),
    }
}
