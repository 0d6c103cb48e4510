//! Objects as storage records, and back.

use std::collections::BTreeMap;
use std::sync::Arc;

use swarm_proto::id::NodeId;
use swarm_proto::placement::Platform;
use swarm_proto::resources::{Resources, generic_to_wire};
use swarm_proto::time::Timestamp;
use swarm_proto::{own, pb};

use super::codec::{
    DecodeError, enum_of, generic_of, id_bytes, id_of, maybe_id_bytes, maybe_id_of, present,
    spec_of, state_of, state_wire,
};
use super::state::{
    Cluster, Container, Failure, Hold, ManagerNote, Meta, Node, NodeStatus, Retirement, Service,
    SpecVersion, Status, Task, Text, Update,
};

fn meta(meta: Meta) -> own::MetaRecord {
    own::MetaRecord {
        version: meta.version,
        created_at: meta.created_at.0,
        updated_at: meta.updated_at.0,
    }
}

fn meta_of(wire: Option<own::MetaRecord>) -> Meta {
    let wire = wire.unwrap_or_default();
    Meta {
        version: wire.version,
        created_at: Timestamp(wire.created_at),
        updated_at: Timestamp(wire.updated_at),
    }
}

pub(super) fn cluster(cluster: &Cluster) -> own::ClusterRecord {
    let refused = |(node, until): (&_, &Timestamp)| own::Refused {
        node: id_bytes::<swarm_proto::id::kind::Node>(*node),
        until: until.0,
    };
    own::ClusterRecord {
        id: id_bytes(cluster.id),
        meta: Some(meta(cluster.meta)),
        spec: Some(cluster.spec.clone()),
        root_ca: Some(cluster.root_ca.clone()),
        blacklist: cluster.blacklist.iter().map(refused).collect(),
        unlock_keys: cluster.unlock_keys.clone(),
        managers: cluster.managers.iter().map(manager).collect(),
    }
}

fn manager((node, note): (&NodeId, &ManagerNote)) -> own::ManagerRecord {
    own::ManagerRecord {
        node: id_bytes(*node),
        addresses: note.addresses.clone(),
        retired: note.retired.as_ref().map(retirement),
    }
}

pub(super) fn retirement(of: &Retirement) -> own::RetirementRecord {
    own::RetirementRecord {
        raft_id: of.raft_id,
        at: of.at.0,
        reason: of.reason.clone(),
        done: of.done,
        demoted: of.demoted,
    }
}

pub(super) fn retirement_of(wire: own::RetirementRecord) -> Retirement {
    Retirement {
        raft_id: wire.raft_id,
        at: Timestamp(wire.at),
        reason: wire.reason,
        done: wire.done,
        demoted: wire.demoted,
    }
}

pub(super) fn cluster_of(wire: own::ClusterRecord) -> Result<Cluster, DecodeError> {
    let mut blacklist = BTreeMap::new();
    for refused in wire.blacklist {
        blacklist.insert(
            id_of(&refused.node, "refused node")?,
            Timestamp(refused.until),
        );
    }
    let mut managers = BTreeMap::new();
    for manager in wire.managers {
        let note = ManagerNote {
            addresses: manager.addresses,
            retired: manager.retired.map(retirement_of),
        };
        managers.insert(id_of(&manager.node, "manager")?, note);
    }
    Ok(Cluster {
        id: id_of(&wire.id, "cluster")?,
        meta: meta_of(wire.meta),
        spec: wire.spec.unwrap_or_default(),
        root_ca: wire.root_ca.unwrap_or_default(),
        blacklist,
        unlock_keys: wire.unlock_keys,
        managers,
    })
}

pub(super) fn node(node: &Node) -> own::NodeRecord {
    let failure = |f: &Failure| own::FailureRecord {
        service: id_bytes(f.service),
        spec_version: f.spec_version,
        at: f.at.0,
    };
    own::NodeRecord {
        id: id_bytes(node.id),
        meta: Some(meta(node.meta)),
        spec: Some(pb::NodeSpec {
            annotations: Some(node.annotations.clone()),
            desired_role: node.desired_role.into(),
            membership: node.membership.into(),
            availability: node.availability.into(),
            // Kept in the cluster object.
            manager_addresses: Vec::new(),
        }),
        role: node.role.into(),
        certificate: Some(node.certificate.clone()),
        description: node.description.as_deref().cloned(),
        status: Some(pb::NodeStatus {
            state: node.status.state.into(),
            message: node.status.message.clone(),
            addr: node.status.addr.clone(),
        }),
        since: node.status.since.0,
        failures: node.failures.iter().map(failure).collect(),
    }
}

pub(super) fn node_of(wire: own::NodeRecord) -> Result<Node, DecodeError> {
    let spec = wire.spec.unwrap_or_default();
    let status = wire.status.unwrap_or_default();
    let description = wire.description.map(Arc::new);
    let described = description.as_deref();
    let failure = |f: own::FailureRecord| {
        let service = id_of(&f.service, "failure service")?;
        Ok(Failure {
            service,
            spec_version: f.spec_version,
            at: Timestamp(f.at),
        })
    };
    Ok(Node {
        id: id_of(&wire.id, "node")?,
        meta: meta_of(wire.meta),
        annotations: spec.annotations.unwrap_or_default(),
        desired_role: enum_of(spec.desired_role, "desired_role")?,
        membership: enum_of(spec.membership, "membership")?,
        availability: enum_of(spec.availability, "availability")?,
        role: enum_of(wire.role, "role")?,
        certificate: wire.certificate.unwrap_or_default(),
        resources: described
            .and_then(|d| d.resources.as_ref())
            .map(Resources::from_wire)
            .unwrap_or_default(),
        platform: described
            .and_then(|d| d.platform.as_ref())
            .map(Platform::from_wire)
            .unwrap_or_default(),
        status: NodeStatus {
            state: enum_of(status.state, "node state")?,
            message: status.message,
            addr: status.addr,
            since: Timestamp(wire.since),
        },
        failures: wire
            .failures
            .into_iter()
            .map(failure)
            .collect::<Result<_, DecodeError>>()?,
        description,
    })
}

