//! Image references: `[registry[:port]/]path[:tag][@digest]`.
//!
//! The familiar short forms mean Docker Hub: `nginx` is `docker.io/library/nginx:latest`. The
//! rules are those of Docker's references, so what `docker pull` takes is taken here and nothing
//! else.

use std::fmt;
use std::str::FromStr;

use crate::invalid::shown;

/// The registry of names that name none.
pub const DEFAULT_REGISTRY: &str = "docker.io";
const LEGACY_DEFAULT_REGISTRY: &str = "index.docker.io";
const OFFICIAL_PREFIX: &str = "library/";
/// The tag of references that have neither tag nor digest.
pub const DEFAULT_TAG: &str = "latest";

/// Most characters of registry and path together (the registries' limit).
const NAME_MAX: usize = 255;
/// Most characters of a tag (the registries' limit).
const TAG_MAX: usize = 128;

/// A parsed image reference in its full form; it has a tag or a digest or both.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Reference {
    /// Host and port: `docker.io`, `127.0.0.1:5000`.
    pub registry: String,
    /// `library/nginx`
    pub path: String,
    /// `latest`
    pub tag: Option<String>,
    /// `sha256:…`
    pub digest: Option<String>,
}

/// A text that is no image reference.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text} is not an image reference: {reason}; write [REGISTRY[:PORT]/]PATH[:TAG][@DIGEST]")]
pub struct InvalidReference {
    /// What was given, shortened.
    pub text: String,
    /// What is wrong with it.
    pub reason: &'static str,
}

impl FromStr for Reference {
    type Err = InvalidReference;

    fn from_str(text: &str) -> Result<Self, InvalidReference> {
        parse(text).map_err(|reason| InvalidReference {
            text: shown(text),
            reason,
        })
    }
}

impl fmt::Display for Reference {
    /// The full form.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.path)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

impl Reference {
    /// The short form that people write: `nginx:latest`.
    pub fn familiar(&self) -> String {
        let full = self.to_string();
        let Some(short) = full
            .strip_prefix(DEFAULT_REGISTRY)
            .and_then(|s| s.strip_prefix('/'))
        else {
            return full;
        };
        let familiar = short.strip_prefix(OFFICIAL_PREFIX).unwrap_or(short);
        // A path such as "library/a/b" or "library/localhost" would change its meaning.
        match familiar.parse::<Self>() {
            Ok(same) if same == *self => familiar.to_owned(),
            Ok(_) | Err(_) => short.to_owned(),
        }
    }

    /// What a registry is asked for: the digest, or else the tag.
    pub fn version(&self) -> &str {
        self.digest
            .as_deref()
            .or(self.tag.as_deref())
            .unwrap_or(DEFAULT_TAG)
    }
}

/// The name as lists show it: without the digest, where there is a tag to go by.
#[must_use]
pub fn without_digest(image: &str) -> &str {
    match image.split_once('@') {
        Some((name, _)) if name.rfind(':') > name.rfind('/') => name,
        Some(_) | None => image,
    }
}

fn parse(text: &str) -> Result<Reference, &'static str> {
    if text.is_empty() {
        return Err("it is empty");
    }
    let (rest, digest) = match text.split_once('@') {
        Some((rest, digest)) => (rest, Some(digest)),
        None => (text, None),
    };
    let path_start = rest.rfind('/').map_or(0, |slash| slash + 1);
    let (name, tag) = match rest.rfind(':').filter(|colon| *colon >= path_start) {
        Some(colon) => (rest.get(..colon).unwrap_or(""), rest.get(colon + 1..)),
        None => (rest, None),
    };
    if name.is_empty() {
        return Err("it has no path");
    }
    if name.len() == 64 && name.bytes().all(is_lower_hex) {
        return Err("64 hexadecimal digits are an image id, not a name");
    }
    let (registry, path) = split_registry(name);
    check_registry(&registry)?;
    check_path(&path)?;
    if registry.len() + 1 + path.len() > NAME_MAX {
        return Err("registry and path together have more than 255 characters");
    }
    if tag.is_some_and(|tag| !is_tag(tag)) {
        return Err("its tag is not 1 to 128 letters, digits, '_', '.' or '-'");
    }
    if digest.is_some_and(|digest| !is_digest(digest)) {
        return Err("its digest is not sha256:, sha384: or sha512: and its hexadecimal digits");
    }
    let tag = tag.or((digest.is_none()).then_some(DEFAULT_TAG));
    Ok(Reference {
        registry,
        path,
        tag: tag.map(str::to_owned),
        digest: digest.map(str::to_owned),
    })
}

