//! The whole, end to end: swarmd and swarmctl as processes, hosts as network namespaces, containers on real containerd.
//!
//! Each test has a lab of its own and leaves nothing. They need root and the programs of `make deps`; where these are
//! missing a test says that it is left out, and with CI=true it fails. The programs under test are found beside the tests,
//! or by SWARMD_BIN, SWARMCTL_BIN and WEB_BIN; `make test` builds them first.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod e2e {
    mod certificates;
    mod host;
    mod managers;
    mod messages;
}

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use harness::cluster::{Cluster, LIMIT, Task};
use harness::lab::lab::available;
use harness::lab::node::Options;
use harness::lab::{eventually, sweep};
use nix::sys::signal::Signal;

/// Promised for the tasks of a worker that was cut off: they run elsewhere within this time.
const FAILOVER: Duration = Duration::from_secs(20);

/// Tasks a node.
fn spread(tasks: &[Task]) -> BTreeMap<&str, usize> {
    let mut spread = BTreeMap::new();
    for task in tasks {
        *spread.entry(task.node.as_str()).or_default() += 1;
    }
    spread
}

fn ids(tasks: &[Task]) -> BTreeSet<&str> {
    tasks.iter().map(|task| task.id.as_str()).collect()
}

#[test]
fn containerd_replicas_spread_over_six_hosts_scale_and_leave_nothing() {
    if !available("replicas on six hosts") {
        return;
    }
    let mut cluster = Cluster::start(5);
    cluster.create_web("web", 5, &[]);
    let five = cluster.wait_running("web", 5, LIMIT);
    assert_eq!(
        spread(&five).len(),
        5,
        "five tasks on six empty hosts are on five of them: {five:#?}"
    );

    cluster.ctl(&["service", "scale", "web=30"]).ok();
    let thirty = cluster.wait_running("web", 30, LIMIT);
    assert!(
        spread(&thirty).values().all(|count| *count == 5),
        "{:?}",
        spread(&thirty)
    );
    assert!(
        ids(&thirty).is_superset(&ids(&five)),
        "scaling up replaced a task"
    );
    for name in cluster.names() {
        assert_eq!(cluster.containers(&name).len(), 5, "containers on {name}");
    }

    cluster.ctl(&["service", "scale", "web=2"]).ok();
    cluster.wait_running("web", 2, LIMIT);
    cluster.ctl(&["service", "rm", "web"]).ok();
    cluster.wait_nothing_held();

    // A worker that leaves takes everything of its own with it, down to its containerd namespace.
    cluster.node("n2").ctl(&["node", "leave"]).unwrap().ok();
    let namespace = cluster.node("n2").host.namespace.clone();
    eventually("removal of the containerd namespace", LIMIT, || {
        let listed = cluster
            .lab
            .containerd
            .ctr("default", &["namespaces", "ls", "-q"]);
        let listed = listed.map_err(|error| error.to_string())?;
        if listed.lines().all(|line| line != namespace) {
            Ok(())
        } else {
            Err(listed)
        }
    });
    let ended = cluster.node_mut("n2").wait_ended(LIMIT).unwrap();
    assert_eq!(ended, Some(0), "swarmd ends by itself after it has left");

    let site = cluster.lab.site.clone();
    drop(cluster);
    assert_eq!(sweep::left(&site).unwrap(), Vec::<String>::new());
}

#[test]
fn containerd_a_killed_container_is_replaced_in_its_slot() {
    if !available("a killed container") {
        return;
    }
    let cluster = Cluster::start(2);
    cluster.create_web("web", 3, &["--restart-delay", "1s"]);
    let before = cluster.wait_running("web", 3, LIMIT);
    let killed = &before[1];
    let host = cluster.node(&killed.node).host.clone();
    cluster
        .lab
        .containerd
        .ctr(
            &host.namespace,
            &["tasks", "kill", "-s", "SIGKILL", &killed.container],
        )
        .unwrap();

    let after = eventually("a new task in the slot", LIMIT, || {
        let tasks = cluster.running("web");
        let new = tasks.len() == 3 && tasks.iter().all(|task| task.id != killed.id);
        if new {
            Ok(tasks)
        } else {
            Err(format!("{tasks:#?}"))
        }
    });
    let slots: Vec<&str> = after.iter().map(|task| task.slot.as_str()).collect();
    assert_eq!(slots, ["1", "2", "3"]);
    let kept: Vec<&Task> = after
        .iter()
        .filter(|task| before.iter().any(|old| old.id == task.id))
        .collect();
    assert_eq!(
        kept.len(),
        2,
        "only the killed task is replaced: {after:#?}"
    );
    let history = cluster.all_tasks("web");
    let old = history
        .iter()
        .find(|task| task.id == killed.id)
        .expect("the killed task is in the history");
    assert_eq!(old.state, "failed");
    assert!(old.error.contains("137"), "the exit code is told: {old:#?}");
}

