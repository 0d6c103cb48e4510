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
use swarm_proto::id::{ClusterId, NodeId};
use swarm_proto::pb;
use swarm_proto::time::Timestamp;
use x509_parser::der_parser::asn1_rs::Tag;
use x509_parser::prelude::X509Certificate;
use x509_parser::x509::AttributeTypeAndValue;

use super::Role;
use super::root::{
    DEFAULT_NODE_CERT_LIFE, IssueError, NodeSubject, RootCa, RootDigest, RootError, format_time,
    new_key_and_csr, random_serial, set_validity,
};
use super::tls;
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
    /// Nodes tell roots by their keys.
    #[error(
        "it has the key of the present root and another subject: certificates that name the one do not lead to the other; make it with a key of its own"
    )]
    SameKey,
    /// It can't sign for nodes.
    #[error("it can't sign the certificate of a {role}: {reason}; give a root without such limits")]
    Issue {
        /// Of such a node.
        role: Role,
        /// Why not.
        reason: IssueError,
    },
    /// What it signs does not count.
    #[error(
        "the certificate of a {role} under it would not be taken by nodes that trust {trusted}: {reason}; give a root without name constraints or other limits on what it signs"
    )]
    Untaken {
        /// Of such a node.
        role: Role,
        /// Which roots.
        trusted: &'static str,
        /// As TLS says.
        reason: rustls::Error,
    },
    /// Key and certificate, or signing.
    #[error(transparent)]
    Root(#[from] RootError),
}

/// A root certificate for the cluster in the one form it is stored in.
///
/// # Errors
/// Why it can't be one.
pub fn fit(pem: &[u8], now: Timestamp) -> Result<String, UnfitRoot> {
    let der = &authority(pem)?;
    let cert = parse(der)?;
    if !x509::signed_by(&cert, &cert) {
        return Err(UnfitRoot::NotSelfSigned);
    }
    let end = x509::facts(der).map_err(malformed)?.not_after;
    if end < now.after(LEAST_LIFE) {
        return Err(UnfitRoot::Short(format_time(end)));
    }
    Ok(to_pem(der))
}

/// The only certificate of a text, which is a CA's.
///
/// # Errors
/// What is there instead.
pub(crate) fn authority(pem: &[u8]) -> Result<CertificateDer<'static>, UnfitRoot> {
    let certs = x509::certs_from_pem(pem).map_err(UnfitRoot::Pem)?;
    let [der] = certs.as_slice() else {
        return Err(UnfitRoot::Several(certs.len()));
    };
    match parse(der)?.is_ca() {
        true => Ok(der.clone()),
        false => Err(UnfitRoot::NoCa),
    }
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

/// A change of root, in PEM.
#[derive(Debug, Clone, Copy)]
pub struct Turn<'a> {
    /// The root that most nodes trust.
    pub from: &'a str,
    /// The one that they are to trust.
    pub to: &'a str,
    /// The latter, signed by the former.
    pub cross: &'a str,
}

/// Issues certificates as they are issued while `next` takes over, and checks that they are taken.
///
/// # Errors
/// Why the change would shut nodes out.
pub fn try_out(turn: &Turn<'_>, next: &RootCa, now: Timestamp) -> Result<(), UnfitRoot> {
    differ(turn.from, turn.to)?;
    let (_, csr) = new_key_and_csr().map_err(|e| UnfitRoot::Root(RootError::Crypto(e)))?;
    for role in [Role::Manager, Role::Worker] {
        let subject = NodeSubject {
            node_id: NodeId::from_raw(1),
            role,
            cluster_id: ClusterId::from_raw(1),
        };
        let leaf = next.issue(csr.as_bytes(), &subject, DEFAULT_NODE_CERT_LIFE, now);
        let leaf = leaf.map_err(|reason| UnfitRoot::Issue { role, reason })?;
        taken((&leaf, role), turn, now)?;
    }
    Ok(())
}

