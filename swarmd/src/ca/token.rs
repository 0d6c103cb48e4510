//! Join tokens and unlock keys, in SwarmKit's format.
//!
//! - `SWMTKN-1-<50 characters base36: SHA-256 of the root certificate>-<25 characters base36: 128
//!   random bits>`. The digest lets a joiner recognise the cluster before it says anything; the
//!   secret decides the role.
//! - `SWMKEY-1-<32 bytes, base64 without padding>`.
//!
//! Secrets are wiped from memory when dropped, hidden in `Debug`, compared in constant time, and
//! never quoted in an error.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use ring::hmac;
use ring::rand::SecureRandom as _;
use zeroize::Zeroizing;

use super::root::RootDigest;

const TOKEN_PREFIX: &str = "SWMTKN";
const KEY_PREFIX: &str = "SWMKEY";
const VERSION: &str = "1";
/// What SwarmKit writes there for a cluster that demands FIPS.
const FIPS_VERSION: &str = "2";
/// Characters of a 256-bit number in base 36.
const DIGEST_CHARS: usize = 50;
/// Characters of a 128-bit number in base 36.
const SECRET_CHARS: usize = 25;

/// The system's random source failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the system has no randomness for a secret")]
pub struct NoRandomness;

/// Why a text is not a join token. The text itself is not repeated: it may hold the secret.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "invalid join token: {0}; show the cluster's tokens with `swarmctl cluster inspect default` or \
     `swarmctl cluster join-token worker` on a manager"
)]
pub struct TokenError(pub TokenFault);

/// What is wrong with a join token.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenFault {
    /// No text.
    #[error("it is empty")]
    Empty,
    /// An unlock key was given.
    #[error("this is an unlock key (SWMKEY), not a join token")]
    IsUnlockKey,
    /// Something else was given.
    #[error("it does not begin with SWMTKN-")]
    Prefix,
    /// SwarmKit's format of clusters that demand FIPS 140.
    #[error(
        "it is of a cluster whose nodes have to run in FIPS mode (version 2 of SwarmKit's tokens), which swarmd does not \
         have: it forms no such cluster and joins none"
    )]
    Fips,
    /// A later format.
    #[error("its version is {0:?}, and this swarmd knows version 1 only")]
    Version(String),
    /// Dashes missing or too many.
    #[error(
        "it has {0} parts between dashes where 4 are expected (SWMTKN-1-digest-secret); it may have been cut when copied"
    )]
    Parts(usize),
    /// A part is too short or too long.
    #[error(
        "its {part} has {found} characters where {expected} are expected; it may have been cut when copied"
    )]
    Length {
        /// "root digest" or "secret".
        part: &'static str,
        /// Characters found.
        found: usize,
        /// Characters expected.
        expected: usize,
    },
    /// A part is not base 36.
    #[error("its {part} has a character other than 0-9 and a-z at position {position}")]
    Character {
        /// "root digest" or "secret".
        part: &'static str,
        /// Counted from 1 within the part.
        position: usize,
    },
    /// A part is too great a number.
    #[error("its {0} is out of range; a character may have been mistyped")]
    Range(&'static str),
}

/// What a node shows to join: which cluster it means, and the secret that gives it a role.
#[derive(Clone)]
pub struct JoinToken {
    digest: RootDigest,
    secret: Zeroizing<[u8; 16]>,
}

impl JoinToken {
    /// A token with a new secret for the cluster with this root.
    ///
    /// # Errors
    /// When the system gives no randomness.
    pub fn generate(digest: RootDigest) -> Result<Self, NoRandomness> {
        let mut secret = Zeroizing::new([0; 16]);
        ring::rand::SystemRandom::new()
            .fill(secret.as_mut())
            .map_err(|_| NoRandomness)?;
        Ok(Self { digest, secret })
    }

    /// The root certificate the token pins.
    #[must_use]
    pub const fn digest(&self) -> RootDigest {
        self.digest
    }

