//! openraft's view of the log: the in-memory tail in front of the writer thread and the file.
//!
//! `append` puts entries into the tail and into the writer's queue and returns; the callback fires
//! when they are durable. Replication and apply read the tail, so they touch the disk only to bring
//! up a member that is far behind.
//!
//! Invariants:
//! - the log is `purged.index + 1 ..= last.index`, without holes
//! - the tail is its end; what is not in the tail is on disk
//! - an entry leaves the tail only when it is durable and the tail is over its byte limit

use std::collections::VecDeque;
use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures::Stream;
use openraft::storage::{IOFlushed, LogState, RaftLogStorage};
use openraft::{OptionalSend, RaftLogReader};
use tokio::sync::{mpsc, oneshot};

use super::encryption::Dek;
use super::error::StorageError;
use super::log_file::{Loaded, LogFile};
use super::log_tail::Tail;
use super::log_writer::{Op, QUEUE, Writer};
use super::types::{Entry, LogId, Types, Vote};
use crate::process;

/// Bytes of entries in one replication message; one larger entry travels alone.
pub(crate) const READ_BYTES: usize = 2 << 20;
/// The log, as openraft's core drives it. One owner: writes are serialized by `&mut self`.
#[derive(Debug)]
pub(crate) struct LogStore {
    shared: Arc<Shared>,
    queue: mpsc::Sender<Op>,
}

/// Positions in a log.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Positions {
    pub(crate) purged: Option<LogId>,
    pub(crate) committed: Option<LogId>,
    pub(crate) last: Option<LogId>,
}

/// Reads the log; cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct LogReader {
    shared: Arc<Shared>,
}

/// Ends the writer, so that the file can be opened again.
#[derive(Debug)]
pub(crate) struct LogCloser {
    shared: Arc<Shared>,
    queue: mpsc::Sender<Op>,
}

/// Has the log sealed by another key; cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct LogKeys {
    path: PathBuf,
    queue: mpsc::Sender<Op>,
}

/// What the store, its readers and the writer share. The lock is held for memory work only.
pub(crate) struct Shared {
    path: PathBuf,
    file: Mutex<Option<Arc<LogFile>>>,
    memory: Mutex<Memory>,
}

#[derive(Default)]
struct Memory {
    vote: Option<Vote>,
    committed: Option<LogId>,
    purged: Option<LogId>,
    /// The first index there is, if the log isn't empty.
    first: u64,
    last: Option<LogId>,
    tail: Tail,
    /// Number of the last append request.
    seq: u64,
    poisoned: Option<String>,
    /// How often the log was cut.
    cuts: u64,
}

impl LogStore {
    /// Starts a writer on an open log.
    pub(crate) fn over(file: LogFile, loaded: Loaded) -> Result<Self, StorageError> {
        let purge = loaded.purged.and_then(|purged| {
            let first = loaded.first_on_disk?;
            (first <= purged.index).then_some(purged.index + 1)
        });
        let last = loaded.last.or(loaded.purged);
        let path = file.path().to_owned();
        let file = Arc::new(file);
        let shared = Arc::new(Shared {
            path: path.clone(),
            file: Mutex::new(Some(Arc::clone(&file))),
            memory: Mutex::new(Memory::from_disk(loaded)),
        });
        let (queue, requests) = mpsc::channel(QUEUE);
        let writer = Writer::new(file, Arc::clone(&shared), requests, (last, purge));
        match process::current() {
            Some(process) => drop(process.spawn(writer.run_in(process.clone()))),
            None => std::thread::Builder::new()
                .name("raft-log".to_owned())
                .spawn(move || writer.run())
                .map(drop)
                .map_err(StorageError::io("start the writer of", &path))?,
        }
        Ok(Self { shared, queue })
    }

    pub(crate) fn closer(&self) -> LogCloser {
        LogCloser {
            shared: Arc::clone(&self.shared),
            queue: self.queue.clone(),
        }
    }

    pub(crate) fn keys(&self) -> LogKeys {
        LogKeys {
            path: self.shared.path.clone(),
            queue: self.queue.clone(),
        }
    }

    /// Where the log stands.
    pub(crate) fn positions(&self) -> Positions {
        let memory = self.shared.memory();
        Positions {
            purged: memory.purged,
            committed: memory.committed,
            last: memory.last,
        }
    }

    async fn send(&self, op: Op) -> io::Result<()> {
        let closed = |_| StorageError::Closed {
            path: self.shared.path.clone(),
        };
        Ok(self.queue.send(op).await.map_err(closed)?)
    }
}

