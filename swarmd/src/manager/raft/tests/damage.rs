//! Damaged files: found, named, with the way out; never a panic, never silently fewer entries.

use std::path::PathBuf;

use super::*;

/// A closed raft directory with 60 entries and a snapshot at entry 20.
async fn sample() -> (tempfile::TempDir, Vec<Entry>) {
    let dir = tempfile::tempdir().unwrap();
    let opened = open(dir.path());
    let mut log = opened.log;
    let all: Vec<Entry> = (0..60).map(|i| entry(1, i, &format!("line {i}"))).collect();
    append(&mut log, all.clone()).await;
    snapshots::write(&opened.snapshots, log_id(1, 20), &"state ".repeat(100_000));
    log.save_committed(Some(log_id(1, 59))).await.unwrap();
    close(log).await;
    (dir, all)
}

fn path_of(dir: &tempfile::TempDir, name: &str) -> PathBuf {
    dir.path().join("raft").join(name)
}

/// A copy of a sample in which one file is changed.
fn changed(
    sample: &tempfile::TempDir,
    name: &str,
    change: impl FnOnce(&mut Vec<u8>),
) -> tempfile::TempDir {
    let copy = tempfile::tempdir().unwrap();
    for (path, content) in tree(sample.path()) {
        let relative = path.strip_prefix(sample.path()).unwrap();
        let target = copy.path().join(relative);
        std::fs::create_dir_all(target.parent().unwrap()).unwrap();
        std::fs::write(&target, &content).unwrap();
    }
    std::fs::create_dir_all(copy.path().join("raft/snapshots")).unwrap();
    let target = copy.path().join("raft").join(name);
    let mut content = std::fs::read(&target).unwrap();
    change(&mut content);
    std::fs::write(&target, content).unwrap();
    copy
}

