//! Long-running processes: started detached, found again by the directory they are given.
//!
//! A process belongs to a site when it is one of `PROGRAMS` and one of its arguments lies in the site's
//! directories (so somebody's `tail` of a log does not); containers belong to it as descendants of the shim.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::{Error, command, wait};

/// What a lab starts, directly or through containerd.
const PROGRAMS: [&str; 7] = [
    "swarmd",
    "containerd",
    "containerd-shim-runc-v2",
    "docker-registry",
    "setsid",
    "nsenter",
    "unshare",
];

/// How long the kernel may take to end killed processes (they may be in a sync).
const KILL_LIMIT: Duration = Duration::from_secs(20);

/// Starts a program in a session of its own, so that no terminal's signals reach it. Its output is
/// appended to `log`. With `netns` it runs in that network namespace.
pub(crate) fn start(
    program: &Path,
    arguments: &[String],
    log: &Path,
    netns: Option<&str>,
) -> Result<Child, Error> {
    let open = || {
        OpenOptions::new()
            .create(true)
            .append(true)
            .open(log)
            .map_err(Error::file("open", log))
    };
    // setsid and nsenter (with --net alone) replace themselves, so the child's id is the program's.
    let mut command = Command::new("setsid");
    if let Some(name) = netns {
        // Not `ip netns exec`: that mounts a fresh /sys, which hides the cgroups from the runtime.
        command
            .arg("nsenter")
            .arg(format!("--net=/run/netns/{name}"))
            .arg("--");
    }
    command
        .arg(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(open()?)
        .stderr(open()?);
    command
        .spawn()
        .map_err(|error| command::not_started(&command, &error))
}

/// A process as /proc shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    /// Its id.
    pub pid: u32,
    /// Its program and what that was told.
    pub arguments: Vec<String>,
}

/// All processes but zombies and kernel threads, which have no arguments.
pub fn all() -> Vec<Process> {
    let table = table().into_iter();
    table.map(|(pid, entry)| entry.process(pid)).collect()
}

/// Who else has the other end, or the same, of one of a process's pipes.
pub fn sharing_pipes(pid: u32) -> Vec<Process> {
    let own = pipes(pid);
    let mut others = all();
    others.retain(|process| process.pid != pid && !pipes(process.pid).is_disjoint(&own));
    others
}

/// The pipes that a process has open, as the kernel names them.
fn pipes(pid: u32) -> BTreeSet<PathBuf> {
    let open = fs::read_dir(format!("/proc/{pid}/fd"));
    let open = open.into_iter().flatten().flatten();
    let links = open.filter_map(|entry| fs::read_link(entry.path()).ok());
    links
        .filter(|link| link.to_string_lossy().starts_with("pipe:"))
        .collect()
}

/// The lab's programs with an argument in one of the directories, and all their descendants.
pub fn belonging_to(directories: &[PathBuf]) -> Vec<Process> {
    let table = table();
    let mut chosen: BTreeSet<u32> = BTreeSet::new();
    for (pid, entry) in &table {
        let named = entry
            .arguments
            .iter()
            .skip(1)
            .any(|argument| lies_in(argument, directories));
        if named && program(&entry.arguments).is_some_and(|name| PROGRAMS.contains(&name)) {
            chosen.insert(*pid);
        }
    }
    loop {
        let more: Vec<u32> = table
            .iter()
            .filter(|(pid, entry)| !chosen.contains(pid) && chosen.contains(&entry.parent))
            .map(|(pid, _)| *pid)
            .collect();
        if more.is_empty() {
            break;
        }
        chosen.extend(more);
    }
    table
        .into_iter()
        .filter(|(pid, _)| chosen.contains(pid))
        .map(|(pid, entry)| entry.process(pid))
        .collect()
}

/// The first process that has this one for its parent.
pub(crate) fn child_of(pid: u32) -> Option<u32> {
    let table = table();
    let mut children = table.iter().filter(|(_, entry)| entry.parent == pid);
    children.next().map(|(pid, _)| *pid)
}

/// Name of the program, without its directory.
pub fn program(arguments: &[String]) -> Option<&str> {
    Path::new(arguments.first()?).file_name()?.to_str()
}

/// True for `/dir/…`, `--flag=/dir/…` and `unix:///dir/…`.
fn lies_in(argument: &str, directories: &[PathBuf]) -> bool {
    let path = argument
        .split_once('=')
        .map_or(argument, |(_, value)| value);
    let path = path.strip_prefix("unix://").unwrap_or(path);
    directories
        .iter()
        .any(|directory| Path::new(path).starts_with(directory))
}