/// The first component is a registry when it can't be a path: it has a dot, a port or capitals,
/// or is "localhost".
fn split_registry(name: &str) -> (String, String) {
    let (registry, path) = match name.split_once('/') {
        Some((first, path))
            if first.contains(['.', ':'])
                || first == "localhost"
                || first.bytes().any(|b| b.is_ascii_uppercase()) =>
        {
            (first, path)
        }
        _ => (DEFAULT_REGISTRY, name),
    };
    if registry != DEFAULT_REGISTRY && registry != LEGACY_DEFAULT_REGISTRY {
        return (registry.to_owned(), path.to_owned());
    }
    let official = if path.contains('/') {
        ""
    } else {
        OFFICIAL_PREFIX
    };
    (DEFAULT_REGISTRY.to_owned(), format!("{official}{path}"))
}

fn check_registry(registry: &str) -> Result<(), &'static str> {
    let (host, port) = if let Some(v6) = registry.strip_prefix('[') {
        let (address, after) = v6
            .split_once(']')
            .ok_or("its registry has '[' without the closing ']'")?;
        if address.parse::<std::net::Ipv6Addr>().is_err() {
            return Err("its registry is not an IPv6 address in brackets");
        }
        match after.strip_prefix(':') {
            Some(port) => ("v6", Some(port)),
            None if after.is_empty() => ("v6", None),
            None => return Err("its registry has text after ']'"),
        }
    } else {
        match registry.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (registry, None),
        }
    };
    let label = |l: &str| {
        !l.is_empty()
            && !l.starts_with('-')
            && !l.ends_with('-')
            && l.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
    };
    if !host.split('.').all(label) {
        return Err("its registry is not a host name or address");
    }
    if port.is_some_and(|p| !p.bytes().all(|b| b.is_ascii_digit()) || p.parse::<u16>().is_err()) {
        return Err("its registry's port is not a number of 0 to 65535");
    }
    Ok(())
}

fn check_path(path: &str) -> Result<(), &'static str> {
    if path.bytes().any(|b| b.is_ascii_uppercase()) {
        return Err("a path has lower-case letters only");
    }
    if path.split('/').all(is_path_component) {
        return Ok(());
    }
    Err("its path is not lower-case letters and digits, separated by '/', '.', '_', '__' or '-'")
}

