//! Image registries: where an image is asked for, who to be there, and its bytes.
//!
//! ```text
//! reference -> endpoints: mirrors, then the registry itself      (endpoint)
//!           -> credentials: the service's, else the node's file  (node_credentials)
//!           -> manifest, by the first endpoint that answers      (open)
//!           -> blobs, resumed where a connection breaks          (blob)
//! ```
//!
//! Rules, which are Docker's where it has one: a registry on a loopback address, or one that is
//! named as insecure, may answer over HTTPS with any certificate or over plain HTTP; every other
//! one must answer over HTTPS with a certificate that verifies. The same holds for token servers,
//! each by its own host. Credentials go nowhere that a registry redirects to. A digest decides what
//! bytes are right, wherever they come from.
//!
//! What may pass is tried again: no connection, a broken one, 408, 429 and 5xx, after growing
//! pauses or after what the registry asks for, and a bounded number of times. 401, 403 and 404 are
//! answers and end it at once. Nothing here logs or shows a credential.

mod auth;
mod blob;
mod certificates;
mod connection;
mod digest;
mod endpoint;
mod node_credentials;
mod open;
mod progress;
#[cfg(test)]
mod tests;
mod trouble;

use std::path::PathBuf;
use std::time::Duration;

pub use endpoint::{InvalidMirror, Mirror};
pub use open::{Fetched, Patience, Session};
pub use progress::Progress;

pub(crate) use blob::Source;
pub(crate) use digest::{digest, is_digest, matches, sha256_of};

/// What is accepted from a registry.
pub(crate) const MANIFEST_TYPES: &str = "application/vnd.oci.image.index.v1+json, \
     application/vnd.oci.image.manifest.v1+json, \
     application/vnd.docker.distribution.manifest.list.v2+json, \
     application/vnd.docker.distribution.manifest.v2+json";
/// Registries refuse larger manifests; so do we. Bytes.
pub(crate) const MANIFEST_MAX: usize = 4 << 20;

/// How registries are reached from this node.
#[derive(Debug, Clone, Default)]
pub struct Registries {
    /// Registries that may answer over plain HTTP or with any certificate: `host`, `host:port`,
    /// address or CIDR. Loopback addresses always may, as in Docker.
    pub insecure: Vec<String>,
    /// PEM file with CA certificates that all registries are trusted by, besides the system's.
    pub ca: Option<PathBuf>,
    /// Directory with one directory a registry (`host` or `host:port`), as Docker's
    /// `/etc/docker/certs.d`: `*.crt` are CA certificates, `*.cert` and `*.key` a client's.
    pub certificates: Option<PathBuf>,
    /// Docker's `config.json`, for images whose service brings no credentials.
    pub credentials: Option<PathBuf>,
    /// Asked before the registry itself.
    pub mirrors: Vec<Mirror>,
    /// How long they are waited for, and how often.
    pub backoff: Backoff,
}

/// How long an answer is waited for, and how often and after which pauses it is asked for again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backoff {
    /// The first pause; each one after it is twice as long.
    pub first: Duration,
    /// Tries in all.
    pub tries: u32,
    /// Silence on a connection for this long is the end of it.
    pub silence: Duration,
}

impl Default for Backoff {
    /// Pauses of 0.5, 1, 2 and 4 seconds: a registry that restarts is back within them. A longer
    /// absence is the orchestrator's affair, which may know a node that is better off.
    fn default() -> Self {
        Self {
            first: Duration::from_millis(500),
            tries: 5,
            silence: Duration::from_secs(30),
        }
    }
}
