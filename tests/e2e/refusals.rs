//! What is refused, and changes nothing.

use harness::cluster::{Cluster, LIMIT};
use harness::lab::lab::available;
use harness::lab::node::Options;
use harness::lab::{Node, eventually};
use nix::sys::signal::Signal;

/// Arguments of `service create` that are refused, with a word of the refusal.
const BAD_SERVICES: [(&[&str], &str); 10] = [
    (&["--name", "web"], "web"),
    (&["--name=-bad-"], "name"),
    (
        &[
            "--name",
            "a-name-of-more-than-sixty-three-characters-which-no-host-name-can-be",
        ],
        "name",
    ),
    (
        &["--name", "x", "--constraint", "node.hostname"],
        "constraint",
    ),
    (
        &["--name", "x", "--constraint", "node.hostname~=n1"],
        "constraint",
    ),
    (&["--name", "x", "--replicas", "-1"], "replicas"),
    (
        &["--name", "x", "--restart-condition", "sometimes"],
        "sometimes",
    ),
    (&["--name", "x", "--memory-limit", "lots"], "lots"),
    (&["--name", "x", "--mode", "thrice"], "thrice"),
    (&["--name", "x", "UPPER/Case:bad:tag"], "image"),
];

/// What a swarmd says last that ends by itself, with an error.
#[track_caller]
pub(super) fn last_words(node: &mut Node) -> String {
    let code = node.wait_ended(LIMIT).unwrap();
    let told = node.log_tail(20);
    assert!(code.is_some_and(|code| code != 0), "{code:?} {told}");
    assert!(!told.contains("panicked"), "{told}");
    told
}

#[test]
fn containerd_bad_input_is_refused_in_words_and_changes_nothing() {
    if !available("bad input") {
        return;
    }
    let cluster = Cluster::start(0);
    let image = cluster.image.clone();
    let create = |more: &[&str]| {
        let arguments = ["service", "create", "--detach"];
        let image: &[&str] = if more.contains(&"UPPER/Case:bad:tag") {
            &[]
        } else {
            &["--image", &image]
        };
        cluster.ctl(&[&arguments[..], image, more].concat())
    };
    create(&["--name", "web", "--replicas", "0"]).ok();
    let before = cluster.ctl(&["service", "ls", "--format", "json"]).ok();
    for (arguments, part) in BAD_SERVICES {
        let told = create(arguments).refused();
        assert!(told.contains(part), "{arguments:?}: {told}");
        assert!(!told.contains("panicked"), "{arguments:?}: {told}");
    }
    let malformed = cluster.ctl(&[
        "service",
        "create",
        "--detach",
        "--name",
        "x",
        "--image",
        "UPPER/Case:bad:tag",
    ]);
    assert!(malformed.refused().to_lowercase().contains("image"));
    assert_eq!(
        cluster.ctl(&["service", "ls", "--format", "json"]).ok(),
        before
    );

    // A million is taken, or refused with the limit; the manager answers afterwards either way.
    let million = create(&["--name", "million", "--replicas", "1000000"]);
    if million.code != 0 {
        assert!(
            million.stderr.contains("limit") || million.stderr.contains("at most"),
            "{}",
            million.stderr
        );
    }
    eventually(
        "answer of the manager after a million replicas",
        LIMIT,
        || {
            let shown = cluster.ctl(&["service", "ls"]);
            if shown.code == 0 {
                Ok(())
            } else {
                Err(shown.stderr)
            }
        },
    );
}

#[test]
fn containerd_bad_tokens_join_nothing() {
    if !available("bad join tokens") {
        return;
    }
    let mut cluster = Cluster::start(0);
    let address = cluster.join_address();
    let good = cluster.token("worker");
    let mut foreign_cluster = cluster.outsider("f1", cluster.lab.options());
    foreign_cluster.wait_ready().unwrap();
    let foreign = foreign_cluster
        .ctl(&["cluster", "join-token", "--quiet", "worker"])
        .unwrap()
        .ok();
    let mut wrong = good.clone();
    let last = wrong.pop().expect("a token is not empty");
    wrong.push(if last == 'a' { 'b' } else { 'a' });

    for (number, token) in ["SWMTKN-1-nonsense", &wrong, &foreign]
        .into_iter()
        .enumerate()
    {
        let join = Some((address.clone(), token.to_owned()));
        let options = Options {
            join,
            ..cluster.lab.options()
        };
        let mut node = cluster.outsider(&format!("x{number}"), options);
        let told = eventually(&format!("refusal of token {number}"), LIMIT, || {
            let log = node.log_tail(50).to_lowercase();
            if log.contains("token") {
                Ok(log)
            } else {
                Err(log)
            }
        });
        assert!(!told.contains("panicked"), "{told}");
        node.stop(Signal::SIGTERM).unwrap();
    }
    let listed = cluster.ctl(&["node", "ls", "--format", "{{.Name}}"]).ok();
    assert_eq!(listed, "n1", "nobody has joined");
}

#[test]
fn containerd_a_socket_in_use_is_left_to_its_owner() {
    if !available("a socket in use") {
        return;
    }
    let mut cluster = Cluster::start(0);
    cluster.create("kept", &cluster.image, &["--detach", "--replicas", "0"]);

    // A second swarmd on the control socket of the first.
    let socket = Some(cluster.node("n1").socket());
    let options = Options {
        socket,
        ..Options::default()
    };
    let mut second = cluster.outsider("x1", options);
    let told = last_words(&mut second);
    assert!(told.contains("swarmd.sock"), "{told}");
    cluster.ctl(&["node", "ls"]).ok();
}
