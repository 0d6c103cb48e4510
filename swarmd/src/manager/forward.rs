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
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use futures::future::Either;
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use swarm_proto::id::NodeId;
use swarm_proto::time::Timestamp;
use tokio::sync::Semaphore;
use tonic::Status;
use tonic::body::Body;
use tonic::metadata::{MetadataMap, MetadataValue};
use tonic::transport::Channel;
use tower::{Layer, Service, ServiceExt as _};

use super::authorize::{Caller, Who, is_leaders};
use super::raft::{Leadership, Member, RaftId, Whereabouts};
use super::server::MESSAGE_MAX;
use super::serving::Serving;
use super::stale::{self, Stale};
use super::strangers::{NotNow, Place as StrangersPlace, Strangers};
use crate::ca::{ConnectError, SecurityConfig, connect_lazy_to};
use crate::clock::Clock;

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
/// The same for who has no certificate, and might hold places that others wait for.
const ANONYMOUS_LIMIT: Duration = Duration::from_secs(4);
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
    serving: Serving,
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
    /// Of these, what each address has.
    strangers: Mutex<Strangers>,
}

impl Room {
    fn new() -> Self {
        Self {
            operators: Semaphore::new(HELD_MAX),
            nodes: Semaphore::new(HELD_MAX),
            heartbeats: Semaphore::new(SMALL_HELD_MAX),
            anonymous: Semaphore::new(SMALL_HELD_MAX),
            strangers: Mutex::default(),
        }
    }

    /// What somebody without a certificate takes of what its address may have; nothing, of anyone else.
    fn share_of(&self, caller: &Caller, clock: &Clock) -> Result<Option<Share<'_>>, NotNow> {
        let Some(from) = caller.remote.filter(|_| caller.is_anonymous()) else {
            return Ok(None);
        };
        let admitted = lock(&self.strangers).admit(from.ip(), clock.monotonic());
        admitted.map(|place| {
            Some(Share {
                strangers: &self.strangers,
                place,
            })
        })
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

/// What a request takes of what its address may have; given back when dropped.
struct Share<'a> {
    strangers: &'a Mutex<Strangers>,
    place: StrangersPlace,
}

impl Drop for Share<'_> {
    fn drop(&mut self) {
        lock(self.strangers).leave(self.place);
    }
}

fn lock(strangers: &Mutex<Strangers>) -> MutexGuard<'_, Strangers> {
    // Nothing panics while the lock is held.
    strangers.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A connection to one leader. It reconnects by itself.
