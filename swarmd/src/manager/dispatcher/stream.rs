//! A node's streams: assignments and session.
//!
//! A stream is polled by its connection: the next message is made when the connection has room for
//! it, from the newest state. So there is no task and no queue per node, a slow node holds back
//! nobody, and what happened meanwhile comes in one message.

use std::collections::BTreeSet;
use std::pin::Pin;
use std::sync::Arc;

use futures::{Stream, stream};
use swarm_proto::id::{NodeId, TaskId};
use swarm_proto::pb;
use swarm_proto::pb::assignments_message::Type;
use tokio::sync::watch;
use tokio::time::Instant;
use tonic::Status;

use super::Term;
use super::assignments::{self, PART_BYTES, Sent};
use super::router::{Interest, Registration};
use super::sessions::Session;
use crate::ca::roots;
use crate::manager::convert::{TaskRenderer, node_to_wire};
use crate::manager::store::State;

/// A stream of messages to a node.
pub(super) type Messages<M> = Pin<Box<dyn Stream<Item = Result<M, Status>> + Send>>;

/// How the complete set is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Parts {
    /// In one message, however large: SwarmKit's agents remove what is not in the first.
    One,
    /// In messages of about [`PART_BYTES`].
    Many,
}

/// Ends a stream whose session is over. The agent registers again.
fn over() -> Status {
    Status::aborted("the session is over")
}

/// One node's assignments.
pub(super) fn assignments(
    term: Arc<Term>,
    node: NodeId,
    session: Session,
    parts: Parts,
) -> Messages<pb::AssignmentsMessage> {
    let registration = term.router.register(node, Interest::Tasks);
    // Read after registering: what changes from here on is in the mailbox.
    let todo = Sent::default().candidates(&term.store.view(), node);
    let assignments = Assignments {
        term,
        node,
        session,
        registration,
        sent: Sent::default(),
        todo,
        since: None,
        phase: Phase::Complete(parts),
        sequence: 0,
    };
    Box::pin(stream::unfold(Some(assignments), |assignments| async {
        let mut assignments = assignments?;
        match assignments.next().await {
            Some(message) => Some((Ok(message), Some(assignments))),
            None => Some((Err(over()), None)),
        }
    }))
}

#[derive(Debug)]
enum Phase {
    Complete(Parts),
    Incremental,
}

#[derive(Debug)]
struct Assignments {
    term: Arc<Term>,
    node: NodeId,
    session: Session,
    registration: Registration,
    sent: Sent,
    /// What has to be looked at.
    todo: BTreeSet<TaskId>,
    /// Since when, where that is because of commits.
    since: Option<Instant>,
    phase: Phase,
    sequence: u64,
}

impl Assignments {
    /// The next message; none when the session is over.
    async fn next(&mut self) -> Option<pb::AssignmentsMessage> {
        loop {
            if self.session.closed.is_cancelled() {
                return None;
            }
            if let Phase::Complete(parts) = self.phase {
                return Some(self.complete(parts));
            }
            if let Some(message) = self.incremental() {
                return Some(message);
            }
            tokio::select! {
                biased;
                () = self.session.closed.cancelled() => return None,
                () = self.registration.mailbox.arrived() => {}
            }
        }
    }

    /// What changed; none when that is nothing to the node. Not part of the waiting: a state that
    /// is held keeps all that has been replaced since.
    fn incremental(&mut self) -> Option<pb::AssignmentsMessage> {
        let state = self.term.store.view();
        let pending = self.registration.mailbox.take();
        self.todo.extend(pending.tasks);
        self.since = self.since.or(pending.since);
        if pending.everything {
            self.todo.extend(self.sent.candidates(&state, self.node));
        }
        loop {
            let changes = self.part(&state, PART_BYTES);
            if !changes.is_empty() {
                self.taken();
                return Some(self.message(Type::Incremental, changes));
            }
            if self.todo.is_empty() {
                // Nothing of it concerned this node.
                self.since = None;
                return None;
            }
        }
    }

    /// The connection takes news: with the last of them, counts how long that took.
    fn taken(&mut self) {
        if let Some(since) = self.since.take_if(|_| self.todo.is_empty()) {
            let latencies = self.term.store.latencies();
            latencies.assignment.record(since.elapsed());
        }
    }

    fn complete(&mut self, parts: Parts) -> pb::AssignmentsMessage {
        let limit = match parts {
            Parts::One => usize::MAX,
            Parts::Many => PART_BYTES,
        };
        let changes = self.part(&self.term.store.view(), limit);
        let mut message = self.message(Type::Complete, changes);
        message.more = !self.todo.is_empty();
        if !message.more {
            self.phase = Phase::Incremental;
        }
        message
    }

    fn part(&mut self, state: &State, limit: usize) -> Vec<pb::AssignmentChange> {
        let at = (state, self.node);
        assignments::next_part(&mut self.sent, &mut self.todo, at, limit)
    }

