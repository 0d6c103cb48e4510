//! Figures: to the screen as they come, and to `target/bench/NAME.json` at the end.

use std::path::Path;

use serde_json::Value;

use super::Failure;

/// The figures of one bench.
#[derive(Debug, Default)]
pub(crate) struct Report {
    lines: Vec<String>,
}

impl Report {
    /// Takes a case's figures: one JSON object.
    pub(crate) fn add(&mut self, case: &Value) {
        let line = case.to_string();
        print(&line);
        self.lines.push(line);
    }

    /// Writes the file of the bench.
    pub(crate) fn write(self, bench: &str) -> Result<(), Failure> {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/bench");
        std::fs::create_dir_all(&dir)?;
        let text = self.lines.join("\n") + "\n";
        std::fs::write(dir.join(format!("{bench}.json")), text)?;
        Ok(())
    }
}

#[expect(clippy::print_stdout, reason = "figures are this program's output")]
fn print(line: &str) {
    println!("{line}");
}

/// Progress, for whoever watches.
#[expect(clippy::print_stderr, reason = "progress is for the screen alone")]
pub(crate) fn say(text: &str) {
    eprintln!("{text}");
}

/// The middle one, the lowest and the highest of some figures.
pub(crate) fn spread(figures: &[f64]) -> Option<(f64, f64, f64)> {
    let mut sorted = figures.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.get(sorted.len() / 2)?;
    Some((*middle, *sorted.first()?, *sorted.last()?))
}

/// Four digits after the point are more than a run repeats.
pub(crate) fn round(figure: f64) -> f64 {
    (figure * 10_000.0).round() / 10_000.0
}
