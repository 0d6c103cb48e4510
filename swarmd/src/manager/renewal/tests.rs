//! Cases in a few words: a node is `name(what is so)`, the outcome who is asked and when to look again.

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};

use swarm_proto::id::ServiceId;

use super::*;
use crate::ca::testing::{NOW, TestCa};
use crate::manager::plan::{Dirty, Plan, pass};
use crate::manager::store::{Entry, apply, testing};

/// The present root, the next one, and a third.
static ROOTS: LazyLock<[TestCa; 3]> = LazyLock::new(|| [1, 1, 1].map(TestCa::new));

fn pem(which: usize) -> Vec<u8> {
    ROOTS[which].root.cert_pem().as_bytes().to_vec()
}

fn id(name: &str) -> NodeId {
    NodeId::from_raw(name.bytes().fold(0, |raw, b| raw << 8 | u128::from(b)))
}

/// In turn: where the root stands, and whether an external CA signs under it; then the nodes.
///
/// - `down`: can't be asked; `old-version`: nothing is known of its certificate.
/// - `root1`, `root2`: has been issued, uses and trusts root 1 or 2 (otherwise root 0).
/// - `turned2`: has been issued root 2, after what it says that it uses.
/// - `silent1`: has been issued root 1 and does not use it; `untrusting1`: uses it and trusts root 0 alone.
/// - `asked`: now, and has not renewed; `done-ago=2`: was asked so many seconds ago, and has.
/// - `long`: its certificate is valid for longer than is wanted now; `joined-ago=10`: seconds.
fn state(root: &str, nodes: &str) -> State {
    let mut cluster = Cluster {
        id: ROOTS[0].cluster_id,
        meta: Default::default(),
        spec: pb::ClusterSpec::default(),
        root_ca: pb::RootCa {
            ca_cert: pem(0),
            ca_key: b"0".to_vec(),
            join_tokens: tokens("0"),
            ..Default::default()
        },
        blacklist: BTreeMap::new(),
        unlock_keys: Vec::new(),
        managers: BTreeMap::new(),
    };
    cluster.root_ca.root_rotation = match root {
        "rests" => None,
        "to1" => Some(pb::RootRotation {
            ca_cert: pem(1),
            ca_key: b"1".to_vec(),
            join_tokens: tokens("1"),
            ..Default::default()
        }),
        "rests-external" => None,
        _ => panic!("{root}"),
    };
    if root == "rests-external" {
        let external = pb::ExternalCa {
            url: "https://ca".to_owned(),
            ca_cert: pem(0),
            ..Default::default()
        };
        let config = cluster.spec.ca_config.get_or_insert_default();
        config.external_cas.push(external);
    }
    let mut changes = vec![Change::CreateCluster(Arc::new(cluster))];
    changes.extend(nodes.split(' ').filter(|n| !n.is_empty()).map(node));
    let mut state = State::default();
    write(&mut state, changes);
    state
}

fn tokens(of: &str) -> Option<pb::JoinTokens> {
    Some(pb::JoinTokens {
        worker: format!("worker {of}"),
        manager: format!("manager {of}"),
    })
}

