//! How old the state of a manager may be that answers without asking the others, and how long ago it had a leader.
//!
//! A leader says with each message when a majority agreed last that it leads, and what was committed by then: all that anybody
//! acknowledged before that moment. Who has applied that lags by no more than the time since. A leader without a majority goes
//! on leading and says so in vain, for the moment stays where it is.
//!
//! Clocks of two hosts are not compared. An answer to the leader carries a mark, the time here; the leader's messages carry the
//! last mark it got. So a message is known to be younger than that mark, also one that lay somewhere while a process stood
//! still. Only a machine whose clock stands still with it notices nothing.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use openraft::Instant as _;
use openraft::async_runtime::WatchReceiver as _;
use openraft::{RaftMetrics, ServerState};
use swarm_proto::own;
use tokio::time::Instant;

use super::quiet::Quiet;
use super::runtime::Receiver;
use super::types::{LogId, RaftId, Types, Vote};

type Metrics = RaftMetrics<Types>;

/// What leaders' messages said, and what this member says as one.
pub(crate) struct Freshness {
    /// Tells the marks of this start from those of others.
    boot: u64,
    /// Marks count from here.
    began: Instant,
    quiet: Quiet,
    /// Where consensus stands; absent until it has started.
    metrics: OnceLock<Receiver<Metrics>>,
    said: Mutex<Said>,
}

#[derive(Debug, Default)]
struct Said {
    /// All that was acknowledged by then is applied.
    caught_up: Option<Instant>,
    /// The first moment since of which not all is applied yet, and up to where that is.
    behind: Option<(Instant, u64)>,
    /// A majority had a leader then.
    led: Option<Instant>,
    /// A leader was heard then, whether or not it has a majority.
    heard: Option<Instant>,
    /// The last term in which this member led, and when that was seen first.
    leads: Option<(u64, Instant)>,
    /// The last mark of each member that has answered; as many as there were members.
    marks: BTreeMap<RaftId, own::RaftMark>,
}

impl Said {
    /// All that was acknowledged by `then` is committed up to `committed`; up to `applied` it is applied here.
    fn take(&mut self, then: Instant, committed: u64, applied: u64) {
        self.see(applied);
        self.led = self.led.max(Some(then));
        if committed <= applied {
            self.caught_up = self.caught_up.max(Some(then));
            self.behind = None;
        } else {
            self.behind.get_or_insert((then, committed));
        }
    }

    fn see(&mut self, applied: u64) {
        if let Some((at, _)) = self.behind.take_if(|(_, committed)| *committed <= applied) {
            self.caught_up = self.caught_up.max(Some(at));
        }
    }
}

impl Freshness {
    /// Of a member that starts; no other start has the same `boot`. Elections begin at the latest `election` after a leader's
    /// last sign of life.
    pub(super) fn new(boot: u64, election: Duration) -> Self {
        Self {
            boot,
            quiet: Quiet::new(election),
            began: Instant::now(),
            metrics: OnceLock::new(),
            said: Mutex::default(),
        }
    }

    /// Consensus has started.
    pub(super) fn follow(&self, metrics: Receiver<Metrics>) {
        // Once: there is one consensus.
        let _ = self.metrics.set(metrics);
    }

    fn said(&self) -> MutexGuard<'_, Said> {
        self.said.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn look<T>(&self, look: impl FnOnce(&Metrics) -> Option<T>) -> Option<T> {
        look(&self.metrics.get()?.borrow_watched())
    }

    /// The time here, for an answer to the leader.
    pub(super) fn mark(&self) -> own::RaftMark {
        let at = self.began.elapsed().as_micros();
        own::RaftMark {
            boot: self.boot,
            at_us: u64::try_from(at).unwrap_or(u64::MAX),
        }
    }

    /// A member has answered with this mark.
    pub(super) fn marked(&self, member: RaftId, mark: own::RaftMark) {
        self.said().marks.insert(member, mark);
    }

    /// What this member says to another one with a message of its own as the leader; nothing where it can't say more than that
    /// it leads.
    pub(super) fn agreement(&self, to: RaftId) -> Option<own::RaftAgreement> {
        // The mark first: the message has to be younger than it.
        let mark = self.said().marks.get(&to).copied()?;
        let (agreed, committed) = self.look(agreement)?;
        // Rounded up: it must not seem newer than it is.
        let age = agreed.elapsed().as_micros() + 1;
        Some(own::RaftAgreement {
            committed,
            age_us: u64::try_from(age).unwrap_or(u64::MAX),
            mark: Some(mark),
        })
    }

