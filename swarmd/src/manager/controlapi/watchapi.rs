//! The watch API: what changed, in order and without gaps, as far as a client asked for it.
//!
//! An empty first message says that the watch is in place. A client that falls behind gets ABORTED
//! and reads again (promise P3).

use std::sync::Arc;

use swarm_proto::id::{NodeId, ServiceId};
use swarm_proto::pb;
use swarm_proto::pb::object::Object as Wire;
use swarm_proto::pb::select_by::By;
use swarm_proto::pb::watch_server::Watch;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::{ControlApi, Error};
use crate::manager::convert;
use crate::manager::store::watch::{Commit, Subscription};
use crate::manager::store::{Event, State};

/// Messages that wait for a slow client before the watch stops reading commits.
const QUEUE: usize = 16;

#[tonic::async_trait]
impl Watch for ControlApi {
    type WatchStream = ReceiverStream<Result<pb::WatchMessage, Status>>;

    async fn watch(
        &self,
        request: Request<pb::WatchRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let request = request.into_inner();
        for entry in &request.entries {
            check_entry(entry)?;
        }
        let hub = self.store.hub();
        let (version, subscription) = match &request.resume_from {
            Some(from) => (
                from.index,
                hub.subscribe_from(from.index).map_err(Error::from)?,
            ),
            None => {
                let (state, subscription) = hub.subscribe();
                (state.version, subscription)
            }
        };
        let (sender, receiver) = mpsc::channel(QUEUE);
        let ready = pb::WatchMessage {
            events: Vec::new(),
            version: Some(pb::Version { index: version }),
        };
        // The queue is empty: this can't fail.
        let _ = sender.try_send(Ok(ready));
        self.watches.spawn(forward(request, subscription, sender));
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}

/// Sends what a client asked for until it goes away.
async fn forward(
    request: pb::WatchRequest,
    mut subscription: Subscription,
    sender: mpsc::Sender<Result<pb::WatchMessage, Status>>,
) {
    loop {
        let commit = tokio::select! {
            biased;
            // Nobody reads any more: end rather than wait for a commit.
            () = sender.closed() => return,
            commit = subscription.next() => commit,
        };
        let message = match commit {
            Ok(commit) => Ok(message(&request, &commit)),
            Err(lagged) => Err(Error::from(lagged).into()),
        };
        let ended = message.is_err();
        if matches!(&message, Ok(m) if m.events.is_empty()) {
            continue;
        }
        if sender.send(message).await.is_err() || ended {
            return;
        }
    }
}

fn message(request: &pb::WatchRequest, commit: &Commit) -> pb::WatchMessage {
    let events = commit
        .events
        .iter()
        .filter_map(|e| event(request, &commit.state, e))
        .collect();
    pb::WatchMessage {
        events,
        version: Some(pb::Version {
            index: commit.version,
        }),
    }
}

/// An object on the wire, with what filters look at.
fn event(
    request: &pb::WatchRequest,
    state: &State,
    event: &Event,
) -> Option<pb::watch_message::Event> {
    let (old, new) = objects(state, event)?;
    let action = match (&old, &new) {
        (None, Some(_)) => pb::WatchActionKind::WatchActionCreate,
        (Some(_), Some(_)) => pb::WatchActionKind::WatchActionUpdate,
        (_, None) => pb::WatchActionKind::WatchActionRemove,
    };
    let object = new.or_else(|| old.clone())?;
    if !request.entries.is_empty() && !request.entries.iter().any(|e| wanted(e, action, &object)) {
        return None;
    }
    let updated = action == pb::WatchActionKind::WatchActionUpdate;
    let old = old.filter(|_| updated && request.include_old_object);
    Some(pb::watch_message::Event {
        action: action.into(),
        object: Some(pb::Object {
            object: Some(object),
        }),
        old_object: old.map(|o| pb::Object { object: Some(o) }),
    })
}

type Pair = (Option<Wire>, Option<Wire>);

fn objects(state: &State, event: &Event) -> Option<Pair> {
    Some(match event {
        Event::Cluster { old, new } => {
            let wire = |c| Wire::Cluster(convert::cluster_to_wire(c));
            (old.as_ref().map(|c| wire(c)), Some(wire(new)))
        }
        Event::Node { old, new } => {
            let wire = |n: &Arc<_>| Wire::Node(convert::node_to_wire(n));
            (old.as_ref().map(wire), new.as_ref().map(wire))
        }
        Event::Service { old, new } => {
            let wire = |s: &Arc<_>| Wire::Service(convert::service_to_wire(s));
            // A service is gone for its users when it is removed, not with its last task.
            let old = old.as_ref().filter(|s| !s.removed).map(wire);
            let new = new.as_ref().filter(|s| !s.removed).map(wire);
            if old.is_none() && new.is_none() {
                return None;
            }
            (old, new)
        }
        Event::Task { old, new } => {
            let wire = |t: &Arc<_>| Wire::Task(convert::task_to_wire(state, t));
            (old.as_ref().map(wire), new.as_ref().map(wire))
        }
    })
}

fn check_entry(entry: &pb::watch_request::WatchEntry) -> Result<(), Error> {
    let known = ["", "node", "service", "task", "cluster"];
    let later = [
        "network",
        "secret",
        "config",
        "resource",
        "extension",
        "volume",
    ];
    if later.contains(&entry.kind.as_str()) {
        let kind = &entry.kind;
        return Err(Error::Unimplemented(format!(
            "this version does not serve {kind}s"
        )));
    }
    if !known.contains(&entry.kind.as_str()) {
        return Err(Error::InvalidArgument(format!(
            "unrecognized object type {:?} in watch request",
            entry.kind
        )));
    }
    Ok(())
}

fn wanted(
    entry: &pb::watch_request::WatchEntry,
    action: pb::WatchActionKind,
    object: &Wire,
) -> bool {
    let kind = match object {
        Wire::Node(_) => "node",
        Wire::Service(_) => "service",
        Wire::Task(_) => "task",
        Wire::Cluster(_) => "cluster",
        Wire::Network(_) => "network",
        Wire::Secret(_) => "secret",
        Wire::Resource(_) => "resource",
        Wire::Extension(_) => "extension",
        Wire::Config(_) => "config",
        Wire::Volume(_) => "volume",
    };
    (entry.kind.is_empty() || entry.kind == kind)
        // No action asked for means all of them; otherwise it is a bit mask.
        && (entry.action == 0 || entry.action & i32::from(action) != 0)
        && entry.filters.iter().all(|f| f.by.as_ref().is_none_or(|by| matches(by, object)))
}

/// What filters look at, whatever the object is.
#[derive(Debug, Default)]
struct Facts<'a> {
    id: &'a str,
    name: Option<&'a str>,
    service: Option<&'a str>,
    node: Option<&'a str>,
    slot: Option<u64>,
    desired_state: Option<i32>,
    role: Option<i32>,
    membership: Option<i32>,
}

