//! openraft's own suite on the redb log and the state machine with its snapshots on disk.

use openraft::StorageError;
use openraft::testing::log::{StoreBuilder, Suite};
use tempfile::TempDir;

use super::*;

struct Builder;

impl StoreBuilder<Types, LogStore, StateMachine<Ledger>, TempDir> for Builder {
    async fn build(
        &self,
    ) -> Result<(TempDir, LogStore, StateMachine<Ledger>), StorageError<Types>> {
        let dir = tempfile::tempdir().unwrap();
        let opened = open(dir.path());
        let state_machine = state_machine(opened.snapshots);
        Ok((dir, opened.log, state_machine))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn passes_openrafts_storage_suite() {
    Suite::test_all(Builder).await.unwrap();
}
