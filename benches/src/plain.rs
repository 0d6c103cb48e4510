//! A plain client of containerd: makes, starts, stops and removes containers, and nothing else. What any program that runs
//! them has to pay.

use std::collections::HashMap;
use std::path::Path;
use std::time::Instant;

use containerd_client::services::v1::containers_client::ContainersClient;
use containerd_client::services::v1::events_client::EventsClient;
use containerd_client::services::v1::snapshots::snapshots_client::SnapshotsClient;
use containerd_client::services::v1::snapshots::{
    PrepareSnapshotRequest, RemoveSnapshotRequest, StatSnapshotRequest,
};
use containerd_client::services::v1::tasks_client::TasksClient;
use containerd_client::services::v1::{
    Container, CreateContainerRequest, CreateTaskRequest, DeleteContainerRequest,
    DeleteTaskRequest, KillRequest, ListContainersRequest, StartRequest, SubscribeRequest,
    WaitRequest,
};
use futures::stream::{StreamExt as _, TryStreamExt as _};
use prost_types::Any;
use tonic::transport::Channel;
use tonic::{Code, Request};

use super::Failure;

/// Containers under way at once: what swarmd has under way on two processors.
const AT_ONCE: usize = 8;
const SIGTERM: u32 = 15;
const SIGKILL: u32 = 9;
/// How long a container may take to end: Docker's default.
const GRACE: std::time::Duration = std::time::Duration::from_secs(10);

/// Calls of one containerd.
#[derive(Debug, Clone)]
pub(crate) struct Plain {
    channel: Channel,
}

/// A container to be made like another one.
#[derive(Debug, Clone)]
struct Like {
    namespace: String,
    id: String,
    container: Container,
    /// The snapshot that its root file system is made on.
    parent: String,
}

fn of<T>(namespace: &str, message: T) -> Result<Request<T>, Failure> {
    let mut request = Request::new(message);
    let name = namespace.parse()?;
    request.metadata_mut().insert("containerd-namespace", name);
    Ok(request)
}

impl Plain {
    pub(crate) async fn connect(socket: &Path) -> Result<Self, Failure> {
        let channel = containerd_client::connect(socket).await?;
        Ok(Self { channel })
    }

    fn containers(&self) -> ContainersClient<Channel> {
        ContainersClient::new(self.channel.clone())
    }

    fn tasks(&self) -> TasksClient<Channel> {
        TasksClient::new(self.channel.clone())
    }

    fn snapshots(&self) -> SnapshotsClient<Channel> {
        SnapshotsClient::new(self.channel.clone())
    }

    /// Returns when so many containers were removed, counted from when it is polled first.
    pub(crate) async fn removals(self, count: usize) -> Result<Instant, Failure> {
        let filters = vec!["topic==\"/containers/delete\"".to_owned()];
        let mut events = EventsClient::new(self.channel);
        // containerd answers with the first event.
        let removals = events.subscribe(SubscribeRequest { filters }).await?;
        let mut removals = removals.into_inner();
        for _ in 0..count {
            removals.message().await?.ok_or("containerd has ended")?;
        }
        Ok(Instant::now())
    }

    /// The containers of a namespace.
    pub(crate) async fn list(&self, namespace: &str) -> Result<Vec<Container>, Failure> {
        let request = of(namespace, ListContainersRequest::default())?;
        match self.containers().list(request).await {
            Ok(listed) => Ok(listed.into_inner().containers),
            Err(status) if status.code() == Code::NotFound => Ok(Vec::new()),
            Err(status) => Err(status.into()),
        }
    }

    /// Makes and starts containers like one that each namespace has, `count` in all, and then stops and removes them;
    /// the seconds of both.
    pub(crate) async fn make_and_remove(
        &self,
        namespaces: &[String],
        count: usize,
    ) -> Result<(f64, f64), Failure> {
        let mut all = Vec::new();
        for number in 0..count {
            let namespace = namespaces
                .get(number % namespaces.len())
                .ok_or("no namespace")?;
            all.push(self.like(namespace, &format!("plain-{number}")).await?);
        }
        let begin = Instant::now();
        let made = all.iter().map(|like| self.make(like));
        let made: Vec<_> = made.collect();
        futures::stream::iter(made)
            .buffer_unordered(AT_ONCE)
            .try_collect::<()>()
            .await?;
        let made = begin.elapsed().as_secs_f64();
        let begin = Instant::now();
        let gone: Vec<_> = all.iter().map(|like| self.remove(like)).collect();
        // All are asked to stop at once.
        futures::stream::iter(gone)
            .buffer_unordered(count)
            .try_collect::<()>()
            .await?;
        Ok((made, begin.elapsed().as_secs_f64()))
    }

