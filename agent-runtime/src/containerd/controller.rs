//! One task on containerd: [`Controller`] over the parts of this backend.
//!
//! The truth is in containerd (record, process, labels) and in the task's directory; a controller
//! holds nothing that could not be asked again, so one that is made after a restart of swarmd is
//! as good as the one before.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;

use super::container::Process;
use super::healthcheck::Watch;
use super::label;
use super::making::{Made, Making};
use super::network::PortMap;
use super::node::{Node, Patience};
use super::support::{self, Network};
use crate::error::Error;
use crate::executor::{Controller, Exit, Handle, Observed, TaskOrder};
use crate::health::Monitor;
use crate::step::brief;

/// A start that may not be the first takes no longer than this, unless it hangs: what runc does for
/// it takes milliseconds.
const START_AGAIN_MAX: Duration = Duration::from_secs(10);

/// Runs one task on containerd.
#[derive(Debug)]
pub(super) struct ContainerdController {
    node: Arc<Node>,
    order: TaskOrder,
    /// The container that is being made.
    making: JoinSet<Result<Made, Error>>,
    /// The health checks of the running container, since its start.
    watch: Option<Watch>,
    /// How far its preparation is.
    progress: watch::Sender<String>,
    /// This controller has just made it, and nobody has tried to start it.
    fresh: bool,
    /// The container as this controller made and started it: nobody need be asked.
    made: Option<Handle>,
    /// This controller has stopped it: there is no process, and its exit where that is known.
    stopped: Option<Option<Exit>>,
}

impl ContainerdController {
    pub(super) fn new(node: Arc<Node>, order: TaskOrder) -> Self {
        Self {
            node,
            order,
            making: JoinSet::new(),
            watch: None,
            progress: watch::Sender::default(),
            fresh: false,
            made: None,
            stopped: None,
        }
    }

    fn id(&self) -> &str {
        &self.order.task.id
    }

    /// Waits for what an earlier, given up call has begun.
    async fn settle(&mut self) {
        while self.making.join_next().await.is_some() {}
    }

    /// True if there is a container that [`Controller::start`] can go on from.
    async fn prepared(&self) -> Result<bool, Error> {
        let Some(container) = self.node.containers.get(self.id()).await? else {
            return Ok(false);
        };
        if label::exit(&container.labels).is_some() {
            return Ok(true);
        }
        let pid = match self.node.containers.process(self.id()).await? {
            Process::Absent => return Ok(false),
            // Starting it finds out about one whose shim is silent.
            Process::Running { .. } | Process::Stopped { .. } | Process::Silent => return Ok(true),
            Process::Created { pid } => pid,
        };
        // It is connected after its process was made: swarmd may have ended between the two.
        let Some(address) = label::address(&container.labels) else {
            return Ok(true);
        };
        match self.node.network.attach(self.id(), pid, address).await {
            Ok(()) => Ok(true),
            Err(error) => {
                tracing::warn!(task.id = self.id(), %error, "its container is made anew");
                Ok(false)
            }
        }
    }

    /// Waits for the container's end. `None`: the container is gone, and nobody knows its exit.
    async fn ended(&self) -> Result<Option<Exit>, Error> {
        if let Some(exit) = self.exit_when_stopped() {
            return Ok(Some(exit));
        }
        // Nobody has recorded one of a process that this controller has just started.
        if self.made.is_none()
            && let Some(exit) = self.node.exit_recorded(self.id()).await?
        {
            return Ok(Some(exit));
        }
        let failure = match self.node.containers.wait(self.id()).await {
            Ok(code) => return self.node.conclude(self.id(), code).await.map(Some),
            Err(failure) if failure.is_absent() => {
                return self.node.exit_recorded(self.id()).await;
            }
            Err(failure) => failure,
        };
        let error = Error::from(failure);
        if matches!(error, Error::Unavailable { .. }) {
            return Err(error);
        }
        // A shim that was killed takes the exit with it.
        match self.node.containers.process(self.id()).await? {
            Process::Absent => Ok(None),
            Process::Stopped { code } => self.node.conclude(self.id(), code).await.map(Some),
            Process::Created { .. } | Process::Running { .. } | Process::Silent => Err(error),
        }
    }

