//! What only containerd shows: pulls, processes, limits, mounts, restarts.

use std::fs;
use std::sync::Arc;

use agent_runtime::Error;
use agent_runtime::executor::{Exit, Observed, TaskOrder};
use swarm_proto::pb;
use swarm_proto::pb::mount::Type as MountType;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::lab::{self, Lab, Node};
use crate::suite::{Program, Subject as _, running};

pub(crate) async fn run(lab: &mut Lab) {
    makes_many_at_once(lab).await;
    pulls_each_layer_once(lab).await;
    pulls_two_names_of_one_image_at_once(lab).await;
    pulls_every_kind(lab).await;
    brings_in_again_what_was_removed(lab).await;
    names_what_is_wrong_with_an_image(lab).await;
    uses_the_image_present(lab).await;
    verifies_a_registry(lab).await;
    runs_as_told(lab).await;
    is_confined(lab).await;
    limits_hold(lab).await;
    mounts_work(lab).await;
    volumes_are_filled_once(lab).await;
    many_layers_are_looked_into(lab).await;
    a_pull_that_is_given_up_keeps_nothing(lab).await;
}

/// Thirty containers at once. How long they take, beside thirty with `ctr`, is printed.
async fn makes_many_at_once(lab: &Lab) {
    const COUNT: usize = 30;
    let node = lab.subject("pull");
    let executor = node.executor().await;
    finish(&node, node.sh("first", "true")).await;
    let begin = std::time::Instant::now();
    let lives = (0..COUNT).map(|number| {
        running(
            &executor,
            node.order(&format!("figure-{number}"), Program::Forever),
        )
    });
    let tasks = futures::future::join_all(lives).await;
    let ours = begin.elapsed();
    let begin = std::time::Instant::now();
    let children: Vec<_> = (0..COUNT)
        .map(|number| lab.ctr_run(&node, &format!("ctr-{number}")))
        .collect();
    for mut child in children {
        assert!(child.wait().unwrap().success());
    }
    let raw = begin.elapsed();
    eprintln!("{COUNT} containers at once: {ours:?}, with ctr: {raw:?}");
    for number in 0..COUNT {
        lab.ctr(&node, &["task", "rm", "--force", &format!("ctr-{number}")]);
        lab.ctr(&node, &["container", "rm", &format!("ctr-{number}")]);
    }
    drop(tasks);
    executor.purge().await.unwrap();
}

/// Runs to the end and returns the exit and what was written to standard output.
pub(crate) async fn finish(node: &Node, order: TaskOrder) -> (Exit, String) {
    let executor = node.executor().await;
    let id = order.task.id.clone();
    let mut task = running(&executor, order).await;
    let exit = task.wait().await.unwrap();
    let text = node.stdout(&id);
    task.remove().await.unwrap();
    (exit, text)
}

pub(crate) fn container(order: &mut TaskOrder) -> &mut pb::ContainerSpec {
    let spec = Arc::make_mut(&mut order.task).spec.as_mut().unwrap();
    let Some(pb::task_spec::Runtime::Container(container)) = spec.runtime.as_mut() else {
        panic!()
    };
    container
}

fn with_image(node: &Node, id: &str, image: &str) -> TaskOrder {
    let mut order = node.sh(id, "exit 7");
    image.clone_into(&mut container(&mut order).image);
    order
}

async fn refusal(node: &Node, order: TaskOrder) -> String {
    let executor = node.executor().await;
    let mut task = executor.controller(order).await.unwrap();
    let error = task.prepare().await.unwrap_err();
    assert!(matches!(error, Error::Fatal(_)), "{error}");
    assert!(
        executor.held().await.unwrap().is_empty(),
        "a refused task leaves nothing"
    );
    error.to_string()
}

async fn pulls_each_layer_once(lab: &Lab) {
    let node = lab.subject("pull");
    let executor = node.executor().await;
    // The suite pulled the same image for another node: containerd has the content, this
    // namespace does not. So count for an image that nobody has.
    let image = lab.image("counted:1");
    lab.push_counted();
    let lives = (0..10).map(|number| {
        running(
            &executor,
            with_image(&node, &format!("count-{number}"), &image),
        )
    });
    let tasks = futures::future::join_all(lives).await;
    assert_eq!(
        lab.registry_requests("/v2/counted/blobs/"),
        2,
        "one layer and one config"
    );
    for mut task in tasks {
        assert_eq!(task.wait().await.unwrap().code, 7);
        task.remove().await.unwrap();
    }
    executor.purge().await.unwrap();
}

