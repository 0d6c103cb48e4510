//! Several managers: small writes a second, the time to the next write after the leader was killed, and the
//! time in which a manager that was away catches up. Three processes with fsync on one machine.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use serde_json::json;
use swarm_proto::pb;
use swarm_proto::pb::control_client::ControlClient;
use swarm_proto::stale::STALE;
use tokio::task::JoinSet;
use tonic::transport::Channel;

use super::Failure;
use super::cluster::{Cluster, create, patience};
use super::report::{Report, round, say, spread};

const MANAGERS: usize = 3;
/// Runs of a case of `commit`; the median counts.
const RUNS: usize = 3;
/// How long writes are counted, after as long a time to warm up.
const COUNTED: Duration = Duration::from_secs(5);
const WARM_UP: Duration = Duration::from_secs(1);
/// Times that the leader is killed.
const KILLS: usize = 100;
/// Tasks that come about while a manager is away.
const TASKS: u64 = 100_000;
const WORKERS: usize = 5;
/// Pause between two looks at how far a manager is.
const LOOK: Duration = Duration::from_millis(10);

/// Writes a second by clients that each wait for their answer before the next write.
pub(crate) async fn commit(only: &[&str]) -> Result<(), Failure> {
    let mut report = Report::default();
    // etcd 3.2, three machines with SSD, its own documentation; the bars are the design's.
    for (case, clients, reference, bar) in [
        ("1-client", 1, Some(583.0), 1_000.0),
        ("64-clients", 64, None, 20_000.0),
    ] {
        if !only.is_empty() && !only.contains(&case) {
            continue;
        }
        let [mut rates, mut cpu, mut reads] = [const { Vec::new() }; 3];
        for _ in 0..RUNS {
            let cluster = Cluster::of(MANAGERS).await?;
            reads.push(count(&cluster, clients, What::Read).await?.0);
            let (rate, per_write) = count(&cluster, clients, What::Write).await?;
            rates.push(rate);
            cpu.push(per_write);
        }
        say(&format!(
            "{case}: {rates:.0?} writes/s, CPU {cpu:.0?} µs a write; {reads:.0?} reads/s from one manager's memory"
        ));
        let (median, min, max) = spread(&rates).ok_or("no run")?;
        let (cpu, _, _) = spread(&cpu).ok_or("no run")?;
        let (reads, _, _) = spread(&reads).ok_or("no run")?;
        report.add(json!({
            "bench": "commit", "case": case, "managers": MANAGERS, "clients": clients, "runs": RUNS,
            "per_second": round(median), "min": round(min), "max": round(max),
            "cpu_microseconds_per_write": round(cpu), "reads_per_second": round(reads), "reference": reference, "bar": bar,
        }));
    }
    report.finish("commit")
}

/// What is counted.
#[derive(Clone, Copy)]
enum What {
    Write,
    /// The same object, read from one manager's memory: what the calls alone take, so no write can be had for less.
    Read,
}

/// Calls a second, and what one takes of the managers' processors in microseconds.
async fn count(cluster: &Cluster, clients: usize, what: What) -> Result<(f64, f64), Failure> {
    let mut control = cluster.control.clone();
    let leader = Cluster::leader(&mut control).await?;
    let mut managers = cluster.managers().into_iter();
    let (_, control) = managers
        .find(|(addr, _)| *addr == leader)
        .ok_or("the leader is none of the managers")?;
    let mut writers = JoinSet::new();
    let begin = Instant::now() + WARM_UP;
    for number in 0..clients {
        let name = match what {
            What::Write => format!("s{number}"),
            What::Read => format!("r{number}"),
        };
        let mut writer = Writer::new(control.clone(), &name).await?;
        writers.spawn(async move {
            let mut written = 0_u32;
            while Instant::now() < begin + COUNTED {
                match what {
                    What::Write => writer.write().await?,
                    What::Read => writer.read_stale().await?,
                }
                if Instant::now() >= begin {
                    written += 1;
                }
            }
            Ok::<_, Failure>(written)
        });
    }
    tokio::time::sleep_until(begin.into()).await;
    let before = cluster.processor_seconds()?;
    let mut written = 0;
    while let Some(ended) = writers.join_next().await {
        written += ended??;
    }
    let taken = cluster.processor_seconds()? - before;
    let written = f64::from(written);
    Ok((
        written / COUNTED.as_secs_f64(),
        taken * 1e6 / written.max(1.0),
    ))
}

/// Changes a label of one service, again and again. Nothing follows from it.
struct Writer {
    control: ControlClient<Channel>,
    service: pb::Service,
    count: u64,
}

impl Writer {
    async fn new(mut control: ControlClient<Channel>, name: &str) -> Result<Self, Failure> {
        let created = control.create_service(create(name, 0)).await?.into_inner();
        Ok(Self {
            control,
            service: created.service.ok_or("no service was created")?,
            count: 0,
        })
    }

    /// One write, which is known to be kept once this returns.
    async fn write(&mut self) -> Result<(), tonic::Status> {
        self.count += 1;
        let mut spec = self.service.spec.clone().unwrap_or_default();
        let labels = &mut spec.annotations.get_or_insert_default().labels;
        labels.insert("count".to_owned(), self.count.to_string());
        let request = pb::UpdateServiceRequest {
            service_id: self.service.id.clone(),
            service_version: self.service.meta.and_then(|meta| meta.version),
            spec: Some(spec),
            ..Default::default()
        };
        let answer = self.control.update_service(request).await?.into_inner();
        if let Some(service) = answer.service {
            self.service = service;
        }
        Ok(())
    }

