//! One pass over the cluster: what is there, what should be there, and the changes between.
//!
//! ```text
//! State + Dirty + now + seed ─ enforce ─ replicated ─ update ─ restart ─ reap ─ schedule ─ renewal ─► Plan
//! ```
//!
//! Each step reads a scratch state and tries its changes on it, so the next step sees them; the
//! list of all of them is the plan. New tasks are the exception: they are collected, get their
//! nodes from the scheduler, and enter the state once, placed.
//!
//! - Pure: same arguments, same plan.
//! - [`Dirty`] is a hint that saves work. Once passes over what has changed find nothing to do, a
//!   pass over everything finds nothing either.
//! - Nothing is remembered between passes: progress is in the objects, a delay is a timestamp in
//!   one, and [`Plan::wake_at`] is the next of these. A new leader goes on where the old one was.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use swarm_proto::id::{NodeId, ServiceId, TaskId};
use swarm_proto::pb;
use swarm_proto::task_state::TaskState;
use swarm_proto::time::Timestamp;

use super::orchestrator::{self, Work};
use super::renewal::{self, tls_info};
use super::scheduler;
use super::store::{Change, Event, NewTask, Node, Service, State, Task, apply_one};

/// Tasks in one change: with some 64 bytes each it stays below half a MiB.
const CHANGE_TASKS_MAX: usize = 8_192;
/// Estimated bytes of one log entry; the log takes up to 4 MiB.
const ENTRY_BYTES_MAX: usize = 1 << 20;

/// What a pass wants.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Plan {
    /// In order; each can be taken or rejected by itself.
    pub changes: Vec<Change>,
    /// When something becomes due without any change: pass again then.
    pub wake_at: Option<Timestamp>,
    /// The same of certificates alone, for [`Dirty::after`].
    pub certificates_at: Option<Timestamp>,
}

/// What has changed since the last pass, as far as planning goes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Dirty {
    pub(crate) all: bool,
    /// Services to look at as a whole.
    pub(crate) services: BTreeSet<ServiceId>,
    /// Slots in which something happened.
    pub(crate) slots: BTreeSet<(ServiceId, u64)>,
    /// Nodes that changed in what decisions depend on.
    pub(crate) nodes: BTreeSet<NodeId>,
    /// Services with new tasks to place.
    pub(crate) unplaced: BTreeSet<ServiceId>,
    /// A node may have room that it had not.
    pub(crate) room: bool,
    /// The root CA, or something about a node's certificate.
    pub(crate) certificates: bool,
    /// When one of the certificates becomes due by itself, as the last pass that looked at them said.
    pub(crate) certificates_at: Option<Timestamp>,
}

impl Dirty {
    /// Everything: at the start of a leadership, and now and then.
    pub fn all() -> Self {
        Self {
            all: true,
            ..Self::default()
        }
    }

    /// Nothing, as it is after a pass.
    pub fn after(pass: &Plan) -> Self {
        Self {
            certificates_at: pass.certificates_at,
            ..Self::default()
        }
    }

    /// Nothing has changed.
    pub fn is_empty(&self) -> bool {
        let nothing = Self {
            certificates_at: self.certificates_at,
            ..Self::default()
        };
        *self == nothing
    }

    /// Everything is looked at.
    pub fn is_all(&self) -> bool {
        self.all
    }

    /// Whether certificates are to be looked at; otherwise when they are.
    fn certificates(&self, now: Timestamp) -> Result<(), Option<Timestamp>> {
        let due = self.certificates_at.is_some_and(|at| at <= now);
        match self.all || self.certificates || due {
            true => Ok(()),
            false => Err(self.certificates_at),
        }
    }

    /// Notes what one event means for the next pass.
    pub fn note(&mut self, event: &Event) {
        match event {
            Event::Cluster { old, new } => {
                let before = old.as_ref().and_then(|c| c.spec.orchestration.as_ref());
                self.all |= before != new.spec.orchestration.as_ref();
                self.certificates |= old.as_ref().is_none_or(|old| {
                    old.root_ca != new.root_ca || old.spec.ca_config != new.spec.ca_config
                });
            }
            Event::Node { old, new } => self.note_node(old.as_deref(), new.as_deref()),
            Event::Service { new, .. } => {
                if let Some(service) = new {
                    self.services.insert(service.id);
                    self.unplaced.insert(service.id);
                }
            }
            Event::Task { old, new } => self.note_task(old.as_deref(), new.as_deref()),
        }
    }

