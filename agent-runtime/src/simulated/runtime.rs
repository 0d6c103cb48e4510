//! The simulated host: which tasks it holds and in which phase, shared by executors and tests.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use super::script::{EXIT_KILLED, Script};
use crate::error::Error;
use crate::executor::{Exit, Handle, Observed};

/// Where one simulated container is in its life.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Phase {
    Created,
    Running,
    Exited(Exit),
}

#[derive(Debug)]
struct Entry {
    phase: Phase,
    /// When the container ends by itself, and how.
    due: Option<(Instant, Exit)>,
    /// Wakes `wait`: the phase or the due time changed.
    changed: Arc<Notify>,
}

#[derive(Debug, Default)]
struct Tasks {
    entries: BTreeMap<String, Entry>,
    journal: Option<std::fs::File>,
}

/// Whether the runtime answers, and how often it came back.
#[derive(Debug, Clone, Copy)]
struct Link {
    reach: Reach,
    returns: u64,
}

const CONNECTED: Link = Link {
    reach: Reach::Up,
    returns: 0,
};

/// The simulated host. Cheap to share: executors, tests and the simulator hold an `Arc`.
#[derive(Debug)]
pub struct SimulatedRuntime {
    tasks: Mutex<Tasks>,
    /// While the runtime is "down" every call fails as unavailable.
    link: watch::Sender<Link>,
}

impl Default for SimulatedRuntime {
    fn default() -> Self {
        Self {
            tasks: Mutex::default(),
            link: watch::Sender::new(CONNECTED),
        }
    }
}

impl SimulatedRuntime {
    /// A host that holds nothing and keeps everything in memory.
    #[must_use]
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// A host that keeps a journal at `path`, so that a restarted process finds its tasks again.
    /// Scripted ends start anew then.
    ///
    /// # Errors
    /// When the journal can't be read or written.
    pub fn open(path: &Path) -> Result<Arc<Self>, Error> {
        let failed = |error: std::io::Error| {
            Error::Fatal(format!(
                "simulated runtime: journal {}: {error}",
                path.display()
            ))
        };
        let entries = match std::fs::read_to_string(path) {
            Ok(text) => replay(&text),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => BTreeMap::new(),
            Err(error) => return Err(failed(error)),
        };
        // Rewritten, so that it stays as small as what it says; the rename makes that atomic.
        let lines: String = entries
            .iter()
            .map(|(id, entry)| line(id, Some(&entry.phase)))
            .collect();
        let fresh = PathBuf::from(format!("{}.new", path.display()));
        std::fs::write(&fresh, lines).map_err(failed)?;
        std::fs::rename(&fresh, path).map_err(failed)?;
        let journal = std::fs::OpenOptions::new()
            .append(true)
            .open(path)
            .map_err(failed)?;
        Ok(Arc::new(Self {
            tasks: Mutex::new(Tasks {
                entries,
                journal: Some(journal),
            }),
            link: watch::Sender::new(CONNECTED),
        }))
    }

    /// Takes the runtime down (every call fails as unavailable, containers go on) or brings it back.
    pub fn set_up(&self, reach: Reach) {
        self.link.send_modify(|link| {
            if link.reach == Reach::Down && reach == Reach::Up {
                link.returns += 1;
            }
            link.reach = reach;
        });
    }

    /// Ends a running container, as if it had ended by itself.
    ///
    /// # Errors
    /// When the journal can't be written.
    pub fn end(&self, task_id: &str, exit: Exit) -> Result<(), Error> {
        let mut tasks = self.lock();
        if tasks
            .entries
            .get(task_id)
            .is_some_and(|entry| entry.phase == Phase::Running)
        {
            tasks.set(task_id, Phase::Exited(exit))?;
        }
        Ok(())
    }

    /// Ids of all tasks held, sorted.
    #[must_use]
    pub fn held(&self) -> Vec<String> {
        self.lock().entries.keys().cloned().collect()
    }

    /// Ids of the tasks that run, sorted.
    #[must_use]
    pub fn running(&self) -> Vec<String> {
        let mut tasks = self.lock();
        tasks.settle_all();
        let running = tasks
            .entries
            .iter()
            .filter(|(_, entry)| entry.phase == Phase::Running);
        running.map(|(id, _)| id.clone()).collect()
    }

