//! Hosts, containerd, registry and swarmd of a whole cluster on one machine.
//!
//! ```text
//!   this machine ── 10.x.y.1 ──┐            containerd: one, with its own root, state and socket
//!                          [switch]         registry:   on 10.x.y.1, http :5080 and https :5443
//!              ┌───────┬───────┴┬───────┐
//!             n1      n2       n3      n4   hosts: network namespaces at 10.x.y.11, .12, …
//!           swarmd  swarmd   swarmd  swarmd     each with a containerd namespace of its own
//! ```
//!
//! The [`site`] names everything a lab makes (directories, network namespaces, containerd namespaces) after
//! the lab, so [`sweep`] finds what is left of it from the machine's state alone, whatever became of
//! the process that made it. Ending a lab, `make demo-down` and cleaning up after a crashed test
//! run are therefore the same code, and so is the check that nothing is left.
//!
//! Hosts share the files of this machine, and one containerd. A [`machine`] is a host that does not: packages are installed
//! and daemons run on it as on a computer of its own.
//!
//! The switch is a bridge in a network namespace of its own: the firewall of this machine (whose FORWARD
//! policy is DROP once a Docker Engine has run) does not see traffic between hosts.
//!
//! Read next: [`lab::Lab`] for tests, [`demo`] for the demo.

pub mod binaries;
pub mod command;
pub mod containerd;
pub mod demo;
mod error;
pub mod http;
pub mod image;
pub mod lab;
pub mod machine;
pub mod network;
pub mod node;
pub mod process;
pub mod registry;
mod registry_client;
pub mod signing;
pub mod site;
pub mod sweep;
mod tar;
pub mod wait;

pub use error::Error;
pub use lab::Lab;
pub use machine::Machine;
pub use node::{Node, Output};
pub use wait::{eventually, until};
