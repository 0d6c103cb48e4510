//! swarmd, containerd and shims killed at every step of a container's life: pulled, unpacked, made, started, stopped,
//! removed. Whatever the moment, each task ends up with one container, and nothing is left of those that went.

use std::collections::BTreeSet;
use std::time::Duration;

use harness::cluster::{Cluster, LIMIT};
use harness::lab::lab::available;
use harness::lab::{eventually, process};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const REPLICAS: usize = 3;
/// Moments after a command at which something is killed: from before the first step to after the last one.
const MOMENTS: u64 = 10;
const SHIM: &str = "containerd-shim-runc-v2";
const STEP: Duration = Duration::from_millis(60);

/// What is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Victim {
    Swarmd,
    Containerd,
    Shim,
}

#[test]
fn containerd_swarmd_killed_at_any_step_never_has_two_containers_of_a_task() {
    sweep(Victim::Swarmd);
}

#[test]
fn containerd_itself_killed_at_any_step_is_caught_up_with() {
    sweep(Victim::Containerd);
}

#[test]
fn containerd_shims_killed_at_any_step_are_replaced() {
    sweep(Victim::Shim);
}

fn sweep(victim: Victim) {
    if !available("kills at every step") {
        return;
    }
    let mut cluster = Cluster::start(0);
    for moment in 0..MOMENTS {
        let name = format!("web{moment}");
        let replicas = REPLICAS.to_string();
        let more = [
            "--replicas",
            &replicas,
            "--restart-delay",
            "100ms",
            "--detach",
        ];
        let image = cluster.image.clone();
        cluster.create(&name, &image, &more);
        strike(&mut cluster, victim, moment);
        let what = format!("{victim:?} killed at step {moment} of the start: one container a task");
        eventually(&what, LIMIT, || {
            // What was killed may not have been noticed yet.
            let tasks = cluster.wait_running(&name, REPLICAS, LIMIT);
            let wanted: BTreeSet<String> = tasks.into_iter().map(|task| task.container).collect();
            let there: BTreeSet<String> = cluster.containers("n1").into_keys().collect();
            match there == wanted {
                true => Ok(()),
                false => Err(format!("{there:?} for {wanted:?}")),
            }
        });

        cluster.ctl(&["service", "rm", &name]).ok();
        strike(&mut cluster, victim, moment);
        cluster.wait_nothing_held();
        let what = format!("{victim:?} killed at step {moment} of the end: no process is left");
        eventually(&what, LIMIT, || {
            match [log_writers(&cluster), shims(&cluster)].concat() {
                left if left.is_empty() => Ok(()),
                left => Err(left.join("\n")),
            }
        });
        forget_images(&cluster);
    }
}

/// The next round begins with fetching and unpacking again.
fn forget_images(cluster: &Cluster) {
    eventually("the node has no image", LIMIT, || {
        let listed = cluster.ctl(&["image", "ls", "-q"]);
        for image in listed.stdout.lines() {
            let removed = cluster.ctl(&["image", "rm", image]);
            if removed.code != 0 {
                return Err(removed.stderr);
            }
        }
        match (listed.code, listed.stdout.is_empty()) {
            (0, true) => Ok(()),
            _ => Err(format!("{}{}", listed.stdout, listed.stderr)),
        }
    });
}

/// Kills it so many steps from now, and starts again what does not come back by itself.
fn strike(cluster: &mut Cluster, victim: Victim, moment: u64) {
    // No event announces what is to be hit: every moment is right.
    std::thread::sleep(STEP * u32::try_from(moment).unwrap());
    match victim {
        Victim::Swarmd => {
            let node = cluster.node_mut("n1");
            node.stop(Signal::SIGKILL).unwrap();
            node.start_again().unwrap();
            node.wait_ready().unwrap();
        }
        Victim::Containerd => {
            cluster.lab.containerd.stop(Signal::SIGKILL).unwrap();
            cluster.lab.containerd.start_again().unwrap();
        }
        Victim::Shim => {
            // One of those there are; at some moments there is none yet, or none any more.
            if let Some(shim) = processes(cluster, SHIM).first() {
                let _ = kill(
                    Pid::from_raw(i32::try_from(shim.pid).unwrap()),
                    Signal::SIGKILL,
                );
            }
        }
    }
}

fn processes(cluster: &Cluster, program: &str) -> Vec<process::Process> {
    let site = &cluster.lab.site;
    let mut all = process::belonging_to(&[site.run(), site.state()]);
    all.retain(|process| process::program(&process.arguments) == Some(program));
    all
}

/// What is between containerd and containers: these are gone.
fn shims(cluster: &Cluster) -> Vec<String> {
    let shims = processes(cluster, SHIM).into_iter();
    shims.map(|shim| shim.arguments.join(" ")).collect()
}

/// Processes that write down output: their containers are gone.
fn log_writers(cluster: &Cluster) -> Vec<String> {
    let writers = processes(cluster, "swarmd").into_iter();
    let writers = writers.filter(|process| process.arguments.iter().any(|word| word == "task-log"));
    let describe = |process: process::Process| {
        let holders = process::sharing_pipes(process.pid);
        format!("{} with {holders:?}", process.arguments.join(" "))
    };
    writers.map(describe).collect()
}