    fn note_node(&mut self, old: Option<&Node>, new: Option<&Node>) {
        let same = match (old, new) {
            (Some(old), Some(new)) => same_to_planners(old, new),
            (None, _) | (_, None) => false,
        };
        self.certificates |= match (old, new) {
            (Some(old), Some(new)) => {
                old.status.state != new.status.state
                    || old.certificate != new.certificate
                    || tls_info(old) != tls_info(new)
            }
            (None, _) | (_, None) => true,
        };
        if let Some(node) = new.or(old).filter(|_| !same) {
            self.nodes.insert(node.id);
            self.room = true;
        }
    }

    fn note_task(&mut self, old: Option<&Task>, new: Option<&Task>) {
        let Some(task) = new.or(old) else { return };
        if new.is_some_and(|t| t.node.is_none() && t.is_active()) && old.is_none() {
            self.unplaced.insert(task.service);
        }
        // A place that was taken is missed by others that wait; what they are told changes.
        let had_node = old.is_some_and(|t| t.node.is_some());
        self.room |= !had_node && new.is_some_and(|t| t.node.is_some());
        let (Some(old), Some(new)) = (old, new) else {
            // A new task needs nothing but a node; one that is gone may be missed.
            if let Some(gone) = old {
                self.slots.insert((gone.service, gone.slot));
                self.room |= gone.node.is_some();
            }
            return;
        };
        let moved = old.status.state != new.status.state && new.status.state >= TaskState::Running;
        if moved || old.desired != new.desired {
            self.slots.insert((task.service, task.slot));
        }
        let had = old.node.is_some() && (old.holds_resources() || old.is_active());
        let released =
            old.holds_resources() != new.holds_resources() || old.is_active() != new.is_active();
        self.room |= had && released;
    }
}

fn same_to_planners(old: &Node, new: &Node) -> bool {
    let described = match (&old.description, &new.description) {
        (Some(a), Some(b)) => Arc::ptr_eq(a, b) || a == b,
        (None, None) => true,
        (Some(_), None) | (None, Some(_)) => false,
    };
    described
        && old.status.state == new.status.state
        && old.status.addr == new.status.addr
        && old.availability == new.availability
        && old.membership == new.membership
        && old.role == new.role
        && old.annotations == new.annotations
}

/// Plans. `now` is what the changes are to be written with; `seed` breaks ties and makes ids.
pub fn pass(state: &State, dirty: &Dirty, now: Timestamp, seed: u64) -> Plan {
    let now = now.max(state.now);
    let mut cx = Ctx::new(state.clone(), now, seed);
    let mut work = Work::of(&cx.state, dirty, now);
    orchestrator::enforce::plan(&mut cx, dirty, &mut work);
    for (service, slots) in work.services(&cx.state) {
        orchestrator::plan(&mut cx, &service, &slots);
    }
    orchestrator::reap::plan_lost_nodes(&mut cx);
    scheduler::plan(&mut cx, dirty);
    let certificates_at = match dirty.certificates(now) {
        Ok(()) => renewal::plan(&mut cx),
        Err(known) => known,
    };
    if let Some(at) = certificates_at {
        cx.wake(at);
    }
    Plan {
        certificates_at,
        ..cx.into_plan()
    }
}

/// What the steps of one pass share.
#[derive(Debug)]
pub(crate) struct Ctx {
    /// The state with the plan so far applied, new tasks excepted.
    pub(crate) state: State,
    /// The pass's only "now".
    pub(crate) now: Timestamp,
    /// Breaks ties.
    pub(crate) seed: u64,
    /// New tasks by service and spec version.
    pub(crate) created: BTreeMap<(ServiceId, u64), Vec<NewTask>>,
    /// Services whose spec this plan changes: the rest of their work waits for the next pass.
    pub(crate) deferred: BTreeSet<ServiceId>,
    changes: Vec<Change>,
    wake_at: Option<Timestamp>,
    ids: [u64; 2],
    events: Vec<Event>,
    tried: u64,
}

