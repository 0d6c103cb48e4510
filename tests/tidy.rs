//! The layout's rules, read from the source files: who may import whom, which code is pure, how long a file is.
//!
//! A rule that can be a compiler or clippy lint is one (Cargo.toml, clippy.toml); here is the rest.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// The crates, each with those of ours it may depend on.
const CRATES: [(&str, &[&str]); 8] = [
    ("proto", &[]),
    ("agent-runtime", &["swarm-proto"]),
    ("swarmd", &["swarm-proto", "agent-runtime"]),
    ("swarmd/base2histogram", &[]),
    ("swarmctl", &["swarm-proto"]),
    ("examples/image/web", &[]),
    ("tests/lab", &[]),
    (
        "benches",
        &["swarm-proto", "swarmd", "agent-runtime", "swarm-lab"],
    ),
];
/// The crate that the tests of each may use: it depends on none of ours.
const FOR_TESTS: &str = "swarm-lab";
/// Names of our crates in a Cargo.toml.
const OURS: [&str; 6] = [
    "swarm-proto",
    "agent-runtime",
    "swarmd",
    "swarmctl",
    "example-web",
    "swarm-lab",
];

/// Parts of swarmd, each with those it must not import: they meet in node.rs and over gRPC.
const STRANGERS: [(&str, &[&str]); 3] = [
    (
        "swarmd/src/manager",
        &["crate::agent", "crate::network", "agent_runtime"],
    ),
    ("swarmd/src/agent", &["crate::manager"]),
    ("swarmd/src/network", &["crate::manager", "crate::agent"]),
];

/// Deciding code: it takes the world as arguments.
const PURE: [&str; 9] = [
    "agent-runtime/src/step",
    "swarmd/src/manager/orchestrator",
    "swarmd/src/manager/scheduler",
    "swarmd/src/manager/store/apply",
    "swarmd/src/manager/plan",
    "swarmd/src/manager/renewal",
    "swarmd/src/manager/strangers",
    "swarmd/src/manager/authority",
    "swarmd/src/ca/cfssl",
];
/// What deciding code does not touch.
const WORLD: [&str; 9] = [
    "tokio::",
    "tonic::",
    "std::fs",
    "std::env",
    "std::process",
    "std::thread",
    "std::time::Instant",
    "std::time::SystemTime",
    "rand::rng",
];

/// Longest source file in lines, its tests not counted.
const LINES_MAX: usize = 700;
/// Longest module doc in lines: a map, not a manual.
const DOC_MAX: usize = 40;
/// Names that say nothing about what is inside.
const EMPTY_NAMES: [&str; 6] = ["util", "utils", "helper", "helpers", "common", "misc"];

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Files below `directory` with the extension, as paths relative to the workspace, sorted.
fn files(directory: &str, extension: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![root().join(directory)];
    while let Some(directory) = open.pop() {
        for entry in fs::read_dir(&directory)
            .unwrap_or_else(|error| panic!("{}: {error}", directory.display()))
        {
            let path = entry.unwrap().path();
            if path.is_dir() {
                open.push(path);
            } else if path.extension().is_some_and(|found| found == extension) {
                found.push(path.strip_prefix(root()).unwrap().to_owned());
            }
        }
    }
    found.sort();
    found
}

