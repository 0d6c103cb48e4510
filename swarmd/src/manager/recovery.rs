//! A cluster goes on from what one manager, or a backup, knows of it: as a cluster of one manager, in a new epoch.
//!
//! Both ways end in the same: a raft directory with this node as the only member, and the nodes, services and tasks of the
//! recovered state. Nodes that were managers stay in it, and are none until they join again: the recovered cluster tells
//! those it knows ([`super::fencing`]).

use std::path::Path;
use std::sync::Arc;

use swarm_proto::id::{ClusterId, NodeId};
use swarm_proto::own;
use swarm_proto::pb;
use swarm_proto::pb::node_spec::Availability;

use super::backup::BackupError;
use super::caserver::new_node;
use super::raft::{
    Epoch, Former, Member, Offline, Rebuilt, StorageError, Survey, forget, is_forced, left_behind,
    put_in_place,
};
use super::signer::sign_with_key;
use super::store::State;
use super::store::machine::StoreMachine;
use super::store::watch::Hub;
use super::{autolock, new_raft_id, random_id};
use crate::ca::root::new_key_and_csr;
use crate::ca::{NodeIdentity, NodeSubject, Role};
use crate::clock::Clock;
use crate::seal::Seal;

pub(crate) use super::raft::settle;

/// Why a cluster can't go on from a state.
#[derive(Debug, thiserror::Error)]
pub enum RecoveryError {
    /// The raft directory.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// The backup.
    #[error(transparent)]
    Backup(#[from] BackupError),
    /// The state, or the order.
    #[error("{0}")]
    Refused(String),
}

/// What --force-new-cluster is given for.
#[derive(Debug)]
pub(crate) struct Order<'a> {
    /// The caller holds its lock.
    pub(crate) state_dir: &'a Path,
    pub(crate) node: NodeId,
    pub(crate) cluster: ClusterId,
    pub(crate) addresses: Vec<String>,
    /// The epoch that is to end with it, where the order names one.
    pub(crate) ends: Option<Epoch>,
    pub(crate) seal: &'a Seal,
    pub(crate) clock: &'a Clock,
}

/// What --force-new-cluster came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Forced {
    /// The cluster has this one member anyway.
    Alone,
    /// It was carried out by an earlier start, and others have become members since: this one starts as it would without
    /// the flag.
    Before {
        /// The epoch that this manager is of.
        epoch: Epoch,
    },
    /// This node is the only member now.
    Now {
        /// The epoch that begins.
        epoch: Epoch,
        /// How many managers are left behind.
        left: usize,
    },
}

/// Makes this manager the only one of its cluster, from what is on its disk. `step` comes between any two things that reach
/// it. Blocks on the disk.
///
/// # Errors
/// When the state is damaged, or is none of a cluster; or when the order does not count here. Nothing has changed then.
pub(crate) fn force_new_cluster(
    order: Order<'_>,
    step: &mut dyn FnMut() -> Result<(), StorageError>,
) -> Result<Forced, RecoveryError> {
    let state_dir = order.state_dir;
    let Some(survey) = Survey::read(state_dir, order.seal)? else {
        return Err(RecoveryError::Refused(format!(
            "--force-new-cluster: state dir {} has a manager's certificate and no log (raft/ is missing): restore it, or \
             make the cluster anew from a backup with `swarmd restore`",
            state_dir.display()
        )));
    };
    let offline = survey.whole(StoreMachine::new(Hub::default()))?;
    if let Some(nothing_to_do) = standing(&order, &offline)? {
        return Ok(nothing_to_do);
    }
    let mut state = offline.view;
    make_manager(&mut state, (order.node, order.cluster), order.clock)?;
    // Above what it is of, and above what fenced it: the operator says that this one goes on.
    let above = offline.fenced.map_or(offline.epoch, |fenced| fenced.by);
    let epoch = offline.epoch.later(above).next(unique());
    let node_id = order.node.to_string();
    let former = left_behind(offline.members, offline.former, &node_id);
    let left = former.len();
    let addresses = order.addresses;
    let rebuilt = Rebuilt {
        view: &state,
        index: offline.last.index,
        term: offline.term,
        epoch,
        id: new_raft_id(),
        member: Member { node_id, addresses },
        former,
        forced: true,
        seal: order.seal.clone(),
    };
    rebuilt.prepare::<StoreMachine>(state_dir, step)?;
    step()?;
    put_in_place(state_dir, epoch, step)?;
    Ok(Forced::Now { epoch, left })
}

/// What the order comes to where it is not carried out; nothing where it is.
///
/// A flag may be left behind in a service's settings for years. So it counts once, and never on a manager that the cluster
/// went on without, unless it names the epoch that it ends: that one is over when it has been carried out.
fn standing(order: &Order<'_>, offline: &Offline<State>) -> Result<Option<Forced>, RecoveryError> {
    let epoch = offline.epoch;
    let newest = offline.fenced.as_ref().map_or(epoch, |fenced| fenced.by);
    let alone = offline.members.iter().all(|member| member.id == offline.id);
    let done = match alone {
        true => Forced::Alone,
        false => Forced::Before { epoch },
    };
    match (order.ends, &offline.fenced) {
        (Some(ends), Some(_)) if ends == newest => Ok(None),
        (Some(ends), None) if ends == newest => Ok(alone.then_some(done)),
        (Some(ends), None) if ends.number() < epoch.number() => Ok(Some(done)),
        (Some(ends), fenced) => {
            let how = match fenced {
                Some(_) => format!("is fenced by epoch {newest}"),
                None => format!("is of epoch {newest}"),
            };
            Err(RecoveryError::Refused(format!(
                "--force-new-cluster={ends} is not about this manager as it is: it {how}; leave the flag out, or, to go \
                 on with this manager alone, say --force-new-cluster={newest}"
            )))
        }
        (None, Some(fenced)) => Err(RecoveryError::Refused(format!(
            "--force-new-cluster does not count here without the epoch that it is to end, so that no manager comes back \
             above the cluster that went on without it because the flag was left in its settings: leave it out to start \
             this manager fenced. As it stands, {fenced}"
        ))),
        (None, None) if alone => Ok(Some(done)),
        (None, None) => Ok(is_forced(order.state_dir).then_some(done)),
    }
}