    /// Whether this member leads and is to be silent, for no majority answers.
    pub(super) fn is_silent(&self) -> bool {
        let leads = self.look(|metrics| {
            let leads = metrics.state == ServerState::Leader && !is_alone(metrics);
            let acked = metrics.last_quorum_acked.map(|acked| acked.elapsed());
            leads.then_some((metrics.vote.leader_id.term, acked))
        });
        let Some((term, acked)) = leads else {
            return false;
        };
        let mut said = self.said();
        let now = Instant::now();
        let known = said.leads.filter(|(known, _)| *known == term);
        let (_, since) = *said.leads.insert(known.unwrap_or((term, now)));
        // It was elected by a majority.
        let lost = since.elapsed().min(acked.unwrap_or(Duration::MAX));
        self.quiet.holds(lost)
    }

    /// A leader's message came.
    pub(super) fn heard(&self, vote: &Vote, agreement: Option<&own::RaftAgreement>) {
        let known = self.look(|metrics| {
            let deposed = *vote < metrics.vote;
            (!deposed).then(|| index(metrics.last_applied.as_ref()))
        });
        // Of one that is deposed nothing counts.
        let Some(applied) = known else { return };
        let mut said = self.said();
        said.heard = Some(Instant::now());
        if let Some(agreement) = agreement
            && let Some(then) = self.moment(agreement)
        {
            said.take(then, agreement.committed, applied);
        }
    }

    /// When the majority agreed, or before; by this member's clock.
    fn moment(&self, agreement: &own::RaftAgreement) -> Option<Instant> {
        let mark = agreement.mark.filter(|mark| mark.boot == self.boot)?;
        let sent_after = self
            .began
            .checked_add(Duration::from_micros(mark.at_us))?
            .min(Instant::now());
        sent_after.checked_sub(Duration::from_micros(agreement.age_us))
    }

    /// The most by which the state lags behind what was acknowledged; nothing where that is not known since the start.
    pub(super) fn age(&self) -> Option<Duration> {
        let own = self.look(|metrics| {
            let (agreed, _) = agreement(metrics)?;
            // Before, its state may lack what earlier leaders acknowledged.
            own_term(metrics, metrics.last_applied.as_ref()).then_some(agreed)
        });
        let applied = self.look(|metrics| Some(index(metrics.last_applied.as_ref())))?;
        let mut said = self.said();
        said.see(applied);
        own.max(said.caught_up).map(|at| at.elapsed())
    }

    /// How long ago a majority had a leader, as far as this member knows; nothing where it knows of none since the start.
    pub(super) fn led(&self) -> Option<Duration> {
        let own = self.look(agreement).map(|(agreed, _)| agreed);
        own.max(self.said().led).map(|at| at.elapsed())
    }

    /// How long ago a leader was heard, also one without a majority; of itself it hears always.
    pub(super) fn silence(&self) -> Option<Duration> {
        if self.look(|metrics| Some(metrics.state == ServerState::Leader)) == Some(true) {
            return Some(Duration::ZERO);
        }
        self.said().heard.map(|at| at.elapsed())
    }
}

/// When a majority agreed last that this member leads, and up to where all is committed that was acknowledged by then.
fn agreement(metrics: &Metrics) -> Option<(Instant, u64)> {
    if metrics.state != ServerState::Leader {
        return None;
    }
    // What an entry of its own term does not follow, an earlier leader may have committed further than is known here.
    let committed = metrics.cluster_committed.as_ref();
    if !own_term(metrics, committed) {
        return None;
    }
    // Alone it has the agreement of all there are.
    let now = Instant::now();
    let agreed = match is_alone(metrics) {
        true => now,
        false => now.checked_sub(metrics.last_quorum_acked?.elapsed())?,
    };
    Some((agreed, index(committed)))
}

fn is_alone(metrics: &Metrics) -> bool {
    metrics.membership_config.voter_ids().eq([metrics.id])
}

