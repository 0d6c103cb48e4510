//! Why a task could not be prepared, started or stopped.

/// Decides what becomes of a task: see each variant.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The task can't run as it is: REJECTED before it started, FAILED after.
    #[error("{0}")]
    Fatal(String),
    /// Worth trying again: the agent does so after a pause.
    #[error("{0}")]
    Temporary(String),
    /// The runtime can't be reached; tasks stay as they are until it is back.
    #[error("{runtime} is not reachable: {reason}")]
    Unavailable {
        /// Which runtime and where, for example `containerd at unix:///run/containerd/containerd.sock`.
        runtime: String,
        /// What the connection said.
        reason: String,
    },
}
