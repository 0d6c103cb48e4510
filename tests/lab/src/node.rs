//! One swarmd on one host, as a process of its own; and the swarmctl that talks to it.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::network::Host;
use crate::site::Site;
use crate::{Error, binaries, command, process, wait};

/// Where managers listen.
pub const REMOTE_API_PORT: u16 = 4242;
/// Exit code of swarmctl where nobody answers on the socket.
const UNREACHABLE: i32 = 4;
/// How long swarmd may take until its control socket answers.
const START_LIMIT: Duration = Duration::from_secs(30);
/// How long swarmd may take to end after a signal.
const STOP_LIMIT: Duration = Duration::from_secs(30);

/// How a swarmd is started.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Manager and token of the cluster to join; None starts a new cluster.
    pub join: Option<(String, String)>,
    /// The containerd socket as `unix:///…`; None runs no tasks.
    pub engine: Option<String>,
    /// Registries, as `address:port`, that are asked over plain HTTP.
    pub insecure_registries: Vec<String>,
    /// The control socket, where it is not the node's own.
    pub socket: Option<PathBuf>,
    /// Where it says that others reach it, where that is not its host's address.
    pub advertise: Option<String>,
    /// A file that is `/etc/hosts` to it: what is written there later counts too.
    pub hosts: Option<PathBuf>,
    /// Further arguments.
    pub more: Vec<String>,
}

/// A swarmd that was started; ends with its [`Node`].
#[derive(Debug)]
pub struct Node {
    /// Where it runs.
    pub host: Host,
    arguments: Vec<String>,
    hosts: Option<PathBuf>,
    run: PathBuf,
    state: PathBuf,
    child: Option<Child>,
}

impl Node {
    /// Starts swarmd on the host; returns before it is ready.
    pub fn start(site: &Site, host: &Host, options: &Options) -> Result<Self, Error> {
        let (run, state) = (site.run().join(&host.name), site.state().join(&host.name));
        for path in [&run, &state] {
            fs::create_dir_all(path).map_err(Error::file("create", path))?;
        }
        let mut node = Self {
            host: host.clone(),
            arguments: arguments(host, options, &run, &state),
            hosts: options.hosts.clone(),
            run,
            state,
            child: None,
        };
        node.start_again()?;
        Ok(node)
    }

    /// Starts swarmd with the same arguments after it was stopped.
    pub fn start_again(&mut self) -> Result<(), Error> {
        self.start_again_with(&[])
    }

    /// The same with more arguments, this once.
    pub fn start_again_with(&mut self, more: &[&str]) -> Result<(), Error> {
        let program = binaries::find("swarmd")?;
        let more = more.iter().map(|&argument| argument.to_owned());
        let arguments: Vec<String> = self.arguments.iter().cloned().chain(more).collect();
        let (program, arguments) = match &self.hosts {
            Some(hosts) => with_hosts(hosts, &program, arguments),
            None => (program, arguments),
        };
        self.child = Some(process::start(
            &program,
            &arguments,
            &self.log(),
            Some(&self.host.namespace),
        )?);
        Ok(())
    }

    /// Waits until swarmd answers on its control socket; an error at once where it ends instead.
    pub fn wait_ready(&mut self) -> Result<(), Error> {
        let answer = wait::until(
            &format!("swarmd on {}", self.host.name),
            START_LIMIT,
            || {
                if !self.is_running() {
                    return Ok(None);
                }
                let output = self
                    .ctl(&["node", "ls"])
                    .map_err(|error| error.to_string())?;
                // A worker has no control API; that it says so is an answer.
                match output.code == UNREACHABLE {
                    true => Err(output.stderr),
                    false => Ok(Some(())),
                }
            },
        )?;
        answer.ok_or_else(|| {
            Error::Refused(format!(
                "swarmd on {} ended: {}",
                self.host.name,
                self.log_tail(20)
            ))
        })
    }

