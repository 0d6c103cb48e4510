//! Three members over loopback gRPC: replication, a lost leader, a slow member, a restart.

#![expect(clippy::disallowed_methods, reason = "measures, and serves beside")]

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use swarm_proto::own;
use swarm_proto::own::raft_client::RaftClient;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::TcpListenerStream;
use tokio_util::sync::CancellationToken;

use super::super::{PlainDialer, ProposeError, Start};
use super::*;

struct Running {
    node: RaftNode<Ledger>,
    stop: CancellationToken,
    server: JoinHandle<()>,
}

/// A member's place: its directory and address outlive its runs.
pub(super) struct Place {
    pub(super) id: u64,
    pub(super) dir: TempDir,
    pub(super) address: SocketAddr,
    snapshots: SnapshotLimits,
    running: Option<Running>,
}

impl Place {
    pub(super) async fn start(&mut self, start: Start, listener: Option<TcpListener>) {
        let mut config = config(self.dir.path(), self.id);
        config.member = self.member();
        config.snapshots = self.snapshots;
        let dialer = Arc::new(PlainDialer);
        let node = RaftNode::start(config, start, Ledger::default(), dialer)
            .await
            .unwrap();
        let listener = match listener {
            Some(listener) => listener,
            None => TcpListener::bind(self.address).await.unwrap(),
        };
        let stop = CancellationToken::new();
        let service = node.service().into_server();
        let stopped = stop.clone().cancelled_owned();
        let server = tokio::spawn(async move {
            tonic::transport::Server::builder()
                .tcp_nodelay(true)
                .add_service(service)
                .serve_with_incoming_shutdown(TcpListenerStream::new(listener), stopped)
                .await
                .unwrap();
        });
        self.running = Some(Running { node, stop, server });
    }

    pub(super) fn member(&self) -> Member {
        Member {
            node_id: format!("node-{}", self.id),
            addresses: vec![self.address.to_string()],
        }
    }

    pub(super) fn node(&self) -> &RaftNode<Ledger> {
        &self.running.as_ref().unwrap().node
    }

    /// Gone from one moment to the next, as far as the others can see.
    pub(super) async fn kill(&mut self) {
        let running = self.running.take().unwrap();
        running.server.abort();
        running.stop.cancel();
        running.node.shutdown().await;
    }
}

pub(super) async fn three(snapshots: SnapshotLimits) -> Vec<Place> {
    let mut places = Vec::new();
    for id in 1..=3 {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut place = Place {
            id,
            dir: tempfile::tempdir().unwrap(),
            address: listener.local_addr().unwrap(),
            snapshots,
            running: None,
        };
        let start = if id == 1 { Start::Found } else { Start::Join };
        place.start(start, Some(listener)).await;
        places.push(place);
    }
    let leader = places[0].node();
    // The leader must be established before it changes members.
    leader.proposer().propose(command("founded")).await.unwrap();
    for place in &places[1..] {
        leader
            .membership()
            .add(place.id, place.member())
            .await
            .unwrap();
    }
    places
}

pub(super) async fn stop(places: Vec<Place>) {
    for mut place in places {
        if place.running.is_some() {
            place.kill().await;
        }
    }
}

/// Proposes at whichever of the running members leads.
pub(super) async fn propose(places: &[Place], line: &str) -> u64 {
    let running = || places.iter().filter(|p| p.running.is_some());
    let mut leaderships: Vec<_> = running().map(|p| p.node().leadership()).collect();
    loop {
        for (place, leadership) in running().zip(&mut leaderships) {
            let leads = leadership.borrow_and_update().term().is_some();
            if !leads {
                continue;
            }
            match place.node().proposer().propose(command(line)).await {
                Ok(done) => return done.index,
                Err(error) => assert!(matches!(error, ProposeError::NotLeader { .. }), "{error}"),
            }
        }
        let changes = leaderships.iter_mut().map(|l| Box::pin(l.changed()));
        let (changed, ..) = soon(futures::future::select_all(changes)).await;
        changed.unwrap();
    }
}

