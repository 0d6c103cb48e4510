//! Any message of the wire as a JSON value, read from its encoding by the compiled descriptors.
//!
//! The generated types have no reflection, and writing every message out by hand would forget fields.
//! The form is protobuf's JSON mapping (lowerCamelCase, enum names, RFC 3339, base64), with three
//! differences: 64-bit numbers stay numbers, durations read as flags take them, and fields without value
//! are `null`, so that a template can tell "not set" from "no such field". [`printable`] drops the nulls.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use base64::Engine as _;
use prost::Message;
use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{DescriptorProto, EnumDescriptorProto, FieldDescriptorProto, FileDescriptorSet};
use serde_json::{Map, Value};

use crate::time;

/// Deeper nesting than any message of ours has: a wrong type name can't recurse for ever.
const DEPTH_MAX: usize = 32;

/// Messages and enums by full name, without the leading dot.
struct Schema {
    messages: BTreeMap<String, DescriptorProto>,
    enums: BTreeMap<String, EnumDescriptorProto>,
}

static SCHEMA: LazyLock<Schema> = LazyLock::new(|| {
    let mut schema = Schema {
        messages: BTreeMap::new(),
        enums: BTreeMap::new(),
    };
    // Our own build wrote the descriptors; should they not decode, every object shows as empty.
    let set = FileDescriptorSet::decode(crate::DESCRIPTORS).unwrap_or_default();
    for file in set.file {
        let package = file.package().to_owned();
        for message in file.message_type {
            schema.add(&package, message);
        }
        for one in file.enum_type {
            schema
                .enums
                .insert(format!("{package}.{}", one.name()), one);
        }
    }
    schema
});

impl Schema {
    fn add(&mut self, scope: &str, message: DescriptorProto) {
        let name = format!("{scope}.{}", message.name());
        for nested in &message.nested_type {
            self.add(&name, nested.clone());
        }
        for one in &message.enum_type {
            self.enums
                .insert(format!("{name}.{}", one.name()), one.clone());
        }
        self.messages.insert(name, message);
    }
}

/// The message as a JSON value; `name` is its full protobuf name.
pub fn value(name: &str, message: &impl Message) -> Value {
    encoded(name, &message.encode_to_vec(), &|_, _, _| None)
}

/// Says how a field is shown, where it is not as usual: by the name of its message, the field, and its content.
pub type Lens<'a> = &'a dyn Fn(&str, &FieldDescriptorProto, &Raw<'_>) -> Option<Value>;

/// The same of an encoded message, with some fields shown otherwise. Null where it is no such message.
pub fn encoded(name: &str, bytes: &[u8], lens: Lens<'_>) -> Value {
    object(name, bytes, (DEPTH_MAX, lens)).unwrap_or(Value::Null)
}

/// Without fields that have no value.
pub fn printable(value: Value) -> Value {
    match value {
        Value::Object(map) => Value::Object(
            map.into_iter()
                .filter(|(_, value)| !value.is_null())
                .map(|(key, value)| (key, printable(value)))
                .collect(),
        ),
        Value::Array(list) => Value::Array(list.into_iter().map(printable).collect()),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => value,
    }
}

/// The content of one field of the encoding.
#[derive(Debug, Clone, Copy)]
pub enum Raw<'a> {
    /// Of a number, an enum or a bool.
    Number(u64),
    /// Of anything else, and of packed numbers.
    Bytes(&'a [u8]),
}

/// How deep it may still go, and how fields are shown.
type Way<'a> = (usize, Lens<'a>);

fn object(name: &str, bytes: &[u8], (depth, lens): Way<'_>) -> Option<Value> {
    if let Some(known) = well_known(name, bytes) {
        return Some(known);
    }
    let message = SCHEMA.messages.get(name)?;
    let depth = depth.checked_sub(1)?;
    let mut map: Map<String, Value> = message
        .field
        .iter()
        .map(|field| (field.json_name().to_owned(), absent(field)))
        .collect();
    for (number, raw) in split(bytes)? {
        let Some(field) = message.field.iter().find(|field| field.number() == number) else {
            continue;
        };
        match lens(name, field, &raw) {
            Some(shown) => show(&mut map, field, shown)?,
            None => put(&mut map, field, &raw, (depth, lens))?,
        }
    }
    Some(Value::Object(map))
}