fn spec_version(version: u64, spec: &swarm_proto::service::ServiceSpec) -> own::SpecRecord {
    own::SpecRecord {
        version,
        spec: Some(spec.wire.as_ref().clone()),
    }
}

pub(super) fn service(service: &Service) -> own::ServiceRecord {
    own::ServiceRecord {
        id: id_bytes(service.id),
        meta: Some(meta(service.meta)),
        spec: Some(spec_version(service.spec_version, &service.spec)),
        previous: service
            .previous
            .as_ref()
            .map(|p| spec_version(p.version, &p.spec)),
        old_specs: service
            .old_specs
            .iter()
            .map(|(v, s)| spec_version(*v, s))
            .collect(),
        update: service.update.as_ref().map(update),
        removed: service.removed,
    }
}

pub(super) fn service_of(wire: own::ServiceRecord) -> Result<Service, DecodeError> {
    let current = present(wire.spec, "spec")?;
    let previous = match wire.previous {
        Some(p) => Some(SpecVersion {
            version: p.version,
            spec: spec_of(p.spec, "previous")?,
        }),
        None => None,
    };
    let mut old_specs = BTreeMap::new();
    for old in wire.old_specs {
        old_specs.insert(old.version, spec_of(old.spec, "old_specs")?);
    }
    Ok(Service {
        id: id_of(&wire.id, "service")?,
        meta: meta_of(wire.meta),
        spec: spec_of(current.spec, "spec")?,
        spec_version: current.version,
        previous,
        old_specs,
        update: wire.update.map(update_of).transpose()?,
        removed: wire.removed,
    })
}

pub(super) fn update(update: &Update) -> own::UpdateRecord {
    own::UpdateRecord {
        state: update.state.into(),
        started_at: update.started_at.0,
        completed_at: update.completed_at.0,
        message: update.message.clone(),
    }
}

pub(super) fn update_of(wire: own::UpdateRecord) -> Result<Update, DecodeError> {
    Ok(Update {
        state: enum_of(wire.state, "update state")?,
        started_at: Timestamp(wire.started_at),
        completed_at: Timestamp(wire.completed_at),
        message: wire.message,
    })
}

pub(super) fn task(task: &Task) -> own::TaskRecord {
    own::TaskRecord {
        id: id_bytes(task.id),
        meta: Some(meta(task.meta)),
        service: id_bytes(task.service),
        slot: task.slot,
        spec_version: task.spec_version,
        node: maybe_id_bytes(task.node),
        desired: state_wire(task.desired),
        start_at: task.start_at().0,
        after: maybe_id_bytes(task.after()),
        generic: task
            .generic
            .as_deref()
            .map(generic_to_wire)
            .unwrap_or_default(),
        status: Some(status(&task.status)),
    }
}

pub(super) fn task_of(wire: own::TaskRecord) -> Result<Task, DecodeError> {
    let generic = generic_of(wire.generic);
    Ok(Task {
        id: id_of(&wire.id, "task")?,
        meta: meta_of(wire.meta),
        service: id_of(&wire.service, "service")?,
        slot: wire.slot,
        spec_version: wire.spec_version,
        node: maybe_id_of(&wire.node, "node")?,
        desired: state_of(wire.desired, "desired")?,
        hold: Hold::new(Timestamp(wire.start_at), maybe_id_of(&wire.after, "after")?),
        generic: (!generic.is_empty()).then(|| Box::new(generic)),
        status: status_of(wire.status.unwrap_or_default())?,
    })
}

fn status(status: &Status) -> own::StatusRecord {
    own::StatusRecord {
        state: state_wire(status.state),
        at: status.at.0,
        applied_at: status.applied_at.0,
        running_at: status.running_at.0,
        message: status.message.to_string(),
        err: status.err.to_string(),
        container: status.container.as_deref().map(container),
        evicted: status.evicted,
    }
}

pub(super) fn status_of(wire: own::StatusRecord) -> Result<Status, DecodeError> {
    Ok(Status {
        state: state_of(wire.state, "state")?,
        at: Timestamp(wire.at),
        applied_at: Timestamp(wire.applied_at),
        running_at: Timestamp(wire.running_at),
        message: Text::from(wire.message),
        err: Text::from(wire.err),
        container: wire.container.map(|c| Box::new(container_of(c))),
        evicted: wire.evicted,
    })
}

pub(super) fn container(container: &Container) -> own::ContainerRecord {
    own::ContainerRecord {
        id: container.id.to_string(),
        pid: container.pid,
        exit_code: container.exit_code,
        ports: container.ports.to_vec(),
    }
}

fn container_of(wire: own::ContainerRecord) -> Container {
    Container {
        id: wire.id.into(),
        pid: wire.pid,
        exit_code: wire.exit_code,
        ports: wire.ports.into(),
    }
}
