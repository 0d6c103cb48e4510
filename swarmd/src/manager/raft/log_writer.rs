//! The one writer of the log: a thread that commits everything queued in one transaction.
//!
//! Group commit: while one fsync runs, requests gather; the next transaction takes them all, so the
//! cost of an fsync is shared by however many writers wait. Requests are written and answered in the
//! order they were queued.
//!
//! The committed position is a hint for restarts (a leader re-derives it), so it never costs a
//! transaction of its own: it rides with the next one. Purging removes a bounded number of entries
//! per transaction, so it never holds up a commit for long.
//!
//! After a failed write nothing more is acknowledged: what is on disk is then unknown until the log
//! is opened again.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use openraft::storage::IOFlushed;
use redb::ReadableTable as _;
use tokio::sync::mpsc::error::TryRecvError;
use tokio::sync::{mpsc, oneshot};

use super::error::StorageError;
use super::log_file::{COMMITTED, LOG, LogFile, PURGED, Place, STATE, VOTE};
use super::log_store::Shared;
use super::types::{Entry, LogId, Types, Vote};
use super::wire;
use crate::process::Process;

/// Requests waiting for the writer; a full queue holds up consensus, which holds up proposals.
pub(crate) const QUEUE: usize = 1024;
/// Requests gathered in one transaction stop here, bytes of entries. An entry is at most
/// [`super::propose::MAX_COMMAND`].
const BATCH_BYTES: usize = 32 << 20;
/// Entries removed by one transaction that has other work too.
const PURGE_STEP: u64 = 256;
/// Entries removed by one transaction of an idle log.
const PURGE_STEP_IDLE: u64 = 2048;

/// A request to the writer.
pub(crate) enum Op {
    /// Add entries at the end.
    Append {
        entries: Vec<Entry>,
        bytes: usize,
        /// The request's number, see [`Shared::flushed`].
        seq: u64,
        done: IOFlushed<Types>,
    },
    Vote {
        vote: Vote,
        done: oneshot::Sender<io::Result<()>>,
    },
    Committed(Option<LogId>),
    /// Remove entries from this index to the end.
    Truncate {
        from: u64,
    },
    /// Remove entries up to and including this one.
    Purge(LogId),
    /// Write what is held back, close the file, end the thread.
    Close {
        done: oneshot::Sender<()>,
    },
}

pub(crate) struct Writer {
    file: Arc<LogFile>,
    shared: Arc<Shared>,
    queue: mpsc::Receiver<Op>,
    /// The nonce counter; 0 sealed the key check.
    counter: u64,
    committed: Option<LogId>,
    /// Entries before this index are purged and may still be on disk.
    purge: Option<u64>,
    failed: Option<String>,
}

impl Writer {
    pub(crate) fn new(
        file: Arc<LogFile>,
        shared: Arc<Shared>,
        queue: mpsc::Receiver<Op>,
        purge: Option<u64>,
    ) -> Self {
        Self {
            file,
            shared,
            queue,
            counter: 0,
            committed: None,
            purge,
            failed: None,
        }
    }

    /// Serves requests until the log is closed or nobody can send any more. Blocks its thread.
    pub(crate) fn run(mut self) {
        let mut closing = None;
        while closing.is_none()
            && let Some(batch) = self.gather()
        {
            let outcome = self.commit(&batch);
            closing = self.answer(batch, outcome);
        }
        self.end(closing);
    }

    /// The same for a simulated process, which has no thread for it: time passes between a commit and its answers.
    pub(crate) async fn run_in(mut self, process: Process) {
        let mut closing = None;
        while closing.is_none() {
            let batch = match self.waiting() {
                Ok(batch) => batch,
                Err(TryRecvError::Disconnected) => break,
                Err(TryRecvError::Empty) => match self.queue.recv().await {
                    Some(first) => self.batch(first),
                    None => break,
                },
            };
            let outcome = self.commit(&batch);
            process.pay().await;
            closing = self.answer(batch, outcome);
        }
        self.end(closing);
    }

    fn end(mut self, closing: Option<oneshot::Sender<()>>) {
        if self.committed.is_some() {
            // Only a hint is at stake; a failure has been logged.
            let _ = self.commit(&[]);
        }
        drop(self.file);
        if let Some(done) = closing {
            let _ = done.send(());
        }
    }

    /// Waits for work.
    fn gather(&mut self) -> Option<Vec<Op>> {
        match self.waiting() {
            Ok(batch) => Some(batch),
            Err(TryRecvError::Empty) => {
                let first = self.queue.blocking_recv()?;
                Some(self.batch(first))
            }
            Err(TryRecvError::Disconnected) => None,
        }
    }

    /// Work that is there. An empty batch is a purge step of an idle log.
    fn waiting(&mut self) -> Result<Vec<Op>, TryRecvError> {
        match self.queue.try_recv() {
            Ok(first) => Ok(self.batch(first)),
            Err(TryRecvError::Empty) if self.purge.is_some() && self.failed.is_none() => {
                Ok(Vec::new())
            }
            Err(nothing) => Err(nothing),
        }
    }

