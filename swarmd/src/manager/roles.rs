//! Managers that are to be managers no more are taken out of consensus.
//!
//! Who is a manager is said by the node objects; who votes, by consensus. This brings the second in line with the first,
//! one member at a time, and only where those that stay have a majority; and it keeps the membership's addresses those that
//! the managers are at ([`super::addresses`]), and gives up managers that are dead ([`super::autopilot`]). [`next`] decides from values; [`Roles::run`] carries it out while this manager
//! leads. Becoming a member goes the other way: the manager asks ([`super::joining`]).

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use swarm_proto::id::NodeId;
use swarm_proto::pb;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::addresses::{self, Known, Move};
use super::autopilot::{self, Care, Look, Silence};
use super::members::HEARD_WITHIN;
use super::raft::{MemberStatus, Membership, Published, RaftId, RaftStatus, Whereabouts};
use super::store::machine::StoreMachine;
use super::store::{Change, Node, Retirement, State};
use super::writer::Store;
use crate::ca::SecurityConfig;
use crate::clock::{Clock, Monotonic};

/// Pause before what failed or had to wait is looked at again.
const AGAIN: Duration = Duration::from_secs(1);
/// Pause before addresses where the manager did not answer are tried again, and the longest: each is twice the one before.
/// Meanwhile nothing else is done to the members for the time of a proof.
const PROVE_AGAIN: Duration = Duration::from_secs(5);
const PROVE_AGAIN_MAX: Duration = Duration::from_secs(60);

/// What to do about the members.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Step {
    /// A change stopped half-way: only these vote from now on.
    Finish(BTreeSet<RaftId>),
    /// This one goes.
    Remove(RaftId),
    /// The leader goes, so another one has to lead first.
    HandOver(RaftId),
    /// Someone should go, and without it there would be no majority.
    Wait(RaftId),
    /// This one is elsewhere.
    Move(Move),
    /// This one is dead, or was; or it goes, and that is written down first.
    Care(Care),
}

impl Step {
    /// It changes who the members are, or where: one change after the other.
    fn changes_members(&self) -> bool {
        match self {
            Self::Finish(_) | Self::Remove(_) | Self::Move(_) | Self::Care(Care::Remove(_)) => true,
            Self::HandOver(_) | Self::Wait(_) | Self::Care(Care::Note(..)) => false,
        }
    }
}

/// The next step, if there is one.
fn next(look: Look<'_>, (moves, care): (Vec<Move>, Option<Care>)) -> Option<Step> {
    // While a cluster is founded its first manager is a member before it is a node.
    look.state.cluster.as_ref()?;
    if !look.status.joint.is_empty() {
        return finish(look.status).filter(|_| look.status.settled);
    }
    let moved = moves.into_iter().next().map(Step::Move);
    let first = care.map(Step::Care).or(moved);
    let step = match leaves(look) {
        // What has to wait is in nobody's way; and who is dead may be what it waits for.
        None | Some(Step::Wait(_)) if first.is_some() => first,
        step => step,
    };
    step.filter(|step| look.status.settled || !step.changes_members())
}

/// The set that the change led to; the one that it came from, where that one alone has a majority that is up.
fn finish(status: &RaftStatus) -> Option<Step> {
    let up = |id: &&RaftId| {
        let member = status.members.get(id);
        member.is_some_and(|member| is_up(status, **id, member))
    };
    let well = |voters: &&BTreeSet<RaftId>| voters.iter().filter(up).count() > voters.len() / 2;
    let voters = status.joint.iter().rev().find(well);
    voters.cloned().map(Step::Finish)
}

