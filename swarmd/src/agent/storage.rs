//! What the agent keeps on disk: its assignments and the newest status of each.
//!
//! `worker/tasks.db` in the state directory. With it a node whose managers are unreachable goes on
//! with its tasks after a restart. One transaction an assignment message or status batch, durable
//! when it returns.
//!
//! The file holds nothing that can't be had again: the assignments from a manager, the statuses from
//! the runtime. So a damaged one is moved aside, with a word to the operator, and no container is
//! touched.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt as _;
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use prost::Message as _;
use redb::{
    Database, DatabaseError, ReadableDatabase as _, ReadableTable as _, StorageError as Redb,
    TableDefinition,
};
use swarm_proto::id::TaskId;
use swarm_proto::pb;
use swarm_proto::time::Timestamp;

const TASKS: TableDefinition<'_, u128, &[u8]> = TableDefinition::new("tasks");
const STATUSES: TableDefinition<'_, u128, &[u8]> = TableDefinition::new("statuses");
const FACTS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("facts");
/// Whose tasks these are.
const NODE: &str = "node";
/// The managers of the last session.
const MANAGERS: &str = "managers";
/// What the node said of itself last.
const DESCRIPTION: &str = "description";

/// Memory for pages; the file is read once, at start.
const CACHE_BYTES: usize = 1 << 20;
/// Directory and file, SwarmKit's names.
const DIR: &str = "worker";
const FILE: &str = "tasks.db";

/// Why the agent's file can't be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StorageError {
    /// Another process has it.
    #[error("{} is in use: another swarmd runs with this state directory; stop it, or use another --state-dir", path.display())]
    InUse {
        /// The file.
        path: PathBuf,
    },
    /// The system refuses.
    #[error("{} can't be read or written: {reason}; check its permissions and the space on its disk", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's words.
        reason: String,
    },
    /// Not what was written.
    #[error("{} is damaged: {reason}; stop swarmd, move the file away and start again: tasks are \
             fetched from a manager, containers are kept", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
}

/// The open file.
#[derive(Debug)]
pub(super) struct Storage {
    db: Database,
    path: PathBuf,
}

/// What an earlier run left.
#[derive(Debug, Default, Clone, PartialEq)]
pub(super) struct Restored {
    /// Assignments.
    pub(super) tasks: Vec<Arc<pb::Task>>,
    /// Newest statuses.
    pub(super) statuses: BTreeMap<TaskId, Arc<pb::TaskStatus>>,
    /// The managers of the last session.
    pub(super) managers: Vec<pb::WeightedPeer>,
    /// What the node said of itself last.
    pub(super) description: Option<pb::NodeDescription>,
}

