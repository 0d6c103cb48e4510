//! One daemon per host: manager, worker, or both.
//!
//! - [`config`]: flags, environment and file, checked at once.
//! - [`node`]: who this node is; starts and stops manager and agent.
//! - [`manager`]: one log, one writer, one pass. [`agent`]: runs the tasks it is given. They never
//!   import each other: also on the same host they meet over gRPC.
//! - [`images`]: this node's images, and what tags mean.
//! - `metrics`: what Prometheus is told; `latency`: how long things take.
//! - [`ca`]: identity, certificates, TLS. [`seal`]: secrets on disk. [`clock`]: the only clock.
//! - [`process`]: what a simulation needs to run several daemons in one thread.

pub mod agent;
pub mod ca;
pub mod clock;
pub mod config;
mod control;
mod daemon;
mod doctor;
mod dump;
mod executors;
mod host;
pub mod images;
mod latency;
pub mod manager;
mod metrics;
pub mod node;
pub mod operator;
pub mod process;
mod restore;
pub mod seal;
mod service_manager;
pub mod state_dir;
pub mod worker_api;

pub use daemon::run;
