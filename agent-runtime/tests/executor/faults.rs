//! Registries that fail in every way: what the operator reads, how often they are asked, and that nothing stays half-done.

use std::fs;
use std::path::PathBuf;
use std::sync::mpsc;
use std::time::Duration;

use crate::suite::Subject as _;
use ::lab::image::{Entry, Image, Layer, OCI, Recipe, architecture};
use serde_json::json;

use crate::containerd::{container, finish};
use crate::faulty::{Answer, Asked, Faulty};
use crate::images::busybox;
use crate::lab::{Lab, Node, until};

/// Bytes of the layer that is cut: some of the client's pieces.
const LARGE: usize = 3 << 20;

pub(crate) async fn run(lab: &Lab) {
    a_cut_connection_is_resumed(lab).await;
    a_range_that_is_ignored_is_read_past(lab).await;
    a_registry_that_falls_silent_is_asked_for_the_rest(lab).await;
    wrong_bytes_are_refused(lab).await;
    what_may_pass_is_asked_again_so_often(lab).await;
    an_answer_is_not_asked_again(lab).await;
    a_token_that_runs_out_is_replaced(lab).await;
    credentials_come_from_the_nodes_file(lab).await;
    a_mirror_comes_first_and_the_digest_decides(lab).await;
    progress_is_told(lab).await;
}

/// An image whose large layer no other image has.
fn image(name: &str) -> Image {
    let mut entries = busybox();
    // Not compressible, and another each time: content is shared by namespaces.
    let mut seed = u32::from_le_bytes(*name.as_bytes().first_chunk().unwrap());
    let noise: Vec<u8> = std::iter::repeat_with(|| {
        seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        seed.to_le_bytes()[3]
    })
    .take(LARGE)
    .collect();
    entries.push(Entry::file(name, 0o644, noise));
    let layer = Layer::plain(&entries).unwrap();
    Image::of(&Recipe {
        format: OCI,
        architecture: architecture(),
        config: &json!({"Cmd": ["sh"], "Labels": {"name": name}}),
        layers: &[layer],
    })
}

fn is_layer(asked: &Asked, image: &Image) -> bool {
    asked.path.ends_with(&image.blobs[0].digest)
}

async fn runs(node: &Node, id: &str, image: &str) {
    let mut order = node.sh(id, "exit 7");
    image.clone_into(&mut container(&mut order).image);
    assert_eq!(finish(node, order).await.0.code, 7, "{image}");
    node.executor().await.purge().await.unwrap();
}

/// Fails, and leaves nothing.
async fn fails(lab: &Lab, node: &Node, image: &str) -> String {
    let mut order = node.sh("fails", "exit 7");
    image.clone_into(&mut container(&mut order).image);
    let executor = node.executor().await;
    let mut task = executor.controller(order).await.unwrap();
    let error = task.prepare().await.unwrap_err();
    assert!(matches!(error, agent_runtime::Error::Fatal(_)), "{error}");
    for what in ["content", "snapshots", "leases", "images"] {
        until(&format!("no {what} are left"), || {
            let listed = lab.ctr(
                node,
                &[what, "ls", "-q"][..if what == "snapshots" { 2 } else { 3 }],
            );
            listed
                .lines()
                .filter(|line| !line.starts_with("KEY"))
                .count()
                == 0
        });
    }
    assert_eq!(lab.ctr(node, &["content", "active"]).lines().count(), 1);
    executor.purge().await.unwrap();
    eprintln!("as told: {error}");
    error.to_string()
}

async fn a_cut_connection_is_resumed(lab: &Lab) {
    let node = lab.subject("faults");
    let image = image("cut-");
    let served = image.clone();
    let registry = Faulty::start(&image, move |asked| {
        match (is_layer(asked, &served), asked.before) {
            (true, 0 | 1) => Answer::Cut(LARGE / 3),
            _ => Answer::Right,
        }
    });
    runs(&node, "cut", &registry.image()).await;
    let ranges: Vec<_> = registry
        .asked(&image.blobs[0].digest)
        .iter()
        .map(|a| a.range)
        .collect();
    let third = (LARGE / 3) as u64;
    assert_eq!(ranges, [None, Some(third), Some(2 * third)]);
}

async fn a_range_that_is_ignored_is_read_past(lab: &Lab) {
    let node = lab.subject("faults");
    let image = image("whole");
    let served = image.clone();
    let registry = Faulty::start(&image, move |asked| {
        match (is_layer(asked, &served), asked.before) {
            (true, 0) => Answer::Cut(LARGE / 2),
            (true, _) => Answer::Whole,
            _ => Answer::Right,
        }
    });
    runs(&node, "whole", &registry.image()).await;
    assert_eq!(registry.asked(&image.blobs[0].digest).len(), 2);
}

