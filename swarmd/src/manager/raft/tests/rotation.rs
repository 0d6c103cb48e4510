//! A new data encryption key: nothing is lost, the old one is of no use afterwards, and a power cut at any step is gone on
//! from.

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use super::super::dek_file::DekFile;
use super::super::encryption::ID_LEN;
use super::power_cut::{Disk, image};
use super::*;
use crate::ca::UnlockKey;
use crate::manager::raft::rotation::RaftKeys;
use crate::manager::raft::snapshot::Placed;
use crate::seal::Sealing;

pub(super) fn key(number: u8) -> UnlockKey {
    UnlockKey::from_bytes(&[number; 32]).unwrap()
}

pub(super) fn wish(number: Option<u8>, version: u64) -> Sealing {
    let key = number.map(key);
    Sealing { key, version }
}

fn keys_of(dir: &RaftDir) -> RaftKeys {
    RaftKeys {
        dek: Arc::clone(&dir.dek),
        log: dir.log.keys(),
        snapshots: Arc::clone(&dir.snapshots),
    }
}

/// Seals the key file as wanted.
fn change(seal: &Seal, keys: &RaftKeys, wish: &Sealing) {
    seal.change(wish, || keys.reseal()).unwrap();
}

fn ids(dir: &RaftDir) -> Vec<[u8; ID_LEN]> {
    dir.dek.keys().all().map(|dek| dek.id()).collect()
}

pub(super) fn copy(from: &Path) -> tempfile::TempDir {
    let to = tempfile::tempdir().unwrap();
    for (path, content) in tree(from) {
        let target = to.path().join(path.strip_prefix(from).unwrap());
        std::fs::create_dir_all(target.parent().unwrap()).unwrap();
        std::fs::write(target, content).unwrap();
    }
    std::fs::create_dir_all(to.path().join("raft/snapshots")).unwrap();
    to
}

fn open_with(dir: &Path, seal: &Seal) -> RaftDir {
    RaftDir::open(&super::Disk::Real, (dir, seal.clone()), 1).unwrap()
}

fn snapshot_text(dir: &RaftDir) -> String {
    let snapshot = dir.snapshots.current().unwrap();
    let mut text = String::new();
    let mut reader = snapshot.snapshot.read().unwrap();
    reader.read_to_string(&mut text).unwrap();
    text
}

/// 700 entries, so that sealing them anew takes several steps, and a snapshot.
async fn filled(dir: &Path, seal: &Seal) -> (RaftDir, Vec<Entry>) {
    let mut opened = open_with(dir, seal);
    let all: Vec<Entry> = (0..700)
        .map(|i| entry(1, i, &format!("line {i}")))
        .collect();
    append(&mut opened.log, all.clone()).await;
    opened.log.save_vote(&vote(3)).await.unwrap();
    opened
        .log
        .save_committed(Some(log_id(1, 600)))
        .await
        .unwrap();
    snapshots::write(&opened.snapshots, log_id(1, 500), "state");
    (opened, all)
}

#[tokio::test]
async fn a_new_key_takes_over_while_entries_come_in() {
    let dir = tempfile::tempdir().unwrap();
    let seal = Seal::default();
    let (mut opened, mut all) = filled(dir.path(), &seal).await;
    let (keys, old) = (keys_of(&opened), ids(&opened));
    assert!(!keys.rotation_due());
    assert!(!keys.rotate().await.unwrap(), "nobody wants one");
    change(&seal, &keys, &wish(Some(1), 10));
    assert!(keys.rotation_due());
    // One that comes in meanwhile was begun under the old key.
    let meta = snapshots::meta(log_id(1, 650));
    let mut coming = opened.snapshots.create(&meta).unwrap();
    writeln!(coming, "650 newer").unwrap();
    let rotating = keys.rotate();
    let more: Vec<Entry> = (700..900).map(|i| entry(1, i, "more")).collect();
    let (rotated, ()) = futures::join!(rotating, append(&mut opened.log, more.clone()));
    assert!(rotated.unwrap());
    all.extend(more);
    assert_eq!(snapshot_text(&opened), "500 state\n");
    let coming = opened.snapshots.finish(coming, meta).unwrap();
    opened.snapshots.install(coming).unwrap();
    let new = ids(&opened);
    assert!(new.len() == 1 && new != old);
    close(opened.log).await;

    // The one key in the file opens everything.
    let unlocked = Seal::unlocked(key(1));
    let mut again = open_with(dir.path(), &unlocked);
    assert_eq!(ids(&again), new);
    assert_eq!(entries(&mut again.log).await, all);
    assert_eq!(snapshot_text(&again), "650 newer\n");
    assert_eq!(tree(&dir.path().join("raft/snapshots")).len(), 1);
    assert!(!keys_of(&again).rotation_due());
    close(again.log).await;
}

