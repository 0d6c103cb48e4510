//! openraft's values as the messages of `swarm/v1/raft.proto`, and back.
//!
//! One encoding serves the wire and the disk. Protobuf was chosen over a serde format because its
//! compatibility rules are explicit and don't follow openraft's private field order, which may
//! change between alphas.

use std::collections::{BTreeMap, BTreeSet};

use openraft::raft::{
    AppendEntriesRequest, StreamAppendError, StreamAppendResult, TransferLeaderError,
    TransferLeaderRequest, TransferLeaderResponse, VoteRequest, VoteResponse,
};
use openraft::vote::RaftLeaderId as _;
use prost::Message as _;
use swarm_proto::own;

use super::types::{
    Command, Entry, EntryPayload, LogId, Member, Membership, RaftId, SnapshotMeta,
    StoredMembership, Types, Vote,
};

type LeaderId = openraft::alias::LeaderIdOf<Types>;

/// A message that lacks a part, or isn't a message at all.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WireError {
    /// A required part is absent.
    #[error("raft message without {0}: the sender runs an incompatible version")]
    Missing(&'static str),
    /// The membership contradicts itself.
    #[error("raft membership is not valid ({0}): the sender runs an incompatible version")]
    Membership(String),
    /// Not protobuf.
    #[error("raft message does not decode ({0})")]
    Decode(#[from] prost::DecodeError),
}

pub(crate) fn log_id(id: &LogId) -> own::RaftLogId {
    own::RaftLogId {
        term: id.leader_id.term,
        leader: id.leader_id.node_id,
        index: id.index,
    }
}

pub(crate) fn parse_log_id(id: &own::RaftLogId) -> LogId {
    LogId {
        leader_id: LeaderId::new(id.term, id.leader),
        index: id.index,
    }
}

fn parse_opt_log_id(id: Option<own::RaftLogId>) -> Option<LogId> {
    id.as_ref().map(parse_log_id)
}

pub(crate) fn vote(vote: &Vote) -> own::RaftVote {
    own::RaftVote {
        term: vote.leader_id.term,
        candidate: vote.leader_id.node_id,
        committed: vote.committed,
    }
}

pub(crate) fn parse_vote(vote: Option<own::RaftVote>) -> Result<Vote, WireError> {
    let vote = vote.ok_or(WireError::Missing("vote"))?;
    Ok(Vote {
        leader_id: LeaderId::new(vote.term, vote.candidate),
        committed: vote.committed,
    })
}

pub(crate) fn membership(membership: &Membership) -> own::RaftMembership {
    own::RaftMembership {
        configs: membership
            .get_joint_config()
            .iter()
            .map(|voters| own::RaftVoters {
                ids: voters.iter().copied().collect(),
            })
            .collect(),
        members: membership
            .nodes()
            .map(|(id, member)| own::RaftMember {
                id: *id,
                node_id: member.node_id.clone(),
                addresses: member.addresses.clone(),
            })
            .collect(),
    }
}

fn parse_membership(membership: own::RaftMembership) -> Result<Membership, WireError> {
    if membership.configs.is_empty() && membership.members.is_empty() {
        // The membership of a manager that hasn't joined.
        return Ok(Membership::default());
    }
    let configs: Vec<BTreeSet<RaftId>> = membership
        .configs
        .into_iter()
        .map(|voters| voters.ids.into_iter().collect())
        .collect();
    let nodes: BTreeMap<RaftId, Member> = membership
        .members
        .into_iter()
        .map(|m| {
            let member = Member {
                node_id: m.node_id,
                addresses: m.addresses,
            };
            (m.id, member)
        })
        .collect();
    Membership::new(configs, nodes).map_err(|e| WireError::Membership(e.to_string()))
}

pub(crate) fn entry(entry: &Entry) -> own::RaftEntry {
    use own::raft_entry::Payload;
    own::RaftEntry {
        log_id: Some(log_id(&entry.log_id)),
        payload: match &entry.payload {
            EntryPayload::Blank => None,
            EntryPayload::Normal(command) => Some(Payload::Command(command.bytes().clone())),
            EntryPayload::Membership(m) => Some(Payload::Membership(membership(m))),
        },
    }
}

pub(crate) fn parse_entry(entry: own::RaftEntry) -> Result<Entry, WireError> {
    use own::raft_entry::Payload;
    let log_id = entry.log_id.ok_or(WireError::Missing("log position"))?;
    Ok(Entry {
        log_id: parse_log_id(&log_id),
        payload: match entry.payload {
            None => EntryPayload::Blank,
            Some(Payload::Command(bytes)) => EntryPayload::Normal(Command::encoded(bytes)),
            Some(Payload::Membership(m)) => EntryPayload::Membership(parse_membership(m)?),
        },
    })
}

pub(crate) fn decode_entry(bytes: bytes::Bytes) -> Result<Entry, WireError> {
    parse_entry(own::RaftEntry::decode(bytes)?)
}

pub(crate) fn snapshot_meta(meta: &SnapshotMeta) -> own::RaftSnapshotMeta {
    own::RaftSnapshotMeta {
        last_log_id: meta.last_log_id.as_ref().map(log_id),
        last_membership: Some(own::RaftStoredMembership {
            log_id: meta.last_membership.log_id().as_ref().map(log_id),
            membership: Some(membership(meta.last_membership.membership())),
        }),
    }
}

pub(crate) fn parse_snapshot_meta(meta: own::RaftSnapshotMeta) -> Result<SnapshotMeta, WireError> {
    let stored = meta
        .last_membership
        .ok_or(WireError::Missing("membership"))?;
    let membership = parse_membership(stored.membership.unwrap_or_default())?;
    Ok(SnapshotMeta {
        last_log_id: parse_opt_log_id(meta.last_log_id),
        last_membership: StoredMembership::new(parse_opt_log_id(stored.log_id), membership),
    })
}

pub(crate) fn append_request(
    to: RaftId,
    request: &AppendEntriesRequest<Types>,
) -> own::RaftAppendRequest {
    own::RaftAppendRequest {
        to,
        vote: Some(vote(&request.vote)),
        prev: request.prev_log_id.as_ref().map(log_id),
        entries: request.entries.iter().map(entry).collect(),
        leader_commit: request.leader_commit.as_ref().map(log_id),
        agreement: None,
    }
}

pub(crate) fn parse_append_request(
    request: own::RaftAppendRequest,
) -> Result<AppendEntriesRequest<Types>, WireError> {
    Ok(AppendEntriesRequest {
        vote: parse_vote(request.vote)?,
        prev_log_id: parse_opt_log_id(request.prev),
        entries: request
            .entries
            .into_iter()
            .map(parse_entry)
            .collect::<Result<_, _>>()?,
        leader_commit: parse_opt_log_id(request.leader_commit),
    })
}

pub(crate) fn append_response(result: StreamAppendResult<Types>) -> own::RaftAppendResponse {
    use own::raft_append_response::{Matched, Result};
    let result = match result {
        Ok(matched) => Result::Matched(Matched {
            log_id: matched.as_ref().map(log_id),
        }),
        Err(StreamAppendError::Conflict(at)) => Result::Conflict(log_id(&at)),
        Err(StreamAppendError::HigherVote(higher)) => Result::HigherVote(vote(&higher)),
    };
    own::RaftAppendResponse {
        result: Some(result),
        mark: None,
    }
}

pub(crate) fn parse_append_response(
    response: own::RaftAppendResponse,
) -> Result<StreamAppendResult<Types>, WireError> {
    use own::raft_append_response::Result;
    Ok(match response.result.ok_or(WireError::Missing("result"))? {
        Result::Matched(matched) => Ok(parse_opt_log_id(matched.log_id)),
        Result::Conflict(at) => Err(StreamAppendError::Conflict(parse_log_id(&at))),
        Result::HigherVote(higher) => Err(StreamAppendError::HigherVote(parse_vote(Some(higher))?)),
    })
}

pub(crate) fn vote_request(to: RaftId, request: &VoteRequest<Types>) -> own::RaftVoteRequest {
    own::RaftVoteRequest {
        to,
        vote: Some(vote(&request.vote)),
        last_log_id: request.last_log_id.as_ref().map(log_id),
        leadership_transfer: request.leadership_transfer,
    }
}

pub(crate) fn parse_vote_request(
    request: own::RaftVoteRequest,
) -> Result<VoteRequest<Types>, WireError> {
    let mut parsed = VoteRequest::new(
        parse_vote(request.vote)?,
        parse_opt_log_id(request.last_log_id),
    );
    parsed.leadership_transfer = request.leadership_transfer;
    Ok(parsed)
}

pub(crate) fn vote_response(response: &VoteResponse<Types>) -> own::RaftVoteResponse {
    own::RaftVoteResponse {
        vote: Some(vote(&response.vote)),
        granted: response.vote_granted,
        last_log_id: response.last_log_id.as_ref().map(log_id),
    }
}

pub(crate) fn parse_vote_response(
    response: own::RaftVoteResponse,
) -> Result<VoteResponse<Types>, WireError> {
    Ok(VoteResponse::new(
        parse_vote(response.vote)?,
        parse_opt_log_id(response.last_log_id),
        response.granted,
    ))
}

pub(crate) fn transfer_request(
    to: RaftId,
    request: &TransferLeaderRequest<Types>,
) -> own::RaftTransferLeaderRequest {
    own::RaftTransferLeaderRequest {
        to,
        from_leader: Some(vote(request.from_leader())),
        last_log_id: request.last_log_id().map(log_id),
    }
}

pub(crate) fn parse_transfer_request(
    request: own::RaftTransferLeaderRequest,
) -> Result<TransferLeaderRequest<Types>, WireError> {
    Ok(TransferLeaderRequest::new(
        parse_vote(request.from_leader)?,
        request.to,
        parse_opt_log_id(request.last_log_id),
    ))
}

pub(crate) fn transfer_response(
    response: TransferLeaderResponse<Types>,
) -> own::RaftTransferLeaderResponse {
    use own::raft_transfer_leader_response::{LogNotFlushed, Refused, VoteChanged};
    let refused = match response {
        Ok(()) => None,
        Err(TransferLeaderError::VoteChanged { expected, actual }) => {
            Some(Refused::VoteChanged(VoteChanged {
                expected: Some(vote(&expected)),
                actual: Some(vote(&actual)),
            }))
        }
        Err(TransferLeaderError::LogNotFlushed { expected, actual }) => {
            Some(Refused::LogNotFlushed(LogNotFlushed {
                expected: expected.as_ref().map(log_id),
                actual: actual.as_ref().map(log_id),
            }))
        }
    };
    own::RaftTransferLeaderResponse { refused }
}

pub(crate) fn parse_transfer_response(
    response: own::RaftTransferLeaderResponse,
) -> Result<TransferLeaderResponse<Types>, WireError> {
    use own::raft_transfer_leader_response::Refused;
    Ok(match response.refused {
        None => Ok(()),
        Some(Refused::VoteChanged(refused)) => Err(TransferLeaderError::VoteChanged {
            expected: parse_vote(refused.expected)?,
            actual: parse_vote(refused.actual)?,
        }),
        Some(Refused::LogNotFlushed(refused)) => Err(TransferLeaderError::LogNotFlushed {
            expected: parse_opt_log_id(refused.expected),
            actual: parse_opt_log_id(refused.actual),
        }),
    })
}