    /// The token as text. It is a secret: show it to who asked for it, never log it.
    #[must_use]
    pub fn reveal(&self) -> Zeroizing<String> {
        let digest = encode_base36::<DIGEST_CHARS>(&self.digest.0);
        let secret = Zeroizing::new(encode_base36::<SECRET_CHARS>(self.secret.as_ref()));
        Zeroizing::new(format!(
            "{TOKEN_PREFIX}-{VERSION}-{digest}-{}",
            secret.as_str()
        ))
    }

    /// Whether both pin the same cluster and hold the same secret; takes the same time either way.
    #[must_use]
    pub fn matches(&self, other: &Self) -> bool {
        let secrets = same_bytes(self.secret.as_ref(), other.secret.as_ref());
        secrets & (self.digest == other.digest)
    }
}

/// Compares MACs of the two, which ring does in constant time.
fn same_bytes(a: &[u8], b: &[u8]) -> bool {
    let key = hmac::Key::new(hmac::HMAC_SHA256, b"swarm join token");
    hmac::verify(&key, a, hmac::sign(&key, b).as_ref()).is_ok()
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "JoinToken({}, secret hidden)", self.digest)
    }
}

impl FromStr for JoinToken {
    type Err = TokenError;

    fn from_str(text: &str) -> Result<Self, TokenError> {
        parse_token(text.trim()).map_err(TokenError)
    }
}

fn parse_token(text: &str) -> Result<JoinToken, TokenFault> {
    if text.is_empty() {
        return Err(TokenFault::Empty);
    }
    let mut parts = text.split('-');
    match parts.next() {
        Some(TOKEN_PREFIX) => {}
        Some(KEY_PREFIX) => return Err(TokenFault::IsUnlockKey),
        Some(_) | None => return Err(TokenFault::Prefix),
    }
    match parts.next() {
        Some(VERSION) => {}
        Some(FIPS_VERSION) => return Err(TokenFault::Fips),
        Some(other) => return Err(TokenFault::Version(other.chars().take(8).collect())),
        None => return Err(TokenFault::Parts(1)),
    }
    let rest: Vec<&str> = parts.collect();
    let [digest, secret] = rest.as_slice() else {
        return Err(TokenFault::Parts(rest.len().saturating_add(2)));
    };
    let digest = decode_base36::<32>(digest, "root digest", DIGEST_CHARS)?;
    let secret = Zeroizing::new(decode_base36::<16>(secret, "secret", SECRET_CHARS)?);
    Ok(JoinToken {
        digest: RootDigest(digest),
        secret,
    })
}

/// A big-endian number as exactly `CHARS` base 36 digits.
fn encode_base36<const CHARS: usize>(number: &[u8]) -> String {
    let mut rest = Zeroizing::new(number.to_vec());
    let mut text = [b'0'; CHARS];
    for slot in text.iter_mut().rev() {
        let mut remainder: u32 = 0;
        for byte in rest.iter_mut() {
            let value = (remainder << 8) | u32::from(*byte);
            *byte = u8::try_from(value / 36).unwrap_or(u8::MAX);
            remainder = value % 36;
        }
        *slot = char::from_digit(remainder, 36).map_or(b'0', |c| u8::try_from(c).unwrap_or(b'0'));
    }
    text.iter().copied().map(char::from).collect()
}

/// The inverse: a number of `BYTES` bytes from exactly `chars` digits, lower case only.
fn decode_base36<const BYTES: usize>(
    text: &str,
    part: &'static str,
    chars: usize,
) -> Result<[u8; BYTES], TokenFault> {
    let found = text.chars().count();
    if found != chars {
        return Err(TokenFault::Length {
            part,
            found,
            expected: chars,
        });
    }
    let mut number = [0_u8; BYTES];
    for (index, c) in text.chars().enumerate() {
        let digit = c.to_digit(36).filter(|_| !c.is_ascii_uppercase());
        let mut carry = digit.ok_or(TokenFault::Character {
            part,
            position: index.saturating_add(1),
        })?;
        for byte in number.iter_mut().rev() {
            let value = u32::from(*byte) * 36 + carry;
            *byte = u8::try_from(value & 0xff).unwrap_or(0);
            carry = value >> 8;
        }
        if carry != 0 {
            return Err(TokenFault::Range(part));
        }
    }
    Ok(number)
}

