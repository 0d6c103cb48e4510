//! Log entries and objects as bytes: protobuf, so that an older or newer manager reads them.
//!
//! Encoding is total. Decoding refuses what it does not understand with the name of the field: a
//! manager that can't read its log must stop rather than diverge.

use std::sync::Arc;

use prost::Message as _;
use swarm_proto::id::{Id, TaskId};
use swarm_proto::resources::{Generic, generic_to_wire};
use swarm_proto::service::ServiceSpec;
use swarm_proto::task_state::TaskState;
use swarm_proto::time::Timestamp;
use swarm_proto::{own, pb};

use own::change::Kind;

use super::change::{Change, Entry, NewTask, Placement, Report};
use super::record::{self, cluster_of, node_of, status_of};
use super::state::Text;

/// Bytes that are no entry or object of ours.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Not protobuf, or cut short.
    #[error("not a valid message: {0}")]
    Malformed(String),
    /// A field is missing or has a value that this version does not know.
    #[error("{field}: {reason}; was this written by a newer version?")]
    Field {
        /// Which field.
        field: &'static str,
        /// What is wrong.
        reason: String,
    },
}

impl From<prost::DecodeError> for DecodeError {
    fn from(error: prost::DecodeError) -> Self {
        Self::Malformed(error.to_string())
    }
}

/// An entry as it goes into the log.
pub fn encode_entry(entry: &Entry) -> Vec<u8> {
    let changes = entry
        .changes
        .iter()
        .map(|c| own::Change {
            kind: Some(change(c)),
        })
        .collect();
    own::LogEntry {
        now: entry.now.0,
        changes,
    }
    .encode_to_vec()
}

/// An entry from the log.
///
/// # Errors
/// When the bytes are no entry that this version knows.
pub fn decode_entry(bytes: &[u8]) -> Result<Entry, DecodeError> {
    let wire = own::LogEntry::decode(bytes)?;
    let changes = wire
        .changes
        .into_iter()
        .map(change_of)
        .collect::<Result<_, _>>()?;
    Ok(Entry {
        now: Timestamp(wire.now),
        changes,
    })
}

pub(super) fn id_bytes<K>(id: Id<K>) -> Vec<u8> {
    id.to_bytes().to_vec()
}

pub(super) fn maybe_id_bytes<K>(id: Option<Id<K>>) -> Vec<u8> {
    id.map(id_bytes).unwrap_or_default()
}

pub(super) fn id_of<K>(bytes: &[u8], field: &'static str) -> Result<Id<K>, DecodeError> {
    let reason = || format!("an id has 16 bytes, not {}", bytes.len());
    Id::try_from(bytes).map_err(|_| DecodeError::Field {
        field,
        reason: reason(),
    })
}

pub(super) fn maybe_id_of<K>(
    bytes: &[u8],
    field: &'static str,
) -> Result<Option<Id<K>>, DecodeError> {
    if bytes.is_empty() {
        Ok(None)
    } else {
        id_of(bytes, field).map(Some)
    }
}

pub(super) fn state_of(wire: u32, field: &'static str) -> Result<TaskState, DecodeError> {
    let state = i32::try_from(wire).ok().and_then(TaskState::from_wire);
    state.ok_or_else(|| DecodeError::Field {
        field,
        reason: format!("unknown task state {wire}"),
    })
}

pub(super) fn state_wire(state: TaskState) -> u32 {
    u32::try_from(state.to_wire()).unwrap_or(0)
}

pub(super) fn enum_of<E: TryFrom<i32>>(wire: i32, field: &'static str) -> Result<E, DecodeError> {
    E::try_from(wire).map_err(|_| DecodeError::Field {
        field,
        reason: format!("unknown value {wire}"),
    })
}

pub(super) fn present<T>(value: Option<T>, field: &'static str) -> Result<T, DecodeError> {
    value.ok_or_else(|| DecodeError::Field {
        field,
        reason: "is missing".to_owned(),
    })
}

pub(super) fn spec_of(
    wire: Option<pb::ServiceSpec>,
    field: &'static str,
) -> Result<Arc<ServiceSpec>, DecodeError> {
    Ok(Arc::new(ServiceSpec::accepted(present(wire, field)?)))
}

