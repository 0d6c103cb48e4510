//! Where a registry's images are asked for, and how far each place must prove itself. Pure.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use swarm_proto::reference::{DEFAULT_REGISTRY, Reference};

use reqwest::Url;

use super::Registries;

/// Where Docker Hub's registry is.
const HUB_HOST: &str = "registry-1.docker.io";

/// A place that keeps copies of a registry's images.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mirror {
    /// Whose images: `docker.io`, `quay.io`, `reg.test:5000`.
    registry: String,
    /// `https://mirror.example:5000/prefix`, without a slash at its end.
    base: String,
}

/// A text that names no mirror. Says nothing of what it holds, which may be a password.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidMirror {
    /// No address of HTTP.
    #[error(
        "must be URL or REGISTRY=URL with http:// or https://, for example https://mirror.example"
    )]
    NoUrl,
    /// Settings are shown in process lists.
    #[error(
        "must not hold a user name or password; put those into the file that --registry-config names, under the \
         mirror's host"
    )]
    Secret,
}

impl FromStr for Mirror {
    type Err = InvalidMirror;

    /// `URL` is Docker Hub's mirror, as in Docker; `REGISTRY=URL` another registry's.
    fn from_str(text: &str) -> Result<Self, InvalidMirror> {
        let scheme = text.find("://").ok_or(InvalidMirror::NoUrl)?;
        let (registry, url) = match text.split_once('=') {
            Some((registry, url)) if registry.len() < scheme => (registry, url),
            Some(_) | None => (DEFAULT_REGISTRY, text),
        };
        let url = Url::parse(url).map_err(|_| InvalidMirror::NoUrl)?;
        if !url.username().is_empty() || url.password().is_some() {
            return Err(InvalidMirror::Secret);
        }
        let plain = url.query().is_none() && url.fragment().is_none();
        if registry.is_empty() || !matches!(url.scheme(), "http" | "https") || !plain {
            return Err(InvalidMirror::NoUrl);
        }
        Ok(Self {
            registry: registry.to_owned(),
            base: url.as_str().trim_end_matches('/').to_owned(),
        })
    }
}

impl fmt::Display for Mirror {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.registry, self.base)
    }
}

/// How far a place must prove that it is who it says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Trust {
    /// HTTPS with a certificate that verifies.
    Verified,
    /// HTTPS with any certificate.
    Unverified,
    /// Plain HTTP.
    Plain,
}

/// One place to ask.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Endpoint {
    /// Scheme, host, port and prefix.
    pub base: String,
    /// `host` or `host:port`, as directories of certificates and error texts name it.
    pub host: String,
    pub trust: Trust,
    /// The registry that this is a copy of.
    pub mirror_of: Option<String>,
}

impl Endpoint {
    /// True where an answer came from here, and not from where it redirected to.
    pub(super) fn is_origin_of(&self, url: &Url) -> bool {
        Url::parse(&self.base).is_ok_and(|base| base.origin() == url.origin())
    }
}

impl Registries {
    /// Where to ask, in this order: what does not answer leads to the next.
    pub(super) fn endpoints(&self, reference: &Reference) -> Vec<Endpoint> {
        let registry = reference.registry.as_str();
        let mirrors = self.mirrors.iter().filter(|m| m.registry == registry);
        let mut endpoints: Vec<Endpoint> = mirrors.flat_map(|m| self.of_mirror(m)).collect();
        let host = match registry {
            DEFAULT_REGISTRY => HUB_HOST,
            other => other,
        };
        let trusts: &[Trust] = match self.is_insecure(registry) {
            true => &[Trust::Unverified, Trust::Plain],
            false => &[Trust::Verified],
        };
        endpoints.extend(trusts.iter().map(|trust| Endpoint {
            base: match trust {
                Trust::Plain => format!("http://{host}"),
                Trust::Verified | Trust::Unverified => format!("https://{host}"),
            },
            host: host.to_owned(),
            trust: *trust,
            mirror_of: None,
        }));
        endpoints
    }

    fn of_mirror(&self, mirror: &Mirror) -> Option<Endpoint> {
        let (scheme, rest) = mirror.base.split_once("://")?;
        let host = rest.split('/').next().unwrap_or(rest);
        let trust = match scheme {
            "http" => Trust::Plain,
            _ if self.is_insecure(host) => Trust::Unverified,
            _ => Trust::Verified,
        };
        Some(Endpoint {
            base: mirror.base.clone(),
            host: host.to_owned(),
            trust,
            mirror_of: Some(mirror.registry.clone()),
        })
    }

    /// How far a token server that an endpoint names must prove itself: its own host decides, as
    /// the name of an insecure registry says nothing about others.
    pub(super) fn trust_of_realm(&self, endpoint: &Endpoint, realm: &Url) -> Trust {
        let place = place(realm);
        let (host, own) = (host_of(&place), host_of(&endpoint.host));
        // Loopback of another host than the registry's is whoever listens here.
        let with_endpoint = host == own || (is_loopback(host) && is_loopback(own));
        let insecure =
            (with_endpoint && endpoint.trust != Trust::Verified) || self.is_named_insecure(&place);
        match (insecure, realm.scheme()) {
            (false, _) => Trust::Verified,
            (true, "http") => Trust::Plain,
            (true, _) => Trust::Unverified,
        }
    }

