//! Tests of consensus on real files: openraft's conformance suite, restarts, power cuts, damage,
//! one member end to end, three members over loopback.

mod cluster;
mod conformance;
mod damage;
mod forced;
mod keeper;
mod log;
mod power_cut;
mod recovery;
mod rotation;
mod single;
mod snapshots;
mod store;
mod wire;

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use openraft::RaftLogReader as _;
use openraft::storage::{IOFlushed, RaftLogStorage};
use openraft::type_config::TypeConfigExt as _;
use openraft::vote::RaftLeaderId as _;
use tokio::sync::Notify;

use super::dir::RaftDir;
use super::disk::Disk;
use super::encryption::{Dek, DekRing};
use super::log_file::{Loaded, LogFile};
use super::log_store::LogStore;
use super::node::RaftNode;
use super::snapshot::SnapshotStore;
use super::state_machine::StateMachine;
use super::types::{Command, Entry, EntryPayload, LogId, Types, Vote};
use super::{Machine, MachineError, Member, RaftConfig, SnapshotLimits, Timing};
use crate::seal::Seal;

/// A machine that remembers the commands it applied, by index.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    lines: imbl::OrdMap<u64, String>,
}

impl Machine for Ledger {
    type Changes = String;
    type Outcome = usize;
    type View = imbl::OrdMap<u64, String>;

    fn decode(encoded: Bytes) -> Result<String, MachineError> {
        Ok(String::from_utf8(encoded.to_vec())?)
    }

    fn apply(&mut self, index: u64, line: String) -> usize {
        self.lines.insert(index, line);
        self.lines.len()
    }

    fn view(&self) -> Self::View {
        self.lines.clone()
    }

    fn write_snapshot(view: &Self::View, out: &mut dyn Write) -> io::Result<()> {
        view.iter()
            .try_for_each(|(index, line)| writeln!(out, "{index} {line}"))
    }

    fn read_snapshot(input: &mut dyn Read) -> Result<Self::View, MachineError> {
        let mut text = String::new();
        input.read_to_string(&mut text)?;
        let mut view = imbl::OrdMap::new();
        for line in text.lines() {
            let (index, line) = line.split_once(' ').ok_or("no space")?;
            view.insert(index.parse()?, line.to_owned());
        }
        Ok(view)
    }

    fn restore(&mut self, _index: u64, view: Self::View) {
        self.lines = view;
    }
}

pub(super) fn command(line: &str) -> Command {
    Command::encoded(Bytes::from(line.to_owned()))
}

pub(super) fn log_id(term: u64, index: u64) -> LogId {
    LogId {
        leader_id: openraft::alias::LeaderIdOf::<Types>::new(term, 1),
        index,
    }
}

pub(super) fn entry(term: u64, index: u64, line: &str) -> Entry {
    Entry {
        log_id: log_id(term, index),
        payload: EntryPayload::Normal(command(line)),
    }
}

pub(super) fn blank(term: u64, index: u64) -> Entry {
    Entry {
        log_id: log_id(term, index),
        payload: EntryPayload::Blank,
    }
}

pub(super) fn state_machine(snapshots: Arc<SnapshotStore>) -> StateMachine<Ledger> {
    let never = u64::MAX;
    StateMachine::new(Ledger::default(), snapshots, never, Arc::new(Notify::new()))
}

/// Appends and waits until it is durable.
pub(super) async fn append(log: &mut LogStore, entries: Vec<Entry>) {
    append_later(log, entries).await.await.unwrap().unwrap();
}

/// Appends; the future ends when it is durable.
pub(super) async fn append_later(
    log: &mut LogStore,
    entries: Vec<Entry>,
) -> impl Future<Output = Result<io::Result<()>, ()>> + Send + use<> {
    let (done, flushed) = Types::oneshot();
    log.append(entries, IOFlushed::signal(done)).await.unwrap();
    async move { flushed.await.map_err(|_| ()) }
}

/// Everything in the log.
pub(super) async fn entries(log: &mut LogStore) -> Vec<Entry> {
    let mut reader = log.get_log_reader().await;
    reader.try_get_log_entries(..).await.unwrap()
}

pub(super) fn config(dir: &Path, id: u64) -> RaftConfig {
    RaftConfig {
        id,
        member: Member {
            node_id: format!("node-{id}"),
            addresses: Vec::new(),
        },
        says: Vec::new(),
        state_dir: dir.to_owned(),
        disk: Disk::Real,
        timing: Timing::default(),
        snapshots: SnapshotLimits::default(),
        seal: Seal::default(),
    }
}

/// Longest wait for what consensus does by itself.
const SOON: Duration = Duration::from_secs(20);

/// Waits for what has to come.
pub(super) async fn soon<T>(coming: impl Future<Output = T>) -> T {
    let waited = tokio::time::timeout(SOON, coming).await;
    waited.expect("it never came")
}

pub(super) fn lines(node: &RaftNode<Ledger>) -> Vec<String> {
    node.proposer().view().values().cloned().collect()
}

/// The files of a raft directory, with their contents.
pub(super) fn tree(dir: &Path) -> BTreeMap<std::path::PathBuf, Vec<u8>> {
    let mut files = BTreeMap::new();
    for item in std::fs::read_dir(dir).unwrap() {
        let path = item.unwrap().path();
        if path.is_dir() {
            files.extend(tree(&path));
        } else {
            files.insert(path.clone(), std::fs::read(&path).unwrap());
        }
    }
    files
}

pub(super) async fn close(log: LogStore) {
    let closer = log.closer();
    drop(log);
    closer.close().await;
}

pub(super) fn open(dir: &Path) -> RaftDir {
    RaftDir::open(&Disk::Real, (dir, Seal::default()), 1).unwrap()
}

pub(super) fn open_error(dir: &Path) -> String {
    RaftDir::open(&Disk::Real, (dir, Seal::default()), 1)
        .unwrap_err()
        .to_string()
}

pub(super) fn new_log(db: redb::Database, dek: &Dek) -> LogStore {
    let file = LogFile::create_in(db, Path::new("log.redb"), dek).unwrap();
    LogStore::over(file, Loaded::default()).unwrap()
}

/// One key that is used for all.
pub(super) fn ring(dek: &Dek) -> DekRing {
    let dek = Dek::from_bytes(dek.expose()).unwrap();
    DekRing::new(Arc::new(dek), None)
}

pub(super) fn vote(term: u64) -> Vote {
    Vote::new(term, 1)
}
