//! A service's spec, parsed: valid by construction, ready to decide on.
//!
//! The wire form is kept beside the parsed one: the API gives back what it was given, and what only
//! the node reads (the container itself) travels as it came.
//!
//! Parsing names all bad fields at once, and refuses what it does not know rather than ignore it.
//! What needs the store (names in use, secrets that exist, ports of other services) is checked when
//! the change is applied.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::invalid::{Faults, shown, signed};
pub use crate::invalid::{FieldError, InvalidSpec};
use crate::pb;
use crate::placement::{self, Placement};
pub use crate::ports::{HostPort, Port, Protocol, PublishMode};
use crate::resources::{self, Reservations};
pub use crate::restart::{RestartCondition, RestartPolicy};
pub use crate::update::{FailureAction, UpdateConfig, UpdateOrder};
use crate::{container, log_driver, mounts, name, ports, restart, update};

/// Most replicas one service may ask for. A manager stores about 1 KiB a task, so this bounds one
/// service to about 200 MiB.
pub const REPLICAS_MAX: u64 = 200_000;

/// Labels of an object.
pub type Labels = BTreeMap<String, String>;

/// A valid service spec.
#[derive(Debug, Clone, PartialEq)]
pub struct ServiceSpec {
    /// As the client sent it.
    pub wire: Arc<pb::ServiceSpec>,
    /// Its name: unique among services, without regard to case.
    pub name: String,
    /// How many tasks, and where.
    pub mode: Mode,
    /// What orchestrator and scheduler look at.
    pub task: TaskPolicy,
    /// How an update is rolled out; defaults filled in.
    pub update: UpdateConfig,
    /// How a rollback is rolled out; defaults filled in.
    pub rollback: UpdateConfig,
    /// Ports that are published, host and ingress.
    pub ports: Vec<Port>,
}

/// How many tasks a service has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// So many, wherever there is room.
    Replicated {
        /// How many.
        replicas: u64,
    },
    /// One on every node that meets the constraints.
    Global,
    /// So many runs to completion.
    ReplicatedJob {
        /// Most at once; zero means all.
        max_concurrent: u64,
        /// How many must complete.
        total_completions: u64,
    },
    /// One run to completion on every node.
    GlobalJob,
}

impl Mode {
    /// Runs to completion.
    pub fn is_job(self) -> bool {
        match self {
            Self::Replicated { .. } | Self::Global => false,
            Self::ReplicatedJob { .. } | Self::GlobalJob => true,
        }
    }

    /// One task a node.
    pub fn is_global(self) -> bool {
        match self {
            Self::Replicated { .. } | Self::ReplicatedJob { .. } => false,
            Self::Global | Self::GlobalJob => true,
        }
    }
}

/// The part of a task spec that managers decide on.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct TaskPolicy {
    /// Resources kept free for the task.
    pub reservations: Reservations,
    /// When an ended task is replaced.
    pub restart: RestartPolicy,
    /// Where it may run.
    pub placement: Placement,
    /// Plugins a node must have.
    pub plugins: Vec<Plugin>,
    /// Ports taken on the node itself.
    pub host_ports: Vec<HostPort>,
}

/// A plugin a node must report.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Plugin {
    /// `Volume`, `Network` or `Log`.
    pub kind: String,
    /// The driver's name.
    pub name: String,
}

/// Log drivers every node has; the empty name stands for the node's own choice.
const BUILT_IN_LOG_DRIVERS: &[&str] = &["", "none", "local", "json-file"];

/// Shortest kind of a generic runtime (SwarmKit's rule).
const RUNTIME_KIND_MIN: usize = 3;

impl TryFrom<pb::ServiceSpec> for ServiceSpec {
    type Error = InvalidSpec;

    fn try_from(wire: pb::ServiceSpec) -> Result<Self, InvalidSpec> {
        let mut faults = Faults::default();
        let spec = Self::read(&mut faults, wire);
        faults.finish(spec)
    }
}

impl From<&ServiceSpec> for pb::ServiceSpec {
    fn from(spec: &ServiceSpec) -> Self {
        (*spec.wire).clone()
    }
}

