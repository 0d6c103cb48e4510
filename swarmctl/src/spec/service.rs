//! A whole service from its flags.

use std::collections::BTreeMap;

use swarm_proto::pb::endpoint_spec::ResolutionMode;
use swarm_proto::pb::service_spec::Mode;
use swarm_proto::pb::task_spec::Runtime;
use swarm_proto::pb::{
    Annotations, ContainerSpec, Driver, EndpointSpec, GlobalJob, GlobalService,
    NetworkAttachmentConfig, PortConfig, ReplicatedJob, ReplicatedService, ServiceSpec, TaskSpec,
};

use super::text::{NAME, fields, needed};
use super::{Form, Problems, UNSIGNED, container, policy, port, resources};
use crate::cli::{Create, ReachFlags, ServiceFlags};
use crate::error::Error;

const ENDPOINT_MODE: Form<ResolutionMode> = Form {
    accepted: "vip or dnsrr",
    parse: |text| match text.to_ascii_lowercase().as_str() {
        "vip" => Ok(ResolutionMode::Vip),
        "dnsrr" => Ok(ResolutionMode::Dnsrr),
        _ => Err("unknown mode".to_owned()),
    },
};

/// Docker's long form of a network.
pub(super) const NETWORK: Form<NetworkAttachmentConfig> = Form {
    accepted: "NAME, or name=NAME[,alias=NAME][,driver-opt=KEY=VALUE]",
    parse: network,
};

/// The spec of a new service.
pub(crate) fn create(
    create: &Create,
    client: &BTreeMap<String, String>,
) -> Result<ServiceSpec, Error> {
    let mut problems = Problems::default();
    let mut spec = ServiceSpec {
        annotations: Some(Annotations::default()),
        task: Some(TaskSpec {
            runtime: Some(Runtime::Container(ContainerSpec::default())),
            ..Default::default()
        }),
        mode: mode(create, &mut problems),
        ..Default::default()
    };
    if create.flags.name.is_none() {
        let after_image = create
            .positional
            .iter()
            .any(|word| word.starts_with("--name"));
        problems.push(match after_image {
            true => "--name: missing; what follows the image are the container's arguments, so flags go before it",
            false => "--name: missing; give the service a name, as --name web",
        });
    }
    positional(create, &mut spec, &mut problems);
    apply(&create.flags, &mut spec, client, &mut problems);
    problems.unless_any(spec)
}

/// The container of a service; a service of another runtime gets none of the container's flags.
pub(super) fn container_of(spec: &mut ServiceSpec) -> Option<&mut ContainerSpec> {
    match spec
        .task
        .as_mut()?
        .runtime
        .get_or_insert_with(|| Runtime::Container(ContainerSpec::default()))
    {
        Runtime::Container(container) => Some(container),
        Runtime::Attachment(_) | Runtime::Generic(_) => None,
    }
}

/// Applies every flag that is given. Counts are the caller's: they depend on the mode.
pub(super) fn apply(
    flags: &ServiceFlags,
    spec: &mut ServiceSpec,
    client: &BTreeMap<String, String>,
    problems: &mut Problems,
) {
    let annotations = spec.annotations.get_or_insert_with(Annotations::default);
    if let Some(name) = problems.optional("--name", flags.name.as_ref(), &NAME) {
        annotations.name = name;
    }
    if !flags.labels.is_empty() {
        annotations.labels = super::key_values(problems, "--label", &flags.labels);
    }
    if let Some(container) = container_of(spec) {
        container::apply(&flags.container, container, client, problems);
        container::mounts(&flags.reach, container, problems);
        if let Some(most) =
            problems.optional("--limit-pids", flags.place.limit_pids.as_ref(), &UNSIGNED)
        {
            container.pids_limit = i64::try_from(most).unwrap_or(i64::MAX);
        }
    }
    let task = spec.task.get_or_insert_with(TaskSpec::default);
    resources::apply(&flags.place, task, problems);
    resources::max_per_node(flags.replicas_max_per_node.as_ref(), task, problems);
    policy::restart(&flags.restart, &mut task.restart, problems);
    log_driver(flags, task, problems);
    policy::update(&flags.rollout, &mut spec.update, problems);
    policy::rollback(&flags.rollout, &mut spec.rollback, problems);
    endpoint(&flags.reach, &mut spec.endpoint, problems);
    networks_of(&flags.reach, spec, problems);
}

/// The networks a spec names that the manager has to know; those of the host are no objects.
pub(crate) fn networks(
    spec: &mut ServiceSpec,
) -> impl Iterator<Item = &mut NetworkAttachmentConfig> {
    let attached = spec.task.iter_mut().flat_map(|task| &mut task.networks);
    attached.filter(|network| !matches!(network.target.as_str(), "host" | "none" | "bridge"))
}

