//! A host with files and processes of its own: packages can be installed on it and removed.
//!
//! Its root is this machine's with a layer above it that lies in memory (overlayfs), in a mount namespace that nobody else
//! is in; so it has what this machine has installed, and what it writes is seen by itself alone. Its processes have a pid
//! namespace: when the first is killed, all are gone, and with them the mounts. Its network is that of a [`Host`].
//!
//! No systemd runs on it: a script stands in for systemctl, and starts what unit files say.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::network::Host;
use crate::node::Output;
use crate::site::Site;
use crate::{Error, process, wait};

/// How long it may take until its file systems are made, and until all its processes are gone.
const LIMIT: Duration = Duration::from_secs(30);
/// Where its programs are looked for.
const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A running machine; gone when dropped.
#[derive(Debug)]
pub struct Machine {
    /// Its name, address and network namespace.
    pub host: Host,
    /// `unshare`, whose child is the machine's first process.
    child: Child,
    /// The first process, as this machine counts; 0 before it is known.
    first: u32,
}

impl Machine {
    /// Starts it, and returns when its file systems are there.
    pub fn start(site: &Site, host: &Host) -> Result<Self, Error> {
        let directory = site.state().join(&host.name);
        fs::create_dir_all(&directory).map_err(Error::file("create", &directory))?;
        let script = site.run().join(format!("{}-boot", host.name));
        fs::write(&script, include_str!("machine/boot.sh"))
            .map_err(Error::file("write", &script))?;
        let arguments = [
            "--mount",
            "--uts",
            "--ipc",
            "--pid",
            "--fork",
            "--kill-child=KILL",
            "sh",
            &script.to_string_lossy(),
            &directory.to_string_lossy(),
            &host.name,
        ]
        .map(str::to_owned);
        let log = site.run().join(format!("{}-boot.log", host.name));
        let child = process::start(
            Path::new("unshare"),
            &arguments,
            &log,
            Some(&host.namespace),
        )?;
        let mut machine = Self {
            host: host.clone(),
            child,
            first: 0,
        };
        machine.first = wait::until(&format!("machine {}", host.name), LIMIT, || {
            let said = || fs::read_to_string(&log).unwrap_or_default();
            if !process::is_alive(machine.child.id()) {
                return Ok(None);
            }
            let first = process::child_of(machine.child.id()).ok_or_else(said)?;
            let booted = PathBuf::from(format!("/proc/{first}/root/run/booted"));
            booted.exists().then_some(Some(first)).ok_or_else(said)
        })?
        .ok_or_else(|| {
            let said = fs::read_to_string(&log).unwrap_or_default();
            Error::Refused(format!("machine {} ended: {said}", host.name))
        })?;
        machine.write("/usr/bin/systemctl", include_str!("machine/systemctl.sh"))?;
        let systemctl = machine.path("/usr/bin/systemctl");
        fs::set_permissions(&systemctl, fs::Permissions::from_mode(0o755))
            .map_err(Error::file("make executable", systemctl))?;
        Ok(machine)
    }

    /// Where this machine sees a file of that one.
    pub fn path(&self, inside: &str) -> PathBuf {
        PathBuf::from(format!(
            "/proc/{}/root/{}",
            self.first,
            inside.trim_start_matches('/')
        ))
    }