impl ServiceSpec {
    /// A spec that was accepted once, by this version or another: a rule that was made since does not turn it away.
    /// What such a rule finds fault with counts as not set.
    pub fn accepted(wire: pb::ServiceSpec) -> Self {
        Self::read(&mut Faults::default(), wire)
    }

    fn read(faults: &mut Faults, wire: pb::ServiceSpec) -> Self {
        let name = name::parse(faults, wire.annotations.as_ref(), name::valid_name);
        let mode = parse_mode(faults, wire.mode.as_ref());
        let ports = ports::parse(faults, wire.endpoint.as_ref());
        let task = parse_task(faults, wire.task.as_ref(), &ports);
        check_networks(faults, "networks", &wire.networks);
        let (update, rollback) = parse_updates(faults, mode, &wire);
        Self {
            wire: Arc::new(wire),
            name,
            mode,
            task,
            update,
            rollback,
            ports,
        }
    }

    /// The wire form with every unset part filled by its default.
    pub fn insert_defaults(&self) -> pb::ServiceSpec {
        crate::defaults::insert((*self.wire).clone())
    }

    /// The networks its tasks attach to: the task's own, or the older field of the service.
    pub fn networks(&self) -> &[pb::NetworkAttachmentConfig] {
        match &self.wire.task {
            Some(task) if !task.networks.is_empty() => &task.networks,
            Some(_) | None => &self.wire.networks,
        }
    }

    /// The container its tasks run; none with a generic runtime.
    pub fn container(&self) -> Option<&pb::ContainerSpec> {
        match self.wire.task.as_ref()?.runtime.as_ref()? {
            pb::task_spec::Runtime::Container(container) => Some(container),
            pb::task_spec::Runtime::Generic(_) | pb::task_spec::Runtime::Attachment(_) => None,
        }
    }
}

/// A mode stands in for a missing one so that parsing can go on; the fault is noted.
fn parse_mode(faults: &mut Faults, wire: Option<&pb::service_spec::Mode>) -> Mode {
    use pb::service_spec::Mode as Wire;
    match wire {
        Some(Wire::Replicated(wire)) => {
            check_tasks(faults, "mode.replicated.replicas", wire.replicas);
            Mode::Replicated {
                replicas: wire.replicas,
            }
        }
        Some(Wire::Global(_)) => Mode::Global,
        Some(Wire::ReplicatedJob(wire)) => {
            check_tasks(
                faults,
                "mode.replicated_job.max_concurrent",
                wire.max_concurrent,
            );
            check_tasks(
                faults,
                "mode.replicated_job.total_completions",
                wire.total_completions,
            );
            Mode::ReplicatedJob {
                max_concurrent: wire.max_concurrent,
                total_completions: wire.total_completions,
            }
        }
        Some(Wire::GlobalJob(_)) => Mode::GlobalJob,
        None => {
            faults.add(
                "mode",
                "is missing; set replicated, global, replicated_job or global_job",
            );
            Mode::Global
        }
    }
}

/// A number of tasks: clients cast it from a signed one, and the store has room for so many.
fn check_tasks(faults: &mut Faults, field: &str, count: u64) {
    match signed(count) {
        Err(negative) => {
            faults.add(
                field,
                format!("is negative ({negative}); it must be zero or more"),
            );
        }
        Ok(count) if count > REPLICAS_MAX => faults.add(
            field,
            format!(
                "{count} is above the limit of {REPLICAS_MAX} tasks a service; ask for fewer or \
                 use several services"
            ),
        ),
        Ok(_) => {}
    }
}

fn parse_updates(
    faults: &mut Faults,
    mode: Mode,
    wire: &pb::ServiceSpec,
) -> (UpdateConfig, UpdateConfig) {
    if mode.is_job() && wire.update.is_some() {
        faults.add("update", "a job is not updated task by task; leave it out");
    }
    let update = update::parse(faults, "update", wire.update.as_ref());
    let rollback = update::parse(faults, "rollback", wire.rollback.as_ref());
    if rollback.failure_action == FailureAction::Rollback {
        faults.add(
            "rollback.failure_action",
            "a failed rollback has nothing to roll back to; use PAUSE or CONTINUE",
        );
    }
    (update, rollback)
}

