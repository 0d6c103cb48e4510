//! Envelopes, and changes of key that are cut off at each step.

use std::cell::{Cell, RefCell};

use proptest::prelude::*;

use super::*;

const MAGIC: &str = "test-secret-1";

fn key(number: u8) -> UnlockKey {
    UnlockKey::from_bytes(&[number; 32]).unwrap()
}

fn kek(number: u8, version: u64) -> Kek {
    Kek {
        key: key(number),
        version,
    }
}

fn wish(number: Option<u8>, version: u64) -> Sealing {
    Sealing {
        key: number.map(key),
        version,
    }
}

proptest! {
    #[test]
    fn a_secret_comes_back_with_each_of_its_keys(secret: Vec<u8>, version: u64) {
        let keks = [kek(1, version), kek(2, 7)];
        let text = Envelope::seal(MAGIC, &secret, &keks).unwrap().text();
        let read = Envelope::parse(MAGIC, &text).unwrap();
        prop_assert!(read.is_for(&keks) && !read.is_for(&keks[..1]));
        for kek in &keks {
            prop_assert_eq!(&*read.open(&kek.key).unwrap().unwrap(), &secret);
        }
        prop_assert!(read.open(&key(3)).is_none());
    }
}

#[test]
fn no_changed_byte_goes_unnoticed() {
    let text = Envelope::seal(MAGIC, b"secret", &[kek(1, 7)])
        .unwrap()
        .text();
    for at in 0..text.len() {
        let mut bytes = text.clone().into_bytes();
        bytes[at] ^= 0x01;
        if let Ok(changed) = String::from_utf8(bytes) {
            assert!(Envelope::parse(MAGIC, &changed).is_err(), "byte {at}");
        }
        assert!(Envelope::parse(MAGIC, &text[..at]).is_err(), "cut at {at}");
    }
    // With a checksum that fits: what is sealed is authentic all the same.
    let (body, _) = text.trim_end().rsplit_once('\n').unwrap();
    let body = body.replace("slot 7 ", "slot 8 ");
    let forged = format!("{body}\n{}\n", checksum_of(&body));
    let forged = Envelope::parse(MAGIC, &forged).unwrap();
    let opened = forged.open(&key(1)).unwrap();
    assert_eq!(opened.unwrap_err(), EnvelopeError::NotAuthentic);
    // A secret is of one kind.
    let other = text.replace(MAGIC, "other-secret-1");
    assert!(Envelope::parse(MAGIC, &other).is_err());
}

fn checksum_of(body: &str) -> String {
    let sum = ring::digest::digest(&ring::digest::SHA256, body.as_bytes());
    let hex: String = sum.as_ref().iter().map(|b| format!("{b:02x}")).collect();
    format!("sha256:{hex}")
}

#[test]
fn nothing_of_a_key_is_shown() {
    let envelope = Envelope::seal(MAGIC, b"secret", &[kek(1, 7)]).unwrap();
    let seal = Seal::unlocked(key(1));
    let shown = format!("{envelope:?} {seal:?} {:?}", kek(1, 7));
    let revealed = key(1).reveal();
    assert!(!shown.contains(&revealed[9..20]), "{shown}");
    assert!(!shown.contains("[1, 1"), "{shown}");
}

/// Two files, and a power supply that fails before a given write.
#[derive(Default)]
struct Disk {
    files: RefCell<[Option<String>; 2]>,
    writes_left: Cell<usize>,
}

impl Disk {
    fn reseal(&self, seal: &Seal) -> Result<(), &'static str> {
        for file in self.files.borrow_mut().iter_mut() {
            let mut held = seal.hold();
            let sealed = file
                .as_ref()
                .map(|text| Envelope::parse(MAGIC, text).unwrap());
            let secret = match &sealed {
                Some(envelope) => held.open(envelope).unwrap().to_vec(),
                None => b"secret".to_vec(),
            };
            assert_eq!(secret, b"secret");
            let slots = held.slots();
            let same = match &sealed {
                Some(envelope) => envelope.is_for(slots),
                None => slots.is_empty(),
            };
            if same {
                continue;
            }
            let left = self.writes_left.get();
            self.writes_left.set(left.checked_sub(1).ok_or("cut")?);
            *file =
                (!slots.is_empty()).then(|| Envelope::seal(MAGIC, &secret, slots).unwrap().text());
        }
        Ok(())
    }

    /// The keys among these that open all that is sealed; all of them where nothing is.
    fn openers(&self, keys: &[u8]) -> Vec<u8> {
        let opens = |number: &u8| {
            let files = self.files.borrow();
            files.iter().flatten().all(|text| {
                let envelope = Envelope::parse(MAGIC, text).unwrap();
                envelope.open(&key(*number)).is_some()
            })
        };
        keys.iter().copied().filter(opens).collect()
    }
}

