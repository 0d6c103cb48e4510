//! The backend of a node that runs no tasks: a manager on a host without a container runtime.
//!
//! It describes the host (so that the node can be listed) and refuses every task with the reason.

use swarm_proto::pb;

use crate::error::Error;
use crate::executor::{Controller, Executor, Exit, Observed, TaskOrder};

/// Refuses every task.
#[derive(Debug)]
pub struct NoExecutor {
    reason: String,
}

impl NoExecutor {
    /// `reason` says why this node runs no tasks, and how to change that, for example
    /// `no containerd at unix:///run/containerd/containerd.sock; install it or give its address`.
    #[must_use]
    pub fn new(reason: impl Into<String>) -> Self {
        Self {
            reason: reason.into(),
        }
    }
}

#[tonic::async_trait]
impl Executor for NoExecutor {
    fn name(&self) -> &'static str {
        "none"
    }

    async fn describe(&self) -> Result<pb::NodeDescription, Error> {
        Ok(pb::NodeDescription {
            platform: Some(crate::host::platform()),
            resources: Some(crate::host::resources()),
            engine: Some(pb::EngineDescription {
                engine_version: "none".to_owned(),
                ..Default::default()
            }),
            ..Default::default()
        })
    }

    async fn controller(&self, order: TaskOrder) -> Result<Box<dyn Controller>, Error> {
        let reason = format!(
            "task {}: this node runs no tasks: {}",
            order.task.id, self.reason
        );
        Ok(Box::new(Refusal { reason }))
    }

    async fn held(&self) -> Result<Vec<String>, Error> {
        Ok(Vec::new())
    }

    async fn discard(&self, _task_id: &str) -> Result<(), Error> {
        Ok(())
    }

    /// Never: there is no runtime that could be lost.
    async fn healthy(&self) -> Result<(), Error> {
        std::future::pending().await
    }

    async fn purge(&self) -> Result<(), Error> {
        Ok(())
    }
}

#[derive(Debug)]
struct Refusal {
    reason: String,
}

#[tonic::async_trait]
impl Controller for Refusal {
    async fn prepare(&mut self) -> Result<Option<String>, Error> {
        Err(Error::Fatal(self.reason.clone()))
    }

    async fn start(&mut self) -> Result<(), Error> {
        Err(Error::Fatal(self.reason.clone()))
    }

    async fn wait(&mut self) -> Result<Exit, Error> {
        Err(Error::Fatal(self.reason.clone()))
    }

    async fn shutdown(&mut self) -> Result<(), Error> {
        Ok(())
    }

    async fn remove(&mut self) -> Result<(), Error> {
        Ok(())
    }

    async fn observe(&mut self) -> Result<Observed, Error> {
        Ok(Observed::Absent)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn refuses_with_the_reason_and_stops_cleanly() {
        let executor = NoExecutor::new("no containerd at unix:///nowhere");
        let order = TaskOrder {
            task: Default::default(),
            node: Default::default(),
        };
        let mut task = executor.controller(order).await.unwrap();
        let error = task.prepare().await.unwrap_err();
        assert!(
            matches!(&error, Error::Fatal(text) if text.contains("unix:///nowhere")),
            "{error}"
        );
        task.shutdown().await.unwrap();
        task.remove().await.unwrap();
        assert!(
            executor
                .describe()
                .await
                .unwrap()
                .resources
                .unwrap()
                .nano_cpus
                > 0
        );
    }
}