pub(super) async fn agree(places: &[Place], count: usize) {
    for place in places.iter().filter(|p| p.running.is_some()) {
        let mut published = place.node().published();
        let all = published.wait_for(|published| published.view.len() == count);
        soon(all).await.unwrap();
    }
    let mut views = places
        .iter()
        .filter(|p| p.running.is_some())
        .map(|p| lines(p.node()));
    let first = views.next().unwrap();
    assert!(views.all(|view| view == first));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_reach_every_member_and_followers_name_the_leader() {
    let places = three(SnapshotLimits::default()).await;
    for i in 0..50 {
        propose(&places, &format!("line {i}")).await;
    }
    agree(&places, 51).await;
    let refused = places[1].node().proposer().propose(command("no")).await;
    let ProposeError::NotLeader { leader, member } = refused.unwrap_err() else {
        panic!("a follower took a write");
    };
    assert_eq!((leader, member), (1, Some(places[0].member())));
    let status = places[0].node().status();
    assert_eq!(status.leader, Some(1));
    assert!(status.members.values().all(|m| m.voter));
    stop(places).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_leader_is_replaced_and_catches_up_after_a_restart() {
    let mut places = three(SnapshotLimits::default()).await;
    for i in 0..20 {
        propose(&places, &format!("before {i}")).await;
    }
    let lost = Instant::now();
    places[0].kill().await;
    propose(&places, "after").await;
    println!("next accepted write after {:?}", lost.elapsed());
    agree(&places, 22).await;
    places[0].start(Start::Found, None).await;
    propose(&places, "back").await;
    agree(&places, 23).await;
    stop(places).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_behind_the_log_gets_a_snapshot() {
    let limits = SnapshotLimits {
        entries: 30,
        bytes: u64::MAX,
        keep_entries: 5,
    };
    let mut places = three(limits).await;
    places[2].kill().await;
    for i in 0..200 {
        propose(&places, &format!("{i} {}", "x".repeat(5000))).await;
    }
    soon(places[0].node().until(|status| status.purged > 100)).await;
    places[2].start(Start::Join, None).await;
    agree(&places, 201).await;
    // What it got is its own now: sealed by its key, read by its restart.
    places[2].kill().await;
    places[2].start(Start::Join, None).await;
    agree(&places, 201).await;
    stop(places).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leadership_is_handed_over_and_a_member_removed() {
    let places = three(SnapshotLimits::default()).await;
    // A transfer is one try: on a loaded machine another may be elected meanwhile.
    let second = places[1].node().leadership();
    while second.borrow().term().is_none() {
        propose(&places, "whoever leads").await;
        for place in &places {
            // Refused by the second itself, and without effect where another one follows.
            let _ = place.node().membership().transfer_leader(2).await;
        }
        let mut waiting = second.clone();
        let leads = waiting.wait_for(|l| l.term().is_some());
        let _ = tokio::time::timeout(Duration::from_secs(1), leads).await;
    }
    propose(&places, "by the second").await;
    agree(&places, lines(places[1].node()).len()).await;
    let membership = places[1].node().membership();
    let decided = membership.status();
    membership.remove(3, &decided).await.unwrap();
    assert_eq!(places[1].node().status().members.len(), 2);
    stop(places).await;
}

/// Where a member leads.
async fn leader(places: &[Place]) -> &Place {
    propose(places, "whoever leads").await;
    let leads = |place: &&Place| place.node().leadership().borrow().term().is_some();
    places.iter().find(leads).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_of_members_is_one_entry_and_holds_only_for_those_it_was_decided_from() {
    let places = three(SnapshotLimits::default()).await;
    let node = leader(&places).await.node();
    let (membership, decided) = (node.membership(), node.status());
    let mut others = decided.members.keys().filter(|id| **id != decided.id);
    let (first, second) = (*others.next().unwrap(), *others.next().unwrap());
    assert!(membership.remove(decided.id, &decided).await.is_err());
    membership.remove(first, &decided).await.unwrap();
    let after = node.status();
    let entries = after.membership.unwrap().index - decided.last_log;
    assert_eq!((entries, after.joint.len()), (1, 0));
    assert!(!after.members.contains_key(&first));
    // Two changers at once: what the second one decided from is not so any more.
    let refused = membership.remove(second, &decided).await.unwrap_err();
    assert!(
        matches!(refused, super::super::MembershipError::Refused(_)),
        "{refused}"
    );
    assert!(node.status().members.contains_key(&second));
    stop(places).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_that_was_left_half_way_is_finished() {
    let places = three(SnapshotLimits::default()).await;
    let node = leader(&places).await.node();
    let (membership, id) = (node.membership(), node.status().id);
    let new = [1, 2, 3].into_iter().find(|new| *new != id).unwrap();
    let rest: std::collections::BTreeSet<u64> = (1..4).filter(|id| *id != new).collect();
    let all = std::collections::BTreeSet::from([1, 2, 3]);
    membership.half_way(vec![rest.clone(), all.clone()]).await;
    let half = node.status();
    assert_eq!(half.joint, [rest.clone(), all.clone()]);
    assert!(!half.votes(new), "it is not done");
    // Nothing else is changed before.
    assert!(membership.remove(new, &half).await.is_err());
    assert!(
        membership
            .add(new, half.members[&new].member.clone())
            .await
            .is_err()
    );
    membership.finish(all.clone(), &half).await.unwrap();
    soon(node.until(|status| status.votes(new))).await;
    assert_eq!(node.status().configs(), std::slice::from_ref(&all));
    // The other way, who votes no more is a member no more.
    membership.half_way(vec![all, rest.clone()]).await;
    membership
        .finish(rest.clone(), &node.status())
        .await
        .unwrap();
    assert!(node.status().members.keys().eq(&rest));
    stop(places).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_alone_acknowledges_nothing() {
    let mut places = three(SnapshotLimits::default()).await;
    propose(&places, "together").await;
    places[1].kill().await;
    places[2].kill().await;
    let door = places[0].node().proposer();
    let write = tokio::time::timeout(Duration::from_secs(2), door.propose(command("alone")));
    assert!(!matches!(write.await, Ok(Ok(_))));
    let read = tokio::time::timeout(Duration::from_secs(1), door.read_barrier());
    assert!(!matches!(read.await, Ok(Ok(()))));
    stop(places).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_for_another_member_is_not_answered() {
    let places = three(SnapshotLimits::default()).await;
    let channel = tonic::transport::Channel::from_shared(format!("http://{}", places[1].address));
    let mut client = RaftClient::new(channel.unwrap().connect_lazy());
    let request = own::RaftVoteRequest {
        to: 3,
        vote: Some(super::super::wire::vote(&vote(100))),
        ..Default::default()
    };
    let refused = client.vote(request).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::FailedPrecondition);
    assert!(
        refused.message().contains("for member 3 reached member 2"),
        "{refused}"
    );
    let empty = own::RaftVoteRequest {
        to: 2,
        ..Default::default()
    };
    let refused = client.pre_vote(empty).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::InvalidArgument);
    // A stream with a bad message ends without an answer to it.
    let bad = own::RaftAppendRequest {
        to: 3,
        ..Default::default()
    };
    let answers = client.append(futures::stream::iter([bad])).await.unwrap();
    let answer = answers.into_inner().message().await.unwrap();
    assert_eq!(answer, None);
    stop(places).await;
}
