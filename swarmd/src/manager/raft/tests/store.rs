//! The cluster's real state through the real log: applied, announced, snapshotted, found again.

use std::sync::Arc;

use swarm_proto::time::Timestamp;

use super::super::{PlainDialer, RaftNode, SnapshotLimits, Start};
use super::{config, soon};
use crate::manager::store::machine::StoreMachine;
use crate::manager::store::snapshot::state_hash;
use crate::manager::store::watch::Hub;
use crate::manager::store::{Change, testing};
use crate::manager::writer::{RaftDoor, Store, WriteError};

async fn start(dir: &std::path::Path) -> (RaftNode<StoreMachine>, Store) {
    let hub = Hub::default();
    let mut config = config(dir, 1);
    config.snapshots = SnapshotLimits {
        entries: 40,
        bytes: u64::MAX,
        keep_entries: 10,
    };
    let machine = StoreMachine::new(hub.clone());
    let node = RaftNode::start(config, Start::Found, machine, Arc::new(PlainDialer));
    let node = node.await.unwrap();
    let store = Store::new(Arc::new(RaftDoor::new(node.proposer())), hub);
    (node, store)
}

fn new_node(id: u8) -> Change {
    Change::CreateNode(Arc::new(testing::node(id)))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_state_is_the_same_after_a_restart_from_snapshot_and_log() {
    let dir = tempfile::tempdir().unwrap();
    let (node, store) = start(dir.path()).await;
    let (_, mut commits) = store.hub().subscribe();
    for id in 0..100 {
        let written = store
            .write(Timestamp(i64::from(id)), vec![new_node(id)])
            .await;
        let written = written.unwrap();
        assert_eq!(written.results, [Ok(())]);
        // The answer comes after the state and the announcement.
        assert_eq!(store.view().nodes.len(), usize::from(id) + 1);
        let commit = commits.try_next().unwrap().unwrap();
        assert_eq!(commit.version, written.version);
    }
    let again = store.write(Timestamp(7), vec![new_node(7)]).await.unwrap();
    assert!(again.results[0].is_err(), "a node id twice");
    soon(node.until(|status| status.purged > 20)).await;
    let before = state_hash(&store.view());
    node.shutdown().await;

    let (node, store) = start(dir.path()).await;
    node.proposer().read_barrier().await.unwrap();
    assert_eq!(store.view().nodes.len(), 100);
    assert_eq!(state_hash(&store.view()), before);
    node.shutdown().await;
    let late = store.write(Timestamp(0), vec![new_node(200)]).await;
    assert_eq!(late.unwrap_err(), WriteError::ShuttingDown);
}
