//! What this host is: platform in Go's words, CPUs and memory.

use std::path::Path;

use swarm_proto::pb;

/// Operating system and architecture of this host, in Go's words.
#[must_use]
pub fn platform() -> pb::Platform {
    pb::Platform {
        architecture: architecture().to_owned(),
        os: std::env::consts::OS.to_owned(),
    }
}

/// Go's name for this host's architecture; image indexes use it too.
#[must_use]
pub fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "x86" => "386",
        "aarch64" => "arm64",
        "powerpc64" => "ppc64le",
        other => other,
    }
}

/// CPUs and memory of this host. What can't be read is reported as zero.
#[must_use]
pub fn resources() -> pb::Resources {
    let cpus = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
    let memory = std::fs::read_to_string("/proc/meminfo")
        .ok()
        .and_then(|text| memory_total(&text))
        .unwrap_or(0);
    pb::Resources {
        nano_cpus: i64::try_from(cpus)
            .unwrap_or(i64::MAX)
            .saturating_mul(1_000_000_000),
        memory_bytes: memory,
        generic: Vec::new(),
    }
}

/// The machine: kernel, what it can, and the file system that holds `state`.
pub(crate) fn description(state: &Path, kernel_features: Vec<String>) -> pb::HostDescription {
    let system = nix::sys::utsname::uname();
    let release = system.map(|system| system.release().to_string_lossy().into_owned());
    // It is made with the first task.
    let there = state.ancestors().find(|path| path.exists());
    let disk = nix::sys::statvfs::statvfs(there.unwrap_or(state));
    let bytes =
        |disk: nix::sys::statvfs::Statvfs| disk.blocks().saturating_mul(disk.fragment_size());
    pb::HostDescription {
        kernel_version: release.unwrap_or_default(),
        disk_bytes: disk.map_or(0, bytes),
        kernel_features,
    }
}

/// Seconds since 1970.
#[expect(
    clippy::disallowed_methods,
    reason = "imperative shell: notes on images carry the host's time"
)]
pub(crate) fn now_s() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.map_or(0, |now| now.as_secs())
}

/// `MemTotal` of `/proc/meminfo` in bytes.
fn memory_total(meminfo: &str) -> Option<i64> {
    let line = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: i64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_memory() {
        assert_eq!(
            memory_total("MemTotal:       24000 kB\nMemFree: 1 kB\n"),
            Some(24_576_000)
        );
        assert_eq!(memory_total("nonsense"), None);
    }
}
