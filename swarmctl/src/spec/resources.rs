//! Reservations, limits, generic resources and placement.

use swarm_proto::pb::generic_resource::Resource;
use swarm_proto::pb::{
    DiscreteGenericResource, GenericResource, Placement, ResourceRequirements, Resources, TaskSpec,
};

use super::placement::{CONSTRAINT, PREFERENCE};
use super::value::{NANO_CPUS, SIZE};
use super::{Form, Problems, UNSIGNED};
use crate::cli::PlaceFlags;

const GENERIC: Form<GenericResource> = Form {
    accepted: "KIND=N with N of at least 1; a task can't ask for one named unit",
    parse: |text| {
        let (kind, count) = text.split_once('=').ok_or("there is no =")?;
        if kind.trim().is_empty() {
            return Err("the kind is empty".to_owned());
        }
        let value = match count.parse::<i64>() {
            Ok(count) if count > 0 => count,
            Ok(_) | Err(_) => return Err(format!("{count:?} is not a number of at least 1")),
        };
        let discrete = DiscreteGenericResource {
            kind: kind.to_owned(),
            value,
        };
        Ok(GenericResource {
            resource: Some(Resource::DiscreteResourceSpec(discrete)),
        })
    },
};

pub(super) fn apply(flags: &PlaceFlags, task: &mut TaskSpec, problems: &mut Problems) {
    resources(flags, &mut task.resources, problems);
    if !flags.constraints.is_empty() {
        let constraints = problems.each("--constraint", &flags.constraints, &CONSTRAINT);
        task.placement
            .get_or_insert_with(Placement::default)
            .constraints = constraints;
    }
    if !flags.placement_prefs.is_empty() {
        let preferences = problems.each("--placement-pref", &flags.placement_prefs, &PREFERENCE);
        task.placement
            .get_or_insert_with(Placement::default)
            .preferences = preferences;
    }
}

pub(super) fn max_per_node(text: Option<&String>, task: &mut TaskSpec, problems: &mut Problems) {
    if let Some(most) = problems.optional("--replicas-max-per-node", text, &UNSIGNED) {
        task.placement
            .get_or_insert_with(Placement::default)
            .max_replicas = most;
    }
}

fn resources(
    flags: &PlaceFlags,
    current: &mut Option<ResourceRequirements>,
    problems: &mut Problems,
) {
    let reserve_memory = problems.optional(
        "--memory-reservation",
        flags.memory_reservation.as_ref(),
        &SIZE,
    );
    let limit_memory = problems.optional("--memory-limit", flags.memory_limit.as_ref(), &SIZE);
    let reserve_cpu = problems.optional(
        "--cpu-reservation",
        flags.cpu_reservation.as_ref(),
        &NANO_CPUS,
    );
    let limit_cpu = problems.optional("--cpu-limit", flags.cpu_limit.as_ref(), &NANO_CPUS);
    let generic = problems.each("--generic-resources", &flags.generic_resources, &GENERIC);
    let given = [reserve_memory, limit_memory, reserve_cpu, limit_cpu];
    if given.iter().all(Option::is_none) && generic.is_empty() {
        return;
    }
    let requirements = current.get_or_insert_with(ResourceRequirements::default);
    set(&mut requirements.reservations, reserve_cpu, reserve_memory);
    set(&mut requirements.limits, limit_cpu, limit_memory);
    if !generic.is_empty() {
        requirements
            .reservations
            .get_or_insert_with(Resources::default)
            .generic = generic;
    }
    check_order(requirements, problems);
}

fn set(side: &mut Option<Resources>, nano_cpus: Option<i64>, memory_bytes: Option<i64>) {
    if nano_cpus.is_none() && memory_bytes.is_none() {
        return;
    }
    let side = side.get_or_insert_with(Resources::default);
    side.nano_cpus = nano_cpus.unwrap_or(side.nano_cpus);
    side.memory_bytes = memory_bytes.unwrap_or(side.memory_bytes);
}

/// A limit below the reservation would set aside what can never be used.
fn check_order(requirements: &ResourceRequirements, problems: &mut Problems) {
    let (Some(limits), Some(reservations)) = (&requirements.limits, &requirements.reservations)
    else {
        return;
    };
    if limits.memory_bytes > 0 && limits.memory_bytes < reservations.memory_bytes {
        problems.push(format!(
            "--memory-limit {}: is below the reservation of {} bytes; give at least that",
            limits.memory_bytes, reservations.memory_bytes
        ));
    }
    if limits.nano_cpus > 0 && limits.nano_cpus < reservations.nano_cpus {
        problems.push(format!(
            "--cpu-limit: {} billionths are below the reservation of {}; give at least that",
            limits.nano_cpus, reservations.nano_cpus
        ));
    }
}
