//! Drives one task: takes the step that [`agent_runtime::step`] names, until nothing is left to do.
//!
//! A driver has its task's only controller, so one runtime call at a time is under way. It ends when
//! the task is removed; dropped at any point (swarmd stops) it leaves the container as it is, and the
//! next driver of the task asks the runtime where things are before it does anything.
//!
//! What was stopped on request is cleared from the runtime at once: an update or a node that was
//! away leaves nothing behind. What ended by itself stays until the manager takes the task away, so
//! that it can be looked at.

use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use agent_runtime::step::{self, After, Outcome, Step, Want};
use agent_runtime::{Controller, Error, Executor, Handle, Observed, TaskOrder};
use futures::poll;
use swarm_proto::id::TaskId;
use swarm_proto::pb::{self, TaskState};
use tokio::sync::watch;

use super::operations::Operations;
use super::reporter::Statuses;
use crate::clock::Clock;
use crate::latency::Histogram;

#[cfg(test)]
#[path = "task_tests.rs"]
mod tests;

/// First pause before a failed runtime call is made again (SwarmKit's); doubles up to [`PAUSE_MAX`].
const PAUSE: Duration = Duration::from_secs(1);
/// Longest pause before a failed runtime call is made again.
const PAUSE_MAX: Duration = Duration::from_secs(30);

/// What all drivers of an agent share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) executor: Arc<dyn Executor>,
    pub(super) statuses: Arc<Statuses>,
    pub(super) clock: Clock,
    /// Moves when the runtime was away and is back.
    pub(super) recovered: watch::Receiver<u64>,
    /// How long the executor takes.
    pub(super) operations: Arc<Operations>,
}

/// Whether the runtime may hold something of a task already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Origin {
    /// An earlier swarmd may have had it: ask first.
    Adopted,
    /// New to this node.
    New,
}

/// The driver of one task.
#[derive(Debug)]
pub(super) struct Driver {
    id: TaskId,
    shared: Arc<Shared>,
    order: TaskOrder,
    want: watch::Receiver<Want>,
    recovered: watch::Receiver<u64>,
    status: pb::TaskStatus,
    /// The status is not in [`Statuses`] yet.
    unpublished: bool,
    controller: Option<Box<dyn Controller>>,
    /// The runtime has to be asked before the next step.
    ask: bool,
    observed: Option<Observed>,
    /// The task was stopped on request, and the runtime holds nothing of it any more.
    cleared: bool,
    /// What its preparation had to say: it stays worth showing while the task runs.
    notice: Option<String>,
    pause: Duration,
}

impl Driver {
    pub(super) fn new(
        id: TaskId,
        shared: Arc<Shared>,
        order: TaskOrder,
        want: watch::Receiver<Want>,
        origin: Origin,
    ) -> Self {
        let status = match shared.statuses.get(id) {
            Some(known) => known.as_ref().clone(),
            None => first_status(&order.task, origin),
        };
        Self {
            id,
            recovered: shared.recovered.clone(),
            shared,
            order,
            want,
            status,
            unpublished: false,
            controller: None,
            ask: origin == Origin::Adopted,
            observed: None,
            cleared: false,
            notice: None,
            pause: PAUSE,
        }
    }

    /// Drives the task until it is removed.
    pub(super) async fn run(mut self) -> TaskId {
        loop {
            let want = *self.want.borrow_and_update();
            self.recovered.mark_unchanged();
            if let Err(error) = self.ask(want).await {
                self.stall(error).await;
                continue;
            }
            let next = self.next(want);
            let Some(outcome) = self.perform(next).await else {
                continue;
            };
            let outcome = self.carry_notice(next, outcome);
            match step::after(self.state(), next, outcome) {
                After::Advance(change) => {
                    self.pause = PAUSE;
                    self.change(change);
                    if next == Step::Start {
                        self.note_container().await;
                    }
                }
                After::Again => {
                    self.pause = PAUSE;
                    self.clear_err();
                }
                After::Retry(change) => {
                    self.change(change);
                    self.publish();
                    self.wait_to_retry().await;
                }
                After::Await => self.wait_for_runtime().await,
                After::Forget if want == Want::Gone => return self.id,
                After::Forget => self.cleared = true,
                After::Hold => {
                    self.publish();
                    if self.want.changed().await.is_err() {
                        // Nobody will want anything any more: the worker is gone.
                        return self.id;
                    }
                }
            }
        }
    }

    fn next(&self, want: Want) -> Step {
        let next = step::next(want, self.state(), self.observed.as_ref());
        let stopped = want == Want::Stop && self.state() == TaskState::Shutdown;
        if next == Step::Hold && stopped && !self.cleared {
            return Step::Remove;
        }
        next
    }

