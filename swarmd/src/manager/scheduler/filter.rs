//! Which nodes can take a task: SwarmKit's filters, in its order, with its words.

use std::collections::BTreeMap;

use swarm_proto::pb;
use swarm_proto::service::Plugin;

use super::table::{Group, Row, Table};

/// A reason why a node takes no more tasks of a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Filter {
    /// Not READY, or not ACTIVE.
    Ready,
    /// Too little left of what is reserved.
    Resources,
    /// A plugin is missing.
    Plugins,
    /// A constraint does not hold.
    Constraints,
    /// Another platform.
    Platform,
    /// A port is taken.
    HostPorts,
    /// As many tasks of the service as one node may have.
    MaxReplicas,
}

impl Filter {
    pub(super) const ALL: [Self; 7] = [
        Self::Ready,
        Self::Resources,
        Self::Plugins,
        Self::Constraints,
        Self::Platform,
        Self::HostPorts,
        Self::MaxReplicas,
    ];

    /// How many tasks of the group the node can take, as far as this filter knows.
    pub(super) fn room(self, row: &Row, group: &Group<'_>) -> u64 {
        let task = &group.spec.task;
        let all_or_none = |passes: bool| if passes { u64::MAX } else { 0 };
        match self {
            Self::Ready => all_or_none(row.node.takes_tasks()),
            Self::Resources => fitting(row, group),
            Self::Plugins => all_or_none(missing_plugin(row, group).is_none()),
            Self::Constraints => {
                let constraints = &task.placement.constraints;
                let mut constraints = constraints.iter();
                all_or_none(constraints.all(|c| c.holds(&row.facts())))
            }
            Self::Platform => {
                let any = task.placement.platforms.is_empty();
                all_or_none(any || task.placement.platform_fits(&row.facts()))
            }
            Self::HostPorts if task.host_ports.is_empty() => u64::MAX,
            Self::HostPorts => {
                let mut ports = task.host_ports.iter();
                u64::from(!ports.any(|port| row.usage.ports.contains_key(port)))
            }
            Self::MaxReplicas => match task.placement.max_replicas {
                0 => u64::MAX,
                max => max.saturating_sub(u64::from(row.tasks_of(group.service))),
            },
        }
    }

    fn explain(self, nodes: u64) -> String {
        let nodes = match nodes {
            1 => "1 node".to_owned(),
            n => format!("{n} nodes"),
        };
        match self {
            Self::Ready => format!("{nodes} not available for new tasks"),
            Self::Resources => format!("insufficient resources on {nodes}"),
            Self::Plugins => format!("missing plugin on {nodes}"),
            Self::Constraints => format!("scheduling constraints not satisfied on {nodes}"),
            Self::Platform => format!("unsupported platform on {nodes}"),
            Self::HostPorts => format!("host-mode port already in use on {nodes}"),
            Self::MaxReplicas => "max replicas per node limit exceed".to_owned(),
        }
    }
}

/// How many more tasks of the group the node can take.
pub(super) fn room(row: &Row, group: &Group<'_>) -> u64 {
    let mut room = u64::MAX;
    for filter in Filter::ALL {
        room = room.min(filter.room(row, group));
        if room == 0 {
            return 0;
        }
    }
    room
}

/// Why no node takes one more task of the group.
pub(super) fn summary(table: &Table, group: &Group<'_>) -> String {
    let mut counts: BTreeMap<Filter, u64> = BTreeMap::new();
    for row in &table.rows {
        let mut refusing = Filter::ALL.into_iter();
        if let Some(filter) = refusing.find(|filter| filter.room(row, group) == 0) {
            *counts.entry(filter).or_default() += 1;
        }
    }
    let mut counts: Vec<(Filter, u64)> = counts.into_iter().collect();
    counts.sort_by_key(|(filter, count)| (std::cmp::Reverse(*count), *filter));
    let reasons: Vec<String> = counts.iter().map(|(f, count)| f.explain(*count)).collect();
    if reasons.is_empty() {
        return "no suitable node".to_owned();
    }
    format!("no suitable node ({})", reasons.join("; "))
}

/// How many times the reservations fit into what is left.
fn fitting(row: &Row, group: &Group<'_>) -> u64 {
    let wanted = &group.spec.task.reservations;
    if wanted.is_empty() {
        return u64::MAX;
    }
    let times = |have: i64, each: i64| match u64::try_from(each) {
        Ok(each @ 1..) => u64::try_from(have).unwrap_or(0) / each,
        Ok(0) | Err(_) => u64::MAX,
    };
    let (total, taken) = (&row.node.resources, &row.usage);
    let mut fitting = times(
        total.nano_cpus.saturating_sub(taken.nano_cpus),
        wanted.nano_cpus,
    );
    let memory = total.memory_bytes.saturating_sub(taken.memory_bytes);
    fitting = fitting.min(times(memory, wanted.memory_bytes));
    if wanted.generic.values().any(|each| *each > 0) {
        let free = row.free();
        for (kind, each) in wanted.generic.iter().filter(|(_, each)| **each > 0) {
            let have = free
                .generic
                .get(kind)
                .map_or(0, swarm_proto::resources::Generic::len);
            fitting = fitting.min(have / each);
        }
    }
    fitting
}

/// The first plugin that the node lacks. A node that says nothing of its engine has all; one that
/// names no log plugins at all is not asked for them.
pub(super) fn missing_plugin<'a>(row: &Row, group: &Group<'a>) -> Option<&'a Plugin> {
    if group.spec.task.plugins.is_empty() {
        return None;
    }
    let engine = row.node.description.as_ref()?.engine.as_ref()?;
    let listed = &engine.plugins;
    group.spec.task.plugins.iter().find(|wanted| {
        let same_kind = || listed.iter().filter(|plugin| plugin.r#type == wanted.kind);
        if wanted.kind == "Log" && same_kind().next().is_none() {
            return false;
        }
        !same_kind().any(|plugin| is_named(plugin, &wanted.name))
    })
}

fn is_named(plugin: &pb::PluginDescription, name: &str) -> bool {
    plugin.name == name || plugin.name.strip_suffix(":latest") == Some(name)
}
