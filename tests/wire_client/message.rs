//! A message as a list of named values.

use std::collections::BTreeMap;

/// A value of a field.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Value {
    /// Any integer.
    Number(u64),
    /// A float.
    Float(f32),
    /// A string; a decoded enum's name.
    Text(String),
    /// Bytes.
    Bytes(Vec<u8>),
    /// A message.
    Message(Vec<(String, Value)>),
    /// A repeated field.
    List(Vec<Value>),
    /// A map of strings.
    Map(BTreeMap<String, String>),
}

impl Value {
    /// A message of these fields.
    pub(crate) fn message(fields: Vec<(&str, Value)>) -> Self {
        let fields = fields.into_iter();
        Self::Message(
            fields
                .map(|(name, value)| (name.to_owned(), value))
                .collect(),
        )
    }

    /// The message that this is.
    pub(crate) fn as_message(&self) -> Message {
        match self {
            Self::Message(fields) => Message {
                fields: fields.clone(),
            },
            Self::Number(_)
            | Self::Float(_)
            | Self::Text(_)
            | Self::Bytes(_)
            | Self::List(_)
            | Self::Map(_) => panic!("{self:?} is no message"),
        }
    }
}

/// A decoded message. What is absent reads as its default, as in protobuf.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Message {
    /// Its fields, in the order of the wire.
    pub(crate) fields: Vec<(String, Value)>,
}

impl Message {
    /// Sets a field, or adds to one that is repeated.
    pub(crate) fn put(&mut self, name: &str, value: Value, repeated: bool) {
        let old = self.fields.iter_mut().find(|(known, _)| known == name);
        match (old, repeated) {
            (Some((_, Value::List(list))), true) => list.push(value),
            (Some((_, old)), _) => *old = value,
            (None, true) => self
                .fields
                .push((name.to_owned(), Value::List(vec![value]))),
            (None, false) => self.fields.push((name.to_owned(), value)),
        }
    }

    /// Adds to a map.
    pub(crate) fn put_entry(&mut self, name: &str, key: String, value: String) {
        let old = self.fields.iter_mut().find(|(known, _)| known == name);
        match old {
            Some((_, Value::Map(map))) => drop(map.insert(key, value)),
            Some((_, other)) => panic!("{name} is {other:?}"),
            None => {
                let map = Value::Map([(key, value)].into());
                self.fields.push((name.to_owned(), map));
            }
        }
    }

    fn value(&self, name: &str) -> Option<&Value> {
        let field = self.fields.iter().find(|(known, _)| known == name);
        field.map(|(_, value)| value)
    }

    /// A message in this one.
    pub(crate) fn get(&self, name: &str) -> Message {
        self.value(name).map(Value::as_message).unwrap_or_default()
    }

    /// A string.
    pub(crate) fn text(&self, name: &str) -> String {
        match self.value(name) {
            Some(Value::Text(text)) => text.clone(),
            None => String::new(),
            Some(other) => panic!("{name} is {other:?}"),
        }
    }

    /// The name of an enum's value; empty for its default.
    pub(crate) fn enumerator(&self, name: &str) -> String {
        self.text(name)
    }

    /// An integer.
    pub(crate) fn number(&self, name: &str) -> u64 {
        match self.value(name) {
            Some(Value::Number(number)) => *number,
            None => 0,
            Some(other) => panic!("{name} is {other:?}"),
        }
    }

    /// A float.
    pub(crate) fn float(&self, name: &str) -> f32 {
        match self.value(name) {
            Some(Value::Float(float)) => *float,
            None => 0.0,
            Some(other) => panic!("{name} is {other:?}"),
        }
    }

    /// A map.
    pub(crate) fn map(&self, name: &str) -> BTreeMap<String, String> {
        match self.value(name) {
            Some(Value::Map(map)) => map.clone(),
            None => BTreeMap::new(),
            Some(other) => panic!("{name} is {other:?}"),
        }
    }

    /// A repeated field.
    pub(crate) fn list(&self, name: &str) -> &[Value] {
        match self.value(name) {
            Some(Value::List(list)) => list,
            None => &[],
            Some(other) => panic!("{name} is {other:?}"),
        }
    }
}