#[test]
fn containerd_restarts_of_swarmd_and_containerd_touch_no_container() {
    if !available("restarts of swarmd and containerd") {
        return;
    }
    let mut cluster = Cluster::start(2);
    cluster.create_web("web", 6, &[]);
    let before = cluster.wait_running("web", 6, LIMIT);
    let containers = |cluster: &Cluster| -> Vec<BTreeMap<String, String>> {
        cluster
            .names()
            .iter()
            .map(|name| cluster.containers(name))
            .collect()
    };
    let processes = containers(&cluster);
    let unchanged = |cluster: &Cluster, after: &str| {
        cluster.wait_ready(3);
        let tasks = cluster.wait_running("web", 6, LIMIT);
        assert_eq!(tasks, before, "the tasks after {after}");
        assert_eq!(
            containers(cluster),
            processes,
            "the containers and their processes after {after}"
        );
        assert_eq!(
            ids(&cluster.all_tasks("web")),
            ids(&before),
            "no task was replaced by {after}"
        );
    };

    for (name, signal) in [
        ("n2", Signal::SIGKILL),
        ("n2", Signal::SIGTERM),
        ("n1", Signal::SIGKILL),
        ("n1", Signal::SIGTERM),
    ] {
        let code = cluster.node_mut(name).stop(signal).unwrap();
        assert_eq!(
            code,
            (signal == Signal::SIGTERM).then_some(0),
            "exit code of {name} after {signal}"
        );
        assert_eq!(
            containers(&cluster),
            processes,
            "containers while {name} is down"
        );
        cluster.node_mut(name).start_again().unwrap();
        cluster.node_mut(name).wait_ready().unwrap();
        unchanged(&cluster, &format!("{signal} to {name}"));
    }

    cluster.lab.containerd.stop(Signal::SIGTERM).unwrap();
    cluster.lab.containerd.start_again().unwrap();
    unchanged(&cluster, "a restart of containerd");

    // Adopted for good: they can still be stopped and replaced.
    cluster.ctl(&["service", "scale", "web=3"]).ok();
    cluster.wait_running("web", 3, LIMIT);
    cluster.ctl(&["service", "rm", "web"]).ok();
    cluster.wait_nothing_held();
}

#[test]
fn containerd_tasks_of_a_cut_off_worker_run_elsewhere_and_its_old_ones_go() {
    if !available("a worker that is cut off") {
        return;
    }
    let cluster = Cluster::start(3);
    cluster.create_web("web", 8, &[]);
    let before = cluster.wait_running("web", 8, LIMIT);
    assert_eq!(spread(&before).get("n3"), Some(&2), "{:?}", spread(&before));
    let worker = cluster.node("n3").host.clone();

    worker.cut().unwrap();
    eventually("all tasks on the other hosts", FAILOVER, || {
        let elsewhere: Vec<Task> = cluster
            .running("web")
            .into_iter()
            .filter(|task| task.node != "n3")
            .collect();
        if elsewhere.len() == 8 {
            Ok(())
        } else {
            Err(format!("{elsewhere:#?}"))
        }
    });
    assert_eq!(
        cluster.containers("n3").len(),
        2,
        "a worker without a manager keeps its containers"
    );

    worker.mend().unwrap();
    cluster.wait_ready(4);
    cluster.wait_held_at_most("n3", 0);
    let after = cluster.wait_running("web", 8, LIMIT);
    assert_eq!(
        spread(&after).get("n3"),
        None,
        "a node that comes back gets no task of a service that is complete"
    );
}

