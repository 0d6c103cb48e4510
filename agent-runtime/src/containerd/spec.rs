//! The OCI runtime spec of a task, with Docker's defaults.
//!
//! Pure: what it needs of host, image and root file system comes as arguments. The exception is one
//! question to the kernel, whether it counts swap.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Map, Value, json};
use swarm_proto::pb;
use swarm_proto::signal::signal_number;
use swarm_proto::ulimit;

use super::account::Account;
use super::apparmor::Confinement;
use super::device::{self, Device};
use super::label;
use super::manifest::RunConfig;
use super::mounts;
use super::security::{Security, hidden_paths};
use super::support::{self, Network};
use super::template::Templates;
use super::tool;
use crate::error::Error;

const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Docker's CPU period in microseconds.
const CPU_PERIOD_US: i64 = 100_000;
/// SwarmKit's default grace period.
const STOP_GRACE: Duration = Duration::from_secs(10);
/// SIGTERM.
const STOP_SIGNAL: u32 = 15;
/// Host names longer than this are refused by the kernel.
const HOSTNAME_MAX: usize = 64;

/// All that a spec is made of.
#[derive(Debug)]
pub(super) struct Input<'a> {
    pub task: &'a pb::Task,
    pub container: &'a pb::ContainerSpec,
    pub image: &'a RunConfig,
    pub templates: Templates<'a>,
    pub account: &'a Account,
    pub hostname: &'a str,
    pub mounts: Vec<Value>,
    /// The node's devices that the container may use.
    pub devices: &'a [Device],
    /// Another network namespace to join; `None` makes one, with loopback up.
    pub netns: Option<PathBuf>,
    pub cgroup: String,
    pub confinement: Confinement,
    /// True on hosts with only cgroup v2, where a container gets a cgroup namespace.
    pub cgroup_v2: bool,
    /// Whether the kernel counts swap by cgroup: runc fails on any limit where it does not.
    pub swap_counted: bool,
}

/// Builds the spec.
pub(super) fn build(input: &Input<'_>) -> Result<Value, Error> {
    let mut security = Security::read(input.container)?;
    let (masked, read_only) = hidden_paths();
    let mut all_mounts = mounts::kernel(input.container.shm_bytes);
    all_mounts.extend(input.mounts.iter().cloned());
    if input.container.read_only {
        mounts::close_files(&mut all_mounts);
    }
    let mut linux = json!({
        "resources": resources(input)?,
        "cgroupsPath": input.cgroup,
        "namespaces": namespaces(input),
        "maskedPaths": masked,
        "readonlyPaths": read_only,
        "sysctl": sysctls(input),
    });
    if !input.devices.is_empty() {
        let devices: Vec<Value> = input.devices.iter().map(Device::node).collect();
        set(&mut linux, "devices", Some(devices.into()));
    }
    set(&mut linux, "seccomp", security.seccomp.take());
    set(
        &mut linux,
        "mountLabel",
        security.selinux_label.clone().map(Value::from),
    );
    Ok(json!({
        "ociVersion": "1.0.2",
        "process": process(input, &security)?,
        "root": { "path": "rootfs", "readonly": input.container.read_only },
        "hostname": input.hostname,
        "mounts": all_mounts,
        "linux": linux,
    }))
}

/// The spec's kernel settings over Docker's: in a network of its own, a container that is not root
/// may serve low ports and ping.
fn sysctls(input: &Input<'_>) -> BTreeMap<String, String> {
    let mut sysctls = BTreeMap::new();
    if input.netns.is_none() {
        let defaults = [
            ("net.ipv4.ip_unprivileged_port_start", "0"),
            ("net.ipv4.ping_group_range", "0 2147483647"),
        ];
        sysctls.extend(defaults.map(|(name, value)| (name.to_owned(), value.to_owned())));
    }
    sysctls.extend(input.container.sysctls.clone());
    sysctls
}

fn set(object: &mut Value, key: &str, value: Option<Value>) {
    if let (Some(object), Some(value)) = (object.as_object_mut(), value) {
        object.insert(key.to_owned(), value);
    }
}