    /// Starts the process, unless it has been.
    async fn begin(&mut self) -> Result<(), Error> {
        // Of one that was just made nobody else knows.
        let fresh = std::mem::take(&mut self.fresh);
        if !fresh && !self.waits().await? {
            return Ok(());
        }
        let ports = support::host_ports(&self.order.task)?;
        if !ports.is_empty() && support::network(&self.order.task, &ports)? == Network::Bridged {
            let map = self.node.network.publish(self.id(), &ports).await?;
            let labels = BTreeMap::from([(label::PORTS.to_owned(), map.to_string())]);
            self.node.containers.label(self.id(), labels).await?;
            if let Some(made) = &mut self.made {
                made.ports = map.ports(&self.order.task);
            }
        }
        let starting = self.node.containers.start(self.id());
        // The first one has its own limit, which says nothing of the process.
        let limit = if fresh {
            Duration::MAX
        } else {
            START_AGAIN_MAX
        };
        let started = match tokio::time::timeout(limit, starting).await {
            Ok(started) => started,
            Err(_) => match self.node.process(self.id()).await? {
                // The host is slow, and the answer with it.
                Process::Running { .. } | Process::Stopped { .. } => return Ok(()),
                Process::Absent | Process::Created { .. } | Process::Silent => {
                    return Err(self.half_started().await);
                }
            },
        };
        let Err(failure) = started else {
            return Ok(());
        };
        // What this controller knows may have changed since.
        self.made = None;
        // Started by an earlier call, maybe one whose answer was lost?
        if !self.waits().await? {
            return Ok(());
        }
        self.node.network.unpublish(self.id()).await?;
        Err(failure.into())
    }

    /// A start was cut off half-way, mostly with containerd or an earlier swarmd: runc has let the process
    /// go and does not know of it. Nobody can start it any more, or look into it.
    async fn half_started(&self) -> Error {
        if let Err(error) = self.node.stop_with(self.id(), Patience::None).await {
            return passing(error);
        }
        Error::Fatal(format!(
            "task {}: its start has stopped half-way (containerd or swarmd ended meanwhile, or the runtime hangs), and \
             can't be made good",
            self.id()
        ))
    }

    /// How it ended when this controller stopped it.
    fn exit_when_stopped(&self) -> Option<Exit> {
        self.stopped.clone().flatten()
    }

    /// True if the process is there and was not started yet; false if it was.
    async fn waits(&self) -> Result<bool, Error> {
        if self.exit_when_stopped().is_some() {
            return Ok(false);
        }
        match self.node.process(self.id()).await? {
            Process::Created { .. } => Ok(true),
            Process::Running { .. } | Process::Stopped { .. } => Ok(false),
            Process::Silent => Err(self.half_started().await),
            Process::Absent => match self.node.exit_recorded(self.id()).await? {
                Some(_) => Ok(false),
                None => Err(self.gone().await),
            },
        }
    }

    /// Waits until the container is healthy, if it is checked, or has ended.
    async fn until_healthy(&mut self) -> Result<(), Error> {
        // It runs already: what can't be read now says nothing against it.
        let check = self.node.files.of(self.id()).read_health();
        let Some(check) = check.map_err(passing)? else {
            return Ok(());
        };
        let mut watch = Watch::new(Monitor::starting(check));
        let healthy = tokio::select! {
            biased;
            ended = self.node.containers.wait(self.id()) => return match ended {
                Err(failure) if !failure.is_absent() => Err(passing(failure.into())),
                // How it ended is told by waiting for it.
                Ok(_) | Err(_) => Ok(()),
            },
            healthy = watch.until_healthy(&self.node, self.id()) => healthy,
        };
        match healthy {
            Ok(()) => {
                self.watch = Some(watch);
                Ok(())
            }
            // How it ended is told by waiting for it.
            Err(_) if !self.runs().await? => Ok(()),
            Err(reason) => {
                self.stop_unhealthy(&reason).await?;
                Err(unhealthy(&reason))
            }
        }
    }