/// Checks that a certificate under the next root is taken: by nodes that trust the old root, both, or the next, which is
/// what they trust in that order.
///
/// # Errors
/// Who would not take it.
pub fn taken((leaf, role): (&str, Role), turn: &Turn<'_>, now: Timestamp) -> Result<(), UnfitRoot> {
    let certs = |pem: &str| x509::certs_from_pem(pem.as_bytes()).map_err(UnfitRoot::Pem);
    let (from, to) = (certs(turn.from)?, certs(turn.to)?);
    let both = [from.clone(), to.clone()].concat();
    let served = certs(&format!("{leaf}{}", turn.cross))?;
    let untaken = |trusted| {
        move |reason| UnfitRoot::Untaken {
            role,
            trusted,
            reason,
        }
    };
    tls::verify((&served, role), &from, now).map_err(untaken("the present root"))?;
    tls::verify((&served, role), &both, now).map_err(untaken("both"))?;
    tls::verify((&served, role), &to, now).map_err(untaken("this one alone"))?;
    // As they are issued once it has taken over.
    tls::verify((&certs(leaf)?, role), &to, now).map_err(untaken("this one alone"))
}

/// Checks that two roots can be told from each other.
///
/// # Errors
/// [`UnfitRoot::SameKey`].
pub fn differ(old: &str, next: &str) -> Result<(), UnfitRoot> {
    let of = |pem: &str| Reported::of(pem.as_bytes()).ok_or(UnfitRoot::Pem(PemProblem::Empty));
    let (old, next) = (of(old)?, of(next)?);
    match old.public_key == next.public_key && old.subject != next.subject {
        true => Err(UnfitRoot::SameKey),
        false => Ok(()),
    }
}

/// Asks for the certificate of `next` to be signed by another CA: a CSR with its subject and its key.
///
/// # Errors
/// When its subject can't be kept as it is, or signing fails.
pub(crate) fn cross_request(next: &RootCa) -> Result<String, UnfitRoot> {
    let certs = x509::certs_from_pem(next.cert_pem().as_bytes()).map_err(UnfitRoot::Pem)?;
    let der = certs.first().ok_or(UnfitRoot::Pem(PemProblem::Empty))?;
    let crypto = |e: rcgen::Error| UnfitRoot::Root(RootError::Crypto(e));
    let mut params = CertificateParams::default();
    params.distinguished_name = name_of(&parse(der)?).ok_or(UnfitRoot::Subject)?;
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let csr = params
        .serialize_request(next.issuer().key())
        .map_err(crypto)?;
    csr.pem().map_err(crypto)
}

/// What another CA made of [`cross_request`], in the one form it is stored in.
///
/// # Errors
/// Why it does not lead from the old root to the next one.
pub(crate) fn cross_signed(
    answer: &[u8],
    (from, to): (&str, &str),
    now: Timestamp,
) -> Result<String, UnfitCross> {
    let certs = |pem: &[u8]| x509::certs_from_pem(pem).map_err(|e| UnfitCross(e.to_string()));
    let unfit = |reason: &str| UnfitCross(reason.to_owned());
    let (answer, from, to) = (
        certs(answer)?,
        certs(from.as_bytes())?,
        certs(to.as_bytes())?,
    );
    let (Some(der), Some(from), Some(to)) = (answer.first(), from.first(), to.first()) else {
        return Err(unfit("there is none"));
    };
    let parsed = |der| x509::parse(der).map_err(|e| UnfitCross(e.to_string()));
    let (cross, from, to) = (parsed(der)?, parsed(from)?, parsed(to)?);
    if cross.public_key().raw != to.public_key().raw {
        return Err(unfit("it has another key than the new root"));
    }
    if cross.subject().as_raw() != to.subject().as_raw() {
        return Err(unfit(
            "its subject is not, byte by byte, that of the new root",
        ));
    }
    if !x509::signed_by(&cross, &from) {
        return Err(unfit("it is not signed by the present root"));
    }
    if !cross.is_ca() {
        return Err(unfit("it is not a CA's certificate"));
    }
    let facts = x509::facts(der).map_err(|e| UnfitCross(e.to_string()))?;
    match facts.not_before <= now && now < facts.not_after {
        true => Ok(to_pem(der)),
        false => Err(unfit("it is not valid now")),
    }
}

