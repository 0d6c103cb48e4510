//! Image registries: which protocol to speak to which one, who to be there, and clear errors.
//!
//! Docker's rules: a registry on a loopback address, or one named in `insecure_registries` (by
//! name, name:port, address or CIDR), may answer over HTTPS with any certificate or over plain
//! HTTP; every other one must answer over HTTPS with a certificate that verifies, against the
//! system's CAs or the configured one.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use base64::Engine as _;
use bytes::Bytes;
use futures::StreamExt as _;
use oci_client::client::{Certificate, CertificateEncoding, ClientConfig, ClientProtocol};
use oci_client::errors::{OciDistributionError, OciError, OciErrorCode};
use oci_client::manifest::OciDescriptor;
use oci_client::secrets::RegistryAuth;
use oci_client::{Client, Reference};

use super::client::chain;
use super::content::Source;
use super::manifest::{Descriptor, MANIFEST_TYPES};
use crate::error::Error;

const CONNECT_MAX: Duration = Duration::from_secs(5);
/// Silence on a connection for this long is the end of it.
const READ_MAX: Duration = Duration::from_secs(30);
/// A manifest is some kilobytes: name lookup, handshake, token and answer together.
const MANIFEST_MAX: Duration = Duration::from_secs(20);

/// Which registries may be spoken to without a verified certificate, and which CA is trusted.
#[derive(Debug, Clone, Default)]
pub(super) struct RegistryRules {
    pub insecure: Vec<String>,
    pub ca: Option<PathBuf>,
}

/// One registry that answered for one image.
pub(super) struct Session {
    client: Client,
    reference: Reference,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session")
            .field("reference", &self.reference)
            .finish_non_exhaustive()
    }
}

/// A manifest as the registry has it.
#[derive(Debug)]
pub(super) struct Fetched {
    pub digest: String,
    pub body: Bytes,
}

/// How to speak to a registry, in the order of trial.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Speech {
    Https,
    HttpsUnverified,
    Http,
}

impl RegistryRules {
    /// Fetches the manifest (or index) that a reference names, from the first protocol that answers.
    pub(super) async fn open(
        &self,
        reference: &Reference,
        auth: &RegistryAuth,
    ) -> Result<(Session, Fetched), Error> {
        let mut last = None;
        for &speech in self.speeches(reference.resolve_registry()) {
            let client = self.client(speech)?;
            let session = Session {
                client,
                reference: reference.clone(),
            };
            match session.manifest(reference, auth).await {
                Ok(fetched) => return Ok((session, fetched)),
                Err(trouble) => {
                    let answered = trouble.answered;
                    last = Some(trouble);
                    // What answered in HTTP's own terms has spoken; only silence tries the next.
                    if answered {
                        break;
                    }
                }
            }
        }
        let reason = last.map_or_else(|| "no protocol to try".to_owned(), |trouble| trouble.text);
        Err(Error::Fatal(format!(
            "registry {}: {reason}",
            reference.resolve_registry()
        )))
    }

    fn speeches(&self, registry: &str) -> &'static [Speech] {
        if self.is_insecure(registry) {
            &[Speech::HttpsUnverified, Speech::Http]
        } else {
            &[Speech::Https]
        }
    }

    fn is_insecure(&self, registry: &str) -> bool {
        let host = host_of(registry);
        let address: Option<IpAddr> = host.parse().ok();
        if host == "localhost" || address.is_some_and(|address| address.is_loopback()) {
            return true;
        }
        self.insecure.iter().any(|rule| {
            rule == registry
                || rule == host
                || address.is_some_and(|address| {
                    rule.parse::<ipnet::IpNet>()
                        .is_ok_and(|net| net.contains(&address))
                })
        })
    }

    fn client(&self, speech: Speech) -> Result<Client, Error> {
        let mut config = ClientConfig {
            protocol: match speech {
                Speech::Https | Speech::HttpsUnverified => ClientProtocol::Https,
                Speech::Http => ClientProtocol::Http,
            },
            // Plain HTTP verifies nothing either; this also spares it the system's CA store.
            accept_invalid_certificates: speech != Speech::Https,
            connect_timeout: Some(CONNECT_MAX),
            read_timeout: Some(READ_MAX),
            user_agent: concat!("swarmd/", env!("CARGO_PKG_VERSION")),
            ..ClientConfig::default()
        };
        if speech == Speech::Https
            && let Some(path) = &self.ca
        {
            let data = std::fs::read(path).map_err(|error| {
                Error::Fatal(format!("registry CA {}: {error}", path.display()))
            })?;
            config.extra_root_certificates.push(Certificate {
                encoding: CertificateEncoding::Pem,
                data,
            });
        }
        Client::try_from(config)
            .map_err(|error| Error::Fatal(format!("registry client: {}", chain(&error))))
    }
}

