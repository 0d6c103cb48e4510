//! The newest log entries, in memory: consecutive, bounded by bytes.

use std::collections::VecDeque;

use super::types::{Entry, EntryPayload};

/// Bytes of entries kept for replication and apply.
const TAIL_BYTES: usize = 4 << 20;
/// What an entry takes beside its command, roughly.
const ENTRY_OVERHEAD: usize = 96;

/// The end of the log.
#[derive(Debug, Default)]
pub(crate) struct Tail {
    entries: VecDeque<Cached>,
    bytes: usize,
}

#[derive(Debug)]
struct Cached {
    entry: Entry,
    bytes: usize,
    /// The append request it came with.
    seq: u64,
}

impl Tail {
    /// Adds the next entry, which came with append request `seq`; returns its size.
    pub(crate) fn push(&mut self, entry: Entry, seq: u64) -> usize {
        let bytes = entry_bytes(&entry);
        self.bytes += bytes;
        self.entries.push_back(Cached { entry, bytes, seq });
        bytes
    }

    /// Gives room back: entries up to append request `flushed` are on disk and may go.
    pub(crate) fn trim(&mut self, flushed: u64) {
        while self.bytes > TAIL_BYTES
            && self.entries.len() > 1
            && let Some(cached) = self.entries.pop_front_if(|c| c.seq <= flushed)
        {
            self.bytes -= cached.bytes;
        }
    }

    /// Removes entries from `index` on.
    pub(crate) fn cut_from(&mut self, index: u64) {
        while let Some(cached) = self.entries.pop_back_if(|c| c.entry.log_id.index >= index) {
            self.bytes -= cached.bytes;
        }
    }

    /// Removes entries before `index`.
    pub(crate) fn drop_before(&mut self, index: u64) {
        while let Some(cached) = self.entries.pop_front_if(|c| c.entry.log_id.index < index) {
            self.bytes -= cached.bytes;
        }
    }

    pub(crate) fn first_index(&self) -> Option<u64> {
        self.entries.front().map(|c| c.entry.log_id.index)
    }

    /// Entries `from..to`, which are here, up to about `max_bytes` but at least one.
    pub(crate) fn read(&self, from: u64, to: u64, max_bytes: usize) -> Vec<Entry> {
        let skip = from - self.first_index().unwrap_or(from);
        let skip = usize::try_from(skip).unwrap_or(usize::MAX);
        let count = usize::try_from(to - from).unwrap_or(usize::MAX);
        let mut bytes: usize = 0;
        let entries = self.entries.iter().skip(skip).take(count);
        let entries = entries.take_while(|cached| {
            let room = bytes == 0 || bytes.saturating_add(cached.bytes) <= max_bytes;
            bytes = bytes.saturating_add(cached.bytes);
            room
        });
        entries.map(|cached| cached.entry.clone()).collect()
    }
}

fn entry_bytes(entry: &Entry) -> usize {
    ENTRY_OVERHEAD
        + match &entry.payload {
            EntryPayload::Normal(command) => command.bytes().len(),
            EntryPayload::Blank | EntryPayload::Membership(_) => 0,
        }
}
