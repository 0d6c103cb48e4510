//! Requests to one endpoint about one repository: signed in when it asks, again when that ran out.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::StreamExt as _;
use reqwest::header::{ACCEPT, ACCEPT_ENCODING, AUTHORIZATION, HeaderValue, RANGE};
use reqwest::{Client, RequestBuilder, Response, StatusCode};
use serde::Deserialize;
use swarm_proto::registry_auth::Credentials;

use super::auth;
use super::endpoint::{Endpoint, Trust};
use super::trouble::{Trouble, cause, retry_after};
use super::{MANIFEST_MAX, MANIFEST_TYPES, digest, is_digest, matches};

/// A manifest is some kilobytes: name lookup, handshake, token and answer together.
const MANIFEST_TIME_MAX: Duration = Duration::from_secs(20);
/// Until the first byte of a blob: redirects and tokens included.
const OPEN_MAX: Duration = Duration::from_secs(60);
/// Bytes of the words on a refusal that are read.
const WORDS_MAX: usize = 64 << 10;

/// One endpoint, asked about one repository.
pub(super) struct Connection {
    pub(super) endpoint: Endpoint,
    http: Client,
    /// `library/nginx`
    path: String,
    credentials: Credentials,
    /// What it took last: an `Authorization` header.
    signed_in: Mutex<Option<HeaderValue>>,
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection")
            .field("endpoint", &self.endpoint)
            .field("path", &self.path)
            .finish_non_exhaustive()
    }
}

/// A manifest as an endpoint has it.
#[derive(Debug)]
pub(super) struct Answer {
    pub digest: String,
    pub body: Bytes,
}

impl Connection {
    pub(super) fn new(
        endpoint: Endpoint,
        http: Client,
        (path, credentials): (&str, Credentials),
    ) -> Self {
        Self {
            endpoint,
            http,
            path: path.to_owned(),
            credentials,
            signed_in: Mutex::default(),
        }
    }

    /// The manifest of a tag or a digest, verified where a digest says what is right.
    pub(super) async fn manifest(&self, version: &str) -> Result<Answer, Trouble> {
        let ask = async {
            let url = self.url(&format!("manifests/{version}"));
            let response = self.get(&url, Some(MANIFEST_TYPES), 0).await?;
            let named = response.headers().get("docker-content-digest");
            let named = named.and_then(|value| value.to_str().ok());
            let named = named.map(str::to_owned);
            Ok((body(response, MANIFEST_MAX).await?, named))
        };
        let (body, named) = tokio::time::timeout(MANIFEST_TIME_MAX, ask)
            .await
            .map_err(|_| {
                Trouble::Connection(format!("no answer within {MANIFEST_TIME_MAX:?}"))
            })??;
        let wanted = is_digest(version).then(|| version.to_owned());
        // Of a tag the registry's word is taken, as long as it is true of what it sends.
        let named = wanted.or(named.filter(|named| is_digest(named)));
        let digest = named.unwrap_or_else(|| digest(&body));
        if !matches(&digest, &body) {
            return Err(Trouble::Wrong(format!(
                "manifest {version}: its content does not match digest {digest}"
            )));
        }
        Ok(Answer { digest, body })
    }

    /// Begins to read a blob from an offset on.
    pub(super) async fn blob(&self, digest: &str, offset: u64) -> Result<Response, Trouble> {
        let url = self.url(&format!("blobs/{digest}"));
        match tokio::time::timeout(OPEN_MAX, self.get(&url, None, offset)).await {
            Ok(answer) => answer,
            Err(_) => Err(Trouble::Connection(format!(
                "no answer within {OPEN_MAX:?}"
            ))),
        }
    }

    fn url(&self, rest: &str) -> String {
        let Endpoint {
            base, mirror_of, ..
        } = &self.endpoint;
        let path = &self.path;
        match mirror_of {
            // As containerd: one mirror may keep copies of several registries.
            Some(registry) => format!("{base}/v2/{path}/{rest}?ns={registry}"),
            None => format!("{base}/v2/{path}/{rest}"),
        }
    }