/// Opens and, if that works, demands that everything is there.
async fn refused_or_whole(dir: &tempfile::TempDir, all: &[Entry], what: &str) -> Option<String> {
    match RaftDir::open(&Disk::Real, (dir.path(), Seal::default()), 1) {
        Err(error) => {
            let text = error.to_string();
            assert!(text.contains("raft/"), "{what}: no file named: {text}");
            let way_out = ["; stop swarmd and restore", "run the version that wrote it"];
            let has_one = way_out.iter().any(|way| text.contains(way));
            assert!(has_one, "{what}: no way out: {text}");
            Some(text)
        }
        Ok(opened) => {
            let mut log = opened.log;
            assert_eq!(entries(&mut log).await, all, "{what}");
            close(log).await;
            None
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn flipped_bits_in_the_log_are_found() {
    let (sample, all) = sample().await;
    let len = std::fs::metadata(path_of(&sample, "log.redb"))
        .unwrap()
        .len();
    let len = usize::try_from(len).unwrap();
    let mut refused = 0;
    // The file is mostly unused pages: walk it coarsely, and its used bytes finely.
    let content = std::fs::read(path_of(&sample, "log.redb")).unwrap();
    let used = (0..len).filter(|i| content[*i] != 0).step_by(211);
    let places = used.chain((0..len).step_by(65_537)).map(|at| (at, 0x10));
    // redb's header: every byte, each flag.
    let header = (0..192).map(|at| (at, 1 << (at % 8)));
    let flags = (0..8).map(|bit| (9, 1 << bit));
    for (at, mask) in places.chain(header).chain(flags) {
        let dir = changed(&sample, "log.redb", |bytes| bytes[at] ^= mask);
        let what = format!("{mask:#04x} flipped at {at}");
        refused += usize::from(refused_or_whole(&dir, &all, &what).await.is_some());
    }
    assert!(refused > 10, "only {refused} found");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_truncated_log_is_found() {
    let (sample, all) = sample().await;
    let len = std::fs::metadata(path_of(&sample, "log.redb"))
        .unwrap()
        .len();
    for keep in [
        0,
        1,
        63,
        64,
        320,
        4096,
        8192,
        20_000,
        len / 2,
        len - 4096,
        len - 1,
    ] {
        let keep = usize::try_from(keep).unwrap();
        let dir = changed(&sample, "log.redb", |bytes| bytes.truncate(keep));
        let what = format!("truncated to {keep} of {len}");
        let error = refused_or_whole(&dir, &all, &what).await;
        assert!(error.is_some() || keep as u64 > len / 2, "{what} was taken");
    }
}

#[tokio::test]
async fn a_missing_file_is_named() {
    for name in ["id", "dek", "log.redb", "snapshots"] {
        let (dir, _) = sample().await;
        let path = path_of(&dir, name);
        if path.is_dir() {
            std::fs::remove_dir_all(&path).unwrap();
        } else {
            std::fs::remove_file(&path).unwrap();
        }
        let error = open_error(dir.path());
        assert!(
            error.contains(&format!("raft/{name} is missing")),
            "{error}"
        );
    }
}

#[tokio::test]
async fn every_flipped_bit_in_the_key_is_found() {
    let (sample, _) = sample().await;
    let len = std::fs::read(path_of(&sample, "dek")).unwrap().len();
    for at in 0..len - 1 {
        let dir = changed(&sample, "dek", |bytes| bytes[at] ^= 0x02);
        let error = open_error(dir.path());
        assert!(error.contains("raft/dek"), "{at}: {error}");
    }
    for keep in [0, 10, len / 2, len - 5] {
        let dir = changed(&sample, "dek", |bytes| bytes.truncate(keep));
        let error = open_error(dir.path());
        assert!(error.contains("raft/dek is damaged"), "{keep}: {error}");
    }
}

#[tokio::test]
async fn every_change_of_the_members_number_is_found() {
    let (sample, _) = sample().await;
    let len = std::fs::read(path_of(&sample, "id")).unwrap().len();
    for at in 0..len {
        let flipped = changed(&sample, "id", |bytes| bytes[at] ^= 0x01);
        let cut = changed(&sample, "id", |bytes| bytes.truncate(at));
        for dir in [flipped, cut] {
            let error = open_error(dir.path());
            assert!(error.contains("raft/id is damaged"), "{at}: {error}");
        }
    }
}

#[tokio::test]
async fn a_key_of_another_node_is_told_from_damage() {
    let (sample, _) = sample().await;
    let (other, _) = self::sample().await;
    let key = std::fs::read(path_of(&other, "dek")).unwrap();
    let dir = changed(&sample, "dek", |bytes| *bytes = key);
    let error = open_error(dir.path());
    assert!(error.contains("raft/dek does not open"), "{error}");
}

#[tokio::test]
async fn a_locked_key_says_so() {
    let (sample, _) = sample().await;
    let dir = changed(&sample, "dek", |bytes| {
        let text = String::from_utf8(bytes.clone()).unwrap();
        *bytes = text.replace(" plain", " kek-v1").into_bytes();
    });
    let error = open_error(dir.path());
    assert!(error.contains("is locked (kek-v1)"), "{error}");
}

#[tokio::test]
async fn records_that_were_swapped_are_found() {
    let (dir, _) = sample().await;
    let db = redb::Database::open(path_of(&dir, "log.redb")).unwrap();
    let txn = db.begin_write().unwrap();
    {
        use redb::ReadableTable as _;
        let mut table = txn.open_table(super::super::log_file::LOG).unwrap();
        let one = table.get(10).unwrap().unwrap().value().to_vec();
        table.insert(11, one.as_slice()).unwrap();
    }
    txn.commit().unwrap();
    drop(db);
    let error = open_error(dir.path());
    assert!(
        error.contains("log.redb is damaged: log entry 11: it does not decrypt"),
        "{error}"
    );
}

#[tokio::test]
async fn a_lost_end_and_a_hole_are_found() {
    for (remove, expect) in [
        (59, "log entries 59 to 59"),
        (30, "log entries 30 to 30"),
        (0, "log entries 0 to 0"),
    ] {
        let (dir, _) = sample().await;
        let db = redb::Database::open(path_of(&dir, "log.redb")).unwrap();
        let txn = db.begin_write().unwrap();
        txn.open_table(super::super::log_file::LOG)
            .unwrap()
            .remove(remove)
            .unwrap();
        txn.commit().unwrap();
        drop(db);
        let error = open_error(dir.path());
        assert!(
            error.contains(&format!("{expect}: they are missing")),
            "{error}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_snapshot_is_found_at_start() {
    let (sample, _) = sample().await;
    let snapshots = path_of(&sample, "snapshots");
    let file = std::fs::read_dir(&snapshots)
        .unwrap()
        .next()
        .unwrap()
        .unwrap();
    let name = format!("snapshots/{}", file.file_name().to_str().unwrap());
    let len = usize::try_from(file.metadata().unwrap().len()).unwrap();
    let flips = (0..len).step_by(9_973).chain([0, 9, 41, 45, 60, len - 1]);
    for at in flips {
        let dir = changed(&sample, &name, |bytes| bytes[at] ^= 0x01);
        assert!(
            start_error(&dir).await.contains(".snap"),
            "bit flipped at {at}"
        );
    }
    for keep in [0, 7, 40, 44, 100, len / 2, len - 1] {
        let dir = changed(&sample, &name, |bytes| bytes.truncate(keep));
        assert!(
            start_error(&dir).await.contains(".snap"),
            "truncated to {keep}"
        );
    }
    let dir = changed(&sample, &name, |bytes| bytes.extend_from_slice(b"more"));
    assert!(start_error(&dir).await.contains(".snap"), "grown");
}

async fn start_error(dir: &tempfile::TempDir) -> String {
    let config = config(dir.path(), 1);
    let dialer = Arc::new(super::super::PlainDialer);
    let started = RaftNode::start(
        config,
        super::super::Start::Found,
        Ledger::default(),
        dialer,
    );
    started.await.unwrap_err().to_string()
}
