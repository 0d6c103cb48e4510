//! Encryption at rest of the log and the snapshots.
//!
//! A data encryption key (DEK), 256 bits from the operating system, lies beside the log in `dek`, see `dek_file.rs`.
//! It seals nothing itself: each opening of the log and each snapshot file draws a random 256-bit salt and derives a key
//! of its own by HKDF-SHA-256. Under a derived key the AES-256-GCM nonce is a counter from zero, so no pair of key and
//! nonce ever repeats: not after a crash, and not when a state directory is restored from an older copy, because the
//! salt is new. (Random 96-bit nonces under one key would be bounded by 2^32 records, which a busy log reaches in days.)
//! The associated data of every record is its place, so records can't be swapped.

use std::sync::Arc;

use ring::aead::{AES_256_GCM, Aad, LessSafeKey, MAX_TAG_LEN, Nonce, UnboundKey};
use ring::rand::{SecureRandom as _, SystemRandom};
use ring::{hkdf, hmac};
use zeroize::Zeroizing;

use super::error::StorageError;

/// Bytes of a key and of a salt.
pub(crate) const KEY_LEN: usize = 32;
/// Bytes that sealing adds.
pub(crate) const TAG_LEN: usize = MAX_TAG_LEN;

/// Bytes of a key's id.
pub(crate) const ID_LEN: usize = 8;

/// A random number that must not repeat, from which a key is derived.
pub(crate) type Salt = [u8; KEY_LEN];

/// The data encryption key.
pub(crate) struct Dek(Zeroizing<[u8; KEY_LEN]>);

impl Dek {
    pub(crate) fn generate() -> Result<Self, StorageError> {
        Ok(Self(Zeroizing::new(random()?)))
    }

    /// A key from its stored bytes; `None` unless they are 32.
    pub(crate) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        Some(Self(Zeroizing::new(bytes.try_into().ok()?)))
    }

    /// The bytes, for the key's own file.
    pub(crate) fn expose(&self) -> &[u8; KEY_LEN] {
        &self.0
    }

    /// Tells keys apart; says nothing about them.
    pub(crate) fn id(&self) -> [u8; ID_LEN] {
        let mac = hmac::Key::new(hmac::HMAC_SHA256, &*self.0);
        let tag = hmac::sign(&mac, b"swarm raft dek id");
        let mut id = [0; ID_LEN];
        for (to, from) in id.iter_mut().zip(tag.as_ref()) {
            *to = *from;
        }
        id
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

/// The keys that something on disk may be sealed by: the one that seals, and, while a new one takes over, the one before.
#[derive(Clone, Debug)]
pub(crate) struct DekRing {
    newest: Arc<Dek>,
    older: Option<Arc<Dek>>,
}

impl DekRing {
    pub(crate) fn new(newest: Arc<Dek>, older: Option<Arc<Dek>>) -> Self {
        Self { newest, older }
    }

    /// What is written is sealed by this one.
    pub(crate) fn newest(&self) -> &Arc<Dek> {
        &self.newest
    }

    /// Newest first.
    pub(crate) fn all(&self) -> impl Iterator<Item = &Arc<Dek>> {
        std::iter::once(&self.newest).chain(&self.older)
    }

    /// The key with this id. What names none was written before there were ids, and so by the oldest.
    pub(crate) fn find(&self, id: Option<&[u8]>) -> Option<&Arc<Dek>> {
        match id {
            Some(id) => self.all().find(|dek| dek.id() == id),
            None => self.all().last(),
        }
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
