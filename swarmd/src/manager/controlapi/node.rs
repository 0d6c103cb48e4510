//! Nodes: read, update, remove.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use swarm_proto::id::NodeId;
use swarm_proto::node::NodeSpec;
use swarm_proto::pb;

use super::error::Error;
use super::filter::{Common, any_of, has_labels};
use super::{ControlApi, required, support, version_of};
use crate::manager::convert;
use crate::manager::store::{Change, Node, Retirement, State};

/// A removed node's certificate stays refused this long past its longest possible life, as in
/// SwarmKit.
const REFUSAL_GRACE: Duration = Duration::from_secs(7 * 24 * 3600);

impl ControlApi {
    pub(super) async fn get_node_by(&self, text: &str) -> Result<pb::GetNodeResponse, Error> {
        Ok(pb::GetNodeResponse {
            node: Some(self.node_wire(&self.store.read().await?, parse(text)?)?),
        })
    }

    pub(super) async fn list_nodes_by(
        &self,
        request: pb::ListNodesRequest,
    ) -> Result<pb::ListNodesResponse, Error> {
        let state = self.store.read().await?;
        let filters = request.filters.unwrap_or_default();
        let common = Common {
            names: &filters.names,
            name_prefixes: &filters.name_prefixes,
            id_prefixes: &filters.id_prefixes,
            labels: None,
        };
        let none = BTreeMap::new();
        let pass = |n: &&Arc<Node>| {
            let description = n.description.as_deref();
            let engine = description
                .and_then(|d| d.engine.as_ref())
                .map(|e| &e.labels);
            common.pass(&n.id, &hostname(n), &none)
                && has_labels(engine.unwrap_or(&none), &filters.labels)
                && has_labels(&n.annotations.labels, &filters.node_labels)
                && any_of(&filters.memberships, |m| *m == i32::from(n.membership))
                && any_of(&filters.roles, |r| *r == i32::from(n.role))
        };
        let nodes = state.nodes.values().filter(pass);
        Ok(pb::ListNodesResponse {
            nodes: nodes.map(|n| self.with_manager_status(&state, n)).collect(),
        })
    }

    pub(super) async fn update_node_by(
        &self,
        request: pb::UpdateNodeRequest,
    ) -> Result<pb::UpdateNodeResponse, Error> {
        let id = parse(&request.node_id)?;
        let expected = version_of(request.node_version.as_ref())?;
        let spec = required(request.spec, "spec")?;
        support::check_size("the node", &spec)?;
        let spec = NodeSpec::try_from(spec)?;
        let give_up = match self.check_role(id, spec.desired_role, request.force) {
            Ok(()) => Vec::new(),
            Err(_) if request.force => self.give_up(id)?,
            Err(refused) => return Err(refused),
        };
        self.write(Change::UpdateNode {
            id,
            expected,
            annotations: spec.annotations,
            desired_role: spec.desired_role,
            membership: spec.membership,
            availability: spec.availability,
            addresses: spec.manager_addresses,
            give_up,
        })
        .await?;
        Ok(pb::UpdateNodeResponse {
            node: Some(self.node_wire(&self.store.view(), id)?),
        })
    }

    /// Those that are given up as voters so that this one can go.
    fn give_up(&self, id: NodeId) -> Result<Vec<(NodeId, Retirement)>, Error> {
        if !self.managers.knows_who_is_dead() {
            return Err(Error::FailedPrecondition(format!(
                "node {id}: can't demote it by force now: the manager that leads has only just begun to, and does not know \
                 yet which of the others are down; try again in some seconds"
            )));
        }
        let dead = self.managers.dead().into_iter();
        let others = dead.filter(|(node, _)| *node != id);
        let at = self.store.time(&self.clock);
        let each = others.map(|(node, raft_id)| {
            let retirement = Retirement {
                raft_id,
                at,
                reason: format!("it did not answer when node {id} was demoted with --force"),
                done: false,
                demoted: false,
            };
            (node, retirement)
        });
        let state = self.store.view();
        // One that was demoted goes in its turn.
        let manages = |node: &NodeId| {
            let node = state.nodes.get(node);
            node.is_some_and(|n| n.desired_role == pb::NodeRole::Manager)
        };
        Ok(each.filter(|(node, _)| manages(node)).collect())
    }

