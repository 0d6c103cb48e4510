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

use crate::ca::IdentityDir;
use crate::ca::root::format_time;
use crate::clock::Clock;
use crate::config::Config;
use crate::host;
use crate::manager::backup::{self, BackupError};
use crate::manager::raft::Epoch;
use crate::manager::recovery::{RecoveryError, Restored};
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
    backup::state(open(path)?).map_err(failed(path))?;
    Ok(describe(&header))
}

fn describe(header: &own::BackupHeader) -> String {
    let managers: Vec<String> = header
        .members
        .iter()
        .map(|m| format!("{} at {}", m.node_id, m.addresses.join(", ")))
        .collect();
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
    let told = header.clone();
    let restored = Restored::new((header, state), addresses, availability, clock)?;
    let (node, epoch) = (restored.identity.node_id(), restored.epoch);
    write(dir, restored)?;
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
         {others}Workers come back by themselves to an address that they know; elsewhere start them once with\n\n    \
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