fn text(path: &Path) -> String {
    fs::read_to_string(root().join(path))
        .unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Source files of the crates that are shipped, and of the lab.
fn sources() -> Vec<PathBuf> {
    CRATES
        .iter()
        .flat_map(|(name, _)| files(&format!("{name}/src"), "rs"))
        .collect()
}

/// Unit tests kept beside their module, and integration tests.
fn is_test_file(path: &Path) -> bool {
    let stem = path.file_stem().unwrap().to_string_lossy();
    let integration = path.components().any(|part| part.as_os_str() == "tests");
    stem == "tests" || stem.ends_with("_tests") || integration && !path.starts_with("tests/lab/src")
}

/// The lines before the unit tests, numbered from 1.
fn shipped(text: &str) -> Vec<(usize, &str)> {
    let lines: Vec<(usize, &str)> = text
        .lines()
        .enumerate()
        .map(|(at, line)| (at + 1, line))
        .collect();
    let end = lines
        .windows(2)
        .position(|pair| pair[0].1 == "#[cfg(test)]" && pair[1].1.starts_with("mod tests"))
        .unwrap_or(lines.len());
    lines[..end].to_vec()
}

/// Shipped lines without comments.
fn code(text: &str) -> Vec<(usize, &str)> {
    let mut lines = shipped(text);
    lines.retain(|(_, line)| !line.trim_start().starts_with("//"));
    lines
}

#[track_caller]
fn none(rule: &str, found: &[String]) {
    assert!(found.is_empty(), "{rule}:\n  {}", found.join("\n  "));
}

#[test]
fn crates_depend_on_each_other_in_one_direction() {
    let mut found = Vec::new();
    for (name, allowed) in CRATES {
        let manifest = text(&PathBuf::from(name).join("Cargo.toml"));
        let for_tests = [allowed, &[FOR_TESTS]].concat();
        for (section, allowed) in [
            ("dependencies", allowed),
            ("dev-dependencies", for_tests.as_slice()),
        ] {
            found.extend(
                dependencies(&manifest, section)
                    .filter(|dependency| OURS.contains(dependency) && !allowed.contains(dependency))
                    .map(|dependency| format!("{name} -> {dependency} in its {section}")),
            );
        }
    }
    none("a crate depends on one it must not know", &found);
}

/// Names of the crates in a section of a Cargo.toml.
fn dependencies<'a>(manifest: &'a str, section: &str) -> impl Iterator<Item = &'a str> {
    let (_, rest) = manifest
        .split_once(&format!("\n[{section}]\n"))
        .unwrap_or_default();
    let section = rest.split("\n[").next().unwrap_or_default();
    section
        .lines()
        .filter_map(|line| line.split(['.', ' ', '=']).next())
}

#[test]
fn parts_of_swarmd_meet_over_grpc_only() {
    let mut found = Vec::new();
    for path in files("swarmd/src", "rs") {
        let forbidden: Vec<&str> = STRANGERS
            .iter()
            .filter(|(part, _)| path.starts_with(part))
            .flat_map(|(_, names)| *names)
            .copied()
            .collect();
        for (number, line) in code(&text(&path)) {
            if let Some(name) = forbidden.iter().find(|name| mentions(line, name)) {
                found.push(format!("{}:{number}: {name}", path.display()));
            }
        }
    }
    none(
        "a part of swarmd imports one that it meets over gRPC",
        &found,
    );
}

/// True when the line has the path as a whole: `crate::agent` is not in `crate::agents`.
fn mentions(line: &str, path: &str) -> bool {
    line.match_indices(path).any(|(at, _)| {
        !line[at + path.len()..].starts_with(|next: char| next.is_alphanumeric() || next == '_')
    })
}

#[test]
fn deciding_code_does_not_touch_the_world() {
    let mut found = Vec::new();
    let mut files_of: BTreeMap<&str, usize> = PURE.iter().map(|part| (*part, 0)).collect();
    for path in sources().iter().filter(|path| !is_test_file(path)) {
        let name = path.to_string_lossy();
        let Some(part) = PURE.iter().find(|part| {
            name.strip_prefix(**part)
                .is_some_and(|rest| rest == ".rs" || rest.starts_with('/'))
        }) else {
            continue;
        };
        *files_of.entry(part).or_default() += 1;
        for (number, line) in code(&text(path)) {
            found.extend(
                WORLD
                    .iter()
                    .filter(|name| line.contains(**name))
                    .map(|name| format!("{}:{number}: {name}", path.display())),
            );
        }
    }
    none("deciding code touches the world", &found);
    let gone: Vec<String> = files_of
        .iter()
        .filter(|(_, count)| **count == 0)
        .map(|(part, _)| format!("{part}: no such file"))
        .collect();
    none("the list of deciding code is out of date", &gone);
}