/// Tags of one image have config and manifest in common, and containerd takes one writer of each.
async fn pulls_two_names_of_one_image_at_once(lab: &Lab) {
    let node = lab.subject("pull");
    let executor = node.executor().await;
    let tags = lab.push_twins(8);
    let lives = tags.iter().enumerate().map(|(number, image)| {
        running(
            &executor,
            with_image(&node, &format!("twin-{number}"), image),
        )
    });
    for mut task in futures::future::join_all(lives).await {
        assert_eq!(task.wait().await.unwrap().code, 7);
        task.remove().await.unwrap();
    }
    executor.purge().await.unwrap();
}

async fn pulls_every_kind(lab: &Lab) {
    let node = lab.subject("pull");
    let by_digest = format!("{}@{}", lab.image("test"), lab.test_digest);
    for (id, image) in [
        ("docker", lab.image("docker:1")),
        ("index", lab.image("index:1")),
        ("list", lab.image("list:1")),
        ("digest", by_digest.clone()),
        (
            "both",
            format!("{}@{}", lab.image("test:1"), lab.test_digest),
        ),
    ] {
        assert_eq!(
            finish(&node, with_image(&node, id, &image)).await.0.code,
            7,
            "{image}"
        );
    }
    // A digest that is here needs no registry.
    let before = lab.registry_requests("");
    assert_eq!(
        finish(&node, with_image(&node, "again", &by_digest))
            .await
            .0
            .code,
        7
    );
    assert_eq!(lab.registry_requests(""), before);
    node.executor().await.purge().await.unwrap();
}

/// Somebody removes images behind swarmd's back, which remembers that they were here.
async fn brings_in_again_what_was_removed(lab: &Lab) {
    let node = lab.subject("pull");
    let executor = node.executor().await;
    let image = format!("{}@{}", lab.image("test"), lab.test_digest);
    for id in ["before", "after"] {
        let mut task = running(&executor, with_image(&node, id, &image)).await;
        assert_eq!(task.wait().await.unwrap().code, 7);
        task.remove().await.unwrap();
        for name in lab.ctr(&node, &["images", "ls", "-q"]).lines() {
            lab.ctr(&node, &["images", "rm", "--sync", name]);
        }
    }
    executor.purge().await.unwrap();
}

async fn names_what_is_wrong_with_an_image(lab: &Lab) {
    let node = lab.subject("pull");
    for (image, words) in [
        (lab.image("no-such:1"), "not found"),
        (lab.image("test:no-such"), "not found"),
        (lab.image("foreign:1"), "only for linux/s390x"),
        ("127.0.0.1:1/x:1".to_owned(), "registry 127.0.0.1:1: "),
        ("UPPER CASE".to_owned(), "image \"UPPER CASE\""),
    ] {
        let error = refusal(&node, with_image(&node, "bad", &image)).await;
        assert!(error.contains(words), "{image}: {error}");
        eprintln!("as told: {error}");
    }
    let begin = std::time::Instant::now();
    let error = refusal(&node, with_image(&node, "bad", "registry.invalid/x:1")).await;
    eprintln!("as told after {:?}: {error}", begin.elapsed());
    let error = refusal(&node, with_image(&node, "bad", "127.0.0.1:1/x:1")).await;
    assert!(error.to_lowercase().contains("refused"), "{error}");
    let order = with_image(&node, "none", &node.image);
    let mut order = order;
    container(&mut order).args = vec!["/no/such/program".to_owned()];
    let error = refusal(&node, order).await;
    assert!(error.contains("/no/such/program"), "{error}");
    eprintln!("as told: {error}");
    node.executor().await.purge().await.unwrap();
}

async fn uses_the_image_present(lab: &mut Lab) {
    let node = lab.subject("gone");
    finish(&node, with_image(&node, "first", &node.image)).await;
    lab.stop_registry();
    let executor = node.executor().await;
    let mut task = executor
        .controller(with_image(&node, "second", &node.image))
        .await
        .unwrap();
    let notice = task
        .prepare()
        .await
        .unwrap()
        .expect("a notice says that the registry is down");
    assert!(
        notice.contains("image present") && notice.contains("127.0.0.1"),
        "{notice}"
    );
    eprintln!("as told: {notice}");
    task.start().await.unwrap();
    assert_eq!(task.wait().await.unwrap().code, 7);
    task.remove().await.unwrap();
    lab.start_registry();
    executor.purge().await.unwrap();
}

