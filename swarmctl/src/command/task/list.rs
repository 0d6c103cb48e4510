//! Lists of tasks: `task ls`, `service ps`, `node ps`, and the tables below `inspect`.

use std::collections::BTreeMap;
use std::time::SystemTime;

use swarm_proto::pb;
use swarm_proto::pb::list_tasks_request::Filters as WireFilters;
use swarm_proto::pb::{PortConfig, TaskState};
use swarm_proto::reference::without_digest;

use super::super::session::Session;
use crate::cli::Listing;
use crate::error::Error;
use crate::render::list::{Column, Cut, Filters, Format, Row, render};
use crate::render::progress::{StatusState as _, cause};
use crate::render::time::ago;
use crate::resolve::{self, Naming, created, node_names, task_name};

/// SwarmKit's columns.
const COLUMNS: &[Column] = &[
    Column::new("ID", "ID", Cut::Id),
    Column::new("Service", "Service", Cut::Never),
    Column::new("DesiredState", "Desired State", Cut::Never),
    Column::new("LastState", "Last State", Cut::Never),
    Column::new("Node", "Node", Cut::Never),
];

/// With the image and the reason: what is asked of one service or node.
const WIDE: &[Column] = &[
    Column::new("ID", "ID", Cut::Id),
    Column::new("Branch", "Service", Cut::Never),
    Column::new("Image", "Image", Cut::Message),
    Column::new("DesiredState", "Desired State", Cut::Never),
    Column::new("LastState", "Last State", Cut::Never),
    Column::new("Node", "Node", Cut::Never),
    Column::new("Error", "Error", Cut::Message),
    Column::new("Ports", "Ports", Cut::Never),
];

const STATES: [TaskState; 14] = [
    TaskState::New,
    TaskState::Pending,
    TaskState::Assigned,
    TaskState::Accepted,
    TaskState::Preparing,
    TaskState::Ready,
    TaskState::Starting,
    TaskState::Running,
    TaskState::Complete,
    TaskState::Shutdown,
    TaskState::Failed,
    TaskState::Rejected,
    TaskState::Remove,
    TaskState::Orphaned,
];

/// Which tasks of a slot are shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::command) enum Kept {
    /// Those that should run.
    Wanted,
    /// Those that have ended too.
    All,
}

/// A checked command line.
pub(in crate::command) struct List {
    listing: Listing,
    format: Format,
    filters: Filters,
    desired: Vec<TaskState>,
    states: Vec<TaskState>,
    kept: Kept,
    up_to_date: bool,
    columns: &'static [Column],
}

impl List {
    pub(in crate::command) fn check(listing: &Listing, kept: Kept) -> Result<Self, Error> {
        let known = [
            "id",
            "service",
            "node",
            "desired-state",
            "state",
            "up-to-date",
        ];
        let filters = Filters::parse(listing, &known)?;
        let states = STATES.map(|state| (state.as_str_name(), state));
        let columns = match kept {
            Kept::Wanted => COLUMNS,
            Kept::All => WIDE,
        };
        Ok(Self {
            listing: listing.clone(),
            format: Format::of(listing)?,
            desired: filters.choices("desired-state", &states)?,
            states: filters.choices("state", &states)?,
            up_to_date: filters
                .choices("up-to-date", &[("true", true)])?
                .contains(&true),
            filters,
            kept,
            columns,
        })
    }

    /// Lists what `base` selects and the command line keeps.
    pub(in crate::command) async fn run(
        self,
        session: &mut Session<'_>,
        base: WireFilters,
    ) -> Result<(), Error> {
        let mut wire = base;
        wire.id_prefixes
            .extend_from_slice(self.filters.values("id"));
        wire.up_to_date = self.up_to_date;
        for name in self.filters.values("service") {
            wire.service_ids
                .push(resolve::service(&mut session.client, name).await?.id);
        }
        for name in self.filters.values("node") {
            wire.node_ids
                .push(resolve::node(&mut session.client, name).await?.id);
        }
        wire.desired_states = desired_states(self.kept, &self.desired);
        let mut tasks = session.client.list_tasks(wire).await?;
        tasks.retain(|task| {
            self.filters
                .allow("state", |_| self.states.contains(&task.status_state()))
        });
        let rows = rows(session, tasks).await?;
        let colour = session.colour();
        let lines = render(&self.format, self.columns, &rows, (&self.listing, colour))?;
        session.print(&lines)
    }
}

/// The wide table below the details of a node or service; nothing where there are no tasks.
pub(in crate::command) async fn below(
    session: &mut Session<'_>,
    mut filters: WireFilters,
    kept: Kept,
    no_trunc: bool,
) -> Result<Vec<String>, Error> {
    filters.desired_states = desired_states(kept, &[]);
    let tasks = session.client.list_tasks(filters).await?;
    if tasks.is_empty() {
        return Ok(Vec::new());
    }
    let rows = rows(session, tasks).await?;
    let listing = Listing {
        no_trunc,
        ..Default::default()
    };
    let mut lines = vec![String::new()];
    lines.extend(render(
        &Format::Table,
        WIDE,
        &rows,
        (&listing, session.colour()),
    )?);
    Ok(lines)
}

fn desired_states(kept: Kept, chosen: &[TaskState]) -> Vec<i32> {
    let wanted = |state: &TaskState| match kept {
        Kept::All => true,
        Kept::Wanted => *state <= TaskState::Running,
    };
    let states: Vec<i32> = if chosen.is_empty() {
        STATES
            .iter()
            .filter(|state| wanted(state))
            .map(|state| i32::from(*state))
            .collect()
    } else {
        chosen.iter().map(|state| i32::from(*state)).collect()
    };
    // No filter is cheaper for the manager than one that lets everything pass.
    if states.len() == STATES.len() {
        Vec::new()
    } else {
        states
    }
}

