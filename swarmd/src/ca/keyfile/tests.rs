use super::*;
use crate::ca::UnlockKey;
use crate::ca::testing::{NOW, TestCa};
use std::time::Duration;

/// What the file holds, and the problem it must be called.
type Case<'a> = (&'a [u8], fn(&PemProblem) -> bool);

struct Fixture {
    _tmp: tempfile::TempDir,
    dir: IdentityDir,
    ca: TestCa,
}

fn fixture() -> Fixture {
    let tmp = tempfile::tempdir().unwrap();
    let dir = IdentityDir::new(tmp.path());
    Fixture {
        _tmp: tmp,
        dir,
        ca: TestCa::new(1),
    }
}

impl Fixture {
    fn stored() -> (Self, NodeIdentity) {
        let f = fixture();
        let identity = f.ca.identity(5, Role::Worker);
        f.dir.store(&identity).unwrap();
        (f, identity)
    }
    fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
    fn load(&self) -> Result<Option<NodeIdentity>, StateFileError> {
        self.dir.load(NOW, ExpiredCertificate::Refuse)
    }
    fn error(&self) -> StateFileError {
        let error = self.load().unwrap_err();
        let text = error.to_string();
        assert!(text.contains("certificates/"), "names the file: {text}");
        error
    }
}

#[test]
fn an_identity_survives_a_restart() {
    let f = fixture();
    assert!(f.load().unwrap().is_none(), "fresh node");
    let identity = f.ca.identity(5, Role::Manager);
    f.dir.store(&identity).unwrap();
    let loaded = f.load().unwrap().unwrap();
    assert_eq!(loaded.as_peer(), identity.as_peer());
    assert_eq!(loaded.key_pem(), identity.key_pem());
    let mode = |name| fs::metadata(f.file(name)).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(NODE_KEY), 0o600);
    assert_eq!(
        fs::metadata(f.dir.path()).unwrap().permissions().mode() & 0o777,
        0o700
    );
    let names: Vec<_> = fs::read_dir(f.dir.path())
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
    assert_eq!(names.len(), 3, "no leftovers: {names:?}");
    f.dir.clear().unwrap();
    assert!(f.load().unwrap().is_none());
    f.dir.clear().unwrap();
}

#[test]
fn an_unfinished_join_is_a_fresh_node() {
    let f = fixture();
    f.dir.store_root(f.ca.root.cert_pem()).unwrap();
    assert!(f.load().unwrap().is_none());
    assert_eq!(f.dir.load_root().unwrap().unwrap(), f.ca.root.cert_pem());
}

#[test]
fn a_missing_file_is_named() {
    for name in [ROOT_CERT, NODE_CERT, NODE_KEY] {
        let (f, _) = Fixture::stored();
        fs::remove_file(f.file(name)).unwrap();
        let error = f.error();
        let StateFileError::Missing { missing, .. } = error else {
            panic!("{error}")
        };
        assert_eq!(missing, f.file(name));
    }
}

#[test]
fn empty_truncated_and_corrupted_files_are_named() {
    for name in [ROOT_CERT, NODE_CERT, NODE_KEY] {
        let (f, _) = Fixture::stored();
        let good = fs::read(f.file(name)).unwrap();
        let mut flipped = good.clone();
        flipped[60] = b'!';
        let corrupted = |p: &PemProblem| matches!(p, PemProblem::Corrupted(_));
        let cases: [Case<'_>; 5] = [
            (b"", |p| *p == PemProblem::Empty),
            (&good[..good.len() / 2], |p| *p == PemProblem::Truncated),
            (&flipped, corrupted),
            (b"\xff\xfe", corrupted),
            (&[b'a'; MAX_PEM_BYTES * 2], corrupted),
        ];
        for (bytes, expected) in cases {
            fs::write(f.file(name), bytes).unwrap();
            let error = f.error();
            let StateFileError::Content { path, problem } = error else {
                panic!("{error}")
            };
            assert_eq!(path, f.file(name));
            assert!(expected(&problem), "{name}: {problem}");
        }
    }
}

