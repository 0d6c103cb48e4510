//! Makes a task's container: root file system, volumes, files, spec, record, process.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use containerd_client::types::Mount;
use prost::Message as _;
use prost_types::Any;
use swarm_proto::log_driver::{self, LogDriver};
use swarm_proto::pb;
use swarm_proto::pb::container_spec::Device as Asked;
use swarm_proto::registry_auth::Credentials;
use swarm_proto::service::InvalidSpec;
use tokio::sync::{SemaphorePermit, watch};

use super::account::{self, Account};
use super::apparmor::Confinement;
use super::cgroup;
use super::container::{NewContainer, Runtime, Stdio};
use super::device::{self, Device};
use super::files::{self, Names, make_closed};
use super::image::Image;
use super::label;
use super::manifest::RunConfig;
use super::mounts::{self, Mounts, NewVolume, VolumeDirs};
use super::network::PortMap;
use super::node::Node;
use super::rootfs;
use super::spec::{self, Input};
use super::support::{self, Network};
use super::template::{Templates, task_name};
use crate::error::Error;
use crate::executor::{Handle, TaskOrder};
use crate::health::Check;
use crate::output::{self, Target};

/// The shim of runc, which also runs what is called as runc is.
const RUNTIME: &str = "io.containerd.runc.v2";
/// What runs command lines where the image names no other.
const SHELL: [&str; 2] = ["/bin/sh", "-c"];

/// One of the containers that are made at a time.
type Place<'node> = Option<SemaphorePermit<'node>>;

/// A container that was made.
#[derive(Debug)]
pub(super) struct Made {
    pub handle: Handle,
    /// What is worth telling the operator.
    pub notice: Option<String>,
}

/// Makes the container of one task.
#[derive(Debug)]
pub(super) struct Making {
    pub node: Arc<Node>,
    pub order: TaskOrder,
}

impl Making {
    fn id(&self) -> &str {
        &self.order.task.id
    }

