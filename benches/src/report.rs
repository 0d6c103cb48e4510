//! Figures: to the screen as they come, and to `target/bench/NAME.json` at the end.

use std::path::Path;

use serde_json::Value;

use super::Failure;

const MIB: f64 = 1_048_576.0;

/// The figures of one bench.
#[derive(Debug, Default)]
pub(crate) struct Report {
    cases: Vec<Value>,
}

impl Report {
    /// Takes a case's figures: one JSON object.
    pub(crate) fn add(&mut self, case: Value) {
        say(&row(&case));
        self.cases.push(case);
    }

    /// Shows all figures, and writes the file of the bench.
    pub(crate) fn finish(self, bench: &str) -> Result<(), Failure> {
        let [case, ours, reference, bar] = ["case", "ours", "reference", "bar"];
        print(&format!(
            "{case:<18} {ours:>12} {reference:>12} {bar:>12}   than reference"
        ));
        for case in &self.cases {
            print(&row(case));
        }
        let lines: Vec<String> = self.cases.iter().map(Value::to_string).collect();
        let text = lines.join("\n") + "\n";
        print(text.trim_end());
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/bench");
        std::fs::create_dir_all(&dir)?;
        std::fs::write(dir.join(format!("{bench}.json")), text)?;
        Ok(())
    }
}

/// A case for the eye: ours, the reference's, and what ours must stay below.
fn row(case: &Value) -> String {
    let name = case.get("case").and_then(Value::as_str).unwrap_or_default();
    let number = |key| case.get(key).and_then(Value::as_f64);
    let (ours, show): (_, fn(f64) -> String) = match (number("seconds"), number("per_second")) {
        (Some(seconds), _) => (Some(seconds), |s| format!("{s:.4} s")),
        (None, Some(rate)) => (Some(rate), |r| format!("{r:.0}/s")),
        (None, None) => (number("bytes"), |b| format!("{:.1} MiB", b / MIB)),
    };
    // Of a rate, more is better.
    let more = number("per_second").is_some();
    let reference = number("reference");
    let shown = |figure: Option<f64>| figure.map_or_else(|| "-".to_owned(), show);
    let times = match (ours, reference) {
        (Some(ours), Some(reference)) if more => format!("{:.1} times more", ours / reference),
        (Some(ours), Some(reference)) if ours > 0.0 => {
            format!("{:.1} times less", reference / ours)
        }
        _ => "-".to_owned(),
    };
    let bar = number("bar");
    let missed = ours
        .zip(bar)
        .is_some_and(|(ours, bar)| if more { ours < bar } else { ours > bar });
    format!(
        "{name:<18} {:>12} {:>12} {:>12}   {times}{}",
        shown(ours),
        shown(reference),
        shown(bar),
        if missed { "   bar missed" } else { "" },
    )
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
