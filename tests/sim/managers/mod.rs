//! Several managers in one thread, on virtual time, from one seed: the real consensus on a network and disks that fail.
//!
//! ```text
//! fate ── kills, cuts, moves, replaces ──► managers  real openraft, log on redb, snapshots, store, control loop
//!                                          │  ▲ │
//!                  clients, agents ──doors─┘  │ └─ disk      page cache: unsynced is lost or torn
//!                        │                    └─── network   real gRPC client and server, messages as bodies
//!                        ▼                         │
//!                     history ── linear?     witness ── order, gaps, same state, one leader a term
//! ```
//!
//! - [`fate`]: what befalls a cluster; one run of a seed.
//! - [`cluster`]: the managers, and the calm in which all must be well again.
//! - [`manager`]: one manager in a process that dies at any disk operation or message.
//! - [`disk`], [`network`]: what it stands on; [`certificates`]: who is let in by whom, and until when.
//! - [`clients`]: who uses it; [`history`]: what they were told; [`witness`]: what watchers saw.
//! - [`scenarios`]: named stories: bugs that others had, and what this simulation found here.
//!
//! A message of openraft's about a "reversed range" is a debug assertion in a stream of a leader that was deposed; it ends
//! that stream, which was about to end.
//!
//! Nothing waits for the world and nothing is random but by the seed, but for keys and nonces, which nothing depends on. So a
//! run is replayed by its seed alone: [`trace`] is the same, byte for byte.

pub(crate) mod certificates;
pub(crate) mod clients;
pub(crate) mod cluster;
pub(crate) mod disk;
pub(crate) mod fate;
pub(crate) mod history;
pub(crate) mod leadership;
pub(crate) mod manager;
pub(crate) mod network;
pub(crate) mod scenarios;
pub(crate) mod trace;
pub(crate) mod witness;