    fn templates(&self) -> Templates<'_> {
        Templates {
            task: &self.order.task,
            node: &self.order.node,
        }
    }

    /// Refuses what can't be run, and makes the image ready.
    pub(super) async fn image(&self, told: &watch::Sender<String>) -> Result<Image, Error> {
        let task = &self.order.task;
        let container = support::container(task)?;
        support::network(task, &support::host_ports(task)?)?;
        let auth = container
            .pull_options
            .as_ref()
            .map_or("", |options| &options.registry_auth);
        let credentials = Credentials::decode(auth).map_err(|error| {
            Error::Fatal(format!(
                "the service's registry credentials can't be read: {error}"
            ))
        })?;
        self.node
            .images
            .ensure(&container.image, credentials, told)
            .await
    }

    /// Makes the container; all or nothing.
    pub(super) async fn make(&self, image: Image) -> Result<Made, Error> {
        match self.container(image).await {
            Ok(made) => Ok(made),
            Err(error) => {
                if let Err(left) = self.node.remove(self.id()).await {
                    tracing::warn!(task.id = self.id(), error = %left, "half-made container stays");
                }
                Err(error)
            }
        }
    }

    async fn container(&self, image: Image) -> Result<Made, Error> {
        let task = &self.order.task;
        let container = support::container(task)?;
        let ports = support::host_ports(task)?;
        let network = support::network(task, &ports)?;
        let files = self.node.files.of(self.id());
        self.node.tool.ready().await?;
        let confinement = self.node.apparmor.ready().await?;
        // May take long, or hang: before anybody waits for it.
        let devices = devices(&container.devices).await?;
        // The first ones run while the last ones wait.
        let mut place = self.place().await;
        files.create()?;
        let root = self.root(&image).await?;
        let run = &image.config.config;
        let address = match network {
            Network::Bridged => Some(self.node.network.reserve(self.id()).await?),
            Network::Host | Network::Isolated => None,
        };
        let names = Names {
            hostname: &spec::hostname(container, self.id(), &self.templates())?,
            container,
            network,
            address,
            node_hosts: &read_or_empty("/etc/hosts"),
            node_resolv: &read_or_empty("/etc/resolv.conf"),
        };
        files.write(&names)?;
        let mounts = self.mounts(container, run)?;
        let account = self.look_inside(&root, mounts.new, run, &mut place).await?;
        let allowed = Allowed {
            account,
            confinement,
            devices,
        };
        let spec = self.spec(&names, run, &allowed, mounts.oci)?;
        let mut labels = self.labels(container, run)?;
        let stdio = self.stdio(container, &labels, &spec)?;
        if let Some(check) = health_check(container, run) {
            files.write_health(&check)?;
        }
        labels.extend(address.map(|address| (label::ADDRESS.to_owned(), address.to_string())));
        let shared = match network {
            Network::Host => PortMap::shared(&ports),
            Network::Bridged | Network::Isolated => PortMap::default(),
        };
        if network == Network::Host && !ports.is_empty() {
            labels.insert(label::PORTS.to_owned(), shared.to_string());
        }
        let id = self.id();
        let new = NewContainer {
            id,
            image: &image.name,
            labels,
            spec: &spec,
            runtime: runtime(&container.oci_runtime),
        };
        self.node.containers.create(new).await?;
        let pid = self.process(&image, root, stdio).await?;
        if let Some(address) = address {
            self.node.network.attach(id, pid, address).await?;
        }
        Ok(Made {
            handle: Handle {
                container_id: id.to_owned(),
                pid,
                ports: shared.ports(task),
            },
            notice: image.notice,
        })
    }

    /// Waits until it may be made.
    async fn place(&self) -> Place<'_> {
        // Nobody closes it.
        self.node.making.acquire().await.ok()
    }

    /// The container's root file system, to be mounted.
    async fn root(&self, image: &Image) -> Result<Vec<Mount>, Error> {
        let snapshots = &self.node.snapshots;
        let root = snapshots.prepare_root(self.id(), &image.chain).await?;
        root.ok_or_else(|| {
            self.node.images.forget(image);
            Error::Temporary(format!(
                "image {}: its layers are gone, they are put in again",
                image.name
            ))
        })
    }

    async fn process(&self, image: &Image, root: Vec<Mount>, stdio: Stdio) -> Result<u32, Error> {
        let created = self
            .node
            .containers
            .create_process(self.id(), root, stdio)
            .await;
        // runc's words are what the operator needs; what is around them is ours.
        created.map_err(|failure| plain_create_error(image, failure.into()))
    }

    /// Where the container's streams go; what that needs on the host is made.
    fn stdio(
        &self,
        container: &pb::ContainerSpec,
        labels: &BTreeMap<String, String>,
        spec: &serde_json::Value,
    ) -> Result<Stdio, Error> {
        let task = &self.order.task;
        let files = self.node.files.of(self.id());
        let own = task.spec.as_ref().and_then(|spec| spec.log_driver.as_ref());
        let driver = log_driver::parse("log_driver", own.or(task.log_driver.as_ref()));
        let driver = driver.map_err(|found| Error::Fatal(InvalidSpec(found).to_string()))?;
        if matches!(driver, LogDriver::Journald(_)) && !self.node.journal.exists() {
            return Err(Error::Fatal(format!(
                "log driver journald: this node has no journal at {}; use json-file",
                self.node.journal.display()
            )));
        }
        let mut stdio = Stdio {
            terminal: container.tty,
            ..Stdio::default()
        };
        if container.open_stdin {
            files.open_stdin()?;
            if container.tty {
                stdio.stdin = files.stdin.display().to_string();
            }
        }
        // Output that goes nowhere needs nobody to read it, unless it comes from a terminal.
        if driver != LogDriver::None || container.tty {
            let env = spec.pointer("/process/env").cloned().unwrap_or_default();
            let of_container = output::Container {
                id: self.id(),
                name: &task_name(task),
                image: &container.image,
                labels,
                env: &serde_json::from_value::<Vec<String>>(env).unwrap_or_default(),
            };
            let target = Target::new(&driver, &of_container, &files.log, &self.node.journal);
            files.write_log_config(&target)?;
            stdio.output = self.node.tool.log_writer(&files.log_config);
        }
        Ok(stdio)
    }

    fn mounts(&self, container: &pb::ContainerSpec, run: &RunConfig) -> Result<Mounts, Error> {
        let volumes: Vec<&str> = run
            .volumes
            .iter()
            .flatten()
            .map(|(path, _)| &**path)
            .collect();
        let files = self.node.files.of(self.id());
        let dirs = VolumeDirs {
            named: &self.node.files.named_volumes(),
            anonymous: &files.volumes,
        };
        mounts::plan(container, &volumes, &self.templates(), &dirs)
    }

    fn spec(
        &self,
        names: &Names<'_>,
        run: &RunConfig,
        allowed: &Allowed,
        mounts: Vec<serde_json::Value>,
    ) -> Result<serde_json::Value, Error> {
        let files = self.node.files.of(self.id());
        let mut all_mounts = vec![
            mounts::file(&files.hosts, "/etc/hosts"),
            mounts::file(&files.resolv, "/etc/resolv.conf"),
            mounts::file(&files.hostname, "/etc/hostname"),
        ];
        all_mounts.extend(self.node.tool.mounts(names.container, &files.stdin));
        all_mounts.extend(mounts);
        // What is mounted deeper comes later: a volume on /run must not hide what is below it. Of two
        // at one place the service's own comes later, and wins.
        all_mounts.sort_by_key(|mount| {
            let destination = mount.get("destination").and_then(|at| at.as_str());
            Path::new(destination.unwrap_or_default())
                .components()
                .count()
        });
        spec::build(&Input {
            task: &self.order.task,
            container: names.container,
            image: run,
            templates: self.templates(),
            account: &allowed.account,
            hostname: names.hostname,
            mounts: all_mounts,
            devices: &allowed.devices,
            netns: (names.network == Network::Host).then(|| self.node.network.node_netns()),
            cgroup: cgroup::path(self.node.client.namespace(), self.id()),
            confinement: allowed.confinement,
            cgroup_v2: cgroup::only_v2(),
            swap_counted: cgroup::counts_swap(),
        })
    }

    /// Makes new volumes and finds out who the user is, where that needs the image's files.
    async fn look_inside<'node>(
        &'node self,
        root: &[Mount],
        volumes: Vec<NewVolume>,
        run: &RunConfig,
        place: &mut Place<'node>,
    ) -> Result<Account, Error> {
        let container = support::container(&self.order.task)?;
        let user = match container.user.as_str() {
            "" => run.user.clone().unwrap_or_default(),
            given => given.to_owned(),
        };
        let groups = container.groups.clone();
        if volumes.is_empty() && !account::needs_files(&user, &groups) {
            return account::resolve(&user, &groups, "", "");
        }
        // Two tasks that are the first to use a volume must not both fill it. The lock goes with
        // the work, which goes on when this is given up.
        let filling = match volumes.as_slice() {
            [] => None,
            [..] => {
                // However large they are: others are made meanwhile.
                *place = None;
                let named = self.node.files.named_volumes();
                make_closed(&named).map_err(|error| {
                    files::failure(&format!("volumes in {}", named.display()), &error)
                })?;
                Some(Arc::clone(&self.node.filling).lock_owned().await)
            }
        };
        let at = self.node.files.of(self.id()).mountpoint;
        let account = rootfs::look(root.to_vec(), at, move |root| {
            for volume in &volumes {
                volume.make(|from, to| root.copy_out(from, to))?;
            }
            drop(filling);
            account::resolve(
                &user,
                &groups,
                &root.text("etc/passwd")?,
                &root.text("etc/group")?,
            )
        })
        .await;
        if place.is_none() {
            *place = self.place().await;
        }
        account
    }

    fn labels(
        &self,
        container: &pb::ContainerSpec,
        run: &RunConfig,
    ) -> Result<BTreeMap<String, String>, Error> {
        let task = &self.order.task;
        let stop = spec::stop(container, run)?;
        let mut labels = label::of_spec(&container.labels);
        let service = task.service_annotations.clone().unwrap_or_default();
        let limits = task.spec.as_ref().and_then(|spec| spec.resources.as_ref());
        let limit = limits.and_then(|resources| resources.limits.as_ref());
        let swarm = [
            ("com.docker.swarm.task", String::new()),
            ("com.docker.swarm.task.id", task.id.clone()),
            ("com.docker.swarm.task.name", task_name(task)),
            ("com.docker.swarm.node.id", self.order.node.id.clone()),
            ("com.docker.swarm.service.id", task.service_id.clone()),
            ("com.docker.swarm.service.name", service.name),
            (label::TASK_ID, task.id.clone()),
            (label::STOP_SIGNAL, stop.signal.to_string()),
            (label::STOP_GRACE_MS, stop.grace.as_millis().to_string()),
        ];
        labels.extend(swarm.map(|(name, value)| (name.to_owned(), value)));
        if let Some(limit) = limit.filter(|limit| limit.memory_bytes > 0) {
            labels.insert(
                label::MEMORY_LIMIT.to_owned(),
                limit.memory_bytes.to_string(),
            );
        }
        Ok(labels)
    }
}

