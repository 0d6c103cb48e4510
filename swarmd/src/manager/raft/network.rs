//! Calls to the other managers.
//!
//! One [`Peer`] talks to one member. Log replication is a bidirectional stream: requests don't wait
//! for responses, which come back in order. Connections come from a [`Dialer`], so that TLS is none
//! of this module's business; a member has several addresses ([`Whereabouts`]), and the next one is
//! tried after a failure.

use std::fmt::Display;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::{Stream, StreamExt as _};
use openraft::base::{BoxFuture, BoxStream};
use openraft::errors::{
    NetworkError, RPCError, ReplicationClosed, StreamingError, Timeout, Unreachable,
};
use openraft::network::RPCOption;
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, StreamAppendResult,
    TransferLeaderRequest, TransferLeaderResponse, VoteRequest, VoteResponse,
};
use openraft::{OptionalSend, RPCTypes, RaftNetworkFactory, RaftNetworkV2};
use swarm_proto::own;
use swarm_proto::own::raft_client::RaftClient;
use tonic::service::interceptor::InterceptedService;

use super::dial::{Dialer, Line};
use super::freshness::Freshness;
use super::gate::{Gate, Stamp};
use super::snapshot::SnapshotFile;
use super::transfer;
use super::types::{Member, RaftId, Snapshot, Types, Vote};
use super::whereabouts::Whereabouts;
use super::wire;

/// Largest raft message, bytes: [`super::log_store::READ_BYTES`] and one entry beyond, with room.
pub(crate) const MAX_MESSAGE: usize = 16 << 20;
/// How long setting up a replication stream may take. openraft's own limit for it is the heartbeat
/// interval, which a loaded machine or a long way exceeds; heartbeats are cut off by openraft.
const STREAM_SETUP: Duration = Duration::from_secs(1);
/// Replication streams are silent when there is nothing to send; a response that was asked for is
/// due within this time. Followers flush before they answer, and a disk may stall.
const RESPONSE_LIMIT: Duration = Duration::from_secs(5);
/// How long the news that entries are committed wait for an entry to go with; nobody waits for them.
const NEWS_WAIT: Duration = Duration::from_millis(2);
/// How long a call takes to fail that a silent leader does not make.
const SILENT_PAUSE: Duration = Duration::from_millis(100);
/// Timeouts in a row after which the connection is given up. One alone means a slow peer, and a new
/// connection would only be slower.
const TIMEOUTS: u32 = 3;

type RpcError = RPCError<Types>;

/// Makes a [`Peer`] for each member.
#[derive(Clone)]
pub(crate) struct Network {
    id: RaftId,
    dialer: Arc<dyn Dialer>,
    gate: Arc<Gate>,
    whereabouts: Arc<Whereabouts>,
    freshness: Arc<Freshness>,
}

impl Network {
    pub(crate) fn new(
        id: RaftId,
        dialer: Arc<dyn Dialer>,
        gate: Arc<Gate>,
        whereabouts: Arc<Whereabouts>,
        freshness: Arc<Freshness>,
    ) -> Self {
        Self {
            id,
            dialer,
            gate,
            whereabouts,
            freshness,
        }
    }
}

/// Every call says of which epoch it is, and where its sender is.
type Client = RaftClient<InterceptedService<Line, Stamp>>;

impl RaftNetworkFactory<Types> for Network {
    type Network = Peer;

    async fn new_client(&mut self, target: RaftId, member: &Member) -> Peer {
        Peer {
            id: self.id,
            target,
            member: member.clone(),
            dialer: Arc::clone(&self.dialer),
            gate: Arc::clone(&self.gate),
            whereabouts: Arc::clone(&self.whereabouts),
            freshness: Arc::clone(&self.freshness),
            open: None,
            timeouts: 0,
        }
    }
}

/// Calls to one member.
pub(crate) struct Peer {
    id: RaftId,
    target: RaftId,
    member: Member,
    dialer: Arc<dyn Dialer>,
    gate: Arc<Gate>,
    whereabouts: Arc<Whereabouts>,
    freshness: Arc<Freshness>,
    open: Option<Open>,
    timeouts: u32,
}

/// A connection that was begun.
struct Open {
    address: String,
    client: Client,
    /// The member has answered over it.
    proved: bool,
}

