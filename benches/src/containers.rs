//! Real containers on three hosts of one machine: how long they take to start and to stop, from the request to the last of
//! them, beside a plain client of the same containerd that makes and removes the same ones in the same run; and what a
//! worker with a hundred of them holds in memory.

use std::time::{Duration, Instant};

use lab::node::REMOTE_API_PORT;
use lab::{Lab, Node};
use serde_json::json;
use swarm_proto::pb;
use swarm_proto::pb::control_client::ControlClient;
use tokio::task::JoinSet;
use tonic::transport::{Channel, Endpoint};

use super::Failure;
use super::plain::Plain;
use super::report::{Report, round, say, spread};

const HOSTS: usize = 3;
const CONTAINERS: usize = 30;
const RUNS: usize = 9;
/// What ours must stay below, of the time of the plain client.
const BAR: f64 = 1.15;
const MANY: usize = 100;
const MIB: u64 = 1 << 20;
/// Longest wait for anything.
const PATIENCE: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_millis(5);
/// The same while most of it is yet to come, beside that.
const LOOK_EARLY: Duration = Duration::from_millis(20);
/// Time for a subscription to be made.
const LISTEN: Duration = Duration::from_millis(200);
/// Quiet time before memory is read.
const SETTLE: Duration = Duration::from_secs(5);

/// `bench start`: also measures how long stopping takes.
pub(crate) async fn run() -> Result<(), Failure> {
    let mut hosts = Hosts::start(HOSTS).await?;
    let namespaces: Vec<String> = hosts
        .nodes
        .iter()
        .map(|node| node.host.namespace.clone())
        .collect();
    let [mut start, mut stop, mut plain_start, mut plain_stop] = [const { Vec::new() }; 4];
    for run in 0..RUNS {
        // One container on each host: what the plain client's are made like, and the image is there.
        hosts.scale("like", HOSTS).await?;
        let (started, stopped) = hosts.plain.make_and_remove(&namespaces, CONTAINERS).await?;
        plain_start.push(started);
        plain_stop.push(stopped);
        hosts.remove("like", HOSTS).await?;
        start.push(hosts.scale("web", CONTAINERS).await?);
        stop.push(hosts.remove("web", CONTAINERS).await?);
        say(&format!(
            "run {run}: start {:.2} s, plain client {started:.2} s; stop {:.2} s, plain client {stopped:.2} s",
            start.last().copied().unwrap_or_default(),
            stop.last().copied().unwrap_or_default()
        ));
    }
    for (bench, ours, plain) in [("start", start, plain_start), ("stop", stop, plain_stop)] {
        let (median, min, max) = spread(&ours).ok_or("no run")?;
        let (reference, ..) = spread(&plain).ok_or("no run")?;
        let mut report = Report::default();
        report.add(json!({
            "bench": bench, "case": "30x3", "containers": CONTAINERS, "nodes": HOSTS, "runs": RUNS,
            "seconds": round(median), "min": round(min), "max": round(max),
            "reference": round(reference), "bar": round(reference * BAR),
        }));
        report.finish(bench)?;
    }
    Ok(())
}

/// `bench agent`: a worker's memory.
pub(crate) async fn agent() -> Result<(), Failure> {
    let mut hosts = Hosts::start(2).await?;
    hosts.only_on_workers = true;
    hosts.scale("web", MANY).await?;
    tokio::time::sleep(SETTLE).await;
    let worker = hosts
        .nodes
        .get(1)
        .and_then(Node::pid)
        .ok_or("the worker has ended")?;
    let mut report = Report::default();
    report.add(json!({
        "bench": "agent", "case": "rss-100", "tasks": MANY, "bytes": rss(worker)?,
        "reference": null, "bar": 40 * MIB,
    }));
    report.finish("agent")
}

fn rss(pid: u32) -> Result<u64, Failure> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().next());
    Ok(kib.ok_or("the kernel tells no VmRSS")?.parse::<u64>()? * 1024)
}

/// A cluster on hosts of a lab: a manager, which also runs tasks, and workers.
struct Hosts {
    // Ended, in this order, before the lab is swept.
    nodes: Vec<Node>,
    plain: Plain,
    control: ControlClient<Channel>,
    image: String,
    only_on_workers: bool,
    _lab: Lab,
}

