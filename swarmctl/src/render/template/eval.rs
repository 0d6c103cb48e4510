//! Parts and a value to text.

use std::cmp::Ordering;

use serde_json::{Map, Value};

use super::{Part, Pipeline, Word};

/// What Go prints for a field that is not set.
const NO_VALUE: &str = "<no value>";

pub(super) fn render(parts: &[Part], root: &Value) -> Result<String, String> {
    let mut out = String::new();
    Scope { root }.write(parts, root, &mut out)?;
    Ok(out)
}

struct Scope<'a> {
    root: &'a Value,
}

impl Scope<'_> {
    fn write(&self, parts: &[Part], dot: &Value, out: &mut String) -> Result<(), String> {
        for part in parts {
            match part {
                Part::Text(text) => out.push_str(text),
                Part::Print(pipeline) => out.push_str(&shown(&self.pipeline(pipeline, dot)?)),
                Part::If {
                    condition,
                    then,
                    otherwise,
                } => {
                    let chosen = if truth(&self.pipeline(condition, dot)?) {
                        then
                    } else {
                        otherwise
                    };
                    self.write(chosen, dot, out)?;
                }
                Part::With {
                    value,
                    then,
                    otherwise,
                } => match self.pipeline(value, dot)? {
                    value if truth(&value) => self.write(then, &value, out)?,
                    _ => self.write(otherwise, dot, out)?,
                },
                Part::Range {
                    over,
                    each,
                    otherwise,
                } => {
                    let elements = elements(self.pipeline(over, dot)?)?;
                    for element in &elements {
                        self.write(each, element, out)?;
                    }
                    if elements.is_empty() {
                        self.write(otherwise, dot, out)?;
                    }
                }
            }
        }
        Ok(())
    }

    fn pipeline(&self, pipeline: &Pipeline, dot: &Value) -> Result<Value, String> {
        let mut carried = None;
        for call in pipeline {
            carried = Some(self.call(call, dot, carried)?);
        }
        Ok(carried.unwrap_or(Value::Null))
    }

    fn call(&self, words: &[Word], dot: &Value, carried: Option<Value>) -> Result<Value, String> {
        let Some((first, rest)) = words.split_first() else {
            return Err("an action is empty".to_owned());
        };
        let mut arguments = Vec::new();
        for word in rest {
            arguments.push(self.word(word, dot)?);
        }
        arguments.extend(carried);
        match first {
            Word::Function(name) => function(name, &arguments),
            Word::Path(_) | Word::Root(_) | Word::Literal(_) | Word::Group(_) => {
                if arguments.is_empty() {
                    self.word(first, dot)
                } else {
                    Err("a value is given arguments as if it were a function".to_owned())
                }
            }
        }
    }

    fn word(&self, word: &Word, dot: &Value) -> Result<Value, String> {
        match word {
            Word::Path(path) => field(dot, path),
            Word::Root(path) => field(self.root, path),
            Word::Literal(value) => Ok(value.clone()),
            Word::Group(pipeline) => self.pipeline(pipeline, dot),
            Word::Function(name) => function(name, &[]),
        }
    }
}

fn elements(value: Value) -> Result<Vec<Value>, String> {
    match value {
        Value::Null => Ok(Vec::new()),
        Value::Array(list) => Ok(list),
        Value::Object(map) => Ok(map.into_values().collect()),
        Value::Bool(_) | Value::Number(_) | Value::String(_) => {
            Err(format!("can't range over {}", shown(&value)))
        }
    }
}

/// Follows a path. Maps of the operator's own keys have no fixed fields: a key that is missing has no value.
fn field(value: &Value, path: &[String]) -> Result<Value, String> {
    let mut current = value;
    let mut parent = "the value";
    for name in path {
        current = match current {
            Value::Null => return Ok(Value::Null),
            Value::Object(map) => match lookup(map, name) {
                Some(found) => found,
                None if parent.to_lowercase().ends_with("labels") => return Ok(Value::Null),
                None => {
                    let known: Vec<&str> = map.keys().map(String::as_str).collect();
                    return Err(format!("no field {name:?}; there are {}", known.join(", ")));
                }
            },
            Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => {
                return Err(format!("{parent:?} has no fields, so no {name:?}"));
            }
        };
        parent = name;
    }
    Ok(current.clone())
}

/// The exact key, else the one that differs in case and underscores only (`.ID`, `.id`, `.DesiredState`).
fn lookup<'a>(map: &'a Map<String, Value>, name: &str) -> Option<&'a Value> {
    let plain = |text: &str| text.replace('_', "").to_lowercase();
    map.get(name).or_else(|| {
        let wanted = plain(name);
        map.iter()
            .find(|(key, _)| plain(key) == wanted)
            .map(|(_, value)| value)
    })
}

