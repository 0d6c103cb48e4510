//! What all tasks of one node share: the parts of this backend, wired up; and the end of a
//! container, which needs no controller.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures::stream::{StreamExt as _, TryStreamExt as _};
use tokio::time::Instant;

use super::ContainerdConfig;
use super::apparmor::AppArmor;
use super::cgroup::{self, Left};
use super::client::{Client, Failure};
use super::container::{Container, Containers, Process, Target};
use super::files::Files;
use super::image::Images;
use super::label;
use super::network::{Held, NodeNetwork};
use super::snapshot::Snapshots;
use super::spec;
use super::tool::Tool;
use crate::error::Error;
use crate::executor::Exit;

const SIGKILL: u32 = 9;
/// Exit code of a process that SIGKILL ended.
const KILLED: u32 = 137;
/// The kernel ends a killed process at once, unless it hangs in a dead disk or network mount.
const KILL_MAX: Duration = Duration::from_secs(30);
/// How long a shim that does not say how its process is may only be slow.
const SILENCE_MAX: Duration = Duration::from_secs(10);
const SILENCE_PAUSE: Duration = Duration::from_millis(200);
/// A killed process gives its cgroup up within milliseconds: five seconds in all.
const CGROUP_TRIES: u32 = 250;
const CGROUP_PAUSE: Duration = Duration::from_millis(20);
/// Containers asked at the same time how they are.
const ASKED_AT_ONCE: usize = 32;

/// The parts, for one containerd namespace and one state directory.
#[derive(Debug)]
pub(super) struct Node {
    pub client: Client,
    pub containers: Containers,
    pub snapshots: Snapshots,
    pub images: Images,
    pub files: Files,
    pub network: NodeNetwork,
    /// The processes beside and inside containers.
    pub tool: Tool,
    pub apparmor: Arc<AppArmor>,
    /// The socket of systemd's journal.
    pub journal: PathBuf,
    /// Held while new volumes are filled, by whoever fills them.
    pub filling: Arc<tokio::sync::Mutex<()>>,
    /// How many containers runc may make at the same time.
    pub making: tokio::sync::Semaphore,
    /// How many health checks runc may start at the same time.
    pub checking: tokio::sync::Semaphore,
}

/// Making a container is processor time for the most part: more at once only makes each one later.
fn making() -> usize {
    const PER_PROCESSOR: usize = 4;
    let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    processors * PER_PROCESSOR
}

impl Node {
    pub(super) fn new(config: &ContainerdConfig) -> Result<Self, Error> {
        let client = Client::new(&config.address, &config.namespace)?;
        Ok(Self {
            containers: Containers::new(client.clone()),
            snapshots: Snapshots::new(client.clone()),
            images: Images::new(client.clone(), config.registries.clone()),
            files: Files::new(config.state_dir.clone()),
            network: NodeNetwork::new(&config.namespace, config.node_netns()),
            tool: Tool::new(&config.program, &config.state_dir),
            apparmor: Arc::new(AppArmor::of_host()),
            journal: config.journal.clone(),
            client,
            filling: Arc::default(),
            making: tokio::sync::Semaphore::new(making()),
            checking: tokio::sync::Semaphore::new(making()),
        })
    }
}

impl Node {
    /// The containers that an earlier swarmd left.
    pub(super) async fn held(&self) -> Result<Vec<Held>, Error> {
        let containers = self.containers.list().await?;
        let ask = |container: Container| async move {
            // Only who has published ports need say whether it runs.
            let runs = container.labels.contains_key(label::PORTS)
                && label::exit(&container.labels).is_none()
                && self.runs(&container.id).await?;
            Ok(Held {
                id: container.id,
                labels: container.labels,
                runs,
            })
        };
        let asked: Vec<_> = containers.into_iter().map(ask).collect();
        futures::stream::iter(asked)
            .buffer_unordered(ASKED_AT_ONCE)
            .try_collect()
            .await
    }

