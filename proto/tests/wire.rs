//! Our descriptors and the table of wire facts are the same, row by row, in both directions.
//!
//! A row is kind, parent, name, number, type and label; see `swarmkit-v1.tsv`. What is ours in that
//! package has field numbers from [`OWN_FIELDS`] and is left out of the comparison.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use std::collections::BTreeSet;

use prost::Message as _;
use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{
    DescriptorProto, EnumDescriptorProto, FieldDescriptorProto, FileDescriptorSet,
    ServiceDescriptorProto,
};

const TABLE: &str = include_str!("swarmkit-v1.tsv");
const PACKAGE: &str = "docker.swarmkit.v1";

/// First field number of our own additions to SwarmKit's messages.
const OWN_FIELDS: i32 = 1000;

type Rows = BTreeSet<String>;

fn row(cells: [&str; 6]) -> String {
    cells.join("\t")
}

/// A type's name within the package: `Mount.Type`; types of other packages keep theirs.
fn local(type_name: &str) -> &str {
    let full = type_name.strip_prefix('.').unwrap_or(type_name);
    full.strip_prefix(PACKAGE)
        .and_then(|rest| rest.strip_prefix('.'))
        .unwrap_or(full)
}

fn type_name(field: &FieldDescriptorProto) -> String {
    let kind = field.r#type();
    if matches!(kind, Type::Message | Type::Enum) {
        return local(field.type_name()).to_owned();
    }
    kind.as_str_name()
        .trim_start_matches("TYPE_")
        .to_lowercase()
}

/// The entry type of a map field.
fn map_entry<'a>(
    message: &'a DescriptorProto,
    field: &FieldDescriptorProto,
) -> Option<&'a DescriptorProto> {
    let last = field.type_name().rsplit('.').next()?;
    message
        .nested_type
        .iter()
        .filter(|nested| nested.options.as_ref().is_some_and(|o| o.map_entry()))
        .find(|nested| nested.name() == last)
}

fn field_row(name: &str, message: &DescriptorProto, field: &FieldDescriptorProto) -> String {
    let number = field.number().to_string();
    if let Some(entry) = map_entry(message, field) {
        let types: Vec<String> = entry.field.iter().map(type_name).collect();
        let map = format!("map<{}>", types.join(","));
        return row(["message", name, field.name(), &number, &map, "-"]);
    }
    let label = match (field.label(), field.oneof_index) {
        (Label::Repeated, _) => "repeated".to_owned(),
        (_, Some(_)) if field.proto3_optional() => "optional".to_owned(),
        (_, Some(index)) => {
            let index = usize::try_from(index).unwrap();
            format!("oneof {}", message.oneof_decl[index].name())
        }
        (Label::Required, None) => "required".to_owned(),
        (Label::Optional, None) => "-".to_owned(),
    };
    row([
        "message",
        name,
        field.name(),
        &number,
        &type_name(field),
        &label,
    ])
}

fn add_message(rows: &mut Rows, prefix: &str, message: &DescriptorProto) {
    let name = format!("{prefix}{}", message.name());
    let fields = message
        .field
        .iter()
        .filter(|field| field.number() < OWN_FIELDS);
    rows.extend(fields.map(|field| field_row(&name, message, field)));
    // One that has fields of ours alone is ours.
    if message.field.is_empty() {
        rows.insert(row(["message", &name, "-", "-", "-", "-"]));
    }
    for nested in &message.nested_type {
        if !nested.options.as_ref().is_some_and(|o| o.map_entry()) {
            add_message(rows, &format!("{name}."), nested);
        }
    }
    for nested in &message.enum_type {
        add_enum(rows, &format!("{name}."), nested);
    }
}

fn add_enum(rows: &mut Rows, prefix: &str, values: &EnumDescriptorProto) {
    let name = format!("{prefix}{}", values.name());
    let value_row = |value: &prost_types::EnumValueDescriptorProto| {
        row([
            "enum",
            &name,
            value.name(),
            &value.number().to_string(),
            "-",
            "-",
        ])
    };
    rows.extend(values.value.iter().map(value_row));
}

fn add_service(rows: &mut Rows, service: &ServiceDescriptorProto) {
    for method in &service.method {
        let stream = |streaming: bool, type_name: &str| {
            let stream = if streaming { "stream " } else { "" };
            format!("{stream}{}", local(type_name))
        };
        let request = stream(method.client_streaming(), method.input_type());
        let response = stream(method.server_streaming(), method.output_type());
        rows.insert(row([
            "rpc",
            service.name(),
            method.name(),
            "-",
            &request,
            &response,
        ]));
    }
}

fn ours() -> Rows {
    let set = FileDescriptorSet::decode(swarm_proto::DESCRIPTORS).unwrap();
    let mut rows = Rows::new();
    for file in set.file.iter().filter(|file| file.package() == PACKAGE) {
        assert_eq!(file.syntax(), "proto3", "{}", file.name());
        file.message_type
            .iter()
            .for_each(|message| add_message(&mut rows, "", message));
        file.enum_type
            .iter()
            .for_each(|values| add_enum(&mut rows, "", values));
        file.service
            .iter()
            .for_each(|service| add_service(&mut rows, service));
    }
    rows
}

fn table() -> Rows {
    let lines = TABLE
        .lines()
        .filter(|line| !line.starts_with('#') && !line.is_empty());
    let mut rows = Rows::new();
    for line in lines {
        assert_eq!(line.split('\t').count(), 6, "six cells: {line}");
        assert!(rows.insert(line.to_owned()), "twice: {line}");
    }
    rows
}

#[test]
fn descriptors_are_the_table() {
    let (ours, table) = (ours(), table());
    assert!(table.len() > 900, "the table has {} rows", table.len());
    let missing: Vec<_> = table.difference(&ours).collect();
    let extra: Vec<_> = ours.difference(&table).collect();
    assert!(
        missing.is_empty() && extra.is_empty(),
        "missing: {missing:#?}\nextra: {extra:#?}"
    );
}

/// The table and our files can agree only in what protobuf can tell apart: no number twice.
#[test]
fn every_field_number_is_used_once() {
    let mut seen = BTreeSet::new();
    for line in table() {
        let cells: Vec<&str> = line.split('\t').collect();
        if let ["message", parent, _, number, ..] = cells.as_slice()
            && *number != "-"
        {
            assert!(seen.insert(format!("{parent}#{number}")), "twice: {line}");
        }
    }
}
