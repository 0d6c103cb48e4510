//! What this host's kernel can, as far as containers notice, by name.

use std::path::Path;

use super::apparmor::AppArmor;
use super::cgroup;

/// A feature, and the path that is there where the kernel has it.
const BY_PATH: [(&str, &str); 5] = [
    ("ipv6", "/proc/net/if_inet6"),
    ("overlayfs", "/sys/module/overlay"),
    ("seccomp", "/proc/sys/kernel/seccomp/actions_avail"),
    ("selinux", "/sys/fs/selinux/enforce"),
    ("user-namespaces", "/proc/self/ns/user"),
];

/// All of them, sorted: `cgroup-v2`, `cgroup-memory` and so on for each controller, `apparmor`,
/// `overlayfs`, `seccomp`, ….
pub(super) fn kernel() -> Vec<String> {
    let mut features = Vec::new();
    if let Ok((version, controllers)) = cgroup::controllers() {
        features.push(format!("cgroup-{version}"));
        let known = |name: &String| CONTROLLERS.contains(&name.as_str());
        let known = controllers.into_iter().filter(known);
        features.extend(known.map(|name| format!("cgroup-{name}")));
    }
    let there = BY_PATH.iter().filter(|(_, path)| Path::new(path).exists());
    features.extend(there.map(|(name, _)| (*name).to_owned()));
    if AppArmor::of_host().is_enabled() {
        features.push("apparmor".to_owned());
    }
    if cgroup::counts_swap() {
        features.push("cgroup-swap".to_owned());
    }
    features.sort_unstable();
    features.dedup();
    features
}

/// The controllers of both versions; what else is mounted beside them is none.
const CONTROLLERS: [&str; 13] = [
    "blkio", "cpu", "cpuacct", "cpuset", "devices", "freezer", "hugetlb", "io", "memory",
    "net_cls", "net_prio", "pids", "rdma",
];

#[cfg(test)]
mod tests {
    #[test]
    fn this_kernel_has_cgroups() {
        let features = super::kernel();
        assert!(features.is_sorted());
        if std::path::Path::new("/sys/fs/cgroup").exists() {
            assert!(
                features.iter().any(|name| name.starts_with("cgroup-v")),
                "{features:?}"
            );
        }
    }
}
