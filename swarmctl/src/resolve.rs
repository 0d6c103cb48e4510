//! From what the operator typed to one object: full ID, exact name, or unique ID prefix, in this order.
//!
//! Two objects of one name, or a prefix of several IDs, are an error that lists the candidates.

use std::collections::BTreeMap;

use swarm_proto::{own, pb};

use crate::client::Client;
use crate::error::{Error, Kind};

/// Length of an ID of the field: 25 digits in base 36.
const ID_LENGTH: usize = 25;

/// An object that can be named on the command line.
trait Named {
    fn id(&self) -> &str;
    fn name(&self) -> String;
}

/// The hostname a node reports, else its ID.
pub(crate) fn node_name(node: &pb::Node) -> String {
    let hostname = node
        .description
        .as_ref()
        .map_or("", |description| &description.hostname);
    if hostname.is_empty() {
        node.id.clone()
    } else {
        hostname.to_owned()
    }
}

pub(crate) fn service_name(service: &pb::Service) -> String {
    let annotations = service
        .spec
        .as_ref()
        .and_then(|spec| spec.annotations.as_ref());
    annotations
        .map(|annotations| annotations.name.clone())
        .unwrap_or_default()
}

pub(crate) fn cluster_name(cluster: &pb::Cluster) -> String {
    let annotations = cluster
        .spec
        .as_ref()
        .and_then(|spec| spec.annotations.as_ref());
    annotations
        .map(|annotations| annotations.name.clone())
        .unwrap_or_default()
}

/// `service.slot`; a task of a global service has its node in the place of the slot.
pub(crate) fn task_name(task: &pb::Task, naming: Naming) -> String {
    let name = task
        .service_annotations
        .as_ref()
        .map_or("", |annotations| &annotations.name);
    let service = match naming {
        Naming::Names if !name.is_empty() => name,
        Naming::Names | Naming::Ids => &task.service_id,
    };
    match (service, task.slot) {
        ("", _) => task.id.clone(),
        (service, 0) => format!("{service}.{}", task.node_id),
        (service, slot) => format!("{service}.{slot}"),
    }
}

/// Whether tables say names or IDs (`--no-resolve`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Naming {
    Names,
    Ids,
}

impl Named for pb::Node {
    fn id(&self) -> &str {
        &self.id
    }
    fn name(&self) -> String {
        node_name(self)
    }
}

impl Named for pb::Service {
    fn id(&self) -> &str {
        &self.id
    }
    fn name(&self) -> String {
        service_name(self)
    }
}

impl Named for pb::Task {
    fn id(&self) -> &str {
        &self.id
    }
    fn name(&self) -> String {
        task_name(self, Naming::Names)
    }
}

impl Named for pb::Cluster {
    fn id(&self) -> &str {
        &self.id
    }
    fn name(&self) -> String {
        cluster_name(self)
    }
}

/// A node by ID, hostname, ID prefix, or `self` for the node that answers.
pub(crate) async fn node(client: &mut Client, name: &str) -> Result<pb::Node, Error> {
    given(Kind::Node, name)?;
    let local;
    let name = if name == "self" {
        let request = client.request(own::LocalStatusRequest {});
        let answer = client.operator().local_status(request).await;
        local = answer
            .map_err(|status| Error::refused("ask the local node", status))?
            .into_inner();
        local.node_id.as_str()
    } else {
        name
    };
    if looks_like_id(name)
        && let Some(node) = client.get_node(name).await?
    {
        return Ok(node);
    }
    let filters = pb::list_nodes_request::Filters::default();
    let by_name = pb::list_nodes_request::Filters {
        names: vec![name.to_owned()],
        ..filters.clone()
    };
    let by_prefix = pb::list_nodes_request::Filters {
        id_prefixes: vec![name.to_owned()],
        ..filters
    };
    let named = client.list_nodes(by_name).await?;
    choose(Kind::Node, name, named, client.list_nodes(by_prefix).await?)
}

/// A service by ID, name or ID prefix.
pub(crate) async fn service(client: &mut Client, name: &str) -> Result<pb::Service, Error> {
    given(Kind::Service, name)?;
    if looks_like_id(name)
        && let Some(service) = client.get_service(name).await?
    {
        return Ok(service);
    }
    let filters = pb::list_services_request::Filters::default();
    let by_name = pb::list_services_request::Filters {
        names: vec![name.to_owned()],
        ..filters.clone()
    };
    let by_prefix = pb::list_services_request::Filters {
        id_prefixes: vec![name.to_owned()],
        ..filters
    };
    let named = client.list_services(by_name).await?;
    choose(
        Kind::Service,
        name,
        named,
        client.list_services(by_prefix).await?,
    )
}

/// A task by ID, `service.slot` (the newest of the slot that still runs) or ID prefix.
pub(crate) async fn task(client: &mut Client, name: &str) -> Result<pb::Task, Error> {
    given(Kind::Task, name)?;
    if looks_like_id(name)
        && let Some(task) = client.get_task(name).await?
    {
        return Ok(task);
    }
    if let Some((service_name, slot)) = name.rsplit_once('.')
        && let Ok(slot) = slot.parse::<u64>()
        && let Ok(service) = service(client, service_name).await
    {
        let service_ids = vec![service.id];
        let filters = pb::list_tasks_request::Filters {
            service_ids,
            ..Default::default()
        };
        let tasks = client.list_tasks(filters).await?;
        let current = tasks
            .into_iter()
            .filter(|task| task.slot == slot)
            .max_by_key(|task| {
                (
                    task.desired_state <= i32::from(pb::TaskState::Running),
                    created(task),
                )
            });
        return current.ok_or_else(|| missing(Kind::Task, name));
    }
    let id_prefixes = vec![name.to_owned()];
    let filters = pb::list_tasks_request::Filters {
        id_prefixes,
        ..Default::default()
    };
    choose(
        Kind::Task,
        name,
        Vec::new(),
        client.list_tasks(filters).await?,
    )
}

