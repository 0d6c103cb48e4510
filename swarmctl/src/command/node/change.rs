//! `swarmctl node activate|pause|drain|promote|demote|update|rm`.

use std::collections::BTreeMap;

use swarm_proto::node::{ADDRESSES_MAX, is_host_port};
use swarm_proto::pb;
use swarm_proto::pb::NodeRole;
use swarm_proto::pb::node_spec::Availability;

use super::super::session::{Failures, Session};
use crate::cli::{DemoteNodes, RemoveNode, SetAddr, UpdateNode};
use crate::client::Force;
use crate::error::Error;
use crate::resolve::{self, node_name};
use crate::spec::{KEY, Problems, key_values};

/// What one of the short commands makes of a node.
#[derive(Clone, Copy, Debug)]
pub(super) enum Wanted {
    Active,
    Pause,
    Drain,
    Manager,
    Worker,
}

impl Wanted {
    fn already(self) -> &'static str {
        match self {
            Self::Active => "already active",
            Self::Pause => "already paused",
            Self::Drain => "already drained",
            Self::Manager => "already a manager",
            Self::Worker => "already a worker",
        }
    }

    fn apply(self, spec: &mut pb::NodeSpec) {
        match self {
            Self::Active => spec.set_availability(Availability::Active),
            Self::Pause => spec.set_availability(Availability::Pause),
            Self::Drain => spec.set_availability(Availability::Drain),
            Self::Manager => spec.set_desired_role(NodeRole::Manager),
            Self::Worker => spec.set_desired_role(NodeRole::Worker),
        }
    }
}

/// Changes each of the nodes; one that is so already is an error, as in SwarmKit.
pub(super) async fn each(
    session: &mut Session<'_>,
    names: &[String],
    wanted: Wanted,
) -> Result<(), Error> {
    let mut failures = Failures::default();
    for name in names {
        let changed = one(session, name, wanted, Force::No).await;
        if let Some(line) = failures.note(changed) {
            session.print(&[line])?;
        }
    }
    failures.end()
}

/// Makes each of the nodes a worker; with force as [`each`] can't, after having said what that takes.
pub(super) async fn demote(session: &mut Session<'_>, flags: &DemoteNodes) -> Result<(), Error> {
    let mut failures = Failures::default();
    for name in &flags.names.names {
        let changed = match one(session, name, Wanted::Worker, Force::No).await {
            Err(refused @ Error::Refused { .. }) if flags.force => {
                session.remark(&format!("{refused}"))?;
                session.remark("going on, as --force says")?;
                one(session, name, Wanted::Worker, Force::Yes).await
            }
            // It waits to be one: meanwhile others may have gone down, without which it can't.
            Err(already @ Error::Rejected { .. }) if flags.force => {
                let node = resolve::node(&mut session.client, name).await?;
                match node.manager_status {
                    Some(_) => one(session, name, Wanted::Worker, Force::Yes).await,
                    None => Err(already),
                }
            }
            changed => changed,
        };
        if let Some(line) = failures.note(changed) {
            session.print(&[line])?;
        }
    }
    failures.end()
}

async fn one(
    session: &mut Session<'_>,
    name: &str,
    wanted: Wanted,
    force: Force,
) -> Result<String, Error> {
    let node = resolve::node(&mut session.client, name).await?;
    let (id, hostname) = (node.id.clone(), node_name(&node));
    let change = |spec: &mut pb::NodeSpec| {
        wanted.apply(spec);
        Ok(())
    };
    match session.client.update_node(node, force, change).await? {
        Some(_) => Ok(id),
        None => Err(Error::Rejected {
            what: format!("node {hostname}"),
            reason: wanted.already().to_owned(),
        }),
    }
}

/// Checked labels of `node update`.
pub(super) struct Labels {
    whole: Option<BTreeMap<String, String>>,
    add: BTreeMap<String, String>,
    remove: Vec<String>,
}

