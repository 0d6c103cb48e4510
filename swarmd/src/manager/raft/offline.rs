//! What the raft directory of a stopped member holds. Nothing on disk is changed by reading it.
//!
//! [`Survey`] is what can be read, with every problem beside it; [`Offline`] is the state that a recovery goes on with, and
//! there is none where anything is damaged.
//!
//! The state is the snapshot and **all** entries after it, also those that are not known to be committed. An acknowledged
//! write is on a majority, and this member may be of it without having heard so; leaving one out would lose it. An entry
//! that nobody acknowledged may come true by this, as it may by any change of leader.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use swarm_proto::own;

use super::dek_file::DekFile;
use super::dir::{DEK, DIR, ID, LOG, SNAPSHOTS, is_present, read_id};
use super::disk::Disk;
use super::encryption::DekRing;
use super::epoch::Epoch;
use super::error::StorageError;
use super::former::{self, Former};
use super::gate::{self, Fenced};
use super::log_file::LogFile;
use super::log_file::copy::Content;
use super::snapshot::{SUFFIX, identify};
use super::snapshot_file::SnapshotReader;
use super::state_machine::{Machine, decode};
use super::types::{EntryPayload, LogId, Membership, RaftId, SnapshotMeta, StoredMembership};
use super::wire;
use crate::seal::Seal;

/// What could be read of a raft directory.
#[derive(Debug)]
pub(crate) struct Survey {
    pub(crate) dir: PathBuf,
    pub(crate) id: Option<RaftId>,
    pub(crate) epoch: Option<Epoch>,
    pub(crate) fenced: Option<Fenced>,
    pub(crate) former: Vec<Former>,
    pub(crate) snapshot: Option<(PathBuf, SnapshotMeta)>,
    pub(crate) log: Content,
    /// Also those of the log.
    pub(crate) problems: Vec<StorageError>,
    keys: Option<DekRing>,
}

/// A stopped member's state.
#[derive(Debug)]
pub(crate) struct Offline<V> {
    pub(crate) view: V,
    /// The last entry in it.
    pub(crate) last: LogId,
    /// The highest term that this member has seen.
    pub(crate) term: u64,
    pub(crate) epoch: Epoch,
    pub(crate) fenced: Option<Fenced>,
    pub(crate) id: RaftId,
    /// Every member that the log names last, this one included.
    pub(crate) members: Vec<Former>,
    /// Those that earlier recoveries left behind and that have not been told yet.
    pub(crate) former: Vec<Former>,
}

/// Takes note of what can't be read.
fn note<T>(problems: &mut Vec<StorageError>, read: Result<T, StorageError>) -> Option<T> {
    read.map_err(|problem| problems.push(problem)).ok()
}

impl Survey {
    /// Reads `state_dir/raft`; `None` where there is none. The caller holds the lock of the state directory. Blocks on the
    /// disk.
    pub(crate) fn read(state_dir: &Path, seal: &Seal) -> Result<Option<Self>, StorageError> {
        let dir = state_dir.join(DIR);
        if !is_present(&Disk::Real, &dir)? {
            return Ok(None);
        }
        let mut problems = Vec::new();
        let id = note(&mut problems, read_id(&Disk::Real, &dir.join(ID)));
        let epoch = note(&mut problems, gate::read_epoch(&Disk::Real, &dir));
        let fenced = gate::read_fenced(&Disk::Real, &dir, epoch.unwrap_or(Epoch::FIRST));
        let fenced = note(&mut problems, fenced).flatten();
        let former = note(&mut problems, former::read(&dir)).unwrap_or_default();
        let dek_path = dir.join(DEK);
        let dek = DekFile::read(&Disk::Real, &dek_path, seal.clone());
        let keys = note(&mut problems, dek).map(|dek| dek.keys());
        let mut log = Content::default();
        let mut snapshot = None;
        if let Some(keys) = &keys {
            log = LogFile::read_copy(&dir.join(LOG), (keys, &dek_path));
            problems.append(&mut log.problems);
            snapshot = note(&mut problems, newest_snapshot(&dir.join(SNAPSHOTS), keys)).flatten();
        }
        let mut survey = Self {
            dir,
            id,
            epoch,
            fenced,
            former,
            snapshot,
            log,
            problems,
            keys,
        };
        survey.check_ends();
        Ok(Some(survey))
    }

