//! The simulator: many seeds, each a cluster in trouble that has to keep every promise.
//!
//! `make sim SEED=1 N=10000 STEPS=200`; a failing seed says what happened and how to run it again.
#![expect(
    clippy::disallowed_methods,
    clippy::panic,
    clippy::print_stdout,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test reads its seed from the environment, takes the time, and fails by panicking, with what it has to say"
)]

#[path = "sim/managers/mod.rs"]
mod managers;

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use harness::sim::run::{Ran, run};
use managers::fate;

/// Seeds in an ordinary run of the tests.
const SEEDS: u64 = 200;
/// Operations a seed; all seeds together take less than 20 s, unoptimised, on two cores.
const STEPS: u64 = 60;
/// Seeds of several managers in an ordinary run of the tests, and what befalls each.
const MANAGERS_SEEDS: u64 = 300;
const MANAGERS_STEPS: u64 = 10;
/// Failures that are shown.
const SHOWN: usize = 3;

fn setting(name: &str, default: u64) -> u64 {
    match std::env::var(name) {
        Ok(text) if !text.is_empty() => text
            .parse()
            .unwrap_or_else(|_| panic!("{name}={text}: is not a number")),
        _ => default,
    }
}

#[test]
fn every_seed_keeps_the_promises() {
    let (first, count) = (setting("SEED", 1), setting("N", SEEDS));
    let steps = setting("STEPS", STEPS);
    let began = Instant::now();
    let results: Vec<Result<Ran, String>> = all_seeds(first, count, |seed| run(seed, steps));
    let took = began.elapsed();
    let ran: Vec<&Ran> = results.iter().filter_map(|r| r.as_ref().ok()).collect();
    let entries: u64 = ran.iter().map(|ran| ran.entries).sum();
    let slowest = ran.iter().map(|ran| ran.converged_after).max();
    println!(
        "{count} seeds of {steps} steps in {took:.1?} ({:.0} a minute), {entries} log entries, \
         converged within {:?} of the last fault",
        per_minute(count, took),
        slowest.unwrap_or_default(),
    );
    show(&results);
}

/// Runs all seeds, each on one of the machine's processors.
fn all_seeds<T: Send>(
    first: u64,
    count: u64,
    run: impl Fn(u64) -> Result<T, String> + Sync,
) -> Vec<Result<T, String>> {
    let next = AtomicU64::new(first);
    let worker = || {
        let mut results = Vec::new();
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= first.saturating_add(count) {
                return results;
            }
            results.push(run(seed));
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(worker)).collect();
        let joined = threads.into_iter().map(|thread| thread.join());
        joined
            .flat_map(|results| results.unwrap_or_else(|_| panic!("a worker failed")))
            .collect()
    })
}

/// Shows what failed, and fails.
fn show<T>(results: &[Result<T, String>]) {
    let failed: Vec<&String> = results.iter().filter_map(|r| r.as_ref().err()).collect();
    for text in failed.iter().skip(SHOWN) {
        let (_, what) = text.split_once("\n\n").unwrap_or(("", text));
        println!("{}", what.chars().take(400).collect::<String>());
    }
    for text in failed.iter().take(SHOWN) {
        println!("{text}");
    }
    assert!(
        failed.is_empty(),
        "{} of {} seeds failed",
        failed.len(),
        results.len()
    );
}

#[test]
fn several_managers_keep_the_promises_for_every_seed() {
    let (first, count) = (setting("SEED", 1), setting("N", MANAGERS_SEEDS));
    let steps = setting("STEPS", MANAGERS_STEPS);
    let began = Instant::now();
    let results = all_seeds(first, count, |seed| fate::run(seed, steps));
    let took = began.elapsed();
    let ran: Vec<&fate::Ran> = results.iter().filter_map(|r| r.as_ref().ok()).collect();
    let entries: u64 = ran.iter().map(|ran| ran.entries).sum();
    let leaderships: usize = ran.iter().map(|ran| ran.leaderships).sum();
    let snapshots: usize = ran.iter().map(|ran| ran.snapshots).sum();
    let told: usize = ran.iter().map(|ran| ran.operations.0).sum();
    let not: usize = ran.iter().map(|ran| ran.operations.1).sum();
    let slowest = ran.iter().map(|ran| ran.converged_after).max();
    println!(
        "several managers: {count} seeds of {steps} steps in {took:.1?} ({:.0} a minute), {entries} \
         log entries, {leaderships} leaderships, {snapshots} snapshots \
         sent, {told} operations answered and {not} not, converged \
         within {:?} of the last fault",
        per_minute(count, took),
        slowest.unwrap_or_default(),
    );
    show(&results);
}

#[test]
fn the_same_seed_is_the_same_run_of_several_managers() {
    let seed = setting("SEED", 1);
    for seed in seed..seed + 3 {
        let runs = [(); 2].map(|()| fate::run(seed, MANAGERS_STEPS));
        let [Ok(one), Ok(two)] = &runs else {
            panic!("{runs:?}");
        };
        let differ = one.trace.lines().zip(two.trace.lines());
        if let Some((line, (a, b))) = differ.enumerate().find(|(_, (a, b))| a != b) {
            panic!("seed {seed} has two runs, from line {line} on:\n{a}\n{b}");
        }
        assert_eq!(one.trace.len(), two.trace.len(), "seed {seed}");
        assert!(one.trace.lines().count() > 1_000);
    }
}

#[test]
fn the_same_seed_is_the_same_run() {
    let seed = setting("SEED", 1);
    for seed in seed..seed + 3 {
        let (one, two) = (run(seed, STEPS), run(seed, STEPS));
        let (Ok(one), Ok(two)) = (&one, &two) else {
            panic!("{one:?} {two:?}");
        };
        assert!(one.bytes == two.bytes, "seed {seed} has two logs");
        assert!(!one.bytes.is_empty());
    }
}

#[test]
fn another_seed_is_another_run() {
    let (one, two) = (run(1, 5), run(2, 5));
    let (Ok(one), Ok(two)) = (&one, &two) else {
        panic!("{one:?} {two:?}");
    };
    assert!(one.bytes != two.bytes);
}

#[expect(clippy::cast_precision_loss, reason = "shown with no decimals")]
fn per_minute(count: u64, took: Duration) -> f64 {
    count as f64 * 60.0 / took.as_secs_f64().max(1e-3)
}
