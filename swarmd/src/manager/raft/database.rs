//! redb behind an edge: its settings, its errors in our words, its panics caught.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use redb::Database;

use super::disk::{Disk, DiskFile, SimulatedBackend};
use super::error::StorageError;

/// redb's page cache, bytes. Entries are cached above it; this only has to hold the inner pages.
pub(crate) const PAGE_CACHE: usize = 4 << 20;

/// Opens or makes a database.
pub(crate) fn open_database(disk: &Disk, path: &Path) -> Result<Database, StorageError> {
    let mut builder = redb::Builder::new();
    builder.set_cache_size(PAGE_CACHE);
    match disk.open_to_write(path)? {
        DiskFile::Real(file) => builder.create_file(file),
        DiskFile::Simulated(file) => builder.create_with_backend(SimulatedBackend(file)),
    }
    .map_err(|e| fault(path, "open", e))
}

/// redb's errors in ours.
#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "foreign enums that may grow: what is not known means damage or a refusal"
)]
pub(crate) fn fault(
    path: &Path,
    action: &'static str,
    error: impl Into<redb::Error>,
) -> StorageError {
    match error.into() {
        redb::Error::DatabaseAlreadyOpen => StorageError::InUse {
            path: path.to_owned(),
        },
        redb::Error::Io(source) => match source.kind() {
            // redb's word for a file that isn't its own.
            std::io::ErrorKind::InvalidData | std::io::ErrorKind::UnexpectedEof => {
                StorageError::damaged(path, "database", source)
            }
            _ => StorageError::io(action, path)(source),
        },
        redb::Error::UpgradeRequired(found) => StorageError::Format {
            path: path.to_owned(),
            found: format!("redb v{found}"),
            expected: "redb v3",
        },
        other => StorageError::damaged(path, "database", other),
    }
}

/// Runs a reading of the database; a panic of redb over a damaged file becomes an error.
pub(crate) fn guarded<T>(
    path: &Path,
    read: impl FnOnce() -> Result<T, StorageError>,
) -> Result<T, StorageError> {
    catch_unwind(AssertUnwindSafe(read)).unwrap_or_else(|panic| {
        let text = panic
            .downcast_ref::<String>()
            .map(String::as_str)
            .or_else(|| panic.downcast_ref::<&str>().copied())
            .unwrap_or("no message");
        Err(StorageError::damaged(
            path,
            "database",
            format!("its structure is broken ({text})"),
        ))
    })
}