    async fn like(&self, namespace: &str, id: &str) -> Result<Like, Failure> {
        let container = self.list(namespace).await?.into_iter().next();
        let mut container = container.ok_or("there is no container to make others like")?;
        let request = StatSnapshotRequest {
            snapshotter: container.snapshotter.clone(),
            key: container.snapshot_key.clone(),
        };
        let stat = self.snapshots().stat(of(namespace, request)?).await?;
        let parent = stat.into_inner().info.map(|info| info.parent);
        // Its own cgroup; all else may be shared.
        let spec = container.spec.take().ok_or("the container has no spec")?;
        let text = String::from_utf8(spec.value)?.replace(&container.id, id);
        container.spec = Some(Any {
            type_url: spec.type_url,
            value: original_files(&text, &container.id, id).into_bytes(),
        });
        container.labels = HashMap::new();
        id.clone_into(&mut container.id);
        id.clone_into(&mut container.snapshot_key);
        Ok(Like {
            namespace: namespace.to_owned(),
            id: id.to_owned(),
            container,
            parent: parent.unwrap_or_default(),
        })
    }

    async fn make(&self, like: &Like) -> Result<(), Failure> {
        let request = PrepareSnapshotRequest {
            snapshotter: like.container.snapshotter.clone(),
            key: like.id.clone(),
            parent: like.parent.clone(),
            // Nothing refers to it yet: containerd must not collect it.
            labels: HashMap::from([("containerd.io/gc.root".to_owned(), "plain".to_owned())]),
        };
        let request = of(&like.namespace, request)?;
        let root = self.snapshots().prepare(request).await?.into_inner().mounts;
        let request = CreateContainerRequest {
            container: Some(like.container.clone()),
        };
        self.containers()
            .create(of(&like.namespace, request)?)
            .await?;
        let request = CreateTaskRequest {
            container_id: like.id.clone(),
            rootfs: root,
            ..Default::default()
        };
        self.tasks().create(of(&like.namespace, request)?).await?;
        let request = StartRequest {
            container_id: like.id.clone(),
            ..Default::default()
        };
        self.tasks().start(of(&like.namespace, request)?).await?;
        Ok(())
    }

    async fn kill(&self, like: &Like, signal: u32) -> Result<(), Failure> {
        let request = KillRequest {
            container_id: like.id.clone(),
            signal,
            ..Default::default()
        };
        self.tasks().kill(of(&like.namespace, request)?).await?;
        Ok(())
    }

    async fn remove(&self, like: &Like) -> Result<(), Failure> {
        self.kill(like, SIGTERM).await?;
        let request = || WaitRequest {
            container_id: like.id.clone(),
            ..Default::default()
        };
        let mut tasks = self.tasks();
        let ended = tasks.wait(of(&like.namespace, request())?);
        match tokio::time::timeout(GRACE, ended).await {
            Ok(ended) => drop(ended?),
            // The signal came before the program handled it.
            Err(_) => {
                self.kill(like, SIGKILL).await?;
                self.tasks().wait(of(&like.namespace, request())?).await?;
            }
        }
        let request = DeleteTaskRequest {
            container_id: like.id.clone(),
        };
        self.tasks().delete(of(&like.namespace, request)?).await?;
        let request = DeleteContainerRequest {
            id: like.id.clone(),
        };
        self.containers()
            .delete(of(&like.namespace, request)?)
            .await?;
        let request = RemoveSnapshotRequest {
            snapshotter: like.container.snapshotter.clone(),
            key: like.id.clone(),
        };
        let request = of(&like.namespace, request)?;
        self.snapshots().remove(request).await?;
        Ok(())
    }
}

/// The files that are mounted stay those of the container that was copied: `tasks/ID/hosts` and the others.
fn original_files(spec: &str, original: &str, id: &str) -> String {
    spec.replace(&format!("/tasks/{id}/"), &format!("/tasks/{original}/"))
}
