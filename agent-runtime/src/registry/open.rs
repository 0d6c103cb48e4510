//! Opens an image at the first endpoint that has it.

use std::sync::Arc;

use bytes::Bytes;
use swarm_proto::reference::Reference;
use swarm_proto::registry_auth::Credentials;

use super::connection::{Caller, Connection};
use super::progress::Progress;
use super::trouble::{Trouble, Verdict, again};
use super::{Backoff, Registries, is_digest};
use crate::error::Error;

/// Whether a registry that does not answer is asked again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Patience {
    /// As the node's [`Backoff`] says.
    Patient,
    /// Never: there is something to fall back on.
    Once,
}

/// A manifest as a registry has it.
#[derive(Debug, Clone)]
pub struct Fetched {
    /// Its digest, verified.
    pub digest: String,
    /// Its bytes.
    pub body: Bytes,
}

/// An image at the registry that answered for it.
#[derive(Debug, Clone)]
pub struct Session {
    /// What answered first, then what else may have it.
    pub(super) connections: Arc<Vec<Connection>>,
    pub(super) registry: String,
    pub(super) backoff: Backoff,
    pub(super) progress: Arc<Progress>,
}

impl Registries {
    /// The manifest (or index) that a reference names, and the session to fetch the rest by.
    ///
    /// # Errors
    /// [`Error::Fatal`], with the registry, the reason and the number of tries.
    pub async fn open(
        &self,
        reference: &Reference,
        given: &Credentials,
        (patience, progress): (Patience, Arc<Progress>),
    ) -> Result<(Session, Fetched), Error> {
        let registry = reference.registry.clone();
        let failed = |reason: String| Error::Fatal(format!("registry {registry}: {reason}"));
        let backoff = match patience {
            Patience::Patient => self.backoff,
            Patience::Once => Backoff {
                tries: 1,
                ..self.backoff
            },
        };
        let mut connections = self.connections(reference, given);
        for attempt in 1.. {
            let (at, trouble) = match first_answer(&connections, reference.version()).await {
                Ok((at, fetched)) => {
                    connections.drain(..at);
                    return Ok((
                        Session {
                            connections: Arc::new(connections),
                            registry: registry.clone(),
                            backoff: self.backoff,
                            progress,
                        },
                        fetched,
                    ));
                }
                Err(failed) => failed,
            };
            let verdict = backoff.verdict(&trouble, attempt);
            let Verdict::Again(pause) = verdict else {
                let words = backoff.last_words(&trouble, attempt);
                return Err(failed(with_mirrors(words, &connections)));
            };
            let words = again(&trouble, pause, (attempt, backoff.tries));
            tracing::info!(registry, endpoint = at, "{words}");
            progress.say(Some(format!("registry {registry}: {words}")));
            tokio::time::sleep(pause).await;
        }
        Err(failed("no try is left".to_owned()))
    }

    fn connections(&self, reference: &Reference, given: &Credentials) -> Vec<Connection> {
        let registries = Arc::new(self.clone());
        let own = Arc::new(Caller::new(&reference.registry, given.clone()));
        let endpoints = self.endpoints(reference).into_iter();
        let connections = endpoints.map(|endpoint| {
            // A registry's credentials are none of its mirror's business.
            let caller = match &endpoint.mirror_of {
                Some(_) => Arc::new(Caller::new(&endpoint.host, Credentials::Anonymous)),
                None => Arc::clone(&own),
            };
            let of = (reference.path.as_str(), caller);
            Connection::new(endpoint, Arc::clone(&registries), of)
        });
        connections.collect()
    }
}

/// The last words on an image, and which mirrors could not even be asked: that is for the operator
/// of this node to mend.
fn with_mirrors(mut words: String, connections: &[Connection]) -> String {
    for connection in connections {
        let endpoint = &connection.endpoint;
        if let (Some(_), Some(reason)) = (&endpoint.mirror_of, connection.set_up_trouble()) {
            words.push_str(&format!("; mirror {} passed over: {reason}", endpoint.base));
        }
    }
    words
}

/// The manifest, and which connection gave it; or the trouble that counts, and whose it was.
async fn first_answer(
    connections: &[Connection],
    version: &str,
) -> Result<(usize, Fetched), (String, Trouble)> {
    let mut last = (
        String::new(),
        Trouble::Wrong("no endpoint to ask".to_owned()),
    );
    for (at, connection) in connections.iter().enumerate() {
        let base = connection.endpoint.base.clone();
        match connection.manifest(version).await {
            Ok(answer) => {
                let fetched = Fetched {
                    digest: answer.digest,
                    body: answer.body,
                };
                return Ok((at, fetched));
            }
            Err(trouble) if connection.endpoint.mirror_of.is_some() => {
                let reason = trouble.reason();
                match connection.set_up_trouble() {
                    Some(reason) => tracing::warn!(mirror = base, reason, "mirror passed over"),
                    None => tracing::info!(mirror = base, reason, "mirror passed over"),
                }
                last = (base, trouble);
            }
            // What answered in HTTP's own terms has spoken; only silence tries the next.
            Err(trouble) if trouble.answered() => return Err((base, trouble)),
            Err(trouble) => last = (base, trouble),
        }
    }
    Err(last)
}

impl Session {
    /// The registry, as image names begin with it.
    #[must_use]
    pub fn registry(&self) -> &str {
        &self.registry
    }

    pub(crate) fn progress(&self) -> &Progress {
        &self.progress
    }

    /// The manifest of one platform out of the index that the reference names.
    pub(crate) async fn manifest_by_digest(&self, digest: &str) -> Result<Fetched, Error> {
        let failed = |reason: String| {
            Error::Fatal(format!(
                "registry {}: manifest {digest}: {reason}",
                self.registry
            ))
        };
        // It becomes part of a path.
        if !is_digest(digest) {
            return Err(failed("its digest is none".to_owned()));
        }
        for attempt in 1.. {
            let (_, trouble) = match first_answer(&self.connections, digest).await {
                Ok((_, fetched)) => return Ok(fetched),
                Err(failed) => failed,
            };
            match self.backoff.verdict(&trouble, attempt) {
                Verdict::Over => {
                    let words = self.backoff.last_words(&trouble, attempt);
                    return Err(failed(with_mirrors(words, &self.connections)));
                }
                Verdict::Again(pause) => self.pause(&trouble, pause, attempt).await,
            }
        }
        Err(failed("no try is left".to_owned()))
    }

    /// Waits before the next try, and lets those who wait for the pull know why.
    pub(super) async fn pause(&self, trouble: &Trouble, pause: std::time::Duration, attempt: u32) {
        let words = again(trouble, pause, (attempt, self.backoff.tries));
        tracing::info!(registry = self.registry, "{words}");
        self.progress
            .say(Some(format!("registry {}: {words}", self.registry)));
        tokio::time::sleep(pause).await;
    }
}
