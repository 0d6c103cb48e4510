//! Changes to an existing service: whole flags replace, `-add` and `-rm` flags change one entry.

use std::collections::BTreeMap;

use swarm_proto::pb::service_spec::Mode;
use swarm_proto::pb::{Annotations, ContainerSpec, EndpointSpec, Placement, ServiceSpec, TaskSpec};

use super::placement::{CONSTRAINT, PREFERENCE};
use super::service::{NETWORK, apply, container_of, twice};
use super::{KEY, Problems, UNSIGNED, container, mount, port};
use crate::cli::{Edits, Update};
use crate::error::Error;

/// Refuses values that are wrong whatever the service is: those of a change to a service that already has
/// every entry that is to be removed.
pub(crate) fn check_update(
    update: &Update,
    client: &BTreeMap<String, String>,
) -> Result<(), Error> {
    let mut problems = Problems::default();
    let edits = &update.edits;
    let mut spec = ServiceSpec::default();
    problems.optional("--replicas", update.flags.replicas.as_ref(), &UNSIGNED);
    problems.optional(
        "--max-concurrent",
        update.flags.max_concurrent.as_ref(),
        &UNSIGNED,
    );
    apply(&update.flags, &mut spec, client, &mut problems);
    for (flag, texts) in [
        ("--label-add", &edits.labels_add),
        ("--container-label-add", &edits.container_labels_add),
    ] {
        super::key_values(&mut problems, flag, texts);
    }
    for (flag, texts) in [
        ("--label-rm", &edits.labels_rm),
        ("--container-label-rm", &edits.container_labels_rm),
        ("--env-rm", &edits.env_rm),
    ] {
        problems.each(flag, texts, &KEY);
    }
    for (flag, texts) in [
        ("--constraint-add", &edits.constraints_add),
        ("--constraint-rm", &edits.constraints_rm),
    ] {
        problems.each(flag, texts, &CONSTRAINT);
    }
    for (flag, texts) in [
        ("--placement-pref-add", &edits.placement_prefs_add),
        ("--placement-pref-rm", &edits.placement_prefs_rm),
    ] {
        problems.each(flag, texts, &PREFERENCE);
    }
    container::environment("--env-add", &edits.env_add, client, &mut problems);
    container::hosts("--host-add", &edits.hosts_add, &mut problems);
    container::hosts("--host-rm", &edits.hosts_rm, &mut problems);
    problems.each("--mount-add", &edits.mounts_add, &mount::MOUNT);
    problems.each("--publish-add", &edits.publish_add, &port::PUBLISH);
    problems.each("--publish-rm", &edits.publish_rm, &port::TARGET);
    problems.each("--network-add", &edits.networks_add, &NETWORK);
    problems.unless_any(())
}

/// Changes `spec` as the command line says.
pub(crate) fn update(
    update: &Update,
    spec: &mut ServiceSpec,
    client: &BTreeMap<String, String>,
) -> Result<(), Error> {
    let mut problems = Problems::default();
    counts(update, spec, &mut problems);
    apply(&update.flags, spec, client, &mut problems);
    labels(&update.edits, spec, &mut problems);
    if let Some(container) = container_of(spec) {
        container_entries(&update.edits, container, client, &mut problems);
    }
    let task = spec.task.get_or_insert_with(TaskSpec::default);
    placement(&update.edits, task, &mut problems);
    ports(&update.edits, &mut spec.endpoint, &mut problems);
    if update.force {
        task.force_update = task.force_update.wrapping_add(1);
    }
    networks(&update.edits, task, &mut problems);
    problems.unless_any(())
}

fn counts(update: &Update, spec: &mut ServiceSpec, problems: &mut Problems) {
    let replicas = problems.optional("--replicas", update.flags.replicas.as_ref(), &UNSIGNED);
    let concurrent = problems.optional(
        "--max-concurrent",
        update.flags.max_concurrent.as_ref(),
        &UNSIGNED,
    );
    match &mut spec.mode {
        Some(Mode::Replicated(replicated)) => {
            replicated.replicas = replicas.unwrap_or(replicated.replicas);
            if concurrent.is_some() {
                problems.push("--max-concurrent: the service is no job");
            }
        }
        Some(Mode::ReplicatedJob(job)) => {
            job.total_completions = replicas.unwrap_or(job.total_completions);
            job.max_concurrent = concurrent.unwrap_or(job.max_concurrent);
        }
        Some(Mode::Global(_) | Mode::GlobalJob(_)) | None => {
            if replicas.or(concurrent).is_some() {
                problems.push("--replicas: the service is global, it runs one task on each node");
            }
        }
    }
}

fn set_and_remove(
    map: &mut BTreeMap<String, String>,
    flag: &str,
    (add, remove): (&[String], &[String]),
    problems: &mut Problems,
) {
    for key in problems.each(&format!("{flag}-rm"), remove, &KEY) {
        if map.remove(&key).is_none() {
            problems.push(format!("{flag}-rm {key}: the service has no such label"));
        }
    }
    map.extend(super::key_values(problems, &format!("{flag}-add"), add));
}

