//! Metadata of reads that the manager at hand answers without asking the leader.

/// On a request: answer from what this manager has.
pub const STALE: &str = "swarm-stale";
/// On the answer: the index of the log that the state is of.
pub const INDEX: &str = "swarm-stale-index";
/// On the answer: the most by which the state may lag, in milliseconds; absent where this manager has heard no leader since
/// it started.
pub const AGE_MS: &str = "swarm-stale-age-ms";
