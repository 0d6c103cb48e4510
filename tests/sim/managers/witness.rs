//! Looks at what every manager's watchers see, and holds it against what those of the others saw.
//!
//! Commits of one subscription come in order and without gaps (promise P3); managers at the same index have the same commits,
//! the same leader in them and the same state (P7); a task's state moves as the table says; a leadership belongs to one
//! manager.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use swarm_proto::task_state::Owner;
use swarmd::manager::store::watch::Commit;
use swarmd::manager::store::{Event, Task, snapshot};

/// Commits between two hashes of the whole state.
const HASH_EVERY: u64 = 4;

/// What was seen.
#[derive(Debug, Default)]
pub(crate) struct Witness {
    /// By index: what the entry did.
    commits: BTreeMap<u64, String>,
    hashes: BTreeMap<u64, [u8; 32]>,
    /// By index: term and leader of the entry.
    leaders: BTreeMap<u64, (u64, u64)>,
    /// By term: who led.
    terms: BTreeMap<u64, BTreeSet<u64>>,
    /// Pairs of commits that a watcher saw one after the other.
    neighbours: BTreeSet<(u64, u64)>,
    /// Promises that were broken.
    pub(crate) broken: Vec<String>,
}

/// A watcher: what it saw last.
#[derive(Debug, Default, Clone)]
pub(crate) struct Watcher {
    name: String,
    last: Option<u64>,
}

impl Watcher {
    /// One that has seen nothing.
    pub(crate) fn new(name: String) -> Self {
        Self { name, last: None }
    }

    /// One that goes on from a version.
    pub(crate) fn from(name: String, version: u64) -> Self {
        Self {
            name,
            last: Some(version),
        }
    }
}

impl Witness {
    /// A watcher sees a commit.
    pub(crate) fn sees(&mut self, watcher: &mut Watcher, commit: &Commit) {
        let version = commit.version;
        if let Some(last) = watcher.last.replace(version) {
            if last >= version {
                let name = &watcher.name;
                self.broken
                    .push(format!("{name} saw commit {version} after {last}"));
            }
            self.neighbours.insert((last, version));
        }
        if commit.state.version != version {
            let other = commit.state.version;
            self.broken
                .push(format!("commit {version} comes with state {other}"));
        }
        let did = did(&commit.events);
        let known = self.commits.entry(version).or_insert_with(|| did.clone());
        if *known != did {
            self.broken.push(format!(
                "entry {version} did {known} on one manager, and {did} on {}",
                watcher.name
            ));
        }
        if version.is_multiple_of(HASH_EVERY) {
            self.hash(version, &commit.state, &watcher.name);
        }
        for event in &commit.events {
            if let Event::Task {
                old: Some(old),
                new: Some(new),
            } = event
            {
                self.broken.extend(wrong_move(old, new));
            }
        }
    }

    /// A manager has this state.
    pub(crate) fn hash(&mut self, version: u64, state: &swarmd::manager::store::State, name: &str) {
        let hash = snapshot::state_hash(state);
        let known = *self.hashes.entry(version).or_insert(hash);
        if known != hash {
            self.broken
                .push(format!("{name} has another state at entry {version}"));
        }
    }

    /// A manager has applied an entry of this term and leader.
    pub(crate) fn applied(&mut self, index: u64, by: (u64, u64)) {
        let known = *self.leaders.entry(index).or_insert(by);
        if known != by {
            self.broken.push(format!(
                "entry {index} is of leader {known:?} on one manager, and of {by:?} on another"
            ));
        }
    }

    /// A manager says that it leads.
    pub(crate) fn leads(&mut self, term: u64, id: u64) {
        let leaders = self.terms.entry(term).or_default();
        leaders.insert(id);
        if leaders.len() > 1 {
            self.broken
                .push(format!("term {term} has leaders {leaders:?}"));
        }
    }

    /// How many leaderships there were.
    pub(crate) fn leaderships(&self) -> usize {
        self.terms.len()
    }

    /// The newest commit anybody saw.
    pub(crate) fn newest(&self) -> u64 {
        self.commits
            .last_key_value()
            .map_or(0, |(version, _)| *version)
    }

    /// What only all of it together shows.
    pub(crate) fn check(&mut self) {
        for (before, after) in &self.neighbours {
            let mut between = self.commits.range(before + 1..*after);
            if let Some((missed, did)) = between.next() {
                self.broken.push(format!(
                    "a watcher saw {after} after {before}, and not {missed}: {did}"
                ));
            }
        }
        let mut last = (0, 0);
        for (index, by) in &self.leaders {
            if *by < last {
                self.broken
                    .push(format!("entry {index} is of leader {by:?}, after {last:?}"));
            }
            last = *by;
        }
    }
}

/// What an entry did, short and with everything that tells it from another.
fn did(events: &[Event]) -> String {
    let mut text = String::new();
    for event in events {
        let written = match event {
            Event::Cluster { new, .. } => write!(text, "cluster {} ", new.meta.version),
            Event::Node { old, new } => match (old, new) {
                (_, Some(new)) => write!(text, "node {} {} ", new.id, new.meta.version),
                (Some(old), None) => write!(text, "node {} gone ", old.id),
                (None, None) => Ok(()),
            },
            Event::Service { old, new } => match (old, new) {
                (_, Some(new)) => write!(text, "service {} {} ", new.id, new.meta.version),
                (Some(old), None) => write!(text, "service {} gone ", old.id),
                (None, None) => Ok(()),
            },
            Event::Task { old, new } => match (old, new) {
                (_, Some(new)) => {
                    let (state, desired) = (new.status.state, new.desired);
                    write!(text, "task {} {state} {desired} ", new.id)
                }
                (Some(old), None) => write!(text, "task {} gone ", old.id),
                (None, None) => Ok(()),
            },
        };
        written.unwrap();
    }
    text
}

fn wrong_move(old: &Task, new: &Task) -> Option<String> {
    let (from, to) = (old.status.state, new.status.state);
    let allowed = [Owner::Pass, Owner::Agent, Owner::Node];
    let moves = from == to || allowed.iter().any(|owner| from.may_become(to, *owner));
    let stays = old.node.is_none() || old.node == new.node;
    (!moves || !stays || new.desired < old.desired).then(|| {
        let (wanted, wants) = (old.desired, new.desired);
        format!(
            "task {}: {from} -> {to}, desired {wanted} -> {wants}",
            new.id
        )
    })
}
