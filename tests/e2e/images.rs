//! Images from registries that are there, lost, or must be believed first.

use harness::cluster::{Cluster, LIMIT};
use harness::lab::eventually;
use harness::lab::image::Image;
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

#[test]
fn containerd_replicas_run_what_the_tag_meant_when_the_service_came() {
    if !available("a tag that moves") {
        return;
    }
    let mut cluster = Cluster::start(0);
    cluster.create_web("web", 1, &[]);
    let image = cluster
        .ctl(&[
            "service",
            "inspect",
            "--format",
            "{{.Spec.Task.Container.Image}}",
            "web",
        ])
        .ok();
    assert!(image.contains("example/web:1@sha256:"), "{image}");
    let listed = cluster
        .ctl(&["service", "ls", "--format", "{{.Image}}"])
        .ok();
    assert!(listed.trim().ends_with("/example/web:1"), "{listed}");
    cluster.wait_running("web", 1, LIMIT);

    // The tag means something else now, which does not even run.
    let other = Image::new(&serde_json::json!({"Entrypoint": ["/none"]}), &[vec![]]).unwrap();
    cluster
        .lab
        .registry
        .push("example/web", "1", &other)
        .unwrap();
    assert!(
        cluster
            .ctl(&["service", "scale", "web=3", "--detach"])
            .ok()
            .contains("web")
    );
    cluster.wait_running("web", 3, LIMIT);
    let digests = cluster
        .ctl(&["image", "ls", "--format", "{{.Digest}}"])
        .ok();
    assert_eq!(digests.lines().count(), 1, "{digests}");
    assert!(image.contains(digests.trim()), "{image} {digests}");
    let refused = cluster.ctl(&["image", "rm", image.trim()]);
    assert_eq!(refused.code, 1, "{refused:?}");
    assert!(refused.stderr.contains("used by 3 tasks"), "{refused:?}");

    cluster.lab.registry.stop().unwrap();
    let tag = format!("{}/example/web:1", cluster.lab.registry.http());
    let created = cluster.ctl(&[
        "service", "create", "--detach", "--name", "away", "--image", &tag,
    ]);
    assert!(
        created.stderr.contains("could not be resolved"),
        "{created:?}"
    );
    let image = cluster
        .ctl(&[
            "service",
            "inspect",
            "--format",
            "{{.Spec.Task.Container.Image}}",
            "away",
        ])
        .ok();
    assert_eq!(image.trim(), tag);
}

#[test]
fn containerd_images_that_nobody_uses_are_collected() {
    if !available("collection of images") {
        return;
    }
    let mut cluster = Cluster::start(0);
    let more = ["--image-gc-age=1s", "--image-minimum-gc-age=0s"];
    let join = Some((cluster.join_address(), cluster.token("worker")));
    let options = Options {
        join,
        more: more.map(str::to_owned).to_vec(),
        ..cluster.lab.options()
    };
    cluster.add_node("n2", options);
    cluster.wait_ready(2);
    let there = |cluster: &Cluster| {
        let listed = cluster.node("n2").ctl(&["image", "ls", "-q"]).unwrap().ok();
        listed.lines().count()
    };
    let constraint = "node.hostname==n2";
    cluster.create_web("web", 1, &["--constraint", constraint]);
    cluster.wait_running("web", 1, LIMIT);
    // Some of its looks later.
    let unused = format!("{}/example/unused:1", cluster.lab.registry.http());
    let other = Image::new(&serde_json::json!({"Cmd": ["none"]}), &[vec![]]).unwrap();
    cluster
        .lab
        .registry
        .push("example/unused", "1", &other)
        .unwrap();
    cluster
        .node("n2")
        .ctl(&["image", "pull", &unused])
        .unwrap()
        .ok();
    eventually("the unused image goes", LIMIT, || match there(&cluster) {
        1 => Ok(()),
        count => Err(format!("{count} images")),
    });
    cluster.wait_running("web", 1, LIMIT);
    cluster.ctl(&["service", "rm", "web"]).ok();
    eventually("the last image goes", LIMIT, || match there(&cluster) {
        0 => Ok(()),
        count => Err(format!("{count} images")),
    });
}
