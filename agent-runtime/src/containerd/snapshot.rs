//! Snapshots: unpacked image layers, and the writable root of each task on top of them.

use std::collections::HashMap;

use containerd_client::services::v1::ApplyRequest;
use containerd_client::services::v1::diff_client::DiffClient;
use containerd_client::services::v1::snapshots::snapshots_client::SnapshotsClient;
use containerd_client::services::v1::snapshots::{
    CommitSnapshotRequest, ListSnapshotsRequest, MountsRequest, PrepareSnapshotRequest,
    RemoveSnapshotRequest, StatSnapshotRequest,
};
use containerd_client::types::{Descriptor as ContentDescriptor, Mount};
use tonic::transport::Channel;

use super::client::{CALL_MAX, Client, Failure, UNPACK_MAX, or_absent, or_present};
use super::label;
use super::manifest::Descriptor;
use crate::error::Error;

/// The snapshotter; every kernel since 4.0 has overlayfs.
pub(super) const SNAPSHOTTER: &str = "overlayfs";

/// Snapshots of one namespace.
#[derive(Debug, Clone)]
pub(super) struct Snapshots {
    client: Client,
}

/// One layer to unpack.
#[derive(Debug)]
pub(super) struct Layer<'a> {
    /// Chain id of what is below; empty for the first.
    pub parent: &'a str,
    /// Chain id of the result.
    pub chain: &'a str,
    /// Digest of the unpacked tar, which the image config promises.
    pub diff_id: &'a str,
    /// The blob in the content store.
    pub blob: &'a Descriptor,
}

impl Snapshots {
    pub(super) fn new(client: Client) -> Self {
        Self { client }
    }

    fn rpc(&self) -> SnapshotsClient<Channel> {
        SnapshotsClient::new(self.client.channel())
    }

    /// True if the (committed or active) snapshot is there.
    pub(super) async fn has(&self, key: &str) -> Result<bool, Failure> {
        let request = self.client.request(StatSnapshotRequest {
            snapshotter: SNAPSHOTTER.to_owned(),
            key: key.to_owned(),
        });
        let mut rpc = self.rpc();
        let found = self
            .client
            .call("stat snapshot", CALL_MAX, rpc.stat(request))
            .await;
        Ok(or_absent(found)?.is_some())
    }

    /// Unpacks one layer onto its parent, under a lease, and names the result by its chain id.
    pub(super) async fn unpack(&self, lease: &str, layer: &Layer<'_>) -> Result<(), Error> {
        let key = format!("extract-{}", layer.chain);
        // What an earlier swarmd left half-unpacked is unpacked anew.
        self.remove(&key).await?;
        let mut rpc = self.rpc();
        let request = PrepareSnapshotRequest {
            snapshotter: SNAPSHOTTER.to_owned(),
            key: key.clone(),
            parent: layer.parent.to_owned(),
            labels: HashMap::new(),
        };
        let prepared = rpc.prepare(self.client.leased(request, lease));
        let mounts = self
            .client
            .call("prepare snapshot", CALL_MAX, prepared)
            .await?
            .mounts;
        if let Err(error) = self.apply(lease, layer, mounts).await {
            if let Err(failure) = self.remove(&key).await {
                tracing::debug!(?failure, "half-unpacked snapshot stays");
            }
            return Err(error);
        }
        let request = CommitSnapshotRequest {
            snapshotter: SNAPSHOTTER.to_owned(),
            name: layer.chain.to_owned(),
            key: key.clone(),
            labels: HashMap::new(),
        };
        let commit = rpc.commit(self.client.leased(request, lease));
        if or_present(self.client.call("commit snapshot", CALL_MAX, commit).await)?.is_none() {
            self.remove(&key).await?;
        }
        Ok(())
    }

    async fn apply(&self, lease: &str, layer: &Layer<'_>, mounts: Vec<Mount>) -> Result<(), Error> {
        let request = ApplyRequest {
            diff: Some(ContentDescriptor {
                media_type: layer.blob.media_type.clone(),
                digest: layer.blob.digest.clone(),
                size: i64::try_from(layer.blob.size).unwrap_or(i64::MAX),
                ..Default::default()
            }),
            mounts,
            ..Default::default()
        };
        let mut diff = DiffClient::new(self.client.channel());
        let apply = diff.apply(self.client.leased(request, lease));
        let applied = self
            .client
            .call("unpack layer", UNPACK_MAX, apply)
            .await?
            .applied;
        let digest = applied.map(|applied| applied.digest).unwrap_or_default();
        if digest != layer.diff_id {
            return Err(Error::Fatal(format!(
                "layer {} unpacks to {digest}, but the image promises {}; push the image again",
                layer.blob.digest, layer.diff_id
            )));
        }
        Ok(())
    }