impl Peer {
    fn client(&mut self) -> Result<Client, RpcError> {
        let next = self.whereabouts.next(&self.member);
        if let Some(open) = &self.open
            && (open.proved || next.as_ref() == Some(&open.address))
        {
            return Ok(open.client.clone());
        }
        let address =
            next.ok_or_else(|| unreachable(format!("manager {} has no address", self.target)))?;
        let line = self.dialer.dial(&self.member, &address);
        let line = line.map_err(|error| {
            self.whereabouts.failed(&self.member, &address);
            unreachable(error)
        })?;
        let stamp = Stamp(Arc::clone(&self.gate), Arc::clone(&self.whereabouts));
        let client = RaftClient::with_interceptor(line, stamp)
            .max_decoding_message_size(MAX_MESSAGE)
            .max_encoding_message_size(MAX_MESSAGE);
        self.timeouts = 0;
        self.open = Some(Open {
            address,
            client: client.clone(),
            proved: false,
        });
        Ok(client)
    }

    /// Runs one call within its limit; after a failure the next address is tried.
    async fn call<T>(
        &mut self,
        action: RPCTypes,
        limit: Duration,
        call: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>,
    ) -> Result<T, RpcError> {
        match tokio::time::timeout(limit, call).await {
            Ok(Ok(response)) => {
                self.timeouts = 0;
                self.proved(&response);
                Ok(response.into_inner())
            }
            Ok(Err(status)) => {
                self.gate.heard(&status);
                self.hang_up();
                Err(unreachable(status))
            }
            Err(_) => {
                self.timeouts += 1;
                if self.timeouts >= TIMEOUTS || self.may_be_elsewhere() {
                    self.hang_up();
                }
                Err(self.timeout(action, limit))
            }
        }
    }

    /// Runs a call for a vote, or for the word that there would be one.
    async fn ask_for_vote(
        &mut self,
        option: RPCOption,
        call: impl Future<Output = Result<tonic::Response<own::RaftVoteResponse>, tonic::Status>>,
    ) -> Result<VoteResponse<Types>, RpcError> {
        let response = self.call(RPCTypes::Vote, option.soft_ttl(), call).await?;
        wire::parse_vote_response(response).map_err(network)
    }

    /// The member has answered: this is where it is.
    fn proved<T>(&mut self, response: &tonic::Response<T>) {
        if let Some(open) = &mut self.open {
            open.proved = true;
            let said = response.metadata();
            self.whereabouts.answered(said, &self.member, &open.address);
            self.whereabouts.worked(&self.member, &open.address);
        }
    }

    /// There is another address, and nothing has come from this one yet: then it is not waited for as long.
    fn may_be_elsewhere(&self) -> bool {
        self.open.as_ref().is_some_and(|open| !open.proved)
            && self.whereabouts.addresses(&self.member).len() > 1
    }

    /// The next call dials the next address.
    fn hang_up(&mut self) {
        if let Some(open) = self.open.take() {
            self.whereabouts.failed(&self.member, &open.address);
        }
        self.timeouts = 0;
    }

    fn timeout(&self, action: RPCTypes, timeout: Duration) -> RpcError {
        RPCError::Timeout(Timeout {
            action,
            id: self.id,
            target: self.target,
            timeout,
        })
    }

    async fn start_append<S>(
        &mut self,
        input: S,
    ) -> Result<BoxStream<'static, Result<StreamAppendResult<Types>, RpcError>>, RpcError>
    where
        S: Stream<Item = AppendEntriesRequest<Types>> + OptionalSend + Unpin + 'static,
    {
        if self.freshness.is_silent() {
            // openraft asks again at once, however often.
            tokio::time::sleep(SILENT_PAUSE).await;
            return Err(unreachable(
                "no majority answers this leader: it is silent for a moment, so that another one can be elected",
            ));
        }
        let mut client = self.client()?;
        let target = self.target;
        let sent = Arc::new(AtomicU64::new(0));
        let (count, freshness) = (Arc::clone(&sent), Arc::clone(&self.freshness));
        let requests = together(input).map(move |request| {
            count.fetch_add(1, Ordering::Relaxed);
            let mut request = wire::append_request(target, &request);
            request.agreement = freshness.agreement(target);
            request
        });
        let action = RPCTypes::AppendEntries;
        let call = async move { client.append(requests).await };
        let responses = self.call(action, STREAM_SETUP, call).await?;
        let late = Late {
            sent,
            received: 0,
            gate: Arc::clone(&self.gate),
            target,
            freshness: Arc::clone(&self.freshness),
            error: self.timeout(action, RESPONSE_LIMIT),
        };
        Ok(Box::pin(futures::stream::unfold(
            Some((responses, late)),
            |state| async move {
                let (mut responses, mut late) = state?;
                let next = late.next(&mut responses).await?;
                let go_on = matches!(next, Ok(Ok(_)));
                Some((next, go_on.then_some((responses, late))))
            },
        )))
    }
}

