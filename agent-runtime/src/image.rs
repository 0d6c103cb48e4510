//! The images of one node, as its operator sees and changes them.

use std::time::Duration;

use bytes::Bytes;
use futures::stream::BoxStream;
use swarm_proto::registry_auth::Credentials;
use tokio::sync::watch;

use crate::error::Error;

/// An image on this node.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LocalImage {
    /// Its full name, `docker.io/library/nginx:1.27`.
    pub name: String,
    /// Digest of its manifest or index.
    pub digest: String,
    /// Bytes of its parts as they are stored, compressed where they are.
    pub size: u64,
    /// When it was built, in RFC 3339; empty where it does not say.
    pub created: String,
    /// When a task used it last, or it came here: seconds since 1970.
    pub used_s: u64,
    /// Ids of the tasks on this node that use it.
    pub tasks: Vec<String>,
}

/// How far a pull is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PullState {
    /// Bytes that are there.
    pub done: u64,
    /// Bytes in all; zero until that is known.
    pub total: u64,
    /// In words; also what holds it up.
    pub text: String,
}

/// The images of one node.
#[tonic::async_trait]
pub trait ImageStore: Send + Sync + std::fmt::Debug {
    /// All of them, by name.
    async fn list(&self) -> Result<Vec<LocalImage>, Error>;

    /// Brings an image in, as the registry has it now.
    async fn pull(
        &self,
        name: &str,
        credentials: Credentials,
        told: watch::Sender<PullState>,
    ) -> Result<LocalImage, Error>;

    /// Brings in the images of an archive, as OCI tools or `docker save` write it. A name given
    /// here is for the only image of an archive that names none.
    async fn import(
        &self,
        archive: BoxStream<'static, Result<Bytes, Error>>,
        name: Option<&str>,
    ) -> Result<Vec<LocalImage>, Error>;

    /// Removes an image by its full name. One that tasks use stays, unless forced; its layers stay
    /// as long as they run.
    async fn remove(&self, name: &str, force: bool) -> Result<(), Error>;
}

/// When images that nobody uses go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Collection {
    /// One that was not used for this long goes. None: only disk pressure counts.
    pub age: Option<Duration>,
    /// Disk usage in percent that begins a collection: those that were not used for the longest go
    /// first.
    pub high_percent: u8,
    /// Disk usage in percent that ends it.
    pub low_percent: u8,
    /// One that was used within this time stays in any case.
    pub minimum_age: Duration,
}

impl Default for Collection {
    /// The thresholds and the minimum age are kubelet's; a week is long enough for a task that
    /// comes back after a weekend.
    fn default() -> Self {
        Self {
            age: Some(Duration::from_hours(7 * 24)),
            high_percent: 85,
            low_percent: 80,
            minimum_age: Duration::from_mins(2),
        }
    }
}