fn node(text: &str) -> Change {
    let (name, words) = text
        .trim_end_matches(')')
        .split_once('(')
        .unwrap_or((text, ""));
    let mut node = testing::new_node(id(name));
    let (mut issued, mut used, mut trusted) = (0, 0, vec![0]);
    let (mut age, mut life, mut asked, mut known) = (100_000, 2160 * 3600, None, true);
    let mut stage = Stage::Issued;
    let mut state = pb::node_status::State::Ready;
    for word in words.split(',').filter(|w| !w.is_empty()) {
        let (key, value) = word.split_once('=').unwrap_or((word, "0"));
        let seconds: u64 = value.parse().unwrap();
        match key {
            "down" => state = pb::node_status::State::Down,
            "old-version" => known = false,
            "root1" => (issued, used, trusted) = (1, 1, vec![0, 1]),
            "root2" => (issued, used, trusted) = (2, 2, vec![0, 2]),
            "turned2" => issued = 2,
            "silent1" => issued = 1,
            "untrusting1" => (issued, used) = (1, 1),
            "asked" => (asked, stage) = (Some(seconds), Stage::Rotate),
            "done-ago" => asked = Some(seconds),
            "long" => life *= 2,
            "joined-ago" => age = seconds,
            _ => panic!("{word}"),
        }
    }
    let ago = |seconds: u64| NOW.before(Duration::from_secs(seconds));
    let key = |which: usize| ROOTS[which].root.public_key();
    node.status.state = state;
    let from = ago(age).before(BACKDATE);
    let until = ago(age).after(Duration::from_secs(life));
    node.certificate = pb::Certificate {
        status: Some(pb::IssuanceStatus {
            state: stage.into(),
            asked_at: asked.and_then(|at| ago(at).to_wire()),
            ..Default::default()
        }),
        issuer_public_key: if known { key(issued) } else { Vec::new() },
        not_before: from.to_wire().filter(|_| known),
        not_after: until.to_wire().filter(|_| known),
        ..Default::default()
    };
    let description = pb::NodeDescription {
        tls_info: Some(pb::NodeTlsInfo {
            trust_root: trusted.into_iter().flat_map(pem).collect(),
            cert_issuer_public_key: key(used),
            cert_issuer_subject: Reported::of(&pem(used)).unwrap().subject,
            ..Default::default()
        }),
        ..Default::default()
    };
    node.description = Some(Arc::new(description));
    Change::CreateNode(Arc::new(node))
}

fn write(state: &mut State, changes: Vec<Change>) {
    let entry = Entry { now: NOW, changes };
    let version = state.version + 1;
    let applied = apply(state, version, &entry);
    assert!(applied.results.iter().all(Result::is_ok), "{applied:?}");
}

fn outcome(state: &State, plan: &Plan) -> String {
    let mut words = Vec::new();
    for change in &plan.changes {
        if let Change::UpdateCluster(_) = change {
            words.push("over".to_owned());
            continue;
        }
        let Change::AskRenewal { nodes } = change else {
            panic!("{change:?}");
        };
        let name = |id: &NodeId| {
            let bytes = id.to_bytes();
            let text = String::from_utf8_lossy(&bytes);
            text.trim_start_matches('\0').to_owned()
        };
        let mut names: Vec<String> = nodes.iter().map(name).collect();
        if names.len() > 5 {
            names = vec![format!("{} nodes", names.len())];
        }
        words.push(format!("ask {}", names.join(" ")));
    }
    if let Some(at) = plan.wake_at {
        words.push(format!("look in {:?}", at.since(NOW)));
    }
    let left = waits_for(state).len();
    if left > 0 {
        words.push(format!("{left} left"));
    }
    words.join(", ")
}

#[track_caller]
fn check(root: &str, nodes: &str, expected: &str) {
    let mut state = state(root, nodes);
    let plan = pass(&state, &Dirty::all(), NOW, 1);
    assert_eq!(outcome(&state, &plan), expected, "{root} {nodes}");
    let wake = plan.wake_at;
    write(&mut state, plan.changes);
    let again = pass(&state, &Dirty::all(), NOW, 1);
    assert_eq!(again.changes, [], "{root} {nodes}");
    if wake.is_some() {
        assert!(again.wake_at <= wake, "{:?} {wake:?}", again.wake_at);
    }
}

#[test]
fn nodes_without_the_wanted_certificate_are_asked() {
    check("rests", "a b", "");
    check("to1", "a b(down) c(root1)", "ask a, 2 left");
    check("to1", "a(asked) b(asked=600)", "2 left");
    // Issued by a root whose turn was given up, or taken back.
    check("to1", "a(root2) b(root1)", "ask a, 1 left");
    check("rests", "a(root1)", "ask a");
    // Nothing is known of what an earlier version issued: it was the present root.
    check("rests", "a(old-version)", "");
    check("to1", "a(old-version)", "ask a, 1 left");
}

