//! Options of a container, seen from inside: terminal, input, first process, output, health.

use std::fs;
use std::io::Write as _;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use agent_runtime::Error;
use agent_runtime::executor::{Observed, TaskOrder};
use swarm_proto::pb;
use swarm_proto::time::duration_to_wire;

use crate::containerd::{container, finish};
use crate::lab::{self, Lab, Node};
use crate::suite::{Program, Subject as _, running};

pub(crate) async fn run(lab: &Lab) {
    let node = lab.subject("options");
    has_a_terminal(&node).await;

    reads_its_input(&node).await;

    has_an_init_process(&node).await;

    output_is_kept_in_bounds(&node).await;

    output_outlives_the_executor(&node).await;

    output_goes_where_it_is_told(&node).await;

    is_running_once_it_is_healthy(&node).await;

    is_stopped_when_it_is_unhealthy(&node).await;

    is_looked_after_by_the_next_executor(&node).await;

    has_its_devices(&node).await;
    is_run_by_what_it_asks_for(&node).await;
    node.executor().await.purge().await.unwrap();
}

async fn has_its_devices(node: &Node) {
    // The kernel has it everywhere, and no container has it unasked.
    let script = "ls -l /dev/lent | cut -c1-1; (: < /dev/lent) && echo read; (: >> /dev/lent) || echo kept; \
                  df -k /dev/shm | tail -1 | awk '{ print $2 }'";
    let mut order = node.sh("device", script);
    container(&mut order).devices = vec![pb::container_spec::Device {
        path_on_host: "/dev/fuse".to_owned(),
        path_in_container: "/dev/lent".to_owned(),
        permissions: "r".to_owned(),
    }];
    container(&mut order).shm_bytes = 3 << 20;
    let (exit, text) = finish(node, order).await;
    assert_eq!((exit.code, text.as_str()), (0, "c\nread\nkept\n3072\n"));
}

async fn is_run_by_what_it_asks_for(node: &Node) {
    let executor = node.executor().await;
    for name in ["runc", "crun"] {
        let id = format!("by-{name}");
        let mut order = node.order(&id, Program::Forever);
        container(&mut order).oci_runtime = name.to_owned();
        let mut task = executor.controller(order).await.unwrap();
        if let Err(error) = task.prepare().await {
            // crun's own words where both versions of cgroups have controllers.
            let error = fatal(error);
            assert!(
                name == "crun" && error.contains("cgroups in hybrid mode"),
                "{error}"
            );
            task.remove().await.unwrap();
            continue;
        }
        task.start().await.unwrap();
        node.await_handlers(&id);
        // crun keeps its state in another file than runc.
        let state = Path::new("/run/containerd/runc").join(&node.config.namespace);
        assert_eq!(state.join(&id).join("status").exists(), name == "crun");
        task.shutdown().await.unwrap();
        assert_eq!(task.wait().await.unwrap().code, 0);
        task.remove().await.unwrap();
    }
    let mut order = node.sh("by-none", "true");
    container(&mut order).oci_runtime = "no-such-runtime".to_owned();
    let mut task = executor.controller(order).await.unwrap();
    let error = fatal(task.prepare().await.unwrap_err());
    assert!(error.contains("no-such-runtime"), "{error}");
    task.remove().await.unwrap();
}

async fn has_a_terminal(node: &Node) {
    let script = "tty; echo $TERM; [ -t 0 ] && [ -t 1 ] && [ -t 2 ] && echo three; echo err >&2";
    let mut order = node.sh("tty", script);
    container(&mut order).tty = true;
    let (exit, text) = finish(node, order).await;
    // A terminal ends its lines its own way, and has one stream.
    assert_eq!(
        (exit.code, text.as_str()),
        (0, "/dev/pts/0\r\nxterm\r\nthree\r\nerr\r\n")
    );
    let (_, text) = finish(node, node.sh("no-tty", "tty; echo \"[$TERM]\"")).await;
    assert_eq!(text, "not a tty\n[]\n");
}

