//! Many tasks come and go, and the host is as it was.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use ::lab::process;
use agent_runtime::executor::Executor;
use futures::stream::{StreamExt as _, TryStreamExt as _};

use crate::lab::{Lab, Node};
use crate::suite::{Program, Subject as _};

const TASKS: usize = 100;
const ROUNDS: usize = 20;
/// Tasks under way at once.
const AT_ONCE: usize = 16;
/// Rounds until everything that is made once has been made.
const WARM: usize = 5;
/// Room for what an allocator keeps, in bytes. A leak of 3 KiB a task shows.
const MEMORY_ROOM: u64 = 5 << 20;

/// Room for the connections of one round's last calls.
const DESCRIPTORS_ROOM: usize = 50;

pub(crate) async fn run(lab: &Lab) {
    let node = lab.subject("leaks");
    let executor = node.executor().await;
    let mut first: Option<(BTreeMap<&str, usize>, u64, usize)> = None;
    for round in 0..ROUNDS {
        come_and_go(&node, &executor, round).await;
        let left = (held(lab, &node), memory(), descriptors(lab));
        match &first {
            None if round + 1 < WARM => {}
            None => first = Some(left),
            Some((held, memory, descriptors)) => {
                assert_eq!(left.0, *held, "after round {round}");
                let grown = left.1.saturating_sub(*memory);
                assert!(
                    grown < MEMORY_ROOM,
                    "{grown} bytes more after round {round}"
                );
                let more = left.2.saturating_sub(*descriptors);
                assert!(
                    more < DESCRIPTORS_ROOM,
                    "containerd has {more} descriptors more after round {round}"
                );
            }
        }
    }
    executor.purge().await.unwrap();
}

/// Descriptors of the lab's containerd.
fn descriptors(lab: &Lab) -> usize {
    let directories = [lab.machine.site.run(), lab.machine.site.state()];
    let mut all = process::belonging_to(&directories);
    all.retain(|process| {
        process::program(&process.arguments).is_some_and(|name| name == "containerd")
    });
    let open = |pid| fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, |entries| entries.count());
    all.iter().map(|process| open(process.pid)).sum()
}

/// All of a round's tasks live at the same time.
async fn come_and_go(node: &Node, executor: &Arc<dyn Executor>, round: usize) {
    let lives = (0..TASKS).map(|number| async move {
        let order = node.order(&format!("leak-{round}-{number}"), Program::Forever);
        let mut task = executor.controller(order).await?;
        task.prepare().await?;
        task.start().await?;
        Ok::<_, agent_runtime::Error>(task)
    });
    let lives: Vec<_> = lives.collect();
    let tasks: Vec<_> = futures::stream::iter(lives)
        .buffer_unordered(AT_ONCE)
        .try_collect()
        .await
        .unwrap();
    let ends: Vec<_> = tasks
        .into_iter()
        .map(|mut task| async move { task.remove().await })
        .collect();
    futures::stream::iter(ends)
        .buffer_unordered(AT_ONCE)
        .try_collect::<()>()
        .await
        .unwrap();
}

/// How many there are of what a task takes.
fn held(lab: &Lab, node: &Node) -> BTreeMap<&'static str, usize> {
    let listed = |arguments: &[&str]| lab.ctr(node, arguments).lines().count();
    let site = &lab.machine.site;
    let directories = [site.run(), site.state()];
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let of_lab = |line: &&str| {
        directories
            .iter()
            .any(|directory| line.contains(&*directory.to_string_lossy()))
    };
    let entries = |path: &Path| fs::read_dir(path).map_or(0, |entries| entries.count());
    BTreeMap::from([
        ("processes", process::belonging_to(&directories).len()),
        ("mounts", mounts.lines().filter(of_lab).count()),
        ("snapshots", listed(&["snapshots", "ls"])),
        ("content", listed(&["content", "ls", "-q"])),
        ("containers", listed(&["containers", "ls", "-q"])),
        ("leases", listed(&["leases", "ls", "-q"])),
        ("cgroups", ::lab::sweep::cgroups(site).len()),
        ("directories", entries(&node.config.state_dir.join("tasks"))),
        ("descriptors", entries(Path::new("/proc/self/fd"))),
    ])
}

/// Bytes of this process in memory.
fn memory() -> u64 {
    let text = fs::read_to_string("/proc/self/statm").unwrap();
    let pages: u64 = text.split(' ').nth(1).unwrap().parse().unwrap();
    pages * 4096
}
