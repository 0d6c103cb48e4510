//! The file that holds the data encryption keys, `raft/dek`, mode 0600.
//!
//! ```text
//! swarm-raft-dek-1 plain       the keys in base64, and a checksum
//! swarm-raft-dek-1 sealed      sealed by the cluster's unlock key, see crate::seal
//! ```
//!
//! There is one key, and a second one while a new one takes over (newest first):
//!
//! 1. [`DekFile::begin_rotation`] makes a new key and writes both.
//! 2. From then on log and snapshots are sealed by the new one, and what the old one sealed is sealed anew.
//! 3. [`DekFile::end_rotation`] writes the new one alone.
//!
//! A file that is sealed for an unlock key for the first time wants a new key, because the one in it was open to whoever
//! had the disk, or the unlock key from before. The wish is written with it: a power cut between any two steps is gone
//! on from at the next start.
//!
//! What is inside is the keys, 32 bytes each, and, unless nothing has ever changed, a byte that says whether a new key
//! is wanted and eight with the version of the cluster object at which the file was written.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use ring::digest;
use zeroize::{Zeroize as _, Zeroizing};

use super::disk::Disk;
use super::encryption::{Dek, DekRing, KEY_LEN};
use super::error::StorageError;
use crate::seal::{Envelope, Held, OpenError, Seal};

const MAGIC: &str = "swarm-raft-dek-1";
const PLAIN: &str = "plain";
/// Bytes after the keys.
const NOTE_LEN: usize = 9;

/// The open file.
#[derive(Debug)]
pub(crate) struct DekFile {
    disk: Disk,
    path: PathBuf,
    seal: Seal,
    ring: Mutex<Ring>,
}

/// What is in it.
#[derive(Clone, Debug)]
struct Ring {
    keys: DekRing,
    /// A new key is to take over.
    rotation_wanted: bool,
}

impl DekFile {
    /// Makes a file with a new key at `now`, which must not exist and will be renamed to `path`.
    pub(crate) fn create(
        disk: &Disk,
        (now, path): (&Path, &Path),
        seal: Seal,
    ) -> Result<Self, StorageError> {
        let ring = Ring {
            keys: DekRing::new(Arc::new(Dek::generate()?), None),
            rotation_wanted: false,
        };
        let text = ring.text(path, &seal.hold())?;
        disk.write_new(now, text.as_bytes())?;
        Ok(Self::of((disk, path), seal, ring))
    }

    /// Reads the file; any truncation or flipped bit in it is found.
    ///
    /// # Errors
    /// [`StorageError::Locked`] where it is sealed and no unlock key is at hand, [`StorageError::OtherKey`] where it is
    /// another one.
    pub(crate) fn read(disk: &Disk, path: &Path, seal: Seal) -> Result<Self, StorageError> {
        let (secret, _) = read((disk, path), &mut seal.hold())?;
        let (ring, version) =
            Ring::decode(&secret).ok_or_else(|| damaged(path, "it does not hold 256-bit keys"))?;
        seal.hold().found(version);
        Ok(Self::of((disk, path), seal, ring))
    }

    fn of((disk, path): (&Disk, &Path), seal: Seal, ring: Ring) -> Self {
        Self {
            disk: disk.clone(),
            path: path.to_owned(),
            seal,
            ring: Mutex::new(ring),
        }
    }

    /// The keys.
    pub(crate) fn keys(&self) -> DekRing {
        self.ring().keys.clone()
    }

    /// Brings the file in line with what it is to be sealed for now. Where that is a key that did not open it before, a
    /// new DEK is wanted from now on.
    pub(crate) fn reseal(&self) -> Result<(), StorageError> {
        let mut held = self.seal.hold();
        let (_, sealed) = read((&self.disk, &self.path), &mut held)?;
        let slots = held.slots();
        let (as_wanted, is_new) = match &sealed {
            Some(envelope) => {
                let is_new = slots.iter().any(|kek| !envelope.has(kek));
                (envelope.is_for(slots), is_new)
            }
            None => (slots.is_empty(), !slots.is_empty()),
        };
        if as_wanted {
            return Ok(());
        }
        let mut next = self.ring().clone();
        next.rotation_wanted |= is_new;
        self.replace(&held, next)
    }

    /// Whether a new key is to take over, or does.
    pub(crate) fn rotation_due(&self) -> bool {
        let ring = self.ring();
        ring.rotation_wanted || ring.keys.all().count() > 1
    }

    /// Makes the new key, unless one is about to take over already. Returns the keys while it does; `None` where none is
    /// to.
    pub(crate) fn begin_rotation(&self) -> Result<Option<DekRing>, StorageError> {
        let held = self.seal.hold();
        let mut next = self.ring().clone();
        if next.keys.all().count() > 1 {
            return Ok(Some(next.keys));
        }
        if !next.rotation_wanted {
            return Ok(None);
        }
        let old = Arc::clone(next.keys.newest());
        next.keys = DekRing::new(Arc::new(Dek::generate()?), Some(old));
        next.rotation_wanted = false;
        let keys = next.keys.clone();
        self.replace(&held, next)?;
        Ok(Some(keys))
    }

