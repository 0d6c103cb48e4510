//! Container records and their tasks in containerd.
//!
//! The container id is the task id. A container *record* holds spec, snapshot and labels and
//! survives everything; a containerd *task* is the process with its shim, and is gone after a
//! host restart, or once its exit has been recorded in the labels.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

pub(super) use containerd_client::services::v1::container::Runtime;
use containerd_client::services::v1::containers_client::ContainersClient;
use containerd_client::services::v1::tasks_client::TasksClient;
use containerd_client::services::v1::{
    Container as Record, CreateContainerRequest, CreateTaskRequest, DeleteContainerRequest,
    DeleteTaskRequest, GetContainerRequest, GetRequest, KillRequest, ListContainersRequest,
    StartRequest, UpdateContainerRequest, WaitRequest,
};
use containerd_client::types::Mount;
use containerd_client::types::v1::Status as TaskStatus;
use prost_types::{Any, FieldMask};
use tokio::time::Instant;

use super::client::{CALL_MAX, Client, Failure, RUNC_MAX, or_absent};
use super::label;
use super::snapshot::{SNAPSHOTTER, root_key};

/// How long containerd may take to clean up after a create that was cut off: it drops its task first and the task's
/// directory last, and refuses another one of that name meanwhile. (1.6.20: a shim is given 5 s, its clean-up 5 s more.)
const BUNDLE_MAX: Duration = Duration::from_secs(15);
const BUNDLE_PAUSE: Duration = Duration::from_millis(200);
const SPEC_TYPE: &str = "types.containerd.io/opencontainers/runtime-spec/1/Spec";

/// A container record, as far as it matters here.
#[derive(Debug, Clone)]
pub(super) struct Container {
    pub id: String,
    /// The name of its image.
    pub image: String,
    pub labels: BTreeMap<String, String>,
}

/// A container that is to be made.
#[derive(Debug)]
pub(super) struct NewContainer<'a> {
    pub id: &'a str,
    pub image: &'a str,
    pub labels: BTreeMap<String, String>,
    /// The OCI runtime spec.
    pub spec: &'a serde_json::Value,
    /// What runs it.
    pub runtime: Runtime,
}

/// A containerd task, as containerd sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Process {
    /// There is none.
    Absent,
    /// Made by runc, waiting for its start.
    Created { pid: u32 },
    /// Running or paused.
    Running { pid: u32 },
    /// Ended; its shim still holds the exit.
    Stopped { code: u32 },
    /// Its shim does not say. It is slow, or it waits for a runc that hangs.
    Silent,
}

/// Which processes of a container a signal is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Target {
    /// The first process.
    Init,
    /// All of them.
    All,
}

/// Containers of one namespace.
#[derive(Debug, Clone)]
pub(super) struct Containers {
    client: Client,
}

impl Containers {
    pub(super) fn new(client: Client) -> Self {
        Self { client }
    }

    pub(super) fn client(&self) -> &Client {
        &self.client
    }

    pub(super) fn records(&self) -> ContainersClient<tonic::transport::Channel> {
        ContainersClient::new(self.client.channel())
    }

    pub(super) fn tasks(&self) -> TasksClient<tonic::transport::Channel> {
        TasksClient::new(self.client.channel())
    }

    pub(super) async fn get(&self, id: &str) -> Result<Option<Container>, Failure> {
        let request = self
            .client
            .request(GetContainerRequest { id: id.to_owned() });
        let mut rpc = self.records();
        let found = or_absent(
            self.client
                .call("get container", CALL_MAX, rpc.get(request))
                .await,
        )?;
        Ok(found
            .and_then(|response| response.container)
            .map(Container::from))
    }

    /// All containers that belong to tasks.
    pub(super) async fn list(&self) -> Result<Vec<Container>, Failure> {
        let filter = format!("labels.\"{}\"", label::TASK_ID);
        let request = self.client.request(ListContainersRequest {
            filters: vec![filter],
        });
        let mut rpc = self.records();
        // As a stream: a thousand specs are more than one message may carry.
        let mut stream = self
            .client
            .call("list containers", CALL_MAX, rpc.list_stream(request))
            .await?;
        let mut containers = Vec::new();
        loop {
            let next = stream.message().await;
            match next.map_err(|status| self.client.failure("list containers", &status))? {
                Some(message) => containers.extend(message.container.map(Container::from)),
                None => return Ok(containers),
            }
        }
    }

    pub(super) async fn create(&self, new: NewContainer<'_>) -> Result<(), Failure> {
        let record = Record {
            id: new.id.to_owned(),
            labels: new.labels.into_iter().collect(),
            image: new.image.to_owned(),
            runtime: Some(new.runtime),
            spec: Some(Any {
                type_url: SPEC_TYPE.to_owned(),
                value: new.spec.to_string().into_bytes(),
            }),
            snapshotter: SNAPSHOTTER.to_owned(),
            snapshot_key: root_key(new.id),
            ..Default::default()
        };
        let request = self.client.request(CreateContainerRequest {
            container: Some(record),
        });
        let mut rpc = self.records();
        self.client
            .call("create container", CALL_MAX, rpc.create(request))
            .await?;
        Ok(())
    }

