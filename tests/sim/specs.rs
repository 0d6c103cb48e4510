//! The services and nodes of a simulated cluster.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use swarm_proto::id::{ClusterId, NodeId};
use swarm_proto::pb;
use swarm_proto::pb::update_config::{FailureAction, UpdateOrder};
use swarm_proto::resources::Resources;
use swarm_proto::service::ServiceSpec;
use swarm_proto::time::{Timestamp, duration_to_wire};
use swarmd::manager::store::{Cluster, Meta, Node, NodeStatus, State};

use super::invariants;
use super::random::Random;

/// Values of the label by which services choose nodes.
pub const ZONES: [&str; 3] = ["a", "b", "c"];
/// A port that services fight for.
const CONTESTED: u32 = 9_000;
const CPU: i64 = 1_000_000_000;
const MIB: i64 = 1 << 20;

/// A cluster object without certificates.
pub fn cluster() -> Cluster {
    Cluster {
        id: ClusterId::from_raw(1),
        meta: Meta::default(),
        spec: pb::ClusterSpec {
            annotations: Some(pb::Annotations {
                name: "default".to_owned(),
                ..Default::default()
            }),
            orchestration: Some(pb::OrchestrationConfig {
                task_history_retention_limit: 2,
            }),
            ..Default::default()
        },
        root_ca: pb::RootCa::default(),
        blacklist: BTreeMap::new(),
        unlock_keys: Vec::new(),
        managers: std::collections::BTreeMap::new(),
    }
}

/// A node as the CA makes it, before its first session.
pub fn node(id: NodeId, zone: &str) -> Node {
    Node {
        id,
        meta: Meta::default(),
        annotations: annotations(zone),
        desired_role: pb::NodeRole::Worker,
        membership: pb::node_spec::Membership::Accepted,
        availability: pb::node_spec::Availability::Active,
        role: pb::NodeRole::Worker,
        certificate: pb::Certificate::default(),
        description: None,
        resources: Resources::default(),
        platform: swarm_proto::placement::Platform::default(),
        status: NodeStatus {
            state: pb::node_status::State::Unknown,
            message: String::new(),
            addr: String::new(),
            since: Timestamp::ZERO,
        },
        failures: Vec::new(),
    }
}

/// What an operator says of a node.
pub fn annotations(zone: &str) -> pb::Annotations {
    pb::Annotations {
        labels: [("zone".to_owned(), zone.to_owned())].into(),
        ..Default::default()
    }
}

/// What a node says of itself. Some have named generic resources, some counted ones, some none.
pub fn description(random: &mut Random, hostname: &str) -> pb::NodeDescription {
    let generic = match random.below(3) {
        0 => Vec::new(),
        1 => vec![counted("gpu", 2)],
        _ => vec![
            named("gpu", "one"),
            named("gpu", "two"),
            named("gpu", "three"),
        ],
    };
    pb::NodeDescription {
        hostname: hostname.to_owned(),
        platform: Some(pb::Platform {
            os: "linux".to_owned(),
            architecture: "x86_64".to_owned(),
        }),
        resources: Some(pb::Resources {
            nano_cpus: 4 * CPU,
            memory_bytes: 4_096 * MIB,
            generic,
        }),
        ..Default::default()
    }
}

/// A description of a node of another size.
pub fn resized(random: &mut Random, mut description: pb::NodeDescription) -> pb::NodeDescription {
    let resources = description.resources.get_or_insert_default();
    resources.nano_cpus = random.pick(&[CPU, 2 * CPU, 4 * CPU]);
    resources.memory_bytes = random.pick(&[512, 2_048, 4_096]) * MIB;
    description
}

/// A description of a node of full size.
pub fn full_size(mut description: pb::NodeDescription) -> pb::NodeDescription {
    let resources = description.resources.get_or_insert_default();
    resources.nano_cpus = 8 * CPU;
    resources.memory_bytes = 8_192 * MIB;
    description
}

fn counted(kind: &str, value: i64) -> pb::GenericResource {
    use pb::generic_resource::Resource;
    let resource = Resource::DiscreteResourceSpec(pb::DiscreteGenericResource {
        kind: kind.to_owned(),
        value,
    });
    pb::GenericResource {
        resource: Some(resource),
    }
}

fn named(kind: &str, value: &str) -> pb::GenericResource {
    use pb::generic_resource::Resource;
    let resource = Resource::NamedResourceSpec(pb::NamedGenericResource {
        kind: kind.to_owned(),
        value: value.to_owned(),
    });
    pb::GenericResource {
        resource: Some(resource),
    }
}

fn seconds(random: &mut Random, list: &[u64]) -> prost_types::Duration {
    duration_to_wire(Duration::from_secs(random.pick(list)))
}

fn update_config(
    random: &mut Random,
    actions: &[FailureAction],
    order: UpdateOrder,
) -> pb::UpdateConfig {
    pb::UpdateConfig {
        parallelism: random.below(3),
        delay: Some(seconds(random, &[0, 0, 1, 3])),
        failure_action: random.pick(actions).into(),
        monitor: Some(seconds(random, &[0, 1, 5])),
        max_failure_ratio: random.pick(&[0.0, 0.0, 0.3]),
        order: order.into(),
    }
}