    /// Forgets everything, as a host does that loses its containers in a restart.
    ///
    /// # Errors
    /// When the journal can't be written.
    pub fn clear(&self) -> Result<(), Error> {
        for id in self.held() {
            self.remove(&id)?;
        }
        Ok(())
    }

    pub(super) fn reachable(&self) -> Result<(), Error> {
        if self.link.borrow().reach == Reach::Up {
            return Ok(());
        }
        Err(Error::Unavailable {
            runtime: "the simulated runtime".to_owned(),
            reason: "it is down".to_owned(),
        })
    }

    /// Returns once the runtime came back more than `told` times, with the number of times.
    pub(super) async fn came_back(&self, told: u64) -> u64 {
        let mut link = self.link.subscribe();
        match link.wait_for(|link| link.returns > told).await {
            Ok(link) => link.returns,
            // The sender lives in `self`.
            Err(_) => told,
        }
    }

    pub(super) fn returns(&self) -> u64 {
        self.link.borrow().returns
    }

    /// A container left running by an earlier process goes on with its script.
    pub(super) fn adopt(&self, task_id: &str, script: &Script) {
        let mut tasks = self.lock();
        let Some(entry) = tasks.entries.get_mut(task_id) else {
            return;
        };
        if entry.phase == Phase::Running && entry.due.is_none() {
            entry.due = due(script);
            entry.changed.notify_waiters();
        }
    }

    pub(super) fn phase(&self, task_id: &str) -> Option<Phase> {
        let mut tasks = self.lock();
        tasks.settle(task_id);
        tasks.entries.get(task_id).map(|entry| entry.phase.clone())
    }

    pub(super) fn is_running(&self, task_id: &str) -> bool {
        self.phase(task_id) == Some(Phase::Running)
    }

    pub(super) fn create(&self, task_id: &str) -> Result<(), Error> {
        self.lock().set(task_id, Phase::Created)
    }

    pub(super) fn start(&self, task_id: &str, script: &Script) -> Result<(), Error> {
        let mut tasks = self.lock();
        match tasks.entries.get(task_id).map(|entry| &entry.phase) {
            Some(Phase::Created) => {}
            Some(Phase::Running | Phase::Exited(_)) => return Ok(()),
            None => return Err(absent(task_id)),
        }
        tasks.set(task_id, Phase::Running)?;
        if let Some(entry) = tasks.entries.get_mut(task_id) {
            entry.due = due(script);
        }
        Ok(())
    }

    pub(super) async fn wait(&self, task_id: &str) -> Result<Exit, Error> {
        let mut link = self.link.subscribe();
        loop {
            let (changed, due) = {
                let mut tasks = self.lock();
                tasks.settle(task_id);
                let Some(entry) = tasks.entries.get(task_id) else {
                    return Err(absent(task_id));
                };
                if let Phase::Exited(exit) = &entry.phase {
                    return Ok(exit.clone());
                }
                let changed = Arc::clone(&entry.changed).notified_owned();
                (changed, entry.due.as_ref().map(|(at, _)| *at))
            };
            self.reachable()?;
            tokio::select! {
                biased;
                () = changed => {}
                // The runtime going down ends the wait, as a lost connection would.
                _ = link.changed() => {}
                () = reached(due) => {}
            }
        }
    }

    pub(super) fn observe(&self, task_id: &str, handle: Handle) -> Observed {
        match self.phase(task_id) {
            None => Observed::Absent,
            Some(Phase::Created) => Observed::Created(handle),
            Some(Phase::Running) => Observed::Running(handle),
            Some(Phase::Exited(exit)) => Observed::Exited(handle, exit),
        }
    }

    pub(super) fn remove(&self, task_id: &str) -> Result<(), Error> {
        let mut tasks = self.lock();
        let Some(entry) = tasks.entries.remove(task_id) else {
            return Ok(());
        };
        entry.changed.notify_waiters();
        tasks.record(task_id, None)
    }

