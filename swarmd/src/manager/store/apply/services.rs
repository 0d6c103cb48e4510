//! Changes of services.

use std::sync::Arc;

use swarm_proto::id::ServiceId;
use swarm_proto::pb;
use swarm_proto::service::{Mode, ServiceSpec};
use swarm_proto::time::Timestamp;

use super::{At, Rejected, out_of_sequence, service};
use crate::manager::store::index::Txn;
use crate::manager::store::state::{Service, SpecVersion, Update};

pub(super) fn create_service(
    txn: &mut Txn<'_>,
    at: At,
    id: ServiceId,
    spec: &Arc<ServiceSpec>,
) -> Result<(), Rejected> {
    if txn.state.service_by_name(&spec.name).is_some() || txn.state.services.contains_key(&id) {
        return Err(Rejected::Exists {
            kind: "service",
            name: spec.name.clone(),
        });
    }
    txn.put_service(Service {
        id,
        meta: at.created(),
        spec: Arc::clone(spec),
        spec_version: at.version,
        previous: None,
        old_specs: std::collections::BTreeMap::new(),
        update: None,
        removed: false,
    });
    Ok(())
}

pub(super) fn update_service(
    txn: &mut Txn<'_>,
    at: At,
    id: ServiceId,
    expected: u64,
    spec: &Arc<ServiceSpec>,
) -> Result<(), Rejected> {
    let mut old = service(txn.state, id)?;
    if old.meta.version != expected {
        return Err(out_of_sequence("service", &old.spec.name));
    }
    let conflict = |reason: &str| Rejected::Conflict {
        kind: "service",
        name: old.spec.name.clone(),
        reason: reason.to_owned(),
    };
    if spec.name != old.spec.name {
        return Err(conflict(
            "renaming services is not supported; create another one",
        ));
    }
    if !same_kind(spec.mode, old.spec.mode) {
        return Err(conflict(
            "the mode of a service can't be changed; create another one",
        ));
    }
    old.previous = Some(SpecVersion {
        version: old.spec_version,
        spec: Arc::clone(&old.spec),
    });
    old.update = None;
    set_spec(txn, at, old, spec);
    Ok(())
}

pub(super) fn rollback_service(
    txn: &mut Txn<'_>,
    at: At,
    (id, expected): (ServiceId, u64),
    message: &str,
    swap: bool,
) -> Result<(), Rejected> {
    let mut old = service(txn.state, id)?;
    if old.meta.version != expected {
        return Err(out_of_sequence("service", &old.spec.name));
    }
    let Some(previous) = old.previous.clone() else {
        return Err(Rejected::Conflict {
            kind: "service",
            name: old.spec.name.clone(),
            reason: "does not have a previous spec to roll back to".to_owned(),
        });
    };
    let update = Update {
        state: pb::update_status::UpdateState::RollbackStarted,
        started_at: at.now,
        completed_at: Timestamp::ZERO,
        message: message.to_owned(),
    };
    old.previous = swap.then(|| SpecVersion {
        version: old.spec_version,
        spec: Arc::clone(&old.spec),
    });
    old.update = Some(update);
    set_spec(txn, at, old, &previous.spec);
    Ok(())
}

/// Gives a service another spec; keeps every older one that tasks refer to.
fn set_spec(txn: &mut Txn<'_>, at: At, old: Service, spec: &Arc<ServiceSpec>) {
    let mut service = old.clone();
    service.spec_version = version_of_template(&old, spec).unwrap_or(at.version);
    if service.spec_version != old.spec_version {
        if txn.state.spec_in_use(old.id, old.spec_version) {
            service
                .old_specs
                .insert(old.spec_version, Arc::clone(&old.spec));
        }
        service.old_specs.remove(&service.spec_version);
    }
    service.spec = Arc::clone(spec);
    service.meta = at.updated(old.meta);
    txn.put_service(service);
}

/// The version under which this task template is known already: tasks of it are up to date.
fn version_of_template(service: &Service, spec: &ServiceSpec) -> Option<u64> {
    let same = |other: &ServiceSpec| {
        other.wire.task == spec.wire.task && other.wire.endpoint == spec.wire.endpoint
    };
    if same(&service.spec) {
        return Some(service.spec_version);
    }
    let mut known = service
        .old_specs
        .iter()
        .map(|(version, spec)| (*version, spec));
    known
        .find(|(_, spec)| same(spec))
        .map(|(version, _)| version)
}

fn same_kind(a: Mode, b: Mode) -> bool {
    std::mem::discriminant(&a) == std::mem::discriminant(&b)
}
