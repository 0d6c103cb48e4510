//! A bounded set of connections that have not shown who they are.
//!
//! When it is full, room is made at the expense of the address that holds the most: its oldest entry
//! goes. So ten thousand silent connections from one host push out each other, and a node that joins
//! from elsewhere still gets in.

use std::collections::BTreeMap;
use std::net::IpAddr;

/// Entries of `T` by address and age.
#[derive(Debug)]
pub(crate) struct Slots<T> {
    capacity: usize,
    next: u64,
    len: usize,
    by_addr: BTreeMap<IpAddr, BTreeMap<u64, T>>,
}

/// Names an entry until it leaves the set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SlotId {
    addr: IpAddr,
    number: u64,
}

impl<T> Slots<T> {
    pub(crate) fn new(capacity: usize) -> Self {
        Self {
            capacity: capacity.max(1),
            next: 0,
            len: 0,
            by_addr: BTreeMap::new(),
        }
    }

    /// Adds an entry; returns the one that had to make room.
    pub(crate) fn insert(&mut self, addr: IpAddr, entry: T) -> (SlotId, Option<T>) {
        let evicted = if self.len >= self.capacity {
            self.evict()
        } else {
            None
        };
        let number = self.next;
        self.next = self.next.wrapping_add(1);
        self.by_addr.entry(addr).or_default().insert(number, entry);
        self.len = self.len.saturating_add(1);
        (SlotId { addr, number }, evicted)
    }

    /// Takes an entry out; nothing happens if it is gone.
    pub(crate) fn remove(&mut self, id: SlotId) -> Option<T> {
        let entries = self.by_addr.get_mut(&id.addr)?;
        let entry = entries.remove(&id.number)?;
        if entries.is_empty() {
            self.by_addr.remove(&id.addr);
        }
        self.len = self.len.saturating_sub(1);
        Some(entry)
    }

    /// Takes out the oldest entry of the address with the most.
    pub(crate) fn evict(&mut self) -> Option<T> {
        let (addr, entries) = self
            .by_addr
            .iter()
            .max_by_key(|(_, entries)| entries.len())?;
        let id = SlotId {
            addr: *addr,
            number: *entries.first_key_value()?.0,
        };
        self.remove(id)
    }

    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.len
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ip(n: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, n])
    }

    #[test]
    fn a_flood_pushes_out_itself() {
        let mut slots = Slots::new(4);
        let (joiner, _) = slots.insert(ip(1), "joiner");
        for _ in 0..10_000 {
            if let (_, Some(evicted)) = slots.insert(ip(2), "flood") {
                assert_eq!(evicted, "flood");
            }
        }
        assert_eq!(slots.len(), 4);
        assert_eq!(slots.remove(joiner), Some("joiner"));
        assert_eq!(slots.remove(joiner), None);
    }

    #[test]
    fn the_oldest_of_an_address_goes_first() {
        let mut slots = Slots::new(2);
        slots.insert(ip(1), 'a');
        slots.insert(ip(1), 'b');
        assert_eq!(slots.insert(ip(2), 'c').1, Some('a'));
    }

    proptest! {
        #[test]
        fn never_above_capacity_and_the_count_is_right(
            ops in prop::collection::vec((0_u8..4, any::<bool>()), 0..200), capacity in 1_usize..8,
        ) {
            let mut slots = Slots::new(capacity);
            let mut held = Vec::new();
            for (addr, insert) in ops {
                if insert {
                    held.push(slots.insert(ip(addr), ()).0);
                } else if let Some(id) = held.pop() {
                    slots.remove(id);
                }
                prop_assert!(slots.len() <= capacity);
                prop_assert_eq!(slots.len(), slots.by_addr.values().map(BTreeMap::len).sum::<usize>());
            }
        }
    }
}
