//! The tables of docs/oci-spec.md: what differs from Docker Engine's specs, and why.

/// The document, as it is built with.
const DOCUMENT: &str = include_str!("../../docs/oci-spec.md");
/// Begins the part with rows that hold on some hosts only.
const SOME_HOSTS: &str = "## On some hosts";

/// What is not the same under both for a case.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Difference {
    pub(super) case: String,
    pub(super) field: String,
    pub(super) theirs: String,
    pub(super) ours: String,
}

impl Difference {
    /// As the row that it lacks.
    fn row(&self) -> String {
        let Self {
            case,
            field,
            theirs,
            ours,
        } = self;
        format!("| `{field}` | `{theirs}` | `{ours}` | {case}: why? |")
    }
}

/// One row; in each pattern an asterisk is any text.
#[derive(Debug)]
struct Row {
    fields: Vec<String>,
    theirs: String,
    ours: String,
    everywhere: bool,
}

/// All rows.
#[derive(Debug)]
pub(super) struct Table {
    rows: Vec<Row>,
}

impl Table {
    /// Reads the document. A row without a reason is none.
    pub(super) fn documented() -> Self {
        let (everywhere, some) = DOCUMENT.split_once(SOME_HOSTS).unwrap();
        let read = |part: &'static str, everywhere: bool| {
            let lines = part.lines().filter(|line| line.starts_with("| `"));
            lines.map(move |line| Row::read(line, everywhere))
        };
        let rows = read(everywhere, true).chain(read(some, false));
        Self {
            rows: rows.collect(),
        }
    }

    /// Rows that are missing.
    pub(super) fn unlisted(&self, found: &[Difference]) -> Vec<String> {
        let known = |difference: &&Difference| {
            let mut rows = self.rows.iter();
            !rows.any(|row| row.fields.iter().any(|field| row.holds(field, difference)))
        };
        found.iter().filter(known).map(Difference::row).collect()
    }

    /// Fields of rows that nothing is found for.
    pub(super) fn gone(&self, found: &[Difference]) -> Vec<String> {
        let mut gone = Vec::new();
        for row in self.rows.iter().filter(|row| row.everywhere) {
            for field in &row.fields {
                if !found.iter().any(|difference| row.holds(field, difference)) {
                    gone.push(format!("{field}: {} and {}", row.theirs, row.ours));
                }
            }
        }
        gone
    }
}

impl Row {
    fn read(line: &str, everywhere: bool) -> Self {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        let [fields, theirs, ours, why] = <[&str; 4]>::try_from(cells).unwrap();
        assert!(!why.is_empty(), "a row gives a reason: {line}");
        Self {
            // Text between backticks.
            fields: fields
                .split('`')
                .skip(1)
                .step_by(2)
                .map(str::to_owned)
                .collect(),
            theirs: theirs.trim_matches('`').to_owned(),
            ours: ours.trim_matches('`').to_owned(),
            everywhere,
        }
    }

    fn holds(&self, field: &str, difference: &Difference) -> bool {
        matches(field, &difference.field)
            && matches(&self.theirs, &difference.theirs)
            && matches(&self.ours, &difference.ours)
    }
}

/// Whether a text is as the pattern says.
fn matches(pattern: &str, text: &str) -> bool {
    let Some((head, rest)) = pattern.split_once('*') else {
        return pattern == text;
    };
    let Some(after) = text.strip_prefix(head) else {
        return false;
    };
    let mut ends = after.char_indices().map(|(at, _)| at).chain([after.len()]);
    ends.any(|at| matches(rest, &after[at..]))
}

#[test]
fn patterns_of_the_table() {
    for (pattern, text, fits) in [
        ("a", "a", true),
        ("a", "ab", false),
        ("a*", "ab", true),
        ("*b", "ab–b", true),
        ("a*c*e", "abcde", true),
        ("a*c*e", "abcd", false),
        ("*", "", true),
    ] {
        assert_eq!(matches(pattern, text), fits, "{pattern} {text}");
    }
}