    /// Says again at the start what the preparation said: that state's message is soon replaced.
    fn carry_notice(&mut self, step: Step, outcome: Outcome) -> Outcome {
        let Outcome::Done { notice } = outcome else {
            return outcome;
        };
        if step == Step::Prepare {
            self.notice.clone_from(&notice);
        }
        let notice = match self.notice.take_if(|_| step == Step::Start) {
            Some(prepared) => Some(format!("started; {prepared}")),
            None => notice,
        };
        Outcome::Done { notice }
    }

    fn state(&self) -> TaskState {
        self.status.state()
    }

    /// Asks the runtime, where that is due and matters.
    async fn ask(&mut self, want: Want) -> Result<(), Error> {
        if !self.ask || want >= Want::Stop || step::is_terminal(self.state()) {
            return Ok(());
        }
        let observed = controller(&mut self.controller, &self.shared, &self.order)
            .await?
            .observe()
            .await?;
        self.ask = false;
        self.clear_err();
        if let Observed::Running(handle) | Observed::Exited(handle, _) = &observed
            && self.state() >= TaskState::Starting
        {
            let handle = handle.clone();
            self.note(handle);
        }
        self.observed = Some(observed);
        Ok(())
    }

    /// Takes a step; none when a stop interrupted it.
    async fn perform(&mut self, next: Step) -> Option<Outcome> {
        match next {
            Step::Enter(_) | Step::Lost | Step::Hold => {
                return Some(Outcome::Done { notice: None });
            }
            Step::Prepare | Step::Start | Step::Wait | Step::Shutdown | Step::Remove => {}
        }
        self.observed = None;
        let mut progress = None;
        if next == Step::Prepare
            && let Ok(controller) =
                controller(&mut self.controller, &self.shared, &self.order).await
        {
            progress = controller.progress();
        }
        let call = call(next, &mut self.controller, &self.shared, &self.order);
        let mut call = std::pin::pin!(call);
        // A call that ends at once leaves no state that anyone could have seen.
        if let Poll::Ready(outcome) = poll!(call.as_mut()) {
            return Some(outcome);
        }
        if std::mem::take(&mut self.unpublished) {
            let status = Arc::new(self.status.clone());
            self.shared.statuses.put(self.id, status);
        }
        match next {
            Step::Prepare | Step::Start | Step::Wait => {
                // A wait that is made again after a failure is under way once it lasts.
                let mut recovers = next == Step::Wait && !self.status.err.is_empty();
                loop {
                    tokio::select! {
                        biased;
                        () = stop_wanted(&mut self.want) => return None,
                        outcome = call.as_mut() => return Some(outcome),
                        text = news(&mut progress) => self.status.message = step::brief(text),
                        () = self.shared.clock.sleep(PAUSE), if recovers => {
                            recovers = false;
                            self.pause = PAUSE;
                            self.status.err.clear();
                        }
                    }
                    let status = Arc::new(self.status.clone());
                    self.shared.statuses.put(self.id, status);
                }
            }
            Step::Shutdown | Step::Remove | Step::Enter(_) | Step::Lost | Step::Hold => {
                Some(call.await)
            }
        }
    }

    fn change(&mut self, change: step::Change) {
        let at = self.shared.clock.now().to_wire().unwrap_or_default();
        change.write(&mut self.status, at);
        self.unpublished = true;
    }

    /// What held the task up is over: a healthy task's status says no more of it.
    fn clear_err(&mut self) {
        if !self.status.err.is_empty() && !step::is_terminal(self.state()) {
            self.status.err.clear();
            self.unpublished = true;
        }
    }

    fn publish(&mut self) {
        if std::mem::take(&mut self.unpublished) {
            let status = Arc::new(self.status.clone());
            self.shared.statuses.put(self.id, status);
        }
    }

    /// Adds the container to the status, where the runtime says which it is.
    async fn note_container(&mut self) {
        let Some(controller) = &mut self.controller else {
            return;
        };
        if let Some(handle) = controller.started() {
            return self.note(handle);
        }
        match controller.observe().await {
            Ok(Observed::Created(handle) | Observed::Running(handle))
            | Ok(Observed::Exited(handle, _)) => self.note(handle),
            // The next step finds out.
            Ok(Observed::Absent) | Err(_) => {}
        }
    }

    fn note(&mut self, handle: Handle) {
        let before = (
            self.status.runtime_status.take(),
            self.status.port_status.take(),
        );
        let (exit_code, known) = match &before.0 {
            Some(pb::task_status::RuntimeStatus::Container(container)) => {
                (container.exit_code, container.pid)
            }
            None => (0, 0),
        };
        let container = pb::ContainerStatus {
            container_id: handle.container_id,
            pid: match i32::try_from(handle.pid).unwrap_or(0) {
                // The runtime does not say just now.
                0 => known,
                pid => pid,
            },
            exit_code,
        };
        self.status.runtime_status = Some(pb::task_status::RuntimeStatus::Container(container));
        self.status.port_status = (!handle.ports.is_empty()).then_some(pb::PortStatus {
            ports: handle.ports,
        });
        if before
            != (
                self.status.runtime_status.clone(),
                self.status.port_status.clone(),
            )
        {
            self.unpublished = true;
        }
    }

