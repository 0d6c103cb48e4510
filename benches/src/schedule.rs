//! How long it takes to place tasks: one pass and its commit to the store, no log.
//!
//! While a plan is applied, a view of the state before it is held, as the hub of a manager does. The
//! pass is told what changed by the commit that made the tasks, as in a manager.
//!
//! `cpu_seconds` is the processor time of the same runs: what counts on a machine that is busy.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::json;
use swarm_proto::id::{NodeId, ServiceId, TaskId};
use swarm_proto::pb;
use swarm_proto::resources::Resources;
use swarm_proto::service::ServiceSpec;
use swarm_proto::task_state::TaskState;
use swarm_proto::time::Timestamp;
use swarmd::manager::plan::{Dirty, pass};
use swarmd::manager::store::{Change, Entry, Meta, NewTask, Node, NodeStatus, State, apply};

use super::Failure;
use super::report::{Report, round};

/// Runs a case; the best counts, for the machine has other things to do.
const RUNS: usize = 5;
/// Replicas a service.
const REPLICAS: u128 = 1_000;

struct Case {
    name: &'static str,
    nodes: u128,
    tasks: u128,
    constraints: bool,
    /// The tasks exist already and wait for a node; else the pass creates them.
    exist: bool,
    /// SwarmKit's seconds for placing, without creating.
    reference: f64,
    /// Ours must stay below, where there is a bar.
    bar: Option<f64>,
}

const CASES: [Case; 5] = [
    Case {
        name: "10k",
        nodes: 1_000,
        tasks: 10_000,
        constraints: false,
        exist: true,
        reference: 3.95,
        bar: Some(0.04),
    },
    Case {
        name: "100k",
        nodes: 1_000,
        tasks: 100_000,
        constraints: false,
        exist: true,
        reference: 39.7,
        bar: Some(0.4),
    },
    Case {
        name: "100k-constraints",
        nodes: 5_000,
        tasks: 100_000,
        constraints: true,
        exist: true,
        reference: 203.8,
        bar: Some(0.5),
    },
    Case {
        name: "10k-create",
        nodes: 1_000,
        tasks: 10_000,
        constraints: false,
        exist: false,
        reference: 3.95,
        bar: None,
    },
    Case {
        name: "100k-create",
        nodes: 1_000,
        tasks: 100_000,
        constraints: false,
        exist: false,
        reference: 39.7,
        bar: None,
    },
];

/// Runs the cases named, or all.
pub(crate) fn run(only: &[&str]) -> Result<(), Failure> {
    let mut report = Report::default();
    for case in &CASES {
        if !only.is_empty() && !only.contains(&case.name) {
            continue;
        }
        let mut best = Duration::MAX;
        let mut best_cpu = Duration::MAX;
        for _ in 0..RUNS {
            let (total, cpu) = place(case)?;
            best = best.min(total);
            best_cpu = best_cpu.min(cpu);
        }
        report.add(json!({
            "bench": "schedule", "case": case.name, "nodes": case.nodes, "tasks": case.tasks,
            "runs": RUNS, "seconds": round(best.as_secs_f64()),
            "cpu_seconds": round(best_cpu.as_secs_f64()), "reference": case.reference,
            "bar": case.bar,
        }));
    }
    report.finish("schedule")
}

/// The time of a pass and its commit: by the clock, and of the processor.
fn place(case: &Case) -> Result<(Duration, Duration), Failure> {
    let (mut state, dirty) = cluster(case)?;
    let view = state.clone();
    let now = Timestamp::from_millis(1_700_000_001_000);
    let (began, cpu) = (Instant::now(), processor_time()?);
    let plan = pass(&view, &dirty, now, 42);
    let mut views = vec![view];
    let mut commits = Vec::new();
    for changes in plan.entries() {
        let version = state.version + 1;
        commits.push(apply(&mut state, version, &Entry { now, changes }));
        views.push(state.clone());
    }
    let times = (began.elapsed(), processor_time()? - cpu);
    let mut results = commits.iter().flat_map(|commit| &commit.results);
    if !results.all(Result::is_ok) {
        return Err("a change was refused".into());
    }
    let tasks = state.tasks.values();
    let placed = tasks.filter(|task| task.status.state == TaskState::Assigned);
    if placed.count() as u128 != case.tasks {
        return Err("not all tasks are placed".into());
    }
    Ok(times)
}

