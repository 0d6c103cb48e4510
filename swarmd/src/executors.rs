//! What runs this node's tasks, by its settings.
//!
//! containerd may not be there yet when swarmd starts: the node is then listed with what its host
//! has and runs nothing, and containerd is taken up when it comes.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use agent_runtime::containerd::{ContainerdConfig, ContainerdExecutor};
use agent_runtime::image::ImageStore;
use agent_runtime::none::NoExecutor;
use agent_runtime::simulated::{SimulatedConfig, SimulatedExecutor, SimulatedRuntime};
use agent_runtime::{Controller, Error, Executor, TaskOrder};
use swarm_proto::id::NodeId;
use swarm_proto::pb;
use swarm_proto::resources::generic_to_wire;
use tokio::sync::OnceCell;

use crate::clock::Clock;
use crate::config::{Config, ExecutorKind};

/// Pause between looks for a containerd that is not there.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// The executor of the settings.
///
/// # Errors
/// When the simulated executor's file can't be used. A containerd that is not there is no error.
pub(crate) async fn open(
    config: &Config,
    state_dir: &Path,
    node: NodeId,
    clock: Clock,
) -> Result<Arc<dyn Executor>, Error> {
    match config.executor {
        ExecutorKind::Containerd => {
            let late = LateContainerd::new(config, state_dir, node, clock);
            if let Err(error) = late.executor().await {
                tracing::warn!(%error, "tasks wait until it is");
            }
            Ok(Arc::new(late))
        }
        ExecutorKind::Simulated => {
            let runtime = SimulatedRuntime::open(&state_dir.join("simulated"))?;
            let mut simulated = SimulatedConfig {
                engine_labels: config.engine_labels.clone(),
                ..SimulatedConfig::default()
            };
            simulated.resources.generic = generic_to_wire(&config.generic_resources);
            Ok(Arc::new(SimulatedExecutor::new(runtime, simulated)))
        }
        ExecutorKind::None => Ok(Arc::new(NoExecutor::new(
            "this node runs with --executor none and takes no tasks",
        ))),
    }
}

/// Whether containerd's socket takes connections.
pub(crate) async fn reachable(config: &Config) -> bool {
    let path = config
        .engine_addr
        .strip_prefix("unix://")
        .unwrap_or(&config.engine_addr);
    tokio::net::UnixStream::connect(path).await.is_ok()
}

/// containerd, from the moment it is there.
#[derive(Debug)]
struct LateContainerd {
    config: ContainerdConfig,
    clock: Clock,
    executor: OnceCell<Arc<dyn Executor>>,
}

impl LateContainerd {
    fn new(config: &Config, state_dir: &Path, node: NodeId, clock: Clock) -> Self {
        let namespace = config
            .containerd_namespace
            .clone()
            .unwrap_or_else(|| format!("swarm-{node}"));
        let mut containerd =
            ContainerdConfig::new(&config.engine_addr, &namespace, state_dir.to_owned());
        containerd.registries.clone_from(&config.registries);
        containerd.collection = config.collection;
        containerd.engine_labels.clone_from(&config.engine_labels);
        containerd.generic_resources = generic_to_wire(&config.generic_resources);
        Self {
            config: containerd,
            clock,
            executor: OnceCell::new(),
        }
    }

    /// Connects if that has not happened yet.
    async fn executor(&self) -> Result<&Arc<dyn Executor>, Error> {
        self.executor
            .get_or_try_init(|| ContainerdExecutor::connect(self.config.clone()))
            .await
    }
}

#[tonic::async_trait]
impl Executor for LateContainerd {
    fn name(&self) -> &'static str {
        "containerd"
    }

    async fn describe(&self) -> Result<pb::NodeDescription, Error> {
        if let Ok(executor) = self.executor().await {
            return executor.describe().await;
        }
        // The node can be listed, and its operator sees what is missing.
        let engine = pb::EngineDescription {
            engine_version: "containerd not reachable".to_owned(),
            labels: self.config.engine_labels.clone(),
            plugins: Vec::new(),
        };
        Ok(pb::NodeDescription {
            platform: Some(agent_runtime::host::platform()),
            resources: Some(agent_runtime::host::resources()),
            engine: Some(engine),
            ..Default::default()
        })
    }

    async fn usage(&self) -> Vec<pb::TaskUsage> {
        match self.executor.get() {
            Some(executor) => executor.usage().await,
            None => Vec::new(),
        }
    }

    async fn controller(&self, order: TaskOrder) -> Result<Box<dyn Controller>, Error> {
        self.executor().await?.controller(order).await
    }

    async fn held(&self) -> Result<Vec<String>, Error> {
        self.executor().await?.held().await
    }

    async fn discard(&self, task_id: &str) -> Result<(), Error> {
        self.executor().await?.discard(task_id).await
    }

    async fn healthy(&self) -> Result<(), Error> {
        if let Some(executor) = self.executor.get() {
            return executor.healthy().await;
        }
        while self.executor().await.is_err() {
            self.clock.sleep(LOOK_AGAIN).await;
        }
        Ok(())
    }

    async fn images(&self) -> Result<Arc<dyn ImageStore>, Error> {
        self.executor().await?.images().await
    }

    async fn purge(&self) -> Result<(), Error> {
        self.executor().await?.purge().await
    }
}
