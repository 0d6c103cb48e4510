//! The network between managers: the real gRPC messages of the real client and server, without sockets.
//!
//! A call is a connection of its own. What is sent over it arrives in order or not at all, as over TCP; what can happen to it
//! is delay, a stall until a partition heals, or a reset. Different calls overtake each other. A request that asks once
//! (votes) may arrive twice, the second time much later. Sending and arriving are moments at which a process may die.
//!
//! A manager's host has an address, which may become another one, and then somebody else's. Who dials it sees who is there,
//! as by a certificate; who is called sees who calls, and from where.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use futures::stream;
use harness::sim::random::Random;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::Frame;
use swarm_proto::id::{ClusterId, NodeId};
use swarm_proto::own::raft_server::RaftServer;
use swarm_proto::time::Timestamp;
use swarmd::ca::{PeerIdentity, Role};
use swarmd::clock::Clock;
use swarmd::manager::authorize::{Caller, Who};
use swarmd::manager::raft::{DialError, Dialer, Line, LineError, Member, RaftService};
use swarmd::manager::store::machine::StoreMachine;
use swarmd::process::Process;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep, sleep_until};
use tonic::body::Body;
use tower::Service as _;
use tower::util::BoxCloneSyncService;

use super::trace::Trace;

/// Frames on their way over one connection.
const IN_FLIGHT: usize = 64;
/// How long a connection lives over which nothing gets through.
const PATIENCE: Duration = Duration::from_secs(4);
/// How long a connection takes to come to nothing where no host is.
const NOBODY: Duration = Duration::from_secs(2);
/// Addresses that hosts move to: few, so that one that was another's is soon somebody's again.
const SPARE: u8 = 6;
/// How often a sender looks whether a partition has healed.
const RESEND: Duration = Duration::from_millis(20);

type Server = RaftServer<RaftService<StoreMachine>>;

/// All links; a handle, cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Network(Arc<Mutex<Inner>>);

/// How messages fare, in parts of a thousand.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Weather {
    /// Lost: the connection is reset, or the message comes again after a second or so.
    pub(crate) lost: u64,
    /// Up to 400 ms late.
    pub(crate) late: u64,
    /// Votes that come a second time.
    pub(crate) doubled: u64,
}

struct Inner {
    random: Random,
    trace: Trace,
    weather: Weather,
    /// From whom to whom nothing gets through.
    cut: BTreeSet<(u64, u64)>,
    /// Who is up.
    managers: BTreeMap<u64, (Process, Server)>,
    /// When the certificate of each ends, and by which clock it looks at the others'.
    certificates: BTreeMap<u64, (Timestamp, Option<Clock>)>,
    /// Messages until a process dies.
    fuses: BTreeMap<u64, u64>,
    /// Where each host is, and how often it has moved: what was sent before is lost.
    places: BTreeMap<u64, (SocketAddr, u64)>,
}

impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Inner(cut {:?})", self.cut)
    }
}

/// The node that a manager is.
pub(crate) fn node(id: u64) -> NodeId {
    NodeId::from_raw(id.into())
}

impl Network {
    /// A network without managers.
    pub(crate) fn new(seed: u64, trace: Trace) -> Self {
        Self(Arc::new(Mutex::new(Inner {
            random: Random::new(seed),
            trace,
            weather: Weather::default(),
            cut: BTreeSet::new(),
            managers: BTreeMap::new(),
            certificates: BTreeMap::new(),
            fuses: BTreeMap::new(),
            places: BTreeMap::new(),
        })))
    }

    /// A host comes to the network.
    pub(crate) fn connect(&self, id: u64) {
        let last = u8::try_from(id).unwrap();
        let place = (SocketAddr::from(([10, 0, 0, last], 4242)), 0);
        self.lock().places.insert(id, place);
    }

    /// Where a host is.
    pub(crate) fn address(&self, id: u64) -> SocketAddr {
        self.lock().places[&id].0
    }

