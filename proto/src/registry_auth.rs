//! Credentials for image registries, in Docker's forms: what a spec carries (base64 of a JSON
//! `AuthConfig`), what `config.json` holds, and what a credential helper answers.
//!
//! Pure: who reads the file and runs the helper is elsewhere. Credentials show in no `Debug`
//! output and no error text.

use std::collections::BTreeMap;
use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE, URL_SAFE_NO_PAD};
use serde::Deserialize;

use crate::reference::DEFAULT_REGISTRY;

/// The name by which Docker's files and helpers know Docker Hub.
const HUB_KEY: &str = "https://index.docker.io/v1/";
/// The user name with which helpers mark an identity token.
const TOKEN_USER: &str = "<token>";

/// Who to be at a registry.
#[derive(Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Credentials {
    /// Nobody in particular.
    #[default]
    Anonymous,
    /// A user with a password (or what a registry takes for one).
    Basic {
        /// The user's name.
        username: String,
        /// The password.
        password: String,
    },
    /// A token that the registry itself takes.
    Registry(String),
    /// A token that the registry's token server changes into one for the registry.
    Identity(String),
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Anonymous => "anonymous",
            Self::Basic { .. } => "basic (redacted)",
            Self::Registry(_) => "registry token (redacted)",
            Self::Identity(_) => "identity token (redacted)",
        })
    }
}

/// A text that holds no credentials; it is not repeated here.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidCredentials(&'static str);

/// Docker's `AuthConfig`, and an entry of `auths`, which has the same fields.
#[derive(Deserialize, Default)]
#[serde(default)]
struct AuthConfig {
    username: String,
    password: String,
    auth: String,
    registrytoken: String,
    identitytoken: String,
}

impl AuthConfig {
    fn credentials(self) -> Result<Credentials, InvalidCredentials> {
        let bad = InvalidCredentials("its auth is not base64 of USER:PASSWORD");
        if !self.registrytoken.is_empty() {
            return Ok(Credentials::Registry(self.registrytoken));
        }
        if !self.identitytoken.is_empty() {
            return Ok(Credentials::Identity(self.identitytoken));
        }
        if !self.auth.is_empty() {
            let pair = decode(&self.auth).ok_or_else(|| bad.clone())?;
            let pair = String::from_utf8(pair).map_err(|_| bad.clone())?;
            let (username, password) = pair.split_once(':').ok_or(bad)?;
            return Ok(Credentials::Basic {
                username: username.to_owned(),
                // Docker pads what it writes with zeros.
                password: password.trim_end_matches('\0').to_owned(),
            });
        }
        if self.username.is_empty() {
            return Ok(Credentials::Anonymous);
        }
        Ok(Credentials::Basic {
            username: self.username,
            password: self.password,
        })
    }
}

impl Credentials {
    /// Reads what a spec carries; empty means anonymous.
    ///
    /// # Errors
    /// When it is not base64 of a JSON `AuthConfig`.
    pub fn decode(encoded: &str) -> Result<Self, InvalidCredentials> {
        if encoded.is_empty() {
            return Ok(Self::Anonymous);
        }
        let bad = || InvalidCredentials("they are not base64 of a JSON AuthConfig");
        let config: AuthConfig =
            serde_json::from_slice(&decode(encoded).ok_or_else(bad)?).map_err(|_| bad())?;
        config.credentials()
    }

    /// What a spec carries, for a registry. Empty for anonymous.
    #[must_use]
    pub fn encode(&self, registry: &str) -> String {
        let server = server_key(registry);
        let config = match self {
            Self::Anonymous => return String::new(),
            Self::Basic { username, password } => serde_json::json!({
                "username": username, "password": password, "serveraddress": server,
            }),
            Self::Registry(token) => serde_json::json!({
                "registrytoken": token, "serveraddress": server,
            }),
            Self::Identity(token) => serde_json::json!({
                "identitytoken": token, "serveraddress": server,
            }),
        };
        URL_SAFE.encode(config.to_string())
    }
}

