//! The managers' CA: hands out the root certificate and issues node certificates.
//!
//! A node certificate is signed (`signer`) and then recorded in one write, so a node object
//! never waits for a signature and a crash leaves nothing half-issued.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use swarm_proto::id::NodeId;
use swarm_proto::pb;
use swarm_proto::pb::ca_server::Ca;
use swarm_proto::pb::node_ca_server::NodeCa;
use swarm_proto::time::Timestamp;
use tonic::{Request, Response, Status};

use super::authorize::{Caller, Refusal};
use super::autolock;
use super::controlapi::{Error, Managers};
use super::expired::Expired;
use super::renewal::tls_info;
use super::signer::Signer;
use super::store::{Change, Cluster, Meta, Node, NodeStatus, State};
use super::writer::Store;
use crate::ca::roots::validity;
use crate::ca::{ClusterTokens, IssueDecision, IssueRequest, NodeSubject, Role, decide_issue};
use crate::clock::Clock;

/// Serves `CA` and `NodeCA`.
#[derive(Debug, Clone)]
pub struct CaServer {
    store: Store,
    clock: Clock,
    managers: Arc<dyn Managers>,
    expired: Arc<Mutex<Expired>>,
    signer: Signer,
}

/// A demoted manager gets a worker's certificate once it is no member of consensus any more. It waits this long for
/// that, and then asks again.
const DEMOTION_WAIT: Duration = Duration::from_secs(4);
/// Pause between two looks at it.
const DEMOTION_LOOK: Duration = Duration::from_millis(20);

impl CaServer {
    /// A CA over a store.
    pub fn new(store: Store, clock: Clock, managers: Arc<dyn Managers>) -> Self {
        Self {
            store,
            signer: Signer::new(Arc::default(), clock.clone()),
            clock,
            managers,
            expired: Arc::default(),
        }
    }

    /// The same, reaching external CAs as this manager.
    #[must_use]
    pub(crate) fn signing(self, signer: Signer) -> Self {
        Self { signer, ..self }
    }

    /// Returns once a node is no member of consensus.
    async fn until_no_member(&self, id: NodeId) -> Result<(), Status> {
        let gone = async {
            while self.managers.status_of(id).is_some() {
                self.clock.sleep(DEMOTION_LOOK).await;
            }
        };
        self.clock.timeout(DEMOTION_WAIT, gone).await.map_err(|_| {
            Status::unavailable(format!(
                "node {id} is being demoted, and still takes part in consensus: try again later"
            ))
        })
    }

    fn cluster(&self) -> Result<Arc<Cluster>, Status> {
        let cluster = self.store.view().cluster;
        cluster.ok_or_else(not_set_up)
    }

    async fn write(&self, change: Change) -> Result<(), Status> {
        let written = self
            .store
            .write(self.store.time(&self.clock), vec![change])
            .await;
        let written = written.map_err(Error::from)?;
        match written.results.into_iter().next() {
            Some(Err(rejected)) => Err(Error::from(rejected).into()),
            Some(Ok(())) | None => Ok(()),
        }
    }

    /// A node nobody has seen before.
    async fn create(
        &self,
        cluster: &Cluster,
        role: Role,
        request: &pb::IssueNodeCertificateRequest,
    ) -> Result<NodeId, Status> {
        let availability = pb::node_spec::Availability::try_from(request.availability)
            .map_err(|_| Status::invalid_argument("unknown availability"))?;
        let node_id = NodeId::from_raw(super::random_id());
        let subject = NodeSubject {
            node_id,
            role,
            cluster_id: cluster.id,
        };
        let signed = self.signer.sign(cluster, &subject, &request.csr);
        let certificate = signed.await?;
        let node = new_node(node_id, role, availability, certificate, &self.clock);
        self.write(Change::CreateNode(Arc::new(node))).await?;
        tracing::info!(node.id = %node_id, node.role = %role, "a node joined the cluster");
        Ok(node_id)
    }

