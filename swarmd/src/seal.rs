//! How a manager's secrets lie on disk: in plain text, or sealed by the cluster's unlock key.
//!
//! A manager keeps two secrets in files: its TLS key (`certificates/swarm-node.key`) and the key of its log
//! (`raft/dek`). With autolock both are sealed by a key encryption key (KEK) that is derived from the unlock key, so a
//! stolen disk opens nothing, and a manager that starts is locked until somebody gives it that key.
//!
//! Two files can't be replaced in one step. So each can be sealed for several keys at once (`envelope`), and a new key
//! comes in two phases: first every file is sealed for the old and the new key, and only then for the new one alone.
//!
//! Invariants:
//! - At every moment of a change there is one key that opens every sealed file: the old one until the first phase is
//!   over, the new one from then on, both in between. A power cut leaves one of these states.
//! - What is to be sealed is never written in plain text, also where a key is missing: that is an error.
//! - A change is known by the cluster object's version. An older one, such as a log that is read again at a start
//!   shows, changes nothing.

mod envelope;

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use zeroize::Zeroizing;

use crate::ca::UnlockKey;
pub(crate) use envelope::{Envelope, EnvelopeError, KeyId};

/// The word in a file's first line that says it is sealed.
pub(crate) const SEALED: &str = "sealed";

/// An unlock key and since which version of the cluster object it is the cluster's.
#[derive(Clone, Debug)]
pub(crate) struct Kek {
    pub(crate) key: UnlockKey,
    pub(crate) version: u64,
}

impl Kek {
    pub(crate) fn id(&self) -> KeyId {
        KeyId::of(&self.key)
    }
}

/// How a cluster wants its managers' secrets kept.
#[derive(Clone, Debug)]
pub(crate) struct Sealing {
    /// The unlock key; none without autolock.
    pub(crate) key: Option<UnlockKey>,
    /// The version of the cluster object that says so.
    pub(crate) version: u64,
}

impl Sealing {
    /// What files are sealed for.
    fn slots(&self) -> Vec<Kek> {
        let kek = |key: &UnlockKey| Kek {
            key: key.clone(),
            version: self.version,
        };
        self.key.iter().map(kek).collect()
    }
}

/// Why a sealed file does not open.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum OpenError {
    /// There is no key.
    #[error("it is sealed by the cluster's unlock key, and this manager is locked")]
    Locked,
    /// None of the keys at hand is one that it was sealed for.
    #[error("it is sealed by another unlock key, {0}")]
    OtherKey(String),
    /// It is sealed for a key at hand, and has been changed.
    #[error("{0}")]
    Damaged(EnvelopeError),
}

/// How this manager's secrets are kept now; all who read or write one of them share it.
#[derive(Clone, Debug, Default)]
pub struct Seal(Arc<Mutex<State>>);

#[derive(Clone, Default)]
struct State {
    /// What files are written for; none is plain text.
    slots: Vec<Kek>,
    /// What opens them: also keys that are on their way out.
    openers: Vec<UnlockKey>,
    /// The newest key that opens every file.
    current: Option<Kek>,
    /// Newest version that any file was sealed, or laid open, for.
    version: u64,
    /// Whether all files are known to be as `current` says.
    settled: bool,
    /// What a change has done that was not finished.
    unfinished: Option<Changed>,
}

/// The files are this one's to change as long as it lives. It is held for the disk's sake, and never over an await.
pub(crate) struct Held<'a>(MutexGuard<'a, State>);

impl Seal {
    /// A manager's that is unlocked with `key`, for tests. What lies on disk is looked at when the cluster's wish is known.
    #[cfg(test)]
    pub(crate) fn unlocked(key: UnlockKey) -> Self {
        let seal = Self::default();
        seal.unlock(key);
        seal
    }

    /// From now on `key` opens the files, and they are written for it.
    pub(crate) fn unlock(&self, key: UnlockKey) {
        let mut held = self.hold();
        let kek = Kek {
            version: held.0.version,
            key: key.clone(),
        };
        held.0.slots = vec![kek.clone()];
        held.0.openers = vec![key];
        held.0.current = Some(kek);
        held.0.settled = false;
        held.0.unfinished = None;
    }

    /// Goes on with what another one has found out.
    pub(crate) fn take_over(&self, other: &Self) {
        let found = other.hold().0.clone();
        *self.hold().0 = found;
    }

