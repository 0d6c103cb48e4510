//! `swarmctl service ls`.

use std::collections::BTreeMap;

use swarm_proto::pb;
use swarm_proto::pb::list_service_statuses_response::ServiceStatus;
use swarm_proto::pb::list_services_request::Filters as WireFilters;
use swarm_proto::pb::service_spec::Mode;
use swarm_proto::reference::without_digest;

use super::super::session::Session;
use super::super::task::ports_text;
use crate::cli::Listing;
use crate::error::Error;
use crate::render::list::{Column, Cut, Filters, Format, Row, render};
use crate::resolve::service_name;
use crate::spec::{KEY_VALUE, Problems};

const COLUMNS: &[Column] = &[
    Column::new("ID", "ID", Cut::Id),
    Column::new("Name", "Name", Cut::Never),
    Column::new("Mode", "Mode", Cut::Never),
    Column::new("Image", "Image", Cut::Never),
    Column::new("Replicas", "Replicas", Cut::Never),
    Column::new("Ports", "Ports", Cut::Never),
];

/// A checked command line.
pub(super) struct List {
    listing: Listing,
    format: Format,
    wire: WireFilters,
    filters: Filters,
    modes: Vec<&'static str>,
}

impl List {
    pub(super) fn check(listing: &Listing) -> Result<Self, Error> {
        let filters = Filters::parse(listing, &["id", "name", "label", "mode"])?;
        let mut problems = Problems::default();
        let labels = problems.each("--filter", filters.values("label"), &KEY_VALUE);
        let wire = WireFilters {
            id_prefixes: filters.values("id").to_vec(),
            name_prefixes: filters.values("name").to_vec(),
            labels: labels.into_iter().collect(),
            ..Default::default()
        };
        let modes =
            ["replicated", "global", "replicated-job", "global-job"].map(|mode| (mode, mode));
        let modes = filters.choices("mode", &modes)?;
        problems.unless_any(())?;
        Ok(Self {
            listing: listing.clone(),
            format: Format::of(listing)?,
            wire,
            filters,
            modes,
        })
    }

    pub(super) async fn run(self, session: &mut Session<'_>) -> Result<(), Error> {
        let mut services = session.client.list_services(self.wire).await?;
        services.retain(|service| {
            self.filters
                .allow("mode", |_| self.modes.contains(&mode(service)))
        });
        services.sort_by_key(|service| (service_name(service), service.id.clone()));
        let ids: Vec<String> = services.iter().map(|service| service.id.clone()).collect();
        let statuses = match self.format {
            Format::Ids => Vec::new(),
            _ if ids.is_empty() => Vec::new(),
            Format::Table | Format::Json | Format::Template(_) | Format::TemplateTable(_) => {
                session.client.service_statuses(ids).await?
            }
        };
        let statuses: BTreeMap<String, ServiceStatus> = statuses
            .into_iter()
            .map(|status| (status.service_id.clone(), status))
            .collect();
        let none = ServiceStatus::default();
        let rows: Vec<Row> = services
            .iter()
            .map(|service| row(service, statuses.get(&service.id).unwrap_or(&none)))
            .collect();
        let colour = session.colour();
        let lines = render(&self.format, COLUMNS, &rows, (&self.listing, colour))?;
        session.print(&lines)
    }
}

/// The mode's name as the flag takes it.
pub(super) fn mode(service: &pb::Service) -> &'static str {
    match service.spec.as_ref().and_then(|spec| spec.mode.as_ref()) {
        Some(Mode::Replicated(_)) | None => "replicated",
        Some(Mode::Global(_)) => "global",
        Some(Mode::ReplicatedJob(_)) => "replicated-job",
        Some(Mode::GlobalJob(_)) => "global-job",
    }
}

/// `3/5`; for jobs what has completed too; with the limit for one node where there is one.
pub(super) fn replicas(service: &pb::Service, status: &ServiceStatus) -> String {
    let spec = service.spec.as_ref();
    let counts = format!("{}/{}", status.running_tasks, status.desired_tasks);
    let most = spec.and_then(|spec| Some(spec.task.as_ref()?.placement.as_ref()?.max_replicas));
    let limit = match most.unwrap_or(0) {
        0 => String::new(),
        most => format!(" (max {most} per node)"),
    };
    match spec.and_then(|spec| spec.mode.as_ref()) {
        Some(Mode::ReplicatedJob(job)) => {
            format!(
                "{counts} ({}/{} completed)",
                status.completed_tasks, job.total_completions
            )
        }
        Some(Mode::GlobalJob(_)) => format!("{counts} ({} completed)", status.completed_tasks),
        Some(Mode::Replicated(_) | Mode::Global(_)) | None => format!("{counts}{limit}"),
    }
}

/// The ports the manager has given, else those that are asked for.
pub(super) fn ports(service: &pb::Service) -> &[pb::PortConfig] {
    let given = service
        .endpoint
        .as_ref()
        .map(|endpoint| endpoint.ports.as_slice());
    let asked = service
        .spec
        .as_ref()
        .and_then(|spec| spec.endpoint.as_ref());
    match given {
        Some(given) if !given.is_empty() => given,
        Some(_) | None => asked
            .map(|endpoint| endpoint.ports.as_slice())
            .unwrap_or_default(),
    }
}

fn row(service: &pb::Service, status: &ServiceStatus) -> Row {
    let runtime = service
        .spec
        .as_ref()
        .and_then(|spec| spec.task.as_ref()?.runtime.as_ref());
    let image = match runtime {
        Some(pb::task_spec::Runtime::Container(container)) => container.image.as_str(),
        Some(pb::task_spec::Runtime::Attachment(_) | pb::task_spec::Runtime::Generic(_)) | None => {
            ""
        }
    };
    let update = service
        .update_status
        .as_ref()
        .map(|status| status.state().as_str_name());
    Row::new([
        ("ID", service.id.as_str().into()),
        ("Name", service_name(service).into()),
        ("Mode", mode(service).into()),
        ("Image", without_digest(image).into()),
        ("Replicas", replicas(service, status).into()),
        ("Running", status.running_tasks.into()),
        ("Desired", status.desired_tasks.into()),
        ("Ports", ports_text(ports(service)).into()),
        ("UpdateState", update.unwrap_or_default().into()),
    ])
}