    /// A host leaves its address for another one: nothing that was under way to it, or from it, arrives.
    pub(crate) fn relocate(&self, id: u64) {
        let inner = &mut *self.lock();
        let taken: BTreeSet<SocketAddr> = inner.places.values().map(|(at, _)| *at).collect();
        let spare = (1..=SPARE).map(|last| SocketAddr::from(([10, 0, 1, last], 4242)));
        let free = spare.filter(|address| !taken.contains(address));
        if let (Some(to), Some(place)) = (inner.random.any(free), inner.places.get_mut(&id)) {
            *place = (to, place.1 + 1);
            inner.trace.say(format_args!("{id} is at {to} now"));
        }
    }

    /// Which host has an address.
    fn host_at(&self, address: SocketAddr) -> Option<u64> {
        let inner = self.lock();
        let found = inner.places.iter().find(|(_, (at, _))| *at == address);
        found.map(|(id, _)| *id)
    }

    /// A manager is up.
    pub(crate) fn listen(&self, id: u64, (process, clock): (&Process, &Clock), server: Server) {
        let mut inner = self.lock();
        inner.fuses.remove(&id);
        inner.managers.insert(id, (process.clone(), server));
        if let Some(certificate) = inner.certificates.get_mut(&id) {
            certificate.1 = Some(clock.clone());
        }
    }

    /// A manager has a certificate that ends then.
    pub(crate) fn certify(&self, id: u64, until: Timestamp) {
        let mut inner = self.lock();
        inner.certificates.entry(id).or_insert((until, None)).0 = until;
    }

    /// When a manager's certificate ends.
    pub(crate) fn certificate(&self, id: u64) -> Timestamp {
        let inner = self.lock();
        inner.certificates.get(&id).map_or(Timestamp::MAX, |c| c.0)
    }

    /// Whether one manager takes the certificate of another, by its own clock.
    pub(crate) fn takes(&self, id: u64, of: u64) -> bool {
        let inner = self.lock();
        let clock = inner.certificates.get(&id).and_then(|c| c.1.as_ref());
        let until = inner.certificates.get(&of).map(|c| c.0);
        clock.is_none_or(|clock| until.is_none_or(|until| clock.now() < until))
    }

    /// Whether what one sends gets to the other, and the answer back.
    pub(crate) fn reaches(&self, one: u64, other: u64) -> bool {
        let inner = self.lock();
        !inner.cut.contains(&(one, other)) && !inner.cut.contains(&(other, one))
    }

    /// A manager is down: connections to it are refused.
    pub(crate) fn hang_up(&self, id: u64) {
        self.lock().managers.remove(&id);
    }

    /// What manager `from` dials with.
    pub(crate) fn dialer(&self, from: u64, process: &Process) -> Phone {
        Phone {
            network: self.clone(),
            from,
            process: process.clone(),
        }
    }

    /// Sets the weather.
    pub(crate) fn set_weather(&self, weather: Weather) {
        self.lock().weather = weather;
    }

    /// Cuts a link, in one direction.
    pub(crate) fn cut(&self, from: u64, to: u64) {
        self.lock().cut.insert((from, to));
    }

    /// Mends all links.
    pub(crate) fn heal(&self) {
        self.lock().cut.clear();
    }

    /// The process of a manager dies at its so-many-th message from now.
    pub(crate) fn burn_down(&self, id: u64, messages: u64) {
        self.lock().fuses.insert(id, messages);
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap()
    }

    /// A message of `id` is sent or arrives; true if that is the end of its process.
    fn touches(&self, id: u64) -> bool {
        let mut inner = self.lock();
        let Some(left) = inner.fuses.get_mut(&id) else {
            return false;
        };
        if *left > 0 {
            *left -= 1;
            return false;
        }
        inner.fuses.remove(&id);
        let process = inner.managers.get(&id).map(|(process, _)| process.clone());
        drop(inner);
        if let Some(process) = process {
            process.kill();
        }
        true
    }

