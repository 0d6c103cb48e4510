//! What only containerd shows: pulls, processes, limits, mounts, restarts.

use std::fs;
use std::net::UdpSocket;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use agent_runtime::Error;
use agent_runtime::executor::{Exit, Observed, TaskOrder};
use swarm_proto::pb;
use swarm_proto::pb::mount::Type as MountType;

use crate::lab::{self, Lab, Node};
use crate::suite::{Program, Subject as _, running};

pub(crate) async fn run(lab: &Lab) {
    costs_little_more_than_ctr(lab).await;
    pulls_each_layer_once(lab).await;
    pulls_every_kind(lab).await;
    names_what_is_wrong_with_an_image(lab).await;
    uses_the_image_present(lab).await;
    verifies_a_registry(lab).await;
    runs_as_told(lab).await;
    is_confined(lab).await;
    limits_hold(lab).await;
    mounts_work(lab).await;
    survives_a_containerd_restart(lab).await;
    redoes_what_is_half_made(lab).await;
    leaves_nothing_of_a_given_up_prepare(lab).await;
    sees_what_is_killed_behind_it(lab).await;
}

/// Thirty containers at once, beside thirty with `ctr`. Figures are printed; the bound is wide,
/// because other work may run on the machine.
async fn costs_little_more_than_ctr(lab: &Lab) {
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
    assert!(ours < raw * 4, "{ours:?} against {raw:?}");
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

fn container(order: &mut TaskOrder) -> &mut pb::ContainerSpec {
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
    lab.push_counted().await;
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

async fn uses_the_image_present(lab: &Lab) {
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

async fn verifies_a_registry(lab: &Lab) {
    // The address by which this machine would reach others: not loopback, so HTTPS must verify.
    let probe = UdpSocket::bind("0.0.0.0:0").unwrap();
    if probe.connect("192.0.2.1:9").is_err() {
        eprintln!("left out: HTTPS registry, this machine has no address but loopback");
        return;
    }
    let address = probe.local_addr().unwrap().ip();
    let registry = lab.start_https_registry(address);
    let mut node = lab.subject("proxy");
    let image = format!("{address}:{}/test:1", registry.port);
    let error = refusal(&node, with_image(&node, "unknown-ca", &image)).await;
    assert!(error.contains("certificate"), "{error}");
    eprintln!("as told: {error}");
    let plain = format!("{address}:{}/test:1", lab.port());
    let error = refusal(&node, with_image(&node, "plain", &plain)).await;
    eprintln!("as told: {error}");
    node.config.registry_ca = Some(registry.ca.clone());
    assert_eq!(
        finish(&node, with_image(&node, "known-ca", &image))
            .await
            .0
            .code,
        7
    );
    node.config.registry_ca = None;
    node.config.insecure_registries = vec![format!("{address}/32")];
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
    let stderr = node.config.state_dir.join("tasks/told/stderr.log");
    assert_eq!(fs::read_to_string(stderr).unwrap(), "0\nwrong\n");
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
    let mut order = node.sh("freer", "grep -E '^(CapEff|NoNewPrivs):' /proc/self/status");
    let spec = container(&mut order);
    spec.capability_drop = vec!["ALL".to_owned()];
    spec.capability_add = vec!["NET_ADMIN".to_owned()];
    spec.privileges = Some(pb::Privileges {
        no_new_privileges: true,
        ..Default::default()
    });
    let (_, text) = finish(&node, order).await;
    assert_eq!(text, "CapEff:\t0000000000001000\nNoNewPrivs:\t1\n");
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

async fn survives_a_containerd_restart(lab: &Lab) {
    let node = lab.subject("restart");
    let executor = node.executor().await;
    let mut lives = running(&executor, node.order("lives", Program::Forever)).await;
    let mut ends = running(&executor, node.sh("ends", "sleep 1; exit 5")).await;
    let before = lives.observe().await.unwrap();
    let waiting = async { (lives.wait().await, ends.wait().await) };
    let outage = async {
        // The wait is under way by then.
        tokio::time::sleep(Duration::from_millis(200)).await;
        lab.kill_containerd();
    };
    let ((first, second), ()) = tokio::join!(waiting, outage);
    assert!(matches!(first, Err(Error::Unavailable { .. })), "{first:?}");
    assert!(
        matches!(second, Err(Error::Unavailable { .. })),
        "{second:?}"
    );
    eprintln!("as told: {}", first.unwrap_err());
    for result in [
        lives.prepare().await.map(drop),
        lives.start().await,
        lives.shutdown().await,
    ] {
        assert!(
            matches!(result, Err(Error::Unavailable { .. })),
            "{result:?}"
        );
    }
    assert!(matches!(
        executor.held().await,
        Err(Error::Unavailable { .. })
    ));
    tokio::time::sleep(Duration::from_millis(1200)).await;
    let back = async {
        lab.start_containerd();
    };
    let (healthy, ()) = tokio::join!(executor.healthy(), back);
    healthy.unwrap();
    assert_eq!(
        lives.observe().await.unwrap(),
        before,
        "the same container goes on"
    );
    node.await_handlers("lives");
    assert_eq!(
        ends.wait().await.unwrap().code,
        5,
        "an end while containerd was away is seen"
    );
    lives.shutdown().await.unwrap();
    assert_eq!(lives.wait().await.unwrap().code, 0);
    executor.purge().await.unwrap();
}

async fn redoes_what_is_half_made(lab: &Lab) {
    let node = lab.subject("crash");
    let executor = node.executor().await;
    let order = || node.order("half", Program::Exit(4));
    let mut task = executor.controller(order()).await.unwrap();
    task.prepare().await.unwrap();
    // As if swarmd had ended between the container and its process.
    lab.ctr(&node, &["task", "rm", "--force", "half"]);
    let mut task = executor.controller(order()).await.unwrap();
    assert_eq!(task.observe().await.unwrap(), Observed::Absent);
    assert_eq!(executor.held().await.unwrap(), ["half"]);
    task.prepare().await.unwrap();
    // As if it had ended before the container, with the root file system made.
    lab.ctr(&node, &["task", "rm", "--force", "half"]);
    lab.ctr(&node, &["container", "rm", "--keep-snapshot", "half"]);
    assert_eq!(executor.held().await.unwrap(), ["half"]);
    let mut task = running(&executor, order()).await;
    assert_eq!(task.wait().await.unwrap().code, 4);
    task.remove().await.unwrap();
    assert!(executor.held().await.unwrap().is_empty());
    executor.purge().await.unwrap();
}

/// The agent gives a prepare up when the task is not wanted any more: at any moment of it.
async fn leaves_nothing_of_a_given_up_prepare(lab: &Lab) {
    let node = lab.subject("crash");
    let executor = node.executor().await;
    finish(&node, node.sh("first", "true")).await;
    for moment in 0..20 {
        let id = format!("given-up-{moment}");
        let mut task = executor
            .controller(node.order(&id, Program::Forever))
            .await
            .unwrap();
        let patience = Duration::from_millis(5 * moment);
        let _ = tokio::time::timeout(patience, task.prepare()).await;
        task.shutdown().await.unwrap();
        task.remove().await.unwrap();
    }
    assert!(executor.held().await.unwrap().is_empty());
    let tasks = lab.ctr(&node, &["task", "ls", "-q"]);
    assert_eq!(tasks, "", "containerd has processes of nobody");
    executor.purge().await.unwrap();
}

async fn sees_what_is_killed_behind_it(lab: &Lab) {
    let node = lab.subject("crash");
    let executor = node.executor().await;
    let mut task = running(&executor, node.order("killed", Program::Forever)).await;
    let Observed::Running(handle) = task.observe().await.unwrap() else {
        panic!("not running")
    };
    lab::run(Command::new("kill").args(["-9", &handle.pid.to_string()]));
    let exit = task.wait().await.unwrap();
    assert_eq!((exit.code, exit.oom), (137, false));
    task.remove().await.unwrap();
    // A shim that is killed takes container and exit with it; the task must not hang.
    let mut task = running(&executor, node.order("no-shim", Program::Forever)).await;
    let shims = lab::processes().into_iter().filter(|(_, command)| {
        command.contains("containerd-shim") && command.contains("-id no-shim ")
    });
    let shims: Vec<i32> = shims.map(|(pid, _)| pid).collect();
    assert_eq!(shims.len(), 1);
    lab::run(Command::new("kill").args(["-9", &shims[0].to_string()]));
    match tokio::time::timeout(Duration::from_secs(60), task.wait())
        .await
        .unwrap()
    {
        Ok(exit) => assert_ne!(exit.code, 0),
        Err(error) => {
            eprintln!("as told: {error}");
            assert!(matches!(error, Error::Fatal(_)), "{error}");
        }
    }
    task.shutdown().await.unwrap();
    task.remove().await.unwrap();
    executor.purge().await.unwrap();
}
