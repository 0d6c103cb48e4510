//! Counts of values in base-2 logarithmic buckets: the part that openraft uses of the crate whose
//! place this takes (`[patch.crates-io]`, docs/adr/0004-our-own-base2histogram.md).
//!
//! A bucket holds the values that agree in their three leading bits, so a percentile is off by an
//! eighth at most, and values below eight are exact. Where a value belongs is computed from its
//! leading zeros: there are no tables. Buckets exist up to the highest one in use, so a histogram
//! that saw nothing costs nothing.

mod chart;
#[cfg(test)]
mod tests;

use std::fmt;
use std::marker::PhantomData;

pub use chart::{AsciiChart, Detailed};

/// Leading bits of a value that decide its bucket.
const SIGNIFICANT_BITS: u32 = 3;
/// Buckets between a power of two and the next.
const PER_OCTAVE: usize = 1 << (SIGNIFICANT_BITS - 1);
/// Parts that a whole is divided into where percentiles are asked for.
const PERMILLE: u64 = 1000;

/// How often values of each size were seen. `T` is not used; openraft names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Histogram<T = ()> {
    /// Counts by bucket, from the lowest; the last one is not zero, so equal content is equal.
    counts: Vec<u64>,
    unused: PhantomData<T>,
}

impl<T> Histogram<T> {
    /// A histogram that has seen nothing.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            counts: Vec::new(),
            unused: PhantomData,
        }
    }

    /// Counts a value.
    pub fn record(&mut self, value: u64) {
        self.record_n(value, 1);
    }

    /// Counts a value that was seen `count` times.
    pub fn record_n(&mut self, value: u64, count: u64) {
        if count == 0 {
            return;
        }
        let index = bucket_of(value);
        if index >= self.counts.len() {
            self.counts.resize(index + 1, 0);
        }
        if let Some(bucket) = self.counts.get_mut(index) {
            *bucket = bucket.saturating_add(count);
        }
    }

    /// How many values were counted.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.counts.iter().fold(0, |sum, n| sum.saturating_add(*n))
    }

    /// The percentiles that are usually looked at; all zero when nothing was counted.
    #[must_use]
    pub fn percentile_stats(&self) -> PercentileStats {
        let samples = self.total();
        let at = |permille| self.value_at(permille, samples);
        PercentileStats {
            samples,
            p0_1: at(1),
            p1: at(10),
            p5: at(50),
            p10: at(100),
            p50: at(500),
            p90: at(900),
            p99: at(990),
            p99_9: at(999),
        }
    }

    /// The least value that at least so many of a thousand values don't exceed, to its bucket's
    /// middle.
    fn value_at(&self, permille: u64, samples: u64) -> u64 {
        let mut wanted = rank(permille, samples);
        for (bucket, count) in self.buckets() {
            if wanted <= count {
                return bucket.middle();
            }
            wanted -= count;
        }
        0
    }

    /// The buckets that are not empty, from the lowest.
    fn buckets(&self) -> impl Iterator<Item = (Bucket, u64)> {
        let counts = self.counts.iter().enumerate();
        counts
            .filter(|(_, count)| **count > 0)
            .map(|(index, count)| (Bucket::at(index), *count))
    }
}

impl<T> Default for Histogram<T> {
    fn default() -> Self {
        Self::new()
    }
}

/// Values at usual ranks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PercentileStats {
    /// How many values were counted.
    pub samples: u64,
    /// One in a thousand is not above this.
    pub p0_1: u64,
    /// One in a hundred is not above this.
    pub p1: u64,
    /// One in twenty is not above this.
    pub p5: u64,
    /// One in ten is not above this.
    pub p10: u64,
    /// The median.
    pub p50: u64,
    /// One in ten is above this.
    pub p90: u64,
    /// One in a hundred is above this.
    pub p99: u64,
    /// One in a thousand is above this.
    pub p99_9: u64,
}

impl fmt::Display for PercentileStats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { samples, p0_1, .. } = self;
        write!(f, "[samples: {samples}, P0.1: {p0_1}")?;
        let others = [
            ("1", self.p1),
            ("5", self.p5),
            ("10", self.p10),
            ("50", self.p50),
            ("90", self.p90),
            ("99", self.p99),
            ("99.9", self.p99_9),
        ];
        for (percent, value) in others {
            write!(f, ", P{percent}: {value}")?;
        }
        f.write_str("]")
    }
}

/// A range of values that are counted together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Bucket {
    low: u64,
    high: u64,
}

impl Bucket {
    /// The bucket at a place that [`bucket_of`] gave.
    const fn at(index: usize) -> Self {
        let dropped = (index / PER_OCTAVE).saturating_sub(1);
        let low = ((index - dropped * PER_OCTAVE) as u64) << dropped;
        let high = low + ((1 << dropped) - 1);
        Self { low, high }
    }

    const fn middle(self) -> u64 {
        self.low + (self.high - self.low) / 2
    }
}

/// The place of a value's bucket: below 252 for every value.
#[expect(
    clippy::cast_possible_truncation,
    reason = "a value shifted to its three leading bits is below 8"
)]
const fn bucket_of(value: u64) -> usize {
    let bits = u64::BITS - value.leading_zeros();
    let dropped = bits.saturating_sub(SIGNIFICANT_BITS);
    dropped as usize * PER_OCTAVE + (value >> dropped) as usize
}

/// The place, from 1, of the value that so many of a thousand don't exceed.
#[expect(
    clippy::cast_possible_truncation,
    reason = "a share of `samples` is not above `samples`"
)]
fn rank(permille: u64, samples: u64) -> u64 {
    let share = u128::from(samples) * u128::from(permille);
    (share.div_ceil(u128::from(PERMILLE)) as u64).max(1)
}
