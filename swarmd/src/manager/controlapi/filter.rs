//! List filters: within one kind any may match, across kinds all must; labels must all match.

use std::collections::BTreeMap;

/// The filters every kind of object has.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Common<'a> {
    /// Exact names.
    pub(crate) names: &'a [String],
    /// Prefixes of names.
    pub(crate) name_prefixes: &'a [String],
    /// Prefixes of ids.
    pub(crate) id_prefixes: &'a [String],
    /// Labels that must be there; an empty value asks for the key alone.
    pub(crate) labels: Option<&'a BTreeMap<String, String>>,
}

impl Common<'_> {
    /// Whether an object passes.
    pub(crate) fn pass(
        &self,
        id: &impl ToString,
        name: &str,
        labels: &BTreeMap<String, String>,
    ) -> bool {
        any_of(self.names, |n| n.eq_ignore_ascii_case(name))
            && any_of(self.name_prefixes, |p| {
                name.to_lowercase().starts_with(&p.to_lowercase())
            })
            && (self.id_prefixes.is_empty() || {
                let id = id.to_string();
                any_of(self.id_prefixes, |p| id.starts_with(p.as_str()))
            })
            && self.labels.is_none_or(|wanted| has_labels(labels, wanted))
    }
}

/// True when there is no filter, or one of its values matches.
pub(crate) fn any_of<T>(wanted: &[T], matches: impl Fn(&T) -> bool) -> bool {
    wanted.is_empty() || wanted.iter().any(matches)
}

/// Whether all wanted labels are there.
pub(crate) fn has_labels(
    labels: &BTreeMap<String, String>,
    wanted: &BTreeMap<String, String>,
) -> bool {
    wanted.iter().all(|(key, value)| {
        labels
            .get(key)
            .is_some_and(|v| value.is_empty() || v == value)
    })
}
