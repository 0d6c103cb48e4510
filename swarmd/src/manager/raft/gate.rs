//! What keeps the lives of a cluster apart: every message between managers passes here with its sender's epoch.
//!
//! ```text
//! raft/epoch     the epoch this member takes part in
//! raft/fenced    it heard of a later one: by whom, and who leads there
//! ```
//!
//! - A message of another epoch is refused, and says of which epoch this member is: both sides come to know.
//! - A member that hears of a later epoch is fenced, on disk, for good: it sends nothing, takes nothing and stops. Nothing
//!   of it is removed; that is for the operator to order.
//! - A member without an epoch takes over that of the first leader that writes to it by its number, before it answers.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ring::digest::{SHA256, digest};
use swarm_proto::own;
use tokio::sync::watch;
use tonic::metadata::{AsciiMetadataValue, MetadataMap};
use tonic::service::Interceptor;
use tonic::{Request, Status};

use super::dir::{DIR, is_present};
use super::disk::Disk;
use super::epoch::{Epoch, Stands};
use super::error::StorageError;
use super::whereabouts::Whereabouts;

const EPOCH: &str = "epoch";
const FENCED: &str = "fenced";
/// Most addresses of managers that are kept.
const MANAGERS_MAX: usize = 32;
/// Carries the sender's epoch: in a call, and in the refusal of one.
const KEY: &str = "swarm-epoch";

/// A member that takes no part any more: the cluster went on in a later epoch without it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fenced {
    /// The epoch it was in.
    pub own: Epoch,
    /// The later one it heard of.
    pub by: Epoch,
    /// Where managers of that one are, host:port, as far as it was told.
    pub managers: Vec<String>,
}

impl std::fmt::Display for Fenced {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (own, by) = (self.own, self.by);
        write!(
            f,
            "this manager is fenced: the cluster was recovered without it (epoch {by}, and this manager is of epoch \
             {own}), so it takes no part in consensus any more. Run `swarmd leave --force` here and join again, or \
             `swarmctl node demote` and then `promote` it on a manager of the recovered cluster, which keeps its tasks; \
             if this one is the state to go on with instead, start it once with --force-new-cluster={by}"
        )
    }
}

/// The gate of one member.
#[derive(Debug)]
pub(crate) struct Gate {
    disk: Disk,
    dir: PathBuf,
    state: Mutex<State>,
    fenced: watch::Sender<Option<Fenced>>,
}

#[derive(Debug)]
struct State {
    own: Epoch,
    /// What was said last in the log about a foreign epoch: it is told once.
    told: Option<Epoch>,
    /// What `raft/fenced` says.
    written: Option<Fenced>,
    /// It was said in the log that it can't be written.
    unwritten_told: bool,
}

/// Who sends a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sender {
    /// A leader writes to this member by its number: who has no epoch takes over the leader's.
    Leader,
    /// Anyone else.
    Anyone,
}

impl Gate {
    /// Makes the files of a new raft directory. Blocks on the disk.
    pub(crate) fn create(disk: &Disk, dir: &Path, epoch: Epoch) -> Result<(), StorageError> {
        disk.write_new(&dir.join(EPOCH), checked(&epoch.to_string()).as_bytes())
    }

    /// Opens those of a raft directory; one that was made before there were epochs is of the first. Blocks on the disk.
    pub(crate) fn open(disk: &Disk, dir: &Path) -> Result<Self, StorageError> {
        let own = read_epoch(disk, dir)?;
        let written = read_fenced(disk, dir, own)?;
        let (fenced, _) = watch::channel(written.clone());
        Ok(Self {
            disk: disk.clone(),
            dir: dir.to_owned(),
            state: Mutex::new(State {
                own,
                told: None,
                written,
                unwritten_told: false,
            }),
            fenced,
        })
    }

    /// That of a stopped member of this state directory; none where there is no member. Blocks on the disk.
    pub(crate) fn of_state_dir(state_dir: &Path) -> Result<Option<Self>, StorageError> {
        let dir = state_dir.join(DIR);
        match is_present(&Disk::Real, &dir)? {
            true => Self::open(&Disk::Real, &dir).map(Some),
            false => Ok(None),
        }
    }

    /// The epoch this member takes part in.
    pub(crate) fn epoch(&self) -> Epoch {
        self.state().own
    }

    /// Founds: a member without an epoch is in the first.
    pub(crate) fn found(&self) -> Result<(), StorageError> {
        match self.epoch() == Epoch::NONE {
            true => self.adopt(Epoch::FIRST),
            false => Ok(()),
        }
    }

    /// Whether this member is fenced.
    pub(crate) fn fenced(&self) -> Option<Fenced> {
        self.fenced.borrow().clone()
    }

