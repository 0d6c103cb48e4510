//! Runs a container's health checks, as [`crate::health`] says when.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;
use std::time::Duration;

use tokio::time::Instant;

use super::exec::{Ended, Exec};
use super::node::Node;
use crate::error::Error;
use crate::health::{Health, Monitor};
use crate::step::brief;

/// Bytes of a check's output that its result shows, as in Docker.
const SHOWN_MAX: u64 = 4096;

/// Looks after one container.
#[derive(Debug)]
pub(super) struct Watch {
    monitor: Monitor,
    since: Instant,
    /// Checks made, for their names.
    made: u64,
}

impl Watch {
    /// From now on; a container that starts, or that was healthy.
    pub(super) fn new(monitor: Monitor) -> Self {
        Self {
            monitor,
            since: Instant::now(),
            made: 0,
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
        let files = node.files.of(id);
        self.made += 1;
        // Another swarmd may have left one behind under the same number.
        let name = format!("health-{}-{}", std::process::id(), self.made);
        let exec = Exec {
            id,
            name: &name,
            command: &check.command,
            output: &files.health_output,
            limit: check.timeout,
        };
        let result = match node.containers.exec(&exec).await {
            Ok(Ended::Exit(0)) => Ok(()),
            Ok(Ended::Exit(code)) => Err(failed(code, &output(&files.health_output))),
            Ok(Ended::Late) => Err(late(check.timeout)),
            // A container that has ended is no matter of its health, nor is containerd's absence.
            Err(failure) => match Error::from(failure) {
                Error::Unavailable { .. } => return,
                Error::Fatal(reason) | Error::Temporary(reason) => Err(reason),
            },
        };
        // Left by this check, or by one that was given up.
        let _ = std::fs::remove_file(&files.health_output);
        if let Err(reason) = &result {
            tracing::info!(task.id = id, %reason, "health check failed");
        }
        self.monitor.checked(self.since.elapsed(), result);
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

fn output(path: &Path) -> String {
    let mut bytes = Vec::new();
    // What it wrote is said where it can be; that it failed is known without.
    if let Ok(file) = File::open(path) {
        let _ = file.take(SHOWN_MAX).read_to_end(&mut bytes);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}