/// Who should be a member no more: the first whose going leaves a majority.
fn leaves(look: Look<'_>) -> Option<Step> {
    let status = look.status;
    let stays = |member: &MemberStatus| {
        let node = object(look.state, member);
        node.is_some_and(|n| n.desired_role == pb::NodeRole::Manager)
    };
    let goes = status.members.iter().filter(|(_, m)| !stays(m));
    let mut goes: Vec<RaftId> = goes.map(|(id, _)| *id).collect();
    // The leader last: the others' removal needs it.
    goes.sort_by_key(|id| *id == status.id);
    let mut may_go = goes
        .iter()
        .filter(|id| status_without(status, **id).is_ok());
    let Some(id) = may_go.next().copied() else {
        return goes.first().copied().map(Step::Wait);
    };
    if id != status.id {
        return Some(noted(look, id).map_or(Step::Remove(id), Step::Care));
    }
    let others = status
        .members
        .iter()
        .filter(|(other, m)| **other != id && m.voter);
    let best = others.max_by_key(|(other, m)| (m.matched, **other));
    best.map(|(other, _)| Step::HandOver(*other))
}

/// What has to be written down before this one goes: its number. Promoted again before it became a worker, it has to hear
/// that it is a member no more.
fn noted(look: Look<'_>, id: RaftId) -> Option<Care> {
    let member = look.status.members.get(&id)?;
    let node = object(look.state, member)?.id;
    if autopilot::is_given_up(look.state, node, id) {
        return None;
    }
    let gone = Retirement {
        raft_id: id,
        at: look.now,
        reason: "it was demoted".to_owned(),
        done: false,
        demoted: true,
    };
    Some(Care::Note(node, Some(gone)))
}

/// The node that a member is.
fn object<'a>(state: &'a State, member: &MemberStatus) -> Option<&'a Node> {
    let id: NodeId = member.member.node_id.parse().ok()?;
    state.nodes.get(&id).map(|node| node.as_ref())
}

/// Whether a member answers the leader.
pub(super) fn is_up(status: &RaftStatus, id: RaftId, member: &MemberStatus) -> bool {
    id == status.id || member.heard.is_some_and(|ago| ago < HEARD_WITHIN)
}

/// Removing a member would stop the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{rest} of {voters} managers would be left, {needed} of them have to be up, and {up} are")]
pub(crate) struct Lost {
    voters: usize,
    rest: usize,
    needed: usize,
    up: usize,
}

/// Whether those that stay have a majority that is up, as the leader sees it; of each set of voters, where a change is
/// half-way.
///
/// # Errors
/// The arithmetic, where they have not.
pub(crate) fn status_without(status: &RaftStatus, id: RaftId) -> Result<(), Lost> {
    let each = status.configs();
    let mut of_it = each.iter().filter(|voters| voters.contains(&id));
    of_it.try_for_each(|voters| {
        let others = voters.iter().filter(|other| **other != id);
        let up = others.filter(|other| {
            let member = status.members.get(other);
            member.is_some_and(|member| is_up(status, **other, member))
        });
        let (rest, up) = (voters.len().saturating_sub(1), up.count());
        let needed = rest / 2 + 1;
        match rest > 0 && up >= needed {
            true => Ok(()),
            false => Err(Lost {
                voters: voters.len(),
                rest,
                needed,
                up,
            }),
        }
    })
}

/// What the members are kept by.
pub(crate) struct Roles {
    pub(crate) membership: Membership<StoreMachine>,
    pub(crate) store: Store,
    pub(crate) published: watch::Receiver<Published<State>>,
    pub(crate) whereabouts: Arc<Whereabouts>,
    pub(crate) security: Arc<OnceLock<SecurityConfig>>,
    /// The addresses of this host.
    pub(crate) here: fn() -> Vec<IpAddr>,
    /// How long who is silent has been so, as far as this leader has looked on; empty while it does not lead.
    pub(crate) silent: Arc<Silent>,
    pub(crate) clock: Clock,
}

/// How long members have been silent.
pub(crate) type Silent = watch::Sender<BTreeMap<RaftId, Duration>>;

