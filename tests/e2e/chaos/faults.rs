//! What happens to one host at a time.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write as _;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use harness::cluster::Cluster;
use nix::mount::{MsFlags, mount};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rand::RngExt as _;
use rand::rngs::StdRng;

/// The manager whose state directory has a file system of its own, and that's size.
pub(super) const SMALL_DISK: &str = "n3";
const DISK: &str = "size=96m";
const FILLER: &str = "filler";
/// The rule table that takes what comes in, in a host's network namespace.
const TABLE: &str = "swarm_chaos";

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Fault {
    /// kill -9, and another start.
    Kill,
    /// SIGSTOP, and SIGCONT.
    Pause,
    /// The cable is out.
    Cut,
    /// The host hears nothing, and is heard.
    Deaf,
    /// Its disk is full.
    Full,
    /// The containerd of all hosts is killed, and started again.
    Containerd,
}

const FAULTS: [Fault; 6] = [
    Fault::Kill,
    Fault::Pause,
    Fault::Cut,
    Fault::Deaf,
    Fault::Full,
    Fault::Containerd,
];

pub(super) struct Faults {
    random: StdRng,
    counts: BTreeMap<Fault, u64>,
}

impl Faults {
    pub(super) fn new(random: StdRng) -> Self {
        Self {
            random,
            counts: BTreeMap::new(),
        }
    }

    pub(super) fn counts(&self) -> &BTreeMap<Fault, u64> {
        &self.counts
    }

    pub(super) fn count(&self) -> u64 {
        self.counts.values().sum()
    }

    /// Brings one about, lets it last, and mends it.
    pub(super) fn one(&mut self, cluster: &mut Cluster) {
        let fault = FAULTS[self.random.random_range(0..FAULTS.len())];
        let names = cluster.names();
        // Managers are where it matters more.
        let names = match self.random.random_range(0..3) {
            0 => &names[super::MANAGERS.len()..],
            _ => &names[..super::MANAGERS.len()],
        };
        let name = names[self.random.random_range(0..names.len())].clone();
        *self.counts.entry(fault).or_default() += 1;
        match fault {
            Fault::Kill => {
                cluster.node_mut(&name).stop(Signal::SIGKILL).unwrap();
                self.last(0, 1500);
                cluster.node_mut(&name).start_again().unwrap();
            }
            Fault::Pause => {
                signal(cluster, &name, Signal::SIGSTOP);
                self.last(200, 3000);
                signal(cluster, &name, Signal::SIGCONT);
            }
            Fault::Cut => {
                cluster.node(&name).host.cut().unwrap();
                self.last(200, 4000);
                cluster.node(&name).host.mend().unwrap();
            }
            Fault::Deaf => {
                let chain = "{ type filter hook input priority -300; iif != lo drop; }";
                nft(
                    cluster,
                    &name,
                    &format!("table inet {TABLE} {{ chain input {chain} }}"),
                );
                self.last(200, 4000);
                nft(cluster, &name, &format!("delete table inet {TABLE}"));
            }
            Fault::Full => {
                fill(cluster);
                self.last(200, 2000);
                empty(cluster);
            }
            Fault::Containerd => {
                cluster.lab.containerd.stop(Signal::SIGKILL).unwrap();
                self.last(0, 500);
                cluster.lab.containerd.start_again().unwrap();
            }
        }
        revive(cluster);
        // Some of it is over before the next begins, and some is not.
        self.last(0, 2500);
    }

    /// No event ends a fault: any time is right.
    fn last(&mut self, least_ms: u64, most_ms: u64) {
        let ms = self.random.random_range(least_ms..=most_ms);
        std::thread::sleep(Duration::from_millis(ms));
    }

    /// Each fault is mended by who brought it about; what ended meanwhile is started again, and answers.
    pub(super) fn mend_all(&mut self, cluster: &mut Cluster) {
        revive(cluster);
        for name in cluster.names() {
            cluster.node_mut(&name).wait_ready().unwrap();
        }
    }
}

/// What a service manager does: a swarmd that ended (by a full disk, say) is started again.
fn revive(cluster: &mut Cluster) {
    for name in cluster.names() {
        let node = cluster.node_mut(&name);
        if !node.is_running() {
            node.wait_ended(Duration::from_secs(10)).unwrap();
            node.start_again().unwrap();
        }
    }
}

fn signal(cluster: &Cluster, name: &str, signal: Signal) {
    // One that has ended needs none.
    if let Some(pid) = cluster.node(name).pid() {
        let _ = kill(Pid::from_raw(i32::try_from(pid).unwrap()), signal);
    }
}

fn nft(cluster: &Cluster, name: &str, rules: &str) {
    let netns = cluster.node(name).host.netns_path();
    let output = Command::new("nsenter")
        .arg(format!("--net={}", netns.display()))
        .args(["nft", rules])
        .output()
        .unwrap();
    assert!(output.status.success(), "nft {rules}: {output:?}");
}

/// Gives a node's state directory a small file system, before the node is there. The lab unmounts it.
pub(super) fn small_disk(cluster: &Cluster, name: &str) {
    let state = cluster.lab.site.state().join(name);
    fs::create_dir_all(&state).unwrap();
    let none = None::<&str>;
    mount(
        Some("tmpfs"),
        &state,
        Some("tmpfs"),
        MsFlags::empty(),
        Some(DISK),
    )
    .unwrap_or_else(|error| panic!("tmpfs on {} {none:?}: {error}", state.display()));
}

fn filler(cluster: &Cluster) -> PathBuf {
    cluster.node(SMALL_DISK).state_dir().join(FILLER)
}

fn fill(cluster: &Cluster) {
    let mut file = File::create(filler(cluster)).unwrap();
    let block = vec![0; 64 << 10];
    while file.write_all(&block).is_ok() {}
    // To the last byte.
    while file.write_all(&[0]).is_ok() {}
}

fn empty(cluster: &Cluster) {
    fs::remove_file(filler(cluster)).unwrap();
}
