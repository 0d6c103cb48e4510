//! Text in columns under headers, laid out by comfy-table; and how a word of it is coloured and cut.

use comfy_table::{Cell, Color, ContentArrangement, Table, presets};

/// What a word says about the state of something; shown as a colour on terminals.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tone {
    Plain,
    Good,
    Waiting,
    Bad,
}

/// Whether the stream takes colours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Colour {
    On,
    Off,
}

/// Columns left and right of a cell.
const PADDING: (u16, u16) = (0, 2);

/// The lines of a table. Without rows only the header is there. Nothing depends on the process's own
/// terminal, and no cell is wrapped: lines stay one object each, for grep.
pub(crate) fn lines(headers: &[String], rows: &[Vec<String>], colour: Colour) -> Vec<String> {
    let mut table = Table::new();
    table
        .load_style(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Disabled)
        .force_no_tty()
        .set_header(headers)
        .add_rows(rows.iter().map(|row| row.iter().map(|text| cell(text))));
    if colour == Colour::On {
        table.enforce_styling().style_text_only();
    }
    for column in table.column_iter_mut() {
        column.set_padding(PADDING);
    }
    table
        .lines()
        .map(|line| line.trim_end().to_owned())
        .collect()
}

/// A cell in the colour of what its first word says.
fn cell(text: &str) -> Cell {
    let cell = Cell::new(text);
    match tone(text) {
        Tone::Plain => cell,
        Tone::Good => cell.fg(Color::DarkGreen),
        Tone::Waiting => cell.fg(Color::DarkYellow),
        Tone::Bad => cell.fg(Color::DarkRed),
    }
}

/// The text, outside of tables, in the colour of what its first word says.
pub(crate) fn painted(text: &str, colour: Colour) -> String {
    let style = console::Style::new().force_styling(colour == Colour::On);
    let style = match tone(text) {
        Tone::Plain => return text.to_owned(),
        Tone::Good => style.green(),
        Tone::Waiting => style.yellow(),
        Tone::Bad => style.red(),
    };
    style.apply_to(text).to_string()
}

/// One line without control characters, of at most `limit` columns; an ellipsis stands for what is cut.
pub(crate) fn shortened(text: &str, limit: usize) -> String {
    let line = text.replace(char::is_control, " ");
    console::truncate_str(&line, limit, "…").into_owned()
}

fn first_word(text: &str) -> &str {
    text.split_whitespace().next().unwrap_or_default()
}

fn tone(text: &str) -> Tone {
    match first_word(text) {
        "RUNNING" | "READY" | "REACHABLE" | "COMPLETE" | "COMPLETED" => Tone::Good,
        "NEW" | "PENDING" | "ASSIGNED" | "PREPARING" | "STARTING" | "PAUSE" | "DRAIN"
        | "UPDATING" | "DISCONNECTED" => Tone::Waiting,
        "FAILED" | "REJECTED" | "ORPHANED" | "DOWN" | "UNREACHABLE" | "PAUSED"
        | "ROLLBACK_STARTED" | "ROLLBACK_PAUSED" => Tone::Bad,
        _ => Tone::Plain,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cells(texts: &[&str]) -> Vec<String> {
        texts.iter().map(|text| (*text).to_owned()).collect()
    }

    #[test]
    fn columns_line_up() {
        let rows = [cells(&["1", "web", "RUNNING"]), cells(&["200", "ü字", ""])];
        let got = lines(&cells(&["ID", "Name", "State"]), &rows, Colour::Off);
        assert_eq!(got, ["ID   Name  State", "1    web   RUNNING", "200  ü字"]);
    }

    #[test]
    fn colours_do_not_move_columns() {
        let rows = [cells(&["RUNNING", "x"]), cells(&["FAILED", "y"])];
        let got = lines(&cells(&["State", "N"]), &rows, Colour::On);
        let bare = |line: &String| console::strip_ansi_codes(line).into_owned();
        assert_eq!(
            got.iter().map(bare).collect::<Vec<_>>(),
            ["State    N", "RUNNING  x", "FAILED   y"]
        );
        assert!(got[1].starts_with('\u{1b}') && got[1].ends_with("  x"));
        let code = |line: &str, word| line.split(word).next().map(str::to_owned);
        assert_ne!(code(&got[1], "RUNNING"), code(&got[2], "FAILED"));
    }

    #[test]
    fn long_and_broken_texts_become_one_short_line() {
        assert_eq!(shortened("abcdef", 4), "abc…");
        assert_eq!(shortened("a\nb", 4), "a b");
        assert_eq!(shortened("\u{1b}[31mx", 9), " [31mx");
    }
}