impl Roles {
    /// Keeps the members in line with the nodes, until cancelled.
    pub(crate) async fn run(self: Arc<Self>, cancel: CancellationToken) {
        let mut published = self.published.clone();
        let (mut told, mut unproved) = (None, Unproved::default());
        let (mut silence, mut looked) = (Silence::default(), None);
        let work = async {
            loop {
                let state = published.borrow_and_update().view.clone();
                let status = self.membership.status();
                let now = self.clock.monotonic();
                // Not with every commit: nothing of it is in a hurry.
                let mut moves = match looked.is_none_or(|last: Monotonic| now >= last.after(AGAIN))
                {
                    true => {
                        looked = Some(now);
                        let known = Known::read(&self.whereabouts, self.here);
                        addresses::moves(&state, &status, &known)
                    }
                    false => Vec::new(),
                };
                moves.retain(|m| !unproved.waits(m, now));
                let silent = silence.look(&status, now);
                self.silent.send_replace(silent.clone());
                let look = Look {
                    state: &state,
                    status: &status,
                    silent: &silent,
                    now: self.store.time(&self.clock),
                };
                let step = next(look, (moves, autopilot::next(look)));
                match &step {
                    None => {}
                    Some(Step::Move(to)) => {
                        let moved = self.carry_out(to).await;
                        unproved.note(to, moved, self.clock.monotonic());
                    }
                    Some(Step::Care(care)) => self.care(care, &status).await,
                    Some(step) => self.change((step, &status), told.as_ref()).await,
                }
                told = step;
                tokio::select! {
                    biased;
                    changed = published.changed() => if changed.is_err() { return },
                    // Also for what is in no object: who answers, and where.
                    () = self.clock.sleep(AGAIN) => {}
                }
            }
        };
        let _ = cancel.run_until_cancelled(work).await;
        self.silent.send_replace(BTreeMap::new());
    }

    /// Takes a step where the members still are those that it was decided from.
    async fn change(&self, (step, status): (&Step, &RaftStatus), told: Option<&Step>) {
        let done = match step {
            Step::Finish(voters) => self.membership.finish(voters.clone(), status).await,
            Step::Remove(id) => self.membership.remove(*id, status).await,
            Step::HandOver(to) => self.membership.transfer_leader(*to).await,
            Step::Wait(_) | Step::Move(_) | Step::Care(_) => Ok(()),
        };
        match (step, done) {
            (step, Err(error)) => {
                tracing::warn!(?step, %error, "can't change the members yet");
            }
            (Step::Remove(id), Ok(())) => {
                tracing::info!(raft.id = id, "a manager is no member any more");
            }
            (Step::Finish(voters), Ok(())) => {
                tracing::info!(
                    ?voters,
                    "a change of the members that stopped half-way is done"
                );
            }
            (Step::Wait(id), Ok(())) if told != Some(step) => {
                tracing::warn!(
                    raft.id = id,
                    "a manager can't be removed: the others have no majority without it"
                );
            }
            (Step::HandOver(_) | Step::Wait(_) | Step::Move(_) | Step::Care(_), Ok(())) => {}
        }
    }

    /// Goes a step further with one that is dead, or was.
    async fn care(&self, care: &Care, status: &RaftStatus) {
        match care {
            Care::Remove(id) => match self.membership.remove(*id, status).await {
                Ok(()) => tracing::warn!(raft.id = id, "a dead manager votes no more"),
                Err(error) => {
                    tracing::warn!(raft.id = id, %error, "can't remove a dead manager yet")
                }
            },
            Care::Note(node, retirement) => {
                let change = Change::SetRetirement {
                    node: *node,
                    retirement: retirement.clone(),
                };
                let written = self
                    .store
                    .write(self.store.time(&self.clock), vec![change])
                    .await;
                match (written, retirement) {
                    (Err(error), _) => {
                        tracing::warn!(node.id = %node, %error, "can't write down yet how a manager stands")
                    }
                    (Ok(_), Some(retired)) if !retired.done && !retired.demoted => {
                        tracing::warn!(node.id = %node, reason = retired.reason, "a manager is dead, and is given up as a voter");
                    }
                    (Ok(_), Some(_)) => {}
                    (Ok(_), None) => {
                        tracing::info!(node.id = %node, "a manager that was given up or demoted is one of them (again)")
                    }
                }
            }
        }
    }