    /// Nothing is sealed by the old key any more: it goes.
    pub(crate) fn end_rotation(&self) -> Result<(), StorageError> {
        let held = self.seal.hold();
        let mut next = self.ring().clone();
        next.keys = DekRing::new(Arc::clone(next.keys.newest()), None);
        self.replace(&held, next)
    }

    /// The file first: what is in memory is always what a restart would find.
    fn replace(&self, held: &Held<'_>, next: Ring) -> Result<(), StorageError> {
        let text = next.text(&self.path, held)?;
        self.disk.replace(&self.path, text.as_bytes())?;
        *self.ring() = next;
        Ok(())
    }

    fn ring(&self) -> MutexGuard<'_, Ring> {
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the file holds, and how that is sealed.
fn read(
    (disk, path): (&Disk, &Path),
    held: &mut Held<'_>,
) -> Result<(Zeroizing<Vec<u8>>, Option<Envelope>), StorageError> {
    let bytes = Zeroizing::new(disk.read(path)?);
    let text = std::str::from_utf8(&bytes).map_err(|_| damaged(path, "not text"))?;
    let header = text.lines().next().unwrap_or_default();
    let (magic, protection) = header
        .split_once(' ')
        .ok_or_else(|| damaged(path, "no header line"))?;
    if magic != MAGIC {
        return Err(damaged(path, "unknown header line"));
    }
    if Envelope::is_one(MAGIC, text) {
        let envelope = Envelope::parse(MAGIC, text).map_err(|e| damaged(path, e))?;
        let opened = held.open(&envelope).map_err(|error| match error {
            OpenError::Locked => locked(path, protection),
            OpenError::OtherKey(_) => StorageError::OtherKey {
                key: path.to_owned(),
                reason: error.to_string(),
            },
            OpenError::Damaged(problem) => damaged(path, problem),
        })?;
        return Ok((opened, Some(envelope)));
    }
    if protection != PLAIN {
        return Err(locked(path, protection));
    }
    let mut lines = text.lines().skip(1);
    let encoded = lines.next().unwrap_or_default();
    if lines.next().unwrap_or_default() != checksum(encoded) {
        return Err(damaged(path, "checksum mismatch"));
    }
    let decoded = BASE64
        .decode(encoded)
        .map_err(|_| damaged(path, "not base64"))?;
    Ok((Zeroizing::new(decoded), None))
}

fn damaged(path: &Path, problem: impl std::fmt::Display) -> StorageError {
    StorageError::damaged(path, "data encryption key", problem)
}

fn locked(path: &Path, protection: &str) -> StorageError {
    StorageError::Locked {
        key: path.to_owned(),
        protection: protection.to_owned(),
    }
}

impl Ring {
    fn encode(&self, version: u64) -> Zeroizing<Vec<u8>> {
        let mut secret = Zeroizing::new(Vec::with_capacity(2 * KEY_LEN + NOTE_LEN));
        for dek in self.keys.all() {
            secret.extend_from_slice(dek.expose());
        }
        if version > 0 || self.rotation_wanted {
            secret.push(u8::from(self.rotation_wanted));
            secret.extend_from_slice(&version.to_be_bytes());
        }
        secret
    }

    /// The keys and the version.
    fn decode(secret: &[u8]) -> Option<(Self, u64)> {
        let count = secret.len() / KEY_LEN;
        let (keys, note) = secret.split_at_checked(count * KEY_LEN)?;
        let (rotation_wanted, version) = match note.split_first() {
            None => (false, 0),
            Some((wanted, version)) => (*wanted == 1, u64::from_be_bytes(version.try_into().ok()?)),
        };
        let mut keys = keys
            .chunks(KEY_LEN)
            .map(|key| Dek::from_bytes(key).map(Arc::new));
        let newest = keys.next()??;
        let older = match keys.next() {
            Some(older) => Some(older?),
            None => None,
        };
        if keys.next().is_some() {
            return None;
        }
        let keys = DekRing::new(newest, older);
        let ring = Self {
            keys,
            rotation_wanted,
        };
        Some((ring, version))
    }

    fn text(&self, path: &Path, held: &Held<'_>) -> Result<Zeroizing<String>, StorageError> {
        let secret = self.encode(held.version());
        if !held.slots().is_empty() {
            let sealed = Envelope::seal(MAGIC, &secret, held.slots());
            let sealed =
                sealed.map_err(|e| StorageError::io("seal", path)(std::io::Error::other(e)))?;
            return Ok(Zeroizing::new(sealed.text()));
        }
        let mut encoded = BASE64.encode(&*secret);
        let text = format!("{MAGIC} {PLAIN}\n{encoded}\n{}\n", checksum(&encoded));
        encoded.zeroize();
        Ok(Zeroizing::new(text))
    }
}

fn checksum(encoded: &str) -> String {
    let sum = digest::digest(&digest::SHA256, encoded.as_bytes());
    let hex: String = sum.as_ref().iter().map(|b| format!("{b:02x}")).collect();
    format!("sha256:{hex}")
}
