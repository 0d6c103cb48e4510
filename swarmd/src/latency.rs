//! How long things take, for metrics: counted in fixed buckets as they end.
//!
//! For the shell. What decides does not measure: it would have to read the clock. A record is two additions, whatever
//! was recorded before; nothing grows.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

const US: u64 = 1;
const MS: u64 = 1000 * US;
const S: u64 = 1000 * MS;
/// Upper ends of the buckets in microseconds. From 5 ms to 10 s they are Prometheus' usual ones, which SwarmKit's
/// metrics have; below is what a fast disk does, above what waits for an image.
const BOUNDS_US: [u64; 20] = [
    100 * US,
    250 * US,
    500 * US,
    MS,
    2500 * US,
    5 * MS,
    10 * MS,
    25 * MS,
    50 * MS,
    100 * MS,
    250 * MS,
    500 * MS,
    S,
    2500 * MS,
    5 * S,
    10 * S,
    30 * S,
    60 * S,
    300 * S,
    600 * S,
];
/// One more takes what is above all of them.
const BUCKETS: usize = BOUNDS_US.len() + 1;

/// How often something took how long.
#[derive(Debug, Default)]
pub(crate) struct Histogram {
    counts: [AtomicU64; BUCKETS],
    sum_ns: AtomicU64,
}

/// A histogram as it was at a moment.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Counts {
    counts: [u64; BUCKETS],
    sum: Duration,
}

impl Histogram {
    /// Counts what took so long.
    pub(crate) fn record(&self, took: Duration) {
        let bucket = BOUNDS_US.partition_point(|bound| Duration::from_micros(*bound) < took);
        if let Some(count) = self.counts.get(bucket) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        // 584 years fit.
        let ns = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        self.sum_ns.fetch_add(ns, Ordering::Relaxed);
    }

    /// Counts what lasts from now on until the value is dropped: however that comes, an error and a caller that has gone
    /// away included, as SwarmKit's timers do.
    pub(crate) fn timed(&self) -> Timed<'_> {
        Timed {
            histogram: self,
            began: Instant::now(),
        }
    }

    /// What was counted.
    pub(crate) fn counts(&self) -> Counts {
        let mut counts = [0; BUCKETS];
        for (to, from) in counts.iter_mut().zip(&self.counts) {
            *to = from.load(Ordering::Relaxed);
        }
        Counts {
            counts,
            sum: Duration::from_nanos(self.sum_ns.load(Ordering::Relaxed)),
        }
    }
}

impl Counts {
    /// All of them.
    pub(crate) fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// How long all of them took together.
    pub(crate) fn sum(&self) -> Duration {
        self.sum
    }

    /// How many there are in each bucket, not counting those of the buckets before, with the bucket's upper end in
    /// seconds.
    pub(crate) fn buckets(&self) -> Vec<(f64, u64)> {
        let ends = BOUNDS_US.iter().map(|us| Duration::from_micros(*us));
        let ends = ends.map(|end| end.as_secs_f64()).chain([f64::INFINITY]);
        ends.zip(self.counts).collect()
    }
}

/// Something that is under way.
#[derive(Debug)]
#[must_use = "it is counted when this is dropped"]
pub(crate) struct Timed<'a> {
    histogram: &'a Histogram,
    began: Instant,
}

impl Drop for Timed<'_> {
    fn drop(&mut self) {
        self.histogram.record(self.began.elapsed());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_counted_once_in_the_first_bucket_that_holds_it() {
        let histogram = Histogram::default();
        let took = [
            Duration::ZERO,
            Duration::from_micros(100),
            Duration::from_nanos(100_001),
            Duration::from_secs(1),
            Duration::from_secs(600),
            Duration::from_secs(601),
            Duration::from_secs(9_999_999),
        ];
        took.into_iter().for_each(|took| histogram.record(took));
        let counts = histogram.counts();
        let mut filled = counts.buckets();
        filled.retain(|(_, count)| *count > 0);
        let expected = [(0.0001, 2), (0.00025, 1), (1.0, 1), (600.0, 1)];
        assert_eq!(
            filled.split_last(),
            Some((&(f64::INFINITY, 2), &expected[..]))
        );
        assert_eq!(counts.count(), 7);
        let all: Duration = took.iter().sum();
        assert_eq!(counts.sum(), all);
    }

    #[test]
    fn buckets_go_up() {
        assert!(BOUNDS_US.is_sorted_by(|one, next| one < next));
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_given_up_is_counted_too() {
        let histogram = Histogram::default();
        let work = async {
            let _timed = histogram.timed();
            std::future::pending::<()>().await;
        };
        let limit = Duration::from_millis(70);
        assert!(tokio::time::timeout(limit, work).await.is_err());
        let counts = histogram.counts();
        assert_eq!(counts.count(), 1);
        assert!(counts.sum() >= limit && counts.sum() < 2 * limit);
        assert!(counts.buckets().contains(&(0.1, 1)));
    }
}
