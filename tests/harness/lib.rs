//! What the tests of the whole share: clusters of real processes ([`cluster`], on the hosts of a [`lab`]).

pub mod cluster;
#[path = "../sim/mod.rs"]
pub mod sim;

pub use lab;