#[test]
fn mismatched_foreign_and_expired_are_told_apart() {
    let (f, identity) = Fixture::stored();
    fs::write(f.file(NODE_KEY), f.ca.identity(5, Role::Worker).key_pem()).unwrap();
    assert!(matches!(f.error(), StateFileError::KeyMismatch { .. }));

    f.dir.store(&identity).unwrap();
    fs::write(f.file(ROOT_CERT), TestCa::new(2).root.cert_pem()).unwrap();
    assert!(matches!(f.error(), StateFileError::ForeignRoot { .. }));

    f.dir.store(&identity).unwrap();
    let late = identity.not_after().after(Duration::from_secs(1));
    let error = f.dir.load(late, ExpiredCertificate::Refuse).unwrap_err();
    assert!(matches!(error, StateFileError::Expired { .. }));
    assert!(error.to_string().contains("--force-new-cluster"), "{error}");
    assert!(
        f.dir
            .load(late, ExpiredCertificate::Allow)
            .unwrap()
            .is_some()
    );
    let error = f
        .dir
        .load(Timestamp::ZERO, ExpiredCertificate::Allow)
        .unwrap_err();
    assert!(matches!(error, StateFileError::NotYetValid { .. }));
}

#[test]
fn a_crash_between_the_renames_loses_nothing() {
    let (f, old) = Fixture::stored();
    let new = f.ca.identity(5, Role::Manager);
    // Crash before the first rename: the old pair is whole.
    f.dir.prepare(NODE_KEY, new.key_pem(), 0o600).unwrap();
    f.dir.prepare(NODE_CERT, new.cert_pem(), 0o644).unwrap();
    assert_eq!(f.load().unwrap().unwrap().cert_pem(), old.cert_pem());
    assert!(!f.dir.pending(NODE_KEY).exists(), "no key is left behind");
    // Crash between the renames: the new pair is completed.
    f.dir.prepare(NODE_KEY, new.key_pem(), 0o600).unwrap();
    f.dir.prepare(NODE_CERT, new.cert_pem(), 0o644).unwrap();
    f.dir.commit(NODE_CERT).unwrap();
    assert_eq!(f.load().unwrap().unwrap().cert_pem(), new.cert_pem());
    assert_eq!(fs::read_to_string(f.file(NODE_KEY)).unwrap(), new.key_pem());
    assert_eq!(f.load().unwrap().unwrap().role(), Role::Manager);
}

fn key(number: u8) -> UnlockKey {
    UnlockKey::from_bytes(&[number; 32]).unwrap()
}

/// The same files, for a process that has this unlock key.
fn with_key(f: &Fixture, seal: Seal) -> IdentityDir {
    IdentityDir::sealed(f.dir.path().parent().unwrap(), seal)
}

#[test]
fn a_managers_key_is_sealed_and_a_workers_is_not() {
    let f = fixture();
    let dir = with_key(&f, Seal::unlocked(key(1)));
    let load = |dir: &IdentityDir| dir.load(NOW, ExpiredCertificate::Refuse);
    let (manager, worker) = (
        f.ca.identity(5, Role::Manager),
        f.ca.identity(5, Role::Worker),
    );
    dir.store(&manager).unwrap();
    let text = fs::read_to_string(f.file(NODE_KEY)).unwrap();
    assert!(!text.contains("PRIVATE KEY"), "{text}");
    assert_eq!(
        load(&dir).unwrap().unwrap().key_pem(),
        manager.key_pem(),
        "it comes back"
    );
    assert!(matches!(f.error(), StateFileError::Locked { .. }));
    let other = load(&with_key(&f, Seal::unlocked(key(2)))).unwrap_err();
    assert!(matches!(other, StateFileError::OtherKey { .. }), "{other}");
    assert_eq!(f.dir.certified().as_ref(), Some(manager.as_peer()));

    // Demoted.
    dir.store(&worker).unwrap();
    assert_eq!(f.load().unwrap().unwrap().role(), Role::Worker);

    // Truncated, or changed where it is sealed: damage, and no matter of keys.
    dir.store(&manager).unwrap();
    let good = fs::read(f.file(NODE_KEY)).unwrap();
    for at in [20, good.len() / 2, good.len() - 2] {
        let mut bytes = good.clone();
        bytes[at] ^= 1;
        for bytes in [&bytes[..], &good[..at]] {
            fs::write(f.file(NODE_KEY), bytes).unwrap();
            let error = load(&dir).unwrap_err();
            assert!(matches!(error, StateFileError::Content { .. }), "{error}");
        }
    }
}

