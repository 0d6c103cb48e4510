//! Runs tasks on plain containerd, 1.6 or later.
//!
//! ```text
//! prepare   image (registry -> content store -> snapshots) -> root file system -> spec -> created process
//! start     published ports -> start        wait   exit code, out of memory -> labels -> shim freed
//! shutdown  ports back -> stop signal -> grace -> kill        remove   everything of the task
//! ```
//!
//! Invariants: one containerd namespace a node, and nothing outside of it is touched; containerd
//! is the truth about containers (labels carry what it has no field for), so swarmd can end at any
//! moment and a new one goes on; a container's output goes to a writer of its own, not through
//! swarmd; every wait has a limit, except the one for a container's end.
//!
//! | file | what |
//! |---|---|
//! | `client` `lease` `content` `snapshot` `container` | containerd's services |
//! | `image` `fetch` `manifest` | pulling, once for all who want the same; the registries are [`crate::registry`] |
//! | `local` `collect` `archive` | the images that are here: listed, removed, collected, imported |
//! | `apparmor` | the profile that confines containers where the kernel has AppArmor |
//! | `spec` `security` `seccomp` `mounts` `device` `account` `template` `support` | pure: from the task to the runtime spec |
//! | `network` `netns` `netlink` `nat` | host network, loopback, bridge with published ports |
//! | `files` `rootfs` `cgroup` `label` | what lies on the host |
//! | `stray` | shims that containerd has forgotten |
//! | `tool` | the program that log writers and init processes are |
//! | `exec` `healthcheck` | further processes in a container, and those that tell how it is |
//! | `making` | from the task to a created container |
//! | `controller` | the [`Controller`] over all of it |
//! | `usage` | what the tasks take of this host |
//! | `requirements` `features` | what all this needs of the host, and what more its kernel can |

mod account;
mod apparmor;
pub(crate) mod archive;
mod cgroup;
mod client;
mod collect;
mod container;
mod content;
mod controller;
mod device;
mod exec;
mod features;
mod fetch;
mod files;
mod healthcheck;
mod image;
mod label;
mod lease;
mod local;
mod making;
pub(crate) mod manifest;
mod mounts;
mod nat;
mod netlink;
mod netns;
mod network;
mod node;
mod requirements;
mod rootfs;
mod seccomp;
mod security;
mod snapshot;
mod spec;
mod stray;
mod support;
mod template;
mod tool;
mod usage;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use containerd_client::services::v1::DeleteNamespaceRequest;
use containerd_client::services::v1::namespaces_client::NamespacesClient;
use futures::stream::{StreamExt as _, TryStreamExt as _};
use swarm_proto::pb;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

pub use requirements::requirements;

use client::{CALL_MAX, Client, or_absent};
use controller::ContainerdController;
use local::LocalImages;
use node::Node;
use usage::Rates;

use crate::error::Error;
use crate::executor::{Controller, Executor, TaskOrder};
use crate::image::{Collection, ImageStore};
use crate::registry::Registries;

/// How long containerd may take to say that it is there.
const PROBE_MAX: Duration = Duration::from_secs(3);
/// Containers ended at the same time when the node is emptied.
const DISCARDS_AT_ONCE: usize = 32;
/// A namespace can be deleted once containerd has collected what was in it: some tries are needed.
const NAMESPACE_TRIES: u32 = 50;
const NAMESPACE_PAUSE: Duration = Duration::from_millis(100);

/// Where containerd is and how this node uses it.
#[derive(Debug, Clone)]
pub struct ContainerdConfig {
    /// `unix:///run/containerd/containerd.sock`, or a path.
    pub address: String,
    /// The containerd namespace of this node alone. Several nodes on one host need different ones.
    pub namespace: String,
    /// Absolute path for the node's files: output, volumes, generated files. containerd must see
    /// it under the same path.
    pub state_dir: PathBuf,
    /// The network namespace of this node, as a path that containerd sees. `None`: the one that
    /// this process runs in.
    pub node_netns: Option<PathBuf>,
    /// How images' registries are reached.
    pub registries: Registries,
    /// When images that nobody uses go.
    pub collection: Collection,
    /// Engine labels that the node reports.
    pub engine_labels: std::collections::BTreeMap<String, String>,
    /// Generic resources that the node reports.
    pub generic_resources: Vec<pb::GenericResource>,
    /// A program that answers to the words of [`crate::tool`]: this one, unless it does not.
    pub program: PathBuf,
    /// The socket of systemd's journal, for the log driver journald.
    pub journal: PathBuf,
}

