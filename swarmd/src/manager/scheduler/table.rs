//! Nodes and what is taken on them, while one pass deals out tasks.

use std::cell::OnceCell;
use std::collections::BTreeMap;
use std::sync::Arc;

use swarm_proto::id::ServiceId;
use swarm_proto::pb;
use swarm_proto::placement::NodeFacts;
use swarm_proto::resources::{Generic, Resources};
use swarm_proto::service::ServiceSpec;
use swarm_proto::time::Timestamp;

use super::tree::{Candidate, Key, Tree};
use super::{Seat, facts, filter};
use crate::manager::plan::mix;
use crate::manager::store::apply::FAILURE_WINDOW;
use crate::manager::store::{Node, State, Usage};

/// So many failures of one spec on a node within [`FAILURE_WINDOW`] send its tasks elsewhere
/// (SwarmKit's `maxFailures`).
const FAILURES_MAX: usize = 5;

/// Tasks that are alike: of one service and spec version.
#[derive(Debug, Clone, Copy)]
pub(super) struct Group<'a> {
    pub(super) service: ServiceId,
    pub(super) version: u64,
    pub(super) spec: &'a ServiceSpec,
}

/// All nodes.
#[derive(Debug)]
pub(super) struct Table {
    pub(super) rows: Vec<Row>,
    now: Timestamp,
}

/// A node.
#[derive(Debug)]
pub(super) struct Row {
    pub(super) node: Arc<Node>,
    /// What is taken, placements of this pass included.
    pub(super) usage: Arc<Usage>,
    /// Decides between nodes that are equal otherwise.
    draw: u64,
    spec: OnceCell<pb::NodeSpec>,
}

impl Table {
    pub(super) fn of(state: &State, now: Timestamp, seed: u64) -> Self {
        let idle = Arc::new(Usage::default());
        let rows = state.nodes.values().map(|node| {
            let usage = state.index.usage.get(&node.id).unwrap_or(&idle);
            let [high, low] = halves(node.id.raw());
            Row {
                node: Arc::clone(node),
                usage: Arc::clone(usage),
                draw: mix(mix(seed ^ high) ^ low),
                spec: OnceCell::new(),
            }
        });
        Self {
            rows: rows.collect(),
            now,
        }
    }

    /// Seats for up to `count` tasks, taken at once.
    pub(super) fn seat(&mut self, group: &Group<'_>, count: usize) -> Vec<Seat> {
        let mut tree = self.tree(group);
        let policy = &group.spec.task;
        let mut seats = Vec::with_capacity(count);
        // How many each node gets; what is alike is taken from it once.
        let mut taken = vec![0_u32; self.rows.len()];
        let by_name = !policy.reservations.generic.is_empty();
        while seats.len() < count {
            let Some(index) = tree.deal() else { break };
            let (Some(row), Some(taken)) = (self.rows.get_mut(index), taken.get_mut(index)) else {
                break;
            };
            let mut given = BTreeMap::new();
            if by_name {
                given = row.claim(group);
                Arc::make_mut(&mut row.usage).take(group.service, policy, &given, 1);
            } else {
                *taken += 1;
            }
            seats.push((row.node.id, given));
        }
        let nothing = BTreeMap::new();
        for (row, times) in self.rows.iter_mut().zip(taken) {
            if times > 0 {
                Arc::make_mut(&mut row.usage).take(group.service, policy, &nothing, times);
            }
        }
        seats
    }

    /// The nodes that can take tasks of the group, in the shape of its spread preferences.
    fn tree(&self, group: &Group<'_>) -> Tree {
        let spread = &group.spec.task.placement.spread;
        let mut tree = Tree::new(spread.len());
        for (index, row) in self.rows.iter().enumerate() {
            let room = filter::room(row, group);
            let path: Vec<&str> = spread.iter().map(|s| s.value(&row.facts())).collect();
            let service = row.tasks_of(group.service);
            if room == 0 && (service == 0 || path.is_empty()) {
                continue;
            }
            let key = Key {
                failures: self.failures(row, group),
                service,
                total: row.usage.active,
                draw: row.draw,
            };
            tree.add(
                &path,
                Candidate {
                    key,
                    room,
                    row: index,
                },
            );
        }
        tree.grow();
        tree
    }

    /// Failures that count: none below the limit.
    fn failures(&self, row: &Row, group: &Group<'_>) -> usize {
        let recent = row.node.failures.iter().filter(|failure| {
            failure.service == group.service
                && failure.spec_version == group.version
                && self.now.since(failure.at) < FAILURE_WINDOW
        });
        let count = recent.count();
        if count < FAILURES_MAX { 0 } else { count }
    }
}

impl Row {
    pub(super) fn facts(&self) -> NodeFacts<'_> {
        facts::view(
            &self.node,
            self.spec.get_or_init(|| facts::spec(&self.node)),
        )
    }

    /// Active tasks of a service here.
    pub(super) fn tasks_of(&self, service: ServiceId) -> u32 {
        self.usage.by_service.get(&service).copied().unwrap_or(0)
    }

    /// What is left here.
    pub(super) fn free(&self) -> Resources {
        let mut free = self.node.resources.clone();
        free.nano_cpus = free.nano_cpus.saturating_sub(self.usage.nano_cpus);
        free.memory_bytes = free.memory_bytes.saturating_sub(self.usage.memory_bytes);
        for (kind, held) in self.usage.generic.each() {
            free.deduct_generic(kind, &held);
        }
        free
    }

    /// The generic resources that one more task gets; the filter has seen that they are there.
    fn claim(&self, group: &Group<'_>) -> BTreeMap<String, Generic> {
        self.free()
            .claim(&group.spec.task.reservations)
            .unwrap_or_default()
    }
}

#[expect(clippy::cast_possible_truncation, reason = "each half has 64 bits")]
fn halves(raw: u128) -> [u64; 2] {
    [(raw >> 64) as u64, raw as u64]
}
