//! Which manager to ask next, and when: pure.

use std::collections::BTreeMap;
use std::time::Duration;

use rand::RngExt as _;
use rand::rngs::StdRng;
use swarm_proto::pb;

/// First pause between attempts, and what each next one adds to twice the last (SwarmKit's).
const BACKOFF_STEP: Duration = Duration::from_millis(100);
/// Longest pause between attempts (SwarmKit's).
pub(super) const BACKOFF_MAX: Duration = Duration::from_secs(8);

/// The managers this node knows of.
#[derive(Debug)]
pub(super) struct Managers {
    /// By address; what the managers themselves said.
    known: BTreeMap<String, i64>,
    /// What the operator said; asked when the known ones don't answer.
    initial: Vec<String>,
    /// Still to be asked in this round, next last.
    round: Vec<String>,
    rng: StdRng,
}

impl Managers {
    pub(super) fn new(initial: Vec<String>, known: &[pb::WeightedPeer], rng: StdRng) -> Self {
        let mut managers = Self {
            known: BTreeMap::new(),
            initial,
            round: Vec::new(),
            rng,
        };
        managers.learn(known);
        managers
    }

    /// Takes over the list of a session. An empty one is no news: someone served the session.
    pub(super) fn learn(&mut self, peers: &[pb::WeightedPeer]) {
        let known: BTreeMap<String, i64> = peers
            .iter()
            .filter_map(|p| Some((p.peer.as_ref()?.addr.clone(), p.weight)))
            .filter(|(addr, _)| !addr.is_empty())
            .collect();
        if !known.is_empty() && known != self.known {
            self.known = known;
            self.round.clear();
        }
    }

    /// The next manager to ask. Each is asked once a round; heavier ones tend to come first, the
    /// operator's after all others.
    pub(super) fn next(&mut self) -> Option<String> {
        if self.round.is_empty() {
            self.round = self.new_round();
        }
        self.round.pop()
    }

    fn new_round(&mut self) -> Vec<String> {
        let mut left: Vec<(String, i64)> = self
            .known
            .iter()
            .map(|(addr, weight)| (addr.clone(), (*weight).max(1)))
            .collect();
        let mut order = Vec::new();
        while !left.is_empty() {
            let total: i64 = left.iter().map(|(_, w)| w).sum();
            let mut at = self.rng.random_range(0..total);
            let drawn = left.iter().position(|(_, weight)| {
                at -= weight;
                at < 0
            });
            let (addr, _) = left.swap_remove(drawn.unwrap_or(0));
            order.push(addr);
        }
        let mut initial: Vec<String> = self.initial.clone();
        initial.retain(|addr| !self.known.contains_key(addr));
        order.extend(initial);
        order.reverse();
        order
    }

    /// A moment between zero and `most`.
    pub(super) fn jitter(&mut self, most: Duration) -> Duration {
        most.mul_f64(self.rng.random_range(0.0..1.0))
    }
}

/// The longest pause after one of at most `last`.
pub(super) fn backoff(last: Duration) -> Duration {
    (BACKOFF_STEP + 2 * last).min(BACKOFF_MAX)
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng as _;

    use super::*;

    fn peer(addr: &str, weight: i64) -> pb::WeightedPeer {
        pb::WeightedPeer {
            peer: Some(pb::Peer {
                node_id: String::new(),
                addr: addr.to_owned(),
            }),
            weight,
        }
    }

    fn round(managers: &mut Managers, of: usize) -> Vec<String> {
        (0..of).map(|_| managers.next().unwrap()).collect()
    }

    #[test]
    fn every_manager_is_asked_once_a_round() {
        let known = [peer("a", 10), peer("b", 10), peer("c", 1)];
        let initial = vec!["join".to_owned(), "a".to_owned()];
        let mut managers = Managers::new(initial, &known, StdRng::seed_from_u64(1));
        let mut first = BTreeMap::new();
        for _ in 0..200 {
            let mut asked = round(&mut managers, 4);
            *first.entry(asked[0].clone()).or_insert(0) += 1;
            assert_eq!(asked[3], "join", "the operator's come last");
            asked.sort();
            assert_eq!(asked, ["a", "b", "c", "join"]);
        }
        assert!(
            first["c"] < first["a"] && first["c"] < first["b"],
            "{first:?}"
        );
    }

    #[test]
    fn a_new_list_replaces_the_old_and_an_empty_one_does_not() {
        let mut managers = Managers::new(vec!["join".to_owned()], &[], StdRng::seed_from_u64(1));
        assert_eq!(round(&mut managers, 2), ["join", "join"]);
        managers.learn(&[peer("a", 10)]);
        managers.learn(&[]);
        assert_eq!(round(&mut managers, 3), ["a", "join", "a"]);
        assert_eq!(
            Managers::new(vec![], &[], StdRng::seed_from_u64(1)).next(),
            None
        );
    }

    #[test]
    fn pauses_grow_to_a_limit() {
        let mut pause = Duration::ZERO;
        let mut pauses = Vec::new();
        for _ in 0..8 {
            pause = backoff(pause);
            pauses.push(u64::try_from(pause.as_millis()).unwrap());
        }
        assert_eq!(pauses, [100, 300, 700, 1500, 3100, 6300, 8000, 8000]);
    }
}
