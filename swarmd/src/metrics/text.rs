//! What is measured, as numbers, and the text of it.

use std::collections::BTreeMap;
use std::fmt::Error;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric as _, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;
use swarm_proto::pb;
use swarm_proto::task_state::TaskState;
use swarm_proto::time::Timestamp;

use crate::latency::Counts;
use crate::manager::latencies::Latencies;
use crate::manager::raft::{RaftLatencies, RaftStatus};
use crate::manager::store::State;

/// All that is told.
#[derive(Debug, Clone)]
pub(super) struct Numbers {
    pub(super) node: Node,
    /// What the tasks of this node take of it.
    pub(super) usage: Vec<pb::TaskUsage>,
    /// How long the executor takes, by what it does.
    pub(super) operations: [(&'static str, Counts); 4],
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
    latencies: Vec<Latency>,
}

/// A histogram: name, help, and what it counted.
pub(super) type Latency = (&'static str, &'static str, Counts);

/// What a manager measures.
pub(super) fn latencies(own: &Latencies, raft: &RaftLatencies) -> Vec<Latency> {
    vec![
        (
            "raft_transaction_latency_seconds",
            "A proposal, until it is applied here or has failed",
            raft.transaction.counts(),
        ),
        (
            "raft_snapshot_latency_seconds",
            "Making a snapshot of the state, until it is in place",
            raft.snapshot.counts(),
        ),
        (
            "store_write_tx_latency_seconds",
            "A write, until it is applied here or refused",
            own.write.counts(),
        ),
        (
            "store_read_tx_latency_seconds",
            "A read, until the newest state is known to be here",
            own.read.counts(),
        ),
        (
            "store_batch_latency_seconds",
            "Writing all that one pass wants",
            own.batch.counts(),
        ),
        (
            "dispatcher_scheduling_delay_seconds",
            "A task, from its making until a manager records that it runs",
            own.scheduling.counts(),
        ),
        (
            "dispatcher_status_latency_seconds",
            "What a node reports of its tasks, until it is written",
            own.status.counts(),
        ),
        (
            "dispatcher_assignment_latency_seconds",
            "News for a node, from the commit until its connection takes them",
            own.assignment.counts(),
        ),
        (
            "manager_pass_latency_seconds",
            "One pass over what should change",
            own.pass.counts(),
        ),
    ]
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
            latencies: Vec::new(),
        }
    }

    /// With how long its parts take.
    pub(super) fn taking(self, latencies: Vec<Latency>) -> Self {
        Self { latencies, ..self }
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

fn histogram(
    encoder: &mut DescriptorEncoder<'_>,
    (name, help): (&str, &str),
    samples: &[(&[(&str, &str)], Counts)],
) -> Result<(), Error> {
    let mut family = encoder.encode_descriptor(name, help, None, MetricType::Histogram)?;
    for (labels, counts) in samples {
        let (sum, count) = (counts.sum().as_secs_f64(), counts.count());
        let buckets = counts.buckets();
        if labels.is_empty() {
            return family.encode_histogram::<NoLabelSet>(sum, count, &buckets, None);
        }
        let mut one = family.encode_family(labels)?;
        one.encode_histogram::<NoLabelSet>(sum, count, &buckets, None)?;
    }
    Ok(())
}

impl Collector for Numbers {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), Error> {
        let encoder = &mut encoder;
        self.node(encoder)?;
        self.tasks(encoder)?;
        self.operations(encoder)?;
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

    fn operations(&self, encoder: &mut DescriptorEncoder<'_>) -> Result<(), Error> {
        let labels = self.operations.map(|(name, _)| [("operation", name)]);
        let each = labels.iter().zip(&self.operations);
        let samples: Vec<(&[(&str, &str)], Counts)> = each
            .map(|(labels, (_, counts))| (labels.as_slice(), *counts))
            .collect();
        let help = "A call of the executor for a task, also one that fails or is given up";
        let name = "executor_operation_latency_seconds";
        histogram(encoder, (name, help), &samples)
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
        for (name, help, counts) in &self.latencies {
            histogram(encoder, (name, help), &[(&[], *counts)])?;
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::time::Duration;

    use super::*;

    const DOCUMENT: &str = include_str!("../../../docs/metrics.md");

    fn numbers() -> Numbers {
        let (own, raft) = (Latencies::default(), RaftLatencies::default());
        own.pass.record(Duration::from_millis(3));
        own.pass.record(Duration::from_secs(700));
        let status = RaftStatus::led(BTreeMap::new());
        let manager = Manager::of(&State::default(), &status, true);
        Numbers {
            node: Node {
                cluster: "c".to_owned(),
                id: "n".to_owned(),
                certificate_ends: Timestamp::from_millis(5000),
                in_session: true,
                tasks: 1,
            },
            usage: vec![pb::TaskUsage {
                task_id: "t".to_owned(),
                ..pb::TaskUsage::default()
            }],
            operations: ["prepare", "start", "shutdown", "remove"]
                .map(|name| (name, Counts::default())),
            manager: Some(manager.taking(latencies(&own, &raft))),
        }
    }

    #[test]
    fn a_histogram_is_written_as_prometheus_reads_it() {
        let text = numbers().text().unwrap();
        let told: Vec<&str> = text
            .lines()
            .filter(|line| line.contains("manager_pass"))
            .collect();
        let (head, buckets) = told.split_at(4);
        assert_eq!(
            head,
            [
                "# HELP swarm_manager_pass_latency_seconds One pass over what should change",
                "# TYPE swarm_manager_pass_latency_seconds histogram",
                "swarm_manager_pass_latency_seconds_sum 700.003",
                "swarm_manager_pass_latency_seconds_count 2",
            ]
        );
        // Each bucket holds those before it too.
        let count = |end: &str| {
            let start = format!("swarm_manager_pass_latency_seconds_bucket{{le=\"{end}\"}} ");
            let found = buckets.iter().find_map(|line| line.strip_prefix(&start));
            found.unwrap_or_else(|| panic!("{end} in {buckets:#?}"))
        };
        assert_eq!(
            ["0.0001", "0.0025", "0.005", "600.0", "+Inf"].map(count),
            ["0", "0", "1", "1", "2"]
        );
        let labelled = "swarm_executor_operation_latency_seconds_count{operation=\"start\"} 0";
        assert!(text.lines().any(|line| line == labelled), "{text}");
    }

    #[test]
    fn the_document_lists_what_is_told() {
        let text = numbers().text().unwrap();
        let told: BTreeSet<String> = text
            .lines()
            .filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '))
            .map(|(name, kind)| match kind {
                "counter" => format!("{name}_total"),
                _ => name.to_owned(),
            })
            .collect();
        let listed: BTreeSet<String> = DOCUMENT
            .lines()
            .filter_map(|line| line.strip_prefix("| `swarm_")?.split_once('`'))
            .map(|(name, _)| format!("swarm_{name}"))
            .collect();
        assert_eq!(told, listed);
    }
}