async fn a_registry_that_falls_silent_is_asked_for_the_rest(lab: &Lab) {
    let mut node = lab.subject("faults");
    node.config.registries.backoff.silence = Duration::from_millis(300);
    let image = image("silence");
    let served = image.clone();
    // Nobody says the word that it waits for.
    let (_never, wait) = mpsc::channel();
    let mut wait = Some(wait);
    let registry = Faulty::start(&image, move |asked| {
        match wait.take_if(|_| is_layer(asked, &served)) {
            Some(wait) => Answer::Held(LARGE / 2, wait),
            None => Answer::Right,
        }
    });
    runs(&node, "silence", &registry.image()).await;
    let asked = registry.asked(&image.blobs[0].digest);
    assert_eq!(asked.len(), 2);
    assert!(asked[1].range.is_some_and(|from| from > 0), "{asked:?}");
}

async fn wrong_bytes_are_refused(lab: &Lab) {
    let node = lab.subject("faults");
    let image = image("wrong");
    let served = image.clone();
    let registry = Faulty::start(&image, move |asked| match is_layer(asked, &served) {
        true => Answer::Altered,
        false => Answer::Right,
    });
    let error = fails(lab, &node, &registry.image()).await;
    assert!(error.contains(&registry.address), "{error}");
    assert!(error.contains("does not match its digest"), "{error}");
    assert_eq!(registry.asked(&image.blobs[0].digest).len(), 1);
    // The manifest too.
    let by_digest = format!("{}/faulty@{}", registry.address, image.manifest.digest);
    let registry = Faulty::start(&image, |_| Answer::Altered);
    let by_digest = by_digest.replace(by_digest.split('/').next().unwrap(), &registry.address);
    let error = fails(lab, &node, &by_digest).await;
    assert!(error.contains("does not match"), "{error}");
}

async fn what_may_pass_is_asked_again_so_often(lab: &Lab) {
    let node = lab.subject("faults");
    let image = image("again");
    for code in [500, 502, 503, 504, 429] {
        let registry = Faulty::start(&image, move |_| Answer::Status(code, vec![]));
        let error = fails(lab, &node, &registry.image()).await;
        assert!(
            error.contains(&format!("registry {}", registry.address)),
            "{error}"
        );
        assert!(error.contains(&format!("HTTP {code}")), "{error}");
        assert!(error.contains("given up after 5 tries"), "{error}");
        assert_eq!(registry.asked("/manifests/1").len(), 5);
    }
    // What it asks for is granted, within reason.
    let registry = Faulty::start(&image, |asked| match asked.before {
        0 => Answer::Status(429, vec![("retry-after", "1".to_owned())]),
        _ => Answer::Right,
    });
    runs(&node, "later", &registry.image()).await;
    let registry = Faulty::start(&image, |_| {
        Answer::Status(429, vec![("retry-after", "3600".to_owned())])
    });
    let error = fails(lab, &node, &registry.image()).await;
    assert!(error.contains("3600 s"), "{error}");
    assert_eq!(registry.asked("/manifests/1").len(), 1);
    // Nobody there at all.
    let gone = registry.image();
    drop(registry);
    let error = fails(lab, &node, &gone).await;
    assert!(error.contains("refused"), "{error}");
}

async fn an_answer_is_not_asked_again(lab: &Lab) {
    let node = lab.subject("faults");
    let image = image("final");
    for (code, words) in [
        (401, "not authorized"),
        (403, "HTTP 403"),
        (404, "not found"),
    ] {
        let registry = Faulty::start(&image, move |_| Answer::Status(code, vec![]));
        let error = fails(lab, &node, &registry.image()).await;
        assert!(error.contains(words), "{error}");
        assert_eq!(registry.asked("/manifests/1").len(), 1, "{error}");
    }
}

