//! The RPCs of the dispatcher, and of leaving the cluster.
//!
//! Each finds out who calls from the certificate, never from the request.

use std::sync::Arc;

use swarm_proto::id::NodeId;
use swarm_proto::pb;
use swarm_proto::pb::dispatcher_server::Dispatcher as Rpc;
use swarm_proto::time::duration_to_wire;
use tonic::{Request, Response, Status};

use super::sessions::Session;
use super::stream::{self, Messages, Parts};
use super::usage::Usage;
use super::{Dispatcher, Term, heartbeat, status};
use crate::manager::authorize::Caller;
use crate::manager::controlapi::error::Error;
use crate::manager::dispatcher::heartbeat::Patience;
use crate::manager::random_id;
use crate::manager::store::Change;

/// Bytes of what a node may say of itself; it is kept by every manager, and told to whoever asks.
const DESCRIPTION_BYTES_MAX: usize = 256 << 10;

/// Who calls.
fn caller<T>(request: &Request<T>) -> Result<NodeId, Status> {
    Ok(Caller::of(request)?.node()?.node_id)
}

impl Term {
    /// The caller's session, which has to be the one the request names.
    fn session_of(&self, node: NodeId, id: &str) -> Result<Session, Status> {
        let sessions = self.sessions();
        let session = sessions.check(node, id).cloned();
        session.map_err(|e| Status::invalid_argument(e.to_string()))
    }

    /// Whether a node says nothing new of itself.
    fn is_as_stored(&self, node: NodeId, says: Option<&pb::NodeDescription>) -> bool {
        let state = self.store.view();
        let stored = state
            .nodes
            .get(&node)
            .and_then(|n| n.description.as_deref());
        says.is_none_or(|says| stored == Some(says))
    }

    /// The host of a manager's first address.
    fn address_of(&self, node: NodeId) -> Option<String> {
        let (managers, id) = (self.managers.borrow(), node.to_string());
        let peers = managers.iter().filter_map(|m| m.peer.as_ref());
        let addr = peers.into_iter().find(|p| p.node_id == id)?.addr.clone();
        let (host, _port) = addr.rsplit_once(':')?;
        Some(host.trim_matches(['[', ']']).to_owned())
    }

    /// Opens a session: the node is READY once this returns.
    async fn register(
        &self,
        node: NodeId,
        addr: Option<String>,
        description: Option<pb::NodeDescription>,
    ) -> Result<Session, Status> {
        let state = self.store.view();
        if !state.nodes.contains_key(&node) {
            return Err(Status::not_found(format!(
                "node {node} is not part of the cluster: it was removed, or never joined; `swarmd leave` on it ends its tasks, and lets it join again"
            )));
        }
        let size = description.as_ref().map_or(0, prost::Message::encoded_len);
        if size > DESCRIPTION_BYTES_MAX {
            return Err(Status::invalid_argument(format!(
                "node {node}: its description has {size} bytes, at most {DESCRIPTION_BYTES_MAX} are allowed"
            )));
        }
        let session = Session {
            id: NodeId::from_raw(random_id()).to_string(),
            closed: self.stopped.child_token(),
        };
        {
            // Opened before READY is written: see `heartbeat::mark_down`.
            let now = self.clock.monotonic();
            let mut sessions = self.sessions();
            let admitted = sessions.admit(node, now);
            admitted.map_err(|e| Status::unavailable(e.to_string()))?;
            sessions.open(node, session.clone());
            let period = heartbeat::period(&state);
            sessions.expiry.beat(node, now, period, Patience::Session);
        }
        self.expiry_changed.notify_one();
        let ready = Change::SetNodeStatus {
            id: node,
            state: pb::node_status::State::Ready,
            message: String::new(),
            addr,
            description: description.map(Arc::new),
        };
        let written = self.write_one(ready).await;
        if let Err(status) = written {
            // It may be READY all the same: it goes on being waited for.
            self.sessions().abandon(node, &session.id);
            return Err(status);
        }
        tracing::info!(node.id = %node, "node registered");
        Ok(session)
    }

    async fn write_one(&self, change: Change) -> Result<(), Status> {
        let written = self
            .store
            .write(self.store.time(&self.clock), vec![change])
            .await;
        for result in written.map_err(Error::from)?.results {
            result.map_err(Error::from)?;
        }
        Ok(())
    }
}

#[tonic::async_trait]
impl Rpc for Dispatcher {
    type SessionStream = Messages<pb::SessionMessage>;
    type TasksStream = Messages<pb::TasksMessage>;
    type AssignmentsStream = Messages<pb::AssignmentsMessage>;

