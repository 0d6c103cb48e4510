//! The task step: what the agent does next for one task, and what the outcome makes of its state.
//!
//! This is SwarmKit's `agent/exec.Do` without the IO. The agent's loop for a task is
//!
//! ```text
//! loop { step = next(want, state, observed); outcome = perform(step); after(state, step, outcome) }
//! ```
//!
//! Invariants: pure (no clock, no IO, no randomness); a state never goes back; at most one runtime
//! call is under way a task; every state that precedes a runtime call (PREPARING, STARTING) is
//! entered, and can be persisted, before the call is made, so that after a crash the call is simply
//! made again (controllers are idempotent).

use swarm_proto::pb::{self, TaskState};

use crate::error::Error;
use crate::executor::{Exit, Observed};

#[cfg(test)]
mod tests;

/// What the manager wants of a task on this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Want {
    /// Taken, nothing prepared yet.
    Accept,
    /// Prepared and held: a replacement that waits for its turn.
    Ready,
    /// Running; for a job: running until it completes.
    Run,
    /// Stopped, with what is left kept for its status and logs.
    Stop,
    /// No longer assigned to this node: stopped, and everything removed.
    Gone,
}

impl Want {
    /// What a desired state asks for, while the task is assigned to this node.
    #[must_use]
    pub fn of(desired: TaskState) -> Self {
        match desired {
            TaskState::New
            | TaskState::Pending
            | TaskState::Assigned
            | TaskState::Accepted
            | TaskState::Preparing => Self::Accept,
            TaskState::Ready => Self::Ready,
            TaskState::Starting | TaskState::Running | TaskState::Complete => Self::Run,
            TaskState::Shutdown
            | TaskState::Failed
            | TaskState::Rejected
            | TaskState::Remove
            | TaskState::Orphaned => Self::Stop,
        }
    }
}

/// What to do next for a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Record this state (persist, report), no runtime call.
    Enter(TaskState),
    /// Call [`crate::Controller::prepare`].
    Prepare,
    /// Call [`crate::Controller::start`].
    Start,
    /// Call [`crate::Controller::wait`]; a change of what is wanted interrupts it.
    Wait,
    /// Call [`crate::Controller::shutdown`].
    Shutdown,
    /// Call [`crate::Controller::remove`], then forget the task.
    Remove,
    /// The container that the state speaks of is gone: no runtime call, the task failed.
    Lost,
    /// Nothing to do until what is wanted changes.
    Hold,
}

/// How a step's runtime call ended.
#[derive(Debug)]
pub enum Outcome {
    /// It did what it says. The notice is worth showing in the task's status.
    Done {
        /// A sentence for the status message.
        notice: Option<String>,
    },
    /// The container has ended ([`Step::Wait`]; also [`Step::Shutdown`] when its exit is known).
    Exited(Exit),
    /// It failed.
    Failed(Error),
}

/// A task's new status, without its time, which is the caller's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// The new state; never lower than the old one.
    pub state: TaskState,
    /// What happened, in SwarmKit's words; `None` leaves the message as it was.
    pub message: Option<String>,
    /// Why it failed; empty when it did not.
    pub err: String,
    /// How the container ended, when it has.
    pub exit: Option<Exit>,
}

impl Change {
    /// Writes this change into a wire status. `at` is the time of the change.
    pub fn write(self, status: &mut pb::TaskStatus, at: prost_types::Timestamp) {
        status.timestamp = Some(at);
        status.state = self.state.into();
        status.err = brief(self.err);
        if let Some(message) = self.message {
            status.message = brief(message);
        }
        let Some(exit) = self.exit else { return };
        let container = status
            .runtime_status
            .get_or_insert_with(|| pb::task_status::RuntimeStatus::Container(Default::default()));
        let pb::task_status::RuntimeStatus::Container(container) = container;
        container.exit_code = i32::try_from(exit.code).unwrap_or(i32::MAX);
        container.pid = 0;
    }
}