/// Entries that only a key epoch of before opens, and that nothing needs any more.
#[tokio::test]
async fn what_a_purge_that_was_cut_off_twice_left_is_not_sealed_anew() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log.redb");
    let (disk, old) = (super::Disk::Real, Dek::generate().unwrap());
    let open = || LogFile::open(&disk, &path, (&ring(&old), Path::new("dek"))).unwrap();
    let file = LogFile::create(&disk, (&path, &path), &old).unwrap();
    let mut log = LogStore::over(file, Loaded::default()).unwrap();
    let many = (0..20_000).map(|i| entry(1, i, "x")).collect();
    append(&mut log, many).await;
    close(log).await;
    // What stays is of the next epoch.
    let (file, loaded) = open();
    let mut log = LogStore::over(file, loaded).unwrap();
    let stays: Vec<Entry> = (20_000..20_010).map(|i| entry(1, i, "y")).collect();
    append(&mut log, stays.clone()).await;
    log.purge(log_id(1, 19_999)).await.unwrap();
    close(log).await;
    // A start that ends before it has removed anything.
    drop(open());
    let (file, loaded) = open();
    assert!(loaded.first_on_disk.unwrap() < 20_000);
    let mut log = LogStore::over(file, loaded).unwrap();
    let new = Arc::new(Dek::generate().unwrap());
    log.keys().rekey(Arc::clone(&new)).await.unwrap();
    assert_eq!(entries(&mut log).await, stays);
    close(log).await;
    let keys = DekRing::new(new, None);
    let (_, loaded) = LogFile::open(&disk, &path, (&keys, Path::new("dek"))).unwrap();
    assert_eq!(loaded.last, Some(log_id(1, 20_009)));
}

/// An install that has seen the old key, and is overtaken by the whole rotation before it has the snapshot's place.
#[tokio::test]
async fn a_snapshot_that_a_new_key_overtakes_is_put_in_place_under_that_key() {
    let dir = tempfile::tempdir().unwrap();
    let seal = Seal::default();
    let (opened, _) = filled(dir.path(), &seal).await;
    let keys = keys_of(&opened);
    let store = &opened.snapshots;
    let meta = snapshots::meta(log_id(1, 650));
    let mut coming = store.create(&meta).unwrap();
    writeln!(coming, "650 newer").unwrap();
    let coming = store.finish(coming, meta).unwrap();
    // Twice: also where it is sealed anew by a key that is itself replaced meanwhile.
    let mut parked = store.under_newest(coming).unwrap();
    for number in [1, 2] {
        change(&seal, &keys, &wish(Some(number), u64::from(number) * 10));
        assert!(keys.rotate().await.unwrap());
        let Placed::KeyChanged(back) = store.place(parked).unwrap() else {
            panic!("in place under the key that is gone, {number}");
        };
        parked = store.under_newest(back).unwrap();
    }
    store.install(parked).unwrap();
    assert_eq!(snapshot_text(&opened), "650 newer\n");
    close(opened.log).await;
    let again = open_with(dir.path(), &Seal::unlocked(key(2)));
    assert_eq!(ids(&again).len(), 1);
    assert_eq!(snapshot_text(&again), "650 newer\n");
    assert_eq!(tree(&dir.path().join("raft/snapshots")).len(), 1);
    close(again.log).await;
}