/// Sorted by service, slot, and the newest of a slot first.
async fn rows(session: &mut Session<'_>, mut tasks: Vec<pb::Task>) -> Result<Vec<Row>, Error> {
    let nodes = node_names(&mut session.client, session.naming).await?;
    tasks.sort_by(|a, b| {
        let service = |task: &pb::Task| task.service_annotations.as_ref().map(|a| a.name.clone());
        let key = |task: &pb::Task| (service(task), task.service_id.clone(), task.slot);
        key(a)
            .cmp(&key(b))
            .then_with(|| {
                if a.slot == 0 {
                    a.node_id.cmp(&b.node_id)
                } else {
                    std::cmp::Ordering::Equal
                }
            })
            .then_with(|| created(b).cmp(&created(a)))
            .then_with(|| a.id.cmp(&b.id))
    });
    let look = (session.now(), session.naming);
    let mut rows = Vec::new();
    let mut before: Option<&pb::Task> = None;
    for task in &tasks {
        let slot = |task: &pb::Task| {
            let node = if task.slot == 0 {
                task.node_id.clone()
            } else {
                String::new()
            };
            (task.service_id.clone(), task.slot, node)
        };
        // As Docker draws it: the earlier tasks of a slot hang below its newest.
        let earlier = before.is_some_and(|before| slot(before) == slot(task));
        rows.push(row(task, &nodes, look, if earlier { " \\_ " } else { "" }));
        before = Some(task);
    }
    Ok(rows)
}

fn row(
    task: &pb::Task,
    nodes: &BTreeMap<String, String>,
    (now, naming): (SystemTime, Naming),
    branch: &str,
) -> Row {
    let status = task.status.clone().unwrap_or_default();
    let state = status.state().as_str_name();
    let age = ago(now, status.timestamp.as_ref());
    let node = nodes.get(&task.node_id).unwrap_or(&task.node_id);
    let name = if task.slot == 0 && !task.service_id.is_empty() && !task.node_id.is_empty() {
        // Global: the node stands in the place of the slot.
        task_name(task, naming).replace(&task.node_id, node)
    } else {
        task_name(task, naming)
    };
    Row::new([
        ("ID", task.id.as_str().into()),
        ("Service", name.as_str().into()),
        ("Branch", format!("{branch}{name}").into()),
        ("Name", name.into()),
        ("DesiredState", task.desired_state().as_str_name().into()),
        ("LastState", format!("{state} {age}").trim_end().into()),
        ("State", state.into()),
        (
            "Since",
            crate::render::time::rfc3339(status.timestamp.as_ref()).into(),
        ),
        ("Node", node.as_str().into()),
        ("NodeID", task.node_id.as_str().into()),
        ("ServiceID", task.service_id.as_str().into()),
        ("Slot", task.slot.into()),
        ("Image", without_digest(image(task)).into()),
        ("Error", error(task).into()),
        ("Message", status.message.as_str().into()),
        ("Ports", ports_text(&ports(task)).into()),
        ("ContainerID", container_id(&status).into()),
    ])
}

fn image(task: &pb::Task) -> &str {
    match task.spec.as_ref().and_then(|spec| spec.runtime.as_ref()) {
        Some(pb::task_spec::Runtime::Container(container)) => &container.image,
        Some(pb::task_spec::Runtime::Attachment(_) | pb::task_spec::Runtime::Generic(_)) | None => {
            ""
        }
    }
}

/// Why a task is not placed or has failed; a task that does well has nothing to say.
fn error(task: &pb::Task) -> String {
    match task.status.as_ref() {
        Some(status) if !status.err.is_empty() => status.err.clone(),
        Some(status) => match status.state() {
            TaskState::Failed | TaskState::Rejected => cause(task),
            TaskState::New
            | TaskState::Pending
            | TaskState::Assigned
            | TaskState::Accepted
            | TaskState::Preparing
            | TaskState::Ready
            | TaskState::Starting
            | TaskState::Running
            | TaskState::Complete
            | TaskState::Shutdown
            | TaskState::Remove
            | TaskState::Orphaned => String::new(),
        },
        None => String::new(),
    }
}

/// What the host gave, which for a host port without a number only the host knows.
fn ports(task: &pb::Task) -> Vec<PortConfig> {
    let reported = task
        .status
        .as_ref()
        .and_then(|status| status.port_status.as_ref());
    match reported {
        Some(status) if !status.ports.is_empty() => status.ports.clone(),
        Some(_) | None => task
            .endpoint
            .as_ref()
            .map(|e| e.ports.clone())
            .unwrap_or_default(),
    }
}

/// `*:8080->80/tcp`, several by commas.
pub(in crate::command) fn ports_text(ports: &[PortConfig]) -> String {
    let one = |port: &PortConfig| {
        let protocol = port.protocol().as_str_name().to_lowercase();
        match port.published_port {
            0 => format!("{}/{protocol}", port.target_port),
            published => format!("*:{published}->{}/{protocol}", port.target_port),
        }
    };
    ports.iter().map(one).collect::<Vec<_>>().join(", ")
}

fn container_id(status: &pb::TaskStatus) -> &str {
    match &status.runtime_status {
        Some(pb::task_status::RuntimeStatus::Container(container)) => &container.container_id,
        None => "",
    }
}
