//! swarmd processes in a temporary directory, and clients on the managers' control sockets.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use swarm_proto::pb;
use swarm_proto::pb::control_client::ControlClient;
use tempfile::TempDir;
use tokio::process::{Child, Command};
use tonic::transport::{Channel, Endpoint};

use super::Failure;

/// Longest wait for anything; a bench that takes longer has failed.
const PATIENCE: Duration = Duration::from_secs(120);
/// The kernel's unit of processor time as programs see it: the same on every Linux that runs swarmd.
const TICKS_PER_SECOND: f64 = 100.0;
/// The first manager's name.
const FIRST: &str = "manager";
/// Pause between two looks at something cheap.
const LOOK: Duration = Duration::from_millis(2);

/// A manager that runs no tasks, maybe more of them, and workers with the simulated executor. Ends when dropped.
#[derive(Debug)]
pub(crate) struct Cluster {
    // Fields drop in order: processes before the directory they write to.
    workers: Vec<Child>,
    manager: Child,
    /// All but the first.
    others: Vec<Manager>,
    /// A client of the first manager.
    pub(crate) control: ControlClient<Channel>,
    /// Where the first manager listens.
    pub(crate) addr: SocketAddr,
    dir: TempDir,
}

/// One manager of several.
#[derive(Debug)]
pub(crate) struct Manager {
    name: String,
    child: Child,
    /// A client of it.
    pub(crate) control: ControlClient<Channel>,
    addr: SocketAddr,
    /// Where it serves metrics.
    metrics: SocketAddr,
}

impl Cluster {
    /// A manager alone, from an empty state directory, once it has answered.
    pub(crate) async fn start() -> Result<Self, Failure> {
        let dir = tempfile::Builder::new().prefix("swarm-bench-").tempdir()?;
        let addr = free_address()?;
        let (manager, control) = start_manager(dir.path(), FIRST, addr, &[]).await?;
        Ok(Self {
            workers: Vec::new(),
            others: Vec::new(),
            manager,
            control,
            addr,
            dir,
        })
    }

