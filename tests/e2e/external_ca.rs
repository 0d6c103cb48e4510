//! The key of the root CA is with a signing server outside the cluster.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;

use harness::cluster::{Cluster, LIMIT};
use harness::lab::eventually;
use harness::lab::lab::available;
use harness::lab::signing::{Behaviour, Root, SigningServer};

use super::ca::wait_root;
use super::managers::{persist, with_managers};

const ALL: [&str; 4] = ["n1", "n2", "n3", "n4"];
/// Where the signing server listens on the lab's subnet.
const PORT: u16 = 8888;

/// The flag for a URL, under the root in a file where one is given.
fn flag(url: &str, root: Option<&Path>) -> String {
    let under = root.map(|root| format!(",cacert={}", root.display()));
    format!("protocol=cfssl,url={url}{}", under.unwrap_or_default())
}

#[test]
fn containerd_an_external_ca_signs_while_it_is_there_and_is_left_again() {
    if !available("an external CA") {
        return;
    }
    let mut cluster = with_managers(2, &["n4"]);
    cluster.create_web("web", 3, &[]);
    let tasks = cluster.wait_running("web", 3, LIMIT);
    let first = cluster.ctl(&["cluster", "ca"]).ok();

    let dir = tempfile::tempdir().unwrap();
    let root = Arc::new(Root::new("a root of our own").unwrap());
    let file = dir.path().join("root.pem");
    fs::write(&file, root.pem()).unwrap();
    let at = SocketAddr::new(IpAddr::V4(cluster.lab.site.gateway()), PORT);
    // It serves nodes that have a certificate under either root: while it changes they have both kinds.
    let both = format!("{first}\n{}", root.pem());
    let server = SigningServer::start(&root, at, &both).unwrap();
    let url = server.url();
    refused(&cluster, &url, &file);

    // The first of the URLs answers nobody.
    let nobody = flag(&format!("https://{}:1/", at.ip()), None);
    let alive = flag(&url, None);
    let file = file.to_str().unwrap();
    let rotate = [
        "cluster",
        "ca",
        "--rotate",
        "--quiet",
        "--ca-cert",
        file,
        "--external-ca",
        &nobody,
        "--external-ca",
        &alive,
    ];
    let second = persist(&cluster, "n4", &rotate).ok();
    assert_eq!(second, root.pem().trim_end());
    wait_root(&cluster, &ALL, &second);
    cluster.wait_ready(4);
    assert_eq!(cluster.wait_running("web", 3, LIMIT), tasks);
    let shown = cluster.ctl(&["cluster", "inspect"]).ok();
    assert!(shown.contains(&url), "{shown}");
    // Each of four nodes, and a trial.
    assert!(server.seen().len() >= 5, "{:?}", server.seen().len());

    joins(&mut cluster, server, &root);

    // Back: the external CA vouches for the new root, and is not asked any more.
    let server = SigningServer::start(&root, at, root.pem()).unwrap();
    let third = persist(&cluster, "n4", &["cluster", "ca", "--rotate", "--quiet"]).ok();
    assert_ne!(third, second);
    assert_eq!(server.seen().len(), 1);
    drop(server);
    wait_root(&cluster, &["n1", "n2", "n3", "n4", "n5", "n6"], &third);
    cluster
        .ctl(&["cluster", "update", "--external-ca", ""])
        .ok();
    cluster.add_worker("n7");
    cluster.wait_ready(7);
    assert_eq!(cluster.wait_running("web", 3, LIMIT), tasks);
}

/// What would leave the cluster without certificates is refused, and changes nothing.
#[track_caller]
fn refused(cluster: &Cluster, url: &str, file: &Path) {
    let ca = |more: &[&str]| cluster.ctl(&[&["cluster", "ca", "--rotate"], more].concat());
    let path = file.to_str().unwrap();
    let told = ca(&["--ca-cert", path]).refused();
    assert!(told.contains("--external-ca"), "{told}");
    // Its server does not have a certificate under the root that it is to sign under.
    let told = cluster.ctl(&["cluster", "update", "--external-ca", &flag(url, None)]);
    let told = told.refused();
    assert!(
        told.contains(url) && told.contains("a trial gave none"),
        "{told}"
    );
    let nobody = flag(&url.replace("8888", "8889"), Some(file));
    let told = ca(&["--ca-cert", path, "--external-ca", &nobody]).refused();
    assert!(told.contains("can't be asked"), "{told}");
    let shown = cluster.ctl(&["cluster", "inspect"]).ok();
    assert!(
        !shown.contains("8888") && !shown.contains("rotation"),
        "{shown}"
    );
}

/// A node joins through the server; another one waits while that is not there.
#[track_caller]
fn joins(cluster: &mut Cluster, server: SigningServer, root: &Arc<Root>) {
    let asked = server.seen().len();
    cluster.add_worker("n5");
    cluster.wait_ready(5);
    assert_eq!(server.seen().len(), asked + 1);
    // Said no to, then nobody there.
    server.behave(Behaviour::Refuses);
    cluster.add_worker("n6");
    waits(cluster, "this CA is closed");
    let at = server.address();
    drop(server);
    let server = SigningServer::start(root, at, root.pem()).unwrap();
    cluster.wait_ready(6);
    assert_eq!(server.seen().len(), 1);
}

#[track_caller]
fn waits(cluster: &Cluster, reason: &str) {
    eventually("the node says why it has not joined", LIMIT, || {
        let log = cluster.node("n6").log_tail(20);
        match log.contains("the external CA gives no certificate") && log.contains(reason) {
            true => Ok(()),
            false => Err(log),
        }
    });
}
