//! Names of signals, as people write stop signals.

/// Signals of Linux by name, for x86-64 and ARM.
const SIGNALS: &[(&str, i32)] = &[
    ("ABRT", 6),
    ("ALRM", 14),
    ("BUS", 7),
    ("CHLD", 17),
    ("CLD", 17),
    ("CONT", 18),
    ("FPE", 8),
    ("HUP", 1),
    ("ILL", 4),
    ("INT", 2),
    ("IO", 29),
    ("IOT", 6),
    ("KILL", 9),
    ("PIPE", 13),
    ("POLL", 29),
    ("PROF", 27),
    ("PWR", 30),
    ("QUIT", 3),
    ("SEGV", 11),
    ("STKFLT", 16),
    ("STOP", 19),
    ("SYS", 31),
    ("TERM", 15),
    ("TRAP", 5),
    ("TSTP", 20),
    ("TTIN", 21),
    ("TTOU", 22),
    ("URG", 23),
    ("USR1", 10),
    ("USR2", 12),
    ("VTALRM", 26),
    ("WINCH", 28),
    ("XCPU", 24),
    ("XFSZ", 25),
];

/// First and last real-time signal that programs can use (glibc keeps two for itself).
const RT_MIN: i32 = 34;
const RT_MAX: i32 = 64;

/// The number of a signal written as `SIGTERM`, `term`, `15` or `SIGRTMIN+3`.
pub fn signal_number(text: &str) -> Option<i32> {
    if text.bytes().all(|b| b.is_ascii_digit()) {
        return text.parse().ok().filter(|n| (1..=RT_MAX).contains(n));
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    if let Some(offset) = name.strip_prefix("RTMIN") {
        return real_time(RT_MIN, offset);
    }
    if let Some(offset) = name.strip_prefix("RTMAX") {
        return real_time(RT_MAX, offset);
    }
    SIGNALS
        .iter()
        .find(|(known, _)| *known == name)
        .map(|(_, number)| *number)
}

/// RTMIN counts upwards, RTMAX downwards: an offset to the other side leaves the range.
fn real_time(base: i32, offset: &str) -> Option<i32> {
    if offset.is_empty() {
        return Some(base);
    }
    let number = match offset.split_at_checked(1)? {
        ("+", n) if n.bytes().all(|b| b.is_ascii_digit()) => base.checked_add(n.parse().ok()?)?,
        ("-", n) if n.bytes().all(|b| b.is_ascii_digit()) => base.checked_sub(n.parse().ok()?)?,
        _ => return None,
    };
    (RT_MIN..=RT_MAX).contains(&number).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_names() {
        for (text, want) in [
            ("SIGTERM", Some(15)),
            ("term", Some(15)),
            ("9", Some(9)),
            ("SIGRTMIN", Some(34)),
            ("SIGRTMIN+3", Some(37)),
            ("RTMAX-1", Some(63)),
            ("SIGRTMIN-1", None),
            ("RTMAX+1", None),
            ("RTMIN+", None),
            ("RTMIN++1", None),
            ("RTMIN+99999999999", None),
            ("", None),
            ("0", None),
            ("65", None),
            ("-9", None),
            ("SIGFOO", None),
            ("SIGSIGTERM", None),
        ] {
            assert_eq!(signal_number(text), want, "{text}");
        }
    }
}