    /// The runtime could not be asked.
    async fn stall(&mut self, error: Error) {
        match error {
            Error::Unavailable { .. } => self.wait_for_runtime().await,
            Error::Fatal(_) if self.state() < TaskState::Starting => {
                // As if its preparation had failed: REJECTED.
                let failed = Outcome::Failed(error);
                if let After::Advance(change) = step::after(self.state(), Step::Prepare, failed) {
                    self.change(change);
                }
            }
            // Nobody knows that its container ended: calling it failed would start another beside it.
            Error::Fatal(reason) | Error::Temporary(reason) => {
                self.status.err = step::brief(reason);
                self.unpublished = true;
                self.publish();
                self.wait_to_retry().await;
            }
        }
    }

    async fn wait_to_retry(&mut self) {
        let pause = self.pause;
        self.pause = (pause * 2).min(PAUSE_MAX);
        tokio::select! {
            biased;
            _ = self.want.changed() => {}
            () = self.shared.clock.sleep(pause) => {}
        }
    }

    /// Waits for the runtime; also looks again after a pause, should its return have gone unnoticed.
    async fn wait_for_runtime(&mut self) {
        self.ask = true;
        self.publish();
        let pause = self.pause;
        self.pause = (pause * 2).min(PAUSE_MAX);
        tokio::select! {
            biased;
            _ = self.want.changed() => {}
            _ = self.recovered.changed() => self.pause = PAUSE,
            () = self.shared.clock.sleep(pause) => {}
        }
    }
}

/// The status of a task that this agent knows none of: the manager's.
fn first_status(task: &pb::Task, origin: Origin) -> pb::TaskStatus {
    let mut status = task.status.clone().unwrap_or_default();
    // The manager may have given up a task that runs here all the same (its node was away for
    // long): it is stopped like any that runs, and what it reports then is no news there.
    if origin == Origin::Adopted && step::is_terminal(status.state()) {
        status.set_state(TaskState::Starting);
    }
    status
}

/// Returns once the task is to be stopped.
async fn stop_wanted(want: &mut watch::Receiver<Want>) {
    if want.wait_for(|want| *want >= Want::Stop).await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// What a preparation has to say of its progress; never returns where it says nothing.
async fn news(progress: &mut Option<watch::Receiver<String>>) -> String {
    if let Some(progress) = progress
        && progress.changed().await.is_ok()
    {
        return progress.borrow_and_update().clone();
    }
    std::future::pending().await
}

/// The task's controller, made when it is needed first.
async fn controller<'a>(
    slot: &'a mut Option<Box<dyn Controller>>,
    shared: &Shared,
    order: &TaskOrder,
) -> Result<&'a mut Box<dyn Controller>, Error> {
    match slot {
        Some(controller) => Ok(controller),
        None => Ok(slot.insert(shared.executor.controller(order.clone()).await?)),
    }
}

async fn call(
    next: Step,
    slot: &mut Option<Box<dyn Controller>>,
    shared: &Shared,
    order: &TaskOrder,
) -> Outcome {
    let _timed = shared.operations.of(next).map(Histogram::timed);
    let controller = match controller(slot, shared, order).await {
        Ok(controller) => controller,
        // What can't be driven can be cleared away all the same.
        Err(Error::Fatal(_)) if matches!(next, Step::Shutdown | Step::Remove) => {
            return done(shared.executor.discard(&order.task.id).await);
        }
        // Says nothing of the container, which may run.
        Err(Error::Fatal(reason)) if matches!(next, Step::Start | Step::Wait) => {
            return Outcome::Failed(Error::Temporary(reason));
        }
        Err(error) => return Outcome::Failed(error),
    };
    match next {
        Step::Prepare => match controller.prepare().await {
            Ok(notice) => Outcome::Done { notice },
            Err(error) => Outcome::Failed(error),
        },
        Step::Start => done(controller.start().await),
        Step::Wait => match controller.wait().await {
            Ok(exit) => Outcome::Exited(exit),
            Err(error) => Outcome::Failed(error),
        },
        Step::Shutdown => done(controller.shutdown().await),
        Step::Remove => done(controller.remove().await),
        Step::Enter(_) | Step::Lost | Step::Hold => Outcome::Done { notice: None },
    }
}

fn done(result: Result<(), Error>) -> Outcome {
    match result {
        Ok(()) => Outcome::Done { notice: None },
        Err(error) => Outcome::Failed(error),
    }
}