/// Whether an entry is of the leadership that this member knows last.
fn own_term(metrics: &Metrics, entry: Option<&LogId>) -> bool {
    entry.is_some_and(|entry| entry.leader_id == metrics.vote.leader_id)
}

fn index(entry: Option<&LogId>) -> u64 {
    entry.map_or(0, |entry| entry.index)
}

impl fmt::Debug for Freshness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Freshness").field(&self.said()).finish()
    }
}

#[cfg(test)]
mod tests {
    use openraft::vote::RaftLeaderId as _;
    use std::sync::Arc;

    use openraft::metrics::SerdeInstant;
    use openraft::type_config::TypeConfigExt as _;
    use openraft::{Membership, StoredMembership};

    use super::super::types::Member;
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// What a member sees that has applied entries of term 1 up to an index.
    fn metrics(state: ServerState, applied: u64) -> Metrics {
        let mut metrics = Metrics::new_initial(1);
        metrics.state = state;
        metrics.vote = vote(1);
        metrics.last_applied = Some(log_id(1, applied));
        metrics
    }

    fn vote(term: u64) -> Vote {
        Vote {
            leader_id: leader_id(term),
            committed: true,
        }
    }

    fn leader_id(term: u64) -> openraft::alias::LeaderIdOf<Types> {
        openraft::alias::LeaderIdOf::<Types>::new(term, 1)
    }

    fn log_id(term: u64, index: u64) -> LogId {
        LogId {
            leader_id: leader_id(term),
            index,
        }
    }

    /// Sees what it is told to.
    struct Member1(Freshness, super::super::runtime::Sender<Metrics>);

    impl Member1 {
        fn new(boot: u64, now: Metrics) -> Self {
            use openraft::async_runtime::Watch;
            let (sender, receiver) = super::super::runtime::OrderedWatch::channel(now);
            let freshness = Freshness::new(boot, SECOND / 2);
            freshness.follow(receiver);
            Self(freshness, sender)
        }

        fn sees(&self, now: Metrics) {
            use openraft::async_runtime::WatchSender as _;
            self.1.send_if_modified(|seen| {
                *seen = now;
                true
            });
        }
    }

    fn follower(applied: u64) -> Member1 {
        Member1::new(7, metrics(ServerState::Follower, applied))
    }

