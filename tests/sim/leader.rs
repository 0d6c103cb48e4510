//! The manager that leads: its control loop and its dispatcher, on virtual time.
//!
//! The decisions are the real ones: [`pass`], [`assignments::next_part`], [`status::check`], and
//! [`Expiry`]. The loops around them follow `manager::control_loop` and `manager::dispatcher`. A
//! plan's entries are written one after the other, and others write in between; a leader that loses
//! its office leaves any part of them behind.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use swarm_proto::id::{NodeId, TaskId};
use swarm_proto::pb;
use swarm_proto::time::Timestamp;
use swarmd::manager::dispatcher::assignments::{self, PART_BYTES, Sent};
use swarmd::manager::dispatcher::heartbeat::{self, Expiry, Patience};
use swarmd::manager::dispatcher::status;
use swarmd::manager::plan::{Dirty, pass};
use swarmd::manager::store::{Change, Event};

use super::invariants;
use super::world::{Answer, Due, Request, START, World};

/// How often everything is looked at (the control loop's).
const FULL_PASS_EVERY: Duration = Duration::from_secs(30);
/// Pause after a write that was refused in part (the control loop's).
const RETRY_AFTER: Duration = Duration::from_millis(250);

/// What a leader has in memory.
#[derive(Debug)]
pub struct Leader {
    term: u64,
    seed: u64,
    dirty: Dirty,
    wake_at: Option<Timestamp>,
    full_at: Timestamp,
    work: Work,
    sessions: BTreeMap<NodeId, Session>,
    expiry: Expiry,
}

/// What the control loop does.
#[derive(Debug)]
enum Work {
    /// Waits for commits, or for the time.
    Idle,
    /// Will look soon.
    Called,
    /// Writes a plan that was made then.
    Writing(Timestamp, VecDeque<Vec<Change>>),
}

/// A node's session and its stream of assignments.
#[derive(Debug)]
struct Session {
    id: u64,
    boot: u64,
    /// The node's attempt that its stream belongs to.
    attempt: u64,
    sent: Sent,
    todo: BTreeSet<TaskId>,
    sequence: u64,
    /// When the last message of the stream arrives.
    last: Timestamp,
    told: bool,
}

impl Session {
    fn new(id: u64, boot: u64, attempt: u64) -> Self {
        Self {
            id,
            boot,
            attempt,
            sent: Sent::default(),
            todo: BTreeSet::new(),
            sequence: 0,
            last: START,
            told: true,
        }
    }
}

impl World {
    /// A manager takes the lead: everything is dirty, and nodes have to find it.
    pub fn lead(&mut self, term: u64) {
        if term != self.terms || self.leader.is_some() {
            return;
        }
        let seed = self.random.number();
        self.leader = Some(Leader {
            term,
            seed,
            dirty: Dirty::all(),
            wake_at: None,
            full_at: self.now,
            work: Work::Idle,
            sessions: BTreeMap::new(),
            expiry: Expiry::default(),
        });
        self.say(format!("leader {term}"));
        self.expect_nodes();
        self.call_pass();
    }

    /// The leader loses its office. What it was writing is committed up to some entry.
    pub fn end_term(&mut self) {
        let Some(leader) = self.leader.take() else {
            return;
        };
        if let Work::Writing(planned_at, entries) = leader.work {
            let kept = self.random.below(entries.len() as u64 + 1);
            for changes in entries.into_iter().take(usize::try_from(kept).unwrap_or(0)) {
                self.commit("pass", planned_at, changes);
            }
        }
        self.terms += 1;
        self.say(format!("leader {} lost its office", leader.term));
        let gap = self.random.millis(100, 3_000);
        self.after(gap, Due::Lead(self.terms));
    }

