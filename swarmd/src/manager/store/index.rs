//! The only places where objects enter and leave the state; each keeps every index true and
//! records what happened.
//!
//! Reservations are looked up in the spec a task refers to, so a service is put before its tasks
//! and stays until they are gone.

use std::collections::BTreeMap;
use std::sync::Arc;

use swarm_proto::id::{NodeId, ServiceId, TaskId};
use swarm_proto::resources::Generic;
use swarm_proto::service::TaskPolicy;
use swarm_proto::task_state::TaskState;
use swarm_proto::time::Timestamp;

use super::state::{Cluster, Node, STOP_WAIT, Service, State, Task, Usage};

/// What one change did to one object.
#[derive(Debug, Clone)]
pub enum Event {
    /// The cluster object was made or changed.
    Cluster {
        /// Before; none when made.
        old: Option<Arc<Cluster>>,
        /// Now.
        new: Arc<Cluster>,
    },
    /// A node was made, changed or removed.
    Node {
        /// Before; none when made.
        old: Option<Arc<Node>>,
        /// Now; none when removed.
        new: Option<Arc<Node>>,
    },
    /// A service was made, changed or removed. Removal by its user is a change to `removed`; the
    /// object itself goes with its last task.
    Service {
        /// Before; none when made.
        old: Option<Arc<Service>>,
        /// Now; none when gone.
        new: Option<Arc<Service>>,
    },
    /// A task was made, changed or deleted.
    Task {
        /// Before; none when made.
        old: Option<Arc<Task>>,
        /// Now; none when deleted.
        new: Option<Arc<Task>>,
    },
}

/// A state under change, and what has happened to it so far.
#[derive(Debug)]
pub struct Txn<'a> {
    /// The state.
    pub state: &'a mut State,
    /// What happened, in order.
    pub events: &'a mut Vec<Event>,
}

impl Txn<'_> {
    pub(super) fn put_cluster(&mut self, new: Cluster) {
        let new = Arc::new(new);
        let old = self.state.cluster.replace(Arc::clone(&new));
        self.events.push(Event::Cluster { old, new });
    }

    pub(super) fn put_node(&mut self, new: Node) {
        let new = Arc::new(new);
        let old = self.state.nodes.insert(new.id, Arc::clone(&new));
        self.events.push(Event::Node {
            old,
            new: Some(new),
        });
    }

    pub(super) fn take_node(&mut self, id: NodeId) {
        if let Some(old) = self.state.nodes.remove(&id) {
            self.events.push(Event::Node {
                old: Some(old),
                new: None,
            });
        }
    }

    pub(super) fn put_service(&mut self, new: Service) {
        let id = new.id;
        self.restore_service(new);
        self.drop_service_if_done(id);
    }

    /// Puts a service whose tasks come later: a removed one stays.
    pub(super) fn restore_service(&mut self, new: Service) {
        let key = new.spec.name.to_lowercase();
        if new.removed {
            // The name may have been given to another service since.
            if self.state.index.service_names.get(&key) == Some(&new.id) {
                self.state.index.service_names.remove(&key);
            }
        } else {
            self.state.index.service_names.insert(key, new.id);
        }
        let new = Arc::new(new);
        let old = self.state.services.insert(new.id, Arc::clone(&new));
        self.events.push(Event::Service {
            old,
            new: Some(new),
        });
    }

    /// A new task; its id is free.
    pub(super) fn add_task(&mut self, new: Task) {
        let new = Arc::new(new);
        let state = &mut *self.state;
        state.tasks.insert(new.id, Arc::clone(&new));
        let of_service = state.index.service_tasks.entry(new.service).or_default();
        of_service.insert((new.slot, new.id));
        state.count_spec(new.service, new.spec_version);
        state.reindex_task(None, Some(&new));
        self.events.push(Event::Task {
            old: None,
            new: Some(new),
        });
    }

    /// Changes a task; none leaves it as it is. One look-up, for this is what the store does most.
    pub(super) fn change_task(&mut self, id: TaskId, change: impl FnOnce(&Task) -> Option<Task>) {
        let Some(stored) = self.state.tasks.get_mut(&id) else {
            return;
        };
        let Some(new) = change(stored) else {
            return;
        };
        let new = Arc::new(new);
        let old = std::mem::replace(stored, Arc::clone(&new));
        self.state.reindex_task(Some(&old), Some(&new));
        self.events.push(Event::Task {
            old: Some(old),
            new: Some(new),
        });
    }

    pub(super) fn take_task(&mut self, id: TaskId) {
        let Some(old) = self.state.tasks.remove(&id) else {
            return;
        };
        self.state.reindex_task(Some(&old), None);
        let entry = (old.slot, old.id);
        remove_entry(&mut self.state.index.service_tasks, old.service, &entry);
        let (service, version) = (old.service, old.spec_version);
        self.events.push(Event::Task {
            old: Some(old),
            new: None,
        });
        if self.state.uncount_spec(service, version) {
            self.drop_spec(service, version);
            self.drop_service_if_done(service);
        }
    }

    /// Forgets an old spec that no task refers to any more.
    fn drop_spec(&mut self, id: ServiceId, version: u64) {
        let Some(service) = self.state.services.get(&id) else {
            return;
        };
        if !service.old_specs.contains_key(&version) {
            return;
        }
        // Not an event: nobody sees which old specs are kept.
        let mut service = Service::clone(service);
        service.old_specs.remove(&version);
        self.state.services.insert(id, Arc::new(service));
    }

    fn drop_service_if_done(&mut self, id: ServiceId) {
        let done = self.state.services.get(&id).is_some_and(|s| s.removed)
            && self.state.service_tasks(id).next().is_none();
        if done && let Some(old) = self.state.services.remove(&id) {
            self.events.push(Event::Service {
                old: Some(old),
                new: None,
            });
        }
    }
}

