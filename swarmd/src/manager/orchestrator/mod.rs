//! How many tasks there should be, and which: services become slots, slots become tasks.
//!
//! ```text
//! enforce     tasks whose node no longer meets what they ask for are rejected
//! replicated  as many slots as replicas
//! update      slots of an older spec get a task of the current one, some at a time
//! restart     what ended, or lost its node, is replaced; what is held starts when it is due
//! reap        what nobody needs to see any more is deleted
//! ```
//!
//! A *slot* is one replica; its tasks are the one that should run and the history of those before.
//! All steps are pure and derive what they know of the past from the tasks of a slot.

pub(crate) mod enforce;
pub(crate) mod reap;
pub(crate) mod replicated;
pub(crate) mod restart;
pub(crate) mod slot;
pub(crate) mod template;
pub(crate) mod update;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use swarm_proto::id::{ServiceId, TaskId};
use swarm_proto::time::Timestamp;

use super::plan::{Ctx, Dirty};
use super::store::{Service, State, Task};
use slot::Standing;

/// What a pass looks at.
#[derive(Debug, Default)]
pub(crate) struct Work {
    whole: BTreeSet<ServiceId>,
    slots: BTreeMap<ServiceId, BTreeSet<u64>>,
}

impl Work {
    /// What the hint names, and what has become due.
    pub(crate) fn of(state: &State, dirty: &Dirty, now: Timestamp) -> Self {
        let mut work = Self::default();
        if dirty.all {
            work.whole = state.services.keys().copied().collect();
            return work;
        }
        work.whole.clone_from(&dirty.services);
        for (service, slot) in &dirty.slots {
            work.touch(*service, *slot);
        }
        for node in &dirty.nodes {
            for task in state.node_tasks(*node) {
                work.touch(task.service, task.slot);
            }
        }
        for (_, id) in state.index.held.range(..=(now, TaskId::MAX)) {
            if let Some(task) = state.tasks.get(id) {
                work.touch(task.service, task.slot);
            }
        }
        work.widen(state);
        work
    }

    /// Adds a slot.
    pub(crate) fn touch(&mut self, service: ServiceId, slot: u64) {
        if !self.whole.contains(&service) {
            self.slots.entry(service).or_default().insert(slot);
        }
    }

    /// A slot that holds nothing any more concerns its whole service, and so does one that may
    /// have gone out of date: what keeps a task of an older spec can end.
    fn widen(&mut self, state: &State) {
        for (id, slots) in &self.slots {
            let Some(service) = state.service(*id) else {
                continue;
            };
            let mut concerned = slots.iter().filter(|slot| {
                let tasks = slot::tasks(state, *id, **slot);
                let outdated = |task: &Task| task.spec_version != service.spec_version;
                let mut deciding = tasks.iter().filter(|task| slot::is_live(task));
                let outdated = deciding.any(|task| outdated(task))
                    || tasks.last().is_some_and(|task| outdated(task));
                Standing::of(service, &tasks) == Standing::Free
                    || (outdated && update::may_begin(state, service, &tasks))
            });
            if concerned.next().is_some() {
                self.whole.insert(*id);
            }
        }
        self.slots.retain(|id, _| !self.whole.contains(id));
    }

    /// Services to compare with their spec.
    pub(crate) fn whole_services(&self, state: &State) -> Vec<Arc<Service>> {
        let services = self.whole.iter().filter_map(|id| state.services.get(id));
        services.cloned().collect()
    }

    /// The services to look at, and their slots. An update under way concerns all of them.
    pub(crate) fn services(&self, state: &State) -> Vec<(Arc<Service>, Slots)> {
        let concerned = |service: &Arc<Service>| {
            let id = &service.id;
            if self.whole.contains(id) || (update::under_way(service) && !service.removed) {
                return Some((Arc::clone(service), Slots::All));
            }
            let slots = self.slots.get(id)?;
            Some((Arc::clone(service), Slots::These(slots.clone())))
        };
        state.services.values().filter_map(concerned).collect()
    }
}

/// Slots of one service.
#[derive(Debug, Clone)]
pub(crate) enum Slots {
    /// Every one.
    All,
    /// Only these.
    These(BTreeSet<u64>),
}

impl Slots {
    /// Their tasks by slot, the oldest of a slot first.
    fn tasks(&self, state: &State, service: ServiceId) -> Vec<Arc<Task>> {
        match self {
            Self::All => slot::all_tasks(state, service),
            Self::These(slots) => slots
                .iter()
                .flat_map(|slot| slot::tasks(state, service, *slot))
                .collect(),
        }
    }
}

/// Compares a service with its spec, goes on with its update, restarts what has to be, and deletes
/// what nobody needs.
pub(crate) fn plan(cx: &mut Ctx, service: &Arc<Service>, slots: &Slots) {
    let mut tasks = slots.tasks(&cx.state, service.id);
    // The list is made anew only when a step has changed one of its tasks.
    let mut changes = cx.changes();
    let mut refresh = |cx: &Ctx, tasks: &mut Vec<Arc<Task>>| {
        if cx.changes() != changes {
            *tasks = slots.tasks(&cx.state, service.id);
            changes = cx.changes();
        }
    };
    if let Slots::All = slots {
        replicated::plan(cx, service, &tasks);
        refresh(cx, &mut tasks);
        update::plan(cx, service, &tasks);
        refresh(cx, &mut tasks);
    }
    // The update may have begun, paused or ended just now.
    let service = cx.state.services.get(&service.id).cloned();
    let Some(service) = service.filter(|s| !cx.deferred.contains(&s.id)) else {
        return;
    };
    restart::plan(cx, &service, &tasks);
    refresh(cx, &mut tasks);
    reap::plan(cx, &service, &tasks);
}
