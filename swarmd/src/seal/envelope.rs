//! A small secret, sealed for one or more unlock keys.
//!
//! ```text
//! <magic> sealed
//! slot <version> <key id> <salt> <sealed>        one line a key
//! sha256:<checksum of the lines above>
//! ```
//!
//! Each slot holds the whole secret, sealed by AES-256-GCM under a key that HKDF-SHA-256 derives from the unlock key
//! and a salt of the slot's own. A derived key seals once, so its nonce is zero. The key's id, 64 bits of a MAC, tells a
//! wrong key from a damaged file, and the checksum tells both from a truncated one. Neither says anything about a key of
//! 256 random bits.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD as BASE64;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::rand::{SecureRandom as _, SystemRandom};
use ring::{digest, hkdf, hmac};
use zeroize::Zeroizing;

use super::{Kek, SEALED};
use crate::ca::UnlockKey;

/// Bytes of a salt.
const SALT: usize = 32;
/// Bytes of a key's id.
const ID: usize = 8;
/// Keys that one file is sealed for, at most: the old one and the new one.
const SLOTS_MAX: usize = 2;

/// Tells unlock keys apart; says nothing about them.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct KeyId([u8; ID]);

impl KeyId {
    pub(crate) fn of(key: &UnlockKey) -> Self {
        let mac = hmac::Key::new(hmac::HMAC_SHA256, key.expose());
        let tag = hmac::sign(&mac, b"swarm unlock key id");
        let mut id = [0; ID];
        for (to, from) in id.iter_mut().zip(tag.as_ref()) {
            *to = *from;
        }
        Self(id)
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex(&self.0))
    }
}

impl fmt::Debug for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyId({self})")
    }
}

/// Why a file is no sealed secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum EnvelopeError {
    /// Cut short, or changed by accident.
    #[error("checksum mismatch")]
    Checksum,
    /// A line is not what it should be.
    #[error("a line is not a key's slot")]
    Slot,
    /// The key is right and the secret does not open.
    #[error("it does not decrypt, though the unlock key is the right one")]
    NotAuthentic,
    /// Sealing needs randomness.
    #[error("the operating system has no randomness to seal it")]
    NoRandomness,
}

struct Slot {
    version: u64,
    key: KeyId,
    salt: [u8; SALT],
    sealed: Vec<u8>,
}

/// A sealed secret.
pub(crate) struct Envelope {
    magic: &'static str,
    slots: Vec<Slot>,
}

impl Envelope {
    /// Seals for every key. `magic` says what the secret is; one sealed as something else does not open.
    pub(crate) fn seal(
        magic: &'static str,
        secret: &[u8],
        keks: &[Kek],
    ) -> Result<Self, EnvelopeError> {
        let slot = |kek: &Kek| {
            let mut salt = [0; SALT];
            let random = SystemRandom::new().fill(&mut salt);
            random.map_err(|_| EnvelopeError::NoRandomness)?;
            let mut slot = Slot {
                version: kek.version,
                key: kek.id(),
                salt,
                sealed: secret.to_vec(),
            };
            let aad = slot.place(magic);
            let key = slot.derive(&kek.key, magic)?;
            key.seal_in_place_append_tag(nonce(), Aad::from(aad), &mut slot.sealed)
                .map_err(|_| EnvelopeError::NotAuthentic)?;
            Ok(slot)
        };
        let slots = keks.iter().map(slot).collect::<Result<_, _>>()?;
        Ok(Self { magic, slots })
    }

    /// Whether the text is a sealed secret of this kind, going by its first line.
    pub(crate) fn is_one(magic: &str, text: &str) -> bool {
        let line = text.lines().next().unwrap_or_default();
        line.split_once(' ') == Some((magic, SEALED))
    }

    /// Reads what [`Self::text`] wrote.
    pub(crate) fn parse(magic: &'static str, text: &str) -> Result<Self, EnvelopeError> {
        let body = text.strip_suffix('\n').ok_or(EnvelopeError::Checksum)?;
        let (body, sum) = body.rsplit_once('\n').ok_or(EnvelopeError::Checksum)?;
        if sum != checksum(body) {
            return Err(EnvelopeError::Checksum);
        }
        let mut lines = body.lines();
        if !lines.next().is_some_and(|line| Self::is_one(magic, line)) {
            return Err(EnvelopeError::Slot);
        }
        let slots: Vec<Slot> = lines
            .map(|line| Slot::parse(line).ok_or(EnvelopeError::Slot))
            .collect::<Result<_, _>>()?;
        if slots.is_empty() || slots.len() > SLOTS_MAX {
            return Err(EnvelopeError::Slot);
        }
        Ok(Self { magic, slots })
    }

