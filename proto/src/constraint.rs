//! Placement constraints: `key==value` and `key!=value`.
//!
//! Comparison is exact, without regard to case; a fact the node lacks counts as empty, so `==` fails
//! and `!=` holds. What SwarmKit accepts and then never matches (an unknown key, an address that is
//! none, a role that does not exist) is an error here.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use crate::invalid::shown;
use crate::pb;
use crate::placement::{NodeFacts, same_arch};

const NODE_LABELS: &str = "node.labels.";
const ENGINE_LABELS: &str = "engine.labels.";

/// One constraint: `key==value` or `key!=value`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Constraint {
    /// Which fact of the node is compared.
    pub key: Key,
    /// `==` or `!=`.
    pub operator: Operator,
    /// What it is compared with: exact, without regard to case.
    pub value: String,
}

/// A fact of a node that a constraint can name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Key {
    /// `node.id`
    Id,
    /// `node.hostname`
    Hostname,
    /// `node.ip`: an address, or a network in CIDR form.
    Ip,
    /// `node.role`: `manager` or `worker`.
    Role,
    /// `node.platform.os`
    Os,
    /// `node.platform.arch`
    Arch,
    /// `node.labels.KEY`: labels given by the operator.
    NodeLabel(String),
    /// `engine.labels.KEY`: labels reported by the node itself.
    EngineLabel(String),
}

/// How a constraint compares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operator {
    /// `==`
    Equal,
    /// `!=`
    NotEqual,
}

/// A text that is no constraint.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidConstraint {
    /// There is no `==` or `!=` in it, or nothing before it.
    #[error("{expression} is not a constraint; write KEY==VALUE or KEY!=VALUE")]
    Form {
        /// The whole expression, shortened.
        expression: String,
    },
    /// The key has characters that keys don't have.
    #[error(
        "{expression}: the key {key} is not a letter or '_' followed by letters, digits, '-', '_' \
         and '.'"
    )]
    KeyForm {
        /// The whole expression, shortened.
        expression: String,
        /// The key, shortened.
        key: String,
    },
    /// Nodes have no such fact.
    #[error(
        "{expression}: there is no key {key}; known are node.id, node.hostname, node.ip, \
         node.role, node.platform.os, node.platform.arch, node.labels.NAME and engine.labels.NAME"
    )]
    UnknownKey {
        /// The whole expression, shortened.
        expression: String,
        /// The key, shortened.
        key: String,
    },
    /// The value has characters that values don't have.
    #[error(
        "{expression}: the value {value} is not one or more letters, digits, spaces and \
         :-_.*()?+[]\\^$|/"
    )]
    ValueForm {
        /// The whole expression, shortened.
        expression: String,
        /// The value, shortened.
        value: String,
    },
    /// No node can have this value.
    #[error("{expression}: {value} is not {expected}")]
    Value {
        /// The whole expression, shortened.
        expression: String,
        /// The value, shortened.
        value: String,
        /// What it should be.
        expected: &'static str,
    },
}

impl FromStr for Constraint {
    type Err = InvalidConstraint;

    fn from_str(text: &str) -> Result<Self, InvalidConstraint> {
        let expression = || shown(text);
        let (key, operator, value) =
            split(text)
                .filter(|(key, ..)| !key.is_empty())
                .ok_or_else(|| InvalidConstraint::Form {
                    expression: expression(),
                })?;
        if !is_key(key) {
            let key = shown(key);
            return Err(InvalidConstraint::KeyForm {
                expression: expression(),
                key,
            });
        }
        let Some(key) = Key::parse(key) else {
            let key = shown(key);
            return Err(InvalidConstraint::UnknownKey {
                expression: expression(),
                key,
            });
        };
        if value.is_empty() || !value.bytes().all(is_value_byte) {
            let value = shown(value);
            return Err(InvalidConstraint::ValueForm {
                expression: expression(),
                value,
            });
        }
        if let Some(expected) = refused_value(&key, value) {
            let value = shown(value);
            return Err(InvalidConstraint::Value {
                expression: expression(),
                value,
                expected,
            });
        }
        Ok(Self {
            key,
            operator,
            value: value.to_owned(),
        })
    }
}

/// Key, operator and value at the first operator.
fn split(text: &str) -> Option<(&str, Operator, &str)> {
    let equal = text.find("==").map(|at| (at, Operator::Equal));
    let not_equal = text.find("!=").map(|at| (at, Operator::NotEqual));
    let (at, operator) = equal
        .into_iter()
        .chain(not_equal)
        .min_by_key(|(at, _)| *at)?;
    Some((text.get(..at)?.trim(), operator, text.get(at + 2..)?.trim()))
}

fn is_key(key: &str) -> bool {
    let first = key.bytes().next();
    first.is_some_and(|b| b.is_ascii_alphabetic() || b == b'_')
        && key
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
}

fn is_value_byte(b: u8) -> bool {
    b.is_ascii_alphanumeric() || b" :-_.*()?+[]\\^$|/".contains(&b)
}

/// What the value should have been, when no node can have it.
fn refused_value(key: &Key, value: &str) -> Option<&'static str> {
    match key {
        Key::Ip if Network::parse(value).is_none() => {
            Some("an address or a network such as 10.0.0.0/24")
        }
        Key::Role if role_of(value).is_none() => Some("a role: manager or worker"),
        Key::Ip | Key::Role | Key::Id | Key::Hostname | Key::Os | Key::Arch => None,
        Key::NodeLabel(_) | Key::EngineLabel(_) => None,
    }
}