    /// Whether a node whose certificate ended then is served now.
    fn admit_expired(&self, state: &State, id: NodeId, ended: Timestamp) -> Result<(), Status> {
        let cluster = state.cluster.as_ref();
        if cluster.is_some_and(|cluster| cluster.blacklist.contains_key(&id)) {
            return Err((&Refusal::Revoked(id)).into());
        }
        let node = state.nodes.get(&id).ok_or_else(|| unknown(id))?;
        if !may_be_newest(node, ended) {
            return Err(Status::permission_denied(format!(
                "node {id} was issued another certificate since: if this host lost it, `swarmd leave` on it lets it join again"
            )));
        }
        let mut expired = self.expired.lock().unwrap_or_else(PoisonError::into_inner);
        let admitted = expired.admit(id, self.clock.monotonic());
        admitted.map_err(|e| Status::resource_exhausted(e.to_string()))
    }

    /// A node that shows its certificate, which ends then, keeps its id; its role is that of its object.
    async fn renew(
        &self,
        (state, cluster): (&State, &Cluster),
        (id, shown): (NodeId, Option<Timestamp>),
        csr: &[u8],
    ) -> Result<NodeId, Status> {
        let node = state.nodes.get(&id).cloned();
        let node = node.ok_or_else(|| unknown(id))?;
        let role = role_of(node.desired_role);
        if role == Role::Worker {
            self.until_no_member(id).await?;
        }
        let subject = NodeSubject {
            node_id: id,
            role,
            cluster_id: cluster.id,
        };
        let signed = self.signer.sign(cluster, &subject, csr).await;
        let mut certificate = Box::new(signed?);
        certificate.predecessor_not_after = shown.and_then(Timestamp::to_wire);
        self.write(Change::SetNodeCertificate {
            id,
            role: wire_role(role),
            certificate,
        })
        .await?;
        tracing::info!(node.id = %id, "a node renewed its certificate");
        Ok(id)
    }
}

/// Whether a certificate that ended then may be the newest that a node has: the one that it was issued last, the one that
/// it opened its session with, or, until it has shown the last one, the one that asked for it. The answer to that may have
/// been lost, and asking again must not shut the node out.
fn may_be_newest(node: &Node, ended: Timestamp) -> bool {
    let certificate = &node.certificate;
    let time = |wire: &prost_types::Timestamp| Timestamp::from_wire(Some(wire));
    let last = String::from_utf8_lossy(&certificate.certificate);
    let last = validity(&last).ok().map(|(_, end)| end);
    let shown = tls_info(node).and_then(|info| info.shown_not_after.as_ref());
    let shown = shown.map(time);
    let before = certificate.predecessor_not_after.as_ref().map(time);
    [last, shown].contains(&Some(ended)) || (shown != last && before == Some(ended))
}

fn not_set_up() -> Status {
    Status::unavailable("the cluster is not set up yet")
}

fn unknown(id: NodeId) -> Status {
    Status::not_found(format!(
        "node {id} is not in this cluster; it may have been removed"
    ))
}

/// A node as it is when its first certificate is issued.
pub(crate) fn new_node(
    id: NodeId,
    role: Role,
    availability: pb::node_spec::Availability,
    certificate: pb::Certificate,
    clock: &Clock,
) -> Node {
    Node {
        id,
        meta: Meta::default(),
        annotations: pb::Annotations::default(),
        desired_role: wire_role(role),
        membership: pb::node_spec::Membership::Accepted,
        availability,
        role: wire_role(role),
        certificate,
        description: None,
        resources: swarm_proto::resources::Resources::default(),
        platform: swarm_proto::placement::Platform::default(),
        status: NodeStatus {
            state: pb::node_status::State::Unknown,
            message: "waits for its first session".to_owned(),
            addr: String::new(),
            since: clock.now(),
        },
        failures: Vec::new(),
    }
}

fn role_of(role: pb::NodeRole) -> Role {
    match role {
        pb::NodeRole::Manager => Role::Manager,
        pb::NodeRole::Worker => Role::Worker,
    }
}

fn wire_role(role: Role) -> pb::NodeRole {
    match role {
        Role::Manager => pb::NodeRole::Manager,
        Role::Worker => pb::NodeRole::Worker,
    }
}