    fn says(committed: u64, age: Duration, mark: own::RaftMark) -> own::RaftAgreement {
        own::RaftAgreement {
            committed,
            age_us: u64::try_from(age.as_micros()).unwrap(),
            mark: Some(mark),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_state_is_as_old_as_the_agreement_it_has_caught_up_with() {
        let member = follower(3);
        let fresh = &member.0;
        let now = |committed| says(committed, Duration::ZERO, fresh.mark());
        assert_eq!(fresh.age(), None, "nobody was heard");
        fresh.heard(&vote(1), Some(&now(5)));
        member.sees(metrics(ServerState::Follower, 4));
        assert_eq!(fresh.age(), None, "never caught up");
        tokio::time::advance(SECOND).await;
        member.sees(metrics(ServerState::Follower, 5));
        assert_eq!(fresh.age(), Some(SECOND), "since that message");
        tokio::time::advance(SECOND).await;
        fresh.heard(&vote(1), Some(&now(5)));
        assert_eq!(fresh.age(), Some(Duration::ZERO));
        // It falls behind: later messages say nothing of what came before the first.
        fresh.heard(&vote(1), Some(&now(9)));
        tokio::time::advance(SECOND).await;
        fresh.heard(&vote(1), Some(&now(12)));
        tokio::time::advance(SECOND).await;
        assert_eq!(fresh.age(), Some(2 * SECOND));
        assert_eq!(fresh.led(), Some(SECOND), "the leader leads all the same");
        member.sees(metrics(ServerState::Follower, 9));
        assert_eq!(fresh.age(), Some(2 * SECOND), "what the first said");
    }

    #[tokio::test(start_paused = true)]
    async fn a_leader_without_a_majority_makes_nothing_fresher() {
        let member = follower(5);
        let fresh = &member.0;
        for lost in 0..4 {
            let said = says(5, lost * SECOND, fresh.mark());
            fresh.heard(&vote(1), Some(&said));
            assert_eq!(fresh.age(), Some(lost * SECOND));
            assert_eq!(fresh.led(), Some(lost * SECOND));
            assert_eq!(fresh.silence(), Some(Duration::ZERO), "it is there");
            tokio::time::advance(SECOND).await;
        }
        // A leader that is too new to know says nothing.
        fresh.heard(&vote(2), None);
        assert_eq!(fresh.age(), Some(4 * SECOND));
    }

    #[tokio::test(start_paused = true)]
    async fn a_message_that_lay_somewhere_is_as_old_as_the_mark_it_carries() {
        let member = follower(5);
        let fresh = &member.0;
        let said = says(5, Duration::ZERO, fresh.mark());
        tokio::time::advance(30 * SECOND).await;
        fresh.heard(&vote(1), Some(&said));
        assert_eq!(fresh.age(), Some(30 * SECOND));
        // A mark of another start says nothing.
        let other = own::RaftMark {
            boot: 8,
            ..fresh.mark()
        };
        fresh.heard(&vote(1), Some(&says(5, Duration::ZERO, other)));
        assert_eq!(fresh.age(), Some(30 * SECOND));
    }

    #[tokio::test(start_paused = true)]
    async fn a_deposed_leader_is_not_heard() {
        let member = follower(5);
        let mut newer = metrics(ServerState::Follower, 5);
        newer.vote = vote(2);
        member.sees(newer);
        let said = says(5, Duration::ZERO, member.0.mark());
        member.0.heard(&vote(1), Some(&said));
        assert_eq!((member.0.age(), member.0.silence()), (None, None));
    }

    type Acked = openraft::alias::InstantOf<Types>;

    /// Leads in term 2, with what it knows of earlier terms.
    fn leader(voters: &[u64], committed: LogId, acked: Acked) -> Metrics {
        let mut metrics = metrics(ServerState::Leader, 5);
        metrics.vote = vote(2);
        metrics.last_applied = Some(committed);
        metrics.cluster_committed = Some(committed);
        metrics.last_quorum_acked = Some(SerdeInstant::new(acked));
        let nodes: BTreeMap<u64, Member> =
            voters.iter().map(|id| (*id, Member::default())).collect();
        let voters = vec![voters.iter().copied().collect()];
        let membership = Membership::new(voters, nodes).unwrap();
        metrics.membership_config = Arc::new(StoredMembership::new(Some(log_id(1, 1)), membership));
        metrics
    }

    #[tokio::test(start_paused = true)]
    async fn a_leader_counts_once_an_entry_of_its_own_is_in_force() {
        let now = Types::now();
        let mark = own::RaftMark { boot: 9, at_us: 1 };
        for voters in [&[1][..], &[1, 2, 3]] {
            let early = Member1::new(7, leader(voters, log_id(1, 5), now));
            early.0.marked(2, mark);
            assert_eq!((early.0.age(), early.0.led()), (None, None), "{voters:?}");
            assert_eq!(early.0.agreement(2), None, "{voters:?}");
            early.sees(leader(voters, log_id(2, 6), now));
            assert_eq!(early.0.age(), Some(Duration::ZERO), "{voters:?}");
            let said = early.0.agreement(2).unwrap();
            assert_eq!((said.committed, said.mark), (6, Some(mark)));
            assert_eq!(early.0.agreement(3), None, "it has no mark of that one");
        }
        let lonely = Member1::new(7, leader(&[1, 2, 3], log_id(2, 6), now));
        lonely.0.marked(2, mark);
        tokio::time::advance(SECOND).await;
        assert_eq!(lonely.0.age(), Some(SECOND));
        assert!(lonely.0.agreement(2).unwrap().age_us > 1_000_000);
    }

    #[tokio::test(start_paused = true)]
    async fn a_leader_that_no_majority_answers_is_silent_in_turns() {
        let now = Types::now();
        let lonely = Member1::new(7, leader(&[1, 2, 3], log_id(2, 6), now));
        let alone = Member1::new(7, leader(&[1], log_id(2, 6), now));
        let mut silent = Vec::new();
        for _ in 0..5 {
            assert!(!alone.0.is_silent());
            silent.push(lonely.0.is_silent());
            tokio::time::advance(SECOND).await;
        }
        assert_eq!(silent, [false, false, true, false, true]);
        lonely.sees(leader(&[1, 2, 3], log_id(2, 6), Types::now()));
        assert!(!lonely.0.is_silent());
    }
}