    /// Reads what the manager has in memory.
    async fn read_stale(&mut self) -> Result<(), tonic::Status> {
        let mut request = tonic::Request::new(pb::GetServiceRequest {
            service_id: self.service.id.clone(),
            ..Default::default()
        });
        let asked = tonic::metadata::MetadataValue::from_static("1");
        request.metadata_mut().insert(STALE, asked);
        self.control.get_service(request).await.map(drop)
    }

    /// What the cluster says was written last.
    async fn read(&mut self) -> Result<u64, tonic::Status> {
        let request = pb::GetServiceRequest {
            service_id: self.service.id.clone(),
            ..Default::default()
        };
        let answer = self.control.get_service(request).await?.into_inner();
        if let Some(service) = answer.service {
            self.service = service;
        }
        let spec = self.service.spec.clone().unwrap_or_default();
        let labels = spec.annotations.unwrap_or_default().labels;
        Ok(labels
            .get("count")
            .and_then(|n| n.parse().ok())
            .unwrap_or(0))
    }

    /// Writes until one is accepted, by whatever manager answers. Says how many acknowledged writes were lost.
    async fn insist(&mut self, controls: &[ControlClient<Channel>]) -> Result<u64, Failure> {
        let acknowledged = self.count;
        let started = Instant::now();
        for control in controls.iter().cycle() {
            self.control = control.clone();
            let written = self.write().await;
            match written {
                Ok(()) => return Ok(0),
                // It may have happened, or not: the version that counts now is asked for.
                Err(_) => {
                    patience(started, "no write was accepted")?;
                    let Ok(found) = self.read().await else {
                        continue;
                    };
                    if found < acknowledged {
                        return Ok(acknowledged - found);
                    }
                    self.count = self.count.max(found);
                }
            }
        }
        Err("there is no manager".into())
    }
}

/// The leader is killed again and again, each time once all three are up: the time to the next accepted write.
pub(crate) async fn failover() -> Result<(), Failure> {
    let mut cluster = Cluster::of(MANAGERS).await?;
    let mut writer = Writer::new(cluster.control.clone(), "counter").await?;
    let (mut seconds, mut lost) = (Vec::new(), 0);
    for kill in 0..KILLS {
        for _ in 0..20 {
            writer.write().await?;
        }
        let leader = Cluster::leader(&mut writer.control).await?;
        let controls = others(&cluster, leader);
        cluster.kill(leader)?;
        let killed = Instant::now();
        lost += writer.insist(&controls).await?;
        seconds.push(killed.elapsed().as_secs_f64());
        cluster.revive(leader).await?;
        cluster.until_managers(MANAGERS).await?;
        if kill % 10 == 9 {
            say(&format!("{} kills: {:.3?}", kill + 1, spread(&seconds)));
        }
    }
    seconds.sort_by(f64::total_cmp);
    let at = |share: f64| percentile(&seconds, share);
    let mut report = Report::default();
    report.add(json!({
        "bench": "failover", "case": "kill-leader", "managers": MANAGERS, "runs": KILLS,
        "seconds": round(at(0.99)), "p50": round(at(0.5)), "p90": round(at(0.9)), "p99": round(at(0.99)),
        "min": round(at(0.0)), "max": round(at(1.0)), "lost": lost, "reference": 14.3, "bar": 1.0,
    }));
    report.finish("failover")?;
    match lost {
        0 => Ok(()),
        lost => Err(format!("{lost} acknowledged writes were lost").into()),
    }
}

/// Clients of all managers but one.
fn others(cluster: &Cluster, but: SocketAddr) -> Vec<ControlClient<Channel>> {
    let managers = cluster.managers().into_iter();
    let others = managers.filter(|(addr, _)| *addr != but);
    others.map(|(_, control)| control).collect()
}

/// The figure that so large a share of the sorted ones does not exceed.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "a few hundred figures"
)]
fn percentile(sorted: &[f64], share: f64) -> f64 {
    // The nearest rank: so many of them are not above it.
    let rank = (share * sorted.len() as f64).ceil() as usize;
    let at = rank.saturating_sub(1);
    sorted.get(at).copied().unwrap_or(f64::NAN)
}

/// A manager is killed, a service of many tasks comes about, and the manager is started again: the time until
/// it has all of it.
pub(crate) async fn catch_up() -> Result<(), Failure> {
    let mut cluster = Cluster::of(MANAGERS).await?;
    cluster.add_workers(WORKERS).await?;
    // The first one founded the cluster, and leads.
    let [stays, away] = cluster.others()[..] else {
        return Err("there are not three managers".into());
    };
    cluster.kill(away)?;
    let seconds = cluster.converge("web", TASKS).await?;
    say(&format!("{TASKS} tasks RUNNING after {seconds:.2} s"));
    let wanted = cluster.applied(stays).await?;
    let started = Instant::now();
    cluster.revive(away).await?;
    while cluster.applied(away).await? < wanted {
        patience(started, "the manager has not caught up")?;
        tokio::time::sleep(LOOK).await;
    }
    cluster.until_managers(MANAGERS).await?;
    let seconds = started.elapsed().as_secs_f64();
    let mut report = Report::default();
    report.add(json!({
        "bench": "catch-up", "case": "100k-tasks", "managers": MANAGERS, "tasks": TASKS, "runs": 1,
        "seconds": round(seconds), "reference": null, "bar": 5.0,
    }));
    report.finish("catch-up")
}
