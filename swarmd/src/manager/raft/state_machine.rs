//! Applies committed entries to the replicated state and publishes the result.
//!
//! The state is a [`Machine`]: deterministic, in memory, with cheap immutable views. After every
//! entry the new view is published and only then is the proposer answered, so whoever has an answer
//! and looks at the state sees its own write. Snapshots are encoded from a view on a blocking
//! thread; applying goes on meanwhile.

use std::io::{self, Read, Write};
use std::sync::Arc;

use bytes::Bytes;
use futures::{Stream, TryStreamExt as _};
use openraft::storage::{EntryResponder, RaftStateMachine};
use openraft::{OptionalSend, RaftSnapshotBuilder};
use tokio::sync::{Notify, watch};

use super::snapshot::{SnapshotFile, SnapshotStore};
use super::types::{
    Command, Entry, EntryPayload, LogId, Reply, Snapshot, SnapshotMeta, StoredMembership, Types,
};

/// Why bytes can't become changes or state.
pub type MachineError = Box<dyn std::error::Error + Send + Sync>;

/// The replicated state, as consensus needs it.
///
/// `apply` must be total and deterministic: every manager applies the same entries and must reach
/// the same state, so a change that can't be made is an outcome, not an error.
pub trait Machine: Send + Sync + 'static {
    /// The decoded content of one log entry.
    type Changes: Send + 'static;
    /// What applying it answered.
    type Outcome: Send + Sync + 'static;
    /// The whole state, immutable and cheap to clone.
    type View: Clone + Send + Sync + 'static;

    /// Decodes the content of a log entry.
    ///
    /// # Errors
    /// When the bytes are not what this version writes or reads. That stops the manager: skipping a
    /// committed entry would make it diverge.
    fn decode(encoded: Bytes) -> Result<Self::Changes, MachineError>;

    /// Applies the changes of log entry `index`.
    fn apply(&mut self, index: u64, changes: Self::Changes) -> Self::Outcome;

    /// The state as it is now.
    fn view(&self) -> Self::View;

    /// Writes all of a view, in pieces; on a blocking thread.
    ///
    /// # Errors
    /// When `out` fails.
    fn write_snapshot(view: &Self::View, out: &mut dyn Write) -> io::Result<()>;

    /// Reads what [`Machine::write_snapshot`] wrote; on a blocking thread.
    ///
    /// # Errors
    /// When the bytes are not a snapshot this version reads, or `input` fails.
    fn read_snapshot(input: &mut dyn Read) -> Result<Self::View, MachineError>;

    /// Replaces the state by that of a snapshot taken at log entry `index`.
    fn restore(&mut self, index: u64, view: Self::View);
}

/// The state after an applied entry.
#[derive(Clone, Debug)]
pub struct Published<V> {
    /// The last applied log entry, 0 before the first.
    pub index: u64,
    /// The term of that entry's leader.
    pub term: u64,
    /// The leader that proposed it.
    pub leader: u64,
    /// The state.
    pub view: V,
}

/// The adapter between openraft and a [`Machine`].
pub(crate) struct StateMachine<M: Machine> {
    machine: M,
    last_applied: Option<LogId>,
    membership: StoredMembership,
    snapshots: Arc<SnapshotStore>,
    published: watch::Sender<Published<M::View>>,
    /// Bytes of commands applied since the last snapshot was begun.
    bytes: u64,
    /// At how many bytes to ask for a snapshot.
    snapshot_bytes: u64,
    snapshot_wanted: Arc<Notify>,
}

impl<M: Machine> StateMachine<M> {
    /// An adapter around a machine without entries. `snapshot_wanted` is notified when
    /// `snapshot_bytes` of commands were applied since the last snapshot.
    pub(crate) fn new(
        machine: M,
        snapshots: Arc<SnapshotStore>,
        snapshot_bytes: u64,
        snapshot_wanted: Arc<Notify>,
    ) -> Self {
        let (published, _) = watch::channel(Published {
            index: 0,
            term: 0,
            leader: 0,
            view: machine.view(),
        });
        Self {
            machine,
            last_applied: None,
            membership: StoredMembership::default(),
            snapshots,
            published,
            bytes: 0,
            snapshot_bytes,
            snapshot_wanted,
        }
    }

    /// Every published state, the newest only.
    pub(crate) fn published(&self) -> watch::Receiver<Published<M::View>> {
        self.published.subscribe()
    }

