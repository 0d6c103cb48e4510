//! Where a task may run: constraints, spread preferences, platforms.

pub use crate::constraint::{Constraint, InvalidConstraint, Key, Operator};
use crate::invalid::{Faults, shown};
use crate::pb;

/// Spread tasks evenly over the values of a node label.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spread {
    /// [`Key::NodeLabel`] or [`Key::EngineLabel`].
    pub over: Key,
}

/// An operating system and architecture; empty stands for any.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Platform {
    /// `linux`
    pub os: String,
    /// `amd64`, `arm64`, … in their normal form (`x86_64` is `amd64`).
    pub arch: String,
}

/// A task's placement, parsed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Placement {
    /// All must hold.
    pub constraints: Vec<Constraint>,
    /// From the outermost to the innermost.
    pub spread: Vec<Spread>,
    /// One must match; empty means any.
    pub platforms: Vec<Platform>,
    /// Most tasks of this service on one node; zero means no limit.
    pub max_replicas: u64,
}

/// The facts of a node that constraints look at.
#[derive(Debug, Clone, Copy)]
pub struct NodeFacts<'a> {
    /// The node's id.
    pub id: crate::id::NodeId,
    /// What the operator wrote.
    pub spec: &'a pb::NodeSpec,
    /// What the node reported; none before its first session.
    pub description: Option<&'a pb::NodeDescription>,
    /// The role it holds now.
    pub role: pb::NodeRole,
    /// The address the manager sees.
    pub addr: &'a str,
}

impl<'a> NodeFacts<'a> {
    pub(crate) fn platform(&self) -> Option<&'a pb::Platform> {
        self.description?.platform.as_ref()
    }
}

impl Spread {
    /// The node's value of the label; empty where it has none, which is a branch of its own.
    pub fn value<'a>(&self, node: &NodeFacts<'a>) -> &'a str {
        self.over.label(node).unwrap_or("")
    }
}

impl Platform {
    /// Whether a task made for this platform runs on `node`'s.
    pub fn runs_on(&self, node: &Self) -> bool {
        (self.os.is_empty() || self.os == node.os)
            && (self.arch.is_empty() || self.arch == node.arch)
    }
}

impl Placement {
    /// Whether all constraints hold for the node.
    pub fn constraints_hold(&self, node: &NodeFacts<'_>) -> bool {
        self.constraints
            .iter()
            .all(|constraint| constraint.holds(node))
    }

    /// Whether the node has one of the platforms. A node that reported none has none.
    pub fn platform_fits(&self, node: &NodeFacts<'_>) -> bool {
        if self.platforms.is_empty() {
            return true;
        }
        let Some(platform) = node.platform().map(Platform::from_wire) else {
            return false;
        };
        self.platforms
            .iter()
            .any(|wanted| wanted.runs_on(&platform))
    }
}

/// Go's name of an architecture, from any of its names.
pub fn normal_arch(name: &str) -> String {
    arch_alias(name).to_ascii_lowercase()
}

/// Whether two names of an architecture mean the same one.
pub(crate) fn same_arch(a: &str, b: &str) -> bool {
    arch_alias(a).eq_ignore_ascii_case(arch_alias(b))
}

fn arch_alias(name: &str) -> &str {
    const ALIASES: &[(&str, &[&str])] = &[
        ("amd64", &["x86_64", "x86-64"]),
        ("arm64", &["aarch64"]),
        ("arm", &["armhf", "armel", "armv5l", "armv6l", "armv7l"]),
        ("386", &["i386", "i486", "i586", "i686", "x86"]),
    ];
    let known = ALIASES
        .iter()
        .find(|(_, aliases)| aliases.iter().any(|alias| alias.eq_ignore_ascii_case(name)));
    known.map_or(name, |(normal, _)| normal)
}

pub(crate) fn normal_os(name: &str) -> String {
    match name.to_ascii_lowercase() {
        lower if lower == "macos" => "darwin".to_owned(),
        lower => lower,
    }
}

pub(crate) fn parse(faults: &mut Faults, wire: Option<&pb::Placement>) -> Placement {
    const FIELD: &str = "task.placement";
    let Some(wire) = wire else {
        return Placement::default();
    };
    let mut placement = Placement {
        max_replicas: wire.max_replicas,
        ..Placement::default()
    };
    for (i, text) in wire.constraints.iter().enumerate() {
        let parsed = faults.take(format!("{FIELD}.constraints[{i}]"), text.parse());
        placement.constraints.extend(parsed);
    }
    for (i, preference) in wire.preferences.iter().enumerate() {
        let parsed = faults.take(
            format!("{FIELD}.preferences[{i}]"),
            parse_spread(preference),
        );
        placement.spread.extend(parsed);
    }
    placement.platforms = wire.platforms.iter().map(Platform::from_wire).collect();
    faults.count(format!("{FIELD}.max_replicas"), wire.max_replicas);
    placement
}

fn parse_spread(wire: &pb::PlacementPreference) -> Result<Spread, String> {
    use pb::placement_preference::Preference;
    let Some(Preference::Spread(spread)) = &wire.preference else {
        return Err("has no known kind; the only one is spread".to_owned());
    };
    match Key::parse(spread.spread_descriptor.trim()) {
        Some(over @ (Key::NodeLabel(_) | Key::EngineLabel(_))) => Ok(Spread { over }),
        Some(Key::Id | Key::Hostname | Key::Ip | Key::Role | Key::Os | Key::Arch) | None => {
            Err(format!(
                "tasks are not spread over {}; write node.labels.NAME or engine.labels.NAME",
                shown(&spread.spread_descriptor)
            ))
        }
    }
}

#[cfg(test)]
mod tests;
