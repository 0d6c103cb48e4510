//! The cgroup of a task: where it is, and whether the kernel killed in it for memory.

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
}
