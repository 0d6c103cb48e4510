//! Points in time as the log holds them.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use prost_types as wkt;

/// Nanoseconds since 1970-01-01 UTC. Zero stands for "never".
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Timestamp(pub i64);

impl Timestamp {
    /// Never.
    pub const ZERO: Self = Self(0);
    /// Later than any event.
    pub const MAX: Self = Self(i64::MAX);

    /// Whole milliseconds since 1970.
    pub const fn from_millis(ms: i64) -> Self {
        Self(ms.saturating_mul(1_000_000))
    }

    /// True for "never".
    pub const fn is_zero(self) -> bool {
        self.0 == 0
    }

    /// This point and `by` later; stops at the end of time.
    #[must_use]
    pub fn after(self, by: Duration) -> Self {
        Self(
            self.0
                .saturating_add(i64::try_from(by.as_nanos()).unwrap_or(i64::MAX)),
        )
    }

    /// This point and `by` earlier; stops at the beginning of time.
    #[must_use]
    pub fn before(self, by: Duration) -> Self {
        Self(
            self.0
                .saturating_sub(i64::try_from(by.as_nanos()).unwrap_or(i64::MAX)),
        )
    }

    /// Time passed from `earlier` to this point; zero when `earlier` is later.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }

    /// The wire form; absent for "never".
    pub fn to_wire(self) -> Option<wkt::Timestamp> {
        (!self.is_zero()).then(|| wkt::Timestamp {
            seconds: self.0.div_euclid(1_000_000_000),
            nanos: i32::try_from(self.0.rem_euclid(1_000_000_000)).unwrap_or(0),
        })
    }

    /// From the wire; absent and out-of-range times become "never" and the ends of time.
    pub fn from_wire(wire: Option<&wkt::Timestamp>) -> Self {
        wire.map_or(Self::ZERO, |t| {
            Self(
                t.seconds
                    .saturating_mul(1_000_000_000)
                    .saturating_add(i64::from(t.nanos)),
            )
        })
    }
}

/// A wire duration as a Rust one; negative is an error of its caller's field.
pub fn duration_from_wire(wire: &wkt::Duration) -> Option<Duration> {
    let seconds = u64::try_from(wire.seconds).ok()?;
    let nanos = u32::try_from(wire.nanos).ok()?;
    Some(Duration::new(seconds, nanos))
}

/// A duration on the wire.
pub fn duration_to_wire(duration: Duration) -> wkt::Duration {
    wkt::Duration {
        seconds: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(duration.subsec_nanos()).unwrap_or(0),
    }
}

/// The moment a wire timestamp names; `None` for one outside the machine's calendar.
pub fn moment(timestamp: &wkt::Timestamp) -> Option<SystemTime> {
    let seconds = Duration::from_secs(timestamp.seconds.unsigned_abs());
    let whole = if timestamp.seconds < 0 {
        UNIX_EPOCH.checked_sub(seconds)?
    } else {
        UNIX_EPOCH.checked_add(seconds)?
    };
    whole.checked_add(Duration::from_nanos(u64::try_from(timestamp.nanos).ok()?))
}

/// RFC 3339 in UTC, to the nanosecond where it matters; empty for no time.
pub fn rfc3339(timestamp: Option<&wkt::Timestamp>) -> String {
    // The formatter's calendar ends with the year 9999.
    const YEAR_10000: i64 = 253_402_300_800;
    timestamp
        .filter(|timestamp| (0..YEAR_10000).contains(&timestamp.seconds))
        .and_then(moment)
        .map(|moment| humantime::format_rfc3339(moment).to_string())
        .unwrap_or_default()
}

/// A wire duration in the form the flags take.
pub fn span(duration: &wkt::Duration) -> String {
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

    #[test]
    fn wire_round_trip() {
        for ns in [1, -1, 999_999_999, 1_700_000_000_123_456_789] {
            let t = Timestamp(ns);
            assert_eq!(Timestamp::from_wire(t.to_wire().as_ref()), t);
        }
        assert_eq!(Timestamp::ZERO.to_wire(), None);
    }
}