    /// The file's content.
    pub(crate) fn text(&self) -> String {
        let mut body = format!("{} {SEALED}", self.magic);
        for slot in &self.slots {
            body.push_str(&format!(
                "\nslot {} {} {} {}",
                slot.version,
                slot.key,
                BASE64.encode(slot.salt),
                BASE64.encode(&slot.sealed)
            ));
        }
        let sum = checksum(&body);
        format!("{body}\n{sum}\n")
    }

    /// The secret; `None` where it is not sealed for this key.
    pub(crate) fn open(
        &self,
        key: &UnlockKey,
    ) -> Option<Result<Zeroizing<Vec<u8>>, EnvelopeError>> {
        let id = KeyId::of(key);
        let slot = self.slots.iter().find(|slot| slot.key == id)?;
        let open = || {
            let mut secret = Zeroizing::new(slot.sealed.clone());
            let opening = slot.derive(key, self.magic)?;
            let aad = Aad::from(slot.place(self.magic));
            let opened = opening.open_in_place(nonce(), aad, &mut secret);
            let len = opened.map_err(|_| EnvelopeError::NotAuthentic)?.len();
            secret.truncate(len);
            Ok(secret)
        };
        Some(open())
    }

    /// Whether it is sealed for exactly these keys.
    pub(crate) fn is_for(&self, keks: &[Kek]) -> bool {
        self.slots.len() == keks.len() && keks.iter().all(|kek| self.has(kek))
    }

    /// Whether this key opens it.
    pub(crate) fn has(&self, kek: &Kek) -> bool {
        self.slots.iter().any(|slot| slot.key == kek.id())
    }

    /// The newest version of the cluster object that it was sealed at.
    pub(crate) fn version(&self) -> u64 {
        let versions = self.slots.iter().map(|slot| slot.version);
        versions.max().unwrap_or_default()
    }

    /// Which keys it is sealed for, for people.
    pub(crate) fn describe(&self) -> String {
        let of = |slot: &Slot| {
            format!(
                "the cluster's since version {} of its settings (key id {})",
                slot.version, slot.key
            )
        };
        let slots: Vec<String> = self.slots.iter().map(of).collect();
        slots.join(", or ")
    }
}

impl Slot {
    fn parse(line: &str) -> Option<Self> {
        let fields: Vec<&str> = line.split(' ').collect();
        let ["slot", version, key, salt, sealed] = fields.as_slice() else {
            return None;
        };
        Some(Self {
            version: version.parse().ok()?,
            key: KeyId(unhex(key)?),
            salt: BASE64.decode(salt).ok()?.try_into().ok()?,
            sealed: BASE64.decode(sealed).ok()?,
        })
    }

    fn derive(&self, key: &UnlockKey, magic: &str) -> Result<LessSafeKey, EnvelopeError> {
        let prk = hkdf::Salt::new(hkdf::HKDF_SHA256, &self.salt).extract(key.expose());
        let info = [b"swarm kek ".as_slice(), magic.as_bytes()];
        let okm = prk
            .expand(&info, &AES_256_GCM)
            .map_err(|_| EnvelopeError::NotAuthentic)?;
        Ok(LessSafeKey::new(UnboundKey::from(okm)))
    }

    /// What is authenticated beside the secret.
    fn place(&self, magic: &str) -> Vec<u8> {
        let version = self.version.to_be_bytes();
        [magic.as_bytes(), &version, &self.key.0].concat()
    }
}

/// A derived key seals one message.
fn nonce() -> Nonce {
    Nonce::assume_unique_for_key([0; NONCE_LEN])
}

fn checksum(body: &str) -> String {
    let sum = digest::digest(&digest::SHA256, body.as_bytes());
    format!("sha256:{}", hex(sum.as_ref()))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Option<[u8; ID]> {
    let number = u64::from_str_radix(text, 16).ok()?;
    (text.len() == ID * 2).then_some(number.to_be_bytes())
}

impl fmt::Debug for Envelope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Envelope({} for {})", self.magic, self.describe())
    }
}
