//! --force-new-cluster as an operator gives it: when it counts, what it carries on, and where a power cut leaves it.

use swarm_proto::id::{ClusterId, NodeId};

use super::super::epoch::Epoch;
use super::super::error::StorageError;
use super::super::gate::Gate;
use super::super::offline::{Offline, Survey};
use super::super::rebuild::{forget_replaced, kept, settle};
use super::super::{PlainDialer, Start, read_former};
use super::rotation::{copy, key, wish};
use super::*;
use crate::clock::Clock;
use crate::manager::bootstrap::{self, Founder};
use crate::manager::raft::types::Membership;
use crate::manager::recovery::{Forced, Order, RecoveryError, force_new_cluster};
use crate::manager::store::State;
use crate::manager::store::machine::StoreMachine;
use crate::manager::store::watch::Hub;
use crate::manager::writer::{RaftDoor, Store};

const OWN: NodeId = NodeId::from_raw(5);

/// A member that runs, and its store.
pub(super) async fn start(dir: &Path, seal: &Seal, how: Start) -> (RaftNode<StoreMachine>, Store) {
    let hub = Hub::default();
    let config = RaftConfig {
        member: Member {
            node_id: OWN.to_string(),
            addresses: vec!["127.0.0.1:1".to_owned()],
        },
        seal: seal.clone(),
        ..config(dir, 1)
    };
    let machine = StoreMachine::new(hub.clone());
    let node = RaftNode::start(config, how, machine, Arc::new(PlainDialer)).await;
    let node = node.unwrap();
    let store = Store::new(Arc::new(RaftDoor::new(node.proposer())), hub);
    (node, store)
}

/// A stopped manager that founded a cluster, its files sealed.
async fn founded(seal: &Seal) -> (tempfile::TempDir, ClusterId) {
    let dir = tempfile::tempdir().unwrap();
    let (node, store) = start(dir.path(), seal, Start::Found).await;
    let founder = Founder {
        node_id: OWN,
        availability: swarm_proto::pb::node_spec::Availability::Active,
        unlock_key: Some(key(1)),
        external_cas: Vec::new(),
    };
    let identity = bootstrap::found(&store, &Clock::real(), founder).await;
    node.shutdown().await;
    (dir, identity.unwrap().cluster_id())
}

fn sealed() -> Seal {
    let seal = Seal::default();
    seal.adopt(&wish(Some(1), 0));
    seal
}

fn offline(dir: &Path, seal: &Seal) -> Offline<State> {
    let survey = Survey::read(dir, seal).unwrap().unwrap();
    survey.whole(StoreMachine::new(Hub::default())).unwrap()
}

fn force(dir: &Path, cluster: ClusterId, ends: Option<Epoch>) -> Result<Forced, RecoveryError> {
    force_by_steps(dir, cluster, ends, &mut || Ok(()))
}

fn force_by_steps(
    dir: &Path,
    cluster: ClusterId,
    ends: Option<Epoch>,
    step: &mut dyn FnMut() -> Result<(), StorageError>,
) -> Result<Forced, RecoveryError> {
    let order = Order {
        state_dir: dir,
        node: OWN,
        cluster,
        addresses: vec!["127.0.0.1:1".to_owned()],
        ends,
        seal: &sealed(),
        clock: &Clock::real(),
    };
    force_new_cluster(order, step)
}

fn refusal(forced: Result<Forced, RecoveryError>) -> String {
    match forced {
        Err(RecoveryError::Refused(reason)) => reason,
        other => panic!("{other:?}"),
    }
}

/// Others become members, as the last entry in the log says.
async fn with_members(dir: &Path, others: &[u64]) {
    let known = offline(dir, &sealed());
    let RaftDir { mut log, .. } = RaftDir::open(&Disk::Real, (dir, sealed()), 1).unwrap();
    let member = |id: u64, node: NodeId| {
        let member = Member {
            node_id: node.to_string(),
            addresses: vec![format!("127.0.0.1:{id}")],
        };
        (id, member)
    };
    let mut nodes = BTreeMap::from([member(known.id, OWN)]);
    nodes.extend(
        others
            .iter()
            .map(|id| member(*id, NodeId::from_raw(u128::from(*id)))),
    );
    let voters = vec![nodes.keys().copied().collect()];
    let entry = Entry {
        log_id: LogId {
            index: known.last.index + 1,
            ..known.last
        },
        payload: EntryPayload::Membership(Membership::new(voters, nodes).unwrap()),
    };
    append(&mut log, vec![entry]).await;
    close(log).await;
}

fn left_behind(dir: &Path) -> Vec<u64> {
    let former = read_former(&dir.join("raft")).unwrap();
    former.iter().map(|left| left.id).collect()
}

