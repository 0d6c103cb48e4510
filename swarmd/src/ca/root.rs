//! The root CA of a cluster: made once, kept in the replicated store, issues node certificates.
//!
//! ECDSA P-256, CN `swarm-ca`, 20 years. A node certificate's subject is what the managers decided,
//! never what the CSR asks for: only the CSR's public key is used, and only after its signature has
//! proven that the requester holds the private half.
//!
//! Randomness (keys, serial numbers) comes from the system: issuing is the shell's work, the result
//! is what enters the log.

use std::fmt;
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, DnValue,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256,
    PublicKeyData as _, SerialNumber, SubjectPublicKeyInfo,
};
use ring::rand::SecureRandom as _;
use rustls::pki_types::pem::{PemObject as _, SectionKind};
use swarm_proto::id::{ClusterId, NodeId};
use swarm_proto::time::Timestamp;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::prelude::FromDer as _;
use zeroize::Zeroizing;

use super::x509::{self, MAX_PEM_BYTES, PemProblem};
use super::{CA_SERVER_NAME, Role};

/// Life of the root certificate: 20 years (SwarmKit's RootCAExpiration, 630,720,000 s).
pub const ROOT_LIFE: Duration = Duration::from_secs(630_720_000);
/// Life of a node certificate unless the cluster's spec says otherwise: 90 days (2160 h).
pub const DEFAULT_NODE_CERT_LIFE: Duration = Duration::from_secs(2160 * 3600);
/// Certificates are valid from this long before now, for clocks that are behind.
pub const BACKDATE: Duration = Duration::from_secs(3600);

/// SHA-256 of the root certificate's PEM bytes: what a join token pins.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct RootDigest(pub [u8; 32]);

impl RootDigest {
    /// The digest of these PEM bytes, as they travel in GetRootCACertificate.
    #[must_use]
    pub fn of(root_pem: &[u8]) -> Self {
        let digest = ring::digest::digest(&ring::digest::SHA256, root_pem);
        // SHA-256 is 32 bytes, so nothing is cut or padded.
        let mut bytes = [0; 32];
        for (to, from) in bytes.iter_mut().zip(digest.as_ref()) {
            *to = *from;
        }
        Self(bytes)
    }
}

impl fmt::Display for RootDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("sha256:")?;
        self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

impl fmt::Debug for RootDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Why a root CA could not be made or loaded.
#[derive(Debug, thiserror::Error)]
pub enum RootError {
    /// The certificate's PEM.
    #[error("the cluster's root certificate can't be used: {0}")]
    Certificate(PemProblem),
    /// The key's PEM.
    #[error("the cluster's root key can't be used: {0}")]
    Key(PemProblem),
    /// The two do not belong together.
    #[error("the cluster's root key does not belong to its root certificate")]
    Mismatch,
    /// Key generation or signing.
    #[error("the root CA can't sign: {0}")]
    Crypto(#[from] rcgen::Error),
}

/// Why a certificate was not issued.
#[derive(Debug, thiserror::Error)]
pub enum IssueError {
    /// The CSR's PEM.
    #[error("the certificate signing request can't be read: {0}")]
    Csr(PemProblem),
    /// The requester does not hold the key.
    #[error("the certificate signing request's signature does not match its key")]
    CsrSignature,
    /// The key's algorithm.
    #[error("the certificate signing request's key can't be certified: {0} (use ECDSA P-256)")]
    CsrKey(rcgen::Error),
    /// The root's own end.
    #[error(
        "the cluster's root certificate expired at {0}: no node can be certified any more, so start a new cluster"
    )]
    RootExpired(String),
    /// Signing itself.
    #[error("the root CA can't sign: {0}")]
    Crypto(#[from] rcgen::Error),
    /// The system's random source.
    #[error("the system has no randomness for a serial number")]
    Random,
}

/// Who a certificate is issued to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NodeSubject {
    /// Becomes CN.
    pub node_id: NodeId,
    /// Becomes OU.
    pub role: Role,
    /// Becomes O.
    pub cluster_id: ClusterId,
}

impl NodeSubject {
    /// The subject alternative names: by its role it is verified as a server, by [`CA_SERVER_NAME`] as a manager that a
    /// joiner does not know yet.
    #[must_use]
    pub fn host_names(&self) -> Vec<String> {
        let mut names = vec![
            self.role.organizational_unit().to_owned(),
            self.node_id.to_string(),
        ];
        if self.role == Role::Manager {
            names.push(CA_SERVER_NAME.to_owned());
        }
        names
    }
}

