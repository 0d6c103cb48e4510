//! Typed object ids.
//!
//! An id is 25 characters of base 36 on the wire, as in SwarmKit, and a 128-bit number inside:
//! small, `Copy`, and in the same order as its text, so a prefix is a range. A string becomes an id
//! once, at the edge.

use std::fmt;
use std::marker::PhantomData;
use std::ops::RangeInclusive;
use std::str::FromStr;

/// Characters of an id's text: enough base-36 digits for 128 bits.
pub const ID_LEN: usize = 25;

const DIGITS: &[u8; 36] = b"0123456789abcdefghijklmnopqrstuvwxyz";

/// The id of an object of kind `K`.
// Aligned to 8 bytes, as a pair of words: managers hold hundreds of thousands of objects with several ids each, and
// alignment to 16 pads every one of them.
#[repr(Rust, packed(8))]
pub struct Id<K> {
    raw: u128,
    kind: PhantomData<fn() -> K>,
}

/// Kinds of objects; each names an id type and appears in messages.
pub trait Kind {
    /// The word users know: `service`, `task`.
    const NAME: &'static str;
}

/// Marker types, one per kind of object.
pub mod kind {
    use super::Kind;

    /// Marks ids of clusters.
    #[derive(Debug)]
    pub enum Cluster {}
    /// Marks ids of nodes.
    #[derive(Debug)]
    pub enum Node {}
    /// Marks ids of services.
    #[derive(Debug)]
    pub enum Service {}
    /// Marks ids of tasks.
    #[derive(Debug)]
    pub enum Task {}
    /// Marks ids of networks.
    #[derive(Debug)]
    pub enum Network {}
    /// Marks ids of secrets.
    #[derive(Debug)]
    pub enum Secret {}
    /// Marks ids of configs.
    #[derive(Debug)]
    pub enum Config {}

    impl Kind for Cluster {
        const NAME: &'static str = "cluster";
    }
    impl Kind for Node {
        const NAME: &'static str = "node";
    }
    impl Kind for Service {
        const NAME: &'static str = "service";
    }
    impl Kind for Task {
        const NAME: &'static str = "task";
    }
    impl Kind for Network {
        const NAME: &'static str = "network";
    }
    impl Kind for Secret {
        const NAME: &'static str = "secret";
    }
    impl Kind for Config {
        const NAME: &'static str = "config";
    }
}

/// Names a cluster; the certificates' O.
pub type ClusterId = Id<kind::Cluster>;
/// Names a node; the certificate's CN.
pub type NodeId = Id<kind::Node>;
/// Names a service.
pub type ServiceId = Id<kind::Service>;
/// Names a task.
pub type TaskId = Id<kind::Task>;
/// Names a network.
pub type NetworkId = Id<kind::Network>;
/// Names a secret.
pub type SecretId = Id<kind::Secret>;
/// Names a config.
pub type ConfigId = Id<kind::Config>;

/// A text that is no id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a {kind} id: an id has 25 characters of 0-9 and a-z")]
pub struct InvalidId {
    /// What was given.
    pub text: String,
    /// Which kind of id was expected.
    pub kind: &'static str,
}

impl<K> Id<K> {
    /// An id of the given number. Random ids come from `rand`: `NodeId::from_raw(rng.random())`.
    pub const fn from_raw(raw: u128) -> Self {
        Self {
            raw,
            kind: PhantomData,
        }
    }

    /// The number behind the text.
    pub const fn raw(self) -> u128 {
        self.raw
    }

    /// Sixteen bytes, most significant first: the form in storage.
    pub const fn to_bytes(self) -> [u8; 16] {
        self.raw().to_be_bytes()
    }

    /// The least id; the start of range scans.
    pub const MIN: Self = Self::from_raw(0);
    /// The greatest id; the end of range scans.
    pub const MAX: Self = Self::from_raw(u128::MAX);

