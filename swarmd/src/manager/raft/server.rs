//! What the other managers call. Authorization (manager role only) is the layer in front, which also says who calls.

use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;

use futures::{Stream, StreamExt as _};
use openraft::Raft;
use openraft::raft::VoteRequest;
use swarm_proto::own;
use swarm_proto::own::raft_server;
use swarm_proto::own::raft_snapshot_chunk::Part;
use tonic::{Request, Response, Status, Streaming};

use super::epoch::Epoch;
use super::freshness::Freshness;
use super::gate::{Gate, Sender};
use super::network::MAX_MESSAGE;
use super::snapshot::SnapshotStore;
use super::state_machine::{Machine, StateMachine};
use super::transfer;
use super::types::{RaftId, Snapshot, Types};
use super::whereabouts::Whereabouts;
use super::wire::{self, WireError};
use crate::manager::authorize::{Caller, Who};

/// The service `swarm.v1.Raft` of one manager.
pub struct RaftService<M: Machine> {
    raft: Raft<Types, StateMachine<M>>,
    id: RaftId,
    snapshots: Arc<SnapshotStore>,
    gate: Arc<Gate>,
    freshness: Arc<Freshness>,
    whereabouts: Arc<Whereabouts>,
}

impl<M: Machine> RaftService<M> {
    pub(crate) fn new(
        raft: Raft<Types, StateMachine<M>>,
        id: RaftId,
        (snapshots, gate, whereabouts): (Arc<SnapshotStore>, Arc<Gate>, Arc<Whereabouts>),
        freshness: Arc<Freshness>,
    ) -> Self {
        Self {
            raft,
            id,
            snapshots,
            gate,
            freshness,
            whereabouts,
        }
    }

    /// The service, with its message size limit, to be added to a router.
    pub fn into_server(self) -> raft_server::RaftServer<Self> {
        raft_server::RaftServer::new(self)
            .max_decoding_message_size(MAX_MESSAGE)
            .max_encoding_message_size(MAX_MESSAGE)
    }

    /// What a candidate asks of this member.
    fn vote_request(
        &self,
        request: Request<own::RaftVoteRequest>,
    ) -> Result<VoteRequest<Types>, Status> {
        self.gate.admit(request.metadata(), Sender::Anyone)?;
        self.hear(&request);
        let request = request.into_inner();
        check_target(request.to, self.id)?;
        wire::parse_vote_request(request).map_err(invalid)
    }

    /// Takes note of where the caller says it is: of one whose own certificate says who it is.
    fn hear<T>(&self, request: &Request<T>) {
        if let Ok(caller) = Caller::of(request)
            && let Who::Node(node) = &caller.who
            && caller.forwarded_by.is_none()
        {
            let node = node.node_id.to_string();
            self.whereabouts
                .called(request.metadata(), &node, remote(request));
        }
    }

    /// An answer that says where this member is, and where it sees the caller.
    fn answer<T>(&self, body: T, remote: Option<IpAddr>) -> Response<T> {
        let mut response = Response::new(body);
        self.whereabouts.answer(response.metadata_mut(), remote);
        response
    }
}

/// Where a call comes from.
fn remote<T>(request: &Request<T>) -> Option<IpAddr> {
    Some(Caller::of(request).ok()?.remote?.ip())
}

/// A message for another member must not be answered: its sender's idea of addresses is stale.
fn check_target(to: RaftId, id: RaftId) -> Result<(), Status> {
    if to == id {
        return Ok(());
    }
    Err(Status::failed_precondition(format!(
        "raft message for member {to} reached member {id}: an address changed hands"
    )))
}

fn invalid(error: WireError) -> Status {
    Status::invalid_argument(error.to_string())
}

fn stopped(error: impl std::fmt::Display) -> Status {
    Status::unavailable(format!("raft of this manager has stopped: {error}"))
}

#[tonic::async_trait]
impl<M: Machine> raft_server::Raft for RaftService<M> {
    type AppendStream =
        Pin<Box<dyn Stream<Item = Result<own::RaftAppendResponse, Status>> + Send + 'static>>;

    async fn append(
        &self,
        requests: Request<Streaming<own::RaftAppendRequest>>,
    ) -> Result<Response<Self::AppendStream>, Status> {
        let (id, gate) = (self.id, Arc::clone(&self.gate));
        let call = requests.metadata().clone();
        // Refused as a whole, so that the sender hears why; who has no epoch yet sees by the first message whether it is
        // meant.
        if gate.epoch() != Epoch::NONE {
            gate.admit(&call, Sender::Leader)?;
            self.hear(&requests);
        }
        let remote = remote(&requests);
        // A bad request ends the stream, as a lost connection does; why goes to the log.
        let freshness = Arc::clone(&self.freshness);
        let requests = requests.into_inner().map(move |request| {
            let request = request?;
            check_target(request.to, id)?;
            // Each: fenced meanwhile, this member takes no more.
            gate.admit(&call, Sender::Leader)?;
            let agreement = request.agreement;
            let request = wire::parse_append_request(request).map_err(invalid)?;
            freshness.heard(&request.vote, agreement.as_ref());
            Ok::<_, Status>(request)
        });
        let requests = requests
            .take_while(|request| {
                let refused = request.as_ref().err();
                if let Some(status) = refused {
                    tracing::debug!(%status, "append stream ends");
                }
                std::future::ready(refused.is_none())
            })
            .filter_map(|request| std::future::ready(request.ok()));
        let freshness = Arc::clone(&self.freshness);
        let responses = self.raft.stream_append(requests).map(move |result| {
            let mut response = wire::append_response(result.map_err(stopped)?);
            response.mark = Some(freshness.mark());
            Ok(response)
        });
        let responses: Self::AppendStream = Box::pin(responses);
        Ok(self.answer(responses, remote))
    }