    fn message(
        &mut self,
        kind: Type,
        changes: Vec<pb::AssignmentChange>,
    ) -> pb::AssignmentsMessage {
        let applies_to = match self.sequence {
            0 => String::new(),
            sequence => sequence.to_string(),
        };
        self.sequence += 1;
        pb::AssignmentsMessage {
            r#type: kind.into(),
            applies_to,
            results_in: self.sequence.to_string(),
            changes,
            more: false,
        }
    }
}

/// All of a node's tasks after each change of them: what agents older than assignments ask for.
pub(super) fn tasks(term: Arc<Term>, node: NodeId, session: Session) -> Messages<pb::TasksMessage> {
    let registration = term.router.register(node, Interest::Tasks);
    let start = Some((term, session, registration, None::<Sent>));
    Box::pin(stream::unfold(start, move |lists| async move {
        let (term, session, registration, mut sent) = lists?;
        loop {
            registration.mailbox.take();
            if let Some(message) = news(&term.store.view(), node, &mut sent) {
                return Some((Ok(message), Some((term, session, registration, sent))));
            }
            tokio::select! {
                biased;
                () = session.closed.cancelled() => return Some((Err(over()), None)),
                () = registration.mailbox.arrived() => {}
            }
        }
    }))
}

/// The node's tasks, unless it was sent the same; what it was sent is brought up to date.
fn news(state: &State, node: NodeId, sent: &mut Option<Sent>) -> Option<pb::TasksMessage> {
    let first = sent.is_none();
    let news = assignments::diff(sent.get_or_insert_default(), state, node);
    (first || !news.is_empty()).then(|| list(state, node))
}

fn list(state: &State, node: NodeId) -> pb::TasksMessage {
    let mut renderer = TaskRenderer::new(state);
    let mut all = Sent::default();
    let tasks = assignments::diff(&mut all, state, node);
    let tasks = tasks.into_iter().filter_map(|delta| match delta {
        assignments::Delta::Update(id) => state.tasks.get(&id).map(|t| renderer.render(t)),
        assignments::Delta::Remove(_) => None,
    });
    pb::TasksMessage {
        tasks: tasks.collect(),
    }
}

/// One node's session: who the managers are, what the node should be, whom to trust.
pub(super) fn session(
    term: Arc<Term>,
    node: NodeId,
    session: Session,
) -> Messages<pb::SessionMessage> {
    let registration = term.router.register(node, Interest::Node);
    let stream = SessionStream {
        managers: term.managers.clone(),
        term,
        node,
        session,
        registration,
        last: None,
    };
    Box::pin(stream::unfold(Some(stream), |stream| async {
        let mut stream = stream?;
        match stream.next().await {
            Some(message) => Some((Ok(message), Some(stream))),
            None => Some((Err(over()), None)),
        }
    }))
}

#[derive(Debug)]
struct SessionStream {
    term: Arc<Term>,
    node: NodeId,
    session: Session,
    registration: Registration,
    managers: watch::Receiver<Vec<pb::WeightedPeer>>,
    last: Option<pb::SessionMessage>,
}

impl SessionStream {
    async fn next(&mut self) -> Option<pb::SessionMessage> {
        loop {
            if self.session.closed.is_cancelled() {
                return None;
            }
            if let Some(message) = self.news() {
                return Some(message);
            }
            tokio::select! {
                biased;
                () = self.session.closed.cancelled() => return None,
                () = self.registration.mailbox.arrived() => {}
                Ok(()) = self.managers.changed() => {}
            }
        }
    }

    /// The message, unless it says what the last one did. Not part of the waiting, so that neither
    /// the message nor the state is held.
    fn news(&mut self) -> Option<pb::SessionMessage> {
        self.registration.mailbox.take();
        let managers = self.managers.borrow_and_update().clone();
        let message = self.message(managers);
        let news = essence(&message);
        if self.last.as_ref() == Some(&news) {
            return None;
        }
        self.last = Some(news);
        Some(message)
    }

    fn message(&self, managers: Vec<pb::WeightedPeer>) -> pb::SessionMessage {
        let state = self.term.store.view();
        let cluster = state.cluster.as_deref();
        let roots = cluster.map(|c| roots::trusted(&c.root_ca));
        pb::SessionMessage {
            session_id: self.session.id.clone(),
            node: state
                .nodes
                .get(&self.node)
                .map(|n| node_to_wire(n, cluster)),
            managers,
            network_bootstrap_keys: Vec::new(),
            root_ca: roots.unwrap_or_default(),
        }
    }
}

/// A message without what the node itself is the source of: no news to it.
fn essence(message: &pb::SessionMessage) -> pb::SessionMessage {
    let mut essence = message.clone();
    if let Some(node) = &mut essence.node {
        node.meta = None;
        node.status = None;
        node.description = None;
    }
    essence
}
