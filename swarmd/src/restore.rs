//! `swarmd restore`: a cluster goes on from a backup, on this host.
//!
//! Invariants:
//! - A backup is read to its end, and its checksum compared, before anything is made of it.
//! - The state directory is whole or empty: a mark lies in it until all is durable, and no swarmd starts beside the mark.

use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};

use swarm_proto::amount::count;
use swarm_proto::own;
use swarm_proto::pb::node_spec::Availability;
use swarm_proto::time::Timestamp;

use crate::ca::root::format_time;
use crate::ca::{IdentityDir, UnlockKey};
use crate::clock::Clock;
use crate::config::Config;
use crate::host;
use crate::manager::autolock;
use crate::manager::backup::{self, BackupError};
use crate::manager::raft::Epoch;
use crate::manager::recovery::{RecoveryError, Restored};
use crate::manager::store::State;
use crate::seal::KeyId;
use crate::state_dir::StateDir;

/// Why nothing was restored.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RestoreError {
    /// The file.
    #[error("backup {}: {reason}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// What is wrong with it.
        reason: BackupError,
    },
    /// The directory.
    #[error(transparent)]
    StateDir(#[from] crate::state_dir::StateDirError),
    /// The state.
    #[error(transparent)]
    Recovery(#[from] RecoveryError),
    /// It holds no unlock key.
    #[error("backup {}: there is no unlock key in it, because autolock was off: what is restored from it is not locked", .0.display())]
    NoUnlockKey(PathBuf),
    /// The certificate.
    #[error(transparent)]
    Identity(#[from] crate::ca::StateFileError),
}

fn open(path: &Path) -> Result<BufReader<File>, RestoreError> {
    let file = File::open(path).map_err(|e| failed(path)(e.into()))?;
    Ok(BufReader::new(file))
}

fn failed(path: &Path) -> impl FnOnce(BackupError) -> RestoreError {
    let path = path.to_owned();
    move |reason| RestoreError::File { path, reason }
}

/// Checks a backup to its end; says what it is of. Blocks.
///
/// # Errors
/// Why it can't be used.
pub(crate) fn check(path: &Path) -> Result<String, RestoreError> {
    let header = backup::check(open(path)?).map_err(failed(path))?;
    // Also that this version knows every object in it.
    let state = backup::state(open(path)?).map_err(failed(path))?;
    Ok(describe(&header, unlock_key(&state).as_ref()))
}

/// The unlock key that is in a backup. Blocks.
///
/// # Errors
/// Why it can't be read, or that there is none.
pub(crate) fn show_unlock_key(path: &Path) -> Result<String, RestoreError> {
    backup::check(open(path)?).map_err(failed(path))?;
    let state = backup::state(open(path)?).map_err(failed(path))?;
    let key = unlock_key(&state).ok_or_else(|| RestoreError::NoUnlockKey(path.to_owned()))?;
    Ok(key.reveal().to_string())
}

fn unlock_key(state: &State) -> Option<UnlockKey> {
    autolock::wish(state)?.key
}

fn describe(header: &own::BackupHeader, key: Option<&UnlockKey>) -> String {
    let managers: Vec<String> = header
        .members
        .iter()
        .map(|m| format!("{} at {}", m.node_id, m.addresses.join(", ")))
        .collect();
    let autolock = match key {
        Some(key) => format!(
            "on; what is restored is opened by the unlock key of that time, key id {}, which `swarmd restore \
             --show-unlock-key` shows",
            KeyId::of(key)
        ),
        None => "off".to_owned(),
    };
    let line = |name: &str, value: &dyn std::fmt::Display| format!("{name:<10}: {value}");
    [
        line("Cluster", &header.cluster_id),
        line("Epoch", &Epoch::of_wire(header.epoch)),
        line(
            "Log entry",
            &format!("{} of term {}", header.index, header.term),
        ),
        line("Made at", &format_time(Timestamp(header.created_at))),
        line("Made by", &format!("swarmd {}", header.version)),
        line("Nodes", &header.nodes),
        line("Services", &header.services),
        line("Tasks", &header.tasks),
        line("Managers", &managers.join("; ")),
        line("Autolock", &autolock),
    ]
    .join("\n")
}

/// Makes the state directory of a new manager from a backup; says what to do next. Blocks.
///
/// # Errors
/// Why not. The directory is as it was then.
pub(crate) fn restore(
    path: &Path,
    config: &Config,
    availability: Availability,
    clock: &Clock,
) -> Result<String, RestoreError> {
    let dir = &config.state_dir;
    StateDir::check_empty(dir)?;
    let header = backup::check(open(path)?).map_err(failed(path))?;
    let state = backup::state(open(path)?).map_err(failed(path))?;
    let addresses = host::advertised(config);
    let address = addresses.join(",");
    let (told, key) = (header.clone(), unlock_key(&state));
    let restored = Restored::new((header, state), addresses, availability, clock)?;
    let (node, epoch) = (restored.identity.node_id(), restored.epoch);
    write(dir, restored)?;
    let locked = key.map_or(String::new(), |key| {
        format!(
            "Autolock is on: this host is locked when it starts, and the unlock key of the time of the backup opens it (key \
             id {}), whatever has replaced it since; `swarmd restore --show-unlock-key {}` shows it, and `swarmctl cluster \
             unlock-key --rotate` replaces it afterwards.\n",
            KeyId::of(&key),
            path.display(),
        )
    });
    let others = match told.members.len() {
        0 => String::new(),
        n => format!(
            "The {} of the backup {} no member of it any more, and told so where it can be reached: `swarmd leave --force` \
             there and join again, or `swarmctl node rm` its node here.\n",
            count(n as u64, "manager"),
            if n == 1 { "is" } else { "are" },
        ),
    };
    Ok(format!(
        "restored cluster {} as of {} (log entry {}), epoch {epoch}, with {} and {}\n\
         This host is its only manager, node {node}, at {address}. Start it with the flags that swarmd runs with here:\n\n    \
         swarmd --state-dir {} --advertise-remote-api {address}\n\n\
         {locked}{others}Workers come back by themselves to an address that they know; elsewhere start them once with\n\n    \
         swarmd --join-addr {address}",
        told.cluster_id,
        format_time(Timestamp(told.created_at)),
        told.index,
        count(told.services, "service"),
        count(told.tasks, "task"),
        dir.display(),
    ))
}

fn write(dir: &Path, restored: Restored) -> Result<(), RestoreError> {
    let existed = dir.exists();
    let state = StateDir::open(dir)?;
    state.begin_restore()?;
    let (identity, seal) = (restored.identity.clone(), restored.seal());
    let path = state.path().to_owned();
    let written = restored.write(&path, &seal).map_err(RestoreError::from);
    let written = written.and_then(|()| Ok(IdentityDir::sealed(&path, seal).store(&identity)?));
    let written = written.and_then(|()| Ok(state.end_restore()?));
    if written.is_err() {
        // What failed is told; should this fail too, the mark stays and says so.
        let undone = state.undo_restore();
        if undone.is_ok() && !existed {
            let _ = std::fs::remove_dir(&path);
        }
    }
    written
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use clap::Parser as _;
    use swarm_proto::pb;

    use super::*;
    use crate::ca::{ExpiredCertificate, RootCa};
    use crate::config::Cli;
    use crate::manager::autolock::{Rotate, decide};
    use crate::manager::bootstrap;
    use crate::manager::raft::{Epoch, Gate, check_key, read_former};
    use crate::seal::Seal;

    /// A backup of a cluster with a manager, and one that an earlier recovery left behind.
    fn backup(dir: &Path, autolock: bool, epoch: Epoch) -> (PathBuf, Option<UnlockKey>) {
        let now = Clock::real().now();
        let mut cluster = bootstrap::cluster(&RootCa::generate(now).unwrap(), now).unwrap();
        cluster.spec.encryption_config = Some(pb::EncryptionConfig {
            auto_lock_managers: autolock,
        });
        decide(&mut cluster, Rotate::No).unwrap();
        let state = State {
            cluster: Some(Arc::new(cluster)),
            ..State::default()
        };
        let member = |id: u64| own::RaftMember {
            id,
            node_id: format!("node-{id}"),
            addresses: vec![format!("10.0.0.{id}:4242")],
        };
        let header = own::BackupHeader {
            members: vec![member(1)],
            former: vec![member(2)],
            epoch: Some(epoch.to_wire()),
            ..backup::header_of(&state, 7, now)
        };
        let path = dir.join("cluster.backup");
        let mut file = Vec::new();
        backup::write(&mut file, &header, &state).unwrap();
        std::fs::write(&path, file).unwrap();
        (path, unlock_key(&state))
    }

    fn restored(path: &Path, dir: &Path) -> String {
        let args = ["swarmd", "--state-dir", dir.to_str().unwrap()];
        let more = ["--advertise-remote-api", "10.0.0.9:4242"];
        let config = Cli::try_parse_from(args.into_iter().chain(more));
        let config = config.unwrap().config().unwrap();
        restore(path, &config, Availability::Active, &Clock::real()).unwrap()
    }

    #[test]
    fn what_is_restored_under_autolock_is_locked_by_a_key_that_can_be_shown() {
        let dir = tempfile::tempdir().unwrap();
        let (path, key) = backup(dir.path(), true, Epoch::FIRST);
        let key = key.unwrap();
        let id = KeyId::of(&key).to_string();
        let said = check(&path).unwrap();
        assert!(
            said.contains("unlock key of that time") && said.contains(&id),
            "{said}"
        );
        assert_eq!(show_unlock_key(&path).unwrap(), *key.reveal());
        let target = dir.path().join("state");
        let told = restored(&path, &target);
        for words in ["locked when it starts", &id, "--show-unlock-key"] {
            assert!(told.contains(words), "{told}");
        }
        assert!(!told.contains(key.reveal().as_str()), "{told}");
        // Both secrets are opened by that key, and by nothing else.
        for (seal, opens) in [(Seal::default(), false), (Seal::unlocked(key), true)] {
            let now = Clock::real().now();
            let identity = IdentityDir::sealed(&target, seal.clone());
            let identity = identity.load(now, ExpiredCertificate::Refuse);
            assert_eq!(identity.is_ok(), opens);
            assert_eq!(check_key(&target, &seal).is_ok(), opens);
        }
        let former = read_former(&target.join("raft")).unwrap();
        let former: Vec<u64> = former.iter().map(|former| former.id).collect();
        assert_eq!(former, [1, 2]);
    }

    #[test]
    fn without_autolock_there_is_no_key_to_show() {
        let dir = tempfile::tempdir().unwrap();
        let (path, _) = backup(dir.path(), false, Epoch::FIRST);
        let said = check(&path).unwrap();
        assert!(said.contains("Autolock  : off"), "{said}");
        let error = show_unlock_key(&path).unwrap_err().to_string();
        assert!(error.contains("autolock was off"), "{error}");
        assert!(!restored(&path, &dir.path().join("state")).contains("unlock"));
    }

    #[test]
    fn what_is_restored_is_above_every_epoch_that_the_backup_can_be_of() {
        // One of none was made by a manager that had joined a cluster of the first at least.
        for (of, restored_to) in [
            (Epoch::NONE, 2),
            (Epoch::FIRST, 2),
            (Epoch::FIRST.next(5), 3),
        ] {
            let dir = tempfile::tempdir().unwrap();
            let (path, _) = backup(dir.path(), false, of);
            let target = dir.path().join("state");
            restored(&path, &target);
            let gate = Gate::of_state_dir(&target).unwrap().unwrap();
            assert_eq!(gate.epoch().number(), restored_to, "{of}");
        }
    }
}
