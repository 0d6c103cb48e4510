//! Time, what is due when, and the network between the leader and the hosts.

use std::collections::BTreeMap;
use std::time::Duration;

use swarm_proto::id::{NodeId, TaskId};
use swarm_proto::pb;
use swarm_proto::pb::update_task_status_request::TaskStatusUpdate;
use swarm_proto::time::Timestamp;
use swarmd::clock::{Clock, ManualClock};
use swarmd::manager::store::{Applied, Change};

use super::host::Host;
use super::leader::Leader;
use super::log::Log;
use super::random::Random;

/// When every run begins: a Tuesday in November 2023.
pub const START: Timestamp = Timestamp::from_millis(1_700_000_000_000);

/// Everything there is.
#[derive(Debug)]
pub struct World {
    /// Virtual time.
    pub now: Timestamp,
    /// The same, for code that asks a clock.
    pub clock: Clock,
    hand: ManualClock,
    /// All chance.
    pub random: Random,
    queue: BTreeMap<(Timestamp, u64), Due>,
    queued: u64,
    /// The log and its state.
    pub log: Log,
    /// The manager that leads; none while there is no leader.
    pub leader: Option<Leader>,
    /// How many leaders there were.
    pub terms: u64,
    /// Nodes by id.
    pub hosts: BTreeMap<NodeId, Host>,
    /// What goes wrong at present.
    pub faults: Faults,
    /// How many things had numbers.
    numbers: u64,
}

/// What goes wrong, in parts of a thousand, and how slow things are.
#[derive(Debug, Clone, Default)]
pub struct Faults {
    /// Messages that are lost.
    pub lost: u64,
    /// Messages that arrive twice.
    pub doubled: u64,
    /// Messages that take up to [`Faults::LATE_MS`].
    pub late: u64,
    /// Messages of a stream that arrive before earlier ones.
    pub reordered: u64,
    /// Runtime calls that fail for good.
    pub failing: u64,
    /// Runtime calls that fail and may be made again.
    pub temporary: u64,
    /// Containers that end by themselves.
    pub exiting: u64,
}

impl Faults {
    /// How late a late message is at most.
    pub const LATE_MS: u64 = 4_000;
}

/// Something that happens at a time.
#[derive(Debug, Clone)]
pub enum Due {
    /// A message arrives at the leader.
    Received(NodeId, u64, Request),
    /// A message arrives at a node.
    Answered(NodeId, u64, Answer),
    /// The control loop looks.
    Pass(u64),
    /// The next entry of the control loop is committed.
    Written(u64),
    /// The leader tells a node what is news.
    Tell(u64, NodeId),
    /// A manager begins to lead.
    Lead(u64),
    /// A node's agent looks after its session.
    Session(NodeId, u64, u64),
    /// A node's agent writes and sends statuses.
    Report(NodeId, u64),
    /// A call to a node's runtime ends, or a pause before the next.
    Call(NodeId, u64, TaskId, u64),
    /// A container ends by itself.
    Exit(NodeId, TaskId, u64),
}

/// What nodes say to the leader.
#[derive(Debug, Clone)]
pub enum Request {
    /// Opens a session, or goes on with one.
    Register(u64, u64, Box<pb::NodeDescription>),
    /// A sign of life in a session.
    Beat(u64),
    /// Where tasks are: session, number of the request, updates.
    Statuses(u64, u64, Vec<TaskStatusUpdate>),
}

/// What the leader says to nodes.
#[derive(Debug, Clone)]
pub enum Answer {
    /// A session, to this attempt.
    Session(u64, u64),
    /// The session is not known.
    Refused(u64),
    /// The next beat, in a session.
    Period(u64, Duration),
    /// Statuses are recorded: session, number of the request.
    Recorded(u64, u64),
    /// What to run, in the stream of an attempt and session.
    Assignments((u64, u64), Box<pb::AssignmentsMessage>),
    /// That stream broke.
    Broken((u64, u64)),
}

impl World {
    /// An empty cluster with a leader.
    pub fn new(seed: u64) -> Self {
        let (clock, hand) = Clock::manual(START);
        Self {
            now: START,
            clock,
            hand,
            random: Random::new(seed),
            queue: BTreeMap::new(),
            queued: 0,
            log: Log::default(),
            leader: None,
            terms: 0,
            hosts: BTreeMap::new(),
            faults: Faults::default(),
            numbers: 0,
        }
    }

    /// A number that nothing else has.
    pub fn number(&mut self) -> u64 {
        self.numbers += 1;
        self.numbers
    }

    /// Queues what happens after a time.
    pub fn after(&mut self, delay: Duration, due: Due) {
        self.at(self.now.after(delay), due);
    }

    /// Queues what happens at a time.
    pub fn at(&mut self, at: Timestamp, due: Due) {
        self.queued += 1;
        self.queue.insert((at.max(self.now), self.queued), due);
    }

