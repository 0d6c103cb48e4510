//! Changes of nodes and of the cluster object.

use std::sync::Arc;

use swarm_proto::id::{NodeId, TaskId};
use swarm_proto::pb;
use swarm_proto::placement::Platform;
use swarm_proto::resources::Resources;
use swarm_proto::task_state::{Owner, TaskState};
use swarm_proto::time::Timestamp;

use super::tasks::end_task;
use super::{At, Rejected, node, out_of_sequence};
use crate::manager::store::index::Txn;
use crate::manager::store::state::{Cluster, ManagerNote, Node, NodeStatus, State, Text};

pub(super) fn update_cluster(txn: &mut Txn<'_>, at: At, cluster: &Cluster) -> Result<(), Rejected> {
    let Some(old) = &txn.state.cluster else {
        return Err(Rejected::NotFound {
            kind: "cluster",
            name: cluster.id.to_string(),
        });
    };
    if old.meta.version != cluster.meta.version || old.id != cluster.id {
        return Err(out_of_sequence("cluster", cluster.id));
    }
    let mut cluster = cluster.clone();
    cluster.meta = at.updated(old.meta);
    txn.put_cluster(cluster);
    Ok(())
}

pub(super) fn create_node(txn: &mut Txn<'_>, at: At, node: &Node) -> Result<(), Rejected> {
    if txn.state.nodes.contains_key(&node.id) {
        return Err(Rejected::Exists {
            kind: "node",
            name: node.id.to_string(),
        });
    }
    let refused = txn
        .state
        .cluster
        .as_ref()
        .is_some_and(|cluster| cluster.blacklist.contains_key(&node.id));
    if refused {
        return Err(Rejected::Conflict {
            kind: "node",
            name: node.id.to_string(),
            reason: "was removed from the cluster; `swarmd leave` on it lets it join again"
                .to_owned(),
        });
    }
    let mut node = node.clone();
    node.meta = at.created();
    txn.put_node(node);
    Ok(())
}

/// Changes what is kept of a manager.
pub(super) fn note_manager(
    txn: &mut Txn<'_>,
    at: At,
    node: NodeId,
    change: impl FnOnce(&mut ManagerNote),
) {
    let Some(old) = txn.state.cluster.clone() else {
        return;
    };
    let mut note = old.managers.get(&node).cloned().unwrap_or_default();
    change(&mut note);
    let mut cluster = old.as_ref().clone();
    match note == ManagerNote::default() {
        true => drop(cluster.managers.remove(&node)),
        false => drop(cluster.managers.insert(node, note)),
    }
    if cluster.managers != old.managers {
        cluster.meta = at.updated(old.meta);
        txn.put_cluster(cluster);
    }
}

/// The last manager stays one. Whether the others are up, and a majority, is known to consensus.
pub(super) fn check_role(
    state: &State,
    node: &Node,
    desired: pb::NodeRole,
) -> Result<(), Rejected> {
    let manages = |n: &Node| n.desired_role == pb::NodeRole::Manager;
    let mut nodes = state.nodes.values();
    if desired == pb::NodeRole::Manager
        || !manages(node)
        || nodes.any(|other| other.id != node.id && manages(other))
    {
        return Ok(());
    }
    Err(Rejected::Conflict {
        kind: "node",
        name: node.id.to_string(),
        reason: "can't demote the last manager of the cluster: 1 manager - 1 = 0 leave no quorum; promote another node first"
            .to_owned(),
    })
}

pub(super) fn set_certificate(
    txn: &mut Txn<'_>,
    at: At,
    (id, role): (NodeId, pb::NodeRole),
    certificate: &pb::Certificate,
) -> Result<(), Rejected> {
    let mut node = node(txn.state, id)?;
    // What nodes were asked lately is counted also when they have done it.
    let asked_at = node.certificate.status.take().and_then(|s| s.asked_at);
    let longest = node.certificates_end();
    node.role = role;
    node.certificate = certificate.clone();
    node.certificate.status.get_or_insert_default().asked_at = asked_at;
    node.certificate.longest_not_after = longest.and_then(Timestamp::to_wire);
    node.meta = at.updated(node.meta);
    txn.put_node(node);
    Ok(())
}

pub(super) fn ask_renewal(txn: &mut Txn<'_>, at: At, id: NodeId) {
    let Ok(mut node) = node(txn.state, id) else {
        return;
    };
    let status = node.certificate.status.get_or_insert_default();
    status.set_state(pb::issuance_status::State::Rotate);
    status.asked_at = at.now.to_wire();
    node.meta = at.updated(node.meta);
    txn.put_node(node);
}

pub(super) fn set_node_status(
    txn: &mut Txn<'_>,
    at: At,
    mut node: Node,
    (state, message, addr): (pb::node_status::State, &str, Option<&String>),
    description: Option<&Arc<pb::NodeDescription>>,
) {
    let since = if node.status.state == state {
        node.status.since
    } else {
        at.now
    };
    let addr = addr.cloned().unwrap_or_else(|| node.status.addr.clone());
    node.status = NodeStatus {
        state,
        message: message.to_owned(),
        addr,
        since,
    };
    if let Some(description) = description {
        node.resources = description
            .resources
            .as_ref()
            .map(Resources::from_wire)
            .unwrap_or_default();
        node.platform = description
            .platform
            .as_ref()
            .map(Platform::from_wire)
            .unwrap_or_default();
        node.description = Some(Arc::clone(description));
    }
    node.meta = at.updated(node.meta);
    txn.put_node(node);
}

pub(super) fn remove_node(
    txn: &mut Txn<'_>,
    at: At,
    id: NodeId,
    force: bool,
    refused_until: Timestamp,
) -> Result<(), Rejected> {
    let node = node(txn.state, id)?;
    if node.status.state == pb::node_status::State::Ready && !force {
        return Err(Rejected::Conflict {
            kind: "node",
            name: id.to_string(),
            reason: "is not down and can't be removed; stop it or run `swarmctl node leave` \
                     there first, or force the removal"
                .to_owned(),
        });
    }
    let tasks: Vec<TaskId> = txn.state.node_tasks(id).map(|t| t.id).collect();
    let message: Text = "node removed from the cluster".into();
    for task in tasks {
        end_task(
            txn,
            at,
            task,
            (Owner::Node, TaskState::Orphaned),
            (&message, &Text::default()),
        );
    }
    txn.take_node(id);
    if let Some(cluster) = txn.state.cluster.clone() {
        let mut cluster = cluster.as_ref().clone();
        // The life of certificates may be shorter now than when the node got its own.
        let ends = node.certificates_end().unwrap_or_default();
        cluster.blacklist.insert(id, refused_until.max(ends));
        cluster.blacklist.retain(|_, until| *until > at.now);
        cluster.managers.remove(&id);
        cluster.meta = at.updated(cluster.meta);
        txn.put_cluster(cluster);
    }
    Ok(())
}