    /// Corrects where a member is.
    async fn carry_out(&self, to: &Move) -> Result<(), String> {
        let mut member = to.member.clone();
        if to.to_prove {
            let security = self.security.get();
            let security = security.ok_or("this manager is starting")?;
            member.addresses = addresses::prove(&member, security).await?;
        }
        let corrected = self.membership.correct(to.id, member.clone()).await;
        corrected.map_err(|error| error.to_string())?;
        tracing::info!(node.id = member.node_id, addresses = ?member.addresses, "a manager is known by another address");
        Ok(())
    }
}

/// Addresses that were not taken over: which, when they are tried again, and the pause before that.
#[derive(Debug, Default)]
struct Unproved(BTreeMap<RaftId, (Move, Monotonic, Duration)>);

impl Unproved {
    fn waits(&self, to: &Move, now: Monotonic) -> bool {
        let known = self.0.get(&to.id);
        known.is_some_and(|(known, again, _)| known == to && now < *again)
    }

    fn note(&mut self, to: &Move, moved: Result<(), String>, now: Monotonic) {
        let Err(reason) = moved else {
            self.0.remove(&to.id);
            return;
        };
        let before = self.0.get(&to.id).filter(|(known, ..)| known == to);
        let pause = before.map_or(PROVE_AGAIN, |(.., pause)| (*pause * 2).min(PROVE_AGAIN_MAX));
        if before.is_none() {
            tracing::warn!(node.id = to.member.node_id, addresses = ?to.member.addresses, reason, "a manager is not known by its new address yet");
        }
        self.0.insert(to.id, (to.clone(), now.after(pause), pause));
    }
}

#[cfg(test)]
mod tests {
    use swarm_proto::time::Timestamp;

    use super::*;
    use crate::manager::raft::Member;

    /// Members 1 to 3 as the leader 1 sees them; those in `down` don't answer.
    fn three(down: &[RaftId]) -> RaftStatus {
        let member = |id: RaftId| MemberStatus {
            member: Member {
                node_id: NodeId::from_raw(u128::from(id)).to_string(),
                addresses: vec![],
            },
            voter: true,
            matched: Some(id),
            heard: (!down.contains(&id)).then_some(Duration::ZERO),
        };
        RaftStatus::led(
            (1..4)
                .map(|id| (id, member(id)))
                .collect::<BTreeMap<_, _>>(),
        )
    }

    #[test]
    fn a_majority_of_the_rest_must_be_up() {
        assert_eq!(status_without(&three(&[]), 2), Ok(()));
        assert_eq!(
            status_without(&three(&[2]), 2),
            Ok(()),
            "the one that is down goes"
        );
        let lost = status_without(&three(&[2]), 3).unwrap_err();
        assert_eq!(
            lost.to_string(),
            "2 of 3 managers would be left, 2 of them have to be up, and 1 are"
        );
        assert_eq!(status_without(&three(&[]), 9), Ok(()), "no member");
        let mut one = three(&[]);
        one.members.retain(|id, _| *id == 1);
        assert!(status_without(&one, 1).is_err(), "the last one");
    }

    #[test]
    fn where_a_change_is_half_way_each_set_needs_its_majority() {
        // 4 joined, or goes; 3 is down.
        let mut half = three(&[3]);
        half.joint = vec![[1, 2].into(), [1, 2, 3].into()];
        let lost = status_without(&half, 2).unwrap_err();
        assert_eq!((lost.voters, lost.up, lost.needed), (3, 1, 2));
        assert_eq!(status_without(&half, 3), Ok(()), "not in the first set");
        let mut small = three(&[2, 3]);
        small.joint = vec![[1, 2, 3].into(), [1].into()];
        assert!(
            status_without(&small, 1).is_err(),
            "the last one of the second set"
        );
    }

