//! Requests to one endpoint about one repository: signed in when it asks, again when that ran out.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::StreamExt as _;
use reqwest::header::{ACCEPT, ACCEPT_ENCODING, AUTHORIZATION, HeaderMap, HeaderValue, RANGE};
use reqwest::{Client, RequestBuilder, Response, StatusCode, Url};
use serde::Deserialize;
use swarm_proto::registry_auth::Credentials;
use tokio::sync::OnceCell;

use super::auth;
use super::endpoint::Endpoint;
use super::trouble::{Trouble, cause, retry_after};
use super::{MANIFEST_MAX, MANIFEST_TYPES, Registries, digest, is_digest, matches};

/// A manifest is some kilobytes: name lookup, handshake, token and answer together.
const MANIFEST_TIME_MAX: Duration = Duration::from_secs(20);
/// Until the first byte of a blob: redirects and tokens included.
const OPEN_MAX: Duration = Duration::from_secs(60);
/// Bytes of the words on a refusal that are read.
const WORDS_MAX: usize = 64 << 10;

/// Who to be at a place: looked up when that is asked, as it may take a program of the node's.
pub(super) struct Caller {
    host: String,
    given: Credentials,
    found: OnceCell<Result<Credentials, String>>,
}

/// One endpoint, asked about one repository. What it takes to ask is made when it is asked first.
pub(super) struct Connection {
    pub(super) endpoint: Endpoint,
    registries: Arc<Registries>,
    http: OnceLock<Result<Client, String>>,
    /// `library/nginx`
    path: String,
    caller: Arc<Caller>,
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

impl Caller {
    /// At a host: whom the service says, or else whom the node says.
    pub(super) fn new(host: &str, given: Credentials) -> Self {
        Self {
            host: host.to_owned(),
            given,
            found: OnceCell::new(),
        }
    }

    async fn credentials(&self, registries: &Registries) -> Result<&Credentials, Trouble> {
        let find = async || {
            let found = registries.credentials_for(&self.host, &self.given).await;
            found.map_err(|error| error.to_string())
        };
        let found = self.found.get_or_init(find).await;
        found
            .as_ref()
            .map_err(|reason| Trouble::Wrong(reason.clone()))
    }
}

impl Connection {
    pub(super) fn new(
        endpoint: Endpoint,
        registries: Arc<Registries>,
        (path, caller): (&str, Arc<Caller>),
    ) -> Self {
        Self {
            endpoint,
            registries,
            http: OnceLock::new(),
            path: path.to_owned(),
            caller,
            signed_in: Mutex::default(),
        }
    }

    /// Why this node can't even ask, where that turned out.
    pub(super) fn set_up_trouble(&self) -> Option<&str> {
        let caller = self
            .caller
            .found
            .get()
            .and_then(|found| found.as_ref().err());
        let http = self.http.get().and_then(|made| made.as_ref().err());
        caller.or(http).map(String::as_str)
    }

    async fn set_up(&self) -> Result<(&Client, &Credentials), Trouble> {
        let credentials = self.caller.credentials(&self.registries).await?;
        let make = || {
            let made = self.registries.client(&self.endpoint);
            made.map_err(|error| error.to_string())
        };
        let http = self.http.get_or_init(make).as_ref();
        let http = http.map_err(|reason| Trouble::Wrong(reason.clone()))?;
        Ok((http, credentials))
    }

    /// The manifest of a tag or a digest, verified where a digest says what is right.
    pub(super) async fn manifest(&self, version: &str) -> Result<Answer, Trouble> {
        // A program that knows credentials has a limit of its own.
        self.set_up().await?;
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
        self.set_up().await?;
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
        let (http, credentials) = self.set_up().await?;
        let mut last = None;
        for _ in 0..2 {
            // Bytes as they are stored: a digest is of those.
            let mut request = http.get(url).header(ACCEPT_ENCODING, "identity");
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
                StatusCode::UNAUTHORIZED => {
                    let (from, headers) = (response.url().clone(), response.headers().clone());
                    // Read to its end, so that the connection is there for the next request.
                    let _ = body(response, WORDS_MAX).await;
                    last = Some(self.sign_in((&from, &headers), credentials).await?);
                }
                status if status.is_success() => return Ok(response),
                _ => return Err(refusal(response).await),
            }
        }
        let reason = match last {
            Some(()) if *credentials == Credentials::Anonymous => "it lets nobody in unnamed",
            Some(()) | None => "it refuses these credentials",
        };
        Err(auth::unauthorized(reason))
    }

    /// Answers the registry's challenge; a token that ran out is replaced so too.
    async fn sign_in(
        &self,
        (from, headers): (&Url, &HeaderMap),
        credentials: &Credentials,
    ) -> Result<(), Trouble> {
        // Whoever it redirected to must not get what is meant for it.
        if !self.endpoint.is_origin_of(from) {
            return Err(Trouble::Refused {
                code: 401,
                reason: format!(
                    "it redirects to {}, which asks for credentials; those for {} are not sent there",
                    from.origin().ascii_serialization(),
                    self.endpoint.host
                ),
                after: None,
            });
        }
        let whom = (self.registries.as_ref(), &self.endpoint);
        let header = auth::answer(whom, (headers, &self.path), credentials).await?;
        *self.signed_in() = Some(header);
        Ok(())
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