impl State {
    /// Whether a task refers to this version of the service's spec.
    pub(super) fn spec_in_use(&self, service: ServiceId, version: u64) -> bool {
        self.index.spec_refs.contains_key(&(service, version))
    }

    fn count_spec(&mut self, service: ServiceId, version: u64) {
        *self.index.spec_refs.entry((service, version)).or_insert(0) += 1;
    }

    /// True when that was the last task of this version.
    fn uncount_spec(&mut self, service: ServiceId, version: u64) -> bool {
        let key = (service, version);
        match self.index.spec_refs.get_mut(&key) {
            Some(count) if *count > 1 => {
                *count -= 1;
                false
            }
            Some(_) => {
                self.index.spec_refs.remove(&key);
                true
            }
            None => false,
        }
    }

    /// Moves a task's index entries from what it was to what it is.
    fn reindex_task(&mut self, old: Option<&Task>, new: Option<&Task>) {
        let node = |t: Option<&Task>| t.and_then(|t| Some((t.node?, t.id)));
        if node(old) != node(new) {
            let of_nodes = &mut self.index.node_tasks;
            if let Some((node, task)) = node(old) {
                remove_entry(of_nodes, node, &task);
            }
            if let Some((node, task)) = node(new) {
                of_nodes.entry(node).or_default().insert(task);
            }
        }
        let unplaced = |t: Option<&Task>| t.filter(|t| is_unplaced(t)).map(|t| (t.service, t.id));
        move_entry(&mut self.index.unplaced, unplaced(old), unplaced(new));
        move_entry(&mut self.index.held, old.and_then(held), new.and_then(held));

        let share = |t: Option<&Task>| t.and_then(Share::of);
        let (before, after) = (share(old), share(new));
        if before == after {
            return;
        }
        if let (Some(share), Some(task)) = (before, old) {
            self.change_usage(share, task, Sign::Release);
        }
        if let (Some(share), Some(task)) = (after, new) {
            self.change_usage(share, task, Sign::Take);
        }
    }

