//! Services: create, read, update, roll back, remove, and how far each is.

use std::sync::Arc;

use swarm_proto::id::ServiceId;
use swarm_proto::pb;
use swarm_proto::service::{Mode, ServiceSpec};
use swarm_proto::task_state::TaskState;

use super::error::Error;
use super::filter::{Common, any_of};
use super::{ControlApi, image, required, support, version_of};
use crate::manager::store::{Change, Service, State};
use crate::manager::{convert, random_id};

use pb::update_service_request::Rollback;

impl ControlApi {
    pub(super) async fn create(
        &self,
        request: pb::CreateServiceRequest,
    ) -> Result<pb::CreateServiceResponse, Error> {
        let mut spec = support::parse(required(request.spec, "spec")?)?;
        let mut warnings = Vec::new();
        if request.resolve_image {
            (spec, warnings) = self.resolve_image(spec).await?;
        }
        let id = ServiceId::from_raw(random_id());
        self.write(Change::CreateService {
            id,
            spec: Arc::new(spec),
        })
        .await?;
        Ok(pb::CreateServiceResponse {
            service: Some(self.service_wire(&self.store.view(), id)?),
            warnings,
        })
    }

    pub(super) async fn get(
        &self,
        request: &pb::GetServiceRequest,
    ) -> Result<pb::GetServiceResponse, Error> {
        let id = parse(&request.service_id)?;
        let mut service = self.service_wire(&self.store.read().await?, id)?;
        if request.insert_defaults
            && let Some(spec) = service.spec.take()
        {
            service.spec = Some(ServiceSpec::try_from(spec)?.insert_defaults());
        }
        Ok(pb::GetServiceResponse {
            service: Some(service),
        })
    }

    pub(super) async fn update(
        &self,
        request: pb::UpdateServiceRequest,
    ) -> Result<pb::UpdateServiceResponse, Error> {
        let id = parse(&request.service_id)?;
        let expected = version_of(request.service_version.as_ref())?;
        let rollback = Rollback::try_from(request.rollback).map_err(|_| {
            Error::InvalidArgument(format!("unknown rollback value {}", request.rollback))
        })?;
        let mut warnings = Vec::new();
        let change = match rollback {
            Rollback::Previous => {
                let message = "manually requested rollback".to_owned();
                Change::RollbackService {
                    id,
                    expected,
                    message,
                    swap: true,
                }
            }
            Rollback::None => {
                let mut wire = required(request.spec, "spec")?;
                let view = self.store.view();
                let stored = view.service(id).map(|service| &service.spec.wire);
                if let Some(stored) = stored {
                    image::keep_credentials(&mut wire, stored);
                }
                let mut spec = support::parse(wire)?;
                let is_new = stored
                    .is_none_or(|stored| image::image_of(stored) != image::image_of(&spec.wire));
                if request.resolve_image && is_new {
                    (spec, warnings) = self.resolve_image(spec).await?;
                }
                Change::UpdateService {
                    id,
                    expected,
                    spec: Arc::new(spec),
                }
            }
        };
        self.write(change).await?;
        Ok(pb::UpdateServiceResponse {
            service: Some(self.service_wire(&self.store.view(), id)?),
            warnings,
        })
    }

    pub(super) async fn remove(
        &self,
        request: pb::RemoveServiceRequest,
    ) -> Result<pb::RemoveServiceResponse, Error> {
        let id = parse(&request.service_id)?;
        self.write(Change::RemoveService { id }).await?;
        Ok(pb::RemoveServiceResponse {})
    }

    pub(super) async fn list(
        &self,
        request: pb::ListServicesRequest,
    ) -> Result<pb::ListServicesResponse, Error> {
        let state = self.store.read().await?;
        let filters = request.filters.unwrap_or_default();
        let common = Common {
            names: &filters.names,
            name_prefixes: &filters.name_prefixes,
            id_prefixes: &filters.id_prefixes,
            labels: Some(&filters.labels),
        };
        let runtimes = &filters.runtimes;
        let pass = |s: &&Arc<Service>| {
            let labels = s.spec.wire.annotations.as_ref().map(|a| &a.labels);
            let none = std::collections::BTreeMap::new();
            !s.removed
                && common.pass(&s.id, &s.spec.name, labels.unwrap_or(&none))
                && any_of(runtimes, |r| r == "container")
        };
        let services = state.services.values().filter(pass);
        let services = services.map(|s| convert::service_to_wire(s)).collect();
        Ok(pb::ListServicesResponse { services })
    }

    pub(super) async fn statuses(
        &self,
        request: &pb::ListServiceStatusesRequest,
    ) -> Result<pb::ListServiceStatusesResponse, Error> {
        let state = self.store.read().await?;
        let statuses = request
            .services
            .iter()
            .map(|text| status(&state, text))
            .collect();
        Ok(pb::ListServiceStatusesResponse { statuses })
    }

    /// From a state that holds what the caller may have seen: after a barrier, or after its own write, which is applied here
    /// by then. A barrier after a write could fail, and the answer would be that of a write that failed.
    fn service_wire(&self, state: &State, id: ServiceId) -> Result<pb::Service, Error> {
        let service = state.service(id).ok_or_else(|| Error::NotFound {
            kind: "service",
            name: id.to_string(),
        })?;
        Ok(convert::service_to_wire(service))
    }
}

fn parse(text: &str) -> Result<ServiceId, Error> {
    text.parse().map_err(|e| Error::no_such(&e))
}

/// How far a service is; zeros for one that is not there, as in SwarmKit.
fn status(state: &State, text: &str) -> pb::list_service_statuses_response::ServiceStatus {
    let mut status = pb::list_service_statuses_response::ServiceStatus {
        service_id: text.to_owned(),
        ..Default::default()
    };
    let service = text.parse().ok().and_then(|id| state.service(id));
    let Some(service) = service else {
        return status;
    };
    let mut live: u64 = 0;
    for task in state.service_tasks(service.id) {
        if task.desired > TaskState::Complete {
            continue;
        }
        live += 1;
        let node = task.node.and_then(|n| state.nodes.get(&n));
        let there = node.is_some_and(|n| n.status.state != pb::node_status::State::Down);
        if task.status.state == TaskState::Running && there {
            status.running_tasks += 1;
        }
        if task.status.state == TaskState::Complete {
            status.completed_tasks += 1;
        }
    }
    status.desired_tasks = match service.spec.mode {
        Mode::Replicated { replicas } => replicas,
        Mode::ReplicatedJob {
            max_concurrent,
            total_completions,
        } => {
            let rest = total_completions.saturating_sub(status.completed_tasks);
            if max_concurrent == 0 {
                rest
            } else {
                rest.min(max_concurrent)
            }
        }
        Mode::Global | Mode::GlobalJob => live,
    };
    status
}