/// A root CA with its key.
pub struct RootCa {
    cert_pem: String,
    digest: RootDigest,
    not_after: Timestamp,
    issuer: Issuer<'static, KeyPair>,
}

impl fmt::Debug for RootCa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RootCa")
            .field("digest", &self.digest)
            .finish_non_exhaustive()
    }
}

impl RootCa {
    /// Makes a new root CA.
    ///
    /// # Errors
    /// [`RootError::Crypto`] when the system gives no randomness.
    pub fn generate(now: Timestamp) -> Result<Self, RootError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        // The form that other CAs give it too when they sign it: names are compared byte by byte.
        let name = CA_SERVER_NAME.try_into().map(DnValue::PrintableString)?;
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        set_validity(&mut params, now, now.after(ROOT_LIFE));
        let cert_pem = params.self_signed(&key)?.pem();
        Self::from_pem(&cert_pem, &Zeroizing::new(key.serialize_pem()))
    }

    /// Loads the root CA from the PEM texts the store keeps.
    ///
    /// # Errors
    /// Says which of the two can't be used, or that they don't belong together.
    pub fn from_pem(cert_pem: &str, key_pem: &str) -> Result<Self, RootError> {
        let certs = x509::certs_from_pem(cert_pem.as_bytes()).map_err(RootError::Certificate)?;
        let der = certs
            .first()
            .ok_or(RootError::Certificate(PemProblem::Empty))?;
        x509::key_from_pem(key_pem.as_bytes()).map_err(RootError::Key)?;
        let key = KeyPair::from_pem(key_pem)
            .map_err(|e| RootError::Key(PemProblem::Corrupted(e.to_string())))?;
        let malformed =
            |e: x509::SubjectError| RootError::Certificate(PemProblem::Corrupted(e.to_string()));
        let parsed = x509::parse(der).map_err(malformed)?;
        if parsed.public_key().raw != key.subject_public_key_info().as_slice() {
            return Err(RootError::Mismatch);
        }
        Ok(Self {
            cert_pem: cert_pem.to_owned(),
            digest: RootDigest::of(cert_pem.as_bytes()),
            not_after: x509::facts(der).map_err(malformed)?.not_after,
            issuer: Issuer::from_ca_cert_der(der, key)?,
        })
    }

    /// The certificate, as it is stored and served.
    #[must_use]
    pub fn cert_pem(&self) -> &str {
        &self.cert_pem
    }

    /// The private key as PKCS#8 PEM: for the replicated store only.
    #[must_use]
    pub fn key_pem(&self) -> Zeroizing<String> {
        Zeroizing::new(self.issuer.key().serialize_pem())
    }

    /// What signs under this root.
    pub(super) fn issuer(&self) -> &Issuer<'static, KeyPair> {
        &self.issuer
    }

    /// End of the certificate's validity.
    pub(super) const fn not_after(&self) -> Timestamp {
        self.not_after
    }

    /// DER of the public key.
    #[must_use]
    pub fn public_key(&self) -> Vec<u8> {
        self.issuer.key().subject_public_key_info()
    }

    /// What join tokens pin.
    #[must_use]
    pub const fn digest(&self) -> RootDigest {
        self.digest
    }

    /// Issues a certificate to `subject` for the key of `csr_pem`, valid from [`BACKDATE`] before
    /// `now` until `life` after it, but never beyond the root's own end. Returns PEM.
    ///
    /// # Errors
    /// When the CSR can't be used, or the root has expired.
    pub fn issue(
        &self,
        csr_pem: &[u8],
        subject: &NodeSubject,
        life: Duration,
        now: Timestamp,
    ) -> Result<String, IssueError> {
        if now >= self.not_after {
            return Err(IssueError::RootExpired(format_time(self.not_after)));
        }
        let key = csr_public_key(csr_pem)?;
        let mut params = CertificateParams::new(subject.host_names())?;
        params.distinguished_name = DistinguishedName::new();
        let name = &mut params.distinguished_name;
        name.push(DnType::OrganizationName, subject.cluster_id.to_string());
        name.push(
            DnType::OrganizationalUnitName,
            subject.role.organizational_unit(),
        );
        name.push(DnType::CommonName, subject.node_id.to_string());
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![
            KeyUsagePurpose::DigitalSignature,
            KeyUsagePurpose::KeyEncipherment,
        ];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        params.use_authority_key_identifier_extension = true;
        params.serial_number = Some(random_serial().ok_or(IssueError::Random)?);
        set_validity(&mut params, now, now.after(life).min(self.not_after));
        Ok(params.signed_by(&key, &self.issuer)?.pem())
    }
}