/// As whom a container runs, and what of this node it may use.
struct Allowed {
    account: Account,
    confinement: Confinement,
    devices: Vec<Device>,
}

/// Looks devices up, off the runtime's threads: a directory may have many, or hang.
async fn devices(asked: &[Asked]) -> Result<Vec<Device>, Error> {
    if asked.is_empty() {
        return Ok(Vec::new());
    }
    let asked = asked.to_vec();
    let found = tokio::task::spawn_blocking(move || device::resolve(&asked)).await;
    found.map_err(|_| Error::Temporary("looking for devices was given up".to_owned()))?
}

/// What runs a container: a shim by its name, or runc's with another program.
fn runtime(name: &str) -> Runtime {
    if name.starts_with("io.containerd.") {
        return Runtime {
            name: name.to_owned(),
            options: None,
        };
    }
    let options = RuncOptions {
        binary_name: name.to_owned(),
    };
    Runtime {
        name: RUNTIME.to_owned(),
        options: (!name.is_empty()).then(|| Any {
            type_url: "containerd.runc.v1.Options".to_owned(),
            value: options.encode_to_vec(),
        }),
    }
}

/// What runc's shim is told, as far as it is here: containerd's `containerd.runc.v1.Options`.
#[derive(Clone, PartialEq, prost::Message)]
struct RuncOptions {
    /// The program, by its name.
    #[prost(string, tag = "6")]
    binary_name: String,
}

/// The health check of a container, if it has one.
fn health_check(container: &pb::ContainerSpec, run: &RunConfig) -> Option<Check> {
    let shell = run
        .shell
        .clone()
        .unwrap_or_else(|| SHELL.map(str::to_owned).to_vec());
    Check::new(
        container.healthcheck.as_ref(),
        run.healthcheck.as_ref(),
        &shell,
    )
}

fn plain_create_error(image: &Image, error: Error) -> Error {
    match error {
        Error::Fatal(text) => {
            let words = text.rsplit("runc create failed: ").next().unwrap_or(&text);
            let words = words.strip_suffix(": unknown").unwrap_or(words);
            Error::Fatal(format!("container of image {}: {words}", image.name))
        }
        other @ (Error::Temporary(_) | Error::Unavailable { .. }) => other,
    }
}

fn read_or_empty(path: &str) -> String {
    std::fs::read_to_string(Path::new(path)).unwrap_or_default()
}
