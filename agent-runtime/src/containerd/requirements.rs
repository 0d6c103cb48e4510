//! What containers need of the host, tried rather than asked where that can be done without a trace: the network in a
//! namespace that is gone afterwards.

use std::ffi::OsStr;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use ipnet::Ipv4Net;

use super::apparmor::{AppArmor, PROFILE};
use super::netlink::{Ends, Netlink};
use super::{ContainerdExecutor, cgroup, nat, netns};
use crate::error::Error;
use crate::requirement::Requirement;

/// The oldest containerd whose API this backend speaks.
const OLDEST: (u64, u64) = (1, 6);
/// Controllers by which a task's limits are kept.
const CONTROLLERS: [&str; 3] = ["memory", "cpu", "pids"];
/// A range for the trial's bridge; nothing is sent to it.
const TRIAL_RANGE: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(192, 0, 2, 0), 24);

/// Looks at everything. `path` is the process's `PATH`.
pub async fn requirements(address: &str, path: &OsStr) -> Vec<Requirement> {
    let mut all = vec![
        root(),
        containerd(address).await,
        program(path, "runc", "runc"),
        program(path, "nft", "nftables"),
    ];
    all.extend(cgroups());
    all.push(file_system());
    all.push(seccomp());
    all.extend(apparmor(&AppArmor::of_host()));
    // Without these two the trial says nothing new.
    if nix::unistd::geteuid().is_root() && find(path, "nft").is_some() {
        all.push(network().await);
    }
    all
}

fn root() -> Requirement {
    if nix::unistd::geteuid().is_root() {
        return Requirement::met("root", "yes");
    }
    let reason = "this is not root, who alone may make containers";
    Requirement::missing("root", reason, "run swarmd and this as root")
}

async fn containerd(address: &str) -> Requirement {
    const WHAT: &str = "containerd";
    let version = match ContainerdExecutor::probe(address).await {
        Ok(version) => version,
        Err(error) => {
            let remedy = "apt-get install containerd && systemctl start containerd, or name its socket with --engine-addr";
            return Requirement::missing(WHAT, error.to_string(), remedy);
        }
    };
    let detail = format!("{version} at {address}");
    if parse_version(&version).is_some_and(|found| found < OLDEST) {
        let reason = format!("{detail} is older than {}.{}", OLDEST.0, OLDEST.1);
        return Requirement::missing(WHAT, reason, "install a newer one");
    }
    Requirement::met(WHAT, detail)
}

/// `1.6.20~ds1` and `v2.0.1` as numbers; none for what has another form.
fn parse_version(text: &str) -> Option<(u64, u64)> {
    let mut parts = text
        .trim_start_matches('v')
        .split(|c: char| !c.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

fn find(path: &OsStr, program: &str) -> Option<PathBuf> {
    let mut found = std::env::split_paths(path).map(|dir| dir.join(program));
    found.find(|file| file.is_file())
}

fn program(path: &OsStr, name: &'static str, package: &str) -> Requirement {
    match find(path, name) {
        Some(file) => Requirement::met(name, file.display().to_string()),
        None => {
            let reason = format!("{name} is not in PATH ({})", path.display());
            Requirement::missing(name, reason, format!("apt-get install {package}"))
        }
    }
}

fn cgroups() -> Vec<Requirement> {
    const WHAT: &str = "cgroups";
    let (version, there) = match cgroup::controllers() {
        Ok(found) => found,
        Err(reason) => {
            let remedy = "mount /sys/fs/cgroup, as systemd does";
            return vec![Requirement::missing(WHAT, reason, remedy)];
        }
    };
    let lacking: Vec<&str> = CONTROLLERS
        .into_iter()
        .filter(|name| !there.iter().any(|one| one == name))
        .collect();
    if lacking.is_empty() {
        let detail = format!("{version}: {}", CONTROLLERS.join(", "));
        return vec![Requirement::met(WHAT, detail)];
    }
    let reason = format!(
        "{version} without {}: such limits are not kept",
        lacking.join(", ")
    );
    let remedy = "boot with cgroup_enable=memory, or another kernel";
    vec![Requirement::poor(WHAT, reason, remedy)]
}

fn file_system() -> Requirement {
    const WHAT: &str = "overlayfs";
    let known = std::fs::read_to_string("/proc/filesystems").unwrap_or_default();
    let known = known
        .lines()
        .any(|line| line.trim_start_matches("nodev").trim() == "overlay");
    if known || Path::new("/sys/module/overlay").exists() {
        return Requirement::met(WHAT, "yes");
    }
    let reason = "the kernel does not know overlayfs, containerd's way to lay an image's layers over each other";
    Requirement::missing(WHAT, reason, "modprobe overlay")
}

fn seccomp() -> Requirement {
    const WHAT: &str = "seccomp";
    if Path::new("/proc/sys/kernel/seccomp/actions_avail").exists() {
        return Requirement::met(WHAT, "yes");
    }
    let reason = "the kernel has no seccomp filters: containers may make every system call";
    Requirement::poor(WHAT, reason, "use a kernel with CONFIG_SECCOMP_FILTER")
}

/// Nothing is said of it where the kernel has none.
fn apparmor(host: &AppArmor) -> Option<Requirement> {
    const WHAT: &str = "AppArmor";
    if !host.is_enabled() {
        return None;
    }
    if host.can_confine() {
        let detail = format!("containers have the profile {PROFILE}");
        return Some(Requirement::met(WHAT, detail));
    }
    let reason = "the kernel has it, but apparmor_parser is missing or /sys/kernel/security is not mounted: \
                  containers are not confined by it";
    let remedy = "apt-get install apparmor; in a container, mount the host's /sys/kernel/security";
    Some(Requirement::poor(WHAT, reason, remedy))
}

/// A bridge, a pair of links and the rules of a published port, in a namespace of their own.
async fn network() -> Requirement {
    const WHAT: &str = "network";
    let trial = netns::scratch(|own| async move {
        let netlink = Netlink::open()?;
        let network = netlink
            .ensure_bridge("swtrial", std::iter::once(TRIAL_RANGE))
            .await?;
        let ends = Ends {
            outer: "swtrial-o".to_owned(),
            inner: "swtrial-i".to_owned(),
        };
        netlink.connect("swtrial", &ends, &own).await?;
        nat::apply(&nat::table("swtrial", "swtrial", network, &[]))?;
        Ok::<_, Error>(())
    });
    match trial.await {
        Ok(()) => Requirement::met(WHAT, "bridge, veth and nftables NAT work"),
        Err(error) => {
            let remedy = "modprobe bridge veth nf_tables nft_chain_nat; tasks with published ports can't run without";
            Requirement::poor(WHAT, error.to_string(), remedy)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_of_containerd() {
        assert_eq!(parse_version("1.6.20~ds1"), Some((1, 6)));
        assert_eq!(parse_version("v2.0.1"), Some((2, 0)));
        assert_eq!(parse_version("git"), None);
        assert!(parse_version("1.10.0") > Some(OLDEST));
    }

    #[test]
    fn programs_are_found_in_the_path() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("runc"), "").unwrap();
        let path = std::env::join_paths(["/nowhere".as_ref(), dir.path()]).unwrap();
        assert_eq!(find(&path, "runc"), Some(dir.path().join("runc")));
        let missing = program(&path, "nft", "nftables");
        assert!(format!("{missing:?}").contains("apt-get install nftables"));
    }
}
