//! What a node has and what a task asks for: CPU, memory, and generic resources.
//!
//! A node advertises a generic resource either as a count or as a set of names, never both; a task
//! asks for a count, and of a named resource it gets that many of the names.
//!
//! Invariant: `claim` takes only what is there, and `release` of what it gave restores it exactly.

use std::collections::{BTreeMap, BTreeSet};

pub use crate::generic::{InvalidGeneric, generic_from_wire, generic_to_wire, parse_generic};
use crate::invalid::{Faults, InvalidSpec};
use crate::pb;

/// Least CPU that can be asked for, in billionths: a thousandth of a CPU.
pub const NANO_CPUS_MIN: i64 = 1_000_000;

/// Least memory that can be asked for, in bytes: below 4 MiB no container starts.
pub const MEMORY_BYTES_MIN: i64 = 4 << 20;

/// Amounts of a node's resources. One CPU is 1,000,000,000 nano CPUs.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Resources {
    /// Billionths of a CPU.
    pub nano_cpus: i64,
    /// Bytes of memory.
    pub memory_bytes: i64,
    /// Generic resources by kind.
    pub generic: BTreeMap<String, Generic>,
}

/// One kind of generic resource on a node, or what a task was given of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Generic {
    /// So many of them, all alike.
    Count(u64),
    /// These, by name.
    Names(BTreeSet<String>),
}

/// What a task asks to be kept free for it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Reservations {
    /// Billionths of a CPU.
    pub nano_cpus: i64,
    /// Bytes of memory.
    pub memory_bytes: i64,
    /// How many of each kind of generic resource.
    pub generic: BTreeMap<String, u64>,
}

impl Generic {
    /// How many there are.
    pub fn len(&self) -> u64 {
        match self {
            Self::Count(count) => *count,
            Self::Names(names) => u64::try_from(names.len()).unwrap_or(u64::MAX),
        }
    }

    /// None left.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Takes `wanted` of them: the lowest names first. None, and nothing taken, if there are fewer.
    fn take(&mut self, wanted: u64) -> Option<Self> {
        match self {
            Self::Count(count) => {
                *count = count.checked_sub(wanted)?;
                Some(Self::Count(wanted))
            }
            Self::Names(names) => {
                let wanted = usize::try_from(wanted).ok().filter(|w| *w <= names.len())?;
                let taken: BTreeSet<String> = names.iter().take(wanted).cloned().collect();
                names.retain(|name| !taken.contains(name));
                Some(Self::Names(taken))
            }
        }
    }
}

impl Reservations {
    /// Nothing is asked for.
    pub fn is_empty(&self) -> bool {
        self.nano_cpus == 0 && self.memory_bytes == 0 && self.generic.values().all(|n| *n == 0)
    }
}

/// What is asked for of each kind, zeros left out.
fn wanted(reservations: &Reservations) -> impl Iterator<Item = (&String, u64)> {
    reservations
        .generic
        .iter()
        .map(|(kind, n)| (kind, *n))
        .filter(|(_, n)| *n > 0)
}

impl Resources {
    /// Whether all that is asked for is there. What is not asked for does not count, even where
    /// less than nothing is left because the node shrank.
    pub fn fits(&self, reservations: &Reservations) -> bool {
        let amount = |wanted: i64, have: i64| wanted <= 0 || wanted <= have;
        amount(reservations.nano_cpus, self.nano_cpus)
            && amount(reservations.memory_bytes, self.memory_bytes)
            && wanted(reservations)
                .all(|(kind, n)| self.generic.get(kind).is_some_and(|have| have.len() >= n))
    }

    /// Takes what is asked for; none, and nothing taken, if it does not fit. Gives what was
    /// chosen of each generic resource: the lowest names first, so that the same request on the
    /// same node always gets the same.
    pub fn claim(&mut self, reservations: &Reservations) -> Option<BTreeMap<String, Generic>> {
        if !self.fits(reservations) {
            return None;
        }
        let mut assigned = BTreeMap::new();
        for (kind, n) in wanted(reservations) {
            let taken = self.generic.get_mut(kind)?.take(n)?;
            assigned.insert(kind.clone(), taken);
        }
        self.subtract_amounts(reservations);
        Some(assigned)
    }

    /// Takes what a task already holds, whether or not it is there: a node may have shrunk below
    /// what runs on it. CPU and memory may go below zero then. Counts end at zero; so after a
    /// change of the node's total start over from that total, and don't `release` into it.
    pub fn deduct(&mut self, reservations: &Reservations, assigned: &BTreeMap<String, Generic>) {
        self.subtract_amounts(reservations);
        for (kind, held) in assigned {
            self.deduct_generic(kind, held);
        }
    }