async fn verifies_a_registry(lab: &mut Lab) {
    // On the lab's own address: not loopback, so HTTPS must verify.
    lab.machine.registry.start_https().unwrap();
    let registry = &lab.machine.registry;
    let mut node = lab.subject("proxy");
    let image = format!("{}/test:1", registry.https());
    let error = refusal(&node, with_image(&node, "unknown-ca", &image)).await;
    assert!(error.contains("certificate"), "{error}");
    eprintln!("as told: {error}");
    let plain = format!("{}/test:1", registry.http());
    let error = refusal(&node, with_image(&node, "plain", &plain)).await;
    eprintln!("as told: {error}");
    node.config.registries.ca = Some(registry.ca_certificate());
    assert_eq!(
        finish(&node, with_image(&node, "known-ca", &image))
            .await
            .0
            .code,
        7
    );
    node.config.registries.ca = None;
    // Docker's directory of certificates says the same for one registry.
    let certificates = lab.path("certs.d");
    let of_registry = certificates.join(registry.https());
    fs::create_dir_all(&of_registry).unwrap();
    fs::copy(registry.ca_certificate(), of_registry.join("ca.crt")).unwrap();
    node.executor().await.purge().await.unwrap();
    node.config.registries.certificates = Some(certificates);
    assert_eq!(
        finish(&node, with_image(&node, "certs-d", &image))
            .await
            .0
            .code,
        7
    );
    node.config.registries.certificates = None;
    node.config.registries.insecure = vec![format!("{}/32", lab.machine.site.gateway())];
    node.executor().await.purge().await.unwrap();
    assert_eq!(
        finish(&node, with_image(&node, "insecure", &image))
            .await
            .0
            .code,
        7
    );
    assert_eq!(
        finish(&node, with_image(&node, "insecure-http", &plain))
            .await
            .0
            .code,
        7
    );
    node.executor().await.purge().await.unwrap();
}

async fn runs_as_told(lab: &Lab) {
    let node = lab.subject("process");
    let script = "cat /proc/sys/net/ipv4/ip_unprivileged_port_start >&2; pwd; hostname; id -u; id -g; id -G; echo $FROM $WHO $HOME $DOCKER_RESOURCE_GPU; \
                  cat /etc/hostname; grep db /etc/hosts; cat /etc/resolv.conf; echo wrong >&2; ip -o link";
    let mut order = node.sh("told", script);
    {
        let task = Arc::make_mut(&mut order.task);
        let named = pb::NamedGenericResource {
            kind: "gpu".to_owned(),
            value: "g0".to_owned(),
        };
        task.assigned_generic_resources = vec![pb::GenericResource {
            resource: Some(pb::generic_resource::Resource::NamedResourceSpec(named)),
        }];
    }
    let spec = container(&mut order);
    spec.env = vec!["WHO={{.Service.Name}}.{{.Task.Slot}}@{{.Node.Hostname}}".to_owned()];
    spec.dir = "/data".to_owned();
    spec.user = "web".to_owned();
    spec.hostname = "box-{{.Task.Slot}}".to_owned();
    spec.hosts = vec!["10.9.8.7 db".to_owned()];
    spec.dns_config = Some(pb::container_spec::DnsConfig {
        nameservers: vec!["9.9.9.9".to_owned()],
        ..Default::default()
    });
    let executor = node.executor().await;
    let mut task = running(&executor, order).await;
    assert_eq!(task.wait().await.unwrap().code, 0);
    let text = node.stdout("told");
    let lines: Vec<&str> = text.lines().collect();
    let expected = [
        "/data",
        "box-1",
        "33",
        "34",
        "34 29",
        "image web.1@node /web g0",
        "box-1",
        "10.9.8.7\tdb",
        "nameserver 9.9.9.9",
    ];
    assert_eq!(lines[..9], expected);
    // No network but loopback, and that is up.
    assert!(
        lines[9].contains("lo: <LOOPBACK,UP") && lines.len() == 10,
        "{text}"
    );
    assert_eq!(node.output("told", "stderr"), "0\nwrong\n");
    task.remove().await.unwrap();
    executor.purge().await.unwrap();
}

