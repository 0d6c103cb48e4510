//! Checks of a container's references to secrets and configs.
//!
//! Whether they exist, and under that name, is checked against the store when the change is
//! applied.

use std::collections::BTreeMap;

use crate::invalid::{Faults, shown};
use crate::pb;
use crate::pb::{config_reference, secret_reference};

/// One reference, whichever its kind.
struct Dependency<'a> {
    id: &'a str,
    name: &'a str,
    file: Option<&'a pb::FileTarget>,
    has_target: bool,
}

/// Checks both lists; `field` is the container's path.
pub(crate) fn check(faults: &mut Faults, field: &str, spec: &pb::ContainerSpec) {
    let secrets = spec.secrets.iter().map(|s| {
        let file = s
            .target
            .as_ref()
            .map(|secret_reference::Target::File(file)| file);
        Dependency {
            id: &s.secret_id,
            name: &s.secret_name,
            file,
            has_target: file.is_some(),
        }
    });
    check_list(faults, &format!("{field}.secrets"), secrets);
    let configs = spec.configs.iter().map(|c| {
        let file = match &c.target {
            Some(config_reference::Target::File(file)) => Some(file),
            Some(config_reference::Target::Runtime(_)) | None => None,
        };
        Dependency {
            id: &c.config_id,
            name: &c.config_name,
            file,
            has_target: c.target.is_some(),
        }
    });
    check_list(faults, &format!("{field}.configs"), configs);
}

fn check_list<'a>(
    faults: &mut Faults,
    field: &str,
    dependencies: impl Iterator<Item = Dependency<'a>>,
) {
    let mut files: BTreeMap<&str, &str> = BTreeMap::new();
    for (i, dependency) in dependencies.enumerate() {
        let field = format!("{field}[{i}]");
        if dependency.id.is_empty() || dependency.name.is_empty() {
            faults.add(
                &field,
                "needs both the id and the name of what it refers to",
            );
        }
        if !dependency.has_target {
            faults.add(&field, "has no target; name the file it becomes");
        }
        let Some(file) = dependency.file else {
            continue;
        };
        if file.name.is_empty() {
            faults.add(format!("{field}.file.name"), "is missing; name the file");
        } else if let Some(other) = files.insert(&file.name, dependency.name) {
            faults.add(
                format!("{field}.file.name"),
                format!(
                    "{} is the file of both {} and {}; choose another for one",
                    shown(&file.name),
                    shown(other),
                    shown(dependency.name)
                ),
            );
        }
        check_owner(faults, &format!("{field}.file"), file);
    }
}

fn check_owner(faults: &mut Faults, field: &str, file: &pb::FileTarget) {
    for (name, id) in [("uid", &file.uid), ("gid", &file.gid)] {
        if !id.is_empty() && id.parse::<u32>().is_err() {
            faults.add(
                format!("{field}.{name}"),
                format!("{} is not a number", shown(id)),
            );
        }
    }
    if file.mode & 0o7777 != file.mode {
        faults.add(
            format!("{field}.mode"),
            format!(
                "{:o} is not a file mode; the last is 7777 (octal)",
                file.mode
            ),
        );
    }
}
