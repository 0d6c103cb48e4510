//! Images from registries that are there, lost, or must be believed first.

use harness::cluster::{Cluster, LIMIT};
use harness::lab::eventually;
use harness::lab::lab::available;
use harness::lab::node::Options;

#[test]
fn containerd_bad_images_are_told_and_a_lost_registry_stops_no_image_that_is_present() {
    if !available("bad images") {
        return;
    }
    let mut cluster = Cluster::start(0);
    let registry = cluster.lab.registry.http();
    let unknown = format!("{registry}/example/none:1");
    let fails = |cluster: &Cluster, name: &str, image: &str, part: &str| {
        cluster.create(name, image, &["--restart-condition", "none", "--detach"]);
        eventually(&format!("the reason why {name} fails"), LIMIT, || {
            let tasks = cluster.all_tasks(name);
            let told = tasks
                .iter()
                .any(|task| task.error.to_lowercase().contains(part));
            if told {
                Ok(())
            } else {
                Err(format!("{tasks:#?}"))
            }
        });
    };
    fails(&cluster, "unknown", &unknown, "not found");
    fails(&cluster, "refused", "127.0.0.1:1/example/web:1", "refused");

    cluster.create_web("first", 1, &[]);
    cluster.lab.registry.stop().unwrap();
    fails(&cluster, "gone", &unknown, "refused");
    cluster.create_web("second", 1, &[]);
    let task = cluster.wait_running("second", 1, LIMIT).remove(0);
    let shown = cluster
        .ctl(&["task", "inspect", "--no-trunc", &task.id])
        .ok();
    assert!(
        shown.contains("image present"),
        "that the image present is used without the registry is said: {shown}"
    );
}

#[test]
fn containerd_ten_tasks_fetch_each_layer_once() {
    if !available("ten tasks of one image") {
        return;
    }
    let cluster = Cluster::start(0);
    cluster.create_web("web", 10, &[]);
    cluster.wait_running("web", 10, LIMIT);
    let fetched = cluster.lab.registry.fetched().unwrap();
    assert_eq!(
        fetched.len(),
        3,
        "two layers and the configuration: {fetched:?}"
    );
    assert!(fetched.values().all(|count| *count == 1), "{fetched:?}");
}

#[test]
fn containerd_https_registry_is_believed_by_its_ca_only() {
    if !available("a registry over HTTPS") {
        return;
    }
    let mut cluster = Cluster::start(0);
    cluster.lab.registry.start_https().unwrap();
    let image = format!("{}/example/web:1", cluster.lab.registry.https());
    let authority = cluster
        .lab
        .registry
        .ca_certificate()
        .to_string_lossy()
        .into_owned();
    let more = vec!["--registry-ca".to_owned(), authority];
    let join = Some((cluster.join_address(), cluster.token("worker")));
    let options = Options {
        join,
        more,
        ..cluster.lab.options()
    };
    cluster.add_node("n2", options);
    cluster.wait_ready(2);

    let create = |name: &str, node: &str| {
        let constraint = format!("node.hostname=={node}");
        cluster.create(name, &image, &["--detach", "--constraint", &constraint]);
    };
    create("knows", "n2");
    cluster.wait_running("knows", 1, LIMIT);
    create("doubts", "n1");
    eventually("the reason why the image is not fetched", LIMIT, || {
        let tasks = cluster.all_tasks("doubts");
        let told = tasks
            .iter()
            .any(|task| task.error.to_lowercase().contains("certificate"));
        if told {
            Ok(())
        } else {
            Err(format!("{tasks:#?}"))
        }
    });
    assert!(cluster.running("doubts").is_empty());
}
