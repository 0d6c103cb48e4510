//! The managers as consensus knows them: for `node ls`, for the nodes' list of managers, and for one that joins.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use swarm_proto::id::NodeId;
use swarm_proto::own::membership_server::Membership as Rpc;
use swarm_proto::{own, pb};
use tonic::{Request, Response, Status};

use super::addresses;
use super::authorize::Caller;
use super::autopilot::is_given_up;
use super::controlapi;
use super::dispatcher::Dispatcher;
use super::raft::{
    Epoch, Gate, Member, MemberStatus, Membership, MembershipError, RaftId, RaftStatus, Sender,
    resolve,
};
use super::roles;
use super::store::machine::StoreMachine;
use super::writer::Store;
use crate::ca::{Role, SecurityConfig};

/// How much a node prefers a manager: all are alike, as in SwarmKit.
const MANAGER_WEIGHT: i64 = 10;
/// A manager that has answered the leader within this time is there: some heartbeats.
pub(crate) const HEARD_WITHIN: Duration = Duration::from_secs(2);
/// Longest time that one request to join is worked on: a snapshot may have to go over the wire. The joiner asks again.
const JOIN_LIMIT: Duration = Duration::from_secs(60);

/// What consensus knows of the managers.
#[derive(Debug)]
pub(crate) struct Members {
    membership: Membership<StoreMachine>,
}

impl Members {
    pub(crate) fn new(membership: Membership<StoreMachine>) -> Self {
        Self { membership }
    }
}

impl controlapi::Managers for Members {
    fn may_go(&self, node: NodeId) -> Result<(), String> {
        let status = self.membership.status();
        let Some((id, _)) = member_of(&status, node) else {
            return Ok(());
        };
        roles::status_without(&status, id).map_err(|lost| lost.to_string())
    }

    fn dead(&self) -> Vec<(NodeId, u64)> {
        let status = self.membership.status();
        let voters = status.members.iter().filter(|(_, m)| m.voter);
        let dead = voters.filter(|(id, m)| !roles::is_up(&status, **id, m));
        dead.filter_map(|(id, m)| Some((m.member.node_id.parse().ok()?, *id)))
            .collect()
    }

    fn status_of(&self, node: NodeId) -> Option<pb::ManagerStatus> {
        use pb::raft_member_status::Reachability;
        let status = self.membership.status();
        let (id, known) = member_of(&status, node)?;
        let reachability = match (id == status.id, known.heard) {
            (true, _) => Reachability::Reachable,
            (false, Some(ago)) if ago < HEARD_WITHIN => Reachability::Reachable,
            (false, _) if status.leader == Some(status.id) => Reachability::Unreachable,
            // Only the leader hears from the others.
            (false, _) => Reachability::Unknown,
        };
        Some(pb::ManagerStatus {
            raft_id: id,
            addr: known.member.addresses.first().cloned().unwrap_or_default(),
            addrs: known.member.addresses.clone(),
            leader: status.leader == Some(id),
            reachability: reachability.into(),
        })
    }
}

/// The member that a node is; one that votes, where it left another one behind that does not.
fn member_of(status: &RaftStatus, node: NodeId) -> Option<(RaftId, &MemberStatus)> {
    let node = node.to_string();
    let members = status.members.iter();
    let of_node = members.filter(|(_, m)| m.member.node_id == node);
    let best = of_node.max_by_key(|(id, m)| (m.voter, **id));
    best.map(|(id, m)| (*id, m))
}

/// The managers as nodes are told of them.
pub(crate) fn peers(members: &BTreeMap<RaftId, Member>) -> Vec<pb::WeightedPeer> {
    let peers = members.values().flat_map(|member| {
        member.addresses.iter().map(|addr| pb::WeightedPeer {
            peer: Some(pb::Peer {
                node_id: member.node_id.clone(),
                addr: addr.clone(),
            }),
            weight: MANAGER_WEIGHT,
        })
    });
    peers.collect()
}

/// Serves `Membership`.
#[derive(Debug, Clone)]
pub(crate) struct MembershipServer {
    pub(crate) dispatcher: Dispatcher,
    pub(crate) store: Store,
    pub(crate) membership: Membership<StoreMachine>,
    pub(crate) security: Arc<OnceLock<SecurityConfig>>,
    pub(crate) gate: Arc<Gate>,
}