fn role_of(value: &str) -> Option<pb::NodeRole> {
    [pb::NodeRole::Worker, pb::NodeRole::Manager]
        .into_iter()
        .find(|role| role.as_str_name().eq_ignore_ascii_case(value))
}

impl Key {
    /// The key of this text; names of labels keep their case, the rest has none.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        if let Some(label) = after_prefix(text, NODE_LABELS) {
            return (!label.is_empty()).then(|| Self::NodeLabel(label.to_owned()));
        }
        if let Some(label) = after_prefix(text, ENGINE_LABELS) {
            return (!label.is_empty()).then(|| Self::EngineLabel(label.to_owned()));
        }
        match text.to_ascii_lowercase().as_str() {
            "node.id" => Some(Self::Id),
            "node.hostname" => Some(Self::Hostname),
            "node.ip" => Some(Self::Ip),
            "node.role" => Some(Self::Role),
            "node.platform.os" => Some(Self::Os),
            "node.platform.arch" => Some(Self::Arch),
            _ => None,
        }
    }

    /// The value of a label key on a node; none for other keys and where the label is missing.
    pub(crate) fn label<'a>(&self, node: &NodeFacts<'a>) -> Option<&'a str> {
        match self {
            Self::NodeLabel(key) => Some(node.spec.annotations.as_ref()?.labels.get(key)?),
            Self::EngineLabel(key) => Some(node.description?.engine.as_ref()?.labels.get(key)?),
            Self::Id | Self::Hostname | Self::Ip | Self::Role | Self::Os | Self::Arch => None,
        }
    }
}

fn after_prefix<'a>(text: &'a str, prefix: &str) -> Option<&'a str> {
    let (start, rest) = text.split_at_checked(prefix.len())?;
    start.eq_ignore_ascii_case(prefix).then_some(rest)
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Id => f.write_str("node.id"),
            Self::Hostname => f.write_str("node.hostname"),
            Self::Ip => f.write_str("node.ip"),
            Self::Role => f.write_str("node.role"),
            Self::Os => f.write_str("node.platform.os"),
            Self::Arch => f.write_str("node.platform.arch"),
            Self::NodeLabel(key) => write!(f, "{NODE_LABELS}{key}"),
            Self::EngineLabel(key) => write!(f, "{ENGINE_LABELS}{key}"),
        }
    }
}

impl fmt::Display for Operator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Equal => "==",
            Self::NotEqual => "!=",
        })
    }
}

impl fmt::Display for Constraint {
    /// The text it was parsed from, without needless spaces.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}{}", self.key, self.operator, self.value)
    }
}

impl Constraint {
    /// Whether the node meets this constraint.
    pub fn holds(&self, node: &NodeFacts<'_>) -> bool {
        let equal = match &self.key {
            Key::Id => self.value.eq_ignore_ascii_case(&node.id.to_string()),
            Key::Hostname => self.is_value(node.description.map_or("", |d| d.hostname.as_str())),
            Key::Ip => self.is_address(node.addr),
            Key::Role => role_of(&self.value) == Some(node.role),
            Key::Os => self.is_value(node.platform().map_or("", |p| p.os.as_str())),
            Key::Arch => {
                let arch = node.platform().map_or("", |p| p.architecture.as_str());
                // Nodes and people write amd64 as well as x86_64.
                same_arch(arch, &self.value)
            }
            Key::NodeLabel(_) | Key::EngineLabel(_) => {
                self.is_value(self.key.label(node).unwrap_or(""))
            }
        };
        match self.operator {
            Operator::Equal => equal,
            Operator::NotEqual => !equal,
        }
    }

    fn is_value(&self, fact: &str) -> bool {
        self.value.eq_ignore_ascii_case(fact)
    }

    fn is_address(&self, addr: &str) -> bool {
        let ip = addr.parse::<IpAddr>().ok();
        let ip = ip.or_else(|| addr.parse::<SocketAddr>().ok().map(|addr| addr.ip()));
        match (ip, Network::parse(&self.value)) {
            (Some(ip), Some(network)) => network.contains(ip),
            (None, _) | (_, None) => false,
        }
    }
}

/// An address and how many of its leading bits count.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Network {
    addr: IpAddr,
    prefix: u8,
}

impl Network {
    /// An address, or an address and prefix length.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (addr, prefix) = match text.split_once('/') {
            Some((addr, prefix)) => (addr, Some(prefix.parse::<u8>().ok()?)),
            None => (text, None),
        };
        let addr = addr.parse::<IpAddr>().ok()?;
        let bits = if addr.is_ipv4() { 32 } else { 128 };
        let prefix = prefix.unwrap_or(bits);
        (prefix <= bits).then_some(Self { addr, prefix })
    }

    /// Whether `ip` has the same leading bits.
    pub(crate) fn contains(&self, ip: IpAddr) -> bool {
        // An IPv4 address in IPv6 clothes is still that address; a prefix is of the family written.
        let ip = if self.addr.is_ipv4() {
            ip.to_canonical()
        } else {
            ip
        };
        let differing = match (self.addr, ip) {
            (IpAddr::V4(a), IpAddr::V4(b)) => (a.to_bits() ^ b.to_bits()).leading_zeros(),
            (IpAddr::V6(a), IpAddr::V6(b)) => (a.to_bits() ^ b.to_bits()).leading_zeros(),
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => return false,
        };
        differing >= u32::from(self.prefix)
    }
}
