//! Changing the root CA: what the next root has to be, its certificate signed by the old root, and
//! the texts that hold one root or, while the change goes on, two.
//!
//! ```text
//! who trusts old   leaf ── next root, cross-signed ── old root
//! who trusts next  leaf ── next root
//! ```
//!
//! A certificate issued under the next root goes with the cross-signed one, so it is taken by nodes
//! that know one root as by those that know both or only the next.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, DnValue, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SubjectPublicKeyInfo,
};
use rustls::pki_types::CertificateDer;
use swarm_proto::pb;
use swarm_proto::time::Timestamp;
use x509_parser::der_parser::asn1_rs::Tag;
use x509_parser::prelude::X509Certificate;
use x509_parser::x509::AttributeTypeAndValue;

use super::root::{RootCa, RootDigest, RootError, format_time, random_serial, set_validity};
use super::x509::{self, PemProblem};

/// A root that is rotated to has to last at least so long: SwarmKit's one year.
const LEAST_LIFE: Duration = Duration::from_secs(365 * 24 * 3600);
/// The line a certificate ends with.
const END: &str = "-----END CERTIFICATE-----";
/// Characters in a line of PEM (RFC 7468).
const PEM_LINE: usize = 64;

/// Why a certificate can't become the root.
#[derive(Debug, thiserror::Error)]
pub enum UnfitRoot {
    /// It can't be read.
    #[error("it can't be used: {0}")]
    Pem(PemProblem),
    /// Several certificates.
    #[error("it holds {0} certificates, and a root is one; give the root's alone")]
    Several(usize),
    /// A node's certificate, for example.
    #[error("it is not a CA's certificate")]
    NoCa,
    /// Signed by another one.
    #[error("it is not signed by its own key: only a self-signed root can be the cluster's")]
    NotSelfSigned,
    /// It ends too early.
    #[error("it expires at {0}, less than a year from now; give one that lasts longer")]
    Short(String),
    /// Its subject can't be written as it is.
    #[error(
        "its subject has a form that can't be signed by the present root; give each of its attributes as a UTF-8 or printable string"
    )]
    Subject,
    /// Key and certificate, or signing.
    #[error(transparent)]
    Root(#[from] RootError),
}

/// A root certificate for the cluster in the one form it is stored in.
///
/// # Errors
/// Why it can't be one.
pub fn fit(pem: &[u8], now: Timestamp) -> Result<String, UnfitRoot> {
    let certs = x509::certs_from_pem(pem).map_err(UnfitRoot::Pem)?;
    let [der] = certs.as_slice() else {
        return Err(UnfitRoot::Several(certs.len()));
    };
    let cert = parse(der)?;
    if !cert.is_ca() {
        return Err(UnfitRoot::NoCa);
    }
    if !x509::signed_by(&cert, &cert) {
        return Err(UnfitRoot::NotSelfSigned);
    }
    let end = x509::facts(der).map_err(malformed)?.not_after;
    if end < now.after(LEAST_LIFE) {
        return Err(UnfitRoot::Short(format_time(end)));
    }
    Ok(to_pem(der))
}

/// The certificate of `next` signed by `old`: same subject, same key.
///
/// # Errors
/// When the subject of `next` can't be kept as it is, or signing fails.
pub fn cross_sign(old: &RootCa, next_pem: &str, now: Timestamp) -> Result<String, UnfitRoot> {
    let certs = x509::certs_from_pem(next_pem.as_bytes()).map_err(UnfitRoot::Pem)?;
    let der = certs.first().ok_or(UnfitRoot::Pem(PemProblem::Empty))?;
    let next = parse(der)?;
    let crypto = |e: rcgen::Error| UnfitRoot::Root(RootError::Crypto(e));
    let key = SubjectPublicKeyInfo::from_der(next.public_key().raw).map_err(crypto)?;
    let mut params = CertificateParams::default();
    params.distinguished_name = name_of(&next).ok_or(UnfitRoot::Subject)?;
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.use_authority_key_identifier_extension = true;
    params.serial_number = random_serial();
    let end = x509::facts(der).map_err(malformed)?.not_after;
    set_validity(&mut params, now, end.min(old.not_after()));
    let issuer: &Issuer<'static, KeyPair> = old.issuer();
    let cross = params.signed_by(&key, issuer).map_err(crypto)?;
    // Issuer and subject are compared byte by byte where chains are checked.
    let made = parse(cross.der())?;
    match made.subject().as_raw() == next.subject().as_raw() {
        true => Ok(cross.pem()),
        false => Err(UnfitRoot::Subject),
    }
}

