//! `swarmctl service inspect`.

use swarm_proto::pb;
use swarm_proto::pb::list_service_statuses_response::ServiceStatus;

use super::super::session::{Failures, Session};
use super::super::task::{self, ports_text};
use super::list::{mode, ports, replicas};
use super::spec::{rollout, spec_details};
use crate::cli::InspectService;
use crate::error::Error;
use crate::render::inspect::Details;
use crate::render::show::Format;
use crate::render::{json, time};
use crate::resolve::{self, service_name};

pub(super) async fn run(
    session: &mut Session<'_>,
    flags: &InspectService,
    format: &Format,
) -> Result<(), Error> {
    let mut failures = Failures::default();
    let mut services = Vec::new();
    for name in &flags.services {
        services.extend(failures.note(resolve::service(&mut session.client, name).await));
    }
    let value = |service: &pb::Service| json::value("docker.swarmkit.v1.Service", service);
    if !session.print_values(format, services.iter().map(value))? {
        for (index, service) in services.iter().enumerate() {
            if index > 0 {
                session.print(&[String::new()])?;
            }
            one(session, service, flags).await?;
        }
    }
    failures.end()
}

async fn one(
    session: &mut Session<'_>,
    service: &pb::Service,
    flags: &InspectService,
) -> Result<(), Error> {
    let statuses = session
        .client
        .service_statuses(vec![service.id.clone()])
        .await?;
    let status = statuses
        .into_iter()
        .find(|status| status.service_id == service.id);
    let mut lines = details(service, &status.unwrap_or_default()).lines();
    let service_ids = vec![service.id.clone()];
    let filters = pb::list_tasks_request::Filters {
        service_ids,
        ..Default::default()
    };
    let kept = if flags.all {
        task::Kept::All
    } else {
        task::Kept::Wanted
    };
    lines.extend(task::below(session, filters, kept, flags.showing.no_trunc).await?);
    session.print(&lines)
}

fn details(service: &pb::Service, status: &ServiceStatus) -> Details {
    let mut details = Details::default();
    details.put("ID", service.id.as_str());
    details.put("Name", service_name(service));
    let spec = service.spec.clone().unwrap_or_default();
    if let Some(annotations) = &spec.annotations {
        details.map("Labels", &annotations.labels);
    }
    details.put("Mode", mode(service));
    details.put("Replicas", replicas(service, status));
    if let Some(update) = &service.update_status {
        details.section("Update Status", |details| {
            details.put("State", update.state().as_str_name());
            details.put("Started", time::rfc3339(update.started_at.as_ref()));
            details.put("Completed", time::rfc3339(update.completed_at.as_ref()));
            details.put("Message", update.message.as_str());
        });
    }
    if let Some(task) = &spec.task {
        spec_details(&mut details, "Template", task);
    }
    rollout(&mut details, "Update", spec.update.as_ref());
    rollout(&mut details, "Rollback", spec.rollback.as_ref());
    if let Some(endpoint) = &spec.endpoint {
        details.put(
            "Endpoint mode",
            endpoint.mode().as_str_name().to_lowercase(),
        );
    }
    details.put("Ports", ports_text(ports(service)));
    if let Some(endpoint) = &service.endpoint {
        let addresses: Vec<&str> = endpoint
            .virtual_ips
            .iter()
            .map(|ip| ip.addr.as_str())
            .collect();
        details.put("Virtual IPs", addresses.join(", "));
    }
    details
}