/// Letters and digits, with one '.', one or two '_', or any number of '-' between them.
fn is_path_component(component: &str) -> bool {
    let alphanumeric = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let edge = |b: Option<u8>| b.is_some_and(alphanumeric);
    if !edge(component.bytes().next()) || !edge(component.bytes().last()) {
        return false;
    }
    component
        .split(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
        .all(|separator| {
            matches!(separator, "" | "." | "_" | "__") || separator.bytes().all(|b| b == b'-')
        })
}

fn is_tag(tag: &str) -> bool {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    tag.len() <= TAG_MAX
        && tag.bytes().next().is_some_and(word)
        && tag.bytes().all(|b| word(b) || b == b'.' || b == b'-')
}

fn is_lower_hex(b: u8) -> bool {
    b.is_ascii_digit() || (b'a'..=b'f').contains(&b)
}

fn is_digest(digest: &str) -> bool {
    let (algorithm, hex) = digest.split_once(':').unwrap_or((digest, ""));
    let len = match algorithm {
        "sha256" => 64,
        "sha384" => 96,
        "sha512" => 128,
        _ => return false,
    };
    hex.len() == len && hex.bytes().all(is_lower_hex)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn full(text: &str) -> String {
        text.parse::<Reference>().unwrap().to_string()
    }

    #[test]
    fn short_forms_mean_docker_hub() {
        let hex = "a".repeat(64);
        for (text, want) in [
            ("nginx", "docker.io/library/nginx:latest"),
            ("nginx:1.25-alpine", "docker.io/library/nginx:1.25-alpine"),
            ("me/app", "docker.io/me/app:latest"),
            ("docker.io/nginx", "docker.io/library/nginx:latest"),
            ("index.docker.io/nginx:1", "docker.io/library/nginx:1"),
            ("localhost/app", "localhost/app:latest"),
            ("localhost:5000/a/b/c:v1", "localhost:5000/a/b/c:v1"),
            ("127.0.0.1:5000/web", "127.0.0.1:5000/web:latest"),
            ("[::1]:5000/web", "[::1]:5000/web:latest"),
            ("Registry/app", "Registry/app:latest"),
            ("localhost:5000", "docker.io/library/localhost:5000"),
            ("a__b/c--d.e_f", "docker.io/a__b/c--d.e_f:latest"),
        ] {
            assert_eq!(full(text), want, "{text}");
        }
        let digest = format!("nginx@sha256:{hex}");
        assert_eq!(full(&digest), format!("docker.io/library/{digest}"));
        let both: Reference = format!("nginx:1@sha256:{hex}").parse().unwrap();
        assert_eq!(both.tag.as_deref(), Some("1"));
        assert_eq!(both.version(), format!("sha256:{hex}"));
    }

    #[test]
    fn refuses_what_is_no_reference() {
        let id = "a".repeat(64);
        let long = format!("example.com/{}", "a/".repeat(130)) + "a";
        for text in [
            "",
            ":",
            "@",
            "/",
            "a//b",
            "/a",
            "a/",
            "Nginx",
            "docker.io/Nginx",
            "a b",
            "a\n",
            "nginx:",
            "nginx:-1",
            "nginx:a b",
            "nginx@",
            "nginx@sha256:abc",
            "a@md5:00",
            "-a",
            "a-",
            "a..b",
            "a___b",
            "http://x/y",
            "host:99999/a",
            "host:x/a",
            "[::1/a",
            "[x]/a",
            "-h.com/a",
            "é",
            id.as_str(),
            long.as_str(),
        ] {
            assert!(text.parse::<Reference>().is_err(), "{text:?}");
        }
        let error = "Nginx".parse::<Reference>().unwrap_err().to_string();
        assert!(error.contains("lower-case"), "{error}");
    }

    #[test]
    fn a_digest_is_left_out_where_a_tag_says_enough() {
        assert_eq!(without_digest("nginx:1@sha256:ab"), "nginx:1");
        assert_eq!(
            without_digest("r:5000/nginx@sha256:ab"),
            "r:5000/nginx@sha256:ab"
        );
        assert_eq!(without_digest("r:5000/nginx:1@sha256:ab"), "r:5000/nginx:1");
        assert_eq!(without_digest("nginx"), "nginx");
    }

    #[test]
    fn familiar_forms() {
        for text in ["nginx:latest", "me/app:1", "quay.io/a/b:2", "localhost/a:1"] {
            assert_eq!(text.parse::<Reference>().unwrap().familiar(), text);
        }
        let nested: Reference = "docker.io/library/a/b:1".parse().unwrap();
        assert_eq!(nested.familiar(), "library/a/b:1");
    }

    proptest! {
        #[test]
        fn never_panics_and_the_full_form_is_stable(text in "[a-zA-Z0-9:/@._\\[\\]-]{0,40}|.*") {
            if let Ok(reference) = text.parse::<Reference>() {
                prop_assert_eq!(reference.to_string().parse::<Reference>().unwrap(), reference.clone());
                prop_assert_eq!(reference.familiar().parse::<Reference>().unwrap(), reference);
            }
        }
    }
}
