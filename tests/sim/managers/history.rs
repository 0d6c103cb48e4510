//! What clients asked and were told, and whether one order explains it all: linearizability, per object.
//!
//! An object is a register that can be absent. A history is accepted when its operations can be put in an order that keeps
//! "ended before the other began", and in which each answer is right. An operation whose answer never came may have taken
//! place at any time after it was asked for, or never. The search is Wing and Gong's, and what was tried is remembered.

use std::collections::{BTreeMap, HashSet};

/// One operation's number in a history.
pub(crate) type Id = usize;

/// What was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ask {
    /// Make it.
    Create,
    /// Change it, if it is still what this operation wrote.
    Change(Id),
    /// Remove it.
    Remove,
    /// Read it.
    Read,
}

/// What was answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Told {
    /// Nothing, yet or ever.
    Nothing,
    /// Done, at this version.
    Done(u64),
    /// Refused by the state it met.
    Refused,
    /// This operation's value is there, or none.
    Value(Option<Id>),
}

/// An operation.
#[derive(Debug, Clone)]
pub(crate) struct Operation {
    /// On which object.
    pub(crate) object: u64,
    /// What was asked.
    pub(crate) ask: Ask,
    /// What was answered.
    pub(crate) told: Told,
    began: u64,
    ended: u64,
}

/// All operations of a run.
#[derive(Debug, Default)]
pub(crate) struct History {
    operations: Vec<Operation>,
    clock: u64,
}

impl History {
    /// Somebody asks.
    pub(crate) fn begin(&mut self, object: u64, ask: Ask) -> Id {
        self.clock += 1;
        self.operations.push(Operation {
            object,
            ask,
            told: Told::Nothing,
            began: self.clock,
            ended: u64::MAX,
        });
        self.operations.len() - 1
    }

    /// Somebody is answered.
    pub(crate) fn end(&mut self, id: Id, told: Told) {
        self.clock += 1;
        let operation = &mut self.operations[id];
        operation.told = told;
        operation.ended = self.clock;
    }

    /// It is certain that nothing came of it.
    pub(crate) fn withdraw(&mut self, id: Id) {
        self.operations[id].object = u64::MAX;
    }

    /// How many operations were answered, and how many were not.
    pub(crate) fn counts(&self) -> (usize, usize) {
        let asked = self.operations.iter().filter(|o| o.object != u64::MAX);
        let (told, not): (Vec<&Operation>, Vec<&Operation>) =
            asked.partition(|o| o.told != Told::Nothing);
        (told.len(), not.len())
    }

    /// What no order explains.
    pub(crate) fn check(&self) -> Vec<String> {
        let mut objects: BTreeMap<u64, Vec<(Id, &Operation)>> = BTreeMap::new();
        for (id, operation) in self.operations.iter().enumerate() {
            if operation.object != u64::MAX {
                objects
                    .entry(operation.object)
                    .or_default()
                    .push((id, operation));
            }
        }
        let mut broken = Vec::new();
        for (object, operations) in objects {
            broken.extend(versions(&operations));
            if !Search::new(&operations).explains() {
                let lines: Vec<String> = operations
                    .iter()
                    .map(|(id, o)| {
                        let (began, ended) = (o.began, o.ended);
                        format!("  {id}: {:?} -> {:?} ({began} to {ended})", o.ask, o.told)
                    })
                    .collect();
                broken.push(format!(
                    "object {object} has no linear history:\n{}",
                    lines.join("\n")
                ));
            }
        }
        broken
    }
}

/// What was done earlier has the smaller version.
fn versions(operations: &[(Id, &Operation)]) -> Vec<String> {
    let done = operations.iter().filter_map(|(id, o)| match o.told {
        Told::Done(version) => Some((*id, *o, version)),
        Told::Nothing | Told::Refused | Told::Value(_) => None,
    });
    let done: Vec<(Id, &Operation, u64)> = done.collect();
    let mut broken = Vec::new();
    for (id, one, version) in &done {
        for (other, two, later) in &done {
            if one.ended < two.began && version >= later {
                broken.push(format!(
                    "operation {other} has version {later}, after operation {id} had {version}"
                ));
            }
        }
    }
    broken
}

/// A search for one order.
struct Search<'a> {
    operations: &'a [(Id, &'a Operation)],
    tried: HashSet<(Vec<u64>, Option<Id>)>,
    /// Which operations have an answer that must be explained.
    answered: usize,
}

