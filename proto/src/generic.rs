//! Generic resources as text and on the wire.
//!
//! On the wire a count is one entry, and a set of names is one entry a name.

use std::collections::{BTreeMap, BTreeSet};

use crate::invalid::shown;
use crate::pb;
use crate::pb::generic_resource::Resource;
use crate::resources::Generic;

/// Generic resources that make no sense.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidGeneric {
    /// An entry of the text is not `KIND=COUNT` or `KIND=NAME`.
    #[error(
        "{entry} is not a generic resource; write KIND=COUNT or KIND=NAME, separated by commas"
    )]
    Form {
        /// The entry, shortened.
        entry: String,
    },
    /// An entry of the wire has neither a count nor a name.
    #[error("entry {index} has no kind, or neither count nor name")]
    Empty {
        /// Which entry.
        index: usize,
    },
    /// A count below zero.
    #[error("{kind}: {count} is negative; a count is zero or more")]
    Negative {
        /// The kind, shortened.
        kind: String,
        /// The count.
        count: i64,
    },
    /// Both forms of one kind.
    #[error("{kind} has a count and also names; give one count, or names only")]
    Mixed {
        /// The kind, shortened.
        kind: String,
    },
    /// The same twice.
    #[error("{kind} has {value} twice; give it once")]
    Twice {
        /// The kind, shortened.
        kind: String,
        /// The name, or "a count".
        value: String,
    },
    /// A task that asks for a certain one.
    #[error("{kind}: a task asks for a count, not for names; write {kind}=1")]
    NamesAsked {
        /// The kind, shortened.
        kind: String,
    },
}

type Kinds = BTreeMap<String, Generic>;

fn add_count(kinds: &mut Kinds, kind: &str, count: i64) -> Result<(), InvalidGeneric> {
    let count = u64::try_from(count).map_err(|_| InvalidGeneric::Negative {
        kind: shown(kind),
        count,
    })?;
    match kinds.insert(kind.to_owned(), Generic::Count(count)) {
        None => Ok(()),
        Some(Generic::Count(_)) => Err(InvalidGeneric::Twice {
            kind: shown(kind),
            value: "a count".to_owned(),
        }),
        Some(Generic::Names(_)) => Err(InvalidGeneric::Mixed { kind: shown(kind) }),
    }
}

fn add_name(kinds: &mut Kinds, kind: &str, name: &str) -> Result<(), InvalidGeneric> {
    let names = || Generic::Names(BTreeSet::new());
    match kinds.entry(kind.to_owned()).or_insert_with(names) {
        Generic::Count(_) => Err(InvalidGeneric::Mixed { kind: shown(kind) }),
        Generic::Names(names) => {
            let is_new = names.insert(name.to_owned());
            let twice = || InvalidGeneric::Twice {
                kind: shown(kind),
                value: shown(name),
            };
            is_new.then_some(()).ok_or_else(twice)
        }
    }
}

/// Reads `fpga=2,gpu=UUID1,gpu=UUID2`: a number is a count, anything else a name.
///
/// # Errors
/// Names the entry or kind that makes no sense.
pub fn parse_generic(text: &str) -> Result<BTreeMap<String, Generic>, InvalidGeneric> {
    let mut kinds = Kinds::new();
    if text.trim().is_empty() {
        return Ok(kinds);
    }
    for entry in text.split(',') {
        let pair = entry
            .split_once('=')
            .map(|(kind, value)| (kind.trim(), value.trim()));
        let Some((kind, value)) = pair.filter(|(kind, value)| is_word(kind) && is_word(value))
        else {
            return Err(InvalidGeneric::Form {
                entry: shown(entry),
            });
        };
        match value.parse::<i64>() {
            Ok(count) => add_count(&mut kinds, kind, count)?,
            Err(_) => add_name(&mut kinds, kind, value)?,
        }
    }
    Ok(kinds)
}

fn is_word(text: &str) -> bool {
    !text.is_empty()
        && !text
            .chars()
            .any(|c| c.is_control() || c.is_whitespace() || c == '=')
}

/// Generic resources from the wire.
///
/// # Errors
/// Names the entry or kind that makes no sense.
pub fn generic_from_wire(
    wire: &[pb::GenericResource],
) -> Result<BTreeMap<String, Generic>, InvalidGeneric> {
    let mut kinds = Kinds::new();
    for (index, entry) in wire.iter().enumerate() {
        match &entry.resource {
            Some(Resource::NamedResourceSpec(named))
                if !named.kind.is_empty() && !named.value.is_empty() =>
            {
                add_name(&mut kinds, &named.kind, &named.value)?;
            }
            Some(Resource::DiscreteResourceSpec(counted)) if !counted.kind.is_empty() => {
                add_count(&mut kinds, &counted.kind, counted.value)?;
            }
            Some(Resource::NamedResourceSpec(_) | Resource::DiscreteResourceSpec(_)) | None => {
                return Err(InvalidGeneric::Empty { index });
            }
        }
    }
    Ok(kinds)
}

/// Generic resources on the wire, in the order of kinds and names.
pub fn generic_to_wire(kinds: &BTreeMap<String, Generic>) -> Vec<pb::GenericResource> {
    let mut wire = Vec::new();
    for (kind, generic) in kinds {
        match generic {
            Generic::Count(count) => {
                wire.push(Resource::DiscreteResourceSpec(
                    pb::DiscreteGenericResource {
                        kind: kind.clone(),
                        value: i64::try_from(*count).unwrap_or(i64::MAX),
                    },
                ));
            }
            Generic::Names(names) => wire.extend(names.iter().map(|name| {
                Resource::NamedResourceSpec(pb::NamedGenericResource {
                    kind: kind.clone(),
                    value: name.clone(),
                })
            })),
        }
    }
    wire.into_iter()
        .map(|resource| pb::GenericResource {
            resource: Some(resource),
        })
        .collect()
}

/// What a task asks for: counts only.
///
/// # Errors
/// Names the kind of which names are asked.
pub(crate) fn counts(
    kinds: &BTreeMap<String, Generic>,
) -> Result<BTreeMap<String, u64>, InvalidGeneric> {
    kinds
        .iter()
        .map(|(kind, generic)| match generic {
            Generic::Count(count) => Ok((kind.clone(), *count)),
            Generic::Names(_) => Err(InvalidGeneric::NamesAsked { kind: shown(kind) }),
        })
        .collect()
}