    /// A request, made once more where the registry wants to know first who asks.
    async fn get(&self, url: &str, accept: Option<&str>, offset: u64) -> Result<Response, Trouble> {
        let mut last = None;
        for _ in 0..2 {
            // Bytes as they are stored: a digest is of those.
            let mut request = self.http.get(url).header(ACCEPT_ENCODING, "identity");
            if let Some(accept) = accept {
                request = request.header(ACCEPT, accept);
            }
            if offset > 0 {
                request = request.header(RANGE, format!("bytes={offset}-"));
            }
            let signed_in = self.signed_in().clone();
            if let Some(header) = signed_in {
                request = request.header(AUTHORIZATION, header);
            }
            let response = send(request).await?;
            match response.status() {
                StatusCode::UNAUTHORIZED => last = Some(self.sign_in(&response).await?),
                status if status.is_success() => return Ok(response),
                _ => return Err(refusal(response).await),
            }
        }
        let reason = match last {
            Some(()) if self.credentials == Credentials::Anonymous => "it lets nobody in unnamed",
            Some(()) | None => "it refuses these credentials",
        };
        Err(auth::unauthorized(reason))
    }

    /// Answers the registry's challenge; a token that ran out is replaced so too.
    async fn sign_in(&self, response: &Response) -> Result<(), Trouble> {
        let challenge = (response.headers(), self.path.as_str());
        let header = auth::answer(&self.http, self.trust(), challenge, &self.credentials).await?;
        *self.signed_in() = Some(header);
        Ok(())
    }

    fn trust(&self) -> Trust {
        self.endpoint.trust
    }

    fn signed_in(&self) -> std::sync::MutexGuard<'_, Option<HeaderValue>> {
        self.signed_in
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// Sends a request; whatever comes back over HTTP is an answer.
pub(super) async fn send(request: RequestBuilder) -> Result<Response, Trouble> {
    request.send().await.map_err(|error| {
        if error.is_redirect() {
            return Trouble::Wrong(cause(&error));
        }
        Trouble::Connection(cause(&error))
    })
}

/// A whole body of at most `limit` bytes.
pub(super) async fn body(response: Response, limit: usize) -> Result<Bytes, Trouble> {
    let mut body = BytesMut::new();
    let mut stream = response.bytes_stream();
    while let Some(part) = stream.next().await {
        let part = part.map_err(|error| Trouble::Connection(cause(&error)))?;
        body.extend_from_slice(&part);
        if body.len() > limit {
            return Err(Trouble::Wrong(format!(
                "its answer is larger than {limit} bytes"
            )));
        }
    }
    Ok(body.freeze())
}

#[derive(Deserialize)]
struct Refusals {
    errors: Vec<Refusal>,
}

#[derive(Deserialize)]
#[serde(default)]
#[derive(Default)]
struct Refusal {
    code: String,
    message: String,
}

/// Why the registry said no, in its own words where it gives some.
pub(super) async fn refusal(response: Response) -> Trouble {
    let status = response.status();
    let after = retry_after(response.headers());
    let words = body(response, WORDS_MAX).await.unwrap_or_default();
    let refusals = serde_json::from_slice(&words).unwrap_or(Refusals { errors: Vec::new() });
    let words: Vec<String> = refusals.errors.iter().map(word).collect();
    let code = status.as_u16();
    let reason = match (words.is_empty(), code) {
        (false, 404) => words.join("; "),
        (false, _) => format!("it answered with HTTP {code}: {}", words.join("; ")),
        (true, 404) => "not found".to_owned(),
        (true, 403) => "it answered with HTTP 403: denied".to_owned(),
        (true, _) => format!("it answered with HTTP {code}"),
    };
    Trouble::Refused {
        code,
        reason,
        after,
    }
}

fn word(refusal: &Refusal) -> String {
    match (refusal.code.as_str(), refusal.message.as_str()) {
        ("MANIFEST_UNKNOWN" | "NOT_FOUND" | "BLOB_UNKNOWN", _) => "not found".to_owned(),
        ("NAME_UNKNOWN", _) => "not found, it has no such repository".to_owned(),
        (code, "") => code.to_owned(),
        (_, message) => message.to_owned(),
    }
}