    fn manager(&self, id: u64) -> Option<(Process, Server)> {
        let inner = self.lock();
        let found = inner.managers.get(&id)?;
        (!found.0.is_dead()).then(|| found.clone())
    }
}

impl Inner {
    /// How often two hosts have moved.
    fn moved(&self, one: u64, other: u64) -> u64 {
        let each = [one, other].map(|id| self.places.get(&id).map_or(0, |(_, moved)| *moved));
        each.iter().sum()
    }
}

/// Makes calls for one manager.
#[derive(Debug, Clone)]
pub(crate) struct Phone {
    network: Network,
    from: u64,
    process: Process,
}

impl Dialer for Phone {
    fn dial(&self, member: &Member, address: &str) -> Result<Line, DialError> {
        let at = address.parse::<SocketAddr>().map_err(|error| DialError {
            address: address.to_owned(),
            reason: error.to_string(),
        })?;
        let (phone, expected) = (self.clone(), member.node_id.clone());
        let service = tower::service_fn(move |request| {
            let (phone, expected) = (phone.clone(), expected.clone());
            async move {
                let Some(to) = phone.network.host_at(at) else {
                    sleep(NOBODY).await;
                    return Err("no host answers".into());
                };
                // As by its certificate.
                if node(to).to_string() != expected {
                    return Err("another node answers".into());
                }
                phone.call(to, request).await
            }
        });
        Ok(Line::Simulated(BoxCloneSyncService::new(service)))
    }
}

/// A connection in one direction.
#[derive(Debug, Clone)]
struct Way {
    network: Network,
    from: u64,
    to: u64,
    what: Arc<str>,
    last: Instant,
    /// How often the hosts had moved when the connection was made.
    moved: u64,
}

impl Way {
    fn new(network: &Network, (from, to): (u64, u64), what: &Arc<str>) -> Self {
        Self {
            network: network.clone(),
            from,
            to,
            what: Arc::clone(what),
            last: Instant::now(),
            moved: network.lock().moved(from, to),
        }
    }

    /// Whether nothing gets through.
    fn is_cut(&self) -> bool {
        let inner = self.network.lock();
        let moved = inner.moved(self.from, self.to) != self.moved;
        moved || inner.cut.contains(&(self.from, self.to))
    }

    /// Sends something of a size; when it arrives, or that the connection is gone.
    async fn send(&mut self, size: usize) -> Result<Instant, LineError> {
        if self.network.touches(self.from) {
            return Err("the sender dies".into());
        }
        let began = Instant::now();
        while self.is_cut() {
            if began.elapsed() > PATIENCE {
                return Err("the connection timed out".into());
            }
            sleep(RESEND).await;
        }
        let inner = &mut *self.network.lock();
        let (random, weather) = (&mut inner.random, inner.weather);
        let delay = if random.per_mille(weather.lost) {
            if random.per_mille(300) {
                return Err("the connection was reset".into());
            }
            random.millis(200, 1_200)
        } else if random.per_mille(weather.late) {
            random.millis(5, 400)
        } else {
            Duration::from_millis(random.below(5).saturating_sub(2))
        };
        self.last = self.last.max(Instant::now() + delay);
        let (from, to, what) = (self.from, self.to, &self.what);
        inner.trace.note(format_args!(
            "{from} -> {to} {what} {size} bytes, {delay:?}"
        ));
        Ok(self.last)
    }

    /// Returns when it arrives.
    async fn arrive(&self, at: Instant) -> Result<(), LineError> {
        if at > Instant::now() {
            sleep_until(at).await;
        }
        if self.network.lock().moved(self.from, self.to) != self.moved {
            return Err("the connection is gone with its address".into());
        }
        match self.network.touches(self.to) {
            true => Err("the receiver dies".into()),
            false => Ok(()),
        }
    }