    async fn vote(
        &self,
        request: Request<own::RaftVoteRequest>,
    ) -> Result<Response<own::RaftVoteResponse>, Status> {
        let remote = remote(&request);
        let request = self.vote_request(request)?;
        let response = self.raft.vote(request).await.map_err(stopped)?;
        Ok(self.answer(wire::vote_response(&response), remote))
    }

    async fn pre_vote(
        &self,
        request: Request<own::RaftVoteRequest>,
    ) -> Result<Response<own::RaftVoteResponse>, Status> {
        let remote = remote(&request);
        let request = self.vote_request(request)?;
        let response = self.raft.pre_vote(request).await.map_err(stopped)?;
        Ok(self.answer(wire::vote_response(&response), remote))
    }

    async fn snapshot(
        &self,
        chunks: Request<Streaming<own::RaftSnapshotChunk>>,
    ) -> Result<Response<own::RaftSnapshotResponse>, Status> {
        let call = chunks.metadata().clone();
        if self.gate.epoch() != Epoch::NONE {
            self.gate.admit(&call, Sender::Leader)?;
        }
        let mut chunks = chunks.into_inner();
        let Some(Part::Header(header)) = transfer::next_part(&mut chunks).await? else {
            return Err(Status::invalid_argument("snapshot without a header"));
        };
        check_target(header.to, self.id)?;
        self.gate.admit(&call, Sender::Leader)?;
        let vote = wire::parse_vote(header.vote).map_err(invalid)?;
        let meta = header.meta.ok_or(WireError::Missing("snapshot metadata"));
        let meta = meta.and_then(wire::parse_snapshot_meta).map_err(invalid)?;
        let file = transfer::receive(&self.snapshots, meta.clone(), &mut chunks).await?;
        let snapshot = Snapshot {
            meta,
            snapshot: file,
        };
        let response = self.raft.install_full_snapshot(vote, snapshot).await;
        let response = response.map_err(stopped)?;
        Ok(Response::new(own::RaftSnapshotResponse {
            vote: Some(wire::vote(&response.vote)),
        }))
    }

    async fn transfer_leader(
        &self,
        request: Request<own::RaftTransferLeaderRequest>,
    ) -> Result<Response<own::RaftTransferLeaderResponse>, Status> {
        self.gate.admit(request.metadata(), Sender::Anyone)?;
        let request = request.into_inner();
        check_target(request.to, self.id)?;
        let request = wire::parse_transfer_request(request).map_err(invalid)?;
        let response = self.raft.handle_transfer_leader(request).await;
        Ok(Response::new(wire::transfer_response(
            response.map_err(stopped)?,
        )))
    }

    async fn fence(
        &self,
        request: Request<own::RaftFenceRequest>,
    ) -> Result<Response<own::RaftFenceResponse>, Status> {
        self.gate.be_told(request).map(Response::new)
    }
}

impl<M: Machine> std::fmt::Debug for RaftService<M> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "RaftService({})", self.id)
    }
}

/// The service `swarm.v1.Raft` of a member that is fenced: it takes nothing, and says why.
pub(crate) struct FencedService(pub(crate) Arc<Gate>);

impl FencedService {
    fn refuse<T, A>(&self, request: &Request<T>) -> Result<A, Status> {
        self.0.admit(request.metadata(), Sender::Anyone)?;
        Err(Status::failed_precondition("this manager is fenced"))
    }
}

#[tonic::async_trait]
impl raft_server::Raft for FencedService {
    type AppendStream = futures::stream::Empty<Result<own::RaftAppendResponse, Status>>;

    async fn append(
        &self,
        request: Request<Streaming<own::RaftAppendRequest>>,
    ) -> Result<Response<Self::AppendStream>, Status> {
        self.refuse(&request)
    }

    async fn vote(
        &self,
        request: Request<own::RaftVoteRequest>,
    ) -> Result<Response<own::RaftVoteResponse>, Status> {
        self.refuse(&request)
    }

    async fn pre_vote(
        &self,
        request: Request<own::RaftVoteRequest>,
    ) -> Result<Response<own::RaftVoteResponse>, Status> {
        self.refuse(&request)
    }

    async fn snapshot(
        &self,
        request: Request<Streaming<own::RaftSnapshotChunk>>,
    ) -> Result<Response<own::RaftSnapshotResponse>, Status> {
        self.refuse(&request)
    }

    async fn transfer_leader(
        &self,
        request: Request<own::RaftTransferLeaderRequest>,
    ) -> Result<Response<own::RaftTransferLeaderResponse>, Status> {
        self.refuse(&request)
    }

    async fn fence(
        &self,
        request: Request<own::RaftFenceRequest>,
    ) -> Result<Response<own::RaftFenceResponse>, Status> {
        self.0.be_told(request).map(Response::new)
    }
}

impl std::fmt::Debug for FencedService {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("FencedService")
    }
}