    async fn runs(&self, id: &str) -> Result<bool, Error> {
        match self.containers.process(id).await {
            Ok(Process::Running { .. }) => Ok(true),
            Ok(Process::Absent | Process::Created { .. } | Process::Stopped { .. }) => Ok(false),
            Ok(Process::Silent) => Ok(true),
            Err(failure @ Failure::Away { .. }) => Err(failure.into()),
            // Something is slow, say: ports are not taken from a container that may serve.
            Err(failure) => {
                tracing::warn!(task.id = id, ?failure, "taken to be running");
                Ok(true)
            }
        }
    }

    /// How a task's process is; [`Process::Silent`] only when its shim has had time to say.
    pub(super) async fn process(&self, id: &str) -> Result<Process, Failure> {
        let until = Instant::now() + SILENCE_MAX;
        loop {
            let process = self.containers.process(id).await?;
            if process != Process::Silent || Instant::now() >= until {
                return Ok(process);
            }
            tokio::time::sleep(SILENCE_PAUSE).await;
        }
    }

    /// The exit that was recorded for a task whose process is gone.
    pub(super) async fn exit_recorded(&self, id: &str) -> Result<Option<Exit>, Error> {
        let container = self.containers.get(id).await?;
        Ok(container.and_then(|container| label::exit(&container.labels)))
    }

    /// Takes the task's ports back, if that can be done now. What follows matters more than a
    /// rule that leads nowhere: the next change of a rule, or the removal, takes it away.
    async fn withdraw(&self, id: &str) {
        if let Err(error) = self.network.unpublish(id).await {
            tracing::warn!(task.id = id, %error, "published ports are not taken back yet");
        }
    }

    /// Frees what a container held that vanished: ports, and processes containerd lost sight of.
    pub(super) async fn free(&self, id: &str) -> Result<(), Error> {
        self.withdraw(id).await;
        self.clear_cgroup(id).await
    }

    /// Records how a process ended by itself and frees what it held: ports, shim, cgroup.
    pub(super) async fn conclude(&self, id: &str, code: u32) -> Result<Exit, Error> {
        self.withdraw(id).await;
        let oom = self.oom(id, code);
        self.containers.label(id, label::of_exit(code, oom)).await?;
        self.containers.delete_process(id).await?;
        let exit = self.exit_recorded(id).await?;
        Ok(exit.unwrap_or(Exit {
            code,
            oom,
            detail: None,
        }))
    }

    /// True if the kernel killed it for memory.
    fn oom(&self, id: &str, code: u32) -> bool {
        code == KILLED && cgroup::oom_kills(self.client.namespace(), id) > 0
    }

    /// Stops the container of a task as its labels say, killing it after the grace period. How it
    /// ended is returned, where that is known, and not recorded: what was asked to end is removed next.
    pub(super) async fn stop(&self, id: &str) -> Result<Option<Exit>, Error> {
        let asked = futures::join!(self.containers.get(id), self.process(id));
        let Some(container) = asked.0? else {
            return self.free(id).await.map(|()| None);
        };
        match asked.1? {
            Process::Absent => {
                self.free(id).await?;
                return Ok(label::exit(&container.labels));
            }
            Process::Stopped { code } => return self.conclude(id, code).await.map(Some),
            // It never ran, so there is nobody to ask.
            Process::Created { .. } => {}
            Process::Silent => self.silence(id).await?,
            Process::Running { .. } => {
                // New connections go elsewhere before the container learns of its end.
                self.withdraw(id).await;
                let number = |name: &str| {
                    container
                        .labels
                        .get(name)
                        .and_then(|text| text.parse().ok())
                };
                let default = spec::Stop::default();
                let signal = number(label::STOP_SIGNAL)
                    .and_then(|signal| u32::try_from(signal).ok())
                    .unwrap_or(default.signal);
                let grace =
                    number(label::STOP_GRACE_MS).map_or(default.grace, Duration::from_millis);
                self.containers.kill(id, signal, Target::Init).await?;
                if let Some(code) = self.ended_within(id, grace).await? {
                    return self.finish(&container, code).await.map(Some);
                }
            }
        }
        let code = self.kill(id).await?;
        self.finish(&container, code).await.map(Some)
    }

