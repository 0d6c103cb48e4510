//! `swarmctl task inspect`.

use swarm_proto::pb::list_tasks_request::Filters as WireFilters;
use swarm_proto::pb::task_status::RuntimeStatus;
use swarm_proto::{amount, pb};

use super::super::service::spec_details;
use super::super::session::{Failures, Session};
use super::list::ports_text;
use crate::cli::InspectTask;
use crate::error::Error;
use crate::render::inspect::Details;
use crate::render::list::{Column, Cut, Format as ListFormat, Row, render};
use crate::render::show::Format;
use crate::render::{json, time};
use crate::resolve::{self, created, node_names, task_name};

/// The earlier tasks of a slot.
const PARENTS: &[Column] = &[
    Column::new("ID", "Task Parents", Cut::Id),
    Column::new("State", "Last State", Cut::Never),
    Column::new("Node", "Node", Cut::Never),
    Column::new("Error", "Error", Cut::Message),
];

pub(super) async fn run(
    session: &mut Session<'_>,
    flags: &InspectTask,
    format: &Format,
) -> Result<(), Error> {
    let mut failures = Failures::default();
    let mut tasks = Vec::new();
    for name in &flags.tasks {
        tasks.extend(failures.note(task(session, name).await));
    }
    let value = |task: &pb::Task| json::value("docker.swarmkit.v1.Task", task);
    if !session.print_values(format, tasks.iter().map(value))? {
        for (index, task) in tasks.iter().enumerate() {
            if index > 0 {
                session.print(&[String::new()])?;
            }
            details(session, task, flags.showing.no_trunc).await?;
        }
    }
    failures.end()
}

/// As found by its name, with what only its own answer says.
async fn task(session: &mut Session<'_>, name: &str) -> Result<pb::Task, Error> {
    let found = resolve::task(&mut session.client, name).await?;
    let whole = session.client.get_task(&found.id).await?;
    Ok(whole.unwrap_or(found))
}

async fn details(session: &mut Session<'_>, task: &pb::Task, no_trunc: bool) -> Result<(), Error> {
    let nodes = node_names(&mut session.client, session.naming).await?;
    let node = nodes.get(&task.node_id).unwrap_or(&task.node_id);
    let mut details = Details::default();
    details.put("ID", task.id.as_str());
    if task.slot > 0 {
        details.put("Slot", task.slot.to_string());
    }
    details.put("Service", task_name(task, session.naming));
    let status = task.status.clone().unwrap_or_default();
    details.section("Status", |details| {
        details.put("Desired State", task.desired_state().as_str_name());
        details.put("Last State", status.state().as_str_name());
        details.put("Timestamp", time::rfc3339(status.timestamp.as_ref()));
        details.put("Message", status.message.as_str());
        details.put("Error", status.err.as_str());
        if let Some(RuntimeStatus::Container(container)) = &status.runtime_status {
            details.put("ContainerID", container.container_id.as_str());
            if container.pid != 0 {
                details.put("Pid", container.pid.to_string());
            }
            if status.state() > pb::TaskState::Running {
                details.put("ExitCode", container.exit_code.to_string());
            }
        }
    });
    if let Some(usage) = &task.usage {
        let ago = time::ago(session.now(), usage.heard_at.as_ref());
        details.section("Usage", |details| usage_details(details, usage, &ago));
    }
    let ports = status
        .port_status
        .as_ref()
        .map(|ports| ports.ports.as_slice())
        .unwrap_or_default();
    details.put("Ports", ports_text(ports));
    details.put("Node", node.as_str());
    if let Some(spec) = &task.spec {
        spec_details(&mut details, "Spec", spec);
    }
    session.print(&details.lines())?;
    parents(session, task, (&nodes, no_trunc)).await
}

fn usage_details(details: &mut Details, usage: &pb::TaskUsage, ago: &str) {
    let signed = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
    // Finer than a thousandth is noise.
    let cpus = usage.nano_cpus / 1_000_000 * 1_000_000;
    details.put("CPUs", amount::cpus(signed(cpus)));
    details.put(
        "CPU time",
        format!(
            "{}s",
            amount::cpus(signed(usage.cpu_ns / 1_000_000 * 1_000_000))
        ),
    );
    details.put("Memory", amount::bytes(signed(usage.memory_bytes)));
    details.put("Processes", usage.pids.to_string());
    details.put("Measured", ago);
}

async fn parents(
    session: &mut Session<'_>,
    task: &pb::Task,
    (nodes, no_trunc): (&std::collections::BTreeMap<String, String>, bool),
) -> Result<(), Error> {
    if task.service_id.is_empty() {
        return Ok(());
    }
    let service_ids = vec![task.service_id.clone()];
    let filters = WireFilters {
        service_ids,
        ..Default::default()
    };
    let mut others = session.client.list_tasks(filters).await?;
    let same_slot = |other: &pb::Task| {
        other.slot == task.slot && (task.slot > 0 || other.node_id == task.node_id)
    };
    others.retain(|other| same_slot(other) && created(other) < created(task));
    if others.is_empty() {
        return Ok(());
    }
    others.sort_by_key(|other| std::cmp::Reverse(created(other)));
    let now = session.now();
    let row = |task: &pb::Task| {
        let status = task.status.clone().unwrap_or_default();
        let age = time::ago(now, status.timestamp.as_ref());
        let node = nodes.get(&task.node_id).unwrap_or(&task.node_id);
        Row::new([
            ("ID", task.id.as_str().into()),
            (
                "State",
                format!("{} {age}", status.state().as_str_name())
                    .trim_end()
                    .into(),
            ),
            ("Node", node.as_str().into()),
            ("Error", status.err.as_str().into()),
        ])
    };
    let rows: Vec<Row> = others.iter().map(row).collect();
    let listing = crate::cli::Listing {
        no_trunc,
        ..Default::default()
    };
    let mut lines = vec![String::new()];
    lines.extend(render(
        &ListFormat::Table,
        PARENTS,
        &rows,
        (&listing, session.colour()),
    )?);
    session.print(&lines)
}
