//! What is measured, as numbers, and the text of it.

use std::collections::BTreeMap;
use std::fmt::Error;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric as _};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;
use swarm_proto::pb;
use swarm_proto::task_state::TaskState;
use swarm_proto::time::Timestamp;

use crate::manager::raft::RaftStatus;
use crate::manager::store::State;

/// All that is told.
#[derive(Debug, Clone)]
pub(super) struct Numbers {
    pub(super) node: Node,
    /// What the tasks of this node take of it.
    pub(super) usage: Vec<pb::TaskUsage>,
    /// On a manager.
    pub(super) manager: Option<Manager>,
}

/// Of a node.
#[derive(Debug, Clone)]
pub(super) struct Node {
    pub(super) cluster: String,
    pub(super) id: String,
    pub(super) certificate_ends: Timestamp,
    /// It has a session with a manager.
    pub(super) in_session: bool,
    /// Tasks that it holds.
    pub(super) tasks: usize,
}

/// Of a manager, which knows the cluster.
#[derive(Debug, Clone)]
pub(super) struct Manager {
    leads: bool,
    /// Nodes by state, as SwarmKit names them.
    nodes: BTreeMap<&'static str, u64>,
    /// Tasks by state.
    tasks: BTreeMap<&'static str, u64>,
    services: usize,
    raft: BTreeMap<&'static str, (&'static str, u64)>,
}

impl Manager {
    pub(super) fn of(state: &State, raft: &RaftStatus, leads: bool) -> Self {
        // States that nothing is in are told as zero: a graph must not end there.
        let mut nodes: BTreeMap<&'static str, u64> = [
            pb::node_status::State::Unknown,
            pb::node_status::State::Down,
            pb::node_status::State::Ready,
            pb::node_status::State::Disconnected,
        ]
        .map(|state| (state.as_str_name(), 0))
        .into();
        for node in state.nodes.values() {
            *nodes.entry(node.status.state.as_str_name()).or_default() += 1;
        }
        let name = |state: TaskState| pb::TaskState::from(state).as_str_name();
        let mut tasks: BTreeMap<&'static str, u64> = TaskState::ALL
            .into_iter()
            .map(|state| (name(state), 0))
            .collect();
        for task in state.tasks.values() {
            *tasks.entry(name(task.status.state)).or_default() += 1;
        }
        let voters = raft.members.values().filter(|member| member.voter).count();
        Self {
            leads,
            nodes,
            tasks,
            services: state.services.len(),
            raft: BTreeMap::from([
                ("raft_term", ("The current term", raft.term)),
                ("raft_last_log_index", ("The end of the log", raft.last_log)),
                (
                    "raft_applied_index",
                    ("Up to here the state is applied", raft.applied),
                ),
                (
                    "raft_snapshot_index",
                    ("Up to here a snapshot holds the state", raft.snapshot),
                ),
                (
                    "raft_members",
                    (
                        "Managers, those that catch up included",
                        raft.members.len() as u64,
                    ),
                ),
                (
                    "raft_voters",
                    ("Managers that count for a majority", voters as u64),
                ),
                (
                    "raft_has_leader",
                    (
                        "Whether this manager knows a leader",
                        u64::from(raft.leader.is_some()),
                    ),
                ),
            ]),
        }
    }
}

impl Numbers {
    /// As Prometheus reads it.
    pub(super) fn text(self) -> Result<String, Error> {
        let mut registry = Registry::with_prefix("swarm");
        registry.register_collector(Box::new(self));
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry)?;
        Ok(text)
    }
}

/// Labels of a sample and its value.
type Sample<'a> = (&'a [(&'a str, &'a str)], f64);

fn gauges(
    encoder: &mut DescriptorEncoder<'_>,
    (name, help): (&str, &str),
    samples: &[Sample<'_>],
) -> Result<(), Error> {
    let kind = ConstGauge::new(0.0).metric_type();
    let mut family = encoder.encode_descriptor(name, help, None, kind)?;
    for (labels, value) in samples {
        if labels.is_empty() {
            // Without the braces of an empty set.
            return ConstGauge::new(*value).encode(family);
        }
        ConstGauge::new(*value).encode(family.encode_family(labels)?)?;
    }
    Ok(())
}

impl Collector for Numbers {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), Error> {
        let encoder = &mut encoder;
        self.node(encoder)?;
        self.tasks(encoder)?;
        match &self.manager {
            Some(manager) => manager.encode(encoder),
            None => Ok(()),
        }
    }
}

