//! Messages come back as they were sent, and incomplete ones are refused.

use openraft::raft::{
    AppendEntriesRequest, StreamAppendError, TransferLeaderError, TransferLeaderRequest,
    VoteRequest, VoteResponse,
};
use std::collections::{BTreeMap, BTreeSet};
use swarm_proto::own;

use super::super::types::{Membership, SnapshotMeta, StoredMembership};
use super::super::wire;
use super::*;

fn joint() -> Membership {
    let member = |id: u64| {
        let member = Member {
            node_id: format!("node-{id}"),
            addresses: vec![format!("10.0.0.{id}:4242"), format!("[fd00::{id}]:4242")],
        };
        (id, member)
    };
    let configs = vec![BTreeSet::from([1, 2]), BTreeSet::from([2, 3])];
    Membership::new(configs, BTreeMap::from([1, 2, 3, 4].map(member))).unwrap()
}

fn membership_entry() -> Entry {
    Entry {
        log_id: log_id(4, 9),
        payload: EntryPayload::Membership(joint()),
    }
}

/// Through bytes, as on the wire.
fn through<M: prost::Message + Default>(message: M) -> M {
    M::decode(message.encode_to_vec().as_slice()).unwrap()
}

#[test]
fn requests_and_responses_come_back() {
    let request = AppendEntriesRequest::<Types> {
        vote: Vote::new_committed(5, 2),
        prev_log_id: Some(log_id(4, 6)),
        entries: vec![blank(4, 7), entry(4, 8, "text"), membership_entry()],
        leader_commit: Some(log_id(3, 5)),
    };
    let back = wire::parse_append_request(through(wire::append_request(2, &request))).unwrap();
    assert_eq!(format!("{back:?}"), format!("{request:?}"));
    assert_eq!(back.entries, request.entries);

    for result in [
        Ok(Some(log_id(4, 9))),
        Ok(None),
        Err(StreamAppendError::Conflict(log_id(4, 6))),
        Err(StreamAppendError::HigherVote(vote(8))),
    ] {
        let sent = through(wire::append_response(result.clone()));
        assert_eq!(wire::parse_append_response(sent).unwrap(), result);
    }

    let mut request = VoteRequest::<Types>::new(vote(7), Some(log_id(4, 9)));
    request.leadership_transfer = true;
    let back = wire::parse_vote_request(through(wire::vote_request(1, &request)));
    assert_eq!(back.unwrap(), request);
    let response = VoteResponse::<Types>::new(vote(7), None, true);
    let back = wire::parse_vote_response(through(wire::vote_response(&response)));
    assert_eq!(back.unwrap(), response);

    let request = TransferLeaderRequest::<Types>::new(vote(7), 3, Some(log_id(4, 9)));
    let back = wire::parse_transfer_request(through(wire::transfer_request(3, &request)));
    assert_eq!(back.unwrap(), request);
    for response in [
        Ok(()),
        Err(TransferLeaderError::VoteChanged {
            expected: vote(1),
            actual: vote(2),
        }),
        Err(TransferLeaderError::LogNotFlushed {
            expected: Some(log_id(4, 9)),
            actual: None,
        }),
    ] {
        let sent = through(wire::transfer_response(response.clone()));
        assert_eq!(wire::parse_transfer_response(sent).unwrap(), response);
    }
}

#[test]
fn snapshot_heads_come_back() {
    for meta in [
        SnapshotMeta::default(),
        SnapshotMeta {
            last_log_id: Some(log_id(4, 9)),
            last_membership: StoredMembership::new(Some(log_id(4, 8)), joint()),
        },
    ] {
        let back = wire::parse_snapshot_meta(through(wire::snapshot_meta(&meta)));
        assert_eq!(back.unwrap(), meta);
    }
}

#[test]
fn what_is_incomplete_is_refused_by_name() {
    let error = wire::parse_append_request(own::RaftAppendRequest::default()).unwrap_err();
    assert!(error.to_string().contains("without vote"), "{error}");
    let error = wire::parse_entry(own::RaftEntry::default()).unwrap_err();
    assert!(
        error.to_string().contains("without log position"),
        "{error}"
    );
    let error = wire::parse_append_response(own::RaftAppendResponse::default()).unwrap_err();
    assert!(error.to_string().contains("without result"), "{error}");
    // A voter that is nobody.
    let mut entry = wire::entry(&membership_entry());
    if let Some(own::raft_entry::Payload::Membership(membership)) = &mut entry.payload {
        membership.members.clear();
    }
    let error = wire::parse_entry(entry).unwrap_err();
    assert!(
        error.to_string().contains("membership is not valid"),
        "{error}"
    );
}