impl Labels {
    pub(super) fn check(flags: &UpdateNode) -> Result<Self, Error> {
        let mut problems = Problems::default();
        let whole = key_values(&mut problems, "--label", &flags.labels);
        let add = key_values(&mut problems, "--label-add", &flags.labels_add);
        let remove = problems.each("--label-rm", &flags.labels_rm, &KEY);
        let nothing = whole.is_empty() && add.is_empty() && remove.is_empty();
        if nothing
            && flags.availability.is_none()
            && flags.role.is_none()
            && flags.labels.is_empty()
        {
            problems.push("nothing to change; give --label-add, --label-rm, --label, --availability or --role");
        }
        let whole = (!flags.labels.is_empty()).then_some(whole);
        problems.unless_any(Self { whole, add, remove })
    }

    fn apply(&self, labels: &mut BTreeMap<String, String>) -> Result<(), String> {
        if let Some(whole) = &self.whole {
            labels.clone_from(whole);
        }
        for key in &self.remove {
            labels
                .remove(key)
                .ok_or_else(|| format!("it has no label {key}"))?;
        }
        labels.extend(self.add.clone());
        Ok(())
    }
}

pub(super) async fn update(
    session: &mut Session<'_>,
    flags: &UpdateNode,
    labels: &Labels,
) -> Result<(), Error> {
    let node = resolve::node(&mut session.client, &flags.node).await?;
    let (id, hostname) = (node.id.clone(), node_name(&node));
    let change = |spec: &mut pb::NodeSpec| {
        let annotations = spec
            .annotations
            .get_or_insert_with(pb::Annotations::default);
        labels
            .apply(&mut annotations.labels)
            .map_err(|reason| Error::Rejected {
                what: format!("node {hostname}"),
                reason,
            })?;
        if let Some(availability) = flags.availability {
            spec.set_availability(match availability {
                crate::cli::Availability::Active => Availability::Active,
                crate::cli::Availability::Pause => Availability::Pause,
                crate::cli::Availability::Drain => Availability::Drain,
            });
        }
        if let Some(role) = flags.role {
            spec.set_desired_role(match role {
                crate::cli::Role::Worker => NodeRole::Worker,
                crate::cli::Role::Manager => NodeRole::Manager,
            });
        }
        Ok(())
    };
    let changed = session.client.update_node(node, Force::No, change);
    if changed.await?.is_none() {
        session.remark("no changes detected")?;
    }
    session.print(&[id])
}

/// Whether these can be a manager's addresses.
pub(super) fn check_addresses(addresses: &[String]) -> Result<(), Error> {
    let mut problems = Problems::default();
    for address in addresses.iter().filter(|text| !is_host_port(text)) {
        problems.push(format!(
            "ADDR {address:?}: must be host:port, as in 10.0.0.1:4242"
        ));
    }
    if addresses.len() > ADDRESSES_MAX {
        let given = addresses.len();
        problems.push(format!(
            "ADDR: {given} are too many; say at most {ADDRESSES_MAX}"
        ));
    }
    problems.unless_any(())
}

/// Says where a manager is reached.
pub(super) async fn set_addresses(session: &mut Session<'_>, flags: &SetAddr) -> Result<(), Error> {
    let node = resolve::node(&mut session.client, &flags.node).await?;
    let (id, hostname) = (node.id.clone(), node_name(&node));
    let change = |spec: &mut pb::NodeSpec| {
        if spec.desired_role() != NodeRole::Manager {
            return Err(Error::Rejected {
                what: format!("node {hostname}"),
                reason: "is a worker, and nobody connects to workers; `swarmctl node promote` makes it a manager"
                    .to_owned(),
            });
        }
        spec.manager_addresses.clone_from(&flags.addresses);
        Ok(())
    };
    let changed = session.client.update_node(node, Force::No, change);
    if changed.await?.is_none() {
        session.remark("no changes detected")?;
    }
    session.print(&[id])
}

pub(super) async fn remove(session: &mut Session<'_>, flags: &RemoveNode) -> Result<(), Error> {
    let force = if flags.force { Force::Yes } else { Force::No };
    let mut failures = Failures::default();
    for name in &flags.names.names {
        let removed = match resolve::node(&mut session.client, name).await {
            Ok(node) => session
                .client
                .remove_node(&node.id, force)
                .await
                .map(|()| node.id),
            Err(error) => Err(error),
        };
        if let Some(id) = failures.note(removed) {
            session.print(&[id])?;
        }
    }
    failures.end()
}