#[derive(Clone)]
struct Route {
    leader: RaftId,
    member: Member,
    /// Which of its addresses.
    address: String,
    /// The end of the certificate that this manager showed there. The leader goes by it for as long as the connection
    /// lasts, so after a renewal another one is made.
    shown: Timestamp,
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
        serving: Serving,
        whereabouts: Arc<Whereabouts>,
    ) -> Self {
        Self {
            own,
            security,
            serving,
            whereabouts,
            route: Mutex::new(None),
            room: Room::new(),
        }
    }

    fn leads(&self) -> bool {
        matches!(
            *self.serving.leadership().borrow(),
            Leadership::Leader { .. }
        )
    }

    /// Who answers a request of this caller, once that is known.
    async fn place(&self, caller: &Caller) -> Result<Place, Status> {
        let now = self.leader().await?;
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

    /// Who leads, once somebody does that is heard here.
    async fn leader(&self) -> Result<Leadership, Status> {
        let clock = self.security.clock();
        let until = clock.monotonic().after(LEADER_WAIT);
        let mut leadership = self.serving.leadership();
        loop {
            leadership.mark_unchanged();
            let now = self.serving.leader();
            if now != Leadership::None {
                return Ok(now);
            }
            if clock.monotonic() >= until {
                return Err(no_leader());
            }
            // That a leader is heard again announces itself by no event.
            if let Ok(Err(_)) = clock.timeout(AGAIN, leadership.changed()).await {
                return Err(Status::unavailable("this manager is shutting down"));
            }
        }
    }

    fn route_to(&self, leader: RaftId, member: Member) -> Result<Route, Status> {
        let address = self.whereabouts.next(&member).ok_or_else(|| {
            Status::unavailable(format!(
                "the leader, node {}, has no address",
                member.node_id
            ))
        })?;
        let shown = self.security.identity().not_after();
        let mut route = self.route.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = &*route
            && (known.leader, &known.address, known.shown) == (leader, &address, shown)
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
        // Before the connection: what it shows may be newer, never older.
        let shown = self.security.identity().not_after();
        let channel = connect_lazy_to(node, &address, &self.security)
            .map_err(|e| Status::unavailable(e.to_string()))?;
        Ok(Route {
            leader,
            member,
            address,
            shown,
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
        // Before it waits with the others: who waits has its place there too.
        let _share = match self.room.share_of(caller, clock) {
            Ok(share) => share,
            Err(full) => {
                let refused = Status::resource_exhausted(full.to_string());
                return Ok(refused.into_http());
            }
        };
        // The semaphore is never closed.
        let Ok(_place) = clock.timeout(ROOM_WAIT, room.acquire()).await else {
            return Ok(turn_away(Status::resource_exhausted(
                "this manager has too many requests of this kind at once; try again, or ask another manager",
            ))
            .into_http());
        };
        let whole = Limited::new(body, limit).collect();
        let within = match caller.is_anonymous() {
            true => ANONYMOUS_LIMIT,
            false => REQUEST_LIMIT,
        };
        let whole = match clock.timeout(within, whole).await {
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
            let mut leadership = self.serving.leadership();
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

/// Of somebody without a certificate who asks here: the leader too gives them little room. What a manager sends on has been
/// through that manager's.
fn is_strangers<B>(request: &http::Request<B>) -> bool {
    let caller = request.extensions().get::<Caller>();
    caller.is_some_and(|caller| caller.is_anonymous() && !caller.redirected)
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
            Some(forwarder)
                if is_leaders(request.uri().path())
                    && (!forwarder.leads() || is_strangers(&request)) =>
            {
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

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use swarm_proto::id::ClusterId;
    use tokio::sync::watch;

    use super::*;
    use crate::ca::testing::{NOW, TestCa};
    use crate::ca::{PeerIdentity, Role};
    use crate::clock::Clock;
    use crate::manager::serving::testing::Ago;
    use crate::manager::strangers::PER_ADDRESS_MAX;

    fn forwarder(security: SecurityConfig) -> Forwarder {
        let (_, leads) = watch::channel(Leadership::Leader { term: 1 });
        let just_now = Ago(Some(Duration::ZERO), Some(Duration::ZERO));
        let serving = Serving::new(leads, just_now, Duration::ZERO);
        let whereabouts = Whereabouts::new(Vec::new());
        Forwarder::new(NodeId::from_raw(1), security, serving, whereabouts)
    }

    #[tokio::test]
    async fn a_renewed_certificate_is_shown_to_the_leader() {
        let (clock, _hand) = Clock::manual(NOW);
        let ca = TestCa::new(1);
        let brief = ca.identity_for(1, Role::Manager, Duration::from_secs(3600));
        let security = SecurityConfig::new(brief.clone(), clock).unwrap();
        let forwarder = forwarder(security.clone());
        let leader = Member {
            node_id: NodeId::from_raw(2).to_string(),
            addresses: vec!["127.0.0.1:1".to_owned()],
        };
        let shown = || forwarder.route_to(2, leader.clone()).unwrap().shown;
        assert_eq!(shown(), brief.not_after());
        let renewed = ca.identity(1, Role::Manager);
        security.update(renewed.clone()).unwrap();
        assert_eq!(shown(), renewed.not_after());
    }

    /// On a leader.
    fn layer(clock: Clock) -> ForwardLayer {
        let identity = TestCa::new(1).identity(1, Role::Manager);
        let forwarder = forwarder(SecurityConfig::new(identity, clock).unwrap());
        ForwardLayer {
            forwarder: Some(Arc::new(forwarder)),
            stale: None,
        }
    }

    /// What becomes of a request.
    async fn answer(layer: &ForwardLayer, caller: Caller, body: Body) -> String {
        let here = tower::service_fn(async |_: http::Request<Body>| {
            Ok::<_, Infallible>(http::Response::new(Body::empty()))
        });
        let mut request = http::Request::new(body);
        let path = "/docker.swarmkit.v1.NodeCA/IssueNodeCertificate";
        *request.uri_mut() = path.parse().unwrap();
        request.extensions_mut().insert(caller);
        let answer = layer.layer(here).oneshot(request).await.unwrap();
        let status = Status::from_header_map(answer.headers());
        status.map_or("answered".to_owned(), |status| {
            format!("{:?}: {}", status.code(), status.message())
        })
    }

    fn caller(who: Who) -> Caller {
        Caller {
            who,
            remote: None,
            forwarded_by: None,
            redirected: false,
        }
    }

    /// What becomes on the leader of a request with so many bytes.
    async fn asked(who: Who, redirected: bool, bytes: usize) -> String {
        let (clock, _hand) = Clock::manual(NOW);
        let caller = Caller {
            redirected,
            ..caller(who)
        };
        let body = Body::new(Full::new(vec![0; bytes].into()));
        answer(&layer(clock), caller, body).await
    }

    #[tokio::test]
    async fn one_address_does_not_fill_the_room_of_all_strangers() {
        let (clock, hand) = Clock::manual(NOW);
        let layer = layer(clock);
        let from = |addr: &str| Caller {
            remote: Some(addr.parse().unwrap()),
            ..caller(Who::Nobody { presented: None })
        };
        // Requests that never come in, from one address over several connections.
        let silent = || {
            let never =
                futures::stream::pending::<Result<hyper::body::Frame<bytes::Bytes>, Status>>();
            Body::new(http_body_util::StreamBody::new(never))
        };
        let mut flood = tokio::task::JoinSet::new();
        for port in 1..=2 * SMALL_HELD_MAX {
            let caller = from(&format!("10.0.0.1:{port}"));
            let (layer, body) = (layer.clone(), silent());
            flood.spawn(async move { answer(&layer, caller, body).await });
        }
        // What has no place hears so at once.
        for _ in PER_ADDRESS_MAX..2 * SMALL_HELD_MAX {
            let refused = flood.join_next().await.unwrap().unwrap();
            assert!(
                refused.starts_with("ResourceExhausted: 10.0.0.1 has"),
                "{refused}"
            );
            assert!(refused.contains("come back in 5 s"), "{refused}");
        }
        let other = answer(&layer, from("10.0.0.2:1"), Body::empty()).await;
        assert_eq!(other, "answered");
        // Nodes are no strangers, wherever they are.
        let node = Caller {
            who: Who::Local,
            ..from("10.0.0.1:1")
        };
        assert_eq!(answer(&layer, node, Body::empty()).await, "answered");
        // The flood has had its time; its places are given back.
        hand.advance(ANONYMOUS_LIMIT);
        while let Some(ended) = flood.join_next().await {
            let ended = ended.unwrap();
            assert!(ended.starts_with("DeadlineExceeded"), "{ended}");
        }
        let later = answer(&layer, from("10.0.0.1:1"), Body::empty()).await;
        assert_eq!(later, "answered");
    }

    #[tokio::test]
    async fn the_leader_too_holds_little_of_those_without_a_certificate() {
        let nobody = || Who::Nobody { presented: None };
        let node = Who::Node(PeerIdentity {
            node_id: NodeId::from_raw(2),
            role: Role::Worker,
            cluster_id: ClusterId::from_raw(1),
            not_after: Timestamp::MAX,
        });
        let large = SMALL_BYTES_MAX + 1;
        let refused = asked(nobody(), false, large).await;
        assert!(refused.contains("larger than 65536 bytes"), "{refused}");
        assert_eq!(asked(nobody(), false, SMALL_BYTES_MAX).await, "answered");
        // That was another manager's to bound.
        assert_eq!(asked(nobody(), true, large).await, "answered");
        assert_eq!(asked(node, false, large).await, "answered");
    }
}