impl Storage {
    /// Opens the file of this node, or makes it. A damaged one is moved aside.
    pub(super) fn open(
        state_dir: &Path,
        node: &str,
        now: Timestamp,
    ) -> Result<(Self, Restored), StorageError> {
        let dir = state_dir.join(DIR);
        let path = dir.join(FILE);
        let io = |path: &Path| {
            let path = path.to_owned();
            move |error: std::io::Error| StorageError::Io {
                path,
                reason: error.to_string(),
            }
        };
        // Task specs carry environment, which is where people put passwords. An earlier version left
        // both open to all users of the host.
        std::fs::create_dir_all(&dir).map_err(io(&dir))?;
        let mode = |path: &Path, mode| {
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).map_err(io(path))
        };
        mode(&dir, 0o700)?;
        let opened = Self::open_or_set_aside(&dir, &path, node, now)?;
        mode(&path, 0o600)?;
        Ok(opened)
    }

    fn open_or_set_aside(
        dir: &Path,
        path: &Path,
        node: &str,
        now: Timestamp,
    ) -> Result<(Self, Restored), StorageError> {
        let damage = match Self::try_open(path, node) {
            Err(damage @ StorageError::Damaged { .. }) => damage,
            done => return done,
        };
        let aside = dir.join(format!("{FILE}.damaged-{}", now.0 / 1_000_000_000));
        std::fs::rename(path, &aside).map_err(|error| StorageError::Io {
            path: path.to_owned(),
            reason: error.to_string(),
        })?;
        tracing::error!(
            error = %damage,
            moved.to = %aside.display(),
            "the agent's file was damaged and moved aside; tasks are fetched from a manager, containers are kept"
        );
        Self::try_open(path, node)
    }

    fn try_open(path: &Path, node: &str) -> Result<(Self, Restored), StorageError> {
        // redb checks what it reads, but not all of it: a page of noise may still trip an assertion.
        let opened = std::panic::catch_unwind(AssertUnwindSafe(|| {
            let db = Database::builder()
                .set_cache_size(CACHE_BYTES)
                .create(path)
                .map_err(|e| database_error(path, e))?;
            let storage = Self {
                db,
                path: path.to_owned(),
            };
            storage.prepare(node)?;
            let restored = storage.restore()?;
            Ok((storage, restored))
        }));
        opened.unwrap_or_else(|_| {
            Err(StorageError::Damaged {
                path: path.to_owned(),
                reason: "its pages make no sense".to_owned(),
            })
        })
    }

    /// Makes the tables; forgets the tasks of another node, which this one was before it left.
    fn prepare(&self, node: &str) -> Result<(), StorageError> {
        self.write(|txn| {
            let mut facts = txn.open_table(FACTS)?;
            let same = facts
                .get(NODE)?
                .is_some_and(|n| n.value() == node.as_bytes());
            if !same {
                facts.retain(|_, _| false)?;
                facts.insert(NODE, node.as_bytes())?;
                txn.delete_table(TASKS)?;
                txn.delete_table(STATUSES)?;
            }
            txn.open_table(TASKS)?;
            txn.open_table(STATUSES)?;
            Ok(())
        })
    }

    fn restore(&self) -> Result<Restored, StorageError> {
        let mut restored = Restored::default();
        let read = || -> Result<Result<(), prost::DecodeError>, redb::Error> {
            let txn = self.db.begin_read()?;
            let statuses = txn.open_table(STATUSES)?;
            for row in txn.open_table(TASKS)?.iter()? {
                let (id, task) = row?;
                match pb::Task::decode(task.value()) {
                    Ok(task) => restored.tasks.push(Arc::new(task)),
                    Err(error) => return Ok(Err(error)),
                }
                let Some(status) = statuses.get(id.value())? else {
                    continue;
                };
                match pb::TaskStatus::decode(status.value()) {
                    Ok(status) => {
                        let id = TaskId::from_raw(id.value());
                        restored.statuses.insert(id, Arc::new(status));
                    }
                    Err(error) => return Ok(Err(error)),
                }
            }
            let facts = txn.open_table(FACTS)?;
            if let Some(managers) = facts.get(MANAGERS)?
                && let Ok(message) = pb::SessionMessage::decode(managers.value())
            {
                restored.managers = message.managers;
            }
            if let Some(description) = facts.get(DESCRIPTION)? {
                restored.description = pb::NodeDescription::decode(description.value()).ok();
            }
            Ok(Ok(()))
        };
        let decoded = read_all(read).map_err(|e| self.error(e))?;
        decoded.map_err(|error| StorageError::Damaged {
            path: self.path.clone(),
            reason: error.to_string(),
        })?;
        Ok(restored)
    }

    /// Keeps these assignments and forgets those.
    pub(super) fn assign(
        &self,
        put: &[(TaskId, Arc<pb::Task>)],
        remove: &[TaskId],
    ) -> Result<(), StorageError> {
        self.write(|txn| {
            let mut tasks = txn.open_table(TASKS)?;
            let mut statuses = txn.open_table(STATUSES)?;
            let mut bytes = Vec::new();
            for (id, task) in put {
                bytes.clear();
                encode(task.as_ref(), &mut bytes);
                tasks.insert(id.raw(), bytes.as_slice())?;
            }
            for id in remove {
                tasks.remove(id.raw())?;
                statuses.remove(id.raw())?;
            }
            Ok(())
        })
    }

    /// Keeps these statuses, of tasks that are assigned still.
    pub(super) fn record(
        &self,
        batch: &[(TaskId, Arc<pb::TaskStatus>)],
    ) -> Result<(), StorageError> {
        self.write(|txn| {
            let tasks = txn.open_table(TASKS)?;
            let mut statuses = txn.open_table(STATUSES)?;
            let mut bytes = Vec::new();
            for (id, status) in batch {
                if tasks.get(id.raw())?.is_none() {
                    continue;
                }
                bytes.clear();
                encode(status.as_ref(), &mut bytes);
                statuses.insert(id.raw(), bytes.as_slice())?;
            }
            Ok(())
        })
    }

    /// Keeps the addresses of the managers.
    pub(super) fn put_managers(&self, managers: &[pb::WeightedPeer]) -> Result<(), StorageError> {
        let message = pb::SessionMessage {
            managers: managers.to_vec(),
            ..Default::default()
        };
        self.put_fact(MANAGERS, &message.encode_to_vec())
    }

    /// Keeps what the node says of itself.
    pub(super) fn put_description(
        &self,
        description: &pb::NodeDescription,
    ) -> Result<(), StorageError> {
        self.put_fact(DESCRIPTION, &description.encode_to_vec())
    }

    fn put_fact(&self, key: &str, value: &[u8]) -> Result<(), StorageError> {
        self.write(|txn| {
            txn.open_table(FACTS)?.insert(key, value)?;
            Ok(())
        })
    }

    fn write(
        &self,
        change: impl FnOnce(&redb::WriteTransaction) -> Result<(), redb::Error>,
    ) -> Result<(), StorageError> {
        let write = || -> Result<(), redb::Error> {
            let txn = self.db.begin_write()?;
            change(&txn)?;
            txn.commit()?;
            Ok(())
        };
        write().map_err(|e| self.error(e))
    }

    fn error(&self, error: redb::Error) -> StorageError {
        let path = self.path.clone();
        let reason = error.to_string();
        // redb's errors are its own enum, and grow with it: all but IO say that the file is not
        // what was written.
        if let redb::Error::Io(_) | redb::Error::PreviousIo = error {
            return StorageError::Io { path, reason };
        }
        StorageError::Damaged { path, reason }
    }
}

