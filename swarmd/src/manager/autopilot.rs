//! A manager that has been dead for long is given up as a voter, so that it counts against no majority: pure.
//!
//! ```text
//! voter ── dead for the grace, the others well ──► note: given up ──► removed ──► note: done
//!   ▲                                                │ heard again               │
//!   └────────────────── no note ◄────────────────────┘      joins as another ◄───┘
//! ```
//!
//! - Dead is who has not answered for as long as this leader has looked on without a gap: what it slept through says nothing
//!   about the others.
//! - One at a time, and only where every other voter that is not dead itself answers, and these are a majority of what is
//!   left: then the cluster is better off without.
//! - It is written down before it is done and after: whoever leads next goes on, and the manager, when it comes back, hears
//!   of it for certain. Its number is never a member's again, so it joins as another one.

use std::collections::BTreeMap;
use std::time::Duration;

use swarm_proto::id::NodeId;
use swarm_proto::pb;
use swarm_proto::time::Timestamp;

use super::raft::{MemberStatus, RaftId, RaftStatus};
use super::roles::{Lost, is_up, status_without};
use super::store::{ManagerNote, Retirement, State};
use crate::clock::Monotonic;

/// Looks that are further apart than this have a gap: whoever was silent before counts from anew. For as long who is given
/// up has to be silent after that was written down.
const GAP: Duration = Duration::from_secs(5);

/// Since when members have been silent, as far as this leader has looked on.
#[derive(Debug, Default)]
pub(super) struct Silence {
    looked: Option<Monotonic>,
    since: BTreeMap<RaftId, Monotonic>,
}

impl Silence {
    /// Looks; how long each silent member has been so.
    pub(super) fn look(
        &mut self,
        status: &RaftStatus,
        now: Monotonic,
    ) -> BTreeMap<RaftId, Duration> {
        if self.looked.is_some_and(|last| now > last.after(GAP)) {
            self.since.clear();
        }
        self.looked = Some(now);
        let silent = |(id, member): &(&RaftId, &MemberStatus)| !is_up(status, **id, member);
        let silent: Vec<RaftId> = status
            .members
            .iter()
            .filter(silent)
            .map(|(id, _)| *id)
            .collect();
        self.since.retain(|id, _| silent.contains(id));
        for id in silent {
            self.since.entry(id).or_insert(now);
        }
        let each = self.since.iter();
        each.map(|(id, since)| (*id, now.since(*since))).collect()
    }
}

/// What to do about managers that are dead.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Care {
    /// Write it down.
    Note(NodeId, Option<Retirement>),
    /// It goes.
    Remove(RaftId),
}

/// What is to be decided from.
#[derive(Debug, Clone, Copy)]
pub(super) struct Look<'a> {
    pub(super) state: &'a State,
    pub(super) status: &'a RaftStatus,
    /// How long silent members have been so.
    pub(super) silent: &'a BTreeMap<RaftId, Duration>,
    pub(super) now: Timestamp,
}

/// The next step, if there is one.
pub(super) fn next(look: Look<'_>) -> Option<Care> {
    let cluster = look.state.cluster.as_ref()?;
    for (node, note) in &cluster.managers {
        if let Some(retired) = &note.retired {
            match go_on(look, *node, retired) {
                Gone::Step(care) => return Some(care),
                // Never two at once.
                Gone::Waits => return None,
                Gone::Over => {}
            }
        }
    }
    let grace = cluster.dead_manager_grace()?;
    let dead = |id: &RaftId| look.silent.get(id).is_some_and(|silent| *silent >= grace);
    let mut voters = look.status.members.iter().filter(|(_, m)| m.voter);
    let (id, member) = voters.find(|(id, _)| dead(id))?;
    let node: NodeId = member.member.node_id.parse().ok()?;
    let object = look.state.nodes.get(&node)?;
    if object.desired_role != pb::NodeRole::Manager {
        // It goes as one that was demoted.
        return None;
    }
    let reason = may_go(look.status, *id, &dead).ok()?;
    let silent = look.silent.get(id)?.as_secs();
    let retired = Retirement {
        raft_id: *id,
        at: look.now,
        reason: format!("it had not answered for {silent} s; {reason}"),
        done: false,
        demoted: false,
    };
    Some(Care::Note(node, Some(retired)))
}

