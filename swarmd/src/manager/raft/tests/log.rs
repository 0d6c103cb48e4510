//! The log store by itself: order, restarts, truncation, purge, the tail and the disk behind it.

use std::os::unix::fs::PermissionsExt as _;

use super::*;

#[tokio::test]
async fn the_committed_position_on_disk_is_never_beyond_the_log_there() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = open(dir.path()).log;
    append(&mut log, vec![blank(1, 0), entry(1, 1, "one")]).await;
    log.save_committed(Some(log_id(1, 1))).await.unwrap();
    close(log).await;
    let mut log = open(dir.path()).log;
    for ahead in [log_id(1, 3), log_id(2, 1)] {
        log.save_committed(Some(ahead)).await.unwrap();
        close(log).await;
        log = open(dir.path()).log;
        assert_eq!(log.read_committed().await.unwrap(), Some(log_id(1, 1)));
    }
    log.save_committed(Some(log_id(1, 3))).await.unwrap();
    append(&mut log, vec![blank(1, 2), blank(1, 3)]).await;
    close(log).await;
    let mut log = open(dir.path()).log;
    assert_eq!(log.read_committed().await.unwrap(), Some(log_id(1, 3)));
    close(log).await;
}

#[tokio::test]
async fn a_restart_finds_vote_positions_and_entries() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = open(dir.path()).log;
    log.save_vote(&vote(3)).await.unwrap();
    append(
        &mut log,
        vec![blank(1, 0), entry(1, 1, "one"), entry(2, 2, "two")],
    )
    .await;
    log.save_committed(Some(log_id(1, 1))).await.unwrap();
    close(log).await;

    let mut log = open(dir.path()).log;
    let mut reader = log.get_log_reader().await;
    assert_eq!(reader.read_vote().await.unwrap(), Some(vote(3)));
    assert_eq!(log.read_committed().await.unwrap(), Some(log_id(1, 1)));
    assert_eq!(
        entries(&mut log).await,
        vec![blank(1, 0), entry(1, 1, "one"), entry(2, 2, "two")]
    );
    // A second and third opening have new keys; the old records still open.
    append(&mut log, vec![entry(2, 3, "three")]).await;
    close(log).await;
    let mut log = open(dir.path()).log;
    assert_eq!(entries(&mut log).await.len(), 4);
}

#[tokio::test]
async fn a_log_is_opened_once_at_a_time() {
    let dir = tempfile::tempdir().unwrap();
    let _log = open(dir.path());
    let error = open_error(dir.path());
    assert!(
        error.contains("log.redb is in use: stop the other swarmd"),
        "{error}"
    );
}

#[tokio::test]
async fn what_is_truncated_stays_away_and_can_be_written_anew() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = open(dir.path()).log;
    let first: Vec<Entry> = (0..10).map(|i| entry(1, i, "old")).collect();
    append(&mut log, first).await;
    log.truncate_after(Some(log_id(1, 4))).await.unwrap();
    append(&mut log, vec![entry(2, 5, "new")]).await;
    let expect = [vec!["old"; 5], vec!["new"]].concat();
    let found = |entries: Vec<Entry>| -> Vec<String> {
        entries.iter().map(|e| text(e).to_owned()).collect()
    };
    assert_eq!(found(entries(&mut log).await), expect);
    close(log).await;
    let mut log = open(dir.path()).log;
    assert_eq!(found(entries(&mut log).await), expect);
}

#[tokio::test]
async fn a_purge_is_done_in_steps_and_survives_a_restart_in_between() {
    let dir = tempfile::tempdir().unwrap();
    let opened = open(dir.path());
    let mut log = opened.log;
    let many: Vec<Entry> = (0..6000).map(|i| entry(1, i, "x")).collect();
    append(&mut log, many).await;
    // The snapshot that makes the purge right.
    snapshots::write(&opened.snapshots, log_id(1, 5899), "state");
    log.purge(log_id(1, 5899)).await.unwrap();
    // No wait for the writer: closing interrupts the purge.
    close(log).await;
    for _ in 0..2 {
        let mut log = open(dir.path()).log;
        let state = log.get_log_state().await.unwrap();
        assert_eq!(state.last_purged_log_id, Some(log_id(1, 5899)));
        assert_eq!(state.last_log_id, Some(log_id(1, 5999)));
        let left = entries(&mut log).await;
        assert_eq!(left.first().unwrap().log_id.index, 5900);
        assert_eq!(left.len(), 100);
        close(log).await;
    }
}

#[tokio::test]
async fn entries_beyond_the_tail_are_read_from_disk() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = open(dir.path()).log;
    // 40 MiB, ten times what the tail keeps.
    let big = "b".repeat(400 << 10);
    for i in 0..100 {
        append(&mut log, vec![entry(1, i, &big)]).await;
    }
    let all = entries(&mut log).await;
    assert_eq!(all.len(), 100);
    assert!(
        all.iter()
            .zip(0..)
            .all(|(e, i)| e.log_id.index == i && text(e) == big)
    );
    let mut reader = log.get_log_reader().await;
    let some = reader.limited_get_log_entries(0, 100).await.unwrap();
    assert!((2..=8).contains(&some.len()), "{} entries", some.len());
    let stream = reader.entries_stream(90..95).await;
    let streamed: Vec<Entry> = futures::TryStreamExt::try_collect(stream).await.unwrap();
    assert_eq!(streamed.len(), 5);
}

#[tokio::test]
async fn nothing_is_readable_in_the_files_and_only_the_owner_may_open_them() {
    const MARKER: &str = "very-secret-marker";
    let dir = tempfile::tempdir().unwrap();
    let opened = open(dir.path());
    let mut log = opened.log;
    append(&mut log, vec![entry(1, 0, MARKER)]).await;
    snapshots::write(&opened.snapshots, log_id(1, 0), MARKER);
    close(log).await;
    let files = tree(dir.path());
    assert_eq!(files.len(), 5, "{:?}", files.keys());
    for (path, content) in files {
        let found = content
            .windows(MARKER.len())
            .any(|w| w == MARKER.as_bytes());
        assert!(!found, "{} holds plaintext", path.display());
        let mode = path.metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o600, "{}", path.display());
    }
    let raft = dir.path().join("raft");
    assert_eq!(raft.metadata().unwrap().permissions().mode() & 0o777, 0o700);
}

fn text(entry: &Entry) -> &str {
    let EntryPayload::Normal(command) = &entry.payload else {
        panic!("{entry:?}");
    };
    std::str::from_utf8(command.bytes()).unwrap()
}