/// Longest text in a status, in bytes. Statuses of many tasks travel in one message and stay in
/// the managers' memory, and a runtime may quote whole files.
pub const TEXT_MAX: usize = 1 << 10;

/// A text as it goes into a status: cut to [`TEXT_MAX`] bytes, and marked where it was.
#[must_use]
pub fn brief(mut text: String) -> String {
    const CUT: &str = "…";
    if text.len() > TEXT_MAX {
        text.truncate(text.floor_char_boundary(TEXT_MAX - CUT.len()));
        text.push_str(CUT);
    }
    text
}

/// What becomes of a task after a step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum After {
    /// Record the change and take the next step.
    Advance(Change),
    /// Nothing changed for the record; take the next step (a step that had nothing to tell).
    Again,
    /// Take the same step again after a pause; the change (same state) says why in `err`.
    Retry(Change),
    /// The runtime is away: keep the status as it is, and go on once it is back.
    Await,
    /// All is removed: forget the task.
    Forget,
    /// Nothing to do until what is wanted changes.
    Hold,
}

/// The next step for a task in `state`.
///
/// `observed` is the container as the runtime has it, given when it was asked since the last
/// runtime call (always after adoption); with `None` the recorded state is taken for true.
#[must_use]
pub fn next(want: Want, state: TaskState, observed: Option<&Observed>) -> Step {
    match want {
        Want::Gone if is_terminal(state) => return Step::Remove,
        Want::Stop if is_terminal(state) => return Step::Hold,
        Want::Gone | Want::Stop => return Step::Shutdown,
        Want::Accept | Want::Ready | Want::Run => {}
    }
    match state {
        TaskState::New | TaskState::Pending | TaskState::Assigned => {
            Step::Enter(TaskState::Accepted)
        }
        TaskState::Accepted if want == Want::Accept => Step::Hold,
        TaskState::Accepted => Step::Enter(TaskState::Preparing),
        // What is under way is finished, even where less is wanted by now.
        TaskState::Preparing => Step::Prepare,
        TaskState::Ready => ready(want, observed),
        TaskState::Starting => starting(observed),
        TaskState::Running => running(observed),
        TaskState::Complete
        | TaskState::Shutdown
        | TaskState::Failed
        | TaskState::Rejected
        | TaskState::Remove
        | TaskState::Orphaned => Step::Hold,
    }
}

/// READY: prepared again where the runtime lost it (a host that restarted), else held or started.
fn ready(want: Want, observed: Option<&Observed>) -> Step {
    match observed {
        Some(Observed::Absent) => return Step::Prepare,
        None | Some(Observed::Created(_) | Observed::Running(_) | Observed::Exited(..)) => {}
    }
    match want {
        Want::Run => Step::Enter(TaskState::Starting),
        Want::Accept | Want::Ready | Want::Stop | Want::Gone => Step::Hold,
    }
}

fn starting(observed: Option<&Observed>) -> Step {
    match observed {
        // It ran and ended before RUNNING was recorded: `start` finds it started, `wait` its exit.
        None | Some(Observed::Created(_) | Observed::Running(_) | Observed::Exited(..)) => {
            Step::Start
        }
        Some(Observed::Absent) => Step::Lost,
    }
}

fn running(observed: Option<&Observed>) -> Step {
    match observed {
        None | Some(Observed::Running(_) | Observed::Exited(..)) => Step::Wait,
        // It ran once; a container that has yet to run is not the one the status speaks of.
        Some(Observed::Absent | Observed::Created(_)) => Step::Lost,
    }
}

/// What a step's outcome makes of a task in `state`.
#[must_use]
pub fn after(state: TaskState, step: Step, outcome: Outcome) -> After {
    match outcome {
        Outcome::Failed(error) => failed(state, step, error),
        Outcome::Exited(exit) => exited(state, step, exit),
        Outcome::Done { notice } => done(state, step, notice),
    }
}

