//! Names that operators give to objects.
//!
//! A service's, node's, network's or cluster's name becomes part of DNS names, so it has their
//! form. Secrets and configs become files and allow a little more.

use crate::invalid::{Faults, shown};
use crate::pb;

/// Most characters of a name: the length of a DNS label.
pub const NAME_MAX: usize = 63;

/// Most characters of a secret's or config's name.
pub const DATA_NAME_MAX: usize = 64;

/// A text that is no name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidName {
    /// There is none.
    #[error("is missing; give the object a name")]
    Missing,
    /// It is too long.
    #[error("{name} has {len} characters; a name has at most {max}")]
    TooLong {
        /// The name, shortened.
        name: String,
        /// Its length.
        len: usize,
        /// The limit.
        max: usize,
    },
    /// It has other characters than names have.
    #[error(
        "{name} is not a valid name; use letters, digits, '-' and '_', starting and ending with a \
         letter or digit"
    )]
    Form {
        /// The name, shortened.
        name: String,
    },
    /// It has other characters than names of secrets and configs have.
    #[error(
        "{name} is not a valid name; use letters, digits, '-', '_' and '.', starting and ending \
         with a letter or digit"
    )]
    DataForm {
        /// The name, shortened.
        name: String,
    },
}

/// Checks the name of a service, node, network, volume or cluster.
///
/// # Errors
/// Says what is wrong with it and what would be right.
pub fn valid_name(name: &str) -> Result<(), InvalidName> {
    let inner = |b: u8| b == b'-' || b == b'_';
    if !within(name, NAME_MAX)? || !has_form(name, inner) {
        return Err(InvalidName::Form { name: shown(name) });
    }
    Ok(())
}

/// Checks the name of a secret or config.
///
/// # Errors
/// Says what is wrong with it and what would be right.
pub fn valid_data_name(name: &str) -> Result<(), InvalidName> {
    let inner = |b: u8| b == b'-' || b == b'_' || b == b'.';
    if !within(name, DATA_NAME_MAX)? || !has_form(name, inner) {
        return Err(InvalidName::DataForm { name: shown(name) });
    }
    Ok(())
}

/// The form in which names are compared: `Web` and `web` are one name.
pub fn name_key(name: &str) -> String {
    name.to_ascii_lowercase()
}

fn within(name: &str, max: usize) -> Result<bool, InvalidName> {
    let len = name.chars().count();
    if len == 0 {
        return Err(InvalidName::Missing);
    }
    if len > max {
        return Err(InvalidName::TooLong {
            name: shown(name),
            len,
            max,
        });
    }
    Ok(true)
}

fn has_form(name: &str, inner: impl Fn(u8) -> bool) -> bool {
    let edge = |b: Option<u8>| b.is_some_and(|b| b.is_ascii_alphanumeric());
    edge(name.bytes().next())
        && edge(name.bytes().last())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || inner(b))
}

/// The name of an object and its labels' keys, checked by `valid`.
pub(crate) fn parse(
    faults: &mut Faults,
    annotations: Option<&pb::Annotations>,
    valid: fn(&str) -> Result<(), InvalidName>,
) -> String {
    let name = annotations.map(|a| a.name.clone()).unwrap_or_default();
    faults.take("name", valid(&name));
    if let Some(annotations) = annotations {
        labels(faults, "labels", annotations.labels.keys());
    }
    name
}

/// Labels are found by their key, so a key is never empty.
pub(crate) fn labels<'a>(
    faults: &mut Faults,
    field: &str,
    mut keys: impl Iterator<Item = &'a String>,
) {
    if keys.any(|key| key.trim().is_empty()) {
        faults.add(field, "a label has an empty key; write KEY or KEY=VALUE");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for name in ["a", "web", "Web-1", "a_b", "a--b", "0", &"a".repeat(63)] {
            assert_eq!(valid_name(name), Ok(()), "{name}");
            assert_eq!(valid_data_name(name), Ok(()), "{name}");
        }
        for name in ["-a", "a-", "a b", "a.b", "ä", "a/b", "{{x}}", "a\n", "_"] {
            assert!(
                matches!(valid_name(name), Err(InvalidName::Form { .. })),
                "{name}"
            );
        }
        assert_eq!(valid_name(""), Err(InvalidName::Missing));
        assert!(matches!(
            valid_name(&"a".repeat(64)),
            Err(InvalidName::TooLong { .. })
        ));
        assert_eq!(valid_data_name("tls.key"), Ok(()));
        assert!(matches!(
            valid_data_name("a/b"),
            Err(InvalidName::DataForm { .. })
        ));
        assert!(matches!(
            valid_data_name(&"a".repeat(65)),
            Err(InvalidName::TooLong { .. })
        ));
    }
}
