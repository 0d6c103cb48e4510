//! The one function that changes the state: total, pure, deterministic.
//!
//! No clock, no randomness, no floats, no hash order: managers at the same index have the same
//! state (promise P7). Every check is here, so no check can race; a change that does not hold is
//! rejected whole and leaves no trace.

mod nodes;
mod services;
mod tasks;

use std::time::Duration;

use swarm_proto::id::{NodeId, ServiceId};
use swarm_proto::task_state::{Owner, TaskState};
use swarm_proto::time::Timestamp;

use super::change::{Change, Entry};
use super::index::{Event, Txn};
use super::state::{Meta, Node, Service, State, Text};
use nodes::{
    ask_renewal, check_role, create_node, note_manager, remove_node, set_certificate,
    set_node_status, update_cluster,
};
use services::{create_service, rollback_service, update_service};
use tasks::{create_tasks, end_task, explain_task, place_task, report_status, set_desired};

/// How long a failure counts against a node (SwarmKit's `monitorFailures`).
pub const FAILURE_WINDOW: Duration = Duration::from_secs(5 * 60);
/// Failures kept a node; the scheduler asks only whether there are five of one service.
pub const FAILURES_MAX: usize = 64;

/// Status message of a task that has got a node (SwarmKit's words).
pub const ASSIGNED: &str = "scheduler assigned task to node";

/// Why a change was not taken. Nothing has changed then.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Rejected {
    /// There is no such object (any more).
    #[error("{kind} {name} not found")]
    NotFound {
        /// `service`, `node`, `task`.
        kind: &'static str,
        /// Its id.
        name: String,
    },
    /// There is one already.
    #[error("{kind} {name} already exists: name conflicts with an existing object")]
    Exists {
        /// `service`, `node`, `task`.
        kind: &'static str,
        /// Its name or id.
        name: String,
    },
    /// It was changed since it was read.
    #[error("{kind} {name}: update out of sequence: read it again and repeat the change")]
    OutOfSequence {
        /// `service`, `node`, `cluster`.
        kind: &'static str,
        /// Its name or id.
        name: String,
    },
    /// It can't be done in this state.
    #[error("{kind} {name}: {reason}")]
    Conflict {
        /// `service`, `node`, `cluster`.
        kind: &'static str,
        /// Its name or id.
        name: String,
        /// Why, and the way out.
        reason: String,
    },
}

/// What an entry did.
#[derive(Debug, Clone, Default)]
pub struct Applied {
    /// One result a change, in order.
    pub results: Vec<Result<(), Rejected>>,
    /// What happened to objects, in order.
    pub events: Vec<Event>,
}

/// Applies an entry at its log index.
pub fn apply(state: &mut State, version: u64, entry: &Entry) -> Applied {
    let mut applied = Applied::default();
    state.version = version;
    state.now = state.now.max(entry.now);
    let now = state.now;
    for change in &entry.changes {
        let mut txn = Txn {
            state: &mut *state,
            events: &mut applied.events,
        };
        let at = At { version, now };
        applied.results.push(apply_change(&mut txn, at, change));
    }
    applied
}

/// Where in the log, and when.
#[derive(Debug, Clone, Copy)]
struct At {
    version: u64,
    now: Timestamp,
}

impl At {
    fn created(self) -> Meta {
        Meta {
            version: self.version,
            created_at: self.now,
            updated_at: self.now,
        }
    }

    fn updated(self, meta: Meta) -> Meta {
        Meta {
            version: self.version,
            updated_at: self.now,
            ..meta
        }
    }
}

/// Applies one change. Also used by planners on a scratch state.
pub fn apply_one(state: &mut State, events: &mut Vec<Event>, now: Timestamp, change: &Change) {
    let at = At {
        version: state.version,
        now,
    };
    // A planner's change that does not hold on the very state it was made from does nothing; the
    // same happens when it is applied for good.
    let _ = apply_change(&mut Txn { state, events }, at, change);
}