    /// Takes what waits together with `first`.
    fn batch(&mut self, first: Op) -> Vec<Op> {
        let mut bytes = first.bytes();
        let mut batch = vec![first];
        while bytes < BATCH_BYTES
            && let Ok(op) = self.queue.try_recv()
        {
            bytes += op.bytes();
            batch.push(op);
        }
        batch
    }

    /// Makes a batch durable, all of it or nothing.
    fn commit(&mut self, batch: &[Op]) -> Result<(), String> {
        if let Some(first) = &self.failed {
            return Err(self.poisoned(first));
        }
        for op in batch {
            match op {
                Op::Committed(committed) => self.committed = *committed,
                Op::Purge(upto) => self.purge = self.purge.max(Some(upto.index + 1)),
                Op::Append { .. } | Op::Vote { .. } | Op::Truncate { .. } | Op::Close { .. } => {}
            }
        }
        let hint_only = batch.iter().all(|op| matches!(op, Op::Committed(_)));
        if hint_only && !batch.is_empty() {
            return Ok(());
        }
        let written = catch_unwind(AssertUnwindSafe(|| self.write(batch)));
        let written = written.unwrap_or_else(|_| {
            Err(StorageError::damaged(
                self.file.path(),
                "database",
                "its structure is broken",
            ))
        });
        written.map_err(|error| {
            tracing::error!(%error, "raft log write failed");
            let text = error.to_string();
            self.failed = Some(text.clone());
            self.shared.poison(self.poisoned(&text));
            text
        })
    }

    fn poisoned(&self, first: &str) -> String {
        StorageError::Poisoned {
            path: self.file.path().to_owned(),
            first: first.to_owned(),
        }
        .to_string()
    }

    fn write(&mut self, batch: &[Op]) -> Result<(), StorageError> {
        let file = Arc::clone(&self.file);
        let fault = |e: redb::Error| file.fault("write", e);
        let txn = file.db().begin_write().map_err(|e| fault(e.into()))?;
        {
            let mut log = txn.open_table(LOG).map_err(|e| fault(e.into()))?;
            let mut state = txn.open_table(STATE).map_err(|e| fault(e.into()))?;
            let mut put = |name: &'static str, record: Vec<u8>| {
                let put = state.insert(name, record.as_slice());
                put.map(drop).map_err(|e| fault(e.into()))
            };
            for op in batch {
                match op {
                    Op::Append { entries, .. } => {
                        for entry in entries {
                            let index = entry.log_id.index;
                            let record = self.seal(Place::Log(index), &wire::entry(entry))?;
                            log.insert(index, record.as_slice())
                                .map_err(|e| fault(e.into()))?;
                        }
                    }
                    Op::Vote { vote, .. } => {
                        put(VOTE, self.seal(Place::State(VOTE), &wire::vote(vote))?)?;
                    }
                    Op::Truncate { from } => {
                        log.retain_in(*from.., |_, _| false)
                            .map_err(|e| fault(e.into()))?;
                    }
                    Op::Purge(upto) => {
                        put(
                            PURGED,
                            self.seal(Place::State(PURGED), &wire::log_id(upto))?,
                        )?;
                    }
                    Op::Committed(_) | Op::Close { .. } => {}
                }
            }
            if let Some(committed) = self.committed {
                let record = self.seal(Place::State(COMMITTED), &wire::log_id(&committed))?;
                put(COMMITTED, record)?;
            }
            if let Some(to) = self.purge {
                let step = if batch.is_empty() {
                    PURGE_STEP_IDLE
                } else {
                    PURGE_STEP
                };
                let first = log.first().map_err(|e| fault(e.into()))?;
                let first = first.map_or(to, |(index, _)| index.value());
                let upto = to.min(first.saturating_add(step));
                log.retain_in(..upto, |_, _| false)
                    .map_err(|e| fault(e.into()))?;
                self.purge = (upto < to).then_some(to);
            }
        }
        txn.commit().map_err(|e| fault(e.into()))?;
        self.committed = None;
        Ok(())
    }

    fn seal(
        &mut self,
        place: Place<'_>,
        message: &impl prost::Message,
    ) -> Result<Vec<u8>, StorageError> {
        self.counter += 1;
        self.file.seal(self.counter, place, message)
    }

    /// Tells everyone in the batch, in order; returns who waits for the end.
    fn answer(&self, batch: Vec<Op>, outcome: Result<(), String>) -> Option<oneshot::Sender<()>> {
        let result = || outcome.clone().map_err(io::Error::other);
        let mut closing = None;
        for op in batch {
            match op {
                Op::Append { seq, done, .. } => {
                    if outcome.is_ok() {
                        self.shared.flushed(seq);
                    }
                    done.io_completed(result());
                }
                Op::Vote { done, .. } => {
                    // The caller may have gone away; the vote stands.
                    let _ = done.send(result());
                }
                Op::Close { done } => closing = Some(done),
                Op::Committed(_) | Op::Truncate { .. } | Op::Purge(_) => {}
            }
        }
        closing
    }
}

impl Op {
    fn bytes(&self) -> usize {
        match self {
            Self::Append { bytes, .. } => *bytes,
            Self::Vote { .. }
            | Self::Committed(_)
            | Self::Truncate { .. }
            | Self::Purge(_)
            | Self::Close { .. } => 0,
        }
    }
}