    /// Nodes 1 to 3, of which some are demoted, and what is kept of them.
    struct Bed {
        state: State,
        status: RaftStatus,
    }

    impl Bed {
        fn new(demoted: &[u8], status: RaftStatus) -> Self {
            use crate::manager::store::testing::node;
            let root = crate::ca::RootCa::generate(Timestamp(1)).unwrap();
            let cluster = crate::manager::bootstrap::cluster(&root, Timestamp(1)).unwrap();
            let mut state = State {
                cluster: Some(Arc::new(cluster)),
                ..State::default()
            };
            for id in 1..4 {
                let mut node = node(id);
                node.desired_role = match demoted.contains(&id) {
                    true => pb::NodeRole::Worker,
                    false => pb::NodeRole::Manager,
                };
                state.nodes.insert(node.id, Arc::new(node));
            }
            Self { state, status }
        }

        fn next(&self) -> Option<Step> {
            let look = Look {
                state: &self.state,
                status: &self.status,
                silent: &BTreeMap::new(),
                now: Timestamp(7),
            };
            next(look, (vec![], autopilot::next(look)))
        }

        /// Promotes one, or demotes it.
        fn make(&mut self, id: u128, role: pb::NodeRole) {
            let id = NodeId::from_raw(id);
            let mut node = self.state.nodes[&id].as_ref().clone();
            node.desired_role = role;
            self.state.nodes.insert(id, Arc::new(node));
        }

        /// Carries steps out until there is none, or leadership has to go elsewhere.
        fn run(&mut self) -> Vec<Step> {
            let mut steps = Vec::new();
            while let Some(step) = self.next() {
                match &step {
                    Step::Care(Care::Note(node, retired)) => {
                        let mut cluster = self.state.cluster.as_deref().unwrap().clone();
                        cluster.managers.entry(*node).or_default().retired = retired.clone();
                        self.state.cluster = Some(Arc::new(cluster));
                    }
                    Step::Remove(id) => drop(self.status.members.remove(id)),
                    Step::Finish(_)
                    | Step::HandOver(_)
                    | Step::Wait(_)
                    | Step::Move(_)
                    | Step::Care(Care::Remove(_)) => {
                        steps.push(step);
                        return steps;
                    }
                }
                steps.push(step);
                assert!(steps.len() < 20, "it never ends: {steps:?}");
            }
            steps
        }

        fn note(&self, id: u128) -> Option<Retirement> {
            let managers = &self.state.cluster.as_ref().unwrap().managers;
            managers.get(&NodeId::from_raw(id))?.retired.clone()
        }
    }

    fn removed(steps: &[Step]) -> Vec<RaftId> {
        let mut removed = Vec::new();
        for step in steps {
            if let Step::Remove(id) = step {
                removed.push(*id);
            }
        }
        removed
    }

    #[test]
    fn the_leader_goes_last_and_hands_over() {
        let mut bed = Bed::new(&[1, 2], three(&[]));
        bed.state.cluster = None;
        assert_eq!(bed.next(), None, "no cluster yet");
        let mut bed = Bed::new(&[1, 2], three(&[]));
        let steps = bed.run();
        assert_eq!(removed(&steps), [2]);
        assert_eq!(steps.last(), Some(&Step::HandOver(3)));
        assert_eq!(
            Bed::new(&[1, 2], three(&[3])).next(),
            Some(Step::Wait(2)),
            "nobody is left"
        );
    }

    #[test]
    fn one_that_has_to_wait_is_in_no_other_ones_way() {
        // Without 2 one of two would be up; without the dead 3 both are, and then 2 can go.
        let mut bed = Bed::new(&[2, 3], three(&[3]));
        assert_eq!(removed(&bed.run()), [3, 2]);
    }