impl Hosts {
    async fn start(count: usize) -> Result<Self, Failure> {
        if !lab::lab::available("containers on hosts") {
            return Err("this bench needs root, containerd and docker-registry".into());
        }
        let mut lab = Lab::new()?;
        let image = lab.push_web()?;
        let mut nodes = vec![lab.node("n1", None)?];
        for node in &mut nodes {
            node.wait_ready()?;
        }
        let socket = nodes.first().map(Node::socket).ok_or("no manager")?;
        let endpoint = Endpoint::from_shared(format!("unix://{}", socket.display()))?;
        let mut control = ControlClient::new(endpoint.connect().await?);
        let clusters = control
            .list_clusters(pb::ListClustersRequest::default())
            .await?;
        let cluster = clusters.into_inner().clusters.into_iter().next();
        let tokens = cluster.and_then(|cluster| cluster.root_ca?.join_tokens);
        let token = tokens.ok_or("the cluster has no join tokens")?.worker;
        let manager = nodes
            .first()
            .map(|node| node.host.address)
            .ok_or("no manager")?;
        for number in 1..count {
            let join = (format!("{manager}:{REMOTE_API_PORT}"), token.clone());
            nodes.push(lab.node(&format!("n{}", number + 1), Some(join))?);
        }
        let plain = Plain::connect(&lab.containerd.socket()).await?;
        let mut hosts = Self {
            nodes,
            plain,
            control,
            image,
            only_on_workers: false,
            _lab: lab,
        };
        hosts.until_ready().await?;
        Ok(hosts)
    }

    async fn until_ready(&mut self) -> Result<(), Failure> {
        let begin = Instant::now();
        loop {
            let request = pb::ListNodesRequest::default();
            let nodes = self.control.list_nodes(request).await?.into_inner().nodes;
            let ready = nodes.iter().filter(|node| {
                let status = node.status.as_ref();
                status.is_some_and(|status| status.state() == pb::node_status::State::Ready)
            });
            if ready.count() == self.nodes.len() {
                return Ok(());
            }
            pause(begin, "nodes are not READY").await?;
        }
    }

    /// Creates a service; the seconds until all of its tasks are RUNNING.
    async fn scale(&mut self, name: &str, replicas: usize) -> Result<f64, Failure> {
        let request = self.service(name, replicas);
        let begin = Instant::now();
        let created = self.control.create_service(request).await?.into_inner();
        let id = created.service.ok_or("no service was created")?.id;
        loop {
            let request = pb::ListServiceStatusesRequest {
                services: vec![id.clone()],
            };
            let answer = self.control.list_service_statuses(request).await?;
            let mut statuses = answer.into_inner().statuses.into_iter();
            let running = statuses.next().map_or(0, |status| status.running_tasks);
            match (replicas as u64).saturating_sub(running) {
                0 => return Ok(begin.elapsed().as_secs_f64()),
                // Who looks takes of the processors that are measured.
                4.. => tokio::time::sleep(LOOK_EARLY).await,
                1..4 => {}
            }
            pause(begin, "tasks are not RUNNING").await?;
        }
    }

    /// Removes a service; the seconds until containerd holds none of its so many containers.
    async fn remove(&mut self, name: &str, replicas: usize) -> Result<f64, Failure> {
        let request = pb::ListServicesRequest::default();
        let services = self
            .control
            .list_services(request)
            .await?
            .into_inner()
            .services;
        let named = |service: &&pb::Service| {
            let annotations = service
                .spec
                .as_ref()
                .and_then(|spec| spec.annotations.as_ref());
            annotations.is_some_and(|annotations| annotations.name == name)
        };
        let service = services.iter().find(named).ok_or("no such service")?;
        let request = pb::RemoveServiceRequest {
            service_id: service.id.clone(),
        };
        let mut removals = JoinSet::new();
        removals.spawn(self.plain.clone().removals(replicas));
        // Nothing tells that it listens.
        tokio::time::sleep(LISTEN).await;
        let begin = Instant::now();
        self.control.remove_service(request).await?;
        let removed = tokio::time::timeout(PATIENCE, removals.join_next()).await?;
        let removed = removed.ok_or("nobody waits")???;
        Ok((removed - begin).as_secs_f64())
    }

    fn service(&self, name: &str, replicas: usize) -> pb::CreateServiceRequest {
        let container = pb::ContainerSpec {
            image: self.image.clone(),
            ..Default::default()
        };
        let constraints = match self.only_on_workers {
            true => vec!["node.role==worker".to_owned()],
            false => Vec::new(),
        };
        let task = pb::TaskSpec {
            runtime: Some(pb::task_spec::Runtime::Container(container)),
            placement: Some(pb::Placement {
                constraints,
                ..Default::default()
            }),
            ..Default::default()
        };
        let mode = pb::service_spec::Mode::Replicated(pb::ReplicatedService {
            replicas: replicas as u64,
        });
        pb::CreateServiceRequest {
            spec: Some(pb::ServiceSpec {
                annotations: Some(pb::Annotations {
                    name: name.to_owned(),
                    ..Default::default()
                }),
                task: Some(task),
                mode: Some(mode),
                ..Default::default()
            }),
            ..Default::default()
        }
    }
}

async fn pause(begin: Instant, what: &str) -> Result<(), Failure> {
    if begin.elapsed() > PATIENCE {
        return Err(format!("{what} after {} s", PATIENCE.as_secs()).into());
    }
    tokio::time::sleep(LOOK).await;
    Ok(())
}
