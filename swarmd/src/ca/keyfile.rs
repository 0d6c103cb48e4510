//! The identity on disk: `certificates/{swarm-root-ca.crt, swarm-node.crt, swarm-node.key}`.
//!
//! Invariants:
//! - A file is replaced whole (temporary file, fsync, rename, fsync of the directory), so a power cut
//!   leaves the old text or the new one.
//! - Certificate and key are two files that change together. Both new texts are on disk as dot-files
//!   before the first rename, the certificate is renamed first, and a start that finds the new
//!   certificate beside the old key finishes the rename. At no point is the pair lost.
//! - The key is readable by its owner only. A manager's is sealed as its [`Seal`] says; a worker's is plain text.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use swarm_proto::time::Timestamp;
use zeroize::Zeroizing;

use super::identity::{IdentityError, NodeIdentity};
use super::root::RootDigest;
use super::roots;
use super::x509::{self, MAX_PEM_BYTES, PemProblem};
use super::{PeerIdentity, Role};
use crate::seal::{Envelope, Held, OpenError, Seal};

const DIR: &str = "certificates";
const ROOT_CERT: &str = "swarm-root-ca.crt";
const NODE_CERT: &str = "swarm-node.crt";
const NODE_KEY: &str = "swarm-node.key";
/// Digests of roots that were trusted once, a line each, oldest first: a join token that pins one of them was this
/// cluster's, and a host's start command may go on naming it.
const FORMER_ROOTS: &str = "swarm-root-ca.former";
/// How many of them are kept: a token older than that many changes of root is forgotten.
const FORMER_ROOTS_MAX: usize = 64;
/// The first word of a node key's file that is sealed.
const KEY_MAGIC: &str = "swarm-node-key-1";
/// After a sealed key that lay on this disk before, in plain text or for another unlock key: its certificate is to be
/// renewed with a new one. It goes with the key.
const EXPOSED: &str = "exposed: another key is to take its place\n";

/// The way out that all errors of this directory share.
const REJOIN: &str = "restore the certificates directory from a backup, or move it away and join \
                      again with `swarmd --join-addr ADDR --join-token TOKEN`";

/// Whether an expired certificate may be loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExpiredCertificate {
    /// The normal case.
    Refuse,
    /// For `--force-new-cluster`, and for renewing.
    Allow,
}

/// Why the identity on disk can't be used. Each names its file and the way out.
#[derive(Debug, thiserror::Error)]
pub enum StateFileError {
    /// One file of the set is not there.
    #[error("{} is missing although {} exists: {REJOIN}", missing.display(), present.display())]
    Missing {
        /// The file that is not there.
        missing: PathBuf,
        /// One that is.
        present: PathBuf,
    },
    /// The PEM text is empty, truncated or corrupted.
    #[error("{} can't be used: {problem}; {REJOIN}", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: PemProblem,
    },
    /// The certificate is readable but names no node.
    #[error("{} is no node's certificate: {reason}; {REJOIN}", path.display())]
    Subject {
        /// The file.
        path: PathBuf,
        /// What is wrong with its subject.
        reason: String,
    },
    /// Key and certificate are of different pairs.
    #[error("{} does not belong to {}: one of them was replaced without the other; {REJOIN}", key.display(), cert.display())]
    KeyMismatch {
        /// The key file.
        key: PathBuf,
        /// The certificate file.
        cert: PathBuf,
    },
    /// Certificate and root are of different clusters.
    #[error("{} was not issued by {}: they are of different clusters; {REJOIN}", cert.display(), root.display())]
    ForeignRoot {
        /// The certificate file.
        cert: PathBuf,
        /// The root certificate file.
        root: PathBuf,
    },
    /// Past its end.
    #[error("{}: {reason}; if the clock is right: on a worker, move {} away and join again with `swarmd --join-addr ADDR --join-token TOKEN`; on the only manager of a cluster, start `swarmd --force-new-cluster`, which keeps its state and gives it a new certificate; on one of several, while the others have a leader, demote and remove it on another (`swarmctl node demote`, `swarmctl node rm`) and join again with an empty --state-dir", path.display(), dir.display())]
    Expired {
        /// The certificate file.
        path: PathBuf,
        /// The certificates directory.
        dir: PathBuf,
        /// When it expired, and what time it is.
        reason: String,
    },
    /// Before its beginning.
    #[error("{}: {reason}", path.display())]
    NotYetValid {
        /// The certificate file.
        path: PathBuf,
        /// From when it is valid, and what time it is.
        reason: String,
    },
    /// Sealed, and there is no key.
    #[error("{} is sealed by the cluster's unlock key: this manager is locked; run `swarmctl cluster unlock` on this host", path.display())]
    Locked {
        /// The key file.
        path: PathBuf,
    },
    /// Sealed for another key than the one that was given.
    #[error("{}: {reason}; a manager that was down while the key was rotated is unlocked by the key from before", path.display())]
    OtherKey {
        /// The key file.
        path: PathBuf,
        /// Which one it is sealed for.
        reason: String,
    },
    /// Reading failed.
    #[error("can't read {}: {source}; check its permissions and the disk", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// Writing failed.
    #[error("can't write {}: {source}; check free space and permissions of the state directory", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
}