    /// The log must go on where the snapshot ends, and hold what is known to be committed.
    fn check_ends(&mut self) {
        let path = self.dir.join(LOG);
        let mut missing = |from: u64, to: u64, where_from: &str| {
            let record = format!("log entries {from} to {to}{where_from}");
            self.problems
                .push(StorageError::damaged(&path, record, "they are missing"));
        };
        let snapshot = self
            .snapshot
            .as_ref()
            .and_then(|(_, meta)| meta.last_log_id);
        let next = |id: Option<LogId>| id.map_or(0, |id| id.index + 1);
        if next(snapshot) < next(self.log.purged) {
            let to = next(self.log.purged).saturating_sub(1);
            missing(next(snapshot), to, ", which the snapshot should hold");
        }
        let last = self.log.entries.last().map(|entry| entry.log_id);
        let end = next(last).max(next(snapshot));
        if end < next(self.log.committed) {
            missing(end, next(self.log.committed).saturating_sub(1), "");
        }
    }

    /// Reads the snapshot's state from its start.
    pub(crate) fn read_snapshot(&self) -> Result<Option<SnapshotReader>, StorageError> {
        let (Some((path, _)), Some(keys)) = (&self.snapshot, &self.keys) else {
            return Ok(None);
        };
        let file = Arc::new(Disk::Real.open(path)?);
        let (_, dek) = identify(&file, path, keys)?;
        SnapshotReader::open(file, path, &dek).map(|(reader, _)| Some(reader))
    }

    /// Who takes part, by the last entry that says so.
    pub(crate) fn membership(&self) -> StoredMembership {
        let mut last = match &self.snapshot {
            Some((_, meta)) => meta.last_membership.clone(),
            None => StoredMembership::default(),
        };
        for entry in &self.log.entries {
            if let EntryPayload::Membership(membership) = &entry.payload {
                last = StoredMembership::new(Some(entry.log_id), membership.clone());
            }
        }
        last
    }

    /// The highest term that this member has seen.
    pub(crate) fn term(&self) -> u64 {
        let voted = self.log.vote.map_or(0, |vote| vote.leader_id.term);
        voted.max(self.last().map_or(0, |last| last.leader_id.term))
    }

    /// The last entry, in the log or in the snapshot.
    pub(crate) fn last(&self) -> Option<LogId> {
        let snapshot = self
            .snapshot
            .as_ref()
            .and_then(|(_, meta)| meta.last_log_id);
        let last = self.log.entries.last().map(|entry| entry.log_id);
        last.max(snapshot)
    }

    /// The state: the snapshot, and every entry after it.
    ///
    /// # Errors
    /// What of it can't be read or applied.
    pub(crate) fn state<M: Machine>(&self, mut machine: M) -> Result<M::View, StorageError> {
        let mut from = 0;
        if let (Some(mut reader), Some((path, meta))) = (self.read_snapshot()?, &self.snapshot) {
            let damaged = |e: &dyn std::fmt::Display| StorageError::damaged(path, "the state", e);
            let view = M::read_snapshot(&mut reader).map_err(|e| damaged(&e))?;
            // The end is authenticated too.
            std::io::copy(&mut reader, &mut std::io::sink()).map_err(|e| damaged(&e))?;
            let index = meta.last_log_id.map_or(0, |id| id.index);
            machine.restore(index, view);
            from = index + 1;
        }
        let later = self.log.entries.iter().filter(|e| e.log_id.index >= from);
        for entry in later {
            let index = entry.log_id.index;
            if let EntryPayload::Normal(command) = &entry.payload {
                let changes = decode::<M>(index, command.clone()).map_err(|e| {
                    StorageError::damaged(&self.dir.join(LOG), format!("log entry {index}"), e)
                })?;
                machine.apply(index, changes);
            }
        }
        Ok(machine.view())
    }

    /// The whole of it, for a recovery.
    ///
    /// # Errors
    /// The first problem: what can't be read can't be carried on.
    pub(crate) fn whole<M: Machine>(
        mut self,
        machine: M,
    ) -> Result<Offline<M::View>, StorageError> {
        if !self.problems.is_empty() {
            return Err(self.problems.swap_remove(0));
        }
        let absent = |name: &str| StorageError::Missing {
            path: self.dir.join(name),
            beside: self.dir.clone(),
        };
        let last = self.last().ok_or_else(|| {
            StorageError::damaged(
                &self.dir.join(LOG),
                "the log",
                "it is empty: this manager never was a member",
            )
        })?;
        Ok(Offline {
            view: self.state(machine)?,
            last,
            term: self.term(),
            epoch: self.epoch.ok_or_else(|| absent("epoch"))?,
            id: self.id.ok_or_else(|| absent(ID))?,
            members: members(self.membership().membership()),
            former: self.former,
            fenced: self.fenced,
        })
    }
}

