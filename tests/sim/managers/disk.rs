//! A disk with a page cache: what was synced is there after a crash; what was not may be there, in any combination, torn at
//! any byte.
//!
//! Names (created, renamed, removed) are durable from the sync of their directory on, and before that survive in the order
//! in which they were made, as a journal keeps them. Operations take no time; a sync says what it would have cost.

use std::collections::BTreeMap;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use harness::sim::random::Random;
use swarmd::manager::raft::{SimulatedDisk, SimulatedFile};
use swarmd::process::Process;

/// The disk of one manager. It outlives the manager's process.
#[derive(Debug, Clone)]
pub(crate) struct Disk(Arc<Mutex<Inner>>);

/// How it is at present.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Health {
    /// A sync takes up to a millisecond.
    Well,
    /// A sync takes up to this many milliseconds.
    Slow(u64),
    /// Nothing more fits.
    Full,
    /// A sync says that it is done, and does nothing: no cluster survives that.
    Lying,
}

#[derive(Debug)]
struct Inner {
    random: Random,
    health: Health,
    mounts: u64,
    /// Operations until the process dies.
    fuse: Option<u64>,
    operations: u64,
    next: u64,
    files: BTreeMap<u64, Content>,
    names: BTreeMap<PathBuf, Name>,
    durable: BTreeMap<PathBuf, Name>,
    journal: Vec<Rename>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Name {
    Directory,
    File(u64),
}

#[derive(Debug, Clone)]
enum Rename {
    Add(PathBuf, Name),
    Move(PathBuf, PathBuf),
    Remove(PathBuf),
}

#[derive(Debug, Default, Clone)]
struct Content {
    now: Vec<u8>,
    durable: Vec<u8>,
    unsynced: Vec<Step>,
}

#[derive(Debug, Clone)]
enum Step {
    Write(u64, Vec<u8>),
    Size(u64),
}

impl Disk {
    /// An empty disk.
    pub(crate) fn new(seed: u64) -> Self {
        Self(Arc::new(Mutex::new(Inner {
            random: Random::new(seed),
            health: Health::Well,
            mounts: 0,
            fuse: None,
            operations: 0,
            next: 0,
            files: BTreeMap::new(),
            names: BTreeMap::new(),
            durable: BTreeMap::new(),
            journal: Vec::new(),
        })))
    }

    /// The disk as a process sees it, until it is dead or another one mounts it.
    pub(crate) fn mount(&self, process: &Process) -> Mounted {
        let mut inner = self.lock();
        inner.mounts += 1;
        inner.fuse = None;
        Mounted {
            disk: self.clone(),
            mount: inner.mounts,
            process: process.clone(),
        }
    }

    /// Sets how it is.
    pub(crate) fn set(&self, health: Health) {
        self.lock().health = health;
    }

    /// How it is.
    pub(crate) fn health(&self) -> Health {
        self.lock().health
    }

    /// The process that has it mounted dies at the so-many-th operation from now.
    pub(crate) fn burn_down(&self, operations: u64) {
        self.lock().fuse = Some(operations);
    }

    /// How many operations there were, for the trace.
    pub(crate) fn operations(&self) -> u64 {
        self.lock().operations
    }

