//! What a node reports of itself, taken as it is: a worker's word is data, never an error.

use std::collections::BTreeSet;

use crate::pb;
use crate::pb::generic_resource::Resource as Wire;
use crate::placement::{Platform, normal_arch, normal_os};
use crate::resources::{Generic, Resources};

impl Resources {
    /// What a node reports. Negative amounts count as nothing; a kind reported both as a count and
    /// by names counts by its names.
    pub fn from_wire(wire: &pb::Resources) -> Self {
        let mut resources = Self {
            nano_cpus: wire.nano_cpus.max(0),
            memory_bytes: wire.memory_bytes.max(0),
            ..Self::default()
        };
        for generic in &wire.generic {
            match &generic.resource {
                Some(Wire::NamedResourceSpec(named)) => {
                    let held = resources
                        .generic
                        .entry(named.kind.clone())
                        .or_insert_with(|| Generic::Names(BTreeSet::new()));
                    if let Generic::Count(_) = held {
                        *held = Generic::Names(BTreeSet::new());
                    }
                    if let Generic::Names(names) = held {
                        names.insert(named.value.clone());
                    }
                }
                Some(Wire::DiscreteResourceSpec(discrete)) => {
                    let count = Generic::Count(u64::try_from(discrete.value).unwrap_or(0));
                    resources
                        .generic
                        .entry(discrete.kind.clone())
                        .or_insert(count);
                }
                None => {}
            }
        }
        resources
    }
}

impl Platform {
    /// A platform in normal form, of a node or an image: `x86_64` is `amd64`, `aarch64` is `arm64`.
    pub fn from_wire(wire: &pb::Platform) -> Self {
        Self {
            os: normal_os(&wire.os),
            arch: normal_arch(&wire.architecture),
        }
    }
}
