//! The cgroup of a task: where it is, and whether the kernel killed in it for memory.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

const ROOT: &str = "/sys/fs/cgroup";

/// The parent of all cgroups of one containerd namespace, as runc takes it.
pub(super) fn parent(namespace: &str) -> String {
    format!("/swarm/{namespace}")
}

/// The cgroup of a task, as runc takes it (`linux.cgroupsPath`).
pub(super) fn path(namespace: &str, task_id: &str) -> String {
    format!("{}/{task_id}", parent(namespace))
}

/// How often the kernel killed in the task's cgroup for want of memory. Zero where it can't be
/// read. The cgroup lives until the task is deleted, so this can be asked after the exit.
pub(super) fn oom_kills(namespace: &str, task_id: &str) -> u64 {
    let path = path(namespace, task_id);
    let v1 = Path::new(ROOT)
        .join("memory")
        .join(path.trim_start_matches('/'));
    let v2 = Path::new(ROOT).join(path.trim_start_matches('/'));
    let text = std::fs::read_to_string(v1.join("memory.oom_control"))
        .or_else(|_| std::fs::read_to_string(v2.join("memory.events")));
    text.ok()
        .and_then(|text| counter(&text, "oom_kill"))
        .unwrap_or(0)
}

/// The version of this host's cgroups, and the controllers it has.
///
/// # Errors
/// Why that can't be told.
pub(super) fn controllers() -> Result<(&'static str, Vec<String>), String> {
    if only_v2() {
        let file = Path::new(ROOT).join("cgroup.controllers");
        let text =
            std::fs::read_to_string(&file).map_err(|e| format!("{}: {e}", file.display()))?;
        let names = text.split_ascii_whitespace().map(str::to_owned);
        return Ok(("v2", names.collect()));
    }
    let mounted = std::fs::read_dir(ROOT).map_err(|e| format!("{ROOT}: {e}"))?;
    // `cpu,cpuacct` is one directory with two names.
    let names = mounted
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok());
    let names: Vec<String> = names
        .flat_map(|name| name.split(',').map(str::to_owned).collect::<Vec<_>>())
        .collect();
    match names.is_empty() {
        true => Err(format!("nothing is mounted at {ROOT}")),
        false => Ok(("v1", names)),
    }
}

/// True on a host that has no cgroup v1 hierarchy.
pub(super) fn only_v2() -> bool {
    Path::new(ROOT).join("cgroup.controllers").exists()
}

/// Whether the kernel counts swap by cgroup. It does not with `swapaccount=0`, the default of some
/// older distributions.
pub(super) fn counts_swap() -> bool {
    let root = Path::new(ROOT);
    if !only_v2() {
        return root.join("memory/memory.memsw.limit_in_bytes").exists();
    }
    // The root itself has no limits; what is below it has.
    let children = std::fs::read_dir(root).into_iter().flatten().flatten();
    children
        .map(|child| child.path().join("memory.swap.max"))
        .any(|file| file.exists())
}

/// The value of one `name value` line.
fn counter(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| {
        line.strip_prefix(name)?
            .strip_prefix(' ')?
            .trim()
            .parse()
            .ok()
    })
}

/// What a cgroup takes now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Taken {
    /// Processor time, in nanoseconds.
    pub cpu_ns: u64,
    /// Bytes, without what the kernel would give up for others.
    pub memory: u64,
    /// Processes and threads.
    pub pids: u64,
}

/// What the tasks of a containerd namespace take, by task id.
pub(super) fn taken(namespace: &str) -> BTreeMap<String, Taken> {
    let root = Path::new(ROOT);
    let version = if only_v2() { Version::V2 } else { Version::V1 };
    taken_below(root, version, &parent(namespace))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Version {
    V1,
    V2,
}

fn taken_below(root: &Path, version: Version, parent: &str) -> BTreeMap<String, Taken> {
    let below = |controller: &str| match version {
        Version::V1 => root.join(controller).join(parent.trim_start_matches('/')),
        Version::V2 => root.join(parent.trim_start_matches('/')),
    };
    let tasks = std::fs::read_dir(below("pids")).into_iter().flatten();
    let tasks = tasks.flatten().filter(|entry| entry.path().is_dir());
    let mut taken = BTreeMap::new();
    for task in tasks.filter_map(|entry| entry.file_name().into_string().ok()) {
        let text = |controller: &str, file: &str| {
            let path = below(controller).join(&task).join(file);
            std::fs::read_to_string(path).unwrap_or_default()
        };
        let number = |text: String| text.trim().parse::<u64>().unwrap_or(0);
        let (cpu_ns, used, droppable) = match version {
            Version::V1 => (
                number(text("cpuacct", "cpuacct.usage")),
                number(text("memory", "memory.usage_in_bytes")),
                counter(&text("memory", "memory.stat"), "total_inactive_file"),
            ),
            Version::V2 => (
                counter(&text("", "cpu.stat"), "usage_usec")
                    .unwrap_or(0)
                    .saturating_mul(1000),
                number(text("", "memory.current")),
                counter(&text("", "memory.stat"), "inactive_file"),
            ),
        };
        let pids = number(text("pids", "pids.current"));
        // Its processes have ended, or it has gone meanwhile.
        if pids > 0 {
            let memory = used.saturating_sub(droppable.unwrap_or(0));
            taken.insert(
                task,
                Taken {
                    cpu_ns,
                    memory,
                    pids,
                },
            );
        }
    }
    taken
}

/// What is left of a task's cgroup.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Left {
    Nothing,
    /// Processes that were told to end, or a directory that the kernel still holds.
    Some,
}

