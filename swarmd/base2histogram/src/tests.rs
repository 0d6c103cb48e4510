//! Buckets cover every value once, and percentiles are as near to the exact ones as promised.

use proptest::prelude::*;

use super::{AsciiChart, Bucket, Histogram, PercentileStats, bucket_of, rank};

const BUCKETS: usize = 252;

/// Values of every size: of small ones there are otherwise next to none.
fn value() -> impl Strategy<Value = u64> {
    (any::<u64>(), 0..u64::BITS).prop_map(|(value, shift)| value >> shift)
}

fn histogram(values: &[u64]) -> Histogram {
    let mut histogram = Histogram::new();
    for value in values {
        histogram.record(*value);
    }
    histogram
}

#[test]
fn buckets_follow_one_another_without_a_gap_from_zero_to_the_largest_value() {
    let mut next = Some(0);
    for index in 0..BUCKETS {
        let bucket = Bucket::at(index);
        assert_eq!(Some(bucket.low), next, "bucket {index}");
        assert_eq!(bucket_of(bucket.low), index);
        assert_eq!(bucket_of(bucket.high), index);
        next = bucket.high.checked_add(1);
    }
    assert_eq!(next, None, "the last bucket ends at the largest value");
}

#[test]
fn values_below_eight_are_exact() {
    for value in 0..8 {
        let stats = histogram(&[value; 3]).percentile_stats();
        assert_eq!((stats.samples, stats.p0_1, stats.p99_9), (3, value, value));
    }
}

#[test]
fn a_histogram_without_values_has_zeros_and_no_buckets() {
    let mut empty = Histogram::<()>::new();
    empty.record_n(7, 0);
    let zeros = PercentileStats {
        samples: 0,
        p0_1: 0,
        p1: 0,
        p5: 0,
        p10: 0,
        p50: 0,
        p90: 0,
        p99: 0,
        p99_9: 0,
    };
    assert_eq!(empty.percentile_stats(), zeros);
    assert_eq!(empty.counts.capacity(), 0);
    assert_eq!(empty, Histogram::default());
}

#[test]
fn counts_stop_at_the_largest_number() {
    let mut full = Histogram::<()>::new();
    full.record_n(1, u64::MAX);
    full.record_n(1, 1);
    full.record_n(2, 1);
    assert_eq!(full.total(), u64::MAX);
    assert_eq!(full.percentile_stats().p99_9, 1);
}

#[test]
fn stats_are_shown_by_name() {
    let shown = histogram(&[1, 2, 3, 4]).percentile_stats().to_string();
    let expected = "[samples: 4, P0.1: 1, P1: 1, P5: 1, P10: 1, P50: 2, P90: 4, P99: 4, P99.9: 4]";
    assert_eq!(shown, expected);
}

#[test]
fn a_chart_has_a_line_a_bucket() {
    let chart = AsciiChart::new()
        .add("empty", Histogram::new())
        .add("batch", histogram(&[1, 1, 1, 1, 100]));
    let lines: Vec<String> = chart
        .detailed()
        .to_string()
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
        .collect();
    let (all, quarter) = ("#".repeat(40), "#".repeat(10));
    let expected = [
        "empty (0)",
        "batch (5)",
        &format!("1-1 4 {all}"),
        &format!("96-111 1 {quarter}"),
    ];
    assert_eq!(lines, expected);
}

proptest! {
    #[test]
    fn a_percentile_is_off_by_an_eighth_at_most(
        mut values in prop::collection::vec(value(), 1..300)
    ) {
        let stats = histogram(&values).percentile_stats();
        values.sort_unstable();
        let shown = [
            (1, stats.p0_1), (10, stats.p1), (50, stats.p5), (100, stats.p10),
            (500, stats.p50), (900, stats.p90), (990, stats.p99), (999, stats.p99_9),
        ];
        prop_assert_eq!(stats.samples, values.len() as u64);
        for (permille, shown) in shown {
            let place = usize::try_from(rank(permille, stats.samples)).unwrap();
            let exact = values[place - 1];
            prop_assert!(shown.abs_diff(exact) <= exact / 8, "{} for {}", shown, exact);
        }
    }

    #[test]
    fn neither_order_nor_grouping_matters(mut values in prop::collection::vec(value(), 0..100)) {
        let one_by_one = histogram(&values);
        values.sort_unstable();
        let mut grouped = Histogram::new();
        for same in values.chunk_by(|a, b| a == b) {
            grouped.record_n(same[0], same.len() as u64);
        }
        prop_assert_eq!(one_by_one, grouped);
    }
}
