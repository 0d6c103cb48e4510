//! A manager that hears no leader looks for the others where the operator said that one is.
//!
//! Its log says where they were. When all of them have moved that leads nowhere, and one address of one of them is enough: who
//! answers there says by its certificate who it is ([`super::raft::Whereabouts`]), is called from then on, and hears by that
//! where this one is.

use std::sync::Arc;
use std::time::Duration;

use swarm_proto::id::NodeId;

use super::members::HEARD_WITHIN;
use super::raft::{Membership, Whereabouts};
use super::store::machine::StoreMachine;
use crate::ca::{SecurityConfig, who_is_at};

/// First pause between rounds, and the longest: each is twice the one before.
const PAUSE: Duration = Duration::from_millis(250);
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// Looks for managers.
#[derive(Debug)]
pub(crate) struct Seeker {
    /// This node.
    pub(crate) own: NodeId,
    pub(crate) security: SecurityConfig,
    pub(crate) whereabouts: Arc<Whereabouts>,
    pub(crate) membership: Membership<StoreMachine>,
    /// What the operator named (`--join-addr`).
    pub(crate) told: Vec<String>,
}

impl Seeker {
    /// Looks whenever no leader is heard. Who led when this manager was stopped is known from its log, and says nothing of
    /// whether it can be reached.
    pub(crate) async fn run(self) {
        if self.told.is_empty() {
            return;
        }
        let clock = self.security.clock().clone();
        let mut pause = PAUSE;
        loop {
            if self.membership.led().is_some_and(|ago| ago < HEARD_WITHIN) {
                pause = PAUSE;
                // Silence announces itself by no event.
                clock.sleep(HEARD_WITHIN).await;
                continue;
            }
            let found = self.told.iter().map(|address| self.look(address));
            futures::future::join_all(found).await;
            clock.sleep(pause).await;
            pause = (2 * pause).min(PAUSE_MAX);
        }
    }

    async fn look(&self, address: &str) {
        match who_is_at(address, &self.security).await {
            Ok(node) if node == self.own => {}
            Ok(node) => self.whereabouts.met(&node.to_string(), address),
            Err(error) => tracing::debug!(address, %error, "no manager is there"),
        }
    }
}
