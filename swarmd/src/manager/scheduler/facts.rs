//! What constraints, platforms and spread preferences look at.

use swarm_proto::pb;
use swarm_proto::placement::NodeFacts;

use crate::manager::store::Node;

/// A node's facts, in the form in which placement reads them.
#[derive(Debug)]
pub(crate) struct Facts<'a> {
    node: &'a Node,
    spec: pb::NodeSpec,
}

impl<'a> Facts<'a> {
    pub(crate) fn of(node: &'a Node) -> Self {
        Self {
            node,
            spec: spec(node),
        }
    }

    pub(crate) fn view(&self) -> NodeFacts<'_> {
        view(self.node, &self.spec)
    }
}

/// The operator's part of a node.
pub(crate) fn spec(node: &Node) -> pb::NodeSpec {
    pb::NodeSpec {
        annotations: Some(node.annotations.clone()),
        desired_role: node.desired_role.into(),
        membership: node.membership.into(),
        availability: node.availability.into(),
        manager_addresses: Vec::new(),
    }
}

pub(crate) fn view<'a>(node: &'a Node, spec: &'a pb::NodeSpec) -> NodeFacts<'a> {
    NodeFacts {
        id: node.id,
        spec,
        description: node.description.as_deref(),
        role: node.role,
        addr: &node.status.addr,
    }
}