/// Who a membership names.
pub(crate) fn members(membership: &Membership) -> Vec<Former> {
    let nodes = membership.nodes().map(|(id, member)| Former {
        id: *id,
        member: member.clone(),
    });
    nodes.collect()
}

fn newest_snapshot(
    dir: &Path,
    keys: &DekRing,
) -> Result<Option<(PathBuf, SnapshotMeta)>, StorageError> {
    let mut all = Disk::Real.list(dir)?.unwrap_or_default();
    all.retain(|path| path.extension().is_some_and(|e| e == SUFFIX));
    // Names sort by index.
    let Some(newest) = all.pop() else {
        return Ok(None);
    };
    let file = Arc::new(Disk::Real.open(&newest)?);
    let (meta, _) = identify(&file, &newest, keys)?;
    Ok(Some((newest, meta)))
}

/// An entry of the log, in the vocabulary of the wire.
#[derive(Debug)]
pub(crate) struct SurveyedEntry {
    pub(crate) at: own::RaftLogId,
    pub(crate) kind: Kind,
}

/// What an entry holds.
#[derive(Debug)]
pub(crate) enum Kind {
    /// Nothing: a leader began.
    Blank,
    /// New members.
    Membership(own::RaftMembership),
    /// Changes of the state, encoded.
    Changes(bytes::Bytes),
}

/// What a survey found, in the vocabulary of the wire.
#[derive(Debug)]
pub(crate) struct Surveyed {
    pub(crate) id: Option<RaftId>,
    pub(crate) epoch: Option<Epoch>,
    pub(crate) fenced: Option<Fenced>,
    pub(crate) vote: Option<own::RaftVote>,
    pub(crate) purged: Option<own::RaftLogId>,
    pub(crate) committed: Option<own::RaftLogId>,
    pub(crate) last: Option<own::RaftLogId>,
    /// The snapshot's file, and the last entry in it.
    pub(crate) snapshot: Option<(PathBuf, Option<own::RaftLogId>)>,
    /// The members, and whether each votes.
    pub(crate) members: Vec<(own::RaftMember, bool)>,
    pub(crate) former: Vec<own::RaftMember>,
    pub(crate) entries: Vec<SurveyedEntry>,
    pub(crate) problems: Vec<String>,
}

impl Survey {
    /// All of it but the state.
    pub(crate) fn facts(&self) -> Surveyed {
        let log_id = |id: &Option<LogId>| id.as_ref().map(wire::log_id);
        let stored = self.membership();
        let membership = stored.membership();
        let voters: Vec<RaftId> = membership.voter_ids().collect();
        let member = |former: &Former| own::RaftMember {
            id: former.id,
            node_id: former.member.node_id.clone(),
            addresses: former.member.addresses.clone(),
        };
        let entries = self.log.entries.iter().map(|entry| SurveyedEntry {
            at: wire::log_id(&entry.log_id),
            kind: match &entry.payload {
                EntryPayload::Blank => Kind::Blank,
                EntryPayload::Membership(members) => Kind::Membership(wire::membership(members)),
                EntryPayload::Normal(command) => Kind::Changes(command.bytes().clone()),
            },
        });
        Surveyed {
            id: self.id,
            epoch: self.epoch,
            fenced: self.fenced.clone(),
            vote: self.log.vote.as_ref().map(wire::vote),
            purged: log_id(&self.log.purged),
            committed: log_id(&self.log.committed),
            last: log_id(&self.last()),
            snapshot: self
                .snapshot
                .as_ref()
                .map(|(path, meta)| (path.clone(), log_id(&meta.last_log_id))),
            members: members(membership)
                .iter()
                .map(|known| (member(known), voters.contains(&known.id)))
                .collect(),
            former: self.former.iter().map(member).collect(),
            entries: entries.collect(),
            problems: self.problems.iter().map(ToString::to_string).collect(),
        }
    }
}
