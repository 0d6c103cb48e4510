//! The watch API: what changed, in order and without gaps, as far as a client asked for it.
//!
//! An empty first message says that the watch is in place. A client that falls behind gets ABORTED
//! and reads again (promise P3).

use std::sync::Arc;

use prost::Message as _;
use swarm_proto::pb;
use swarm_proto::pb::object::Object as Wire;
use swarm_proto::pb::select_by::By;
use swarm_proto::pb::watch_server::Watch;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::{ControlApi, Error};
use crate::manager::convert::{self, TaskRenderer};
use crate::manager::store::watch::{Commit, Subscription};
use crate::manager::store::{Cluster, Event, Node, Service, State, Task};

/// Messages that wait for a slow client before the watch stops reading commits.
const QUEUE: usize = 16;
/// Bytes of events in one message, about: gRPC's default limit is 4 MiB, and one more event with a large spec fits.
const MESSAGE_BYTES: usize = 1 << 20;

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
        let commit = match commit {
            Ok(commit) => commit,
            Err(lagged) => {
                let _ = sender.send(Err(Error::from(lagged).into())).await;
                return;
            }
        };
        for message in Messages::of(&request, &commit) {
            if sender.send(Ok(message)).await.is_err() {
                return;
            }
        }
    }
}

/// One commit as messages of a size that clients take, made one by one.
///
/// The last one has the commit's version, those before it the version before: who resumes from one of them is told the
/// whole commit again, and misses nothing.
struct Messages<'a> {
    request: &'a pb::WatchRequest,
    commit: &'a Commit,
    renderer: TaskRenderer<'a>,
    rest: &'a [Event],
}

impl<'a> Messages<'a> {
    fn of(request: &'a pb::WatchRequest, commit: &'a Commit) -> Self {
        Self {
            request,
            commit,
            renderer: TaskRenderer::for_operators(&commit.state),
            rest: &commit.events,
        }
    }
}

impl Iterator for Messages<'_> {
    type Item = pb::WatchMessage;

    fn next(&mut self) -> Option<pb::WatchMessage> {
        let (mut events, mut bytes) = (Vec::new(), 0);
        while bytes < MESSAGE_BYTES
            && let Some((event, rest)) = self.rest.split_first()
        {
            self.rest = rest;
            let told = Seen::of(event).and_then(|seen| seen.tell(self.request, &mut self.renderer));
            if let Some(event) = told {
                bytes += event.encoded_len();
                events.push(event);
            }
        }
        if events.is_empty() {
            return None;
        }
        // What nobody wants makes no message more.
        let unwanted = |event| {
            !Seen::of(event).is_some_and(|seen| seen.is_asked_for(self.request, &self.commit.state))
        };
        while let Some((event, rest)) = self.rest.split_first()
            && unwanted(event)
        {
            self.rest = rest;
        }
        let index = match self.rest {
            [] => self.commit.version,
            [_, ..] => self.commit.version.saturating_sub(1),
        };
        let version = Some(pb::Version { index });
        Some(pb::WatchMessage { events, version })
    }
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

/// An object of the store.
#[derive(Debug, Clone, Copy)]
enum Object<'a> {
    Cluster(&'a Cluster),
    Node(&'a Node),
    Service(&'a Service),
    Task(&'a Task),
}

/// What happened to an object, as a client sees it.
#[derive(Debug)]
struct Seen<'a> {
    action: pb::WatchActionKind,
    /// As it is now, or was last.
    object: Object<'a>,
    old: Option<Object<'a>>,
}

impl<'a> Seen<'a> {
    fn of(event: &'a Event) -> Option<Self> {
        let (old, new) = match event {
            Event::Cluster { old, new } => (
                old.as_deref().map(Object::Cluster),
                Some(Object::Cluster(new)),
            ),
            Event::Node { old, new } => (
                old.as_deref().map(Object::Node),
                new.as_deref().map(Object::Node),
            ),
            Event::Service { old, new } => {
                // A service is gone for its users when it is removed, not with its last task.
                let shown = |s: &'a Option<Arc<Service>>| {
                    s.as_deref().filter(|s| !s.removed).map(Object::Service)
                };
                (shown(old), shown(new))
            }
            Event::Task { old, new } => (
                old.as_deref().map(Object::Task),
                new.as_deref().map(Object::Task),
            ),
        };
        let action = match (&old, &new) {
            (None, Some(_)) => pb::WatchActionKind::WatchActionCreate,
            (Some(_), Some(_)) => pb::WatchActionKind::WatchActionUpdate,
            (_, None) => pb::WatchActionKind::WatchActionRemove,
        };
        let object = new.or(old)?;
        Some(Self {
            action,
            object,
            old,
        })
    }

    /// On the wire, where the client asked for it.
    fn tell(
        &self,
        request: &pb::WatchRequest,
        renderer: &mut TaskRenderer<'_>,
    ) -> Option<pb::watch_message::Event> {
        if !self.is_asked_for(request, renderer.state()) {
            return None;
        }
        let mut wire = |object: Object<'_>| pb::Object {
            object: Some(object.to_wire(renderer)),
        };
        let updated = self.action == pb::WatchActionKind::WatchActionUpdate;
        let old = self.old.filter(|_| updated && request.include_old_object);
        Some(pb::watch_message::Event {
            action: self.action.into(),
            object: Some(wire(self.object)),
            old_object: old.map(wire),
        })
    }

    fn is_asked_for(&self, request: &pb::WatchRequest, state: &State) -> bool {
        let entries = &request.entries;
        entries.is_empty() || entries.iter().any(|entry| self.is_wanted(entry, state))
    }

    fn is_wanted(&self, entry: &pb::watch_request::WatchEntry, state: &State) -> bool {
        (entry.kind.is_empty() || entry.kind == self.object.kind())
            // No action asked for means all of them; otherwise it is a bit mask.
            && (entry.action == 0 || entry.action & i32::from(self.action) != 0)
            && entry.filters.iter().all(|f| f.by.as_ref().is_none_or(|by| self.object.is(by, state)))
    }
}

