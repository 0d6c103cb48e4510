//! Autolock: whether managers are locked when they start, by which key, and that each manager's files are kept so.
//!
//! The cluster object says it: a setting, and the unlock key, which is made, replaced and dropped together with it
//! ([`decide`], as SwarmKit does). Each manager follows the cluster object as its own log shows it and seals its files
//! accordingly ([`Keeper`]); where it is down meanwhile it does so when it is back.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use swarm_proto::pb;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use super::raft::{Published, RaftKeys, forget_replaced};
use super::store::{Cluster, State};
use crate::ca::token::NoRandomness;
use crate::ca::{IdentityDir, Role, UnlockKey};
use crate::clock::Clock;
use crate::process;
use crate::seal::{Changed, Seal, Sealing};

/// Pause before what the disk refused is tried again.
const AGAIN: Duration = Duration::from_secs(5);

/// Whose key it is: managers', by the name of their role, as in SwarmKit.
fn subsystem() -> &'static str {
    Role::Manager.organizational_unit()
}

/// The key that unlocks managers, as it is stored; none without autolock.
pub(crate) fn stored_key(cluster: &Cluster) -> Option<&[u8]> {
    let mut keys = cluster.unlock_keys.iter();
    let key = keys.find(|key| key.subsystem == subsystem())?;
    Some(&key.key)
}

/// The cluster object's entry for a key.
pub(crate) fn entry(key: &UnlockKey) -> pb::EncryptionKey {
    pb::EncryptionKey {
        subsystem: subsystem().to_owned(),
        key: key.expose().to_vec(),
        ..Default::default()
    }
}

/// Brings the keys of a changed cluster object in line with its setting: the first key when autolock is turned on, none
/// when it is off, another one when that is asked for. False where a new key was asked for and there is no autolock.
///
/// # Errors
/// When the system gives no randomness.
pub(crate) fn decide(cluster: &mut Cluster, rotate: Rotate) -> Result<bool, NoRandomness> {
    let setting = cluster.spec.encryption_config.as_ref();
    let on = setting.is_some_and(|setting| setting.auto_lock_managers);
    let keep = on && rotate == Rotate::No && stored_key(cluster).is_some();
    if !keep {
        cluster
            .unlock_keys
            .retain(|key| key.subsystem != subsystem());
    }
    if on && !keep {
        cluster.unlock_keys.push(entry(&UnlockKey::generate()?));
    }
    Ok(on || rotate == Rotate::No)
}

/// Whether a new unlock key is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rotate {
    Yes,
    No,
}

/// How the cluster wants its managers' files kept. None where there is no cluster yet, or its key is none: then nothing
/// is laid open by mistake.
pub(crate) fn wish(state: &State) -> Option<Sealing> {
    let cluster = state.cluster.as_ref()?;
    let key = match stored_key(cluster) {
        Some(key) => Some(UnlockKey::from_bytes(key)?),
        None => None,
    };
    Some(Sealing {
        key,
        version: cluster.meta.version,
    })
}

/// Brings both files of a manager in line with what the cluster wants; `step` comes before each is looked at. Blocks on the
/// disk.
pub(crate) fn change_files(
    seal: &Seal,
    (dir, keys): (&IdentityDir, &RaftKeys),
    wish: &Sealing,
    step: &dyn Fn() -> Result<(), String>,
) -> Result<Changed, String> {
    seal.change(wish, || {
        step()?;
        dir.reseal().map_err(|error| error.to_string())?;
        step()?;
        keys.reseal().map_err(|error| error.to_string())
    })
}

/// Keeps one manager's files as the cluster wants them.
#[derive(Debug)]
pub(crate) struct Keeper {
    pub(crate) state_dir: PathBuf,
    pub(crate) seal: Seal,
    pub(crate) dir: IdentityDir,
    pub(crate) keys: RaftKeys,
    pub(crate) published: watch::Receiver<Published<State>>,
    /// Has the node's certificate renewed, with a new key.
    pub(crate) renew_now: Arc<Notify>,
    pub(crate) clock: Clock,
}

impl Keeper {
    /// Does it until cancelled.
    pub(crate) async fn run(mut self, cancel: CancellationToken) {
        let _ = cancel.run_until_cancelled(self.follow()).await;
    }

