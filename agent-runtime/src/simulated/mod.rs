//! A simulated backend: thousands of tasks a process, with scripted latency, failure and exit.
//!
//! [`SimulatedRuntime`] stands for the host's container runtime: it outlives executors, so an
//! agent that restarts with the same runtime adopts its "running" tasks, as with containerd. With
//! a journal file it outlives the process too. [`script::Script`] says what a task does.
//!
//! Invariants: no timer and no spawned task unless a script asks for time; ends that are due are
//! applied when somebody looks or waits.

mod images;
mod runtime;
pub mod script;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use swarm_proto::pb;

pub use images::SimulatedImages;
pub use runtime::{Reach, SimulatedRuntime};
pub use script::Script;

use crate::error::Error;
use crate::executor::{Controller, Executor, Exit, Handle, Observed, TaskOrder};
use crate::image::ImageStore;

/// What the simulated host has, and what its tasks do unless they say otherwise.
#[derive(Debug, Clone)]
pub struct SimulatedConfig {
    /// CPU, memory and generic resources that the host reports.
    pub resources: pb::Resources,
    /// Platform that the host reports, in Go's words.
    pub platform: pb::Platform,
    /// Engine labels that the host reports.
    pub engine_labels: BTreeMap<String, String>,
    /// What tasks do, unless their environment, labels or image say otherwise.
    pub script: Script,
}

impl Default for SimulatedConfig {
    /// 4 CPUs, 8 GiB, `linux/amd64`, tasks that take no time.
    fn default() -> Self {
        Self {
            resources: pb::Resources {
                nano_cpus: 4_000_000_000,
                memory_bytes: 8 << 30,
                generic: Vec::new(),
            },
            platform: pb::Platform {
                architecture: "amd64".to_owned(),
                os: "linux".to_owned(),
            },
            engine_labels: BTreeMap::new(),
            script: Script::default(),
        }
    }
}

/// Runs tasks in a [`SimulatedRuntime`].
#[derive(Debug)]
pub struct SimulatedExecutor {
    runtime: Arc<SimulatedRuntime>,
    config: SimulatedConfig,
    images: Arc<SimulatedImages>,
    /// How many returns of the runtime were told to the agent.
    told: AtomicU64,
}

impl SimulatedExecutor {
    /// An executor over a runtime, which may hold tasks of an earlier executor.
    #[must_use]
    pub fn new(runtime: Arc<SimulatedRuntime>, config: SimulatedConfig) -> Self {
        Self {
            told: AtomicU64::new(runtime.returns()),
            runtime,
            config,
            images: Arc::default(),
        }
    }
}

#[tonic::async_trait]
impl Executor for SimulatedExecutor {
    fn name(&self) -> &'static str {
        "simulated"
    }

    async fn describe(&self) -> Result<pb::NodeDescription, Error> {
        self.runtime.reachable()?;
        Ok(pb::NodeDescription {
            platform: Some(self.config.platform.clone()),
            resources: Some(self.config.resources.clone()),
            engine: Some(pb::EngineDescription {
                engine_version: concat!("simulated ", env!("CARGO_PKG_VERSION")).to_owned(),
                labels: self.config.engine_labels.clone(),
                plugins: crate::plugins::builtin(),
            }),
            ..Default::default()
        })
    }

    async fn controller(&self, order: TaskOrder) -> Result<Box<dyn Controller>, Error> {
        let script = Script::read(&self.config.script, &order.task);
        if let Ok(script) = &script {
            self.runtime.adopt(&order.task.id, script);
        }
        Ok(Box::new(SimulatedController {
            runtime: Arc::clone(&self.runtime),
            tries: 0,
            order,
            script,
        }))
    }

    async fn held(&self) -> Result<Vec<String>, Error> {
        self.runtime.reachable()?;
        Ok(self.runtime.held())
    }

    async fn discard(&self, task_id: &str) -> Result<(), Error> {
        self.runtime.reachable()?;
        self.runtime.remove(task_id)
    }

    async fn healthy(&self) -> Result<(), Error> {
        let returns = self
            .runtime
            .came_back(self.told.load(Ordering::Acquire))
            .await;
        self.told.store(returns, Ordering::Release);
        Ok(())
    }

    async fn images(&self) -> Result<Arc<dyn ImageStore>, Error> {
        self.runtime.reachable()?;
        Ok(Arc::clone(&self.images) as _)
    }

    async fn purge(&self) -> Result<(), Error> {
        self.runtime.reachable()?;
        self.runtime.clear()
    }
}