    async fn runs(&self) -> Result<bool, Error> {
        match self.node.containers.process(self.id()).await {
            Ok(Process::Running { .. } | Process::Silent) => Ok(true),
            Ok(Process::Absent | Process::Created { .. } | Process::Stopped { .. }) => Ok(false),
            Err(failure) => Err(passing(failure.into())),
        }
    }

    /// Waits for the container's end, which is brought about when it becomes unhealthy.
    async fn end(&mut self) -> Result<End, Error> {
        if self.watch.is_none() {
            let check = self.node.files.of(self.id()).read_health()?;
            self.watch = check.map(|check| Watch::new(Monitor::healthy(check)));
        }
        let Some(mut watch) = self.watch.take() else {
            return self.ended().await.map(End::of);
        };
        // An earlier swarmd may have ended while it stopped an unhealthy one.
        let found = self.found_unhealthy().await?;
        let reason = match found {
            Some(reason) => reason,
            None => {
                let reason = tokio::select! {
                    biased;
                    // What follows from its end is not to be given up half-way.
                    _ = self.node.containers.wait(self.id()) => None,
                    reason = watch.until_unhealthy(&self.node, self.id()) => Some(reason),
                };
                match reason {
                    Some(reason) if self.runs().await? => reason,
                    Some(_) | None => {
                        self.watch = Some(watch);
                        return self.ended().await.map(End::of);
                    }
                }
            }
        };
        self.watch = Some(watch);
        self.stop_unhealthy(&reason).await?;
        Ok(End::Unhealthy(reason))
    }

    /// Why the container was found unhealthy, if it was.
    async fn found_unhealthy(&self) -> Result<Option<String>, Error> {
        let container = self.node.containers.get(self.id()).await?;
        Ok(container.and_then(|container| container.labels.get(label::UNHEALTHY).cloned()))
    }

    /// Stops an unhealthy container. That it was is noted first: the exit code of one that stops
    /// when asked would look like a good end.
    async fn stop_unhealthy(&self, reason: &str) -> Result<(), Error> {
        // A label takes some thousand bytes.
        let labels = BTreeMap::from([(label::UNHEALTHY.to_owned(), brief(reason.to_owned()))]);
        let labelled = self.node.containers.label(self.id(), labels).await;
        labelled.map_err(|failure| passing(failure.into()))?;
        let stopped = self.node.stop(self.id()).await.map_err(passing)?;
        // It stays until the manager takes the task away: an adopted one has not vanished.
        let Some(exit) = stopped else { return Ok(()) };
        let labels = label::of_exit(exit.code, exit.oom);
        let labelled = self.node.containers.label(self.id(), labels).await;
        labelled.map_err(|failure| passing(failure.into()))
    }

    /// The container is gone; what it may have left running goes too.
    async fn gone(&self) -> Error {
        if let Err(error) = self.node.free(self.id()).await {
            return error;
        }
        Error::Fatal(format!(
            "task {}: its container is gone: it was removed outside of swarmd, or the host restarted",
            self.id()
        ))
    }
}

/// How a container ended.
enum End {
    Exited(Exit),
    /// Nobody knows.
    Gone,
    /// It was stopped for that.
    Unhealthy(String),
}

impl End {
    fn of(exit: Option<Exit>) -> Self {
        exit.map_or(Self::Gone, Self::Exited)
    }
}

/// In SwarmKit's words.
fn unhealthy(reason: &str) -> Error {
    Error::Fatal(format!("unhealthy container: {reason}"))
}

