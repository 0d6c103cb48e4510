//! What happened, in order: two runs of one seed have the same, byte for byte.

use std::fmt::Write as _;
use std::sync::{Arc, Mutex};

use tokio::time::Instant;

/// Lines that are shown of a run that failed.
const SHOWN: usize = 120;

/// The trace of one run; a handle, cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Trace {
    began: Instant,
    lines: Arc<Mutex<Lines>>,
}

#[derive(Debug, Default)]
struct Lines {
    text: String,
    /// Where the lines begin that are not about single messages.
    said: Vec<(usize, usize)>,
}

impl Trace {
    /// An empty trace that begins now.
    pub(crate) fn new() -> Self {
        Self {
            began: Instant::now(),
            lines: Arc::default(),
        }
    }

    /// Notes a message or the like: there are thousands.
    pub(crate) fn note(&self, text: std::fmt::Arguments<'_>) {
        let mut lines = self.lines.lock().unwrap();
        let at = self.began.elapsed().as_secs_f64();
        writeln!(lines.text, "{at:10.4} {text}").unwrap();
    }

    /// Notes what a reader wants to know.
    pub(crate) fn say(&self, text: std::fmt::Arguments<'_>) {
        let from = self.lines.lock().unwrap().text.len();
        self.note(text);
        let mut lines = self.lines.lock().unwrap();
        let to = lines.text.len();
        lines.said.push((from, to));
    }

    /// All of it.
    pub(crate) fn text(&self) -> String {
        self.lines.lock().unwrap().text.clone()
    }

    /// The last things said.
    pub(crate) fn last(&self) -> String {
        let lines = self.lines.lock().unwrap();
        let skip = lines.said.len().saturating_sub(SHOWN);
        let said = lines.said.iter().skip(skip);
        said.map(|(from, to)| &lines.text[*from..*to]).collect()
    }
}