    /// Gives its host another address; from the next start on swarmd says that one.
    pub fn readdress(&mut self, last: u8) -> Result<(), Error> {
        let old = format!("{}:{REMOTE_API_PORT}", self.host.address);
        self.host.readdress(last)?;
        let new = format!("{}:{REMOTE_API_PORT}", self.host.address);
        let mut says = false;
        for argument in &mut self.arguments {
            if says && *argument == old {
                argument.clone_from(&new);
            }
            says = argument == "--advertise-remote-api";
        }
        Ok(())
    }

    /// From the next start on swarmd is told of these managers.
    pub fn told_of(&mut self, managers: &str) {
        let mut given = self.arguments.iter_mut();
        match given.by_ref().find(|a| *a == "--join-addr") {
            Some(_) => {
                if let Some(value) = given.next() {
                    managers.clone_into(value);
                }
            }
            None => {
                let flag = ["--join-addr", managers].map(str::to_owned);
                self.arguments.extend(flag);
            }
        }
    }

    /// From the next start on swarmd says nothing of where it is: what the others see counts.
    pub fn say_no_address(&mut self) {
        let says = self.arguments.iter();
        let at = says.clone().position(|a| a == "--advertise-remote-api");
        if let Some(at) = at {
            self.arguments.drain(at..at + 2);
        }
    }

    /// Sends a signal and waits until swarmd has ended; returns its exit code, None when a signal ended it.
    pub fn stop(&mut self, signal: Signal) -> Result<Option<i32>, Error> {
        let Some(mut child) = self.child.take() else {
            return Ok(None);
        };
        process::signal(child.id(), signal)?;
        if let Err(error) = process::wait_gone(child.id(), STOP_LIMIT) {
            self.child = Some(child);
            return Err(error);
        }
        let status = child.wait().map_err(Error::file("wait for", "swarmd"))?;
        Ok(status.code())
    }

    /// Waits until swarmd ends by itself, and returns its exit code.
    pub fn wait_ended(&mut self, limit: Duration) -> Result<Option<i32>, Error> {
        let Some(mut child) = self.child.take() else {
            return Ok(None);
        };
        process::wait_gone(child.id(), limit)?;
        let status = child.wait().map_err(Error::file("wait for", "swarmd"))?;
        Ok(status.code())
    }

    /// True while the process runs.
    pub fn is_running(&self) -> bool {
        self.child
            .as_ref()
            .is_some_and(|child| process::is_alive(child.id()))
    }

    /// Process id of swarmd while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// Runs swarmctl against this node, to its end.
    pub fn ctl(&self, arguments: &[&str]) -> Result<Output, Error> {
        ctl(&self.socket(), arguments)
    }

    /// The same with a text on its stdin.
    pub fn ctl_given(&self, arguments: &[&str], input: &str) -> Result<Output, Error> {
        ctl_from(&self.socket(), arguments, input)
    }

    /// The control socket.
    pub fn socket(&self) -> PathBuf {
        self.run.join("swarmd.sock")
    }

    /// What swarmd stores.
    pub fn state_dir(&self) -> &Path {
        &self.state
    }

    /// Where its output goes.
    pub fn log(&self) -> PathBuf {
        self.run.join("swarmd.log")
    }

    /// The last lines of its output.
    pub fn log_tail(&self, lines: usize) -> String {
        let text = fs::read(self.log()).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let all: Vec<&str> = text.lines().collect();
        all.get(all.len().saturating_sub(lines)..)
            .unwrap_or_default()
            .join("\n")
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // Nothing to be done about an error here: the lab's sweep finds the process again.
        let _ended = self.stop(Signal::SIGKILL);
    }
}

