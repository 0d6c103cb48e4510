//! Every message, field, enum, value, service and rpc says in a comment what it is for.
//!
//! The comments become the documentation of the generated types, which is the API's reference.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]

use std::collections::BTreeSet;

use prost::Message as _;
use prost_types::{DescriptorProto, EnumDescriptorProto, FileDescriptorProto, FileDescriptorSet};

/// Our packages; the well-known types of protobuf come with their own comments.
const PACKAGES: &[&str] = &["docker.swarmkit.v1", "swarm.v1"];

// Field numbers of descriptor.proto, of which the paths in a file are made.
const FILE_MESSAGE: i32 = 4;
const FILE_ENUM: i32 = 5;
const FILE_SERVICE: i32 = 6;
const MESSAGE_FIELD: i32 = 2;
const MESSAGE_MESSAGE: i32 = 3;
const MESSAGE_ENUM: i32 = 4;
const MESSAGE_ONEOF: i32 = 8;
const ENUM_VALUE: i32 = 2;
const SERVICE_METHOD: i32 = 2;

/// What lacks a comment in one file.
struct Bare {
    commented: BTreeSet<Vec<i32>>,
    names: Vec<String>,
}

impl Bare {
    fn check(&mut self, path: &[i32], name: String) {
        if !self.commented.contains(path) {
            self.names.push(name);
        }
    }

    fn message(&mut self, path: &[i32], name: &str, message: &DescriptorProto) {
        self.check(path, name.to_owned());
        for (i, field) in message.field.iter().enumerate() {
            self.check(
                &below(path, MESSAGE_FIELD, i),
                format!("{name}.{}", field.name()),
            );
        }
        for (i, oneof) in message.oneof_decl.iter().enumerate() {
            // An optional field is a oneof that nobody wrote.
            if !oneof.name().starts_with('_') {
                self.check(
                    &below(path, MESSAGE_ONEOF, i),
                    format!("{name}.{}", oneof.name()),
                );
            }
        }
        for (i, nested) in message.nested_type.iter().enumerate() {
            if !nested.options.as_ref().is_some_and(|o| o.map_entry()) {
                let name = format!("{name}.{}", nested.name());
                self.message(&below(path, MESSAGE_MESSAGE, i), &name, nested);
            }
        }
        for (i, nested) in message.enum_type.iter().enumerate() {
            let name = format!("{name}.{}", nested.name());
            self.values(&below(path, MESSAGE_ENUM, i), &name, nested);
        }
    }

    fn values(&mut self, path: &[i32], name: &str, values: &EnumDescriptorProto) {
        self.check(path, name.to_owned());
        for (i, value) in values.value.iter().enumerate() {
            self.check(
                &below(path, ENUM_VALUE, i),
                format!("{name}.{}", value.name()),
            );
        }
    }
}

fn below(path: &[i32], number: i32, index: usize) -> Vec<i32> {
    let index = i32::try_from(index).unwrap();
    path.iter().copied().chain([number, index]).collect()
}

fn bare(file: &FileDescriptorProto) -> Vec<String> {
    let locations = &file
        .source_code_info
        .as_ref()
        .expect("protox keeps comments")
        .location;
    let commented = locations
        .iter()
        .filter(|location| !location.leading_comments().trim().is_empty())
        .map(|location| location.path.clone())
        .collect();
    let mut bare = Bare {
        commented,
        names: Vec::new(),
    };
    for (i, message) in file.message_type.iter().enumerate() {
        bare.message(&below(&[], FILE_MESSAGE, i), message.name(), message);
    }
    for (i, values) in file.enum_type.iter().enumerate() {
        bare.values(&below(&[], FILE_ENUM, i), values.name(), values);
    }
    for (i, service) in file.service.iter().enumerate() {
        let path = below(&[], FILE_SERVICE, i);
        bare.check(&path, service.name().to_owned());
        for (j, method) in service.method.iter().enumerate() {
            let name = format!("{}.{}", service.name(), method.name());
            bare.check(&below(&path, SERVICE_METHOD, j), name);
        }
    }
    bare.names
}

#[test]
fn everything_on_the_wire_says_what_it_is_for() {
    let set = FileDescriptorSet::decode(swarm_proto::DESCRIPTORS).unwrap();
    let ours = set
        .file
        .iter()
        .filter(|file| PACKAGES.contains(&file.package()));
    let missing: Vec<String> = ours
        .flat_map(|file| {
            bare(file)
                .into_iter()
                .map(|name| format!("{}: {name}", file.name()))
        })
        .collect();
    assert!(missing.is_empty(), "without a comment: {missing:#?}");
}
