//! The table of SwarmKit's wire, and protobuf's encoding by it.

use std::collections::BTreeMap;

use super::message::{Message, Value};

const TABLE: &str = include_str!("../../proto/tests/swarmkit-v1.tsv");

/// Types of the wire that the table takes from elsewhere: both are seconds and nanos.
const WELL_KNOWN: [&str; 2] = ["google.protobuf.Duration", "google.protobuf.Timestamp"];

/// Messages, enums and calls by name.
#[derive(Debug, Clone)]
pub(crate) struct Table {
    messages: BTreeMap<String, Vec<Field>>,
    enums: BTreeMap<String, BTreeMap<i64, String>>,
    calls: BTreeMap<(String, String), (String, String)>,
}

#[derive(Debug, Clone)]
struct Field {
    name: String,
    number: u64,
    kind: String,
    repeated: bool,
}

impl Table {
    /// Reads the table.
    pub(crate) fn read() -> Self {
        let mut table = Self {
            messages: BTreeMap::new(),
            enums: BTreeMap::new(),
            calls: BTreeMap::new(),
        };
        for name in WELL_KNOWN {
            for (field, number, kind) in [("seconds", 1, "int64"), ("nanos", 2, "int32")] {
                table.field(name, [field, &format!("{number}"), kind, "-"]);
            }
        }
        for row in TABLE.lines().filter(|row| !row.starts_with('#')) {
            let cells: Vec<&str> = row.split('\t').collect();
            match cells.as_slice() {
                ["message", parent, "-", ..] => {
                    table.messages.entry((*parent).to_owned()).or_default();
                }
                ["message", parent, rest @ ..] => {
                    let [name, number, kind, label] = rest else {
                        panic!("{row}");
                    };
                    table.field(parent, [name, number, kind, label]);
                }
                ["enum", parent, name, number, ..] => {
                    let values = table.enums.entry((*parent).to_owned()).or_default();
                    values.insert(number.parse().unwrap(), (*name).to_owned());
                }
                ["rpc", service, method, _, request, answer] => {
                    let call = ((*service).to_owned(), (*method).to_owned());
                    let types = ((*request).to_owned(), (*answer).to_owned());
                    table.calls.insert(call, types);
                }
                [""] => {}
                _ => panic!("unexpected row: {row}"),
            }
        }
        table
    }

    fn field(&mut self, parent: &str, [name, number, kind, label]: [&str; 4]) {
        let fields = self.messages.entry(parent.to_owned()).or_default();
        fields.push(Field {
            name: name.to_owned(),
            number: number.parse().unwrap(),
            kind: kind.to_owned(),
            repeated: label == "repeated",
        });
    }

    /// The calls of a service that are no streams.
    pub(crate) fn methods(&self, service: &str) -> Vec<String> {
        let calls = self.calls.iter().filter(|((of, _), _)| of == service);
        let unary = calls.filter(|(_, (request, answer))| {
            !request.starts_with("stream ") && !answer.starts_with("stream ")
        });
        unary.map(|((_, method), _)| method.clone()).collect()
    }

    /// Request and answer of a call.
    pub(crate) fn call(&self, service: &str, method: &str) -> (String, String) {
        self.calls[&(service.to_owned(), method.to_owned())].clone()
    }

    /// A message as bytes.
    pub(crate) fn encode(&self, name: &str, fields: &[(String, Value)]) -> Vec<u8> {
        let mut out = Vec::new();
        for (field, value) in fields {
            let field = self.fields(name).iter().find(|known| known.name == *field);
            let field = field.unwrap_or_else(|| panic!("{name} has no such field: {fields:?}"));
            match value {
                Value::List(values) => {
                    for value in values {
                        self.encode_value(&mut out, field, value);
                    }
                }
                Value::Map(map) => {
                    for (key, value) in map {
                        let mut entry = Vec::new();
                        put_bytes(&mut entry, 1, key.as_bytes());
                        put_bytes(&mut entry, 2, value.as_bytes());
                        put_bytes(&mut out, field.number, &entry);
                    }
                }
                Value::Number(_)
                | Value::Float(_)
                | Value::Text(_)
                | Value::Bytes(_)
                | Value::Message(_) => self.encode_value(&mut out, field, value),
            }
        }
        out
    }