#[tokio::test]
async fn a_new_key_is_wanted_when_another_unlock_key_opens_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let seal = Seal::default();
    let opened = open_with(dir.path(), &seal);
    let keys = keys_of(&opened);
    let mut seen = ids(&opened);
    // (wish, whether a new DEK comes of it)
    for (number, version, wanted) in [
        (None, 5, false),
        (Some(1), 10, true),
        (Some(1), 11, false),
        (Some(2), 20, true),
        (None, 30, false),
        (Some(1), 40, true),
    ] {
        change(&seal, &keys, &wish(number, version));
        assert_eq!(keys.rotation_due(), wanted, "{version}");
        assert_eq!(keys.rotate().await.unwrap(), wanted, "{version}");
        let now = ids(&opened);
        assert_eq!(now != seen, wanted, "{version}");
        seen = now;
        let text = std::fs::read_to_string(dir.path().join("raft/dek")).unwrap();
        let word = if number.is_some() {
            " sealed\n"
        } else {
            " plain\n"
        };
        assert!(text.contains(word), "{version}: {text}");
    }
    close(opened.log).await;
}

/// Cuts between the steps of a rotation; the log's own step is cut at every write below.
#[tokio::test]
async fn a_rotation_is_gone_on_from_after_each_of_its_steps() {
    for steps in 0..5 {
        let dir = tempfile::tempdir().unwrap();
        let seal = Seal::default();
        let (opened, all) = filled(dir.path(), &seal).await;
        let (keys, old) = (keys_of(&opened), ids(&opened));
        change(&seal, &keys, &wish(Some(1), 10));
        if steps > 0 {
            let both = keys.dek.begin_rotation().unwrap().unwrap();
            if steps > 1 {
                keys.log.rekey(Arc::clone(both.newest())).await.unwrap();
            }
            if steps > 2 {
                keys.snapshots.rekey(both.newest()).unwrap();
            }
            if steps > 3 {
                keys.dek.end_rotation().unwrap();
            }
        }
        // Whatever is on disk now is what a cut leaves; closing adds nothing that counts.
        close(opened.log).await;
        let cut = copy(dir.path());
        let unlocked = Seal::unlocked(key(1));
        let mut again = open_with(cut.path(), &unlocked);
        assert_eq!(entries(&mut again.log).await, all, "after {steps} steps");
        let mut reader = again.log.get_log_reader().await;
        assert_eq!(reader.read_vote().await.unwrap(), Some(vote(3)));
        let keys = keys_of(&again);
        assert_eq!(keys.rotate().await.unwrap(), steps < 4, "{steps}");
        assert!(!keys.rotation_due());
        assert!(ids(&again) != old && ids(&again).len() == 1);
        close(again.log).await;
        let mut last = open_with(cut.path(), &unlocked);
        assert_eq!(entries(&mut last.log).await, all, "after {steps} steps");
        assert_eq!(snapshot_text(&last), "500 state\n");
        close(last.log).await;
    }
}

