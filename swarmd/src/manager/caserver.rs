//! The managers' CA: hands out the root certificate and issues node certificates.
//!
//! A node certificate is signed and recorded in one write, so a node object never waits for a
//! signature and a crash leaves nothing half-issued.

use std::sync::Arc;
use std::time::Duration;

use swarm_proto::id::NodeId;
use swarm_proto::pb;
use swarm_proto::pb::ca_server::Ca;
use swarm_proto::pb::node_ca_server::NodeCa;
use tonic::{Request, Response, Status};

use super::authorize::Caller;
use super::autolock;
use super::controlapi::{Error, Managers};
use super::store::{Change, Cluster, Meta, Node, NodeStatus};
use super::writer::Store;
use crate::ca::roots::validity;
use crate::ca::{
    ClusterTokens, IssueDecision, IssueRequest, NodeSubject, Role, RootCa, decide_issue,
};
use crate::clock::Clock;

/// Serves `CA` and `NodeCA`.
#[derive(Debug, Clone)]
pub struct CaServer {
    store: Store,
    clock: Clock,
    managers: Arc<dyn Managers>,
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
            clock,
            managers,
        }
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
        cluster.ok_or_else(|| Status::unavailable("the cluster is not set up yet"))
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
        let certificate = sign(cluster, &subject, &request.csr, &self.clock)?;
        let node = new_node(node_id, role, availability, certificate, &self.clock);
        self.write(Change::CreateNode(Arc::new(node))).await?;
        tracing::info!(node.id = %node_id, node.role = %role, "a node joined the cluster");
        Ok(node_id)
    }

    /// A node that shows its certificate keeps its id; its role is that of its object.
    async fn renew(&self, cluster: &Cluster, id: NodeId, csr: &[u8]) -> Result<NodeId, Status> {
        // Not of a view that may be behind: the role is for months.
        let state = self.store.read().await.map_err(Error::from)?;
        let node = state.nodes.get(&id).cloned();
        let node = node.ok_or_else(|| {
            Status::not_found(format!(
                "node {id} is not in this cluster; it may have been removed"
            ))
        })?;
        let role = role_of(node.desired_role);
        if role == Role::Worker {
            self.until_no_member(id).await?;
        }
        let subject = NodeSubject {
            node_id: id,
            role,
            cluster_id: cluster.id,
        };
        let certificate = sign(cluster, &subject, csr, &self.clock)?;
        let certificate = Box::new(certificate);
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

/// Signs, with the life that the cluster is set to; under the next root already while the root changes.
pub(crate) fn sign(
    cluster: &Cluster,
    subject: &NodeSubject,
    csr: &[u8],
    clock: &Clock,
) -> Result<pb::Certificate, Status> {
    let text = |pem: &[u8]| String::from_utf8_lossy(pem).into_owned();
    let root = &cluster.root_ca;
    let (cert, key, cross) = match &root.root_rotation {
        Some(next) => (&next.ca_cert, &next.ca_key, &*next.cross_signed_ca_cert),
        None => (&root.ca_cert, &root.ca_key, &[][..]),
    };
    let root = RootCa::from_pem(&text(cert), &text(key));
    let root = root.map_err(|e| Status::internal(e.to_string()))?;
    let mut pem = root
        .issue(csr, subject, cluster.node_cert_expiry(), clock.now())
        .map_err(|e| Status::invalid_argument(e.to_string()))?;
    let (not_before, not_after) =
        validity(&pem).map_err(|problem| Status::internal(problem.to_string()))?;
    // Who knows the old root alone is led to it by this one.
    pem.push_str(&text(cross));
    Ok(pb::Certificate {
        role: wire_role(subject.role).into(),
        csr: csr.to_vec(),
        status: Some(pb::IssuanceStatus {
            state: pb::issuance_status::State::Issued.into(),
            ..Default::default()
        }),
        certificate: pem.into_bytes(),
        cn: subject.node_id.to_string(),
        issuer_public_key: root.public_key(),
        not_before: not_before.to_wire(),
        not_after: not_after.to_wire(),
    })
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
        let cluster = self.cluster()?;
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
        let node_id = match decision {
            IssueDecision::Create { role } => self.create(&cluster, role, &request).await?,
            IssueDecision::Renew { node_id } => self.renew(&cluster, node_id, &request.csr).await?,
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