/// Writes to a container's open standard input.
fn say(input: &Path, words: &str) {
    let mut input = fs::OpenOptions::new().write(true).open(input).unwrap();
    input.write_all(words.as_bytes()).unwrap();
}

async fn reads_its_input(node: &Node) {
    let (exit, text) = finish(node, node.sh("closed", "cat; echo end")).await;
    assert_eq!((exit.code, text.as_str()), (0, "end\n"));
    for (id, tty) in [("pipe", false), ("terminal", true)] {
        let executor = node.executor().await;
        let mut order = node.sh(id, "echo asks; read line; echo \"got $line\"");
        container(&mut order).open_stdin = true;
        container(&mut order).tty = tty;
        let mut task = running(&executor, order).await;
        lab::until("it reads", || node.stdout(id).contains("asks"));
        say(&node.files(id).join("stdin"), "words\n");
        assert_eq!(task.wait().await.unwrap().code, 0);
        assert!(node.stdout(id).contains("got words"), "{}", node.stdout(id));
        task.remove().await.unwrap();
    }
}

async fn has_an_init_process(node: &Node) {
    let with_init = |id: &str, script: &str| {
        let mut order = node.sh(id, script);
        container(&mut order).init = Some(true);
        order
    };
    // The child of a process that has ended is taken up, and does not stay as a zombie.
    let script = "tr '\\0' ' ' < /proc/1/cmdline; echo; sh -c 'sleep 0.1 & echo $!' > /tmp/pid; \
                  while [ -e /proc/$(cat /tmp/pid) ]; do sleep 0.05; done; exit 7";
    let (exit, text) = finish(node, with_init("init", script)).await;
    assert_eq!(exit.code, 7);
    assert!(
        text.starts_with("/sbin/swarm-init task-init -- sh -c "),
        "{text}"
    );
    // As process 1 it would ignore a signal that it has no handler for.
    let executor = node.executor().await;
    let mut task = running(
        &executor,
        with_init("init-stop", "echo runs; exec sleep 1000"),
    )
    .await;
    lab::until("it runs", || node.stdout("init-stop").contains("runs"));
    task.shutdown().await.unwrap();
    assert_eq!(task.wait().await.unwrap().code, 143);
    task.remove().await.unwrap();
    let mut missing = with_init("init-missing", "");
    container(&mut missing).args = vec!["/no/such/program".to_owned()];
    let mut task = running(&executor, missing).await;
    assert_eq!(task.wait().await.unwrap().code, 127);
    let words = node.output("init-missing", "stderr");
    assert!(words.contains("/no/such/program"), "{words}");
    task.remove().await.unwrap();
}

fn with_log(mut order: TaskOrder, name: &str, options: &[(&str, &str)]) -> TaskOrder {
    let spec = Arc::make_mut(&mut order.task).spec.as_mut().unwrap();
    spec.log_driver = Some(pb::Driver {
        name: name.to_owned(),
        options: options
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect(),
    });
    order
}

async fn output_is_kept_in_bounds(node: &Node) {
    let executor = node.executor().await;
    let script = "i=0; while [ $i -lt 5000 ]; do echo \"line $i of many, and a few words more\"; i=$((i+1)); done";
    let options = [("max-size", "64k"), ("max-file", "3")];
    let mut task = running(
        &executor,
        with_log(node.sh("much", script), "json-file", &options),
    )
    .await;
    assert_eq!(task.wait().await.unwrap().code, 0);
    let mut logs = Vec::new();
    for name in ["much-json.log.2", "much-json.log.1", "much-json.log"] {
        let text = fs::read_to_string(node.files("much").join(name)).unwrap();
        assert!(text.len() <= 64 << 10, "{name}: {}", text.len());
        logs.extend(text.lines().map(|line| {
            let entry: serde_json::Value = serde_json::from_str(line).unwrap();
            entry["log"].as_str().unwrap().to_owned()
        }));
    }
    assert!(!node.files("much").join("much-json.log.3").exists());
    // The newest of what it wrote, none missing between.
    let first = 5000 - logs.len();
    for (number, log) in logs.iter().enumerate() {
        assert!(
            log.starts_with(&format!("line {} of", first + number)),
            "{log}"
        );
    }
    task.remove().await.unwrap();
}

