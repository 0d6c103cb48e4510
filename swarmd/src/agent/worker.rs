//! The tasks of this node: one driver each, started, told and removed as managers say.
//!
//! One loop owns them. What is assigned is on disk before it is driven. What the runtime holds and
//! nobody assigned (left by a crash, or while the agent's file was lost) is removed, but only once a
//! manager has told the complete set: a node without a manager removes nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use agent_runtime::step::Want;
use agent_runtime::{Error, NodeFacts, TaskOrder};
use swarm_proto::id::TaskId;
use swarm_proto::pb;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::{JoinError, JoinSet};

use super::assigned::{self, Message, Task};
use super::storage::{Restored, Storage, StorageError};
use super::task::{Driver, Origin, Shared};
use super::{AgentStatus, LeaveError};

/// Pause before the runtime is asked again for what it holds, or told again to remove it.
const PAUSE: Duration = Duration::from_secs(1);
/// Tries to remove what one leftover task holds, when the node leaves.
const DISCARD_TRIES: u32 = 5;

/// What the worker is asked to do.
#[derive(Debug)]
pub(super) enum Command {
    /// A manager's word.
    Assign(Message),
    /// Removes everything. Answers with how many tasks there were.
    Leave(oneshot::Sender<Result<u64, LeaveError>>),
}

/// The loop that owns the tasks.
#[derive(Debug)]
pub(super) struct Worker {
    shared: Arc<Shared>,
    storage: Arc<Storage>,
    node: NodeFacts,
    tasks: BTreeMap<TaskId, watch::Sender<Want>>,
    drivers: JoinSet<TaskId>,
    /// Finds out what the runtime holds, then removes what nobody assigned.
    cleaning: JoinSet<Vec<String>>,
    leftovers: Leftovers,
    status: watch::Sender<AgentStatus>,
}

/// How far this node is with what an earlier swarmd left in the runtime.
#[derive(Debug)]
enum Leftovers {
    /// The runtime has not said yet what it holds.
    Unknown {
        /// A manager has told the complete set.
        assigned: bool,
    },
    /// The runtime holds these; no manager has told the complete set yet.
    Held(BTreeSet<String>),
    /// All is accounted for.
    Settled,
}

impl Worker {
    pub(super) fn new(
        shared: Arc<Shared>,
        storage: Arc<Storage>,
        node: NodeFacts,
        status: watch::Sender<AgentStatus>,
    ) -> Self {
        Self {
            shared,
            storage,
            node,
            tasks: BTreeMap::new(),
            drivers: JoinSet::new(),
            cleaning: JoinSet::new(),
            leftovers: Leftovers::Unknown { assigned: false },
            status,
        }
    }

    /// Goes on with the tasks of an earlier run, then does what managers say until it is dropped.
    pub(super) async fn run(mut self, restored: Restored, mut commands: mpsc::Receiver<Command>) {
        let count = restored.tasks.len();
        for task in restored.tasks {
            let Some(id) = id_of(&task) else { continue };
            if let Some(status) = restored.statuses.get(&id) {
                self.shared.statuses.restore(id, Arc::clone(status));
            }
            self.drive((id, task), Origin::Adopted);
        }
        if count > 0 {
            tracing::info!(tasks = count, "tasks of the last run are taken up again");
        }
        self.cleaning.spawn(held(Arc::clone(&self.shared)));
        self.count();
        loop {
            tokio::select! {
                biased;
                Some(ended) = self.drivers.join_next() => self.ended(ended),
                Some(held) = self.cleaning.join_next() => self.held(held),
                command = commands.recv() => match command {
                    Some(Command::Assign(message)) => self.assign(message).await,
                    Some(Command::Leave(answer)) => {
                        let left = self.leave().await;
                        // Who asked may have gone away.
                        let _ = answer.send(left);
                    }
                    None => return,
                },
            }
        }
    }

    fn ended(&mut self, ended: Result<TaskId, JoinError>) {
        match ended {
            Ok(id) => {
                self.tasks.remove(&id);
                self.shared.statuses.forget(id);
                self.count();
            }
            Err(error) if error.is_panic() => {
                // The container is as it was; the driver starts again with the next swarmd.
                tracing::error!(%error, "a task's driver failed; restart swarmd to drive the task again");
            }
            Err(_) => {}
        }
    }

    async fn assign(&mut self, message: Message) {
        let complete = matches!(message, Message::Complete(_));
        let known = self.tasks.iter().map(|(id, want)| (*id, *want.borrow()));
        let plan = assigned::plan(&known.collect(), message);
        let changed = plan.change.iter().map(|(task, _)| task.clone());
        let put: Vec<Task> = plan.start.iter().cloned().chain(changed).collect();
        if let Err(error) = self.persist(put, plan.remove.clone()).await {
            // Run all the same: the tasks are wanted, and a manager tells again after a restart.
            tracing::error!(%error, "assignments are not saved");
        }
        for ((id, _), want) in plan.change {
            self.want(id, want);
        }
        for id in plan.remove {
            self.want(id, Want::Gone);
        }
        for task in plan.start {
            let origin = self.leftovers.origin(&task.1.id);
            self.drive(task, origin);
        }
        if complete {
            self.clean();
        }
        self.count();
    }

