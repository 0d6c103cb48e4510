//! A node's spec, parsed: what an operator sets of it.

use crate::invalid::{Faults, InvalidSpec};
use crate::name;
use crate::pb;

/// A valid node spec.
#[derive(Debug, Clone, PartialEq)]
pub struct NodeSpec {
    /// Its name, which may be empty as nodes are named by id or host name, and the labels that
    /// constraints call `node.labels.KEY`.
    pub annotations: pb::Annotations,
    /// The role it should have.
    pub desired_role: pb::NodeRole,
    /// Whether it belongs to the cluster.
    pub membership: pb::node_spec::Membership,
    /// Whether it takes tasks.
    pub availability: pb::node_spec::Availability,
}

impl TryFrom<pb::NodeSpec> for NodeSpec {
    type Error = InvalidSpec;

    fn try_from(wire: pb::NodeSpec) -> Result<Self, InvalidSpec> {
        use pb::node_spec::{Availability, Membership};
        let mut faults = Faults::default();
        let annotations = wire.annotations.unwrap_or_default();
        if !annotations.name.is_empty() {
            faults.take("name", name::valid_name(&annotations.name));
        }
        name::labels(&mut faults, "labels", annotations.labels.keys());
        let desired_role = faults.known("desired_role", wire.desired_role, "WORKER and MANAGER");
        let membership = faults.known("membership", wire.membership, "PENDING and ACCEPTED");
        let availability =
            faults.known("availability", wire.availability, "ACTIVE, PAUSE and DRAIN");
        faults.finish(Self {
            annotations,
            desired_role: desired_role.unwrap_or(pb::NodeRole::Worker),
            membership: membership.unwrap_or(Membership::Pending),
            availability: availability.unwrap_or(Availability::Active),
        })
    }
}

impl From<NodeSpec> for pb::NodeSpec {
    fn from(spec: NodeSpec) -> Self {
        Self {
            annotations: Some(spec.annotations),
            desired_role: spec.desired_role.into(),
            membership: spec.membership.into(),
            availability: spec.availability.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trip_and_every_fault_at_once() {
        let annotations = pb::Annotations {
            labels: [("zone".to_owned(), "a".to_owned())].into(),
            ..Default::default()
        };
        let wire = pb::NodeSpec {
            annotations: Some(annotations),
            desired_role: pb::NodeRole::Manager.into(),
            membership: pb::node_spec::Membership::Accepted.into(),
            availability: pb::node_spec::Availability::Drain.into(),
        };
        let spec = NodeSpec::try_from(wire.clone()).unwrap();
        assert_eq!(pb::NodeSpec::from(spec), wire);
        let wire = pb::NodeSpec {
            annotations: Some(pb::Annotations {
                name: "a b".to_owned(),
                ..Default::default()
            }),
            desired_role: 2,
            membership: -1,
            availability: 3,
        };
        let fields: Vec<String> = NodeSpec::try_from(wire)
            .unwrap_err()
            .0
            .into_iter()
            .map(|f| f.field)
            .collect();
        assert_eq!(
            fields,
            ["name", "desired_role", "membership", "availability"]
        );
    }
}