/// Why a registry gave no manifest.
struct Trouble {
    text: String,
    /// The registry answered, in words of HTTP.
    answered: bool,
}

impl Session {
    /// The manifest of one platform out of the index that the reference names.
    pub(super) async fn manifest_by_digest(&self, digest: &str) -> Result<Fetched, Error> {
        let reference = self.reference.clone_with_digest(digest.to_owned());
        self.manifest(&reference, &RegistryAuth::Anonymous)
            .await
            .map_err(|trouble| {
                Error::Fatal(format!(
                    "registry {}: manifest {digest}: {}",
                    reference.resolve_registry(),
                    trouble.text
                ))
            })
    }

    async fn manifest(
        &self,
        reference: &Reference,
        auth: &RegistryAuth,
    ) -> Result<Fetched, Trouble> {
        let fetch = self
            .client
            .pull_manifest_raw(reference, auth, MANIFEST_TYPES);
        match tokio::time::timeout(MANIFEST_MAX, fetch).await {
            Ok(Ok((body, digest))) => Ok(Fetched { digest, body }),
            Ok(Err(error)) => Err(Trouble {
                answered: answered(&error),
                text: reason(&error),
            }),
            Err(_) => Err(Trouble {
                text: format!("no answer within {MANIFEST_MAX:?}"),
                answered: false,
            }),
        }
    }

    /// The bytes of a blob; the stream ends with an error if they don't match the digest.
    pub(super) async fn blob(&self, descriptor: &Descriptor) -> Result<Source, Error> {
        let wanted = OciDescriptor {
            digest: descriptor.digest.clone(),
            size: i64::try_from(descriptor.size).unwrap_or(i64::MAX),
            media_type: descriptor.media_type.clone(),
            urls: (!descriptor.urls.is_empty()).then(|| descriptor.urls.clone()),
            ..OciDescriptor::default()
        };
        let opened = self.client.pull_blob_stream(&self.reference, &wanted).await;
        let stream = opened.map_err(|error| {
            Error::Fatal(format!(
                "registry {}: blob {}: {}",
                self.reference.resolve_registry(),
                descriptor.digest,
                reason(&error)
            ))
        })?;
        Ok(stream.boxed())
    }
}

/// True for what an HTTP server said, false for a connection that did not come about.
fn answered(error: &OciDistributionError) -> bool {
    if let OciDistributionError::RequestError(request) = error {
        return request.status().is_some();
    }
    // A plain HTTP server's words on a TLS port, and the other way round, are no answer.
    !matches!(error, OciDistributionError::ServerError { code: 400, .. })
}

fn reason(error: &OciDistributionError) -> String {
    if let OciDistributionError::RegistryError { envelope, .. } = error {
        let word = |error: &OciError| {
            if matches!(
                error.code,
                OciErrorCode::ManifestUnknown | OciErrorCode::NotFound
            ) {
                return "not found".to_owned();
            }
            if matches!(error.code, OciErrorCode::NameUnknown) {
                return "not found, it has no such repository".to_owned();
            }
            if error.message.is_empty() {
                format!("{:?}", error.code)
            } else {
                error.message.clone()
            }
        };
        return envelope
            .errors
            .iter()
            .map(word)
            .collect::<Vec<_>>()
            .join("; ");
    }
    if let OciDistributionError::ServerError { code, .. } = error {
        return format!("it answered with HTTP {code}");
    }
    if let OciDistributionError::UnauthorizedError { .. } = error {
        return "not authorized; give credentials with the service".to_owned();
    }
    if let OciDistributionError::RequestError(request) = error {
        return cause(request);
    }
    chain(error)
}