    async fn persist(&self, put: Vec<Task>, remove: Vec<TaskId>) -> Result<(), StorageError> {
        if put.is_empty() && remove.is_empty() {
            return Ok(());
        }
        let storage = Arc::clone(&self.storage);
        let write = tokio::task::spawn_blocking(move || storage.assign(&put, &remove));
        // Cancelled only when the whole process stops.
        write.await.unwrap_or(Ok(()))
    }

    fn want(&self, id: TaskId, want: Want) {
        if let Some(sender) = self.tasks.get(&id) {
            sender.send_if_modified(|now| {
                let grows = want > *now;
                if grows {
                    *now = want;
                }
                grows
            });
        }
    }

    fn drive(&mut self, (id, task): Task, origin: Origin) {
        let (sender, want) = watch::channel(Want::of(task.desired_state()));
        let order = TaskOrder {
            task,
            node: self.node.clone(),
        };
        let driver = Driver::new(id, Arc::clone(&self.shared), order, want, origin);
        self.tasks.insert(id, sender);
        self.drivers.spawn(driver.run());
    }

    /// The runtime says what it holds, or is done removing.
    fn held(&mut self, held: Result<Vec<String>, JoinError>) {
        let Ok(held) = held else { return };
        match self.leftovers {
            Leftovers::Unknown { assigned } => {
                self.leftovers = Leftovers::Held(held.into_iter().collect());
                if assigned {
                    self.clean();
                }
            }
            Leftovers::Held(_) | Leftovers::Settled => {}
        }
    }

    /// Removes what the runtime holds and nobody assigned. A manager has told the complete set.
    fn clean(&mut self) {
        let held = match &mut self.leftovers {
            Leftovers::Unknown { assigned } => {
                *assigned = true;
                return;
            }
            Leftovers::Held(held) => std::mem::take(held),
            Leftovers::Settled => return,
        };
        self.leftovers = Leftovers::Settled;
        let ours = |id: &String| id.parse().is_ok_and(|id| self.tasks.contains_key(&id));
        let left: Vec<String> = held.into_iter().filter(|id| !ours(id)).collect();
        if !left.is_empty() {
            tracing::info!(
                tasks = left.len(),
                "removing what earlier tasks left in the runtime"
            );
            self.cleaning.spawn(discard(Arc::clone(&self.shared), left));
        }
    }

    async fn leave(&mut self) -> Result<u64, LeaveError> {
        let count = self.tasks.len() as u64;
        let all: Vec<TaskId> = self.tasks.keys().copied().collect();
        for id in &all {
            self.want(*id, Want::Gone);
        }
        let persisted = self.persist(Vec::new(), all).await;
        while let Some(ended) = self.drivers.join_next().await {
            self.ended(ended);
        }
        self.cleaning.shutdown().await;
        let executor = &self.shared.executor;
        let held = executor.held().await.map_err(runtime)?;
        for id in &held {
            self.discard_or_fail(id).await?;
        }
        executor.purge().await.map_err(runtime)?;
        persisted?;
        Ok(count)
    }

    async fn discard_or_fail(&self, id: &str) -> Result<(), LeaveError> {
        let mut tries = 0;
        loop {
            tries += 1;
            match self.shared.executor.discard(id).await {
                Ok(()) => return Ok(()),
                Err(error) if tries == DISCARD_TRIES => return Err(runtime(error)),
                Err(_) => self.shared.clock.sleep(PAUSE).await,
            }
        }
    }

    fn count(&self) {
        let tasks = self.tasks.len();
        self.status.send_if_modified(|status| {
            let changed = status.tasks != tasks;
            status.tasks = tasks;
            changed
        });
    }
}

fn runtime(error: Error) -> LeaveError {
    LeaveError::Runtime(error.to_string())
}

impl Leftovers {
    /// Whether the runtime may hold something of a task that is new to the agent.
    fn origin(&self, id: &str) -> Origin {
        match self {
            Self::Unknown { .. } => Origin::Adopted,
            Self::Held(held) if held.contains(id) => Origin::Adopted,
            Self::Held(_) | Self::Settled => Origin::New,
        }
    }
}

/// The id of a task. A task without one can't be spoken of, and no manager sends one.
pub(super) fn id_of(task: &pb::Task) -> Option<TaskId> {
    let id = task.id.parse();
    if let Err(error) = &id {
        tracing::warn!(%error, "a task without a valid id is left out");
    }
    id.ok()
}

/// What the runtime holds; asks until it answers.
async fn held(shared: Arc<Shared>) -> Vec<String> {
    loop {
        match shared.executor.held().await {
            Ok(held) => return held,
            Err(error) => {
                tracing::debug!(%error, "the runtime does not say what it holds yet");
                shared.clock.sleep(PAUSE).await;
            }
        }
    }
}

/// Removes leftovers; tries until it is done.
async fn discard(shared: Arc<Shared>, ids: Vec<String>) -> Vec<String> {
    for id in ids {
        let mut pause = PAUSE;
        while let Err(error) = shared.executor.discard(&id).await {
            tracing::warn!(task.id = %id, %error, "what a task left in the runtime is not removed yet");
            shared.clock.sleep(pause).await;
            pause = (2 * pause).min(Duration::from_secs(60));
        }
    }
    Vec::new()
}
