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
use super::roles::{self, Silent};
use super::store::machine::StoreMachine;
use super::writer::Store;
use crate::ca::{Role, SecurityConfig};

/// How much a node prefers a manager: all are alike, as in SwarmKit.
const MANAGER_WEIGHT: i64 = 10;
/// A manager that has answered the leader within this time is there: some heartbeats.
pub(crate) const HEARD_WITHIN: Duration = Duration::from_secs(2);
/// Longest time that one request to leave is worked on, shorter than its caller waits; and the pause before it is tried again.
const LEAVE_LIMIT: Duration = Duration::from_secs(8);
const LEAVE_AGAIN: Duration = Duration::from_millis(200);
/// Longest time that one request to join is worked on: a snapshot may have to go over the wire. The joiner asks again.
const JOIN_LIMIT: Duration = Duration::from_secs(60);

/// What consensus knows of the managers.
#[derive(Debug)]
pub(crate) struct Members {
    membership: Membership<StoreMachine>,
    silent: Arc<Silent>,
}

impl Members {
    pub(crate) fn new(membership: Membership<StoreMachine>, silent: Arc<Silent>) -> Self {
        Self { membership, silent }
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

    fn knows_who_is_dead(&self) -> bool {
        knows_who_is_dead(&self.membership.status(), &self.silent.borrow())
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

/// Whether every voter has answered this leader, or had the time to.
fn knows_who_is_dead(status: &RaftStatus, silent: &BTreeMap<RaftId, Duration>) -> bool {
    let mut voters = status.members.iter().filter(|(_, m)| m.voter);
    voters.all(|(id, member)| {
        *id == status.id
            || member.heard.is_some()
            || silent.get(id).is_some_and(|silent| *silent >= HEARD_WITHIN)
    })
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
                "node {node} was given up as a voter or demoted, and has to begin anew: it does so by itself once it hears \
                 of it from a manager that it reports to"
            )));
        }
        Ok(node)
    }

    fn security(&self) -> Result<&SecurityConfig, Status> {
        let security = self.security.get();
        security.ok_or_else(|| Status::unavailable("this manager is starting"))
    }

    /// Takes a manager that leaves out of consensus, where the others have a majority without it.
    async fn take_out(&self, node: NodeId) -> Result<(), Status> {
        let status = self.membership.status();
        let Some((id, _)) = member_of(&status, node) else {
            return Ok(());
        };
        if id == status.id {
            // Nobody is left to be told: the cluster ends with it.
            if status.members.len() == 1 {
                return Ok(());
            }
            return Err(Status::unavailable(
                "this manager still leads, and can't take itself out; try again",
            ));
        }
        roles::status_without(&status, id).map_err(|lost| {
            Status::failed_precondition(format!(
                "node {node} can't be taken out of the managers: {lost}; start the managers that are down first"
            ))
        })?;
        let removed = self.membership.remove(id, &status).await;
        removed.map_err(|error| Status::unavailable(error.to_string()))?;
        tracing::info!(node.id = %node, "a manager left");
        Ok(())
    }

    /// The same, and again while it can't be done yet: who has just begun to lead has heard nobody, and other changes of the
    /// members come first.
    async fn take_out_soon(&self, node: NodeId) -> Result<(), Status> {
        let clock = self.security()?.clock().clone();
        let mut last = Status::deadline_exceeded(format!(
            "node {node} is a manager still: no majority has agreed within {LEAVE_LIMIT:?}"
        ));
        let work = async {
            while let Err(status) = self.take_out(node).await {
                last = status;
                clock.sleep(LEAVE_AGAIN).await;
            }
        };
        let done = clock.timeout(LEAVE_LIMIT, work).await;
        done.map_err(|_| last)
    }

    /// Takes only a manager that answers at one of its addresses: a member that can't be reached counts against the majority.
    async fn check_reachable(&self, member: &Member) -> Result<Vec<String>, Status> {
        addresses::prove(member, self.security()?).await.map_err(|error| {
            Status::failed_precondition(format!(
                "the managers can't reach this one: {error}; open the way, or name another address with \
                 --advertise-remote-api"
            ))
        })
    }
}

fn refusal(error: MembershipError) -> Status {
    match error {
        MembershipError::Refused(_) => Status::aborted(format!("{error}; try again")),
        MembershipError::NotLeader { .. } | MembershipError::Stopped(_) => {
            Status::unavailable(error.to_string())
        }
    }
}

#[tonic::async_trait]
impl Rpc for MembershipServer {
    async fn leave_cluster(
        &self,
        request: Request<own::LeaveClusterRequest>,
    ) -> Result<Response<own::LeaveClusterResponse>, Status> {
        let node = Caller::of(&request)?.node()?.node_id;
        self.take_out_soon(node).await?;
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
            let removed = self.membership.remove(before, &status).await;
            removed.map_err(|e| Status::unavailable(e.to_string()))?;
        }
        let mut member = Member {
            node_id: node.to_string(),
            addresses,
        };
        member.addresses = self.check_reachable(&member).await?;
        let limit = JOIN_LIMIT;
        let learned = tokio::time::timeout(limit, self.membership.learn(id, member)).await;
        let learned = learned.map_err(|_| {
            Status::deadline_exceeded(format!(
                "the new manager has not caught up within {limit:?}; it goes on"
            ))
        })?;
        let learned = learned.map_err(refusal)?;
        // That took its time: it may have been removed, demoted or given up since. Where it is now, the members change.
        self.joiner(&caller, id).await?;
        let votes = self.membership.let_vote(id, &learned).await;
        votes.map_err(refusal)?;
        tracing::info!(node.id = %node, "a manager joined");
        Ok(Response::new(own::JoinManagersResponse {}))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_just_begun_to_lead_does_not_know_who_is_dead() {
        let member = |heard| MemberStatus {
            member: Member::default(),
            voter: true,
            matched: None,
            heard,
        };
        let long = Duration::from_secs(60);
        let of = |heard, silent: &[(RaftId, Duration)]| {
            let members = [(1, member(None)), (2, member(heard))].into();
            knows_who_is_dead(&RaftStatus::led(members), &silent.iter().copied().collect())
        };
        assert!(!of(None, &[]));
        assert!(!of(None, &[(2, Duration::from_secs(1))]));
        assert!(of(None, &[(2, HEARD_WITHIN)]));
        // It answered this leader, and then no more.
        assert!(of(Some(long), &[]));
        assert!(of(Some(Duration::ZERO), &[]));
    }
}