fn process(input: &Input<'_>, security: &Security) -> Result<Value, Error> {
    let account = input.account;
    // The first group as well: who gives it up must not get past what is denied to its members
    // (CVE-2022-36109).
    let mut groups = vec![account.gid];
    groups.extend(&account.groups);
    let mut process = json!({
        "terminal": input.container.tty,
        "user": { "uid": account.uid, "gid": account.gid, "additionalGids": groups },
        "args": args(input.container, input.image)?,
        "env": env(input)?,
        "cwd": cwd(input.container, input.image),
        "capabilities": security.capabilities(account.uid),
        "noNewPrivileges": security.no_new_privileges,
        "rlimits": rlimits(&input.container.ulimits)?,
        // Said also when zero: runc hands down containerd's own else, which is -998 or so, and the
        // kernel would end anything on the host before a container.
        "oomScoreAdj": input.container.oom_score_adj,
    });
    set(
        &mut process,
        "selinuxLabel",
        security.selinux_label.clone().map(Value::from),
    );
    let profile = input.confinement.profile(security.apparmor_disabled);
    set(&mut process, "apparmorProfile", profile.map(Value::from));
    Ok(process)
}

/// The image's entry point and command, as far as the spec does not give its own. A command of
/// the spec replaces both.
fn args(container: &pb::ContainerSpec, image: &RunConfig) -> Result<Vec<String>, Error> {
    let entrypoint = image.entrypoint.clone().unwrap_or_default();
    let mut args = Vec::new();
    if container.command.is_empty() {
        args.extend(entrypoint);
        if container.args.is_empty() {
            args.extend(image.cmd.clone().unwrap_or_default());
        }
    } else {
        args.extend(container.command.iter().cloned());
    }
    args.extend(container.args.iter().cloned());
    if args.is_empty() {
        return Err(Error::Fatal(format!(
            "image {}: it names no command; give one with the service",
            container.image
        )));
    }
    args.splice(0..0, tool::words_before(container));
    Ok(args)
}

fn cwd(container: &pb::ContainerSpec, image: &RunConfig) -> String {
    let given = if container.dir.is_empty() {
        image.working_dir.clone().unwrap_or_default()
    } else {
        container.dir.clone()
    };
    if given.starts_with('/') {
        given
    } else {
        format!("/{given}")
    }
}

/// The image's environment below the spec's, between them what Docker adds.
fn env(input: &Input<'_>) -> Result<Vec<String>, Error> {
    let mut env: Vec<String> = Vec::new();
    put(&mut env, PATH.to_owned());
    put(&mut env, format!("HOSTNAME={}", input.hostname));
    if input.container.tty {
        put(&mut env, "TERM=xterm".to_owned());
    }
    for variable in input.image.env.iter().flatten() {
        put(&mut env, variable.clone());
    }
    for (kind, values) in assigned(input.task) {
        put(
            &mut env,
            format!(
                "DOCKER_RESOURCE_{}={}",
                kind.to_uppercase(),
                values.join(",")
            ),
        );
    }
    for variable in &input.container.env {
        let name = variable.split('=').next().unwrap_or_default();
        if name.is_empty() || variable.contains('\0') {
            return Err(Error::Fatal(format!("env {variable:?}: give NAME=value")));
        }
        match variable.split_once('=') {
            Some((_, value)) => {
                let value = input.templates.expand(&format!("env {name}"), value)?;
                put(&mut env, format!("{name}={value}"));
            }
            // A name alone removes the image's variable.
            None => env.retain(|held| !is_of(held, name)),
        }
    }
    // Where the user was not looked up, the runtime does so, once it is in the root file system.
    if let Some(home) = &input.account.home
        && !env.iter().any(|held| is_of(held, "HOME"))
    {
        env.push(format!("HOME={home}"));
    }
    Ok(env)
}

fn is_of(variable: &str, name: &str) -> bool {
    variable
        .strip_prefix(name)
        .is_some_and(|rest| rest.starts_with('='))
}

