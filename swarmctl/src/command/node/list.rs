//! `swarmctl node ls`.

use swarm_proto::pb;
use swarm_proto::pb::list_nodes_request::Filters as WireFilters;
use swarm_proto::pb::node_spec::{Availability, Membership};
use swarm_proto::pb::node_status::State;
use swarm_proto::pb::raft_member_status::Reachability;

use super::super::session::Session;
use crate::cli::Listing;
use crate::error::Error;
use crate::render::list::{Column, Cut, Filters, Format, Row, render};
use crate::resolve::node_name;
use crate::spec::{KEY_VALUE, Problems};

const COLUMNS: &[Column] = &[
    // Nodes are told apart by their IDs in every other command, so these are never cut.
    Column::new("ID", "ID", Cut::Never),
    Column::new("Name", "Name", Cut::Never),
    Column::new("Membership", "Membership", Cut::Never),
    Column::new("Status", "Status", Cut::Never),
    Column::new("Availability", "Availability", Cut::Never),
    Column::new("ManagerStatus", "Manager Status", Cut::Never),
];

/// A checked command line.
pub(super) struct List {
    listing: Listing,
    format: Format,
    filters: Filters,
    wire: WireFilters,
    states: Vec<State>,
    availabilities: Vec<Availability>,
}

impl List {
    pub(super) fn check(listing: &Listing) -> Result<Self, Error> {
        let known = [
            "id",
            "name",
            "label",
            "node.label",
            "membership",
            "role",
            "status",
            "availability",
        ];
        let filters = Filters::parse(listing, &known)?;
        let memberships = [
            ("PENDING", Membership::Pending),
            ("ACCEPTED", Membership::Accepted),
        ];
        let roles = [
            ("WORKER", pb::NodeRole::Worker),
            ("MANAGER", pb::NodeRole::Manager),
        ];
        let states = [
            ("UNKNOWN", State::Unknown),
            ("DOWN", State::Down),
            ("READY", State::Ready),
            ("DISCONNECTED", State::Disconnected),
        ];
        let availabilities = [
            ("ACTIVE", Availability::Active),
            ("PAUSE", Availability::Pause),
            ("DRAIN", Availability::Drain),
        ];
        let mut problems = Problems::default();
        let mut labels = |key| {
            problems
                .each("--filter", filters.values(key), &KEY_VALUE)
                .into_iter()
                .collect()
        };
        let wire = WireFilters {
            id_prefixes: filters.values("id").to_vec(),
            name_prefixes: filters.values("name").to_vec(),
            labels: labels("label"),
            node_labels: labels("node.label"),
            memberships: wire_values(filters.choices("membership", &memberships)?),
            roles: wire_values(filters.choices("role", &roles)?),
            ..Default::default()
        };
        problems.unless_any(())?;
        let states = filters.choices("status", &states)?;
        let availabilities = filters.choices("availability", &availabilities)?;
        let format = Format::of(listing)?;
        Ok(Self {
            listing: listing.clone(),
            format,
            filters,
            wire,
            states,
            availabilities,
        })
    }

    pub(super) async fn run(self, session: &mut Session<'_>) -> Result<(), Error> {
        let mut nodes = session.client.list_nodes(self.wire).await?;
        nodes.retain(|node| {
            let availability = node
                .spec
                .as_ref()
                .map(pb::NodeSpec::availability)
                .unwrap_or_default();
            self.filters
                .allow("status", |_| self.states.contains(&state(node)))
                && self.filters.allow("availability", |_| {
                    self.availabilities.contains(&availability)
                })
        });
        nodes.sort_by_key(|node| (node_name(node), node.id.clone()));
        let rows: Vec<Row> = nodes.iter().map(row).collect();
        let colour = session.colour();
        let lines = render(&self.format, COLUMNS, &rows, (&self.listing, colour))?;
        session.print(&lines)
    }
}

fn wire_values<T: Into<i32>>(values: Vec<T>) -> Vec<i32> {
    values.into_iter().map(Into::into).collect()
}

pub(super) fn state(node: &pb::Node) -> State {
    node.status
        .as_ref()
        .map(pb::NodeStatus::state)
        .unwrap_or_default()
}

/// Of a manager that was given up as a voter.
const REMOVED: &str = "REMOVED";

/// `REACHABLE *` for the leader; REMOVED for one that the leader gave up as a voter; UNKNOWN for a node that should be a manager and has not joined Raft.
pub(super) fn manager_status(node: &pb::Node) -> String {
    let wanted = node
        .spec
        .as_ref()
        .map(pb::NodeSpec::desired_role)
        .unwrap_or_default();
    match (&node.manager_status, wanted) {
        (Some(status), _) => {
            let mark = if status.leader { " *" } else { "" };
            format!("{}{mark}", status.reachability().as_str_name())
        }
        (None, pb::NodeRole::Manager) if node.retired_at.is_some() => REMOVED.to_owned(),
        (None, pb::NodeRole::Manager) => Reachability::Unknown.as_str_name().to_owned(),
        (None, pb::NodeRole::Worker) => String::new(),
    }
}

fn row(node: &pb::Node) -> Row {
    let spec = node.spec.clone().unwrap_or_default();
    let status = node.status.clone().unwrap_or_default();
    let engine = node
        .description
        .as_ref()
        .and_then(|description| description.engine.as_ref());
    // Where the manager part has no address yet, the agent's is the best there is.
    let manager_addr = node
        .manager_status
        .as_ref()
        .map_or("", |manager| &manager.addr);
    let addr = if status.addr.is_empty() {
        manager_addr
    } else {
        &status.addr
    };
    Row::new([
        ("ID", node.id.as_str().into()),
        ("Name", node_name(node).into()),
        ("Membership", spec.membership().as_str_name().into()),
        ("Status", status.state().as_str_name().into()),
        ("Availability", spec.availability().as_str_name().into()),
        ("ManagerStatus", manager_status(node).into()),
        ("Role", node.role().as_str_name().into()),
        ("Address", addr.into()),
        (
            "Version",
            engine.map_or("", |engine| &engine.engine_version).into(),
        ),
        ("Message", status.message.as_str().into()),
    ])
}
