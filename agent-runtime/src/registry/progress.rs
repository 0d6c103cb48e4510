//! How far a pull is, for whoever waits for it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::image::PullState;

/// Bytes had and wanted, and what holds the pull up. Shared by all parts of one pull.
#[derive(Debug, Default)]
pub struct Progress {
    total: AtomicU64,
    done: AtomicU64,
    /// What holds it up: the last failure that is about to be tried again.
    note: Mutex<Option<String>>,
}

impl Progress {
    /// So many bytes are wanted in all.
    pub fn expect(&self, bytes: u64) {
        self.total.store(bytes, Ordering::Relaxed);
    }

    /// So many more are there.
    pub fn add(&self, bytes: u64) {
        self.done.fetch_add(bytes, Ordering::Relaxed);
        if bytes > 0 {
            self.say(None);
        }
    }

    /// Bytes that are there, and those that are wanted.
    pub fn bytes(&self) -> (u64, u64) {
        let total = self.total.load(Ordering::Relaxed);
        (self.done.load(Ordering::Relaxed).min(total), total)
    }

    /// All of it.
    pub(crate) fn state(&self) -> PullState {
        let (done, total) = self.bytes();
        PullState {
            done,
            total,
            text: self.text(),
        }
    }

    pub(super) fn say(&self, note: Option<String>) {
        *self.note.lock().unwrap_or_else(PoisonError::into_inner) = note;
    }

    /// `pulling: 120 of 200 MiB`, or what holds it up.
    pub fn text(&self) -> String {
        let note = self.note.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(note) = note.as_ref() {
            return format!("pulling: {note}");
        }
        match self.bytes() {
            (_, 0) => "pulling".to_owned(),
            (done, total) => format!("pulling: {}", of(done, total)),
        }
    }
}

/// Both numbers in the unit of the larger.
fn of(done: u64, total: u64) -> String {
    const UNITS: [(u64, &str); 3] = [(1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    for (unit, name) in UNITS {
        if total >= unit {
            let amount = |bytes: u64| match (unit, bytes % unit * 10 / unit) {
                // A tenth of a GiB is what a pull gains in a second or so.
                (1_073_741_824, tenth) => format!("{}.{tenth}", bytes / unit),
                _ => (bytes / unit).to_string(),
            };
            return format!("{} of {} {name}", amount(done), amount(total));
        }
    }
    format!("{done} of {total} B")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_as_people_say_it() {
        let progress = Progress::default();
        assert_eq!(progress.text(), "pulling");
        progress.expect(200 << 20);
        progress.add(120 << 20);
        assert_eq!(progress.text(), "pulling: 120 of 200 MiB");
        progress.say(Some("registry r: HTTP 503".to_owned()));
        assert_eq!(progress.text(), "pulling: registry r: HTTP 503");
        progress.add(1 << 30);
        assert_eq!(progress.text(), "pulling: 200 of 200 MiB");
        assert_eq!(of(0, 3 << 29), "0.0 of 1.5 GiB");
        assert_eq!(of(5, 900), "5 of 900 B");
    }
}