#[test]
fn a_file_holds_one_concept() {
    let mut found = Vec::new();
    for path in sources().into_iter().filter(|path| !is_test_file(path)) {
        let lines = shipped(&text(&path)).len();
        if lines > LINES_MAX {
            found.push(format!(
                "{}: {lines} lines, at most {LINES_MAX}",
                path.display()
            ));
        }
        let stem = path.file_stem().unwrap().to_string_lossy().into_owned();
        if EMPTY_NAMES.contains(&stem.as_str()) {
            found.push(format!("{}: the name says nothing", path.display()));
        }
    }
    none("a file is too long or has an empty name", &found);
}

#[test]
fn every_module_begins_with_its_map() {
    let mut found = Vec::new();
    let shipped = sources().into_iter().filter(|path| !is_test_file(path));
    for path in shipped.chain(files("tests", "rs")) {
        let text = text(&path);
        match text
            .lines()
            .take_while(|line| line.starts_with("//!"))
            .count()
        {
            0 => found.push(format!("{}: no module doc", path.display())),
            lines if lines > DOC_MAX => {
                found.push(format!("{}: module doc of {lines} lines", path.display()))
            }
            _ => {}
        }
    }
    none("a module has no map, or one that is too long", &found);
}

#[test]
fn every_queue_has_a_limit() {
    let mut found = Vec::new();
    for path in sources() {
        for (number, line) in code(&text(&path)) {
            if line.contains("unbounded_channel")
                || line.contains("mpsc::channel()")
                || line.contains("unbounded()")
            {
                found.push(format!("{}:{number}", path.display()));
            }
        }
    }
    none("a queue has no limit", &found);
}

#[test]
fn a_todo_names_its_issue() {
    let mut found = Vec::new();
    for path in sources()
        .into_iter()
        .chain(files("tests", "rs"))
        .filter(|path| !path.ends_with("tidy.rs"))
    {
        for (number, line) in text(&path).lines().enumerate() {
            let unnamed = line.contains("TODO") && !line.contains("TODO(#");
            if unnamed || line.contains("FIXME") || line.contains("XXX") {
                found.push(format!(
                    "{}:{}: {}",
                    path.display(),
                    number + 1,
                    line.trim()
                ));
            }
        }
    }
    none("a note of work to do names no issue", &found);
}

#[test]
fn every_message_of_the_wire_says_its_contract() {
    let mut found = Vec::new();
    for path in files("proto", "proto") {
        let text = text(&path);
        let lines: Vec<&str> = text.lines().map(str::trim).collect();
        for pair in lines.windows(2) {
            let declares = ["message ", "service ", "enum "]
                .iter()
                .any(|word| pair[1].starts_with(word));
            if declares && !pair[0].starts_with("//") {
                found.push(format!(
                    "{}: {}",
                    path.display(),
                    pair[1].trim_end_matches(" {")
                ));
            }
        }
    }
    none("messages, enums or services without a comment", &found);
}

#[test]
fn dependencies_are_pinned_once() {
    let mut found = Vec::new();
    for (name, _) in CRATES {
        let path = PathBuf::from(name).join("Cargo.toml");
        let text = text(&path);
        // Before it stands what the crate says of itself.
        let (_, dependencies) = text.split_once("\n[dependencies]\n").unwrap();
        for line in dependencies
            .lines()
            .filter(|line| line.contains("version = \"") || line.contains(" = \""))
        {
            let own = ["name", "description", "path", "build"]
                .iter()
                .any(|key| line.starts_with(key));
            if !own {
                found.push(format!("{}: {line}", path.display()));
            }
        }
    }
    none("a version is not in the workspace's Cargo.toml", &found);
}