fn done(state: TaskState, step: Step, notice: Option<String>) -> After {
    match step {
        Step::Enter(entered) => advance(state, entered, entered_message(entered)),
        Step::Prepare if state >= TaskState::Ready => After::Again,
        Step::Prepare => {
            let message = notice.unwrap_or_else(|| "prepared".to_owned());
            advance(state, TaskState::Ready, &message)
        }
        Step::Start => {
            let message = notice.unwrap_or_else(|| "started".to_owned());
            advance(state, TaskState::Running, &message)
        }
        // A wait that ends without an exit was interrupted.
        Step::Wait => After::Again,
        Step::Shutdown => advance(state, TaskState::Shutdown, "shutdown"),
        Step::Remove => After::Forget,
        Step::Lost => After::Advance(failure(
            state,
            "the container is gone: it was removed outside of swarmd, or the host restarted"
                .to_owned(),
        )),
        Step::Hold => After::Hold,
    }
}

fn exited(state: TaskState, step: Step, exit: Exit) -> After {
    match step {
        Step::Wait if exit.code == 0 => After::Advance(Change {
            state: state.max(TaskState::Complete),
            message: Some("finished".to_owned()),
            err: String::new(),
            exit: Some(exit),
        }),
        Step::Wait => After::Advance(Change {
            exit: Some(exit.clone()),
            ..failure(state, exit_text(&exit))
        }),
        Step::Shutdown => After::Advance(Change {
            state: state.max(TaskState::Shutdown),
            message: Some("shutdown".to_owned()),
            err: String::new(),
            exit: Some(exit),
        }),
        // An exit is news for the steps above only; these two know nothing of containers.
        Step::Enter(_) | Step::Hold => After::Again,
        Step::Prepare | Step::Start => done(state, step, None),
        Step::Remove | Step::Lost => done(state, step, None),
    }
}

fn failed(state: TaskState, step: Step, error: Error) -> After {
    match error {
        Error::Unavailable { .. } => After::Await,
        Error::Temporary(reason) => After::Retry(Change {
            state,
            message: None,
            err: reason,
            exit: None,
        }),
        // Giving up would leave a container that runs, or leftovers, and call the task ended.
        Error::Fatal(reason) if matches!(step, Step::Shutdown | Step::Remove) => {
            After::Retry(Change {
                state,
                message: None,
                err: reason,
                exit: None,
            })
        }
        Error::Fatal(reason) => After::Advance(failure(state, reason)),
    }
}

/// REJECTED before the container was to start, FAILED from then on; a final state stays.
fn failure(state: TaskState, err: String) -> Change {
    let failed = if state < TaskState::Starting {
        TaskState::Rejected
    } else {
        TaskState::Failed
    };
    let state = if is_terminal(state) { state } else { failed };
    Change {
        state,
        message: None,
        err,
        exit: None,
    }
}

fn advance(from: TaskState, to: TaskState, message: &str) -> After {
    if to <= from {
        return After::Again;
    }
    After::Advance(Change {
        state: to,
        message: Some(message.to_owned()),
        err: String::new(),
        exit: None,
    })
}

fn entered_message(state: TaskState) -> &'static str {
    match state {
        TaskState::Accepted => "accepted",
        TaskState::Preparing => "preparing",
        TaskState::Starting => "starting",
        TaskState::New
        | TaskState::Pending
        | TaskState::Assigned
        | TaskState::Ready
        | TaskState::Running
        | TaskState::Complete
        | TaskState::Shutdown
        | TaskState::Failed
        | TaskState::Rejected
        | TaskState::Remove
        | TaskState::Orphaned => "",
    }
}

/// True from COMPLETE on: the container will not run again.
#[must_use]
pub fn is_terminal(state: TaskState) -> bool {
    state >= TaskState::Complete
}

/// How an unwanted end reads in the task's status; the first words are SwarmKit's.
fn exit_text(exit: &Exit) -> String {
    let mut text = format!("task: non-zero exit ({})", exit.code);
    if exit.oom {
        text.push_str(": killed by the kernel, out of memory");
    }
    if let Some(detail) = &exit.detail {
        text.push_str(": ");
        text.push_str(detail);
    }
    text
}
