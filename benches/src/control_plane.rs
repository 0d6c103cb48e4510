//! How long it takes from creating a service until all of its tasks are seen RUNNING: one manager or three,
//! and five simulated workers, each a process, over gRPC, mutual TLS and fsync.
//!
//! `cpu_seconds` is the processor time of all of them: what counts on a machine that is busy.

use serde_json::json;

use super::Failure;
use super::cluster::Cluster;
use super::report::{Report, round, say, spread};

/// Runs a case, each on a fresh cluster; the median counts.
const RUNS: usize = 5;
const WORKERS: usize = 5;

struct Case {
    name: &'static str,
    managers: usize,
    tasks: u64,
    /// SwarmKit's seconds.
    reference: f64,
    /// Ours must stay below.
    bar: f64,
}

const CASES: [Case; 4] = [
    Case {
        name: "1-manager-1k",
        managers: 1,
        tasks: 1_000,
        reference: 2.4,
        bar: 0.1,
    },
    Case {
        name: "1-manager",
        managers: 1,
        tasks: 10_000,
        reference: 39.0,
        bar: 0.6,
    },
    Case {
        name: "3-managers-1k",
        managers: 3,
        tasks: 1_000,
        reference: 3.8,
        bar: 0.15,
    },
    Case {
        name: "3-managers",
        managers: 3,
        tasks: 10_000,
        reference: 57.1,
        bar: 1.0,
    },
];

/// Runs the cases named, or all.
pub(crate) async fn run(only: &[&str]) -> Result<(), Failure> {
    let mut report = Report::default();
    for case in CASES {
        if !only.is_empty() && !only.contains(&case.name) {
            continue;
        }
        let (mut seconds, mut cpu) = (Vec::new(), Vec::new());
        for _ in 0..RUNS {
            let mut cluster = Cluster::of(case.managers).await?;
            cluster.add_workers(WORKERS).await?;
            let before = cluster.processor_seconds()?;
            seconds.push(cluster.converge("web", case.tasks).await?);
            cpu.push(cluster.processor_seconds()? - before);
        }
        say(&format!("{}: {seconds:.3?}, CPU {cpu:.2?}", case.name));
        let (median, min, max) = spread(&seconds).ok_or("no run")?;
        let (cpu, _, _) = spread(&cpu).ok_or("no run")?;
        report.add(json!({
            "bench": "control-plane", "case": case.name, "managers": case.managers, "nodes": WORKERS,
            "tasks": case.tasks, "runs": RUNS, "seconds": round(median), "min": round(min),
            "max": round(max), "cpu_seconds": round(cpu), "reference": case.reference, "bar": case.bar,
        }));
    }
    report.finish("control-plane")
}
