//! The node's side of NodeCA: joining a cluster and renewing the certificate.
//!
//! Invariants:
//! - The token is sent only to a manager whose certificate leads to the root that the token pins.
//! - The private key is made here and never leaves.
//! - What the manager returns is checked (key, chain, node id, cluster, time) before it is believed.
//! - Every wait is bounded, and a refusal is not asked for twice.

use std::time::Duration;

use swarm_proto::pb;
use swarm_proto::pb::ca_client::CaClient;
use swarm_proto::pb::issuance_status::State;
use swarm_proto::pb::node_ca_client::NodeCaClient;
use swarm_proto::pb::node_spec::Availability;
use swarm_proto::time::Timestamp;
use tonic::transport::Channel;
use zeroize::Zeroizing;

use super::connect::{self, CA_RPC_TIMEOUT};
use super::connect_error::{ConnectError, refused};
use super::identity::{IdentityError, NodeIdentity};
use super::root;
use super::tls::{SecurityConfig, TlsError};
use super::token::{JoinToken, UnlockKey};
use crate::clock::{Clock, Monotonic};
use crate::seal::Sealing;

/// Rounds over all given addresses before joining is given up; SwarmKit's number.
const ROUNDS: u32 = 5;
/// Rounds before an expired certificate is given up: a minute, and longer where addresses do not answer at all.
const EXPIRED_ROUNDS: u32 = 30;
/// Pause between rounds; SwarmKit's.
const ROUND_PAUSE: Duration = Duration::from_secs(2);
/// How long a manager may take to sign. Signing takes one Raft write; a leader change some seconds.
const ISSUE_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a manager's answer to a request for a certificate is waited for. Its CA may be an external one with several
/// addresses, each of which it gives 5 s.
const ISSUE_RPC_TIMEOUT: Duration = Duration::from_secs(45);
/// Pause between two looks at an unsigned certificate, for managers that answer at once.
const POLL_PAUSE: Duration = Duration::from_millis(200);
/// Certificates are renewed at a random point between these parts of their life, so that nodes
/// made together don't all come together; SwarmKit's.
const RENEW_FROM_PERCENT: i128 = 50;
const RENEW_TO_PERCENT: i128 = 80;

/// What joining needs.
#[derive(Debug, Clone)]
pub struct JoinRequest {
    /// Managers to try, host:port.
    pub addrs: Vec<String>,
    /// The cluster and the role.
    pub token: JoinToken,
    /// Asked for the new node.
    pub availability: Availability,
}

/// Why the node did not join.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// No address was given.
    #[error("no manager address was given: pass --join-addr HOST:PORT")]
    NoAddress,
    /// No manager gave a certificate.
    #[error("can't join the cluster: {last}{}", others(others_failed))]
    Failed {
        /// The most telling failure.
        last: ConnectError,
        /// How many other addresses failed too.
        others_failed: usize,
    },
    /// Signing failed or took too long.
    #[error("can't join the cluster: {0}")]
    Renew(#[from] RenewError),
}

fn others(failed: &usize) -> String {
    match failed {
        0 => String::new(),
        n => format!(" ({n} other addresses failed too)"),
    }
}

/// Why no certificate was issued.
#[derive(Debug, thiserror::Error)]
pub enum RenewError {
    /// The connection or the request failed.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The manager's CA could not sign.
    #[error("the managers could not issue a certificate: {0}; see the log of the leading manager")]
    Failed(String),
    /// The node is not accepted (yet).
    #[error("the managers have not issued a certificate within {} s; see the log of the leading manager (it may have lost quorum)", .0.as_secs())]
    Timeout(Duration),
    /// What was issued can't be used.
    #[error("the managers issued a certificate that can't be used: {0}")]
    Unusable(#[from] IdentityError),
    /// What was issued is another node's.
    #[error("the managers issued a certificate for {issued} and {expected} was expected")]
    OtherNode {
        /// Node named by the certificate.
        issued: String,
        /// Node that asked.
        expected: String,
    },
    /// No randomness for a key.
    #[error("can't make a key: {0}")]
    Key(#[from] rcgen::Error),
    /// The certificate can't be shown.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// What the managers gave to seal this one's keys with.
    #[error(
        "the managers gave an unlock key that is none: it has {0} bytes; rotate it with `swarmctl cluster unlock-key --rotate`"
    )]
    UnlockKey(usize),
}

impl RenewError {
    /// Whether asking again, at the same managers, may help.
    const fn is_transient(&self) -> bool {
        match self {
            Self::Connect(error) => error.is_transient(),
            // A cluster that is just starting may have no leader yet.
            Self::Timeout(_) => true,
            Self::Failed(_)
            | Self::Unusable(_)
            | Self::OtherNode { .. }
            | Self::Key(_)
            | Self::Tls(_)
            | Self::UnlockKey(_) => false,
        }
    }
}