/// Every change, cut off before each of its writes, opened again with each key that does, and ended.
#[test]
fn a_power_cut_at_each_step_leaves_a_key_that_opens_everything() {
    for (from, to) in [(None, Some(1)), (Some(1), Some(2)), (Some(1), None)] {
        for cut in 0..=4 {
            let disk = Disk::default();
            let seal = Seal::default();
            disk.writes_left.set(9);
            let begin = wish(from, 10);
            seal.change(&begin, || disk.reseal(&seal)).unwrap();
            disk.writes_left.set(cut);
            let ended = seal.change(&wish(to, 20), || disk.reseal(&seal));
            let what = format!("{from:?} to {to:?} cut before write {cut}: {ended:?}");
            let keys: Vec<u8> = from.into_iter().chain(to).collect();
            let openers = disk.openers(&keys);
            assert!(!openers.is_empty(), "{what}");
            if ended.is_ok() {
                assert!(to.is_none_or(|to| openers == [to]), "{what}");
            }
            for opener in openers {
                start_again(&disk, opener, wish(to, 20), &what);
            }
        }
    }
}

/// A rotation that is cut off, and another one after it in the same process, cut off too: what opens everything is never
/// a key from before the newest one that did.
#[test]
fn a_change_after_one_that_failed_goes_on_from_the_newest_key_that_opens_everything() {
    for (first, second) in (0..4).flat_map(|first| (0..=4).map(move |second| (first, second))) {
        let what = format!("cut before write {first}, then before write {second}");
        let disk = Disk::default();
        let seal = Seal::default();
        disk.writes_left.set(9);
        seal.change(&wish(Some(1), 10), || disk.reseal(&seal))
            .unwrap();
        disk.writes_left.set(first);
        seal.change(&wish(Some(2), 20), || disk.reseal(&seal))
            .unwrap_err();
        assert!(seal.differs_from(&wish(Some(2), 20)), "{what}");
        // Two writes, and the second key opens both files.
        let newest = if first < 2 { 1 } else { 2 };
        disk.writes_left.set(second);
        let ended = seal.change(&wish(Some(3), 30), || disk.reseal(&seal));
        let openers = disk.openers(&[1, 2, 3]);
        assert!(
            openers.iter().any(|opener| *opener >= newest),
            "{what}: {openers:?}"
        );
        for opener in openers.iter().filter(|opener| **opener >= newest) {
            start_again(&disk, *opener, wish(Some(3), 30), &what);
        }
        if ended.is_err() {
            disk.writes_left.set(9);
            let ended = seal.change(&wish(Some(3), 30), || disk.reseal(&seal));
            assert_eq!(ended, Ok(Changed::Rotated), "{what}");
        }
        assert_eq!(disk.openers(&[1, 2, 3]), [3], "{what}");
        assert!(!seal.differs_from(&wish(Some(3), 30)), "{what}");
    }
}

/// The process starts anew with a key, sees the log from its beginning, and reaches the cluster's wish.
fn start_again(disk: &Disk, opener: u8, wish: Sealing, what: &str) {
    let files = disk.files.borrow().clone();
    let again = Disk {
        files: RefCell::new(files),
        writes_left: Cell::new(9),
    };
    let locked = again.files.borrow().iter().any(Option::is_some);
    let seal = match locked {
        true => Seal::unlocked(key(opener)),
        false => Seal::default(),
    };
    // As reading the files does.
    for text in again.files.borrow().iter().flatten() {
        let envelope = Envelope::parse(MAGIC, text).unwrap();
        seal.hold().open(&envelope).unwrap();
    }
    let change = |wish: &Sealing| {
        if seal.differs_from(wish) {
            seal.change(wish, || again.reseal(&seal)).unwrap();
        }
    };
    change(&wish);
    let keys: Vec<u8> = wish.key.iter().map(|key| key.expose()[0]).collect();
    let files = again.files.borrow();
    for text in files.iter() {
        match text {
            Some(text) => {
                let slots: Vec<Kek> = keys.iter().map(|number| kek(*number, 0)).collect();
                assert!(
                    Envelope::parse(MAGIC, text).unwrap().is_for(&slots),
                    "{what}"
                );
            }
            None => assert!(keys.is_empty(), "{what}: plain text is left"),
        }
    }
    assert!(!seal.differs_from(&wish), "{what}");
}

#[test]
fn what_is_older_than_the_files_changes_nothing() {
    let seal = Seal::default();
    let never = || Err::<(), &str>("it was changed");
    seal.change(&wish(Some(1), 20), || Ok::<(), ()>(()))
        .unwrap();
    assert!(!seal.differs_from(&wish(None, 10)));
    assert!(!seal.differs_from(&wish(Some(9), 19)));
    // Other settings of the cluster change its version, and not the key.
    assert!(!seal.differs_from(&wish(Some(1), 30)));
    assert!(seal.differs_from(&wish(Some(2), 30)));
    assert!(seal.change(&wish(Some(2), 30), never).is_err());
    // What failed is still to be done.
    assert!(seal.differs_from(&wish(Some(2), 30)));
}

#[test]
fn a_key_that_is_missing_or_another_is_told() {
    let envelope = Envelope::seal(MAGIC, b"secret", &[kek(1, 42)]).unwrap();
    let locked = Seal::default().hold().open(&envelope).unwrap_err();
    assert_eq!(locked, OpenError::Locked);
    let other = Seal::unlocked(key(2)).hold().open(&envelope).unwrap_err();
    let text = other.to_string();
    assert!(
        text.contains("another unlock key") && text.contains("version 42"),
        "{text}"
    );
    assert_eq!(
        *Seal::unlocked(key(1)).hold().open(&envelope).unwrap(),
        b"secret"
    );
}
