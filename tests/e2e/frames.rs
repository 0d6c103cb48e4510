//! What a manager's certificate does not entitle to: messages of another epoch, frames that are too large, broken or cut off
//! in the middle. Nothing of it is taken, and the cluster serves meanwhile.

use bytes::Bytes;
use harness::cluster::Cluster;
use harness::lab::lab::available;
use harness::lab::node::REMOTE_API_PORT;
use http_body_util::Full;
use swarm_proto::own;
use swarm_proto::own::raft_client::RaftClient;
use swarmd::ca::{SecurityConfig, connect};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tonic::body::Body;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};
use tower::{Service as _, ServiceExt as _};

use super::abuse::{MEMORY_KIB_MAX, memory_kib, security};
use super::managers::{managers, persist, wait_managers, with_managers};
use super::messages::create;

const NAMES: [&str; 3] = ["n1", "n2", "n3"];
/// Another recovery of the same cluster.
const BESIDE: &str = "1-00000000000000ab";
/// Before the cluster was founded.
const BELOW: &str = "0";
/// What managers take of each other in one message.
const RAFT_BYTES_MAX: usize = 16 << 20;
/// A message of this size goes over the network in many pieces.
const LARGE: usize = 1 << 20;

fn address(cluster: &Cluster, name: &str) -> String {
    format!("{}:{REMOTE_API_PORT}", cluster.node(name).host.address)
}

/// A connection to a manager, with the certificate of a node.
async fn dial(cluster: &Cluster, to: &str, of: &str) -> Channel {
    let (address, identity) = (address(cluster, to), security(cluster.node(of)));
    connect(&address, &identity).await.unwrap()
}

/// The number of a manager in consensus.
fn number(cluster: &Cluster, name: &str) -> u64 {
    let inspect = ["node", "inspect", "--format", "{{.ManagerStatus.RaftID}}"];
    let shown = persist(cluster, "n1", &[&inspect[..], &[name]].concat()).ok();
    shown.trim().parse().unwrap()
}

/// Consensus as a manager has it, its term too.
fn own_view(cluster: &Cluster, name: &str) -> String {
    let shown = persist(cluster, name, &["node", "inspect", "self"]).ok();
    assert!(shown.contains(", term "), "{shown}");
    shown
}

/// A message with the epoch that it says to be of.
fn of_epoch<T>(epoch: &'static str, message: T) -> Request<T> {
    let mut request = Request::new(message);
    let epoch = tonic::metadata::AsciiMetadataValue::from_static(epoch);
    request.metadata_mut().insert("swarm-epoch", epoch);
    request
}

/// A vote that nobody in the cluster could stand against.
fn usurper(candidate: u64) -> own::RaftVote {
    own::RaftVote {
        term: 1 << 40,
        candidate,
        committed: true,
    }
}

/// Every message of consensus, as a manager of that epoch would send it to member `to`; what came of each.
async fn usurp(
    channel: Channel,
    epoch: &'static str,
    (from, to): (u64, u64),
) -> Vec<(&'static str, Status)> {
    let mut raft = RaftClient::new(channel);
    let vote = Some(usurper(from));
    let ask = own::RaftVoteRequest {
        to,
        vote: vote.map(|vote| own::RaftVote {
            committed: false,
            ..vote
        }),
        leadership_transfer: true,
        ..Default::default()
    };
    let append = own::RaftAppendRequest {
        to,
        vote,
        ..Default::default()
    };
    let header = own::RaftSnapshotHeader {
        to,
        vote,
        meta: Some(own::RaftSnapshotMeta::default()),
    };
    let chunks = [
        own::raft_snapshot_chunk::Part::Header(header),
        own::raft_snapshot_chunk::Part::End(0),
    ]
    .map(|part| own::RaftSnapshotChunk { part: Some(part) });
    let transfer = own::RaftTransferLeaderRequest {
        to,
        from_leader: vote,
        last_log_id: None,
    };
    let refused = |answer: Result<(), Status>| answer.unwrap_err();
    let answer = raft.vote(of_epoch(epoch, ask)).await.map(drop);
    let mut all = vec![("Vote", refused(answer))];
    let answer = raft.pre_vote(of_epoch(epoch, ask)).await.map(drop);
    all.push(("PreVote", refused(answer)));
    let requests = of_epoch(epoch, futures::stream::iter([append]));
    let answer = raft.append(requests).await.map(drop);
    all.push(("Append", refused(answer)));
    let chunks = of_epoch(epoch, futures::stream::iter(chunks));
    let answer = raft.snapshot(chunks).await.map(drop);
    all.push(("Snapshot", refused(answer)));
    let answer = raft.transfer_leader(of_epoch(epoch, transfer)).await;
    all.push(("TransferLeader", refused(answer.map(drop))));
    all
}

