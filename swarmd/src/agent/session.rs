//! The agent's session with a manager: registers, beats, and receives assignments.
//!
//! Any manager will do: one that does not lead forwards. Whatever goes wrong ends the session, and
//! after a pause the next manager is asked; the tasks of this node go on meanwhile. A session that
//! ended because the connection did is gone on with where the manager still knows it.

use std::sync::Arc;
use std::time::Duration;

use agent_runtime::Executor;
use swarm_proto::id::TaskId;
use swarm_proto::pb;
use swarm_proto::pb::assignment_change::AssignmentAction;
use swarm_proto::pb::assignments_message::Type;
use swarm_proto::pb::dispatcher_client::DispatcherClient;
use swarm_proto::time::duration_from_wire;
use tokio::sync::{mpsc, watch};
use tonic::transport::Channel;
use tonic::{Code, Status, Streaming};

use super::assigned::{Message, Task};
use super::managers::{self, Managers};
use super::reporter::{Link, Statuses};
use super::storage::Storage;
use super::worker::{Command, id_of};
use super::{AgentStatus, Connect};
use crate::clock::{Clock, Elapsed};

/// Time for a request that is answered from memory (SwarmKit's).
const REQUEST_LIMIT: Duration = Duration::from_secs(5);
/// Time for a look at what tasks take: a beat must not wait for it.
const USAGE_LIMIT: Duration = Duration::from_secs(1);
/// Time for registering, which waits for a write of the managers.
const REGISTER_LIMIT: Duration = Duration::from_secs(10);
/// Period of beats until the manager says one (SwarmKit's).
const PERIOD_DEFAULT: Duration = Duration::from_secs(5);
/// How often the node looks at itself (SwarmKit's).
const DESCRIBE_PERIOD: Duration = Duration::from_secs(20);
/// Pause before the node says that its certificate or its roots changed: in a change of root both do, one after the other,
/// and managers bound how often a node may register.
const TLS_PAUSE: Duration = Duration::from_secs(1);
/// Largest message taken. A manager sends about 1 MiB; one task more has to fit.
const MESSAGE_BYTES_MAX: usize = 16 << 20;

/// Keeps a session for as long as it is polled.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) connector: Arc<dyn Connect>,
    pub(super) executor: Arc<dyn Executor>,
    pub(super) hostname: String,
    pub(super) clock: Clock,
    pub(super) storage: Arc<Storage>,
    pub(super) statuses: Arc<Statuses>,
    pub(super) managers: Managers,
    /// What the node said of itself last.
    pub(super) description: Option<pb::NodeDescription>,
    pub(super) worker: mpsc::Sender<Command>,
    pub(super) link: watch::Sender<Option<Link>>,
    pub(super) notices: watch::Sender<Option<Arc<pb::SessionMessage>>>,
    pub(super) status: watch::Sender<AgentStatus>,
}

impl Drop for Session {
    fn drop(&mut self) {
        self.link.send_replace(None);
        self.status.send_modify(|s| s.manager_addr = None);
    }
}

