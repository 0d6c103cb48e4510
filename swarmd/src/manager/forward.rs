//! Requests that another manager answers: sent on to the leader, whole and as they are.
//!
//! Invariants:
//! - One hop. A request that was sent on already is answered here or turned away, so two managers that each take the
//!   other for the leader send nothing around in circles.
//! - The caller stays who it is: its identity travels in metadata that count only from a manager
//!   ([`super::authorize`]). An operator's request goes as this manager's own.
//! - Nothing is done twice: a request goes again only where it can't have been carried out: no connection came about, or
//!   it was turned away ([`turn_away`]). While leadership changes hands a request waits so, instead of failing.

use std::fmt;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use futures::future::Either;
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use swarm_proto::id::NodeId;
use tokio::sync::{Semaphore, watch};
use tonic::Status;
use tonic::body::Body;
use tonic::metadata::{MetadataMap, MetadataValue};
use tonic::transport::Channel;
use tower::{Layer, Service, ServiceExt as _};

use super::authorize::{Caller, Who, is_leaders};
use super::raft::{Leadership, Member, RaftId, Whereabouts};
use super::server::MESSAGE_MAX;
use super::stale::{self, Stale};
use crate::ca::{ConnectError, SecurityConfig, connect_lazy_to};

/// How long a request waits for a leader: some elections.
const LEADER_WAIT: Duration = Duration::from_secs(5);

/// Bytes of a request that is sent on: a message and its frame.
const REQUEST_BYTES_MAX: usize = MESSAGE_MAX + 5;
/// The same for heartbeats, and for who has no certificate and asks for one.
const SMALL_BYTES_MAX: usize = 64 << 10;
/// Requests of operators, of nodes, and, of the small ones, heartbeats and of those who have no certificate yet, that are
/// held at one time; others wait. Each kind has room of its own: neither an operator whose requests take long nor statuses
/// that wait for the leader's disk keep a node from its heartbeats. At most 128 MiB for each of the first two, 16 MiB for
/// each of the others.
const HELD_MAX: usize = 32;
const SMALL_HELD_MAX: usize = 256;
/// How long a request waits for room: less than a node gives its heartbeat, so that it hears why.
const ROOM_WAIT: Duration = Duration::from_secs(4);
/// Time for a request to come in.
const REQUEST_LIMIT: Duration = Duration::from_secs(20);
/// Pause before a request goes again, where nothing has changed until then.
const AGAIN: Duration = Duration::from_millis(50);
/// Marks an answer that says: not carried out here, for this manager does not lead.
const TURNED_AWAY: &str = "swarm-turned-away";

/// Marks a refusal as one of a manager that does not lead and has done nothing.
pub(crate) fn turn_away(mut status: Status) -> Status {
    let mark = MetadataValue::from_static("1");
    status.metadata_mut().insert(TURNED_AWAY, mark);
    status
}

/// Sends requests on to the leader.
pub(crate) struct Forwarder {
    own: NodeId,
    security: SecurityConfig,
    leadership: watch::Receiver<Leadership>,
    whereabouts: Arc<Whereabouts>,
    /// The connection to the leader that was known last.
    route: Mutex<Option<Route>>,
    room: Room,
}

/// What keeps a node's session alive; small, and answered at once.
const HEARTBEAT: &str = "/docker.swarmkit.v1.Dispatcher/Heartbeat";

/// Places for requests that are held.
struct Room {
    operators: Semaphore,
    nodes: Semaphore,
    heartbeats: Semaphore,
    anonymous: Semaphore,
}

impl Room {
    fn new() -> Self {
        Self {
            operators: Semaphore::new(HELD_MAX),
            nodes: Semaphore::new(HELD_MAX),
            heartbeats: Semaphore::new(SMALL_HELD_MAX),
            anonymous: Semaphore::new(SMALL_HELD_MAX),
        }
    }

    /// The most bytes a request of this caller may have, and where it finds a place.
    fn of(&self, caller: &Caller, path: &str) -> (usize, &Semaphore) {
        match &caller.who {
            Who::Local => (REQUEST_BYTES_MAX, &self.operators),
            Who::Node(_) if path == HEARTBEAT => (SMALL_BYTES_MAX, &self.heartbeats),
            Who::Node(_) => (REQUEST_BYTES_MAX, &self.nodes),
            Who::Nobody { .. } => (SMALL_BYTES_MAX, &self.anonymous),
        }
    }
}