    /// For a node that has no secret of a manager on disk yet: its first ones are kept so.
    pub(crate) fn adopt(&self, sealing: &Sealing) {
        let mut held = self.hold();
        held.0.slots = sealing.slots();
        held.0.openers = sealing.key.iter().cloned().collect();
        held.0.current = held.0.slots.first().cloned();
        held.0.version = sealing.version;
        held.0.settled = false;
        held.0.unfinished = None;
    }

    /// For a node that is no manager any more.
    pub(crate) fn forget(&self) {
        *self.hold().0 = State::default();
    }

    /// Takes the files for one change.
    pub(crate) fn hold(&self) -> Held<'_> {
        Held(self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Whether the files have to change for the cluster's wish.
    pub(crate) fn differs_from(&self, wish: &Sealing) -> bool {
        let held = self.hold();
        let same = held.0.current.as_ref().map(Kek::id) == wish.key.as_ref().map(KeyId::of);
        wish.version >= held.0.version && !(same && held.0.settled)
    }

    /// Changes all files to what the cluster wants; `reseal` brings each of them in line with what they are written for
    /// at the time, and is called once or twice. Blocks on the disk. Returns what has become different.
    ///
    /// # Errors
    /// The first of `reseal`. The files are then in one of the states that this can be called in again.
    pub(crate) fn change<E>(
        &self,
        wish: &Sealing,
        reseal: impl Fn() -> Result<(), E>,
    ) -> Result<Changed, E> {
        let before = {
            let mut held = self.hold();
            held.found(wish.version);
            held.0.settled = false;
            held.0.current.clone()
        };
        let changed = Changed::between(before.as_ref(), wish);
        let slots = wish.slots();
        if changed == Changed::Rotated {
            self.write_for(before.iter().chain(&slots).cloned().collect());
            reseal()?;
            // The new key opens everything: should the rest fail, a further change goes on from this one, and not from a
            // key that is given up.
            let mut held = self.hold();
            held.0.current = slots.first().cloned();
            held.0.unfinished = Some(changed);
        }
        self.write_for(slots.clone());
        reseal()?;
        let mut held = self.hold();
        let unfinished = held.0.unfinished.take();
        let changed = match changed {
            Changed::Nothing => unfinished.unwrap_or(changed),
            Changed::Locked | Changed::Rotated | Changed::Opened => changed,
        };
        held.0.current = slots.into_iter().next();
        held.0.openers = wish.key.iter().cloned().collect();
        held.0.settled = true;
        Ok(changed)
    }

    fn write_for(&self, slots: Vec<Kek>) {
        let mut held = self.hold();
        for kek in &slots {
            if !held.0.openers.iter().any(|key| KeyId::of(key) == kek.id()) {
                held.0.openers.push(kek.key.clone());
            }
        }
        held.0.slots = slots;
    }
}

impl Held<'_> {
    /// What a file is to be sealed for; nothing where it is to be plain text.
    pub(crate) fn slots(&self) -> &[Kek] {
        &self.0.slots
    }

    /// The version to note in a file.
    pub(crate) fn version(&self) -> u64 {
        self.0.version
    }

    /// A file was found that was written at this version.
    pub(crate) fn found(&mut self, version: u64) {
        self.0.version = self.0.version.max(version);
    }

    /// The secret in a sealed file.
    pub(crate) fn open(&mut self, envelope: &Envelope) -> Result<Zeroizing<Vec<u8>>, OpenError> {
        if self.0.openers.is_empty() {
            return Err(OpenError::Locked);
        }
        for key in &self.0.openers {
            if let Some(opened) = envelope.open(key) {
                let opened = opened.map_err(OpenError::Damaged)?;
                self.0.version = self.0.version.max(envelope.version());
                return Ok(opened);
            }
        }
        Err(OpenError::OtherKey(envelope.describe()))
    }
}

/// What a change did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Changed {
    /// The key is the one from before.
    Nothing,
    /// Files that were plain text are sealed.
    Locked,
    /// Another key opens them.
    Rotated,
    /// They are plain text now.
    Opened,
}

impl Changed {
    fn between(before: Option<&Kek>, wish: &Sealing) -> Self {
        match (before, &wish.key) {
            (None, None) => Self::Nothing,
            (None, Some(_)) => Self::Locked,
            (Some(_), None) => Self::Opened,
            (Some(old), Some(new)) if old.id() == KeyId::of(new) => Self::Nothing,
            (Some(_), Some(_)) => Self::Rotated,
        }
    }
}

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("State")
            .field("slots", &self.slots)
            .field("version", &self.version)
            .field("settled", &self.settled)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
