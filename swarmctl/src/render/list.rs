//! A list of objects, in the form the operator asked for: table, IDs, JSON lines, or a template.
//!
//! A row holds more fields than the table shows; templates and JSON see all of them, uncut.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::table::{Colour, lines, shortened};
use super::template::Template;
use crate::cli::Listing;
use crate::error::Error;
use crate::spec::Problems;

/// Characters of an ID that is cut: unique in practice, and what Docker shows.
const SHORT_ID: usize = 12;
/// Characters of a message that is cut.
const SHORT_MESSAGE: usize = 60;

/// One column of the table.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Column {
    pub(crate) key: &'static str,
    pub(crate) header: &'static str,
    pub(crate) cut: Cut,
}

/// How a cell is shortened unless the operator wants it whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cut {
    Never,
    Id,
    Message,
}

/// One object of the list.
#[derive(Clone, Debug, Default)]
pub(crate) struct Row(Map<String, Value>);

impl Row {
    pub(crate) fn new<const N: usize>(fields: [(&str, Value); N]) -> Self {
        Self(
            fields
                .into_iter()
                .map(|(key, value)| (key.to_owned(), value))
                .collect(),
        )
    }

    fn id(&self) -> String {
        self.0.get("ID").map(cell).unwrap_or_default()
    }
}

impl Column {
    pub(crate) const fn new(key: &'static str, header: &'static str, cut: Cut) -> Self {
        Self { key, header, cut }
    }
}

/// The form of a list, checked before anything is asked.
#[derive(Debug)]
pub(crate) enum Format {
    Table,
    Ids,
    Json,
    Template(Template),
    /// Docker's `table TEMPLATE`: tabs separate columns, under a header.
    TemplateTable(Template),
}

impl Format {
    pub(crate) fn of(listing: &Listing) -> Result<Self, Error> {
        match listing.format.as_deref() {
            Some(_) if listing.quiet => {
                let mut problems = Problems::default();
                problems.push("--quiet and --format exclude each other; give one of them");
                problems.unless_any(Self::Ids)
            }
            None if listing.quiet => Ok(Self::Ids),
            None | Some("table") => Ok(Self::Table),
            Some("json") => Ok(Self::Json),
            Some(text) => match text.strip_prefix("table ") {
                Some(template) => Template::parse(template).map(Self::TemplateTable),
                None => Template::parse(text).map(Self::Template),
            }
            .map_err(Error::Template),
        }
    }
}

/// The lines of a list.
pub(crate) fn render(
    format: &Format,
    columns: &[Column],
    rows: &[Row],
    (listing, colour): (&Listing, Colour),
) -> Result<Vec<String>, Error> {
    match format {
        Format::Ids => Ok(rows.iter().map(Row::id).collect()),
        Format::Json => Ok(rows
            .iter()
            .map(|row| Value::Object(row.0.clone()).to_string())
            .collect()),
        Format::Table => {
            let headers: Vec<String> = columns.iter().map(|c| c.header.to_owned()).collect();
            let cells: Vec<Vec<String>> = rows
                .iter()
                .map(|row| shown(columns, row, listing))
                .collect();
            Ok(lines(&headers, &cells, colour))
        }
        Format::Template(template) => rows
            .iter()
            .map(|row| {
                template
                    .render(&Value::Object(row.0.clone()))
                    .map_err(Error::Template)
            })
            .collect(),
        Format::TemplateTable(template) => template_table(template, columns, rows),
    }
}

fn shown(columns: &[Column], row: &Row, listing: &Listing) -> Vec<String> {
    let show = |column: &Column| {
        let text = row.0.get(column.key).map(cell).unwrap_or_default();
        match column.cut {
            Cut::Id if !listing.no_trunc => text.chars().take(SHORT_ID).collect(),
            Cut::Message if !listing.no_trunc => shortened(&text, SHORT_MESSAGE),
            Cut::Never | Cut::Id | Cut::Message => shortened(&text, usize::MAX),
        }
    };
    columns.iter().map(show).collect()
}

/// The header comes from the same template, over an object whose values are the headers.
fn template_table(
    template: &Template,
    columns: &[Column],
    rows: &[Row],
) -> Result<Vec<String>, Error> {
    let split = |text: String| text.split('\t').map(str::to_owned).collect::<Vec<_>>();
    let mut headers = Map::new();
    for key in rows.iter().flat_map(|row| row.0.keys()) {
        headers.insert(key.clone(), Value::String(key.clone()));
    }
    for column in columns {
        headers.insert(
            column.key.to_owned(),
            Value::String(column.header.to_owned()),
        );
    }
    let header = template
        .render(&Value::Object(headers))
        .map_err(Error::Template)?;
    let mut cells = Vec::new();
    for row in rows {
        let text = template
            .render(&Value::Object(row.0.clone()))
            .map_err(Error::Template)?;
        cells.push(split(text));
    }
    Ok(lines(&split(header), &cells, Colour::Off))
}

