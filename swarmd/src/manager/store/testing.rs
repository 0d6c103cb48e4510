//! Random logs over a small world, for properties of apply, codec and snapshots.

use std::collections::BTreeMap;
use std::sync::Arc;

use proptest::prelude::*;
use swarm_proto::id::{NodeId, ServiceId, TaskId};
use swarm_proto::pb;
use swarm_proto::resources::Generic;
use swarm_proto::service::ServiceSpec;
use swarm_proto::task_state::TaskState;
use swarm_proto::time::Timestamp;

use super::{Change, Entry, NewTask, Node, NodeStatus, Placement, Report, State, Text, apply};

/// A valid spec; different templates for different numbers.
pub(crate) fn spec(name: u8, template: u8, replicas: u64) -> Arc<ServiceSpec> {
    let container = pb::ContainerSpec {
        image: format!("web:{template}"),
        ..Default::default()
    };
    let reservations = pb::Resources {
        nano_cpus: 100_000_000,
        ..Default::default()
    };
    let wire = pb::ServiceSpec {
        annotations: Some(pb::Annotations {
            name: format!("s{name}"),
            ..Default::default()
        }),
        task: Some(pb::TaskSpec {
            runtime: Some(pb::task_spec::Runtime::Container(container)),
            resources: Some(pb::ResourceRequirements {
                reservations: Some(reservations),
                ..Default::default()
            }),
            ..Default::default()
        }),
        mode: Some(pb::service_spec::Mode::Replicated(pb::ReplicatedService {
            replicas,
        })),
        ..Default::default()
    };
    Arc::new(ServiceSpec::try_from(wire).unwrap())
}

/// A READY, ACTIVE node.
pub(crate) fn node(id: u8) -> Node {
    let mut node = new_node(NodeId::from_raw(u128::from(id)));
    node.status.state = pb::node_status::State::Ready;
    node
}

/// An ACTIVE node before its first session.
pub(crate) fn new_node(id: NodeId) -> Node {
    Node {
        id,
        meta: super::Meta::default(),
        annotations: pb::Annotations::default(),
        desired_role: pb::NodeRole::Worker,
        membership: pb::node_spec::Membership::Accepted,
        availability: pb::node_spec::Availability::Active,
        role: pb::NodeRole::Worker,
        certificate: pb::Certificate::default(),
        description: None,
        resources: swarm_proto::resources::Resources::default(),
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

/// Applies a log to a state.
pub(crate) fn run(mut state: State, log: &[Entry]) -> State {
    for entry in log {
        let version = state.version + 1;
        apply(&mut state, version, entry);
    }
    state
}

/// Logs that make sense now and then, and must do no harm otherwise.
pub(crate) fn entries() -> impl Strategy<Value = Vec<Entry>> {
    let changes = proptest::collection::vec(change(), 1..4);
    let entry = (1i64..1_000_000_000_000, changes);
    let entry = entry.prop_map(|(now, changes)| Entry {
        now: Timestamp(now),
        changes,
    });
    proptest::collection::vec(entry, 0..60)
}

fn task() -> impl Strategy<Value = TaskId> {
    (0u128..12).prop_map(TaskId::from_raw)
}

fn node_id() -> impl Strategy<Value = NodeId> {
    (0u128..3).prop_map(NodeId::from_raw)
}

fn service() -> impl Strategy<Value = ServiceId> {
    (0u128..3).prop_map(ServiceId::from_raw)
}

fn state() -> impl Strategy<Value = TaskState> {
    proptest::sample::select(TaskState::ALL.to_vec())
}

/// Given to tasks without regard to what a node has, as by a node that changed under them.
fn generic() -> impl Strategy<Value = BTreeMap<String, Generic>> {
    let names = proptest::collection::btree_set("[a-c]", 1..3);
    let amount = prop_oneof![
        (1u64..3).prop_map(Generic::Count),
        names.prop_map(Generic::Names),
    ];
    proptest::collection::btree_map(Just("gpu".to_owned()), amount, 0..2)
}

fn report() -> impl Strategy<Value = Report> {
    (task(), state()).prop_map(|(task, state)| Report {
        task,
        state,
        at: Timestamp(5),
        message: Text::from("reported"),
        err: Text::default(),
        container: None,
    })
}

fn change() -> impl Strategy<Value = Change> {
    let spec = || (0u8..3, 0u8..3, 0u64..4).prop_map(|(n, t, r)| spec(n, t, r));
    let on = proptest::option::of(node_id());
    let new_task = (task(), 1u64..4, state(), on, generic());
    let new_task = new_task.prop_map(|(id, slot, desired, node, generic)| NewTask {
        id,
        slot,
        desired,
        node,
        start_at: Timestamp::ZERO,
        after: None,
        generic,
    });
    let place = (task(), node_id(), generic());
    let place = place.prop_map(|(task, node, generic)| Placement {
        task,
        node,
        generic,
    });
    let tasks = || proptest::collection::vec(task(), 0..4);
    prop_oneof![
        (0u8..3).prop_map(|id| Change::CreateNode(Arc::new(node(id)))),
        node_id().prop_map(|id| Change::RemoveNode {
            id,
            force: true,
            refused_until: Timestamp::MAX
        }),
        (service(), spec()).prop_map(|(id, spec)| Change::CreateService { id, spec }),
        (service(), 0u64..60, spec()).prop_map(|(id, expected, spec)| Change::UpdateService {
            id,
            expected,
            spec
        }),
        (service(), 0u64..60, any::<bool>()).prop_map(|(id, expected, swap)| {
            Change::RollbackService {
                id,
                expected,
                message: "back".to_owned(),
                swap,
            }
        }),
        service().prop_map(|id| Change::RemoveService { id }),
        (
            service(),
            0u64..60,
            proptest::collection::vec(new_task, 0..4)
        )
            .prop_map(|(service, spec_version, tasks)| Change::CreateTasks {
                service,
                spec_version,
                tasks
            }),
        proptest::collection::vec(place, 0..4).prop_map(|placements| Change::PlaceTasks {
            placements,
            message: Text::from("placed")
        }),
        (tasks(), state()).prop_map(|(tasks, desired)| Change::SetDesired { tasks, desired }),
        (tasks(), state()).prop_map(|(tasks, state)| Change::EndTasks {
            tasks,
            state,
            message: Text::from("ended"),
            err: Text::default()
        }),
        tasks().prop_map(|tasks| Change::DeleteTasks { tasks }),
        (node_id(), proptest::collection::vec(report(), 0..4))
            .prop_map(|(node, reports)| Change::ReportStatus { node, reports }),
    ]
}