/// A program in mounts of its own, where a file is `/etc/hosts`. Each replaces the one before: the process id stays.
fn with_hosts(hosts: &Path, program: &Path, arguments: Vec<String>) -> (PathBuf, Vec<String>) {
    let text = |path: &Path| path.to_string_lossy().into_owned();
    let script = "mount --bind \"$0\" /etc/hosts && exec \"$@\"";
    // What containerd mounts later is seen here too, and nothing of here by others.
    let words = ["--mount", "--propagation", "slave", "sh", "-c", script].map(str::to_owned);
    let all = words.into_iter().chain([text(hosts), text(program)]);
    (PathBuf::from("unshare"), all.chain(arguments).collect())
}

fn arguments(host: &Host, options: &Options, run: &Path, state: &Path) -> Vec<String> {
    let mut arguments = Vec::new();
    let mut flag = |name: &str, value: String| arguments.extend([name.to_owned(), value]);
    flag("--state-dir", state.to_string_lossy().into_owned());
    flag("--hostname", host.name.clone());
    flag("--listen-remote-api", format!("0.0.0.0:{REMOTE_API_PORT}"));
    let advertise = options.advertise.clone();
    flag(
        "--advertise-remote-api",
        advertise.unwrap_or_else(|| format!("{}:{REMOTE_API_PORT}", host.address)),
    );
    let socket = options
        .socket
        .clone()
        .unwrap_or_else(|| run.join("swarmd.sock"));
    flag(
        "--listen-control-api",
        socket.to_string_lossy().into_owned(),
    );
    match &options.engine {
        Some(engine) => {
            flag("--executor", "containerd".to_owned());
            flag("--engine-addr", engine.clone());
            flag("--containerd-namespace", host.namespace.clone());
        }
        None => flag("--executor", "none".to_owned()),
    }
    if let Some((address, token)) = &options.join {
        flag("--join-addr", address.clone());
        flag("--join-token", token.clone());
    }
    for registry in &options.insecure_registries {
        flag("--insecure-registry", registry.clone());
    }
    arguments.extend(options.more.iter().cloned());
    arguments
}

/// What a swarmctl that has ended said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// Exit code; 128 when a signal ended it.
    pub code: i32,
    /// Its stdout.
    pub stdout: String,
    /// Its stderr.
    pub stderr: String,
    /// The command, for messages.
    pub line: String,
}

impl Output {
    /// Its stdout, without the final newline, where it succeeded; panics with what it said otherwise.
    #[track_caller]
    #[expect(clippy::panic, reason = "fails the test that calls it")]
    pub fn ok(self) -> String {
        match self.code {
            0 => self.stdout.trim_end().to_owned(),
            code => panic!(
                "$ {}\nexit code {code}\n{}{}",
                self.line, self.stdout, self.stderr
            ),
        }
    }

    /// Its stderr where it failed; panics otherwise.
    #[track_caller]
    #[expect(clippy::panic, reason = "fails the test that calls it")]
    pub fn refused(self) -> String {
        match self.code {
            0 => panic!(
                "$ {}\nsucceeded, which it should not\n{}{}",
                self.line, self.stdout, self.stderr
            ),
            _ => self.stderr.trim_end().to_owned(),
        }
    }
}

/// Runs swarmctl against a control socket, to its end.
pub fn ctl(socket: &Path, arguments: &[&str]) -> Result<Output, Error> {
    ctl_from(socket, arguments, "")
}

fn ctl_from(socket: &Path, arguments: &[&str], input: &str) -> Result<Output, Error> {
    let mut command = Command::new(binaries::find("swarmctl")?);
    command
        .arg("--socket")
        .arg(socket)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command
        .spawn()
        .map_err(|error| command::not_started(&command, &error))?;
    if let Some(mut stdin) = child.stdin.take() {
        // One that does not read it has ended, and says why.
        let _unread = stdin.write_all(input.as_bytes());
    }
    let output = child
        .wait_with_output()
        .map_err(|error| command::not_started(&command, &error))?;
    Ok(Output {
        code: output.status.code().unwrap_or(128),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        line: format!("swarmctl {}", arguments.join(" ")),
    })
}
