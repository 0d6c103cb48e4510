//! A new data encryption key takes over: in the key file, the log, and the snapshots, in this order.
//!
//! All of it is this manager's own affair, and ends after a time that the length of its log and the size of its snapshot
//! decide: it needs no leader and no majority. What a step has done stays done: after a power cut the next start finds
//! both keys, or the new one alone, and goes on.

use std::sync::Arc;

use super::dek_file::DekFile;
use super::encryption::DekRing;
use super::error::StorageError;
use super::log_store::LogKeys;
use super::snapshot::SnapshotStore;

/// The keys of one manager's raft directory; cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct RaftKeys {
    pub(super) dek: Arc<DekFile>,
    pub(super) log: LogKeys,
    pub(super) snapshots: Arc<SnapshotStore>,
}

impl RaftKeys {
    /// Brings the key file in line with what it is to be sealed for. Blocks on the disk.
    ///
    /// # Errors
    /// When it can't be read, opened or written; it is then as it was.
    pub(crate) fn reseal(&self) -> Result<(), StorageError> {
        self.dek.reseal()
    }

    /// Whether a new key is to take over, or has begun to.
    pub(crate) fn rotation_due(&self) -> bool {
        self.dek.rotation_due()
    }

    /// Lets a new key take over, where one is to, and returns when the old one is forgotten. True where that was done.
    ///
    /// # Errors
    /// When the disk refuses, or the log is closed. Both keys are then kept, and this can be called again.
    pub(crate) async fn rotate(&self) -> Result<bool, StorageError> {
        let mut rotated = false;
        // A second round where another unlock key came meanwhile.
        while let Some(keys) = self.on_disk(DekFile::begin_rotation).await? {
            self.take_over(&keys).await?;
            self.on_disk(DekFile::end_rotation).await?;
            rotated = true;
        }
        Ok(rotated)
    }

    async fn take_over(&self, keys: &DekRing) -> Result<(), StorageError> {
        self.log.rekey(Arc::clone(keys.newest())).await?;
        let newest = Arc::clone(keys.newest());
        self.snapshots.work(move |s| s.rekey(&newest)).await?
    }

    async fn on_disk<T: Send + 'static>(
        &self,
        step: impl FnOnce(&DekFile) -> Result<T, StorageError> + Send + 'static,
    ) -> Result<T, StorageError> {
        let dek = Arc::clone(&self.dek);
        self.snapshots.work(move |_| step(&dek)).await?
    }
}
