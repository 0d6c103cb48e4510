//! HTTP clients for endpoints: which certificates are trusted, and which one is shown.

use std::path::{Path, PathBuf};
use std::time::Duration;

use reqwest::redirect::Policy;
use reqwest::{Certificate, Client, ClientBuilder, Identity, Url};

use super::Registries;
use super::endpoint::{Endpoint, Trust, host_of, place};
use crate::error::Error;

const CONNECT_MAX: Duration = Duration::from_secs(5);
/// Registries redirect once or twice, to the store that has the blob.
const REDIRECTS_MAX: usize = 5;

impl Registries {
    /// A client for an endpoint. Files are read anew for each, so a renewed certificate counts.
    pub(super) fn client(&self, endpoint: &Endpoint) -> Result<Client, Error> {
        let mut builder = self.builder(endpoint.trust)?.redirect(redirects());
        if let Some(directory) = self.directory(endpoint.trust, &endpoint.host) {
            builder = authorities(builder, &directory, endpoint.trust)?;
            builder = identity(builder, &directory)?;
        }
        build(builder)
    }

    /// A client for the token server that an endpoint names.
    pub(super) fn token_client(&self, endpoint: &Endpoint, realm: &Url) -> Result<Client, Error> {
        let trust = self.trust_of_realm(endpoint, realm);
        let own = place(realm);
        let mut builder = self.builder(trust)?.redirect(redirects_to_itself());
        // As in Docker, who vouches for a registry does so for its token server.
        if let Some(directory) = self.directory(trust, &endpoint.host) {
            builder = authorities(builder, &directory, trust)?;
            // A certificate of ours is shown to the host that it is for.
            if host_of(&own) == host_of(&endpoint.host) {
                builder = identity(builder, &directory)?;
            }
        }
        if own != endpoint.host
            && let Some(directory) = self.directory(trust, &own)
        {
            builder = authorities(builder, &directory, trust)?;
            builder = identity(builder, &directory)?;
        }
        build(builder)
    }

    /// Docker's directory of a place, where certificates count there.
    fn directory(&self, trust: Trust, place: &str) -> Option<PathBuf> {
        match (trust, &self.certificates) {
            (Trust::Verified | Trust::Unverified, Some(directory)) => Some(directory.join(place)),
            (Trust::Plain, _) | (_, None) => None,
        }
    }

    fn builder(&self, trust: Trust) -> Result<ClientBuilder, Error> {
        let mut builder = Client::builder()
            .user_agent(concat!("swarmd/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(CONNECT_MAX)
            .read_timeout(self.backoff.silence);
        match trust {
            // Plain HTTP verifies nothing either; this also spares it the system's CA store.
            Trust::Unverified | Trust::Plain => {
                builder = builder.tls_danger_accept_invalid_certs(true);
            }
            Trust::Verified => {
                if let Some(path) = &self.ca {
                    builder = builder.tls_certs_merge(certificates(path)?);
                }
            }
        }
        Ok(builder)
    }
}

fn build(builder: ClientBuilder) -> Result<Client, Error> {
    builder.build().map_err(|error| {
        Error::Fatal(format!(
            "registry client: {}",
            super::trouble::cause(&error)
        ))
    })
}

/// Follows a few within a token server: what it is asked with is a secret.
fn redirects_to_itself() -> Policy {
    Policy::custom(|attempt| {
        let first = attempt.previous().first().map(Url::origin);
        if first.is_some_and(|origin| origin != attempt.url().origin()) {
            return attempt
                .error("its token server redirects to another, which gets no credentials");
        }
        if attempt.previous().len() > REDIRECTS_MAX {
            return attempt.error("its token server redirects more than 5 times");
        }
        attempt.follow()
    })
}

/// Follows a few; never from HTTPS to plain HTTP, where anyone could read along.
fn redirects() -> Policy {
    Policy::custom(|attempt| {
        let was_https = attempt.previous().iter().any(|url| url.scheme() == "https");
        if was_https && attempt.url().scheme() != "https" {
            return attempt.error("it redirects from HTTPS to plain HTTP");
        }
        if attempt.previous().len() > REDIRECTS_MAX {
            return attempt.error("it redirects more than 5 times");
        }
        attempt.follow()
    })
}

fn certificates(path: &Path) -> Result<Vec<Certificate>, Error> {
    let pem = read(path)?;
    Certificate::from_pem_bundle(&pem).map_err(|_| {
        Error::Fatal(format!(
            "registry CA {}: holds no certificate; must be a PEM file",
            path.display()
        ))
    })
}

/// The files in Docker's directory of a registry with an extension.
fn files(directory: &Path, extension: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(directory).into_iter().flatten();
    let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    paths.retain(|path| path.extension().is_some_and(|found| found == extension));
    paths.sort();
    paths
}

/// Trusts the CA certificates in a directory.
fn authorities(
    mut builder: ClientBuilder,
    directory: &Path,
    trust: Trust,
) -> Result<ClientBuilder, Error> {
    if trust == Trust::Verified {
        for path in files(directory, "crt") {
            builder = builder.tls_certs_merge(certificates(&path)?);
        }
    }
    Ok(builder)
}

/// Shows the client's certificate in a directory, which has its key too.
fn identity(mut builder: ClientBuilder, directory: &Path) -> Result<ClientBuilder, Error> {
    if let Some(path) = files(directory, "cert").first() {
        let mut pem = read(path)?;
        pem.push(b'\n');
        pem.extend(read(&path.with_extension("key"))?);
        let identity = Identity::from_pem(&pem).map_err(|_| {
            Error::Fatal(format!(
                "client certificate {}: it or its .key file is not PEM",
                path.display()
            ))
        })?;
        builder = builder.identity(identity);
    }
    Ok(builder)
}

fn read(path: &Path) -> Result<Vec<u8>, Error> {
    std::fs::read(path)
        .map_err(|error| Error::Fatal(format!("registry CA {}: {error}", path.display())))
}