/// The recovered cluster runs: what it replaced may go.
///
/// # Errors
/// When something can't be removed.
pub(crate) fn proved(state_dir: &Path) -> Result<(), StorageError> {
    forget(state_dir)
}

fn unique() -> u64 {
    // Of the same randomness as a member's number.
    new_raft_id()
}

/// This node is a manager, whatever the state says.
fn make_manager(
    state: &mut State,
    (node, cluster): (NodeId, ClusterId),
    clock: &Clock,
) -> Result<(), RecoveryError> {
    let known = state.cluster.clone().filter(|known| known.id == cluster);
    let known = known.ok_or_else(|| {
        RecoveryError::Refused(
            "the log is not that of the cluster which this node's certificate names; restore both from one backup"
                .to_owned(),
        )
    })?;
    let mut known = Arc::unwrap_or_clone(known);
    known.blacklist.remove(&node);
    state.cluster = Some(Arc::new(known));
    let object = state.nodes.get(&node).map(|node| node.as_ref().clone());
    let mut object = object.unwrap_or_else(|| {
        let certificate = pb::Certificate::default();
        new_node(
            node,
            Role::Manager,
            Availability::Active,
            certificate,
            clock,
        )
    });
    object.desired_role = pb::NodeRole::Manager;
    object.role = pb::NodeRole::Manager;
    state.nodes.insert(node, Arc::new(object));
    Ok(())
}

/// A new manager, that a backup's cluster goes on with.
#[derive(Debug)]
pub(crate) struct Restored {
    pub(crate) identity: NodeIdentity,
    pub(crate) epoch: Epoch,
    state: State,
    header: own::BackupHeader,
    member: Member,
}

impl Restored {
    /// Prepares it from a backup's header and state: a node of its own, with a certificate by the cluster's CA. Nothing is
    /// on disk yet.
    ///
    /// # Errors
    /// When the backup has no cluster, or not its CA's key.
    pub(crate) fn new(
        (header, mut state): (own::BackupHeader, State),
        addresses: Vec<String>,
        availability: Availability,
        clock: &Clock,
    ) -> Result<Self, RecoveryError> {
        let refused = |reason: &dyn std::fmt::Display| {
            RecoveryError::Refused(format!(
                "can't make a manager of the backup's cluster: {reason}"
            ))
        };
        let cluster = state.cluster.clone();
        let cluster = cluster.ok_or_else(|| refused(&"it has no cluster object"))?;
        let node_id = NodeId::from_raw(random_id());
        let subject = NodeSubject {
            node_id,
            role: Role::Manager,
            cluster_id: cluster.id,
        };
        let (key, csr) = new_key_and_csr().map_err(|e| refused(&e))?;
        let certificate = sign_with_key(&cluster, &subject, csr.as_bytes(), clock.now());
        let certificate = certificate.map_err(|status| {
            // No key here, and nothing to show to who has it.
            let copy = match status.code() == tonic::Code::FailedPrecondition {
                true => {
                    "; start swarmd on a copy of the state directory of one of its managers instead"
                }
                false => "",
            };
            refused(&format!("{}{copy}", status.message()))
        })?;
        let pem = String::from_utf8_lossy(&certificate.certificate).into_owned();
        let root = String::from_utf8_lossy(&cluster.root_ca.ca_cert).into_owned();
        let identity = NodeIdentity::from_pem(&pem, &key, &root).map_err(|e| refused(&e))?;
        let node = new_node(node_id, Role::Manager, availability, certificate, clock);
        state.nodes.insert(node_id, Arc::new(node));
        // A backup of no epoch was made by a manager that had joined, and of an early version: what it is restored to has
        // to be above that cluster, which was in the first at least.
        let above = Epoch::FIRST.later(Epoch::of_wire(header.epoch));
        let epoch = above.next(unique());
        let node_id = node_id.to_string();
        Ok(Self {
            identity,
            epoch,
            state,
            header,
            member: Member { node_id, addresses },
        })
    }

    /// How its secrets are kept: with autolock they open with the cluster's unlock key only, from the first start on.
    pub(crate) fn seal(&self) -> Seal {
        let seal = Seal::default();
        if let Some(wish) = autolock::wish(&self.state) {
            seal.adopt(&wish);
        }
        seal
    }

    /// Makes the raft directory. Blocks on the disk.
    ///
    /// # Errors
    /// When something can't be written.
    pub(crate) fn write(self, state_dir: &Path, seal: &Seal) -> Result<(), RecoveryError> {
        let former = |member: own::RaftMember| Former {
            id: member.id,
            member: Member {
                node_id: member.node_id,
                addresses: member.addresses,
            },
        };
        let members = self.header.members.into_iter().map(former).collect();
        let earlier = self.header.former.into_iter().map(former).collect();
        let former = left_behind(members, earlier, &self.member.node_id);
        let rebuilt = Rebuilt {
            view: &self.state,
            index: self.header.index,
            term: self.header.term,
            epoch: self.epoch,
            id: new_raft_id(),
            member: self.member,
            former,
            forced: false,
            seal: seal.clone(),
        };
        rebuilt.prepare::<StoreMachine>(state_dir, &mut || Ok(()))?;
        Ok(put_in_place(state_dir, self.epoch, &mut || Ok(()))?)
    }
}
