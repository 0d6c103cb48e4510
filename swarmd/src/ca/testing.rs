//! A CA for tests: identities without a manager.

use std::time::Duration;

use swarm_proto::id::{ClusterId, NodeId};
use swarm_proto::time::Timestamp;

use super::root::{DEFAULT_NODE_CERT_LIFE, NodeSubject, RootCa, new_key_and_csr};
use super::{NodeIdentity, Role};

/// When test certificates are made: 2025-11-21.
pub(crate) const NOW: Timestamp = Timestamp::from_millis(1_763_700_000_000);

#[derive(Debug)]
pub(crate) struct TestCa {
    pub(crate) root: RootCa,
    pub(crate) cluster_id: ClusterId,
}

impl TestCa {
    pub(crate) fn new(cluster: u128) -> Self {
        Self {
            root: RootCa::generate(NOW).unwrap(),
            cluster_id: ClusterId::from_raw(cluster),
        }
    }

    pub(crate) fn identity(&self, node: u128, role: Role) -> NodeIdentity {
        self.identity_for(node, role, DEFAULT_NODE_CERT_LIFE)
    }

    pub(crate) fn identity_for(&self, node: u128, role: Role, life: Duration) -> NodeIdentity {
        let (key, csr) = new_key_and_csr().unwrap();
        let node_id = NodeId::from_raw(node);
        let subject = NodeSubject {
            node_id,
            role,
            cluster_id: self.cluster_id,
        };
        let cert = self
            .root
            .issue(csr.as_bytes(), &subject, life, NOW)
            .unwrap();
        NodeIdentity::from_pem(&cert, &key, self.root.cert_pem()).unwrap()
    }
}
