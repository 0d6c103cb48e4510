//! Reading the log of a stopped member from a copy in memory, so that the file stays as it is, bit by bit.
//!
//! Unlike a start, which stops at the first damage, this goes on: each record that can't be read is a problem of its own.

use std::path::Path;

use prost::Message as _;
use redb::backends::InMemoryBackend;
use redb::{ReadableDatabase as _, StorageBackend as _};
use swarm_proto::own;

use super::super::database::{PAGE_CACHE, fault, guarded};
use super::super::encryption::DekRing;
use super::super::error::StorageError;
use super::super::types::{Entry, LogId, Vote};
use super::super::wire;
use super::{CHECK, COMMITTED, LOG, LogFile, PURGED, VOTE};

/// What could be read of a log.
#[derive(Debug, Default)]
pub(crate) struct Content {
    pub(crate) vote: Option<Vote>,
    pub(crate) committed: Option<LogId>,
    pub(crate) purged: Option<LogId>,
    /// The entries after `purged`, in order.
    pub(crate) entries: Vec<Entry>,
    /// What could not.
    pub(crate) problems: Vec<StorageError>,
}

impl LogFile {
    /// Reads what is on disk, without touching it.
    pub(crate) fn read_copy(path: &Path, (keys, dek_path): (&DekRing, &Path)) -> Content {
        let mut content = Content::default();
        let read = guarded(path, || {
            let wrong_key = || StorageError::WrongKey {
                key: dek_path.to_owned(),
                path: path.to_owned(),
            };
            let log = Self::copy(path, &mut content.problems)?;
            if !log.read_keys(keys)? {
                return Err(wrong_key());
            }
            if let Err(StorageError::Damaged { .. }) = log.read_state(CHECK) {
                return Err(wrong_key());
            }
            log.read_positions(&mut content);
            log.read_entries(&mut content)
        });
        content.problems.extend(read.err());
        content
    }

    fn copy(path: &Path, problems: &mut Vec<StorageError>) -> Result<Self, StorageError> {
        let bytes = std::fs::read(path).map_err(StorageError::io("read", path))?;
        if bytes.is_empty() {
            return Err(StorageError::damaged(path, "database", "the file is empty"));
        }
        let memory = InMemoryBackend::new();
        memory
            .set_len(bytes.len() as u64)
            .and_then(|()| memory.write(0, &bytes))
            .map_err(StorageError::io("read", path))?;
        drop(bytes);
        let mut db = redb::Builder::new()
            .set_cache_size(PAGE_CACHE)
            .create_with_backend(memory)
            .map_err(|e| fault(path, "open", e))?;
        match db.check_integrity() {
            Ok(true) => {}
            Ok(false) => problems.push(StorageError::damaged(
                path,
                "database",
                "its checksums do not match",
            )),
            Err(e) => problems.push(fault(path, "check", e)),
        }
        Ok(Self::new(path, db))
    }

    fn read_positions(&self, content: &mut Content) {
        let vote = self.position(VOTE, content, |bytes| {
            let vote = own::RaftVote::decode(bytes)?;
            wire::parse_vote(Some(vote))
        });
        content.vote = vote;
        let log_id = |bytes: bytes::Bytes| Ok(wire::parse_log_id(&own::RaftLogId::decode(bytes)?));
        content.committed = self.position(COMMITTED, content, log_id);
        content.purged = self.position(PURGED, content, log_id);
    }

    fn position<T>(
        &self,
        name: &'static str,
        content: &mut Content,
        parse: impl FnOnce(bytes::Bytes) -> Result<T, wire::WireError>,
    ) -> Option<T> {
        let damaged = |e| StorageError::damaged(&self.path, format!("record {name:?}"), e);
        let read = match self.read_state(name) {
            Ok(None) => return None,
            Ok(Some((plain, _))) => parse(plain).map_err(damaged),
            Err(error) => Err(error),
        };
        read.map_err(|error| content.problems.push(error)).ok()
    }

    fn read_entries(&self, content: &mut Content) -> Result<(), StorageError> {
        let read = self.db.begin_read().map_err(|e| self.fault("read", e))?;
        let table = read.open_table(LOG).map_err(|e| self.fault("read", e))?;
        let mut expected = content.purged.map_or(0, |purged| purged.index + 1);
        let range = table.range(expected..);
        for record in range.map_err(|e| self.fault("read", e))? {
            let (index, value) = record.map_err(|e| self.fault("read", e))?;
            let index = index.value();
            if index != expected {
                content.problems.push(self.missing_entries(expected, index));
            }
            expected = index + 1;
            match self.parse_entry(index, value.value()) {
                Ok((entry, _)) => content.entries.push(entry),
                Err(error) => content.problems.push(error),
            }
        }
        Ok(())
    }
}
