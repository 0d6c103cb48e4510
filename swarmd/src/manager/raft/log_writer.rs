//! The one writer of the log: a thread that commits everything queued in one transaction.
//!
//! Group commit: while one fsync runs, requests gather; the next transaction takes them all, so the
//! cost of an fsync is shared by however many writers wait. Requests are written and answered in the
//! order they were queued.
//!
//! The committed position is a hint for restarts (a leader re-derives it), so it never costs a
//! transaction of its own, nor wakes this thread: it rides with one that touches its table anyway, or with every
//! [`HINT_EVERY`]th, for a second table is a third of what a small commit costs. Purging removes a bounded number of entries
//! per transaction, so it never holds up a commit for long.
//!
//! A new DEK begins an epoch of the log, and then all records of earlier ones are sealed anew, a bounded number in each
//! transaction, like purging. So the old DEK is of no use any more after a time that the log's length alone decides.
//!
//! After a failed write nothing more is acknowledged: what is on disk is then unknown until the log
//! is opened again.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use openraft::storage::IOFlushed;
use redb::{ReadableDatabase as _, ReadableTable as _, Table, WriteTransaction};
use tokio::sync::mpsc::error::TryRecvError;
use tokio::sync::{mpsc, oneshot};

use super::encryption::Dek;
use super::error::StorageError;
use super::log_file::{COMMITTED, EPOCHS, Keep, LOG, LogFile, PURGED, Place, STATE, VOTE};
use super::log_store::Shared;
use super::types::{Entry, LogId, Types, Vote};
use super::wire;
use crate::process::Process;

/// Requests waiting for the writer; a full queue holds up consensus, which holds up proposals.
pub(crate) const QUEUE: usize = 1024;
/// Requests gathered in one transaction stop here, bytes of entries. An entry is at most
/// [`super::propose::MAX_COMMAND`].
const BATCH_BYTES: usize = 32 << 20;
/// Transactions after which the committed position rides with the next.
const HINT_EVERY: u32 = 32;
/// Entries removed by one transaction that has other work too.
const PURGE_STEP: u64 = 256;
/// Entries removed by one transaction of an idle log.
const PURGE_STEP_IDLE: u64 = 2048;
/// Entries sealed anew by one transaction.
const RESEAL_STEP: usize = 256;
/// Bytes of them, at which a step ends early.
const RESEAL_BYTES: usize = 4 << 20;

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
    /// Remove entries from this index to the end.
    Truncate { from: u64 },
    /// Remove entries up to and including this one.
    Purge(LogId),
    /// Seal everything by this key from now on, and what is there already too; answered when no record needs another.
    Rekey {
        dek: Arc<Dek>,
        done: oneshot::Sender<()>,
    },
    /// Write what is held back, close the file, end the thread.
    Close { done: oneshot::Sender<()> },
}

pub(crate) struct Writer {
    file: Arc<LogFile>,
    shared: Arc<Shared>,
    queue: mpsc::Receiver<Op>,
    /// The nonce counter; 0 sealed the key check.
    counter: u64,
    /// The last entry of the log on disk.
    last: Option<LogId>,
    /// How often the log was cut, up to what is on disk.
    cuts: u64,
    /// The committed position on disk.
    committed: Option<LogId>,
    /// Transactions since that was written.
    held_back: u32,
    /// Entries before this index are purged and may still be on disk.
    purge: Option<u64>,
    reseal: Option<Reseal>,
    failed: Option<String>,
}

/// Records of earlier epochs that are being sealed anew.
struct Reseal {
    /// Entries before this index are.
    next: u64,
    /// So are all from this index on: they were written later.
    end: u64,
    done: Vec<oneshot::Sender<()>>,
}

impl Writer {
    pub(crate) fn new(
        file: Arc<LogFile>,
        shared: Arc<Shared>,
        queue: mpsc::Receiver<Op>,
        (last, purge): (Option<LogId>, Option<u64>),
    ) -> Self {
        Self {
            file,
            cuts: 0,
            committed: shared.committed().0,
            shared,
            queue,
            counter: 0,
            last,
            held_back: 0,
            purge,
            reseal: None,
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
            self.end_reseal();
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
            self.end_reseal();
        }
        self.end(closing);
    }