/// How a session ended.
#[derive(Debug, thiserror::Error)]
enum End {
    /// The manager, or the way to it.
    #[error("{}", told(.0))]
    Request(#[from] Status),
    /// No answer in time.
    #[error(transparent)]
    Silence(#[from] Elapsed),
    /// No connection.
    #[error(transparent)]
    Connect(#[from] crate::ca::ConnectError),
    /// The manager closed a stream.
    #[error("the manager closed the stream of {0}")]
    Closed(&'static str),
    /// Messages were lost.
    #[error("an assignment message applies to {applies_to:?}, and the last one led to {at:?}")]
    Gap { applies_to: String, at: String },
    /// The node is not what it was.
    #[error("the description of the node changed")]
    Changed,
    /// The runtime can't be described.
    #[error("the runtime can't be described: {0}")]
    Runtime(#[from] agent_runtime::Error),
    /// The agent stops.
    #[error("the agent stops")]
    Stopped,
}

/// What a manager said, or that the way to it broke: gRPC's own words say little to an operator.
fn told(status: &Status) -> String {
    match std::error::Error::source(status) {
        Some(_) => "the connection broke".to_owned(),
        None => status.message().to_owned(),
    }
}

impl End {
    /// Whether the manager may still know the session.
    fn resumable(&self) -> bool {
        match self {
            Self::Request(status) => matches!(
                status.code(),
                Code::Unavailable | Code::Unknown | Code::Cancelled | Code::DeadlineExceeded
            ),
            Self::Silence(_) | Self::Connect(_) | Self::Closed(_) => true,
            Self::Gap { .. } | Self::Changed | Self::Runtime(_) | Self::Stopped => false,
        }
    }
}

type Client = DispatcherClient<Channel>;

impl Session {
    /// Keeps a session until it is dropped.
    pub(super) async fn run(mut self) {
        let mut pause = Duration::ZERO;
        let mut resume = String::new();
        let mut last = String::new();
        loop {
            let Some(addr) = self.managers.next() else {
                // Not joined to anybody: the node says so itself.
                return std::future::pending().await;
            };
            let mut known = resume.clone();
            let end = self.attempt(&addr, &mut known).await;
            let registered = self.link.send_replace(None).is_some();
            self.status.send_modify(|s| s.manager_addr = None);
            if registered {
                pause = Duration::ZERO;
                tracing::info!(manager = %addr, reason = %end, "session ended");
            } else {
                // Said once; the same reason again is no news.
                let reason = end.to_string();
                if reason == last {
                    tracing::debug!(manager = %addr, reason, "no session");
                } else {
                    tracing::warn!(manager = %addr, reason, "no session with a manager; tasks go on");
                    last = reason;
                }
            }
            resume = if end.resumable() {
                known
            } else {
                String::new()
            };
            if matches!(end, End::Changed) {
                continue;
            }
            pause = managers::backoff(pause);
            let wait = self.managers.jitter(pause);
            self.clock.sleep(wait).await;
        }
    }

    /// One session, from connecting to its end. `resume` is the id of the last one, and becomes this
    /// one's.
    async fn attempt(&mut self, addr: &str, resume: &mut String) -> End {
        match self.try_session(addr, resume).await {
            Ok(never) => match never {},
            Err(end) => end,
        }
    }

    async fn try_session(
        &mut self,
        addr: &str,
        resume: &mut String,
    ) -> Result<std::convert::Infallible, End> {
        let description = self.describe().await?;
        let limit = REQUEST_LIMIT;
        let connecting = self.connector.connect(addr);
        let channel = self.clock.timeout(limit, connecting).await??;
        let mut client =
            DispatcherClient::new(channel.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX);
        // The session that the manager knows is of the node as it was.
        let same = self.description.as_ref() == Some(&description);
        let known = if same { resume.as_str() } else { "" };
        let registering = register(&mut client, &description, known);
        let (first, stream) = self.clock.timeout(REGISTER_LIMIT, registering).await??;
        let session = first.session_id.clone();
        resume.clone_from(&session);
        tracing::info!(manager = %addr, "session with a manager");
        self.description = Some(description.clone());
        self.keep_description(description).await;
        self.heard(first).await;
        let link = Link {
            channel,
            addr: addr.to_owned(),
            session: session.clone(),
        };
        self.status
            .send_modify(|s| s.manager_addr = Some(addr.to_owned()));
        self.link.send_replace(Some(link));
        self.statuses.resend_all();

        let executor = Arc::clone(&self.executor);
        let beat = beat(
            client.clone(),
            session.clone(),
            executor,
            self.clock.clone(),
        );
        let assignments = assignments(client, session, self.worker.clone(), self.clock.clone());
        let (heard, mut hears) = mpsc::channel(1);
        let listen = listen(stream, heard);
        let mut beat = std::pin::pin!(beat);
        let mut assignments = std::pin::pin!(assignments);
        let mut listen = std::pin::pin!(listen);
        let mut look_at = self.clock.monotonic().after(DESCRIBE_PERIOD);
        let (connector, clock) = (Arc::clone(&self.connector), self.clock.clone());
        let told = self.description.as_ref().and_then(|d| d.tls_info.clone());
        let tls = async move {
            connector.tls_differs(told.as_ref()).await;
            clock.sleep(TLS_PAUSE).await;
        };
        let mut tls = std::pin::pin!(tls);
        loop {
            tokio::select! {
                biased;
                ended = &mut beat => return ended,
                ended = &mut listen => return ended,
                Some(message) = hears.recv() => self.heard(message).await,
                ended = &mut assignments => return ended,
                () = &mut tls => return Err(End::Changed),
                () = self.clock.sleep_until(look_at) => {
                    self.look().await?;
                    look_at = self.clock.monotonic().after(DESCRIBE_PERIOD);
                }
            }
        }
    }

    /// What the node says of itself: the runtime's word, host name, TLS facts. While the runtime is
    /// away, what it said last.
    async fn describe(&self) -> Result<pb::NodeDescription, End> {
        let described = self.clock.timeout(REQUEST_LIMIT, self.executor.describe());
        let mut description = match (described.await, &self.description) {
            (Ok(Ok(description)), _) => description,
            (Ok(Err(error)), Some(last)) => {
                tracing::warn!(%error, "the node describes itself as it did last");
                last.clone()
            }
            (Err(_), Some(last)) => last.clone(),
            (Ok(Err(error)), None) => return Err(error.into()),
            (Err(elapsed), None) => return Err(elapsed.into()),
        };
        description.hostname.clone_from(&self.hostname);
        description.tls_info = self.connector.tls_info();
        Ok(description)
    }

    /// Ends the session when the node is not what it was, so that the next one says what it is.
    async fn look(&self) -> Result<(), End> {
        let now = self.describe().await?;
        if self.description.as_ref() == Some(&now) {
            return Ok(());
        }
        Err(End::Changed)
    }

    async fn keep_description(&self, description: pb::NodeDescription) {
        let storage = Arc::clone(&self.storage);
        keep(move || storage.put_description(&description)).await;
    }

    /// The managers say who they are, what this node should be, and whom to trust.
    async fn heard(&mut self, message: pb::SessionMessage) {
        let news = self
            .notices
            .borrow()
            .as_ref()
            .is_none_or(|last| last.managers != message.managers);
        if news && !message.managers.is_empty() {
            self.managers.learn(&message.managers);
            let (storage, managers) = (Arc::clone(&self.storage), message.managers.clone());
            keep(move || storage.put_managers(&managers)).await;
        }
        self.notices.send_replace(Some(Arc::new(message)));
    }
}

/// Writes what is good to have after a restart, and no more than that.
async fn keep(write: impl FnOnce() -> Result<(), super::storage::StorageError> + Send + 'static) {
    if let Ok(Err(error)) = tokio::task::spawn_blocking(write).await {
        tracing::warn!(%error, "what the next run would start from is not saved");
    }
}

async fn register(
    client: &mut Client,
    description: &pb::NodeDescription,
    resume: &str,
) -> Result<(pb::SessionMessage, Streaming<pb::SessionMessage>), End> {
    let request = pb::SessionRequest {
        description: Some(description.clone()),
        session_id: resume.to_owned(),
    };
    let mut stream = client.session(request).await?.into_inner();
    let first = stream.message().await?.ok_or(End::Closed("the session"))?;
    Ok((first, stream))
}

type Never = Result<std::convert::Infallible, End>;

/// Beats at once, then at the period the manager names; says what the tasks take.
async fn beat(
    mut client: Client,
    session: String,
    executor: Arc<dyn Executor>,
    clock: Clock,
) -> Never {
    loop {
        let request = pb::HeartbeatRequest {
            session_id: session.clone(),
            usage: clock
                .timeout(USAGE_LIMIT, executor.usage())
                .await
                .unwrap_or_default(),
        };
        let answer = clock.timeout(REQUEST_LIMIT, client.heartbeat(request));
        let period = answer.await??.into_inner().period;
        let period = period.and_then(|p| duration_from_wire(&p));
        clock.sleep(period.unwrap_or(PERIOD_DEFAULT)).await;
    }
}

async fn listen(
    mut stream: Streaming<pb::SessionMessage>,
    heard: mpsc::Sender<pb::SessionMessage>,
) -> Never {
    loop {
        let message = stream.message().await?.ok_or(End::Closed("the session"))?;
        heard.send(message).await.map_err(|_| End::Stopped)?;
    }
}

/// Hands assignments to the worker: a complete set when it is complete.
async fn assignments(
    mut client: Client,
    session: String,
    worker: mpsc::Sender<Command>,
    clock: Clock,
) -> Never {
    let request = pb::AssignmentsRequest {
        session_id: session,
        accepts_parts: true,
    };
    let opening = clock.timeout(REQUEST_LIMIT, client.assignments(request));
    let mut stream = opening.await??.into_inner();
    let mut at = String::new();
    let mut parts: Vec<Task> = Vec::new();
    loop {
        let message = stream.message().await?.ok_or(End::Closed("assignments"))?;
        if !message.applies_to.is_empty() && message.applies_to != at {
            let applies_to = message.applies_to;
            return Err(End::Gap { applies_to, at });
        }
        at.clone_from(&message.results_in);
        let (kind, more) = (message.r#type(), message.more);
        let (update, remove) = changes(message);
        let message = match kind {
            Type::Complete => {
                parts.extend(update);
                if more {
                    continue;
                }
                Message::Complete(std::mem::take(&mut parts))
            }
            Type::Incremental => Message::Incremental { update, remove },
        };
        let command = Command::Assign(message);
        worker.send(command).await.map_err(|_| End::Stopped)?;
    }
}

fn changes(message: pb::AssignmentsMessage) -> (Vec<Task>, Vec<TaskId>) {
    let (mut update, mut remove) = (Vec::with_capacity(message.changes.len()), Vec::new());
    for change in message.changes {
        let action = change.action();
        let item = change.assignment.and_then(|assignment| assignment.item);
        match (item, action) {
            (Some(pb::assignment::Item::Task(task)), AssignmentAction::Update) => {
                update.extend(id_of(&task).map(|id| (id, Arc::new(task))));
            }
            (Some(pb::assignment::Item::Task(task)), AssignmentAction::Remove) => {
                remove.extend(id_of(&task));
            }
            // Tasks that need these are refused where their container is made.
            (
                Some(
                    pb::assignment::Item::Secret(_)
                    | pb::assignment::Item::Config(_)
                    | pb::assignment::Item::Volume(_),
                )
                | None,
                _,
            ) => {}
        }
    }
    (update, remove)
}