/// A new node key and the CSR for it. The CSR's subject is a placeholder: the CA ignores it.
///
/// # Errors
/// When the system gives no randomness.
pub(crate) fn new_key_and_csr() -> Result<(Zeroizing<String>, String), rcgen::Error> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    let csr = params.serialize_request(&key)?.pem()?;
    Ok((Zeroizing::new(key.serialize_pem()), csr))
}

fn csr_public_key(csr_pem: &[u8]) -> Result<SubjectPublicKeyInfo, IssueError> {
    SubjectPublicKeyInfo::from_der(&csr_key(csr_pem)?).map_err(IssueError::CsrKey)
}

/// DER of the public key that a CSR is for, whose private half its sender has proven to hold.
pub(crate) fn csr_key(csr_pem: &[u8]) -> Result<Vec<u8>, IssueError> {
    if csr_pem.len() > MAX_PEM_BYTES {
        let reason = format!(
            "{} bytes where at most {MAX_PEM_BYTES} are expected",
            csr_pem.len()
        );
        return Err(IssueError::Csr(PemProblem::Corrupted(reason)));
    }
    if csr_pem.is_empty() {
        return Err(IssueError::Csr(PemProblem::Empty));
    }
    let (kind, der) =
        <(SectionKind, Vec<u8>)>::from_pem_slice(csr_pem).map_err(|e| IssueError::Csr(e.into()))?;
    if kind != SectionKind::Csr {
        let reason = format!("a certificate request is expected, and it is a {kind:?}");
        return Err(IssueError::Csr(PemProblem::Corrupted(reason)));
    }
    let (_, csr) = X509CertificationRequest::from_der(&der)
        .map_err(|e| IssueError::Csr(PemProblem::Corrupted(e.to_string())))?;
    csr.verify_signature()
        .map_err(|_| IssueError::CsrSignature)?;
    let key = csr.certification_request_info.subject_pki.raw;
    SubjectPublicKeyInfo::from_der(key).map_err(IssueError::CsrKey)?;
    Ok(key.to_vec())
}

/// None only where the system has no randomness.
pub(super) fn random_serial() -> Option<SerialNumber> {
    let mut serial = [0_u8; 16];
    ring::rand::SystemRandom::new().fill(&mut serial).ok()?;
    // A serial number is positive and at most 20 octets (RFC 5280, 4.1.2.2).
    if let Some(first) = serial.first_mut() {
        *first = (*first & 0x7f) | 0x40;
    }
    Some(SerialNumber::from_slice(&serial))
}

pub(super) fn set_validity(params: &mut CertificateParams, now: Timestamp, not_after: Timestamp) {
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    let seconds =
        |t: Timestamp| Duration::from_secs(u64::try_from(t.0 / 1_000_000_000).unwrap_or(0));
    let backdated = Timestamp(now.0.saturating_sub(Timestamp::ZERO.after(BACKDATE).0));
    params.not_before = epoch + seconds(backdated);
    params.not_after = epoch + seconds(not_after);
}