    fn end(mut self, closing: Option<oneshot::Sender<()>>) {
        if self.news().is_some() {
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

    /// Work that is there. An empty batch is a step of purging or sealing anew in an idle log.
    fn waiting(&mut self) -> Result<Vec<Op>, TryRecvError> {
        match self.queue.try_recv() {
            Ok(first) => Ok(self.batch(first)),
            Err(TryRecvError::Empty) if self.has_steps() => Ok(Vec::new()),
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

    fn has_steps(&self) -> bool {
        (self.purge.is_some() || self.reseal.is_some()) && self.failed.is_none()
    }

    /// Makes a batch durable, all of it or nothing.
    fn commit(&mut self, batch: &[Op]) -> Result<(), String> {
        if let Some(first) = &self.failed {
            return Err(self.poisoned(first));
        }
        for op in batch {
            match op {
                Op::Append { entries, .. } => {
                    self.last = entries.last().map(|entry| entry.log_id).or(self.last);
                }
                // What is before it, only its index is known of: the hint waits for the next entry.
                Op::Truncate { from } => {
                    self.cuts += 1;
                    self.last = self.last.filter(|last| last.index < *from);
                }
                Op::Purge(upto) => {
                    self.purge = self.purge.max(Some(upto.index + 1));
                    self.last = self.last.max(Some(*upto));
                }
                Op::Vote { .. } | Op::Rekey { .. } | Op::Close { .. } => {}
            }
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
        for op in batch {
            if let Op::Rekey { dek, .. } = op {
                self.begin_reseal(dek)?;
            }
        }
        let txn = file.db().begin_write().map_err(|e| fault(e.into()))?;
        let hint = self.hint(batch);
        {
            let mut log = txn.open_table(LOG).map_err(|e| fault(e.into()))?;
            let mut state = None;
            let mut put = |name: &'static str, record: Vec<u8>| {
                let state = match &mut state {
                    Some(state) => state,
                    none => none.insert(txn.open_table(STATE).map_err(|e| fault(e.into()))?),
                };
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
                        let record = self.seal(Place::State(PURGED), &wire::log_id(upto))?;
                        put(PURGED, record)?;
                    }
                    Op::Rekey { .. } | Op::Close { .. } => {}
                }
            }
            if let Some(committed) = &hint {
                let record = self.seal(Place::State(COMMITTED), &wire::log_id(committed))?;
                put(COMMITTED, record)?;
            }
            self.purge_step(&mut log, batch.is_empty()).map_err(fault)?;
        }
        self.reseal_step(&txn)?;
        txn.commit().map_err(|e| fault(e.into()))?;
        match hint {
            Some(_) => (self.committed, self.held_back) = (hint, 0),
            None => self.held_back = self.held_back.saturating_add(1),
        }
        Ok(())
    }

    /// The committed position, where it is written with this batch.
    fn hint(&self, batch: &[Op]) -> Option<LogId> {
        let state = |op: &Op| matches!(op, Op::Vote { .. } | Op::Purge(_));
        let rides = batch.is_empty() || self.held_back >= HINT_EVERY || batch.iter().any(state);
        self.news().filter(|_| rides)
    }

    /// The committed position, where the disk has another one: never one that the log there does not hold, for its entries
    /// may still be in the queue, and behind them there what they replace.
    fn news(&self) -> Option<LogId> {
        let (committed, cuts) = self.shared.committed();
        let held = cuts == self.cuts && committed <= self.last;
        committed.filter(|_| held && committed != self.committed)
    }

    fn purge_step(
        &mut self,
        log: &mut Table<'_, u64, &'static [u8]>,
        idle: bool,
    ) -> Result<(), redb::Error> {
        let Some(to) = self.purge else { return Ok(()) };
        let step = if idle { PURGE_STEP_IDLE } else { PURGE_STEP };
        let first = log.first()?;
        let first = first.map_or(to, |(index, _)| index.value());
        let upto = to.min(first.saturating_add(step));
        log.retain_in(..upto, |_, _| false)?;
        self.purge = (upto < to).then_some(to);
        Ok(())
    }

    /// From here on all is sealed by `dek`, in an epoch of its own.
    fn begin_reseal(&mut self, dek: &Dek) -> Result<(), StorageError> {
        self.file.start_epoch(dek, Keep::All)?;
        self.counter = 0;
        let file = Arc::clone(&self.file);
        let fault = |e: redb::Error| file.fault("read", e);
        let last = || -> Result<Option<u64>, redb::Error> {
            let txn = file.db().begin_read()?;
            let log = txn.open_table(LOG)?;
            Ok(log.last()?.map(|(index, _)| index.value()))
        };
        let end = last().map_err(fault)?.map_or(0, |last| last + 1);
        let waiting = self.reseal.take().map(|before| before.done);
        self.reseal = Some(Reseal {
            // What a purge has not removed yet may be of an epoch that a start has forgotten, and nobody reads it.
            next: self.purge.unwrap_or(0),
            end,
            done: waiting.unwrap_or_default(),
        });
        Ok(())
    }

    /// Seals some records anew; after the last ones the epochs before are forgotten.
    fn reseal_step(&mut self, txn: &WriteTransaction) -> Result<(), StorageError> {
        let Some((next, end)) = self.reseal.as_ref().map(|reseal| (reseal.next, reseal.end)) else {
            return Ok(());
        };
        let file = Arc::clone(&self.file);
        let fault = |e: redb::Error| file.fault("write", e);
        let mut log = txn.open_table(LOG).map_err(|e| fault(e.into()))?;
        let (mut anew, mut bytes, mut reached) = (Vec::new(), 0, end);
        for record in log.range(next..end).map_err(|e| fault(e.into()))? {
            let (index, value) = record.map_err(|e| fault(e.into()))?;
            let (index, value) = (index.value(), value.value());
            if anew.len() >= RESEAL_STEP || bytes >= RESEAL_BYTES {
                reached = index;
                break;
            }
            self.counter += 1;
            if let Some(record) = file.reseal(self.counter, Place::Log(index), value)? {
                bytes += record.len();
                anew.push((index, record));
            }
        }
        for (index, record) in anew {
            log.insert(index, record.as_slice())
                .map_err(|e| fault(e.into()))?;
        }
        if reached == end {
            self.reseal_state(txn)?;
        }
        if let Some(reseal) = &mut self.reseal {
            reseal.next = reached;
        }
        Ok(())
    }

    fn reseal_state(&mut self, txn: &WriteTransaction) -> Result<(), StorageError> {
        let file = Arc::clone(&self.file);
        let fault = |e: redb::Error| file.fault("write", e);
        let mut state = txn.open_table(STATE).map_err(|e| fault(e.into()))?;
        for name in [VOTE, COMMITTED, PURGED] {
            self.counter += 1;
            let old = state.get(name).map_err(|e| fault(e.into()))?;
            let Some(old) = old.map(|record| record.value().to_vec()) else {
                continue;
            };
            if let Some(record) = file.reseal(self.counter, Place::State(name), &old)? {
                let put = state.insert(name, record.as_slice());
                put.map(drop).map_err(|e| fault(e.into()))?;
            }
        }
        let mut epochs = txn.open_table(EPOCHS).map_err(|e| fault(e.into()))?;
        file.forget_epochs(&mut epochs).map_err(fault)
    }

    /// Tells who waits once everything is sealed anew, and durable.
    fn end_reseal(&mut self) {
        if self.failed.is_some() {
            // Who waits hears that the log is closed.
            self.reseal = None;
        }
        let over = |reseal: &Reseal| reseal.next >= reseal.end && !reseal.done.is_empty();
        if self.reseal.as_ref().is_some_and(over)
            && let Some(reseal) = self.reseal.take()
        {
            for done in reseal.done {
                // Who asked may have gone away; it is done all the same.
                let _ = done.send(());
            }
        }
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
    fn answer(
        &mut self,
        batch: Vec<Op>,
        outcome: Result<(), String>,
    ) -> Option<oneshot::Sender<()>> {
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
                Op::Rekey { done, .. } => {
                    if let Some(reseal) = &mut self.reseal {
                        reseal.done.push(done);
                    }
                }
                Op::Close { done } => closing = Some(done),
                Op::Truncate { .. } | Op::Purge(_) => {}
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
            | Self::Truncate { .. }
            | Self::Purge(_)
            | Self::Rekey { .. }
            | Self::Close { .. } => 0,
        }
    }
}