impl Ctx {
    fn new(state: State, now: Timestamp, seed: u64) -> Self {
        let mixed = mix(seed ^ mix(now.0.cast_unsigned()) ^ mix(state.version).rotate_left(32));
        Self {
            state,
            now,
            seed,
            created: BTreeMap::new(),
            deferred: BTreeSet::new(),
            changes: Vec::new(),
            wake_at: None,
            ids: [seed, mixed],
            events: Vec::new(),
            tried: 0,
        }
    }

    /// Tries a change on the scratch state and adds it to the plan.
    pub(crate) fn change(&mut self, change: Change) {
        apply_one(&mut self.state, &mut self.events, self.now, &change);
        self.events.clear();
        self.tried += 1;
        match self.changes.last_mut() {
            Some(last) => {
                if let Some(next) = merge(last, change) {
                    self.changes.push(next);
                }
            }
            None => self.changes.push(change),
        }
    }

    /// How many changes were tried so far.
    pub(crate) fn changes(&self) -> u64 {
        self.tried
    }

    /// Adds a change that no later step of this pass depends on.
    pub(crate) fn change_last(&mut self, change: Change) {
        self.changes.push(change);
    }

    pub(crate) fn set_desired(&mut self, tasks: Vec<TaskId>, desired: TaskState) {
        for tasks in chunks(tasks) {
            self.change(Change::SetDesired { tasks, desired });
        }
    }

    /// Adds a task of the service's current spec.
    pub(crate) fn create(&mut self, service: &Service, task: NewTask) {
        let key = (service.id, service.spec_version);
        if task.after.is_some() {
            let until = self.now.after(super::store::state::STOP_WAIT);
            self.wake(task.start_at.max(until));
        }
        if !task.start_at.is_zero() {
            self.wake(task.start_at);
        }
        self.created.entry(key).or_default().push(task);
    }

    /// Asks for a pass at that time.
    pub(crate) fn wake(&mut self, at: Timestamp) {
        self.wake_at = Some(self.wake_at.map_or(at, |earlier| earlier.min(at)));
    }

    /// So many new ids, ascending: neighbours in the slot order are neighbours in the task index.
    pub(crate) fn task_ids(&mut self, count: usize) -> Vec<TaskId> {
        let mut ids: Vec<TaskId> = (0..count).map(|_| self.task_id()).collect();
        ids.sort_unstable();
        ids
    }

    /// A new id.
    pub(crate) fn task_id(&mut self) -> TaskId {
        for state in &mut self.ids {
            *state = state.wrapping_add(GOLDEN);
        }
        let [high, low] = self.ids.map(mix);
        TaskId::from_raw((u128::from(high) << 64) | u128::from(low))
    }

    fn into_plan(mut self) -> Plan {
        let held = self.state.index.held.range((self.now, TaskId::MAX)..);
        if let Some((at, _)) = held.into_iter().next().copied() {
            self.wake(at);
        }
        let wake_at = self.wake_at;
        let mut changes = Vec::new();
        for ((service, spec_version), tasks) in self.created {
            for tasks in chunks(tasks) {
                changes.push(Change::CreateTasks {
                    service,
                    spec_version,
                    tasks,
                });
            }
        }
        // Stopping comes before starting, explanations of new tasks after their creation.
        let creations = self.changes.len();
        let (mut before, mut after) = (Vec::with_capacity(creations), Vec::new());
        for change in self.changes {
            if is_explanation(&change) {
                after.push(change);
            } else {
                before.push(change);
            }
        }
        before.append(&mut changes);
        before.append(&mut after);
        Plan {
            changes: before,
            wake_at,
            certificates_at: None,
        }
    }
}

impl Plan {
    /// The changes as log entries of a size that replicates well. A change stays whole.
    pub fn entries(self) -> Vec<Vec<Change>> {
        let mut entries: Vec<Vec<Change>> = Vec::new();
        let mut room = 0;
        for change in self.changes {
            let size = estimate(&change);
            match entries.last_mut().filter(|_| size <= room) {
                Some(entry) => {
                    room -= size;
                    entry.push(change);
                }
                None => {
                    room = ENTRY_BYTES_MAX.saturating_sub(size);
                    entries.push(vec![change]);
                }
            }
        }
        entries
    }
}

