//! Numbers, durations, sizes and CPUs, in the forms operators know from Go's tools.

use std::time::Duration;

use super::Form;

const NANOS: u128 = 1_000_000_000;

/// A whole number that is not negative.
pub(crate) const UNSIGNED: Form<u64> = Form {
    accepted: "a whole number of at least 0",
    parse: unsigned,
};

/// A whole number.
pub(crate) const SIGNED: Form<i64> = Form {
    accepted: "a whole number",
    parse: |text| text.parse().map_err(|_| "not a whole number".to_owned()),
};

/// A time span that is not negative.
pub(crate) const DURATION: Form<Duration> = Form {
    accepted: "a duration like 90s, 1m30s, 500ms or 0",
    parse: duration,
};

/// A number of bytes.
pub(crate) const SIZE: Form<i64> = Form {
    accepted: "a size like 64m, 1.5g, 512KiB or a number of bytes",
    parse: size,
};

/// Billionths of a CPU.
pub(crate) const NANO_CPUS: Form<i64> = Form {
    accepted: "a number of CPUs like 2, 0.5 or .25",
    parse: nano_cpus,
};

/// A share of a whole.
pub(crate) const RATIO: Form<f32> = Form {
    accepted: "a number from 0 to 1",
    parse: ratio,
};

/// The kernel's range for killing when memory is short.
pub(crate) const OOM_SCORE_ADJ: Form<i64> = Form {
    accepted: "a whole number from -1000 to 1000",
    parse: |text| match text.parse() {
        Ok(value @ -1000..=1000) => Ok(value),
        Ok(_) => Err("out of range".to_owned()),
        Err(_) => Err("not a whole number".to_owned()),
    },
};

fn unsigned(text: &str) -> Result<u64, String> {
    if text.starts_with('-') && text.parse::<i128>().is_ok() {
        return Err("must not be negative".to_owned());
    }
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        return text.parse().map_err(|_| "too large".to_owned());
    }
    Err("not a whole number".to_owned())
}

/// A decimal number without sign: digits before and after the point.
fn decimal(text: &str) -> Option<(&str, &str)> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let digits = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
    let some = !(whole.is_empty() && fraction.is_empty());
    (some && digits(whole) && digits(fraction)).then_some((whole, fraction))
}

/// A decimal number times `unit`, rounded down.
fn scaled(text: &str, unit: u128) -> Result<u128, String> {
    let (whole, fraction) = decimal(text).ok_or("not a number")?;
    let too_large = || "too large".to_owned();
    let whole: u128 = if whole.is_empty() {
        0
    } else {
        whole.parse().map_err(|_| too_large())?
    };
    // Nineteen digits after the point are finer than any unit here.
    let digits = fraction.get(..fraction.len().min(19)).unwrap_or_default();
    let mut part = 0_u128;
    let mut whole_part = 1_u128;
    for digit in digits.chars().filter_map(|digit| digit.to_digit(10)) {
        part = part * 10 + u128::from(digit);
        whole_part *= 10;
    }
    let part = part.checked_mul(unit).ok_or_else(too_large)? / whole_part;
    whole
        .checked_mul(unit)
        .and_then(|sum| sum.checked_add(part))
        .ok_or_else(too_large)
}

fn duration(text: &str) -> Result<Duration, String> {
    if text.starts_with('-') {
        return Err("must not be negative".to_owned());
    }
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    if text.is_empty() {
        return Err("empty".to_owned());
    }
    let mut rest = text;
    let mut total = 0_u128;
    while !rest.is_empty() {
        let digits = rest
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .unwrap_or(rest.len());
        let (number, after) = rest.split_at(digits);
        let end = after
            .find(|c: char| c.is_ascii_digit() || c == '.')
            .unwrap_or(after.len());
        let (name, next) = after.split_at(end);
        let unit = match name {
            "ns" => 1,
            "us" | "µs" | "μs" => 1_000,
            "ms" => 1_000_000,
            "s" => NANOS,
            "m" => 60 * NANOS,
            "h" => 3_600 * NANOS,
            "" => return Err("a number without a unit".to_owned()),
            other => return Err(format!("unknown unit {other:?}")),
        };
        total = total
            .checked_add(scaled(number, unit)?)
            .ok_or("too large")?;
        rest = next;
    }
    // The wire's durations are signed nanoseconds for SwarmKit's clients.
    if total > u128::from(i64::MAX.unsigned_abs()) {
        return Err("longer than 292 years".to_owned());
    }
    let seconds = u64::try_from(total / NANOS).map_err(|_| "too large")?;
    let nanos = u32::try_from(total % NANOS).map_err(|_| "too large")?;
    Ok(Duration::new(seconds, nanos))
}

