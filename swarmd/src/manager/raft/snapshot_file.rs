//! The format of a snapshot file: sealed chunks, written and read in bounded memory.
//!
//! ```text
//! magic (8 bytes) | salt (32 bytes) | frame*
//! frame = length (u32, little endian) | sealed chunk
//! ```
//!
//! The first chunk is the encoded [`own::RaftSnapshotMeta`], the rest is the state. The key comes
//! from the salt, the nonce is the chunk's number, and whether a chunk is the last is authenticated
//! with it. So every flipped bit, swapped chunk, missing end and added tail is found: the tags are
//! the checksum.

use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use prost::Message as _;
use swarm_proto::own;

use super::disk::{Disk, DiskFile};
use super::encryption::{Dek, KEY_LEN, RecordKey, Salt, TAG_LEN, random};
use super::error::StorageError;
use super::types::SnapshotMeta;
use super::wire;

const MAGIC: &[u8; 8] = b"SWRMSNP1";
const MAGIC_TEXT: &str = "SWRMSNP1";
const PURPOSE: &str = "swarm raft snapshot";
/// Bytes of state in one chunk.
pub(crate) const CHUNK: usize = 256 << 10;
const MORE: &[u8] = b"chunk";
const LAST: &[u8] = b"last chunk";

/// Writes a snapshot; [`SnapshotWriter::finish`] makes it durable.
#[derive(Debug)]
pub(crate) struct SnapshotWriter {
    file: DiskFile,
    path: PathBuf,
    dek: Arc<Dek>,
    key: RecordKey,
    counter: u64,
    buffer: Vec<u8>,
}

impl SnapshotWriter {
    /// Starts a file that does not exist yet.
    pub(crate) fn create(
        disk: &Disk,
        path: &Path,
        (dek, meta): (Arc<Dek>, &SnapshotMeta),
    ) -> Result<Self, StorageError> {
        let salt: Salt = random()?;
        let mut file = disk.create_file(path)?;
        let write = StorageError::io("write", path);
        file.append(MAGIC)
            .and_then(|()| file.append(&salt))
            .map_err(write)?;
        let mut writer = Self {
            file,
            path: path.to_owned(),
            key: dek.derive(&salt, PURPOSE)?,
            dek,
            counter: 0,
            buffer: wire::snapshot_meta(meta).encode_to_vec(),
        };
        writer
            .flush_chunk(MORE)
            .map_err(StorageError::io("write", path))?;
        Ok(writer)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// What it is sealed by.
    pub(crate) fn dek(&self) -> &Arc<Dek> {
        &self.dek
    }

    /// Writes the end and makes the file durable.
    pub(crate) fn finish(mut self) -> Result<DiskFile, StorageError> {
        self.flush_chunk(LAST)
            .and_then(|()| self.file.sync())
            .map_err(StorageError::io("write", &self.path))?;
        Ok(self.file)
    }

    fn flush_chunk(&mut self, place: &[u8]) -> io::Result<()> {
        let mut chunk = std::mem::take(&mut self.buffer);
        self.key
            .seal(self.counter, place, &mut chunk, 0)
            .map_err(io::Error::other)?;
        self.counter += 1;
        let len = u32::try_from(chunk.len()).map_err(io::Error::other)?;
        self.file.append(&len.to_le_bytes())?;
        self.file.append(&chunk)?;
        chunk.clear();
        self.buffer = chunk;
        Ok(())
    }
}

impl Write for SnapshotWriter {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let room = CHUNK.saturating_sub(self.buffer.len());
        let (now, _) = data.split_at(room.min(data.len()));
        self.buffer.extend_from_slice(now);
        if self.buffer.len() >= CHUNK {
            self.flush_chunk(MORE)?;
        }
        Ok(now.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Reads a snapshot's state. Independent of other readers of the same file.
#[derive(Debug)]
pub(crate) struct SnapshotReader {
    file: Arc<DiskFile>,
    path: PathBuf,
    len: u64,
    offset: u64,
    key: RecordKey,
    counter: u64,
    chunk: Vec<u8>,
    read: usize,
}

impl SnapshotReader {
    /// Opens a snapshot and reads its head.
    pub(crate) fn open(
        file: Arc<DiskFile>,
        path: &Path,
        dek: &Dek,
    ) -> Result<(Self, SnapshotMeta), StorageError> {
        let damaged = |problem: &str| StorageError::damaged(path, "snapshot header", problem);
        let len = file.size().map_err(StorageError::io("read", path))?;
        let mut head = [0; MAGIC.len() + KEY_LEN];
        file.read_exact_at(&mut head, 0)
            .map_err(|_| damaged("it is cut short"))?;
        let (magic, salt) = head.split_at(MAGIC.len());
        if magic != MAGIC {
            return Err(StorageError::Format {
                path: path.to_owned(),
                found: String::from_utf8_lossy(magic).into_owned(),
                expected: MAGIC_TEXT,
            });
        }
        let salt: &Salt = salt.try_into().map_err(|_| damaged("it is cut short"))?;
        let mut reader = Self {
            file,
            path: path.to_owned(),
            len,
            offset: head.len() as u64,
            key: dek.derive(salt, PURPOSE)?,
            counter: 0,
            chunk: Vec::new(),
            read: 0,
        };
        reader.next_chunk()?;
        let meta = own::RaftSnapshotMeta::decode(reader.chunk.as_slice())
            .map_err(wire::WireError::from)
            .and_then(wire::parse_snapshot_meta)
            .map_err(|e| damaged(&e.to_string()))?;
        reader.chunk.clear();
        Ok((reader, meta))
    }

    /// The next chunk of state, `None` at the end. Not to be mixed with [`Read`].
    pub(crate) fn take_chunk(&mut self) -> Result<Option<Vec<u8>>, StorageError> {
        if self.offset == self.len {
            return Ok(None);
        }
        self.next_chunk()?;
        Ok(Some(std::mem::take(&mut self.chunk)))
    }

    fn next_chunk(&mut self) -> Result<(), StorageError> {
        let number = self.counter;
        let damaged = |problem: String| {
            StorageError::damaged(&self.path, format!("snapshot chunk {number}"), problem)
        };
        let cut = || damaged("it is cut short".to_owned());
        let mut len = [0; 4];
        self.file
            .read_exact_at(&mut len, self.offset)
            .map_err(|_| cut())?;
        let len = u32::from_le_bytes(len);
        let end = self.offset + 4 + u64::from(len);
        // A length beyond the file is not worth allocating for.
        if end > self.len || (len as usize) < TAG_LEN {
            return Err(cut());
        }
        let mut chunk = vec![0; len as usize];
        self.file
            .read_exact_at(&mut chunk, self.offset + 4)
            .map_err(|_| cut())?;
        let place = if end == self.len { LAST } else { MORE };
        self.key
            .open(self.counter, place, &mut chunk)
            .map_err(|e| damaged(e.to_string()))?;
        self.chunk = chunk;
        self.read = 0;
        self.offset = end;
        self.counter += 1;
        Ok(())
    }
}

impl Read for SnapshotReader {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        while self.read == self.chunk.len() && self.offset < self.len {
            self.next_chunk()?;
        }
        let rest = self.chunk.get(self.read..).unwrap_or_default();
        let count = rest.len().min(out.len());
        let (now, _) = rest.split_at(count);
        out.split_at_mut(count).0.copy_from_slice(now);
        self.read += count;
        Ok(count)
    }
}