/// Why a certificate does not lead from one root to the next.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct UnfitCross(String);

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
    /// DER of its subject.
    pub(crate) subject: Vec<u8>,
}

impl Reported {
    /// The certificate itself.
    pub(crate) const fn der(&self) -> &CertificateDer<'static> {
        &self.der
    }

    /// None where the text is no certificate.
    pub(crate) fn of(pem: &[u8]) -> Option<Self> {
        let der = x509::certs_from_pem(pem).ok()?.into_iter().next()?;
        let cert = x509::parse(&der).ok()?;
        let public_key = cert.public_key().raw.to_vec();
        let subject = cert.subject().as_raw().to_vec();
        Some(Self {
            der,
            public_key,
            subject,
        })
    }

    /// Whether the certificate a node uses was issued under this root. A chain leads to it by both its key and its subject.
    pub(crate) fn has_issued(&self, info: Option<&pb::NodeTlsInfo>) -> bool {
        info.is_some_and(|info| {
            info.cert_issuer_public_key == self.public_key
                && info.cert_issuer_subject == self.subject
        })
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

/// The one form that certificates from elsewhere are stored in.
pub(crate) fn to_pem(der: &CertificateDer<'_>) -> String {
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
    use crate::ca::NodeIdentity;
    use crate::ca::testing::{NOW, TestCa};
    use rcgen::{GeneralSubtree, NameConstraints};

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

    /// A root with this key, limited to names of one domain where that is wanted.
    fn limited(key: &KeyPair, subject: &str, to: Option<&str>) -> RootCa {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, subject);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.name_constraints = to.map(|to| NameConstraints {
            permitted_subtrees: vec![GeneralSubtree::DnsName(to.to_owned())],
            excluded_subtrees: Vec::new(),
        });
        set_validity(&mut params, NOW, NOW.after(DEFAULT_NODE_CERT_LIFE * 40));
        let pem = params.self_signed(key).unwrap().pem();
        RootCa::from_pem(&pem, &key.serialize_pem()).unwrap()
    }

    #[test]
    fn a_root_that_would_shut_nodes_out_is_told_by_trying_it_out() {
        let (key, other) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
        let old = limited(&key, "Root", None);
        let outcome = |next: &RootCa| {
            let cross = cross_sign(&old, next.cert_pem(), NOW).unwrap();
            let turn = Turn {
                from: old.cert_pem(),
                to: next.cert_pem(),
                cross: &cross,
            };
            try_out(&turn, next, NOW).map_err(|e| e.to_string())
        };
        // Another key, and under the same name too; and the present one with a new term.
        for next in [
            limited(&other, "Root 2", None),
            limited(&other, "Root", None),
            limited(&key, "Root", None),
        ] {
            assert_eq!(outcome(&next), Ok(()));
        }
        let same_key = outcome(&limited(&key, "Root 2", None)).unwrap_err();
        assert!(same_key.contains("key of the present root"), "{same_key}");
        let constrained = outcome(&limited(&other, "Root 2", Some("example.com"))).unwrap_err();
        assert!(constrained.contains("would not be taken"), "{constrained}");
        assert!(constrained.contains("NameConstraint"), "{constrained}");
    }

    #[test]
    fn the_issuer_of_a_certificate_is_told_by_key_and_subject() {
        let key = KeyPair::generate().unwrap();
        let [one, other] = ["Root", "Root 2"].map(|subject| {
            let root = limited(&key, subject, None);
            Reported::of(root.cert_pem().as_bytes()).unwrap()
        });
        let info = pb::NodeTlsInfo {
            cert_issuer_public_key: one.public_key.clone(),
            cert_issuer_subject: one.subject.clone(),
            ..Default::default()
        };
        assert!(one.has_issued(Some(&info)) && !other.has_issued(Some(&info)));
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