struct Entry {
    parent: u32,
    arguments: Vec<String>,
}

impl Entry {
    fn process(self, pid: u32) -> Process {
        Process {
            pid,
            arguments: self.arguments,
        }
    }
}

/// As [`all`], with the parents.
fn table() -> BTreeMap<u32, Entry> {
    let mut table = BTreeMap::new();
    let Ok(entries) = fs::read_dir("/proc") else {
        return table;
    };
    for entry in entries.flatten() {
        let Some(pid) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok())
        else {
            continue;
        };
        // A process that ends while it is looked at is left out.
        let (Ok(line), Ok(stat)) = (
            fs::read(entry.path().join("cmdline")),
            fs::read_to_string(entry.path().join("stat")),
        ) else {
            continue;
        };
        let arguments: Vec<String> = line
            .split(|byte| *byte == 0)
            .filter(|word| !word.is_empty())
            .map(|word| String::from_utf8_lossy(word).into_owned())
            .collect();
        if let (false, Some(parent)) = (arguments.is_empty(), parent(&stat)) {
            table.insert(pid, Entry { parent, arguments });
        }
    }
    table
}

/// The parent in /proc/PID/stat: the second word after the name, which may hold spaces and parentheses.
fn parent(stat: &str) -> Option<u32> {
    stat.rsplit_once(") ")?
        .1
        .split_whitespace()
        .nth(1)?
        .parse()
        .ok()
}

/// True while the process exists and is no zombie.
pub(crate) fn is_alive(pid: u32) -> bool {
    let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else {
        return false;
    };
    stat.rsplit_once(") ")
        .is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
}

/// Sends a signal; a process that is gone needs none.
pub(crate) fn signal(pid: u32, signal: Signal) -> Result<(), Error> {
    let raw =
        i32::try_from(pid).map_err(|_| Error::Refused(format!("{pid} is not a process id")))?;
    match kill(Pid::from_raw(raw), signal) {
        Ok(()) | Err(Errno::ESRCH) => Ok(()),
        Err(errno) => Err(Error::Refused(format!(
            "process {pid} can't be sent {signal}: {errno}"
        ))),
    }
}

/// Waits until the process is gone or a zombie.
pub(crate) fn wait_gone(pid: u32, limit: Duration) -> Result<(), Error> {
    wait::until(&format!("end of process {pid}"), limit, || {
        match is_alive(pid) {
            true => Err("still alive".to_owned()),
            false => Ok(()),
        }
    })
}

/// Kills all that belong to the directories, until none is left: a shim may start another meanwhile.
pub(crate) fn kill_belonging_to(directories: &[PathBuf]) -> Result<(), Error> {
    wait::until("end of the lab's processes", KILL_LIMIT, || {
        let found = belonging_to(directories);
        if found.is_empty() {
            return Ok(());
        }
        let errors: Vec<String> = found
            .iter()
            .filter_map(|process| signal(process.pid, Signal::SIGKILL).err())
            .map(|error| error.to_string())
            .collect();
        Err(format!("{found:?} {}", errors.join("; ")))
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::CommandExt;

    use super::*;

    #[test]
    fn arguments_name_the_directories_in_several_ways() {
        let directories = [PathBuf::from("/run/swarm-demo")];
        for argument in [
            "/run/swarm-demo/a",
            "--state-dir=/run/swarm-demo/n1",
            "unix:///run/swarm-demo/s.sock",
        ] {
            assert!(lies_in(argument, &directories), "{argument}");
        }
        for argument in ["/run/swarm-demo2/a", "swarm-demo", "/run"] {
            assert!(!lies_in(argument, &directories), "{argument}");
        }
    }

    #[test]
    fn the_parent_is_read_past_odd_names() {
        assert_eq!(parent("7 (a) b) S 3 7 7"), Some(3));
    }

    #[test]
    fn descendants_belong_to_the_site() {
        let directory = tempfile::tempdir().unwrap();
        let marker = directory.path().join("marker");
        let mut child = Command::new("sh")
            .arg0("containerd-shim-runc-v2")
            .args(["-c", "sleep 60 & wait", &marker.to_string_lossy()])
            .spawn()
            .unwrap();
        let directories = [directory.path().to_owned()];
        wait::eventually("both processes", Duration::from_secs(10), || {
            let found = belonging_to(&directories);
            (found.len() == 2).then_some(()).ok_or(format!("{found:?}"))
        });
        kill_belonging_to(&directories).unwrap();
        child.wait().unwrap();
        assert!(belonging_to(&directories).is_empty());
    }
}
