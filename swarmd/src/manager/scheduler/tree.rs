//! Who is next: nodes below a tree of label values, each level kept even.
//!
//! Dealing one task walks from the root to the branch with the fewest tasks of the service, level
//! by level, and takes the least node there; every level is a heap, so that costs a logarithm of
//! the nodes. A branch without room is dropped and the others share what is left.

use std::cmp::Reverse;
use std::collections::binary_heap::PeekMut;
use std::collections::{BTreeMap, BinaryHeap};

use crate::manager::plan::mix;

/// What makes a node less than another, in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key {
    /// Recent failures, where they are many.
    pub(super) failures: usize,
    /// Active tasks of the service.
    pub(super) service: u32,
    /// Active tasks.
    pub(super) total: u32,
    /// By the seed.
    pub(super) draw: u64,
}

/// A node that can take tasks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Candidate {
    pub(super) key: Key,
    /// Its place in the table.
    pub(super) row: usize,
    /// How many more tasks it can take.
    pub(super) room: u64,
}

/// Nodes, below as many levels of branches as there are spread preferences.
#[derive(Debug)]
pub(super) enum Tree {
    Leaf {
        nodes: Vec<Candidate>,
        heap: BinaryHeap<Reverse<Candidate>>,
    },
    Fork {
        branches: BTreeMap<String, Branch>,
        heap: BinaryHeap<Reverse<(u32, u64, String)>>,
    },
}

/// The nodes with one value of a label.
#[derive(Debug)]
pub(super) struct Branch {
    /// Active tasks of the service there, on full nodes too.
    tasks: u32,
    draw: u64,
    below: Tree,
}

impl Tree {
    pub(super) fn new(levels: usize) -> Self {
        if levels == 0 {
            Self::Leaf {
                nodes: Vec::new(),
                heap: BinaryHeap::new(),
            }
        } else {
            Self::Fork {
                branches: BTreeMap::new(),
                heap: BinaryHeap::new(),
            }
        }
    }

    /// Adds a node below the given label values, one a level.
    pub(super) fn add(&mut self, path: &[&str], node: Candidate) {
        match self {
            Self::Leaf { nodes, .. } => {
                if node.room > 0 {
                    nodes.push(node);
                }
            }
            Self::Fork { branches, .. } => {
                let Some((value, rest)) = path.split_first() else {
                    return;
                };
                let branch = branches
                    .entry((*value).to_owned())
                    .or_insert_with(|| Branch {
                        tasks: 0,
                        draw: u64::MAX,
                        below: Self::new(rest.len()),
                    });
                branch.tasks = branch.tasks.saturating_add(node.key.service);
                branch.draw = branch.draw.min(mix(node.key.draw));
                branch.below.add(rest, node);
            }
        }
    }

    /// Puts what was added in order; called once, before the first deal.
    pub(super) fn grow(&mut self) {
        match self {
            Self::Leaf { nodes, heap } => {
                *heap = std::mem::take(nodes).into_iter().map(Reverse).collect();
            }
            Self::Fork { branches, heap } => {
                for (value, branch) in branches {
                    branch.below.grow();
                    heap.push(Reverse((branch.tasks, branch.draw, value.clone())));
                }
            }
        }
    }

    /// The row of the node that gets the next task; none when all are full.
    pub(super) fn deal(&mut self) -> Option<usize> {
        match self {
            Self::Leaf { heap, .. } => {
                let mut least = heap.peek_mut()?;
                let node = &mut least.0;
                let row = node.row;
                node.room = node.room.saturating_sub(1);
                node.key.service = node.key.service.saturating_add(1);
                node.key.total = node.key.total.saturating_add(1);
                if node.room == 0 {
                    PeekMut::pop(least);
                }
                Some(row)
            }
            Self::Fork { branches, heap } => loop {
                let mut least = heap.peek_mut()?;
                let dealt = branches.get_mut(&least.0.2).and_then(|b| b.below.deal());
                match dealt {
                    Some(row) => {
                        least.0.0 = least.0.0.saturating_add(1);
                        return Some(row);
                    }
                    None => {
                        PeekMut::pop(least);
                    }
                }
            },
        }
    }
}
