//! `swarmctl cluster backup`: the cluster's state, as it comes, into a file that is whole or not there.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use swarm_proto::amount::count;
use swarm_proto::own;
use swarm_proto::own::backup_part::Part;

use super::super::session::Session;
use crate::cli::Backup;
use crate::error::Error;
use crate::terminal::Terminal;

const STDOUT: &str = "-";

fn is_stdout(file: &Path) -> bool {
    file.as_os_str() == STDOUT
}

/// Before anything is asked for.
pub(super) fn check(flags: &Backup) -> Result<(), Error> {
    if is_stdout(&flags.file) {
        return Ok(());
    }
    match fs::metadata(&flags.file) {
        // A device would be replaced by a file.
        Ok(found) if !found.is_file() => Err(local(io::Error::other(format!(
            "{} is no file; name a file, or - for stdout",
            flags.file.display()
        )))),
        Ok(_) if !flags.force => Err(exists(&flags.file)),
        Ok(_) | Err(_) => Ok(()),
    }
}

fn exists(file: &Path) -> Error {
    Error::Local {
        what: "write the backup",
        source: io::Error::new(
            io::ErrorKind::AlreadyExists,
            format!(
                "{} exists; name another file, or say --force to replace it",
                file.display()
            ),
        ),
    }
}

fn local(source: io::Error) -> Error {
    Error::Local {
        what: "write the backup",
        source,
    }
}

pub(super) async fn run(session: &mut Session<'_>, flags: &Backup) -> Result<(), Error> {
    let refused = |status| Error::refused("back up the cluster", status);
    // As long as it takes: it goes as fast as it is written.
    let request = tonic::Request::new(own::BackupRequest {});
    let answer = session.client.operator().backup(request).await;
    let mut parts = answer.map_err(refused)?.into_inner();
    let mut to = To::open(&flags.file)?;
    let (mut header, mut written) = (own::BackupHeader::default(), 0_u64);
    loop {
        let part = parts.message().await.map_err(refused)?;
        match part.and_then(|part| part.part) {
            Some(Part::Header(first)) => header = first,
            Some(Part::Data(data)) => {
                written += data.len() as u64;
                to.write(session.terminal, &data).map_err(local)?;
            }
            Some(Part::End(total)) if total == written => break,
            Some(Part::End(_)) | None => {
                return Err(Error::Rejected {
                    what: "back up the cluster".to_owned(),
                    reason: format!(
                        "the manager's answer ended early, after {written} bytes; try again"
                    ),
                });
            }
        }
    }
    to.finish(flags.force)?;
    let (nodes, services) = (
        count(header.nodes, "node"),
        count(header.services, "service"),
    );
    let tasks = count(header.tasks, "task");
    session.remark(&format!(
        "backup of cluster {} at log entry {}: {nodes}, {services}, {tasks}, {written} bytes",
        header.cluster_id, header.index
    ))?;
    session.remark("it holds the cluster's CA key, join tokens, credentials and, with autolock, unlock key in the clear: keep it as you keep keys")
}

/// Where it goes.
enum To {
    Stdout,
    File {
        file: File,
        unfinished: Unfinished,
        path: PathBuf,
    },
}

/// A file that is gone unless it is finished.
struct Unfinished(PathBuf);

impl Drop for Unfinished {
    fn drop(&mut self) {
        // It is gone already where it was renamed.
        let _ = fs::remove_file(&self.0);
    }
}

impl To {
    fn open(path: &Path) -> Result<Self, Error> {
        if is_stdout(path) {
            return Ok(Self::Stdout);
        }
        let mut name = path.as_os_str().to_owned();
        name.push(format!(".unfinished-{}", std::process::id()));
        let unfinished = PathBuf::from(name);
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&unfinished);
        let named = |e: io::Error| {
            let text = format!("{}: {e}", path.display());
            local(io::Error::new(e.kind(), text))
        };
        Ok(Self::File {
            file: file.map_err(named)?,
            unfinished: Unfinished(unfinished),
            path: path.to_owned(),
        })
    }

    fn write(&mut self, terminal: &mut Terminal, data: &[u8]) -> io::Result<()> {
        match self {
            Self::Stdout => terminal.stdout.bytes(data),
            Self::File { file, .. } => file.write_all(data),
        }
    }

    /// It has its name once it is durable.
    fn finish(self, replace: bool) -> Result<(), Error> {
        let (file, unfinished, path) = match self {
            Self::Stdout => return Ok(()),
            Self::File {
                file,
                unfinished,
                path,
            } => (file, unfinished, path),
        };
        file.sync_all().map_err(local)?;
        match replace {
            true => fs::rename(&unfinished.0, &path).map_err(local)?,
            // Unlike a rename it leaves alone what somebody else has put there meanwhile.
            false => fs::hard_link(&unfinished.0, &path).map_err(|e| {
                match e.kind() == io::ErrorKind::AlreadyExists {
                    true => exists(&path),
                    false => local(e),
                }
            })?,
        }
        drop(unfinished);
        let parent = path
            .parent()
            .filter(|parent| !parent.as_os_str().is_empty());
        let parent = File::open(parent.unwrap_or(Path::new(".")));
        parent.and_then(|dir| dir.sync_all()).map_err(local)
    }
}