#[test]
fn containerd_a_manager_killed_at_any_moment_loses_nothing_it_acknowledged() {
    if !available("a manager that is killed") {
        return;
    }
    let mut cluster = Cluster::start(1);
    let mut acknowledged: BTreeMap<String, String> = BTreeMap::new();
    for round in 0..6 {
        let pid = cluster.node("n1").pid().expect("the manager runs");
        std::thread::scope(|scope| {
            // Kills it while requests are under way: each round a little later.
            let cluster = &cluster;
            let (sender, answers) = std::sync::mpsc::sync_channel::<(String, String)>(1);
            scope.spawn(move || {
                for number in 0.. {
                    let (name, replicas) = (format!("s{round}-{number}"), (number % 3).to_string());
                    let arguments = [
                        "--name",
                        &name,
                        "--image",
                        &cluster.image,
                        "--replicas",
                        &replicas,
                        "--detach",
                    ];
                    let created = cluster.ctl(&[&["service", "create"], &arguments[..]].concat());
                    if created.code != 0 || sender.send((name.clone(), replicas)).is_err() {
                        return;
                    }
                    let scaled =
                        cluster.ctl(&["service", "scale", &format!("{name}=4"), "--detach"]);
                    if scaled.code != 0 || sender.send((name, "4".to_owned())).is_err() {
                        return;
                    }
                }
            });
            for _ in 0..=round {
                let (name, replicas) = answers
                    .recv()
                    .expect("the manager answers before it is killed");
                acknowledged.insert(name, replicas);
            }
            let raw = nix::unistd::Pid::from_raw(i32::try_from(pid).unwrap());
            nix::sys::signal::kill(raw, Signal::SIGKILL).unwrap();
            // What was acknowledged before the end of the manager counts as well.
            acknowledged.extend(answers.iter());
        });
        cluster.node_mut("n1").wait_ended(LIMIT).unwrap();
        cluster.node_mut("n1").start_again().unwrap();
        cluster.node_mut("n1").wait_ready().unwrap();

        let listed = cluster
            .ctl(&["service", "ls", "--format", "{{.Name}} {{.Desired}}"])
            .ok();
        let present: BTreeMap<&str, &str> = listed
            .lines()
            .filter_map(|line| line.split_once(' '))
            .collect();
        for (name, replicas) in &acknowledged {
            let found = present.get(name.as_str());
            // A scale that was not acknowledged may have been done all the same.
            let kept = found.is_some_and(|found| *found == replicas || *found == "4");
            assert!(
                kept,
                "{name} with {replicas} replicas was acknowledged, after the restart: {found:?}"
            );
        }
    }
    assert!(acknowledged.len() >= 6, "{acknowledged:?}");
}

#[test]
fn containerd_what_cannot_be_placed_says_why_until_it_can() {
    if !available("tasks that can't be placed") {
        return;
    }
    let mut cluster = Cluster::start(1);
    let create = |cluster: &Cluster, name: &str, more: &[&str]| {
        let more = [&["--detach"], more].concat();
        cluster.create(name, &cluster.image, &more);
    };
    create(
        &cluster,
        "labelled",
        &["--constraint", "node.labels.disk==ssd"],
    );
    create(
        &cluster,
        "elsewhere",
        &["--constraint", "node.hostname==n3"],
    );
    create(&cluster, "huge", &["--memory-reservation", "1000g"]);
    let reason = |service: &str, part: &str| {
        eventually(
            &format!("the reason why {service} is pending"),
            LIMIT,
            || {
                let tasks = cluster.all_tasks(service);
                let why = cluster.ctl(&["task", "why", &format!("{service}.1")]);
                let listed = cluster.ctl(&["service", "ps", "--no-trunc", service]);
                let told = why.stdout.contains(part) && listed.stdout.contains(part);
                let pending = tasks.len() == 1 && tasks[0].state == "pending";
                if told && pending {
                    Ok(())
                } else {
                    Err(format!(
                        "{tasks:?}\n{}{}{}",
                        why.stdout, why.stderr, listed.stdout
                    ))
                }
            },
        );
    };
    reason("labelled", "constraint");
    reason("elsewhere", "constraint");
    reason("huge", "insufficient resources");
    let why = cluster.ctl(&["task", "why", "huge.1"]).ok();
    assert!(
        why.contains("memory"),
        "each node says which resource is missing: {why}"
    );

    cluster
        .ctl(&["node", "update", "n2", "--label-add", "disk=ssd"])
        .ok();
    let where_and_why = |placed: &[harness::cluster::Task]| -> (String, String) {
        let task = &placed[0];
        (task.node.clone(), task.error.clone())
    };
    let placed = cluster.wait_running("labelled", 1, LIMIT);
    assert_eq!(where_and_why(&placed), ("n2".into(), String::new()));
    cluster.add_worker("n3");
    let placed = cluster.wait_running("elsewhere", 1, LIMIT);
    assert_eq!(where_and_why(&placed), ("n3".into(), String::new()));
    assert_eq!(cluster.all_tasks("huge")[0].state, "pending");
}

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
fn containerd_published_ports_answer_and_ends_are_told() {
    if !available("published ports") {
        return;
    }
    let cluster = Cluster::start(1);
    let publish = ["--publish", "mode=host,target=8080,published=18080"];
    let short = ["--restart-delay", "1s", "--stop-grace-period", "1s"];
    cluster.create_web("web", 2, &[&publish[..], &short].concat());
    let tasks = cluster.wait_running("web", 2, LIMIT);
    assert_eq!(
        spread(&tasks).len(),
        2,
        "a port is taken once on each host: {tasks:#?}"
    );

    for task in &tasks {
        let text = eventually("answer of the task", LIMIT, || {
            cluster.get(&task.node, 18080, "/")
        });
        let expected = [
            format!("task: web.{}.{}\n", task.slot, task.id),
            format!("node: {}\n", task.node),
        ];
        assert!(
            expected.iter().all(|line| text.contains(line)),
            "{expected:?} {text}"
        );
        let client = format!("client: {}:", cluster.lab.site.gateway());
        assert!(
            text.contains(&client),
            "the task sees its client's own address: {text}"
        );
    }

    // A task that ends by itself is replaced, and its exit code is told.
    let crashed = &tasks[0];
    let _cut_short = cluster.get(&crashed.node, 18080, "/crash?code=42");
    let told = eventually("the exit code", LIMIT, || {
        let history = cluster.all_tasks("web");
        let old = history.iter().find(|task| task.id == crashed.id).cloned();
        old.filter(|task| task.state == "failed")
            .ok_or(format!("{history:#?}"))
    });
    assert!(told.error.contains("42"), "{told:#?}");
    cluster.wait_running("web", 2, LIMIT);

    // A task that does not end when it is asked to is killed after its grace period.
    let _no_answer = cluster.get(&tasks[1].node, 18080, "/hang");
    cluster.ctl(&["service", "rm", "web"]).ok();
    cluster.wait_nothing_held();
}

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
    let code = second.wait_ended(LIMIT).unwrap();
    assert!(code.is_some_and(|code| code != 0), "{code:?}");
    assert!(
        second.log_tail(20).contains("swarmd.sock"),
        "{}",
        second.log_tail(20)
    );
    cluster.ctl(&["node", "ls"]).ok();
}

