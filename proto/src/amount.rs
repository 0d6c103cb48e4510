//! Amounts as operators read them: few digits, a unit that fits, and one form everywhere.

use std::time::Duration;

/// Bytes with a binary unit, as the flags take them: `1.5 GiB`. Never more than there is.
#[must_use]
pub fn bytes(count: i64) -> String {
    const UNITS: [(i64, &str); 5] = [
        (1 << 50, "PiB"),
        (1 << 40, "TiB"),
        (1 << 30, "GiB"),
        (1 << 20, "MiB"),
        (1 << 10, "KiB"),
    ];
    for (unit, name) in UNITS {
        if count >= unit {
            let whole = count / unit;
            return match count % unit * 10 / unit {
                0 => format!("{whole} {name}"),
                tenth => format!("{whole}.{tenth} {name}"),
            };
        }
    }
    format!("{count} B")
}

/// Billionths of a CPU as a decimal number.
#[must_use]
pub fn cpus(nano: i64) -> String {
    let fraction = format!("{:09}", nano % 1_000_000_000);
    match fraction.trim_end_matches('0') {
        "" => format!("{}", nano / 1_000_000_000),
        fraction => format!("{}.{fraction}", nano / 1_000_000_000),
    }
}

/// A number of things: `1 task`, `2 tasks`, `no tasks`.
#[must_use]
pub fn count(number: u64, thing: &str) -> String {
    match number {
        0 => format!("no {thing}s"),
        1 => format!("1 {thing}"),
        number => format!("{number} {thing}s"),
    }
}

/// Time that is left, in its two largest units: `59m 55s`. Rounded up, so that it is over when it
/// says so.
#[must_use]
pub fn wait(left: Duration) -> String {
    let seconds = left.as_secs() + u64::from(left.subsec_nanos() > 0);
    let units = [
        (seconds / 86_400, "d"),
        (seconds % 86_400 / 3_600, "h"),
        (seconds % 3_600 / 60, "m"),
        (seconds % 60, "s"),
    ];
    let parts = units.iter().skip_while(|(number, _)| *number == 0).take(2);
    let parts = parts.filter(|(number, _)| *number > 0);
    let parts: Vec<String> = parts
        .map(|(number, unit)| format!("{number}{unit}"))
        .collect();
    if parts.is_empty() {
        return "0s".to_owned();
    }
    parts.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_cpus() {
        assert_eq!(bytes(0), "0 B");
        assert_eq!(bytes(100), "100 B");
        assert_eq!(bytes(64 << 20), "64 MiB");
        assert_eq!(bytes(3 << 29), "1.5 GiB");
        assert_eq!(bytes((8 << 30) - 1), "7.9 GiB");
        assert_eq!(bytes(1 << 40), "1 TiB");
        assert_eq!(cpus(1_500_000_000), "1.5");
        assert_eq!(cpus(2_000_000_000), "2");
    }

    #[test]
    fn counts() {
        let text = [0, 1, 2].map(|number| count(number, "node")).join(", ");
        assert_eq!(text, "no nodes, 1 node, 2 nodes");
    }

    #[test]
    fn waits() {
        let text = |ms: u64| wait(Duration::from_millis(ms));
        assert_eq!(text(0), "0s");
        assert_eq!(text(1), "1s");
        assert_eq!(text(5_000), "5s");
        assert_eq!(text(59_001), "1m");
        assert_eq!(text(3_594_700), "59m 55s");
        assert_eq!(text(3_600_000), "1h");
        assert_eq!(text(7_384_000), "2h 3m");
        assert_eq!(text(86_400_000 * 3), "3d");
    }
}
