//! The types openraft is configured with.
//!
//! openraft is pinned to one alpha and wrapped: outside this directory nobody names its types.

use std::any::Any;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;

/// The number of a manager in consensus. Never reused in a cluster.
pub type RaftId = u64;

/// A manager as the others know it: identity and where to reach it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Member {
    /// The cluster's node id, as in the node's certificate.
    pub node_id: String,
    /// `host:port`, best first. A hint: the certificate is the identity.
    pub addresses: Vec<String>,
}

openraft::declare_raft_types!(
    /// The openraft configuration of the cluster.
    pub(crate) Types:
        D = Command,
        R = Reply,
        NodeId = RaftId,
        Node = Member,
        AsyncRuntime = super::runtime::Runtime,
);

pub(crate) type LogId = openraft::alias::LogIdOf<Types>;
pub(crate) type Vote = openraft::alias::VoteOf<Types>;
pub(crate) type Entry = openraft::alias::EntryOf<Types>;
pub(crate) type EntryPayload = openraft::alias::PayloadOf<Types>;
pub(crate) type StoredMembership = openraft::alias::StoredMembershipOf<Types>;
pub(crate) type Membership = openraft::Membership<RaftId, Member>;
pub(crate) type SnapshotMeta = openraft::alias::SnapshotMetaOf<Types>;
pub(crate) type Snapshot = openraft::alias::SnapshotOf<Types, super::snapshot::SnapshotFile>;

/// What one log entry carries: the store's changes, encoded.
///
/// On the manager that proposed it the decoded changes ride along, so that they aren't decoded a
/// second time when the entry is applied. They are taken by the first apply and are never written
/// or sent.
#[derive(Clone, Default)]
pub struct Command {
    encoded: Bytes,
    decoded: Option<Arc<Decoded>>,
}

type Decoded = Mutex<Option<Box<dyn Any + Send>>>;

impl Command {
    /// A command of which only the encoding is at hand: from the log or from another manager.
    pub fn encoded(encoded: Bytes) -> Self {
        Self {
            encoded,
            decoded: None,
        }
    }

    /// A command with its decoded form, which must be what `encoded` decodes to.
    pub fn with_decoded<T: Send + 'static>(encoded: Bytes, decoded: T) -> Self {
        Self {
            encoded,
            decoded: Some(Arc::new(Mutex::new(Some(Box::new(decoded))))),
        }
    }

    /// The encoded changes.
    pub fn bytes(&self) -> &Bytes {
        &self.encoded
    }

    /// The decoded form, once.
    pub(crate) fn take_decoded<T: 'static>(&self) -> Option<T> {
        let slot = self.decoded.as_ref()?;
        let any = slot.lock().unwrap_or_else(PoisonError::into_inner).take()?;
        any.downcast::<T>().ok().map(|boxed| *boxed)
    }
}

/// The encoding may hold secrets of the cluster: only its size is shown.
impl fmt::Debug for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Command({} bytes)", self.encoded.len())
    }
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

impl PartialEq for Command {
    fn eq(&self, other: &Self) -> bool {
        self.encoded == other.encoded
    }
}

/// What applying an entry answered; opaque to openraft. Empty for entries without a command.
#[derive(Clone, Default)]
pub(crate) struct Reply(Option<Arc<dyn Any + Send + Sync>>);

impl Reply {
    pub(crate) fn new<T: Send + Sync + 'static>(outcome: T) -> Self {
        Self(Some(Arc::new(outcome)))
    }

    pub(crate) fn outcome<T: Send + Sync + 'static>(self) -> Option<Arc<T>> {
        self.0?.downcast::<T>().ok()
    }
}

impl fmt::Debug for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() {
            "Reply(outcome)"
        } else {
            "Reply"
        })
    }
}