    /// Lets so much time pass.
    pub fn run_for(&mut self, time: Duration) {
        let end = self.now.after(time);
        while self.log.broken.is_empty() {
            let queued = self.queue.first_key_value().map(|((at, _), _)| *at);
            let timed = self.leader_wakes_at();
            match (queued, timed) {
                (Some(at), timed) if at <= end && timed.is_none_or(|timed| at <= timed) => {
                    self.pass_time(at);
                    if let Some((_, due)) = self.queue.pop_first() {
                        self.happen(due);
                    }
                }
                (_, Some(at)) if at <= end => {
                    self.pass_time(at);
                    self.leader_wakes();
                }
                _ => break,
            }
        }
        self.pass_time(end);
    }

    fn pass_time(&mut self, to: Timestamp) {
        self.hand.advance(to.since(self.now));
        self.now = self.now.max(to);
    }

    fn happen(&mut self, due: Due) {
        match due {
            Due::Received(node, boot, request) => self.leader_hears(node, boot, request),
            Due::Answered(node, boot, answer) => self.host_hears(node, boot, answer),
            Due::Pass(term) => self.pass_is_due(term),
            Due::Written(term) => self.write_is_done(term),
            Due::Tell(term, node) => self.tell(term, node),
            Due::Lead(term) => self.lead(term),
            Due::Session(node, boot, timer) => self.session_is_due(node, boot, timer),
            Due::Report(node, boot) => self.report(node, boot),
            Due::Call(node, boot, task, call) => self.call_ends(node, boot, task, call),
            Due::Exit(node, task, token) => self.container_ends(node, task, token),
        }
    }

    /// Appends to the log; the leader learns what it did.
    pub fn commit(&mut self, who: &'static str, now: Timestamp, changes: Vec<Change>) -> Applied {
        let applied = self.log.commit(self.now, who, (now, changes));
        self.leader_learns(&applied.events);
        applied
    }

    /// Writes as a client of the leader does; nothing without a leader.
    pub fn write(&mut self, changes: Vec<Change>) {
        if self.leader.is_some() {
            self.commit("api", self.now, changes);
        }
    }

    /// Notes what happened.
    pub fn say(&mut self, text: String) {
        self.log.say(self.now, text);
    }

    /// Sends what a node says. A node's boot says which of its daemons did.
    pub fn request(&mut self, node: NodeId, boot: u64, request: Request) {
        // A connection delivers a request once; what may be sent again can come twice.
        let once = matches!(request, Request::Register(..));
        let mut deliveries = self.deliveries(node);
        deliveries.truncate(if once { 1 } else { usize::MAX });
        for delay in deliveries {
            self.after(delay, Due::Received(node, boot, request.clone()));
        }
    }

    /// Sends an answer to a request.
    pub fn answer(&mut self, node: NodeId, boot: u64, answer: Answer) {
        for delay in self.deliveries(node) {
            self.after(delay, Due::Answered(node, boot, answer.clone()));
        }
    }

    /// Sends a message of a stream: in order, but for the faults; a loss breaks the stream.
    pub fn stream(
        &mut self,
        node: NodeId,
        boot: u64,
        (stream, last): ((u64, u64), Timestamp),
        message: Answer,
    ) -> Timestamp {
        let deliveries = self.deliveries(node);
        if deliveries.is_empty() {
            let delay = self.random.millis(500, 5_000);
            let at = self.now.after(delay).max(last);
            self.at(at, Due::Answered(node, boot, Answer::Broken(stream)));
            return last;
        }
        let begins = match &message {
            Answer::Assignments(_, message) => message.applies_to.is_empty(),
            Answer::Session(..)
            | Answer::Refused(_)
            | Answer::Period(..)
            | Answer::Recorded(..)
            | Answer::Broken(_) => true,
        };
        let mut newest = last;
        for delay in deliveries {
            let mut at = self.now.after(delay);
            // The complete set says where the stream begins.
            if begins || !self.random.per_mille(self.faults.reordered) {
                at = at.max(last);
            }
            newest = newest.max(at);
            self.at(at, Due::Answered(node, boot, message.clone()));
        }
        newest
    }

    /// After how long a message arrives, each time it does.
    fn deliveries(&mut self, node: NodeId) -> Vec<Duration> {
        let cut = self.hosts.get(&node).is_none_or(|host| host.cut_off);
        if cut || self.random.per_mille(self.faults.lost) {
            return Vec::new();
        }
        let copies = 1 + usize::from(self.random.per_mille(self.faults.doubled));
        (0..copies)
            .map(|_| {
                if self.random.per_mille(self.faults.late) {
                    self.random.millis(50, Faults::LATE_MS)
                } else {
                    self.random.millis(0, 10)
                }
            })
            .collect()
    }
}