fn mode(create: &Create, problems: &mut Problems) -> Option<Mode> {
    let replicas = problems.optional("--replicas", create.flags.replicas.as_ref(), &UNSIGNED);
    let concurrent = problems.optional(
        "--max-concurrent",
        create.flags.max_concurrent.as_ref(),
        &UNSIGNED,
    );
    let given = create.mode.as_str();
    if create.flags.max_concurrent.is_some() && given != "replicated-job" {
        problems.push(format!(
            "--max-concurrent: not for mode {given}; give --mode replicated-job"
        ));
    }
    if create.flags.replicas.is_some() && matches!(given, "global" | "global-job") {
        problems.push(format!(
            "--replicas: not for mode {given}, which runs one task on each node"
        ));
    }
    let count = replicas.unwrap_or(1);
    match given {
        "replicated" => Some(Mode::Replicated(ReplicatedService { replicas: count })),
        "global" => Some(Mode::Global(GlobalService {})),
        "replicated-job" => Some(Mode::ReplicatedJob(ReplicatedJob {
            max_concurrent: concurrent.unwrap_or(count),
            total_completions: count,
        })),
        "global-job" => Some(Mode::GlobalJob(GlobalJob {})),
        other => {
            problems.push(format!(
                "--mode {other}: unknown mode; give replicated, global, replicated-job or global-job"
            ));
            None
        }
    }
}

/// Docker's `IMAGE [ARG…]` after the options.
fn positional(create: &Create, spec: &mut ServiceSpec, problems: &mut Problems) {
    let flags = &create.flags.container;
    let Some((image, args)) = create.positional.split_first() else {
        if flags.image.is_none() {
            problems.push("--image: missing; give the image of the tasks, as --image nginx");
        }
        return;
    };
    if flags.image.is_some() {
        problems.push(format!(
            "{image:?}: unexpected beside --image; give arguments by --args"
        ));
        return;
    }
    if !args.is_empty() && !flags.args.is_empty() {
        problems.push("--args: arguments are given after the image too; give them in one place");
    }
    let image = problems.parse("IMAGE", image, &super::text::IMAGE);
    if let (Some(container), Some(image)) = (container_of(spec), image) {
        container.image = image;
        container.args = args.to_vec();
    }
}

fn log_driver(flags: &ServiceFlags, task: &mut TaskSpec, problems: &mut Problems) {
    let flags = &flags.container;
    if let Some(name) = &flags.log_driver {
        task.log_driver.get_or_insert_with(Driver::default).name = name.clone();
    }
    if !flags.log_opts.is_empty() {
        let options = super::key_values(problems, "--log-opt", &flags.log_opts);
        match &mut task.log_driver {
            Some(driver) => driver.options = options,
            None => problems.push("--log-opt: no driver to set it for; give --log-driver too"),
        }
    }
}

fn endpoint(flags: &ReachFlags, endpoint: &mut Option<EndpointSpec>, problems: &mut Problems) {
    if let Some(mode) = problems.optional(
        "--endpoint-mode",
        flags.endpoint_mode.as_ref(),
        &ENDPOINT_MODE,
    ) {
        endpoint
            .get_or_insert_with(EndpointSpec::default)
            .set_mode(mode);
    }
    let mut ports = problems
        .each("--publish", &flags.publish, &port::PUBLISH)
        .concat();
    ports.extend(problems.each("--ports", &flags.ports, &port::NAMED));
    if !ports.is_empty() {
        twice(&ports, problems);
        endpoint.get_or_insert_with(EndpointSpec::default).ports = ports;
    }
}

/// One published port can lead to one target only.
pub(super) fn twice(ports: &[PortConfig], problems: &mut Problems) {
    let mut seen = std::collections::BTreeSet::new();
    for port in ports.iter().filter(|port| port.published_port != 0) {
        if !seen.insert((port.protocol, port.published_port)) {
            let (number, protocol) = (
                port.published_port,
                port.protocol().as_str_name().to_lowercase(),
            );
            problems.push(format!(
                "--publish: port {number}/{protocol} is given twice; give each once"
            ));
        }
    }
}

fn networks_of(flags: &ReachFlags, spec: &mut ServiceSpec, problems: &mut Problems) {
    if flags.networks.is_empty() {
        return;
    }
    let networks = problems.each("--network", &flags.networks, &NETWORK);
    if networks.len() > 1 && networks.iter().any(|network| network.target == "host") {
        problems
            .push("--network host: the host's network can't be joined with others; give it alone");
    }
    spec.task.get_or_insert_with(TaskSpec::default).networks = networks;
}

fn network(text: &str) -> Result<NetworkAttachmentConfig, String> {
    let mut network = NetworkAttachmentConfig::default();
    if !text.contains('=') {
        network.target = text.trim().to_owned();
    } else {
        for (key, value) in fields(text)? {
            let value = needed(&key, value)?;
            match key.as_str() {
                "name" => network.target = value,
                "alias" => network.aliases.push(value),
                "driver-opt" => {
                    let (key, value) =
                        value.split_once('=').ok_or("driver-opt is not KEY=VALUE")?;
                    network
                        .driver_attachment_opts
                        .insert(key.to_owned(), value.to_owned());
                }
                other => return Err(format!("unknown field {other:?}")),
            }
        }
    }
    if network.target.is_empty() {
        return Err("the name is missing".to_owned());
    }
    Ok(network)
}
