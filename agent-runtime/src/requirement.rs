//! What a host has to have, and what it has: the words of `swarmd doctor`.

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Requirement {
    /// What it is: `containerd`, `cgroups`.
    pub what: &'static str,
    /// How it is.
    pub found: Found,
}

/// How a requirement is met.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// It is there; what exactly.
    Met(String),
    /// Tasks run without it, or with less; what to do about it.
    Poor {
        /// What is not as it should be.
        reason: String,
        /// The way out.
        remedy: String,
    },
    /// Nothing runs without it; what to do about it.
    Missing {
        /// What is not there.
        reason: String,
        /// The way out.
        remedy: String,
    },
}

impl Requirement {
    /// It is there.
    pub fn met(what: &'static str, detail: impl Into<String>) -> Self {
        let found = Found::Met(detail.into());
        Self { what, found }
    }

    /// There is less of it than there should be.
    pub fn poor(what: &'static str, reason: impl Into<String>, remedy: impl Into<String>) -> Self {
        let (reason, remedy) = (reason.into(), remedy.into());
        Self {
            what,
            found: Found::Poor { reason, remedy },
        }
    }

    /// It is not there.
    pub fn missing(
        what: &'static str,
        reason: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        let (reason, remedy) = (reason.into(), remedy.into());
        Self {
            what,
            found: Found::Missing { reason, remedy },
        }
    }
}