fn cell(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_) => value.to_string(),
    }
}

/// The `--filter` options of a list: alternatives by key.
#[derive(Debug, Default)]
pub(crate) struct Filters(BTreeMap<String, Vec<String>>);

impl Filters {
    /// Refuses keys that the list does not know.
    pub(crate) fn parse(listing: &Listing, known: &[&str]) -> Result<Self, Error> {
        let mut problems = Problems::default();
        let mut filters = BTreeMap::<String, Vec<String>>::new();
        for text in &listing.filters {
            match text.split_once('=') {
                Some((key, value)) if known.contains(&key) => {
                    filters
                        .entry(key.to_owned())
                        .or_default()
                        .push(value.to_owned());
                }
                Some((key, _)) => problems.push(format!(
                    "--filter {text}: unknown key {key:?}; give {}",
                    known.join(", ")
                )),
                None => problems.push(format!("--filter {text}: there is no =; give KEY=VALUE")),
            }
        }
        problems.unless_any(Self(filters))
    }

    /// The alternatives of a key; none where it is not filtered by.
    pub(crate) fn values(&self, key: &str) -> &[String] {
        self.0.get(key).map_or(&[], Vec::as_slice)
    }

    /// True where the key is not filtered by, or `holds` for one of its alternatives.
    pub(crate) fn allow(&self, key: &str, holds: impl Fn(&str) -> bool) -> bool {
        let values = self.values(key);
        values.is_empty() || values.iter().any(|value| holds(value))
    }

    /// Alternatives of a key as names of an enum, without regard to case; unknown names are refused.
    pub(crate) fn choices<T: Copy>(&self, key: &str, known: &[(&str, T)]) -> Result<Vec<T>, Error> {
        let mut problems = Problems::default();
        let mut chosen = Vec::new();
        for value in self.values(key) {
            match known
                .iter()
                .find(|(name, _)| name.eq_ignore_ascii_case(value))
            {
                Some((_, choice)) => chosen.push(*choice),
                None => {
                    let names: Vec<_> = known.iter().map(|(name, _)| name.to_lowercase()).collect();
                    problems.push(format!(
                        "--filter {key}={value}: unknown value; give {}",
                        names.join(", ")
                    ));
                }
            }
        }
        problems.unless_any(chosen)
    }
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;

    const COLUMNS: &[Column] = &[
        Column::new("ID", "ID", Cut::Id),
        Column::new("Name", "Name", Cut::Never),
    ];

    fn check(listing: &Listing) -> String {
        let row = |id: &str, name: &str| {
            Row::new([("ID", id.into()), ("Name", name.into()), ("Slot", 3.into())])
        };
        let rows = [row("0123456789abcdefghijklmno", "web"), row("1", "db")];
        let format = Format::of(listing).unwrap();
        render(&format, COLUMNS, &rows, (listing, Colour::Off))
            .unwrap()
            .join("\n")
    }

    fn formatted(format: &str) -> Listing {
        Listing {
            format: Some(format.to_owned()),
            ..Default::default()
        }
    }

    #[test]
    fn every_format() {
        expect![[r#"
            ID            Name
            0123456789ab  web
            1             db"#]]
        .assert_eq(&check(&Listing::default()));
        expect![[r#"
            {"ID":"0123456789abcdefghijklmno","Name":"web","Slot":3}
            {"ID":"1","Name":"db","Slot":3}"#]]
        .assert_eq(&check(&formatted("json")));
        expect![[r"
            web/3
            db/3"]]
        .assert_eq(&check(&formatted("{{.Name}}/{{.Slot}}")));
        expect![[r#"
            Name  Slot
            web   3
            db    3"#]]
        .assert_eq(&check(&formatted(r"table {{.Name}}\t{{.Slot}}")));
        let quiet = Listing {
            quiet: true,
            ..Default::default()
        };
        expect![[r"
            0123456789abcdefghijklmno
            1"]]
        .assert_eq(&check(&quiet));
    }

    #[test]
    fn filters_are_checked() {
        let listing = Listing {
            filters: vec!["colour=red".into(), "role".into()],
            ..Default::default()
        };
        let error = Filters::parse(&listing, &["role", "name"]).unwrap_err();
        expect![[r#"
            --filter colour=red: unknown key "colour"; give role, name
            --filter role: there is no =; give KEY=VALUE"#]]
        .assert_eq(&error.to_string());
    }
}