/// A service of some kind.
#[expect(clippy::too_many_lines, reason = "one spec, part by part")]
pub fn service(random: &mut Random, name: &str) -> pb::ServiceSpec {
    use pb::restart_policy::RestartCondition;
    let (mut max_replicas, mut ports) = (random.pick(&[0, 0, 0, 1, 2]), Vec::new());
    if random.per_mille(200) {
        ports = vec![host_port(CONTESTED)];
        max_replicas = 0;
    }
    let generic = if random.per_mille(150) {
        vec![counted("gpu", 1)]
    } else {
        Vec::new()
    };
    let constraints = match random.below(5) {
        0 => vec![format!("node.labels.zone=={}", random.pick(&ZONES))],
        1 => vec![format!("node.labels.zone!={}", random.pick(&ZONES))],
        _ => Vec::new(),
    };
    let preferences = if random.per_mille(300) {
        vec![pb::PlacementPreference {
            preference: Some(pb::placement_preference::Preference::Spread(
                pb::SpreadOver {
                    spread_descriptor: "node.labels.zone".to_owned(),
                },
            )),
        }]
    } else {
        Vec::new()
    };
    // With its place taken by the old task a new one can't start first.
    let alone = max_replicas > 0 || !ports.is_empty() || !generic.is_empty();
    let order = if alone || random.per_mille(600) {
        UpdateOrder::StopFirst
    } else {
        UpdateOrder::StartFirst
    };
    let actions = [
        FailureAction::Pause,
        FailureAction::Continue,
        FailureAction::Rollback,
    ];
    let reservations = pb::Resources {
        nano_cpus: random.pick(&[0, 0, CPU / 5, CPU, 2 * CPU]),
        memory_bytes: random.pick(&[0, 0, 256, 1_024]) * MIB,
        generic,
    };
    let restart = pb::RestartPolicy {
        condition: random
            .pick(&[
                RestartCondition::Any,
                RestartCondition::Any,
                RestartCondition::OnFailure,
                RestartCondition::None,
            ])
            .into(),
        delay: Some(seconds(random, &[0, 1, 5])),
        max_attempts: random.pick(&[0, 0, 2]),
        window: Some(seconds(random, &[0, 10])),
    };
    let task = pb::TaskSpec {
        runtime: Some(pb::task_spec::Runtime::Container(pb::ContainerSpec {
            image: format!("app:{}", random.below(3)),
            ..Default::default()
        })),
        resources: Some(pb::ResourceRequirements {
            reservations: Some(reservations),
            ..Default::default()
        }),
        restart: Some(restart),
        placement: Some(pb::Placement {
            constraints,
            preferences,
            max_replicas,
            ..Default::default()
        }),
        ..Default::default()
    };
    pb::ServiceSpec {
        annotations: Some(pb::Annotations {
            name: name.to_owned(),
            ..Default::default()
        }),
        task: Some(task),
        mode: Some(replicated(random.below(9))),
        update: Some(update_config(random, &actions, order)),
        // A failed rollback has nothing to go back to.
        rollback: Some(update_config(random, &actions[..2], order)),
        endpoint: Some(pb::EndpointSpec {
            ports,
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn host_port(published_port: u32) -> pb::PortConfig {
    pb::PortConfig {
        target_port: 80,
        published_port,
        publish_mode: pb::port_config::PublishMode::Host.into(),
        ..Default::default()
    }
}

/// So many replicas.
pub fn replicated(replicas: u64) -> pb::service_spec::Mode {
    pb::service_spec::Mode::Replicated(pb::ReplicatedService { replicas })
}

/// A spec that is valid.
pub fn parsed(spec: pb::ServiceSpec) -> Arc<ServiceSpec> {
    Arc::new(ServiceSpec::try_from(spec).expect("a valid spec"))
}

/// The service in a form that the nodes there are can run: nothing is fought for, nothing ends for
/// good. `number` is different for each service.
pub fn calmed(state: &State, mut spec: pb::ServiceSpec, number: u32) -> pb::ServiceSpec {
    let task = spec.task.get_or_insert_default();
    let placement = task.placement.get_or_insert_default();
    if invariants::suitable(state, &placement.constraints) == 0 {
        placement.constraints.clear();
    }
    let mut room = invariants::suitable(state, &placement.constraints);
    room = room.saturating_mul(match placement.max_replicas {
        0 => 6,
        max => max,
    });
    let reserved = task
        .resources
        .get_or_insert_default()
        .reservations
        .get_or_insert_default();
    if reserved.nano_cpus > CPU / 5
        || reserved.memory_bytes > 128 * MIB
        || !reserved.generic.is_empty()
    {
        // What old tasks hold may be what new ones wait for, and these are the ones to be updated
        // first: with all slots at once nobody waits for ever.
        spec.update.get_or_insert_default().parallelism = 0;
    }
    reserved.nano_cpus = reserved.nano_cpus.min(CPU / 5);
    reserved.memory_bytes = reserved.memory_bytes.min(128 * MIB);
    reserved.generic.clear();
    let ports = &mut spec.endpoint.get_or_insert_default().ports;
    if !ports.is_empty() {
        *ports = vec![host_port(8_000 + number)];
        room = room.min(invariants::suitable(state, &placement.constraints));
    }
    let restart = task.restart.get_or_insert_default();
    restart.condition = pb::restart_policy::RestartCondition::Any.into();
    restart.max_attempts = 0;
    let replicas = match &spec.mode {
        Some(pb::service_spec::Mode::Replicated(replicated)) => replicated.replicas,
        _ => 0,
    };
    spec.mode = Some(replicated(replicas.min(room).min(6)));
    spec
}