fn parse_task(faults: &mut Faults, wire: Option<&pb::TaskSpec>, ports: &[Port]) -> TaskPolicy {
    let Some(wire) = wire else {
        faults.add("task", "is missing; say what to run");
        return TaskPolicy::default();
    };
    let mounts = check_runtime(faults, wire.runtime.as_ref());
    check_networks(faults, "task.networks", &wire.networks);
    log_driver::check(faults, "task.log_driver", wire.log_driver.as_ref());
    for (i, reference) in wire.resource_references.iter().enumerate() {
        let field = format!("task.resource_references[{i}]");
        let _: Option<pb::ResourceType> = faults.known(
            format!("{field}.resource_type"),
            reference.resource_type,
            "TASK, SECRET, CONFIG and VOLUME",
        );
        if reference.resource_id.is_empty() {
            faults.add(
                format!("{field}.resource_id"),
                "is missing; name the object",
            );
        }
    }
    TaskPolicy {
        reservations: resources::parse(faults, "task.resources.", wire.resources.as_ref()),
        restart: restart::parse(faults, wire.restart.as_ref()),
        placement: placement::parse(faults, wire.placement.as_ref()),
        plugins: plugins(mounts, wire.log_driver.as_ref()),
        host_ports: ports::host_ports(ports),
    }
}

/// Checks what runs and gives its mounts.
fn check_runtime<'a>(
    faults: &mut Faults,
    runtime: Option<&'a pb::task_spec::Runtime>,
) -> &'a [pb::Mount] {
    use pb::task_spec::Runtime;
    match runtime {
        Some(Runtime::Container(spec)) => {
            container::check(faults, "task.container", spec);
            &spec.mounts
        }
        Some(Runtime::Generic(spec)) => {
            if spec.kind.chars().count() < RUNTIME_KIND_MIN {
                faults.add(
                    "task.generic.kind",
                    format!(
                        "{} is too short; give at least {RUNTIME_KIND_MIN} characters",
                        shown(&spec.kind)
                    ),
                );
            }
            if spec
                .payload
                .as_ref()
                .is_none_or(|payload| payload.type_url.is_empty())
            {
                faults.add("task.generic.payload", "is missing or has no type");
            }
            &[]
        }
        Some(Runtime::Attachment(_)) => {
            faults.add(
                "task.attachment",
                "a service runs containers; attachments have no service",
            );
            &[]
        }
        None => {
            faults.add("task", "has no runtime; set container");
            &[]
        }
    }
}

fn plugins(mounts: &[pb::Mount], log_driver: Option<&pb::Driver>) -> Vec<Plugin> {
    let plugin = |kind: &str, name: &str| Plugin {
        kind: kind.to_owned(),
        name: name.to_owned(),
    };
    let volumes = mounts::drivers(mounts).map(|name| plugin("Volume", name));
    let log = log_driver
        .map(|driver| driver.name.as_str())
        .filter(|name| !BUILT_IN_LOG_DRIVERS.contains(name))
        .map(|name| plugin("Log", name));
    let all: BTreeSet<Plugin> = volumes.chain(log).collect();
    all.into_iter().collect()
}

/// Networks are named by id or name; which exist is known to the store. "host" is one of them.
fn check_networks(faults: &mut Faults, field: &str, networks: &[pb::NetworkAttachmentConfig]) {
    let mut targets = BTreeSet::new();
    for (i, network) in networks.iter().enumerate() {
        let field = format!("{field}[{i}]");
        if network.target.is_empty() {
            faults.add(format!("{field}.target"), "is missing; name a network");
        } else if !targets.insert(network.target.as_str()) {
            let target = shown(&network.target);
            faults.add(
                format!("{field}.target"),
                format!("{target} is attached twice"),
            );
        }
        for (j, alias) in network.aliases.iter().enumerate() {
            if alias.is_empty() || alias.contains(|c: char| c.is_control() || c.is_whitespace()) {
                let reason = format!("{} is not a DNS name", shown(alias));
                faults.add(format!("{field}.aliases[{j}]"), reason);
            }
        }
        for (j, address) in network.addresses.iter().enumerate() {
            if crate::constraint::Network::parse(address).is_none() {
                let reason = format!("{} is not an IP address", shown(address));
                faults.add(format!("{field}.addresses[{j}]"), reason);
            }
        }
    }
}

#[cfg(test)]
mod tests;
