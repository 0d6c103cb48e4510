//! What a writer is told: read once, when it starts, from a file beside the container's others.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use swarm_proto::log_driver::{Details, FileLimit, LogDriver, Tag, TagField};

/// What each entry of the journal says of itself.
const ENTRY_FIELDS: [&str; 3] = ["MESSAGE", "PRIORITY", "CONTAINER_PARTIAL_MESSAGE"];

/// Where the output of one container goes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Target {
    /// Files of JSON lines, as Docker's.
    Files {
        /// The current one; older ones have `.1`, `.2` and so on behind it.
        path: PathBuf,
        /// Bytes of one file; none is without limit.
        size: Option<u64>,
        /// Files in all.
        files: u32,
        /// Said in each line, under `attrs`.
        attrs: BTreeMap<String, String>,
    },
    /// systemd's journal.
    Journal {
        /// Its socket for entries.
        socket: PathBuf,
        /// Fields of each entry.
        fields: BTreeMap<String, String>,
    },
    /// Nowhere: read, so that the container can go on writing.
    Nowhere,
}

/// What can be said of a container.
#[derive(Debug)]
pub struct Container<'a> {
    /// Its id, which is its task's.
    pub id: &'a str,
    /// Its task's name.
    pub name: &'a str,
    /// Its image, as the service names it.
    pub image: &'a str,
    /// Its labels.
    pub labels: &'a BTreeMap<String, String>,
    /// Its environment, as `NAME=VALUE`.
    pub env: &'a [String],
}

/// Characters of an id that are enough to tell it from others, as Docker shows it.
const SHORT_ID: usize = 12;

impl Target {
    /// What a driver makes of a container whose files lie at `path` and its older ones beside it.
    #[must_use]
    pub fn new(driver: &LogDriver, container: &Container<'_>, path: &Path, journal: &Path) -> Self {
        match driver {
            LogDriver::Files { limit, details } => {
                let FileLimit { size, files } = *limit;
                let mut attrs = container.details(details);
                if let Some(tag) = &details.tag {
                    attrs.insert("tag".to_owned(), container.expand(tag));
                }
                Self::Files {
                    path: path.to_owned(),
                    size,
                    files,
                    attrs,
                }
            }
            LogDriver::Journald(details) => Self::Journal {
                socket: journal.to_owned(),
                fields: container.fields(details),
            },
            LogDriver::None => Self::Nowhere,
        }
    }
}

impl Container<'_> {
    fn short_id(&self) -> String {
        self.id.chars().take(SHORT_ID).collect()
    }

    fn expand(&self, tag: &Tag) -> String {
        tag.expand(|field| match field {
            TagField::Id => self.short_id(),
            TagField::FullId => self.id.to_owned(),
            TagField::Name => self.name.to_owned(),
            TagField::ImageName => self.image.to_owned(),
        })
    }

    /// The labels and variables that are asked for and there.
    fn details(&self, details: &Details) -> BTreeMap<String, String> {
        let labels = details.labels.iter().filter_map(|name| {
            let value = self.labels.get(name)?;
            Some((name.clone(), value.clone()))
        });
        let variable = |name: &String| {
            let mut variables = self.env.iter().filter_map(|held| held.split_once('='));
            variables.find_map(|(held, value)| (held == name).then(|| value.to_owned()))
        };
        let env = details
            .env
            .iter()
            .filter_map(|name| variable(name).map(|value| (name.clone(), value)));
        labels.chain(env).collect()
    }

    /// The names that Docker's journald driver gives its fields.
    fn fields(&self, details: &Details) -> BTreeMap<String, String> {
        let tag = self.expand(details.tag.as_ref().unwrap_or(&Tag::id()));
        let ours = [
            ("CONTAINER_ID", self.short_id()),
            ("CONTAINER_ID_FULL", self.id.to_owned()),
            ("CONTAINER_NAME", self.name.to_owned()),
            ("CONTAINER_TAG", tag.clone()),
            ("IMAGE_NAME", self.image.to_owned()),
            ("SYSLOG_IDENTIFIER", tag),
        ];
        let asked = self.details(details).into_iter();
        // An entry's own fields are not a label's to set.
        let mut fields: BTreeMap<String, String> = asked
            .map(|(name, value)| (field_name(&name), value))
            .filter(|(name, _)| !ENTRY_FIELDS.contains(&name.as_str()))
            .collect();
        fields.extend(ours.map(|(name, value)| (name.to_owned(), value)));
        fields
    }
}

/// A name as the journal takes it: capitals, digits and `_`, of which none is the first.
fn field_name(name: &str) -> String {
    let plain = |c: char| match c.to_ascii_uppercase() {
        c @ ('A'..='Z' | '0'..='9') => c,
        _ => '_',
    };
    let name: String = name.chars().map(plain).collect();
    name.trim_start_matches(|c: char| c == '_' || c.is_ascii_digit())
        .to_owned()
}

#[cfg(test)]
mod tests {
    use swarm_proto::{log_driver, pb};

    use super::*;

    fn target(name: &str, options: &[(&str, &str)]) -> Target {
        let driver = pb::Driver {
            name: name.to_owned(),
            options: options
                .iter()
                .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
                .collect(),
        };
        let driver = log_driver::parse("log", Some(&driver)).unwrap();
        let container = Container {
            id: "abcdefghijklmnop",
            name: "web.1.abcdefghijklmnop",
            image: "nginx:1",
            labels: &BTreeMap::from([
                ("com.example.team".to_owned(), "a".to_owned()),
                ("message".to_owned(), "made up".to_owned()),
            ]),
            env: &["STAGE=test=1".to_owned()],
        };
        Target::new(&driver, &container, Path::new("/x.log"), Path::new("/j"))
    }

    #[test]
    fn files_say_what_is_asked_for_and_there() {
        let options = [
            ("labels", "com.example.team,absent"),
            ("env", "STAGE,ABSENT"),
            ("tag", "{{.ImageName}}/{{.ID}}"),
        ];
        let Target::Files { attrs, .. } = target("json-file", &options) else {
            panic!()
        };
        let attrs: Vec<(&str, &str)> = attrs.iter().map(|(k, v)| (&**k, &**v)).collect();
        assert_eq!(
            attrs,
            [
                ("STAGE", "test=1"),
                ("com.example.team", "a"),
                ("tag", "nginx:1/abcdefghijkl"),
            ]
        );
    }

    #[test]
    fn the_journal_knows_the_container_by_dockers_names() {
        let Target::Journal { fields, .. } = target("journald", &[("labels", "com.example.team")])
        else {
            panic!()
        };
        let fields: Vec<(&str, &str)> = fields.iter().map(|(k, v)| (&**k, &**v)).collect();
        assert_eq!(
            fields,
            [
                ("COM_EXAMPLE_TEAM", "a"),
                ("CONTAINER_ID", "abcdefghijkl"),
                ("CONTAINER_ID_FULL", "abcdefghijklmnop"),
                ("CONTAINER_NAME", "web.1.abcdefghijklmnop"),
                ("CONTAINER_TAG", "abcdefghijkl"),
                ("IMAGE_NAME", "nginx:1"),
                ("SYSLOG_IDENTIFIER", "abcdefghijkl"),
            ]
        );
        assert_eq!(field_name("_1a.b"), "A_B");
        let Target::Journal { fields, .. } = target("journald", &[("labels", "message")]) else {
            panic!()
        };
        assert_eq!(fields.get("MESSAGE"), None);
    }
}
