//! OCI specs as flat lists of fields, in which what says the same reads the same.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

/// Names of fields, each with its value.
pub(super) type Fields = BTreeMap<String, String>;

/// The fields of a spec. What is false, null or empty is not there: the runtime reads it so.
pub(super) fn flat(spec: &Value) -> Fields {
    let mut found = BTreeMap::new();
    walk("", spec, &mut found);
    let join = |(name, values): (String, BTreeSet<String>)| {
        let values: Vec<String> = values.into_iter().collect();
        (name, values.join("; "))
    };
    found.into_iter().map(join).collect()
}

type Found = BTreeMap<String, BTreeSet<String>>;

fn walk(path: &str, value: &Value, found: &mut Found) {
    match value {
        Value::Null | Value::Bool(false) => {}
        Value::String(text) if text.is_empty() => {}
        Value::Bool(true) | Value::Number(_) => put(found, path, &value.to_string()),
        Value::String(text) => put(found, path, text),
        Value::Array(items) => list(path, items, found),
        Value::Object(fields) => {
            for (name, value) in fields {
                let path = match path {
                    "" => name.clone(),
                    path => format!("{path}.{name}"),
                };
                walk(&path, value, found);
            }
        }
    }
}

fn put(found: &mut Found, path: &str, value: &str) {
    let values = found.entry(path.to_owned()).or_default();
    values.insert(value.to_owned());
}

/// Lists are sets under the names of their items, but where the order matters.
fn list(path: &str, items: &[Value], found: &mut Found) {
    if path == "process.args" {
        return put(found, path, &Value::from(items).to_string());
    }
    for item in items {
        let text = |field: &str| item[field].as_str().unwrap_or_default().to_owned();
        match path {
            "process.env" => {
                let text = item.as_str().unwrap_or_default();
                let (name, value) = text.split_once('=').unwrap_or((text, ""));
                put(found, &format!("{path}[{name}]"), value);
            }
            "process.rlimits" => {
                let limit = format!("{}:{}", item["soft"], item["hard"]);
                put(found, &format!("{path}[{}]", text("type")), &limit);
            }
            "mounts" => mount(&format!("{path}[{}]", text("destination")), item, found),
            "linux.namespaces" => {
                let place = item["path"].as_str().unwrap_or("new");
                put(found, &format!("{path}[{}]", text("type")), place);
            }
            "linux.devices" => walk(&format!("{path}[{}]", text("path")), item, found),
            "linux.resources.devices" => rule(path, item, found),
            "linux.seccomp.syscalls" => calls(path, item, found),
            _ => plain(path, item, found),
        }
    }
}

fn plain(path: &str, item: &Value, found: &mut Found) {
    match item {
        Value::String(text) => put(found, &format!("{path}[{text}]"), "yes"),
        Value::Number(number) => put(found, &format!("{path}[{number}]"), "yes"),
        Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => {
            put(found, &format!("{path}[]"), &item.to_string());
        }
    }
}

fn mount(path: &str, item: &Value, found: &mut Found) {
    for field in ["type", "source"] {
        walk(&format!("{path}.{field}"), &item[field], found);
    }
    let options = item["options"].as_array().into_iter().flatten();
    let mut options: Vec<&str> = options.filter_map(Value::as_str).collect();
    options.sort_unstable();
    put(found, &format!("{path}.options"), &options.join(","));
}

/// `[c 1:3]` of the rule is the device, an asterisk any.
fn rule(path: &str, item: &Value, found: &mut Found) {
    let number = |field: &str| item[field].as_i64().filter(|number| *number >= 0);
    let number = |field: &str| number(field).map_or("*".to_owned(), |number| number.to_string());
    let text = |field: &str| item[field].as_str().unwrap_or("*");
    let device = format!("{} {}:{}", text("type"), number("major"), number("minor"));
    let verb = if item["allow"] == true {
        "allow"
    } else {
        "deny"
    };
    let value = format!("{verb} {}", text("access"));
    put(found, &format!("{path}[{device}]"), &value);
}

fn calls(path: &str, item: &Value, found: &mut Found) {
    let action = item["action"].as_str().unwrap_or_default();
    let mut what = action.trim_start_matches("SCMP_ACT_").to_lowercase();
    if let Some(number) = item["errnoRet"].as_u64() {
        what = format!("{what} {number}");
    }
    for condition in item["args"].as_array().into_iter().flatten() {
        let op = condition["op"].as_str().unwrap_or_default();
        let op = op.trim_start_matches("SCMP_CMP_").to_lowercase();
        let second = condition["valueTwo"].as_u64().unwrap_or(0);
        let (index, value) = (&condition["index"], &condition["value"]);
        what = format!("{what} if arg{index} {op} {value} {second}");
    }
    for name in item["names"].as_array().into_iter().flatten() {
        let name = name.as_str().unwrap_or_default();
        put(found, &format!("{path}[{name}]"), &what);
    }
}
