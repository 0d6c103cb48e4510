//! What a manager costs: memory, the size of the program, the time to start.

use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::process::{Child, Command};

use super::Failure;
use super::cluster::{Cluster, program};
use super::load;
use super::report::{Report, round, say, spread};

const MIB: u64 = 1 << 20;
/// Docker Engine 20.10, idle.
const ENGINE_RSS: u64 = 115_000_000;
/// Quiet time before memory is read, so that what a start or a burst leaves behind is seen as it stays.
const SETTLE: Duration = Duration::from_secs(5);
/// Starts that are measured; the median counts.
const STARTS: usize = 7;
const NODES: u64 = 1_000;
const TASKS: u64 = 100_000;

/// Runs the cases named, or all.
pub(crate) async fn run(only: &[&str]) -> Result<(), Failure> {
    let wanted = |case| only.is_empty() || only.contains(&case);
    let mut report = Report::default();
    if wanted("binary") {
        report.add(binary()?);
    }
    if wanted("start") {
        for line in start().await? {
            report.add(line);
        }
    }
    if wanted("rss-idle") {
        report.add(idle().await?);
    }
    if wanted("rss-100k") {
        report.add(loaded().await?);
    }
    report.finish("footprint")
}

fn binary() -> Result<Value, Failure> {
    let bytes = std::fs::metadata(program()?)?.len();
    Ok(json!({
        "bench": "footprint", "case": "binary", "bytes": bytes, "reference": null, "bar": 25 * MIB,
    }))
}

/// From starting the process to the answer of its first request.
async fn start() -> Result<[Value; 2], Failure> {
    let (mut fresh, mut again) = (Vec::new(), Vec::new());
    for _ in 0..STARTS {
        let started = Instant::now();
        let mut cluster = Cluster::start().await?;
        fresh.push(started.elapsed().as_secs_f64());
        cluster.stop().await?;
        let started = Instant::now();
        cluster.start_again().await?;
        again.push(started.elapsed().as_secs_f64());
    }
    let line = |case: &str, figures: &[f64]| -> Result<Value, Failure> {
        let (median, min, max) = spread(figures).ok_or("no run")?;
        Ok(json!({
            "bench": "footprint", "case": case, "managers": 1, "runs": STARTS,
            "seconds": round(median), "min": round(min), "max": round(max), "reference": null,
            "bar": 0.3,
        }))
    };
    Ok([line("start", &fresh)?, line("start-again", &again)?])
}

async fn idle() -> Result<Value, Failure> {
    let cluster = Cluster::start().await?;
    tokio::time::sleep(SETTLE).await;
    Ok(json!({
        "bench": "footprint", "case": "rss-idle", "managers": 1, "nodes": 1, "tasks": 0,
        "bytes": cluster.manager_rss()?, "reference": ENGINE_RSS, "bar": 30 * MIB,
    }))
}

async fn loaded() -> Result<Value, Failure> {
    let mut cluster = Cluster::start().await?;
    let _load = start_load(&mut cluster).await?;
    let started = Instant::now();
    cluster.until_ready(usize::try_from(NODES)?).await?;
    say(&format!("{NODES} nodes after {:.1?}", started.elapsed()));
    let seconds = cluster.converge("web", TASKS).await?;
    say(&format!("{TASKS} tasks RUNNING after {seconds:.2} s"));
    tokio::time::sleep(SETTLE).await;
    Ok(json!({
        "bench": "footprint", "case": "rss-100k", "managers": 1, "nodes": NODES, "tasks": TASKS,
        "bytes": cluster.manager_rss()?, "converge_seconds": round(seconds), "reference": null,
        "bar": 60 * MIB + TASKS * 1024 + NODES * 20 * 1024,
    }))
}

/// The nodes are another process, so that their memory is not the manager's.
async fn start_load(cluster: &mut Cluster) -> Result<Child, Failure> {
    let token = cluster.worker_token().await?;
    let load = Command::new(std::env::current_exe()?)
        .args([load::COMMAND, &cluster.addr.to_string(), &token])
        .arg(NODES.to_string())
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .spawn()?;
    Ok(load)
}
