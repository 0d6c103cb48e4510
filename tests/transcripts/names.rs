//! Names for what is random: ids and tokens.

use std::collections::BTreeMap;

use harness::sim::World;

/// Characters of a whole id.
const ID: usize = 25;
/// Characters of an id that is cut to fit a column.
const SHORT: usize = 12;

/// Ids that were seen, in order of their first appearance in the output.
#[derive(Debug, Default)]
pub(crate) struct Names {
    known: BTreeMap<String, Option<String>>,
    counts: BTreeMap<char, u32>,
}

impl Names {
    /// Learns the ids there are.
    pub(crate) fn learn(&mut self, world: &World) {
        let state = &world.log.state;
        let ids = state.nodes.keys().map(|id| ('n', id.to_string()));
        let ids = ids.chain(state.services.keys().map(|id| ('s', id.to_string())));
        let ids = ids.chain(state.tasks.keys().map(|id| ('t', id.to_string())));
        let ids = ids.chain(state.cluster.iter().map(|c| ('c', c.id.to_string())));
        for (kind, id) in ids {
            self.known.entry(format!("{id}{kind}")).or_insert(None);
        }
    }

    /// The text with names for ids, as wide as these.
    pub(crate) fn replace(&mut self, text: &str) -> String {
        let mut out = String::new();
        let mut word = String::new();
        for letter in text.chars().chain(std::iter::once('\n')) {
            if letter.is_ascii_digit() || letter.is_ascii_lowercase() {
                word.push(letter);
                continue;
            }
            out.push_str(&self.name(&word));
            word.clear();
            out.push(letter);
        }
        out.pop();
        without_tokens(&out)
    }

    fn name(&mut self, word: &str) -> String {
        let wide = word.len();
        let after_prefix = word.strip_prefix("sim").is_some();
        if (wide != ID && wide != SHORT) || after_prefix {
            return word.to_owned();
        }
        let Some((id, name)) = self
            .known
            .range_mut(word.to_owned()..)
            .next()
            .filter(|(id, _)| id.starts_with(word))
        else {
            return word.to_owned();
        };
        let kind = id.chars().last().unwrap_or('?');
        let counts = &mut self.counts;
        let name = name.get_or_insert_with(|| {
            let count = counts.entry(kind).or_default();
            *count += 1;
            format!("{kind}{count}")
        });
        format!("<{name}{}>", "-".repeat(wide - 2 - name.len()))
    }
}

/// The text with digests, join tokens and unlock keys left out.
fn without_tokens(text: &str) -> String {
    let text = &without("sha256:", "<digest>", text);
    let text = &without("SWMTKN-1-", "<digest>-<secret>", text);
    let key = |c: char| c.is_ascii_alphanumeric() || matches!(c, '+' | '/');
    let mut out = String::new();
    for (at, part) in text.split("SWMKEY-1-").enumerate() {
        match at {
            0 => out.push_str(part),
            _ => out.push_str(&format!(
                "SWMKEY-1-<secret>{}",
                part.trim_start_matches(key)
            )),
        }
    }
    out
}

/// The text with what follows each mark replaced.
fn without(mark: &str, name: &str, text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once(mark) {
        let end = after
            .find(|c: char| !(c.is_ascii_alphanumeric() || c == '-' || c == '<' || c == '>'))
            .unwrap_or(after.len());
        out.push_str(before);
        out.push_str(mark);
        out.push_str(name);
        rest = &after[end..];
    }
    out.push_str(rest);
    out
}
