//! When each image was taken last. Pure.
//!
//! Every take counts here, so that a collection spares what was taken while it looked; only some
//! of them are written down with containerd.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

/// An image's last use is written down again after this long: its collection counts in hours.
const WRITE_EVERY: Duration = Duration::from_secs(60);
/// What was taken longer ago is forgotten here: no pass of a collection lasts as long.
const KEPT: Duration = Duration::from_hours(24);

/// The last uses of images, by name.
#[derive(Debug, Default)]
pub(super) struct Usage {
    names: BTreeMap<String, Use>,
}

#[derive(Debug)]
struct Use {
    taken: Instant,
    written: Instant,
}

impl Usage {
    /// The image is taken now. True where that should be written down too.
    pub(super) fn take(&mut self, name: &str, now: Instant) -> bool {
        let Some(last) = self.names.get_mut(name) else {
            self.write(name, now);
            return true;
        };
        last.taken = now;
        let due = now.saturating_duration_since(last.written) >= WRITE_EVERY;
        if due {
            last.written = now;
        }
        due
    }

    /// The image is taken now, and that is being written down.
    pub(super) fn write(&mut self, name: &str, now: Instant) {
        self.names
            .retain(|_, last| now.saturating_duration_since(last.taken) < KEPT);
        let last = Use {
            taken: now,
            written: now,
        };
        self.names.insert(name.to_owned(), last);
    }

    pub(super) fn taken_since(&self, name: &str, since: Instant) -> bool {
        self.names.get(name).is_some_and(|last| last.taken >= since)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_take_counts_and_few_are_written() {
        let begin = Instant::now();
        let at = |seconds| begin + Duration::from_secs(seconds);
        let mut usage = Usage::default();
        assert!(usage.take("a", at(0)));
        assert!(!usage.take("a", at(30)));
        // Not written down, and yet it was taken.
        assert!(usage.taken_since("a", at(30)));
        assert!(!usage.taken_since("a", at(31)));
        assert!(!usage.taken_since("b", at(0)));
        assert!(usage.take("a", at(60)));
        assert!(!usage.take("a", at(119)));
        assert!(usage.take("a", at(120)));
    }

    #[test]
    fn what_nobody_takes_is_forgotten() {
        let begin = Instant::now();
        let mut usage = Usage::default();
        usage.write("a", begin);
        usage.write("b", begin + KEPT);
        assert_eq!(usage.names.keys().collect::<Vec<_>>(), ["b"]);
    }
}
