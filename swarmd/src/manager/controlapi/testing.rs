//! A cluster without consensus, for tests.

use swarm_proto::id::NodeId;
use swarm_proto::pb;

use super::Managers;

/// Nobody is a manager.
#[derive(Debug)]
pub(in crate::manager) struct NoManagers;

impl Managers for NoManagers {
    fn status_of(&self, _: NodeId) -> Option<pb::ManagerStatus> {
        None
    }

    fn may_go(&self, _: NodeId) -> Result<(), String> {
        Ok(())
    }

    fn dead(&self) -> Vec<(NodeId, u64)> {
        Vec::new()
    }

    fn knows_who_is_dead(&self) -> bool {
        true
    }
}
