//! The snapshots of one manager: one current file, replaced atomically.
//!
//! A snapshot is written under a temporary name, made durable, renamed to
//! `snapshot-<index>-<term>.snap`, and only then are older ones removed. Whoever still reads a
//! removed file keeps it by its open handle. A newest snapshot that is damaged is an error, never
//! skipped: the log before it is gone, so an older state would lose acknowledged writes.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Semaphore;

use super::disk::{Disk, DiskFile};
use super::encryption::{Dek, DekRing};
use super::error::StorageError;
use super::snapshot_file::{SnapshotReader, SnapshotWriter};
use super::types::{Snapshot, SnapshotMeta};
use crate::latency::Histogram;
use crate::process;

pub(crate) const SUFFIX: &str = "snap";
const TEMPORARY: &str = "tmp";
/// Snapshots written or read at once: one that is built, one that comes in, with room.
const MAX_WORK: usize = 8;

/// The directory of snapshots.
#[derive(Debug)]
pub(crate) struct SnapshotStore {
    disk: Disk,
    dir: PathBuf,
    /// What new ones are sealed by.
    dek: Mutex<Arc<Dek>>,
    current: Mutex<Option<SnapshotFile>>,
    temporaries: AtomicU64,
    /// Held by work on the files; all of it by who closes.
    busy: Arc<Semaphore>,
    /// How long it takes to make one of the state.
    built: Arc<Histogram>,
}

/// A snapshot on disk; a handle, cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct SnapshotFile {
    meta: SnapshotMeta,
    path: PathBuf,
    file: Arc<DiskFile>,
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

/// What became of a snapshot that was to be put in place.
#[derive(Debug)]
pub(crate) enum Placed {
    /// It is there, or a newer one is.
    Done,
    /// It is not: another key has taken over meanwhile.
    KeyChanged(SnapshotFile),
}

impl SnapshotStore {
    /// Opens the directory: takes the newest snapshot, removes older ones and unfinished files.
    ///
    /// # Errors
    /// When the newest snapshot's head can't be read.
    pub(crate) fn open(disk: &Disk, dir: &Path, deks: &DekRing) -> Result<Self, StorageError> {
        let mut snapshots = Vec::new();
        for path in disk.list(dir)?.unwrap_or_default() {
            match path.extension().and_then(|e| e.to_str()) {
                Some(SUFFIX) => snapshots.push(path),
                Some(TEMPORARY) => disk.remove(&path)?,
                // Not ours.
                Some(_) | None => {}
            }
        }
        let store = Self {
            disk: disk.clone(),
            dir: dir.to_owned(),
            dek: Mutex::new(Arc::clone(deks.newest())),
            current: Mutex::new(None),
            temporaries: AtomicU64::new(0),
            busy: Arc::new(Semaphore::new(MAX_WORK)),
            built: Arc::default(),
        };
        // Names sort by index.
        if let Some(newest) = snapshots.pop() {
            let file = Arc::new(disk.open(&newest)?);
            let (meta, dek) = identify(&file, &newest, deks)?;
            *store.lock() = Some(SnapshotFile {
                meta,
                path: newest,
                file,
                place: Place::Final,
                dek,
            });
            for old in snapshots {
                disk.remove(&old)?;
            }
        }
        Ok(store)
    }

