//! What a manager keeps: over kills at any moment, and over damage on its disk.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use harness::cluster::{Cluster, LIMIT};
use harness::lab::lab::available;
use nix::sys::signal::Signal;

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