    /// Takes the process away.
    async fn finish(&self, container: &Container, code: u32) -> Result<Exit, Error> {
        let exit = label::of_exit(code, self.oom(&container.id, code));
        self.containers.delete_process(&container.id).await?;
        let mut labels = container.labels.clone();
        labels.extend(exit);
        Ok(label::exit(&labels).unwrap_or(Exit {
            code,
            oom: false,
            detail: None,
        }))
    }

    /// Ends what runs of a container whose shim does not answer: it waits for runc, and runc for a
    /// process that a start which was cut off has left half-way. Once that is gone both go on.
    async fn silence(&self, id: &str) -> Result<(), Error> {
        tracing::warn!(
            task.id = id,
            "its shim does not answer; its processes are killed"
        );
        self.withdraw(id).await;
        self.clear_cgroup(id).await
    }

    /// Kills what runs in a container, and waits for its end.
    async fn kill(&self, id: &str) -> Result<u32, Error> {
        self.containers.kill(id, SIGKILL, Target::All).await?;
        let ended = self.ended_within(id, KILL_MAX).await?;
        ended.ok_or_else(|| {
            Error::Temporary(format!(
                "task {id}: its container does not end {KILL_MAX:?} after it was killed"
            ))
        })
    }

    async fn ended_within(&self, id: &str, limit: Duration) -> Result<Option<u32>, Error> {
        match tokio::time::timeout(limit, self.containers.wait(id)).await {
            Ok(Ok(code)) => Ok(Some(code)),
            // Somebody else saw the end and removed the process.
            Ok(Err(failure)) if failure.is_absent() => Ok(Some(KILLED)),
            Ok(Err(failure)) => Err(failure.into()),
            Err(_) => Ok(None),
        }
    }

    /// Removes everything there is of a task. What runs is killed.
    pub(super) async fn remove(&self, id: &str) -> Result<(), Error> {
        match self.process(id).await? {
            Process::Absent | Process::Stopped { .. } => {}
            Process::Created { .. } | Process::Running { .. } => drop(self.kill(id).await?),
            Process::Silent => {
                self.silence(id).await?;
                self.kill(id).await?;
            }
        }
        // Also where there is none: a shim whose process was never made is one all the same.
        self.containers.delete_process(id).await?;
        self.remove_rest(id).await
    }

    /// Removes everything there is of a task whose process is gone.
    pub(super) async fn remove_rest(&self, id: &str) -> Result<(), Error> {
        self.network.unpublish(id).await?;
        self.clear_cgroup(id).await?;
        let (record, root) =
            futures::join!(self.containers.delete(id), self.snapshots.remove_root(id));
        record?;
        root?;
        self.network.release(id);
        let files = self.files.of(id);
        // Volumes of its own may hold much. Last: they say that there may be more of it.
        let removed = tokio::task::spawn_blocking(move || files.remove()).await;
        removed
            .map_err(|_| Error::Temporary(format!("task {id}: removing its files was given up")))?
    }

    /// Ends what runs in a task's cgroup without containerd knowing of it, and removes the cgroup.
    pub(super) async fn clear_cgroup(&self, id: &str) -> Result<(), Error> {
        for _ in 0..CGROUP_TRIES {
            if cgroup::clear(self.client.namespace(), id) == Left::Nothing {
                return Ok(());
            }
            tokio::time::sleep(CGROUP_PAUSE).await;
        }
        Err(Error::Temporary(format!(
            "task {id}: its cgroup can't be removed, something runs in it"
        )))
    }
}
