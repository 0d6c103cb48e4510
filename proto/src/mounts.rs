//! What is mounted into a container, and the volume drivers it needs.

use std::collections::BTreeSet;

use crate::invalid::{Faults, is_absolute, is_template, shown};
use crate::pb;
use crate::pb::mount::{BindOptions, Consistency, Type, bind_options::Propagation};

/// The volume driver every node has.
const LOCAL_DRIVER: &str = "local";
/// Longest name of a volume: it is the name of a directory.
const VOLUME_NAME_MAX: usize = 255;

/// Checks all mounts of a container.
pub(crate) fn check(faults: &mut Faults, field: &str, mounts: &[pb::Mount]) {
    let mut targets = BTreeSet::new();
    for (i, mount) in mounts.iter().enumerate() {
        let field = format!("{field}[{i}]");
        // "/a/" and "/a" are one place.
        let target = match mount.target.trim_end_matches('/') {
            "" => mount.target.as_str(),
            trimmed => trimmed,
        };
        if !targets.insert(target) {
            faults.add(
                format!("{field}.target"),
                format!("{} is mounted twice; choose another", shown(target)),
            );
        }
        if !is_template(target) {
            check_target(faults, &format!("{field}.target"), target);
        }
        let _: Option<Consistency> = faults.known(
            format!("{field}.consistency"),
            mount.consistency,
            "DEFAULT, CONSISTENT, CACHED and DELEGATED",
        );
        let kind = faults.known(
            format!("{field}.type"),
            mount.r#type,
            "BIND, VOLUME, TMPFS, NPIPE and CLUSTER",
        );
        if let Some(kind) = kind {
            check_source(faults, &format!("{field}.source"), kind, &mount.source);
            check_options(faults, &field, kind, mount);
        }
    }
}

fn check_target(faults: &mut Faults, field: &str, target: &str) {
    let reason = if !is_absolute(target) {
        "is not an absolute path"
    } else if target == "/" || target.split(['/', '\\']).any(|part| part == "..") {
        "is not below the root; give a path in the container without '..'"
    } else {
        return;
    };
    faults.add(field, format!("{} {reason}", shown(target)));
}

/// A name that can be a directory's on every node.
fn is_volume_name(name: &str) -> bool {
    name.len() <= VOLUME_NAME_MAX
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-'))
}

fn check_source(faults: &mut Faults, field: &str, kind: Type, source: &str) {
    let reason = match kind {
        _ if is_template(source) => return,
        Type::Bind if !is_absolute(source) => "is not an absolute path; a bind mount needs one",
        Type::Volume if is_absolute(source) => {
            "is a path; a volume has a name, or no source for an anonymous one"
        }
        Type::Volume if !source.is_empty() && !is_volume_name(source) => {
            "is not a volume's name; use letters, digits, '_', '.' and '-'"
        }
        Type::Tmpfs if !source.is_empty() => "must be empty; a tmpfs has no source",
        Type::Npipe if source.is_empty() => "is empty; name the pipe",
        Type::Cluster if source.is_empty() => "is empty; name the volume or group:NAME",
        Type::Bind | Type::Volume | Type::Tmpfs | Type::Npipe | Type::Cluster => return,
    };
    faults.add(field, format!("{} {reason}", shown(source)));
}

/// Options of another type would be ignored, so they are refused.
fn check_options(faults: &mut Faults, field: &str, kind: Type, mount: &pb::Mount) {
    let mut foreign = |name: &str, present: bool, own: bool| {
        if present && !own {
            faults.add(
                format!("{field}.{name}"),
                format!("a mount of type {} does not take them", kind.as_str_name()),
            );
        }
    };
    foreign(
        "bind_options",
        mount.bind_options.is_some(),
        kind == Type::Bind,
    );
    foreign(
        "volume_options",
        mount.volume_options.is_some(),
        matches!(kind, Type::Volume | Type::Cluster),
    );
    foreign(
        "tmpfs_options",
        mount.tmpfs_options.is_some(),
        kind == Type::Tmpfs,
    );
    if let Some(options) = &mount.bind_options {
        check_bind(faults, field, options);
    }
    if let Some(options) = &mount.tmpfs_options {
        if options.size_bytes < 0 {
            faults.add(
                format!("{field}.tmpfs_options.size_bytes"),
                "is negative; zero means no limit",
            );
        }
        if options.mode > 0o7777 {
            faults.add(
                format!("{field}.tmpfs_options.mode"),
                format!(
                    "{:o} is not a file mode; the last is 7777 (octal)",
                    options.mode
                ),
            );
        }
    }
    if let Some(options) = &mount.volume_options {
        check_subpath(faults, field, &options.subpath);
    }
}

fn check_bind(faults: &mut Faults, field: &str, options: &BindOptions) {
    let _: Option<Propagation> = faults.known(
        format!("{field}.bind_options.propagation"),
        options.propagation,
        "RPRIVATE, PRIVATE, RSHARED, SHARED, RSLAVE and SLAVE",
    );
    if options.readonlynonrecursive && options.readonlyforcerecursive {
        faults.add(
            format!("{field}.bind_options"),
            "readonlynonrecursive and readonlyforcerecursive exclude each other; keep one",
        );
    }
}

/// A subpath stays inside its volume.
fn check_subpath(faults: &mut Faults, field: &str, subpath: &str) {
    if is_absolute(subpath) || subpath.split(['/', '\\']).any(|part| part == "..") {
        faults.add(
            format!("{field}.volume_options.subpath"),
            format!(
                "{} leaves the volume; give a relative path without '..'",
                shown(subpath)
            ),
        );
    }
}

/// Names of the volume drivers that the mounts need, beyond what every node has.
pub(crate) fn drivers(mounts: &[pb::Mount]) -> impl Iterator<Item = &str> {
    mounts
        .iter()
        .filter(|mount| mount.r#type() == Type::Volume)
        .filter_map(|mount| mount.volume_options.as_ref()?.driver_config.as_ref())
        .map(|driver| driver.name.as_str())
        .filter(|name| !name.is_empty() && *name != LOCAL_DRIVER)
}
