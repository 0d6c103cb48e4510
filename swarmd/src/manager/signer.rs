//! Signs node certificates: with the cluster's key ([`sign_with_key`], which asks nobody), or through
//! external CAs, one after the other until one gives what was asked for.
//!
//! What an external CA returns is checked before anybody sees it. Where none gives a certificate the
//! key does not stand in for it: the operator wants it asked.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use swarm_proto::pb;
use swarm_proto::time::Timestamp;
use tonic::Status;

use super::authority::{Authority, external_for};
use super::store::Cluster;
use crate::ca::cfssl::{self, Asked, SignRequest};
use crate::ca::external::ExternalCa;
use crate::ca::root::{csr_key, new_key_and_csr};
use crate::ca::roots::{self, Reported, Turn, UnfitRoot, validity};
use crate::ca::{NodeSubject, RootCa, SecurityConfig};
use crate::clock::Clock;

/// How long all external CAs of a root have together: less than a node waits, so that it hears why.
const ALL_TIMEOUT: Duration = Duration::from_secs(42);

/// The body of a request to an external CA.
type Request<'a> = dyn Fn(&pb::ExternalCa) -> String + Sync + 'a;
/// What is stored of a certificate that came back, or why nothing is.
type Check<'a> = dyn Fn(&str) -> Result<String, String> + Sync + 'a;

/// Signs in the name of this manager.
#[derive(Debug, Clone)]
pub(crate) struct Signer {
    external: Arc<ExternalCa>,
    clock: Clock,
}

/// Why an external CA did not vouch for a new root.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CrossError {
    /// The new root.
    #[error(transparent)]
    Root(#[from] UnfitRoot),
    /// Those that were asked, each with its reason.
    #[error("{0}")]
    Asked(String),
}

impl Signer {
    /// One that shows what `security` is set to, once it is.
    pub(crate) fn new(security: Arc<OnceLock<SecurityConfig>>, clock: Clock) -> Self {
        Self {
            external: Arc::new(ExternalCa::new(security, clock.clone())),
            clock,
        }
    }

    /// Signs; under the next root already while the root changes.
    ///
    /// # Errors
    /// UNAVAILABLE where nobody signs now, and another time somebody may.
    pub(crate) async fn sign(
        &self,
        cluster: &Cluster,
        subject: &NodeSubject,
        csr: &[u8],
    ) -> Result<pb::Certificate, Status> {
        let authority = Authority::of(cluster);
        if authority.external.is_empty() {
            return sign_by(&authority, cluster, (subject, csr), self.clock.now());
        }
        // Before anybody is asked: only what a node has proven to hold is certified.
        let key = csr_key(csr).map_err(|e| Status::invalid_argument(e.to_string()))?;
        let root = Reported::of(authority.cert).ok_or_else(unreadable)?;
        let asked = Asked {
            subject,
            key: &key,
            root: root.der(),
        };
        let csr_text = String::from_utf8_lossy(csr);
        let request = |external: &pb::ExternalCa| {
            SignRequest::node(&csr_text, subject, &external.options).to_json()
        };
        let check = |pem: &str| {
            let now = self.clock.now();
            let leaf = cfssl::check(pem, &asked, now).map_err(|e| e.to_string())?;
            if let Some(turn) = &authority.turn {
                let (from, to, cross) = (text(turn.from), text(authority.cert), text(turn.cross));
                let (from, to, cross) = (from.as_str(), to.as_str(), cross.as_str());
                let taken = roots::taken((&leaf, subject.role), &Turn { from, to, cross }, now);
                taken.map_err(|e| e.to_string())?;
            }
            Ok(leaf)
        };
        let roots = roots::trusted(&cluster.root_ca);
        let leaf = self.first(&authority.external, &roots, (&request, &check));
        let leaf = leaf.await.map_err(|reasons| {
            Status::unavailable(format!("the external CA gives no certificate: {reasons}"))
        })?;
        record(&authority, (subject, csr), leaf)
    }

    /// Asks for a certificate of this manager and throws it away, to see whether the external CAs of a cluster work.
    ///
    /// # Errors
    /// Why none of them does.
    pub(crate) async fn try_out(&self, cluster: &Cluster) -> Result<(), String> {
        let security = self.external.security();
        let identity = security.ok_or("this manager has no certificate yet")?;
        let (_, csr) = new_key_and_csr().map_err(|e| e.to_string())?;
        let identity = identity.identity();
        let subject = NodeSubject {
            node_id: identity.node_id(),
            role: identity.role(),
            cluster_id: cluster.id,
        };
        let tried = self.sign(cluster, &subject, csr.as_bytes()).await;
        tried.map(drop).map_err(|e| e.message().to_owned())
    }