/// Where one that was given up stands.
enum Gone {
    Step(Care),
    /// It can't go now.
    Waits,
    /// All is done.
    Over,
}

/// What is left to do about one that was given up, or demoted.
fn go_on(look: Look<'_>, node: NodeId, retired: &Retirement) -> Gone {
    let (status, id) = (look.status, retired.raft_id);
    let object = look.state.nodes.get(&node);
    let manages = object.is_some_and(|n| n.desired_role == pb::NodeRole::Manager);
    let text = node.to_string();
    let mut others = status.members.iter().filter(|(other, _)| **other != id);
    let back = others.any(|(_, m)| m.voter && m.member.node_id == text);
    let note = |done, demoted| {
        let retired = retired.clone();
        Gone::Step(Care::Note(
            node,
            Some(Retirement {
                done,
                demoted,
                ..retired
            }),
        ))
    };
    let Some(member) = status.members.get(&id) else {
        return match retired.done {
            _ if back => Gone::Step(Care::Note(node, None)),
            // Its number is kept until it is back: it may never have become a worker before it is promoted again.
            true if !manages && !retired.demoted => note(true, true),
            true => Gone::Over,
            // The change that removed it must be there to stay before the manager hears of it.
            false if !status.settled => Gone::Waits,
            false => note(true, retired.demoted),
        };
    };
    if retired.demoted {
        return match manages {
            // Promoted again before it went.
            true => Gone::Step(Care::Note(node, None)),
            // It goes in its turn.
            false => Gone::Over,
        };
    }
    if is_up(status, id, member) {
        return Gone::Step(Care::Note(node, None));
    }
    // Who wrote the note may have heard nothing only because it had just begun to lead; and an idle cluster sends nothing
    // that a distant manager answers in time. The note itself asks them all.
    let silent = look.silent.get(&id).is_some_and(|silent| *silent >= GAP);
    let asked = look.now >= retired.at.after(GAP);
    match may_go(status, id, &|id| look.silent.contains_key(id)) {
        Ok(_) if silent && asked => Gone::Step(Care::Remove(id)),
        Ok(_) | Err(_) => Gone::Waits,
    }
}

/// Whether the others are better off without this voter; the arithmetic in words.
fn may_go(
    status: &RaftStatus,
    id: RaftId,
    dead: &dyn Fn(&RaftId) -> bool,
) -> Result<String, Option<Lost>> {
    status_without(status, id).map_err(Some)?;
    let rest = status
        .members
        .iter()
        .filter(|(other, m)| **other != id && m.voter);
    let (mut left, mut up) = (0_usize, 0);
    for (other, member) in rest {
        left += 1;
        match is_up(status, *other, member) {
            true => up += 1,
            false if dead(other) => {}
            // It may be back in a moment: no time to change who votes.
            false => return Err(None),
        }
    }
    let voters = left + 1;
    if up <= voters / 2 {
        // It takes a majority of those that vote now to change who does.
        return Err(None);
    }
    let needed = left / 2 + 1;
    Ok(format!(
        "of the {left} voting managers that are left {needed} have to be up, and {up} were"
    ))
}

