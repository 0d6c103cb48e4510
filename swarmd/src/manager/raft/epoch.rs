//! The epoch: which of the lives of a cluster a manager takes part in. Pure.
//!
//! A cluster is founded in epoch 1. Each recovery (`--force-new-cluster`, `swarmd restore`) begins the next one in a new
//! log. Managers of an earlier epoch still have a log, votes and certificates that are sound; what tells them apart is the
//! epoch alone, so every message between managers carries it, and none of another epoch is taken.
//!
//! Two recoveries of one state get the same number. A random part tells them apart, and neither is above the other: which
//! of them goes on is for the operator to say.

use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;

use swarm_proto::own;

/// One life of a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Epoch {
    number: u64,
    unique: u64,
}

/// How another manager's epoch stands to one's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stands {
    /// It is the same.
    Same,
    /// The other cluster was recovered from this one, or from one that was.
    Above,
    /// This cluster was recovered from the other one.
    Below,
    /// Both were recovered from one state.
    Beside,
}

impl Epoch {
    /// Of a member that has not heard from its leader yet.
    pub const NONE: Self = Self {
        number: 0,
        unique: 0,
    };
    /// Of a cluster that was founded and never recovered.
    pub const FIRST: Self = Self {
        number: 1,
        unique: 0,
    };

    /// The epoch that a recovery of this one begins; `unique` is random.
    #[must_use]
    pub fn next(self, unique: u64) -> Self {
        Self {
            number: self.number.saturating_add(1),
            unique: unique.max(1),
        }
    }

    /// The later of two; of two recoveries of one state, this one.
    #[must_use]
    pub fn later(self, other: Self) -> Self {
        match other.number > self.number {
            true => other,
            false => self,
        }
    }

    /// How many lives the cluster has had, this one included.
    #[must_use]
    pub fn number(self) -> u64 {
        self.number
    }

    /// How `other` stands to this one.
    pub(crate) fn to(self, other: Self) -> Stands {
        match other.number.cmp(&self.number) {
            Ordering::Greater => Stands::Above,
            Ordering::Less => Stands::Below,
            Ordering::Equal if other.unique == self.unique => Stands::Same,
            Ordering::Equal => Stands::Beside,
        }
    }

    /// For the wire and files.
    #[must_use]
    pub fn to_wire(self) -> own::RaftEpoch {
        own::RaftEpoch {
            number: self.number,
            unique: self.unique,
        }
    }

    /// From the wire; who says nothing is of the first.
    #[must_use]
    pub fn of_wire(wire: Option<own::RaftEpoch>) -> Self {
        wire.map_or(Self::FIRST, |wire| Self {
            number: wire.number,
            unique: wire.unique,
        })
    }
}

/// `1`, or `2-00f3…`: the number and, after a recovery, the random part.
impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.unique {
            0 => write!(f, "{}", self.number),
            unique => write!(f, "{}-{unique:016x}", self.number),
        }
    }
}

/// A text that is no epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("it is no epoch: expected NUMBER or NUMBER-HEX")]
pub struct NoEpoch;

impl FromStr for Epoch {
    type Err = NoEpoch;

    fn from_str(text: &str) -> Result<Self, NoEpoch> {
        let (number, unique) = match text.split_once('-') {
            Some((number, unique)) => {
                let unique = u64::from_str_radix(unique, 16).map_err(|_| NoEpoch)?;
                (number, unique)
            }
            None => (text, 0),
        };
        let epoch = Self {
            number: number.parse().map_err(|_| NoEpoch)?,
            unique,
        };
        // One epoch has one text.
        match epoch.to_string() == text {
            true => Ok(epoch),
            false => Err(NoEpoch),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_recovery_is_above_what_it_came_from_and_beside_another_one() {
        let (one, other) = (Epoch::FIRST.next(7), Epoch::FIRST.next(8));
        assert_eq!(one.to(one), Stands::Same);
        assert_eq!(Epoch::FIRST.to(one), Stands::Above);
        assert_eq!(one.to(Epoch::FIRST), Stands::Below);
        assert_eq!(one.to(other), Stands::Beside);
        assert_eq!(other.to(one), Stands::Beside);
        assert_eq!(one.next(1).to(other), Stands::Below);
        assert_eq!(one.later(other), one);
        assert_eq!(Epoch::FIRST.later(other), other);
    }

    #[test]
    fn texts_and_messages_keep_it() {
        for epoch in [Epoch::NONE, Epoch::FIRST, Epoch::FIRST.next(u64::MAX - 1)] {
            assert_eq!(epoch.to_string().parse(), Ok(epoch));
            assert_eq!(Epoch::of_wire(Some(epoch.to_wire())), epoch);
        }
        assert_eq!(Epoch::FIRST.to_string(), "1");
        assert_eq!(Epoch::FIRST.next(255).to_string(), "2-00000000000000ff");
        assert_eq!(Epoch::of_wire(None), Epoch::FIRST);
        for wrong in [
            "",
            "x",
            "1-",
            "2-ff",
            "01",
            "-1",
            "1-0000000000000000",
            "1 ",
        ] {
            assert!(wrong.parse::<Epoch>().is_err(), "{wrong:?}");
        }
    }
}
