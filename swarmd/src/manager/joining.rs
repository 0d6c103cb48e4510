//! A manager becomes a member of consensus: it asks the managers it knows until it votes.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use swarm_proto::own;
use swarm_proto::own::membership_client::MembershipClient;
use tokio::sync::watch;

use super::raft::{Gate, Membership, RaftId};
use super::store::machine::StoreMachine;
use crate::ca::{SecurityConfig, connect};

/// First pause between rounds, and the longest: each is twice the one before.
const PAUSE: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// Time for one manager to answer; longer than it works on a request.
const REQUEST_LIMIT: Duration = Duration::from_secs(70);

/// A manager that has a certificate and is not a member yet.
#[derive(Debug)]
pub(crate) struct Joiner {
    pub(crate) security: SecurityConfig,
    pub(crate) membership: Membership<StoreMachine>,
    pub(crate) gate: Arc<Gate>,
    /// Where the others reach this one.
    pub(crate) addresses: Vec<String>,
    /// What the operator named, or what this node joined through.
    pub(crate) told: Vec<String>,
    /// The managers that this node's agent knows.
    pub(crate) known: watch::Receiver<Vec<String>>,
}

impl Joiner {
    /// Returns once this manager votes.
    pub(crate) async fn run(self) {
        let clock = self.security.clock().clone();
        let (mut pause, mut last) = (PAUSE, String::new());
        while !self.votes() {
            match self.ask_around().await {
                // Its own membership comes with the next message of the leader.
                Ok(()) => pause = PAUSE,
                Err(reason) => {
                    pause = (2 * pause).min(PAUSE_MAX);
                    if reason != last {
                        tracing::warn!(reason, "not a member of the managers yet; asking on");
                        last = reason;
                    }
                }
            }
            clock.sleep(pause).await;
        }
        tracing::info!("this manager is a member and votes");
    }

    fn votes(&self) -> bool {
        let status = self.membership.status();
        // What is only appended may be taken back by the next leader, and nobody would ask again.
        status.votes(status.id)
    }

    /// Asks one manager after the other until one takes this one.
    async fn ask_around(&self) -> Result<(), String> {
        let status = self.membership.status();
        let others = status.members.iter().filter(|(id, _)| **id != status.id);
        let mut known: Vec<String> = others
            .flat_map(|(_, m)| m.member.addresses.clone())
            .collect();
        known.extend(self.known.borrow().iter().cloned());
        known.extend(self.told.iter().cloned());
        let mut seen = BTreeSet::new();
        known.retain(|addr| !self.addresses.contains(addr) && seen.insert(addr.clone()));
        let mut last = "no manager is known".to_owned();
        for address in known {
            match self.ask(&address, status.id).await {
                Ok(()) => return Ok(()),
                Err(reason) => last = reason,
            }
        }
        Err(last)
    }

    async fn ask(&self, address: &str, raft_id: RaftId) -> Result<(), String> {
        let channel = connect(address, &self.security)
            .await
            .map_err(|e| e.to_string())?;
        let request = own::JoinManagersRequest {
            addresses: self.addresses.clone(),
            raft_id,
            epoch: Some(self.gate.epoch().to_wire()),
        };
        let mut client = MembershipClient::new(channel);
        let asked = client.join_managers(request);
        let answered = self.security.clock().timeout(REQUEST_LIMIT, asked).await;
        let answered = answered.map_err(|e| e.to_string())?;
        answered.map_err(|status| {
            self.gate.heard(&status);
            format!("{address}: {}", status.message())
        })?;
        Ok(())
    }
}