/// From when and until when the first certificate of a text is valid.
///
/// # Errors
/// When it can't be read.
pub fn validity(pem: &str) -> Result<(Timestamp, Timestamp), PemProblem> {
    let certs = x509::certs_from_pem(pem.as_bytes())?;
    let first = certs.first().ok_or(PemProblem::Empty)?;
    let facts = x509::facts(first).map_err(|e| PemProblem::Corrupted(e.to_string()))?;
    Ok((facts.not_before, facts.not_after))
}

/// What nodes are to trust: the root, and while it changes the next one too.
#[must_use]
pub fn trusted(root: &pb::RootCa) -> Vec<u8> {
    let mut bundle = root.ca_cert.clone();
    if let Some(rotation) = &root.root_rotation {
        if !bundle.ends_with(b"\n") {
            bundle.push(b'\n');
        }
        bundle.extend_from_slice(&rotation.ca_cert);
    }
    bundle
}

/// The digests of the roots in a text of several, each as it was put in.
pub(crate) fn digests(bundle: &str) -> Vec<RootDigest> {
    let mut digests = Vec::new();
    let mut rest = bundle;
    while let Some(at) = rest.find(END) {
        let mut end = at + END.len();
        let line_end = rest.get(end..).unwrap_or_default();
        end += ["\r\n", "\n"]
            .iter()
            .find(|eol| line_end.starts_with(**eol))
            .map_or(0, |eol| eol.len());
        let (one, more) = rest.split_at(end);
        digests.push(RootDigest::of(one.as_bytes()));
        rest = more;
    }
    digests
}

/// A root as nodes report it: who issued their certificate, and whom they trust.
#[derive(Debug, Clone)]
pub(crate) struct Reported {
    der: CertificateDer<'static>,
    /// DER of its public key.
    pub(crate) public_key: Vec<u8>,
}

impl Reported {
    /// None where the text is no certificate.
    pub(crate) fn of(pem: &[u8]) -> Option<Self> {
        let der = x509::certs_from_pem(pem).ok()?.into_iter().next()?;
        let public_key = x509::parse(&der).ok()?.public_key().raw.to_vec();
        Some(Self { der, public_key })
    }

    /// Whether the certificate a node uses was issued under this root.
    pub(crate) fn has_issued(&self, info: Option<&pb::NodeTlsInfo>) -> bool {
        info.is_some_and(|info| info.cert_issuer_public_key == self.public_key)
    }

    /// Whether a node trusts this root.
    pub(crate) fn is_trusted(&self, info: Option<&pb::NodeTlsInfo>) -> bool {
        let trusted = info.and_then(|info| x509::certs_from_pem(&info.trust_root).ok());
        trusted.is_some_and(|roots| roots.contains(&self.der))
    }
}

fn parse<'a>(der: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, UnfitRoot> {
    x509::parse(der).map_err(malformed)
}

fn malformed(error: x509::SubjectError) -> UnfitRoot {
    UnfitRoot::Pem(PemProblem::Corrupted(error.to_string()))
}

/// The subject, each attribute in the form it has.
fn name_of(cert: &X509Certificate<'_>) -> Option<DistinguishedName> {
    let mut name = DistinguishedName::new();
    for attribute in cert.subject().iter_attributes() {
        let oid: Vec<u64> = attribute.attr_type().iter()?.collect();
        name.push(DnType::from_oid(&oid), value_of(attribute)?);
    }
    Some(name)
}

fn value_of(attribute: &AttributeTypeAndValue<'_>) -> Option<DnValue> {
    let text = std::str::from_utf8(attribute.attr_value().data).ok()?;
    match attribute.attr_value().tag() {
        Tag::Utf8String => Some(DnValue::Utf8String(text.to_owned())),
        Tag::PrintableString => Some(DnValue::PrintableString(text.try_into().ok()?)),
        Tag::Ia5String => Some(DnValue::Ia5String(text.try_into().ok()?)),
        _ => None,
    }
}

