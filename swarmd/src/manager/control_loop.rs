//! The one loop that decides: on the leader, a pass whenever something changed or became due.
//!
//! The loop holds no progress of its own, so it can end anywhere: the next leader starts with a
//! pass over everything. What a pass wants goes through the write door like everybody's changes,
//! and comes back as commits; a change that was overtaken is rejected there and planned again.

use std::time::Duration;

use swarm_proto::time::Timestamp;
use tokio_util::sync::CancellationToken;

use super::plan::{Dirty, Plan, mix, pass};
use super::store::watch::Subscription;
use super::store::{Change, State};
use super::writer::{Store, WriteError};
use crate::clock::Clock;
use crate::process;

/// How often everything is looked at, whatever the hints say.
const FULL_PASS_EVERY: Duration = Duration::from_secs(30);
/// Pause after a write that failed or was rejected in part: others are changing the same objects,
/// or the log has trouble; asking again at once would only add to it.
const RETRY_AFTER: Duration = Duration::from_millis(250);

/// Plans and writes until this manager leads no more, or stops.
///
/// `seed` is fresh randomness: it makes ids and breaks ties.
///
/// # Errors
/// [`WriteError::NotLeader`], [`WriteError::NoLeader`] or [`WriteError::ShuttingDown`] when the
/// door says so; every other failure is tried again.
pub async fn run(
    store: Store,
    clock: Clock,
    seed: u64,
    cancel: CancellationToken,
) -> Result<(), WriteError> {
    let (state, commits) = store.hub().subscribe();
    let mut control = Control {
        full_at: clock.monotonic(),
        store,
        clock,
        seed,
        state,
        commits,
        dirty: Dirty::all(),
        wake_at: None,
    };
    tokio::select! {
        biased;
        () = cancel.cancelled() => Ok(()),
        ended = control.run() => ended,
    }
}

#[derive(Debug)]
struct Control {
    store: Store,
    clock: Clock,
    seed: u64,
    state: State,
    commits: Subscription,
    dirty: Dirty,
    /// The last pass asked for another one then.
    wake_at: Option<Timestamp>,
    /// When everything was looked at last.
    full_at: crate::clock::Monotonic,
}

impl Control {
    async fn run(&mut self) -> Result<(), WriteError> {
        loop {
            self.catch_up();
            if self.dirty.is_empty() && !self.is_due() {
                self.wait().await;
                continue;
            }
            let now = self.store.time(&self.clock);
            let plan = self.plan(now).await?;
            self.wake_at = plan.wake_at;
            self.dirty = Dirty::after(&plan);
            if !self.write(now, plan).await? {
                self.dirty = Dirty::all();
                self.clock.sleep(RETRY_AFTER).await;
            }
        }
    }

    fn is_due(&self) -> bool {
        self.wake_at
            .is_some_and(|at| at <= self.store.time(&self.clock))
    }

    /// Takes in the commits that are there.
    fn catch_up(&mut self) {
        loop {
            match self.commits.try_next() {
                Ok(Some(commit)) => {
                    for event in &commit.events {
                        self.dirty.note(event);
                    }
                    self.state = commit.state.clone();
                }
                Ok(None) => break,
                Err(_lagged) => {
                    let (state, commits) = self.store.hub().subscribe();
                    (self.state, self.commits) = (state, commits);
                    self.dirty = Dirty::all();
                }
            }
        }
        if self.clock.monotonic().since(self.full_at) >= FULL_PASS_EVERY {
            self.dirty = Dirty::all();
        }
        if self.dirty.all {
            self.full_at = self.clock.monotonic();
        }
    }

    /// Returns when something changed, or is due.
    async fn wait(&mut self) {
        let wake_at = self.wake_at.unwrap_or(Timestamp::MAX);
        let wake_at = self.store.wall_time(wake_at);
        // All three can be dropped at any time; what they announce is looked up afterwards, but
        // for a commit, which is noted here.
        tokio::select! {
            biased;
            commit = self.commits.next() => match commit {
                Ok(commit) => {
                    for event in &commit.events {
                        self.dirty.note(event);
                    }
                    self.state = commit.state.clone();
                }
                Err(_lagged) => {
                    let (state, commits) = self.store.hub().subscribe();
                    (self.state, self.commits) = (state, commits);
                    self.dirty = Dirty::all();
                }
            },
            () = self.clock.sleep_until_wall(wake_at) => {}
            () = self.clock.sleep_until(self.full_at.after(FULL_PASS_EVERY)) => {}
        }
    }

    /// One pass, away from the threads that serve requests: over a large cluster it takes a while.
    async fn plan(&mut self, now: Timestamp) -> Result<Plan, WriteError> {
        self.seed = mix(self.seed);
        let (state, seed) = (self.state.clone(), self.seed);
        let dirty = std::mem::take(&mut self.dirty);
        let store = self.store.clone();
        let planned = process::blocking(move || {
            let _timed = store.latencies().pass.timed();
            pass(&state, &dirty, now, seed)
        });
        let planned = planned.await;
        // The runtime refuses only when it shuts down, and a pass does not panic.
        planned.map_err(|_| WriteError::ShuttingDown)
    }

