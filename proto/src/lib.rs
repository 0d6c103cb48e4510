//! The vocabulary of the cluster: what is on the wire, and what deciding code works with.
//!
//! - [`pb`] is SwarmKit's wire, package `docker.swarmkit.v1`; [`own`] is ours, `swarm.v1`: services
//!   for operators and managers, and the records of log and snapshots. Both are generated from the
//!   `.proto` files beside `src`, whose comments are the reference of the API.
//! - [`id`], [`time`] and [`name`]: what every object has.
//! - [`service`], [`node`] and [`cluster`]: specs, parsed. [`placement`] and [`resources`] are the
//!   parts that the scheduler reads, [`task_state`] the life of a task and who may move it.
//! - [`unserved`]: what specs may ask for and no node of this version does.
//! - [`log_driver`]: what becomes of a container's output.
//! - [`json`]: any message as JSON, by its descriptors.
//! - [`external_ca`]: external CAs as operators say them; [`fields`]: the CSV of long flag values.
//! - [`amount`]: sizes, counts and times as texts.
//! - [`reference`](mod@reference), [`signal`], [`privileges`], [`registry_auth`]: small languages
//!   inside a container's spec.
//!
//! A spec is parsed once, where a request arrives: `TryFrom` the wire names every bad field at once
//! ([`service::InvalidSpec`]), refuses what it does not know, and fills in defaults. From there on
//! types carry the proof. What is only forwarded, such as a container's spec, stays in its wire
//! form. No IO here, no clock, no randomness.
//!
//! # Adding an object
//!
//! 1. Its messages and rpcs in `proto/docker/swarmkit/v1` if SwarmKit has them, else in
//!    `proto/swarm/v1`, each with a comment; its record in `store.proto`.
//! 2. Its id's kind in [`id`], and its parsed spec in a file of its own here, with the table of
//!    what it refuses.
//! 3. Its changes in `swarmd/src/manager/store`: a variant of `Change`, its arm in `apply`, its
//!    record, its index.
//! 4. The step of the pass that decides on it, if any, in `swarmd/src/manager`.
//! 5. Its file in `swarmd/src/manager/controlapi`, and its rpcs' line in the authorisation table.
//! 6. Its noun in `swarmctl/src/command`, with a transcript for every verb.
//!
//! Matches are exhaustive and the tables are compared with the descriptors, so what is forgotten
//! does not build or fails a test.

pub mod amount;
pub mod cluster;
mod codec;
mod constraint;
mod container;
pub mod defaults;
mod dependencies;
pub mod described;
pub mod external_ca;
pub mod fields;
mod generic;
mod health;
pub mod id;
mod invalid;
pub mod json;
pub mod log_driver;
mod mounts;
pub mod name;
pub mod node;
pub mod placement;
mod ports;
pub mod privileges;
pub mod reference;
pub mod registry_auth;
pub mod resources;
mod restart;
pub mod service;
pub mod signal;
pub mod stale;
pub mod task_state;
pub mod time;
pub mod ulimit;
pub mod unserved;
mod update;

/// Generated code, in the modules that its packages name: it refers to itself by them.
#[allow(
    missing_debug_implementations,
    missing_docs,
    unreachable_pub,
    clippy::all,
    clippy::pedantic,
    clippy::restriction,
    rustdoc::all,
    reason = "generated code"
)]
mod generated {
    pub mod docker {
        pub mod swarmkit {
            pub mod v1 {
                tonic::include_proto!("docker.swarmkit.v1");
            }
        }
    }
    pub mod swarm {
        pub mod v1 {
            tonic::include_proto!("swarm.v1");
        }
    }
}

/// SwarmKit's wire: package `docker.swarmkit.v1`.
pub use generated::docker::swarmkit::v1 as pb;
/// Our own wire and storage: package `swarm.v1`.
pub use generated::swarm::v1 as own;

/// The encoded `FileDescriptorSet` of everything above.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