fn labels(edits: &Edits, spec: &mut ServiceSpec, problems: &mut Problems) {
    let labels = &mut spec
        .annotations
        .get_or_insert_with(Annotations::default)
        .labels;
    set_and_remove(
        labels,
        "--label",
        (&edits.labels_add, &edits.labels_rm),
        problems,
    );
}

fn container_entries(
    edits: &Edits,
    container: &mut ContainerSpec,
    client: &BTreeMap<String, String>,
    problems: &mut Problems,
) {
    let labels = (
        edits.container_labels_add.as_slice(),
        edits.container_labels_rm.as_slice(),
    );
    set_and_remove(&mut container.labels, "--container-label", labels, problems);
    let name = |entry: &str| {
        entry
            .split_once('=')
            .map_or(entry, |(name, _)| name)
            .to_owned()
    };
    for gone in problems.each("--env-rm", &edits.env_rm, &KEY) {
        let count = container.env.len();
        container.env.retain(|entry| name(entry) != gone);
        if container.env.len() == count {
            problems.push(format!("--env-rm {gone}: the service has no such variable"));
        }
    }
    for entry in container::environment("--env-add", &edits.env_add, client, problems) {
        match container
            .env
            .iter_mut()
            .find(|old| name(old) == name(&entry))
        {
            Some(old) => *old = entry,
            None => container.env.push(entry),
        }
    }
    for target in &edits.mounts_rm {
        let count = container.mounts.len();
        container.mounts.retain(|mount| &mount.target != target);
        if container.mounts.len() == count {
            problems.push(format!("--mount-rm {target}: nothing is mounted there"));
        }
    }
    for mount in problems.each("--mount-add", &edits.mounts_add, &mount::MOUNT) {
        container.mounts.retain(|old| old.target != mount.target);
        container.mounts.push(mount);
    }
    for line in container::hosts("--host-rm", &edits.hosts_rm, problems) {
        remove(&mut container.hosts, &line, "--host-rm", problems);
    }
    container
        .hosts
        .extend(container::hosts("--host-add", &edits.hosts_add, problems));
}

fn placement(edits: &Edits, task: &mut TaskSpec, problems: &mut Problems) {
    let none = edits.constraints_add.is_empty()
        && edits.constraints_rm.is_empty()
        && edits.placement_prefs_add.is_empty()
        && edits.placement_prefs_rm.is_empty();
    if none {
        return;
    }
    let placement = task.placement.get_or_insert_with(Placement::default);
    for gone in problems.each("--constraint-rm", &edits.constraints_rm, &CONSTRAINT) {
        // Stored ones may have spaces around the operator.
        let same = |old: &String| (CONSTRAINT.parse)(old).is_ok_and(|old| old == gone);
        let stored = placement
            .constraints
            .iter()
            .find(|old| same(old))
            .cloned()
            .unwrap_or(gone);
        remove(
            &mut placement.constraints,
            &stored,
            "--constraint-rm",
            problems,
        );
    }
    placement.constraints.extend(problems.each(
        "--constraint-add",
        &edits.constraints_add,
        &CONSTRAINT,
    ));
    for gone in problems.each(
        "--placement-pref-rm",
        &edits.placement_prefs_rm,
        &PREFERENCE,
    ) {
        let count = placement.preferences.len();
        placement.preferences.retain(|old| *old != gone);
        if placement.preferences.len() == count {
            problems.push("--placement-pref-rm: the service has no such preference");
        }
    }
    let new = problems.each(
        "--placement-pref-add",
        &edits.placement_prefs_add,
        &PREFERENCE,
    );
    placement.preferences.extend(new);
}

fn ports(edits: &Edits, endpoint: &mut Option<EndpointSpec>, problems: &mut Problems) {
    if edits.publish_add.is_empty() && edits.publish_rm.is_empty() {
        return;
    }
    let ports = &mut endpoint.get_or_insert_with(EndpointSpec::default).ports;
    for (target, protocol) in problems.each("--publish-rm", &edits.publish_rm, &port::TARGET) {
        let count = ports.len();
        ports.retain(|port| {
            port.target_port != target
                || protocol.is_some_and(|protocol| port.protocol() != protocol)
        });
        if ports.len() == count {
            problems.push(format!(
                "--publish-rm {target}: the service does not publish it"
            ));
        }
    }
    ports.extend(
        problems
            .each("--publish-add", &edits.publish_add, &port::PUBLISH)
            .concat(),
    );
    twice(ports, problems);
}

fn networks(edits: &Edits, task: &mut TaskSpec, problems: &mut Problems) {
    for gone in &edits.networks_rm {
        let count = task.networks.len();
        task.networks.retain(|network| &network.target != gone);
        if task.networks.len() == count {
            problems.push(format!(
                "--network-rm {gone}: the service is not attached to it"
            ));
        }
    }
    task.networks
        .extend(problems.each("--network-add", &edits.networks_add, &NETWORK));
}

fn remove(list: &mut Vec<String>, entry: &str, flag: &str, problems: &mut Problems) {
    let count = list.len();
    list.retain(|old| old != entry);
    if list.len() == count {
        problems.push(format!("{flag} {entry}: the service has no such entry"));
    }
}
