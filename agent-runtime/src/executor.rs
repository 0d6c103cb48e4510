//! The seam between the agent and whatever runs containers.
//!
//! An [`Executor`] describes the host and hands out one [`Controller`] a task. A controller owns
//! everything the runtime holds for its task, and each of its calls is idempotent: called again
//! after a crash it finds what is already there and goes on from it. Nothing here decides what
//! comes next; that is [`crate::step`].

use std::sync::Arc;

use swarm_proto::pb;
use tokio::sync::watch;

use crate::error::Error;
use crate::image::ImageStore;

/// Everything a controller needs to run one task, as the manager sent it.
#[derive(Debug, Clone, PartialEq)]
pub struct TaskOrder {
    /// The task: spec, names, assigned generic resources.
    pub task: Arc<pb::Task>,
    /// Who this node is; templates and labels refer to it.
    pub node: NodeFacts,
}

/// What a task may know of its node.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NodeFacts {
    /// Node id, 25 characters.
    pub id: String,
    /// Host name as reported by this node.
    pub hostname: String,
    /// Operating system, in Go's words: `linux`.
    pub os: String,
    /// Architecture, in Go's words: `amd64`, `arm64`.
    pub arch: String,
}

/// Runs tasks on this host.
#[tonic::async_trait]
pub trait Executor: Send + Sync + std::fmt::Debug + 'static {
    /// `containerd`, `simulated` or `none`.
    fn name(&self) -> &'static str;

    /// What this host has: platform, resources, engine and plugins. The agent adds host name and TLS facts.
    async fn describe(&self) -> Result<pb::NodeDescription, Error>;

    /// What the running tasks take of this host now; nothing where that can't be told.
    async fn usage(&self) -> Vec<pb::TaskUsage> {
        Vec::new()
    }

    /// A controller for the task, whether it is new or was left running by an earlier swarmd.
    async fn controller(&self, order: TaskOrder) -> Result<Box<dyn Controller>, Error>;

    /// Ids of all tasks of which the runtime holds anything (also half-made), sorted. The agent
    /// removes those that are not assigned to this node.
    async fn held(&self) -> Result<Vec<String>, Error>;

    /// Removes everything the runtime holds for a task that has no controller. Idempotent.
    async fn discard(&self, task_id: &str) -> Result<(), Error>;

    /// Returns when connection to the runtime was lost and is back: the agent then asks all
    /// controllers again (a `wait` under way may have ended with [`Error::Unavailable`]).
    async fn healthy(&self) -> Result<(), Error>;

    /// The images of this node, for its operator.
    async fn images(&self) -> Result<Arc<dyn ImageStore>, Error> {
        Err(Error::Fatal(format!(
            "this node's executor, {}, keeps no images",
            self.name()
        )))
    }

    /// Removes whatever this node's executor made beyond its tasks (images, namespace, links). Used by leave.
    async fn purge(&self) -> Result<(), Error>;
}

/// Runs one task. Dropping a controller leaves its container alone.
#[tonic::async_trait]
pub trait Controller: Send + std::fmt::Debug {
    /// Makes the task ready to start: image, snapshot, sandbox, container. A notice is a sentence
    /// worth showing in the task's status (for example: started from the image present, registry unreachable).
    async fn prepare(&mut self) -> Result<Option<String>, Error>;

    /// Says how far a preparation is, in words for the task's status, whenever there is news.
    /// None where nothing of it takes long.
    fn progress(&self) -> Option<watch::Receiver<String>> {
        None
    }

    /// Starts the container and returns once it runs. Ok if it runs already.
    async fn start(&mut self) -> Result<(), Error>;

    /// The container as [`Controller::start`] left it, where this controller made it and so need not
    /// ask; else [`Controller::observe`] says it.
    fn started(&self) -> Option<Handle> {
        None
    }

    /// Waits until the container has ended. Ends at once when it already has.
    async fn wait(&mut self) -> Result<Exit, Error>;

    /// Asks the container to stop with its stop signal, and kills it after the grace period. Ok if nothing runs.
    /// How it ended is known to this controller, and need not be to a later one.
    async fn shutdown(&mut self) -> Result<(), Error>;

    /// Removes everything the runtime holds for this task. Ok if there is nothing.
    async fn remove(&mut self) -> Result<(), Error>;

    /// The container as it is now, also right after adoption. Of one that vanished, what it still
    /// holds on this host (ports, processes) is freed.
    async fn observe(&mut self) -> Result<Observed, Error>;
}

/// How a container ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exit {
    /// Exit code; 128 + signal number when a signal ended it.
    pub code: u32,
    /// True when the kernel killed it for memory.
    pub oom: bool,
    /// More to say, in words: which signal, what the runtime reported.
    pub detail: Option<String>,
}

/// A container's state as the runtime has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Observed {
    /// The runtime holds nothing for this task.
    Absent,
    /// Prepared, not started.
    Created(Handle),
    /// Running (or paused).
    Running(Handle),
    /// Ended.
    Exited(Handle, Exit),
}

/// Names a container on its host.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Handle {
    /// The runtime's container id.
    pub container_id: String,
    /// Process id on the host; zero when there is none.
    pub pid: u32,
    /// Host ports in use for this task.
    pub ports: Vec<pb::PortConfig>,
}