    /// Stops the manager in order.
    pub(crate) async fn stop(&mut self) -> Result<(), Failure> {
        let pid = nix::unistd::Pid::from_raw(i32::try_from(self.manager_pid()?)?);
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM)?;
        self.manager.wait().await?;
        Ok(())
    }

    /// Starts a stopped manager from what it left, until it has answered.
    pub(crate) async fn start_again(&mut self) -> Result<(), Failure> {
        let started = start_manager(self.dir.path(), FIRST, self.addr, &[]).await?;
        (self.manager, self.control) = started;
        Ok(())
    }

    /// A cluster of that many managers, once all of them vote.
    pub(crate) async fn of(managers: usize) -> Result<Self, Failure> {
        let mut cluster = Self::start().await?;
        let token = cluster.tokens().await?.manager;
        for number in 1..managers {
            let (name, addr) = (format!("m{number}"), free_address()?);
            let to = cluster.addr.to_string();
            let metrics = free_address()?;
            let told = metrics.to_string();
            let more = ["--join-token", &token, "--join-addr", &to];
            let more = [&more[..], &["--listen-metrics", &told]].concat();
            let (child, control) = start_manager(cluster.dir.path(), &name, addr, &more).await?;
            cluster.others.push(Manager {
                name,
                child,
                control,
                addr,
                metrics,
            });
            cluster.until_managers(number + 1).await?;
        }
        Ok(cluster)
    }

    /// Returns once that many managers are members that answer the leader.
    pub(crate) async fn until_managers(&mut self, count: usize) -> Result<(), Failure> {
        let started = Instant::now();
        while self.reachable().await? < count {
            patience(started, "managers are not reachable")?;
            tokio::time::sleep(LOOK).await;
        }
        Ok(())
    }

    async fn reachable(&mut self) -> Result<usize, Failure> {
        use pb::raft_member_status::Reachability;
        let request = pb::ListNodesRequest::default();
        let nodes = self.control.list_nodes(request).await?.into_inner().nodes;
        let there = nodes.iter().filter_map(|node| node.manager_status.as_ref());
        let there = there.filter(|status| status.reachability() == Reachability::Reachable);
        Ok(there.count())
    }

    /// The managers, the first one first, as it is now: its address, a client.
    pub(crate) fn managers(&self) -> Vec<(SocketAddr, ControlClient<Channel>)> {
        let first = (self.addr, self.control.clone());
        let others = self.others.iter().map(|m| (m.addr, m.control.clone()));
        std::iter::once(first).chain(others).collect()
    }

    /// Kills the manager at an address.
    pub(crate) fn kill(&mut self, addr: SocketAddr) -> Result<(), Failure> {
        if addr == self.addr {
            return Ok(self.manager.start_kill()?);
        }
        let other = self.others.iter_mut().find(|m| m.addr == addr);
        Ok(other.ok_or("no such manager")?.child.start_kill()?)
    }

    /// Starts the killed manager at an address again, until it has answered.
    pub(crate) async fn revive(&mut self, addr: SocketAddr) -> Result<(), Failure> {
        if addr == self.addr {
            self.manager.wait().await?;
            return self.start_again().await;
        }
        let dir = self.dir.path().to_owned();
        let other = self.others.iter_mut().find(|m| m.addr == addr);
        let other = other.ok_or("no such manager")?;
        other.child.wait().await?;
        let metrics = other.metrics.to_string();
        let more = ["--listen-metrics", &metrics];
        (other.child, other.control) = start_manager(&dir, &other.name, addr, &more).await?;
        Ok(())
    }

    /// How far a manager, which is not the first, has applied the log.
    pub(crate) async fn applied(&self, addr: SocketAddr) -> Result<u64, Failure> {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let other = self.others.iter().find(|m| m.addr == addr);
        let metrics = other.ok_or("no such manager")?.metrics;
        let mut stream = tokio::net::TcpStream::connect(metrics).await?;
        let request = "GET /metrics HTTP/1.1\r\nhost: bench\r\nconnection: close\r\n\r\n";
        stream.write_all(request.as_bytes()).await?;
        let mut text = String::new();
        stream.read_to_string(&mut text).await?;
        let mut lines = text.lines();
        let applied = lines.find_map(|line| line.strip_prefix("swarm_raft_applied_index "));
        let applied = applied.ok_or("no applied index is told")?.trim();
        // Told as a decimal number.
        let whole = applied.split_once('.').map_or(applied, |(whole, _)| whole);
        Ok(whole.parse()?)
    }

    /// Those that are not the first.
    pub(crate) fn others(&self) -> Vec<SocketAddr> {
        self.others.iter().map(|m| m.addr).collect()
    }

    /// Where the leader listens, as the manager behind a client knows.
    pub(crate) async fn leader(
        control: &mut ControlClient<Channel>,
    ) -> Result<SocketAddr, Failure> {
        let request = pb::ListNodesRequest::default();
        let nodes = control.list_nodes(request).await?.into_inner().nodes;
        let statuses = nodes.into_iter().filter_map(|node| node.manager_status);
        let leader = statuses.into_iter().find(|status| status.leader);
        Ok(leader.ok_or("no manager leads")?.addr.parse()?)
    }

    /// Adds workers and waits until they are READY.
    pub(crate) async fn add_workers(&mut self, count: usize) -> Result<(), Failure> {
        let token = self.worker_token().await?;
        for i in 0..count {
            let name = format!("w{i}");
            let mut command = swarmd(self.dir.path(), &name)?;
            command
                .args(["--executor", "simulated", "--join-token", &token])
                .args(["--join-addr", &self.addr.to_string()]);
            self.workers.push(command.spawn()?);
        }
        self.until_ready(count).await
    }

    /// Returns once that many nodes besides the manager are READY.
    pub(crate) async fn until_ready(&mut self, count: usize) -> Result<(), Failure> {
        let started = Instant::now();
        loop {
            let request = pb::ListNodesRequest::default();
            let nodes = self.control.list_nodes(request).await?.into_inner().nodes;
            let ready = nodes.iter().filter(|node| {
                let status = node.status.as_ref();
                status.is_some_and(|s| s.state() == pb::node_status::State::Ready)
            });
            if ready.count() > count {
                return Ok(());
            }
            patience(started, "nodes are not READY")?;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// The token that workers join with.
    pub(crate) async fn worker_token(&mut self) -> Result<String, Failure> {
        Ok(self.tokens().await?.worker)
    }

    async fn tokens(&mut self) -> Result<pb::JoinTokens, Failure> {
        let request = pb::ListClustersRequest::default();
        let clusters = self.control.list_clusters(request).await?.into_inner();
        let cluster = clusters.clusters.into_iter().next();
        let tokens = cluster.and_then(|c| c.root_ca?.join_tokens);
        Ok(tokens.ok_or("the cluster has no join tokens")?)
    }

    /// Creates a service with that many replicas; says how long it took until all were RUNNING.
    pub(crate) async fn converge(&mut self, name: &str, replicas: u64) -> Result<f64, Failure> {
        let request = create(name, replicas);
        let started = Instant::now();
        let created = self.control.create_service(request).await?.into_inner();
        let id = created.service.ok_or("no service was created")?.id;
        loop {
            let request = pb::ListServiceStatusesRequest {
                services: vec![id.clone()],
            };
            let asked = Instant::now();
            let answer = self.control.list_service_statuses(request).await?;
            let statuses = answer.into_inner().statuses;
            if statuses.iter().any(|s| s.running_tasks == replicas) {
                return Ok(started.elapsed().as_secs_f64());
            }
            patience(started, "tasks are not RUNNING")?;
            // Counting is work for the manager too: asking takes a fifth of the time at most.
            tokio::time::sleep((4 * asked.elapsed()).max(LOOK)).await;
        }
    }

    /// Resident memory of the manager, in bytes.
    pub(crate) fn manager_rss(&self) -> Result<u64, Failure> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.manager_pid()?))?;
        let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:"));
        let kib = line.and_then(|l| l.split_whitespace().next());
        Ok(kib.ok_or("the kernel tells no VmRSS")?.parse::<u64>()? * 1024)
    }

    /// Processor time that manager and workers have taken so far.
    pub(crate) fn processor_seconds(&self) -> Result<f64, Failure> {
        let mut ticks = 0;
        let others = self.others.iter().map(|m| &m.child);
        for pid in std::iter::once(&self.manager)
            .chain(others)
            .chain(&self.workers)
            .filter_map(Child::id)
        {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
            // The name, in parentheses, may hold anything; user and system time are 12th and 13th after it.
            let (_, numbers) = stat.rsplit_once(')').ok_or("the kernel tells no times")?;
            for number in numbers.split_whitespace().skip(11).take(2) {
                ticks += number.parse::<u32>()?;
            }
        }
        Ok(f64::from(ticks) / TICKS_PER_SECOND)
    }

    fn manager_pid(&self) -> Result<u32, Failure> {
        Ok(self.manager.id().ok_or("the manager has ended")?)
    }
}