/// Time this thread has run.
fn processor_time() -> Result<Duration, Failure> {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat")?;
    let nanos = text.split(' ').next().unwrap_or_default();
    Ok(Duration::from_nanos(nanos.parse()?))
}

/// The state before, and what its last commit means for the pass.
fn cluster(case: &Case) -> Result<(State, Dirty), Failure> {
    let mut state = State::default();
    let now = Timestamp::from_millis(1_700_000_000_000);
    let changes = (1..=case.nodes)
        .map(|n| Change::CreateNode(node(n)))
        .collect();
    apply(&mut state, 1, &Entry { now, changes });
    let mut changes = Vec::new();
    for n in 1..=case.tasks / REPLICAS {
        changes.push(Change::CreateService {
            id: ServiceId::from_raw(n),
            spec: Arc::new(ServiceSpec::try_from(spec(n, case))?),
        });
    }
    let mut last = apply(&mut state, 2, &Entry { now, changes });
    if case.exist {
        let changes = (1..=case.tasks / REPLICAS).map(tasks).collect();
        last = apply(&mut state, 3, &Entry { now, changes });
    }
    let mut dirty = Dirty::default();
    for event in &last.events {
        dirty.note(event);
    }
    Ok((state, dirty))
}

fn tasks(service: u128) -> Change {
    // Random ids, as real ones.
    let scatter = |n: u128| {
        n.wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835)
            .rotate_left(61)
    };
    let task = |slot: u128| NewTask {
        id: TaskId::from_raw(scatter(service * REPLICAS + slot)),
        slot: u64::try_from(slot).unwrap_or(0),
        desired: TaskState::Running,
        node: None,
        generic: std::collections::BTreeMap::new(),
        start_at: Timestamp::ZERO,
        after: None,
    };
    Change::CreateTasks {
        service: ServiceId::from_raw(service),
        spec_version: 2,
        tasks: (1..=REPLICAS).map(task).collect(),
    }
}

fn node(n: u128) -> Arc<Node> {
    let zone = if n.is_multiple_of(5) { "b" } else { "a" };
    let labels = [("zone".to_owned(), zone.to_owned())].into();
    Arc::new(Node {
        id: NodeId::from_raw(n.wrapping_mul(0xd134_2543_de82_ef95_9e37_79b9_7f4a_7c15)),
        meta: Meta::default(),
        annotations: pb::Annotations {
            labels,
            ..Default::default()
        },
        desired_role: pb::NodeRole::Worker,
        membership: pb::node_spec::Membership::Accepted,
        availability: pb::node_spec::Availability::Active,
        role: pb::NodeRole::Worker,
        certificate: pb::Certificate::default(),
        description: Some(Arc::new(pb::NodeDescription {
            hostname: format!("node-{n}"),
            ..Default::default()
        })),
        resources: Resources {
            nano_cpus: 64_000_000_000,
            memory_bytes: 1 << 40,
            ..Default::default()
        },
        platform: swarm_proto::placement::Platform::default(),
        status: NodeStatus {
            state: pb::node_status::State::Ready,
            message: String::new(),
            addr: String::new(),
            since: Timestamp::ZERO,
        },
        failures: Vec::new(),
    })
}

fn spec(n: u128, case: &Case) -> pb::ServiceSpec {
    let container = pb::ContainerSpec {
        image: "web:1".to_owned(),
        ..Default::default()
    };
    let constraints = if case.constraints {
        vec!["node.labels.zone==a".to_owned()]
    } else {
        Vec::new()
    };
    let reservations = pb::Resources {
        nano_cpus: 10_000_000,
        memory_bytes: 8 << 20,
        ..Default::default()
    };
    pb::ServiceSpec {
        annotations: Some(pb::Annotations {
            name: format!("web-{n}"),
            ..Default::default()
        }),
        task: Some(pb::TaskSpec {
            runtime: Some(pb::task_spec::Runtime::Container(container)),
            placement: Some(pb::Placement {
                constraints,
                ..Default::default()
            }),
            resources: Some(pb::ResourceRequirements {
                reservations: Some(reservations),
                ..Default::default()
            }),
            ..Default::default()
        }),
        mode: Some(pb::service_spec::Mode::Replicated(pb::ReplicatedService {
            replicas: u64::try_from(REPLICAS).unwrap_or(0),
        })),
        ..Default::default()
    }
}