    /// Has the certificate of the next root signed under the present one, whose key others have.
    ///
    /// # Errors
    /// Why nobody does.
    pub(crate) async fn cross_sign(
        &self,
        cluster: &Cluster,
        next: &RootCa,
    ) -> Result<String, CrossError> {
        let present = &cluster.root_ca.ca_cert;
        let external = external_for(cluster, present);
        let csr = roots::cross_request(next)?;
        let root = Reported::of(next.cert_pem().as_bytes());
        let root =
            root.ok_or_else(|| CrossError::Asked("the new root can't be read".to_owned()))?;
        let request = |external: &pb::ExternalCa| {
            let request = SignRequest::cross(&csr, root.der(), &external.options);
            request.map(|r| r.to_json()).unwrap_or_default()
        };
        let from = text(present);
        let check = |pem: &str| {
            let roots = (from.as_str(), next.cert_pem());
            let cross = roots::cross_signed(pem.as_bytes(), roots, self.clock.now());
            cross.map_err(|e| e.to_string())
        };
        let cross = self.first(&external, present, (&request, &check)).await;
        cross.map_err(CrossError::Asked)
    }

    /// What the first of them gives that is fit; or why none of them gave such, each named.
    async fn first(
        &self,
        external: &[&pb::ExternalCa],
        roots: &[u8],
        (request, check): (&Request<'_>, &Check<'_>),
    ) -> Result<String, String> {
        let mut reasons = Vec::new();
        let all = async {
            for external in external {
                let answer = self.external.ask(&external.url, request(external), roots);
                let answer = answer.await;
                let url = shown(&external.url);
                let reason = match answer.map(|pem| check(&pem)) {
                    Ok(Ok(fit)) => return Some(fit),
                    Ok(Err(unfit)) => format!("gives a certificate that can't be used: {unfit}"),
                    Err(failure) => failure.to_string(),
                };
                tracing::warn!(url, reason, "an external CA gave no certificate");
                reasons.push(format!("{url} {reason}"));
            }
            None
        };
        match self.clock.timeout(ALL_TIMEOUT, all).await {
            Ok(Some(fit)) => return Ok(fit),
            Ok(None) => {}
            Err(_) => reasons.push("too many certificates are asked for now".to_owned()),
        }
        Err(reasons.join("; "))
    }
}

/// An external CA's URL for logs and answers: a token in its query is nobody's business.
fn shown(url: &str) -> &str {
    url.split(['?', '#']).next().unwrap_or_default()
}

fn text(pem: &[u8]) -> String {
    String::from_utf8_lossy(pem).into_owned()
}

fn unreadable() -> Status {
    Status::internal("the cluster's root certificate can't be read")
}

/// Signs with a key that the managers have, for who can ask nobody else.
///
/// # Errors
/// FAILED_PRECONDITION where they have none.
pub(crate) fn sign_with_key(
    cluster: &Cluster,
    subject: &NodeSubject,
    csr: &[u8],
    now: Timestamp,
) -> Result<pb::Certificate, Status> {
    let authority = Authority::with_key(cluster).ok_or_else(|| {
        Status::failed_precondition("the key of the cluster's root is with an external CA alone")
    })?;
    sign_by(&authority, cluster, (subject, csr), now)
}

/// Signs with the authority's key, with the life that the cluster is set to.
fn sign_by(
    authority: &Authority<'_>,
    cluster: &Cluster,
    (subject, csr): (&NodeSubject, &[u8]),
    now: Timestamp,
) -> Result<pb::Certificate, Status> {
    if authority.key.is_empty() {
        return Err(Status::unavailable(
            "the root key is not with the managers, and no external CA signs under the cluster's root; name one with \
             `swarmctl cluster update --external-ca protocol=cfssl,url=https://…`",
        ));
    }
    let root = RootCa::from_pem(&text(authority.cert), &text(authority.key));
    let root = root.map_err(|e| Status::internal(e.to_string()))?;
    let leaf = root
        .issue(csr, subject, cluster.node_cert_expiry(), now)
        .map_err(|e| Status::invalid_argument(e.to_string()))?;
    record(authority, (subject, csr), leaf)
}

/// As it is stored.
fn record(
    authority: &Authority<'_>,
    (subject, csr): (&NodeSubject, &[u8]),
    leaf: String,
) -> Result<pb::Certificate, Status> {
    let root = Reported::of(authority.cert).ok_or_else(unreadable)?;
    let (not_before, not_after) =
        validity(&leaf).map_err(|problem| Status::internal(problem.to_string()))?;
    let mut certificate = leaf.into_bytes();
    // Who knows the old root alone is led to it by this one.
    if let Some(turn) = &authority.turn {
        certificate.extend_from_slice(turn.cross);
    }
    Ok(pb::Certificate {
        role: pb::NodeRole::from(subject.role).into(),
        csr: csr.to_vec(),
        status: Some(pb::IssuanceStatus {
            state: pb::issuance_status::State::Issued.into(),
            ..Default::default()
        }),
        certificate,
        cn: subject.node_id.to_string(),
        issuer_public_key: root.public_key,
        not_before: not_before.to_wire(),
        not_after: not_after.to_wire(),
        predecessor_not_after: None,
        longest_not_after: None,
    })
}

#[cfg(test)]
pub(in crate::manager) mod tests;
