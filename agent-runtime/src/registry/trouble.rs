//! What went wrong between this node and a registry, and what follows from it. Pure.

use std::time::{Duration, SystemTime};

use reqwest::header::{DATE, HeaderMap, RETRY_AFTER};

use super::Backoff;

/// A registry that asks for a longer pause than this is not waited for.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(60);

/// Why a request came to nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Trouble {
    /// No connection came about, or it broke: whoever is there has not spoken HTTP with us.
    Connection(String),
    /// It answered, and the answer is no.
    Refused {
        code: u16,
        reason: String,
        /// When it wants to be asked again.
        after: Option<Duration>,
    },
    /// It answered with what can't be right.
    Wrong(String),
}

/// What follows from trouble.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Worth another try after a pause.
    Again(Duration),
    /// Not, or not any more.
    Over,
}

impl Trouble {
    /// The registry answered, in words of HTTP.
    pub(super) fn answered(&self) -> bool {
        match self {
            Self::Connection(_) => false,
            // A plain HTTP server's words on a TLS port, and the other way round, are no answer.
            Self::Refused { code, .. } => *code != 400,
            Self::Wrong(_) => true,
        }
    }

    pub(super) fn reason(&self) -> &str {
        match self {
            Self::Connection(reason) | Self::Wrong(reason) | Self::Refused { reason, .. } => reason,
        }
    }

    fn passes(&self) -> bool {
        match self {
            Self::Connection(reason) => !is_of_tls(reason),
            Self::Refused { code, .. } => {
                matches!(code, 408 | 425 | 429 | 500 | 502 | 503 | 504)
            }
            Self::Wrong(_) => false,
        }
    }

    fn after(&self) -> Option<Duration> {
        match self {
            Self::Refused { after, .. } => *after,
            Self::Connection(_) | Self::Wrong(_) => None,
        }
    }
}

impl Backoff {
    /// What follows from the trouble of a try, which is counted from 1.
    pub(super) fn verdict(&self, trouble: &Trouble, attempt: u32) -> Verdict {
        if attempt >= self.tries || !trouble.passes() {
            return Verdict::Over;
        }
        let doubled = self.first.saturating_mul(1 << (attempt - 1).min(16));
        match trouble.after() {
            Some(after) if after > RETRY_AFTER_MAX => Verdict::Over,
            Some(after) => Verdict::Again(after.max(doubled)),
            None => Verdict::Again(doubled),
        }
    }

    /// The words on trouble that ends it: also why there is no further try.
    pub(super) fn last_words(&self, trouble: &Trouble, attempt: u32) -> String {
        let reason = trouble.reason();
        match trouble.after() {
            Some(after) if after > RETRY_AFTER_MAX => format!(
                "{reason}; it asks to be asked again in {} s, which is not waited for",
                after.as_secs()
            ),
            _ if attempt > 1 => format!("{reason}; given up after {attempt} tries"),
            _ => reason.to_owned(),
        }
    }
}

/// What the operator reads while a pause lasts.
pub(super) fn again(trouble: &Trouble, pause: Duration, (attempt, tries): (u32, u32)) -> String {
    format!(
        "{}; tried again in {:.1} s (try {} of {tries})",
        trouble.reason(),
        pause.as_secs_f64(),
        attempt + 1
    )
}

/// When the answer wants to be asked again. A date is taken relative to the answer's own, so that
/// clocks need not agree.
pub(super) fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = |text: &str| httpdate::parse_http_date(text).ok();
    let now: SystemTime = date(headers.get(DATE)?.to_str().ok()?)?;
    Some(date(text)?.duration_since(now).unwrap_or_default())
}

/// A certificate that does not verify will not do so in a second.
fn is_of_tls(reason: &str) -> bool {
    reason.contains("certificate") || reason.contains("does not speak HTTPS")
}

/// The innermost reason of a request that got no answer, with the way out where there is one.
pub(super) fn cause(error: &dyn std::error::Error) -> String {
    let mut root = error;
    while let Some(source) = root.source() {
        root = source;
    }
    let text = root.to_string();
    if text.contains("certificate") {
        return format!(
            "{text}; give its CA as the registry CA, or name it as an insecure registry"
        );
    }
    if text.contains("InvalidContentType") {
        return "it does not speak HTTPS; name it as an insecure registry if that is meant"
            .to_owned();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(code: u16, after: Option<u64>) -> Trouble {
        Trouble::Refused {
            code,
            reason: format!("HTTP {code}"),
            after: after.map(Duration::from_secs),
        }
    }

    #[test]
    fn what_may_pass_is_tried_again_after_growing_pauses() {
        let backoff = Backoff::default();
        let pauses = |trouble: &Trouble| {
            let verdicts = (1..10).map(|attempt| backoff.verdict(trouble, attempt));
            let pauses = verdicts.map_while(|verdict| match verdict {
                Verdict::Again(pause) => Some(pause.as_millis()),
                Verdict::Over => None,
            });
            pauses.collect::<Vec<_>>()
        };
        let broken = Trouble::Connection("connection reset".to_owned());
        assert_eq!(pauses(&broken), [500, 1000, 2000, 4000]);
        assert_eq!(pauses(&refused(503, None)), [500, 1000, 2000, 4000]);
        assert_eq!(pauses(&refused(429, Some(3))), [3000, 3000, 3000, 4000]);
        assert!(pauses(&refused(429, Some(3600))).is_empty());
        for code in [400, 401, 403, 404, 410, 501] {
            assert!(pauses(&refused(code, None)).is_empty(), "{code}");
        }
        let unknown = Trouble::Connection("invalid peer certificate: UnknownIssuer".to_owned());
        assert!(pauses(&unknown).is_empty());
    }

    #[test]
    fn the_last_words_say_why_it_ends() {
        let backoff = Backoff::default();
        let words = backoff.last_words(&refused(503, None), 5);
        assert_eq!(words, "HTTP 503; given up after 5 tries");
        let words = backoff.last_words(&refused(429, Some(3600)), 1);
        assert!(words.contains("3600 s"), "{words}");
    }

    #[test]
    fn a_date_is_relative_to_the_answers_own() {
        let headers = |pairs: &[(reqwest::header::HeaderName, &str)]| {
            let pairs = pairs.iter();
            pairs
                .map(|(name, value)| (name.clone(), value.parse().unwrap()))
                .collect::<HeaderMap>()
        };
        let date = "Fri, 20 Nov 2026 10:00:00 GMT";
        let later = "Fri, 20 Nov 2026 10:00:09 GMT";
        let nine = Some(Duration::from_secs(9));
        assert_eq!(retry_after(&headers(&[(RETRY_AFTER, "9")])), nine);
        let both = headers(&[(RETRY_AFTER, later), (DATE, date)]);
        assert_eq!(retry_after(&both), nine);
        let passed = headers(&[(RETRY_AFTER, date), (DATE, later)]);
        assert_eq!(retry_after(&passed), Some(Duration::ZERO));
        assert_eq!(retry_after(&headers(&[(RETRY_AFTER, "soon")])), None);
        assert_eq!(retry_after(&headers(&[])), None);
    }
}