/// A time for people: RFC 3339, UTC, whole seconds.
pub(crate) fn format_time(t: Timestamp) -> String {
    x509_parser::time::ASN1Time::from_timestamp(t.0.div_euclid(1_000_000_000)).map_or_else(
        |_| format!("{} s", t.0.div_euclid(1_000_000_000)),
        |t| {
            let t = t.to_datetime();
            format!(
                "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}Z",
                t.year(),
                u8::from(t.month()),
                t.day(),
                t.hour(),
                t.minute(),
                t.second()
            )
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ca::PeerIdentity;

    const NOW: Timestamp = Timestamp::from_millis(1_763_700_000_000);

    fn subject(role: Role) -> NodeSubject {
        NodeSubject {
            node_id: NodeId::from_raw(7),
            role,
            cluster_id: ClusterId::from_raw(9),
        }
    }

    fn names(pem: &str) -> Vec<String> {
        let certs = x509::certs_from_pem(pem.as_bytes()).unwrap();
        let cert = x509::parse(&certs[0]).unwrap();
        let sans = cert.subject_alternative_name().unwrap().unwrap();
        let mut names: Vec<_> = sans
            .value
            .general_names
            .iter()
            .map(|name| {
                let x509_parser::extensions::GeneralName::DNSName(name) = name else {
                    panic!("{name:?}")
                };
                (*name).to_owned()
            })
            .collect();
        names.sort();
        names
    }

    #[test]
    fn issues_what_was_decided_and_not_what_was_asked() {
        let root = RootCa::generate(NOW).unwrap();
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        let mut greedy =
            CertificateParams::new(vec!["swarm-manager".to_owned(), "swarm-ca".to_owned()])
                .unwrap();
        greedy
            .distinguished_name
            .push(DnType::OrganizationalUnitName, "swarm-manager");
        greedy
            .distinguished_name
            .push(DnType::CommonName, "somebody-else");
        let csr = greedy.serialize_request(&key).unwrap().pem().unwrap();

        let who = subject(Role::Worker);
        let pem = root
            .issue(csr.as_bytes(), &who, DEFAULT_NODE_CERT_LIFE, NOW)
            .unwrap();
        let der = &x509::certs_from_pem(pem.as_bytes()).unwrap()[0];
        let identity = PeerIdentity::from_der(der).unwrap();
        assert_eq!(
            (identity.node_id, identity.role, identity.cluster_id),
            (who.node_id, who.role, who.cluster_id)
        );
        assert_eq!(
            names(&pem),
            [who.node_id.to_string(), "swarm-worker".to_owned()]
        );
        let facts = x509::facts(der).unwrap();
        assert_eq!(facts.not_before, Timestamp(NOW.0 - 3_600_000_000_000));
        assert_eq!(facts.not_after, NOW.after(DEFAULT_NODE_CERT_LIFE));
        let parsed = x509::parse(der).unwrap();
        assert_eq!(
            parsed.public_key().raw,
            key.subject_public_key_info().as_slice()
        );
        assert!(!parsed.is_ca());
        let roots = x509::certs_from_pem(root.cert_pem().as_bytes()).unwrap();
        assert!(x509::issuing_root(std::slice::from_ref(der), &roots).is_some());
    }

    #[test]
    fn a_manager_is_also_the_ca_by_name() {
        let root = RootCa::generate(NOW).unwrap();
        let (_, csr) = new_key_and_csr().unwrap();
        let pem = root
            .issue(csr.as_bytes(), &subject(Role::Manager), ROOT_LIFE * 2, NOW)
            .unwrap();
        let node = subject(Role::Manager).node_id.to_string();
        assert_eq!(names(&pem), [node.as_str(), "swarm-ca", "swarm-manager"]);
        let end = x509::facts(&x509::certs_from_pem(pem.as_bytes()).unwrap()[0])
            .unwrap()
            .not_after;
        assert_eq!(end, NOW.after(ROOT_LIFE), "never beyond the root's own end");
    }

    #[test]
    fn a_root_survives_the_store() {
        let root = RootCa::generate(NOW).unwrap();
        let loaded = RootCa::from_pem(root.cert_pem(), &root.key_pem()).unwrap();
        assert_eq!(loaded.digest(), root.digest());
        let other = RootCa::generate(NOW).unwrap();
        assert!(matches!(
            RootCa::from_pem(root.cert_pem(), &other.key_pem()),
            Err(RootError::Mismatch)
        ));
        assert!(matches!(
            RootCa::from_pem("", &other.key_pem()),
            Err(RootError::Certificate(_))
        ));
        assert!(matches!(
            RootCa::from_pem(root.cert_pem(), "x"),
            Err(RootError::Key(_))
        ));
        assert!(!format!("{root:?}").contains("PRIVATE"));
    }

    #[test]
    fn refuses_bad_requests() {
        let root = RootCa::generate(NOW).unwrap();
        let who = subject(Role::Worker);
        let issue = |csr: &str| root.issue(csr.as_bytes(), &who, DEFAULT_NODE_CERT_LIFE, NOW);
        assert!(matches!(issue(""), Err(IssueError::Csr(PemProblem::Empty))));
        assert!(matches!(issue("hello"), Err(IssueError::Csr(_))));
        assert!(
            matches!(issue(root.cert_pem()), Err(IssueError::Csr(_))),
            "a certificate is no CSR"
        );
        let (_, csr) = new_key_and_csr().unwrap();
        let der = <(SectionKind, Vec<u8>)>::from_pem_slice(csr.as_bytes())
            .unwrap()
            .1;
        let mut forged = der.clone();
        // The last byte is part of the signature.
        *forged.last_mut().unwrap() ^= 1;
        let forged = format!(
            "-----BEGIN CERTIFICATE REQUEST-----\n{}\n-----END CERTIFICATE REQUEST-----\n",
            base64::Engine::encode(&base64::engine::general_purpose::STANDARD, &forged)
        );
        assert!(matches!(issue(&forged), Err(IssueError::CsrSignature)));
        let late = NOW.after(ROOT_LIFE);
        let refused = root.issue(csr.as_bytes(), &who, DEFAULT_NODE_CERT_LIFE, late);
        assert!(refused.unwrap_err().to_string().contains("2045-"));
    }
}