    /// How long it takes to make a snapshot of the state.
    pub(crate) fn built(&self) -> Arc<Histogram> {
        Arc::clone(&self.built)
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
        let done = process::blocking(move || {
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
        SnapshotWriter::create(&self.disk, &path, (self.dek(), meta))
    }

    /// Ends a snapshot without putting it in place.
    pub(crate) fn finish(
        &self,
        writer: SnapshotWriter,
        meta: SnapshotMeta,
    ) -> Result<SnapshotFile, StorageError> {
        let path = writer.path().to_owned();
        let dek = Arc::clone(writer.dek());
        let file = Arc::new(writer.finish()?);
        Ok(SnapshotFile {
            meta,
            path,
            file,
            place: Place::Temporary,
            dek,
        })
    }

    /// Makes a finished snapshot the current one, unless a newer one is. Returns the current one.
    pub(crate) fn install(&self, new: SnapshotFile) -> Result<Snapshot, StorageError> {
        let mut next = new;
        loop {
            next = self.under_newest(next)?;
            match self.place(next)? {
                Placed::Done => break,
                Placed::KeyChanged(again) => next = again,
            }
        }
        self.current().ok_or_else(|| {
            StorageError::damaged(&self.dir, "snapshot directory", "no snapshot is in place")
        })
    }

    /// The same snapshot under the key that new ones are sealed by.
    pub(crate) fn under_newest(&self, new: SnapshotFile) -> Result<SnapshotFile, StorageError> {
        if Arc::ptr_eq(&new.dek, &self.dek()) {
            return Ok(new);
        }
        let resealed = self.reseal(&new)?;
        if new.place == Place::Temporary && new.path.starts_with(&self.dir) {
            self.disk.remove(&new.path)?;
        }
        Ok(resealed)
    }

    /// Puts it in place, unless a newer one is there, or another key has taken over since it was sealed: whoever brought
    /// that key has looked through what is in place under the same lock, and forgets the old one next.
    pub(crate) fn place(&self, mut new: SnapshotFile) -> Result<Placed, StorageError> {
        let mut current = self.lock();
        if !Arc::ptr_eq(&new.dek, &self.dek()) {
            return Ok(Placed::KeyChanged(new));
        }
        let newer = current
            .as_ref()
            .is_some_and(|c| c.meta.last_log_id > new.meta.last_log_id);
        if newer {
            if new.place == Place::Temporary {
                self.disk.remove(&new.path)?;
            }
        } else {
            if new.place == Place::Temporary {
                let path = self.dir.join(file_name(&new.meta));
                self.disk.rename(&new.path, &path)?;
                self.disk.sync_dir(&self.dir)?;
                new.path = path;
                new.place = Place::Final;
            }
            let old = current.replace(new);
            if let (Some(old), Some(new)) = (old, current.as_ref())
                && old.path != new.path
            {
                self.disk.remove(&old.path)?;
            }
        }
        Ok(Placed::Done)
    }

    /// Seals by another key from now on, also the snapshot that is in place.
    pub(crate) fn rekey(&self, dek: &Arc<Dek>) -> Result<(), StorageError> {
        *self.dek.lock().unwrap_or_else(PoisonError::into_inner) = Arc::clone(dek);
        // What was on its way into its place may have come there under the old key until the lock was free.
        loop {
            let current = self.lock().clone();
            match current {
                Some(current) if !Arc::ptr_eq(&current.dek, &self.dek()) => {
                    self.install(current)?;
                }
                Some(_) | None => return Ok(()),
            }
        }
    }

    fn dek(&self) -> Arc<Dek> {
        let dek = self.dek.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(&dek)
    }

    /// A copy of another store's snapshot, or one from before this one's key, sealed by that key.
    fn reseal(&self, foreign: &SnapshotFile) -> Result<SnapshotFile, StorageError> {
        let mut reader = foreign.read()?;
        let mut writer = self.create(&foreign.meta)?;
        std::io::copy(&mut reader, &mut writer).map_err(StorageError::io("copy", &foreign.path))?;
        self.finish(writer, foreign.meta.clone())
    }

    /// Drops a snapshot that was not put in place.
    pub(crate) fn discard(&self, path: &Path) {
        if let Err(error) = self.disk.remove(path) {
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

/// What a snapshot holds, and the key that it is sealed by.
pub(crate) fn identify(
    file: &Arc<DiskFile>,
    path: &Path,
    deks: &DekRing,
) -> Result<(SnapshotMeta, Arc<Dek>), StorageError> {
    let mut failed = None;
    for dek in deks.all() {
        match SnapshotReader::open(Arc::clone(file), path, dek) {
            Ok((_, meta)) => return Ok((meta, Arc::clone(dek))),
            Err(error) => failed = Some(error),
        }
    }
    Err(failed.unwrap_or_else(|| StorageError::damaged(path, "snapshot header", "no key fits")))
}

fn file_name(meta: &SnapshotMeta) -> String {
    let (index, term) = meta
        .last_log_id
        .map_or((0, 0), |id| (id.index, id.leader_id.term));
    format!("snapshot-{index:020}-{term:020}.{SUFFIX}")
}
