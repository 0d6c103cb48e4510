//! What is wrong with a spec, all of it at once.
//!
//! A parser adds each fault to [`Faults`] and goes on, so that an operator sees every bad field in
//! one answer. Values in the texts are shortened: the text travels in a gRPC trailer, which has
//! room for a few KiB only.

use std::time::Duration;

use prost_types as wkt;

use crate::time::duration_from_wire;

/// Most faults one answer names; what is beyond is counted. 20 of about 200 bytes stay below the
/// 8 KiB that HTTP/2 peers commonly accept as headers.
const FAULTS_MAX: usize = 20;

/// Most characters of a given value that a text repeats.
const SHOWN_MAX: usize = 80;

/// All that is wrong with a spec.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
pub struct InvalidSpec(pub Vec<FieldError>);

impl InvalidSpec {
    /// Adds what else is wrong, as far as an answer has room.
    #[must_use]
    pub fn and(mut self, more: impl IntoIterator<Item = FieldError>) -> Self {
        let room = FAULTS_MAX.saturating_sub(self.0.len());
        self.0.extend(more.into_iter().take(room));
        self
    }
}

/// One thing that is wrong with a spec.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {reason}")]
pub struct FieldError {
    /// Path of the field: `task.placement.constraints[0]`.
    pub field: String,
    /// What is wrong and what would be right.
    pub reason: String,
}

/// Collects what is wrong while parsing goes on.
#[derive(Debug, Default)]
pub(crate) struct Faults {
    found: Vec<FieldError>,
    beyond: usize,
}

impl Faults {
    /// Notes one fault.
    pub(crate) fn add(&mut self, field: impl Into<String>, reason: impl Into<String>) {
        if self.found.len() < FAULTS_MAX {
            self.found.push(FieldError {
                field: field.into(),
                reason: reason.into(),
            });
        } else {
            self.beyond += 1;
        }
    }

    /// The value of `result`, or a fault.
    pub(crate) fn take<T, E: std::fmt::Display>(
        &mut self,
        field: impl Into<String>,
        result: Result<T, E>,
    ) -> Option<T> {
        match result {
            Ok(value) => Some(value),
            Err(reason) => {
                self.add(field, reason.to_string());
                None
            }
        }
    }

    /// An enum's value; `names` lists the known ones for the text.
    pub(crate) fn known<E: TryFrom<i32>>(
        &mut self,
        field: impl Into<String>,
        value: i32,
        names: &str,
    ) -> Option<E> {
        let known = E::try_from(value).ok();
        if known.is_none() {
            self.add(field, format!("unknown value {value}; known are {names}"));
        }
        known
    }

    /// A duration; absent is none, negative is a fault.
    pub(crate) fn duration(
        &mut self,
        field: impl Into<String>,
        wire: Option<&wkt::Duration>,
    ) -> Option<Duration> {
        let wire = wire?;
        let duration = duration_from_wire(wire);
        if duration.is_none() {
            self.add(field, "is negative; a duration is zero or more");
        }
        duration
    }

    /// A count that clients compute as a signed number: beyond its range it was negative.
    pub(crate) fn count(&mut self, field: impl Into<String>, value: u64) {
        if let Err(negative) = signed(value) {
            self.add(
                field,
                format!("is negative ({negative}); it must be zero or more"),
            );
        }
    }

    /// `value` when nothing was wrong.
    pub(crate) fn finish<T>(mut self, value: T) -> Result<T, InvalidSpec> {
        if self.found.is_empty() {
            return Ok(value);
        }
        if self.beyond > 0 {
            let reason = format!(
                "{} more faults of the same spec are not listed",
                self.beyond
            );
            self.found.push(FieldError {
                field: "and".to_owned(),
                reason,
            });
        }
        Err(InvalidSpec(self.found))
    }
}

/// The number, or what it was before a client cast it from a negative one.
pub(crate) fn signed(value: u64) -> Result<u64, i64> {
    if i64::try_from(value).is_ok() {
        Ok(value)
    } else {
        Err(value.cast_signed())
    }
}

/// A given text for an error: quoted and shortened.
pub(crate) fn shown(text: &str) -> String {
    if text.chars().count() <= SHOWN_MAX {
        return format!("{text:?}");
    }
    let start: String = text.chars().take(SHOWN_MAX).collect();
    format!("{start:?}…")
}

/// A text expanded on the node, such as `{{.Node.Hostname}}`: its form is known only there.
pub(crate) fn is_template(text: &str) -> bool {
    text.contains("{{")
}

/// An absolute path, of Linux or of Windows (an engine there can join as a worker).
pub(crate) fn is_absolute(path: &str) -> bool {
    let mut chars = path.chars();
    match (chars.next(), chars.next(), chars.next()) {
        (Some('/'), _, _) | (Some('\\'), Some('\\'), _) => true,
        (Some(drive), Some(':'), Some('\\' | '/')) => drive.is_ascii_alphabetic(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_all_faults_up_to_the_limit_and_counts_the_rest() {
        let mut faults = Faults::default();
        for i in 0..FAULTS_MAX + 3 {
            faults.add(format!("f[{i}]"), "bad");
        }
        let text = faults.finish(()).unwrap_err().to_string();
        assert!(text.starts_with("f[0]: bad; f[1]: bad"), "{text}");
        assert!(
            text.ends_with("and: 3 more faults of the same spec are not listed"),
            "{text}"
        );
    }

    #[test]
    fn long_values_are_shortened() {
        assert_eq!(shown("a\nb"), r#""a\nb""#);
        assert!(shown(&"ä".repeat(1000)).chars().count() < 100);
    }

    #[test]
    fn absolute_paths() {
        for path in ["/", "/a", r"C:\a", "c:/a", r"\\.\pipe\x"] {
            assert!(is_absolute(path), "{path}");
        }
        for path in ["", "a", "./a", "C:a", ":/", "~/a"] {
            assert!(!is_absolute(path), "{path}");
        }
    }
}