impl MembershipServer {
    /// The manager that calls.
    async fn joiner(&self, caller: &Caller, id: RaftId) -> Result<NodeId, Status> {
        let peer = caller.node()?;
        let node = peer.node_id;
        if peer.role != Role::Manager {
            return Err(Status::permission_denied(format!(
                "node {node} is no manager"
            )));
        }
        let state = self.store.read().await.map_err(controlapi::Error::from)?;
        let known = state.nodes.get(&node).ok_or_else(|| {
            Status::not_found(format!(
                "node {node} is not part of the cluster: it was removed; `swarmd leave` on it ends its tasks, and lets it join again"
            ))
        })?;
        if known.desired_role != pb::NodeRole::Manager {
            return Err(Status::failed_precondition(format!(
                "node {node} is to be a worker; `swarmctl node promote {node}` makes it a manager"
            )));
        }
        if is_given_up(&state, node, id) {
            return Err(Status::failed_precondition(format!(
                "node {node} was given up as a voter while it was away, and has to begin anew: it does so by itself once it \
                 hears of it from a manager that it reports to"
            )));
        }
        Ok(node)
    }

    /// Takes only a manager that answers at one of its addresses: a member that can't be reached counts against the majority.
    async fn check_reachable(&self, member: &Member) -> Result<(), Status> {
        let security = self.security.get();
        let security = security.ok_or_else(|| Status::unavailable("this manager is starting"))?;
        addresses::prove(member, security).await.map_err(|error| {
            Status::failed_precondition(format!(
                "the managers can't reach this one: {error}; open the way, or name another address with \
                 --advertise-remote-api"
            ))
        })
    }
}

#[tonic::async_trait]
impl Rpc for MembershipServer {
    async fn leave_cluster(
        &self,
        request: Request<own::LeaveClusterRequest>,
    ) -> Result<Response<own::LeaveClusterResponse>, Status> {
        let node = Caller::of(&request)?.node()?.node_id;
        let members = self.membership.status();
        if let Some((id, _)) = member_of(&members, node) {
            if id == members.id {
                return Err(Status::unavailable(
                    "this manager still leads, and can't take itself out; try again",
                ));
            }
            let removed = self.membership.remove(id).await;
            removed.map_err(|e| Status::unavailable(e.to_string()))?;
            tracing::info!(node.id = %node, "a manager left");
        }
        self.dispatcher.leave(node).await?;
        Ok(Response::new(own::LeaveClusterResponse {}))
    }

    async fn join_managers(
        &self,
        request: Request<own::JoinManagersRequest>,
    ) -> Result<Response<own::JoinManagersResponse>, Status> {
        let caller = Caller::of(&request)?.clone();
        let node = self.joiner(&caller, request.get_ref().raft_id).await?;
        let request = request.into_inner();
        let theirs = Epoch::of_wire(request.epoch);
        if request.epoch.is_some() && theirs != Epoch::NONE {
            self.gate.admit_epoch(theirs, Sender::Anyone)?;
        }
        let remote = caller.remote.map(|remote| remote.ip());
        let addresses = resolve(&request.addresses, remote)
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        let id = request.raft_id;
        if id == 0 {
            return Err(Status::invalid_argument("raft_id: is missing"));
        }
        let status = self.membership.status();
        let before = member_of(&status, node).filter(|(known, _)| *known != id);
        if let Some((before, known)) = before {
            if known.voter {
                return Err(Status::failed_precondition(format!(
                    "node {node} voted and lost its log, so it can't vote again: `swarmctl node demote {node}` and \
                     `swarmctl node rm {node}`, then join with an empty state directory"
                )));
            }
            // It began to join, and lost what it had learned.
            let removed = self.membership.remove(before).await;
            removed.map_err(|e| Status::unavailable(e.to_string()))?;
        }
        let member = Member {
            node_id: node.to_string(),
            addresses,
        };
        self.check_reachable(&member).await?;
        let limit = JOIN_LIMIT;
        let added = tokio::time::timeout(limit, self.membership.add(id, member)).await;
        match added {
            Ok(Ok(())) => {
                tracing::info!(node.id = %node, "a manager joined");
                Ok(Response::new(own::JoinManagersResponse {}))
            }
            Ok(Err(error @ MembershipError::Refused(_))) => {
                Err(Status::aborted(format!("{error}; try again")))
            }
            Ok(Err(error @ (MembershipError::NotLeader { .. } | MembershipError::Stopped(_)))) => {
                Err(Status::unavailable(error.to_string()))
            }
            Err(_) => Err(Status::deadline_exceeded(format!(
                "the new manager has not caught up within {limit:?}; it goes on"
            ))),
        }
    }
}