/// The log is sealed anew on a disk that is cut at every write.
#[tokio::test]
async fn a_power_cut_while_the_log_is_sealed_anew_loses_nothing() {
    let disk = Disk::default();
    let (old, new) = (Dek::generate().unwrap(), Dek::generate().unwrap());
    let both = DekRing::new(Arc::new(new), Some(Arc::clone(ring(&old).newest())));
    let mut log = new_log(disk.database(), &old);
    let all: Vec<Entry> = (0..600)
        .map(|i| entry(1, i, &format!("line {i}")))
        .collect();
    append(&mut log, all.clone()).await;
    log.save_vote(&vote(3)).await.unwrap();
    let start = disk.now();
    let keys = log.keys();
    keys.rekey(Arc::clone(both.newest())).await.unwrap();
    let done = disk.now();
    close(log).await;
    let history = disk.history();
    let mut rng = StdRng::seed_from_u64(9);
    for cut in (start..=history.len())
        .filter(|_| rng.random_range(0..4) == 0)
        .collect::<Vec<_>>()
    {
        let image = image(&history, cut, &mut rng);
        let keys = match cut >= done {
            // Once it was answered the new key is enough.
            true => DekRing::new(Arc::clone(both.newest()), None),
            false => both.clone(),
        };
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log.redb");
        std::fs::write(&path, image).unwrap();
        let opened = LogFile::open(&super::Disk::Real, &path, (&keys, Path::new("dek")));
        let (file, loaded) = opened.unwrap_or_else(|e| panic!("cut at step {cut}: {e}"));
        assert_eq!(loaded.vote, Some(vote(3)));
        assert_eq!(file.read(0, 600, usize::MAX).unwrap(), all, "cut at {cut}");
    }
}

#[tokio::test]
async fn a_locked_directory_and_a_wrong_key_are_told() {
    let dir = tempfile::tempdir().unwrap();
    let seal = Seal::default();
    seal.adopt(&wish(Some(1), 7));
    close(open_with(dir.path(), &seal).log).await;
    let error = open_error(dir.path());
    assert!(error.contains("raft/dek is locked (sealed)"), "{error}");
    let other =
        RaftDir::open(&super::Disk::Real, (dir.path(), Seal::unlocked(key(2))), 1).unwrap_err();
    let other = other.to_string();
    assert!(other.contains("another unlock key"), "{other}");
    assert!(other.contains("since version 7"), "{other}");
    // Every flipped bit is damage, and no matter of keys.
    let path = dir.path().join("raft/dek");
    let good = std::fs::read(&path).unwrap();
    for at in 16..good.len() - 1 {
        let mut bytes = good.clone();
        bytes[at] ^= 0x02;
        std::fs::write(&path, bytes).unwrap();
        let error = DekFile::read(&super::Disk::Real, &path, Seal::unlocked(key(1)));
        let error = error.unwrap_err().to_string();
        assert!(error.contains("raft/dek"), "{at}: {error}");
        assert!(!error.contains("another unlock key"), "{at}: {error}");
    }
}

/// A member goes on while its log gets one new key after another.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_takes_writes_while_keys_change() {
    let dir = tempfile::tempdir().unwrap();
    let start = async |seal: &Seal| {
        let config = RaftConfig {
            seal: seal.clone(),
            snapshots: SnapshotLimits {
                entries: 50,
                keep_entries: 20,
                ..SnapshotLimits::default()
            },
            ..config(dir.path(), 1)
        };
        let dialer = Arc::new(crate::manager::raft::PlainDialer);
        let found = crate::manager::raft::Start::Found;
        RaftNode::start(config, found, Ledger::default(), dialer)
            .await
            .unwrap()
    };
    let seal = Seal::default();
    let node = start(&seal).await;
    let (door, keys) = (node.proposer(), node.keys());
    let writing = async {
        for i in 0..300 {
            door.propose(command(&format!("line {i}"))).await.unwrap();
        }
    };
    let changing = async {
        for number in 1..=4 {
            change(&seal, &keys, &wish(Some(number), u64::from(number) * 10));
            assert!(keys.rotate().await.unwrap());
        }
    };
    futures::join!(writing, changing);
    let all = lines(&node);
    assert_eq!(all.len(), 300);
    node.shutdown().await;
    for number in 1..=3 {
        let error = RaftDir::open(
            &super::Disk::Real,
            (dir.path(), Seal::unlocked(key(number))),
            1,
        );
        assert!(
            error
                .unwrap_err()
                .to_string()
                .contains("another unlock key")
        );
    }
    let node = start(&Seal::unlocked(key(4))).await;
    node.proposer().read_barrier().await.unwrap();
    assert_eq!(lines(&node), all);
    node.shutdown().await;
}
