//! Log drivers: what becomes of a container's output, and the options that say how.
//!
//! Docker's names and options, as far as nodes serve them; one reading for managers, which refuse
//! what no node does, and for nodes. Other than Docker's, files are always bounded, unless a service
//! asks for no limit: a container that writes much would fill the disk of its neighbours.

use std::collections::BTreeMap;

use crate::invalid::{Faults, FieldError, shown};
use crate::pb;

/// Size of one file when nothing is said (that of Docker's `local` driver).
const SIZE_DEFAULT: u64 = 20 << 20;
/// Number of files when nothing is said (that of Docker's `local` driver).
const FILES_DEFAULT: u32 = 5;
/// Least size of one file: an entry of Docker's longest line leaves room for others.
const SIZE_MIN: u64 = 64 << 10;
/// Most files of one container.
const FILES_MAX: u32 = 1000;

/// What becomes of the output of a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LogDriver {
    /// Files on the node, one JSON object a line, as Docker's `json-file` writes them.
    Files {
        /// How large they get.
        limit: FileLimit,
        /// What is said beside each line.
        details: Details,
    },
    /// The journal of the node's systemd.
    Journald(Details),
    /// Nowhere.
    None,
}

/// How much of the output is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileLimit {
    /// Bytes of one file; `None` is without limit.
    pub size: Option<u64>,
    /// Files in all, the current one counted.
    pub files: u32,
}

/// What is said of a container beside its output.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Details {
    /// Names of the container's labels.
    pub labels: Vec<String>,
    /// Names of the container's environment variables.
    pub env: Vec<String>,
    /// What the container is called; a template.
    pub tag: Option<Tag>,
}

/// A text with fields of the container: `{{.Name}}/{{.ID}}`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tag(Vec<Part>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Text(String),
    Field(TagField),
}

/// What a tag can say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TagField {
    /// The first twelve characters of the task's id, which is the container's.
    Id,
    /// All of the id.
    FullId,
    /// The task's name.
    Name,
    /// The image as the service names it.
    ImageName,
}

impl Tag {
    /// The first twelve characters of the id: what a container is called when nothing is said.
    #[must_use]
    pub fn id() -> Self {
        Self(vec![Part::Field(TagField::Id)])
    }

    fn parse(text: &str) -> Result<Self, String> {
        let mut parts = Vec::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once("{{") {
            let (action, after) = after.split_once("}}").ok_or("has a {{ without }}")?;
            let field = match action.trim() {
                ".ID" => TagField::Id,
                ".FullID" => TagField::FullId,
                ".Name" => TagField::Name,
                ".ImageName" => TagField::ImageName,
                other => {
                    return Err(format!(
                        "has the unknown field {}; known are .ID, .FullID, .Name and .ImageName",
                        shown(other)
                    ));
                }
            };
            parts.push(Part::Text(before.to_owned()));
            parts.push(Part::Field(field));
            rest = after;
        }
        parts.push(Part::Text(rest.to_owned()));
        parts.retain(|part| *part != Part::Text(String::new()));
        Ok(Self(parts))
    }

    /// The text, with the fields' values.
    #[must_use]
    pub fn expand(&self, value: impl Fn(TagField) -> String) -> String {
        let text = |part: &Part| match part {
            Part::Text(text) => text.clone(),
            Part::Field(field) => value(*field),
        };
        self.0.iter().map(text).collect()
    }
}

/// Whether nodes have a driver of this name; the empty one is the default's.
#[must_use]
pub fn is_served(name: &str) -> bool {
    matches!(name, "" | "json-file" | "local" | "journald" | "none")
}

/// What is wrong with the options of a driver that nodes have; nothing where they have none.
pub(crate) fn check(faults: &mut Faults, field: &str, driver: Option<&pb::Driver>) {
    let Some(driver) = driver.filter(|driver| is_served(&driver.name)) else {
        return;
    };
    for fault in parse(field, Some(driver)).err().unwrap_or_default() {
        faults.add(fault.field, fault.reason);
    }
}

