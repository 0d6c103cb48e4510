//! The program that log writers and init processes are: this one, where containerd finds it.
//!
//! It lies in the state directory, which containerd sees under the same path, also where swarmd
//! itself runs in a container. A newer version takes its place by a rename: processes and containers
//! that run keep theirs.

use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use swarm_proto::pb;
use tokio::sync::Mutex;

use super::files;
use crate::error::Error;
use crate::init::STDIN_PATH;
use crate::tool::{INIT, LOG, STDIN};

/// Where a container with an init process sees it, beside Docker's name for it.
const INIT_PATH: &str = "/sbin/swarm-init";
const EXECUTABLE: u32 = 0o755;

/// The program of one node.
#[derive(Debug)]
pub(super) struct Tool {
    source: PathBuf,
    installed: PathBuf,
    /// This process has put it there.
    ready: Mutex<bool>,
}

impl Tool {
    pub(super) fn new(source: &Path, state: &Path) -> Self {
        Self {
            source: source.to_owned(),
            installed: state.join("bin").join("swarmd"),
            ready: Mutex::default(),
        }
    }

    /// Puts it where containerd finds it, unless it is there: before a container is made.
    pub(super) async fn ready(&self) -> Result<(), Error> {
        let mut ready = self.ready.lock().await;
        if *ready && self.installed.is_file() {
            return Ok(());
        }
        let (source, installed) = (self.source.clone(), self.installed.clone());
        let done = tokio::task::spawn_blocking(move || install(&source, &installed)).await;
        done.map_err(io::Error::other).flatten().map_err(|error| {
            let path = self.installed.display();
            files::failure(&format!("the program {path} of log writers"), &error)
        })?;
        *ready = true;
        Ok(())
    }

    /// Removes it, with its directory.
    pub(super) fn remove(&self) {
        let _ = std::fs::remove_file(&self.installed);
        if let Some(dir) = self.installed.parent() {
            let _ = std::fs::remove_dir(dir);
        }
    }

    /// The log writer that reads `config`, as containerd's shims start it.
    pub(super) fn log_writer(&self, config: &Path) -> String {
        let (program, config) = (encoded(&self.installed), encoded(config));
        format!("binary://{program}?{LOG}={config}")
    }

    /// The mounts that the words before a container's command need.
    pub(super) fn mounts(&self, container: &pb::ContainerSpec, stdin: &Path) -> Vec<Value> {
        let mut mounts = Vec::new();
        let mut bind = |source: &Path, target: &str, access: &str| {
            mounts.push(
                json!({ "destination": target, "type": "bind", "source": source,
                "options": ["bind", access, "rprivate"] }),
            );
        };
        if !words_before(container).is_empty() {
            bind(&self.installed, INIT_PATH, "ro");
        }
        if needs_stdin(container) {
            bind(stdin, STDIN_PATH, "rw");
        }
        mounts
    }
}

/// The words before a container's command: what runs before it, and starts it.
pub(super) fn words_before(container: &pb::ContainerSpec) -> Vec<String> {
    let mut words = Vec::new();
    if needs_stdin(container) {
        words.extend([INIT_PATH, STDIN, "--"]);
    }
    if container.init == Some(true) {
        words.extend([INIT_PATH, INIT, "--"]);
    }
    words.into_iter().map(str::to_owned).collect()
}

/// A terminal is an input of its own.
fn needs_stdin(container: &pb::ContainerSpec) -> bool {
    container.open_stdin && !container.tty
}

/// A copy: damage to what lies in the state directory must not reach the program itself.
fn install(source: &Path, installed: &Path) -> io::Result<()> {
    let wanted = File::open(source)?.metadata()?;
    let there = std::fs::metadata(installed);
    if there.is_ok_and(|there| same(&wanted, &there)) {
        return Ok(());
    }
    if let Some(dir) = installed.parent() {
        std::fs::create_dir_all(dir)?;
    }
    let incoming = installed.with_extension("incoming");
    std::fs::copy(source, &incoming)?;
    let copy = File::options().write(true).open(&incoming)?;
    copy.set_permissions(std::fs::Permissions::from_mode(EXECUTABLE))?;
    copy.set_modified(wanted.modified()?)?;
    std::fs::rename(&incoming, installed)
}

fn same(a: &Metadata, b: &Metadata) -> bool {
    let of = |metadata: &Metadata| (metadata.len(), metadata.mtime(), metadata.mtime_nsec());
    of(a) == of(b)
}

/// A path as a part of a URI.
fn encoded(path: &Path) -> String {
    use std::os::unix::ffi::OsStrExt as _;
    let byte = |byte: &u8| match byte {
        b'/' | b'.' | b'-' | b'_' => char::from(*byte).to_string(),
        byte if byte.is_ascii_alphanumeric() => char::from(*byte).to_string(),
        byte => format!("%{byte:02X}"),
    };
    path.as_os_str().as_bytes().iter().map(byte).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_new_version_takes_the_place_of_the_old_one() {
        let dir = tempfile::tempdir().unwrap();
        let source = dir.path().join("swarmd");
        let installed = dir.path().join("state/bin/swarmd");
        let tool = || Tool::new(&source, &dir.path().join("state"));
        let error = tool().ready().await.unwrap_err().to_string();
        assert!(error.contains("bin/swarmd"), "{error}");
        let read = || std::fs::read_to_string(&installed).unwrap();
        for version in ["one", "two, longer"] {
            std::fs::write(&source, version).unwrap();
            tool().ready().await.unwrap();
            assert_eq!(read(), version);
        }
        // Damage does not reach the source, and is gone with the next start.
        std::fs::write(&installed, "damaged").unwrap();
        tool().ready().await.unwrap();
        assert_eq!(read(), "two, longer");
        assert_eq!(std::fs::read_to_string(&source).unwrap(), "two, longer");
        // Taken away, it is put there again.
        let tool = tool();
        tool.ready().await.unwrap();
        std::fs::remove_file(&installed).unwrap();
        tool.ready().await.unwrap();
        assert_eq!(read(), "two, longer");
        tool.remove();
        assert!(!dir.path().join("state/bin").exists());
    }

    #[test]
    fn paths_are_encoded_for_uris() {
        let tool = Tool::new(Path::new("/x"), Path::new("/var/lib/a b?&"));
        assert_eq!(
            tool.log_writer(Path::new("/t/log.json")),
            "binary:///var/lib/a%20b%3F%26/bin/swarmd?task-log=/t/log.json"
        );
    }
}