    fn apply_entry(&mut self, entry: Entry) -> io::Result<Reply> {
        let index = entry.log_id.index;
        let reply = match entry.payload {
            EntryPayload::Blank => Reply::default(),
            EntryPayload::Membership(membership) => {
                self.membership = StoredMembership::new(Some(entry.log_id), membership);
                Reply::default()
            }
            EntryPayload::Normal(command) => {
                let size = command.bytes().len() as u64;
                let changes = decode::<M>(index, command)?;
                self.count(size);
                Reply::new(self.machine.apply(index, changes))
            }
        };
        self.last_applied = Some(entry.log_id);
        self.publish();
        Ok(reply)
    }

    fn count(&mut self, size: u64) {
        let limit = self.snapshot_bytes.max(1);
        let before = self.bytes / limit;
        self.bytes += size;
        // Again at each multiple: a wish is lost while another snapshot is being built.
        if self.bytes / limit > before {
            self.snapshot_wanted.notify_one();
        }
    }

    fn publish(&self) {
        let Some(at) = self.last_applied else { return };
        self.published.send_replace(Published {
            index: at.index,
            term: at.leader_id.term,
            leader: at.leader_id.node_id,
            view: self.machine.view(),
        });
    }
}

pub(crate) fn decode<M: Machine>(index: u64, command: Command) -> io::Result<M::Changes> {
    if let Some(changes) = command.take_decoded::<M::Changes>() {
        return Ok(changes);
    }
    M::decode(command.bytes().clone()).map_err(|e| {
        io::Error::other(format!(
            "log entry {index} does not decode ({e}): run the version of swarmd that wrote it"
        ))
    })
}

impl<M: Machine> RaftStateMachine<Types> for StateMachine<M> {
    type SnapshotData = SnapshotFile;
    type SnapshotBuilder = Builder<M>;

    async fn applied_state(&mut self) -> io::Result<(Option<LogId>, StoredMembership)> {
        Ok((self.last_applied, self.membership.clone()))
    }

    async fn apply<S>(&mut self, mut entries: S) -> io::Result<()>
    where
        S: Stream<Item = io::Result<EntryResponder<Types>>> + Unpin + OptionalSend,
    {
        while let Some((entry, responder)) = entries.try_next().await? {
            let reply = self.apply_entry(entry)?;
            if let Some(responder) = responder {
                responder.send(reply);
            }
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> Builder<M> {
        self.bytes = 0;
        Builder {
            meta: SnapshotMeta {
                last_log_id: self.last_applied,
                last_membership: self.membership.clone(),
            },
            view: self.machine.view(),
            snapshots: Arc::clone(&self.snapshots),
        }
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta,
        snapshot: SnapshotFile,
    ) -> io::Result<()> {
        let load = move |snapshots: &SnapshotStore| -> Result<M::View, MachineError> {
            let mut reader = snapshot.read()?;
            let view = M::read_snapshot(&mut reader)?;
            // The end is authenticated too.
            io::copy(&mut reader, &mut io::sink())?;
            // Readable: only now may it replace the one before.
            snapshots.install(snapshot)?;
            Ok(view)
        };
        let view = self.snapshots.work(load).await?.map_err(io::Error::other)?;
        self.machine
            .restore(meta.last_log_id.map_or(0, |id| id.index), view);
        self.last_applied = meta.last_log_id;
        self.membership = meta.last_membership.clone();
        self.bytes = 0;
        self.publish();
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> io::Result<Option<Snapshot>> {
        Ok(self.snapshots.current())
    }
}

/// Encodes one view into a snapshot.
pub(crate) struct Builder<M: Machine> {
    meta: SnapshotMeta,
    view: M::View,
    snapshots: Arc<SnapshotStore>,
}

impl<M: Machine> RaftSnapshotBuilder<Types> for Builder<M> {
    type SnapshotData = SnapshotFile;

    async fn build_snapshot(&mut self) -> io::Result<Snapshot> {
        let (meta, view) = (self.meta.clone(), self.view.clone());
        let took = self.snapshots.built();
        let build = move |snapshots: &SnapshotStore| -> io::Result<Snapshot> {
            let _timed = took.timed();
            let mut writer = snapshots.create(&meta)?;
            let path = writer.path().to_owned();
            let written = M::write_snapshot(&view, &mut writer);
            if let Err(error) = written {
                snapshots.discard(&path);
                return Err(error);
            }
            let file = snapshots.finish(writer, meta)?;
            Ok(snapshots.install(file)?)
        };
        self.snapshots.work(build).await?
    }
}

impl<M: Machine> std::fmt::Debug for StateMachine<M> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "StateMachine(applied {:?})", self.last_applied)
    }
}

impl<M: Machine> std::fmt::Debug for Builder<M> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Builder({})", self.meta)
    }
}