/// The requests of `input`, but one that tells only what is committed waits [`NEWS_WAIT`] for the next one, which tells that
/// too: under load a member is sent each entry with the news that the one before is committed, instead of both apart.
fn together<S>(input: S) -> impl Stream<Item = AppendEntriesRequest<Types>>
where
    S: Stream<Item = AppendEntriesRequest<Types>> + Unpin,
{
    // openraft's streams are not to be asked again after their end.
    futures::stream::unfold(input.fuse(), |mut input| async move {
        let mut request = input.next().await?;
        let until = tokio::time::Instant::now() + NEWS_WAIT;
        while request.entries.is_empty() {
            match tokio::time::timeout_at(until, input.next()).await {
                // openraft counts what is answered by the entries that it covers, so the one before is answered too.
                Ok(Some(next)) => request = next,
                // A heartbeat, or the last of a stream, waits for nothing.
                Ok(None) | Err(_) => break,
            }
        }
        Some((request, input))
    })
}

/// Notices that a response that was asked for doesn't come.
struct Late {
    sent: Arc<AtomicU64>,
    received: u64,
    gate: Arc<Gate>,
    target: RaftId,
    freshness: Arc<Freshness>,
    error: RpcError,
}

impl Late {
    async fn next(
        &mut self,
        responses: &mut tonic::Streaming<own::RaftAppendResponse>,
    ) -> Option<Result<StreamAppendResult<Types>, RpcError>> {
        loop {
            // Only what was asked for before the wait began can be overdue at its end.
            let asked = self.sent.load(Ordering::Relaxed);
            match tokio::time::timeout(RESPONSE_LIMIT, responses.next()).await {
                Ok(None) => return None,
                Ok(Some(Ok(response))) => {
                    self.received += 1;
                    if let Some(mark) = response.mark {
                        self.freshness.marked(self.target, mark);
                    }
                    return Some(wire::parse_append_response(response).map_err(network));
                }
                Ok(Some(Err(status))) => {
                    self.gate.heard(&status);
                    return Some(Err(unreachable(status)));
                }
                Err(_) if asked > self.received => return Some(Err(self.error.clone())),
                Err(_) => {}
            }
        }
    }
}

impl RaftNetworkV2<Types> for Peer {
    type SnapshotData = SnapshotFile;

    async fn append_entries(
        &mut self,
        request: AppendEntriesRequest<Types>,
        _option: RPCOption,
    ) -> Result<AppendEntriesResponse<Types>, RpcError> {
        let request = futures::stream::iter([request]);
        let mut responses = self.start_append(request).await?;
        let response = responses.next().await;
        let result = response.ok_or_else(|| network(NoResponse))??;
        Ok(match result {
            Ok(matched) => AppendEntriesResponse::PartialSuccess(matched),
            Err(refused) => Err::<_, _>(refused).into(),
        })
    }

