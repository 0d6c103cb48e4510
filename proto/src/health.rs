//! Health checks of containers.

use std::time::Duration;

use crate::invalid::{Faults, shown};
use crate::pb;

/// Shortest time a health check may name, except zero for "as the image says".
const DURATION_MIN: Duration = Duration::from_millis(1);

pub(crate) fn check(faults: &mut Faults, field: &str, health: &pb::HealthConfig) {
    for (name, wire) in [
        ("interval", &health.interval),
        ("timeout", &health.timeout),
        ("start_period", &health.start_period),
        ("start_interval", &health.start_interval),
    ] {
        let field = format!("{field}.{name}");
        let duration = faults.duration(&field, wire.as_ref()).unwrap_or_default();
        if !duration.is_zero() && duration < DURATION_MIN {
            faults.add(
                field,
                format!("{duration:?} is too short; give at least 1ms, or 0 for the image's"),
            );
        }
    }
    if health.retries < 0 {
        faults.add(
            format!("{field}.retries"),
            "is negative; zero means as the image says",
        );
    }
    check_test(faults, &format!("{field}.test"), &health.test);
}

fn check_test(faults: &mut Faults, field: &str, test: &[String]) {
    let right = match test {
        [] => true,
        [kind] => kind == "NONE",
        [kind, _command] => kind == "CMD" || kind == "CMD-SHELL",
        [kind, ..] => kind == "CMD",
    };
    if !right {
        let first = test.first().map(String::as_str).unwrap_or_default();
        faults.add(
            field,
            format!(
                "{} and {} more words are no health check; write NONE, CMD and its arguments, or \
                 CMD-SHELL and one command line",
                shown(first),
                test.len().saturating_sub(1),
            ),
        );
    }
}