    fn expect_nodes(&mut self) {
        let period = heartbeat::period(&self.log.state);
        let now = self.clock.monotonic();
        let mut changes = Vec::new();
        let Some(leader) = &mut self.leader else {
            return;
        };
        for node in self.log.state.nodes.values() {
            if node.status.state == pb::node_status::State::Down || node.description.is_none() {
                continue;
            }
            leader.expiry.beat(node.id, now, period, Patience::Unknown);
            changes.push(node_status(
                node.id,
                pb::node_status::State::Unknown,
                "leadership change",
            ));
        }
        if !changes.is_empty() {
            self.commit("dispatcher", self.now, changes);
        }
    }

    /// Takes in what an entry did.
    pub fn leader_learns(&mut self, events: &[Event]) {
        let Some(leader) = &mut self.leader else {
            return;
        };
        let mut tell = BTreeSet::new();
        for event in events {
            leader.dirty.note(event);
            if let Event::Task { old, new } = event {
                let nodes = assignments::concerned(old.as_deref(), new.as_deref());
                let task = new.as_ref().or(old.as_ref()).map(|t| t.id);
                for (node, task) in nodes.into_iter().flatten().zip(task.into_iter().cycle()) {
                    if let Some(session) = leader.sessions.get_mut(&node) {
                        session.todo.insert(task);
                        tell.insert(node);
                    }
                }
            }
        }
        for node in tell {
            self.tell_soon(node);
        }
        self.call_pass();
    }

    // The control loop.

    fn call_pass(&mut self) {
        let Some(leader) = &mut self.leader else {
            return;
        };
        if matches!(leader.work, Work::Idle) && !leader.dirty.is_empty() {
            leader.work = Work::Called;
            let term = leader.term;
            let delay = self.random.millis(0, 3);
            self.after(delay, Due::Pass(term));
        }
    }

    /// The next time at which the leader acts without being told.
    pub fn leader_wakes_at(&self) -> Option<Timestamp> {
        let leader = self.leader.as_ref()?;
        let origin = self.clock.monotonic();
        let late = leader
            .expiry
            .next()
            .map(|at| self.now.after(at.since(origin)));
        let pass = match leader.work {
            Work::Idle => {
                let full = leader.full_at.after(FULL_PASS_EVERY);
                Some(leader.wake_at.map_or(full, |at| at.min(full)))
            }
            Work::Called | Work::Writing(..) => None,
        };
        [late, pass]
            .into_iter()
            .flatten()
            .min()
            .map(|at| at.max(self.now))
    }

    /// The time that [`World::leader_wakes_at`] named has come.
    pub fn leader_wakes(&mut self) {
        self.expire_sessions();
        let Some(leader) = &mut self.leader else {
            return;
        };
        let full = self.now >= leader.full_at.after(FULL_PASS_EVERY);
        let due = full || leader.wake_at.is_some_and(|at| at <= self.now);
        if matches!(leader.work, Work::Idle) && due {
            leader.work = Work::Called;
            let term = leader.term;
            self.pass_is_due(term);
        }
    }

    /// The control loop plans.
    pub fn pass_is_due(&mut self, term: u64) {
        let now = self.now;
        let Some(leader) = self.leader.as_mut().filter(|l| l.term == term) else {
            return;
        };
        if now.since(leader.full_at) >= FULL_PASS_EVERY {
            leader.dirty = Dirty::all();
        }
        let dirty = std::mem::take(&mut leader.dirty);
        if dirty.is_all() {
            leader.full_at = now;
        }
        leader.seed = leader
            .seed
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        let seed = leader.seed;
        let plan = pass(&self.log.state, &dirty, now, seed);
        leader.wake_at = plan.wake_at;
        leader.dirty = Dirty::after(&plan);
        if plan.changes.is_empty() {
            leader.work = Work::Idle;
            if plan.wake_at.is_some_and(|at| at <= now) {
                let text = format!("a pass over {dirty:?} has nothing to do and wakes at once");
                self.log.broken.push(text);
            }
            self.check_settled(&dirty, plan.wake_at, seed);
            return;
        }
        let entries = plan.entries();
        let broken = invariants::of_plan(&self.log.state, &entries, now);
        self.log.broken.extend(broken);
        if let Some(leader) = &mut self.leader {
            leader.work = Work::Writing(now, entries.into());
        }
        let delay = self.random.millis(0, 20);
        self.after(delay, Due::Written(term));
    }