#[test]
fn a_change_of_role_that_was_cut_off_is_finished_with_the_right_key() {
    for (before, after) in [(Role::Manager, Role::Worker), (Role::Worker, Role::Manager)] {
        let f = fixture();
        let dir = with_key(&f, Seal::unlocked(key(1)));
        dir.store(&f.ca.identity(5, before)).unwrap();
        let new = f.ca.identity(5, after);
        let text = dir.key_text(&dir.seal.hold(), after, new.key_pem());
        dir.prepare(NODE_KEY, &text.unwrap(), 0o600).unwrap();
        dir.prepare(NODE_CERT, new.cert_pem(), 0o644).unwrap();
        dir.commit(NODE_CERT).unwrap();
        if after == Role::Manager {
            assert!(matches!(f.error(), StateFileError::Locked { .. }));
            let loaded = dir.load(NOW, ExpiredCertificate::Refuse);
            assert_eq!(loaded.unwrap().unwrap().key_pem(), new.key_pem());
        } else {
            // A worker is never locked.
            assert_eq!(f.load().unwrap().unwrap().key_pem(), new.key_pem());
        }
    }
}

#[test]
fn resealing_writes_what_is_wanted_and_only_then() {
    let f = fixture();
    let seal = Seal::default();
    let dir = with_key(&f, seal.clone());
    let manager = f.ca.identity(5, Role::Manager);
    dir.store(&manager).unwrap();
    let loaded = || dir.load(NOW, ExpiredCertificate::Refuse).unwrap().unwrap();
    for (number, version) in [(Some(1), 10), (Some(2), 20), (None, 30)] {
        let key = number.map(key);
        let wish = crate::seal::Sealing { key, version };
        seal.change(&wish, || dir.reseal()).unwrap();
        let written = fs::read(f.file(NODE_KEY)).unwrap();
        dir.reseal().unwrap();
        assert_eq!(fs::read(f.file(NODE_KEY)).unwrap(), written);
        assert_eq!(loaded().key_pem(), manager.key_pem());
        assert_eq!(f.load().is_ok(), number.is_none());
    }
}

#[test]
fn a_key_that_lay_open_is_marked_until_another_is_stored() {
    let f = fixture();
    let seal = Seal::default();
    let dir = with_key(&f, seal.clone());
    let change = |number: Option<u8>, version| {
        let key = number.map(key);
        let wish = crate::seal::Sealing { key, version };
        seal.change(&wish, || dir.reseal()).unwrap();
    };
    let again = |number| with_key(&f, Seal::unlocked(key(number)));
    let manager = f.ca.identity(5, Role::Manager);
    dir.store(&manager).unwrap();
    assert!(!dir.is_exposed().unwrap(), "there is no lock");
    // It was plain text; it was open to the key from before.
    for (number, version) in [(1, 10), (2, 20)] {
        change(Some(number), version);
        assert!(dir.is_exposed().unwrap());
        // After a restart it is still known, and the key is as it was.
        let again = again(number);
        let loaded = again.load(NOW, ExpiredCertificate::Refuse);
        assert_eq!(loaded.unwrap().unwrap().key_pem(), manager.key_pem());
        assert!(again.is_exposed().unwrap());
        dir.store(&f.ca.identity(5, Role::Manager)).unwrap();
        assert!(!again.is_exposed().unwrap(), "another key is there");
        dir.store(&manager).unwrap();
    }
    change(Some(3), 30);
    change(None, 40);
    assert!(!dir.is_exposed().unwrap());
    let text = fs::read_to_string(f.file(NODE_KEY)).unwrap();
    assert_eq!(text, manager.key_pem(), "nothing stays of the mark");
}

#[test]
fn an_open_key_is_narrowed() {
    let (f, _) = Fixture::stored();
    fs::set_permissions(f.file(NODE_KEY), fs::Permissions::from_mode(0o644)).unwrap();
    f.load().unwrap();
    assert_eq!(
        fs::metadata(f.file(NODE_KEY)).unwrap().permissions().mode() & 0o777,
        0o600
    );
}
