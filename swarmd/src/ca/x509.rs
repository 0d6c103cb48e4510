//! Reading PEM and X.509: the few facts of a certificate that the cluster uses.
//!
//! Nothing here decides whether a certificate is trusted.

use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use swarm_proto::id::InvalidId;
use swarm_proto::time::Timestamp;
use x509_parser::prelude::{FromDer, X509Certificate};

/// Bytes a PEM file or field may have: a chain of three P-256 certificates is about 3 KiB.
pub(crate) const MAX_PEM_BYTES: usize = 64 * 1024;

/// Why a piece of PEM could not be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PemProblem {
    /// No bytes at all.
    #[error("it is empty")]
    Empty,
    /// A PEM block begins and does not end.
    #[error("it is truncated: the PEM block has no end line")]
    Truncated,
    /// Anything else.
    #[error("it is corrupted: {0}")]
    Corrupted(String),
}

/// Why a certificate names no node of a cluster.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SubjectError {
    /// The DER does not parse.
    #[error("the certificate does not parse: {0}")]
    Malformed(String),
    /// The OU is no role.
    #[error("the certificate's OU {0:?} is no role (swarm-manager or swarm-worker)")]
    Role(String),
    /// CN or O is no id.
    #[error("the certificate's subject is no node's: {0}")]
    Id(#[from] InvalidId),
}

impl From<pem::Error> for PemProblem {
    fn from(error: pem::Error) -> Self {
        #[allow(
            clippy::wildcard_enum_match_arm,
            reason = "a foreign, non-exhaustive enum"
        )]
        match error {
            pem::Error::MissingSectionEnd { .. } => Self::Truncated,
            pem::Error::NoItemsFound => Self::Corrupted("no PEM block of the right kind".into()),
            pem::Error::Base64Decode(_) => Self::Corrupted("the base64 text is invalid".into()),
            other => Self::Corrupted(other.to_string()),
        }
    }
}

fn check_size(text: &[u8]) -> Result<(), PemProblem> {
    if text.iter().all(u8::is_ascii_whitespace) {
        return Err(PemProblem::Empty);
    }
    if text.len() > MAX_PEM_BYTES {
        let reason = format!(
            "{} bytes where at most {MAX_PEM_BYTES} are expected",
            text.len()
        );
        return Err(PemProblem::Corrupted(reason));
    }
    Ok(())
}

/// The certificates of a PEM text, at least one, each parsing as X.509.
pub(crate) fn certs_from_pem(text: &[u8]) -> Result<Vec<CertificateDer<'static>>, PemProblem> {
    check_size(text)?;
    let certs = CertificateDer::pem_slice_iter(text).collect::<Result<Vec<_>, _>>()?;
    if certs.is_empty() {
        return Err(pem::Error::NoItemsFound.into());
    }
    for cert in &certs {
        parse(cert).map_err(|e| PemProblem::Corrupted(e.to_string()))?;
    }
    Ok(certs)
}

/// The first PKCS#8 key of a PEM text.
pub(crate) fn key_from_pem(text: &[u8]) -> Result<PrivatePkcs8KeyDer<'static>, PemProblem> {
    check_size(text)?;
    Ok(PrivatePkcs8KeyDer::from_pem_slice(text)?)
}

/// Parses one DER certificate that fills the slice.
pub(crate) fn parse(der: &[u8]) -> Result<X509Certificate<'_>, SubjectError> {
    match X509Certificate::from_der(der) {
        Ok(([], cert)) => Ok(cert),
        Ok((rest, _)) => Err(SubjectError::Malformed(format!(
            "{} bytes follow its end",
            rest.len()
        ))),
        Err(e) => Err(SubjectError::Malformed(e.to_string())),
    }
}

/// What the cluster reads from a certificate.
#[derive(Debug, Clone)]
pub(crate) struct Facts {
    pub(crate) common_name: String,
    pub(crate) organizational_unit: String,
    pub(crate) organization: String,
    pub(crate) not_before: Timestamp,
    pub(crate) not_after: Timestamp,
}

/// Reads subject and validity. A missing subject part is an empty string.
pub(crate) fn facts(der: &[u8]) -> Result<Facts, SubjectError> {
    let cert = parse(der)?;
    let subject = cert.subject();
    let text = |attribute: Option<&x509_parser::x509::AttributeTypeAndValue<'_>>| {
        attribute
            .and_then(|a| a.as_str().ok())
            .unwrap_or_default()
            .to_owned()
    };
    let seconds = |s: i64| Timestamp(s.saturating_mul(1_000_000_000));
    Ok(Facts {
        common_name: text(subject.iter_common_name().next()),
        organizational_unit: text(subject.iter_organizational_unit().next()),
        organization: text(subject.iter_organization().next()),
        not_before: seconds(cert.validity().not_before.timestamp()),
        not_after: seconds(cert.validity().not_after.timestamp()),
    })
}

/// The one of `roots` that `chain` (leaf first) leads to by signatures, time left out of account;
/// `None` where there is none. Intermediates that are not needed are left out of account too: after a
/// change of root a chain still has the one that led to the old root.
pub(crate) fn issuing_root<'r>(
    chain: &[CertificateDer<'_>],
    roots: &'r [CertificateDer<'static>],
) -> Option<&'r CertificateDer<'static>> {
    let mut child: Option<X509Certificate<'_>> = None;
    for cert in chain {
        let cert = parse(cert).ok()?;
        if child.is_some_and(|child| !signed_by(&child, &cert)) {
            return None;
        }
        let by = |root: &&CertificateDer<'_>| parse(root).is_ok_and(|root| signed_by(&cert, &root));
        if let Some(root) = roots.iter().find(by) {
            return Some(root);
        }
        child = Some(cert);
    }
    None
}

pub(super) fn signed_by(child: &X509Certificate<'_>, issuer: &X509Certificate<'_>) -> bool {
    child.issuer() == issuer.subject() && child.verify_signature(Some(issuer.public_key())).is_ok()
}
