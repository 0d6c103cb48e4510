//! One manager: the real consensus, log, snapshots, store and control loop, in a process that can die at any moment.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use swarm_proto::time::Timestamp;
use swarmd::clock::{Clock, SimulatedClock};
use swarmd::manager::control_loop;
use swarmd::manager::raft::{
    self, Leadership, Member, RaftConfig, RaftNode, SnapshotLimits, Start, Timing,
};
use swarmd::manager::store::machine::StoreMachine;
use swarmd::manager::store::watch::{Hub, Subscription};
use swarmd::manager::writer::{RaftDoor, Store};
use swarmd::process::Process;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::disk::Disk;
use super::network::{self, Network};
use super::witness::{Watcher, Witness};

/// When every run begins: a Tuesday in November 2023.
pub(crate) const START: Timestamp = Timestamp::from_millis(1_700_000_000_000);
/// How long a start may take before it counts as failed.
const STARTS_WITHIN: Duration = Duration::from_secs(10);
/// Snapshots come often and keep little, so that members are brought up by them.
const SNAPSHOTS: SnapshotLimits = SnapshotLimits {
    entries: 60,
    bytes: 1 << 20,
    keep_entries: 10,
};

/// A manager, up or down.
#[derive(Debug)]
pub(crate) struct Manager {
    /// Its number in consensus.
    pub(crate) id: u64,
    /// Its disk.
    pub(crate) disk: Disk,
    /// What runs; none while it is down.
    pub(crate) up: Option<Up>,
    boots: u64,
    seed: u64,
}

/// A manager that is up.
pub(crate) struct Up {
    /// Its process.
    pub(crate) process: Process,
    /// Its consensus.
    pub(crate) raft: RaftNode<StoreMachine>,
    /// Its door and its state.
    pub(crate) store: Store,
    /// Sets its wall clock.
    pub(crate) clock: SimulatedClock,
    /// The same clock.
    pub(crate) time: Clock,
    commits: Subscription,
    watcher: Watcher,
}

impl std::fmt::Debug for Up {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Up({:?})", self.process)
    }
}

impl Manager {
    /// A manager that was never started.
    pub(crate) fn new(id: u64, seed: u64) -> Self {
        Self {
            id,
            disk: Disk::new(seed),
            up: None,
            boots: 0,
            seed,
        }
    }

    /// Starts it.
    ///
    /// # Errors
    /// What it says when it does not start; also when it dies meanwhile.
    pub(crate) async fn start(&mut self, network: &Network, start: Start) -> Result<(), String> {
        self.boots += 1;
        let seed = self.seed.wrapping_add(self.boots << 32);
        let process = Process::new(seed);
        let (clock, hand) = Clock::simulated(START);
        let member = member(network, self.id);
        let config = RaftConfig {
            id: self.id,
            says: match self.says_its_address() {
                true => member.addresses.clone(),
                false => vec!["0.0.0.0:4242".to_owned()],
            },
            member,
            state_dir: PathBuf::from("/var/lib/swarmd"),
            disk: raft::Disk::Simulated(Arc::new(self.disk.mount(&process))),
            timing: Timing::default(),
            snapshots: SNAPSHOTS,
            seal: swarmd::seal::Seal::default(),
        };
        let hub = Hub::default();
        let (_, commits) = hub.subscribe();
        let machine = StoreMachine::new(hub.clone());
        let phone = Arc::new(network.dialer(self.id, &process));
        let starting = RaftNode::start(config, start, machine, phone);
        let started = timeout(STARTS_WITHIN, process.run(starting)).await;
        let raft = match started {
            Ok(Ok(raft)) => raft,
            Ok(Err(error)) => {
                process.kill();
                return Err(error.to_string());
            }
            Err(_) if process.is_dead() => return Err("it died while it started".to_owned()),
            Err(_) => {
                process.kill();
                return Err(format!("it did not start within {STARTS_WITHIN:?}"));
            }
        };
        network.listen(self.id, (&process, &clock), raft.service().into_server());
        let store = Store::new(Arc::new(RaftDoor::new(raft.proposer())), hub);
        let leadership = raft.leadership();
        drop(process.spawn(lead(leadership, store.clone(), clock.clone(), seed)));
        self.up = Some(Up {
            watcher: Watcher::new(format!("manager {} boot {}", self.id, self.boots)),
            process,
            raft,
            store,
            clock: hand,
            time: clock,
            commits,
        });
        Ok(())
    }

    /// Whether it says where it is; what the others see counts otherwise.
    pub(crate) fn says_its_address(&self) -> bool {
        self.seed.is_multiple_of(2)
    }

    /// `kill -9`, and with `power` also its disk loses power.
    pub(crate) fn kill(&mut self, network: &Network, power: bool) {
        network.hang_up(self.id);
        if let Some(up) = self.up.take() {
            up.process.kill();
        }
        // What a process wrote stays in the page cache when only the process dies.
        if power {
            self.disk.cut();
        }
    }

    /// Stops it in order.
    pub(crate) async fn stop(&mut self, network: &Network) {
        network.hang_up(self.id);
        if let Some(up) = self.up.take() {
            let stopping = up.process.run(up.raft.shutdown());
            let _ = timeout(STARTS_WITHIN, stopping).await;
            up.process.kill();
        }
    }

    /// Whether its process is there and its consensus has not failed.
    pub(crate) fn is_well(&self) -> bool {
        self.up
            .as_ref()
            .is_some_and(|up| !up.process.is_dead() && up.raft.stopped().now_or_never().is_none())
    }

    /// The term in which it leads.
    pub(crate) fn leads(&self) -> Option<u64> {
        let up = self.up.as_ref()?;
        if up.process.is_dead() {
            return None;
        }
        up.raft.leadership().borrow().term()
    }

    /// Tells what its watchers have seen since it was asked last.
    pub(crate) fn tell(&mut self, witness: &mut Witness) {
        let id = self.id;
        let Some(up) = self.up.as_mut().filter(|up| !up.process.is_dead()) else {
            return;
        };
        loop {
            match up.commits.try_next() {
                Ok(Some(commit)) => witness.sees(&mut up.watcher, &commit),
                Ok(None) => break,
                Err(_lagged) => {
                    let (state, commits) = up.store.hub().subscribe();
                    up.watcher = Watcher::from(format!("manager {id}"), state.version);
                    up.commits = commits;
                }
            }
        }
        let published = up.raft.published();
        let published = published.borrow();
        if published.index > 0 {
            witness.applied(published.index, (published.term, published.leader));
        }
        if let Leadership::Leader { term } = *up.raft.leadership().borrow() {
            witness.leads(term, id);
        }
    }
}

/// How others are to know a manager.
pub(crate) fn member(network: &Network, id: u64) -> Member {
    Member {
        node_id: network::node(id).to_string(),
        addresses: vec![network.address(id).to_string()],
    }
}

/// The control loop, while the manager leads.
async fn lead(
    mut leadership: tokio::sync::watch::Receiver<Leadership>,
    store: Store,
    clock: Clock,
    seed: u64,
) {
    loop {
        let term = leadership.borrow_and_update().term();
        let stop = CancellationToken::new();
        if let Some(term) = term {
            let over = leadership.wait_for(|now| now.term() != Some(term));
            let over = async { over.await.map(drop) };
            let pass = control_loop::run(store.clone(), clock.clone(), seed ^ term, stop.clone());
            tokio::select! {
                biased;
                changed = over => {
                    if changed.is_err() {
                        return;
                    }
                }
                _ = pass => tokio::time::sleep(Duration::from_millis(200)).await,
            }
        } else if leadership.changed().await.is_err() {
            return;
        }
    }
}