#[tokio::test]
async fn a_power_cut_at_any_step_of_a_sealed_managers_recovery_is_gone_on_from() {
    let (dir, cluster) = founded(&sealed()).await;
    with_members(dir.path(), &[102, 103]).await;
    let before = offline(dir.path(), &sealed());
    let (mut cut, mut news) = (0, 0);
    loop {
        let what = format!("cut after {cut} steps");
        let image = copy(dir.path());
        let mut steps = 0;
        let forced = force_by_steps(image.path(), cluster, None, &mut || {
            steps += 1;
            match steps > cut {
                true => Err(StorageError::damaged(Path::new("x"), "x", "a power cut")),
                false => Ok(()),
            }
        });
        settle(image.path()).unwrap();
        let now = offline(image.path(), &sealed());
        let new = now.epoch != before.epoch;
        assert!(new || news == 0, "{what}: an earlier cut came further");
        news += usize::from(new);
        // The same flag is given again.
        let again = force(image.path(), cluster, None).unwrap();
        assert_eq!(again == Forced::Alone, new, "{what}: {again:?}");
        let now = offline(image.path(), &sealed());
        assert_eq!(now.members.len(), 1, "{what}");
        assert_eq!(now.view.cluster, before.view.cluster, "{what}");
        assert_eq!(left_behind(image.path()), [102, 103], "{what}");
        let dek = std::fs::read_to_string(image.path().join("raft/dek")).unwrap();
        assert!(dek.contains(" sealed\n"), "{what}: {dek}");
        let (node, store) = start(image.path(), &Seal::unlocked(key(1)), Start::Join).await;
        assert!(store.read().await.unwrap().cluster.is_some(), "{what}");
        node.shutdown().await;
        if forced.is_ok() {
            break;
        }
        cut += 1;
    }
    assert!(cut > 8 && news >= 2, "{cut} cuts, {news} after the change");
}

#[tokio::test]
async fn on_a_fenced_manager_the_flag_counts_only_with_the_epoch_that_it_ends() {
    let (dir, cluster) = founded(&sealed()).await;
    let second = Epoch::FIRST.next(7);
    let gate = Gate::open(&Disk::Real, &dir.path().join("raft")).unwrap();
    gate.heard_of(second, Vec::new());
    let before = tree(dir.path());
    let told = refusal(force(dir.path(), cluster, None));
    let way_out = format!("--force-new-cluster={second}");
    assert!(
        told.contains(&way_out) && told.contains("leave it out"),
        "{told}"
    );
    for other in [Epoch::FIRST, Epoch::FIRST.next(8), second.next(9)] {
        let told = refusal(force(dir.path(), cluster, Some(other)));
        assert!(told.contains(&way_out), "{told}");
    }
    assert_eq!(tree(dir.path()), before, "nothing has changed");
    let forced = force(dir.path(), cluster, Some(second)).unwrap();
    let Forced::Now { epoch, left: 0 } = forced else {
        panic!("{forced:?}");
    };
    assert_eq!(epoch.number(), 3);
    // Left behind in a unit file it does nothing more, also when this one is fenced in its turn.
    assert_eq!(
        force(dir.path(), cluster, Some(second)).unwrap(),
        Forced::Alone
    );
    let gate = Gate::open(&Disk::Real, &dir.path().join("raft")).unwrap();
    gate.heard_of(epoch.next(10), Vec::new());
    for ends in [None, Some(second), Some(epoch)] {
        refusal(force(dir.path(), cluster, ends));
    }
}

#[test]
fn what_a_retired_member_had_does_not_stay() {
    let dir = tempfile::tempdir().unwrap();
    let retired = dir.path().join("raft.retired");
    let put = || {
        std::fs::create_dir(&retired).unwrap();
        std::fs::write(retired.join("dek"), "a key as it lay then").unwrap();
    };
    put();
    settle(dir.path()).unwrap();
    assert!(!retired.exists());
    put();
    assert_eq!(forget_replaced(dir.path()).unwrap(), 1);
    assert!(!retired.exists());
}

#[tokio::test]
async fn a_flag_that_stays_counts_once_and_a_second_emergency_names_its_epoch() {
    let (dir, cluster) = founded(&sealed()).await;
    with_members(dir.path(), &[102, 103]).await;
    let Forced::Now { epoch, left: 2 } = force(dir.path(), cluster, None).unwrap() else {
        panic!("it did not count");
    };
    assert_eq!(force(dir.path(), cluster, None).unwrap(), Forced::Alone);
    // One of them has joined again, and another node has.
    with_members(dir.path(), &[102, 104]).await;
    for ends in [None, Some(Epoch::FIRST)] {
        let forced = force(dir.path(), cluster, ends).unwrap();
        assert_eq!(forced, Forced::Before { epoch });
    }
    assert_eq!(kept(dir.path()).unwrap().len(), 1);
    let told = refusal(force(dir.path(), cluster, Some(epoch.next(1))));
    assert!(told.contains(&format!("={epoch}")), "{told}");
    // Whom the first left behind and nobody has told yet is not forgotten by the second.
    let forced = force(dir.path(), cluster, Some(epoch)).unwrap();
    assert!(matches!(forced, Forced::Now { left: 3, .. }), "{forced:?}");
    assert_eq!(left_behind(dir.path()), [102, 104, 103]);
}