fn size(text: &str) -> Result<i64, String> {
    if text.starts_with('-') {
        return Err("must not be negative".to_owned());
    }
    let lower = text.trim().to_ascii_lowercase();
    let end = lower
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(lower.len());
    let (number, unit) = lower.split_at(end);
    let power = match unit.trim() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 1,
        "m" | "mb" | "mib" => 2,
        "g" | "gb" | "gib" => 3,
        "t" | "tb" | "tib" => 4,
        "p" | "pb" | "pib" => 5,
        other => return Err(format!("unknown unit {other:?}")),
    };
    i64::try_from(scaled(number, 1 << (10 * power))?).map_err(|_| "too large".to_owned())
}

fn nano_cpus(text: &str) -> Result<i64, String> {
    if text.starts_with('-') {
        return Err("must not be negative".to_owned());
    }
    if decimal(text).is_some_and(|(_, fraction)| fraction.trim_end_matches('0').len() > 9) {
        return Err("finer than a billionth of a CPU".to_owned());
    }
    i64::try_from(scaled(text, NANOS)?).map_err(|_| "too large".to_owned())
}

fn ratio(text: &str) -> Result<f32, String> {
    match text.parse::<f32>() {
        Ok(value) if (0.0..=1.0).contains(&value) => Ok(value),
        Ok(_) => Err("out of range".to_owned()),
        Err(_) => Err("not a number".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn durations() {
        let ok = |text: &str| duration(text).unwrap();
        assert_eq!(ok("0"), Duration::ZERO);
        assert_eq!(ok("1h2m3s"), Duration::from_secs(3_723));
        assert_eq!(ok("1.5s"), Duration::from_millis(1_500));
        assert_eq!(ok("1m30.25s"), Duration::from_millis(90_250));
        assert_eq!(ok("500ms"), Duration::from_millis(500));
        assert_eq!(ok("3us"), Duration::from_micros(3));
        assert_eq!(duration("10").unwrap_err(), "a number without a unit");
        assert_eq!(duration("-5s").unwrap_err(), "must not be negative");
        assert_eq!(duration("5x").unwrap_err(), "unknown unit \"x\"");
        assert_eq!(duration("s").unwrap_err(), "not a number");
        assert_eq!(duration("").unwrap_err(), "empty");
        assert_eq!(
            duration("999999999999h").unwrap_err(),
            "longer than 292 years"
        );
    }

    #[test]
    fn sizes() {
        assert_eq!(size("64m"), Ok(64 << 20));
        assert_eq!(size("1.5g"), Ok(3 << 29));
        assert_eq!(size("512KiB"), Ok(512 << 10));
        assert_eq!(size("0.1k"), Ok(102));
        assert_eq!(size("7"), Ok(7));
        assert_eq!(size("-1m").unwrap_err(), "must not be negative");
        assert_eq!(size("12q").unwrap_err(), "unknown unit \"q\"");
        assert_eq!(size("m").unwrap_err(), "not a number");
        assert_eq!(size("99999999p").unwrap_err(), "too large");
    }

    #[test]
    fn cpus_and_numbers() {
        assert_eq!(nano_cpus("1.5"), Ok(1_500_000_000));
        assert_eq!(nano_cpus(".25"), Ok(250_000_000));
        assert_eq!(nano_cpus("0.000000001"), Ok(1));
        assert!(nano_cpus("0.0000000001").is_err());
        assert_eq!(nano_cpus("x").unwrap_err(), "not a number");
        assert_eq!(unsigned("-1").unwrap_err(), "must not be negative");
        assert_eq!(unsigned("1.5").unwrap_err(), "not a whole number");
        assert_eq!(unsigned("99999999999999999999").unwrap_err(), "too large");
        assert_eq!(ratio("0.25"), Ok(0.25));
        assert!(ratio("nan").is_err());
    }

    proptest! {
        #[test]
        fn any_text_is_parsed_or_refused(text in "\\PC{0,12}") {
            let _ = (duration(&text), size(&text), nano_cpus(&text), unsigned(&text), ratio(&text));
        }

        #[test]
        fn whole_units_are_exact(n in 0_u64..1_000_000) {
            prop_assert_eq!(size(&format!("{n}k")), Ok(i64::try_from(n).unwrap() << 10));
            prop_assert_eq!(duration(&format!("{n}ms")), Ok(Duration::from_millis(n)));
        }
    }
}