fn put(env: &mut Vec<String>, variable: String) {
    let name = variable.split('=').next().unwrap_or_default().to_owned();
    env.retain(|held| !is_of(held, &name));
    env.push(variable);
}

/// Generic resources that were assigned, by kind, in the order given.
fn assigned(task: &pb::Task) -> Vec<(String, Vec<String>)> {
    use pb::generic_resource::Resource;
    let mut kinds: Vec<(String, Vec<String>)> = Vec::new();
    for resource in &task.assigned_generic_resources {
        let (kind, value) = match &resource.resource {
            Some(Resource::NamedResourceSpec(named)) => (named.kind.clone(), named.value.clone()),
            Some(Resource::DiscreteResourceSpec(discrete)) => {
                (discrete.kind.clone(), discrete.value.to_string())
            }
            None => continue,
        };
        match kinds.iter_mut().find(|(held, _)| *held == kind) {
            Some((_, values)) => values.push(value),
            None => kinds.push((kind, vec![value])),
        }
    }
    kinds
}

fn rlimits(ulimits: &[pb::container_spec::Ulimit]) -> Result<Vec<Value>, Error> {
    let one = |ulimit: &pb::container_spec::Ulimit| {
        if !ulimit::NAMES.contains(&ulimit.name.as_str()) {
            return Err(Error::Fatal(format!(
                "ulimit {}: there is no such limit",
                ulimit.name
            )));
        }
        // -1 is without limit.
        let number = |value: i64| u64::try_from(value).unwrap_or(u64::MAX);
        Ok(
            json!({ "type": format!("RLIMIT_{}", ulimit.name.to_uppercase()),
            "soft": number(ulimit.soft), "hard": number(ulimit.hard) }),
        )
    };
    ulimits.iter().map(one).collect()
}

fn namespaces(input: &Input<'_>) -> Vec<Value> {
    let mut namespaces: Vec<Value> = ["pid", "ipc", "uts", "mount"]
        .iter()
        .map(|kind| json!({ "type": kind }))
        .collect();
    namespaces.push(match &input.netns {
        Some(path) => json!({ "type": "network", "path": path }),
        None => json!({ "type": "network" }),
    });
    if input.cgroup_v2 {
        namespaces.push(json!({ "type": "cgroup" }));
    }
    namespaces
}

fn resources(input: &Input<'_>) -> Result<Value, Error> {
    let spec = input
        .task
        .spec
        .as_ref()
        .and_then(|spec| spec.resources.clone())
        .unwrap_or_default();
    let limits = spec.limits.clone().unwrap_or_default();
    let reservations = spec.reservations.clone().unwrap_or_default();
    let mut memory = Map::new();
    let mut cpu = Map::new();
    if limits.memory_bytes > 0 {
        memory.insert("limit".to_owned(), json!(limits.memory_bytes));
    }
    if reservations.memory_bytes > 0 {
        memory.insert("reservation".to_owned(), json!(reservations.memory_bytes));
    }
    let counted = input.swap_counted;
    if let Some(both) = memory_and_swap(limits.memory_bytes, spec.swap_bytes, counted)? {
        memory.insert("swap".to_owned(), json!(both));
    }
    if let Some(swappiness) = spec.memory_swappiness.filter(|&value| value >= 0) {
        memory.insert("swappiness".to_owned(), json!(swappiness));
    }
    if limits.nano_cpus > 0 {
        // The kernel takes no quota below a millisecond.
        let quota = (limits.nano_cpus / (1_000_000_000 / CPU_PERIOD_US)).max(1_000);
        cpu.insert("quota".to_owned(), json!(quota));
        cpu.insert("period".to_owned(), json!(CPU_PERIOD_US));
    }
    if reservations.nano_cpus > 0 {
        // 1024 shares are one CPU; two is the least.
        let shares = (reservations.nano_cpus.saturating_mul(1024) / 1_000_000_000).max(2);
        cpu.insert("shares".to_owned(), json!(shares));
    }
    let mut rules = vec![json!({ "allow": false, "access": "rwm" })];
    rules.extend(device::default_rules());
    rules.extend(input.devices.iter().map(Device::rule));
    let mut resources = json!({ "devices": rules });
    set(
        &mut resources,
        "memory",
        (!memory.is_empty()).then(|| Value::from(memory)),
    );
    set(
        &mut resources,
        "cpu",
        (!cpu.is_empty()).then(|| Value::from(cpu)),
    );
    let pids = input.container.pids_limit;
    set(
        &mut resources,
        "pids",
        (pids > 0).then(|| json!({ "limit": pids })),
    );
    Ok(resources)
}

