//! A cluster goes on with one member: what it keeps, where a power cut leaves it, and what becomes of the others.

use swarm_proto::own::raft_client::RaftClient;
use tonic::Code;

use super::super::epoch::Epoch;
use super::super::error::StorageError;
use super::super::gate::{Gate, put};
use super::super::offline::{Offline, Survey};
use super::super::rebuild::{INDEX_GAP, Rebuilt, put_in_place, settle};
use super::super::{PlainDialer, Start, wire};
use super::cluster::{Place, agree, propose, stop, three};
use super::*;

type View = <Ledger as Machine>::View;
type Step<'a> = &'a mut dyn FnMut() -> Result<(), StorageError>;

fn offline(dir: &Path) -> Offline<View> {
    let survey = Survey::read(dir, &Seal::default()).unwrap().unwrap();
    survey.whole(Ledger::default()).unwrap()
}

fn next(epoch: Epoch) -> Epoch {
    epoch.next(77)
}

/// Does what --force-new-cluster does; `step` comes between any two things that reach the disk.
fn force(dir: &Path, id: u64, member: Member, step: Step<'_>) -> Result<(), StorageError> {
    let known = offline(dir);
    let epoch = next(known.epoch);
    let mut former = known.members;
    former.retain(|other| other.member.node_id != member.node_id);
    let rebuilt = Rebuilt {
        view: &known.view,
        index: known.last.index,
        term: known.term,
        epoch,
        id,
        member,
        former,
        forced: true,
        seal: Seal::default(),
    };
    rebuilt.prepare::<Ledger>(dir, step)?;
    step()?;
    put_in_place(dir, epoch, step)
}

fn forced(place: &mut Place, id: u64) {
    force(place.dir.path(), id, place.member(), &mut || Ok(())).unwrap();
    place.id = id;
}

#[tokio::test]
async fn every_entry_on_disk_is_in_it_committed_or_not() {
    let dir = tempfile::tempdir().unwrap();
    let RaftDir { mut log, .. } =
        RaftDir::open(&Disk::Real, (dir.path(), Seal::default()), 5).unwrap();
    let mut all = vec![blank(1, 0)];
    all.extend((1..40).map(|i| entry(1, i, &format!("line {i}"))));
    append(&mut log, all).await;
    log.save_committed(Some(log_id(1, 10))).await.unwrap();
    log.save_vote(&vote(9)).await.unwrap();
    close(log).await;
    let before = tree(dir.path());
    let known = offline(dir.path());
    assert_eq!(known.view.len(), 39);
    assert_eq!((known.last.index, known.term, known.id), (39, 9, 5));
    assert_eq!(known.epoch, Epoch::NONE);
    assert_eq!(before, tree(dir.path()), "reading changes nothing");
}

#[tokio::test]
async fn damage_is_named_and_what_can_be_read_is_shown() {
    let dir = tempfile::tempdir().unwrap();
    let RaftDir { mut log, .. } =
        RaftDir::open(&Disk::Real, (dir.path(), Seal::default()), 5).unwrap();
    append(&mut log, (0..40).map(|i| entry(1, i, "x")).collect()).await;
    close(log).await;
    let id = dir.path().join("raft/id");
    std::fs::write(&id, "6 00000000\n").unwrap();
    let survey = Survey::read(dir.path(), &Seal::default()).unwrap().unwrap();
    assert_eq!((survey.id, survey.log.entries.len()), (None, 40));
    assert_eq!(survey.problems.len(), 1);
    let error = survey.whole(Ledger::default()).unwrap_err().to_string();
    assert!(error.contains("raft/id is damaged"), "{error}");
    // Any byte of the log: never a panic, never silence about what is missing.
    std::fs::write(&id, super::super::dir::id_text(5)).unwrap();
    let path = dir.path().join("raft/log.redb");
    let whole = std::fs::read(&path).unwrap();
    for at in (0..whole.len()).step_by(whole.len() / 60) {
        let mut broken = whole.clone();
        broken[at] ^= 0x40;
        std::fs::write(&path, broken).unwrap();
        let survey = Survey::read(dir.path(), &Seal::default()).unwrap().unwrap();
        assert!(
            survey.log.entries.len() == 40 || !survey.problems.is_empty(),
            "byte {at}"
        );
    }
}