    /// As [`Self::deduct`], one kind of generic resource.
    pub fn deduct_generic(&mut self, kind: &str, held: &Generic) {
        match (self.generic.get_mut(kind), held) {
            (Some(Generic::Count(count)), Generic::Count(held)) => {
                *count = count.saturating_sub(*held);
            }
            (Some(Generic::Names(names)), Generic::Names(held)) => {
                names.retain(|name| !held.contains(name));
            }
            // The node no longer has this kind, or in the other form: nothing to take.
            (Some(Generic::Count(_)), Generic::Names(_))
            | (Some(Generic::Names(_)), Generic::Count(_))
            | (None, _) => {}
        }
    }

    /// Gives back what `claim` took.
    pub fn release(&mut self, reservations: &Reservations, assigned: &BTreeMap<String, Generic>) {
        self.nano_cpus = self.nano_cpus.saturating_add(reservations.nano_cpus);
        self.memory_bytes = self.memory_bytes.saturating_add(reservations.memory_bytes);
        for (kind, held) in assigned {
            match (self.generic.get_mut(kind), held) {
                (Some(Generic::Count(count)), Generic::Count(held)) => {
                    *count = count.saturating_add(*held);
                }
                (Some(Generic::Names(names)), Generic::Names(held)) => {
                    names.extend(held.iter().cloned());
                }
                (Some(Generic::Count(_)), Generic::Names(_))
                | (Some(Generic::Names(_)), Generic::Count(_))
                | (None, _) => {}
            }
        }
    }

    fn subtract_amounts(&mut self, reservations: &Reservations) {
        self.nano_cpus = self.nano_cpus.saturating_sub(reservations.nano_cpus);
        self.memory_bytes = self.memory_bytes.saturating_sub(reservations.memory_bytes);
    }
}

impl From<&Resources> for pb::Resources {
    fn from(resources: &Resources) -> Self {
        Self {
            nano_cpus: resources.nano_cpus,
            memory_bytes: resources.memory_bytes,
            generic: generic_to_wire(&resources.generic),
        }
    }
}

impl TryFrom<&pb::ResourceRequirements> for Reservations {
    type Error = InvalidSpec;

    /// The reservations, after a check of the whole: limits and swap as well.
    fn try_from(wire: &pb::ResourceRequirements) -> Result<Self, InvalidSpec> {
        let mut faults = Faults::default();
        let reservations = parse(&mut faults, "", Some(wire));
        faults.finish(reservations)
    }
}

/// `prefix` is the path of `wire`, with its dot. A reservation above the limit is accepted, as in
/// SwarmKit: it wastes room but harms nobody.
pub(crate) fn parse(
    faults: &mut Faults,
    prefix: &str,
    wire: Option<&pb::ResourceRequirements>,
) -> Reservations {
    let Some(wire) = wire else {
        return Reservations::default();
    };
    check_swap(faults, prefix, wire);
    if let Some(limits) = &wire.limits {
        parse_asked(faults, &format!("{prefix}limits"), limits);
        if !limits.generic.is_empty() {
            faults.add(
                format!("{prefix}limits.generic"),
                "generic resources have no limits; ask for them in reservations",
            );
        }
    }
    let asked = |r| parse_asked(faults, &format!("{prefix}reservations"), r);
    wire.reservations.as_ref().map(asked).unwrap_or_default()
}

fn parse_asked(faults: &mut Faults, field: &str, wire: &pb::Resources) -> Reservations {
    if wire.nano_cpus != 0 && wire.nano_cpus < NANO_CPUS_MIN {
        faults.add(
            format!("{field}.nano_cpus"),
            format!(
                "{} is too little; ask for at least 0.001 CPU ({NANO_CPUS_MIN})",
                wire.nano_cpus
            ),
        );
    }
    if wire.memory_bytes != 0 && wire.memory_bytes < MEMORY_BYTES_MIN {
        faults.add(
            format!("{field}.memory_bytes"),
            format!(
                "{} is too little; ask for at least 4 MiB",
                wire.memory_bytes
            ),
        );
    }
    let counts =
        generic_from_wire(&wire.generic).and_then(|generic| crate::generic::counts(&generic));
    Reservations {
        nano_cpus: wire.nano_cpus,
        memory_bytes: wire.memory_bytes,
        generic: faults
            .take(format!("{field}.generic"), counts)
            .unwrap_or_default(),
    }
}

fn check_swap(faults: &mut Faults, prefix: &str, wire: &pb::ResourceRequirements) {
    if let Some(swap) = wire.swap_bytes {
        let limit = wire.limits.as_ref().map_or(0, |l| l.memory_bytes);
        if swap < -1 {
            faults.add(
                format!("{prefix}swap_bytes"),
                "is negative; -1 means no limit",
            );
        } else if limit == 0 {
            faults.add(
                format!("{prefix}swap_bytes"),
                "needs a memory limit; set one",
            );
        }
    }
    if let Some(swappiness) = wire.memory_swappiness
        && !(-1..=100).contains(&swappiness)
    {
        faults.add(
            format!("{prefix}memory_swappiness"),
            format!("{swappiness} is not within 0 and 100, or -1 for the node's own"),
        );
    }
}

#[cfg(test)]
mod tests;