/// Kills what still runs in a task's cgroup and removes the cgroup. There is nothing to do after
/// an orderly end; a shim that was killed leaves both behind.
pub(super) fn clear(namespace: &str, task_id: &str) -> Left {
    let path = path(namespace, task_id);
    let mut left = Left::Nothing;
    for root in hierarchies() {
        let cgroup = root.join(path.trim_start_matches('/'));
        let Ok(processes) = std::fs::read_to_string(cgroup.join("cgroup.procs")) else {
            continue;
        };
        for process in processes
            .lines()
            .filter_map(|line| line.parse::<i32>().ok())
        {
            // Zero stands for a process of another pid namespace, and would mean our own group.
            if process > 0 {
                let process = nix::unistd::Pid::from_raw(process);
                // Ended meanwhile, if it can't be signalled.
                let _ = nix::sys::signal::kill(process, nix::sys::signal::Signal::SIGKILL);
            }
        }
        if std::fs::remove_dir(&cgroup).is_err() && cgroup.exists() {
            left = Left::Some;
        }
    }
    left
}

fn hierarchies() -> Vec<PathBuf> {
    let mut roots = vec![PathBuf::from(ROOT)];
    if let Ok(entries) = std::fs::read_dir(ROOT) {
        roots.extend(entries.flatten().map(|entry| entry.path()));
    }
    roots
}

/// Removes the (empty) parents of the namespace's cgroups, in every hierarchy.
pub(super) fn remove_parents(namespace: &str) {
    for root in hierarchies() {
        for path in [parent(namespace).as_str(), "/swarm"] {
            let path = root.join(path.trim_start_matches('/'));
            // Other nodes of this host may use the upper one: then it is not empty, and stays.
            if path.is_dir()
                && let Err(error) = std::fs::remove_dir(&path)
            {
                tracing::debug!(path = %path.display(), %error, "cgroup stays");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_both_versions() {
        assert_eq!(
            counter("oom_kill_disable 0\nunder_oom 0\noom_kill 2\n", "oom_kill"),
            Some(2)
        );
        assert_eq!(
            counter("low 0\nhigh 0\nmax 7\noom 1\noom_kill 1\n", "oom_kill"),
            Some(1)
        );
        assert_eq!(counter("oom 3\n", "oom_kill"), None);
    }

    #[test]
    fn both_versions_say_what_is_taken() {
        let expected = Taken {
            cpu_ns: 5_000,
            memory: 60,
            pids: 2,
        };
        let v1: &[(&str, &str)] = &[
            ("cpuacct/swarm/n/t1/cpuacct.usage", "5000\n"),
            ("memory/swarm/n/t1/memory.usage_in_bytes", "100\n"),
            (
                "memory/swarm/n/t1/memory.stat",
                "inactive_file 7\ntotal_inactive_file 40\n",
            ),
            ("pids/swarm/n/t1/pids.current", "2\n"),
            ("pids/swarm/n/ended/pids.current", "0\n"),
        ];
        let v2: &[(&str, &str)] = &[
            ("swarm/n/t1/cpu.stat", "usage_usec 5\nuser_usec 1\n"),
            ("swarm/n/t1/memory.current", "100\n"),
            ("swarm/n/t1/memory.stat", "anon 60\ninactive_file 40\n"),
            ("swarm/n/t1/pids.current", "2\n"),
            ("swarm/n/pids.max", "max\n"),
        ];
        for (version, files) in [(Version::V1, v1), (Version::V2, v2)] {
            let root = tempfile::tempdir().unwrap();
            for (name, text) in files {
                let path = root.path().join(name);
                std::fs::create_dir_all(path.parent().unwrap()).unwrap();
                std::fs::write(path, text).unwrap();
            }
            let taken = taken_below(root.path(), version, "/swarm/n");
            assert_eq!(
                taken,
                BTreeMap::from([("t1".to_owned(), expected)]),
                "{version:?}"
            );
            assert!(taken_below(root.path(), version, "/swarm/other").is_empty());
        }
    }
}
