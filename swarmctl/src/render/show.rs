//! One object: details for reading, JSON, or a template over the whole object.

use serde_json::Value;

use super::json::printable;
use super::template::Template;
use crate::cli::Showing;
use crate::error::Error;

/// The form of an object, checked before anything is asked.
#[derive(Debug)]
pub(crate) enum Format {
    Details,
    Json,
    Template(Template),
}

impl Format {
    pub(crate) fn of(showing: &Showing) -> Result<Self, Error> {
        match showing.format.as_deref() {
            None | Some("pretty" | "table") => Ok(Self::Details),
            Some("json") => Ok(Self::Json),
            Some(text) => Template::parse(text)
                .map(Self::Template)
                .map_err(Error::Template),
        }
    }
}

/// The objects as one JSON array, as `docker inspect` gives it.
pub(crate) fn json(objects: Vec<Value>) -> String {
    let list = Value::Array(objects.into_iter().map(printable).collect());
    serde_json::to_string_pretty(&list).unwrap_or_default()
}