/// A connection to one leader. It reconnects by itself.
#[derive(Clone)]
struct Route {
    leader: RaftId,
    member: Member,
    /// Which of its addresses.
    address: String,
    channel: Channel,
}

/// Where a request is answered.
enum Place {
    Here,
    At(Route),
}

impl Forwarder {
    pub(crate) fn new(
        own: NodeId,
        security: SecurityConfig,
        leadership: watch::Receiver<Leadership>,
        whereabouts: Arc<Whereabouts>,
    ) -> Self {
        Self {
            own,
            security,
            leadership,
            whereabouts,
            route: Mutex::new(None),
            room: Room::new(),
        }
    }

    fn leads(&self) -> bool {
        matches!(*self.leadership.borrow(), Leadership::Leader { .. })
    }

    /// Who answers a request of this caller, once that is known.
    async fn place(&self, caller: &Caller) -> Result<Place, Status> {
        let mut leadership = self.leadership.clone();
        let known = leadership.wait_for(|now| match now {
            Leadership::None => false,
            Leadership::Leader { .. } | Leadership::Follower { .. } => true,
        });
        let known = self.security.clock().timeout(LEADER_WAIT, known).await;
        let now = match known {
            Ok(Ok(now)) => now.clone(),
            Ok(Err(_)) => return Err(Status::unavailable("this manager is shutting down")),
            Err(_) => return Err(no_leader()),
        };
        match now {
            Leadership::Leader { .. } => Ok(Place::Here),
            Leadership::Follower { .. } if caller.redirected => Err(turn_away(
                Status::unavailable("this manager does not lead any more; try again"),
            )),
            Leadership::Follower {
                leader,
                member: Some(member),
            } => Ok(Place::At(self.route_to(leader, member)?)),
            Leadership::Follower { member: None, .. } | Leadership::None => Err(no_leader()),
        }
    }

    fn route_to(&self, leader: RaftId, member: Member) -> Result<Route, Status> {
        let address = self.whereabouts.next(&member).ok_or_else(|| {
            Status::unavailable(format!(
                "the leader, node {}, has no address",
                member.node_id
            ))
        })?;
        let mut route = self.route.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = &*route
            && (known.leader, &known.address) == (leader, &address)
        {
            return Ok(known.clone());
        }
        let made = self.connect(leader, member, address)?;
        *route = Some(made.clone());
        Ok(made)
    }

    fn connect(&self, leader: RaftId, member: Member, address: String) -> Result<Route, Status> {
        let node = member.node_id.parse();
        let node = node.map_err(|_| Status::internal("the leader is no node"))?;
        let channel = connect_lazy_to(node, &address, &self.security)
            .map_err(|e| Status::unavailable(e.to_string()))?;
        Ok(Route {
            leader,
            member,
            address,
            channel,
        })
    }

    /// The leader did not answer on this route: the next request tries its next address.
    fn give_up(&self, failed: &Route) {
        self.whereabouts.failed(&failed.member, &failed.address);
        let mut route = self.route.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(now) = &*route
            && (now.leader, &now.address) == (failed.leader, &failed.address)
        {
            *route = None;
        }
    }

    /// Sends a request on, and gives back the leader's answer as it comes.
    async fn send(
        &self,
        route: Route,
        caller: &Caller,
        (mut parts, body): (http::request::Parts, Body),
    ) -> Result<http::Response<Body>, Status> {
        let mut metadata = MetadataMap::from_headers(std::mem::take(&mut parts.headers));
        caller.forward(self.own, &mut metadata);
        parts.headers = metadata.into_headers();
        let request = http::Request::from_parts(parts, body);
        let mut channel = route.channel.clone();
        let answered = match channel.ready().await {
            Ok(ready) => ready.call(request).await,
            Err(error) => Err(error),
        };
        answered.map_err(|error| {
            self.give_up(&route);
            match ConnectError::find(&error) {
                Some(reason) if reason.is_transient() => {
                    turn_away(Status::unavailable(reason.to_string()))
                }
                Some(reason) => Status::unavailable(reason.to_string()),
                None => Status::unavailable(
                    "the connection to the leader broke, and whether it has done what was asked is not known",
                ),
            }
        })
    }