async fn is_confined(lab: &Lab) {
    let node = lab.subject("process");
    let script = "grep -E '^(CapEff|Seccomp|NoNewPrivs):' /proc/self/status; touch /x && echo wrote; \
                  cat /proc/kcore | dd bs=1 count=1 2>/dev/null; ls /sys/firmware | grep .; ls /dev; \
                  mkdir /proc/sys/x 2>/dev/null && echo made; kill -0 1 && echo $$";
    let mut order = node.sh("confined", script);
    container(&mut order).read_only = true;
    let (_, text) = finish(&node, order).await;
    let has = |line: &str| {
        text.lines()
            .any(|held| held.split_whitespace().collect::<Vec<_>>().join(" ") == line)
    };
    // Docker's fourteen capabilities.
    assert!(has("CapEff: 00000000a80425fb"), "{text}");
    assert!(has("Seccomp: 2") && has("NoNewPrivs: 0"), "{text}");
    assert!(!text.contains("wrote") && !text.contains("made"), "{text}");
    assert!(
        has("null") && !has("sda") && !has("kmsg") && !has("mem"),
        "{text}"
    );
    assert!(has("1"), "it is process 1 of its own: {text}");
    let script = "grep -E '^(CapEff|NoNewPrivs):' /proc/self/status; cat /proc/self/oom_score_adj";
    let mut order = node.sh("freer", script);
    let spec = container(&mut order);
    spec.capability_drop = vec!["ALL".to_owned()];
    spec.capability_add = vec!["NET_ADMIN".to_owned()];
    spec.privileges = Some(pb::Privileges {
        no_new_privileges: true,
        ..Default::default()
    });
    let (_, text) = finish(&node, order).await;
    // The test's containerd has a score of its own, as Debian's has.
    assert_eq!(text, "CapEff:\t0000000000001000\nNoNewPrivs:\t1\n0\n");
    node.executor().await.purge().await.unwrap();
}

async fn limits_hold(lab: &Lab) {
    let node = lab.subject("limits");
    let executor = node.executor().await;
    let resources = pb::ResourceRequirements {
        limits: Some(pb::Resources {
            memory_bytes: 32 << 20,
            nano_cpus: 500_000_000,
            ..Default::default()
        }),
        reservations: Some(pb::Resources {
            nano_cpus: 250_000_000,
            ..Default::default()
        }),
        ..Default::default()
    };
    let limited = |id: &str, script: &str| {
        let mut order = node.sh(id, script);
        container(&mut order).pids_limit = 50;
        Arc::make_mut(&mut order.task)
            .spec
            .as_mut()
            .unwrap()
            .resources = Some(resources.clone());
        order
    };
    // `tail` keeps a line whole: an endless one fills its memory.
    let mut task = running(&executor, limited("oom", "exec tail /dev/zero")).await;
    let exit = task.wait().await.unwrap();
    assert_eq!((exit.code, exit.oom), (137, true));
    assert_eq!(exit.detail.as_deref(), Some("its memory limit is 32 MiB"));
    drop((task, executor));
    let executor = node.executor().await;
    let order = limited("oom", "exec tail /dev/zero");
    let mut task = executor.controller(order).await.unwrap();
    assert!(matches!(task.observe().await.unwrap(), Observed::Exited(_, exit) if exit.oom));
    task.remove().await.unwrap();
    let script = "cd /sys/fs/cgroup; cat memory/memory.limit_in_bytes cpu/cpu.cfs_quota_us cpu/cpu.shares \
                  pids/pids.max 2>/dev/null || cat memory.max cpu.max cpu.weight pids.max";
    let (_, text) = finish(&node, limited("figures", script)).await;
    let words: Vec<&str> = text.split_whitespace().collect();
    assert!(
        words.contains(&"33554432") && words.contains(&"50000") && words.contains(&"50"),
        "{text}"
    );
    executor.purge().await.unwrap();
}

fn mount(kind: MountType, source: &str, target: &str) -> pb::Mount {
    pb::Mount {
        r#type: kind.into(),
        source: source.to_owned(),
        target: target.to_owned(),
        ..Default::default()
    }
}