/// What containerd says no to says nothing about the container that was asked for: it may run.
fn passing(error: Error) -> Error {
    match error {
        Error::Fatal(reason) => Error::Temporary(reason),
        other @ (Error::Temporary(_) | Error::Unavailable { .. }) => other,
    }
}

#[tonic::async_trait]
impl Controller for ContainerdController {
    async fn prepare(&mut self) -> Result<Option<String>, Error> {
        self.settle().await;
        (self.fresh, self.made, self.stopped) = (false, None, None);
        // A task's files are made first, and removed last.
        if self.node.files.of(self.id()).exist() {
            if self.prepared().await? {
                return Ok(None);
            }
            // Whatever an earlier try left half-made is made anew.
            self.node.remove(self.id()).await?;
        }
        let making = Making {
            node: Arc::clone(&self.node),
            order: self.order.clone(),
        };
        let image = making.image(&self.progress).await?;
        // From here on not given up half-way when this call is: a request that containerd has
        // begun may finish after everything was removed.
        self.making.spawn(async move { making.make(image).await });
        let made = match self.making.join_next().await {
            Some(Ok(result)) => result?,
            Some(Err(_)) | None => {
                return Err(Error::Temporary(format!(
                    "task {}: making its container was given up",
                    self.id()
                )));
            }
        };
        (self.fresh, self.made) = (true, Some(made.handle));
        Ok(made.notice)
    }

    fn progress(&self) -> Option<watch::Receiver<String>> {
        Some(self.progress.subscribe())
    }

    async fn start(&mut self) -> Result<(), Error> {
        self.begin().await?;
        self.until_healthy().await
    }

    fn started(&self) -> Option<Handle> {
        self.made.clone()
    }

    async fn wait(&mut self) -> Result<Exit, Error> {
        match self.end().await.map_err(passing)? {
            End::Exited(exit) => Ok(exit),
            End::Gone => Err(self.gone().await),
            End::Unhealthy(reason) => Err(unhealthy(&reason)),
        }
    }

    async fn shutdown(&mut self) -> Result<(), Error> {
        self.settle().await;
        // Stopped again, it has nothing more to say.
        let exit = self.node.stop(self.id()).await?;
        self.stopped = Some(exit.or(self.exit_when_stopped()));
        Ok(())
    }

    async fn remove(&mut self) -> Result<(), Error> {
        self.settle().await;
        match self.stopped.take() {
            Some(Some(_)) => self.node.remove_rest(self.id()).await,
            // Nobody saw it end: containerd may be making it still, for a swarmd that is gone.
            Some(None) | None => self.node.remove(self.id()).await,
        }
    }

    async fn observe(&mut self) -> Result<Observed, Error> {
        self.settle().await;
        let Some(container) = self.node.containers.get(self.id()).await? else {
            self.node.free(self.id()).await?;
            return Ok(Observed::Absent);
        };
        let handle = |pid: u32| Handle {
            container_id: container.id.clone(),
            pid,
            ports: PortMap::of_labels(&container.labels).ports(&self.order.task),
        };
        if let Some(exit) = label::exit(&container.labels).or_else(|| self.exit_when_stopped()) {
            return Ok(Observed::Exited(handle(0), exit));
        }
        match self.node.containers.process(self.id()).await? {
            // A record without process is half-made, or its host restarted: nothing to go on from.
            Process::Absent => {
                self.node.free(self.id()).await?;
                Ok(Observed::Absent)
            }
            Process::Created { pid } => Ok(Observed::Created(handle(pid))),
            Process::Running { pid } => Ok(Observed::Running(handle(pid))),
            Process::Stopped { code } => {
                let exit = self.node.conclude(self.id(), code).await?;
                Ok(Observed::Exited(handle(0), exit))
            }
            // It may run, as far as anyone knows. Where it is yet to be started, that finds out.
            Process::Silent => {
                let known = self.made.clone();
                Ok(Observed::Running(known.unwrap_or_else(|| handle(0))))
            }
        }
    }
}