    /// Sets labels on a record. Absent records are left alone.
    pub(super) async fn label(
        &self,
        id: &str,
        labels: BTreeMap<String, String>,
    ) -> Result<(), Failure> {
        let paths = labels.keys().map(|key| format!("labels.{key}")).collect();
        let record = Record {
            id: id.to_owned(),
            labels: labels.into_iter().collect(),
            ..Default::default()
        };
        let request = self.client.request(UpdateContainerRequest {
            container: Some(record),
            update_mask: Some(FieldMask { paths }),
        });
        let mut rpc = self.records();
        or_absent(
            self.client
                .call("label container", CALL_MAX, rpc.update(request))
                .await,
        )?;
        Ok(())
    }

    /// Removes a record, if there is one.
    pub(super) async fn delete(&self, id: &str) -> Result<(), Failure> {
        let request = self
            .client
            .request(DeleteContainerRequest { id: id.to_owned() });
        let mut rpc = self.records();
        or_absent(
            self.client
                .call("delete container", CALL_MAX, rpc.delete(request))
                .await,
        )?;
        Ok(())
    }

    /// Makes the process, stopped before its first instruction, and returns its id.
    pub(super) async fn create_process(
        &self,
        id: &str,
        rootfs: Vec<Mount>,
        stdio: Stdio,
    ) -> Result<u32, Failure> {
        let request = self.client.request(CreateTaskRequest {
            container_id: id.to_owned(),
            rootfs,
            stdin: stdio.stdin,
            stdout: stdio.output.clone(),
            stderr: stdio.output,
            terminal: stdio.terminal,
            ..Default::default()
        });
        let until = Instant::now() + BUNDLE_MAX;
        loop {
            let mut rpc = self.tasks();
            let request = tonic::Request::from_parts(
                request.metadata().clone(),
                tonic::Extensions::default(),
                request.get_ref().clone(),
            );
            let made = self
                .client
                .call("create task", RUNC_MAX, rpc.create(request))
                .await;
            match made {
                Err(failure) if failure.has_bundle(id) && Instant::now() < until => {
                    tokio::time::sleep(BUNDLE_PAUSE).await;
                }
                made => return Ok(made?.pid),
            }
        }
    }

    /// Starts the process; containerd refuses one that runs already or has ended.
    pub(super) async fn start(&self, id: &str) -> Result<(), Failure> {
        let request = self.client.request(StartRequest {
            container_id: id.to_owned(),
            exec_id: String::new(),
        });
        let mut rpc = self.tasks();
        self.client
            .call("start task", RUNC_MAX, rpc.start(request))
            .await?;
        Ok(())
    }

    pub(super) async fn process(&self, id: &str) -> Result<Process, Failure> {
        let request = self.client.request(GetRequest {
            container_id: id.to_owned(),
            exec_id: String::new(),
        });
        let mut rpc = self.tasks();
        let found = or_absent(
            self.client
                .call("get task", CALL_MAX, rpc.get(request))
                .await,
        )?;
        let Some(process) = found.and_then(|response| response.process) else {
            return Ok(Process::Absent);
        };
        match process.status() {
            TaskStatus::Created => Ok(Process::Created { pid: process.pid }),
            TaskStatus::Running | TaskStatus::Paused | TaskStatus::Pausing => {
                Ok(Process::Running { pid: process.pid })
            }
            TaskStatus::Stopped => Ok(Process::Stopped {
                code: process.exit_status,
            }),
            TaskStatus::Unknown => Ok(Process::Silent),
        }
    }

    /// Waits for the end of the process and returns its exit code; at once if it has ended.
    pub(super) async fn wait(&self, id: &str) -> Result<u32, Failure> {
        let request = self.client.request(WaitRequest {
            container_id: id.to_owned(),
            exec_id: String::new(),
        });
        let mut rpc = self.tasks();
        let waited = rpc.wait(request).await;
        let waited = waited.map_err(|status| self.client.failure("wait for task", &status))?;
        Ok(waited.into_inner().exit_status)
    }

    /// Sends a signal; nothing to signal is no failure.
    pub(super) async fn kill(&self, id: &str, signal: u32, target: Target) -> Result<(), Failure> {
        let request = self.client.request(KillRequest {
            container_id: id.to_owned(),
            exec_id: String::new(),
            signal,
            all: target == Target::All,
        });
        let mut rpc = self.tasks();
        or_absent(
            self.client
                .call("signal task", RUNC_MAX, rpc.kill(request))
                .await,
        )?;
        Ok(())
    }

    /// Removes the (ended) process, its shim and its cgroup.
    pub(super) async fn delete_process(&self, id: &str) -> Result<(), Failure> {
        let until = Instant::now() + BUNDLE_MAX;
        loop {
            let request = self.client.request(DeleteTaskRequest {
                container_id: id.to_owned(),
            });
            let mut rpc = self.tasks();
            let deleting = self
                .client
                .call("delete task", RUNC_MAX, rpc.delete(request));
            match or_absent(deleting.await) {
                Err(failure) if failure.lost_shim() && Instant::now() < until => {
                    tokio::time::sleep(BUNDLE_PAUSE).await;
                }
                deleted => return deleted.map(drop),
            }
        }
    }
}

/// Where a container's streams come from and go to, in containerd's words: a path or a URI; empty
/// is nowhere.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Stdio {
    pub stdin: String,
    /// Standard output and standard error.
    pub output: String,
    pub terminal: bool,
}

impl From<Record> for Container {
    fn from(record: Record) -> Self {
        let labels: HashMap<String, String> = record.labels;
        Self {
            id: record.id,
            image: record.image,
            labels: labels.into_iter().collect(),
        }
    }
}
