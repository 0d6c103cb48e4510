//! Whether this manager can serve: itself, or by the leader that it hears.
//!
//! Consensus remembers who led last, for as long as nobody else is elected, also where that one is long gone, and over a
//! restart. Who hears no leader knows of none.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use super::raft::{Leadership, Membership};
use super::store::machine::StoreMachine;

/// A leader that was not heard for so long is none, also where elections are quicker.
const LEADER_SILENT: Duration = Duration::from_secs(5);
/// The same in elections, where these are slow: a leader says every half of one when a majority agreed, which may be as long ago.
const LEADER_SILENT_ELECTIONS: u32 = 4;

/// How long ago this manager heard of a leader; none if it never has.
pub(crate) trait Heard: Send + Sync {
    /// Of one, with a majority or not.
    fn silence(&self) -> Option<Duration>;
    /// Of one that had a majority then.
    fn led(&self) -> Option<Duration>;
}

impl Heard for Membership<StoreMachine> {
    fn silence(&self) -> Option<Duration> {
        Membership::silence(self)
    }

    fn led(&self) -> Option<Duration> {
        Membership::led(self)
    }
}

/// What this manager knows of a leader.
#[derive(Clone)]
pub(crate) struct Serving {
    leadership: watch::Receiver<Leadership>,
    heard: Arc<dyn Heard>,
    /// Who was not heard for so long does not lead.
    silent: Duration,
}

impl Serving {
    /// Where followers call an election at the latest so long after the last sign of life.
    pub(crate) fn new(
        leadership: watch::Receiver<Leadership>,
        heard: impl Heard + 'static,
        election: Duration,
    ) -> Self {
        Self {
            leadership,
            heard: Arc::new(heard),
            silent: LEADER_SILENT.max(election * LEADER_SILENT_ELECTIONS),
        }
    }

    /// Changes when another one leads; not when the leader falls silent.
    pub(crate) fn leadership(&self) -> watch::Receiver<Leadership> {
        self.leadership.clone()
    }

    /// Who leads, of those that are heard; also without a majority. Sessions of nodes go on with such a leader: it would take
    /// nodes for dead that it had turned away meanwhile.
    pub(crate) fn leader(&self) -> Leadership {
        self.within(self.leadership.borrow().clone(), self.heard.silence())
    }

    /// Whether a change of the cluster would be taken now: a leader is there, and has a majority.
    pub(crate) fn serves(&self) -> bool {
        let leader = self.leader();
        let led = match leader {
            // A leader of an earlier version does not say whether it has a majority.
            Leadership::Follower { .. } => self.heard.led().or_else(|| self.heard.silence()),
            Leadership::Leader { .. } | Leadership::None => self.heard.led(),
        };
        self.within(leader, led) != Leadership::None
    }

    /// Who is known to lead, where that was so a short time ago.
    fn within(&self, known: Leadership, ago: Option<Duration>) -> Leadership {
        match ago {
            Some(ago) if ago < self.silent => known,
            Some(_) | None => Leadership::None,
        }
    }
}

impl fmt::Debug for Serving {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Serving").finish_non_exhaustive()
    }
}

#[cfg(test)]
pub(crate) mod testing {
    use super::*;

    /// The silence, and how long ago there was a majority.
    pub(crate) struct Ago(pub Option<Duration>, pub Option<Duration>);

    impl Heard for Ago {
        fn silence(&self) -> Option<Duration> {
            self.0
        }

        fn led(&self) -> Option<Duration> {
            self.1
        }
    }
}

#[cfg(test)]
mod tests {
    use super::testing::Ago;
    use super::*;

    const FOLLOWER: Leadership = Leadership::Follower {
        leader: 2,
        member: None,
    };
    const LEADER: Leadership = Leadership::Leader { term: 3 };

    fn serving(known: Leadership, ago: Ago, election: Duration) -> Serving {
        let (_, leadership) = watch::channel(known);
        Serving::new(leadership, ago, election)
    }

    #[test]
    fn a_leader_that_is_not_heard_is_none() {
        let (soon, late) = (Some(LEADER_SILENT / 2), Some(LEADER_SILENT));
        for known in [FOLLOWER, LEADER] {
            let leader = |silence| {
                serving(
                    known.clone(),
                    Ago(silence, soon),
                    Duration::from_millis(500),
                )
                .leader()
            };
            assert_eq!(leader(soon), known);
            for silence in [None, late, Some(LEADER_SILENT * 9)] {
                assert_eq!(leader(silence), Leadership::None, "{silence:?}");
            }
        }
    }

    #[test]
    fn who_serves_has_a_leader_with_a_majority() {
        let (soon, late) = (Some(LEADER_SILENT / 2), Some(LEADER_SILENT));
        let cases = [
            (FOLLOWER, soon, soon, true),
            (FOLLOWER, soon, late, false),
            (FOLLOWER, late, soon, false),
            // Its leader is of an earlier version, and says nothing of a majority.
            (FOLLOWER, soon, None, true),
            (FOLLOWER, late, None, false),
            (LEADER, soon, soon, true),
            (LEADER, soon, late, false),
            // Nothing of its own term is in force yet.
            (LEADER, soon, None, false),
            (Leadership::None, soon, soon, false),
        ];
        for (known, silence, led, serves) in cases {
            let case = format!("{known:?} {silence:?} {led:?}");
            let serving = serving(known, Ago(silence, led), Duration::from_millis(500));
            assert_eq!(serving.serves(), serves, "{case}");
        }
    }

    #[test]
    fn slow_elections_give_a_leader_time() {
        let ago = || Ago(Some(LEADER_SILENT * 2), Some(LEADER_SILENT * 2));
        assert!(!serving(FOLLOWER, ago(), Duration::from_secs(1)).serves());
        assert!(serving(FOLLOWER, ago(), Duration::from_secs(10)).serves());
    }
}
