//! The snapshots of one manager: one current file, replaced atomically.
//!
//! A snapshot is written under a temporary name, made durable, renamed to
//! `snapshot-<index>-<term>.snap`, and only then are older ones removed. Whoever still reads a
//! removed file keeps it by its open handle. A newest snapshot that is damaged is an error, never
//! skipped: the log before it is gone, so an older state would lose acknowledged writes.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Semaphore;

use super::encryption::Dek;
use super::error::StorageError;
use super::files;
use super::snapshot_file::{SnapshotReader, SnapshotWriter};
use super::types::{Snapshot, SnapshotMeta};

pub(crate) const SUFFIX: &str = "snap";
const TEMPORARY: &str = "tmp";
/// Snapshots written or read at once: one that is built, one that comes in, with room.
const MAX_WORK: usize = 8;

/// The directory of snapshots.
#[derive(Debug)]
pub(crate) struct SnapshotStore {
    dir: PathBuf,
    dek: Arc<Dek>,
    current: Mutex<Option<SnapshotFile>>,
    temporaries: AtomicU64,
    /// Held by work on the files; all of it by who closes.
    busy: Arc<Semaphore>,
}

/// A snapshot on disk; a handle, cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct SnapshotFile {
    meta: SnapshotMeta,
    path: PathBuf,
    file: Arc<File>,
    place: Place,
    /// The key it is sealed by.
    dek: Arc<Dek>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// Under its final name: the current snapshot, or one that was.
    Final,
    /// Written but not yet put in place.
    Temporary,
}

impl SnapshotStore {
    /// Opens the directory: takes the newest snapshot, removes older ones and unfinished files.
    ///
    /// # Errors
    /// When the newest snapshot's head can't be read.
    pub(crate) fn open(dir: &Path, dek: Arc<Dek>) -> Result<Self, StorageError> {
        let mut snapshots = Vec::new();
        for path in files::list(dir)? {
            match path.extension().and_then(|e| e.to_str()) {
                Some(SUFFIX) => snapshots.push(path),
                Some(TEMPORARY) => files::remove(&path)?,
                // Not ours.
                Some(_) | None => {}
            }
        }
        let store = Self {
            dir: dir.to_owned(),
            dek,
            current: Mutex::new(None),
            temporaries: AtomicU64::new(0),
            busy: Arc::new(Semaphore::new(MAX_WORK)),
        };
        // Names sort by index.
        if let Some(newest) = snapshots.pop() {
            let file = File::open(&newest).map_err(StorageError::io("open", &newest))?;
            let file = Arc::new(file);
            let (_, meta) = SnapshotReader::open(Arc::clone(&file), &newest, &store.dek)?;
            *store.lock() = Some(SnapshotFile {
                meta,
                path: newest,
                file,
                place: Place::Final,
                dek: Arc::clone(&store.dek),
            });
            for old in snapshots {
                files::remove(&old)?;
            }
        }
        Ok(store)
    }

    /// Works on the files on a blocking thread.
    ///
    /// # Errors
    /// When the store is closed.
    pub(crate) async fn work<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Self) -> T + Send + 'static,
    ) -> Result<T, StorageError> {
        let closed = || StorageError::Closed {
            path: self.dir.clone(),
        };
        let busy = Arc::clone(&self.busy).acquire_owned().await;
        let busy = busy.map_err(|_| closed())?;
        let store = Arc::clone(self);
        let done = tokio::task::spawn_blocking(move || {
            let done = work(&store);
            drop(busy);
            done
        });
        // It ends badly only where the runtime ends, or by a bug that panics.
        done.await.map_err(|_| closed())
    }

    /// Waits until nobody works on the files; nobody can begin after.
    pub(crate) async fn close(&self) {
        let all = u32::try_from(MAX_WORK).unwrap_or(u32::MAX);
        // Closed already: then there is nothing to wait for.
        let _ = self.busy.acquire_many(all).await;
        self.busy.close();
    }

    /// The snapshot that a restart would load.
    pub(crate) fn current(&self) -> Option<Snapshot> {
        let current = self.lock().clone()?;
        Some(Snapshot {
            meta: current.meta.clone(),
            snapshot: current,
        })
    }

    /// Starts a snapshot under a temporary name.
    pub(crate) fn create(&self, meta: &SnapshotMeta) -> Result<SnapshotWriter, StorageError> {
        let number = self.temporaries.fetch_add(1, Ordering::Relaxed);
        let path = self.dir.join(format!("unfinished-{number}.{TEMPORARY}"));
        SnapshotWriter::create(&path, &self.dek, meta)
    }

    /// Ends a snapshot without putting it in place.
    pub(crate) fn finish(
        &self,
        writer: SnapshotWriter,
        meta: SnapshotMeta,
    ) -> Result<SnapshotFile, StorageError> {
        let path = writer.path().to_owned();
        let file = Arc::new(writer.finish()?);
        Ok(SnapshotFile {
            meta,
            path,
            file,
            place: Place::Temporary,
            dek: Arc::clone(&self.dek),
        })
    }

    /// Makes a finished snapshot the current one, unless a newer one is. Returns the current one.
    pub(crate) fn install(&self, mut new: SnapshotFile) -> Result<Snapshot, StorageError> {
        if !Arc::ptr_eq(&new.dek, &self.dek) {
            new = self.reseal(&new)?;
        }
        let mut current = self.lock();
        let newer = current
            .as_ref()
            .is_some_and(|c| c.meta.last_log_id > new.meta.last_log_id);
        if newer {
            if new.place == Place::Temporary {
                files::remove(&new.path)?;
            }
        } else {
            if new.place == Place::Temporary {
                let path = self.dir.join(file_name(&new.meta));
                std::fs::rename(&new.path, &path).map_err(StorageError::io("rename", &new.path))?;
                files::sync_dir(&self.dir)?;
                new.path = path;
                new.place = Place::Final;
            }
            let old = current.replace(new);
            if let (Some(old), Some(new)) = (old, current.as_ref())
                && old.path != new.path
            {
                files::remove(&old.path)?;
            }
        }
        drop(current);
        self.current().ok_or_else(|| {
            StorageError::damaged(&self.dir, "snapshot directory", "no snapshot is in place")
        })
    }

    /// A copy of another store's snapshot, sealed by this store's key.
    fn reseal(&self, foreign: &SnapshotFile) -> Result<SnapshotFile, StorageError> {
        let mut reader = foreign.read()?;
        let mut writer = self.create(&foreign.meta)?;
        std::io::copy(&mut reader, &mut writer).map_err(StorageError::io("copy", &foreign.path))?;
        self.finish(writer, foreign.meta.clone())
    }

    /// Drops a snapshot that was not put in place.
    pub(crate) fn discard(&self, path: &Path) {
        if let Err(error) = files::remove(path) {
            tracing::warn!(%error, "unfinished snapshot stays until the next start");
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<SnapshotFile>> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl SnapshotFile {
    /// Reads the state from the start.
    pub(crate) fn read(&self) -> Result<SnapshotReader, StorageError> {
        let file = Arc::clone(&self.file);
        SnapshotReader::open(file, &self.path, &self.dek).map(|(reader, _)| reader)
    }
}

fn file_name(meta: &SnapshotMeta) -> String {
    let (index, term) = meta
        .last_log_id
        .map_or((0, 0), |id| (id.index, id.leader_id.term));
    format!("snapshot-{index:020}-{term:020}.{SUFFIX}")
}