    #[test]
    fn a_change_that_stopped_half_way_is_finished_before_anything_else() {
        let mut bed = Bed::new(&[2], three(&[]));
        bed.status.joint = vec![[1, 2].into(), [1, 2, 3].into()];
        assert_eq!(bed.next(), Some(Step::Finish([1, 2, 3].into())));
        // What it led to has no majority that is up: back.
        bed.status = three(&[3]);
        bed.status.joint = vec![[1, 2].into(), [1, 3].into()];
        assert_eq!(bed.next(), Some(Step::Finish([1, 2].into())));
        bed.status.settled = false;
        assert_eq!(bed.next(), None, "one change after the other");
    }

    #[test]
    fn nobody_is_removed_while_another_change_is_not_settled() {
        let mut bed = Bed::new(&[2], three(&[]));
        assert_eq!(removed(&bed.run()), [2]);
        let mut bed = Bed::new(&[2], three(&[]));
        bed.status.settled = false;
        assert!(removed(&bed.run()).is_empty());
    }

    #[test]
    fn one_that_was_demoted_and_promoted_again_hears_that_it_is_a_member_no_more() {
        let mut bed = Bed::new(&[2], three(&[]));
        assert_eq!(removed(&bed.run()), [2]);
        let note = bed.note(2).unwrap();
        assert!(note.raft_id == 2 && note.done && note.demoted);
        let two = bed.state.nodes[&NodeId::from_raw(2)].clone();
        let told = |bed: &Bed| {
            let node = &bed.state.nodes[&two.id];
            crate::manager::convert::node_to_wire(node, bed.state.cluster.as_deref())
        };
        assert_eq!(told(&bed).retired_raft_id, 0, "it becomes a worker");
        bed.make(2, pb::NodeRole::Manager);
        assert_eq!(bed.run(), []);
        let wire = told(&bed);
        assert_eq!(wire.retired_raft_id, 2);
        assert!(wire.retired_at.is_none() && wire.retired_reason.is_empty());
        // It votes under another number.
        let again = three(&[]).members.remove(&2).unwrap();
        bed.status.members.insert(9, again);
        bed.run();
        assert_eq!(bed.note(2), None);
        assert_eq!(told(&bed).retired_raft_id, 0);
    }

    #[test]
    fn one_that_is_promoted_again_before_it_went_stays() {
        let mut bed = Bed::new(&[2], three(&[]));
        let Some(Step::Care(Care::Note(node, retired))) = bed.next() else {
            panic!("it goes unnoted");
        };
        let mut cluster = bed.state.cluster.as_deref().unwrap().clone();
        cluster.managers.entry(node).or_default().retired = retired;
        bed.state.cluster = Some(Arc::new(cluster));
        assert_eq!(bed.next(), Some(Step::Remove(2)));
        bed.make(2, pb::NodeRole::Manager);
        assert_eq!(bed.run(), [Step::Care(Care::Note(node, None))]);
    }

    #[test]
    fn addresses_that_lead_nowhere_are_tried_ever_less_often() {
        let (clock, hand) = Clock::manual(Timestamp(0));
        let mut unproved = Unproved::default();
        let to = Move {
            id: 2,
            member: Member::default(),
            to_prove: true,
        };
        let mut pauses = Vec::new();
        for _ in 0..6 {
            let begun = clock.monotonic();
            unproved.note(&to, Err("dead".to_owned()), begun);
            while unproved.waits(&to, clock.monotonic()) {
                hand.advance(Duration::from_secs(1));
            }
            pauses.push(clock.monotonic().since(begun).as_secs());
        }
        assert_eq!(pauses, [5, 10, 20, 40, 60, 60]);
        // Other addresses are tried at once.
        let other = Move {
            id: 2,
            to_prove: false,
            ..to
        };
        unproved.note(&other, Err("dead".to_owned()), clock.monotonic());
        hand.advance(PROVE_AGAIN);
        assert!(!unproved.waits(&other, clock.monotonic()));
    }
}