async fn output_outlives_the_executor(node: &Node) {
    let order = node.sh(
        "chatty",
        "trap 'exit 0' TERM; i=0; while :; do echo $i; i=$((i+1)); sleep 0.01; done",
    );
    let executor = node.executor().await;
    let task = running(&executor, order.clone()).await;
    lab::until("it writes", || !node.stdout("chatty").is_empty());
    drop((task, executor));
    let before = node.stdout("chatty").lines().count();
    lab::until("it goes on", || {
        node.stdout("chatty").lines().count() > before + 10
    });
    let executor = node.executor().await;
    let mut task = executor.controller(order).await.unwrap();
    task.shutdown().await.unwrap();
    let numbers: Vec<usize> = node
        .stdout("chatty")
        .lines()
        .map(|line| line.parse().unwrap())
        .collect();
    assert_eq!(
        numbers,
        (0..numbers.len()).collect::<Vec<_>>(),
        "no line is missing"
    );
    task.remove().await.unwrap();
}

async fn output_goes_where_it_is_told(node: &Node) {
    let (exit, text) = finish(node, with_log(node.sh("none", "echo x"), "none", &[])).await;
    assert_eq!((exit.code, text.as_str()), (0, ""));
    let executor = node.executor().await;
    let order = with_log(
        node.sh("journal", "echo told; echo wrong >&2"),
        "journald",
        &[("tag", "{{.Name}}")],
    );
    let mut there = lab_node_with_journal(node);
    let mut task = there
        .executor()
        .await
        .controller(order.clone())
        .await
        .unwrap();
    let error = task.prepare().await.unwrap_err();
    assert!(
        error.to_string().contains("this node has no journal"),
        "{error}"
    );
    task.remove().await.unwrap();
    let directory = tempfile::tempdir().unwrap();
    there.config.journal = directory.path().join("socket");
    let journal = UnixDatagram::bind(&there.config.journal).unwrap();
    let (exit, _) = finish(&there, order).await;
    assert_eq!(exit.code, 0);
    let mut entries = Vec::new();
    for _ in 0..2 {
        let mut buffer = [0; 4096];
        let length = journal.recv(&mut buffer).unwrap();
        entries.push(String::from_utf8(buffer[..length].to_vec()).unwrap());
    }
    entries.sort_by_key(|entry| entry.contains("PRIORITY=3"));
    assert!(
        entries[0].contains("CONTAINER_ID_FULL=journal\n"),
        "{entries:?}"
    );
    assert!(
        entries[0].contains("CONTAINER_TAG=web.1.journal\n"),
        "{entries:?}"
    );
    assert!(
        entries[0].ends_with("PRIORITY=6\nMESSAGE=told\n"),
        "{entries:?}"
    );
    assert!(
        entries[1].ends_with("PRIORITY=3\nMESSAGE=wrong\n"),
        "{entries:?}"
    );
    drop(executor);
}

/// The same node, with a journal that is not there.
fn lab_node_with_journal(node: &Node) -> Node {
    let mut config = node.config.clone();
    config.journal = config.state_dir.join("no-journal");
    Node {
        config,
        image: node.image.clone(),
    }
}

fn checked(mut order: TaskOrder, test: &str, retries: i32) -> TaskOrder {
    container(&mut order).healthcheck = Some(pb::HealthConfig {
        test: vec!["CMD-SHELL".to_owned(), test.to_owned()],
        interval: Some(duration_to_wire(Duration::from_millis(50))),
        timeout: Some(duration_to_wire(Duration::from_secs(20))),
        retries,
        ..Default::default()
    });
    order
}