    /// Takes what a body has to its other end, which is returned with the work of doing so.
    fn flow(mut self, mut body: Body) -> (Body, impl Future<Output = ()> + Send) {
        let (sender, receiver) = mpsc::channel::<Option<(Instant, Frame<Bytes>)>>(IN_FLIGHT);
        let way = self.clone();
        let work = async move {
            loop {
                let frame = tokio::select! {
                    biased;
                    () = sender.closed() => return,
                    frame = body.frame() => frame,
                };
                let sent = match frame {
                    None => None,
                    Some(Err(_)) => return,
                    Some(Ok(frame)) => {
                        let size = frame.data_ref().map_or(0, Bytes::len);
                        let Ok(at) = self.send(size).await else {
                            return;
                        };
                        Some((at, frame))
                    }
                };
                let end = sent.is_none();
                if sender.send(sent).await.is_err() || end {
                    return;
                }
            }
        };
        let frames = stream::unfold(Some((receiver, way)), |state| async move {
            let (mut receiver, way) = state?;
            match receiver.recv().await {
                Some(Some((at, frame))) => match way.arrive(at).await {
                    Ok(()) => Some((Ok(frame), Some((receiver, way)))),
                    Err(gone) => Some((Err(gone), None)),
                },
                Some(None) => None,
                None => Some((Err("the connection was reset".into()), None)),
            }
        });
        (Body::new(StreamBody::new(frames)), work)
    }
}

impl Phone {
    async fn call(self, to: u64, request: Request<Body>) -> Result<Response<Body>, LineError> {
        let path = request.uri().path();
        let what: Arc<str> = path.rsplit('/').next().unwrap_or_default().into();
        let mut out = Way::new(&self.network, (self.from, to), &what);
        let back = Way::new(&self.network, (to, self.from), &what);
        let at = out.send(0).await?;
        out.arrive(at).await?;
        let (process, mut server) = self
            .network
            .manager(to)
            .ok_or("the connection was refused")?;
        for (one, other) in [(self.from, to), (to, self.from)] {
            if !self.network.takes(one, other) {
                return Err(format!("{one} does not take the certificate of {other}").into());
            }
        }
        let (mut head, body) = request.into_parts();
        head.extensions.insert(caller(&self.network, self.from));
        let body = match &*what {
            "Append" | "Snapshot" => {
                let (body, work) = out.flow(body);
                drop(self.process.spawn(work));
                body
            }
            _ => {
                let asked = body.collect().await?.to_bytes();
                let again = Request::from_parts(head.clone(), Body::new(Full::new(asked.clone())));
                self.maybe_again((&process, &server), again);
                Body::new(Full::new(asked))
            }
        };
        let request = Request::from_parts(head, body);
        let (answer, answered) = oneshot::channel();
        let work = async move {
            let Ok(response) = server.call(request).await;
            let (head, body) = response.into_parts();
            let mut back = back;
            let Ok(at) = back.send(0).await else { return };
            let way = back.clone();
            let (body, work) = back.flow(body);
            if answer
                .send((at, way, Response::from_parts(head, body)))
                .is_ok()
            {
                work.await;
            }
        };
        drop(process.spawn(work));
        let (at, way, response) = answered.await.map_err(|_| "the connection was reset")?;
        way.arrive(at).await?;
        Ok(response)
    }

    /// What was asked for once may arrive again, late; nobody waits for the answer.
    fn maybe_again(&self, (process, server): (&Process, &Server), request: Request<Body>) {
        let mut inner = self.network.lock();
        let doubled = inner.weather.doubled;
        if !inner.random.per_mille(doubled) {
            return;
        }
        let delay = inner.random.millis(1, 2_000);
        let mut server = server.clone();
        drop(process.spawn(async move {
            sleep(delay).await;
            let _ = server.call(request).await;
        }));
    }
}

/// Who calls, as the server's door says it.
fn caller(network: &Network, id: u64) -> Caller {
    Caller {
        who: Who::Node(PeerIdentity {
            node_id: node(id),
            role: Role::Manager,
            cluster_id: ClusterId::from_raw(1),
            not_after: network.certificate(id),
        }),
        remote: Some(network.address(id)),
        forwarded_by: None,
        redirected: false,
    }
}
