//! Details of one object: names and values, indented by section, the values in one column.

use std::collections::BTreeMap;

/// Lines under construction.
#[derive(Debug, Default)]
pub(crate) struct Details {
    lines: Vec<(String, String)>,
    depth: usize,
}

impl Details {
    /// A name and its value; an empty value leaves no line.
    pub(crate) fn put(&mut self, name: &str, value: impl Into<String>) {
        let value = value.into();
        if !value.is_empty() {
            self.lines
                .push((format!("{}{name}", " ".repeat(self.depth)), value));
        }
    }

    /// A section; one that stays empty leaves no line.
    pub(crate) fn section(&mut self, name: &str, fill: impl FnOnce(&mut Self)) {
        let start = self.lines.len();
        self.lines
            .push((format!("{}{name}", " ".repeat(self.depth)), String::new()));
        self.depth += 2;
        fill(self);
        self.depth -= 2;
        if self.lines.len() == start + 1 {
            self.lines.truncate(start);
        }
    }

    /// A section of the entries of a map.
    pub(crate) fn map(&mut self, name: &str, entries: &BTreeMap<String, String>) {
        self.section(name, |details| {
            for (key, value) in entries {
                let value = if value.is_empty() { "\"\"" } else { value };
                details.put(key, value);
            }
        });
    }

    /// The text, without a newline at the end.
    pub(crate) fn lines(&self) -> Vec<String> {
        let width = self
            .lines
            .iter()
            .map(|(name, _)| name.chars().count())
            .max()
            .unwrap_or(0);
        let line = |(name, value): &(String, String)| {
            let pad = " ".repeat(width.saturating_sub(name.chars().count()));
            // A value of several lines keeps the column.
            let value = value
                .trim_end()
                .replace('\n', &format!("\n{}", " ".repeat(width + 2)));
            format!("{name}{pad}: {value}").trim_end().to_owned()
        };
        self.lines.iter().map(line).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_share_a_column_and_empty_sections_vanish() {
        let mut details = Details::default();
        details.put("ID", "x");
        details.put("Nothing", "");
        details.section("Empty", |_| {});
        details.section("Status", |details| details.put("State", "READY"));
        details.put("Key", "a\nb");
        assert_eq!(
            details.lines(),
            [
                "ID     : x",
                "Status :",
                "  State: READY",
                "Key    : a\n         b"
            ]
        );
    }
}