    fn stream_append<'s, S>(
        &'s mut self,
        input: S,
        _option: RPCOption,
    ) -> BoxFuture<'s, Result<BoxStream<'s, Result<StreamAppendResult<Types>, RpcError>>, RpcError>>
    where
        S: Stream<Item = AppendEntriesRequest<Types>> + OptionalSend + Unpin + 'static,
    {
        Box::pin(async move {
            let responses: BoxStream<'s, _> = self.start_append(input).await?;
            Ok(responses)
        })
    }

    async fn vote(
        &mut self,
        request: VoteRequest<Types>,
        option: RPCOption,
    ) -> Result<VoteResponse<Types>, RpcError> {
        let mut client = self.client()?;
        let request = wire::vote_request(self.target, &request);
        let call = async move { client.vote(request).await };
        self.ask_for_vote(option, call).await
    }

    async fn pre_vote(
        &mut self,
        request: VoteRequest<Types>,
        option: RPCOption,
    ) -> Result<VoteResponse<Types>, RpcError> {
        let mut client = self.client()?;
        let request = wire::vote_request(self.target, &request);
        let call = async move { client.pre_vote(request).await };
        self.ask_for_vote(option, call).await
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Snapshot,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<Types>, StreamingError<Types>> {
        let mut client = self.client()?;
        let header = own::RaftSnapshotHeader {
            to: self.target,
            vote: Some(wire::vote(&vote)),
            meta: Some(wire::snapshot_meta(&snapshot.meta)),
        };
        let sending = transfer::send(header, snapshot.snapshot);
        let sent = client.snapshot(sending.chunks);
        let response = tokio::select! {
            biased;
            closed = cancel => return Err(StreamingError::Closed(closed)),
            sent = sent => sent,
            failed = sending.progress.failed() => {
                self.hang_up();
                return Err(StreamingError::Network(NetworkError::new(&failed)));
            }
        };
        let response = response.map_err(|status| {
            self.gate.heard(&status);
            self.hang_up();
            unreachable(status)
        })?;
        let vote = wire::parse_vote(response.into_inner().vote).map_err(network)?;
        Ok(SnapshotResponse::new(vote))
    }

    async fn transfer_leader(
        &mut self,
        request: TransferLeaderRequest<Types>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<Types>, RpcError> {
        let mut client = self.client()?;
        let request = wire::transfer_request(self.target, &request);
        let call = async move { client.transfer_leader(request).await };
        let response = self
            .call(RPCTypes::TransferLeader, option.soft_ttl(), call)
            .await?;
        wire::parse_transfer_response(response).map_err(network)
    }
}

#[derive(Debug, thiserror::Error)]
#[error("the stream ended without a response")]
struct NoResponse;

fn unreachable(reason: impl Display) -> RpcError {
    RPCError::Unreachable(Unreachable::from_string(reason))
}

fn network(error: impl std::error::Error + 'static) -> RpcError {
    RPCError::Network(NetworkError::new(&error))
}

impl std::fmt::Debug for Network {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Network({})", self.id)
    }
}

impl std::fmt::Debug for Peer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Peer({} -> {})", self.id, self.target)
    }
}

#[cfg(test)]
mod tests {
    use futures::channel::mpsc;
    use futures::{SinkExt as _, poll};
    use openraft::alias::LeaderIdOf;
    use openraft::vote::RaftLeaderId as _;

    use super::super::types::{Command, Entry, EntryPayload, LogId};
    use super::*;

    fn request(committed: u64, entry: Option<u64>) -> AppendEntriesRequest<Types> {
        let id = |index| LogId {
            leader_id: LeaderIdOf::<Types>::new(1, 1),
            index,
        };
        let entries = entry.map(|index| Entry {
            log_id: id(index),
            payload: EntryPayload::Normal(Command::default()),
        });
        AppendEntriesRequest {
            vote: Vote::new_committed(1, 1),
            prev_log_id: None,
            leader_commit: Some(id(committed)),
            entries: entries.into_iter().collect(),
        }
    }

    fn told(request: Option<AppendEntriesRequest<Types>>) -> Option<(u64, usize)> {
        let request = request?;
        Some((request.leader_commit?.index, request.entries.len()))
    }

    #[tokio::test(start_paused = true)]
    async fn news_of_commits_go_with_the_next_entry_or_after_a_moment() {
        let (mut input, output) = mpsc::channel(9);
        // As strict as openraft's.
        let output = futures::stream::unfold(output, |mut output| async {
            Some((output.next().await?, output))
        });
        let mut output = Box::pin(together(Box::pin(output)));
        input.send(request(1, Some(2))).await.unwrap();
        assert_eq!(told(output.next().await), Some((1, 1)), "an entry at once");
        input.send(request(2, None)).await.unwrap();
        assert!(poll!(output.next()).is_pending());
        input.send(request(2, Some(3))).await.unwrap();
        assert_eq!(told(output.next().await), Some((2, 1)), "both in one");
        input.send(request(3, None)).await.unwrap();
        let began = tokio::time::Instant::now();
        assert_eq!(told(output.next().await), Some((3, 0)), "no entry comes");
        assert_eq!(began.elapsed(), NEWS_WAIT);
        // A heartbeat is a stream of its own.
        input.send(request(3, None)).await.unwrap();
        drop(input);
        let began = tokio::time::Instant::now();
        assert_eq!(told(output.next().await), Some((3, 0)));
        assert_eq!(began.elapsed(), Duration::ZERO);
        assert_eq!(told(output.next().await), None);
    }
}