impl Object<'_> {
    fn kind(self) -> &'static str {
        match self {
            Self::Cluster(_) => "cluster",
            Self::Node(_) => "node",
            Self::Service(_) => "service",
            Self::Task(_) => "task",
        }
    }

    fn to_wire(self, renderer: &mut TaskRenderer<'_>) -> Wire {
        match self {
            Self::Cluster(cluster) => Wire::Cluster(convert::cluster_to_wire(cluster)),
            Self::Node(node) => {
                let cluster = renderer.state().cluster.as_deref();
                Wire::Node(convert::node_to_wire(node, cluster))
            }
            Self::Service(service) => Wire::Service(convert::service_to_wire(service)),
            Self::Task(task) => Wire::Task(renderer.render(task)),
        }
    }

    fn id(self) -> String {
        match self {
            Self::Cluster(cluster) => cluster.id.to_string(),
            Self::Node(node) => node.id.to_string(),
            Self::Service(service) => service.id.to_string(),
            Self::Task(task) => task.id.to_string(),
        }
    }

    /// As SwarmKit's filters know it: of a node, its host name.
    fn name(self, state: &State) -> Option<String> {
        match self {
            Self::Cluster(cluster) => Some(cluster.spec.annotations.clone()?.name),
            Self::Node(node) => Some(node.description.as_ref()?.hostname.clone()),
            Self::Service(service) => Some(service.spec.name.clone()),
            Self::Task(task) => {
                let service = state.services.get(&task.service)?;
                Some(convert::task_name(&service.spec.name, task))
            }
        }
    }

    fn is(self, by: &By, state: &State) -> bool {
        let task = match self {
            Self::Task(task) => Some(task),
            Self::Cluster(_) | Self::Node(_) | Self::Service(_) => None,
        };
        let node = match self {
            Self::Node(node) => Some(node),
            Self::Cluster(_) | Self::Service(_) | Self::Task(_) => None,
        };
        let of_service = |id: &str| task.is_some_and(|t| id.parse() == Ok(t.service));
        match by {
            By::Id(id) => self.id() == *id,
            By::IdPrefix(prefix) => self.id().starts_with(prefix.as_str()),
            By::Name(name) => self
                .name(state)
                .is_some_and(|n| n.eq_ignore_ascii_case(name)),
            By::NamePrefix(prefix) => self
                .name(state)
                .is_some_and(|n| n.to_lowercase().starts_with(&prefix.to_lowercase())),
            By::ServiceId(id) => of_service(id),
            By::NodeId(id) => task
                .and_then(|t| t.node)
                .is_some_and(|node| id.parse() == Ok(node)),
            By::Slot(slot) => {
                of_service(&slot.service_id) && task.is_some_and(|t| t.slot == slot.slot)
            }
            By::DesiredState(state) => task.is_some_and(|t| t.desired.to_wire() == *state),
            By::Role(role) => node.is_some_and(|n| i32::from(n.role) == *role),
            By::Membership(membership) => {
                node.is_some_and(|n| i32::from(n.membership) == *membership)
            }
            // Objects of this version refer to none of these, and have no custom indices.
            By::Custom(_)
            | By::CustomPrefix(_)
            | By::ReferencedNetworkId(_)
            | By::ReferencedSecretId(_)
            | By::ReferencedConfigId(_)
            | By::Kind(_) => false,
        }
    }
}
