//! The connection as the services use it: it asks for stale answers where the operator wants them, and keeps what they
//! are worth.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use http::{HeaderMap, HeaderValue, Request, Response};
use swarm_proto::stale::{AGE_MS, INDEX, STALE};
use tonic::body::Body;
use tonic::transport::{Channel, Error};
use tower::Service;

/// What a stale answer is worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Staleness {
    /// The index of the log that the state is of.
    index: u64,
    /// The most by which it lags, if that is known.
    age: Option<Duration>,
}

impl Staleness {
    fn of(headers: &HeaderMap) -> Option<Self> {
        let number = |name| headers.get(name)?.to_str().ok()?.parse::<u64>().ok();
        Some(Self {
            index: number(INDEX)?,
            age: number(AGE_MS).map(Duration::from_millis),
        })
    }

    /// In words.
    pub(crate) fn remark(&self) -> String {
        let index = self.index;
        match self.age {
            Some(age) => format!(
                "stale: the state of this manager, log index {index}, at most {} behind",
                humantime::format_duration(age)
            ),
            None => format!(
                "stale: the state of this manager, log index {index}; it has heard no leader since it started"
            ),
        }
    }
}

/// Whether answers may be stale.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Reads {
    /// They hold everything that was acknowledged before.
    #[default]
    Newest,
    /// As the manager at hand has them.
    Stale,
}

/// The connection to the local swarmd.
#[derive(Clone, Debug)]
pub(crate) struct Wire {
    channel: Channel,
    reads: Reads,
    staleness: Arc<Mutex<Option<Staleness>>>,
}

impl Wire {
    pub(super) fn new(channel: Channel, reads: Reads) -> Self {
        Self {
            channel,
            reads,
            staleness: Arc::default(),
        }
    }

    /// What the last stale answer is worth, once.
    pub(super) fn take_staleness(&self) -> Option<Staleness> {
        let mut last = self
            .staleness
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        last.take()
    }
}

impl Service<Request<Body>> for Wire {
    type Response = Response<Body>;
    type Error = Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.channel.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        if self.reads == Reads::Stale && !is_of_now(request.uri().path()) {
            request
                .headers_mut()
                .insert(STALE, HeaderValue::from_static("1"));
        }
        let answered = self.channel.call(request);
        let staleness = Arc::clone(&self.staleness);
        Box::pin(async move {
            let answer = answered.await?;
            if let Some(told) = Staleness::of(answer.headers()) {
                *staleness.lock().unwrap_or_else(PoisonError::into_inner) = Some(told);
            }
            Ok(answer)
        })
    }
}

/// What a node says of itself, and the leader of consensus, is never stale.
fn is_of_now(path: &str) -> bool {
    let method = path.rsplit('/').next().unwrap_or_default();
    matches!(method, "LocalStatus" | "Consensus")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn how_things_are_now_is_not_asked_for_stale() {
        for (path, of_now) in [
            ("/swarm.v1.Operator/LocalStatus", true),
            ("/swarm.v1.Operator/Consensus", true),
            ("/docker.swarmkit.v1.Control/ListNodes", false),
            ("", false),
        ] {
            assert_eq!(is_of_now(path), of_now, "{path}");
        }
    }

    #[test]
    fn a_stale_answer_says_what_it_is_worth() {
        let mut headers = HeaderMap::new();
        assert_eq!(Staleness::of(&headers), None);
        headers.insert(INDEX, HeaderValue::from(7));
        let unheard = Staleness::of(&headers).unwrap().remark();
        assert!(
            unheard.contains("log index 7; it has heard no leader"),
            "{unheard}"
        );
        headers.insert(AGE_MS, HeaderValue::from(3000));
        let told = Staleness::of(&headers).unwrap().remark();
        assert!(told.contains("log index 7, at most 3s behind"), "{told}");
    }
}