    /// Writes a file, and makes its directory.
    pub fn write(&self, inside: &str, content: impl AsRef<[u8]>) -> Result<(), Error> {
        let path = self.path(inside);
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory).map_err(Error::file("create", directory))?;
        }
        // Not through what the path leads to now: that may be shared with this machine.
        let _not_there = fs::remove_file(&path);
        fs::write(&path, content).map_err(Error::file("write", path))
    }

    /// Copies a file of this machine to it.
    pub fn copy(&self, from: &Path, inside: &str) -> Result<(), Error> {
        let content = fs::read(from).map_err(Error::file("read", from))?;
        self.write(inside, content)?;
        let mode = fs::metadata(from)
            .map_err(Error::file("read", from))?
            .permissions();
        let path = self.path(inside);
        fs::set_permissions(&path, mode).map_err(Error::file("set the mode of", path))
    }

    /// A program on it, with an environment of its own.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--target={}", self.first))
            .args(["--mount", "--uts", "--ipc", "--pid", "--net"])
            .args(["--root", "--wd", "--", "env", "--ignore-environment"])
            .args([PATH, "HOME=/root", "LC_ALL=C.UTF-8"])
            .args(["DEBIAN_FRONTEND=noninteractive", program])
            .stdin(Stdio::null());
        command
    }

    /// Runs a program to its end.
    pub fn run(&self, line: &[&str]) -> Result<Output, Error> {
        let (program, arguments) = line.split_first().unwrap_or((&"true", &[]));
        let mut command = self.command(program);
        let output = command
            .args(arguments)
            .output()
            .map_err(Error::file("run", *program))?;
        Ok(Output {
            code: output.status.code().unwrap_or(128),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
            line: format!("{}: {}", self.host.name, line.join(" ")),
        })
    }

    /// Starts a program that goes on; its output is appended to `/var/log/PROGRAM.service.log`.
    pub fn spawn(&self, line: &[&str]) -> Result<Child, Error> {
        let (program, arguments) = line.split_first().unwrap_or((&"true", &[]));
        let name = program.rsplit('/').next().unwrap_or(program);
        let log = self.path(&format!("/var/log/{name}.service.log"));
        let open = || {
            fs::OpenOptions::new()
                .create(true)
                .append(true)
                .open(&log)
                .map_err(Error::file("open", &log))
        };
        let mut command = self.command(program);
        command.args(arguments).stdout(open()?).stderr(open()?);
        command.spawn().map_err(Error::file("start", *program))
    }

    /// Containers that run in a containerd namespace, each with its process as the machine counts.
    pub fn containers(&self, namespace: &str) -> Result<BTreeMap<String, String>, Error> {
        let listed = self.run(&["ctr", "--namespace", namespace, "tasks", "ls"])?;
        let lines = listed.stdout.lines();
        let running = lines.filter(|line| line.trim_end().ends_with("RUNNING"));
        let words = running.filter_map(|line| {
            let mut words = line.split_whitespace();
            Some((words.next()?.to_owned(), words.next()?.to_owned()))
        });
        Ok(words.collect())
    }

    /// Ends of the logs of its units.
    pub fn logs(&self, lines: usize) -> String {
        let Ok(entries) = fs::read_dir(self.path("/var/log")) else {
            return String::new();
        };
        let mut text = String::new();
        for entry in entries.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if !name.ends_with(".service.log") {
                continue;
            }
            let content = fs::read(entry.path()).unwrap_or_default();
            let content = String::from_utf8_lossy(&content);
            let all: Vec<&str> = content.lines().collect();
            let last = all.get(all.len().saturating_sub(lines)..);
            text.push_str(&format!(
                "--- {} {name}\n{}\n",
                self.host.name,
                last.unwrap_or_default().join("\n")
            ));
        }
        text
    }

    /// The process of a unit that was started; none where it does not run.
    pub fn main_pid(&self, unit: &str) -> Result<Option<u32>, Error> {
        let shown = self.run(&["systemctl", "show", unit])?.stdout;
        let value = |key: &str| shown.lines().find_map(|line| line.strip_prefix(key));
        Ok(match value("ActiveState=") {
            Some("active") => value("MainPID=").and_then(|pid| pid.parse().ok()),
            Some(_) | None => None,
        })
    }
}

/// Lines of each log shown for a test that fails.
const LOG_LINES: usize = 60;

impl Drop for Machine {
    #[expect(clippy::print_stderr, reason = "what a failing test leaves to read")]
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("{}", self.logs(LOG_LINES));
        }
        // Nothing to be done about an error here: the lab's sweep finds the processes again. `unshare` takes the first
        // process with it, and that all the others.
        let _killed = process::signal(self.child.id(), Signal::SIGKILL);
        let _ended = self.child.wait();
        if self.first != 0 {
            let _gone = process::wait_gone(self.first, LIMIT);
        }
    }
}
