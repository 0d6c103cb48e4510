//! Several daemons in one thread: what a simulation needs to run one of them, and to end it at any moment.
//!
//! A daemon that has its operating system process for itself never notices this module: its tasks are tokio's, its blocking
//! work goes to tokio's threads, its chance comes from the operating system. What runs as a part of a [`Process`] differs:
//!
//! - what it spawns belongs to the process too, and ends with it: [`Process::kill`] is `kill -9`
//! - blocking work is done at once, on the one thread there is; what it should have cost in time passes afterwards
//!   ([`Process::owe`])
//! - its chance follows from a seed
//!
//! Chance for keys and nonces is not in here, on purpose: cryptography takes it from the operating system, always.

use std::cell::RefCell;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::task::{AbortHandle, JoinHandle};

/// Tasks known by their handles before those that have ended are forgotten.
const HANDLES: usize = 64;

thread_local! {
    static CURRENT: RefCell<Option<Process>> = const { RefCell::new(None) };
}

/// One simulated daemon; a handle, cheap to clone.
#[derive(Clone)]
pub struct Process(Arc<Inner>);

struct Inner {
    dead: AtomicBool,
    state: Mutex<State>,
}

struct State {
    chance: u64,
    owed: Duration,
    tasks: Vec<AbortHandle>,
}

/// The runtime, or the process, ended before the work was done.
#[derive(Debug, Clone, Copy, thiserror::Error)]
#[error("the work was not done: swarmd is shutting down")]
pub(crate) struct Stopped;

impl Process {
    /// A process whose chance follows from `seed`.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(Arc::new(Inner {
            dead: AtomicBool::new(false),
            state: Mutex::new(State {
                chance: seed,
                owed: Duration::ZERO,
                tasks: Vec::new(),
            }),
        }))
    }

    /// Runs a future as a part of this process. It never ends once the process is dead.
    pub fn run<F: Future>(&self, future: F) -> impl Future<Output = F::Output> + use<F> {
        Inside {
            process: self.clone(),
            future: Box::pin(future),
        }
    }

    /// Spawns a task that belongs to this process.
    #[expect(
        clippy::disallowed_methods,
        reason = "its owner is the process, which ends it"
    )]
    pub fn spawn<F>(&self, future: F) -> JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        let task = tokio::spawn(Inside {
            process: self.clone(),
            future: Box::pin(future),
        });
        let mut state = self.state();
        if state.tasks.len() >= HANDLES && state.tasks.len().is_power_of_two() {
            state.tasks.retain(|task| !task.is_finished());
        }
        state.tasks.push(task.abort_handle());
        drop(state);
        if self.is_dead() {
            task.abort();
        }
        task
    }

    /// Ends the process now: none of its tasks gets another turn.
    pub fn kill(&self) {
        self.0.dead.store(true, Ordering::Relaxed);
        for task in std::mem::take(&mut self.state().tasks) {
            task.abort();
        }
    }

    /// Whether it was killed.
    #[must_use]
    pub fn is_dead(&self) -> bool {
        self.0.dead.load(Ordering::Relaxed)
    }

    /// Says how long the blocking work that is being done would take: whoever waits for it waits that long.
    pub fn owe(&self, time: Duration) {
        let mut state = self.state();
        state.owed = state.owed.saturating_add(time);
    }

    /// The next number of this process's chance.
    #[must_use]
    pub fn number(&self) -> u64 {
        // SplitMix64.
        let mut state = self.state();
        state.chance = state.chance.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = state.chance;
        let mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for Process {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Process(dead: {})", self.is_dead())
    }
}

/// A future that is a part of a process.
struct Inside<F> {
    process: Process,
    future: Pin<Box<F>>,
}

impl<F: Future> Future for Inside<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        if self.process.is_dead() {
            return Poll::Pending;
        }
        let outside = CURRENT.replace(Some(self.process.clone()));
        let polled = self.future.as_mut().poll(cx);
        CURRENT.replace(outside);
        // What a turn brought about in the moment of its end is not known to anybody.
        if self.process.is_dead() {
            return Poll::Pending;
        }
        polled
    }
}

/// The process that runs; none outside of simulations.
pub(crate) fn current() -> Option<Process> {
    CURRENT.with_borrow(Clone::clone)
}

/// Spawns a task: of the process that runs, or tokio's. Its owner is whoever holds what it works for.
#[expect(
    clippy::disallowed_methods,
    reason = "for openraft, which owns its tasks"
)]
pub(crate) fn spawn<F>(future: F) -> JoinHandle<F::Output>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    match current() {
        Some(process) => process.spawn(future),
        None => tokio::spawn(future),
    }
}

/// Does work that blocks, on a thread for that.
///
/// # Errors
/// When the runtime ends before.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Stopped> {
    match current() {
        Some(process) => {
            let done = work();
            process.pay().await;
            Ok(done)
        }
        None => tokio::task::spawn_blocking(work).await.map_err(|_| Stopped),
    }
}

impl Process {
    /// Lets the time pass that blocking work should have taken.
    pub(crate) async fn pay(&self) {
        let owed = std::mem::take(&mut self.state().owed);
        if owed.is_zero() {
            tokio::task::yield_now().await;
        } else {
            tokio::time::sleep(owed).await;
        }
    }
}
