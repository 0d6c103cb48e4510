//! How much room one address has, of what there is for those who have no certificate. Pure.
//!
//! The room is for all of them ([`super::forward`]). Who fills it from one address must not keep those out who join from
//! elsewhere; many that join from behind one address are a fraction of a second each, and so seldom at once.

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use crate::clock::Monotonic;

/// Requests of one address that are held, or wait for room: a quarter of the room.
pub(super) const PER_ADDRESS_MAX: usize = 64;
/// Addresses that have some. There are no more connections without a certificate than a quarter of that.
const ADDRESSES_MAX: usize = 1024;
/// Who has come in with a request is done with it after so long, as a rule: what it may take to come in, and a second.
const USUALLY: Duration = Duration::from_secs(5);
/// Shortest time that somebody is told to wait.
const AFTER_MIN: Duration = Duration::from_secs(1);
/// Bits of an IPv6 address that name a network: a host has all of the others to itself.
const NETWORK_BITS: u32 = 64;

/// Not now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum NotNow {
    /// This address.
    #[error(
        "{from} has {PER_ADDRESS_MAX} requests without a certificate under way here, and no address may have more; come \
         back in {} s, or ask another manager", .after.as_secs()
    )]
    Address {
        /// Who asks.
        from: IpAddr,
        /// When that is likely to be over.
        after: Duration,
    },
    /// All of them.
    #[error(
        "{ADDRESSES_MAX} addresses have requests without a certificate under way here; come back in {} s, or ask another \
         manager", .after.as_secs()
    )]
    Together {
        /// When that is likely to be over.
        after: Duration,
    },
}

/// A request's place; to be given back with [`Strangers::leave`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    network: IpAddr,
    since: Monotonic,
}

/// Since when each address has its requests here, the oldest first.
#[derive(Debug, Default)]
pub(super) struct Strangers(BTreeMap<IpAddr, VecDeque<Monotonic>>);

impl Strangers {
    /// Takes a request in.
    pub(super) fn admit(&mut self, from: IpAddr, now: Monotonic) -> Result<Place, NotNow> {
        let network = network(from);
        let known = self.0.len();
        let Some(held) = self.0.get_mut(&network) else {
            if known >= ADDRESSES_MAX {
                return Err(NotNow::Together { after: AFTER_MIN });
            }
            self.0.insert(network, VecDeque::from([now]));
            return Ok(Place {
                network,
                since: now,
            });
        };
        if held.len() >= PER_ADDRESS_MAX {
            let oldest = held.front().copied().unwrap_or(now);
            let left = USUALLY.saturating_sub(now.since(oldest));
            // Whole seconds, as it is told.
            let part = u64::from(left.subsec_nanos() > 0);
            let after = Duration::from_secs(left.as_secs() + part).max(AFTER_MIN);
            return Err(NotNow::Address { from, after });
        }
        held.push_back(now);
        Ok(Place {
            network,
            since: now,
        })
    }

    /// A request is done with.
    pub(super) fn leave(&mut self, place: Place) {
        let Some(held) = self.0.get_mut(&place.network) else {
            return;
        };
        // Of those that came at one moment, which one it is makes no difference.
        if let Some(at) = held.iter().position(|since| *since == place.since) {
            held.remove(at);
        }
        if held.is_empty() {
            self.0.remove(&place.network);
        }
    }
}

/// What counts as one address.
fn network(from: IpAddr) -> IpAddr {
    match from.to_canonical() {
        IpAddr::V4(v4) => v4.into(),
        IpAddr::V6(v6) => {
            let bits = v6.to_bits() >> (Ipv6Addr::BITS - NETWORK_BITS);
            Ipv6Addr::from_bits(bits << (Ipv6Addr::BITS - NETWORK_BITS)).into()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;
    use proptest::prelude::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn start() -> Monotonic {
        let (clock, _) = Clock::manual(swarm_proto::time::Timestamp::from_millis(1));
        clock.monotonic()
    }

    #[test]
    fn one_address_has_a_part_of_the_room_and_the_others_the_rest() {
        let at = |ms: u64| start().after(Duration::from_millis(ms));
        let mut strangers = Strangers::default();
        let (flood, joiner) = (ip("10.0.0.1"), ip("10.0.0.2"));
        let first = strangers.admit(flood, at(0)).unwrap();
        for _ in 1..PER_ADDRESS_MAX {
            strangers.admit(flood, at(10)).unwrap();
        }
        let refused = strangers.admit(flood, at(1_900)).unwrap_err();
        let after = Duration::from_secs(4);
        assert_eq!(refused, NotNow::Address { from: flood, after });
        assert_eq!(
            refused.to_string(),
            "10.0.0.1 has 64 requests without a certificate under way here, and no address may have more; come back in \
             4 s, or ask another manager"
        );
        // Not a moment: it would come back at once, for ever.
        let late = strangers.admit(flood, at(60_000)).unwrap_err();
        let after = Duration::from_secs(1);
        assert_eq!(late, NotNow::Address { from: flood, after });
        strangers.admit(joiner, at(60_000)).unwrap();
        strangers.leave(first);
        strangers.admit(flood, at(60_000)).unwrap();
        assert!(strangers.admit(flood, at(60_000)).is_err());
    }

    #[test]
    fn a_network_is_one_address_however_it_is_written() {
        let mut strangers = Strangers::default();
        for number in 0..PER_ADDRESS_MAX {
            let from = ip(&format!("2001:db8::{number:x}"));
            strangers.admit(from, start()).unwrap();
        }
        assert!(strangers.admit(ip("2001:db8::ffff"), start()).is_err());
        strangers.admit(ip("2001:db8:0:1::1"), start()).unwrap();
        let mapped = network(ip("::ffff:10.0.0.1"));
        assert_eq!(mapped, network(ip("10.0.0.1")));
    }

    #[test]
    fn the_table_does_not_grow_beyond_its_size() {
        let mut strangers = Strangers::default();
        let mut places = Vec::new();
        for number in 0..u32::try_from(ADDRESSES_MAX).unwrap() {
            let from = std::net::Ipv4Addr::from_bits(number).into();
            places.push(strangers.admit(from, start()).unwrap());
        }
        let refused = strangers.admit(ip("10.0.0.1"), start()).unwrap_err();
        assert!(matches!(refused, NotNow::Together { .. }), "{refused}");
        places.into_iter().for_each(|place| strangers.leave(place));
        assert!(strangers.0.is_empty());
    }

    proptest! {
        #[test]
        fn what_is_held_is_what_was_taken_in_and_has_not_left(
            steps in prop::collection::vec((0_u8..3, 0_u64..5, any::<bool>()), 0..400),
        ) {
            let mut strangers = Strangers::default();
            let mut held: Vec<Place> = Vec::new();
            for (from, ms, comes) in steps {
                let from = IpAddr::from([10, 0, 0, from]);
                let of = |place: &Place| place.network == from;
                if comes {
                    let now = start().after(Duration::from_millis(ms));
                    let room = held.iter().filter(|place| of(place)).count() < PER_ADDRESS_MAX;
                    let admitted = strangers.admit(from, now);
                    prop_assert_eq!(admitted.is_ok(), room);
                    held.extend(admitted);
                } else if let Some(at) = held.iter().position(of) {
                    strangers.leave(held.swap_remove(at));
                }
                let count: usize = strangers.0.values().map(VecDeque::len).sum();
                prop_assert_eq!(count, held.len());
            }
        }
    }
}
