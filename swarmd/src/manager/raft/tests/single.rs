//! One member end to end: propose, apply, read, snapshot, restart.

#![expect(clippy::disallowed_methods, reason = "measures")]

use std::time::{Duration, Instant};

use super::super::propose::MAX_COMMAND;
use super::super::{PlainDialer, ProposeError, Start};
use super::*;

async fn start(dir: &Path) -> RaftNode<Ledger> {
    start_with(config(dir, 1)).await
}

async fn start_with(config: RaftConfig) -> RaftNode<Ledger> {
    let dialer = Arc::new(PlainDialer);
    RaftNode::start(config, Start::Found, Ledger::default(), dialer)
        .await
        .unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_is_applied_read_and_there_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let node = start(dir.path()).await;
    let door = node.proposer();
    let first = door.propose(command("one")).await.unwrap();
    assert_eq!(*first.outcome, 1);
    // The decoded form that rides along is applied as it is.
    let riding = Command::with_decoded(Bytes::from_static(b"two"), "two".to_owned());
    let second = door.propose(riding).await.unwrap();
    assert_eq!((second.index, *second.outcome), (first.index + 1, 2));
    door.read_barrier().await.unwrap();
    assert_eq!(lines(&node), ["one", "two"]);
    let term = node.leadership().borrow().term().unwrap();
    node.shutdown().await;
    assert!(matches!(
        door.propose(command("late")).await,
        Err(ProposeError::ShuttingDown)
    ));

    let node = start(dir.path()).await;
    node.proposer().read_barrier().await.unwrap();
    assert_eq!(lines(&node), ["one", "two"]);
    let third = node.proposer().propose(command("three")).await.unwrap();
    assert_eq!(*third.outcome, 3);
    assert!(node.leadership().borrow().term().unwrap() > term);
    node.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fresh_member_takes_writes_at_once() {
    // The limit is generous for a loaded machine; the figure is in the bench.
    for _ in 0..3 {
        let dir = tempfile::tempdir().unwrap();
        let begin = Instant::now();
        let node = start(dir.path()).await;
        node.proposer().propose(command("first")).await.unwrap();
        let first = begin.elapsed();
        node.shutdown().await;
        let begin = Instant::now();
        let node = start(dir.path()).await;
        node.proposer().propose(command("second")).await.unwrap();
        let again = begin.elapsed();
        node.shutdown().await;
        println!("first write after {first:?}, after a restart {again:?}");
        assert!(first.max(again) < Duration::from_secs(2));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_writers_are_applied_once_each_in_log_order() {
    let dir = tempfile::tempdir().unwrap();
    let node = start(dir.path()).await;
    let begin = Instant::now();
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..64 {
        let door = node.proposer();
        writers.spawn(async move {
            let mut before = 0;
            for i in 0..20 {
                let done = door
                    .propose(command(&format!("{writer}/{i}")))
                    .await
                    .unwrap();
                assert!(done.index > before);
                before = done.index;
                // Who has an answer sees its own write.
                assert_eq!(door.view()[&done.index], format!("{writer}/{i}"));
            }
        });
    }
    writers.join_all().await;
    println!("1280 writes of 64 writers took {:?}", begin.elapsed());
    let mut all = lines(&node);
    assert_eq!(all.len(), 64 * 20);
    all.sort();
    all.dedup();
    assert_eq!(all.len(), 64 * 20);
    node.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sizes_are_limited_with_a_reason() {
    let dir = tempfile::tempdir().unwrap();
    let node = start(dir.path()).await;
    let door = node.proposer();
    let largest = "l".repeat(MAX_COMMAND);
    door.propose(command(&largest)).await.unwrap();
    let error = door
        .propose(command(&format!("{largest}+")))
        .await
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        "a change of 4194305 bytes is over the limit of 4194304 bytes: split it"
    );
    node.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_shortens_the_log_and_a_restart_starts_from_it() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(dir.path(), 1);
    config.snapshots = SnapshotLimits {
        entries: 50,
        bytes: u64::MAX,
        keep_entries: 10,
    };
    let node = start_with(config.clone()).await;
    for i in 0..200 {
        node.proposer()
            .propose(command(&format!("line {i}")))
            .await
            .unwrap();
    }
    // A loaded machine may take its first snapshot anywhere after the fiftieth entry.
    soon(node.until(|status| status.purged > 50 && status.snapshot >= 100)).await;
    let expect = lines(&node);
    node.shutdown().await;
    let files = tree(&dir.path().join("raft/snapshots"));
    assert_eq!(files.len(), 1);

    let node = start_with(config).await;
    node.proposer().read_barrier().await.unwrap();
    assert_eq!(lines(&node), expect);
    node.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_entries_bring_a_snapshot_by_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(dir.path(), 1);
    config.snapshots.bytes = 1 << 20;
    let node = start_with(config).await;
    let line = "b".repeat(100 << 10);
    for _ in 0..12 {
        node.proposer().propose(command(&line)).await.unwrap();
    }
    soon(node.until(|status| status.snapshot > 0)).await;
    node.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_entry_that_does_not_decode_stops_the_manager_with_a_reason() {
    let dir = tempfile::tempdir().unwrap();
    let node = start(dir.path()).await;
    let stopped = node.stopped();
    let bad = Command::encoded(Bytes::from_static(b"\xff\xfe"));
    let error = node.proposer().propose(bad).await.unwrap_err();
    // It is in the log: another version of swarmd may apply it.
    assert!(
        matches!(error, ProposeError::OutcomeUnknown { .. }),
        "{error}"
    );
    let reason = stopped.await.unwrap();
    assert!(reason.contains("does not decode"), "{reason}");
    node.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_waits_to_join_does_not_lead() {
    let dir = tempfile::tempdir().unwrap();
    let node = RaftNode::start(
        config(dir.path(), 2),
        Start::Join,
        Ledger::default(),
        Arc::new(PlainDialer),
    )
    .await
    .unwrap();
    assert!(node.status().members.is_empty());
    assert_eq!(node.leadership().borrow().term(), None);
    node.shutdown().await;
}