async fn mounts_work(lab: &Lab) {
    let node = lab.subject("mounts");
    let outside = lab.path("outside");
    fs::create_dir_all(&outside).unwrap();
    fs::write(outside.join("file"), "bound").unwrap();
    let order = |id: &str, script: &str| {
        let mut order = node.sh(id, script);
        let mut read_only = mount(MountType::Bind, outside.to_str().unwrap(), "/bound");
        read_only.readonly = true;
        let mut tmpfs = mount(MountType::Tmpfs, "", "/scratch");
        tmpfs.tmpfs_options = Some(pb::mount::TmpfsOptions {
            size_bytes: 1 << 20,
            ..Default::default()
        });
        container(&mut order).mounts = vec![
            read_only,
            mount(MountType::Volume, "named-{{.Service.Name}}", "/data"),
            mount(MountType::Volume, "", "/anonymous"),
            tmpfs,
        ];
        order
    };
    let script = "cat /bound/file /data/deep/file; touch /bound/x || echo no; stat -c %u:%g /data/deep; \
                  echo kept > /data/new; echo lost > /anonymous/new; \
                  dd if=/dev/zero of=/scratch/big bs=1M count=2 2>/dev/null || echo full";
    let (exit, text) = finish(&node, order("first", script)).await;
    assert_eq!(
        (exit.code, text.as_str()),
        (0, "boundfrom the imageno\n33:34\nfull\n")
    );
    let (_, text) = finish(&node, order("second", "cat /data/new; ls /anonymous")).await;
    assert_eq!(text, "kept\n");
    // What the application calls its data outlives task and node; the operator removes it.
    node.executor().await.purge().await.unwrap();
    assert!(
        node.config
            .state_dir
            .join("volumes/named-web/data/new")
            .exists()
    );
    let mut order = node.sh("nowhere", "true");
    container(&mut order).mounts = vec![mount(MountType::Bind, "/no/such/place", "/x")];
    let error = refusal(&node, order).await;
    assert!(error.contains("/no/such/place"), "{error}");
    node.executor().await.purge().await.unwrap();
}

/// Ten tasks at once are the first to use a volume: each finds all of its content.
async fn volumes_are_filled_once(lab: &Lab) {
    let node = lab.subject("mounts");
    let executor = node.executor().await;
    let lives = (0..10).map(|number| {
        let mut order = node.sh(
            &format!("filled-{number}"),
            "cat /data/deep/file; stat -c %u:%g /data/deep",
        );
        container(&mut order).mounts = vec![mount(MountType::Volume, "common", "/data")];
        running(&executor, order)
    });
    let tasks = futures::future::join_all(lives).await;
    for (number, mut task) in tasks.into_iter().enumerate() {
        assert_eq!(task.wait().await.unwrap().code, 0);
        let text = node.stdout(&format!("filled-{number}"));
        assert_eq!(text, "from the image33:34\n");
        task.remove().await.unwrap();
    }
    let volume = fs::read_dir(node.config.state_dir.join("volumes/common")).unwrap();
    assert_eq!(volume.count(), 1, "nothing but the content is left");
    executor.purge().await.unwrap();
}

/// With whole paths their lower directories are more than mount(2) takes.
async fn many_layers_are_looked_into(lab: &Lab) {
    let node = lab.subject("mounts");
    let mut order = node.sh("layered", "id -u; cat /layer-0 /layer-79");
    let spec = container(&mut order);
    spec.image = lab.push_layered(80);
    spec.user = "web".to_owned();
    let (exit, text) = finish(&node, order).await;
    assert_eq!((exit.code, text.as_str()), (0, "33\n0\n79\n"));
    node.executor().await.purge().await.unwrap();
}

/// What it fetched is nobody's: without its lease, containerd collects it.
async fn a_pull_that_is_given_up_keeps_nothing(lab: &Lab) {
    let node = lab.subject("pull");
    let executor = node.executor().await;
    let leases = || lab.ctr(&node, &["leases", "ls", "-q"]);
    // The image of many layers: it takes a while to unpack.
    let order = with_image(&node, "given-up", &lab.image("layered:1"));
    let mut task = executor.controller(order).await.unwrap();
    let given_up = CancellationToken::new();
    let token = given_up.clone();
    let mut pull = JoinSet::new();
    pull.spawn(async move {
        let prepared = token.run_until_cancelled(task.prepare()).await;
        (prepared, task)
    });
    lab::until("there is a lease", || !leases().is_empty());
    given_up.cancel();
    let (prepared, task) = pull.join_next().await.unwrap().unwrap();
    assert!(
        prepared.is_none(),
        "it was not given up in time: {prepared:?}"
    );
    lab::until("the lease is gone", || leases().is_empty());
    drop(task);
    executor.purge().await.unwrap();
}
