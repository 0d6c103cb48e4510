//! What a manager measures of itself: how long its parts take, in the shell around what decides.
//!
//! Names and meanings are in docs/metrics.md. Those of consensus are with consensus ([`super::raft::RaftLatencies`]).

use crate::latency::Histogram;

/// One histogram each.
#[derive(Debug, Default)]
pub(crate) struct Latencies {
    /// A write: until it is applied here, or refused.
    pub(crate) write: Histogram,
    /// A read of the newest state: until that is known to be here.
    pub(crate) read: Histogram,
    /// All that one pass wants, in as many entries as it takes.
    pub(crate) batch: Histogram,
    /// One pass.
    pub(crate) pass: Histogram,
    /// A task, from its making until it runs.
    pub(crate) scheduling: Histogram,
    /// A node's report: until it is written.
    pub(crate) status: Histogram,
    /// News for a node: from the commit until its connection takes them.
    pub(crate) assignment: Histogram,
}