    /// A demotion must leave a majority. Whether it still does when its turn has come is asked again then; by force it can be
    /// said again meanwhile.
    fn check_role(&self, id: NodeId, desired: pb::NodeRole, again: bool) -> Result<(), Error> {
        let state = self.store.view();
        let Some(node) = state.nodes.get(&id) else {
            return Ok(());
        };
        if (node.desired_role == desired && !again) || desired == pb::NodeRole::Manager {
            return Ok(());
        }
        let mut others = state.nodes.values().filter(|other| other.id != id);
        if !others.any(|n| n.desired_role == pb::NodeRole::Manager) {
            // The last one: refused where no other change can come between.
            return Ok(());
        }
        self.managers.may_go(id).map_err(|arithmetic| {
            let dead = self.managers.dead().into_iter();
            let dead: Vec<String> = dead
                .filter(|(node, _)| *node != id)
                .map(|(node, _)| self.named(node))
                .collect();
            Error::FailedPrecondition(format!(
                "node {id}: can't demote it now: {arithmetic}; start the managers that are down first, or say --force, \
                 which gives them up as voters before: {}",
                dead.join(", ")
            ))
        })
    }

    /// A node for people.
    fn named(&self, id: NodeId) -> String {
        let state = self.store.view();
        let name = state.nodes.get(&id).map(|node| hostname(node));
        match name.filter(|name| !name.is_empty()) {
            Some(name) => format!("{name} ({id})"),
            None => id.to_string(),
        }
    }

    pub(super) async fn remove_node_by(
        &self,
        request: pb::RemoveNodeRequest,
    ) -> Result<pb::RemoveNodeResponse, Error> {
        let id = parse(&request.node_id)?;
        let state = self.store.view();
        let member = self.managers.status_of(id).is_some();
        let wanted = |n: &Arc<Node>| n.desired_role == pb::NodeRole::Manager;
        let notes = state.cluster.as_ref().map(|cluster| &cluster.managers);
        let retired = notes.and_then(|notes| notes.get(&id)?.retired.as_ref());
        // One that was given up is a manager by name only.
        let gone = retired.is_some_and(|retired| retired.done && !retired.demoted);
        if member || (!gone && state.nodes.get(&id).is_some_and(wanted)) {
            return Err(Error::FailedPrecondition(format!(
                "node {id} is a manager and a member of the Raft cluster; demote it to worker first"
            )));
        }
        let life = state
            .cluster
            .as_ref()
            .map(|c| c.node_cert_expiry())
            .unwrap_or_default();
        let now = self.store.time(&self.clock);
        // Its own may last longer than those that are issued now.
        let ends = state.nodes.get(&id).and_then(|n| n.certificates_end());
        let ends = ends.unwrap_or_default().max(now.after(life));
        let refused_until = ends.after(REFUSAL_GRACE);
        self.write(Change::RemoveNode {
            id,
            force: request.force,
            refused_until,
        })
        .await?;
        Ok(pb::RemoveNodeResponse {})
    }

    /// From a state that holds what the caller may have seen: after a barrier, or after its own write, which is applied here
    /// by then. A barrier after a write could fail, and the answer would be that of a write that failed.
    fn node_wire(&self, state: &State, id: NodeId) -> Result<pb::Node, Error> {
        let node = state.nodes.get(&id).ok_or_else(|| Error::NotFound {
            kind: "node",
            name: id.to_string(),
        })?;
        Ok(self.with_manager_status(state, node))
    }

    /// The manager's part of a node is known to Raft, not to the store.
    fn with_manager_status(&self, state: &State, node: &Node) -> pb::Node {
        let mut wire = convert::node_to_wire(node, state.cluster.as_deref());
        wire.manager_status = self.managers.status_of(node.id);
        let manager = pb::NodeRole::Manager;
        let retired = wire.retired_at.is_some();
        if !retired
            && wire.manager_status.is_none()
            && (node.role, node.desired_role) == (manager, manager)
        {
            // It has not joined consensus yet, or was left behind by a recovery.
            wire.manager_status = Some(pb::ManagerStatus {
                reachability: pb::raft_member_status::Reachability::Unreachable.into(),
                ..Default::default()
            });
        }
        wire
    }
}

fn hostname(node: &Node) -> String {
    node.description
        .as_ref()
        .map(|d| d.hostname.clone())
        .unwrap_or_default()
}

fn parse(text: &str) -> Result<NodeId, Error> {
    text.parse().map_err(|e| Error::no_such(&e))
}