    fn lock(&self) -> MutexGuard<'_, Tasks> {
        // Every change is a single insert or remove, so a poisoned table is still a whole one.
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether the simulated runtime answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// It answers.
    Up,
    /// Every call fails as unavailable; containers go on.
    Down,
}

impl Tasks {
    fn set(&mut self, task_id: &str, phase: Phase) -> Result<(), Error> {
        self.record(task_id, Some(&phase))?;
        match self.entries.get_mut(task_id) {
            Some(entry) => {
                entry.phase = phase;
                entry.due = None;
                entry.changed.notify_waiters();
            }
            None => {
                self.entries.insert(task_id.to_owned(), Entry::new(phase));
            }
        }
        Ok(())
    }

    /// Applies the scripted end if it is due.
    fn settle(&mut self, task_id: &str) {
        let Some(entry) = self.entries.get_mut(task_id) else {
            return;
        };
        if entry
            .due
            .as_ref()
            .is_none_or(|(at, _)| *at > Instant::now())
        {
            return;
        }
        if let Some((_, exit)) = entry.due.take() {
            entry.phase = Phase::Exited(exit);
            entry.changed.notify_waiters();
            let phase = entry.phase.clone();
            if let Err(error) = self.record(task_id, Some(&phase)) {
                tracing::warn!(task.id = task_id, %error, "simulated end not recorded");
            }
        }
    }

    fn settle_all(&mut self) {
        let due: Vec<String> = self
            .entries
            .iter()
            .filter(|(_, entry)| entry.due.is_some())
            .map(|(id, _)| id.clone())
            .collect();
        for id in due {
            self.settle(&id);
        }
    }

    fn record(&mut self, task_id: &str, phase: Option<&Phase>) -> Result<(), Error> {
        let Some(journal) = &mut self.journal else {
            return Ok(());
        };
        journal
            .write_all(line(task_id, phase).as_bytes())
            .map_err(|error| Error::Temporary(format!("simulated runtime: journal: {error}")))
    }
}

impl Entry {
    fn new(phase: Phase) -> Self {
        Self {
            phase,
            due: None,
            changed: Arc::default(),
        }
    }
}

fn due(script: &Script) -> Option<(Instant, Exit)> {
    let after = script.exit_after?;
    let code = if script.oom {
        EXIT_KILLED
    } else {
        script.exit_code
    };
    Some((
        Instant::now() + after,
        Exit {
            code,
            oom: script.oom,
            detail: None,
        },
    ))
}

fn absent(task_id: &str) -> Error {
    Error::Fatal(format!(
        "task {task_id}: the runtime holds no container for it"
    ))
}

/// Sleeps, without a timer when there is nothing to sleep.
pub(super) async fn spend(time: Duration) {
    if !time.is_zero() {
        tokio::time::sleep(time).await;
    }
}

async fn reached(due: Option<Instant>) {
    match due {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// One line of the journal: `id phase [code oom]`, or `id removed`.
fn line(task_id: &str, phase: Option<&Phase>) -> String {
    match phase {
        None => format!("{task_id} removed\n"),
        Some(Phase::Created) => format!("{task_id} created\n"),
        Some(Phase::Running) => format!("{task_id} running\n"),
        Some(Phase::Exited(exit)) => format!("{task_id} exited {} {}\n", exit.code, exit.oom),
    }
}

/// Reads the journal. Lines that don't parse (a write cut short) are left out.
fn replay(text: &str) -> BTreeMap<String, Entry> {
    let mut entries = BTreeMap::new();
    for line in text.lines() {
        let mut words = line.split(' ');
        let (Some(id), Some(word)) = (words.next(), words.next()) else {
            continue;
        };
        let phase = match word {
            "created" => Phase::Created,
            "running" => Phase::Running,
            "exited" => {
                let code = words.next().and_then(|code| code.parse().ok());
                let oom = words.next().and_then(|oom| oom.parse().ok());
                let (Some(code), Some(oom)) = (code, oom) else {
                    continue;
                };
                Phase::Exited(Exit {
                    code,
                    oom,
                    detail: None,
                })
            }
            "removed" => {
                entries.remove(id);
                continue;
            }
            _ => continue,
        };
        entries.insert(id.to_owned(), Entry::new(phase));
    }
    entries
}
