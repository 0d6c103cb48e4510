//! The cluster's state and the only ways to change it.
//!
//! ```text
//! Entry { now, changes } --apply--> State (a value) + events --> watchers
//! ```
//!
//! - [`state`]: the objects and their indexes; an immutable view is a clone of [`State`].
//! - [`change`]: the closed set of changes.
//! - [`mod@apply`]: pure, total, deterministic; every check is there.
//! - [`index`]: the only places where objects enter and leave, keeping the indexes true.
//!
//! - [`codec`], [`snapshot`]: the log's and the snapshots' bytes.
//! - [`watch`]: who is told what changed.
//!
//! Nothing here reads a clock, waits, or decides what should happen: that is the pass.

pub mod apply;
pub mod change;
pub mod codec;
pub mod index;
pub mod machine;
mod record;
pub mod snapshot;
pub mod state;
#[cfg(test)]
pub(crate) mod testing;
pub mod watch;

pub use apply::{Applied, Rejected, apply, apply_one};
pub use change::{Change, Entry, NewTask, Placement, Report};
pub use index::Event;
pub use state::{
    Cluster, Container, ManagerNote, Meta, Node, NodeStatus, Retirement, Service, State, Status,
    Task, Text, Update, Usage,
};