/// Whether this node is given up, or demoted, under this number.
pub(super) fn is_given_up(state: &State, node: NodeId, id: RaftId) -> bool {
    let note = state.cluster.as_ref().and_then(|c| c.managers.get(&node));
    let retired = note.and_then(|note: &ManagerNote| note.retired.as_ref());
    retired.is_some_and(|retired| retired.raft_id == id)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::manager::raft::Member;
    use crate::manager::store::testing;
    use proptest::prelude::*;

    const GRACE: Duration = Duration::from_secs(600);
    const LONG: u64 = 700;

    /// Voters 1 to `count` as the leader 1 sees them, each silent for so many seconds.
    struct Bed {
        state: State,
        status: RaftStatus,
        silent: BTreeMap<RaftId, Duration>,
        now: Timestamp,
    }

    fn node_of(id: RaftId) -> NodeId {
        testing::node(u8::try_from(id).unwrap()).id
    }

    impl Bed {
        fn new(count: u64, silent: &[(RaftId, u64)]) -> Self {
            let root = crate::ca::RootCa::generate(Timestamp(1)).unwrap();
            let cluster = crate::manager::bootstrap::cluster(&root, Timestamp(1)).unwrap();
            let mut state = State {
                cluster: Some(Arc::new(cluster)),
                ..State::default()
            };
            for id in 1..=count {
                let mut node = testing::node(u8::try_from(id).unwrap());
                node.desired_role = pb::NodeRole::Manager;
                state.nodes.insert(node.id, Arc::new(node));
            }
            let silent: BTreeMap<_, _> = silent
                .iter()
                .map(|(id, secs)| (*id, Duration::from_secs(*secs)))
                .collect();
            let member = |id: RaftId| MemberStatus {
                member: Member {
                    node_id: node_of(id).to_string(),
                    addresses: vec![],
                },
                voter: true,
                matched: Some(id),
                heard: (!silent.contains_key(&id)).then_some(Duration::ZERO),
            };
            let status = RaftStatus::led((1..=count).map(|id| (id, member(id))).collect());
            Self {
                state,
                status,
                silent,
                now: Timestamp(7),
            }
        }

        fn next(&self) -> Option<Care> {
            next(Look {
                state: &self.state,
                status: &self.status,
                silent: &self.silent,
                now: self.now,
            })
        }

        /// Takes steps until there is none, with time between them; who was removed, in order.
        fn run(&mut self) -> Vec<RaftId> {
            let mut removed = Vec::new();
            for _ in 0..20 {
                self.now = self.now.after(GAP);
                match self.next() {
                    None => return removed,
                    Some(Care::Remove(id)) => {
                        self.status.members.remove(&id);
                        self.silent.remove(&id);
                        removed.push(id);
                    }
                    Some(Care::Note(node, retired)) => {
                        let mut cluster = self.state.cluster.as_deref().unwrap().clone();
                        let note = cluster.managers.entry(node).or_default();
                        note.retired = retired;
                        self.state.cluster = Some(Arc::new(cluster));
                    }
                }
            }
            panic!("it never ends");
        }

        fn note(&self, id: RaftId) -> Option<Retirement> {
            let cluster = self.state.cluster.as_ref().unwrap();
            cluster.managers.get(&node_of(id))?.retired.clone()
        }
    }

    #[test]
    fn the_dead_go_one_by_one_where_the_others_are_well_and_a_majority() {
        type Case = (u64, &'static [(RaftId, u64)], &'static [RaftId]);
        let cases: [Case; 9] = [
            (3, &[], &[]),
            (3, &[(2, LONG)], &[2]),
            (3, &[(2, 500)], &[]),
            (3, &[(2, LONG), (3, LONG)], &[]),
            // Another one has only just fallen silent.
            (5, &[(2, LONG), (3, 10)], &[]),
            (5, &[(2, LONG), (3, LONG)], &[2, 3]),
            (5, &[(2, LONG), (3, LONG), (4, LONG)], &[]),
            (2, &[(2, LONG)], &[]),
            (1, &[], &[]),
        ];
        for (count, silent, expected) in cases {
            let mut bed = Bed::new(count, silent);
            assert_eq!(bed.run(), expected, "{count} voters, silent: {silent:?}");
            for id in expected {
                assert!(bed.note(*id).unwrap().done);
            }
        }
        let mut bed = Bed::new(3, &[(2, LONG)]);
        bed.run();
        assert_eq!(
            bed.note(2).unwrap().reason,
            "it had not answered for 700 s; of the 2 voting managers that are left 2 have to be up, and 2 were"
        );
    }

    #[test]
    fn a_grace_of_zero_gives_nobody_up() {
        let mut bed = Bed::new(3, &[(2, LONG)]);
        let mut cluster = bed.state.cluster.as_deref().unwrap().clone();
        let raft = cluster.spec.raft.get_or_insert_default();
        raft.dead_manager_grace = Some(Default::default());
        bed.state.cluster = Some(Arc::new(cluster));
        assert_eq!(bed.next(), None);
    }

    #[test]
    fn one_that_is_back_before_it_went_stays_and_one_that_joined_anew_is_forgiven() {
        let mut bed = Bed::new(3, &[(2, LONG)]);
        let Some(Care::Note(node, retired)) = bed.next() else {
            panic!("nobody is given up");
        };
        let mut cluster = bed.state.cluster.as_deref().unwrap().clone();
        cluster.managers.entry(node).or_default().retired = retired;
        bed.state.cluster = Some(Arc::new(cluster));
        // The note asks it once more.
        assert_eq!(bed.next(), None);
        bed.now = bed.now.after(GAP);
        assert_eq!(bed.next(), Some(Care::Remove(2)));
        // Who leads next finds out for itself whether it is silent.
        bed.silent.insert(2, Duration::ZERO);
        assert_eq!(bed.next(), None);
        bed.silent.insert(2, GAP);
        assert_eq!(bed.next(), Some(Care::Remove(2)));
        let mut back = Bed::new(3, &[]);
        back.state = bed.state.clone();
        assert_eq!(back.next(), Some(Care::Note(node_of(2), None)));
        // It went, and that is not settled yet; then it is; then it votes under another number.
        let mut gone = Bed::new(3, &[]);
        gone.state = bed.state.clone();
        let two = gone.status.members.remove(&2).unwrap();
        gone.status.settled = false;
        assert_eq!(gone.next(), None);
        gone.status.settled = true;
        assert!(gone.run().is_empty());
        assert!(gone.note(2).unwrap().done);
        gone.status.members.insert(9, two);
        assert_eq!(gone.next(), Some(Care::Note(node_of(2), None)));
    }

    #[test]
    fn silence_counts_from_when_this_leader_looks_on_without_a_gap() {
        let bed = Bed::new(3, &[(2, 0)]);
        let (clock, hand) = crate::clock::Clock::manual(Timestamp(0));
        let mut silence = Silence::default();
        let mut look = |after: u64| {
            hand.advance(Duration::from_secs(after));
            silence
                .look(&bed.status, clock.monotonic())
                .get(&2)
                .copied()
        };
        assert_eq!(look(100), Some(Duration::ZERO));
        for secs in 1..=5 {
            assert_eq!(look(1), Some(Duration::from_secs(secs)));
        }
        // It slept: what it knows is old.
        assert_eq!(look(LONG), Some(Duration::ZERO));
        assert!(GRACE > GAP);
    }

    /// What befalls managers.
    #[derive(Debug, Clone)]
    enum Fate {
        Down(u8),
        Up(u8),
        /// The leader looks on, second by second.
        Seconds(u64),
        /// It is stopped, with its memory as it was.
        Sleeps(u64),
        /// Another one leads, which knows what is written down.
        Elected,
    }

    /// Managers that come and go, as who leads sees them; node 1 is always there.
    struct Life {
        bed: Bed,
        silence: Silence,
        clock: crate::clock::Clock,
        hand: crate::clock::ManualClock,
        /// By node: its number in consensus, while it is a member.
        numbers: BTreeMap<u64, RaftId>,
        /// Since when a node is down.
        down: BTreeMap<u64, Monotonic>,
        last_number: RaftId,
    }

    impl Life {
        fn new(count: u64) -> Self {
            let (clock, hand) = crate::clock::Clock::manual(Timestamp::from_millis(1_000_000));
            Self {
                bed: Bed::new(count, &[]),
                silence: Silence::default(),
                clock,
                hand,
                numbers: (1..=count).map(|node| (node, node)).collect(),
                down: BTreeMap::new(),
                last_number: 100,
            }
        }

        fn befalls(&mut self, fate: &Fate) {
            match fate {
                Fate::Down(node) => {
                    let node = u64::from(*node);
                    let now = self.clock.monotonic();
                    if node != 1 && self.bed.state.nodes.contains_key(&node_of(node)) {
                        self.down.entry(node).or_insert(now);
                    }
                }
                Fate::Up(node) => {
                    self.down.remove(&u64::from(*node));
                }
                Fate::Seconds(count) => (0..*count).for_each(|_| self.second()),
                Fate::Sleeps(secs) => self.hand.advance(Duration::from_secs(*secs)),
                Fate::Elected => self.silence = Silence::default(),
            }
        }

        /// A second passes, and the leader does what there is to do.
        fn second(&mut self) {
            self.hand.advance(Duration::from_secs(1));
            self.join_anew();
            for (node, id) in &self.numbers {
                let member = self.bed.status.members.get_mut(id).unwrap();
                member.heard = (!self.down.contains_key(node)).then_some(Duration::ZERO);
            }
            let status = &self.bed.status;
            self.bed.silent = self.silence.look(status, self.clock.monotonic());
            self.bed.now = self.clock.now();
            for _ in 0..10 {
                match self.bed.next() {
                    None => return,
                    Some(Care::Remove(id)) => {
                        self.may_go(id);
                        self.bed.status.members.remove(&id);
                        self.numbers.retain(|_, known| *known != id);
                        self.bed.silent.remove(&id);
                    }
                    Some(Care::Note(node, retired)) => {
                        if let Some(retired) = retired.as_ref().filter(|retired| !retired.done) {
                            self.may_go(retired.raft_id);
                        }
                        let mut cluster = self.bed.state.cluster.as_deref().unwrap().clone();
                        cluster.managers.entry(node).or_default().retired = retired;
                        let notes = cluster.managers.values();
                        let open = notes.filter(|n| n.retired.as_ref().is_some_and(|r| !r.done));
                        assert!(open.count() <= 1, "two are given up at once");
                        self.bed.state.cluster = Some(Arc::new(cluster));
                    }
                }
            }
            panic!("it never ends");
        }

        /// Who was given up and is back is a member under another number.
        fn join_anew(&mut self) {
            for node in 1..=self.bed.state.nodes.len() as u64 {
                if self.numbers.contains_key(&node) || self.down.contains_key(&node) {
                    continue;
                }
                self.last_number += 1;
                let leader = self.bed.status.members.get(&1).unwrap();
                let mut member = leader.clone();
                member.member.node_id = node_of(node).to_string();
                self.numbers.insert(node, self.last_number);
                self.bed.status.members.insert(self.last_number, member);
            }
        }

        /// The oracle, by what is true and not by what the leader knows: it has been dead for the grace, and the others
        /// decide without it, now and afterwards.
        fn may_go(&self, id: RaftId) {
            let (node, _) = self
                .numbers
                .iter()
                .find(|(_, known)| **known == id)
                .unwrap();
            let since = self.down.get(node).expect("one that is up is given up");
            let dead = self.clock.monotonic().since(*since);
            assert!(dead >= GRACE, "given up after {dead:?}");
            let voters = self.numbers.len();
            let down = self
                .numbers
                .keys()
                .filter(|node| self.down.contains_key(node));
            let up = voters - down.count();
            assert!(up > voters / 2, "{up} of {voters} decide");
            assert!(
                up > (voters - 1) / 2,
                "{up} of {voters} are up when it has gone"
            );
        }
    }

    fn fate() -> impl Strategy<Value = Fate> {
        prop_oneof![
            3 => (2_u8..8).prop_map(Fate::Down),
            2 => (2_u8..8).prop_map(Fate::Up),
            4 => (1_u64..700).prop_map(Fate::Seconds),
            1 => (1_u64..700).prop_map(Fate::Sleeps),
            1 => Just(Fate::Elected),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn whatever_befalls_only_the_dead_go_and_where_most_are_up_all_of_them(
            count in 1_u64..8, fates in prop::collection::vec(fate(), 1..40),
        ) {
            let mut life = Life::new(count);
            for fate in &fates {
                life.befalls(fate);
            }
            // Nothing more befalls: one after the other, each within a grace and what it takes to write down.
            let dead = |life: &Life| {
                let numbers = life.numbers.keys();
                numbers.filter(|node| life.down.contains_key(node)).count()
            };
            let most_are_up = dead(&life) < life.numbers.len().div_ceil(2);
            life.befalls(&Fate::Seconds(GRACE.as_secs() + 10 * GAP.as_secs()));
            if most_are_up {
                prop_assert_eq!(dead(&life), 0);
            } else {
                // Nobody could decide it.
                let before = life.numbers.len();
                life.befalls(&Fate::Seconds(GRACE.as_secs()));
                prop_assert_eq!(life.numbers.len(), before);
            }
        }
    }
}