impl ContainerdConfig {
    /// A configuration with only what must be given.
    #[must_use]
    pub fn new(address: &str, namespace: &str, state_dir: PathBuf) -> Self {
        Self {
            address: address.to_owned(),
            namespace: namespace.to_owned(),
            state_dir,
            node_netns: None,
            registries: Registries::default(),
            collection: Collection::default(),
            engine_labels: std::collections::BTreeMap::new(),
            generic_resources: Vec::new(),
            program: PathBuf::from("/proc/self/exe"),
            journal: PathBuf::from("/run/systemd/journal/socket"),
        }
    }

    fn node_netns(&self) -> PathBuf {
        // By number, not `self`: runc reads the path in its own process.
        let own = || PathBuf::from(format!("/proc/{}/ns/net", std::process::id()));
        self.node_netns.clone().unwrap_or_else(own)
    }
}

/// Runs tasks on containerd.
#[derive(Debug)]
pub struct ContainerdExecutor {
    node: Arc<Node>,
    config: ContainerdConfig,
    returns: client::Returns,
    /// How many returns of containerd were told to the agent.
    told: Mutex<u64>,
    /// Earlier looks at what tasks take, and since when their times count.
    rates: Arc<Mutex<Rates>>,
    since: Instant,
    /// Watches the connection, and collects images; ends with this.
    _monitor: JoinSet<()>,
}

impl ContainerdExecutor {
    /// Connects to containerd, makes the node's namespace and takes over what an earlier swarmd
    /// left in it.
    ///
    /// # Errors
    /// [`Error::Unavailable`] when containerd does not answer within 3 s.
    pub async fn connect(config: ContainerdConfig) -> Result<Arc<dyn Executor>, Error> {
        if !config.state_dir.is_absolute() {
            return Err(Error::Fatal(format!(
                "state directory {}: containerd needs an absolute path",
                config.state_dir.display()
            )));
        }
        // For HTTPS to registries; a provider that the process has installed already stays.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let node = Arc::new(Node::new(&config)?);
        node.client.version(PROBE_MAX).await?;
        node.client.ensure_namespace().await?;
        lease::delete_all(&node.client).await?;
        node.files.close_to_others()?;
        node.network.restore(node.held().await?).await?;
        let (sender, returns) = watch::channel(0);
        let mut monitor = JoinSet::new();
        monitor.spawn(client::monitor(node.client.clone(), sender));
        let images = LocalImages {
            node: Arc::clone(&node),
            spool: config.state_dir.clone(),
        };
        monitor.spawn(local::run(images, config.collection));
        Ok(Arc::new(Self {
            node,
            config,
            returns,
            told: Mutex::new(0),
            rates: Arc::default(),
            since: Instant::now(),
            _monitor: monitor,
        }))
    }

    /// containerd's version, if it answers at `address` within 3 s. Changes nothing.
    ///
    /// # Errors
    /// [`Error::Unavailable`] when it does not.
    pub async fn probe(address: &str) -> Result<String, Error> {
        Ok(Client::new(address, "swarm")?.version(PROBE_MAX).await?)
    }

    async fn delete_namespace(&self) -> Result<(), Error> {
        let client = &self.node.client;
        let mut last = None;
        for _ in 0..NAMESPACE_TRIES {
            let request = client.request(DeleteNamespaceRequest {
                name: self.config.namespace.clone(),
            });
            let mut rpc = NamespacesClient::new(client.channel());
            match or_absent(
                client
                    .call("delete namespace", CALL_MAX, rpc.delete(request))
                    .await,
            ) {
                Ok(_) => return Ok(()),
                Err(failure @ client::Failure::Refused { .. }) => last = Some(failure),
                Err(failure) => return Err(failure.into()),
            }
            tokio::time::sleep(NAMESPACE_PAUSE).await;
        }
        last.map_or(Ok(()), |failure| Err(failure.into()))
    }
}