/// How helpers and Docker's files name a registry.
#[must_use]
pub fn server_key(registry: &str) -> String {
    if registry == DEFAULT_REGISTRY {
        HUB_KEY.to_owned()
    } else {
        registry.to_owned()
    }
}

/// Docker's `config.json`, as far as it is about registries.
#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
pub struct DockerConfig {
    auths: BTreeMap<String, AuthConfig>,
    creds_store: String,
    cred_helpers: BTreeMap<String, String>,
}

impl fmt::Debug for DockerConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DockerConfig")
            .field("auths", &self.auths.keys())
            .finish_non_exhaustive()
    }
}

/// Where the credentials for a registry are.
#[derive(Debug, PartialEq, Eq)]
pub enum Lookup {
    /// Here they are; anonymous where the file names none.
    Known(Credentials),
    /// A helper is asked: the program `docker-credential-NAME get`, with the server on its input.
    Helper {
        /// Its file name.
        program: String,
        /// What it is asked for.
        server: String,
        /// What holds where the helper knows none.
        otherwise: Credentials,
    },
}

impl DockerConfig {
    /// Reads the file's content.
    ///
    /// # Errors
    /// When it is not such a JSON object; credentials are not repeated.
    pub fn parse(content: &[u8]) -> Result<Self, InvalidCredentials> {
        let bad = InvalidCredentials("it is not a JSON object as Docker's config.json");
        let config: Self = serde_json::from_slice(content).map_err(|_| bad)?;
        let helpers = config.cred_helpers.values().chain([&config.creds_store]);
        if !helpers.into_iter().all(|name| is_helper_name(name)) {
            return Err(InvalidCredentials(
                "a credential helper's name is not letters, digits, '.', '_' and '-'",
            ));
        }
        Ok(config)
    }

    /// Where the credentials for a registry are. A registry's own helper comes first, then the
    /// helper for all, then the file's own entries, as in Docker.
    ///
    /// # Errors
    /// When the file's entry for it can't be read.
    pub fn lookup(mut self, registry: &str) -> Result<Lookup, InvalidCredentials> {
        let found = self
            .auths
            .keys()
            .find(|key| names(key, registry))
            .cloned()
            .and_then(|key| self.auths.remove(&key));
        let otherwise = found.map_or(Ok(Credentials::Anonymous), AuthConfig::credentials)?;
        let helper = self
            .cred_helpers
            .iter()
            .find(|(key, _)| names(key, registry))
            .map_or(&self.creds_store, |(_, helper)| helper);
        if helper.is_empty() {
            return Ok(Lookup::Known(otherwise));
        }
        Ok(Lookup::Helper {
            program: format!("docker-credential-{helper}"),
            server: server_key(registry),
            otherwise,
        })
    }
}

/// True where a key of the file means the registry: with or without scheme and path.
fn names(key: &str, registry: &str) -> bool {
    if key == server_key(registry) {
        return true;
    }
    let rest = key
        .strip_prefix("https://")
        .or_else(|| key.strip_prefix("http://"))
        .unwrap_or(key);
    let host = rest.split('/').next().unwrap_or(rest);
    host == registry || (host == "index.docker.io" && registry == DEFAULT_REGISTRY)
}