/// A service is created and found on every manager: consensus goes on, and led by whom it was.
#[track_caller]
fn serves(cluster: &Cluster, name: &str, leader: &str) {
    let create = ["service", "create", "--detach", "--no-resolve-image"];
    let spec = ["--image", "web", "--replicas", "0", "--name", name];
    let create = [&create[..], &spec].concat();
    // Not persistent: nothing here may have kept a manager from serving.
    cluster.node("n3").ctl(&create).unwrap().ok();
    for on in NAMES {
        let list = ["service", "ls", "--format", "{{.Name}}"];
        let listed = cluster.node(on).ctl(&list).unwrap().ok();
        assert!(listed.lines().any(|line| line == name), "{on}: {listed}");
    }
    let all = managers(cluster, "n1").unwrap();
    assert_eq!(
        all.get(leader).map(String::as_str),
        Some("leader"),
        "{all:?}"
    );
    let log = cluster.node("n1").log_tail(usize::MAX);
    assert!(!log.contains("panicked"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn containerd_consensus_takes_no_message_of_another_epoch() {
    if !available("messages of another epoch") {
        return;
    }
    let cluster = with_managers(1, &["n3", "n4"]);
    let leader = wait_managers(&cluster, "n1", &["n1", "n3", "n4"]);
    let between = (number(&cluster, "n3"), number(&cluster, "n1"));
    let manager = dial(&cluster, "n1", "n3").await;
    for (epoch, logged) in [
        (BESIDE, "another recovery of the same cluster is running"),
        (BELOW, "a manager of an earlier epoch is turned away"),
    ] {
        for (name, status) in usurp(manager.clone(), epoch, between).await {
            assert_eq!(status.code(), Code::FailedPrecondition, "{name}: {status}");
            let text = format!(
                "this manager is of epoch 1 of the cluster, and the message of epoch {epoch}"
            );
            assert_eq!(status.message(), text, "{name}");
            // By this the sender comes to know, too.
            let own = status.metadata().get("swarm-epoch");
            assert_eq!(own.and_then(|own| own.to_str().ok()), Some("1"), "{name}");
        }
        // Once, however often it comes.
        let log = cluster.node("n1").log_tail(usize::MAX);
        assert_eq!(log.matches(logged).count(), 1, "{log}");
    }
    for (name, status) in usurp(manager, "yesterday", between).await {
        assert_eq!(status.code(), Code::InvalidArgument, "{name}: {status}");
        assert!(status.message().contains("swarm-epoch"), "{name}: {status}");
    }

    // A later one would fence the manager for good: it takes a manager's certificate to say so.
    let worker = dial(&cluster, "n1", "n2").await;
    for (name, status) in usurp(worker.clone(), "7-00000000000000ab", between).await {
        assert_eq!(status.code(), Code::PermissionDenied, "{name}: {status}");
    }
    let fence = of_epoch("7-00000000000000ab", own::RaftFenceRequest::default());
    let refused = RaftClient::new(worker).fence(fence).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied, "{refused}");

    // Who leads, in which term, and what is taken are as before.
    let create = ["service", "create", "--detach", "--no-resolve-image"];
    let web = ["--name", "web", "--image", "web", "--replicas", "0"];
    let n4 = cluster.node("n4");
    n4.ctl(&[&create[..], &web].concat()).unwrap().ok();
    assert_eq!(wait_managers(&cluster, "n1", &["n1", "n3", "n4"]), leader);
    let own = own_view(&cluster, "n1");
    assert!(!own.contains(&usurper(0).term.to_string()), "{own}");
    assert!(!own.contains("fenced"), "{own}");
}

/// Passes connections on to a manager, each broken after so many bytes towards it.
struct Broken {
    address: String,
    _connections: JoinSet<()>,
}

/// What becomes of a connection.
#[derive(Debug, Clone, Copy)]
enum Fault {
    /// It ends.
    Cut,
    /// One bit is another.
    Flipped,
}

impl Broken {
    async fn new(to: String, at: usize, fault: Fault) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let mut connections = JoinSet::new();
        connections.spawn(async move {
            let mut open = JoinSet::new();
            while let Ok((near, _)) = listener.accept().await {
                let far = TcpStream::connect(&to).await.unwrap();
                open.spawn(pass(near, far, at, fault));
            }
        });
        Self {
            address,
            _connections: connections,
        }
    }
}

async fn pass(near: TcpStream, far: TcpStream, at: usize, fault: Fault) {
    let (mut near_read, mut near_write) = near.into_split();
    let (mut far_read, mut far_write) = far.into_split();
    let there = async {
        // Up to where it breaks, and then on as it may.
        let mut whole = (&mut near_read).take(at as u64);
        if tokio::io::copy(&mut whole, &mut far_write).await.is_err() {
            return;
        }
        if let (Fault::Flipped, Ok(byte)) = (fault, near_read.read_u8().await) {
            let _ = far_write.write_u8(byte ^ 1).await;
            let _ = tokio::io::copy(&mut near_read, &mut far_write).await;
        }
    };
    let back = async {
        let _ = tokio::io::copy(&mut far_read, &mut near_write).await;
    };
    let (there, back) = (std::pin::pin!(there), std::pin::pin!(back));
    // Both halves of both connections are dropped with either.
    futures::future::select(there, back).await;
}

/// Asks for a service over a connection that breaks; whether it was answered at all.
async fn create_over(broken: &Broken, security: &SecurityConfig) -> Result<(), String> {
    let channel = connect(&broken.address, security).await;
    let channel = channel.map_err(|error| error.to_string())?;
    let created = create(channel, "broken", LARGE).await;
    created.map_err(|status| status.to_string())
}

/// A gRPC call whose body is exactly this.
async fn raw(channel: &Channel, path: &str, body: impl Into<Bytes>) -> Status {
    let request = http::Request::post(format!("http://swarmd.invalid{path}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(Body::new(Full::new(body.into())))
        .unwrap();
    let mut channel = channel.clone();
    let answer = channel.ready().await.unwrap().call(request).await;
    match answer {
        Ok(answer) => status_of(answer).await,
        Err(error) => Status::unavailable(error.to_string()),
    }
}

/// Of the head, or else of what comes after the body.
async fn status_of(answer: http::Response<Body>) -> Status {
    use http_body_util::BodyExt as _;
    let (head, body) = answer.into_parts();
    if let Some(status) = Status::from_header_map(&head.headers) {
        return status;
    }
    match body.collect().await {
        Ok(whole) => whole
            .trailers()
            .and_then(Status::from_header_map)
            .unwrap_or_else(|| Status::unknown("no status")),
        Err(error) => error,
    }
}

/// A frame of gRPC that says to have so many bytes, and has these.
fn frame(compressed: u8, says: u32, bytes: &[u8]) -> Vec<u8> {
    [&[compressed][..], &says.to_be_bytes(), bytes].concat()
}

/// Frames that say more than they have, and more than there is; each is told what is wrong with it.
async fn malformed(channel: &Channel) {
    let frames = [
        (frame(0, 1 << 16, &[0; 10]), Code::Internal, "EOF"),
        (vec![0, 0, 0], Code::Internal, "EOF"),
        (frame(1, 10, &[0; 10]), Code::Internal, "compressed"),
        (frame(7, 0, &[]), Code::Internal, "compression flag"),
        (frame(0, 10, &[0xff; 10]), Code::Internal, "decode"),
    ];
    let mut sending = JoinSet::new();
    for (path, limit) in [
        ("/swarm.v1.Raft/Vote", "the limit is: 16777216 bytes"),
        (
            "/docker.swarmkit.v1.Control/CreateService",
            "the limit is: 4194304 bytes",
        ),
    ] {
        let large = (frame(0, u32::MAX, &[0; LARGE]), Code::OutOfRange, limit);
        for (body, code, text) in frames.iter().chain([&large]) {
            // At the same time, over one connection.
            for _ in 0..8 {
                let (channel, body) = (channel.clone(), body.clone());
                let expected = (path, *code, *text);
                sending.spawn(async move { (expected, raw(&channel, path, body).await) });
            }
        }
    }
    while let Some(ended) = sending.join_next().await {
        let ((path, code, text), status) = ended.unwrap();
        assert_eq!(status.code(), code, "{path}: {status}");
        assert!(status.message().contains(text), "{path}: {status}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn containerd_frames_that_are_too_large_or_broken_change_nothing() {
    if !available("frames that are too large or broken") {
        return;
    }
    let cluster = with_managers(0, &["n2", "n3"]);
    let leader = wait_managers(&cluster, "n1", &NAMES);
    let to = address(&cluster, &leader);
    let identity = security(cluster.node("n2"));
    let channel = connect(&to, &identity).await.unwrap();

    // One message above the limit, of consensus, on a stream of them.
    let (from, member) = (number(&cluster, "n2"), number(&cluster, &leader));
    let vote = usurper(from);
    let entry = own::RaftEntry {
        log_id: Some(own::RaftLogId {
            term: vote.term,
            leader: from,
            index: 1,
        }),
        payload: Some(own::raft_entry::Payload::Command(
            vec![7; RAFT_BYTES_MAX + 1].into(),
        )),
    };
    let append = own::RaftAppendRequest {
        to: member,
        vote: Some(vote),
        entries: vec![entry],
        ..Default::default()
    };
    let mut raft = RaftClient::new(channel.clone()).max_encoding_message_size(usize::MAX);
    let refused = match raft
        .append(of_epoch("1", futures::stream::iter([append])))
        .await
    {
        // Taken as a stream; its first message ends it, without an answer to it.
        Ok(answers) => answers
            .into_inner()
            .message()
            .await
            .map(|answer| answer.is_none()),
        Err(status) => Err(status),
    };
    assert!(!matches!(refused, Ok(false)), "{refused:?}");
    assert_eq!(wait_managers(&cluster, "n1", &NAMES), leader);
    assert!(!own_view(&cluster, &leader).contains(&vote.term.to_string()));

    malformed(&channel).await;

    // Connections that end, or go wrong, within TLS's greeting, within HTTP's, and within a message.
    for fault in [Fault::Cut, Fault::Flipped] {
        for at in [0, 3, 60, 700, 3_000, 20_000, LARGE / 2] {
            let broken = Broken::new(to.clone(), at, fault).await;
            let answered = create_over(&broken, &identity).await;
            assert!(answered.is_err(), "{fault:?} at {at}");
        }
    }
    let whole = Broken::new(to.clone(), usize::MAX, Fault::Cut).await;
    let listed = cluster.ctl(&["service", "ls", "--format", "{{.Name}}"]);
    assert_eq!(listed.ok(), "", "a broken request was taken");
    // What breaks nothing is answered: it was the fault, and not the way.
    create_over(&whole, &identity).await.unwrap();

    serves(&cluster, "after", &leader);
    for name in NAMES {
        let held = memory_kib(cluster.node(name));
        assert!(held < MEMORY_KIB_MAX, "{name}: {held} KiB");
    }
}