/// The innermost reason of a request that got no answer, with the way out where there is one.
fn cause(error: &dyn std::error::Error) -> String {
    let mut root = error;
    while let Some(source) = root.source() {
        root = source;
    }
    let text = root.to_string();
    if text.contains("certificate") {
        return format!(
            "{text}; give its CA as the registry CA, or name it as an insecure registry"
        );
    }
    if text.contains("InvalidContentType") {
        return "it does not speak HTTPS; name it as an insecure registry if that is meant"
            .to_owned();
    }
    text
}

fn host_of(registry: &str) -> &str {
    if let Some(rest) = registry.strip_prefix('[') {
        return rest.split(']').next().unwrap_or(rest);
    }
    match registry.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|b| b.is_ascii_digit()) => host,
        _ => registry,
    }
}

#[derive(serde::Deserialize, Default)]
#[serde(default)]
struct AuthConfig {
    username: String,
    password: String,
    auth: String,
    registrytoken: String,
}

/// Reads Docker's encoded credentials (base64 of a JSON `AuthConfig`); empty means anonymous.
pub(super) fn credentials(encoded: &str) -> Result<RegistryAuth, Error> {
    if encoded.is_empty() {
        return Ok(RegistryAuth::Anonymous);
    }
    // Credentials never show in the text.
    let bad = || Error::Fatal("the service's registry credentials can't be read".to_owned());
    let config: AuthConfig =
        serde_json::from_slice(&decode(encoded).ok_or_else(bad)?).map_err(|_| bad())?;
    if !config.registrytoken.is_empty() {
        return Ok(RegistryAuth::Bearer(config.registrytoken));
    }
    if !config.auth.is_empty() {
        let pair = String::from_utf8(decode(&config.auth).ok_or_else(bad)?).map_err(|_| bad())?;
        let (user, password) = pair.split_once(':').ok_or_else(bad)?;
        return Ok(RegistryAuth::Basic(user.to_owned(), password.to_owned()));
    }
    if config.username.is_empty() {
        return Ok(RegistryAuth::Anonymous);
    }
    Ok(RegistryAuth::Basic(config.username, config.password))
}

fn decode(text: &str) -> Option<Vec<u8>> {
    use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};
    let text = text.trim_end_matches('=');
    STANDARD_NO_PAD
        .decode(text)
        .or_else(|_| URL_SAFE_NO_PAD.decode(text))
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn insecure_as_in_docker() {
        let rules = RegistryRules {
            insecure: vec![
                "10.0.0.0/8".into(),
                "reg.test:5000".into(),
                "plain.test".into(),
            ],
            ca: None,
        };
        for registry in [
            "127.0.0.1:5000",
            "localhost",
            "[::1]:5000",
            "10.1.2.3:80",
            "reg.test:5000",
            "plain.test:1",
        ] {
            assert!(rules.is_insecure(registry), "{registry}");
        }
        for registry in [
            "192.168.1.1:5000",
            "reg.test",
            "index.docker.io",
            "128.0.0.1",
        ] {
            assert!(!rules.is_insecure(registry), "{registry}");
        }
    }

    #[test]
    fn reads_docker_credentials() {
        let encode = |json: &str| base64::engine::general_purpose::URL_SAFE.encode(json);
        assert_eq!(credentials("").unwrap(), RegistryAuth::Anonymous);
        assert_eq!(
            credentials(&encode(r#"{"username":"ann","password":"pw"}"#)).unwrap(),
            RegistryAuth::Basic("ann".into(), "pw".into())
        );
        assert_eq!(
            credentials(&encode(r#"{"auth":"YW5uOnA6dw=="}"#)).unwrap(),
            RegistryAuth::Basic("ann".into(), "p:w".into())
        );
        let error = credentials("no base64!").unwrap_err().to_string();
        assert!(!error.contains("no base64"), "{error}");
    }
}