/// The `certificates` directory of a state directory. Its calls block on the disk.
#[derive(Debug, Clone)]
pub struct IdentityDir {
    dir: PathBuf,
    seal: Seal,
}

impl IdentityDir {
    /// Below this state directory, its key in plain text. Nothing is touched yet.
    #[must_use]
    pub fn new(state_dir: &Path) -> Self {
        Self::sealed(state_dir, Seal::default())
    }

    /// Below this state directory, a manager's key sealed as `seal` says. Nothing is touched yet.
    #[must_use]
    pub fn sealed(state_dir: &Path, seal: Seal) -> Self {
        Self {
            dir: state_dir.join(DIR),
            seal,
        }
    }

    /// How a manager's key is kept.
    pub(crate) fn seal(&self) -> &Seal {
        &self.seal
    }

    /// The directory itself.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.dir
    }

    /// Loads the identity; `None` on a node that never had one (a root certificate alone is what a
    /// join leaves that did not finish).
    ///
    /// # Errors
    /// One variant a defect, each naming the file and the way out.
    pub fn load(
        &self,
        now: Timestamp,
        expired: ExpiredCertificate,
    ) -> Result<Option<NodeIdentity>, StateFileError> {
        let mut held = self.seal.hold();
        let root = self.read(ROOT_CERT)?;
        let cert = self.read(NODE_CERT)?;
        let key = self.read(NODE_KEY)?;
        let (root, cert, key) = match (root, cert, key) {
            (_, None, None) => return Ok(None),
            (Some(root), Some(cert), Some(key)) => (root, cert, key),
            (_, None, Some(_)) => return Err(self.missing(NODE_CERT, NODE_KEY)),
            // A first store that was interrupted: the key is beside its place.
            (Some(root), Some(cert), None) if self.pending(NODE_KEY).exists() => {
                let identity = self.finish_replacement(&mut held, (&cert, &root))?;
                return self.in_time(identity, now, expired);
            }
            (_, Some(_), None) => return Err(self.missing(NODE_KEY, NODE_CERT)),
            (None, Some(_), Some(_)) => return Err(self.missing(ROOT_CERT, NODE_CERT)),
        };
        self.restrict_key()?;
        let key = match self.open_key(&mut held, NODE_KEY, key) {
            Ok(key) => key,
            // A manager that was demoted: its new key, in plain text, may be beside the one that is sealed.
            Err(locked) => match self.finish_replacement(&mut held, (&cert, &root)) {
                Ok(identity) => return self.in_time(identity, now, expired),
                Err(_) => return Err(locked),
            },
        };
        let identity = match NodeIdentity::from_pem(&cert, &key, &root) {
            Err(IdentityError::KeyMismatch) => {
                self.finish_replacement(&mut held, (&cert, &root))?
            }
            other => other.map_err(|e| self.explain(e))?,
        };
        // What an interrupted renewal left would otherwise stay in plain text when the key is sealed.
        for name in [NODE_KEY, NODE_CERT] {
            self.remove(&self.pending(name))?;
        }
        self.in_time(identity, now, expired)
    }

    /// The PEM text of a key file, unsealed if need be.
    fn open_key(
        &self,
        held: &mut Held<'_>,
        name: &str,
        text: Zeroizing<String>,
    ) -> Result<Zeroizing<String>, StateFileError> {
        self.open_marked(held, name, text).map(|(pem, _)| pem)
    }

    /// The same, and whether the key is marked as one that lay open.
    fn open_marked(
        &self,
        held: &mut Held<'_>,
        name: &str,
        text: Zeroizing<String>,
    ) -> Result<(Zeroizing<String>, bool), StateFileError> {
        if !Envelope::is_one(KEY_MAGIC, &text) {
            return Ok((text, false));
        }
        let path = self.dir.join(name);
        let corrupted = |problem: String| StateFileError::Content {
            path: path.clone(),
            problem: PemProblem::Corrupted(problem),
        };
        let envelope = Envelope::parse(KEY_MAGIC, &text);
        let envelope = envelope.map_err(|error| corrupted(error.to_string()))?;
        let secret = held.open(&envelope).map_err(|error| match error {
            OpenError::Locked => StateFileError::Locked { path: path.clone() },
            OpenError::OtherKey(_) => StateFileError::OtherKey {
                path: path.clone(),
                reason: error.to_string(),
            },
            OpenError::Damaged(problem) => corrupted(problem.to_string()),
        })?;
        let text = std::str::from_utf8(&secret).map_err(|_| corrupted("it is not text".into()))?;
        let pem = text.strip_suffix(EXPOSED);
        let (pem, exposed) = (pem.unwrap_or(text), pem.is_some());
        Ok((Zeroizing::new(pem.to_owned()), exposed))
    }

    /// The content of the key file for an identity's key.
    fn key_text(
        &self,
        held: &Held<'_>,
        role: Role,
        pem: &str,
    ) -> Result<Zeroizing<String>, StateFileError> {
        if role == Role::Worker || held.slots().is_empty() {
            return Ok(Zeroizing::new(pem.to_owned()));
        }
        let sealed = Envelope::seal(KEY_MAGIC, pem.as_bytes(), held.slots());
        let sealed = sealed.map_err(|error| StateFileError::Write {
            path: self.dir.join(NODE_KEY),
            source: io::Error::other(error),
        })?;
        Ok(Zeroizing::new(sealed.text()))
    }

    /// Brings a manager's key file in line with what it is to be sealed for now. Where an unlock key seals it that did not
    /// before, the key in it is marked as one that lay open.
    ///
    /// # Errors
    /// When it can't be read, opened or written; the file is then as it was.
    pub(crate) fn reseal(&self) -> Result<(), StateFileError> {
        let mut held = self.seal.hold();
        let Some(text) = self.read(NODE_KEY)? else {
            return Ok(());
        };
        let sealed = Envelope::parse(KEY_MAGIC, &text).ok();
        let slots = held.slots();
        let (as_wanted, is_new) = match &sealed {
            Some(envelope) => {
                let is_new = slots.iter().any(|kek| !envelope.has(kek));
                (envelope.is_for(slots), is_new)
            }
            None => (slots.is_empty(), true),
        };
        if as_wanted {
            return Ok(());
        }
        let (mut pem, exposed) = self.open_marked(&mut held, NODE_KEY, text)?;
        // Of a certificate that can't be read nothing is known, and then nothing is laid open.
        let role = self.certified().map_or(Role::Manager, |peer| peer.role);
        if (exposed || is_new) && role == Role::Manager && !held.slots().is_empty() {
            pem.push_str(EXPOSED);
        }
        let text = self.key_text(&held, role, &pem)?;
        self.replace(NODE_KEY, &text, 0o600)
    }

    /// Whether the key is sealed now and lay open on this disk before: then the certificate is to be renewed, with a new
    /// key. It is so until that one is stored, also over a restart.
    ///
    /// # Errors
    /// When the file can't be read or opened.
    pub(crate) fn is_exposed(&self) -> Result<bool, StateFileError> {
        let mut held = self.seal.hold();
        match self.read(NODE_KEY)? {
            Some(text) => Ok(self.open_marked(&mut held, NODE_KEY, text)?.1),
            None => Ok(false),
        }
    }

    /// Whom the certificate on disk names, whatever has become of its key; `None` without one that can be read.
    #[must_use]
    pub fn certified(&self) -> Option<PeerIdentity> {
        let cert = self.read(NODE_CERT).ok().flatten()?;
        let chain = x509::certs_from_pem(cert.as_bytes()).ok()?;
        PeerIdentity::from_der(chain.first()?).ok()
    }

    fn in_time(
        &self,
        identity: NodeIdentity,
        now: Timestamp,
        expired: ExpiredCertificate,
    ) -> Result<Option<NodeIdentity>, StateFileError> {
        match (identity.check_time(now), expired) {
            (Ok(()), _) | (Err(IdentityError::Expired { .. }), ExpiredCertificate::Allow) => {
                Ok(Some(identity))
            }
            (Err(error), _) => Err(self.explain(error)),
        }
    }

    /// The root certificate, if there is one.
    ///
    /// # Errors
    /// When the file is there and can't be used.
    pub fn load_root(&self) -> Result<Option<String>, StateFileError> {
        let Some(text) = self.read(ROOT_CERT)? else {
            return Ok(None);
        };
        match x509::certs_from_pem(text.as_bytes()) {
            Ok(_) => Ok(Some((*text).clone())),
            Err(problem) => Err(StateFileError::Content {
                path: self.dir.join(ROOT_CERT),
                problem,
            }),
        }
    }

    /// Writes the identity so that a crash at any point leaves the old one or the new one.
    ///
    /// # Errors
    /// [`StateFileError::Write`]; the old identity is then still the one on disk.
    pub fn store(&self, identity: &NodeIdentity) -> Result<(), StateFileError> {
        let held = self.seal.hold();
        self.create_dir()?;
        self.replace(ROOT_CERT, identity.root_pem(), 0o644)?;
        let key = self.key_text(&held, identity.role(), identity.key_pem())?;
        self.prepare(NODE_KEY, &key, 0o600)?;
        self.prepare(NODE_CERT, identity.cert_pem(), 0o644)?;
        self.sync_dir()?;
        self.commit(NODE_CERT)?;
        self.commit(NODE_KEY)
    }

    /// Writes the root certificate alone.
    ///
    /// # Errors
    /// [`StateFileError::Write`].
    pub fn store_root(&self, root_pem: &str) -> Result<(), StateFileError> {
        self.create_dir()?;
        self.replace(ROOT_CERT, root_pem, 0o644)
    }

    /// Writes other roots beside the same certificate, and notes those that are trusted no more.
    ///
    /// # Errors
    /// [`StateFileError::Write`] or [`StateFileError::Read`].
    pub(crate) fn change_roots(
        &self,
        before: &NodeIdentity,
        root_pem: &str,
    ) -> Result<(), StateFileError> {
        let now = roots::digests(root_pem);
        let known = self.read(FORMER_ROOTS)?.unwrap_or_default();
        let mut former: Vec<String> = known.lines().map(str::to_owned).collect();
        for gone in roots::digests(before.root_pem()) {
            let line = gone.to_string();
            if !now.contains(&gone) && !former.contains(&line) {
                former.push(line);
            }
        }
        former.drain(..former.len().saturating_sub(FORMER_ROOTS_MAX));
        if !former.is_empty() {
            let text: String = former.iter().map(|line| format!("{line}\n")).collect();
            self.replace(FORMER_ROOTS, &text, 0o644)?;
        }
        self.store_root(root_pem)
    }

    /// Whether a join token is, or was, for the cluster of this identity.
    ///
    /// # Errors
    /// [`StateFileError::Read`].
    pub(crate) fn has_had_root(
        &self,
        identity: &NodeIdentity,
        digest: RootDigest,
    ) -> Result<bool, StateFileError> {
        if roots::digests(identity.root_pem()).contains(&digest) {
            return Ok(true);
        }
        let former = self.read(FORMER_ROOTS)?.unwrap_or_default();
        Ok(former.lines().any(|line| line == digest.to_string()))
    }

    /// Removes the identity, for a node that left its cluster. Absent files are fine.
    ///
    /// # Errors
    /// [`StateFileError::Write`].
    pub fn clear(&self) -> Result<(), StateFileError> {
        for name in [NODE_KEY, NODE_CERT, ROOT_CERT, FORMER_ROOTS] {
            for path in [self.dir.join(name), self.pending(name)] {
                self.remove(&path)?;
            }
        }
        if self.dir.exists() {
            self.sync_dir()
        } else {
            Ok(())
        }
    }

    /// Removes a file; one that is gone already is fine.
    fn remove(&self, path: &Path) -> Result<(), StateFileError> {
        match fs::remove_file(path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => Err(StateFileError::Write {
                path: path.to_owned(),
                source,
            }),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// The certificate was replaced and the key was not: the other half is waiting beside it.
    fn finish_replacement(
        &self,
        held: &mut Held<'_>,
        (cert, root): (&str, &str),
    ) -> Result<NodeIdentity, StateFileError> {
        let mismatch = || self.explain(IdentityError::KeyMismatch);
        let path = self.pending(NODE_KEY);
        let key = read_limited(&path)
            .map_err(|_| mismatch())?
            .ok_or_else(mismatch)?;
        // Of a key that is locked nobody knows whether it fits.
        let key = self.open_key(held, &format!(".{NODE_KEY}.new"), key)?;
        let identity = NodeIdentity::from_pem(cert, &key, root).map_err(|_| mismatch())?;
        self.commit(NODE_KEY)?;
        tracing::info!(file = %self.dir.join(NODE_KEY).display(), "finished writing a certificate that was interrupted");
        Ok(identity)
    }

    fn missing(&self, missing: &str, present: &str) -> StateFileError {
        StateFileError::Missing {
            missing: self.dir.join(missing),
            present: self.dir.join(present),
        }
    }

    fn explain(&self, error: IdentityError) -> StateFileError {
        let path = |name: &str| self.dir.join(name);
        match error {
            IdentityError::Certificate(problem) => StateFileError::Content {
                path: path(NODE_CERT),
                problem,
            },
            IdentityError::Key(problem) => StateFileError::Content {
                path: path(NODE_KEY),
                problem,
            },
            IdentityError::Root(problem) => StateFileError::Content {
                path: path(ROOT_CERT),
                problem,
            },
            IdentityError::Subject(reason) => StateFileError::Subject {
                path: path(NODE_CERT),
                reason: reason.to_string(),
            },
            IdentityError::KeyMismatch => StateFileError::KeyMismatch {
                key: path(NODE_KEY),
                cert: path(NODE_CERT),
            },
            IdentityError::ForeignRoot => StateFileError::ForeignRoot {
                cert: path(NODE_CERT),
                root: path(ROOT_CERT),
            },
            IdentityError::Expired { .. } => StateFileError::Expired {
                path: path(NODE_CERT),
                dir: self.dir.clone(),
                reason: error.to_string(),
            },
            IdentityError::NotYetValid { .. } => StateFileError::NotYetValid {
                path: path(NODE_CERT),
                reason: error.to_string(),
            },
        }
    }

    fn read(&self, name: &str) -> Result<Option<Zeroizing<String>>, StateFileError> {
        read_limited(&self.dir.join(name))
    }

    /// A key that others can read is narrowed, and the operator told that it was open.
    fn restrict_key(&self) -> Result<(), StateFileError> {
        let path = self.dir.join(NODE_KEY);
        let mode = fs::metadata(&path)
            .map_err(|source| StateFileError::Read {
                path: path.clone(),
                source,
            })?
            .permissions()
            .mode();
        if mode & 0o077 == 0 {
            return Ok(());
        }
        tracing::warn!(file = %path.display(), mode = %format_args!("{:o}", mode & 0o777), "the node key was readable by others; setting mode 0600");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600))
            .map_err(|source| StateFileError::Write { path, source })
    }

    fn create_dir(&self) -> Result<(), StateFileError> {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.dir)
            .map_err(|source| StateFileError::Write {
                path: self.dir.clone(),
                source,
            })
    }

    fn pending(&self, name: &str) -> PathBuf {
        self.dir.join(format!(".{name}.new"))
    }

    fn replace(&self, name: &str, text: &str, mode: u32) -> Result<(), StateFileError> {
        self.prepare(name, text, mode)?;
        self.commit(name)
    }

    /// Writes the new text beside the old one and onto the disk.
    fn prepare(&self, name: &str, text: &str, mode: u32) -> Result<(), StateFileError> {
        let path = self.pending(name);
        let write = || {
            // A leftover may have another mode, which opening would keep.
            match fs::remove_file(&path) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
                Ok(()) | Err(_) => {}
            }
            let mut file = OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(mode)
                .open(&path)?;
            file.write_all(text.as_bytes())?;
            file.sync_all()
        };
        write().map_err(|source| StateFileError::Write {
            path: path.clone(),
            source,
        })
    }

    fn commit(&self, name: &str) -> Result<(), StateFileError> {
        let path = self.dir.join(name);
        fs::rename(self.pending(name), &path)
            .map_err(|source| StateFileError::Write { path, source })?;
        self.sync_dir()
    }

    fn sync_dir(&self) -> Result<(), StateFileError> {
        File::open(&self.dir)
            .and_then(|dir| dir.sync_all())
            .map_err(|source| StateFileError::Write {
                path: self.dir.clone(),
                source,
            })
    }
}

/// The text of a file of at most [`MAX_PEM_BYTES`]; `None` if there is no such file.
fn read_limited(path: &Path) -> Result<Option<Zeroizing<String>>, StateFileError> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => {
            return Err(StateFileError::Read {
                path: path.to_owned(),
                source,
            });
        }
    };
    let mut bytes = Zeroizing::new(Vec::new());
    let limit = u64::try_from(MAX_PEM_BYTES)
        .unwrap_or(u64::MAX)
        .saturating_add(1);
    file.take(limit)
        .read_to_end(&mut bytes)
        .map_err(|source| StateFileError::Read {
            path: path.to_owned(),
            source,
        })?;
    match std::str::from_utf8(&bytes) {
        Ok(text) => Ok(Some(Zeroizing::new(text.to_owned()))),
        Err(_) => Err(StateFileError::Content {
            path: path.to_owned(),
            problem: PemProblem::Corrupted("it is not text".into()),
        }),
    }
}

#[cfg(test)]
mod tests;