fn read_all<T>(read: impl FnOnce() -> Result<T, redb::Error>) -> Result<T, redb::Error> {
    read()
}

fn encode(message: &impl prost::Message, bytes: &mut Vec<u8>) {
    // Fails only without room, and a vector grows.
    let _ = message.encode(bytes);
}

fn database_error(path: &Path, error: DatabaseError) -> StorageError {
    let path = path.to_owned();
    let reason = error.to_string();
    match error {
        DatabaseError::DatabaseAlreadyOpen => StorageError::InUse { path },
        DatabaseError::Storage(Redb::Io(error))
            if !matches!(
                error.kind(),
                std::io::ErrorKind::InvalidData | std::io::ErrorKind::UnexpectedEof
            ) =>
        {
            StorageError::Io { path, reason }
        }
        DatabaseError::RepairAborted
        | DatabaseError::UpgradeRequired(_)
        | DatabaseError::TransactionInProgress
        | DatabaseError::Storage(_) => StorageError::Damaged { path, reason },
        // The enum is redb's, and marked as growing.
        #[allow(unreachable_patterns, reason = "redb may add variants")]
        _ => StorageError::Damaged { path, reason },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::from_millis(1_700_000_000_000);

    fn task(id: u128) -> (TaskId, Arc<pb::Task>) {
        let id = TaskId::from_raw(id);
        let task = pb::Task {
            id: id.to_string(),
            slot: 7,
            ..Default::default()
        };
        (id, Arc::new(task))
    }

    fn status(state: pb::TaskState) -> Arc<pb::TaskStatus> {
        Arc::new(pb::TaskStatus {
            state: state.into(),
            ..Default::default()
        })
    }

    fn open(dir: &Path) -> (Storage, Restored) {
        Storage::open(dir, "node", NOW).unwrap()
    }

    #[test]
    fn other_users_of_the_host_read_nothing() {
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        let state = tempfile::tempdir().unwrap();
        let (dir, path) = (state.path().join(DIR), state.path().join(DIR).join(FILE));
        drop(open(state.path()));
        // As an earlier version left them.
        for (path, mode) in [(&dir, 0o755), (&path, 0o644)] {
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
        }
        drop(open(state.path()));
        assert_eq!((mode(&dir), mode(&path)), (0o700, 0o600));
    }

    #[test]
    fn what_was_written_is_restored() {
        let dir = tempfile::tempdir().unwrap();
        let (storage, restored) = open(dir.path());
        assert_eq!(restored, Restored::default());
        let (a, b, c) = (task(1), task(2), task(3));
        storage.assign(&[a.clone(), b.clone()], &[]).unwrap();
        let running = status(pb::TaskState::Running);
        let batch = [
            (a.0, running.clone()),
            (b.0, running.clone()),
            (c.0, running.clone()),
        ];
        storage.record(&batch).unwrap();
        storage.assign(&[], &[b.0]).unwrap();
        storage
            .put_managers(&[pb::WeightedPeer::default()])
            .unwrap();
        let description = pb::NodeDescription::default();
        storage.put_description(&description).unwrap();
        drop(storage);
        let (_storage, restored) = open(dir.path());
        assert_eq!(restored.tasks, [a.1]);
        assert_eq!(restored.statuses, BTreeMap::from([(a.0, running)]));
        assert_eq!(restored.managers.len(), 1);
        assert_eq!(restored.description, Some(description));
    }

    #[test]
    fn another_node_starts_empty() {
        let dir = tempfile::tempdir().unwrap();
        let (storage, _) = open(dir.path());
        storage.assign(&[task(1)], &[]).unwrap();
        drop(storage);
        let (_, restored) = Storage::open(dir.path(), "another", NOW).unwrap();
        assert_eq!(restored, Restored::default());
    }

    #[test]
    fn one_process_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let (_storage, _) = open(dir.path());
        let error = Storage::open(dir.path(), "node", NOW).unwrap_err();
        assert!(matches!(error, StorageError::InUse { .. }), "{error}");
    }

    #[test]
    fn a_damaged_file_is_moved_aside() {
        let noise: Vec<u8> = (0..100_000u32)
            .map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8)
            .collect();
        let whole = {
            let dir = tempfile::tempdir().unwrap();
            let (storage, _) = open(dir.path());
            let many: Vec<_> = (0..500).map(task).collect();
            storage.assign(&many, &[]).unwrap();
            drop(storage);
            std::fs::read(dir.path().join("worker/tasks.db")).unwrap()
        };
        let mut scribbled = whole.clone();
        for byte in scribbled.iter_mut().skip(4096).step_by(3) {
            *byte ^= 0x5a;
        }
        let mut flipped = whole.clone();
        flipped[..300].fill(0xff);
        let cases = [
            ("noise", noise.as_slice()),
            ("truncated", &whole[..whole.len() / 2]),
            ("cut short", &whole[..100]),
            ("scribbled on", &scribbled),
            ("without its header", &flipped),
        ];
        for (name, bytes) in cases {
            let dir = tempfile::tempdir().unwrap();
            std::fs::create_dir(dir.path().join("worker")).unwrap();
            std::fs::write(dir.path().join("worker/tasks.db"), bytes).unwrap();
            let (storage, restored) = open(dir.path());
            assert_eq!(restored.tasks.len(), 0, "{name}");
            let aside = dir.path().join("worker/tasks.db.damaged-1700000000");
            assert_eq!(std::fs::read(aside).unwrap().len(), bytes.len(), "{name}");
            storage.assign(&[task(1)], &[]).unwrap();
        }
    }
}