#[test]
fn containerd_damaged_state_is_repaired_or_refused_and_never_forgotten() {
    if !available("damaged state") {
        return;
    }
    let mut cluster = Cluster::start(0);
    let image = cluster.image.clone();
    cluster.create("kept", &image, &["--detach", "--replicas", "0"]);
    cluster.node_mut("n1").stop(Signal::SIGTERM).unwrap();
    let state = cluster.node("n1").state_dir().to_owned();
    let files = files_below(&state);
    assert!(!files.is_empty());
    for file in files {
        let content = std::fs::read(&file).unwrap();
        for damaged in [
            content[..content.len() / 2].to_vec(),
            content.iter().map(|byte| !byte).collect(),
        ] {
            std::fs::write(&file, damaged).unwrap();
            starts_whole_or_not_at_all(&mut cluster, &file);
            std::fs::write(&file, &content).unwrap();
        }
    }
    cluster.node_mut("n1").start_again().unwrap();
    cluster.node_mut("n1").wait_ready().unwrap();
    assert_eq!(
        cluster
            .ctl(&["service", "ls", "--format", "{{.Name}}"])
            .ok(),
        "kept"
    );
}

/// Starts the manager on its damaged state: it knows the service, or ends with an error in words.
fn starts_whole_or_not_at_all(cluster: &mut Cluster, file: &Path) {
    let node = cluster.node_mut("n1");
    node.start_again().unwrap();
    if node.wait_ready().is_ok() {
        let listed = cluster
            .ctl(&["service", "ls", "--format", "{{.Name}}"])
            .ok();
        assert_eq!(
            listed,
            "kept",
            "with {} damaged it starts without the service",
            file.display()
        );
    } else {
        let (running, log) = (
            cluster.node("n1").is_running(),
            cluster.node("n1").log_tail(20),
        );
        assert!(
            !running,
            "with {} damaged it neither serves nor ends: {log}",
            file.display()
        );
        assert!(!log.contains("panicked"), "{}: {log}", file.display());
    }
    cluster.node_mut("n1").stop(Signal::SIGKILL).unwrap();
}

/// Regular files that are not empty, below a directory.
fn files_below(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).unwrap().flatten() {
        let (path, metadata) = (entry.path(), entry.metadata().unwrap());
        if metadata.is_dir() {
            found.extend(files_below(&path));
        } else if metadata.is_file() && metadata.len() > 0 {
            found.push(path);
        }
    }
    found
}
