//! The control plane in one thread, on virtual time, from one seed.
//!
//! ```text
//! workload ──ops──► world ── queue of what is due ──► leader   real pass, real assignment diff
//!                     │                           └─► hosts    real plan and task step, modelled runtime
//!                     ▼
//!                    log       real apply; a replica from its bytes ──► invariants
//! ```
//!
//! - [`world`]: time, the queue, the network between leader and hosts.
//! - [`log`]: the ordered log and the state it makes; every invariant of a single entry.
//! - [`leader`]: control loop and dispatcher of the manager that leads.
//! - [`host`]: a node: its agent, what is on its disk, what its runtime holds.
//! - [`workload`]: what operators and fate do, and the calm after it.
//! - [`invariants`]: what must hold, said without the code under test.
//!
//! What is modelled rather than real: Raft (an ordered log), gRPC (messages that are late, lost or
//! doubled), the agent's shell around its two pure parts, and the container runtime. Nothing here
//! waits, reads a clock, or is random but by the seed, so a run is replayed by its seed alone.
#![expect(
    clippy::panic,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "fails the test that uses it"
)]

pub mod host;
pub mod invariants;
pub mod leader;
pub mod log;
pub mod random;
pub mod run;
pub mod specs;
pub mod workload;
pub mod world;

pub use world::World;
