//! Points in time and spans, as operators read them.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The moment a wire timestamp names; `None` for one outside the machine's calendar.
pub(crate) fn moment(timestamp: &prost_types::Timestamp) -> Option<SystemTime> {
    let seconds = Duration::from_secs(timestamp.seconds.unsigned_abs());
    let whole = if timestamp.seconds < 0 {
        UNIX_EPOCH.checked_sub(seconds)?
    } else {
        UNIX_EPOCH.checked_add(seconds)?
    };
    whole.checked_add(Duration::from_nanos(u64::try_from(timestamp.nanos).ok()?))
}

/// `2 minutes ago`, the largest unit only.
pub(crate) fn ago(now: SystemTime, timestamp: Option<&prost_types::Timestamp>) -> String {
    let Some(then) = timestamp.and_then(moment) else {
        return String::new();
    };
    // A host whose clock is ahead reports from the future: that is "just now" for the reader.
    let seconds = now.duration_since(then).unwrap_or_default().as_secs();
    const UNITS: [(u64, &str); 7] = [
        (365 * 86_400, "year"),
        (30 * 86_400, "month"),
        (7 * 86_400, "week"),
        (86_400, "day"),
        (3_600, "hour"),
        (60, "minute"),
        (1, "second"),
    ];
    for (unit, name) in UNITS {
        let count = seconds / unit;
        if count > 0 {
            return format!("{count} {name}{} ago", if count == 1 { "" } else { "s" });
        }
    }
    "now".to_owned()
}

/// RFC 3339 in UTC, to the nanosecond where it matters; empty for no time.
pub(crate) fn rfc3339(timestamp: Option<&prost_types::Timestamp>) -> String {
    // The formatter's calendar ends with the year 9999.
    const YEAR_10000: i64 = 253_402_300_800;
    timestamp
        .filter(|timestamp| (0..YEAR_10000).contains(&timestamp.seconds))
        .and_then(moment)
        .map(|moment| humantime::format_rfc3339(moment).to_string())
        .unwrap_or_default()
}

/// A wire duration in the form the flags take.
pub(crate) fn span(duration: &prost_types::Duration) -> String {
    let seconds = duration.seconds.unsigned_abs();
    let nanos = duration.nanos.unsigned_abs();
    let sign = if duration.seconds < 0 || duration.nanos < 0 {
        "-"
    } else {
        ""
    };
    let (hours, minutes, rest) = (seconds / 3_600, seconds % 3_600 / 60, seconds % 60);
    let mut text = String::new();
    for (count, unit) in [(hours, "h"), (minutes, "m")] {
        if count > 0 {
            text.push_str(&format!("{count}{unit}"));
        }
    }
    if nanos > 0 && seconds == 0 && nanos.is_multiple_of(1_000_000) {
        text.push_str(&format!("{}ms", nanos / 1_000_000));
    } else if nanos > 0 {
        let fraction = format!("{nanos:09}");
        text.push_str(&format!("{rest}.{}s", fraction.trim_end_matches('0')));
    } else if rest > 0 || text.is_empty() {
        text.push_str(&format!("{rest}s"));
    }
    format!("{sign}{text}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> prost_types::Timestamp {
        prost_types::Timestamp { seconds, nanos: 0 }
    }

    #[test]
    fn ages() {
        let now = UNIX_EPOCH + Duration::from_secs(1_000_000);
        let age = |seconds: i64| ago(now, Some(&at(1_000_000 - seconds)));
        assert_eq!(age(0), "now");
        assert_eq!(age(1), "1 second ago");
        assert_eq!(age(119), "1 minute ago");
        assert_eq!(age(7_200), "2 hours ago");
        assert_eq!(age(86_400 * 8), "1 week ago");
        assert_eq!(age(-5), "now");
        assert_eq!(ago(now, None), "");
    }

    #[test]
    fn spans() {
        let text = |seconds, nanos| span(&prost_types::Duration { seconds, nanos });
        assert_eq!(text(0, 0), "0s");
        assert_eq!(text(5, 0), "5s");
        assert_eq!(text(3_723, 0), "1h2m3s");
        assert_eq!(text(7_776_000, 0), "2160h");
        assert_eq!(text(0, 500_000_000), "500ms");
        assert_eq!(text(61, 250_000_000), "1m1.25s");
        assert_eq!(rfc3339(Some(&at(0))), "1970-01-01T00:00:00Z");
    }
}
