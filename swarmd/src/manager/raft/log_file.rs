//! The log on disk: a redb database of sealed records.
//!
//! Layout of `raft/log.redb`:
//! - `log`: index -> sealed [`own::RaftEntry`]
//! - `state`: name -> sealed vote, committed and purged positions, and `check`, a record that only
//!   tells whether the key fits
//! - `epochs`: number -> salt and the id of the DEK. Every opening of the log and every new DEK adds one, see
//!   `encryption.rs`.
//!
//! A sealed record is the epoch (u32), the nonce counter (u64), both big endian, then ciphertext and
//! tag. Its place (table and key) is authenticated with it.
//!
//! Loading checks the file's structure, reads and opens every record, so that damage is found at
//! start and named, and a hole in the log is never taken for its end. That costs milliseconds, since
//! snapshots keep the log short.

pub(crate) mod copy;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use bytes::Bytes;
use redb::{Database, ReadableDatabase as _, ReadableTable as _, Table, TableDefinition};
use swarm_proto::own;

use super::database::{fault, guarded, open_database};
use super::disk::Disk;
use super::encryption::{Dek, DekRing, KEY_LEN, RecordKey, TAG_LEN, random};
use super::error::StorageError;
use super::log_tail::Tail;
use super::types::{Entry, LogId, Vote};
use super::wire;

pub(crate) const LOG: TableDefinition<'static, u64, &'static [u8]> = TableDefinition::new("log");
pub(crate) const STATE: TableDefinition<'static, &'static str, &'static [u8]> =
    TableDefinition::new("state");
pub(crate) const EPOCHS: TableDefinition<'static, u32, &'static [u8]> =
    TableDefinition::new("epochs");

pub(crate) const VOTE: &str = "vote";
pub(crate) const COMMITTED: &str = "committed";
pub(crate) const PURGED: &str = "purged";
const CHECK: &str = "check";

const PURPOSE: &str = "swarm raft log";
/// Epoch and counter before the ciphertext.
const RECORD_HEADER: usize = 12;

/// An open log database.
#[derive(Debug)]
pub(crate) struct LogFile {
    path: PathBuf,
    db: Database,
    epochs: RwLock<Epochs>,
}

/// The keys that records are sealed by. A derived key stays in memory after its epoch is gone from the disk: who reads
/// an older state of the database still needs it.
#[derive(Debug, Default)]
struct Epochs {
    keys: BTreeMap<u32, Arc<RecordKey>>,
    now: u32,
}

/// What the log holds.
#[derive(Debug, Default)]
pub(crate) struct Loaded {
    pub(crate) vote: Option<Vote>,
    pub(crate) committed: Option<LogId>,
    pub(crate) purged: Option<LogId>,
    /// The last entry.
    pub(crate) last: Option<LogId>,
    /// The newest entries after `purged`, as many as are kept in memory.
    pub(crate) tail: Tail,
    /// The first index present, which is before `purged` where a purge was interrupted.
    pub(crate) first_on_disk: Option<u64>,
}

impl LogFile {
    /// Makes a new, empty log in the file at `now`, which must not exist and will be renamed to
    /// `path`.
    pub(crate) fn create(
        disk: &Disk,
        (now, path): (&Path, &Path),
        dek: &Dek,
    ) -> Result<Self, StorageError> {
        disk.create_file(now)?;
        Self::create_in(open_database(disk, now)?, path, dek)
    }

    /// Makes a new log in an empty database.
    pub(crate) fn create_in(db: Database, path: &Path, dek: &Dek) -> Result<Self, StorageError> {
        let log = Self::new(path, db);
        log.start_epoch(dek, Keep::These(&[]))?;
        Ok(log)
    }

    /// Opens an existing log and reads all of it.
    pub(crate) fn open(
        disk: &Disk,
        path: &Path,
        (deks, dek_path): (&DekRing, &Path),
    ) -> Result<(Self, Loaded), StorageError> {
        let size = disk.open(path)?.size();
        if size.map_err(StorageError::io("open", path))? == 0 {
            return Err(StorageError::damaged(path, "database", "the file is empty"));
        }
        guarded(path, || {
            let mut db = open_database(disk, path)?;
            // redb itself trusts a file that was closed in order; a flipped bit in its page
            // bookkeeping would make it overwrite live pages later. False means that it found
            // damage and dropped what it couldn't keep.
            match db.check_integrity() {
                Ok(true) => {}
                Ok(false) => {
                    return Err(StorageError::damaged(
                        path,
                        "database",
                        "its checksums do not match",
                    ));
                }
                Err(e) => return Err(fault(path, "check", e)),
            }
            Self::open_in(db, path, deks, dek_path)
        })
    }

