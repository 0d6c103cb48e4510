//! From flags to the wire: parses every value, collects all that is wrong, and builds or changes a
//! `ServiceSpec`. Pure: the client's environment is an argument.
//!
//! Only what can't be right anywhere is refused here (the form of a value); what the cluster allows is
//! the manager's to say.

mod container;
mod edit;
mod mount;
mod placement;
mod policy;
mod port;
mod resources;
mod service;
mod text;
mod value;

use std::fmt;

pub(crate) use edit::{check_update, update};
pub(crate) use policy::wire;
pub(crate) use service::{create, networks};
pub(crate) use text::{KEY, KEY_VALUE, key_values};
pub(crate) use value::{DURATION, SIGNED, UNSIGNED};

/// All that is wrong with a command line.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Problems(Vec<String>);

/// How the values of a flag are read, and how they are explained.
pub(crate) struct Form<T> {
    /// What is accepted, after "give".
    pub(crate) accepted: &'static str,
    /// The value, or what is wrong with the text.
    pub(crate) parse: fn(&str) -> Result<T, String>,
}

impl Problems {
    /// Something wrong that has no form of its own.
    pub(crate) fn push(&mut self, text: impl Into<String>) {
        self.0.push(text.into());
    }

    /// Parses one value; a wrong one is noted.
    pub(crate) fn parse<T>(&mut self, flag: &str, text: &str, form: &Form<T>) -> Option<T> {
        match (form.parse)(text) {
            Ok(value) => Some(value),
            Err(reason) => {
                let accepted = form.accepted;
                self.push(format!(
                    "{flag} {}: {reason}; give {accepted}",
                    quoted(text)
                ));
                None
            }
        }
    }

    /// Parses a flag that may be absent.
    pub(crate) fn optional<T>(
        &mut self,
        flag: &str,
        text: Option<&String>,
        form: &Form<T>,
    ) -> Option<T> {
        text.and_then(|text| self.parse(flag, text, form))
    }

    /// Parses every value of a flag that may be repeated.
    pub(crate) fn each<T>(&mut self, flag: &str, texts: &[String], form: &Form<T>) -> Vec<T> {
        texts
            .iter()
            .filter_map(|text| self.parse(flag, text, form))
            .collect()
    }

    /// `value`, unless something is wrong.
    pub(crate) fn unless_any<T>(self, value: T) -> Result<T, crate::error::Error> {
        if self.0.is_empty() {
            Ok(value)
        } else {
            Err(crate::error::Error::Usage(self))
        }
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("\n"))
    }
}

/// The text itself, in quotes where its borders would not be seen.
fn quoted(text: &str) -> String {
    if text.is_empty() || text.contains(|c: char| c.is_whitespace() || c == ':' || c == ';') {
        format!("{text:?}")
    } else {
        text.to_owned()
    }
}
