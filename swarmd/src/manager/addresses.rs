//! Where each manager is to be reached, as the membership should have it: pure, but for [`prove`].
//!
//! An operator's word counts most (`swarmctl node set-addr`), then what the manager says itself. What is only seen (the
//! address that its calls come from) counts where the membership's own leads nowhere any more. Nothing but an operator's
//! word, and what the leader was told of itself, is taken over unproved: somebody with that manager's certificate has to
//! answer there.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use swarm_proto::id::NodeId;

use super::members::HEARD_WITHIN;
use super::raft::{
    Heard, Member, MemberStatus, RaftId, RaftStatus, Whereabouts, is_unspecified, resolve,
};
use super::store::State;
use crate::ca::{SecurityConfig, connect_to};

/// Time for a manager to answer at its new address.
const PROOF: Duration = Duration::from_secs(2);

/// What is known of where managers are.
#[derive(Debug, Default)]
pub(super) struct Known {
    /// By node: what was heard.
    pub(super) heard: BTreeMap<String, Heard>,
    /// By node: where it answers.
    pub(super) at: BTreeMap<String, String>,
    /// What this manager was told of itself.
    pub(super) says: Vec<String>,
    /// Where others see its calls come from.
    pub(super) seen: Option<IpAddr>,
    /// The addresses of this host, best first.
    pub(super) here: Vec<IpAddr>,
}

impl Known {
    pub(super) fn read(whereabouts: &Whereabouts, here: fn() -> Vec<IpAddr>) -> Self {
        let (says, seen) = whereabouts.own();
        Self {
            heard: whereabouts.heard(),
            at: whereabouts.at(),
            here: match is_unspecified(&says) {
                true => here(),
                false => Vec::new(),
            },
            says,
            seen,
        }
    }
}

/// A member that should be known by other addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Move {
    pub(super) id: RaftId,
    pub(super) member: Member,
    /// Somebody has to answer there first.
    pub(super) to_prove: bool,
}

/// Who should be known by other addresses.
pub(super) fn moves(state: &State, status: &RaftStatus, known: &Known) -> Vec<Move> {
    let each = status.members.iter().filter_map(|(id, member)| {
        let node = &member.member.node_id;
        let now = &member.member.addresses;
        let (addresses, to_prove) = match set(state, node) {
            Some(set) => (set, false),
            None if *id == status.id => own(now, status.members.len() == 1, known)?,
            None => (others(member, known)?, true),
        };
        // Those that were proved stand in the order in which they proved to lead there.
        let among = |address: &String| now.contains(address);
        let same = match to_prove {
            true => addresses.len() == now.len() && addresses.iter().all(among),
            false => addresses == *now,
        };
        (!same).then(|| Move {
            id: *id,
            member: Member {
                node_id: node.clone(),
                addresses,
            },
            to_prove,
        })
    });
    each.collect()
}

/// What the operator set.
fn set(state: &State, node: &str) -> Option<Vec<String>> {
    let id: NodeId = node.parse().ok()?;
    let note = state.cluster.as_ref()?.managers.get(&id)?;
    (!note.addresses.is_empty()).then(|| note.addresses.clone())
}

/// What this manager says of itself.
fn own(now: &[String], alone: bool, known: &Known) -> Option<(Vec<String>, bool)> {
    if !is_unspecified(&known.says) {
        return (!known.says.is_empty()).then(|| (known.says.clone(), false));
    }
    // Its calls may come from another address than the one it is reached at: only where that one is none of this host's.
    let stays = |text: &String| match text.parse::<SocketAddr>() {
        Ok(addr) => known.here.contains(&addr.ip()),
        Err(_) => true,
    };
    if now.iter().any(stays) {
        return None;
    }
    let ip = match alone {
        true => known.here.first().copied(),
        false => known.seen,
    };
    Some((resolve(&known.says, Some(ip?)).ok()?, true))
}

/// What another one is known by.
fn others(member: &MemberStatus, known: &Known) -> Option<Vec<String>> {
    let heard = known.heard.get(&member.member.node_id)?;
    let answers = member.heard.is_some_and(|ago| ago < HEARD_WITHIN);
    let at = known.at.get(&member.member.node_id);
    let as_known = at.is_none_or(|at| member.member.addresses.contains(at));
    // Where its calls come from is one of those it is known by: then the others lead nowhere better.
    let among = |address: &String| member.member.addresses.contains(address);
    match heard.observed && answers && as_known && !heard.addresses.iter().all(among) {
        true => None,
        false => Some(heard.addresses.clone()),
    }
}

/// Whether the member answers at one of its addresses: all of them, those where it does in front. All are tried at once, so
/// that ones that lead nowhere cost no more than one.
///
/// # Errors
/// Why it does not, at the last one.
pub(super) async fn prove(
    member: &Member,
    security: &SecurityConfig,
) -> Result<Vec<String>, String> {
    let node: NodeId = member
        .node_id
        .parse()
        .map_err(|_| "it is no node".to_owned())?;
    let tried = member.addresses.iter().map(|address| async move {
        let there = connect_to(node, address, security);
        match security.clock().timeout(PROOF, there).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(error.to_string()),
            Err(elapsed) => Err(format!("{address}: {elapsed}")),
        }
    });
    in_front(&member.addresses, futures::future::join_all(tried).await)
}

