//! The ordered log: what consensus would agree on, and the states that follow from it.
//!
//! Beside the leader's state runs a replica that is fed with the entries' bytes and now and then
//! starts over from a snapshot: promise P7.

use std::collections::VecDeque;
use std::sync::Arc;

use swarm_proto::time::Timestamp;
use swarmd::manager::store::watch::Hub;
use swarmd::manager::store::{Applied, Change, Entry, State, apply, codec, snapshot};

use super::invariants;

/// What is kept to be shown when something is wrong.
const TRACE_MAX: usize = 80;
/// Entries between two comparisons with the replica.
const COMPARE_EVERY: u64 = 32;

/// The log and its states.
#[derive(Debug, Default)]
pub struct Log {
    /// The leader's state.
    pub state: State,
    /// Where commits are announced, for those who wait for them.
    pub hub: Hub,
    /// All entries, as they would be on disk.
    pub bytes: Vec<u8>,
    /// Promises that were broken.
    pub broken: Vec<String>,
    replica: State,
    trace: VecDeque<(Timestamp, Line)>,
}

#[derive(Debug)]
enum Line {
    Entry(&'static str, Arc<Entry>, Vec<String>),
    Said(String),
}

impl Log {
    /// Appends and applies an entry. `at` is when it is committed, `who` wrote it.
    pub fn commit(
        &mut self,
        at: Timestamp,
        who: &'static str,
        (now, changes): (Timestamp, Vec<Change>),
    ) -> Applied {
        let entry = Entry { now, changes };
        let version = self.state.version + 1;
        let applied = apply(&mut self.state, version, &entry);
        self.broken
            .extend(invariants::of_entry(&self.state, &entry, &applied));
        self.replicate(version, &entry);
        self.hub.publish(self.state.clone(), applied.events.clone());
        let refused = applied.results.iter().filter_map(|r| r.as_ref().err());
        let refused = refused.map(ToString::to_string).collect();
        self.push(at, Line::Entry(who, Arc::new(entry), refused));
        applied
    }

    fn replicate(&mut self, version: u64, entry: &Entry) {
        let encoded = codec::encode_entry(entry);
        self.bytes.extend((encoded.len() as u64).to_be_bytes());
        self.bytes.extend(&encoded);
        match codec::decode_entry(&encoded) {
            Ok(decoded) => {
                apply(&mut self.replica, version, &decoded);
            }
            Err(error) => self.broken.push(format!("an entry can't be read: {error}")),
        }
        if version.is_multiple_of(COMPARE_EVERY) {
            self.compare();
        }
    }

    /// Compares the replica with the state, and lets it go on from a snapshot.
    pub fn compare(&mut self) {
        let (ours, theirs) = (
            snapshot::state_hash(&self.state),
            snapshot::state_hash(&self.replica),
        );
        if ours != theirs {
            self.broken.push("same log, another state".to_owned());
        }
        let mut decoder = snapshot::Decoder::default();
        for record in snapshot::encode(&self.state) {
            if let Err(error) = decoder.push(&record) {
                self.broken
                    .push(format!("a snapshot can't be read: {error}"));
                return;
            }
        }
        match decoder.finish() {
            Ok(restored) => {
                self.compare_indexes(&restored);
                self.replica = restored;
            }
            Err(error) => self
                .broken
                .push(format!("a snapshot can't be read: {error}")),
        }
    }

    fn compare_indexes(&mut self, rebuilt: &State) {
        let (ours, rebuilt) = (&self.state.index, &rebuilt.index);
        if format!("{ours:?}") != format!("{rebuilt:?}") {
            let (ours, rebuilt) = (format!("{ours:#?}"), format!("{rebuilt:#?}"));
            let differ: Vec<String> = ours
                .lines()
                .zip(rebuilt.lines())
                .filter(|(a, b)| a != b)
                .take(8)
                .map(|(a, b)| format!("{} / {}", a.trim(), b.trim()))
                .collect();
            let differ = differ.join(", ");
            self.broken
                .push(format!("indexes differ from rebuilt ones: {differ}"));
        }
    }

    /// Notes what happened, for the case that something is wrong afterwards.
    pub fn say(&mut self, at: Timestamp, text: String) {
        self.push(at, Line::Said(text));
    }

    fn push(&mut self, at: Timestamp, line: Line) {
        if self.trace.len() >= TRACE_MAX {
            self.trace.pop_front();
        }
        self.trace.push_back((at, line));
    }

    /// The last things that happened.
    pub fn last_events(&self, start: Timestamp) -> String {
        let lines = self.trace.iter().map(|(at, line)| {
            let seconds = at.since(start).as_secs_f64();
            match line {
                Line::Said(text) => format!("{seconds:9.3}  {text}\n"),
                Line::Entry(who, entry, refused) => {
                    let changes: Vec<String> = entry.changes.iter().map(short).collect();
                    let refused = if refused.is_empty() {
                        String::new()
                    } else {
                        format!(" refused: {}", refused.join("; "))
                    };
                    format!("{seconds:9.3}  {who}: {}{refused}\n", changes.join("; "))
                }
            }
        });
        with_short_ids(&lines.collect::<String>())
    }
}

/// A change in one line.
#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "all others are short as they are"
)]
fn short(change: &Change) -> String {
    let text = match change {
        Change::CreateService { id, spec } | Change::UpdateService { id, spec, .. } => {
            format!("service {id} = {:?}", spec.wire)
        }
        Change::CreateNode(node) => format!("CreateNode {} {:?}", node.id, node.annotations.labels),
        Change::SetNodeStatus { id, state, .. } => format!("node {id} {state:?}"),
        Change::ReportStatus { node, reports } => {
            let reports = reports.iter().map(|report| {
                format!(
                    " {} {} {}{}",
                    report.task, report.state, report.message, report.err
                )
            });
            format!("node {node} reports{}", reports.collect::<String>())
        }
        other => format!("{other:?}"),
    };
    match text.char_indices().nth(1_200) {
        Some((cut, _)) => format!("{}…", &text[..cut]),
        None => text,
    }
}

/// Long ids are hard to read: their first characters tell them apart.
pub fn with_short_ids(text: &str) -> String {
    let mut short = String::new();
    let mut word = String::new();
    for letter in text.chars().chain(std::iter::once(' ')) {
        if letter.is_ascii_digit() || letter.is_ascii_lowercase() {
            word.push(letter);
            continue;
        }
        let shown = if word.len() == 25 { 5 } else { word.len() };
        short.push_str(&word[..shown]);
        short.push(letter);
        word.clear();
    }
    short.pop();
    short
}