/// Reads a driver; none is the default. `field` is its path, for the errors, which are all told.
///
/// # Errors
/// Every option that is unknown or whose value can't be read.
pub fn parse(field: &str, driver: Option<&pb::Driver>) -> Result<LogDriver, Vec<FieldError>> {
    let empty = pb::Driver::default();
    let driver = driver.unwrap_or(&empty);
    let mut options = Options {
        field,
        driver: &driver.name,
        left: driver
            .options
            .iter()
            .map(|(key, value)| (key.as_str(), value.as_str()))
            .collect(),
        found: Vec::new(),
    };
    let read = match driver.name.as_str() {
        "" | "json-file" | "local" => LogDriver::Files {
            limit: options.limit(),
            details: options.details(),
        },
        "journald" => LogDriver::Journald(options.details()),
        "none" => LogDriver::None,
        name => {
            let reason = unserved(name);
            let field = format!("{field}.name");
            return Err(vec![FieldError { field, reason }]);
        }
    };
    options.finish(read)
}

/// What is said of a driver that no node has.
pub(crate) fn unserved(name: &str) -> String {
    let name = shown(name);
    format!("{name} is not supported; use json-file, local, journald or none")
}

/// The options that are not read yet, and what was wrong with those that are.
struct Options<'a> {
    field: &'a str,
    driver: &'a str,
    left: BTreeMap<&'a str, &'a str>,
    found: Vec<FieldError>,
}

impl Options<'_> {
    fn fault(&mut self, option: &str, reason: String) {
        let field = format!("{}.options[{option}]", self.field);
        self.found.push(FieldError { field, reason });
    }

    fn limit(&mut self) -> FileLimit {
        let mut limit = FileLimit {
            size: Some(SIZE_DEFAULT),
            files: FILES_DEFAULT,
        };
        match self.left.remove("max-size").map(|text| (text, size(text))) {
            None => {}
            Some((_, Ok(size))) => limit.size = size,
            Some((text, Err(reason))) => {
                self.fault("max-size", format!("{} {reason}", shown(text)));
            }
        }
        if let Some(text) = self.left.remove("max-file") {
            match text.parse::<u32>() {
                Ok(files @ 1..=FILES_MAX) => limit.files = files,
                Ok(_) | Err(_) => self.fault(
                    "max-file",
                    format!(
                        "{} is not a number of files from 1 to {FILES_MAX}",
                        shown(text)
                    ),
                ),
            }
        }
        if self.left.remove("compress").is_some_and(|on| on != "false") {
            self.fault(
                "compress",
                "rotated files are not compressed; leave it out".to_owned(),
            );
        }
        limit
    }

    fn details(&mut self) -> Details {
        let names = |text: Option<&str>| -> Vec<String> {
            let names = text.unwrap_or_default().split(',').map(str::trim);
            let names = names.filter(|name| !name.is_empty());
            names.map(str::to_owned).collect()
        };
        let labels = names(self.left.remove("labels"));
        let env = names(self.left.remove("env"));
        let tag = match self.left.remove("tag").map(Tag::parse) {
            None => None,
            Some(Ok(tag)) => Some(tag),
            Some(Err(reason)) => {
                self.fault("tag", reason);
                None
            }
        };
        if self.left.remove("mode").is_some_and(|on| on != "blocking") {
            self.fault(
                "mode",
                "output is never thrown away for speed; leave it out".to_owned(),
            );
        }
        Details { labels, env, tag }
    }

    fn finish(mut self, read: LogDriver) -> Result<LogDriver, Vec<FieldError>> {
        let unknown: Vec<String> = self.left.keys().map(|key| (*key).to_owned()).collect();
        for key in unknown {
            let driver = if self.driver.is_empty() {
                "json-file"
            } else {
                self.driver
            };
            let reason = format!("log driver {driver} has no such option; remove it");
            self.fault(&shown(&key), reason);
        }
        if self.found.is_empty() {
            Ok(read)
        } else {
            Err(self.found)
        }
    }
}