    /// All ids whose text starts with `prefix`; none when the prefix holds a character no id has.
    pub fn prefix_range(prefix: &str) -> Option<RangeInclusive<Self>> {
        if prefix.len() > ID_LEN {
            return None;
        }
        let fill = |pad: u8| {
            let bytes = prefix.bytes().chain(std::iter::repeat(pad)).take(ID_LEN);
            let mut raw: u128 = 0;
            for byte in bytes {
                let digit = u128::from(digit(byte)?);
                // Above the greatest id: the range ends there.
                raw = match raw.checked_mul(36).and_then(|r| r.checked_add(digit)) {
                    Some(raw) => raw,
                    None if pad == b'z' => return Some(u128::MAX),
                    None => return None,
                };
            }
            Some(raw)
        };
        Some(Self::from_raw(fill(b'0')?)..=Self::from_raw(fill(b'z')?))
    }
}

impl<K> TryFrom<&[u8]> for Id<K> {
    type Error = std::array::TryFromSliceError;

    fn try_from(bytes: &[u8]) -> Result<Self, Self::Error> {
        Ok(Self::from_raw(u128::from_be_bytes(bytes.try_into()?)))
    }
}

fn digit(byte: u8) -> Option<u8> {
    match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'z' => Some(byte - b'a' + 10),
        _ => None,
    }
}

impl<K: Kind> FromStr for Id<K> {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, InvalidId> {
        let invalid = || InvalidId {
            text: text.chars().take(64).collect(),
            kind: K::NAME,
        };
        if text.len() != ID_LEN {
            return Err(invalid());
        }
        let mut raw: u128 = 0;
        for byte in text.bytes() {
            let digit = digit(byte).ok_or_else(invalid)?;
            raw = raw
                .checked_mul(36)
                .and_then(|r| r.checked_add(u128::from(digit)))
                .ok_or_else(invalid)?;
        }
        Ok(Self::from_raw(raw))
    }
}

impl<K> fmt::Display for Id<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = [b'0'; ID_LEN];
        let mut rest = self.raw;
        for slot in text.iter_mut().rev() {
            // The remainder is below 36, so the index is always inside.
            let index = usize::try_from(rest % 36).unwrap_or(0);
            *slot = DIGITS.get(index).copied().unwrap_or(b'0');
            rest /= 36;
        }
        f.pad(std::str::from_utf8(&text).unwrap_or(""))
    }
}

impl<K: Kind> fmt::Debug for Id<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{self}", K::NAME)
    }
}

// Derives would ask for the same of K, which is only a marker.
impl<K> Clone for Id<K> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<K> Copy for Id<K> {}
impl<K> PartialEq for Id<K> {
    fn eq(&self, other: &Self) -> bool {
        self.raw() == other.raw()
    }
}
impl<K> Eq for Id<K> {}
impl<K> PartialOrd for Id<K> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl<K> Ord for Id<K> {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.raw().cmp(&other.raw())
    }
}
impl<K> std::hash::Hash for Id<K> {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.raw().hash(state);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn text_round_trips_and_keeps_the_order(a: u128, b: u128) {
            let (x, y) = (TaskId::from_raw(a), TaskId::from_raw(b));
            prop_assert_eq!(x.to_string().parse::<TaskId>().unwrap(), x);
            prop_assert_eq!(x.cmp(&y), x.to_string().cmp(&y.to_string()));
        }

        #[test]
        fn a_prefix_is_a_range(a: u128, len in 0usize..=25) {
            let id = TaskId::from_raw(a);
            let text = id.to_string();
            let range = TaskId::prefix_range(&text[..len]).unwrap();
            prop_assert!(range.contains(&id));
        }
    }

    #[test]
    fn refuses_what_is_no_id() {
        for text in [
            "",
            "abc",
            "ABCDEFGHIJKLMNOPQRSTUVWXY",
            "zzzzzzzzzzzzzzzzzzzzzzzzz",
        ] {
            assert!(text.parse::<NodeId>().is_err(), "{text}");
        }
        assert!(TaskId::prefix_range("A").is_none());
        assert!(
            TaskId::prefix_range("zz").is_none(),
            "above the greatest id"
        );
    }
}