async fn a_token_that_runs_out_is_replaced(lab: &Lab) {
    let node = lab.subject("faults");
    let image = image("token");
    // Each token is good for one request.
    let mut given = 0;
    let mut good = String::new();
    let registry = Faulty::start(&image, move |asked| {
        if asked.path == "/token" {
            given += 1;
            good = format!("Bearer t{given}");
            return Answer::Body(format!(r#"{{"token": "t{given}"}}"#));
        }
        let host = "http://127.0.0.1";
        if asked.authorization.as_ref() == Some(&std::mem::take(&mut good)) {
            return Answer::Right;
        }
        let port = PORT.lock().unwrap();
        let challenge = format!(
            r#"Bearer realm="{host}:{port}/token",service="faulty",scope="repository:faulty:pull""#
        );
        Answer::Status(401, vec![("www-authenticate", challenge)])
    });
    let port = registry.address.rsplit(':').next().unwrap().to_owned();
    port.clone_into(&mut PORT.lock().unwrap());
    runs(&node, "token", &registry.image()).await;
    // Manifest, layer and configuration.
    assert_eq!(registry.asked("/token").len(), 3);
}

/// The port of the registry that names itself as token server.
static PORT: std::sync::Mutex<String> = std::sync::Mutex::new(String::new());

async fn credentials_come_from_the_nodes_file(lab: &Lab) {
    let mut node = lab.subject("faults");
    let image = image("basic");
    let wanted = "Basic YW5uOnNlY3JldA==";
    let registry = Faulty::start(&image, move |asked| {
        match asked.authorization.as_deref() == Some(wanted) {
            true => Answer::Right,
            false => Answer::Status(
                401,
                vec![("www-authenticate", "Basic realm=\"r\"".to_owned())],
            ),
        }
    });
    let error = fails(lab, &node, &registry.image()).await;
    assert!(
        error.contains("it wants a user name and a password"),
        "{error}"
    );
    let file: PathBuf = lab.path("docker-config.json");
    let auths = json!({"auths": {&registry.address: {"auth": "YW5uOnNlY3JldA=="}}});
    fs::write(&file, auths.to_string()).unwrap();
    node.config.registries.credentials = Some(file.clone());
    runs(&node, "basic", &registry.image()).await;
    let auths = json!({"auths": {&registry.address: {"username": "ann", "password": "wrong"}}});
    fs::write(&file, auths.to_string()).unwrap();
    let error = fails(lab, &node, &registry.image()).await;
    assert!(error.contains("refuses these credentials"), "{error}");
    assert!(!error.contains("wrong"), "{error}");
}

async fn a_mirror_comes_first_and_the_digest_decides(lab: &Lab) {
    let mut node = lab.subject("faults");
    let image = image("mirror");
    let served = image.clone();
    let mirror = Faulty::start(&image, move |asked| match is_layer(asked, &served) {
        true => Answer::Altered,
        false => Answer::Right,
    });
    let origin = Faulty::start(&image, |_| Answer::Right);
    let rule = format!("{}=http://{}", origin.address, mirror.address);
    node.config.registries.mirrors = vec![rule.parse().unwrap()];
    runs(&node, "mirror", &origin.image()).await;
    assert_eq!(mirror.asked("/manifests/1").len(), 1);
    assert_eq!(origin.asked("/manifests/1").len(), 0);
    assert_eq!(origin.asked(&image.blobs[0].digest).len(), 1);
    // One that is gone is passed over.
    drop(mirror);
    let image = self::image("origin");
    let origin = Faulty::start(&image, |_| Answer::Right);
    let rule = format!("{}=http://127.0.0.1:1", origin.address);
    node.config.registries.mirrors = vec![rule.parse().unwrap()];
    runs(&node, "origin", &origin.image()).await;
}

async fn progress_is_told(lab: &Lab) {
    let node = lab.subject("faults");
    let image = image("slow");
    let served = image.clone();
    let (go, wait) = mpsc::channel();
    let mut wait = Some(wait);
    let registry = Faulty::start(&image, move |asked| {
        match wait.take_if(|_| is_layer(asked, &served)) {
            Some(wait) => Answer::Held(2 << 20, wait),
            None => Answer::Right,
        }
    });
    let mut order = node.sh("slow", "exit 7");
    container(&mut order).image = registry.image();
    let executor = node.executor().await;
    let mut task = executor.controller(order).await.unwrap();
    let mut progress = task.progress().unwrap();
    {
        let mut prepare = task.prepare();
        let told = async {
            let told = progress.wait_for(|text| text.contains("2 of ")).await;
            told.unwrap().clone()
        };
        let told = tokio::select! {
            ended = &mut prepare => panic!("{ended:?}"),
            told = tokio::time::timeout(Duration::from_secs(60), told) => told.unwrap(),
        };
        // Busybox and the noise.
        assert!(told.starts_with("pulling: 2 of "), "{told}");
        assert!(told.ends_with(" MiB"), "{told}");
        go.send(()).unwrap();
        prepare.await.unwrap();
    }
    task.remove().await.unwrap();
    executor.purge().await.unwrap();
}
