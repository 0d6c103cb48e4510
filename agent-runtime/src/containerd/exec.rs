//! A further process in a running container, until it has ended.

use std::path::Path;
use std::time::Duration;

use containerd_client::services::v1::{
    DeleteProcessRequest, ExecProcessRequest, GetContainerRequest, KillRequest, StartRequest,
    WaitRequest,
};
use prost_types::Any;
use serde_json::{Value, json};
use tokio::sync::Semaphore;

use super::client::{CALL_MAX, Failure, RUNC_MAX, or_absent};
use super::container::Containers;

const PROCESS_TYPE: &str = "types.containerd.io/opencontainers/runtime-spec/1/Process";
const SIGKILL: u32 = 9;

/// A process to be run in a container, as the container's own: user, environment, directory, rights.
#[derive(Debug)]
pub(super) struct Exec<'a> {
    /// The container.
    pub id: &'a str,
    /// A name that no other process of the container has.
    pub name: &'a str,
    pub command: &'a [String],
    /// A pipe that takes what it writes.
    pub output: &'a Path,
    /// It is killed after that.
    pub limit: Duration,
    /// Held while it is made: starting one is work for runc, as making a container is.
    pub slots: &'a Semaphore,
}

/// How it ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Ended {
    Exit(u32),
    /// It could not be started: in runc's words.
    NotStarted(String),
    /// It was killed for taking longer than its limit.
    Late,
}

impl Containers {
    /// Runs a process in a container, and leaves nothing of it but its output.
    pub(super) async fn exec(&self, exec: &Exec<'_>) -> Result<Ended, Failure> {
        let slot = exec.slots.acquire().await;
        let process = self.process_like(exec.id, exec.command).await?;
        let output = exec.output.display().to_string();
        let request = self.client().request(ExecProcessRequest {
            container_id: exec.id.to_owned(),
            exec_id: exec.name.to_owned(),
            stdout: output.clone(),
            stderr: output,
            spec: Some(Any {
                type_url: PROCESS_TYPE.to_owned(),
                value: process.to_string().into_bytes(),
            }),
            ..Default::default()
        });
        let mut rpc = self.tasks();
        let made = self
            .client()
            .call("make process", CALL_MAX, rpc.exec(request))
            .await;
        made?;
        let started = self.start_exec(exec).await;
        drop(slot);
        let ended = match started {
            Ok(()) => self.ended(exec).await,
            Err(Failure::Refused { message, .. }) => Ok(Ended::NotStarted(message)),
            Err(failure) => Err(failure),
        };
        self.forget(exec).await;
        ended
    }

    async fn start_exec(&self, exec: &Exec<'_>) -> Result<(), Failure> {
        let request = self.client().request(StartRequest {
            container_id: exec.id.to_owned(),
            exec_id: exec.name.to_owned(),
        });
        let mut rpc = self.tasks();
        self.client()
            .call("start process", RUNC_MAX, rpc.start(request))
            .await
            .map(drop)
    }

    async fn ended(&self, exec: &Exec<'_>) -> Result<Ended, Failure> {
        match tokio::time::timeout(exec.limit, self.exec_ended(exec)).await {
            Ok(ended) => ended.map(Ended::Exit),
            Err(_) => {
                self.kill_exec(exec).await?;
                // A killed process ends at once, unless it hangs in a dead disk or mount.
                let _ = tokio::time::timeout(CALL_MAX, self.exec_ended(exec)).await;
                Ok(Ended::Late)
            }
        }
    }

    async fn exec_ended(&self, exec: &Exec<'_>) -> Result<u32, Failure> {
        let request = self.client().request(WaitRequest {
            container_id: exec.id.to_owned(),
            exec_id: exec.name.to_owned(),
        });
        let mut rpc = self.tasks();
        let waited = rpc.wait(request).await;
        let waited = waited.map_err(|status| self.client().failure("wait for process", &status))?;
        Ok(waited.into_inner().exit_status)
    }

    async fn kill_exec(&self, exec: &Exec<'_>) -> Result<(), Failure> {
        let request = self.client().request(KillRequest {
            container_id: exec.id.to_owned(),
            exec_id: exec.name.to_owned(),
            signal: SIGKILL,
            all: false,
        });
        let mut rpc = self.tasks();
        let killed = self
            .client()
            .call("kill process", CALL_MAX, rpc.kill(request))
            .await;
        or_absent(killed).map(drop)
    }

    async fn forget(&self, exec: &Exec<'_>) {
        let request = self.client().request(DeleteProcessRequest {
            container_id: exec.id.to_owned(),
            exec_id: exec.name.to_owned(),
        });
        let mut rpc = self.tasks();
        let deleted = self
            .client()
            .call("delete process", RUNC_MAX, rpc.delete_process(request))
            .await;
        // It goes with the container, at the latest.
        if let Err(failure) = or_absent(deleted) {
            tracing::debug!(
                task.id = exec.id,
                ?failure,
                "a process in the container stays"
            );
        }
    }

    /// The process part of a container's spec, with another command and without a terminal.
    async fn process_like(&self, id: &str, command: &[String]) -> Result<Value, Failure> {
        let request = self
            .client()
            .request(GetContainerRequest { id: id.to_owned() });
        let mut rpc = self.records();
        let found = self
            .client()
            .call("get container", CALL_MAX, rpc.get(request))
            .await?;
        let spec = found.container.and_then(|container| container.spec);
        let spec: Value = spec
            .and_then(|spec| serde_json::from_slice(&spec.value).ok())
            .unwrap_or_default();
        let mut process = spec.get("process").cloned().unwrap_or_else(|| json!({}));
        if let Some(process) = process.as_object_mut() {
            process.insert("args".to_owned(), json!(command));
            process.insert("terminal".to_owned(), json!(false));
        }
        Ok(process)
    }
}
