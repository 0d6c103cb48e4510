//! The disk under consensus: private files that survive a power cut, mode 0600, written beside and renamed.
//!
//! It is the real one, or the one of a simulation, which forgets what was not synced, tears what was being written, and is
//! slow or full when it is told to. A simulated disk never blocks: what an operation would cost is said to the
//! [`Process`](crate::process::Process) it is done for.

use std::fmt::Debug;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use redb::StorageBackend;

use super::error::StorageError;

/// Where state lies; a handle, cheap to clone.
#[derive(Clone, Debug, Default)]
pub enum Disk {
    /// The file system.
    #[default]
    Real,
    /// A simulation's.
    Simulated(Arc<dyn SimulatedDisk>),
}

/// The file system of a simulation, as much of it as is needed here.
pub trait SimulatedDisk: Send + Sync + Debug {
    /// Makes a directory and those above it; one that exists is left as it is.
    ///
    /// # Errors
    /// As the system call; so do all others.
    fn create_dir(&self, path: &Path) -> io::Result<()>;
    /// Makes a file that does not exist yet.
    ///
    /// # Errors
    /// When it exists, or there is no room.
    fn create(&self, path: &Path) -> io::Result<Arc<dyn SimulatedFile>>;
    /// Opens a file.
    ///
    /// # Errors
    /// When it does not exist.
    fn open(&self, path: &Path) -> io::Result<Arc<dyn SimulatedFile>>;
    /// What is in a directory, in name order.
    ///
    /// # Errors
    /// When it does not exist.
    fn list(&self, path: &Path) -> io::Result<Vec<PathBuf>>;
    /// Gives a file or a directory another name.
    ///
    /// # Errors
    /// When it does not exist.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Removes a file.
    ///
    /// # Errors
    /// When it does not exist.
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// Removes a directory with what is in it.
    ///
    /// # Errors
    /// When it does not exist.
    fn remove_all(&self, path: &Path) -> io::Result<()>;
    /// Makes the names in a directory durable.
    ///
    /// # Errors
    /// When the disk fails.
    fn sync_dir(&self, path: &Path) -> io::Result<()>;
}

/// A file of a simulation. It outlives its name while it is open.
pub trait SimulatedFile: Send + Sync + Debug {
    /// Its length, bytes.
    ///
    /// # Errors
    /// When the disk fails.
    fn size(&self) -> io::Result<u64>;
    /// Reads exactly so much.
    ///
    /// # Errors
    /// When there is less, or the disk fails.
    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()>;
    /// Writes all of it.
    ///
    /// # Errors
    /// When there is no room, or the disk fails.
    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()>;
    /// Cuts it off, or fills it up with zeros.
    ///
    /// # Errors
    /// When there is no room, or the disk fails.
    fn set_size(&self, size: u64) -> io::Result<()>;
    /// Makes its content durable.
    ///
    /// # Errors
    /// When the disk fails. What was written since the last sync may be lost then.
    fn sync(&self) -> io::Result<()>;
}

/// An open file.
#[derive(Debug)]
pub(crate) enum DiskFile {
    Real(File),
    Simulated(Arc<dyn SimulatedFile>),
}

impl Disk {
    /// Creates a directory only the owner can enter; one that exists is left as it is.
    pub(crate) fn create_dir(&self, path: &Path) -> Result<(), StorageError> {
        match self {
            Self::Real => DirBuilder::new().recursive(true).mode(0o700).create(path),
            Self::Simulated(disk) => disk.create_dir(path),
        }
        .map_err(StorageError::io("create directory", path))
    }

    /// Creates a file only the owner can read. It must not exist.
    pub(crate) fn create_file(&self, path: &Path) -> Result<DiskFile, StorageError> {
        match self {
            Self::Real => OpenOptions::new()
                .read(true)
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(path)
                .map(DiskFile::Real),
            Self::Simulated(disk) => disk.create(path).map(DiskFile::Simulated),
        }
        .map_err(StorageError::io("create", path))
    }

    /// Opens a file to read it.
    pub(crate) fn open(&self, path: &Path) -> Result<DiskFile, StorageError> {
        match self {
            Self::Real => File::open(path).map(DiskFile::Real),
            Self::Simulated(disk) => disk.open(path).map(DiskFile::Simulated),
        }
        .map_err(StorageError::io("open", path))
    }

    /// Opens a file to read and to write it.
    pub(crate) fn open_to_write(&self, path: &Path) -> Result<DiskFile, StorageError> {
        match self {
            Self::Real => OpenOptions::new()
                .read(true)
                .write(true)
                .open(path)
                .map(DiskFile::Real),
            Self::Simulated(disk) => disk.open(path).map(DiskFile::Simulated),
        }
        .map_err(StorageError::io("open", path))
    }