pub(super) fn generic_of(
    wire: Vec<pb::GenericResource>,
) -> std::collections::BTreeMap<String, Generic> {
    let wire = pb::Resources {
        generic: wire,
        ..pb::Resources::default()
    };
    swarm_proto::resources::Resources::from_wire(&wire).generic
}

fn ids(tasks: &[TaskId]) -> Vec<Vec<u8>> {
    tasks.iter().map(|id| id_bytes(*id)).collect()
}

fn ids_of(wire: &[Vec<u8>]) -> Result<Vec<TaskId>, DecodeError> {
    wire.iter().map(|id| id_of(id, "task")).collect()
}

#[expect(clippy::too_many_lines, reason = "one arm a change")]
fn change(change: &Change) -> Kind {
    match change {
        Change::CreateCluster(c) => Kind::CreateCluster(record::cluster(c)),
        Change::UpdateCluster(c) => Kind::UpdateCluster(record::cluster(c)),
        Change::CreateNode(n) => Kind::CreateNode(record::node(n)),
        Change::UpdateNode {
            id,
            expected,
            annotations,
            desired_role,
            membership,
            availability,
            addresses,
            give_up,
        } => Kind::UpdateNode(own::UpdateNode {
            id: id_bytes(*id),
            expected: *expected,
            spec: Some(pb::NodeSpec {
                annotations: Some(annotations.clone()),
                desired_role: (*desired_role).into(),
                membership: (*membership).into(),
                availability: (*availability).into(),
                manager_addresses: addresses.clone(),
            }),
            give_up: give_up
                .iter()
                .map(|(node, retirement)| own::SetRetirement {
                    node: id_bytes(*node),
                    retirement: Some(record::retirement(retirement)),
                })
                .collect(),
        }),
        Change::SetRetirement { node, retirement } => Kind::SetRetirement(own::SetRetirement {
            node: id_bytes(*node),
            retirement: retirement.as_ref().map(record::retirement),
        }),
        Change::SetNodeCertificate {
            id,
            role,
            certificate,
        } => Kind::SetNodeCertificate(own::SetNodeCertificate {
            id: id_bytes(*id),
            role: (*role).into(),
            certificate: Some(certificate.as_ref().clone()),
        }),
        Change::AskRenewal { nodes } => Kind::AskRenewal(own::AskRenewal {
            nodes: nodes.iter().map(|id| id_bytes(*id)).collect(),
        }),
        Change::SetNodeStatus {
            id,
            state,
            message,
            addr,
            description,
        } => Kind::SetNodeStatus(own::SetNodeStatus {
            id: id_bytes(*id),
            state: (*state).into(),
            message: message.clone(),
            addr: addr.clone(),
            description: description.as_deref().cloned(),
        }),
        Change::RemoveNode {
            id,
            force,
            refused_until,
        } => Kind::RemoveNode(own::RemoveNode {
            id: id_bytes(*id),
            force: *force,
            refused_until: refused_until.0,
        }),
        Change::CreateService { id, spec } => Kind::CreateService(put_service(*id, 0, spec)),
        Change::UpdateService { id, expected, spec } => {
            Kind::UpdateService(put_service(*id, *expected, spec))
        }
        Change::RollbackService {
            id,
            expected,
            message,
            swap,
        } => Kind::RollbackService(own::RollbackService {
            id: id_bytes(*id),
            expected: *expected,
            message: message.clone(),
            swap: *swap,
        }),
        Change::RemoveService { id } => {
            Kind::RemoveService(own::RemoveService { id: id_bytes(*id) })
        }
        Change::SetUpdate {
            id,
            spec_version,
            update,
        } => Kind::SetUpdate(own::SetUpdate {
            id: id_bytes(*id),
            spec_version: *spec_version,
            update: Some(record::update(update)),
        }),
        Change::CreateTasks {
            service,
            spec_version,
            tasks,
        } => Kind::CreateTasks(own::CreateTasks {
            service: id_bytes(*service),
            spec_version: *spec_version,
            tasks: tasks.iter().map(new_task).collect(),
        }),
        Change::PlaceTasks {
            placements,
            message,
        } => Kind::PlaceTasks(own::PlaceTasks {
            placements: placements.iter().map(placement).collect(),
            message: message.to_string(),
        }),
        Change::ExplainTasks { tasks, err } => Kind::ExplainTasks(own::ExplainTasks {
            tasks: ids(tasks),
            err: err.to_string(),
        }),
        Change::SetDesired { tasks, desired } => Kind::SetDesired(own::SetDesired {
            tasks: ids(tasks),
            desired: state_wire(*desired),
        }),
        Change::EndTasks {
            tasks,
            state,
            message,
            err,
        } => Kind::EndTasks(own::EndTasks {
            tasks: ids(tasks),
            state: state_wire(*state),
            message: message.to_string(),
            err: err.to_string(),
        }),
        Change::OrphanTasks { tasks, message } => Kind::OrphanTasks(own::OrphanTasks {
            tasks: ids(tasks),
            message: message.to_string(),
        }),
        Change::ReportStatus { node, reports } => Kind::ReportStatus(own::ReportStatus {
            node: id_bytes(*node),
            reports: reports.iter().map(report).collect(),
        }),
        Change::DeleteTasks { tasks } => Kind::DeleteTasks(own::DeleteTasks { tasks: ids(tasks) }),
    }
}