impl Numbers {
    fn node(&self, encoder: &mut DescriptorEncoder<'_>) -> Result<(), Error> {
        let node = &self.node;
        let info = [("swarm_id", &*node.cluster), ("node_id", &*node.id)];
        gauges(
            encoder,
            ("node_info", "This node, and its cluster"),
            &[(&info, 1.0)],
        )?;
        let flag = |set: bool| if set { 1.0 } else { 0.0 };
        gauges(
            encoder,
            ("node_manager", "Whether this node is a manager"),
            &[(&[], flag(self.manager.is_some()))],
        )?;
        gauges(
            encoder,
            ("node_in_session", "Whether a manager hears this node"),
            &[(&[], flag(node.in_session))],
        )?;
        let ends = node
            .certificate_ends
            .to_wire()
            .map_or(0, |time| time.seconds);
        gauges(
            encoder,
            (
                "node_certificate_expiry_timestamp_seconds",
                "When this node's certificate ends, in seconds since 1970",
            ),
            &[(&[], number(u64::try_from(ends).unwrap_or(0)))],
        )?;
        gauges(
            encoder,
            ("node_tasks", "Tasks that this node holds"),
            &[(&[], number(node.tasks as u64))],
        )
    }

    fn tasks(&self, encoder: &mut DescriptorEncoder<'_>) -> Result<(), Error> {
        let labels: Vec<[(&str, &str); 1]> = self
            .usage
            .iter()
            .map(|usage| [("task_id", &*usage.task_id)])
            .collect();
        let all = |value: fn(&pb::TaskUsage) -> u64| -> Vec<Sample<'_>> {
            let values = self.usage.iter().map(|usage| number(value(usage)));
            let labels = labels.iter().map(|labels| labels.as_slice());
            labels.zip(values).collect()
        };
        let help = "Memory of a running task, without what the kernel would give up for others";
        gauges(
            encoder,
            ("task_memory_bytes", help),
            &all(|usage| usage.memory_bytes),
        )?;
        let help = "Processes and threads of a running task";
        gauges(encoder, ("task_pids", help), &all(|usage| usage.pids))?;
        let kind = ConstCounter::new(0.0).metric_type();
        let help = "Processor time of a running task";
        let mut family = encoder.encode_descriptor("task_cpu_seconds", help, None, kind)?;
        for (labels, usage) in labels.iter().zip(&self.usage) {
            let seconds = std::time::Duration::from_nanos(usage.cpu_ns).as_secs_f64();
            ConstCounter::new(seconds).encode(family.encode_family(labels)?)?;
        }
        Ok(())
    }
}

impl Manager {
    fn encode(&self, encoder: &mut DescriptorEncoder<'_>) -> Result<(), Error> {
        let leads = if self.leads { 1.0 } else { 0.0 };
        gauges(
            encoder,
            ("manager_leader", "Whether this manager leads"),
            &[(&[], leads)],
        )?;
        let by_state = [
            ("manager_nodes", "Nodes by state", &self.nodes),
            ("manager_tasks_total", "Tasks by state", &self.tasks),
        ];
        for (name, help, counts) in by_state {
            let labels: Vec<[(&str, String); 1]> = counts
                .keys()
                .map(|state| [("state", state.to_lowercase())])
                .collect();
            let kind = ConstGauge::new(0.0).metric_type();
            let mut family = encoder.encode_descriptor(name, help, None, kind)?;
            for (labels, count) in labels.iter().zip(counts.values()) {
                ConstGauge::new(number(*count)).encode(family.encode_family(labels)?)?;
            }
        }
        gauges(
            encoder,
            ("manager_services_total", "Services"),
            &[(&[], number(self.services as u64))],
        )?;
        for (name, (help, value)) in &self.raft {
            gauges(encoder, (name, help), &[(&[], number(*value))])?;
        }
        Ok(())
    }
}

/// Prometheus' numbers are floating: exact up to 2^53.
#[expect(
    clippy::cast_precision_loss,
    reason = "Prometheus' numbers are floating"
)]
fn number(value: u64) -> f64 {
    value as f64
}