    fn open_in(
        db: Database,
        path: &Path,
        deks: &DekRing,
        dek_path: &Path,
    ) -> Result<(Self, Loaded), StorageError> {
        let log = Self::new(path, db);
        let wrong_key = || StorageError::WrongKey {
            key: dek_path.to_owned(),
            path: path.to_owned(),
        };
        if !log.read_keys(deks)? {
            return Err(wrong_key());
        }
        match log.read_state(CHECK) {
            Ok(Some(_)) => {}
            Ok(None) => {
                let problem = "the key check record is missing";
                return Err(StorageError::damaged(path, "database", problem));
            }
            Err(StorageError::Damaged { .. }) => return Err(wrong_key()),
            Err(e) => return Err(e),
        }
        let (loaded, used) = log.load()?;
        log.start_epoch(deks.newest(), Keep::These(&used))?;
        Ok((log, loaded))
    }

    fn new(path: &Path, db: Database) -> Self {
        Self {
            path: path.to_owned(),
            db,
            epochs: RwLock::default(),
        }
    }

    fn key(&self, epoch: u32) -> Option<Arc<RecordKey>> {
        let epochs = self.epochs.read().unwrap_or_else(PoisonError::into_inner);
        epochs.keys.get(&epoch).cloned()
    }

    /// The epoch in which records are sealed.
    pub(crate) fn epoch(&self) -> u32 {
        self.epochs
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .now
    }