/// Joins the cluster of the token and returns the new identity, which is not on disk yet.
///
/// # Errors
/// Why not, in words for the operator. Wrong tokens and foreign clusters fail at once, unreachable
/// managers after five rounds.
pub async fn join(request: &JoinRequest, clock: &Clock) -> Result<NodeIdentity, JoinError> {
    let mut failure: Option<ConnectError> = None;
    for round in 0..ROUNDS {
        if round > 0 {
            clock.sleep(ROUND_PAUSE).await;
        }
        let mut transient = false;
        for addr in &request.addrs {
            match join_at(addr, request, clock).await {
                Ok(identity) => return Ok(identity),
                Err(RenewError::Connect(error)) => {
                    // A refusal is this node's end, and told as such; the same reason again is no news.
                    if error.is_transient() && round == 0 {
                        tracing::warn!(%addr, %error, "can't join through this manager yet; trying again");
                    }
                    transient |= error.is_transient();
                    // A refusal tells more than an address that does not answer.
                    if failure.as_ref().is_none_or(ConnectError::is_transient) {
                        failure = Some(error);
                    }
                }
                Err(error) => return Err(error.into()),
            }
        }
        if !transient {
            break;
        }
    }
    let others_failed = request.addrs.len().saturating_sub(1);
    Err(
        failure.map_or(JoinError::NoAddress, |last| JoinError::Failed {
            last,
            others_failed,
        }),
    )
}

async fn join_at(
    addr: &str,
    request: &JoinRequest,
    clock: &Clock,
) -> Result<NodeIdentity, RenewError> {
    let root_pem = connect::fetch_root(addr, request.token.digest(), clock).await?;
    let channel = connect::connect_pinned(addr, &root_pem, clock).await?;
    let pending = Pending::new(addr, channel, clock)?;
    let identity = pending
        .obtain(&request.token.reveal(), request.availability, &root_pem)
        .await?;
    tracing::info!(node = %identity.node_id(), role = %identity.role(), "joined the cluster");
    Ok(identity)
}

/// Gets a new certificate for a new key of this node over an authenticated channel. The identity
/// returned has the role the managers now give the node, and is not on disk yet.
///
/// # Errors
/// When the managers can't be reached, refuse, or take too long. The old identity stays valid.
pub async fn renew(
    identity: &NodeIdentity,
    channel: Channel,
    clock: &Clock,
) -> Result<NodeIdentity, RenewError> {
    let pending = Pending::new("the cluster", channel, clock)?;
    // A renewal leaves the availability as it is; the field has no "unset", ACTIVE is its zero.
    let renewed = pending
        .obtain("", Availability::Active, identity.root_pem())
        .await?;
    let (old, new) = (identity.as_peer(), renewed.as_peer());
    if (old.node_id, old.cluster_id) != (new.node_id, new.cluster_id) {
        return Err(RenewError::OtherNode {
            issued: new.node_id.to_string(),
            expected: old.node_id.to_string(),
        });
    }
    Ok(renewed)
}

/// The same at the first of `addrs` that gives one, or refuses: that is the leader's word, whoever passed it on.
///
/// # Errors
/// The refusal. Without one why asking again may help, where it may, and otherwise what came of the last.
pub async fn renew_anywhere(
    security: &SecurityConfig,
    addrs: &[String],
) -> Result<NodeIdentity, RenewError> {
    let mut failure: Option<RenewError> = None;
    for addr in addrs {
        let error = match renew_at(security, addr).await {
            Ok(renewed) => return Ok(renewed),
            Err(refusal @ RenewError::Connect(ConnectError::Refused { .. })) => {
                return Err(refusal);
            }
            Err(error) => error,
        };
        if !failure.as_ref().is_some_and(RenewError::is_transient) || error.is_transient() {
            failure = Some(error);
        }
    }
    Err(failure.unwrap_or_else(no_manager))
}

async fn renew_at(security: &SecurityConfig, addr: &str) -> Result<NodeIdentity, RenewError> {
    let channel = connect::connect(addr, security).await?;
    renew(&security.identity(), channel, security.clock()).await
}

fn no_manager() -> RenewError {
    RenewError::Connect(ConnectError::Transport {
        addr: "the managers".into(),
        reason: "no manager is known".into(),
    })
}

