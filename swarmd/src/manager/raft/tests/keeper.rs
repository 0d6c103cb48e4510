//! A manager's two sealed files as the cluster wants them, cut off before each is written.

use std::cell::Cell;

use super::super::Start;
use super::forced::start;
use super::rotation::{copy, key, wish};
use super::*;
use crate::ca::testing::{NOW, TestCa};
use crate::ca::{ExpiredCertificate, IdentityDir, Role};
use crate::clock::Clock;
use crate::manager::autolock::{Keeper, change_files};
use crate::manager::raft::check_key;

fn seal_of(number: Option<u8>) -> Seal {
    number.map_or(Seal::default(), |number| Seal::unlocked(key(number)))
}

/// Whether one key, or none, opens all that lies there.
fn opens(dir: &Path, number: Option<u8>) -> bool {
    let seal = seal_of(number);
    let identity = IdentityDir::sealed(dir, seal.clone());
    let identity = identity.load(NOW, ExpiredCertificate::Allow);
    identity.is_ok() && check_key(dir, &seal).is_ok()
}

/// A stopped manager, whose files are kept as `number` says, and beside them what a recovery has replaced.
async fn stopped(number: Option<u8>) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let seal = Seal::default();
    seal.adopt(&wish(number, 10));
    let identity = TestCa::new(1).identity(5, Role::Manager);
    IdentityDir::sealed(dir.path(), seal.clone())
        .store(&identity)
        .unwrap();
    let (node, _) = start(dir.path(), &seal, Start::Found).await;
    node.shutdown().await;
    let replaced = dir.path().join("raft.before-epoch-2");
    std::fs::create_dir(&replaced).unwrap();
    std::fs::write(replaced.join("dek"), "swarm-raft-dek-1 plain").unwrap();
    dir
}

#[tokio::test]
async fn a_cut_before_each_write_leaves_one_key_for_both_files_and_is_gone_on_from() {
    for (from, to) in [(None, Some(1)), (Some(1), Some(2)), (Some(1), None)] {
        let dir = stopped(from).await;
        for cut in 0..=4 {
            let what = format!("{from:?} to {to:?}, cut before write {cut}");
            let image = copy(dir.path());
            let seal = seal_of(from);
            let (node, _) = start(image.path(), &seal, Start::Join).await;
            let left = Cell::<usize>::new(cut);
            let step = || {
                let rest = left.get().checked_sub(1).ok_or("cut".to_owned())?;
                left.set(rest);
                Ok(())
            };
            let identity = IdentityDir::sealed(image.path(), seal.clone());
            identity.load(NOW, ExpiredCertificate::Allow).unwrap();
            let files = (&identity, &node.keys());
            let _ = change_files(&seal, files, &wish(to, 20), &step);
            node.shutdown().await;
            let opener = [from, to]
                .into_iter()
                .find(|number| opens(image.path(), *number));
            let opener = opener.unwrap_or_else(|| panic!("{what}: no key opens both"));
            go_on(image.path(), opener, to, &what).await;
        }
    }
}

/// The manager starts with a key that opens its files, and hears what the cluster wants.
async fn go_on(dir: &Path, opener: Option<u8>, to: Option<u8>, what: &str) {
    let seal = seal_of(opener);
    let (node, _) = start(dir, &seal, Start::Join).await;
    let renew_now = Arc::new(Notify::new());
    let identity = IdentityDir::sealed(dir, seal.clone());
    identity.load(NOW, ExpiredCertificate::Allow).unwrap();
    let before: Vec<_> = node.keys().dek.keys().all().map(|dek| dek.id()).collect();
    let keeper = Keeper {
        state_dir: dir.to_owned(),
        seal,
        dir: identity.clone(),
        keys: node.keys(),
        published: node.published(),
        renew_now: Arc::clone(&renew_now),
        clock: Clock::real(),
    };
    keeper.keep(wish(to, 20)).await.unwrap();
    let after: Vec<_> = node.keys().dek.keys().all().map(|dek| dek.id()).collect();
    assert!(opens(dir, to), "{what}");
    let locked = to.is_some();
    // What lay open opens nothing that is written from now on, and lies nowhere else.
    assert_eq!(before != after, locked, "{what}");
    assert_eq!(dir.join("raft.before-epoch-2").exists(), !locked, "{what}");
    assert_eq!(identity.is_exposed().unwrap(), locked, "{what}");
    let told = tokio::time::timeout(Duration::from_millis(1), renew_now.notified()).await;
    assert_eq!(told.is_ok(), locked, "{what}: the certificate's key");
    node.shutdown().await;
}