/// The program beside this one.
pub(crate) fn program() -> Result<PathBuf, Failure> {
    let path = std::env::current_exe()?.with_file_name("swarmd");
    if path.exists() {
        return Ok(path);
    }
    Err(format!("{} is missing: run `make release`", path.display()).into())
}

fn swarmd(dir: &Path, name: &str) -> Result<Command, Failure> {
    let mut command = Command::new(program()?);
    let log = std::fs::File::create(dir.join(format!("{name}.log")))?;
    command
        .args(["--hostname", name, "--state-dir"])
        .arg(dir.join(name))
        .arg("--listen-control-api")
        .arg(dir.join(format!("{name}.sock")))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .kill_on_drop(true);
    Ok(command)
}

async fn start_manager(
    dir: &Path,
    name: &str,
    addr: SocketAddr,
    join: &[&str],
) -> Result<(Child, ControlClient<Channel>), Failure> {
    let mut command = swarmd(dir, name)?;
    command
        .args(["--executor", "none", "--availability", "drain"])
        .args(["--listen-remote-api", &addr.to_string()])
        .args(join);
    let started = Instant::now();
    let mut child = command.spawn()?;
    let socket = format!("unix://{}", dir.join(format!("{name}.sock")).display());
    let endpoint = Endpoint::from_shared(socket)?;
    loop {
        // Accepted: the manager leads and has read its state.
        if let Ok(channel) = endpoint.connect().await {
            let mut control = ControlClient::new(channel).max_decoding_message_size(64 << 20);
            let request = pb::ListClustersRequest::default();
            if control.list_clusters(request).await.is_ok() {
                return Ok((child, control));
            }
        }
        if let Some(status) = child.try_wait()? {
            let log = std::fs::read_to_string(dir.join(format!("{name}.log")))?;
            return Err(format!("the manager ended with {status}: {log}").into());
        }
        patience(started, "the manager does not answer")?;
        tokio::time::sleep(LOOK).await;
    }
}

/// A port nobody uses now; another program may take it before swarmd does, and the bench fails.
fn free_address() -> Result<SocketAddr, Failure> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?)
}

/// A service, as it would be created.
pub(crate) fn create(name: &str, replicas: u64) -> pb::CreateServiceRequest {
    let container = pb::ContainerSpec {
        image: "example/web:1".to_owned(),
        ..Default::default()
    };
    let task = pb::TaskSpec {
        runtime: Some(pb::task_spec::Runtime::Container(container)),
        ..Default::default()
    };
    let mode = pb::service_spec::Mode::Replicated(pb::ReplicatedService { replicas });
    let spec = pb::ServiceSpec {
        annotations: Some(pb::Annotations {
            name: name.to_owned(),
            ..Default::default()
        }),
        task: Some(task),
        mode: Some(mode),
        ..Default::default()
    };
    pb::CreateServiceRequest {
        spec: Some(spec),
        ..Default::default()
    }
}

/// An error once a wait has lasted too long.
pub(crate) fn patience(started: Instant, what: &str) -> Result<(), Failure> {
    if started.elapsed() < PATIENCE {
        return Ok(());
    }
    Err(format!("{what} after {} s", PATIENCE.as_secs()).into())
}