/// Renews a certificate that expired while the node was off, by its key, at managers that know the node. Tried for some
/// rounds, in which managers that start together find their leader.
///
/// # Errors
/// Why not. A refusal ends it at once.
pub async fn renew_expired(
    identity: &NodeIdentity,
    addrs: &[String],
    clock: &Clock,
) -> Result<NodeIdentity, RenewError> {
    let security = SecurityConfig::new(identity.clone(), clock.clone())?;
    let mut last = no_manager();
    for round in 0..EXPIRED_ROUNDS {
        if addrs.is_empty() {
            break;
        }
        if round > 0 {
            clock.sleep(ROUND_PAUSE).await;
        }
        match renew_anywhere(&security, addrs).await {
            Err(error) if error.is_transient() => last = error,
            done => return done,
        }
    }
    Err(last)
}

/// How a new manager's secrets are to be kept, which it has to know before it writes the first one: asked of the managers
/// at `addrs`, with its new identity.
///
/// # Errors
/// When none of them says so, or what they say can't be used.
pub(crate) async fn fetch_sealing(
    identity: &NodeIdentity,
    addrs: &[String],
    clock: &Clock,
) -> Result<Sealing, RenewError> {
    let security = SecurityConfig::new(identity.clone(), clock.clone())?;
    let mut last = no_manager();
    for round in 0..ROUNDS {
        if round > 0 {
            clock.sleep(ROUND_PAUSE).await;
        }
        for addr in addrs {
            match sealing_at(addr, &security, clock).await {
                Ok(sealing) => return Ok(sealing),
                Err(error) => last = error,
            }
        }
    }
    Err(last)
}

async fn sealing_at(
    addr: &str,
    security: &SecurityConfig,
    clock: &Clock,
) -> Result<Sealing, RenewError> {
    let mut client = CaClient::new(connect::connect(addr, security).await?);
    let asked = client.get_unlock_key(pb::GetUnlockKeyRequest {});
    let answer = match clock.timeout(CA_RPC_TIMEOUT, asked).await {
        Ok(Ok(answer)) => answer.into_inner(),
        Ok(Err(status)) => return Err(refused(addr, &status).into()),
        Err(elapsed) => {
            return Err(RenewError::Connect(ConnectError::Timeout {
                addr: addr.to_owned(),
                limit: elapsed.0,
            }));
        }
    };
    let bytes = Zeroizing::new(answer.unlock_key);
    let key = match bytes.len() {
        0 => None,
        len => Some(UnlockKey::from_bytes(&bytes).ok_or(RenewError::UnlockKey(len))?),
    };
    Ok(Sealing {
        key,
        version: answer
            .version
            .map(|version| version.index)
            .unwrap_or_default(),
    })
}

/// A key that waits for its certificate.
struct Pending<'a> {
    addr: &'a str,
    client: NodeCaClient<Channel>,
    key: Zeroizing<String>,
    csr: String,
    clock: &'a Clock,
}

impl<'a> Pending<'a> {
    fn new(addr: &'a str, channel: Channel, clock: &'a Clock) -> Result<Self, RenewError> {
        let (key, csr) = root::new_key_and_csr()?;
        Ok(Self {
            addr,
            client: NodeCaClient::new(channel),
            key,
            csr,
            clock,
        })
    }

    async fn obtain(
        mut self,
        token: &str,
        availability: Availability,
        root_pem: &str,
    ) -> Result<NodeIdentity, RenewError> {
        let deadline = self.clock.monotonic().after(ISSUE_TIMEOUT);
        let node_id = self.request(token, availability).await?;
        loop {
            let Some(certificate) = self.status(&node_id, deadline).await? else {
                self.pause(deadline).await?;
                continue;
            };
            let cert_pem = String::from_utf8_lossy(&certificate.certificate);
            match NodeIdentity::from_pem(&cert_pem, &self.key, root_pem) {
                // The certificate from before this request: the manager has not signed yet.
                Err(IdentityError::KeyMismatch) => self.pause(deadline).await?,
                Err(error) => return Err(error.into()),
                Ok(identity) => {
                    identity.check_time(self.clock.now())?;
                    return verify_id(identity, &node_id);
                }
            }
        }
    }

    /// Files the request; returns the node id the manager gave or knows.
    async fn request(
        &mut self,
        token: &str,
        availability: Availability,
    ) -> Result<String, RenewError> {
        let request = pb::IssueNodeCertificateRequest {
            csr: self.csr.clone().into_bytes(),
            token: token.to_owned(),
            availability: availability.into(),
            ..Default::default()
        };
        let answer = self.client.issue_node_certificate(request);
        match self.clock.timeout(ISSUE_RPC_TIMEOUT, answer).await {
            Ok(Ok(answer)) => Ok(answer.into_inner().node_id),
            Ok(Err(status)) => Err(refused(self.addr, &status).into()),
            Err(elapsed) => Err(self.timeout(elapsed.0).into()),
        }
    }