/// A size in bytes, or with the unit `k`, `m` or `g` of 1024; `-1` is without limit.
fn size(text: &str) -> Result<Option<u64>, String> {
    if text == "-1" {
        return Ok(None);
    }
    let lower = text.to_ascii_lowercase();
    let bare = lower.strip_suffix('b').unwrap_or(&lower);
    let (number, shift) = match bare.strip_suffix(['k', 'm', 'g']) {
        Some(number) if bare.ends_with('k') => (number, 10),
        Some(number) if bare.ends_with('m') => (number, 20),
        Some(number) => (number, 30),
        None => (bare, 0),
    };
    let bytes = number
        .parse::<u64>()
        .ok()
        .and_then(|number| number.checked_mul(1 << shift));
    match bytes {
        Some(bytes) if bytes >= SIZE_MIN => Ok(Some(bytes)),
        Some(_) => Err("is too small; give at least 64k".to_owned()),
        None => Err("is not a size; write 20m, 1g, or -1 for no limit".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(name: &str, options: &[(&str, &str)]) -> Result<LogDriver, String> {
        let driver = pb::Driver {
            name: name.to_owned(),
            options: options
                .iter()
                .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
                .collect(),
        };
        parse("log", Some(&driver)).map_err(|found| {
            let texts = found.iter().map(ToString::to_string);
            texts.collect::<Vec<_>>().join("\n")
        })
    }

    fn files(size: Option<u64>, files: u32) -> LogDriver {
        LogDriver::Files {
            limit: FileLimit { size, files },
            details: Details::default(),
        }
    }

    #[test]
    fn files_are_bounded_unless_asked_otherwise() {
        let bounded = files(Some(20 << 20), 5);
        assert_eq!(parse("log", None), Ok(bounded.clone()));
        assert_eq!(read("json-file", &[]), Ok(bounded.clone()));
        assert_eq!(read("local", &[("compress", "false")]), Ok(bounded));
        assert_eq!(
            read("json-file", &[("max-size", "1g"), ("max-file", "1")]),
            Ok(files(Some(1 << 30), 1))
        );
        assert_eq!(read("json-file", &[("max-size", "-1")]), Ok(files(None, 5)));
    }

    #[test]
    fn all_that_is_wrong_is_told() {
        let wrong = [
            ("max-size", "10"),
            ("max-file", "0"),
            ("compress", "true"),
            ("mode", "non-blocking"),
            ("tag", "{{.Nope}}"),
            ("fluentd-address", "x"),
        ];
        assert_eq!(
            read("", &wrong).unwrap_err(),
            "log.options[max-size]: \"10\" is too small; give at least 64k\n\
             log.options[max-file]: \"0\" is not a number of files from 1 to 1000\n\
             log.options[compress]: rotated files are not compressed; leave it out\n\
             log.options[tag]: has the unknown field \".Nope\"; known are .ID, .FullID, .Name and .ImageName\n\
             log.options[mode]: output is never thrown away for speed; leave it out\n\
             log.options[\"fluentd-address\"]: log driver json-file has no such option; remove it"
        );
        assert!(read("syslog", &[]).unwrap_err().starts_with("log.name: "));
        assert!(read("none", &[("max-size", "1m")]).is_err());
        for size in [
            "",
            "m",
            "-2",
            "1t",
            "99999999999999999999g",
            "18446744073709551615g",
        ] {
            assert!(read("local", &[("max-size", size)]).is_err(), "{size}");
        }
    }

    #[test]
    fn tags() {
        let value = |field| match field {
            TagField::Id => "abc".to_owned(),
            TagField::FullId => "abcdef".to_owned(),
            TagField::Name => "web.1".to_owned(),
            TagField::ImageName => "nginx".to_owned(),
        };
        let expand = |text: &str| Tag::parse(text).map(|tag| tag.expand(value));
        assert_eq!(
            expand("{{.Name}}/{{ .FullID }}!").as_deref(),
            Ok("web.1/abcdef!")
        );
        assert_eq!(expand("{{.ImageName}}{{.ID}}").as_deref(), Ok("nginxabc"));
        assert_eq!(expand("plain").as_deref(), Ok("plain"));
        assert!(expand("{{.ID").is_err());
        assert_eq!(Tag::id().expand(value), "abc");
    }

    #[test]
    fn details_name_labels_and_variables() {
        let read = read("journald", &[("labels", "a, b,"), ("env", "HOME")]).unwrap();
        let LogDriver::Journald(details) = read else {
            panic!("{read:?}")
        };
        assert_eq!(details.labels, ["a", "b"]);
        assert_eq!(details.env, ["HOME"]);
        assert_eq!(details.tag, None);
    }
}
