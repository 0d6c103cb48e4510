//! Asking an external CA over HTTPS: IO alone; what is said is `cfssl`'s.
//!
//! Invariants:
//! - The server's certificate leads to a root of the cluster and names its host; this node shows the
//!   certificate that it has now. No proxy, no redirect: the request goes where the operator said.
//! - A request takes [`URL_TIMEOUT`] at most, its answer is cut at [`ANSWER_BYTES_MAX`] while it is
//!   read, and only [`AT_ONCE`] are under way.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use reqwest::header::{CONTENT_TYPE, HeaderValue};
use reqwest::redirect::Policy;
use reqwest::{Client, Response, StatusCode};
use tokio::sync::Semaphore;

use super::cfssl::{self, NoCertificate};
use super::tls::{self, SecurityConfig};
use crate::clock::Clock;

/// How long one URL may take to answer; SwarmKit's.
const URL_TIMEOUT: Duration = Duration::from_secs(5);
/// Bytes of an answer that are read; SwarmKit's.
const ANSWER_BYTES_MAX: usize = 256 << 10;
/// Requests under way: what one change of root asks for at a time, SwarmKit's 30 nodes in 3 s, fits.
const AT_ONCE: usize = 32;

/// Why a URL gave no certificate.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// This node can't show who it is.
    #[error("{0}")]
    Own(String),
    /// No connection, or it broke.
    #[error("can't be asked: {0}")]
    Transport(String),
    /// It takes too long.
    #[error("has not answered within {} s", .0.as_secs())]
    Timeout(Duration),
    /// It says too much.
    #[error("its answer is longer than {} KiB", ANSWER_BYTES_MAX >> 10)]
    TooLong,
    /// Something else answers there.
    #[error("answers {0}, which is none of a CFSSL server's")]
    Status(StatusCode),
    /// It gives none.
    #[error(transparent)]
    Answer(#[from] NoCertificate),
}

/// Asks external CAs in the name of this node.
#[derive(Debug)]
pub(crate) struct ExternalCa {
    security: Arc<OnceLock<SecurityConfig>>,
    clock: Clock,
    room: Semaphore,
}

impl ExternalCa {
    pub(crate) fn new(security: Arc<OnceLock<SecurityConfig>>, clock: Clock) -> Self {
        Self {
            security,
            clock,
            room: Semaphore::new(AT_ONCE),
        }
    }

    /// What this node is, once it has a certificate.
    pub(crate) fn security(&self) -> Option<&SecurityConfig> {
        self.security.get()
    }

    /// The certificate that a URL gives for a request, in PEM; its server is verified against these roots.
    pub(crate) async fn ask(
        &self,
        url: &str,
        body: String,
        roots: &[u8],
    ) -> Result<String, Failure> {
        // It is never closed.
        let _place = self.room.acquire().await;
        let client = self.client(roots)?;
        let exchange = exchange(&client, url, body);
        match self.clock.timeout(URL_TIMEOUT, exchange).await {
            Ok(answer) => answer,
            Err(elapsed) => Err(Failure::Timeout(elapsed.0)),
        }
    }

    /// Made anew for each request, so that it has the certificate and the roots of now.
    fn client(&self, roots: &[u8]) -> Result<Client, Failure> {
        let own = |reason: &dyn std::fmt::Display| Failure::Own(reason.to_string());
        let security = self.security.get();
        let security = security.ok_or_else(|| own(&"this manager has no certificate yet"))?;
        let tls = tls::web_client(&security.identity(), roots, &self.clock);
        let tls = tls.map_err(|e| own(&e))?;
        let client = Client::builder()
            .tls_backend_preconfigured(tls)
            .user_agent(concat!("swarmd/", env!("CARGO_PKG_VERSION")))
            .redirect(Policy::none())
            .no_proxy()
            .https_only(true)
            .build();
        client.map_err(|e| own(&reason(e)))
    }
}

async fn exchange(client: &Client, url: &str, body: String) -> Result<String, Failure> {
    let broken = |error| Failure::Transport(reason(error));
    let request = client
        .post(url)
        .header(CONTENT_TYPE, HeaderValue::from_static("application/json"))
        .body(body);
    let response = request.send().await.map_err(broken)?;
    let status = response.status();
    let answer = read(response).await?;
    match cfssl::certificate(&answer) {
        Ok(_) | Err(NoCertificate::Junk(_)) if !status.is_success() => Err(Failure::Status(status)),
        // A refusal comes with a status of its own, and says more.
        answer => Ok(answer?),
    }
}

async fn read(mut response: Response) -> Result<Vec<u8>, Failure> {
    let mut answer = Vec::new();
    while let Some(chunk) = response
        .chunk()
        .await
        .map_err(|e| Failure::Transport(reason(e)))?
    {
        if answer.len() + chunk.len() > ANSWER_BYTES_MAX {
            return Err(Failure::TooLong);
        }
        answer.extend_from_slice(&chunk);
    }
    Ok(answer)
}

/// The innermost cause, which tells most, without the URL, which is told beside it.
fn reason(error: reqwest::Error) -> String {
    let error = error.without_url();
    let mut last: &dyn std::error::Error = &error;
    while let Some(source) = last.source() {
        last = source;
    }
    cfssl::said(&last.to_string())
}