    /// The signed certificate, or `None` if it is not signed yet. The manager may hold the request.
    async fn status(
        &mut self,
        node_id: &str,
        deadline: Monotonic,
    ) -> Result<Option<pb::Certificate>, RenewError> {
        let left = deadline.since(self.clock.monotonic());
        let request = pb::NodeCertificateStatusRequest {
            node_id: node_id.to_owned(),
        };
        let answer = self.client.node_certificate_status(request);
        let answer = match self.clock.timeout(CA_RPC_TIMEOUT.min(left), answer).await {
            Ok(Ok(answer)) => answer.into_inner(),
            Ok(Err(status)) => match refused(self.addr, &status) {
                error if error.is_transient() => {
                    tracing::debug!(%error, "no certificate status yet");
                    return Ok(None);
                }
                error => return Err(error.into()),
            },
            Err(_) => return Ok(None),
        };
        signed(answer)
    }

    async fn pause(&self, deadline: Monotonic) -> Result<(), RenewError> {
        self.clock.sleep(POLL_PAUSE).await;
        if self.clock.monotonic() >= deadline {
            return Err(RenewError::Timeout(ISSUE_TIMEOUT));
        }
        Ok(())
    }

    fn timeout(&self, limit: Duration) -> ConnectError {
        ConnectError::Timeout {
            addr: self.addr.to_owned(),
            limit,
        }
    }
}

/// The certificate that an answer has, if it may be the one that was asked for.
fn signed(
    answer: pb::NodeCertificateStatusResponse,
) -> Result<Option<pb::Certificate>, RenewError> {
    let status = answer.status.unwrap_or_default();
    match State::try_from(status.state) {
        // To be rotated is said of one that is issued: the root changes once more, and the node is asked for the next
        // before it has fetched this one. No other comes until it asks.
        Ok(State::Issued | State::Rotate) => Ok(answer.certificate),
        Ok(State::Failed) => Err(RenewError::Failed(status.err)),
        Ok(State::Unknown | State::Renew | State::Pending) | Err(_) => Ok(None),
    }
}

fn verify_id(identity: NodeIdentity, node_id: &str) -> Result<NodeIdentity, RenewError> {
    let issued = identity.node_id().to_string();
    if issued == node_id {
        return Ok(identity);
    }
    Err(RenewError::OtherNode {
        issued,
        expected: node_id.to_owned(),
    })
}

/// When to renew a certificate: at 50 to 80 % of its life, `random` (uniform over all of `u64`)
/// saying where. Pure.
#[must_use]
pub fn renewal_time(not_before: Timestamp, not_after: Timestamp, random: u64) -> Timestamp {
    let life = i128::from(not_after.0)
        .saturating_sub(i128::from(not_before.0))
        .max(0);
    let from = life * RENEW_FROM_PERCENT / 100;
    let window = life * (RENEW_TO_PERCENT - RENEW_FROM_PERCENT) / 100;
    let offset = from + window * i128::from(random) / (i128::from(u64::MAX) + 1);
    Timestamp(
        not_before
            .0
            .saturating_add(i64::try_from(offset).unwrap_or(i64::MAX)),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn renewal_is_between_half_and_four_fifths(begin in 0_i64..1 << 60, life in 0_i64..1 << 60, random: u64) {
            let at = renewal_time(Timestamp(begin), Timestamp(begin + life), random).0 - begin;
            prop_assert!(at >= life / 2 && at <= life / 5 * 4 + 4, "{at} of {life}");
        }
    }

    #[test]
    fn a_certificate_is_taken_also_when_the_next_is_asked_for_already() {
        let told = |state: State| {
            signed(pb::NodeCertificateStatusResponse {
                status: Some(pb::IssuanceStatus {
                    state: state.into(),
                    err: "no such role".to_owned(),
                    ..Default::default()
                }),
                certificate: Some(pb::Certificate::default()),
            })
        };
        for state in [State::Issued, State::Rotate] {
            assert!(told(state).unwrap().is_some(), "{state:?}");
        }
        for state in [State::Unknown, State::Renew, State::Pending] {
            assert!(told(state).unwrap().is_none(), "{state:?}");
        }
        let failed = told(State::Failed).unwrap_err().to_string();
        assert!(failed.contains("no such role"), "{failed}");
    }

    #[test]
    fn the_ends_of_the_window() {
        let (begin, end) = (Timestamp(0), Timestamp(1000));
        assert_eq!(renewal_time(begin, end, 0), Timestamp(500));
        assert_eq!(renewal_time(begin, end, u64::MAX), Timestamp(799));
        assert_eq!(
            renewal_time(end, begin, 7),
            end,
            "a life that ends before it begins is due"
        );
    }
}
