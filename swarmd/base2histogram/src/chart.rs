//! Histograms as text, one below the other.

use std::fmt;

use super::Histogram;

/// Longest bar, in characters.
const BAR_MAX: u64 = 40;

/// Named histograms to look at side by side.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AsciiChart {
    series: Vec<(String, Histogram)>,
}

impl AsciiChart {
    /// A chart without histograms.
    #[must_use]
    pub const fn new() -> Self {
        Self { series: Vec::new() }
    }

    /// Adds a histogram below the others.
    #[must_use]
    pub fn add(mut self, name: &str, histogram: Histogram) -> Self {
        self.series.push((name.to_owned(), histogram));
        self
    }

    /// Shows each bucket that is not empty on a line of its own.
    #[must_use]
    pub const fn detailed(&self) -> Detailed<'_> {
        Detailed { chart: self }
    }
}

/// A chart with a line a bucket: its range, its count, and a bar in proportion to its series'
/// largest.
#[derive(Debug, Clone, Copy)]
pub struct Detailed<'a> {
    chart: &'a AsciiChart,
}

impl fmt::Display for Detailed<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, histogram) in &self.chart.series {
            writeln!(f, "{name} ({})", histogram.total())?;
            let most = histogram.buckets().map(|(_, count)| count).max();
            for (bucket, count) in histogram.buckets() {
                let range = format!("{}-{}", bucket.low, bucket.high);
                let bar = bar(count, most.unwrap_or(count));
                writeln!(f, "{range:>24} {count:>10} {bar}")?;
            }
        }
        Ok(())
    }
}

/// At least one character, so that a rare value is seen.
fn bar(count: u64, most: u64) -> String {
    let share = u128::from(count) * u128::from(BAR_MAX) / u128::from(most.max(1));
    "#".repeat(usize::try_from(share).unwrap_or(usize::MAX).max(1))
}
