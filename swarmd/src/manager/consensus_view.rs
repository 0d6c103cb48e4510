//! Consensus as one manager sees it, for operators.

use swarm_proto::id::NodeId;
use swarm_proto::own;

use super::raft::{MemberStatus, Membership, RaftId, RaftStatus};
use super::store::State;
use super::store::machine::StoreMachine;

/// As this manager sees it now; names are those of the state.
pub(crate) fn look(membership: &Membership<StoreMachine>, state: &State) -> own::ConsensusView {
    let status = membership.status();
    let age = membership.age().map(|age| millis(age.as_millis()));
    view(&status, state, age)
}

fn view(status: &RaftStatus, state: &State, age_ms: Option<u64>) -> own::ConsensusView {
    let member = |id: RaftId| status.members.get(&id);
    let leader = status.leader.and_then(member);
    let managers = status.members.iter().map(|(id, known)| {
        let mut manager = manager(known, state);
        manager.answers = *id == status.id;
        // Of itself it knows without an answer.
        manager.behind = match (known.matched, status.leader == Some(status.id)) {
            (Some(matched), true) => Some(status.last_log.saturating_sub(matched)),
            (Some(_) | None, _) => None,
        };
        manager
    });
    own::ConsensusView {
        term: status.term,
        last_log: status.last_log,
        applied: status.applied,
        snapshot: status.snapshot,
        leader: leader.map(|l| l.member.node_id.clone()).unwrap_or_default(),
        age_ms,
        managers: managers.collect(),
    }
}

fn manager(known: &MemberStatus, state: &State) -> own::ManagerView {
    let id = known.member.node_id.parse::<NodeId>().ok();
    let node = id.and_then(|id| state.nodes.get(&id));
    own::ManagerView {
        node_id: known.member.node_id.clone(),
        hostname: node
            .and_then(|node| node.description.as_ref())
            .map(|description| description.hostname.clone())
            .unwrap_or_default(),
        addresses: known.member.addresses.clone(),
        voter: known.voter,
        answers: false,
        heard_ms: known.heard.map(|heard| millis(heard.as_millis())),
        behind: None,
    }
}

fn millis(value: u128) -> u64 {
    u64::try_from(value).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::Duration;

    use super::super::raft::Member;
    use super::*;

    fn member(node: &str, matched: Option<u64>, heard: Option<u64>) -> MemberStatus {
        MemberStatus {
            member: Member {
                node_id: node.to_owned(),
                addresses: vec![format!("{node}:4242")],
            },
            voter: true,
            matched,
            heard: heard.map(Duration::from_millis),
        }
    }

    #[test]
    fn the_leader_says_how_far_the_others_are() {
        let status = RaftStatus {
            id: 1,
            term: 3,
            leader: Some(1),
            last_log: 50,
            applied: 50,
            snapshot: 40,
            purged: 30,
            settled: true,
            joint: Vec::new(),
            membership: None,
            members: BTreeMap::from([
                (1, member("n1", Some(50), None)),
                (2, member("n2", Some(45), Some(12))),
                (3, member("n3", None, None)),
            ]),
        };
        let view = view(&status, &State::default(), Some(0));
        assert_eq!(view.leader, "n1");
        let told: Vec<_> = view
            .managers
            .iter()
            .map(|m| (m.answers, m.behind, m.heard_ms))
            .collect();
        assert_eq!(
            told,
            [
                (true, Some(0), None),
                (false, Some(5), Some(12)),
                (false, None, None)
            ]
        );
    }
}