/// Why a text is not an unlock key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum UnlockKeyError {
    /// A join token was given.
    #[error(
        "invalid unlock key: this is a join token (SWMTKN); show the unlock key with `swarmctl cluster unlock-key` on an unlocked manager"
    )]
    IsJoinToken,
    /// Anything else.
    #[error(
        "invalid unlock key: expected SWMKEY-1- and 43 characters of base64; show it with `swarmctl cluster unlock-key` on an unlocked manager"
    )]
    Malformed,
}

/// The key that opens a locked manager.
#[derive(Clone)]
pub struct UnlockKey(Zeroizing<[u8; 32]>);

impl UnlockKey {
    /// A new key.
    ///
    /// # Errors
    /// When the system gives no randomness.
    pub fn generate() -> Result<Self, NoRandomness> {
        let mut key = Zeroizing::new([0; 32]);
        ring::rand::SystemRandom::new()
            .fill(key.as_mut())
            .map_err(|_| NoRandomness)?;
        Ok(Self(key))
    }

    /// A key from its stored bytes; `None` unless they are 32.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        Some(Self(Zeroizing::new(bytes.try_into().ok()?)))
    }

    /// The bytes: for encrypting and for the replicated store.
    #[must_use]
    pub fn expose(&self) -> &[u8; 32] {
        &self.0
    }

    /// The key as text. It is a secret: show it to who asked for it, never log it.
    #[must_use]
    pub fn reveal(&self) -> Zeroizing<String> {
        let key = Zeroizing::new(STANDARD_NO_PAD.encode(self.0.as_ref()));
        Zeroizing::new(format!("{KEY_PREFIX}-{VERSION}-{}", key.as_str()))
    }
}

impl fmt::Debug for UnlockKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("UnlockKey(hidden)")
    }
}

impl FromStr for UnlockKey {
    type Err = UnlockKeyError;

