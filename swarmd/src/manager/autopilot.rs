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

/// Looks that are further apart than this have a gap: whoever was silent before counts from anew.
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

/// What is left to do about one that was given up.
fn go_on(look: Look<'_>, node: NodeId, retired: &Retirement) -> Gone {
    let (status, id) = (look.status, retired.raft_id);
    let member = status.members.get(&id);
    let object = look.state.nodes.get(&node);
    let manages = object.is_some_and(|n| n.desired_role == pb::NodeRole::Manager);
    let text = node.to_string();
    let mut others = status.members.iter().filter(|(other, _)| **other != id);
    let back = others.any(|(_, m)| m.voter && m.member.node_id == text);
    match member {
        None if back || !manages => Gone::Step(Care::Note(node, None)),
        None if retired.done => Gone::Over,
        // The change that removed it must be there to stay before the manager hears of it.
        None if !status.settled => Gone::Waits,
        None => {
            let done = true;
            let retired = retired.clone();
            Gone::Step(Care::Note(node, Some(Retirement { done, ..retired })))
        }
        Some(member) if is_up(status, id, member) => Gone::Step(Care::Note(node, None)),
        Some(_) => match may_go(status, id, &|id| look.silent.contains_key(id)) {
            Ok(_) => Gone::Step(Care::Remove(id)),
            Err(_) => Gone::Waits,
        },
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

/// What is kept of this node, where it is given up under this number.
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

    const GRACE: Duration = Duration::from_secs(600);
    const LONG: u64 = 700;

    /// Voters 1 to `count` as the leader 1 sees them, each silent for so many seconds.
    struct Bed {
        state: State,
        status: RaftStatus,
        silent: BTreeMap<RaftId, Duration>,
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
            }
        }

        fn next(&self) -> Option<Care> {
            next(Look {
                state: &self.state,
                status: &self.status,
                silent: &self.silent,
                now: Timestamp(7),
            })
        }

        /// Takes steps until there is none; who was removed, in order.
        fn run(&mut self) -> Vec<RaftId> {
            let mut removed = Vec::new();
            for _ in 0..20 {
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
}
