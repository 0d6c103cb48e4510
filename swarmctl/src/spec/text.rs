//! Names, labels, images and other short texts.

use std::collections::BTreeMap;

pub(super) use swarm_proto::fields::fields;

use super::{Form, Problems};

/// SwarmKit's limit for names: a DNS label.
const NAME_LENGTH_MAX: usize = 63;

/// The name of a service.
pub(crate) const NAME: Form<String> = Form {
    accepted: "up to 63 letters, digits, - and _, with a letter or digit at both ends",
    parse: name,
};

/// A reference to an image.
pub(crate) const IMAGE: Form<String> = Form {
    accepted: "an image like nginx, nginx:1.27 or registry:5000/team/app@sha256:…",
    parse: image,
};

/// `KEY=VALUE`; a key alone has an empty value, as in Docker.
pub(crate) const KEY_VALUE: Form<(String, String)> = Form {
    accepted: "KEY=VALUE",
    parse: |text| key_value(text.split_once('=').unwrap_or((text, ""))),
};

/// `KEY=VALUE` where both are needed.
pub(crate) const SETTING: Form<(String, String)> = Form {
    accepted: "NAME=VALUE",
    parse: |text| key_value(text.split_once('=').ok_or("there is no =")?),
};

/// A key alone.
pub(crate) const KEY: Form<String> = Form {
    accepted: "the key alone",
    parse: key,
};

/// Any text but an empty one.
pub(crate) const FILLED: Form<String> = Form {
    accepted: "a text",
    parse: |text| {
        if text.trim().is_empty() {
            Err("empty".to_owned())
        } else {
            Ok(text.to_owned())
        }
    },
};

/// An absolute path.
pub(crate) const PATH: Form<String> = Form {
    accepted: "an absolute path",
    parse: path,
};

/// The last value of each key.
pub(crate) fn key_values(
    problems: &mut Problems,
    flag: &str,
    texts: &[String],
) -> BTreeMap<String, String> {
    problems.each(flag, texts, &KEY_VALUE).into_iter().collect()
}

pub(super) fn path(text: &str) -> Result<String, String> {
    if text.starts_with('/') {
        Ok(text.to_owned())
    } else {
        Err("not an absolute path".to_owned())
    }
}

fn key_value((key, value): (&str, &str)) -> Result<(String, String), String> {
    if key.trim().is_empty() {
        return Err("the key is empty".to_owned());
    }
    Ok((key.to_owned(), value.to_owned()))
}

fn key(text: &str) -> Result<String, String> {
    if text.trim().is_empty() {
        return Err("empty".to_owned());
    }
    if text.contains('=') {
        return Err("there is an =".to_owned());
    }
    Ok(text.to_owned())
}

fn name(text: &str) -> Result<String, String> {
    if text.is_empty() {
        return Err("empty".to_owned());
    }
    if text.len() > NAME_LENGTH_MAX {
        return Err(format!("{} characters long", text.len()));
    }
    if let Some(bad) = text
        .chars()
        .find(|c| !c.is_ascii_alphanumeric() && *c != '-' && *c != '_')
    {
        return Err(format!("has the character {bad:?}"));
    }
    let border = |c: char| c.is_ascii_alphanumeric();
    if !text.starts_with(border) || !text.ends_with(border) {
        return Err("starts or ends with - or _".to_owned());
    }
    Ok(text.to_owned())
}

fn image(text: &str) -> Result<String, String> {
    if text.is_empty() {
        return Err("empty".to_owned());
    }
    let (path, digest) = text
        .split_once('@')
        .map_or((text, None), |(path, digest)| (path, Some(digest)));
    if let Some(digest) = digest
        && !digest.split_once(':').is_some_and(|(algorithm, hex)| {
            !algorithm.is_empty() && hex.len() >= 32 && hex.bytes().all(|b| b.is_ascii_hexdigit())
        })
    {
        return Err("its digest is not ALGORITHM:HEX".to_owned());
    }
    let last = path.rfind('/').map_or(0, |slash| slash + 1);
    let (name, tag) = match path.get(last..).and_then(|file| file.find(':')) {
        Some(colon) => path.split_at(last + colon),
        None => (path, ""),
    };
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if !tag.is_empty() && (tag.len() < 2 || !tag.chars().skip(1).all(allowed)) {
        return Err("its tag is not made of letters, digits, _, . and -".to_owned());
    }
    let (host, repository) = match name.split_once('/') {
        Some((host, rest)) if host.contains(['.', ':']) || host == "localhost" => (host, rest),
        _ => ("", name),
    };
    if let Some(bad) = repository.chars().find(|c| !allowed(*c) && *c != '/') {
        return Err(format!("has the character {bad:?}"));
    }
    if repository.chars().any(|c| c.is_ascii_uppercase()) {
        return Err("its name has upper-case letters".to_owned());
    }
    if repository
        .split('/')
        .any(|part| !part.starts_with(|c: char| c.is_ascii_alphanumeric()))
    {
        return Err("a part of its name is empty or starts with a sign".to_owned());
    }
    if host.contains(|c: char| !allowed(c) && !matches!(c, ':' | '[' | ']')) {
        return Err("its registry is not HOST[:PORT]".to_owned());
    }
    Ok(text.to_owned())
}

/// The value of a field that needs one.
pub(super) fn needed(key: &str, value: Option<String>) -> Result<String, String> {
    value
        .filter(|value| !value.is_empty())
        .ok_or_else(|| format!("{key} has no value"))
}

/// The value of a switch: alone it is on.
pub(super) fn switch(key: &str, value: Option<&str>) -> Result<bool, String> {
    match value {
        None | Some("true" | "1") => Ok(true),
        Some("false" | "0") => Ok(false),
        Some(other) => Err(format!("{key} is true or false, not {other:?}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for good in ["web", "a", "Web_1-x", "1"] {
            assert_eq!(name(good).as_deref(), Ok(good));
        }
        for bad in ["", "-web", "web_", "we b", "wéb", "a.b", &"x".repeat(64)] {
            assert!(name(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn images() {
        let digest = format!("app@sha256:{}", "a".repeat(64));
        for good in [
            "nginx",
            "nginx:1.27",
            "localhost/App".to_lowercase().as_str(),
            "127.0.0.1:5000/web:v1",
            "Registry.local:5000/team/app",
            "library/a__b",
            digest.as_str(),
        ] {
            assert_eq!(image(good).as_deref(), Ok(good));
        }
        for bad in [
            "",
            "NGINX",
            "a b",
            "nginx:",
            "nginx:a:b",
            "/nginx",
            "a//b",
            "-x",
            "a@sha256",
            "a@sha256:xyz",
            "http://x/y",
        ] {
            assert!(image(bad).is_err(), "{bad}");
        }
    }
}