fn is_helper_name(name: &str) -> bool {
    name.bytes()
        .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct HelperAnswer {
    username: String,
    secret: String,
}

/// Reads what a helper printed.
///
/// # Errors
/// When it is not the JSON object that the protocol names.
pub fn helper_answer(output: &[u8]) -> Result<Credentials, InvalidCredentials> {
    let bad = InvalidCredentials("it did not answer with Username and Secret");
    let answer: HelperAnswer = serde_json::from_slice(output).map_err(|_| bad)?;
    if answer.username == TOKEN_USER {
        return Ok(Credentials::Identity(answer.secret));
    }
    Ok(Credentials::Basic {
        username: answer.username,
        password: answer.secret,
    })
}

/// True for what a helper prints, in words fixed by the protocol, where it knows no credentials.
#[must_use]
pub fn helper_knows_none(output: &[u8]) -> bool {
    let text = String::from_utf8_lossy(output);
    text.contains("credentials not found") || text.contains("no credentials server URL")
}

fn decode(text: &str) -> Option<Vec<u8>> {
    let text = text.trim().trim_end_matches('=');
    STANDARD_NO_PAD
        .decode(text)
        .or_else(|_| URL_SAFE_NO_PAD.decode(text))
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn basic(username: &str, password: &str) -> Credentials {
        Credentials::Basic {
            username: username.to_owned(),
            password: password.to_owned(),
        }
    }

    #[test]
    fn reads_what_a_spec_carries_and_writes_it_back() {
        let encode = |json: &str| URL_SAFE.encode(json);
        assert_eq!(Credentials::decode("").unwrap(), Credentials::Anonymous);
        let given = Credentials::decode(&encode(r#"{"username":"ann","password":"pw"}"#));
        assert_eq!(given.unwrap(), basic("ann", "pw"));
        let given = Credentials::decode(&encode(r#"{"auth":"YW5uOnA6dw=="}"#));
        assert_eq!(given.unwrap(), basic("ann", "p:w"));
        let error = Credentials::decode("no base64!").unwrap_err().to_string();
        assert!(!error.contains("no base64!"), "{error}");
        for credentials in [
            Credentials::Anonymous,
            basic("ann", "p:w"),
            Credentials::Registry("t1".to_owned()),
            Credentials::Identity("t2".to_owned()),
        ] {
            let encoded = credentials.encode("reg.test:5000");
            assert_eq!(Credentials::decode(&encoded).unwrap(), credentials);
            assert!(!format!("{credentials:?}").contains("p:w"));
        }
    }

    #[test]
    fn the_file_is_read_as_docker_does() {
        let file = br#"{
            "auths": {
                "https://index.docker.io/v1/": {"auth": "aHViOmh1YnB3"},
                "reg.test:5000": {"username": "ann", "password": "pw"},
                "https://old.test/v1/": {"identitytoken": "id"},
                "helped.test": {}
            },
            "credHelpers": {"helped.test": "pass"},
            "HttpHeaders": {"User-Agent": "Docker-Client"}
        }"#;
        let lookup = |registry: &str| DockerConfig::parse(file).unwrap().lookup(registry).unwrap();
        assert_eq!(lookup("docker.io"), Lookup::Known(basic("hub", "hubpw")));
        assert_eq!(lookup("reg.test:5000"), Lookup::Known(basic("ann", "pw")));
        assert_eq!(lookup("reg.test"), Lookup::Known(Credentials::Anonymous));
        assert_eq!(
            lookup("old.test"),
            Lookup::Known(Credentials::Identity("id".to_owned()))
        );
        assert_eq!(
            lookup("helped.test"),
            Lookup::Helper {
                program: "docker-credential-pass".to_owned(),
                server: "helped.test".to_owned(),
                otherwise: Credentials::Anonymous,
            }
        );
        let all = DockerConfig::parse(br#"{"credsStore": "secretservice"}"#).unwrap();
        assert_eq!(
            all.lookup("docker.io").unwrap(),
            Lookup::Helper {
                program: "docker-credential-secretservice".to_owned(),
                server: HUB_KEY.to_owned(),
                otherwise: Credentials::Anonymous,
            }
        );
    }

    #[test]
    fn a_helper_is_a_name_and_no_path() {
        for name in ["../evil", "a b", "/bin/sh"] {
            let file = format!(r#"{{"credsStore": "{name}"}}"#);
            assert!(DockerConfig::parse(file.as_bytes()).is_err(), "{name}");
        }
    }

    #[test]
    fn a_helper_answers_with_a_password_or_a_token() {
        let answer = br#"{"ServerURL":"reg.test","Username":"ann","Secret":"pw"}"#;
        assert_eq!(helper_answer(answer).unwrap(), basic("ann", "pw"));
        let answer = br#"{"Username":"<token>","Secret":"t"}"#;
        assert_eq!(
            helper_answer(answer).unwrap(),
            Credentials::Identity("t".to_owned())
        );
        assert!(helper_answer(b"credentials not found in native keychain").is_err());
        assert!(helper_knows_none(
            b"credentials not found in native keychain\n"
        ));
    }
}
