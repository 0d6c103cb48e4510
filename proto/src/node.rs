//! A node's spec, parsed: what an operator sets of it.

use crate::invalid::{Faults, InvalidSpec, shown};
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
    /// Where it is reached as a manager, `host:port`; empty leaves it to the manager.
    pub manager_addresses: Vec<String>,
}

/// Most addresses of a manager.
pub const ADDRESSES_MAX: usize = 8;
/// Longest address, bytes: a DNS name of 253, a colon and a port.
const ADDRESS_MAX: usize = 259;

/// Whether this is `host:port`, as managers' addresses are; the host may be a name, an IPv6 address is in brackets.
#[must_use]
pub fn is_host_port(text: &str) -> bool {
    let usual = |c: char| c.is_ascii_alphanumeric() || ".-_:[]%".contains(c);
    let parts = text.rsplit_once(':');
    text.len() <= ADDRESS_MAX
        && text.chars().all(usual)
        && parts.is_some_and(|(host, port)| {
            let bare = host.contains(':') && !host.starts_with('[');
            !host.is_empty() && !bare && port.parse::<u16>().is_ok_and(|port| port > 0)
        })
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
        let addresses = wire.manager_addresses;
        if addresses.len() > ADDRESSES_MAX {
            let reason = format!(
                "{} are too many; say at most {ADDRESSES_MAX}",
                addresses.len()
            );
            faults.add("manager_addresses", reason);
        }
        for (i, address) in addresses.iter().enumerate() {
            if !is_host_port(address) {
                let reason = format!("{} is not host:port, as in 10.0.0.1:4242", shown(address));
                faults.add(format!("manager_addresses[{i}]"), reason);
            }
        }
        faults.finish(Self {
            annotations,
            desired_role: desired_role.unwrap_or(pb::NodeRole::Worker),
            membership: membership.unwrap_or(Membership::Pending),
            availability: availability.unwrap_or(Availability::Active),
            manager_addresses: addresses,
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
            manager_addresses: spec.manager_addresses,
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
            manager_addresses: vec!["[::1]:4242".to_owned(), "m1.example:1".to_owned()],
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
            manager_addresses: ["10.0.0.1", "h:0", ":1", "a b:1", "::1:1", "h:1"]
                .map(str::to_owned)
                .to_vec(),
        };
        let fields: Vec<String> = NodeSpec::try_from(wire)
            .unwrap_err()
            .0
            .into_iter()
            .map(|f| f.field)
            .collect();
        assert_eq!(
            fields,
            [
                "name",
                "desired_role",
                "membership",
                "availability",
                "manager_addresses[0]",
                "manager_addresses[1]",
                "manager_addresses[2]",
                "manager_addresses[3]",
                "manager_addresses[4]",
            ]
        );
    }
}