/// A directory with a state, and what is in it.
async fn founded() -> (tempfile::TempDir, Vec<String>) {
    let dir = tempfile::tempdir().unwrap();
    let config = config(dir.path(), 1);
    let dialer = Arc::new(PlainDialer);
    let node = RaftNode::start(config, Start::Found, Ledger::default(), dialer);
    let node = node.await.unwrap();
    for i in 0..30 {
        let line = format!("line {i}");
        node.proposer().propose(command(&line)).await.unwrap();
        if i == 20 {
            node.take_snapshot().await.unwrap();
        }
    }
    soon(node.until(|status| status.snapshot > 0)).await;
    let lines = lines(&node);
    node.shutdown().await;
    (dir, lines)
}

#[tokio::test]
async fn a_power_cut_at_any_step_leaves_the_old_log_or_the_new_one() {
    let (mut cut, mut news) = (0, 0);
    loop {
        let (dir, before) = founded().await;
        let (mut steps, member) = (0, config(dir.path(), 1).member);
        let done = force(dir.path(), 9, member, &mut || {
            steps += 1;
            match steps > cut {
                true => Err(StorageError::damaged(Path::new("x"), "x", "a power cut")),
                false => Ok(()),
            }
        });
        settle(dir.path()).unwrap();
        let opened = offline(dir.path());
        let new = opened.epoch == next(Epoch::FIRST);
        let what = format!("cut after {cut} steps");
        assert_eq!(opened.id, if new { 9 } else { 1 }, "{what}");
        assert_eq!(new, opened.last.index > INDEX_GAP, "{what}");
        assert!(new || news == 0, "{what}: an earlier cut came further");
        news += usize::from(new);
        let dialer = Arc::new(PlainDialer);
        let config = config(dir.path(), 1);
        let node = RaftNode::start(config, Start::Join, Ledger::default(), dialer);
        let node = node.await.unwrap();
        node.proposer().propose(command("after")).await.unwrap();
        let mut expected = before;
        expected.push("after".to_owned());
        assert_eq!(lines(&node), expected, "{what}");
        node.shutdown().await;
        let names = std::fs::read_dir(dir.path()).unwrap();
        let left: Vec<_> = names.map(|e| e.unwrap().file_name()).collect();
        assert!(
            !left
                .iter()
                .any(|name| name == "raft.recovered" || name == "raft.recovering"),
            "{what}: {left:?}"
        );
        if done.is_ok() {
            break;
        }
        cut += 1;
    }
    assert!(
        cut > 8 && news >= 2,
        "{cut} cuts, {news} of them after the change"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_old_majority_is_fenced_by_the_one_that_goes_on_and_stays_so() {
    let mut places = three(SnapshotLimits::default()).await;
    for i in 0..10 {
        propose(&places, &format!("line {i}")).await;
    }
    agree(&places, 11).await;
    places[2].kill().await;
    forced(&mut places[2], 33);
    places[2].start(Start::Join, None).await;
    // The old pair has a majority, and writes to the address that it knows: it is refused, and hears of the new epoch.
    for place in &places[..2] {
        let fenced = soon(place.node().fenced()).await;
        assert_eq!((fenced.own, fenced.by), (Epoch::FIRST, next(Epoch::FIRST)));
    }
    let index = propose(&places[2..], "goes on").await;
    assert!(index > INDEX_GAP, "{index}");
    let status = places[2].node().status();
    assert_eq!(status.members.keys().collect::<Vec<_>>(), [&33]);
    let write = places[0].node().proposer();
    write.propose(command("too late")).await.unwrap_err();
    // Also after a restart, and without anybody who would say it again.
    for place in &mut places {
        place.kill().await;
    }
    let config = config(places[0].dir.path(), 1);
    let dialer = Arc::new(PlainDialer);
    let again = RaftNode::start(config, Start::Join, Ledger::default(), dialer).await;
    let error = again.unwrap_err().to_string();
    assert!(error.contains("swarmd leave --force"), "{error}");
    // Not a byte of it is gone, and it may be what goes on after all: above what fenced it.
    assert_eq!(offline(places[0].dir.path()).view.len(), 11);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_member_takes_over_the_epoch_and_an_old_one_gets_no_vote() {
    let mut places = three(SnapshotLimits::default()).await;
    propose(&places, "one").await;
    agree(&places, 2).await;
    for place in &mut places {
        place.kill().await;
    }
    forced(&mut places[2], 33);
    places[2].start(Start::Join, None).await;
    propose(&places[2..], "two").await;
    // The first comes back as a new member, in an empty directory.
    places[0].dir = tempfile::tempdir().unwrap();
    places[0].id = 44;
    places[0].start(Start::Join, None).await;
    assert_eq!(places[0].node().epoch(), Epoch::NONE);
    let member = places[0].member();
    soon(places[2].node().membership().add(44, member))
        .await
        .unwrap();
    assert_eq!(places[0].node().epoch(), next(Epoch::FIRST));
    // Messages of the old epoch, and of another recovery of it, are refused by both, whoever they are for.
    for (place, id) in [(0, 44), (2, 33)] {
        for epoch in [Epoch::FIRST, Epoch::FIRST.next(78), Epoch::NONE] {
            let refused = ask(&places[place], id, epoch).await.unwrap_err();
            assert_eq!(refused.code(), Code::FailedPrecondition);
            assert!(refused.message().contains("of epoch 2-"), "{refused}");
        }
        ask(&places[place], id, next(Epoch::FIRST)).await.unwrap();
    }
    // The second of the old ones asks around, and is fenced.
    places[1].start(Start::Join, None).await;
    soon(places[1].node().fenced()).await;
    propose(&[places.remove(2), places.remove(0)], "three").await;
    stop(places).await;
}

/// Would it vote for a candidate of that epoch with a higher term?
async fn ask(place: &Place, to: u64, epoch: Epoch) -> Result<(), tonic::Status> {
    let channel = tonic::transport::Channel::from_shared(format!("http://{}", place.address));
    let mut client = RaftClient::new(channel.unwrap().connect_lazy());
    let mut request = tonic::Request::new(swarm_proto::own::RaftVoteRequest {
        to,
        vote: Some(wire::vote(&vote(1))),
        ..Default::default()
    });
    put(request.metadata_mut(), epoch);
    client.pre_vote(request).await.map(drop)
}

#[test]
fn who_is_told_is_fenced_and_answers_so() {
    let dir = tempfile::tempdir().unwrap();
    Gate::create(&Disk::Real, dir.path(), Epoch::FIRST).unwrap();
    let gate = Gate::open(&Disk::Real, dir.path()).unwrap();
    let tell = |epoch| {
        let mut request = tonic::Request::new(swarm_proto::own::RaftFenceRequest {
            addresses: vec!["10.0.0.9:4242".to_owned(), "bad one".to_owned()],
        });
        put(request.metadata_mut(), epoch);
        gate.be_told(request).unwrap()
    };
    assert!(!tell(Epoch::FIRST).fenced);
    let answer = tell(next(Epoch::FIRST));
    assert!(answer.fenced && Epoch::of_wire(answer.epoch) == Epoch::FIRST);
    let kept = Gate::open(&Disk::Real, dir.path())
        .unwrap()
        .fenced()
        .unwrap();
    assert_eq!(kept.managers, ["10.0.0.9:4242"]);
}