#[test]
fn what_was_issued_is_waited_for_and_asked_for_again() {
    check("to1", "a(silent1,joined-ago=10)", "look in 50s, 1 left");
    check(
        "to1",
        "a(silent1,joined-ago=90,done-ago=20)",
        "look in 40s, 1 left",
    );
    check("to1", "a(silent1,joined-ago=61)", "ask a, 1 left");
    // The roots come with its session; another certificate is no help.
    check("to1", "a(untrusting1)", "1 left");
}

#[test]
fn an_external_ca_decides_how_long_certificates_last() {
    check("rests", "a(long)", "ask a");
    check("rests-external", "a(long)", "");
}

#[test]
fn a_shorter_life_counts_for_the_certificates_that_are_there() {
    check("rests", "a(long) b", "ask a");
    check("rests", "a(long,down)", "");
    check("rests", "a(long,asked)", "");
}

fn names(count: usize, what: &str) -> String {
    let nodes: Vec<String> = (0..count).map(|n| format!("n{n}{what}")).collect();
    nodes.join(" ")
}

#[test]
fn some_at_a_time() {
    check("to1", &names(31, ""), "ask 30 nodes, look in 3s, 31 left");
    check("to1", &names(30, ""), "ask 30 nodes, 30 left");
    // Those that have done it were asked all the same.
    let done = names(28, "(root1,done-ago=1)");
    check(
        "to1",
        &format!("{done} x y z"),
        "ask x y, look in 2s, 3 left",
    );
    let earlier = names(28, "(root1,done-ago=3)");
    check("to1", &format!("{earlier} x y z"), "ask x y z, 3 left");
}

#[test]
fn it_is_over_when_every_node_uses_and_trusts_the_new_root() {
    check("to1", "a(root1) b(root1,down)", "over");
    check("to1", "a(root1) b(root1,long)", "over, ask b");
    // The change went another way for a while, and has come back: what b was issued then it may use now.
    check("to1", "a(root1) b(root1,turned2,down)", "1 left");
    check("to1", "a(root1) b(root1,turned2)", "ask b, 1 left");
    let mut state = state("to1", "a(root1)");
    let before = state.cluster.clone().unwrap();
    let plan = pass(&state, &Dirty::all(), NOW, 1);
    write(&mut state, plan.changes);
    let root = &state.cluster.as_ref().unwrap().root_ca;
    assert_eq!(root.ca_cert, pem(1));
    assert_eq!(root.ca_key, b"1");
    assert_eq!(root.ca_cert_hash, RootDigest::of(&pem(1)).to_string());
    assert_eq!(root.join_tokens, tokens("1"));
    assert_eq!(root.root_rotation, None);
    assert_ne!(before.root_ca, *root);
}

#[test]
fn a_removed_node_is_not_waited_for() {
    let mut state = state("to1", "a(root1) b(down)");
    let plan = pass(&state, &Dirty::all(), NOW, 1);
    assert_eq!(outcome(&state, &plan), "1 left");
    write(
        &mut state,
        vec![Change::RemoveNode {
            id: id("b"),
            force: true,
            refused_until: Timestamp::MAX,
        }],
    );
    let dirty = Dirty {
        certificates: true,
        ..Dirty::default()
    };
    let plan = pass(&state, &dirty, NOW, 1);
    assert_eq!(outcome(&state, &plan), "over");
}

#[test]
fn what_does_not_concern_certificates_leaves_them_alone_until_one_is_due() {
    let mut state = state("to1", &format!("{} x", names(30, "(asked)")));
    let all = pass(&state, &Dirty::all(), NOW, 1);
    assert_eq!(outcome(&state, &all), "look in 3s, 31 left");
    let quiet = Dirty::after(&all);
    assert!(quiet.is_empty());
    let mut service = quiet.clone();
    service.services.insert(ServiceId::from_raw(1));
    assert!(!service.is_empty());
    let plan = pass(&state, &service, NOW, 1);
    assert_eq!(plan, all);
    assert_eq!(Dirty::after(&plan), quiet);
    // Nobody has told of the time; that it has come is enough.
    let later = NOW.after(WINDOW);
    let plan = pass(&state, &quiet, later, 1);
    let asked = Change::AskRenewal {
        nodes: vec![id("x")],
    };
    assert_eq!(plan.changes, [asked]);
    write(&mut state, plan.changes);
}
