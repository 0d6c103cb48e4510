//! Snapshots: streamed in and out, replaced atomically.

use super::super::types::SnapshotMeta;
use super::*;

pub(super) fn meta(last: LogId) -> SnapshotMeta {
    SnapshotMeta {
        last_log_id: Some(last),
        last_membership: Default::default(),
    }
}

/// Puts a snapshot with one ledger line in place.
pub(super) fn write(store: &SnapshotStore, last: LogId, text: &str) {
    let meta = meta(last);
    let mut writer = store.create(&meta).unwrap();
    writeln!(writer, "{} {text}", last.index).unwrap();
    let file = store.finish(writer, meta).unwrap();
    store.install(file).unwrap();
}

fn read(store: &SnapshotStore) -> String {
    let snapshot = store.current().unwrap();
    let mut text = String::new();
    snapshot
        .snapshot
        .read()
        .unwrap()
        .read_to_string(&mut text)
        .unwrap();
    text
}

fn store(dir: &Path) -> SnapshotStore {
    // The same key each time.
    let dek = Dek::from_bytes(&[7; 32]).unwrap();
    SnapshotStore::open(&Disk::Real, dir, &ring(&dek)).unwrap()
}

#[test]
fn sizes_around_a_chunk_come_back_whole() {
    const CHUNK: usize = 256 << 10;
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path());
    for (i, size) in [0, 1, CHUNK - 3, CHUNK - 2, CHUNK - 1, CHUNK, 3 * CHUNK + 5]
        .into_iter()
        .enumerate()
    {
        let text = "t".repeat(size);
        write(&store, log_id(1, i as u64), &text);
        assert_eq!(read(&store), format!("{i} {text}\n"));
        let snapshot = store.current().unwrap().snapshot;
        let mut reader = snapshot.read().unwrap();
        let mut chunked = Vec::new();
        while let Some(chunk) = reader.take_chunk().unwrap() {
            assert!(chunk.len() <= CHUNK);
            chunked.extend(chunk);
        }
        assert_eq!(chunked, format!("{i} {text}\n").into_bytes());
    }
}

#[test]
fn the_newest_replaces_the_others_and_survives_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let first = store(dir.path());
    write(&first, log_id(1, 5), "five");
    let kept = first.current().unwrap();
    write(&first, log_id(1, 9), "nine");
    // Whoever reads the old one can go on.
    let mut old = String::new();
    kept.snapshot
        .read()
        .unwrap()
        .read_to_string(&mut old)
        .unwrap();
    assert_eq!(old, "5 five\n");
    // An older one that comes late changes nothing.
    write(&first, log_id(1, 7), "seven");
    assert_eq!(read(&first), "9 nine\n");
    assert_eq!(tree(dir.path()).len(), 1);

    let again = store(dir.path());
    assert_eq!(again.current().unwrap().meta, meta(log_id(1, 9)));
    assert_eq!(read(&again), "9 nine\n");
}

#[test]
fn unfinished_and_older_files_are_removed_at_start() {
    let dir = tempfile::tempdir().unwrap();
    let first = store(dir.path());
    write(&first, log_id(1, 5), "five");
    let old = tree(dir.path()).keys().next().unwrap().clone();
    std::fs::copy(&old, dir.path().join("kept")).unwrap();
    write(&first, log_id(1, 9), "nine");
    std::fs::rename(dir.path().join("kept"), &old).unwrap();
    let writer = first.create(&meta(log_id(1, 11))).unwrap();
    drop(writer);
    assert_eq!(tree(dir.path()).len(), 3);
    let again = store(dir.path());
    assert_eq!(read(&again), "9 nine\n");
    assert_eq!(tree(dir.path()).len(), 1);
}