    /// Returns when it is.
    pub(crate) fn until_fenced(&self) -> impl Future<Output = Fenced> + Send + 'static {
        let mut fenced = self.fenced.subscribe();
        async move {
            loop {
                if let Some(fenced) = fenced.borrow_and_update().clone() {
                    return fenced;
                }
                if fenced.changed().await.is_err() {
                    std::future::pending().await
                }
            }
        }
    }

    /// Returns when what is known of being fenced changes.
    pub(crate) fn until_news(&self) -> impl Future<Output = ()> + Send + 'static {
        let mut fenced = self.fenced.subscribe();
        async move {
            if fenced.changed().await.is_err() {
                std::future::pending().await
            }
        }
    }

    /// Lets a call in, or says why not. A call of a later epoch fences this member.
    pub(crate) fn admit(&self, call: &MetadataMap, from: Sender) -> Result<(), Status> {
        self.admit_epoch(epoch_in(call)?.unwrap_or(Epoch::FIRST), from)
    }

    /// As [`Self::admit`], of a call that says its epoch otherwise.
    pub(crate) fn admit_epoch(&self, theirs: Epoch, from: Sender) -> Result<(), Status> {
        let own = self.epoch();
        if let Some(fenced) = self.fenced() {
            self.write_down_or_tell();
            return Err(refuse(fenced.by, fenced.to_string()));
        }
        if own == Epoch::NONE {
            // A leader has one.
            if from == Sender::Anyone || theirs == Epoch::NONE {
                let text = "this manager has not heard from its leader yet";
                return Err(Status::failed_precondition(text));
            }
            let adopted = self.adopt(theirs);
            adopted.map_err(|e| Status::internal(e.to_string()))?;
        }
        // Another leader may have been first.
        let own = self.epoch();
        match own.to(theirs) {
            Stands::Same => return Ok(()),
            Stands::Above => self.fence(theirs, Vec::new()),
            Stands::Below => self.tell(theirs, "a manager of an earlier epoch is turned away: the cluster was recovered without it; `swarmd leave --force` on it, then join again"),
            Stands::Beside => self.tell(theirs, BESIDE),
        }
        Err(refuse(
            own,
            format!(
                "this manager is of epoch {own} of the cluster, and the message of epoch {theirs}"
            ),
        ))
    }

    /// Takes note of a refusal that another manager answered with.
    pub(crate) fn heard(&self, refusal: &Status) {
        if let Ok(Some(theirs)) = epoch_in(refusal.metadata()) {
            self.heard_of(theirs, Vec::new());
        }
    }

    /// Takes note of the epoch that another manager is in; fenced by a later one.
    pub(crate) fn heard_of(&self, theirs: Epoch, managers: Vec<String>) {
        let own = self.epoch();
        if own == Epoch::NONE {
            return;
        }
        match own.to(theirs) {
            Stands::Same => {}
            Stands::Above => self.fence(theirs, managers),
            Stands::Below => self.tell(
                theirs,
                "a manager is of an earlier epoch, before the cluster was recovered",
            ),
            Stands::Beside => self.tell(theirs, BESIDE),
        }
    }

    /// Answers a manager of the cluster that went on. That manager strikes this one off its list then, so it is fenced
    /// on disk or the answer is an error.
    pub(crate) fn be_told(
        &self,
        request: Request<own::RaftFenceRequest>,
    ) -> Result<own::RaftFenceResponse, Status> {
        let theirs = epoch_in(request.metadata())?.unwrap_or(Epoch::FIRST);
        let mut managers = request.into_inner().addresses;
        managers.truncate(MANAGERS_MAX);
        managers.retain(|addr| !addr.is_empty() && !addr.contains(char::is_whitespace));
        self.heard_of(theirs, managers);
        self.write_down().map_err(|error| {
            Status::unavailable(format!(
                "this manager can't write down that it is fenced: {error}"
            ))
        })?;
        Ok(own::RaftFenceResponse {
            epoch: Some(self.epoch().to_wire()),
            fenced: self.fenced().is_some(),
        })
    }

    /// From now on this member takes no part.
    fn fence(&self, by: Epoch, managers: Vec<String>) {
        let own = self.epoch();
        let fenced = Fenced { own, by, managers };
        let news = self.fenced.send_if_modified(|now| {
            let news = now.as_ref().is_none_or(|known| {
                known.own.to(known.by) != Stands::Above
                    || known.by != by
                    || known.managers.is_empty() && !fenced.managers.is_empty()
            });
            if news {
                *now = Some(fenced.clone());
            }
            news
        });
        if news {
            tracing::error!(epoch = %own, by = %by, "{fenced}");
        }
        self.write_down_or_tell();
    }

    /// What the disk refused is tried again with each word that this member hears; in memory it stays fenced.
    fn write_down_or_tell(&self) {
        let Err(error) = self.write_down() else {
            return;
        };
        let told = std::mem::replace(&mut self.state().unwritten_told, true);
        if !told {
            tracing::error!(%error, "can't write down that this manager is fenced; trying again when it hears of it again");
        }
    }

    /// That this member is fenced, if it is, is on disk when this returns.
    fn write_down(&self) -> Result<(), StorageError> {
        let mut state = self.state();
        let Some(fenced) = self.fenced() else {
            return Ok(());
        };
        if state.written.as_ref() != Some(&fenced) {
            let text = format!("{} {}", fenced.by, fenced.managers.join(" "));
            replace(&self.disk, &self.dir.join(FENCED), &checked(&text))?;
            state.written = Some(fenced);
            state.unwritten_told = false;
        }
        Ok(())
    }

    /// Written down before it counts. Once in the life of a member: that the caller waits for the disk is no harm.
    fn adopt(&self, epoch: Epoch) -> Result<(), StorageError> {
        let mut state = self.state();
        if state.own == Epoch::NONE {
            replace(
                &self.disk,
                &self.dir.join(EPOCH),
                &checked(&epoch.to_string()),
            )?;
            state.own = epoch;
        }
        Ok(())
    }

    fn tell(&self, theirs: Epoch, what: &str) {
        let mut state = self.state();
        if state.told != Some(theirs) {
            state.told = Some(theirs);
            tracing::error!(own = %state.own, %theirs, "{what}");
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

const BESIDE: &str = "another recovery of the same cluster is running: end one of them (stop its managers, then \
                      `swarmd leave --force` on them and join again)";

/// A refusal that says of which epoch this member is, or of which it has heard.
fn refuse(own: Epoch, text: String) -> Status {
    let mut status = Status::failed_precondition(text);
    put(status.metadata_mut(), own);
    status
}

pub(crate) fn put(metadata: &mut MetadataMap, epoch: Epoch) {
    if let Ok(value) = AsciiMetadataValue::try_from(epoch.to_string()) {
        metadata.insert(KEY, value);
    }
}

fn epoch_in(metadata: &MetadataMap) -> Result<Option<Epoch>, Status> {
    let Some(value) = metadata.get(KEY) else {
        return Ok(None);
    };
    let epoch = value.to_str().ok().and_then(|text| text.parse().ok());
    epoch
        .map(Some)
        .ok_or_else(|| Status::invalid_argument(format!("{KEY}: is no epoch")))
}

/// Puts the epoch on every call, and where the caller is; a fenced member makes none.
#[derive(Clone, Debug)]
pub(crate) struct Stamp(pub(crate) Arc<Gate>, pub(crate) Arc<Whereabouts>);

impl Interceptor for Stamp {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(fenced) = self.0.fenced() {
            return Err(Status::failed_precondition(fenced.to_string()));
        }
        put(request.metadata_mut(), self.0.epoch());
        self.1.put(request.metadata_mut());
        Ok(request)
    }
}

/// The epoch of a raft directory.
pub(crate) fn read_epoch(disk: &Disk, dir: &Path) -> Result<Epoch, StorageError> {
    let Some(text) = read(disk, dir, EPOCH)? else {
        return Ok(Epoch::FIRST);
    };
    let path = dir.join(EPOCH);
    text.parse()
        .map_err(|e| StorageError::damaged(&path, "the epoch", e))
}

/// What fenced the member of a raft directory, if something did.
pub(crate) fn read_fenced(
    disk: &Disk,
    dir: &Path,
    own: Epoch,
) -> Result<Option<Fenced>, StorageError> {
    let Some(text) = read(disk, dir, FENCED)? else {
        return Ok(None);
    };
    let mut words = text.split_whitespace();
    let by = words.next().unwrap_or_default().parse();
    let by = by.map_err(|e| StorageError::damaged(&dir.join(FENCED), "the epoch", e))?;
    let managers = words.map(str::to_owned).collect();
    Ok(Some(Fenced { own, by, managers }))
}

/// A line and its check.
fn checked(text: &str) -> String {
    let hash = digest(&SHA256, text.as_bytes());
    let sum: String = hash
        .as_ref()
        .iter()
        .take(8)
        .map(|b| format!("{b:02x}"))
        .collect();
    format!("{text}\n{sum}\n")
}

fn read(disk: &Disk, dir: &Path, name: &str) -> Result<Option<String>, StorageError> {
    let path = dir.join(name);
    if !disk.exists(&path) {
        return Ok(None);
    }
    let text = disk.read(&path)?;
    let text = String::from_utf8_lossy(&text);
    let line = text.lines().next().unwrap_or_default();
    match checked(line) == text {
        true => Ok(Some(line.to_owned())),
        false => Err(StorageError::damaged(
            &path,
            "its line",
            "it does not match its check",
        )),
    }
}

fn replace(disk: &Disk, path: &Path, text: &str) -> Result<(), StorageError> {
    disk.replace(path, text.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gate(epoch: Epoch) -> (tempfile::TempDir, Gate) {
        let dir = tempfile::tempdir().unwrap();
        Gate::create(&Disk::Real, dir.path(), epoch).unwrap();
        let gate = Gate::open(&Disk::Real, dir.path()).unwrap();
        (dir, gate)
    }

    #[test]
    fn a_later_epoch_fences_for_good_and_an_earlier_one_does_not() {
        let second = Epoch::FIRST.next(5);
        let (dir, old) = gate(Epoch::FIRST);
        let (_other, new) = gate(second);
        let refused = new.admit_epoch(Epoch::FIRST, Sender::Leader).unwrap_err();
        assert_eq!(new.fenced(), None);
        old.heard(&refused);
        let fenced = old.fenced().unwrap();
        assert_eq!((fenced.own, fenced.by), (Epoch::FIRST, second));
        // Also from its own kind, and after a restart.
        for gate in [old, Gate::open(&Disk::Real, dir.path()).unwrap()] {
            let refused = gate.admit_epoch(Epoch::FIRST, Sender::Leader).unwrap_err();
            assert!(
                refused.message().contains("swarmd leave --force"),
                "{refused}"
            );
            assert_eq!(epoch_in(refused.metadata()).unwrap(), Some(second));
            let mut stamp = Stamp(Arc::new(gate), Whereabouts::new(Vec::new()));
            stamp.call(Request::new(())).unwrap_err();
        }
    }

    #[test]
    fn who_can_not_write_down_that_it_is_fenced_answers_with_an_error_until_it_can() {
        let second = Epoch::FIRST.next(5);
        let (dir, gate) = gate(Epoch::FIRST);
        let tell = || {
            let mut request = Request::new(own::RaftFenceRequest::default());
            put(request.metadata_mut(), second);
            gate.be_told(request)
        };
        // A file does not replace a directory.
        let path = dir.path().join(FENCED);
        std::fs::create_dir(&path).unwrap();
        for _ in 0..2 {
            let refused = tell().unwrap_err();
            assert!(refused.message().contains("write down"), "{refused}");
            assert!(gate.fenced().is_some(), "it takes no part all the same");
        }
        std::fs::remove_dir(&path).unwrap();
        // Any word is enough to try again.
        gate.admit_epoch(Epoch::FIRST, Sender::Anyone).unwrap_err();
        assert_eq!(
            Gate::open(&Disk::Real, dir.path()).unwrap().fenced(),
            gate.fenced()
        );
        assert!(tell().unwrap().fenced);
    }

    #[test]
    fn two_recoveries_of_one_state_refuse_each_other() {
        let (_dir, one) = gate(Epoch::FIRST.next(5));
        let refused = one
            .admit_epoch(Epoch::FIRST.next(6), Sender::Leader)
            .unwrap_err();
        assert!(
            refused.message().contains("2-0000000000000006"),
            "{refused}"
        );
        one.heard_of(Epoch::FIRST.next(7), Vec::new());
        assert_eq!(one.fenced(), None);
    }

    #[test]
    fn a_learner_takes_over_its_leaders_epoch_once() {
        let second = Epoch::FIRST.next(5);
        let (dir, new) = gate(Epoch::NONE);
        new.admit_epoch(second, Sender::Anyone).unwrap_err();
        new.heard_of(second, Vec::new());
        assert_eq!(new.epoch(), Epoch::NONE);
        new.admit_epoch(second, Sender::Leader).unwrap();
        assert_eq!(Gate::open(&Disk::Real, dir.path()).unwrap().epoch(), second);
        new.admit_epoch(Epoch::FIRST, Sender::Leader).unwrap_err();
        let call = MetadataMap::new();
        new.admit(&call, Sender::Leader).unwrap_err();
    }

    #[test]
    fn files_without_an_epoch_are_of_the_first_and_damage_is_named() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(
            Gate::open(&Disk::Real, dir.path()).unwrap().epoch(),
            Epoch::FIRST
        );
        for name in [EPOCH, FENCED] {
            let path = dir.path().join(name);
            let whole = checked("2-0000000000000005 10.0.0.1:4242").into_bytes();
            for cut in 0..whole.len() {
                std::fs::write(&path, &whole[..cut]).unwrap();
                let error = Gate::open(&Disk::Real, dir.path()).unwrap_err().to_string();
                assert!(error.contains("is damaged"), "{error}");
            }
            std::fs::remove_file(&path).unwrap();
        }
    }
}