    /// A pass over what has changed found nothing: one over everything must not either.
    fn check_settled(&mut self, dirty: &Dirty, wake_at: Option<Timestamp>, seed: u64) {
        if dirty.is_all() {
            return;
        }
        let full = pass(&self.log.state, &Dirty::all(), self.now, seed);
        if !full.changes.is_empty() {
            self.log.broken.push(format!(
                "a full pass finds more than one over {dirty:?}: {:?}",
                full.changes
            ));
        }
        if let Some(at) = full
            .wake_at
            .filter(|at| wake_at.is_none_or(|known| known > *at))
        {
            self.log.broken.push(format!(
                "a full pass wakes at {at:?}, one over {dirty:?} at {wake_at:?} (now {:?})",
                self.now
            ));
        }
    }

    /// The next entry of the plan is committed.
    pub fn write_is_done(&mut self, term: u64) {
        let Some(leader) = self.leader.as_mut().filter(|l| l.term == term) else {
            return;
        };
        let Work::Writing(planned_at, entries) = &mut leader.work else {
            return;
        };
        let planned_at = *planned_at;
        let Some(changes) = entries.pop_front() else {
            return;
        };
        let more = !entries.is_empty();
        let applied = self.commit("pass", planned_at, changes);
        let refused = applied.results.iter().any(Result::is_err);
        let Some(leader) = &mut self.leader else {
            return;
        };
        if refused {
            leader.dirty = Dirty::all();
            leader.work = Work::Called;
            self.after(RETRY_AFTER, Due::Pass(term));
        } else if more {
            let delay = self.random.millis(0, 20);
            self.after(delay, Due::Written(term));
        } else {
            leader.work = Work::Idle;
            self.call_pass();
        }
    }

    // The dispatcher.

    fn expire_sessions(&mut self) {
        let now = self.clock.monotonic();
        let Some(leader) = &mut self.leader else {
            return;
        };
        let mut changes = Vec::new();
        for node in leader.expiry.expired(now) {
            leader.sessions.remove(&node);
            let down = pb::node_status::State::Down;
            let known = self.log.state.nodes.get(&node);
            if known.is_some_and(|node| node.status.state != down) {
                changes.push(node_status(node, down, "heartbeat failure"));
            }
        }
        if !changes.is_empty() {
            self.commit("dispatcher", self.now, changes);
        }
    }

    /// A node leaves the cluster.
    pub fn node_leaves(&mut self, node: NodeId) {
        let Some(leader) = &mut self.leader else {
            return;
        };
        leader.sessions.remove(&node);
        leader.expiry.forget(node);
        let down = node_status(node, pb::node_status::State::Down, "node left the cluster");
        self.commit("dispatcher", self.now, vec![down]);
    }

    /// A node says something.
    pub fn leader_hears(&mut self, node: NodeId, boot: u64, request: Request) {
        let Some(leader) = &mut self.leader else {
            return;
        };
        let known = leader.sessions.get(&node).map(|s| s.id);
        match request {
            Request::Register(attempt, resumed, description) => {
                let session = if known == Some(resumed) {
                    resumed
                } else if !self.log.state.nodes.contains_key(&node) {
                    return;
                } else {
                    self.open_session(node, *description)
                };
                self.begin_stream(node, (session, attempt), boot);
            }
            Request::Beat(session) | Request::Statuses(session, ..) if known != Some(session) => {
                self.answer(node, boot, Answer::Refused(session));
            }
            Request::Beat(session) => {
                let period = heartbeat::period(&self.log.state);
                let now = self.clock.monotonic();
                leader.expiry.beat(node, now, period, Patience::Session);
                let random = u32::try_from(self.random.below(u64::from(u32::MAX))).unwrap_or(0);
                let period = heartbeat::spread(period, random);
                self.answer(node, boot, Answer::Period(session, period));
            }
            Request::Statuses(session, number, updates) => {
                match status::check(&self.log.state, node, updates) {
                    Ok(reports) => {
                        if !reports.is_empty() {
                            let change = Change::ReportStatus { node, reports };
                            self.commit("agent", self.now, vec![change]);
                        }
                        self.answer(node, boot, Answer::Recorded(session, number));
                    }
                    Err(refusal) => self.log.broken.push(refusal.to_string()),
                }
            }
        }
    }

