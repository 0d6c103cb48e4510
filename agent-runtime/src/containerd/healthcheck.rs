//! Runs a container's health checks, as [`crate::health`] says when.

use std::io;
use std::path::Path;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::stat::Mode;
use rand::TryRng as _;
use rand::rngs::SysRng;
use tokio::net::unix::pipe::{OpenOptions, Receiver};
use tokio::time::Instant;

use super::container::Process;
use super::exec::{Ended, Exec};
use super::files;
use super::node::Node;
use crate::error::Error;
use crate::health::{Check, Health, Monitor};
use crate::step::brief;

/// Bytes of a check's output that its result shows, as in Docker.
const SHOWN_MAX: usize = 4096;
/// Exit code of a process that SIGKILL ended.
const KILLED: u32 = 137;
/// From the end of what runs in a container to that of the container.
const END_MAX: Duration = Duration::from_secs(1);

/// Looks after one container.
#[derive(Debug)]
pub(super) struct Watch {
    monitor: Monitor,
    since: Instant,
    /// Checks made, and which watch this is: for their names.
    made: u64,
    run: u64,
}

impl Watch {
    /// From now on; a container that starts, or that was healthy.
    pub(super) fn new(monitor: Monitor) -> Self {
        Self {
            monitor,
            since: Instant::now(),
            made: 0,
            run: SysRng.try_next_u64().unwrap_or_default(),
        }
    }

    /// Returns when the container is healthy, or why it is not.
    pub(super) async fn until_healthy(&mut self, node: &Node, id: &str) -> Result<(), String> {
        loop {
            match self.monitor.health() {
                Health::Starting => self.check(node, id).await,
                Health::Healthy => return Ok(()),
                Health::Unhealthy(reason) => return Err(reason.clone()),
            }
        }
    }

    /// Returns why the container is unhealthy, once it is.
    pub(super) async fn until_unhealthy(&mut self, node: &Node, id: &str) -> String {
        loop {
            if let Health::Unhealthy(reason) = self.monitor.health() {
                return reason.clone();
            }
            self.check(node, id).await;
        }
    }

    async fn check(&mut self, node: &Node, id: &str) {
        tokio::time::sleep(self.monitor.pause(self.since.elapsed())).await;
        let check = self.monitor.check();
        self.made += 1;
        // Another swarmd may have left one behind under the same number.
        let name = format!("health-{:x}-{}", self.run, self.made);
        let result = match run(node, id, (&name, check)).await {
            Ok(Some(result)) => result,
            Ok(None) => return,
            // That it can't be checked says nothing of how it is.
            Err(error) => {
                tracing::debug!(task.id = id, %error, "health check could not be made");
                return;
            }
        };
        if let Err(reason) = &result {
            tracing::info!(task.id = id, %reason, "health check failed");
        }
        self.monitor.checked(self.since.elapsed(), result);
    }
}

/// Makes a check; none where it ended because its container did.
async fn run(
    node: &Node,
    id: &str,
    (name, check): (&str, &Check),
) -> Result<Option<Result<(), String>>, Error> {
    let path = &node.files.of(id).health_output;
    let mut output = Output::open(path).map_err(|error| unreadable(path, &error))?;
    let exec = Exec {
        id,
        name,
        command: &check.command,
        output: path,
        limit: check.timeout,
        slots: &node.checking,
    };
    let ended = tokio::select! {
        ended = node.containers.exec(&exec) => ended,
        error = output.drain() => return Err(unreadable(path, &error)),
    };
    let failed = match ended? {
        Ended::Exit(0) => return Ok(Some(Ok(()))),
        Ended::Exit(code) => {
            if code == KILLED && ends(node, id).await {
                return Ok(None);
            }
            failed(code, &output.text())
        }
        Ended::NotStarted(reason) => brief(format!("its health check can't be started: {reason}")),
        Ended::Late => late(check.timeout),
    };
    // A container that has ended is no matter of its health.
    Ok(match node.containers.process(id).await? {
        Process::Running { .. } | Process::Silent => Some(Err(failed)),
        Process::Absent | Process::Created { .. } | Process::Stopped { .. } => None,
    })
}

fn unreadable(path: &Path, error: &io::Error) -> Error {
    files::failure(
        &format!("a health check's output, {}", path.display()),
        error,
    )
}

/// True if the container ends too: the kernel ends all that is in it before its first process is gone.
async fn ends(node: &Node, id: &str) -> bool {
    tokio::time::timeout(END_MAX, node.containers.wait(id))
        .await
        .is_ok()
}

/// What a check writes: the beginning is kept, all of it is read.
struct Output {
    pipe: Receiver,
    kept: Vec<u8>,
}

impl Output {
    fn open(path: &Path) -> io::Result<Self> {
        match nix::unistd::mkfifo(path, Mode::S_IRUSR | Mode::S_IWUSR) {
            Ok(()) | Err(Errno::EEXIST) => {}
            Err(error) => return Err(error.into()),
        }
        // For writing too: it must not look ended before the check has begun to write.
        let pipe = OpenOptions::new().read_write(true).open_receiver(path)?;
        Ok(Self {
            pipe,
            kept: Vec::new(),
        })
    }

    /// Reads on, until that fails.
    async fn drain(&mut self) -> io::Error {
        loop {
            if let Err(error) = self.pipe.readable().await {
                return error;
            }
            if let Err(error) = self.read() {
                return error;
            }
        }
    }

    /// Reads what is there.
    fn read(&mut self) -> io::Result<()> {
        let mut buffer = [0; 4096];
        loop {
            let length = match self.pipe.try_read(&mut buffer) {
                Ok(length) => length,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            };
            let room = SHOWN_MAX - self.kept.len();
            let read = buffer.get(..length.min(room)).unwrap_or_default();
            self.kept.extend_from_slice(read);
        }
    }

    fn text(mut self) -> String {
        // What it wrote is said where it can be; that it failed is known without.
        let _ = self.read();
        String::from_utf8_lossy(&self.kept).into_owned()
    }
}

fn failed(code: u32, output: &str) -> String {
    match output.trim() {
        "" => format!("its health check exited with {code}"),
        output => brief(format!("its health check exited with {code}: {output}")),
    }
}

fn late(limit: Duration) -> String {
    format!("its health check took longer than {limit:?}")
}