#[expect(clippy::too_many_lines, reason = "one arm a change")]
fn apply_change(txn: &mut Txn<'_>, at: At, change: &Change) -> Result<(), Rejected> {
    match change {
        Change::CreateCluster(cluster) => match &txn.state.cluster {
            Some(old) => Err(Rejected::Exists {
                kind: "cluster",
                name: old.id.to_string(),
            }),
            None => {
                let mut cluster = cluster.as_ref().clone();
                cluster.meta = at.created();
                txn.put_cluster(cluster);
                Ok(())
            }
        },
        Change::UpdateCluster(cluster) => update_cluster(txn, at, cluster),
        Change::CreateNode(node) => create_node(txn, at, node),
        Change::UpdateNode {
            id,
            expected,
            annotations,
            desired_role,
            membership,
            availability,
            addresses,
            give_up,
        } => {
            let mut node = node(txn.state, *id)?;
            if node.meta.version != *expected {
                return Err(out_of_sequence("node", id));
            }
            check_role(txn.state, &node, *desired_role)?;
            for (other, _) in give_up {
                self::node(txn.state, *other)?;
            }
            node.annotations.clone_from(annotations);
            node.desired_role = *desired_role;
            node.membership = *membership;
            node.availability = *availability;
            node.meta = at.updated(node.meta);
            txn.put_node(node);
            note_manager(txn, at, *id, |note| {
                note.addresses = match desired_role {
                    swarm_proto::pb::NodeRole::Manager => addresses.clone(),
                    // Promoted again, it may be elsewhere.
                    swarm_proto::pb::NodeRole::Worker => Vec::new(),
                };
            });
            for (other, retirement) in give_up {
                note_manager(txn, at, *other, |note| {
                    note.retired = Some(retirement.clone());
                });
            }
            Ok(())
        }
        Change::SetRetirement {
            node: id,
            retirement,
        } => {
            node(txn.state, *id)?;
            note_manager(txn, at, *id, |note| note.retired.clone_from(retirement));
            Ok(())
        }
        Change::SetNodeCertificate {
            id,
            role,
            certificate,
        } => set_certificate(txn, at, (*id, *role), certificate),
        Change::AskRenewal { nodes } => {
            for id in nodes {
                ask_renewal(txn, at, *id);
            }
            Ok(())
        }
        Change::SetNodeStatus {
            id,
            state,
            message,
            addr,
            description,
        } => {
            let node = node(txn.state, *id)?;
            let status = (*state, message.as_str(), addr.as_ref());
            set_node_status(txn, at, node, status, description.as_ref());
            Ok(())
        }
        Change::RemoveNode {
            id,
            force,
            refused_until,
        } => remove_node(txn, at, *id, *force, *refused_until),
        Change::CreateService { id, spec } => create_service(txn, at, *id, spec),
        Change::UpdateService { id, expected, spec } => {
            update_service(txn, at, *id, *expected, spec)
        }
        Change::RollbackService {
            id,
            expected,
            message,
            swap,
        } => rollback_service(txn, at, (*id, *expected), message, *swap),
        Change::RemoveService { id } => {
            let mut service = service(txn.state, *id)?;
            service.removed = true;
            service.meta = at.updated(service.meta);
            txn.put_service(service);
            Ok(())
        }
        Change::SetUpdate {
            id,
            spec_version,
            update,
        } => {
            let mut service = service(txn.state, *id)?;
            if service.spec_version != *spec_version {
                return Err(out_of_sequence("service", id));
            }
            service.update = Some(update.clone());
            service.meta = at.updated(service.meta);
            txn.put_service(service);
            Ok(())
        }
        Change::CreateTasks {
            service,
            spec_version,
            tasks,
        } => create_tasks(txn, at, *service, *spec_version, tasks),
        Change::PlaceTasks {
            placements,
            message,
        } => {
            for placement in placements {
                place_task(txn, at, placement, message);
            }
            Ok(())
        }
        Change::ExplainTasks { tasks, err } => {
            for id in tasks {
                explain_task(txn, at, *id, err);
            }
            Ok(())
        }
        Change::SetDesired { tasks, desired } => {
            for id in tasks {
                set_desired(txn, at, *id, *desired);
            }
            Ok(())
        }
        Change::EndTasks {
            tasks,
            state,
            message,
            err,
        } => {
            for id in tasks {
                end_task(txn, at, *id, (Owner::Pass, *state), (message, err));
            }
            Ok(())
        }
        Change::OrphanTasks { tasks, message } => {
            for id in tasks {
                let end = (Owner::Node, TaskState::Orphaned);
                end_task(txn, at, *id, end, (message, &Text::default()));
            }
            Ok(())
        }
        Change::DeleteTasks { tasks } => {
            for id in tasks {
                txn.take_task(*id);
            }
            Ok(())
        }
        Change::ReportStatus { node, reports } => {
            for report in reports {
                report_status(txn, at, *node, report);
            }
            Ok(())
        }
    }
}

fn node(state: &State, id: NodeId) -> Result<Node, Rejected> {
    let node = state.nodes.get(&id).map(|n| n.as_ref().clone());
    node.ok_or_else(|| Rejected::NotFound {
        kind: "node",
        name: id.to_string(),
    })
}

fn service(state: &State, id: ServiceId) -> Result<Service, Rejected> {
    let service = state.service(id).map(|s| s.as_ref().clone());
    service.ok_or_else(|| Rejected::NotFound {
        kind: "service",
        name: id.to_string(),
    })
}

