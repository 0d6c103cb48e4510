//! Encryption at rest of the log and the snapshots.
//!
//! One data encryption key (DEK), 256 bits from the operating system, lies beside the log in `dek`,
//! mode 0600. It seals nothing itself: each opening of the log and each snapshot file draws a
//! random 256-bit salt and derives a key of its own by HKDF-SHA-256. Under a derived key the
//! AES-256-GCM nonce is a counter from zero, so no pair of key and nonce ever repeats: not after a
//! crash, and not when a state directory is restored from an older copy, because the salt is new.
//! (Random 96-bit nonces under one key would be bounded by 2^32 records, which a busy log reaches
//! in days.) The associated data of every record is its place, so records can't be swapped.
//!
//! The first line of `dek` says how the key is protected. Today that is `plain`; autolock will
//! write another word and seal the key by a KEK, and an older swarmd then says it is locked.

use std::path::Path;

use base64::Engine as _;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, MAX_TAG_LEN, Nonce, UnboundKey};
use ring::rand::{SecureRandom as _, SystemRandom};
use ring::{digest, hkdf};
use zeroize::{Zeroize as _, Zeroizing};

use super::disk::Disk;
use super::error::StorageError;

/// Bytes of a key and of a salt.
pub(crate) const KEY_LEN: usize = 32;
/// Bytes that sealing adds.
pub(crate) const TAG_LEN: usize = MAX_TAG_LEN;

const DEK_MAGIC: &str = "swarm-raft-dek-1";
const DEK_PLAIN: &str = "plain";

/// A random number that must not repeat, from which a key is derived.
pub(crate) type Salt = [u8; KEY_LEN];

/// The data encryption key.
pub(crate) struct Dek(Zeroizing<[u8; KEY_LEN]>);

impl Dek {
    pub(crate) fn generate() -> Result<Self, StorageError> {
        Ok(Self(Zeroizing::new(random()?)))
    }

    /// Writes the key to a file that does not exist yet, mode 0600.
    pub(crate) fn write_new(&self, disk: &Disk, path: &Path) -> Result<(), StorageError> {
        let mut encoded = base64::engine::general_purpose::STANDARD.encode(*self.0);
        let text = Zeroizing::new(format!(
            "{DEK_MAGIC} {DEK_PLAIN}\n{encoded}\n{}\n",
            checksum(&encoded)
        ));
        encoded.zeroize();
        disk.write_new(path, text.as_bytes())
    }

    /// Reads the key; any truncation or flipped bit in the file is found by its checksum.
    pub(crate) fn read(disk: &Disk, path: &Path) -> Result<Self, StorageError> {
        let bytes = Zeroizing::new(disk.read(path)?);
        let damaged = |problem: &str| StorageError::damaged(path, "data encryption key", problem);
        let text = std::str::from_utf8(&bytes).map_err(|_| damaged("not text"))?;
        let mut lines = text.lines();
        let header = lines.next().unwrap_or_default();
        let (magic, protection) = header
            .split_once(' ')
            .ok_or_else(|| damaged("no header line"))?;
        if magic != DEK_MAGIC {
            return Err(damaged("unknown header line"));
        }
        if protection != DEK_PLAIN {
            return Err(StorageError::Locked {
                key: path.to_owned(),
                protection: protection.to_owned(),
            });
        }
        let encoded = lines.next().unwrap_or_default();
        let sum = lines.next().unwrap_or_default();
        if sum != checksum(encoded) {
            return Err(damaged("checksum mismatch"));
        }
        let mut key = Zeroizing::new([0; KEY_LEN]);
        let decoded = base64::engine::general_purpose::STANDARD.decode_slice(encoded, &mut *key);
        match decoded {
            Ok(KEY_LEN) => Ok(Self(key)),
            _ => Err(damaged("not a 256-bit key")),
        }
    }

    /// The key for one opening of the log or one snapshot file.
    pub(crate) fn derive(
        &self,
        salt: &Salt,
        purpose: &'static str,
    ) -> Result<RecordKey, StorageError> {
        let failed = |_| StorageError::Io {
            action: "derive a key from",
            path: "raft/dek".into(),
            source: std::io::Error::other("cryptographic library refused"),
        };
        let prk = hkdf::Salt::new(hkdf::HKDF_SHA256, salt).extract(&*self.0);
        let info = [purpose.as_bytes()];
        let okm = prk.expand(&info, &AES_256_GCM).map_err(failed)?;
        Ok(RecordKey(LessSafeKey::new(UnboundKey::from(okm))))
    }
}

/// Random bytes of the operating system.
pub(crate) fn random() -> Result<[u8; KEY_LEN], StorageError> {
    let mut bytes = [0; KEY_LEN];
    SystemRandom::new()
        .fill(&mut bytes)
        .map_err(|_| StorageError::Io {
            action: "read random bytes from",
            path: "/dev/urandom".into(),
            source: std::io::Error::other("the operating system gave none"),
        })?;
    Ok(bytes)
}

fn checksum(encoded: &str) -> String {
    let sum = digest::digest(&digest::SHA256, encoded.as_bytes());
    let hex: String = sum.as_ref().iter().map(|b| format!("{b:02x}")).collect();
    format!("sha256:{hex}")
}

/// The record does not open: it was changed, moved, or sealed by another key.
#[derive(Debug, thiserror::Error)]
#[error("it does not decrypt: it was changed, moved, or sealed by another key")]
pub(crate) struct NotAuthentic;

/// A derived key. Each `counter` may be used once for sealing; the caller counts.
pub(crate) struct RecordKey(LessSafeKey);

impl RecordKey {
    /// Seals `data` from byte `start` on in place and appends the tag.
    pub(crate) fn seal(
        &self,
        counter: u64,
        place: &[u8],
        data: &mut Vec<u8>,
        start: usize,
    ) -> Result<(), NotAuthentic> {
        let plain = data.get_mut(start..).unwrap_or_default();
        let tag = self
            .0
            .seal_in_place_separate_tag(nonce(counter), Aad::from(place), plain)
            .map_err(|_| NotAuthentic)?;
        data.extend_from_slice(tag.as_ref());
        Ok(())
    }

    /// Opens sealed `data` in place and cuts the tag off.
    pub(crate) fn open(
        &self,
        counter: u64,
        place: &[u8],
        data: &mut Vec<u8>,
    ) -> Result<(), NotAuthentic> {
        let len = self
            .0
            .open_in_place(nonce(counter), Aad::from(place), data)
            .map_err(|_| NotAuthentic)?
            .len();
        data.truncate(len);
        Ok(())
    }
}

fn nonce(counter: u64) -> Nonce {
    let mut bytes = [0; 12];
    bytes[4..].copy_from_slice(&counter.to_be_bytes());
    Nonce::assume_unique_for_key(bytes)
}

impl std::fmt::Debug for Dek {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Dek")
    }
}

impl std::fmt::Debug for RecordKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("RecordKey")
    }
}
