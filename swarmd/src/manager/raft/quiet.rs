//! When a leader is silent that no majority answers.
//!
//! A leader that reaches few keeps these from electing one that a majority reaches, for as long as they hear it: A reaches B alone;
//! B, C and D reach each other. So it is silent and heard in turns, until a majority answers again or elects.
//!
//! openraft has the same (`quorum_loss_probe_interval`), from the moment on at which the leader's lease has run out: a quarter of
//! a second. A disk or a machine that stalls for so long would cost a leader that is well; here it takes some elections.

use std::time::Duration;

/// Turns of silence, in elections.
#[derive(Clone, Copy, Debug)]
pub(super) struct Quiet {
    after: Duration,
    turn: Duration,
}

impl Quiet {
    /// For followers that call an election at the latest so long after the last sign of life.
    pub(super) fn new(election: Duration) -> Self {
        Self {
            after: election * 4,
            // For an election to begin, and for one that is tied to be followed by another.
            turn: election * 2,
        }
    }

    /// Whether a leader is silent now that no majority has answered for so long.
    pub(super) fn holds(&self, lost: Duration) -> bool {
        let Some(over) = lost.checked_sub(self.after) else {
            return false;
        };
        let turns = over.as_nanos().checked_div(self.turn.as_nanos());
        turns.is_some_and(|turns| turns % 2 == 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_leader_is_silent_and_heard_in_turns() {
        let ms = Duration::from_millis;
        let quiet = Quiet::new(ms(500));
        let silent = [0, 300, 1_999, 2_000, 2_999, 3_000, 3_999, 4_000, 5_000];
        let silent = silent.map(|lost| quiet.holds(ms(lost)));
        assert_eq!(
            silent,
            [false, false, false, true, true, false, false, true, false]
        );
        assert!(!Quiet::new(Duration::ZERO).holds(ms(1)));
    }
}