fn out_of_sequence(kind: &'static str, id: impl ToString) -> Rejected {
    Rejected::OutOfSequence {
        kind,
        name: id.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use swarm_proto::id::ClusterId;
    use swarm_proto::pb;

    use super::*;
    use crate::manager::store::testing::node;
    use crate::manager::store::{Cluster, Meta, Retirement};

    fn run(state: &mut State, now: i64, change: Change) -> Result<(), Rejected> {
        let entry = Entry {
            now: Timestamp(now),
            changes: vec![change],
        };
        let version = state.version + 1;
        let mut applied = apply(state, version, &entry);
        applied.results.remove(0)
    }

    fn cluster() -> Cluster {
        Cluster {
            id: ClusterId::from_raw(1),
            meta: Meta::default(),
            spec: pb::ClusterSpec::default(),
            root_ca: pb::RootCa::default(),
            blacklist: Default::default(),
            unlock_keys: Vec::new(),
            managers: Default::default(),
        }
    }

    #[test]
    fn time_does_not_go_back() {
        let mut state = State::default();
        run(&mut state, 50, Change::CreateNode(Arc::new(node(1)))).unwrap();
        run(&mut state, 20, Change::CreateNode(Arc::new(node(2)))).unwrap();
        let created = |id| state.nodes[&NodeId::from_raw(id)].meta.created_at;
        assert_eq!([created(1), created(2), state.now], [Timestamp(50); 3]);
    }

    #[test]
    fn a_removed_node_is_refused_until_the_last_of_its_certificates_has_ended() {
        let id = NodeId::from_raw(1);
        for (ends, expected) in [
            ([900, 200], Timestamp(900)),
            ([200, 900], Timestamp(900)),
            ([200, 300], Timestamp(500)),
        ] {
            let mut state = State::default();
            run(&mut state, 1, Change::CreateNode(Arc::new(node(1)))).unwrap();
            // Two, so that one is not the last any more.
            for end in [ends[0], ends[1], 100] {
                let certificate = Box::new(pb::Certificate {
                    not_after: Timestamp(end).to_wire(),
                    ..Default::default()
                });
                let role = pb::NodeRole::Worker;
                let change = Change::SetNodeCertificate {
                    id,
                    role,
                    certificate,
                };
                run(&mut state, 2, change).unwrap();
            }
            let node = Arc::clone(&state.nodes[&id]);
            assert_eq!(
                node.certificates_end(),
                ends.map(Timestamp).into_iter().max()
            );
            state.cluster = Some(Arc::new(cluster()));
            let change = Change::RemoveNode {
                id,
                force: true,
                refused_until: Timestamp(500),
            };
            run(&mut state, 3, change).unwrap();
            let cluster = state.cluster.as_ref().unwrap();
            assert_eq!(cluster.blacklist[&id], expected);
        }
    }

    fn demotion(state: &State, id: u128, give_up: Vec<(NodeId, Retirement)>) -> Change {
        let node = &state.nodes[&NodeId::from_raw(id)];
        Change::UpdateNode {
            id: node.id,
            expected: node.meta.version,
            annotations: node.annotations.clone(),
            desired_role: pb::NodeRole::Worker,
            membership: node.membership,
            availability: node.availability,
            addresses: Vec::new(),
            give_up,
        }
    }

    #[test]
    fn a_demotion_and_those_given_up_for_it_are_taken_together() {
        let mut state = State::default();
        let root = crate::ca::RootCa::generate(Timestamp(1)).unwrap();
        let cluster = crate::manager::bootstrap::cluster(&root, Timestamp(1)).unwrap();
        run(&mut state, 1, Change::CreateCluster(Arc::new(cluster))).unwrap();
        for id in 1..4 {
            let mut node = node(id);
            node.desired_role = pb::NodeRole::Manager;
            run(&mut state, 1, Change::CreateNode(Arc::new(node))).unwrap();
        }
        let retirement = Retirement {
            raft_id: 33,
            at: Timestamp(1),
            reason: "it is down".to_owned(),
            done: false,
            demoted: false,
        };
        let demote = |state: &State, dead: u128| {
            let dead = NodeId::from_raw(dead);
            demotion(state, 2, vec![(dead, retirement.clone())])
        };
        let role = |state: &State| state.nodes[&NodeId::from_raw(2)].desired_role;
        let unknown = demote(&state, 9);
        assert!(run(&mut state, 1, unknown).is_err());
        assert_eq!(role(&state), pb::NodeRole::Manager);
        let known = demote(&state, 3);
        // As it comes out of the log.
        let entry = Entry {
            now: Timestamp(1),
            changes: vec![known],
        };
        let encoded = crate::manager::store::codec::encode_entry(&entry);
        let decoded = crate::manager::store::codec::decode_entry(&encoded).unwrap();
        assert_eq!(decoded, entry);
        let version = state.version + 1;
        apply(&mut state, version, &decoded);
        assert_eq!(role(&state), pb::NodeRole::Worker);
        let notes = &state.cluster.as_ref().unwrap().managers;
        let note = notes[&NodeId::from_raw(3)].retired.clone();
        assert_eq!(note, Some(retirement.clone()));
    }

    #[test]
    fn the_last_manager_stays_one() {
        let mut state = State::default();
        let manager = |id| {
            let mut node = node(id);
            node.desired_role = pb::NodeRole::Manager;
            Change::CreateNode(Arc::new(node))
        };
        for id in 1..3 {
            run(&mut state, 1, manager(id)).unwrap();
        }
        let demote = |state: &State, id: u128| demotion(state, id, Vec::new());
        let first = demote(&state, 1);
        assert_eq!(run(&mut state, 1, first), Ok(()));
        let second = demote(&state, 2);
        let refused = run(&mut state, 1, second).unwrap_err();
        assert!(refused.to_string().contains("last manager"), "{refused}");
        // A worker stays one, whatever else changes.
        let again = demote(&state, 1);
        assert_eq!(run(&mut state, 1, again), Ok(()));
    }
}