#[derive(Debug)]
struct SimulatedController {
    runtime: Arc<SimulatedRuntime>,
    order: TaskOrder,
    /// The script, or why it can't be read: told by `prepare`, so that the task is REJECTED.
    script: Result<Script, Error>,
    tries: u32,
}

impl SimulatedController {
    fn id(&self) -> &str {
        &self.order.task.id
    }

    fn script(&self) -> Result<&Script, Error> {
        match &self.script {
            Ok(script) => Ok(script),
            Err(error) => Err(Error::Fatal(error.to_string())),
        }
    }
}

#[tonic::async_trait]
impl Controller for SimulatedController {
    async fn prepare(&mut self) -> Result<Option<String>, Error> {
        let script = self.script()?.clone();
        self.runtime.reachable()?;
        if self.runtime.phase(self.id()).is_some() {
            return Ok(script.notice);
        }
        runtime::spend(script.prepare).await;
        self.runtime.reachable()?;
        if let Some(reason) = script.fail_prepare {
            return Err(Error::Fatal(reason));
        }
        if self.tries < script.retry_prepare {
            self.tries += 1;
            return Err(Error::Temporary(format!(
                "task {}: not this time",
                self.id()
            )));
        }
        self.runtime.create(self.id())?;
        Ok(script.notice)
    }

    async fn start(&mut self) -> Result<(), Error> {
        let script = self.script()?.clone();
        self.runtime.reachable()?;
        runtime::spend(script.start).await;
        self.runtime.reachable()?;
        if let Some(reason) = script.fail_start {
            return Err(Error::Fatal(reason));
        }
        self.runtime.start(self.id(), &script)
    }

    async fn wait(&mut self) -> Result<Exit, Error> {
        self.runtime.wait(self.id()).await
    }

    async fn shutdown(&mut self) -> Result<(), Error> {
        self.runtime.reachable()?;
        if !self.runtime.is_running(self.id()) {
            return Ok(());
        }
        let (took, code) = match &self.script {
            Ok(script) if script.ignore_stop || script.stop > script.grace => {
                (script.grace, script::EXIT_KILLED)
            }
            Ok(script) => (script.stop, 0),
            Err(_) => (std::time::Duration::ZERO, script::EXIT_KILLED),
        };
        runtime::spend(took).await;
        self.runtime.reachable()?;
        self.runtime.end(
            self.id(),
            Exit {
                code,
                oom: false,
                detail: None,
            },
        )
    }

    async fn remove(&mut self) -> Result<(), Error> {
        self.runtime.reachable()?;
        let id = self.id().to_owned();
        self.runtime.remove(&id)
    }

    async fn observe(&mut self) -> Result<Observed, Error> {
        self.runtime.reachable()?;
        Ok(self.runtime.observe(self.id(), handle(&self.order.task)))
    }
}

/// The handle of a simulated container; host ports are "in use" as the spec asks for them.
fn handle(task: &pb::Task) -> Handle {
    let ports = task
        .endpoint
        .as_ref()
        .map(|endpoint| endpoint.ports.clone())
        .unwrap_or_default();
    Handle {
        container_id: format!("sim-{}", task.id),
        pid: 0,
        ports: ports
            .into_iter()
            .filter(|port| port.publish_mode() == pb::port_config::PublishMode::Host)
            .collect(),
    }
}