    fn from_str(text: &str) -> Result<Self, UnlockKeyError> {
        let text = text.trim();
        if text.starts_with("SWMTKN-") {
            return Err(UnlockKeyError::IsJoinToken);
        }
        let encoded = text
            .strip_prefix("SWMKEY-1-")
            .ok_or(UnlockKeyError::Malformed)?;
        let bytes = STANDARD_NO_PAD
            .decode(encoded)
            .map_err(|_| UnlockKeyError::Malformed)?;
        Self::from_bytes(&Zeroizing::new(bytes)).ok_or(UnlockKeyError::Malformed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn token(digest: [u8; 32], secret: [u8; 16]) -> JoinToken {
        JoinToken {
            digest: RootDigest(digest),
            secret: Zeroizing::new(secret),
        }
    }

    fn fault(text: &str) -> TokenFault {
        text.parse::<JoinToken>().unwrap_err().0
    }

    proptest! {
        #[test]
        fn tokens_round_trip(digest: [u8; 32], secret: [u8; 16]) {
            let token = token(digest, secret);
            let text = token.reveal();
            prop_assert_eq!(text.len(), 9 + 50 + 1 + 25);
            let parsed: JoinToken = text.parse().unwrap();
            prop_assert!(parsed.matches(&token));
            prop_assert_eq!(parsed.reveal(), text);
        }

        #[test]
        fn a_different_secret_or_root_does_not_match(digest: [u8; 32], secret: [u8; 16], bit in 0_usize..128) {
            let mine = token(digest, secret);
            let (mut other_secret, mut other_digest) = (secret, digest);
            other_secret[bit / 8] ^= 1 << (bit % 8);
            other_digest[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(!mine.matches(&token(digest, other_secret)));
            prop_assert!(!mine.matches(&token(other_digest, secret)));
        }

        #[test]
        fn any_text_is_refused_or_round_trips(text in "(SWMTKN-1-)?[0-9a-z-]{0,90}") {
            if let Ok(token) = text.parse::<JoinToken>() {
                let revealed = token.reveal();
                prop_assert_eq!(revealed.as_str(), text.as_str());
            }
        }

        #[test]
        fn unlock_keys_round_trip(key: [u8; 32]) {
            let key = UnlockKey(Zeroizing::new(key));
            let parsed: UnlockKey = key.reveal().parse().unwrap();
            prop_assert_eq!(parsed.expose(), key.expose());
        }
    }

    #[test]
    fn known_numbers() {
        // Greatest values, computed with Python's int arithmetic.
        let text = token([0xff; 32], [0xff; 16]).reveal();
        assert_eq!(
            text.as_str(),
            "SWMTKN-1-6dp5qcb22im238nr3wvp0ic7q99w035jmy2iw7i6n43d37jtof-f5lxx1zz5pnorynqglhzmsp33"
        );
        let text = token([0; 32], [0; 16]).reveal();
        assert_eq!(
            text.as_str(),
            format!("SWMTKN-1-{}-{}", "0".repeat(50), "0".repeat(25))
        );
    }

    #[test]
    fn every_fault_is_named() {
        let good = token([7; 32], [9; 16]).reveal();
        let (digest, secret) = (&good[9..59], &good[60..]);
        assert_eq!(fault("  "), TokenFault::Empty);
        assert_eq!(fault("hello"), TokenFault::Prefix);
        assert_eq!(fault("SWMKEY-1-abc"), TokenFault::IsUnlockKey);
        assert_eq!(fault("SWMTKN"), TokenFault::Parts(1));
        assert_eq!(
            fault(&format!("SWMTKN-2-1-{digest}-{secret}")),
            TokenFault::Fips
        );
        assert_eq!(
            fault(&format!("SWMTKN-3-{digest}-{secret}")),
            TokenFault::Version("3".into())
        );
        assert_eq!(fault(&format!("SWMTKN-1-{digest}")), TokenFault::Parts(3));
        assert_eq!(fault(&format!("{}-x", good.as_str())), TokenFault::Parts(5));
        assert_eq!(
            fault(&good[..80]),
            TokenFault::Length {
                part: "secret",
                found: 20,
                expected: 25
            }
        );
        assert_eq!(
            fault(&format!("SWMTKN-1-{}-{secret}", &digest[1..])),
            TokenFault::Length {
                part: "root digest",
                found: 49,
                expected: 50
            }
        );
        let upper = secret.to_uppercase();
        assert!(matches!(
            fault(&format!("SWMTKN-1-{digest}-{upper}")),
            TokenFault::Character { part: "secret", .. }
        ));
        assert_eq!(
            fault(&format!("SWMTKN-1-{}-{secret}", "z".repeat(50))),
            TokenFault::Range("root digest")
        );
        let message = good[..80].parse::<JoinToken>().unwrap_err().to_string();
        assert!(message.contains("join-token worker") && !message.contains(&secret[..20]));
        assert!(
            format!(" {}\n", good.as_str()).parse::<JoinToken>().is_ok(),
            "pasted with blanks"
        );
    }

    #[test]
    fn secrets_are_hidden() {
        let token = JoinToken::generate(RootDigest([1; 32])).unwrap();
        assert!(!format!("{token:?}").contains(&token.reveal()[60..]));
        let key = UnlockKey::generate().unwrap();
        assert_eq!(format!("{key:?}"), "UnlockKey(hidden)");
        assert_eq!(
            "SWMTKN-1-x".parse::<UnlockKey>().unwrap_err(),
            UnlockKeyError::IsJoinToken
        );
        assert_eq!(
            "SWMKEY-1-x".parse::<UnlockKey>().unwrap_err(),
            UnlockKeyError::Malformed
        );
    }
}
