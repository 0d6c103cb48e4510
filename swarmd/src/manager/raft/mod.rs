//! Consensus between the managers: the log, its replication, and the single door for writes.
//!
//! ```text
//! propose.rs      the door: bounded, retries what is transient, says why it failed
//!   openraft      the protocol (pinned, wrapped: its types don't leave this directory)
//!     log_store.rs > log_writer.rs > log_file.rs   tail in memory > group commit > sealed records
//!     state_machine.rs > Machine                   apply, publish, answer
//!     snapshot.rs > snapshot_file.rs               sealed, streamed, replaced atomically
//!     network.rs, server.rs, transfer.rs, wire.rs  the other managers
//! node.rs         starts and stops all that; status.rs who leads and where it stands
//! membership.rs   who takes part; whereabouts.rs where they say they are
//! dir.rs          what lies on disk; encryption.rs how it is sealed, dek_file.rs, rotation.rs by which key
//! disk.rs         real or simulated, as runtime.rs
//! gate.rs         no message between the lives of a cluster (epoch.rs) gets through
//! offline.rs      what a stopped member knew; rebuild.rs a new cluster of one out of that; former.rs who was left behind
//! ```
//!
//! An acknowledged write is durable on a majority, and applied where it was proposed.

mod config;
mod database;
mod dek_file;
mod dial;
mod dir;
mod disk;
mod encryption;
mod epoch;
mod error;
mod former;
mod freshness;
mod gate;
mod log_file;
mod log_store;
mod log_tail;
mod log_writer;
mod membership;
mod network;
mod node;
mod offline;
mod propose;
mod quiet;
mod rebuild;
mod rotation;
mod runtime;
mod server;
mod snapshot;
mod snapshot_file;
mod state_machine;
mod status;
mod transfer;
mod types;
mod whereabouts;
mod wire;

#[cfg(test)]
mod tests;

pub use config::{ConfigError, RaftConfig, SnapshotLimits, Timing};
pub use dial::{DialError, Dialer, Line, LineError, PlainDialer, manager_endpoint};
pub(crate) use dir::{DIR, check_key};
pub use disk::{Disk, SimulatedDisk, SimulatedFile};
pub use epoch::Epoch;
pub use error::StorageError;
pub(crate) use former::{Former, left_behind, read as read_former, write as write_former};
pub use gate::Fenced;
pub(crate) use gate::{Gate, Sender, put as put_epoch};
pub use membership::{Membership, MembershipError};
pub(crate) use node::RaftLatencies;
pub use node::{RaftNode, Start, StartError};
pub(crate) use offline::{Kind, Offline, Survey, Surveyed, SurveyedEntry};
pub use propose::{MAX_COMMAND, ProposeError, Proposed, Proposer, TARGET_COMMAND};
pub(crate) use rebuild::{Rebuilt, forget, forget_replaced, is_forced, put_in_place, settle};
pub(crate) use rotation::RaftKeys;
pub(crate) use server::FencedService;
pub use server::RaftService;
pub use state_machine::{Machine, MachineError, Published};
pub use status::{Leadership, MemberStatus, RaftStatus};
pub use types::{Command, Member, RaftId};
pub(crate) use whereabouts::{Heard, Whereabouts, is_unspecified, resolve};
