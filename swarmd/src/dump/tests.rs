//! What a dump shows, what it keeps to itself, and what it says of damage.

use super::*;

#[test]
fn every_secret_of_the_table_is_a_field_there_is() {
    let set = prost_types::FileDescriptorSet::decode(swarm_proto::DESCRIPTORS).unwrap();
    fn fields(scope: &str, message: &prost_types::DescriptorProto, all: &mut Vec<String>) {
        let name = format!("{scope}.{}", message.name());
        all.extend(message.field.iter().map(|f| format!("{name}.{}", f.name())));
        for nested in &message.nested_type {
            fields(&name, nested, all);
        }
    }
    let mut all = Vec::new();
    for file in &set.file {
        for message in &file.message_type {
            fields(file.package(), message, &mut all);
        }
    }
    let unknown: Vec<_> = SECRET
        .iter()
        .filter(|name| !all.iter().any(|f| f == *name))
        .collect();
    assert!(unknown.is_empty(), "{unknown:?}");
}