    /// Reads a whole small file.
    pub(crate) fn read(&self, path: &Path) -> Result<Vec<u8>, StorageError> {
        match self {
            Self::Real => std::fs::read(path),
            Self::Simulated(disk) => disk.open(path).and_then(|file| {
                let mut content = vec![0; usize::try_from(file.size()?).unwrap_or(usize::MAX)];
                file.read_at(0, &mut content)?;
                Ok(content)
            }),
        }
        .map_err(StorageError::io("read", path))
    }

    /// Whether there is such a file or directory.
    pub(crate) fn exists(&self, path: &Path) -> bool {
        match self {
            Self::Real => path.exists(),
            Self::Simulated(disk) => disk.open(path).is_ok() || disk.list(path).is_ok(),
        }
    }

    /// Makes names created, renamed or removed in `path` durable.
    pub(crate) fn sync_dir(&self, path: &Path) -> Result<(), StorageError> {
        match self {
            Self::Real => File::open(path).and_then(|dir| dir.sync_all()),
            Self::Simulated(disk) => disk.sync_dir(path),
        }
        .map_err(StorageError::io("sync directory", path))
    }

    /// Writes a whole new file durably under a name that does not exist yet.
    pub(crate) fn write_new(&self, path: &Path, content: &[u8]) -> Result<(), StorageError> {
        let mut file = self.create_file(path)?;
        file.append(content)
            .and_then(|()| file.sync())
            .map_err(StorageError::io("write", path))
    }

    /// Replaces a file, or makes it: after a power cut the old content is there, or the new one.
    pub(crate) fn replace(&self, path: &Path, content: &[u8]) -> Result<(), StorageError> {
        let new = path.with_extension("new");
        self.remove(&new)?;
        self.write_new(&new, content)?;
        self.rename(&new, path)?;
        path.parent().map_or(Ok(()), |dir| self.sync_dir(dir))
    }

    /// Gives a file or a directory another name.
    pub(crate) fn rename(&self, from: &Path, to: &Path) -> Result<(), StorageError> {
        match self {
            Self::Real => std::fs::rename(from, to),
            Self::Simulated(disk) => disk.rename(from, to),
        }
        .map_err(StorageError::io("rename", from))
    }

    /// Removes a file; one that is gone already is fine.
    pub(crate) fn remove(&self, path: &Path) -> Result<(), StorageError> {
        let removed = match self {
            Self::Real => std::fs::remove_file(path),
            Self::Simulated(disk) => disk.remove(path),
        };
        gone(removed).map_err(StorageError::io("remove", path))
    }

    /// Removes a directory with what is in it; one that is gone already is fine.
    pub(crate) fn remove_all(&self, path: &Path) -> Result<(), StorageError> {
        let removed = match self {
            Self::Real => std::fs::remove_dir_all(path),
            Self::Simulated(disk) => disk.remove_all(path),
        };
        gone(removed).map_err(StorageError::io("remove", path))
    }

    /// The files of a directory, in name order; none where there is no such directory.
    pub(crate) fn list(&self, dir: &Path) -> Result<Option<Vec<PathBuf>>, StorageError> {
        let listed = match self {
            Self::Real => list(dir),
            Self::Simulated(disk) => disk.list(dir),
        };
        match listed {
            Ok(paths) => Ok(Some(paths)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(StorageError::io("list directory", dir)(error)),
        }
    }
}

fn gone(removed: io::Result<()>) -> io::Result<()> {
    match removed {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn list(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        paths.push(entry?.path());
    }
    paths.sort();
    Ok(paths)
}

impl DiskFile {
    /// Its length, bytes.
    pub(crate) fn size(&self) -> io::Result<u64> {
        match self {
            Self::Real(file) => Ok(file.metadata()?.len()),
            Self::Simulated(file) => file.size(),
        }
    }

    /// Writes at the end of a file that only this handle writes, and only so.
    pub(crate) fn append(&mut self, data: &[u8]) -> io::Result<()> {
        match self {
            Self::Real(file) => file.write_all(data),
            Self::Simulated(file) => file.write_at(file.size()?, data),
        }
    }

    pub(crate) fn read_exact_at(&self, out: &mut [u8], offset: u64) -> io::Result<()> {
        match self {
            Self::Real(file) => file.read_exact_at(out, offset),
            Self::Simulated(file) => file.read_at(offset, out),
        }
    }

    /// Makes its content durable.
    pub(crate) fn sync(&self) -> io::Result<()> {
        match self {
            Self::Real(file) => file.sync_all(),
            Self::Simulated(file) => file.sync(),
        }
    }
}

/// A simulated file as redb wants it.
#[derive(Debug)]
pub(crate) struct SimulatedBackend(pub(crate) Arc<dyn SimulatedFile>);

impl StorageBackend for SimulatedBackend {
    fn len(&self) -> io::Result<u64> {
        self.0.size()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.0.read_at(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_size(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.sync()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.write_at(offset, data)
    }
}