fn tokens(cluster: &Cluster) -> Result<ClusterTokens, Status> {
    let tokens = cluster.root_ca.join_tokens.clone().unwrap_or_default();
    let broken = || Status::internal("the cluster's join tokens are damaged; rotate them");
    Ok(ClusterTokens {
        worker: tokens.worker.parse().map_err(|_| broken())?,
        manager: tokens.manager.parse().map_err(|_| broken())?,
    })
}

#[tonic::async_trait]
impl Ca for CaServer {
    async fn get_root_ca_certificate(
        &self,
        _: Request<pb::GetRootCaCertificateRequest>,
    ) -> Result<Response<pb::GetRootCaCertificateResponse>, Status> {
        let certificate = self.cluster()?.root_ca.ca_cert.clone();
        Ok(Response::new(pb::GetRootCaCertificateResponse {
            certificate,
        }))
    }

    async fn get_unlock_key(
        &self,
        _: Request<pb::GetUnlockKeyRequest>,
    ) -> Result<Response<pb::GetUnlockKeyResponse>, Status> {
        let cluster = self.cluster()?;
        // Without autolock there is no key: an empty one says so.
        let key = autolock::stored_key(&cluster).unwrap_or_default().to_vec();
        let version = Some(pb::Version {
            index: cluster.meta.version,
        });
        Ok(Response::new(pb::GetUnlockKeyResponse {
            unlock_key: key,
            version,
        }))
    }
}

#[tonic::async_trait]
impl NodeCa for CaServer {
    async fn issue_node_certificate(
        &self,
        request: Request<pb::IssueNodeCertificateRequest>,
    ) -> Result<Response<pb::IssueNodeCertificateResponse>, Status> {
        let caller = Caller::of(&request)?.clone();
        let request = request.into_inner();
        // Not of a view that may be behind: the role is for months, and who was removed is to get none.
        let state = self.store.read().await.map_err(Error::from)?;
        let cluster = state.cluster.clone().ok_or_else(not_set_up)?;
        let decision = decide_issue(
            &IssueRequest {
                csr: &request.csr,
                token: &request.token,
            },
            caller.certificate(),
            cluster.id,
            &tokens(&cluster)?,
            self.clock.now(),
        )
        .map_err(|refusal| Status::invalid_argument(refusal.to_string()))?;
        let shown = caller.certificate().map(|shown| shown.not_after);
        let node_id = match decision {
            IssueDecision::Create { role } => self.create(&cluster, role, &request).await?,
            IssueDecision::Renew { node_id } => {
                let node = (node_id, shown);
                self.renew((&state, &cluster), node, &request.csr).await?
            }
            IssueDecision::RenewExpired { node_id, not_after } => {
                let admitted = self.admit_expired(&state, node_id, not_after);
                if let Err(status) = &admitted {
                    tracing::warn!(node.id = %node_id, remote = ?caller.remote, reason = status.message(), "a node with an expired certificate gets no new one");
                }
                admitted?;
                let node = (node_id, shown);
                let renewed = self.renew((&state, &cluster), node, &request.csr).await?;
                tracing::warn!(node.id = %node_id, remote = ?caller.remote, "a node's certificate had expired; it has a new one by its key");
                renewed
            }
        };
        Ok(Response::new(pb::IssueNodeCertificateResponse {
            node_id: node_id.to_string(),
            node_membership: pb::node_spec::Membership::Accepted.into(),
        }))
    }

    async fn node_certificate_status(
        &self,
        request: Request<pb::NodeCertificateStatusRequest>,
    ) -> Result<Response<pb::NodeCertificateStatusResponse>, Status> {
        let text = request.into_inner().node_id;
        let id: NodeId = text
            .parse()
            .map_err(|_| Status::not_found(format!("node {text:?} not found")))?;
        // Issuing and recording are one write: a node that exists has its certificate.
        let node = self.store.view().nodes.get(&id).cloned();
        let node = node.ok_or_else(|| Status::not_found(format!("node {id} not found")))?;
        Ok(Response::new(pb::NodeCertificateStatusResponse {
            status: node.certificate.status.clone(),
            certificate: Some(node.certificate.clone()),
        }))
    }
}

#[cfg(test)]
mod tests;