    /// Makes the writable root of a task. `Ok(None)` where the parent is gone.
    ///
    /// The label makes it a root for garbage collection: it lives until it is removed.
    pub(super) async fn prepare_root(
        &self,
        task_id: &str,
        parent: &str,
    ) -> Result<Option<Vec<Mount>>, Failure> {
        let labels = HashMap::from([
            ("containerd.io/gc.root".to_owned(), "swarm".to_owned()),
            (label::TASK_ID.to_owned(), task_id.to_owned()),
        ]);
        let request = self.client.request(PrepareSnapshotRequest {
            snapshotter: SNAPSHOTTER.to_owned(),
            key: root_key(task_id),
            parent: parent.to_owned(),
            labels,
        });
        let mut rpc = self.rpc();
        let prepared = self
            .client
            .call("prepare root filesystem", CALL_MAX, rpc.prepare(request))
            .await;
        match prepared {
            Ok(prepared) => Ok(Some(prepared.mounts)),
            Err(failure) if failure.is_absent() => Ok(None),
            Err(failure) if failure.is_present() => self.mounts(task_id).await.map(Some),
            Err(failure) => Err(failure),
        }
    }

    async fn mounts(&self, task_id: &str) -> Result<Vec<Mount>, Failure> {
        let request = self.client.request(MountsRequest {
            snapshotter: SNAPSHOTTER.to_owned(),
            key: root_key(task_id),
        });
        let mut rpc = self.rpc();
        let mounts = self
            .client
            .call("snapshot mounts", CALL_MAX, rpc.mounts(request))
            .await?;
        Ok(mounts.mounts)
    }

    /// Removes the writable root of a task, if there is one.
    pub(super) async fn remove_root(&self, task_id: &str) -> Result<(), Failure> {
        self.remove(&root_key(task_id)).await
    }

    async fn remove(&self, key: &str) -> Result<(), Failure> {
        let request = self.client.request(RemoveSnapshotRequest {
            snapshotter: SNAPSHOTTER.to_owned(),
            key: key.to_owned(),
        });
        let mut rpc = self.rpc();
        or_absent(
            self.client
                .call("remove snapshot", CALL_MAX, rpc.remove(request))
                .await,
        )?;
        Ok(())
    }

    /// Names of the snapshots that match a containerd filter, children after their parents.
    async fn list(&self, filters: Vec<String>) -> Result<Vec<Named>, Failure> {
        let request = self.client.request(ListSnapshotsRequest {
            snapshotter: SNAPSHOTTER.to_owned(),
            filters,
        });
        let mut rpc = self.rpc();
        let mut stream = self
            .client
            .call("list snapshots", CALL_MAX, rpc.list(request))
            .await?;
        let mut named = Vec::new();
        loop {
            let part = stream.message().await;
            let Some(part) =
                part.map_err(|status| self.client.failure("list snapshots", &status))?
            else {
                return Ok(named);
            };
            named.extend(part.info.into_iter().map(|info| Named {
                task_id: info.labels.get(label::TASK_ID).cloned(),
                name: info.name,
            }));
        }
    }

    /// Ids of the tasks that have a writable root.
    pub(super) async fn tasks(&self) -> Result<Vec<String>, Failure> {
        let filter = format!("labels.\"{}\"", label::TASK_ID);
        let named = self.list(vec![filter]).await?;
        Ok(named
            .into_iter()
            .filter_map(|named| named.task_id)
            .collect())
    }

    /// Removes every snapshot of the namespace, children before their parents.
    pub(super) async fn remove_all(&self) -> Result<(), Failure> {
        let mut left = self.list(Vec::new()).await?;
        // Each round removes the leaves; layers are at most some hundred deep.
        while !left.is_empty() {
            let before = left.len();
            for named in &left {
                match self.remove(&named.name).await {
                    Ok(()) | Err(Failure::Refused { .. }) => {}
                    Err(failure) => return Err(failure),
                }
            }
            left = self.list(Vec::new()).await?;
            if left.len() >= before {
                return Err(Failure::Refused {
                    what: "remove snapshots",
                    code: tonic::Code::FailedPrecondition,
                    message: format!("{before} snapshots can't be removed"),
                });
            }
        }
        Ok(())
    }
}

#[derive(Debug)]
struct Named {
    name: String,
    task_id: Option<String>,
}

/// The snapshot key of a task's writable root.
pub(super) fn root_key(task_id: &str) -> String {
    format!("task-{task_id}")
}