    fn add_key(&self, epoch: u32, key: RecordKey) {
        let mut epochs = self.epochs.write().unwrap_or_else(PoisonError::into_inner);
        epochs.keys.insert(epoch, Arc::new(key));
        epochs.now = epochs.now.max(epoch);
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn db(&self) -> &Database {
        &self.db
    }

    /// Reads entries `from..to`, which must exist, up to about `max_bytes` but at least one.
    pub(crate) fn read(
        &self,
        from: u64,
        to: u64,
        max_bytes: usize,
    ) -> Result<Vec<Entry>, StorageError> {
        guarded(&self.path, || {
            let read = self.db.begin_read().map_err(|e| self.fault("read", e))?;
            let table = read.open_table(LOG).map_err(|e| self.fault("read", e))?;
            let range = table.range(from..to).map_err(|e| self.fault("read", e))?;
            let mut entries = Vec::new();
            let mut bytes = 0;
            let mut expected = from;
            for record in range {
                let (index, value) = record.map_err(|e| self.fault("read", e))?;
                self.expect_index(expected, index.value())?;
                let (entry, _) = self.parse_entry(index.value(), value.value())?;
                bytes += value.value().len();
                entries.push(entry);
                expected += 1;
                if bytes >= max_bytes {
                    return Ok(entries);
                }
            }
            if expected < to {
                return Err(self.missing_entries(expected, to));
            }
            Ok(entries)
        })
    }

    /// Seals one record. `counter` must be new in this epoch.
    pub(crate) fn seal(
        &self,
        counter: u64,
        place: Place<'_>,
        message: &impl prost::Message,
    ) -> Result<Vec<u8>, StorageError> {
        let fill = |record: &mut Vec<u8>| message.encode(record).ok();
        self.seal_with(counter, place, message.encoded_len(), fill)
    }

    /// Seals a record anew, in the epoch of now; `None` where it is of that epoch already. `counter` as for
    /// [`Self::seal`].
    pub(crate) fn reseal(
        &self,
        counter: u64,
        place: Place<'_>,
        record: &[u8],
    ) -> Result<Option<Vec<u8>>, StorageError> {
        if epoch_of(record) == self.epoch() {
            return Ok(None);
        }
        let plain = self.unseal(place, record)?;
        let fill = |record: &mut Vec<u8>| {
            record.extend_from_slice(&plain);
            Some(())
        };
        self.seal_with(counter, place, plain.len(), fill).map(Some)
    }

    fn seal_with(
        &self,
        counter: u64,
        place: Place<'_>,
        len: usize,
        fill: impl FnOnce(&mut Vec<u8>) -> Option<()>,
    ) -> Result<Vec<u8>, StorageError> {
        let sealed = || {
            let epoch = self.epoch();
            let key = self.key(epoch)?;
            let mut record = Vec::with_capacity(len + RECORD_HEADER + TAG_LEN);
            record.extend_from_slice(&epoch.to_be_bytes());
            record.extend_from_slice(&counter.to_be_bytes());
            fill(&mut record)?;
            key.seal(counter, &place.bytes(), &mut record, RECORD_HEADER)
                .ok()?;
            Some(record)
        };
        sealed().ok_or_else(|| {
            StorageError::damaged(&self.path, place.to_string(), "it cannot be sealed")
        })
    }

    fn unseal(&self, place: Place<'_>, record: &[u8]) -> Result<Bytes, StorageError> {
        let damaged = |problem: &str| StorageError::damaged(&self.path, place.to_string(), problem);
        let (epoch, rest) = record
            .split_first_chunk::<4>()
            .ok_or_else(|| damaged("it is cut short"))?;
        let (counter, sealed) = rest
            .split_first_chunk::<8>()
            .ok_or_else(|| damaged("it is cut short"))?;
        let key = self
            .key(u32::from_be_bytes(*epoch))
            .ok_or_else(|| damaged("it names an unknown key epoch"))?;
        let mut data = sealed.to_vec();
        key.open(u64::from_be_bytes(*counter), &place.bytes(), &mut data)
            .map_err(|e| damaged(&e.to_string()))?;
        Ok(Bytes::from(data))
    }

    fn parse_entry(&self, index: u64, record: &[u8]) -> Result<(Entry, u32), StorageError> {
        let place = Place::Log(index);
        let plain = self.unseal(place, record)?;
        let damaged =
            |problem: String| StorageError::damaged(&self.path, place.to_string(), problem);
        let entry = wire::decode_entry(plain).map_err(|e| damaged(e.to_string()))?;
        if entry.log_id.index != index {
            return Err(damaged(format!("it holds entry {}", entry.log_id.index)));
        }
        Ok((entry, epoch_of(record)))
    }

    fn read_state(&self, name: &'static str) -> Result<Option<(Bytes, u32)>, StorageError> {
        let read = self.db.begin_read().map_err(|e| self.fault("read", e))?;
        let table = read.open_table(STATE).map_err(|e| self.fault("read", e))?;
        let value = table.get(name).map_err(|e| self.fault("read", e))?;
        let Some(value) = value else { return Ok(None) };
        let plain = self.unseal(Place::State(name), value.value())?;
        Ok(Some((plain, epoch_of(value.value()))))
    }

    fn parse_state<M: prost::Message + Default>(
        &self,
        name: &'static str,
        used: &mut Vec<u32>,
    ) -> Result<Option<M>, StorageError> {
        let Some((plain, epoch)) = self.read_state(name)? else {
            return Ok(None);
        };
        used.push(epoch);
        M::decode(plain)
            .map(Some)
            .map_err(|e| StorageError::damaged(&self.path, Place::State(name).to_string(), e))
    }

    /// Derives the key of each epoch; false where a DEK is missing.
    fn read_keys(&self, deks: &DekRing) -> Result<bool, StorageError> {
        let read = self.db.begin_read().map_err(|e| self.fault("read", e))?;
        let table = read.open_table(EPOCHS).map_err(|e| self.fault("read", e))?;
        for record in table.iter().map_err(|e| self.fault("read", e))? {
            let (epoch, value) = record.map_err(|e| self.fault("read", e))?;
            let (epoch, value) = (epoch.value(), value.value());
            let (salt, id) = value.split_first_chunk::<KEY_LEN>().ok_or_else(|| {
                StorageError::damaged(
                    &self.path,
                    format!("key epoch {epoch}"),
                    "salt of wrong size",
                )
            })?;
            let Some(dek) = deks.find(Some(id).filter(|id| !id.is_empty())) else {
                return Ok(false);
            };
            self.add_key(epoch, dek.derive(salt, PURPOSE)?);
        }
        Ok(true)
    }

    /// Reads everything; also says which epochs the records use.
    fn load(&self) -> Result<(Loaded, Vec<u32>), StorageError> {
        let mut used = Vec::new();
        let vote: Option<own::RaftVote> = self.parse_state(VOTE, &mut used)?;
        let committed: Option<own::RaftLogId> = self.parse_state(COMMITTED, &mut used)?;
        let purged: Option<own::RaftLogId> = self.parse_state(PURGED, &mut used)?;
        let vote = vote
            .map(|v| wire::parse_vote(Some(v)))
            .transpose()
            .map_err(|e| StorageError::damaged(&self.path, Place::State(VOTE).to_string(), e))?;
        let mut loaded = Loaded {
            vote,
            committed: committed.as_ref().map(wire::parse_log_id),
            purged: purged.as_ref().map(wire::parse_log_id),
            ..Loaded::default()
        };
        let read = self.db.begin_read().map_err(|e| self.fault("read", e))?;
        let table = read.open_table(LOG).map_err(|e| self.fault("read", e))?;
        let mut expected = loaded.purged.map_or(0, |p| p.index + 1);
        for record in table.iter().map_err(|e| self.fault("read", e))? {
            let (index, value) = record.map_err(|e| self.fault("read", e))?;
            let (index, value) = (index.value(), value.value());
            loaded.first_on_disk.get_or_insert(index);
            if index < expected {
                continue; // below the purged position: an interrupted purge, finished later
            }
            self.expect_index(expected, index)?;
            let (entry, epoch) = self.parse_entry(index, value)?;
            if used.last() != Some(&epoch) {
                used.push(epoch);
            }
            loaded.last = Some(entry.log_id);
            loaded.tail.push(entry, 0);
            loaded.tail.trim(0);
            expected += 1;
        }
        Ok((loaded, used))
    }

    /// Draws a salt from which on all is sealed; `keep` are the epochs before that records still use. The nonce counter
    /// begins anew.
    pub(crate) fn start_epoch(&self, dek: &Dek, keep: Keep<'_>) -> Result<(), StorageError> {
        let salt = random()?;
        let epoch = self.epoch().checked_add(1).ok_or_else(|| {
            StorageError::damaged(&self.path, "key epochs", "all 2^32 are used up")
        })?;
        self.add_key(epoch, dek.derive(&salt, PURPOSE)?);
        let check = self.seal(0, Place::State(CHECK), &own::RaftVote::default())?;
        let value = [salt.as_slice(), &dek.id()].concat();
        let write = || -> Result<(), redb::Error> {
            let txn = self.db.begin_write()?;
            {
                let mut epochs = txn.open_table(EPOCHS)?;
                match keep {
                    Keep::All => {}
                    Keep::These(used) => epochs.retain(|epoch, _| used.contains(&epoch))?,
                }
                epochs.insert(epoch, value.as_slice())?;
                txn.open_table(STATE)?.insert(CHECK, check.as_slice())?;
                txn.open_table(LOG)?;
            }
            txn.commit()?;
            Ok(())
        };
        write().map_err(|e| self.fault("write", e))
    }

    /// Forgets all epochs but the one of now, within a transaction after which no record uses them.
    pub(crate) fn forget_epochs(
        &self,
        epochs: &mut Table<'_, u32, &'static [u8]>,
    ) -> Result<(), redb::Error> {
        let now = self.epoch();
        Ok(epochs.retain(|epoch, _| epoch == now)?)
    }

    fn expect_index(&self, expected: u64, found: u64) -> Result<(), StorageError> {
        if expected == found {
            return Ok(());
        }
        Err(self.missing_entries(expected, found))
    }

    fn missing_entries(&self, from: u64, to: u64) -> StorageError {
        StorageError::damaged(
            &self.path,
            format!("log entries {from} to {}", to.saturating_sub(1)),
            "they are missing",
        )
    }

    pub(crate) fn fault(
        &self,
        action: &'static str,
        error: impl Into<redb::Error>,
    ) -> StorageError {
        fault(&self.path, action, error)
    }
}

/// Which epochs stay when a new one begins.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Keep<'a> {
    /// Records may use any.
    All,
    /// Records use these.
    These(&'a [u32]),
}

/// Where a record belongs; authenticated with it.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Place<'a> {
    Log(u64),
    State(&'a str),
}

impl Place<'_> {
    fn bytes(self) -> Vec<u8> {
        match self {
            Self::Log(index) => [b"log:".as_slice(), &index.to_be_bytes()].concat(),
            Self::State(name) => [b"state:", name.as_bytes()].concat(),
        }
    }
}

impl std::fmt::Display for Place<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Log(index) => write!(f, "log entry {index}"),
            Self::State(name) => write!(f, "record {name:?}"),
        }
    }
}

fn epoch_of(record: &[u8]) -> u32 {
    record
        .first_chunk::<4>()
        .map_or(0, |bytes| u32::from_be_bytes(*bytes))
}