    fn open_session(&mut self, node: NodeId, description: pb::NodeDescription) -> u64 {
        let id = self.number();
        let period = heartbeat::period(&self.log.state);
        let now = self.clock.monotonic();
        if let Some(leader) = &mut self.leader {
            leader.expiry.beat(node, now, period, Patience::Session);
            leader.sessions.insert(node, Session::new(id, 0, 0));
        }
        let ready = Change::SetNodeStatus {
            id: node,
            state: pb::node_status::State::Ready,
            message: String::new(),
            addr: Some(format!("10.0.0.{}", node.raw() % 250)),
            description: Some(Arc::new(description)),
        };
        self.commit("dispatcher", self.now, vec![ready]);
        id
    }

    fn begin_stream(&mut self, node: NodeId, (id, attempt): (u64, u64), boot: u64) {
        let Some(leader) = &mut self.leader else {
            return;
        };
        let mut session = Session::new(id, boot, attempt);
        session.todo = session.sent.candidates(&self.log.state, node);
        let term = leader.term;
        // What to run is told once the node knows its session.
        let answer = Answer::Session(attempt, id);
        session.last = self.stream(node, boot, ((attempt, id), START), answer);
        let Some(leader) = &mut self.leader else {
            return;
        };
        leader.sessions.insert(node, session);
        let delay = self.random.millis(0, 5);
        self.after(delay, Due::Tell(term, node));
    }

    fn tell_soon(&mut self, node: NodeId) {
        let Some(leader) = &mut self.leader else {
            return;
        };
        let Some(session) = leader.sessions.get_mut(&node) else {
            return;
        };
        if session.told {
            return;
        }
        session.told = true;
        let term = leader.term;
        let delay = self.random.millis(0, 5);
        self.after(delay, Due::Tell(term, node));
    }

    /// Tells a node what is news to it.
    pub fn tell(&mut self, term: u64, node: NodeId) {
        use pb::assignments_message::Type;
        let Some(leader) = self.leader.as_mut().filter(|l| l.term == term) else {
            return;
        };
        let Some(session) = leader.sessions.get_mut(&node) else {
            return;
        };
        session.told = false;
        let at = (&self.log.state, node);
        let changes = assignments::next_part(&mut session.sent, &mut session.todo, at, PART_BYTES);
        let first = session.sequence == 0;
        if changes.is_empty() && !first {
            return;
        }
        let kind = if first {
            Type::Complete
        } else {
            Type::Incremental
        };
        let applies_to = if first {
            String::new()
        } else {
            session.sequence.to_string()
        };
        session.sequence += 1;
        let message = pb::AssignmentsMessage {
            r#type: kind.into(),
            applies_to,
            results_in: session.sequence.to_string(),
            changes,
            more: false,
        };
        let (boot, last) = (session.boot, session.last);
        let stream = (session.attempt, session.id);
        let message = Answer::Assignments(stream, Box::new(message));
        let last = self.stream(node, boot, (stream, last), message);
        let session = self.leader.as_mut().and_then(|l| l.sessions.get_mut(&node));
        if let Some(session) = session {
            session.last = last;
        }
    }
}

fn node_status(id: NodeId, state: pb::node_status::State, message: &str) -> Change {
    Change::SetNodeStatus {
        id,
        state,
        message: message.to_owned(),
        addr: None,
        description: None,
    }
}
