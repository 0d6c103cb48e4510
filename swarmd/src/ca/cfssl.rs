//! CFSSL's signing protocol, as SwarmKit speaks it: what is sent, what an answer says, and whether
//! the certificate in it is the one that was asked for.
//!
//! Pure. An external CA is trusted to hold the root's key, not to be free of mistakes: what it
//! returns is recorded only if the node's peers will take it as that node's.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use rustls::pki_types::CertificateDer;
use serde::{Deserialize, Serialize};
use swarm_proto::time::Timestamp;

use super::client::renewal_time;
use super::root::{NodeSubject, format_time};
use super::roots::to_pem;
use super::x509::{self, PemProblem, SubjectError};
use super::{PeerIdentity, tls};

/// The profile that a root is cross-signed by; SwarmKit's.
const CROSS_PROFILE: &str = "CA";
/// Characters of what a server says that are repeated in logs and answers.
const SAID_MAX: usize = 200;
/// Errors of one answer that are repeated.
const ERRORS_MAX: usize = 3;

/// A certificate that ends sooner would keep its node renewing.
const LEAST_LEFT: Duration = Duration::from_secs(60);

/// The options of an external CA that go with each request for a node's certificate.
const PROFILE: &str = "profile";
const LABEL: &str = "label";

/// A request, in CFSSL's words.
#[derive(Debug, Serialize)]
pub(crate) struct SignRequest {
    hosts: Vec<String>,
    certificate_request: String,
    subject: Subject,
    #[serde(skip_serializing_if = "String::is_empty")]
    profile: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    label: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    extensions: Vec<Extension>,
}

#[derive(Debug, Serialize)]
struct Subject {
    #[serde(rename = "CN")]
    common_name: String,
    names: Vec<BTreeMap<&'static str, String>>,
}

#[derive(Debug, Serialize)]
struct Extension {
    id: String,
    critical: bool,
    /// DER, in hexadecimal digits.
    value: String,
}

impl SignRequest {
    /// For the certificate of a node.
    pub(crate) fn node(
        csr: &str,
        subject: &NodeSubject,
        options: &BTreeMap<String, String>,
    ) -> Self {
        let option = |name: &str| options.get(name).cloned().unwrap_or_default();
        let unit = subject.role.organizational_unit().to_owned();
        let names = BTreeMap::from([("O", subject.cluster_id.to_string()), ("OU", unit)]);
        Self {
            hosts: subject.host_names(),
            certificate_request: csr.to_owned(),
            subject: Subject {
                common_name: subject.node_id.to_string(),
                names: vec![names],
            },
            profile: option(PROFILE),
            label: option(LABEL),
            extensions: Vec::new(),
        }
    }

    /// For the certificate of a root, signed by another.
    ///
    /// # Errors
    /// When the root can't be read.
    pub(crate) fn cross(
        csr: &str,
        root: &CertificateDer<'_>,
        options: &BTreeMap<String, String>,
    ) -> Result<Self, SubjectError> {
        let root = x509::parse(root)?;
        let subject = root.subject();
        let text = |a: &x509_parser::x509::AttributeTypeAndValue<'_>| {
            a.as_str().unwrap_or_default().to_owned()
        };
        let common_name = subject.iter_common_name().next().map(text);
        let mut names = BTreeMap::new();
        names.extend(subject.iter_country().next().map(|a| ("C", text(a))));
        let state = subject.iter_state_or_province().next();
        names.extend(state.map(|a| ("ST", text(a))));
        names.extend(subject.iter_locality().next().map(|a| ("L", text(a))));
        names.extend(subject.iter_organization().next().map(|a| ("O", text(a))));
        let unit = subject.iter_organizational_unit().next();
        names.extend(unit.map(|a| ("OU", text(a))));
        // Of a CSR's extensions CFSSL takes the names alone.
        let constraints = |ext: &&x509_parser::extensions::X509Extension<'_>| {
            ext.oid == x509_parser::oid_registry::OID_X509_EXT_BASIC_CONSTRAINTS
        };
        let extensions = root.extensions().iter().filter(constraints);
        Ok(Self {
            hosts: Vec::new(),
            certificate_request: csr.to_owned(),
            subject: Subject {
                common_name: common_name.unwrap_or_default(),
                names: (!names.is_empty()).then_some(names).into_iter().collect(),
            },
            profile: CROSS_PROFILE.to_owned(),
            label: options.get(LABEL).cloned().unwrap_or_default(),
            extensions: extensions
                .map(|ext| Extension {
                    id: ext.oid.to_id_string(),
                    critical: ext.critical,
                    value: hex(ext.value),
                })
                .collect(),
        })
    }

    pub(crate) fn to_json(&self) -> String {
        // Texts in lists and maps with text keys: there is nothing that JSON can't say.
        serde_json::to_string(self).unwrap_or_default()
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        // A string takes all that is written to it.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Why there is no certificate in an answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NoCertificate {
    /// The server says why.
    #[error("it refuses: {0}")]
    Refused(String),
    /// It is no answer of a CFSSL server.
    #[error("its answer is none of a CFSSL server's: {0}")]
    Junk(String),
}

#[derive(Deserialize)]
struct Answer {
    success: bool,
    #[serde(default)]
    result: Option<serde_json::Value>,
    #[serde(default)]
    errors: Option<Vec<Fault>>,
}