    /// Writes a plan; false when it was not taken as a whole.
    async fn write(&self, now: Timestamp, plan: Plan) -> Result<bool, WriteError> {
        let entries = plan.entries();
        // A pass that wants nothing is no batch.
        let _timed = (!entries.is_empty()).then(|| self.store.latencies().batch.timed());
        for changes in entries {
            if !self.write_entry(now, changes).await? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    async fn write_entry(&self, now: Timestamp, changes: Vec<Change>) -> Result<bool, WriteError> {
        match self.store.write(now, changes).await {
            Ok(written) => {
                let rejected = written.results.iter().filter_map(|r| r.as_ref().err());
                let first = rejected.into_iter().next();
                if let Some(reason) = first {
                    tracing::debug!(%reason, "a planned change was overtaken");
                }
                Ok(first.is_none())
            }
            Err(error @ (WriteError::NotLeader { .. } | WriteError::ShuttingDown)) => Err(error),
            Err(
                // Without a majority this manager may lead on, and has one again later.
                error @ (WriteError::TooLarge { .. }
                | WriteError::NoLeader(_)
                | WriteError::Unknown(_)
                | WriteError::Overloaded(_)
                | WriteError::Storage(_)),
            ) => {
                tracing::warn!(%error, "a plan could not be written; planning again");
                Ok(false)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use swarm_proto::id::{NodeId, ServiceId};

    use super::*;
    use crate::clock::ManualClock;
    use crate::manager::store::testing;

    const START: Timestamp = Timestamp::from_millis(1_700_000_000_000);

    struct Running {
        store: Store,
        hand: ManualClock,
        cancel: CancellationToken,
        loop_: tokio::task::JoinSet<Result<(), WriteError>>,
    }

    fn start() -> Running {
        let store = Store::in_memory();
        let (clock, hand) = Clock::manual(START);
        let cancel = CancellationToken::new();
        let mut loop_ = tokio::task::JoinSet::new();
        loop_.spawn(run(store.clone(), clock, 1, cancel.clone()));
        Running {
            store,
            hand,
            cancel,
            loop_,
        }
    }

    async fn until(store: &Store, what: impl Fn(&State) -> bool) -> State {
        let mut versions = store.hub().version();
        loop {
            versions.mark_unchanged();
            let state = store.view();
            if what(&state) {
                return state;
            }
            let changed = versions.changed();
            let limit = Duration::from_secs(20);
            tokio::time::timeout(limit, changed)
                .await
                .expect("in time")
                .unwrap();
        }
    }

    async fn write(store: &Store, change: Change) {
        let written = store.write(START, vec![change]).await.unwrap();
        assert_eq!(written.results, [Ok(())]);
    }

    fn placed(state: &State) -> usize {
        state.tasks.values().filter(|t| t.node.is_some()).count()
    }

    /// A node, and a service of so many tasks that fit on any.
    async fn with_a_service(store: &Store, replicas: u64) -> ServiceId {
        write(store, Change::CreateNode(Arc::new(testing::node(1)))).await;
        let id = ServiceId::from_raw(1);
        let mut spec = (*testing::spec(0, 0, replicas)).clone();
        spec.task.reservations = Default::default();
        let spec = Arc::new(spec);
        write(store, Change::CreateService { id, spec }).await;
        id
    }

    #[tokio::test]
    async fn what_is_written_is_planned() {
        let mut running = start();
        let store = &running.store;
        let id = with_a_service(store, 3).await;
        until(store, |state| placed(state) == 3).await;
        write(store, Change::RemoveService { id }).await;
        until(store, |state| {
            state
                .tasks
                .values()
                .all(|t| t.desired == swarm_proto::task_state::TaskState::Remove)
        })
        .await;
        running.cancel.cancel();
        assert_eq!(running.loop_.join_next().await.unwrap().unwrap(), Ok(()));
    }

    /// One task that failed and whose replacement is held for the 5 s of its restart delay.
    async fn with_a_held_task() -> Running {
        use crate::manager::store::Report;
        use swarm_proto::task_state::TaskState;
        let running = start();
        let store = &running.store;
        with_a_service(store, 1).await;
        let state = until(store, |state| placed(state) == 1).await;
        let task = state.tasks.values().next().unwrap().id;
        let report = Report {
            task,
            state: TaskState::Failed,
            at: START,
            message: "".into(),
            err: "".into(),
            container: None,
        };
        let node = NodeId::from_raw(1);
        write(
            store,
            Change::ReportStatus {
                node,
                reports: vec![report],
            },
        )
        .await;
        until(store, held).await;
        running
    }

    fn held(state: &State) -> bool {
        let mut tasks = state.tasks.values();
        tasks.any(|t| t.desired == swarm_proto::task_state::TaskState::Ready)
    }

    #[tokio::test]
    async fn wakes_when_a_delay_is_over() {
        let running = with_a_held_task().await;
        running.hand.advance(Duration::from_secs(5));
        let state = until(&running.store, |state| !held(state)).await;
        assert_eq!(state.tasks.len(), 2);
    }

    #[tokio::test]
    async fn a_clock_that_is_set_back_stops_no_delay() {
        let running = with_a_held_task().await;
        let hour = Duration::from_secs(3600);
        running.hand.set_wall(START.before(hour));
        let mut seconds = 0;
        let turn = async {
            while held(&running.store.view()) {
                running.hand.advance(Duration::from_secs(1));
                seconds += 1;
                tokio::task::yield_now().await;
            }
        };
        let limit = Duration::from_secs(20);
        tokio::time::timeout(limit, turn).await.expect("in time");
        assert!(seconds >= 5, "{seconds} s");
        let state = running.store.view();
        assert_eq!(state.tasks.len(), 2);
        assert!(state.now >= START.after(Duration::from_secs(5)));
    }
}