fn put_service<K>(id: Id<K>, expected: u64, spec: &ServiceSpec) -> own::PutService {
    own::PutService {
        id: id_bytes(id),
        expected,
        spec: Some(spec.wire.as_ref().clone()),
    }
}

fn new_task(task: &NewTask) -> own::NewTask {
    own::NewTask {
        id: id_bytes(task.id),
        slot: task.slot,
        desired: state_wire(task.desired),
        node: maybe_id_bytes(task.node),
        start_at: task.start_at.0,
        after: maybe_id_bytes(task.after),
        generic: generic_to_wire(&task.generic),
    }
}

fn new_task_of(wire: &own::NewTask) -> Result<NewTask, DecodeError> {
    Ok(NewTask {
        id: id_of(&wire.id, "task")?,
        slot: wire.slot,
        desired: state_of(wire.desired, "desired")?,
        node: maybe_id_of(&wire.node, "node")?,
        start_at: Timestamp(wire.start_at),
        after: maybe_id_of(&wire.after, "after")?,
        generic: generic_of(wire.generic.clone()),
    })
}

fn placement(placement: &Placement) -> own::Placement {
    own::Placement {
        task: id_bytes(placement.task),
        node: id_bytes(placement.node),
        generic: generic_to_wire(&placement.generic),
    }
}

fn placement_of(wire: own::Placement) -> Result<Placement, DecodeError> {
    Ok(Placement {
        task: id_of(&wire.task, "task")?,
        node: id_of(&wire.node, "node")?,
        generic: generic_of(wire.generic),
    })
}

fn report(report: &Report) -> own::Report {
    let status = own::StatusRecord {
        state: state_wire(report.state),
        at: report.at.0,
        applied_at: 0,
        running_at: 0,
        message: report.message.to_string(),
        err: report.err.to_string(),
        container: report.container.as_deref().map(record::container),
        evicted: false,
    };
    own::Report {
        task: id_bytes(report.task),
        status: Some(status),
    }
}

fn report_of(wire: own::Report) -> Result<Report, DecodeError> {
    let status = status_of(present(wire.status, "status")?)?;
    Ok(Report {
        task: id_of(&wire.task, "task")?,
        state: status.state,
        at: status.at,
        message: status.message,
        err: status.err,
        container: status.container,
    })
}

