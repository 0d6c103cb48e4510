//! The managers that a recovery left behind are told so, as long as it takes.
//!
//! They might be a majority of the old cluster and take writes that nobody will ever see again; or come back years later
//! with everything in order, as they see it. A message of theirs would be refused anyway ([`super::raft::Gate`]): this is
//! so that they hear of it also where they have nothing to say.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use swarm_proto::id::NodeId;
use swarm_proto::own;
use swarm_proto::own::raft_client::RaftClient;
use tonic::Request;

use super::raft::{Epoch, Former, Gate, put_epoch, read_former, write_former};
use super::writer::Store;
use crate::ca::{SecurityConfig, connect_to};

/// First pause between rounds, and the longest: each is twice the one before.
const PAUSE: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(30);
/// Time for one manager to answer.
const ANSWER: Duration = Duration::from_secs(5);

/// Tells those that were left behind.
#[derive(Debug)]
pub(crate) struct Teller {
    pub(crate) raft_dir: PathBuf,
    /// Knows the epoch that goes on.
    pub(crate) gate: Arc<Gate>,
    /// Where this manager is reached.
    pub(crate) addresses: Vec<String>,
    pub(crate) store: Store,
    pub(crate) security: SecurityConfig,
}

/// What one of them made of it.
enum Told {
    /// It knows, or is none of them any more.
    Done,
    /// Not yet.
    Not(String),
}

impl Teller {
    /// Returns when there is nobody left to tell.
    pub(crate) async fn run(self) {
        let clock = self.security.clock().clone();
        let mut left = match read_former(&self.raft_dir) {
            Ok(left) => left,
            Err(error) => {
                tracing::warn!(%error, "who was left behind by a recovery is not known; they are refused when they call");
                return;
            }
        };
        let (mut pause, silent) = (PAUSE, Mutex::new(Vec::new()));
        while !left.is_empty() {
            let mut stay = Vec::new();
            for former in &left {
                if !self.is_done_with(former, &silent).await {
                    stay.push(former.clone());
                }
            }
            if stay.len() < left.len() {
                left = stay;
                self.keep(left.clone()).await;
            }
            clock.sleep(pause).await;
            pause = (2 * pause).min(PAUSE_MAX);
        }
    }

    async fn keep(&self, left: Vec<Former>) {
        let dir = self.raft_dir.clone();
        let written = tokio::task::spawn_blocking(move || write_former(&dir, &left)).await;
        if let Ok(Err(error)) = written {
            // They are told again after a restart, which does no harm.
            tracing::warn!(%error, "can't write down which managers were told of the recovery");
        }
    }

    async fn is_done_with(&self, former: &Former, silent: &Mutex<Vec<String>>) -> bool {
        let node = &former.member.node_id;
        let state = self.store.view();
        let object = node
            .parse()
            .ok()
            .and_then(|id: NodeId| state.nodes.get(&id));
        if state.cluster.is_some() && object.is_none() {
            tracing::info!(node.id = %node, "a manager of before the recovery was removed");
            return true;
        }
        for address in &former.member.addresses {
            match self.tell(node, address).await {
                Told::Done => {
                    tracing::info!(node.id = %node, address, "a manager of before the recovery knows that it is fenced");
                    return true;
                }
                Told::Not(reason) => {
                    let mut silent = silent.lock().unwrap_or_else(PoisonError::into_inner);
                    if !silent.contains(address) {
                        silent.push(address.clone());
                        tracing::warn!(node.id = %node, address, reason, "a manager of before the recovery can't be told of it yet; trying on until its node is removed");
                    }
                }
            }
        }
        false
    }

    /// Tells this node, and nobody else: another one may answer at the address meanwhile, and what that one knows says
    /// nothing of this one.
    async fn tell(&self, node: &str, address: &str) -> Told {
        let epoch = self.gate.epoch();
        let asked = async {
            let node = node.parse().map_err(|_| format!("{node:?} is no node"))?;
            let channel = connect_to(node, address, &self.security)
                .await
                .map_err(|e| e.to_string())?;
            let mut request = Request::new(own::RaftFenceRequest {
                addresses: self.addresses.clone(),
            });
            put_epoch(request.metadata_mut(), epoch);
            let answer = RaftClient::new(channel).fence(request).await;
            answer.map_err(|status| status.message().to_owned())
        };
        match self.security.clock().timeout(ANSWER, asked).await {
            Ok(Ok(answer)) => {
                let answer = answer.into_inner();
                let theirs = Epoch::of_wire(answer.epoch);
                // It may have joined this epoch meanwhile.
                match answer.fenced || theirs == epoch {
                    true => Told::Done,
                    false => Told::Not(format!(
                        "it is of epoch {theirs}, and this manager of {epoch}: where both came from one state, end one of them"
                    )),
                }
            }
            Ok(Err(reason)) => Told::Not(reason),
            Err(elapsed) => Told::Not(elapsed.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use swarm_proto::own::raft_server::RaftServer;
    use tokio::net::TcpListener;
    use tokio::task::JoinSet;
    use tonic::transport::Server;

    use super::*;
    use crate::ca::testing::{NOW, TestCa};
    use crate::ca::{ListenLimits, Role, TlsIncoming};
    use crate::clock::Clock;
    use crate::manager::raft::{Disk, FencedService};

    fn gate(dir: &tempfile::TempDir, epoch: Epoch) -> Arc<Gate> {
        Gate::create(&Disk::Real, dir.path(), epoch).unwrap();
        Arc::new(Gate::open(&Disk::Real, dir.path()).unwrap())
    }

    #[tokio::test]
    async fn who_else_answers_at_an_address_is_not_the_one_that_was_left_behind() {
        let (ca, epoch) = (TestCa::new(1), Epoch::FIRST.next(7));
        let (clock, _hand) = Clock::manual(NOW.after(Duration::from_secs(60)));
        let security = |node| {
            let identity = ca.identity(node, Role::Manager);
            SecurityConfig::new(identity, clock.clone()).unwrap()
        };
        let dirs = [(); 2].map(|()| tempfile::tempdir().unwrap());
        // Node 2 is of this epoch, and has the address that node 3 had.
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let incoming = TlsIncoming::new(listener, security(2), ListenLimits::default()).unwrap();
        let address = incoming.local_addr().to_string();
        let service = RaftServer::new(FencedService(gate(&dirs[0], epoch)));
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let server = Server::builder().add_service(service);
            server.serve_with_incoming(incoming).await
        });
        let teller = Teller {
            raft_dir: dirs[1].path().to_owned(),
            gate: gate(&dirs[1], epoch),
            addresses: Vec::new(),
            store: Store::in_memory(),
            security: security(1),
        };
        let (there, gone) = (NodeId::from_raw(2), NodeId::from_raw(3));
        let told = teller.tell(&gone.to_string(), &address).await;
        assert!(matches!(&told, Told::Not(reason) if reason.contains(&there.to_string())));
        let told = teller.tell(&there.to_string(), &address).await;
        assert!(matches!(told, Told::Done));
    }
}