async fn is_running_once_it_is_healthy(node: &Node) {
    let executor = node.executor().await;
    // Only its standard input, which the test holds, makes it healthy.
    let mut order = checked(
        node.sh(
            "healthy",
            "trap 'exit 0' TERM; read line; touch /tmp/ok; sleep 1000 & wait",
        ),
        "test -e /tmp/ok",
        1000,
    );
    container(&mut order).open_stdin = true;
    let mut task = executor.controller(order).await.unwrap();
    task.prepare().await.unwrap();
    let input = node.files("healthy").join("stdin");
    // Opening the pipe waits for the container, and until then nothing makes it healthy.
    let go = tokio::task::spawn_blocking(move || {
        say(
            &input, "go
",
        )
    });
    let (started, said) = tokio::join!(task.start(), go);
    said.unwrap();
    started.unwrap();
    assert!(matches!(
        task.observe().await.unwrap(),
        Observed::Running(_)
    ));
    task.shutdown().await.unwrap();
    task.remove().await.unwrap();
    // One that ends before it is healthy has ended, no more.
    let mut task = running(
        &executor,
        checked(node.sh("short", "exit 3"), "false", 1000),
    )
    .await;
    assert_eq!(task.wait().await.unwrap().code, 3);
    task.remove().await.unwrap();
}

fn fatal(error: Error) -> String {
    match error {
        Error::Fatal(reason) => reason,
        other @ (Error::Temporary(_) | Error::Unavailable { .. }) => panic!("{other}"),
    }
}

async fn is_stopped_when_it_is_unhealthy(node: &Node) {
    const FOREVER: &str = "trap 'exit 0' TERM; while :; do sleep 1000 & wait; done";
    let executor = node.executor().await;
    let order = checked(node.sh("never", FOREVER), "echo not yet; exit 4", 2);
    let mut task = executor.controller(order).await.unwrap();
    task.prepare().await.unwrap();
    let reason = fatal(task.start().await.unwrap_err());
    assert_eq!(
        reason,
        "unhealthy container: its health check exited with 4: not yet"
    );
    assert!(matches!(
        task.observe().await.unwrap(),
        Observed::Exited(..)
    ));
    task.remove().await.unwrap();
    let flips = "test ! -e /tmp/seen || { echo gone; exit 1; }; touch /tmp/seen";
    let mut task = running(&executor, checked(node.sh("flips", FOREVER), flips, 2)).await;
    let reason = fatal(task.wait().await.unwrap_err());
    assert_eq!(
        reason,
        "unhealthy container: its health check exited with 1: gone"
    );
    // Also who looks later learns that it did not end well, though it stopped with 0 when asked.
    let mut later = node
        .executor()
        .await
        .controller(node.sh("flips", FOREVER))
        .await
        .unwrap();
    assert_eq!(fatal(later.wait().await.unwrap_err()), reason);
    task.remove().await.unwrap();
    let mut order = checked(node.sh("slow", FOREVER), "sleep 100", 1);
    let check = container(&mut order).healthcheck.as_mut().unwrap();
    check.timeout = Some(duration_to_wire(Duration::from_millis(100)));
    let mut task = executor.controller(order).await.unwrap();
    task.prepare().await.unwrap();
    let reason = fatal(task.start().await.unwrap_err());
    assert_eq!(
        reason,
        "unhealthy container: its health check took longer than 100ms"
    );
    task.remove().await.unwrap();
}

async fn is_looked_after_by_the_next_executor(node: &Node) {
    let script = "trap 'exit 0' TERM; touch /tmp/ok; read line; rm /tmp/ok; while :; do sleep 1000 & wait; done";
    let mut order = checked(node.sh("adopted", script), "test -e /tmp/ok", 2);
    container(&mut order).open_stdin = true;
    let task = running(&node.executor().await, order.clone()).await;
    drop(task);
    let mut task = node.executor().await.controller(order).await.unwrap();
    assert!(matches!(
        task.observe().await.unwrap(),
        Observed::Running(_)
    ));
    say(&node.files("adopted").join("stdin"), "go\n");
    let reason = fatal(task.wait().await.unwrap_err());
    assert_eq!(
        reason,
        "unhealthy container: its health check exited with 1"
    );
    task.remove().await.unwrap();
}
