//! External CAs: how an operator says one, and what has to be true of its address wherever it comes
//! from.

use std::collections::BTreeMap;

use crate::fields::fields;
use crate::invalid::shown;
use crate::pb;

/// How one is said: Docker's form.
pub const FORM: &str = "protocol=cfssl,url=https://HOST[:PORT]/PATH[,cacert=FILE][,KEY=VALUE]";
/// Most of them. They are asked one after the other while a node waits for its certificate, each for
/// some seconds.
pub const EXTERNAL_CAS_MAX: usize = 8;
/// Bytes of an address: what web servers commonly take.
const URL_BYTES_MAX: usize = 2048;

/// An external CA as it was said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Said {
    /// Where it answers.
    pub url: String,
    /// What else was said, as it is.
    pub options: BTreeMap<String, String>,
    /// File with the root certificate that it signs under.
    pub ca_cert: Option<String>,
}

impl Said {
    /// Reads a text.
    ///
    /// # Errors
    /// All that is wrong with it.
    pub fn parse(text: &str) -> Result<Self, Vec<String>> {
        let given = fields(text).map_err(|reason| vec![format!("{reason}; give {FORM}")])?;
        let mut problems = Vec::new();
        let mut said = BTreeMap::new();
        for (key, value) in given {
            match value.filter(|value| !value.is_empty()) {
                // The value may be a secret.
                None => problems.push(format!("{} has no value; give KEY=VALUE", shown(&key))),
                Some(_) if said.contains_key(&key) => {
                    problems.push(format!("{} is given twice; give it once", shown(&key)));
                }
                Some(value) => drop(said.insert(key, value)),
            }
        }
        match said.remove("protocol") {
            None => problems.push("it has no protocol; give protocol=cfssl".to_owned()),
            Some(name) if name.eq_ignore_ascii_case("cfssl") => {}
            Some(name) => problems.push(format!(
                "protocol {} is not known; give protocol=cfssl, the only one",
                shown(&name)
            )),
        }
        let ca_cert = said.remove("cacert");
        let url = said.remove("url").unwrap_or_default();
        if url.is_empty() {
            problems.push(
                "it has no url; give url=https://… as the server's signing address".to_owned(),
            );
        } else if let Err(reason) = check_url(&url) {
            problems.push(format!("url {reason}"));
        }
        match problems.is_empty() {
            true => Ok(Self {
                url,
                options: said,
                ca_cert,
            }),
            false => Err(problems),
        }
    }

    /// On the wire, with the root certificate that was read.
    #[must_use]
    pub fn into_wire(self, ca_cert: Vec<u8>) -> pb::ExternalCa {
        pb::ExternalCa {
            protocol: pb::external_ca::CaProtocol::Cfssl.into(),
            url: self.url,
            options: self.options,
            ca_cert,
        }
    }
}

/// Whether certificates can be asked for there.
///
/// # Errors
/// Why not, with the address unless it holds a secret.
pub fn check_url(url: &str) -> Result<(), String> {
    let bad = |reason: &str| Err(format!("{}: {reason}", shown(url)));
    if url.len() > URL_BYTES_MAX {
        return bad("is longer than 2048 bytes");
    }
    let Some(rest) = url.strip_prefix("https://") else {
        return bad("is not an https:// address");
    };
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    if authority.contains('@') {
        // Not repeated: it would be shown and logged.
        return Err(
            "holds a user or a password; leave it out: managers show their certificates instead"
                .to_owned(),
        );
    }
    if url.chars().any(|c| c.is_whitespace() || c.is_control()) {
        return bad("has a blank in it");
    }
    if rest.contains('#') {
        return bad("has a fragment (#), which no server is sent");
    }
    // An IPv6 address has colons between its brackets.
    let after = authority.rfind(']').map_or(0, |at| at + 1);
    let (host, port) = match authority.get(after..).and_then(|end| end.rfind(':')) {
        Some(at) => authority.split_at(after + at),
        None => (authority, ""),
    };
    if host.is_empty() {
        return bad("names no host");
    }
    match port.strip_prefix(':').map(str::parse::<u16>) {
        None => Ok(()),
        Some(Ok(port)) if port > 0 => Ok(()),
        Some(Ok(_) | Err(_)) => bad("has a port that is none"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_can_be_said() {
        let said = |text| Said::parse(text).unwrap();
        let plain = said("protocol=cfssl,url=https://ca.example:8888/api/v1/cfssl/sign");
        assert_eq!(plain.url, "https://ca.example:8888/api/v1/cfssl/sign");
        assert_eq!((plain.options.len(), &plain.ca_cert), (0, &None));
        let full = said(
            "protocol=CFSSL,\"url=https://[fd00::1]:8888/sign?a=1,2\",cacert=/root/ca.pem,Label=nodes",
        );
        assert_eq!(full.url, "https://[fd00::1]:8888/sign?a=1,2");
        assert_eq!(full.ca_cert.as_deref(), Some("/root/ca.pem"));
        assert_eq!(full.options["label"], "nodes");
        let wire = full.into_wire(b"pem".to_vec());
        assert_eq!((wire.protocol, wire.ca_cert.as_slice()), (0, &b"pem"[..]));
        for url in ["https://ca", "https://10.0.0.1:1/", "https://[::1]"] {
            assert_eq!(check_url(url), Ok(()), "{url}");
        }
    }

    #[test]
    fn all_that_is_wrong_is_said_at_once() {
        for (text, expected) in [
            ("", &["a field is empty"][..]),
            ("x=\"1", &["quote"]),
            ("label=x", &["no protocol", "no url"]),
            ("protocol=cfssl", &["no url"]),
            ("url=https://ca/sign", &["no protocol"]),
            (
                "protocol=acme,url=http://ca",
                &["protocol \"acme\" is not known", "not an https://"],
            ),
            ("protocol=cfssl,url=", &["url\" has no value", "no url"]),
            (
                "protocol=cfssl,url=https://a,url=https://b,cacert",
                &["url\" is given twice", "cacert\" has no value"],
            ),
            ("protocol=cfssl,url=https://", &["names no host"]),
            ("protocol=cfssl,url=https://:1/", &["names no host"]),
            ("protocol=cfssl,url=https://ca:0/", &["port"]),
            ("protocol=cfssl,url=https://ca:x/", &["port"]),
            ("protocol=cfssl,url=https://c a/", &["blank"]),
            ("protocol=cfssl,url=https://ca/#x", &["fragment"]),
        ] {
            let problems = Said::parse(text).unwrap_err();
            assert_eq!(problems.len(), expected.len(), "{text}: {problems:?}");
            for (problem, part) in problems.iter().zip(expected) {
                assert!(problem.contains(part), "{text}: {problem}");
            }
        }
        let secret = Said::parse("protocol=cfssl,url=https://me:secret@ca/").unwrap_err();
        assert!(!format!("{secret:?}").contains("secret@"), "{secret:?}");
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_read_or_refused(text: String) {
            let _ = Said::parse(&text);
            let _ = check_url(&format!("https://{text}"));
        }
    }
}
