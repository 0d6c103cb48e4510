//! What all tasks of one node share: the parts of this backend, wired up; and the end of a
//! container, which needs no controller.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures::stream::{StreamExt as _, TryStreamExt as _};
use nix::sys::signal::Signal;
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
use super::stray;
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
/// A killed shim is gone at once; another one may come of a create that containerd is still giving up.
const STRAY_TRIES: u32 = 100;
/// How often it is asked before it is killed.
const STRAYS_ASKED: u32 = 5;
const STRAY_PAUSE: Duration = Duration::from_millis(50);
/// How often none must be found.
const STRAYS_QUIET: u32 = 2;
/// Containers asked at the same time how they are.
const ASKED_AT_ONCE: usize = 32;

/// How long a shim that is silent may stay so before its container is killed.
#[derive(Debug, Clone, Copy)]
pub(super) enum Patience {
    /// As long as the container has to stop: it may have been told to, and be about to.
    Grace,
    /// It has had its time.
    None,
}

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
    /// How many containers may be made at the same time, from their root file systems to their processes.
    pub making: tokio::sync::Semaphore,
    /// How many health checks runc may start at the same time.
    pub checking: tokio::sync::Semaphore,
}

/// Making a container is processor time for the most part, and waiting for containerd's disk for the rest: more at once
/// only makes each one later.
fn at_once() -> usize {
    const PER_PROCESSOR: usize = 3;
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
            making: tokio::sync::Semaphore::new(at_once()),
            checking: tokio::sync::Semaphore::new(at_once()),
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
        self.process_within(id, SILENCE_MAX).await
    }

    async fn process_within(&self, id: &str, limit: Duration) -> Result<Process, Failure> {
        let until = Instant::now() + limit;
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
        self.stop_with(id, Patience::Grace).await
    }

    /// The same; how long a shim may be silent meanwhile is the caller's to say.
    pub(super) async fn stop_with(
        &self,
        id: &str,
        patience: Patience,
    ) -> Result<Option<Exit>, Error> {
        let asked = futures::join!(self.containers.get(id), self.containers.process(id));
        let Some(container) = asked.0? else {
            return self.free(id).await.map(|()| None);
        };
        let how = spec::Stop::of_labels(&container.labels);
        let mut process = asked.1?;
        if process == Process::Silent {
            let limit = match patience {
                Patience::Grace => SILENCE_MAX.max(how.grace),
                Patience::None => Duration::ZERO,
            };
            process = self.process_within(id, limit).await?;
        }
        match process {
            Process::Absent => {
                self.free(id).await?;
                // Its removal may have been cut off after the process was gone and before its shim was.
                self.containers.delete_process(id).await?;
                return Ok(label::exit(&container.labels));
            }
            Process::Stopped { code } => return self.conclude(id, code).await.map(Some),
            // It never ran, so there is nobody to ask.
            Process::Created { .. } => {}
            Process::Silent => self.silence(id).await?,
            Process::Running { .. } => {
                // New connections go elsewhere before the container learns of its end.
                self.withdraw(id).await;
                self.containers.kill(id, how.signal, Target::Init).await?;
                if let Some(code) = self.ended_within(id, how.grace).await? {
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
        self.clear_cgroup(id).await?;
        if self.process(id).await? == Process::Silent {
            tracing::warn!(task.id = id, "its shim still does not answer; it is killed");
            self.end_shims(id, Signal::SIGKILL).await;
        }
        Ok(())
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
            Process::Absent => self.kill_strays(id).await?,
            Process::Stopped { .. } => {}
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

    /// Ends what was begun for a container and is lost to containerd. The record goes after them: as long as it is
    /// there, there may be more.
    async fn kill_strays(&self, id: &str) -> Result<(), Error> {
        match self.containers.get(id).await? {
            // Of one whose end was recorded containerd has known until then.
            Some(container) if label::exit(&container.labels).is_none() => {}
            Some(_) | None => return Ok(()),
        }
        let mut quiet = 0;
        for attempt in 0..STRAY_TRIES {
            let signal = if attempt < STRAYS_ASKED {
                Signal::SIGTERM
            } else {
                Signal::SIGKILL
            };
            let found = self.end_shims(id, signal).await;
            if found > 0 {
                tracing::warn!(task.id = id, %signal, "containerd has forgotten its shim, which is ended");
            }
            quiet = if found > 0 { 0 } else { quiet + 1 };
            if quiet == STRAYS_QUIET {
                return Ok(());
            }
            tokio::time::sleep(STRAY_PAUSE).await;
        }
        Err(Error::Temporary(format!(
            "task {id}: a shim that containerd has forgotten does not end"
        )))
    }

    async fn end_shims(&self, id: &str, signal: Signal) -> usize {
        let (namespace, container) = (self.client.namespace().to_owned(), id.to_owned());
        let end = move || stray::end_all(&namespace, &container, signal);
        tokio::task::spawn_blocking(end).await.unwrap_or(0)
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