fn function(name: &str, arguments: &[Value]) -> Result<Value, String> {
    let text = |text: String| Ok(Value::String(text));
    match (name, arguments) {
        ("json", [value]) => text(value.to_string()),
        ("upper", [value]) => text(shown(value).to_uppercase()),
        ("lower", [value]) => text(shown(value).to_lowercase()),
        ("title", [value]) => text(title(&shown(value))),
        ("len", [value]) => length(value),
        ("not", [value]) => Ok(Value::Bool(!truth(value))),
        ("print", values) => text(values.iter().map(shown).collect::<Vec<_>>().join(" ")),
        ("println", values) => text(values.iter().map(shown).collect::<Vec<_>>().join(" ") + "\n"),
        ("printf", [Value::String(format), values @ ..]) => {
            printf(format, values).map(Value::String)
        }
        ("join", [list, Value::String(between)]) => text(
            elements(list.clone())?
                .iter()
                .map(shown)
                .collect::<Vec<_>>()
                .join(between),
        ),
        ("split", [value, Value::String(at)]) => Ok(shown(value)
            .split(at.as_str())
            .map(|part| Value::String(part.to_owned()))
            .collect()),
        ("truncate", [value, Value::Number(limit)]) => {
            let limit = limit
                .as_u64()
                .and_then(|limit| usize::try_from(limit).ok())
                .unwrap_or(0);
            text(shown(value).chars().take(limit).collect())
        }
        ("index", [value, keys @ ..]) => index(value, keys),
        ("eq", [value, others @ ..]) => Ok(Value::Bool(others.contains(value))),
        ("ne", [value, other]) => Ok(Value::Bool(value != other)),
        ("lt" | "le" | "gt" | "ge", [value, other]) => compare(name, value, other),
        ("and", [values @ .., last]) => {
            Ok(values.iter().find(|v| !truth(v)).unwrap_or(last).clone())
        }
        ("or", [values @ .., last]) => Ok(values.iter().find(|v| truth(v)).unwrap_or(last).clone()),
        (
            "json" | "upper" | "lower" | "title" | "len" | "not" | "printf" | "join" | "split"
            | "truncate" | "index" | "eq" | "ne" | "lt" | "le" | "gt" | "ge" | "and" | "or",
            _,
        ) => Err(format!("{name} has the wrong arguments")),
        _ => Err(format!("unknown function {name:?}")),
    }
}

fn title(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map_or_else(String::new, |first| {
        first.to_uppercase().chain(chars).collect()
    })
}

fn length(value: &Value) -> Result<Value, String> {
    match value {
        Value::Null => Ok(0.into()),
        Value::String(text) => Ok(text.len().into()),
        Value::Array(list) => Ok(list.len().into()),
        Value::Object(map) => Ok(map.len().into()),
        Value::Bool(_) | Value::Number(_) => Err(format!("{} has no length", shown(value))),
    }
}

fn index(value: &Value, keys: &[Value]) -> Result<Value, String> {
    let mut current = value.clone();
    for key in keys {
        current = match (&current, key) {
            (Value::Null, _) => Value::Null,
            (Value::Object(map), Value::String(name)) => {
                lookup(map, name).cloned().unwrap_or(Value::Null)
            }
            (Value::Array(list), Value::Number(at)) => at
                .as_u64()
                .and_then(|at| list.get(usize::try_from(at).ok()?))
                .cloned()
                .ok_or_else(|| format!("no element {at} in a list of {}", list.len()))?,
            (other, key) => return Err(format!("can't index {} by {key}", shown(other))),
        };
    }
    Ok(current)
}

fn compare(name: &str, value: &Value, other: &Value) -> Result<Value, String> {
    let order = match (value.as_f64(), other.as_f64()) {
        (Some(a), Some(b)) => a.partial_cmp(&b),
        (None, None) => Some(shown(value).cmp(&shown(other))),
        (Some(_), None) | (None, Some(_)) => None,
    };
    let order = order.ok_or_else(|| format!("{name} can't compare {value} and {other}"))?;
    Ok(Value::Bool(match name {
        "lt" => order == Ordering::Less,
        "le" => order != Ordering::Greater,
        "gt" => order == Ordering::Greater,
        _ => order != Ordering::Less,
    }))
}

/// `%s`, `%v`, `%d`, `%q` and `%%`, with a width as in `%-10s`.
fn printf(format: &str, values: &[Value]) -> Result<String, String> {
    let mut out = String::new();
    let mut values = values.iter();
    let mut rest = format;
    while let Some((before, after)) = rest.split_once('%') {
        out.push_str(before);
        let end = after
            .find(|c: char| !c.is_ascii_digit() && c != '-')
            .ok_or("printf: a lone %")?;
        let (width, verb) = after.split_at(end);
        let mut chars = verb.chars();
        let verb = chars.next().unwrap_or_default();
        rest = chars.as_str();
        if verb == '%' {
            out.push('%');
            continue;
        }
        let value = values.next().ok_or("printf: fewer values than verbs")?;
        let text = match verb {
            's' | 'v' | 'd' => shown(value),
            'q' => format!("{:?}", shown(value)),
            other => return Err(format!("printf: unknown verb %{other}")),
        };
        out.push_str(&padded(&text, width));
    }
    out.push_str(rest);
    Ok(out)
}

/// A screen has no more columns; a typing error must not fill the memory.
const WIDTH_MAX: usize = 1_000;

fn padded(text: &str, width: &str) -> String {
    let columns = width
        .trim_start_matches('-')
        .parse::<usize>()
        .unwrap_or(0)
        .min(WIDTH_MAX);
    if width.starts_with('-') {
        format!("{text:<columns$}")
    } else {
        format!("{text:>columns$}")
    }
}

fn truth(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(on) => *on,
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::String(text) => !text.is_empty(),
        Value::Array(list) => !list.is_empty(),
        Value::Object(map) => !map.is_empty(),
    }
}

/// As Go prints it: `[a b]`, `map[k:v]`.
fn shown(value: &Value) -> String {
    match value {
        Value::Null => NO_VALUE.to_owned(),
        Value::Bool(on) => on.to_string(),
        Value::Number(number) => number.to_string(),
        Value::String(text) => text.clone(),
        Value::Array(list) => format!("[{}]", list.iter().map(shown).collect::<Vec<_>>().join(" ")),
        Value::Object(map) => {
            let entries: Vec<_> = map
                .iter()
                .map(|(k, v)| format!("{k}:{}", shown(v)))
                .collect();
            format!("map[{}]", entries.join(" "))
        }
    }
}