#[derive(Deserialize)]
struct Fault {
    #[serde(default)]
    code: i64,
    #[serde(default)]
    message: String,
}

/// The certificate of an answer, in PEM.
///
/// # Errors
/// What is there instead.
pub(crate) fn certificate(answer: &[u8]) -> Result<String, NoCertificate> {
    let answer: Answer =
        serde_json::from_slice(answer).map_err(|e| NoCertificate::Junk(said(&e.to_string())))?;
    if !answer.success {
        return Err(NoCertificate::Refused(faults(
            &answer.errors.unwrap_or_default(),
        )));
    }
    let certificate = answer.result.as_ref().and_then(|r| r.get("certificate"));
    let pem = certificate.and_then(serde_json::Value::as_str);
    pem.map(str::to_owned)
        .ok_or_else(|| NoCertificate::Junk("it says success and has no certificate".to_owned()))
}

fn faults(faults: &[Fault]) -> String {
    if faults.is_empty() {
        return "it does not say why".to_owned();
    }
    let each = faults.iter().take(ERRORS_MAX);
    let each = each.map(|fault| format!("{} (code {})", said(&fault.message), fault.code));
    each.collect::<Vec<_>>().join("; ")
}

/// A text of somebody else's for a log line: short, and on one line.
pub(crate) fn said(text: &str) -> String {
    let mut short: String = text.chars().take(SAID_MAX).collect();
    if short.len() < text.len() {
        short.push('…');
    }
    short.replace(char::is_control, " ")
}

/// Why a certificate from outside is not recorded.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unfit {
    /// It can't be read.
    #[error("it can't be used: {0}")]
    Pem(#[from] PemProblem),
    /// The wrong node, role or cluster.
    #[error("it is for {got}, and {asked} was asked for")]
    Subject {
        /// Of the certificate.
        got: String,
        /// Of the request.
        asked: String,
    },
    /// Its subject is no node's.
    #[error(transparent)]
    NoNode(#[from] SubjectError),
    /// Another key.
    #[error("it is not for the key of the request")]
    Key,
    /// A CA.
    #[error("it is a CA's certificate, and a node's is none")]
    Authority,
    /// Under another root, or an intermediate.
    #[error("it is not signed by the cluster's root itself")]
    Root,
    /// Too early or too late.
    #[error("it is valid from {from} to {to}, and it is {now}")]
    Time {
        /// Its beginning.
        from: String,
        /// Its end.
        to: String,
        /// The clock.
        now: String,
    },
    /// The node would ask for the next one at once, again and again.
    #[error(
        "it would be renewed at once: more than half of its time is over, or less than a minute is left (it is valid from {from} to {to})"
    )]
    NearlyOver {
        /// Its beginning.
        from: String,
        /// Its end.
        to: String,
    },
    /// Peers would refuse it.
    #[error("other nodes would not take it: {0}")]
    Untaken(#[from] rustls::Error),
}

/// What was asked for.
#[derive(Debug)]
pub(crate) struct Asked<'a> {
    /// Whose certificate.
    pub(crate) subject: &'a NodeSubject,
    /// DER of the public key.
    pub(crate) key: &'a [u8],
    /// The root that signs.
    pub(crate) root: &'a CertificateDer<'static>,
}

/// The certificate in the one form it is stored in: alone, for it is signed by the root itself.
///
/// # Errors
/// Why it is not what was asked for.
pub(crate) fn check(pem: &str, asked: &Asked<'_>, now: Timestamp) -> Result<String, Unfit> {
    let certs = x509::certs_from_pem(pem.as_bytes())?;
    let der = certs.first().ok_or(PemProblem::Empty)?;
    let (cert, root) = (x509::parse(der)?, x509::parse(asked.root)?);
    if cert.public_key().raw != asked.key {
        return Err(Unfit::Key);
    }
    let got = PeerIdentity::from_der(der)?;
    let NodeSubject {
        node_id,
        role,
        cluster_id,
    } = *asked.subject;
    if (got.node_id, got.role, got.cluster_id) != (node_id, role, cluster_id) {
        let words = |role, node, cluster| format!("{role} {node} of cluster {cluster}");
        return Err(Unfit::Subject {
            got: words(got.role, got.node_id, got.cluster_id),
            asked: words(role, node_id, cluster_id),
        });
    }
    if cert.is_ca() {
        return Err(Unfit::Authority);
    }
    // Nodes are told by who issued their certificate whether they have turned to a new root.
    if !x509::signed_by(&cert, &root) {
        return Err(Unfit::Root);
    }
    let facts = x509::facts(der)?;
    if now < facts.not_before || facts.not_after <= now {
        return Err(Unfit::Time {
            from: format_time(facts.not_before),
            to: format_time(facts.not_after),
            now: format_time(now),
        });
    }
    // The earliest that a node may choose to renew it.
    let renewed = renewal_time(facts.not_before, facts.not_after, 0);
    if renewed <= now || facts.not_after.since(now) < LEAST_LEFT {
        return Err(Unfit::NearlyOver {
            from: format_time(facts.not_before),
            to: format_time(facts.not_after),
        });
    }
    let alone = std::slice::from_ref(der);
    tls::verify((alone, role), std::slice::from_ref(asked.root), now)?;
    Ok(to_pem(der))
}

#[cfg(test)]
mod tests;