/// A cluster by ID, name or ID prefix; without a name the only one.
pub(crate) async fn cluster(client: &mut Client, name: Option<&str>) -> Result<pb::Cluster, Error> {
    let all = client
        .list_clusters(pb::list_clusters_request::Filters::default())
        .await?;
    match name {
        Some(name) => {
            given(Kind::Cluster, name)?;
            let prefixed = all
                .iter()
                .filter(|c| c.id.starts_with(name))
                .cloned()
                .collect();
            choose(Kind::Cluster, name, all, prefixed)
        }
        None => choose(Kind::Cluster, "", Vec::new(), all),
    }
}

/// A network's ID by ID, name or ID prefix. A manager without networks leaves the name as it is: it
/// will say itself what it can't do.
pub(crate) async fn network(client: &mut Client, name: &str) -> Result<String, Error> {
    given(Kind::Network, name)?;
    let all = match client
        .list_networks(pb::list_networks_request::Filters::default())
        .await
    {
        Ok(networks) => networks,
        Err(status) if status.code() == tonic::Code::Unimplemented => return Ok(name.to_owned()),
        Err(status) => return Err(Error::refused("list networks", status)),
    };
    let named = |network: &pb::Network| {
        let annotations = network
            .spec
            .as_ref()
            .and_then(|spec| spec.annotations.as_ref());
        annotations.is_some_and(|annotations| annotations.name == name)
    };
    let exact = all
        .iter()
        .find(|network| network.id == name)
        .or(all.iter().find(|n| named(n)));
    let prefixed: Vec<_> = all
        .iter()
        .filter(|network| network.id.starts_with(name))
        .collect();
    match (exact, prefixed.as_slice()) {
        (Some(network), _) => Ok(network.id.clone()),
        (None, [network]) => Ok(network.id.clone()),
        (None, _) => Err(missing(Kind::Network, name)),
    }
}

/// Hostnames by node ID.
pub(crate) async fn node_names(
    client: &mut Client,
    naming: Naming,
) -> Result<BTreeMap<String, String>, Error> {
    match naming {
        Naming::Ids => Ok(BTreeMap::new()),
        Naming::Names => {
            let nodes = client
                .list_nodes(pb::list_nodes_request::Filters::default())
                .await?;
            Ok(nodes
                .into_iter()
                .map(|node| (node.id.clone(), node_name(&node)))
                .collect())
        }
    }
}

/// Creation time as (seconds, nanoseconds), to order by.
pub(crate) fn created(task: &pb::Task) -> (i64, i32) {
    let created = task.meta.as_ref().and_then(|meta| meta.created_at);
    created.map_or((0, 0), |at| (at.seconds, at.nanos))
}

fn looks_like_id(name: &str) -> bool {
    name.len() == ID_LENGTH
        && name
            .bytes()
            .all(|byte| byte.is_ascii_digit() || byte.is_ascii_lowercase())
}

fn missing(kind: Kind, name: &str) -> Error {
    Error::NotFound {
        kind,
        name: name.to_owned(),
    }
}

/// An empty name, as of a variable that is not set, is a prefix of every ID, and so would name whatever there is.
fn given(kind: Kind, name: &str) -> Result<(), Error> {
    match name.trim().is_empty() {
        true => Err(Error::Unnamed { kind }),
        false => Ok(()),
    }
}

fn choose<T: Named>(
    kind: Kind,
    name: &str,
    by_name: Vec<T>,
    by_prefix: Vec<T>,
) -> Result<T, Error> {
    let mut exact: Vec<T> = by_name
        .into_iter()
        .filter(|object| object.name() == name)
        .collect();
    if exact.is_empty() {
        exact = by_prefix
            .into_iter()
            .filter(|object| object.id().starts_with(name))
            .collect();
    }
    if exact.len() > 1 {
        let mut candidates: Vec<String> = exact
            .iter()
            .map(|object| format!("{} ({})", object.id(), object.name()))
            .collect();
        candidates.sort();
        return Err(Error::Ambiguous {
            kind,
            name: name.to_owned(),
            candidates,
        });
    }
    exact.pop().ok_or_else(|| missing(kind, name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(id: &str, hostname: &str) -> pb::Node {
        let description = pb::NodeDescription {
            hostname: hostname.to_owned(),
            ..Default::default()
        };
        pb::Node {
            id: id.to_owned(),
            description: Some(description),
            ..Default::default()
        }
    }

    #[test]
    fn a_name_wins_over_a_prefix() {
        let named = vec![node("b1", "a")];
        let prefixed = vec![node("a1", "x"), node("a2", "y")];
        assert_eq!(choose(Kind::Node, "a", named, prefixed).unwrap().id, "b1");
    }

    #[test]
    fn two_of_a_name_are_listed() {
        let named = vec![node("b2", "a"), node("b1", "a")];
        let error = choose(Kind::Node, "a", named, Vec::new()).unwrap_err();
        assert_eq!(
            error.to_string(),
            "node a is ambiguous, use an ID of: b1 (a), b2 (a)"
        );
    }

    #[test]
    fn a_filter_the_manager_ignored_finds_nothing() {
        let all = vec![node("b1", "b")];
        let error = choose(Kind::Node, "a", all.clone(), all).unwrap_err();
        assert!(error.to_string().starts_with("node a not found"), "{error}");
    }
}