    /// Has a request answered, here or by the leader; again while nobody has taken it, for some elections.
    async fn answer<S>(
        &self,
        inner: &mut S,
        caller: &Caller,
        request: http::Request<Body>,
    ) -> Result<http::Response<Body>, S::Error>
    where
        S: Service<http::Request<Body>, Response = http::Response<Body>>,
    {
        let clock = self.security.clock();
        let (parts, body) = request.into_parts();
        let (limit, room) = self.room.of(caller, parts.uri.path());
        // The semaphore is never closed.
        let Ok(_place) = clock.timeout(ROOM_WAIT, room.acquire()).await else {
            return Ok(turn_away(Status::resource_exhausted(
                "this manager has too many requests to send on to the leader; try again, or ask the leader",
            ))
            .into_http());
        };
        let whole = Limited::new(body, limit).collect();
        let whole = match clock.timeout(REQUEST_LIMIT, whole).await {
            Ok(Ok(whole)) => whole.to_bytes(),
            Ok(Err(error)) if error.is::<LengthLimitError>() => {
                let text = format!("the request is larger than {limit} bytes");
                return Ok(Status::out_of_range(text).into_http());
            }
            Ok(Err(_)) => return Ok(Status::aborted("the request was cut off").into_http()),
            Err(elapsed) => {
                let text = format!("the request did not come in: {elapsed}");
                return Ok(Status::deadline_exceeded(text).into_http());
            }
        };
        let until = clock.monotonic().after(LEADER_WAIT);
        loop {
            let mut leadership = self.leadership.clone();
            leadership.mark_unchanged();
            let again = (parts.clone(), Body::new(Full::new(whole.clone())));
            let answer = match self.place(caller).await {
                Ok(Place::Here) => {
                    let request = http::Request::from_parts(again.0, again.1);
                    std::future::poll_fn(|cx| inner.poll_ready(cx)).await?;
                    inner.call(request).await?
                }
                Ok(Place::At(route)) => {
                    let answered = self.send(route, caller, again).await;
                    answered.unwrap_or_else(Status::into_http)
                }
                Err(status) => return Ok(status.into_http()),
            };
            let turned_away = answer.headers().contains_key(TURNED_AWAY);
            if !turned_away || caller.redirected || clock.monotonic() >= until {
                return Ok(answer);
            }
            // The sender is there for as long as the manager; then the pause ends the wait.
            let _ = clock.timeout(AGAIN, leadership.changed()).await;
        }
    }
}

fn no_leader() -> Status {
    Status::unavailable(
        "the cluster has no leader: a majority of managers must be up and reach each other",
    )
}

impl fmt::Debug for Forwarder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Forwarder")
            .field("own", &self.own)
            .finish_non_exhaustive()
    }
}

/// Sends on what the leader answers, unless the caller takes what is here; stands behind [`super::authorize::AuthorizeLayer`], which says who calls.
#[derive(Debug, Clone)]
pub(crate) struct ForwardLayer {
    /// None on a worker, which has no leader to ask for others.
    pub(crate) forwarder: Option<Arc<Forwarder>>,
    /// Answers who takes what is here; none where nobody may ask for that.
    pub(crate) stale: Option<Stale>,
}

impl<S> Layer<S> for ForwardLayer {
    type Service = Forward<S>;

    fn layer(&self, inner: S) -> Forward<S> {
        Forward {
            inner,
            to: self.clone(),
        }
    }
}

/// See [`ForwardLayer`].
#[derive(Debug, Clone)]
pub(crate) struct Forward<S> {
    inner: S,
    to: ForwardLayer,
}

type Answer<E> = Pin<Box<dyn Future<Output = Result<http::Response<Body>, E>> + Send>>;

impl<S> Service<http::Request<Body>> for Forward<S>
where
    S: Service<http::Request<Body>, Response = http::Response<Body>> + Clone + Send + 'static,
    S::Future: Send,
{
    type Response = http::Response<Body>;
    type Error = S::Error;
    type Future = Either<S::Future, Answer<S::Error>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        if let Some(stale) = self.to.stale.as_ref().filter(|_| stale::is_asked(&request)) {
            let answer = stale.clone().answer(request);
            return Either::Right(Box::pin(async move { Ok(answer.await) }));
        }
        let forwarder = match &self.to.forwarder {
            Some(forwarder) if is_leaders(request.uri().path()) && !forwarder.leads() => {
                Arc::clone(forwarder)
            }
            Some(_) | None => return Either::Left(self.inner.call(request)),
        };
        // The one that was polled ready is the one to call.
        let fresh = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, fresh);
        Either::Right(Box::pin(async move {
            let Some(caller) = request.extensions().get::<Caller>().cloned() else {
                return Ok(
                    Status::internal("the server does not authorize this request").into_http(),
                );
            };
            forwarder.answer(&mut inner, &caller, request).await
        }))
    }
}
