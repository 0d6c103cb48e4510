//! HTTP clients for endpoints: which certificates are trusted, and which one is shown.

use std::path::{Path, PathBuf};
use std::time::Duration;

use reqwest::redirect::Policy;
use reqwest::{Certificate, Client, ClientBuilder, Identity};

use super::Registries;
use super::endpoint::{Endpoint, Trust};
use crate::error::Error;

const CONNECT_MAX: Duration = Duration::from_secs(5);
/// Silence on a connection for this long is the end of it.
const READ_MAX: Duration = Duration::from_secs(30);
/// Registries redirect once or twice, to the store that has the blob.
const REDIRECTS_MAX: usize = 5;

impl Registries {
    /// A client for an endpoint. Files are read anew for each, so a renewed certificate counts.
    pub(super) fn client(&self, endpoint: &Endpoint) -> Result<Client, Error> {
        let mut builder = Client::builder()
            .user_agent(concat!("swarmd/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(CONNECT_MAX)
            .read_timeout(READ_MAX)
            .redirect(redirects());
        match endpoint.trust {
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
        if let Some(directory) = &self.certificates
            && endpoint.trust != Trust::Plain
        {
            builder = of_directory(builder, &directory.join(&endpoint.host), endpoint.trust)?;
        }
        builder.build().map_err(|error| {
            Error::Fatal(format!(
                "registry client: {}",
                super::trouble::cause(&error)
            ))
        })
    }
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

/// What Docker's directory of a registry holds: CA certificates, and a client's with its key.
fn of_directory(
    mut builder: ClientBuilder,
    directory: &Path,
    trust: Trust,
) -> Result<ClientBuilder, Error> {
    let Ok(entries) = std::fs::read_dir(directory) else {
        return Ok(builder);
    };
    let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    paths.sort();
    let has = |path: &Path, extension: &str| path.extension().is_some_and(|e| e == extension);
    for path in paths.iter().filter(|path| has(path, "crt")) {
        if trust == Trust::Verified {
            builder = builder.tls_certs_merge(certificates(path)?);
        }
    }
    if let Some(path) = paths.iter().find(|path| has(path, "cert")) {
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