impl<'a> Search<'a> {
    fn new(operations: &'a [(Id, &'a Operation)]) -> Self {
        let answered = operations.iter().filter(|(_, o)| o.told != Told::Nothing);
        Self {
            operations,
            tried: HashSet::new(),
            answered: answered.count(),
        }
    }

    fn explains(&mut self) -> bool {
        let words = self.operations.len().div_ceil(64);
        self.go_on(&mut vec![0; words], None, 0)
    }

    /// Tries every operation that may be next.
    fn go_on(&mut self, taken: &mut Vec<u64>, state: Option<Id>, explained: usize) -> bool {
        if explained == self.answered {
            return true;
        }
        if !self.tried.insert((taken.clone(), state)) {
            return false;
        }
        let open = |at: usize, taken: &[u64]| taken[at / 64] & (1 << (at % 64)) == 0;
        let left = (0..self.operations.len()).filter(|at| open(*at, taken));
        // Whatever has ended before another began comes before it.
        let first_end = left.clone().map(|at| self.operations[at].1.ended).min();
        let next: Vec<usize> = left
            .filter(|at| Some(self.operations[*at].1.began) <= first_end)
            .collect();
        for at in next {
            let (id, operation) = self.operations[at];
            if let Some(after) = outcomes(operation, id, state) {
                taken[at / 64] |= 1 << (at % 64);
                let more = usize::from(operation.told != Told::Nothing);
                if self.go_on(taken, after, explained + more) {
                    return true;
                }
                taken[at / 64] &= !(1 << (at % 64));
            }
        }
        false
    }
}

/// What the register is after an operation, if its answer is right where it is `state` before.
fn outcomes(operation: &Operation, id: Id, state: Option<Id>) -> Option<Option<Id>> {
    let takes = match operation.ask {
        Ask::Create => state.is_none(),
        Ask::Change(expected) => state == Some(expected),
        Ask::Remove => state.is_some(),
        Ask::Read => false,
    };
    let after = match (operation.ask, takes) {
        (_, false) => state,
        (Ask::Remove, true) => None,
        (Ask::Create | Ask::Change(_) | Ask::Read, true) => Some(id),
    };
    let right = match operation.told {
        Told::Nothing => true,
        Told::Done(_) => takes,
        Told::Refused => !takes,
        Told::Value(value) => value == state,
    };
    right.then_some(after)
}

#[test]
fn a_history_that_can_be_ordered_is_accepted() {
    let mut history = History::default();
    let create = history.begin(1, Ask::Create);
    let read = history.begin(1, Ask::Read);
    history.end(read, Told::Value(None));
    history.end(create, Told::Done(1));
    let lost = history.begin(1, Ask::Change(create));
    let read = history.begin(1, Ask::Read);
    history.end(read, Told::Value(Some(lost)));
    let stale = history.begin(1, Ask::Change(create));
    history.end(stale, Told::Refused);
    assert!(history.check().is_empty(), "{:?}", history.check());
}

#[test]
fn a_lost_write_a_stale_read_and_a_write_twice_are_found() {
    let mut lost = History::default();
    let create = lost.begin(1, Ask::Create);
    lost.end(create, Told::Done(1));
    let read = lost.begin(1, Ask::Read);
    lost.end(read, Told::Value(None));
    assert_eq!(lost.check().len(), 1);

    let mut stale = History::default();
    let create = stale.begin(1, Ask::Create);
    stale.end(create, Told::Done(1));
    let change = stale.begin(1, Ask::Change(create));
    stale.end(change, Told::Done(2));
    let read = stale.begin(1, Ask::Read);
    stale.end(read, Told::Value(Some(create)));
    assert_eq!(stale.check().len(), 1);

    let mut twice = History::default();
    let create = twice.begin(1, Ask::Create);
    twice.end(create, Told::Done(1));
    for version in [2, 3] {
        let change = twice.begin(1, Ask::Change(create));
        twice.end(change, Told::Done(version));
    }
    assert_eq!(twice.check().len(), 1);

    let mut back = History::default();
    for (object, version) in [(1, 5), (1, 4)] {
        let ask = if version == 5 {
            Ask::Create
        } else {
            Ask::Change(0)
        };
        let id = back.begin(object, ask);
        back.end(id, Told::Done(version));
    }
    assert_eq!(back.check().len(), 1, "versions go back");
}