/// The most memory and swap together, which is how the kernel counts; none is without limit.
fn memory_and_swap(memory: i64, swap: Option<i64>, counted: bool) -> Result<Option<i64>, Error> {
    match swap {
        Some(swap) if swap < 0 => Ok(None),
        Some(_) if memory <= 0 => Err(Error::Fatal(
            "a swap limit needs a memory limit beside it".to_owned(),
        )),
        Some(swap) => Ok(Some(memory.saturating_add(swap))),
        // Docker's default: as much swap as memory. A leak would fill the node's swap else.
        None if memory > 0 && counted => Ok(Some(memory.saturating_mul(2))),
        None => Ok(None),
    }
}

/// The host name: the spec's, expanded, or the first twelve characters of the task id. In the node's
/// network it is the node's: that name leads to the addresses there.
pub(super) fn hostname(
    container: &pb::ContainerSpec,
    task_id: &str,
    templates: &Templates<'_>,
) -> Result<String, Error> {
    if container.hostname.is_empty() {
        let of_node = &templates.node.hostname;
        let in_its_network = matches!(support::network(templates.task, &[]), Ok(Network::Host));
        if in_its_network && !of_node.is_empty() {
            return Ok(of_node.clone());
        }
        return Ok(task_id.chars().take(12).collect());
    }
    let name = templates.expand("hostname", &container.hostname)?;
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    if name.is_empty() || name.len() > HOSTNAME_MAX || !name.chars().all(plain) {
        return Err(Error::Fatal(format!(
            "hostname {name:?}: use letters, digits, . - _, at most {HOSTNAME_MAX} of them"
        )));
    }
    Ok(name)
}

/// How a container is asked to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stop {
    pub signal: u32,
    pub grace: Duration,
}

impl Default for Stop {
    fn default() -> Self {
        Self {
            signal: STOP_SIGNAL,
            grace: STOP_GRACE,
        }
    }
}

impl Stop {
    /// As a container's labels say.
    pub(super) fn of_labels(labels: &BTreeMap<String, String>) -> Self {
        let number = |name: &str| labels.get(name).and_then(|text| text.parse::<u64>().ok());
        let default = Self::default();
        let signal = number(label::STOP_SIGNAL).and_then(|signal| u32::try_from(signal).ok());
        Self {
            signal: signal.unwrap_or(default.signal),
            grace: number(label::STOP_GRACE_MS).map_or(default.grace, Duration::from_millis),
        }
    }
}

/// The spec's stop signal and grace period, else the image's signal, else SIGTERM and 10 s.
pub(super) fn stop(container: &pb::ContainerSpec, image: &RunConfig) -> Result<Stop, Error> {
    let grace = match container.stop_grace_period {
        Some(grace) => Duration::try_from(grace)
            .map_err(|_| Error::Fatal("the stop grace period is negative".to_owned()))?,
        None => STOP_GRACE,
    };
    let name = match container.stop_signal.as_str() {
        "" => image.stop_signal.as_deref().unwrap_or_default(),
        given => given,
    };
    let signal = if name.is_empty() {
        STOP_SIGNAL
    } else {
        signal(name)?
    };
    Ok(Stop { signal, grace })
}

/// A signal by name or number, as managers read it.
fn signal(name: &str) -> Result<u32, Error> {
    let number = signal_number(name).and_then(|number| u32::try_from(number).ok());
    number.ok_or_else(|| Error::Fatal(format!("stop signal {name}: there is no such signal")))
}

#[cfg(test)]
#[path = "spec_tests.rs"]
mod tests;