/// What a field is worth that is not in the encoding.
fn absent(field: &FieldDescriptorProto) -> Value {
    if field.label() == Label::Repeated {
        return if is_map(field) {
            Value::Object(Map::new())
        } else {
            Value::Array(Vec::new())
        };
    }
    if field.oneof_index.is_some() {
        return Value::Null;
    }
    match field.r#type() {
        Type::Message | Type::Group => Value::Null,
        Type::Bytes | Type::String => Value::String(String::new()),
        Type::Bool => Value::Bool(false),
        Type::Enum => enum_name(field, 0),
        Type::Double | Type::Float => Value::from(0.0),
        Type::Int64
        | Type::Uint64
        | Type::Int32
        | Type::Fixed64
        | Type::Fixed32
        | Type::Uint32
        | Type::Sfixed32
        | Type::Sfixed64
        | Type::Sint32
        | Type::Sint64 => Value::from(0),
    }
}

fn show(map: &mut Map<String, Value>, field: &FieldDescriptorProto, shown: Value) -> Option<()> {
    match map.get_mut(field.json_name())? {
        Value::Array(list) => list.push(shown),
        slot @ (Value::Null
        | Value::Bool(_)
        | Value::Number(_)
        | Value::String(_)
        | Value::Object(_)) => *slot = shown,
    }
    Some(())
}

fn put(
    map: &mut Map<String, Value>,
    field: &FieldDescriptorProto,
    raw: &Raw<'_>,
    way: Way<'_>,
) -> Option<()> {
    let slot = map.get_mut(field.json_name())?;
    match slot {
        Value::Object(entries) if is_map(field) => {
            let Value::Object(mut entry) = single(field, raw, way)? else {
                return None;
            };
            let key = match entry.remove("key")? {
                Value::String(key) => key,
                key @ (Value::Null
                | Value::Bool(_)
                | Value::Number(_)
                | Value::Array(_)
                | Value::Object(_)) => key.to_string(),
            };
            entries.insert(key, entry.remove("value")?);
        }
        Value::Array(list) => match raw {
            // Numbers of a repeated field come packed.
            Raw::Bytes(packed) if numeric(field) => {
                let mut packed = *packed;
                while !packed.is_empty() {
                    let (number, rest) = varint(packed)?;
                    list.push(scalar(field, number));
                    packed = rest;
                }
            }
            Raw::Number(_) | Raw::Bytes(_) => list.push(single(field, raw, way)?),
        },
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Object(_) => {
            *slot = single(field, raw, way)?;
        }
    }
    Some(())
}

fn single(field: &FieldDescriptorProto, raw: &Raw<'_>, way: Way<'_>) -> Option<Value> {
    match raw {
        Raw::Number(number) => Some(scalar(field, *number)),
        Raw::Bytes(bytes) => match field.r#type() {
            Type::String => Some(Value::String(String::from_utf8_lossy(bytes).into_owned())),
            Type::Message | Type::Group => object(full_name(field), bytes, way),
            Type::Bytes
            | Type::Bool
            | Type::Enum
            | Type::Double
            | Type::Float
            | Type::Int64
            | Type::Uint64
            | Type::Int32
            | Type::Fixed64
            | Type::Fixed32
            | Type::Uint32
            | Type::Sfixed32
            | Type::Sfixed64
            | Type::Sint32
            | Type::Sint64 => Some(Value::String(
                base64::engine::general_purpose::STANDARD.encode(bytes),
            )),
        },
    }
}

/// A number of the encoding as the type of its field; bits are reinterpreted as protobuf says.
fn scalar(field: &FieldDescriptorProto, number: u64) -> Value {
    match field.r#type() {
        Type::Bool => Value::Bool(number != 0),
        Type::Enum => enum_name(field, signed(number)),
        Type::Float => {
            let [a, b, c, d, ..] = number.to_le_bytes();
            Value::from(f32::from_le_bytes([a, b, c, d]))
        }
        Type::Double => Value::from(f64::from_bits(number)),
        Type::Uint64 | Type::Uint32 | Type::Fixed64 | Type::Fixed32 => Value::from(number),
        Type::Int64 | Type::Int32 | Type::Sfixed64 | Type::Sfixed32 => Value::from(signed(number)),
        Type::Sint64 | Type::Sint32 => Value::from(signed(number >> 1) ^ -signed(number & 1)),
        Type::String | Type::Bytes | Type::Message | Type::Group => Value::Null,
    }
}

fn signed(number: u64) -> i64 {
    i64::from_ne_bytes(number.to_ne_bytes())
}

fn enum_name(field: &FieldDescriptorProto, number: i64) -> Value {
    let names = SCHEMA.enums.get(full_name(field));
    let value = names.and_then(|one| one.value.iter().find(|v| i64::from(v.number()) == number));
    value.map_or_else(
        || Value::from(number),
        |value| Value::String(value.name().to_owned()),
    )
}

fn full_name(field: &FieldDescriptorProto) -> &str {
    field.type_name().trim_start_matches('.')
}

