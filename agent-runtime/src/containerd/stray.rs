//! Shims that containerd has forgotten.
//!
//! A create that is cut off, because the swarmd that asked for it was killed, can leave its shim behind: containerd
//! asks the shim to shut down and gives it up, and the shim, which has made its container meanwhile, stays (seen with
//! containerd 1.6.20). Nobody can reach it through containerd any more. It holds the container's output open, and with
//! that the log writer, until the host restarts.
//!
//! Found by their command lines, which every runtime-v2 shim has alike: `-namespace NAMESPACE` and `-id CONTAINER`.

use std::collections::BTreeMap;
use std::path::Path;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// How programs that speak containerd's runtime-v2 protocol are called: `containerd-shim-RUNTIME-VERSION`.
const SHIM: &str = "containerd-shim-";
/// The verbs of the protocol that containerd calls the same program with, for a moment.
const HELPERS: [&str; 2] = ["start", "delete"];
const PROC: &str = "/proc";

/// Sends a signal to the shims of a container, and kills the runtimes they wait for. Says how many there were.
///
/// Only for a container that containerd knows no process of, or whose shim hangs. A shim that is told to end by SIGTERM
/// removes its socket; one that hangs takes no notice.
pub(super) fn end_all(namespace: &str, container: &str, signal: Signal) -> usize {
    let found = find(Path::new(PROC), namespace, container);
    let kills = found
        .runtimes
        .iter()
        .map(|runtime| (*runtime, Signal::SIGKILL));
    let ends = found.shims.iter().map(|shim| (*shim, signal));
    for (process, signal) in kills.chain(ends) {
        // Ended meanwhile, if it can't be signalled.
        let _ = kill(Pid::from_raw(process), signal);
    }
    found.runtimes.len() + found.shims.len()
}

/// Processes that act for a container.
#[derive(Debug, Default, PartialEq, Eq)]
struct Found {
    runtimes: Vec<i32>,
    shims: Vec<i32>,
}

/// A process as its directory in /proc tells.
struct Process {
    parent: i32,
    arguments: Vec<String>,
}

impl Process {
    fn read(directory: &Path) -> Option<Self> {
        let line = std::fs::read(directory.join("cmdline")).ok()?;
        let arguments = String::from_utf8_lossy(&line);
        // The name comes second, in parentheses, and may hold anything; the state and the parent follow.
        let stat = std::fs::read_to_string(directory.join("stat")).ok()?;
        let (_, after) = stat.rsplit_once(')')?;
        let parent = after.split_ascii_whitespace().nth(1)?.parse().ok()?;
        Some(Self {
            parent,
            arguments: arguments.split('\0').map(str::to_owned).collect(),
        })
    }

    fn names(&self, container: &str) -> bool {
        self.arguments.iter().any(|argument| argument == container)
    }

    fn is_shim_of(&self, namespace: &str, container: &str) -> bool {
        let program = self.arguments.first().map(Path::new);
        let name = program.and_then(|path| path.file_name()?.to_str());
        let option = |option: &str, value: &str| {
            let mut pairs = self.arguments.iter().zip(self.arguments.iter().skip(1));
            pairs.any(|(name, given)| name == option && given == value)
        };
        // What containerd starts to begin or clean up a shim has the same options, and a verb after them.
        let verb = self.arguments.iter().rfind(|argument| !argument.is_empty());
        let helps = verb.is_some_and(|verb| HELPERS.contains(&verb.as_str()));
        name.is_some_and(|name| name.starts_with(SHIM))
            && !helps
            && option("-namespace", namespace)
            && option("-id", container)
    }
}

fn find(proc: &Path, namespace: &str, container: &str) -> Found {
    let entries = std::fs::read_dir(proc).into_iter().flatten().flatten();
    let processes: BTreeMap<i32, Process> = entries
        .filter_map(|entry| {
            let number = entry.file_name().to_str()?.parse().ok()?;
            Some((number, Process::read(&entry.path())?))
        })
        .collect();
    let shims: Vec<i32> = processes
        .iter()
        .filter(|(_, process)| process.is_shim_of(namespace, container))
        .map(|(number, _)| *number)
        .collect();
    let runtimes = processes
        .iter()
        // The log writer is another child: it ends by itself when nobody writes any more.
        .filter(|(_, process)| shims.contains(&process.parent) && process.names(container))
        .map(|(number, _)| *number)
        .filter(|number| !shims.contains(number))
        .collect();
    Found { runtimes, shims }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(proc: &Path, number: i32, parent: i32, arguments: &[&str]) {
        let directory = proc.join(number.to_string());
        std::fs::create_dir(&directory).unwrap();
        let line: String = arguments.iter().map(|a| format!("{a}\0")).collect();
        std::fs::write(directory.join("cmdline"), line).unwrap();
        let stat = format!("{number} (odd) name) S {parent} {number} 0\n");
        std::fs::write(directory.join("stat"), stat).unwrap();
    }

    #[test]
    fn a_container_s_shims_and_their_runtimes_are_found_and_nothing_else() {
        let proc = tempfile::tempdir().unwrap();
        let proc = proc.path();
        let shim = "/usr/bin/containerd-shim-runc-v2";
        process(proc, 10, 1, &[shim, "-namespace", "swarm", "-id", "t1"]);
        process(proc, 11, 10, &["runc", "create", "--bundle", "/b/t1", "t1"]);
        process(proc, 12, 10, &["swarmd", "task-log", "/s/tasks/t1/log"]);
        process(proc, 13, 1, &[shim, "-namespace", "other", "-id", "t1"]);
        process(proc, 14, 1, &[shim, "-namespace", "swarm", "-id", "t12"]);
        process(proc, 15, 1, &["less", "-namespace", "swarm", "-id", "t1"]);
        process(proc, 16, 14, &["runc", "exec", "t1"]);
        process(proc, 17, 2, &[]);
        let delete = [shim, "-namespace", "swarm", "-id", "t1", "delete"];
        process(proc, 18, 1, &delete);
        let found = Found {
            runtimes: vec![11],
            shims: vec![10],
        };
        assert_eq!(find(proc, "swarm", "t1"), found);
        assert_eq!(find(proc, "swarm", "t3"), Found::default());
    }
}