impl LogCloser {
    /// Waits until everything queued is durable and the file is closed.
    pub(crate) async fn close(self) {
        let (done, closed) = oneshot::channel();
        if self.queue.send(Op::Close { done }).await.is_ok() {
            // An error means that the writer is gone already.
            let _ = closed.await;
        }
        self.shared.close();
    }
}

impl LogKeys {
    /// Waits until nothing in the log is sealed by another key than this one.
    ///
    /// # Errors
    /// When the log is closed, or a write failed.
    pub(crate) async fn rekey(&self, dek: Arc<Dek>) -> Result<(), StorageError> {
        let closed = || StorageError::Closed {
            path: self.path.clone(),
        };
        let (done, ended) = oneshot::channel();
        let asked = self.queue.send(Op::Rekey { dek, done }).await;
        asked.map_err(|_| closed())?;
        ended.await.map_err(|_| closed())
    }
}

impl RaftLogStorage<Types> for LogStore {
    type LogReader = LogReader;

    async fn get_log_state(&mut self) -> io::Result<LogState<Types>> {
        let memory = self.shared.memory();
        Ok(LogState {
            last_purged_log_id: memory.purged,
            last_log_id: memory.last,
        })
    }

    async fn get_log_reader(&mut self) -> LogReader {
        LogReader {
            shared: Arc::clone(&self.shared),
        }
    }

    async fn save_vote(&mut self, vote: &Vote) -> io::Result<()> {
        let (done, saved) = oneshot::channel();
        self.send(Op::Vote { vote: *vote, done }).await?;
        let closed = |_| StorageError::Closed {
            path: self.shared.path.clone(),
        };
        saved.await.map_err(closed)??;
        self.shared.memory().vote = Some(*vote);
        Ok(())
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> io::Result<()> {
        self.shared.memory().committed = committed;
        Ok(())
    }

    async fn read_committed(&mut self) -> io::Result<Option<LogId>> {
        Ok(self.shared.memory().committed)
    }

    async fn append<I>(&mut self, entries: I, done: IOFlushed<Types>) -> io::Result<()>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries: Vec<Entry> = entries.into_iter().collect();
        let (seq, bytes) = self.shared.memory().append(&entries)?;
        self.send(Op::Append {
            entries,
            bytes,
            seq,
            done,
        })
        .await
    }

    async fn truncate_after(&mut self, last: Option<LogId>) -> io::Result<()> {
        self.shared.memory().truncate_after(last);
        let from = last.map_or(0, |last| last.index + 1);
        self.send(Op::Truncate { from }).await
    }

    async fn purge(&mut self, upto: LogId) -> io::Result<()> {
        self.shared.memory().purge(upto);
        self.send(Op::Purge(upto)).await
    }
}

impl RaftLogReader<Types> for LogReader {
    async fn try_get_log_entries<RB>(&mut self, range: RB) -> io::Result<Vec<Entry>>
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        let (mut from, to) = bounds(&range);
        let mut entries = Vec::new();
        while let Some(more) = self.read(from, to, usize::MAX).await? {
            from = more.last().map_or(to, |entry| entry.log_id.index + 1);
            entries.extend(more);
        }
        Ok(entries)
    }

    async fn limited_get_log_entries(&mut self, from: u64, to: u64) -> io::Result<Vec<Entry>> {
        Ok(self.read(from, to, READ_BYTES).await?.unwrap_or_default())
    }

    async fn entries_stream<RB>(
        &mut self,
        range: RB,
    ) -> impl Stream<Item = io::Result<Entry>> + OptionalSend
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        let (from, to) = bounds(&range);
        let state = (self.clone(), from, VecDeque::new());
        futures::stream::try_unfold(state, move |(reader, mut from, mut ready)| async move {
            if ready.is_empty()
                && let Some(more) = reader.read(from, to, READ_BYTES).await?
            {
                from = more.last().map_or(to, |entry| entry.log_id.index + 1);
                ready = VecDeque::from(more);
            }
            Ok(ready
                .pop_front()
                .map(|entry| (entry, (reader, from, ready))))
        })
    }

    async fn read_vote(&mut self) -> io::Result<Option<Vote>> {
        Ok(self.shared.memory().vote)
    }
}