    fn change_usage(&mut self, share: Share, task: &Task, sign: Sign) {
        let spec = self.task_spec(task).cloned();
        let usage = self.index.usage.entry(share.node).or_default();
        let usage = Arc::make_mut(usage);
        if share.active {
            usage.count_active(task.service, sign, 1);
        }
        if share.holds {
            if let Some(spec) = &spec {
                usage.change_reserved(&spec.task, sign);
            }
            if let Some(generic) = task.generic.as_deref() {
                for (kind, amount) in generic {
                    match sign {
                        Sign::Take => usage.generic.take(kind, amount),
                        Sign::Release => usage.generic.release(kind, amount),
                    }
                }
            }
        }
        if *usage == Usage::default() {
            self.index.usage.remove(&share.node);
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sign {
    Take,
    Release,
}

/// What a task adds to its node's usage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Share {
    node: NodeId,
    active: bool,
    holds: bool,
}

impl Share {
    fn of(task: &Task) -> Option<Self> {
        let node = task.node?;
        let (active, holds) = (task.is_active(), task.holds_resources());
        (active || holds).then_some(Self {
            node,
            active,
            holds,
        })
    }
}

impl Usage {
    /// Adds active tasks that are alike. Planners keep their own count with it, so that it is the
    /// store's.
    pub(crate) fn take(
        &mut self,
        service: ServiceId,
        policy: &TaskPolicy,
        generic: &BTreeMap<String, Generic>,
        times: u32,
    ) {
        self.count_active(service, Sign::Take, times);
        for _ in 0..times {
            self.change_reserved(policy, Sign::Take);
        }
        for (kind, amount) in generic {
            self.generic.take(kind, amount);
        }
    }

    fn count_active(&mut self, service: ServiceId, sign: Sign, by: u32) {
        match sign {
            Sign::Take => {
                self.active += by;
                *self.by_service.entry(service).or_default() += by;
            }
            Sign::Release => {
                self.active = self.active.saturating_sub(by);
                if let Some(count) = self.by_service.get_mut(&service) {
                    *count = count.saturating_sub(by);
                    if *count == 0 {
                        self.by_service.remove(&service);
                    }
                }
            }
        }
    }

    fn change_reserved(&mut self, task: &TaskPolicy, sign: Sign) {
        let sum = |held: i64, by: i64| match sign {
            Sign::Take => held.saturating_add(by),
            Sign::Release => held.saturating_sub(by),
        };
        self.nano_cpus = sum(self.nano_cpus, task.reservations.nano_cpus);
        self.memory_bytes = sum(self.memory_bytes, task.reservations.memory_bytes);
        for port in &task.host_ports {
            match sign {
                Sign::Take => *self.ports.entry(*port).or_default() += 1,
                Sign::Release => {
                    if let Some(count) = self.ports.get_mut(port) {
                        *count = count.saturating_sub(1);
                        if *count == 0 {
                            self.ports.remove(port);
                        }
                    }
                }
            }
        }
    }
}

fn is_unplaced(task: &Task) -> bool {
    task.node.is_none() && task.is_active()
}

fn held(task: &Task) -> Option<(Timestamp, TaskId)> {
    // What ended while it was held is replaced when its time has come, so it stays in the index.
    let wanted = task.desired <= TaskState::Complete;
    let hold = task.hold.as_deref().filter(|_| wanted)?;
    let until = match hold.after {
        Some(_) if hold.start_at.is_zero() => task.meta.created_at.after(STOP_WAIT),
        Some(_) | None => hold.start_at,
    };
    Some((until, task.id))
}

/// Takes an entry out of the set of a key; a set that is empty goes.
fn remove_entry<K: Ord + Copy, T: Ord + Clone>(
    sets: &mut imbl::OrdMap<K, imbl::OrdSet<T>>,
    key: K,
    entry: &T,
) {
    let Some(set) = sets.get_mut(&key) else {
        return;
    };
    set.remove(entry);
    if set.is_empty() {
        sets.remove(&key);
    }
}

fn move_entry<T: Ord + Clone>(set: &mut imbl::OrdSet<T>, old: Option<T>, new: Option<T>) {
    if old == new {
        return;
    }
    if let Some(old) = old {
        set.remove(&old);
    }
    if let Some(new) = new {
        set.insert(new);
    }
}