fn is_map(field: &FieldDescriptorProto) -> bool {
    field.r#type() == Type::Message
        && SCHEMA
            .messages
            .get(full_name(field))
            .and_then(|message| message.options.as_ref())
            .is_some_and(prost_types::MessageOptions::map_entry)
}

fn numeric(field: &FieldDescriptorProto) -> bool {
    !matches!(
        field.r#type(),
        Type::String | Type::Bytes | Type::Message | Type::Group
    )
}

fn well_known(name: &str, bytes: &[u8]) -> Option<Value> {
    match name {
        "google.protobuf.Timestamp" => {
            let timestamp = prost_types::Timestamp::decode(bytes).ok()?;
            Some(Value::String(time::rfc3339(Some(&timestamp))))
        }
        "google.protobuf.Duration" => Some(Value::String(time::span(
            &prost_types::Duration::decode(bytes).ok()?,
        ))),
        "google.protobuf.BoolValue" => Some(Value::Bool(bool::decode(bytes).ok()?)),
        "google.protobuf.Int64Value" => Some(Value::from(i64::decode(bytes).ok()?)),
        _ => None,
    }
}

/// The fields of an encoded message in order; `None` where the encoding is broken.
fn split(mut bytes: &[u8]) -> Option<Vec<(i32, Raw<'_>)>> {
    let mut fields = Vec::new();
    while !bytes.is_empty() {
        let (key, rest) = varint(bytes)?;
        let number = i32::try_from(key >> 3).ok()?;
        let (raw, rest) = match key & 7 {
            0 => varint(rest).map(|(number, rest)| (Raw::Number(number), rest))?,
            1 => {
                let (number, rest) = rest.split_first_chunk::<8>()?;
                (Raw::Number(u64::from_le_bytes(*number)), rest)
            }
            5 => {
                let (number, rest) = rest.split_first_chunk::<4>()?;
                (Raw::Number(u64::from(u32::from_le_bytes(*number))), rest)
            }
            2 => {
                let (length, rest) = varint(rest)?;
                let (content, rest) = rest.split_at_checked(usize::try_from(length).ok()?)?;
                (Raw::Bytes(content), rest)
            }
            _ => return None,
        };
        fields.push((number, raw));
        bytes = rest;
    }
    Some(fields)
}

fn varint(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let mut number = 0_u64;
    for (index, byte) in bytes.iter().enumerate().take(10) {
        number |= u64::from(byte & 0x7f) << (7 * index);
        if byte & 0x80 == 0 {
            return Some((number, bytes.get(index + 1..)?));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use crate::pb;

    use super::*;

    #[test]
    fn a_task_in_full() {
        let container = pb::ContainerSpec {
            image: "nginx".into(),
            env: vec!["A=1".into()],
            init: Some(false),
            labels: BTreeMap::from([("k".to_owned(), "v".to_owned())]),
            stop_grace_period: Some(prost_types::Duration {
                seconds: 90,
                nanos: 0,
            }),
            oom_score_adj: -5,
            ..Default::default()
        };
        let task = pb::Task {
            id: "t1".into(),
            slot: 3,
            desired_state: pb::TaskState::Running.into(),
            spec: Some(pb::TaskSpec {
                runtime: Some(pb::task_spec::Runtime::Container(container)),
                ..Default::default()
            }),
            meta: Some(pb::Meta {
                created_at: Some(prost_types::Timestamp {
                    seconds: 1,
                    nanos: 0,
                }),
                ..Default::default()
            }),
            ..Default::default()
        };
        let value = value("docker.swarmkit.v1.Task", &task);
        assert_eq!(value["spec"]["generic"], Value::Null);
        let shown = printable(value);
        let shown = serde_json::json!({
            "id": shown["id"], "slot": shown["slot"], "desiredState": shown["desiredState"],
            "meta": shown["meta"], "env": shown["spec"]["container"]["env"],
            "labels": shown["spec"]["container"]["labels"], "init": shown["spec"]["container"]["init"],
            "grace": shown["spec"]["container"]["stopGracePeriod"],
            "oom": shown["spec"]["container"]["oomScoreAdj"], "forceUpdate": shown["spec"]["forceUpdate"],
        });
        assert_eq!(
            shown.to_string(),
            r#"{"desiredState":"RUNNING","env":["A=1"],"forceUpdate":0,"grace":"1m30s","id":"t1","init":false,"labels":{"k":"v"},"meta":{"createdAt":"1970-01-01T00:00:01Z"},"oom":-5,"slot":3}"#
        );
    }

    #[test]
    fn broken_encodings_end() {
        for bytes in [&[0xff][..], &[0x0a, 0x05, 1], &[0x0b], &[0xff; 11]] {
            assert!(split(bytes).is_none(), "{bytes:?}");
        }
    }
}