    /// The power fails: everything not synced is lost, kept or torn. Nobody has it mounted any more.
    pub(crate) fn cut(&self) {
        let inner = &mut *self.lock();
        inner.mounts += 1;
        inner.fuse = None;
        let journal = std::mem::take(&mut inner.journal);
        let kept = inner.random.below(journal.len() as u64 + 1);
        for step in journal.into_iter().take(usize::try_from(kept).unwrap()) {
            play_name(&mut inner.durable, step);
        }
        inner.names = inner.durable.clone();
        let named: Vec<u64> = inner.names.values().filter_map(Name::file).collect();
        inner.files.retain(|id, _| named.contains(id));
        for content in inner.files.values_mut() {
            let all = inner.random.below(4);
            for mut step in std::mem::take(&mut content.unsynced) {
                tear(&mut inner.random, all, &mut step);
                play(&mut content.durable, &step);
            }
            content.now.clone_from(&content.durable);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap()
    }
}

/// What becomes of a write that was not synced: `all` of them lost, kept, or each by itself.
fn tear(random: &mut Random, all: u64, step: &mut Step) {
    let fate = match all {
        0 => 3,
        1 => 0,
        _ => random.below(4),
    };
    match (step, fate) {
        (_, 0 | 1) => {}
        (Step::Write(_, data), 2) => {
            let left = random.below(data.len() as u64 + 1);
            data.truncate(usize::try_from(left).unwrap());
        }
        (Step::Write(_, data), _) => data.clear(),
        // A file system keeps sizes with its names: a growth is kept, so that what follows it has a place.
        (Step::Size(_), _) => {}
    }
}

fn play(content: &mut Vec<u8>, step: &Step) {
    match step {
        Step::Write(offset, data) => {
            let from = usize::try_from(*offset).unwrap();
            let end = from + data.len();
            if !data.is_empty() && content.len() < end {
                content.resize(end, 0);
            }
            if !data.is_empty() {
                content[from..end].copy_from_slice(data);
            }
        }
        Step::Size(size) => content.resize(usize::try_from(*size).unwrap(), 0),
    }
}

fn play_name(names: &mut BTreeMap<PathBuf, Name>, step: Rename) {
    match step {
        Rename::Add(path, name) => {
            names.insert(path, name);
        }
        Rename::Move(from, to) => {
            let moved: Vec<PathBuf> = names
                .keys()
                .filter(|p| p.starts_with(&from))
                .cloned()
                .collect();
            for path in moved {
                let rest = path.strip_prefix(&from).unwrap();
                let new = match rest.as_os_str().is_empty() {
                    true => to.clone(),
                    false => to.join(rest),
                };
                if let Some(name) = names.remove(&path) {
                    names.insert(new, name);
                }
            }
        }
        Rename::Remove(path) => names.retain(|name, _| !name.starts_with(&path)),
    }
}

impl Name {
    fn file(&self) -> Option<u64> {
        match self {
            Self::File(id) => Some(*id),
            Self::Directory => None,
        }
    }
}

impl Inner {
    fn rename(&mut self, step: Rename) {
        self.journal.push(step.clone());
        play_name(&mut self.names, step);
    }

    fn file(&self, path: &Path) -> io::Result<u64> {
        let name = self.names.get(path).and_then(Name::file);
        name.ok_or_else(|| ErrorKind::NotFound.into())
    }

    fn full(&self) -> io::Result<()> {
        match self.health {
            Health::Full => Err(ErrorKind::StorageFull.into()),
            Health::Well | Health::Slow(_) | Health::Lying => Ok(()),
        }
    }

    fn content(&mut self, id: u64) -> &mut Content {
        self.files.get_mut(&id).unwrap()
    }
}

/// A disk in use by one process.
#[derive(Debug, Clone)]
pub(crate) struct Mounted {
    disk: Disk,
    mount: u64,
    process: Process,
}

impl Mounted {
    /// One operation: of a process that lives, and whose last one it may be.
    fn operate(&self) -> io::Result<MutexGuard<'_, Inner>> {
        let mut inner = self.disk.lock();
        if self.process.is_dead() || inner.mounts != self.mount {
            return Err(io::Error::other("the process is dead"));
        }
        inner.operations += 1;
        match &mut inner.fuse {
            Some(0) => {
                inner.fuse = None;
                drop(inner);
                self.process.kill();
                return Err(io::Error::other("the process dies"));
            }
            Some(left) => *left -= 1,
            None => {}
        }
        Ok(inner)
    }

    fn opened(&self, file: u64) -> Arc<dyn SimulatedFile> {
        Arc::new(Opened {
            at: self.clone(),
            file,
        })
    }