fn to_pem(der: &CertificateDer<'_>) -> String {
    let text = STANDARD.encode(der);
    let mut pem = String::from("-----BEGIN CERTIFICATE-----\n");
    let mut rest = text.as_str();
    while !rest.is_empty() {
        // Base64 is ASCII: every index is a boundary.
        let (line, more) = rest.split_at(rest.len().min(PEM_LINE));
        pem.push_str(line);
        pem.push('\n');
        rest = more;
    }
    pem.push_str(END);
    pem.push('\n');
    pem
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ca::root::{DEFAULT_NODE_CERT_LIFE, NodeSubject, new_key_and_csr};
    use crate::ca::testing::{NOW, TestCa};
    use crate::ca::{NodeIdentity, Role};
    use swarm_proto::id::NodeId;

    fn with_subject(push: impl Fn(&mut DistinguishedName), life: Duration) -> RootCa {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        push(&mut params.distinguished_name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        set_validity(&mut params, NOW, NOW.after(life));
        let pem = params.self_signed(&key).unwrap().pem();
        RootCa::from_pem(&pem, &key.serialize_pem()).unwrap()
    }

    /// Under `next`, with the intermediate that leads to `old`.
    fn crossed(old: &TestCa, next: &RootCa) -> (String, String) {
        let cross = cross_sign(&old.root, next.cert_pem(), NOW).unwrap();
        let (key, csr) = new_key_and_csr().unwrap();
        let subject = NodeSubject {
            node_id: NodeId::from_raw(1),
            role: Role::Worker,
            cluster_id: old.cluster_id,
        };
        let leaf = next.issue(csr.as_bytes(), &subject, DEFAULT_NODE_CERT_LIFE, NOW);
        (format!("{}{cross}", leaf.unwrap()), (*key).clone())
    }

    #[test]
    fn who_trusts_either_root_takes_the_chain() {
        let old = TestCa::new(1);
        let years = DEFAULT_NODE_CERT_LIFE * 40;
        let plain = RootCa::generate(NOW).unwrap();
        let printable = |text: &str| DnValue::PrintableString(text.try_into().unwrap());
        let named = with_subject(
            |name| {
                name.push(DnType::CountryName, printable("CH"));
                name.push(DnType::OrganizationName, "Bäckerei");
                name.push(DnType::CommonName, printable("Root 2"));
            },
            years,
        );
        for next in [plain, named] {
            let (chain, key) = crossed(&old, &next);
            let both = format!("{}{}", old.root.cert_pem(), next.cert_pem());
            for trusted in [old.root.cert_pem(), next.cert_pem(), &both] {
                let identity = NodeIdentity::from_pem(&chain, &key, trusted).unwrap();
                let info = identity.tls_info();
                let root = Reported::of(next.cert_pem().as_bytes()).unwrap();
                assert!(root.has_issued(Some(&info)));
                assert_eq!(root.is_trusted(Some(&info)), trusted != old.root.cert_pem());
                let old = Reported::of(old.root.cert_pem().as_bytes()).unwrap();
                assert!(!old.has_issued(Some(&info)));
            }
            let other = TestCa::new(1);
            assert!(NodeIdentity::from_pem(&chain, &key, other.root.cert_pem()).is_err());
        }
    }

    #[test]
    fn a_bundle_has_each_root_as_it_was() {
        let roots = [TestCa::new(1), TestCa::new(1)];
        let root = pb::RootCa {
            ca_cert: roots[0].root.cert_pem().trim_end().as_bytes().to_vec(),
            root_rotation: Some(pb::RootRotation {
                ca_cert: roots[1].root.cert_pem().as_bytes().to_vec(),
                ..Default::default()
            }),
            ..Default::default()
        };
        let bundle = String::from_utf8(trusted(&root)).unwrap();
        assert_eq!(x509::certs_from_pem(bundle.as_bytes()).unwrap().len(), 2);
        let expected = roots.each_ref().map(|ca| ca.root.digest());
        assert_eq!(digests(&bundle), expected);
        assert_eq!(digests(""), []);
        let one = roots[0].root.cert_pem();
        assert_eq!(digests(one), [RootDigest::of(one.as_bytes())]);
    }

    #[test]
    fn what_can_be_a_root_and_what_can_not() {
        let year = Duration::from_secs(366 * 24 * 3600);
        let name = |name: &mut DistinguishedName| name.push(DnType::CommonName, "a root");
        let root = with_subject(name, year);
        assert_eq!(
            fit(root.cert_pem().as_bytes(), NOW).unwrap(),
            root.cert_pem()
        );
        let windows = root.cert_pem().replace('\n', "\r\n");
        let text = format!("some words before\r\n{windows}");
        assert_eq!(fit(text.as_bytes(), NOW).unwrap(), root.cert_pem());

        let refusal = |pem: &str| fit(pem.as_bytes(), NOW).unwrap_err().to_string();
        let several = format!("{0}{0}", root.cert_pem());
        let short = with_subject(name, year / 2);
        let old = TestCa::new(1);
        let cross = cross_sign(&old.root, root.cert_pem(), NOW).unwrap();
        let leaf = old.identity(1, Role::Manager);
        for (pem, reason) in [
            ("", "empty"),
            (&several, "holds 2 certificates"),
            (short.cert_pem(), "less than a year"),
            (&cross, "own key"),
            (leaf.cert_pem(), "not a CA's"),
        ] {
            assert!(refusal(pem).contains(reason), "{}", refusal(pem));
        }
    }
}