fn facts(object: &Wire) -> Facts<'_> {
    fn name(annotations: Option<&pb::Annotations>) -> Option<&str> {
        annotations.map(|a| a.name.as_str())
    }
    match object {
        Wire::Node(n) => Facts {
            id: &n.id,
            name: n.description.as_ref().map(|d| d.hostname.as_str()),
            role: Some(n.role),
            membership: n.spec.as_ref().map(|s| s.membership),
            ..Facts::default()
        },
        Wire::Service(s) => Facts {
            id: &s.id,
            name: name(s.spec.as_ref().and_then(|s| s.annotations.as_ref())),
            ..Facts::default()
        },
        Wire::Task(t) => Facts {
            id: &t.id,
            name: name(t.annotations.as_ref()),
            service: Some(&t.service_id),
            node: Some(&t.node_id),
            slot: Some(t.slot),
            desired_state: Some(t.desired_state),
            ..Facts::default()
        },
        Wire::Cluster(c) => Facts {
            id: &c.id,
            name: name(c.spec.as_ref().and_then(|s| s.annotations.as_ref())),
            ..Facts::default()
        },
        // Never published by this version.
        Wire::Network(_)
        | Wire::Secret(_)
        | Wire::Resource(_)
        | Wire::Extension(_)
        | Wire::Config(_)
        | Wire::Volume(_) => Facts::default(),
    }
}

fn matches(by: &By, object: &Wire) -> bool {
    let f = facts(object);
    match by {
        By::Id(id) => f.id == id,
        By::IdPrefix(prefix) => f.id.starts_with(prefix.as_str()),
        By::Name(name) => f.name.is_some_and(|n| n.eq_ignore_ascii_case(name)),
        By::NamePrefix(prefix) => f
            .name
            .is_some_and(|n| n.to_lowercase().starts_with(&prefix.to_lowercase())),
        By::ServiceId(id) => f.service == Some(id) && id.parse::<ServiceId>().is_ok(),
        By::NodeId(id) => f.node == Some(id) && id.parse::<NodeId>().is_ok(),
        By::Slot(slot) => f.service == Some(&slot.service_id) && f.slot == Some(slot.slot),
        By::DesiredState(state) => f.desired_state == Some(*state),
        By::Role(role) => f.role == Some(*role),
        By::Membership(membership) => f.membership == Some(*membership),
        // Objects of this version refer to none of these, and have no custom indices.
        By::Custom(_)
        | By::CustomPrefix(_)
        | By::ReferencedNetworkId(_)
        | By::ReferencedSecretId(_)
        | By::ReferencedConfigId(_)
        | By::Kind(_) => false,
    }
}
