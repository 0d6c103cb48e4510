//! `swarmctl node inspect` and `swarmctl node ps`.

use std::collections::BTreeMap;
use std::time::SystemTime;

use swarm_proto::{amount, own, pb};

use super::super::cluster::status;
use super::super::session::{Failures, Session};
use super::super::task;
use crate::cli::InspectNode;
use crate::error::Error;
use crate::render::inspect::Details;
use crate::render::{json, show, time};
use crate::resolve;

pub(super) async fn run(
    session: &mut Session<'_>,
    flags: &InspectNode,
    format: &show::Format,
) -> Result<(), Error> {
    let mut failures = Failures::default();
    let own = match flags.nodes.iter().any(|name| name == "self") {
        true => failures.note(own_status(session).await),
        false => None,
    };
    let mut nodes = Vec::new();
    for name in &flags.nodes {
        nodes.extend(failures.note(resolve::node(&mut session.client, name).await));
    }
    if !session.print_values(format, nodes.iter().map(value))? {
        let kept = if flags.all {
            task::Kept::All
        } else {
            task::Kept::Wanted
        };
        for (index, node) in nodes.iter().enumerate() {
            let filters = pb::list_tasks_request::Filters {
                node_ids: vec![node.id.clone()],
                ..Default::default()
            };
            let mut lines = if index > 0 {
                vec![String::new()]
            } else {
                Vec::new()
            };
            let mut details = details(node);
            if let Some(own) = own.as_ref().filter(|own| own.node_id == node.id) {
                own_view(&mut details, own, session.now());
            }
            lines.extend(details.lines());
            lines.extend(task::below(session, filters, kept, flags.showing.no_trunc).await?);
            session.print(&lines)?;
        }
    }
    // Without the managers it still knows how it is itself.
    if let Some(own) = own.filter(|own| nodes.iter().all(|node| node.id != own.node_id))
        && matches!(format, show::Format::Details)
    {
        let mut details = Details::default();
        details.put("ID", own.node_id.as_str());
        details.put("Hostname", own.hostname.as_str());
        details.put("Role", own.role.as_str());
        own_view(&mut details, &own, session.now());
        session.print(&details.lines())?;
    }
    failures.end()
}

async fn own_status(session: &mut Session<'_>) -> Result<own::LocalStatusResponse, Error> {
    let request = session.client.request(own::LocalStatusRequest {});
    let answer = session.client.operator().local_status(request).await;
    let answer = answer.map_err(|status| Error::refused("ask the local node", status))?;
    Ok(answer.into_inner())
}

/// What the node at hand says of itself.
fn own_view(details: &mut Details, own: &own::LocalStatusResponse, now: SystemTime) {
    details.section("Own view", |details| {
        details.put("Session with", own.manager_addr.as_str());
        status::own_view(details, own, now);
    });
}

/// Tasks of nodes; of the local one where none is named.
pub(super) async fn tasks(
    session: &mut Session<'_>,
    names: &[String],
    list: task::List,
) -> Result<(), Error> {
    let local = ["self".to_owned()];
    let names = if names.is_empty() { &local } else { names };
    let mut node_ids = Vec::new();
    for name in names {
        node_ids.push(resolve::node(&mut session.client, name).await?.id);
    }
    list.run(
        session,
        pb::list_tasks_request::Filters {
            node_ids,
            ..Default::default()
        },
    )
    .await
}

fn value(node: &pb::Node) -> serde_json::Value {
    json::value("docker.swarmkit.v1.Node", node)
}

fn details(node: &pb::Node) -> Details {
    let mut details = Details::default();
    let spec = node.spec.clone().unwrap_or_default();
    let status = node.status.clone().unwrap_or_default();
    let description = node.description.clone().unwrap_or_default();
    details.put("ID", node.id.as_str());
    if let Some(annotations) = &spec.annotations {
        details.map("Labels", &annotations.labels);
    }
    details.put("Hostname", description.hostname.as_str());
    details.put("Role", role(node, &spec));
    details.section("Status", |details| {
        details.put("State", status.state().as_str_name());
        details.put("Message", status.message.as_str());
        details.put("Availability", spec.availability().as_str_name());
        details.put("Membership", spec.membership().as_str_name());
        details.put("Address", status.addr.as_str());
    });
    if let Some(manager) = &node.manager_status {
        details.section("Manager status", |details| {
            let all = match manager.addrs.is_empty() {
                true => manager.addr.clone(),
                false => manager.addrs.join(", "),
            };
            details.put("Address", all);
            details.put("Address set by operator", spec.manager_addresses.join(", "));
            details.put("Raft status", manager.reachability().as_str_name());
            details.put("Leader", if manager.leader { "yes" } else { "no" });
        });
    }
    if node.retired_at.is_some() {
        details.section("Given up as a voter", |details| {
            details.put("At", time::rfc3339(node.retired_at.as_ref()));
            details.put("Reason", node.retired_reason.as_str());
            details.put("Way back", "it joins the managers anew by itself once swarmd runs there and reaches one of them");
        });
    }
    if let Some(platform) = &description.platform {
        details.section("Platform", |details| {
            details.put("Operating system", platform.os.as_str());
            details.put("Architecture", platform.architecture.as_str());
        });
    }
    if let Some(resources) = &description.resources {
        details.section("Resources", |details| {
            details.put("CPUs", amount::cpus(resources.nano_cpus));
            details.put("Memory", amount::bytes(resources.memory_bytes));
            for (kind, amount) in generic(&resources.generic) {
                details.put(&kind, amount);
            }
        });
    }
    if let Some(host) = &description.host {
        details.section("Host", |details| {
            details.put("Kernel", host.kernel_version.as_str());
            details.put("Kernel features", host.kernel_features.join(", "));
            if host.disk_bytes > 0 {
                let bytes = i64::try_from(host.disk_bytes).unwrap_or(i64::MAX);
                details.put("Disk", amount::bytes(bytes));
            }
        });
    }
    if let Some(engine) = &description.engine {
        engine_details(&mut details, engine);
    }
    details
}

fn role(node: &pb::Node, spec: &pb::NodeSpec) -> String {
    let (is, wanted) = (node.role().as_str_name(), spec.desired_role().as_str_name());
    if is == wanted {
        is.to_owned()
    } else {
        format!("{is}, becoming {wanted}")
    }
}

fn engine_details(details: &mut Details, engine: &pb::EngineDescription) {
    let mut plugins = BTreeMap::<String, Vec<&str>>::new();
    for plugin in &engine.plugins {
        plugins
            .entry(plugin.r#type.clone())
            .or_default()
            .push(&plugin.name);
    }
    details.section("Plugins", |details| {
        for (kind, names) in &plugins {
            details.put(kind, names.join(", "));
        }
    });
    details.put("Engine version", engine.engine_version.as_str());
    details.map("Engine labels", &engine.labels);
}

/// Kinds and their amounts: numbers, or the names of the units.
pub(in crate::command) fn generic(resources: &[pb::GenericResource]) -> BTreeMap<String, String> {
    let mut amounts = BTreeMap::<String, Vec<String>>::new();
    for resource in resources {
        let (kind, amount) = match &resource.resource {
            Some(pb::generic_resource::Resource::NamedResourceSpec(named)) => {
                (&named.kind, named.value.clone())
            }
            Some(pb::generic_resource::Resource::DiscreteResourceSpec(discrete)) => {
                (&discrete.kind, discrete.value.to_string())
            }
            None => continue,
        };
        amounts.entry(kind.clone()).or_default().push(amount);
    }
    amounts
        .into_iter()
        .map(|(kind, amounts)| (kind, amounts.join(", ")))
        .collect()
}