    fn encode_value(&self, out: &mut Vec<u8>, field: &Field, value: &Value) {
        match value {
            Value::Number(number) => {
                put_varint(out, field.number << 3);
                put_varint(out, *number);
            }
            Value::Float(float) => {
                put_varint(out, field.number << 3 | 5);
                out.extend(float.to_le_bytes());
            }
            Value::Text(text) => put_bytes(out, field.number, text.as_bytes()),
            Value::Bytes(bytes) => put_bytes(out, field.number, bytes),
            Value::Message(fields) => {
                put_bytes(out, field.number, &self.encode(&field.kind, fields));
            }
            Value::List(_) | Value::Map(_) => panic!("{}: a list of lists", field.name),
        }
    }

    fn fields(&self, name: &str) -> &[Field] {
        self.messages
            .get(name)
            .unwrap_or_else(|| panic!("no message {name} in the table"))
    }

    /// A message from bytes. What the table does not name is skipped, as protobuf demands.
    pub(crate) fn decode(&self, name: &str, bytes: &[u8]) -> Message {
        let mut message = Message::default();
        let mut rest = bytes;
        while !rest.is_empty() {
            let tag = take_varint(&mut rest);
            let raw = take(&mut rest, tag & 7);
            let field = self.fields(name).iter().find(|f| f.number == tag >> 3);
            if let Some(field) = field {
                self.decode_field(&mut message, field, raw);
            }
        }
        message
    }

    fn decode_field(&self, message: &mut Message, field: &Field, raw: Raw<'_>) {
        if field.kind.starts_with("map<") {
            let Raw::Bytes(mut entry) = raw else {
                panic!("{}: a map entry has another wire type", field.name);
            };
            let (mut key, mut value) = (String::new(), String::new());
            while !entry.is_empty() {
                let tag = take_varint(&mut entry);
                let Raw::Bytes(bytes) = take(&mut entry, tag & 7) else {
                    continue;
                };
                let text = String::from_utf8_lossy(bytes).into_owned();
                *(if tag >> 3 == 1 { &mut key } else { &mut value }) = text;
            }
            message.put_entry(&field.name, key, value);
            return;
        }
        let value = match (field.kind.as_str(), raw) {
            ("string", Raw::Bytes(bytes)) => {
                Value::Text(String::from_utf8(bytes.to_vec()).unwrap())
            }
            ("bytes", Raw::Bytes(bytes)) => Value::Bytes(bytes.to_vec()),
            ("float", Raw::Four(bytes)) => Value::Float(f32::from_le_bytes(bytes)),
            (kind, Raw::Varint(number)) => match self.enums.get(kind) {
                Some(values) => {
                    let name = i64::try_from(number).ok().and_then(|n| values.get(&n));
                    Value::Text(name.map_or_else(|| format!("{kind} {number}"), Clone::clone))
                }
                None => Value::Number(number),
            },
            (kind, Raw::Bytes(bytes)) if self.messages.contains_key(kind) => {
                Value::Message(self.decode(kind, bytes).fields)
            }
            // Numbers that are packed, and fixed ones, are in no message that is looked at.
            (_, Raw::Bytes(bytes)) => Value::Bytes(bytes.to_vec()),
            (_, Raw::Four(_) | Raw::Eight) => return,
        };
        message.put(&field.name, value, field.repeated);
    }
}

/// A value as it is on the wire.
enum Raw<'a> {
    Varint(u64),
    Eight,
    Bytes(&'a [u8]),
    Four([u8; 4]),
}

fn take<'a>(rest: &mut &'a [u8], wire_type: u64) -> Raw<'a> {
    match wire_type {
        0 => Raw::Varint(take_varint(rest)),
        1 => {
            *rest = &rest[8..];
            Raw::Eight
        }
        2 => {
            let len = usize::try_from(take_varint(rest)).unwrap();
            let (bytes, after) = rest.split_at(len);
            *rest = after;
            Raw::Bytes(bytes)
        }
        5 => {
            let (bytes, after) = rest.split_at(4);
            *rest = after;
            Raw::Four(bytes.try_into().unwrap())
        }
        other => panic!("wire type {other}"),
    }
}

fn take_varint(rest: &mut &[u8]) -> u64 {
    let mut number = 0;
    for shift in (0..64).step_by(7) {
        let (byte, after) = rest.split_first().unwrap();
        *rest = after;
        number |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            break;
        }
    }
    number
}

fn put_varint(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(number.to_le_bytes()[0] | 0x80);
        number >>= 7;
    }
    out.push(number.to_le_bytes()[0]);
}

fn put_bytes(out: &mut Vec<u8>, field: u64, bytes: &[u8]) {
    put_varint(out, field << 3 | 2);
    put_varint(out, bytes.len() as u64);
    out.extend(bytes);
}