    async fn session(
        &self,
        request: Request<pb::SessionRequest>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let term = self.term()?;
        let node = caller(&request)?;
        let addr = Caller::of(&request)?.remote.map(|remote| {
            let ip = remote.ip().to_canonical();
            match ip.is_loopback() {
                // A manager's own agent: the address that the others reach it by is the one to tell.
                true => term.address_of(node).unwrap_or_else(|| ip.to_string()),
                false => ip.to_string(),
            }
        });
        let shown = Caller::of(&request)?.node()?.not_after;
        let mut request = request.into_inner();
        let says = request.description.as_mut();
        if let Some(tls) = says.and_then(|says| says.tls_info.as_mut()) {
            // The CA has to know whether the node uses the certificate that it was issued last.
            tls.shown_not_after = shown.to_wire();
        }
        // A node that lost its connection only goes on with the session it has. One that is not what it was registers:
        // what it says of itself now has to be written.
        let known = term.session_of(node, &request.session_id).ok();
        let known = known.filter(|_| term.is_as_stored(node, request.description.as_ref()));
        let session = match known {
            Some(session) => session,
            None => term.register(node, addr, request.description).await?,
        };
        Ok(Response::new(stream::session(term, node, session)))
    }

    async fn heartbeat(
        &self,
        request: Request<pb::HeartbeatRequest>,
    ) -> Result<Response<pb::HeartbeatResponse>, Status> {
        let term = self.term()?;
        let node = caller(&request)?;
        let request = request.into_inner();
        let id = request.session_id;
        let state = term.store.view();
        let period = heartbeat::period(&state);
        let usage = Usage::of(&state, node, request.usage, term.clock.now());
        {
            let mut sessions = term.sessions();
            let known = sessions.check(node, &id).map(|_| ());
            known.map_err(|e| Status::invalid_argument(e.to_string()))?;
            let now = term.clock.monotonic();
            sessions.expiry.beat(node, now, period, Patience::Session);
            sessions.note_usage(node, usage);
        }
        // The upper half of the number is as random as any.
        let random = u32::try_from(random_id() >> 96).unwrap_or(u32::MAX / 2);
        Ok(Response::new(pb::HeartbeatResponse {
            period: Some(duration_to_wire(heartbeat::spread(period, random))),
        }))
    }

    async fn update_task_status(
        &self,
        request: Request<pb::UpdateTaskStatusRequest>,
    ) -> Result<Response<pb::UpdateTaskStatusResponse>, Status> {
        let term = self.term()?;
        let node = caller(&request)?;
        let request = request.into_inner();
        term.session_of(node, &request.session_id)?;
        let reports = status::check(&term.store.view(), node, request.updates);
        let reports = reports.map_err(|refusal| match refusal {
            status::Refusal::Foreign { .. } => Status::permission_denied(refusal.to_string()),
            status::Refusal::State { .. } => Status::invalid_argument(refusal.to_string()),
        })?;
        if !reports.is_empty() {
            let _timed = term.store.latencies().status.timed();
            let written = term.statuses.write(node, reports).await;
            written.map_err(Error::from)?;
        }
        Ok(Response::new(pb::UpdateTaskStatusResponse {}))
    }

    async fn update_volume_status(
        &self,
        request: Request<pb::UpdateVolumeStatusRequest>,
    ) -> Result<Response<pb::UpdateVolumeStatusResponse>, Status> {
        let term = self.term()?;
        let node = caller(&request)?;
        let request = request.into_inner();
        term.session_of(node, &request.session_id)?;
        if request.updates.is_empty() {
            return Ok(Response::new(pb::UpdateVolumeStatusResponse {}));
        }
        Err(Status::unimplemented("cluster volumes are not served"))
    }

    async fn tasks(
        &self,
        request: Request<pb::TasksRequest>,
    ) -> Result<Response<Self::TasksStream>, Status> {
        let term = self.term()?;
        let node = caller(&request)?;
        let session = term.session_of(node, &request.into_inner().session_id)?;
        Ok(Response::new(stream::tasks(term, node, session)))
    }

    async fn assignments(
        &self,
        request: Request<pb::AssignmentsRequest>,
    ) -> Result<Response<Self::AssignmentsStream>, Status> {
        let term = self.term()?;
        let node = caller(&request)?;
        let request = request.into_inner();
        let session = term.session_of(node, &request.session_id)?;
        let parts = if request.accepts_parts {
            Parts::Many
        } else {
            Parts::One
        };
        let stream = stream::assignments(term, node, session, parts);
        Ok(Response::new(stream))
    }
}

impl Dispatcher {
    /// The node leaves: its session ends, and its tasks run elsewhere at once.
    pub(crate) async fn leave(&self, node: NodeId) -> Result<(), Status> {
        let term = self.term()?;
        // Told before its session ends: the node would register again, and READY come after DOWN.
        term.sessions().leave(node, term.clock.monotonic());
        let down = Change::SetNodeStatus {
            id: node,
            state: pb::node_status::State::Down,
            message: "node left the cluster".to_owned(),
            addr: None,
            description: None,
        };
        let written = term.write_one(down).await;
        if let Err(status) = written {
            term.sessions().stay(node);
            return Err(status);
        }
        term.sessions().close(node, None);
        tracing::info!(node.id = %node, "node left the cluster");
        Ok(())
    }
}
