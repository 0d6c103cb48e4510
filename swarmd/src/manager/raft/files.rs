//! Private files that survive a power cut: mode 0600, written beside and renamed.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use super::error::StorageError;

/// Creates a directory only the owner can enter; one that exists is left as it is.
pub(crate) fn create_dir(path: &Path) -> Result<(), StorageError> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(StorageError::io("create directory", path))
}

/// Creates a file only the owner can read. It must not exist.
pub(crate) fn create_file(path: &Path) -> Result<File, StorageError> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .map_err(StorageError::io("create", path))
}

/// Makes names created, renamed or removed in `path` durable.
pub(crate) fn sync_dir(path: &Path) -> Result<(), StorageError> {
    File::open(path)
        .and_then(|dir| dir.sync_all())
        .map_err(StorageError::io("sync directory", path))
}

/// Writes a whole new file durably under a name that does not exist yet.
pub(crate) fn write_new(path: &Path, content: &[u8]) -> Result<(), StorageError> {
    let mut file = create_file(path)?;
    file.write_all(content)
        .and_then(|()| file.sync_all())
        .map_err(StorageError::io("write", path))
}

/// Replaces a file, or makes it: after a power cut the old content is there, or the new one.
pub(crate) fn replace(path: &Path, content: &[u8]) -> Result<(), StorageError> {
    let new = path.with_extension("new");
    remove(&new)?;
    write_new(&new, content)?;
    std::fs::rename(&new, path).map_err(StorageError::io("rename", &new))?;
    path.parent().map_or(Ok(()), sync_dir)
}

/// Removes a file; one that is gone already is fine.
pub(crate) fn remove(path: &Path) -> Result<(), StorageError> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(StorageError::io("remove", path)(e)),
        _ => Ok(()),
    }
}

/// The files of a directory, in name order.
pub(crate) fn list(dir: &Path) -> Result<Vec<PathBuf>, StorageError> {
    let entries = std::fs::read_dir(dir).map_err(StorageError::io("list directory", dir))?;
    let mut paths = Vec::new();
    for entry in entries {
        paths.push(
            entry
                .map_err(StorageError::io("list directory", dir))?
                .path(),
        );
    }
    paths.sort();
    Ok(paths)
}