#[expect(clippy::too_many_lines, reason = "one arm a change")]
fn change_of(wire: own::Change) -> Result<Change, DecodeError> {
    Ok(match present(wire.kind, "change")? {
        Kind::CreateCluster(c) => Change::CreateCluster(Arc::new(cluster_of(c)?)),
        Kind::UpdateCluster(c) => Change::UpdateCluster(Arc::new(cluster_of(c)?)),
        Kind::CreateNode(n) => Change::CreateNode(Arc::new(node_of(n)?)),
        Kind::UpdateNode(u) => {
            let spec = present(u.spec, "node spec")?;
            let mut give_up = Vec::new();
            for one in u.give_up {
                let retirement = present(one.retirement, "retirement")?;
                give_up.push((id_of(&one.node, "node")?, record::retirement_of(retirement)));
            }
            Change::UpdateNode {
                give_up,
                id: id_of(&u.id, "node")?,
                expected: u.expected,
                desired_role: enum_of(spec.desired_role, "desired_role")?,
                membership: enum_of(spec.membership, "membership")?,
                availability: enum_of(spec.availability, "availability")?,
                annotations: spec.annotations.unwrap_or_default(),
                addresses: spec.manager_addresses,
            }
        }
        Kind::SetRetirement(s) => Change::SetRetirement {
            node: id_of(&s.node, "node")?,
            retirement: s.retirement.map(record::retirement_of),
        },
        Kind::SetNodeCertificate(s) => Change::SetNodeCertificate {
            id: id_of(&s.id, "node")?,
            role: enum_of(s.role, "role")?,
            certificate: Box::new(present(s.certificate, "certificate")?),
        },
        Kind::AskRenewal(a) => Change::AskRenewal {
            nodes: a
                .nodes
                .iter()
                .map(|id| id_of(id, "node"))
                .collect::<Result<_, _>>()?,
        },
        Kind::SetNodeStatus(s) => Change::SetNodeStatus {
            id: id_of(&s.id, "node")?,
            state: enum_of(s.state, "state")?,
            message: s.message,
            addr: s.addr,
            description: s.description.map(Arc::new),
        },
        Kind::RemoveNode(r) => Change::RemoveNode {
            id: id_of(&r.id, "node")?,
            force: r.force,
            refused_until: Timestamp(r.refused_until),
        },
        Kind::CreateService(p) => Change::CreateService {
            id: id_of(&p.id, "service")?,
            spec: spec_of(p.spec, "spec")?,
        },
        Kind::UpdateService(p) => Change::UpdateService {
            id: id_of(&p.id, "service")?,
            expected: p.expected,
            spec: spec_of(p.spec, "spec")?,
        },
        Kind::RollbackService(r) => Change::RollbackService {
            id: id_of(&r.id, "service")?,
            expected: r.expected,
            message: r.message,
            swap: r.swap,
        },
        Kind::RemoveService(r) => Change::RemoveService {
            id: id_of(&r.id, "service")?,
        },
        Kind::SetUpdate(s) => Change::SetUpdate {
            id: id_of(&s.id, "service")?,
            spec_version: s.spec_version,
            update: record::update_of(present(s.update, "update")?)?,
        },
        Kind::CreateTasks(c) => Change::CreateTasks {
            service: id_of(&c.service, "service")?,
            spec_version: c.spec_version,
            tasks: c.tasks.iter().map(new_task_of).collect::<Result<_, _>>()?,
        },
        Kind::PlaceTasks(p) => Change::PlaceTasks {
            placements: p
                .placements
                .into_iter()
                .map(placement_of)
                .collect::<Result<_, _>>()?,
            message: Text::from(p.message),
        },
        Kind::ExplainTasks(e) => Change::ExplainTasks {
            tasks: ids_of(&e.tasks)?,
            err: Text::from(e.err),
        },
        Kind::SetDesired(s) => Change::SetDesired {
            tasks: ids_of(&s.tasks)?,
            desired: state_of(s.desired, "desired")?,
        },
        Kind::EndTasks(e) => Change::EndTasks {
            tasks: ids_of(&e.tasks)?,
            state: state_of(e.state, "state")?,
            message: Text::from(e.message),
            err: Text::from(e.err),
        },
        Kind::OrphanTasks(o) => Change::OrphanTasks {
            tasks: ids_of(&o.tasks)?,
            message: Text::from(o.message),
        },
        Kind::DeleteTasks(d) => Change::DeleteTasks {
            tasks: ids_of(&d.tasks)?,
        },
        Kind::ReportStatus(r) => Change::ReportStatus {
            node: id_of(&r.node, "node")?,
            reports: r
                .reports
                .into_iter()
                .map(report_of)
                .collect::<Result<_, _>>()?,
        },
    })
}