    fn sync_takes(&self, inner: &mut Inner) {
        let micros = match inner.health {
            Health::Well | Health::Full | Health::Lying => inner.random.below(1_000),
            Health::Slow(most) => inner.random.below(most * 1_000),
        };
        self.process.owe(Duration::from_micros(micros));
    }
}

impl SimulatedDisk for Mounted {
    fn create_dir(&self, path: &Path) -> io::Result<()> {
        let mut inner = self.operate()?;
        inner.full()?;
        let missing: Vec<PathBuf> = path
            .ancestors()
            .filter(|above| !inner.names.contains_key(*above))
            .map(Path::to_owned)
            .collect();
        for directory in missing.into_iter().rev() {
            inner.rename(Rename::Add(directory, Name::Directory));
        }
        Ok(())
    }

    fn create(&self, path: &Path) -> io::Result<Arc<dyn SimulatedFile>> {
        let mut inner = self.operate()?;
        inner.full()?;
        if inner.names.contains_key(path) {
            return Err(ErrorKind::AlreadyExists.into());
        }
        inner.next += 1;
        let id = inner.next;
        inner.files.insert(id, Content::default());
        inner.rename(Rename::Add(path.to_owned(), Name::File(id)));
        Ok(self.opened(id))
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn SimulatedFile>> {
        let id = self.operate()?.file(path)?;
        Ok(self.opened(id))
    }

    fn list(&self, path: &Path) -> io::Result<Vec<PathBuf>> {
        let inner = self.operate()?;
        if inner.names.get(path) != Some(&Name::Directory) {
            return Err(ErrorKind::NotFound.into());
        }
        let inside = inner
            .names
            .keys()
            .filter(|name| name.parent() == Some(path));
        Ok(inside.cloned().collect())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut inner = self.operate()?;
        if !inner.names.contains_key(from) {
            return Err(ErrorKind::NotFound.into());
        }
        inner.rename(Rename::Move(from.to_owned(), to.to_owned()));
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut inner = self.operate()?;
        inner.file(path)?;
        inner.rename(Rename::Remove(path.to_owned()));
        Ok(())
    }

    fn remove_all(&self, path: &Path) -> io::Result<()> {
        let mut inner = self.operate()?;
        if !inner.names.contains_key(path) {
            return Err(ErrorKind::NotFound.into());
        }
        inner.rename(Rename::Remove(path.to_owned()));
        Ok(())
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        let mut inner = self.operate()?;
        if !inner.names.contains_key(path) {
            return Err(ErrorKind::NotFound.into());
        }
        let inner = &mut *inner;
        for step in std::mem::take(&mut inner.journal) {
            play_name(&mut inner.durable, step);
        }
        self.sync_takes(inner);
        Ok(())
    }
}

/// An open file.
#[derive(Debug)]
struct Opened {
    at: Mounted,
    file: u64,
}

impl SimulatedFile for Opened {
    fn size(&self) -> io::Result<u64> {
        let mut inner = self.at.operate()?;
        Ok(inner.content(self.file).now.len() as u64)
    }

    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let mut inner = self.at.operate()?;
        let from = usize::try_from(offset).unwrap();
        let bytes = inner.content(self.file).now.get(from..from + out.len());
        out.copy_from_slice(bytes.ok_or(ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut inner = self.at.operate()?;
        inner.full()?;
        let content = inner.content(self.file);
        let step = Step::Write(offset, data.to_owned());
        play(&mut content.now, &step);
        content.unsynced.push(step);
        Ok(())
    }

    fn set_size(&self, size: u64) -> io::Result<()> {
        let mut inner = self.at.operate()?;
        if size > inner.content(self.file).now.len() as u64 {
            inner.full()?;
        }
        let content = inner.content(self.file);
        let step = Step::Size(size);
        play(&mut content.now, &step);
        content.unsynced.push(step);
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        let mut inner = self.at.operate()?;
        let inner = &mut *inner;
        if inner.health == Health::Lying {
            return Ok(());
        }
        let content = inner.content(self.file);
        for step in std::mem::take(&mut content.unsynced) {
            play(&mut content.durable, &step);
        }
        self.at.sync_takes(inner);
        Ok(())
    }
}
