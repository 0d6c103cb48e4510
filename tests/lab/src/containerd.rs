//! A containerd of the lab's own, beside whatever runs on this machine.
//!
//! Two places are containerd's for the whole machine and not configurable: the shims' sockets in
//! /run/containerd/s and runc's state in /run/containerd/runc. The containerd namespaces of labs have unique names, so
//! neither is shared.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::site::Site;
use crate::{Error, command, process, wait};

/// How long containerd may take to answer after its start, and to end after SIGTERM.
const LIMIT: Duration = Duration::from_secs(30);

/// A running containerd.
#[derive(Debug)]
pub struct Containerd {
    directory: PathBuf,
    state: PathBuf,
    child: Child,
}

impl Containerd {
    /// Starts it and waits until it answers.
    pub(crate) fn start(site: &Site) -> Result<Self, Error> {
        let (directory, state) = (directory(site), site.state().join("containerd"));
        for path in [&directory, &state] {
            fs::create_dir_all(path).map_err(Error::file("create", path))?;
        }
        let file = directory.join("config.toml");
        fs::write(&file, configuration(&directory, &state)).map_err(Error::file("write", &file))?;
        let child = spawn(&directory)?;
        let containerd = Self {
            directory,
            state,
            child,
        };
        containerd.wait_until_it_answers()?;
        Ok(containerd)
    }

    /// Its socket.
    pub fn socket(&self) -> PathBuf {
        self.directory.join("containerd.sock")
    }

    /// The value of swarmd's `--engine-addr`.
    pub fn engine_address(&self) -> String {
        format!("unix://{}", self.socket().display())
    }

    /// Runs `ctr` in a containerd namespace and returns what it printed.
    pub fn ctr(&self, namespace: &str, arguments: &[&str]) -> Result<String, Error> {
        ctr(&self.socket(), namespace, arguments)
    }

    /// Ends containerd with the signal; shims and containers go on.
    pub fn stop(&mut self, signal: Signal) -> Result<(), Error> {
        process::signal(self.child.id(), signal)?;
        process::wait_gone(self.child.id(), LIMIT)?;
        self.child
            .wait()
            .map(drop)
            .map_err(Error::file("wait for", "containerd"))
    }

    /// Starts containerd again after [`Containerd::stop`].
    pub fn start_again(&mut self) -> Result<(), Error> {
        self.child = spawn(&self.directory)?;
        self.wait_until_it_answers()
    }

    /// Where it stores content and snapshots.
    pub fn state(&self) -> &Path {
        &self.state
    }

    fn wait_until_it_answers(&self) -> Result<(), Error> {
        wait::until("answer of containerd", LIMIT, || {
            if !process::is_alive(self.child.id()) {
                return Err(format!(
                    "it ended; see {}",
                    self.directory.join("log").display()
                ));
            }
            self.ctr("default", &["version"])
                .map_err(|error| error.to_string())
        })
        .map(drop)
    }
}

fn directory(site: &Site) -> PathBuf {
    site.run().join("containerd")
}

fn spawn(directory: &Path) -> Result<Child, Error> {
    let arguments = [
        "--config".to_owned(),
        directory.join("config.toml").to_string_lossy().into_owned(),
    ];
    process::start(
        Path::new("containerd"),
        &arguments,
        &directory.join("log"),
        None,
    )
}

/// Configuration for containerd 1.6 and later (2.x reads version 2 as well).
fn configuration(directory: &Path, state: &Path) -> String {
    let (directory, state) = (directory.display(), state.display());
    format!(
        r#"version = 2
# As Debian's has one of its own (-999): containers must not inherit it.
oom_score = -500
root = "{state}/root"
state = "{directory}/state"
# Neither Kubernetes nor snapshotters that probe the machine for devices.
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs"]

[grpc]
  address = "{directory}/containerd.sock"

[plugins."io.containerd.internal.v1.opt"]
  path = "{state}/opt"
"#
    )
}

/// Runs `ctr` against a socket.
pub(crate) fn ctr(socket: &Path, namespace: &str, arguments: &[&str]) -> Result<String, Error> {
    let socket = socket.to_string_lossy();
    let all = [
        &["--address", socket.as_ref(), "--namespace", namespace],
        arguments,
    ]
    .concat();
    command::run("ctr", &all)
}
