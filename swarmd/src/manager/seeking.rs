//! A manager that knows no leader looks for the others where the operator said that one is.
//!
//! Its log says where they were. When all of them have moved that leads nowhere, and one address of one of them is enough: who
//! answers there says by its certificate who it is ([`super::raft::Whereabouts`]), is called from then on, and hears by that
//! where this one is.

use std::sync::Arc;
use std::time::Duration;

use swarm_proto::id::NodeId;
use tokio::sync::watch;

use super::raft::{Leadership, Whereabouts};
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
    pub(crate) leadership: watch::Receiver<Leadership>,
    /// What the operator named (`--join-addr`).
    pub(crate) told: Vec<String>,
}

impl Seeker {
    /// Looks whenever there is no leader, as long as there is consensus.
    pub(crate) async fn run(mut self) {
        if self.told.is_empty() {
            return;
        }
        let clock = self.security.clock().clone();
        let mut pause = PAUSE;
        loop {
            let lost = self.leadership.wait_for(|now| match now {
                Leadership::None => true,
                Leadership::Leader { .. } | Leadership::Follower { .. } => false,
            });
            if lost.await.is_err() {
                return;
            }
            let found = self.told.iter().map(|address| self.look(address));
            futures::future::join_all(found).await;
            let led = self.leadership.wait_for(|now| *now != Leadership::None);
            pause = match clock.timeout(pause, led).await {
                Ok(Ok(_)) => PAUSE,
                Ok(Err(_)) => return,
                Err(_) => (2 * pause).min(PAUSE_MAX),
            };
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