    async fn follow(&mut self) {
        let mut seen = None;
        loop {
            let wish = wish(&self.published.borrow_and_update().view);
            // Every change of the cluster object has a version of its own.
            let version = wish.as_ref().map(|wish| wish.version);
            if version != seen
                && let Some(wish) = wish
            {
                if let Err(error) = self.keep(wish).await {
                    tracing::error!(%error, retry_after = ?AGAIN, "this manager's keys are not all sealed as the cluster wants");
                    self.clock.sleep(AGAIN).await;
                    continue;
                }
                seen = version;
            }
            if self.published.changed().await.is_err() {
                return;
            }
        }
    }

    pub(crate) async fn keep(&self, wish: Sealing) -> Result<(), String> {
        if self.seal.differs_from(&wish) {
            let (seal, dir, keys) = (self.seal.clone(), self.dir.clone(), self.keys.clone());
            let changing =
                process::blocking(move || change_files(&seal, (&dir, &keys), &wish, &|| Ok(())));
            match changing.await.map_err(|error| error.to_string())?? {
                Changed::Nothing => {}
                Changed::Opened => {
                    tracing::info!("autolock is off: this manager's keys are no longer sealed");
                }
                Changed::Locked => {
                    tracing::info!("autolock is on: this manager's keys are sealed");
                }
                Changed::Rotated => {
                    tracing::info!("this manager's keys are sealed by the new unlock key");
                }
            }
        }
        // Read from the file: the renewal may have been cut off by the end of the process.
        let dir = self.dir.clone();
        let exposed = process::blocking(move || dir.is_exposed()).await;
        let exposed = exposed.map_err(|error| error.to_string())?;
        if exposed.map_err(|error| error.to_string())? {
            self.renew_now.notify_one();
        }
        // What was on the disk before might have been read there: from now on it opens nothing that is written.
        if self.keys.rotation_due() {
            // Noted on disk until the rotation ends, so this is done also where the change itself was cut off.
            let state_dir = self.state_dir.clone();
            let removed = process::blocking(move || forget_replaced(&state_dir)).await;
            let removed = removed.map_err(|error| error.to_string())?;
            if removed.map_err(|error| error.to_string())? > 0 {
                tracing::info!(
                    "what a recovery had replaced is removed: it was open to who had the disk, or to the unlock key from before"
                );
            }
            let rotated = self.keys.rotate().await;
            if rotated.map_err(|error| error.to_string())? {
                tracing::info!("log and snapshot are sealed by a new data encryption key");
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manager::store::Meta;

    fn cluster(on: bool) -> Cluster {
        Cluster {
            id: swarm_proto::id::ClusterId::from_raw(1),
            meta: Meta::default(),
            spec: pb::ClusterSpec {
                encryption_config: Some(pb::EncryptionConfig {
                    auto_lock_managers: on,
                }),
                ..Default::default()
            },
            root_ca: pb::RootCa::default(),
            blacklist: std::collections::BTreeMap::new(),
            unlock_keys: Vec::new(),
            managers: std::collections::BTreeMap::new(),
        }
    }

    #[test]
    fn there_is_a_key_exactly_while_autolock_is_on() {
        let mut cluster = cluster(true);
        assert!(decide(&mut cluster, Rotate::No).unwrap());
        let first = cluster.unlock_keys.clone();
        assert_eq!(first.len(), 1);
        assert_eq!(first[0].subsystem, "swarm-manager");
        // Another update changes nothing; a rotation does.
        assert!(decide(&mut cluster, Rotate::No).unwrap());
        assert_eq!(cluster.unlock_keys, first);
        assert!(decide(&mut cluster, Rotate::Yes).unwrap());
        assert_ne!(cluster.unlock_keys, first);
        assert_eq!(cluster.unlock_keys.len(), 1);
        // Keys of others stay.
        let other = pb::EncryptionKey {
            subsystem: "other".to_owned(),
            ..Default::default()
        };
        cluster.unlock_keys.push(other.clone());
        cluster.spec.encryption_config = None;
        assert!(!decide(&mut cluster, Rotate::Yes).unwrap());
        assert_eq!(cluster.unlock_keys, [other]);
    }

    #[test]
    fn a_key_that_is_none_lays_nothing_open() {
        let mut state = State::default();
        assert!(wish(&state).is_none());
        let mut locked = cluster(true);
        decide(&mut locked, Rotate::No).unwrap();
        state.cluster = Some(Arc::new(locked.clone()));
        assert!(wish(&state).unwrap().key.is_some());
        locked.unlock_keys[0].key.truncate(16);
        state.cluster = Some(Arc::new(locked));
        assert!(wish(&state).is_none());
    }
}
