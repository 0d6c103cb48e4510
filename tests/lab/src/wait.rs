//! Waits for what other processes do, by looking at their state again and again.
#![expect(
    clippy::disallowed_methods,
    reason = "imperative shell: deadlines for other processes"
)]

use std::thread;
use std::time::{Duration, Instant};

use crate::Error;

/// Pause between two looks: short beside what is waited for, long beside the cost of a look.
const PAUSE: Duration = Duration::from_millis(25);

/// Calls `look` until it returns Ok, at most for `limit`. The last Err says what was seen instead.
pub fn until<T>(
    what: &str,
    limit: Duration,
    mut look: impl FnMut() -> Result<T, String>,
) -> Result<T, Error> {
    let end = Instant::now() + limit;
    loop {
        match look() {
            Ok(value) => return Ok(value),
            Err(last) if Instant::now() >= end => {
                return Err(Error::Timeout {
                    what: what.to_owned(),
                    seconds: limit.as_secs(),
                    last,
                });
            }
            Err(_) => thread::sleep(PAUSE),
        }
    }
}

/// As [`until`], for tests: panics with what was seen last.
#[track_caller]
#[expect(clippy::panic, reason = "fails the test that calls it")]
pub fn eventually<T>(what: &str, limit: Duration, look: impl FnMut() -> Result<T, String>) -> T {
    match until(what, limit, look) {
        Ok(value) => value,
        Err(error) => panic!("{error}"),
    }
}