/// Addresses, those that lead there first; none, where none does.
fn in_front(all: &[String], tried: Vec<Result<(), String>>) -> Result<Vec<String>, String> {
    let (mut lead, mut dead, mut last) = (Vec::new(), Vec::new(), "there is none".to_owned());
    for (address, tried) in all.iter().zip(tried) {
        match tried {
            Ok(()) => lead.push(address.clone()),
            Err(reason) => {
                dead.push(address.clone());
                last = reason;
            }
        }
    }
    if lead.is_empty() {
        return Err(last);
    }
    lead.append(&mut dead);
    Ok(lead)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::manager::store::ManagerNote;
    use swarm_proto::time::Timestamp;

    fn all(texts: &[&str]) -> Vec<String> {
        texts.iter().map(ToString::to_string).collect()
    }

    fn node(id: RaftId) -> NodeId {
        NodeId::from_raw(u128::from(id))
    }

    fn status(members: &[(RaftId, &[&str], bool)]) -> RaftStatus {
        let each = members.iter().map(|(id, addresses, answers)| {
            let status = MemberStatus {
                member: Member {
                    node_id: node(*id).to_string(),
                    addresses: all(addresses),
                },
                voter: true,
                matched: None,
                heard: answers.then_some(Duration::ZERO),
            };
            (*id, status)
        });
        RaftStatus::led(each.collect())
    }

    /// What member 2 should be known by, where it is known at `old:1`, answers or not, and is heard of so.
    fn of_other(answers: bool, observed: bool, addresses: &[&str], at: &str) -> Vec<String> {
        let heard = Heard {
            addresses: all(addresses),
            itself: true,
            observed,
        };
        let known = Known {
            heard: [(node(2).to_string(), heard)].into(),
            at: [(node(2).to_string(), at.to_owned())].into(),
            ..Known::default()
        };
        let status = status(&[(1, &["a:1"], true), (2, &["old:1", "dead:1"], answers)]);
        let moves = moves(&State::default(), &status, &known);
        assert!(moves.iter().all(|to| to.id == 2 && to.to_prove));
        moves
            .into_iter()
            .flat_map(|to| to.member.addresses)
            .collect()
    }

    #[test]
    fn what_a_manager_says_counts_and_what_is_only_seen_where_nothing_else_leads_to_it() {
        assert_eq!(of_other(true, false, &["new:1"], "old:1"), ["new:1"]);
        assert!(of_other(true, true, &["nat:1"], "old:1").is_empty());
        assert_eq!(of_other(true, true, &["nat:1"], "nat:1"), ["nat:1"]);
        assert_eq!(of_other(false, true, &["nat:1"], "old:1"), ["nat:1"]);
        // One of those it is known by, and the others are dead.
        assert_eq!(of_other(true, true, &["old:1"], "old:1"), ["old:1"]);
        assert!(of_other(true, false, &["old:1", "dead:1"], "old:1").is_empty());
    }

    #[test]
    fn addresses_that_lead_there_are_put_in_front_and_stay_so() {
        let tried = vec![Err("dead".to_owned()), Ok(())];
        let proved = in_front(&all(&["dead:1", "old:1"]), tried);
        assert_eq!(proved, Ok(all(&["old:1", "dead:1"])));
        let none = in_front(&all(&["dead:1"]), vec![Err("dead".to_owned())]);
        assert_eq!(none, Err("dead".to_owned()));
        // It goes on saying them in its own order.
        assert!(of_other(true, false, &["dead:1", "old:1"], "old:1").is_empty());
    }

    #[test]
    fn an_operator_comes_first_and_needs_no_proof() {
        let root = crate::ca::RootCa::generate(Timestamp(1)).unwrap();
        let mut cluster = crate::manager::bootstrap::cluster(&root, Timestamp(1)).unwrap();
        let note = ManagerNote {
            addresses: all(&["set:1", "set:2"]),
            retired: None,
        };
        cluster.managers.insert(node(2), note);
        let state = State {
            cluster: Some(Arc::new(cluster)),
            ..State::default()
        };
        let status = status(&[(1, &["a:1"], true), (2, &["old:1"], true)]);
        let moves = moves(&state, &status, &Known::default());
        let to = moves.first().unwrap();
        assert_eq!(to.member.addresses, ["set:1", "set:2"]);
        assert!(!to.to_prove && moves.len() == 1);
    }

    #[test]
    fn the_leader_is_where_it_was_told_or_where_it_is_seen_when_it_is_there_no_more() {
        let here: IpAddr = [10, 0, 0, 1].into();
        let of = |says: &[&str], now: &[&str], seen: Option<IpAddr>, alone: bool| {
            let known = Known {
                says: all(says),
                seen,
                here: vec![here],
                ..Known::default()
            };
            own(&all(now), alone, &known).map(|(addresses, _)| addresses)
        };
        let any = &["0.0.0.0:9"];
        assert_eq!(of(&["m:1"], &["x:1"], None, false), Some(all(&["m:1"])));
        assert_eq!(
            of(any, &["10.0.0.1:9"], Some([1, 1, 1, 1].into()), false),
            None
        );
        assert_eq!(of(any, &["m:9"], Some(here), false), None, "a name");
        let moved = Some(all(&["10.0.0.1:9"]));
        assert_eq!(of(any, &["10.0.0.8:9"], Some(here), false), moved);
        assert_eq!(of(any, &["10.0.0.8:9"], None, true), moved);
        assert_eq!(of(any, &["10.0.0.8:9"], None, false), None);
    }
}