    fn is_insecure(&self, registry: &str) -> bool {
        is_loopback(host_of(registry)) || self.is_named_insecure(registry)
    }

    fn is_named_insecure(&self, registry: &str) -> bool {
        let host = host_of(registry);
        let address: Option<IpAddr> = host.parse().ok();
        self.insecure.iter().any(|rule| {
            rule == registry
                || rule == host
                || address.is_some_and(|address| {
                    rule.parse::<ipnet::IpNet>()
                        .is_ok_and(|net| net.contains(&address))
                })
        })
    }
}

fn is_loopback(host: &str) -> bool {
    let address: Option<IpAddr> = host.parse().ok();
    host == "localhost" || address.is_some_and(|address| address.is_loopback())
}

/// `host` or `host:port` of an address.
pub(super) fn place(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    match url.port() {
        Some(port) => format!("{host}:{port}"),
        None => host.to_owned(),
    }
}

pub(super) fn host_of(registry: &str) -> &str {
    if let Some(rest) = registry.strip_prefix('[') {
        return rest.split(']').next().unwrap_or(rest);
    }
    match registry.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|b| b.is_ascii_digit()) => host,
        _ => registry,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn insecure_as_in_docker() {
        let rules = Registries {
            insecure: vec![
                "10.0.0.0/8".into(),
                "reg.test:5000".into(),
                "plain.test".into(),
            ],
            ..Registries::default()
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
        for registry in ["192.168.1.1:5000", "reg.test", "docker.io", "128.0.0.1"] {
            assert!(!rules.is_insecure(registry), "{registry}");
        }
    }

    #[test]
    fn mirrors_come_first_and_the_registry_last() {
        let rules = Registries {
            mirrors: vec![
                "https://mirror.test/hub/".parse().unwrap(),
                "quay.io=http://10.0.0.1:5000".parse().unwrap(),
            ],
            ..Registries::default()
        };
        let bases = |image: &str| {
            let endpoints = rules.endpoints(&image.parse().unwrap());
            let shown = endpoints.iter().map(|e| (e.base.clone(), e.trust));
            shown.collect::<Vec<_>>()
        };
        assert_eq!(
            bases("nginx"),
            [
                ("https://mirror.test/hub".to_owned(), Trust::Verified),
                ("https://registry-1.docker.io".to_owned(), Trust::Verified),
            ]
        );
        assert_eq!(
            bases("quay.io/a/b"),
            [
                ("http://10.0.0.1:5000".to_owned(), Trust::Plain),
                ("https://quay.io".to_owned(), Trust::Verified),
            ]
        );
        assert_eq!(
            bases("127.0.0.1:5000/a"),
            [
                ("https://127.0.0.1:5000".to_owned(), Trust::Unverified),
                ("http://127.0.0.1:5000".to_owned(), Trust::Plain),
            ]
        );
    }

    #[test]
    fn insecure_is_a_matter_of_each_host() {
        let rules = Registries {
            insecure: vec!["reg.test:5000".into(), "plain.test".into()],
            mirrors: vec!["quay.io=http://mirror.test:5000".parse().unwrap()],
            ..Registries::default()
        };
        let trust = |image: &str, realm: &str| {
            let endpoints = rules.endpoints(&image.parse().unwrap());
            rules.trust_of_realm(&endpoints[0], &realm.parse().unwrap())
        };
        let insecure = "reg.test:5000/a";
        assert_eq!(trust(insecure, "https://auth.test/t"), Trust::Verified);
        assert_eq!(trust(insecure, "http://auth.test/t"), Trust::Verified);
        assert_eq!(trust(insecure, "http://127.0.0.1/t"), Trust::Verified);
        assert_eq!(
            trust(insecure, "https://reg.test:5000/t"),
            Trust::Unverified
        );
        assert_eq!(trust(insecure, "http://reg.test:5001/t"), Trust::Plain);
        assert_eq!(trust(insecure, "http://plain.test/t"), Trust::Plain);
        assert_eq!(trust("a.test/b", "https://plain.test/t"), Trust::Unverified);
        assert_eq!(trust("a.test/b", "http://[::1]/t"), Trust::Verified);
        assert_eq!(
            trust("127.0.0.1:5000/a", "http://localhost:1/t"),
            Trust::Plain
        );
        assert_eq!(
            trust("127.0.0.1:5000/a", "https://auth.test/t"),
            Trust::Verified
        );
        assert_eq!(
            trust("quay.io/a", "http://mirror.test:5001/t"),
            Trust::Plain
        );
        assert_eq!(trust("quay.io/a", "http://quay.io/t"), Trust::Verified);
    }

    #[test]
    fn a_mirror_holds_no_secret() {
        for text in [
            "https://user@mirror.test",
            "https://user:pw@mirror.test",
            "quay.io=https://:pw@mirror.test",
        ] {
            assert_eq!(text.parse::<Mirror>(), Err(InvalidMirror::Secret), "{text}");
        }
    }

    #[test]
    fn a_mirror_is_an_address_of_http() {
        for text in [
            "mirror.test",
            "ftp://mirror.test",
            "=https://mirror.test",
            "https://user@mirror.test",
            "https://mirror.test/?a=b",
            "",
        ] {
            assert!(text.parse::<Mirror>().is_err(), "{text}");
        }
    }
}