/// Joins a change to the one before it where both are one; gives it back otherwise.
fn merge(last: &mut Change, next: Change) -> Option<Change> {
    match (last, next) {
        (
            Change::SetDesired { tasks, desired },
            Change::SetDesired {
                tasks: more,
                desired: same,
            },
        ) if *desired == same && tasks.len() + more.len() <= CHANGE_TASKS_MAX => {
            tasks.extend(more);
            None
        }
        (Change::DeleteTasks { tasks }, Change::DeleteTasks { tasks: more })
            if tasks.len() + more.len() <= CHANGE_TASKS_MAX =>
        {
            tasks.extend(more);
            None
        }
        (_, next) => Some(next),
    }
}

/// Cuts a list into parts that each fit one change.
pub(crate) fn chunks<T>(mut items: Vec<T>) -> Vec<Vec<T>> {
    let mut parts = Vec::new();
    while items.len() > CHANGE_TASKS_MAX {
        let rest = items.split_off(CHANGE_TASKS_MAX);
        parts.push(std::mem::replace(&mut items, rest));
    }
    if !items.is_empty() {
        parts.push(items);
    }
    parts
}

fn is_explanation(change: &Change) -> bool {
    matches!(change, Change::ExplainTasks { .. })
}

/// Bytes in the log, about: what a pass writes is lists of tasks, all else is small.
fn estimate(change: &Change) -> usize {
    const ID: usize = 20;
    const TASK: usize = 64;
    const NAME: usize = 32;
    const OTHER: usize = 256;
    let generic = |g: &BTreeMap<String, swarm_proto::resources::Generic>| -> usize {
        g.iter()
            .map(|(kind, amount)| {
                use swarm_proto::resources::Generic;
                match amount {
                    Generic::Count(_) => NAME + kind.len(),
                    Generic::Names(names) => {
                        names.iter().map(|n| NAME + kind.len() + n.len()).sum()
                    }
                }
            })
            .sum()
    };
    match change {
        Change::CreateTasks { tasks, .. } => tasks.iter().map(|t| TASK + generic(&t.generic)).sum(),
        Change::PlaceTasks { placements, .. } => placements
            .iter()
            .map(|p| 2 * ID + generic(&p.generic))
            .sum(),
        Change::ExplainTasks { tasks, .. }
        | Change::SetDesired { tasks, .. }
        | Change::EndTasks { tasks, .. }
        | Change::OrphanTasks { tasks, .. }
        | Change::DeleteTasks { tasks } => OTHER + tasks.len() * ID,
        Change::AskRenewal { nodes } => OTHER + nodes.len() * ID,
        Change::CreateCluster(_)
        | Change::UpdateCluster(_)
        | Change::CreateNode(_)
        | Change::UpdateNode { .. }
        | Change::SetRetirement { .. }
        | Change::SetNodeCertificate { .. }
        | Change::SetNodeStatus { .. }
        | Change::RemoveNode { .. }
        | Change::CreateService { .. }
        | Change::UpdateService { .. }
        | Change::RollbackService { .. }
        | Change::RemoveService { .. }
        | Change::SetUpdate { .. }
        | Change::ReportStatus { .. } => OTHER,
    }
}

/// 2^64 divided by the golden ratio: SplitMix64's step.
const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// SplitMix64's output function: spreads every bit over all others.
pub(crate) fn mix(mut z: u64) -> u64 {
    z = z.wrapping_add(GOLDEN);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Whether a task's node can't keep it: gone, down, or drained.
pub(crate) fn lost_node(state: &State, task: &Task) -> Option<Loss> {
    let node = state.nodes.get(&task.node?);
    match node {
        None => Some(Loss::Gone),
        Some(node) if node.status.state == pb::node_status::State::Down => Some(Loss::Gone),
        Some(node) if node.is_invalid() => Some(Loss::Drained),
        Some(_) => None,
    }
}

/// Why a node can't keep its tasks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Loss {
    /// Down or removed: its tasks can't be waited for.
    Gone,
    /// Drained: its tasks are stopped in order.
    Drained,
}

/// Whether there is nothing left of a task to wait for.
pub(crate) fn has_stopped(state: &State, task: &Task) -> bool {
    task.status.state.is_terminal()
        || task.node.is_none()
        || lost_node(state, task) == Some(Loss::Gone)
}