#[tonic::async_trait]
impl Executor for ContainerdExecutor {
    fn name(&self) -> &'static str {
        "containerd"
    }

    async fn describe(&self) -> Result<pb::NodeDescription, Error> {
        let version = self.node.client.version(CALL_MAX).await?;
        Ok(pb::NodeDescription {
            platform: Some(crate::host::platform()),
            resources: Some(pb::Resources {
                generic: self.config.generic_resources.clone(),
                ..crate::host::resources()
            }),
            engine: Some(pb::EngineDescription {
                engine_version: format!("containerd {version}"),
                labels: self.config.engine_labels.clone(),
                plugins: crate::plugins::builtin(),
            }),
            host: Some(crate::host::description(
                &self.config.state_dir,
                features::kernel(),
            )),
            ..Default::default()
        })
    }

    async fn usage(&self) -> Vec<pb::TaskUsage> {
        let (namespace, rates) = (self.config.namespace.clone(), Arc::clone(&self.rates));
        let since = self.since;
        let look = move || {
            let taken = cgroup::taken(&namespace);
            let mut rates = rates.lock().unwrap_or_else(PoisonError::into_inner);
            rates.look(taken, since.elapsed())
        };
        // Some files a task: no work for a thread that serves others too.
        tokio::task::spawn_blocking(look).await.unwrap_or_default()
    }

    async fn controller(&self, order: TaskOrder) -> Result<Box<dyn Controller>, Error> {
        Ok(Box::new(ContainerdController::new(
            Arc::clone(&self.node),
            order,
        )))
    }

    async fn held(&self) -> Result<Vec<String>, Error> {
        let mut held = BTreeSet::new();
        held.extend(
            self.node
                .containers
                .list()
                .await?
                .into_iter()
                .map(|container| container.id),
        );
        held.extend(self.node.snapshots.tasks().await?);
        let files = self.node.files.tasks().map_err(|error| {
            Error::Fatal(format!(
                "task files in {}: {error}",
                self.config.state_dir.display()
            ))
        })?;
        held.extend(files);
        Ok(held.into_iter().collect())
    }

    async fn discard(&self, task_id: &str) -> Result<(), Error> {
        self.node.stop(task_id).await?;
        self.node.remove(task_id).await
    }

    async fn healthy(&self) -> Result<(), Error> {
        let mut returns = self.returns.clone();
        let told = *self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let count = returns
            .wait_for(|count| *count > told)
            .await
            .map(|count| *count);
        match count {
            Ok(count) => {
                *self.told.lock().unwrap_or_else(PoisonError::into_inner) = count;
                Ok(())
            }
            // The monitor lives as long as this does.
            Err(_) => std::future::pending().await,
        }
    }

    async fn images(&self) -> Result<Arc<dyn ImageStore>, Error> {
        Ok(Arc::new(LocalImages {
            node: Arc::clone(&self.node),
            spool: self.config.state_dir.clone(),
        }))
    }

    async fn purge(&self) -> Result<(), Error> {
        let held = self.held().await?;
        let mut ends = Vec::with_capacity(held.len());
        for task in &held {
            ends.push(self.discard(task));
        }
        // Together, because each may take its whole grace period.
        futures::stream::iter(ends)
            .buffer_unordered(DISCARDS_AT_ONCE)
            .try_collect::<()>()
            .await?;
        self.node.images.remove_all().await?;
        lease::delete_all(&self.node.client).await?;
        self.node.snapshots.remove_all().await?;
        self.node.network.purge().await?;
        self.delete_namespace().await?;
        cgroup::remove_parents(&self.config.namespace);
        self.node.tool.remove();
        self.node.files.remove_empty();
        Ok(())
    }
}