impl LogReader {
    /// Entries from `from` (or from where the log begins) to before `to`, up to about `max_bytes`,
    /// at least one; `None` when the range holds none.
    async fn read(&self, from: u64, to: u64, max_bytes: usize) -> io::Result<Option<Vec<Entry>>> {
        loop {
            let (from, to) = match self.shared.memory().plan(from, to, max_bytes) {
                Plan::Empty => return Ok(None),
                Plan::Tail(entries) => return Ok(Some(entries)),
                Plan::Disk(from, to) => (from, to),
            };
            let file = self.shared.file()?;
            let read = process::blocking(move || file.read(from, to, max_bytes));
            let error = match read.await.map_err(io::Error::other)? {
                Ok(entries) => return Ok(Some(entries)),
                Err(error) => error,
            };
            // A purge or a truncation may have removed them meanwhile: then look again.
            let memory = self.shared.memory();
            let purged = memory.purged.is_some_and(|purged| purged.index >= from);
            let truncated = memory.last.is_none_or(|last| last.index + 1 < to);
            if !purged && !truncated {
                return Err(error.into());
            }
        }
    }
}

/// Where to read from.
enum Plan {
    Empty,
    Tail(Vec<Entry>),
    Disk(u64, u64),
}

impl Memory {
    fn from_disk(loaded: Loaded) -> Self {
        Self {
            vote: loaded.vote,
            committed: loaded.committed,
            purged: loaded.purged,
            first: loaded.purged.map_or(0, |purged| purged.index + 1),
            last: loaded.last.or(loaded.purged),
            tail: loaded.tail,
            ..Self::default()
        }
    }

    /// Adds entries to the tail; returns the request's number and size.
    fn append(&mut self, entries: &[Entry]) -> io::Result<(u64, usize)> {
        if let Some(poisoned) = &self.poisoned {
            return Err(io::Error::other(poisoned.clone()));
        }
        self.seq += 1;
        if self.last.is_none()
            && let Some(entry) = entries.first()
        {
            self.first = entry.log_id.index;
        }
        let mut bytes = 0;
        for entry in entries {
            self.last = Some(entry.log_id);
            bytes += self.tail.push(entry.clone(), self.seq);
        }
        Ok((self.seq, bytes))
    }

    fn truncate_after(&mut self, last: Option<LogId>) {
        self.cuts += 1;
        self.tail.cut_from(last.map_or(0, |last| last.index + 1));
        if last.map(|id| id.index) < self.last.map(|id| id.index) {
            self.last = last.max(self.purged);
        }
    }

    fn purge(&mut self, upto: LogId) {
        self.tail.drop_before(upto.index + 1);
        self.purged = self.purged.max(Some(upto));
        self.first = self.first.max(upto.index + 1);
        self.last = self.last.max(self.purged);
    }

    fn plan(&self, from: u64, to: u64, max_bytes: usize) -> Plan {
        let end = self.last.map_or(0, |last| last.index + 1);
        let (from, to) = (from.max(self.first), to.min(end));
        if from >= to {
            return Plan::Empty;
        }
        match self.tail.first_index().unwrap_or(end) {
            tail if from < tail => Plan::Disk(from, to.min(tail)),
            _ => Plan::Tail(self.tail.read(from, to, max_bytes)),
        }
    }
}

impl Shared {
    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn file(&self) -> Result<Arc<LogFile>, StorageError> {
        let file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        file.clone().ok_or_else(|| StorageError::Closed {
            path: self.path.clone(),
        })
    }

    fn close(&self) {
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        *file = None;
    }

    /// What is committed, as far as consensus has said; and how often the log was cut before it said so.
    pub(crate) fn committed(&self) -> (Option<LogId>, u64) {
        let memory = self.memory();
        (memory.committed, memory.cuts)
    }

    /// Append request `seq` and all before it are durable.
    pub(crate) fn flushed(&self, seq: u64) {
        let mut memory = self.memory();
        memory.tail.trim(seq);
    }

    /// No append may succeed any more.
    pub(crate) fn poison(&self, why: String) {
        self.memory().poisoned.get_or_insert(why);
    }
}

impl Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Shared({})", self.path.display())
    }
}

fn bounds(range: &impl RangeBounds<u64>) -> (u64, u64) {
    let from = match range.start_bound() {
        Bound::Included(from) => *from,
        Bound::Excluded(before) => before.saturating_add(1),
        Bound::Unbounded => 0,
    };
    let to = match range.end_bound() {
        Bound::Included(last) => last.saturating_add(1),
        Bound::Excluded(to) => *to,
        Bound::Unbounded => u64::MAX,
    };
    (from, to)
}
