//! Points in time and spans, as operators read them.

use std::time::SystemTime;

pub(crate) use swarm_proto::time::{moment, rfc3339, span};

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

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

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
