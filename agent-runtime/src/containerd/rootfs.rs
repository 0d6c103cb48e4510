//! Looks into a task's root filesystem before the task runs: users and groups, and what an image
//! has where a volume is to be mounted.
//!
//! The mounts are made in a mount namespace of their own, by a thread that ends: nothing can be
//! left mounted, whatever happens. Paths are resolved as the container would, so a symlink in an
//! image can't lead out of it.

use std::fs::File;
use std::io::Read as _;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use containerd_client::types::Mount;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::stat::Mode;

use crate::error::Error;

/// `/etc/passwd` and `/etc/group` are read up to this size.
const ACCOUNT_FILE_MAX: u64 = 1 << 20;

/// A root filesystem that is mounted for the thread that looks at it.
#[derive(Debug)]
pub(super) struct Root {
    dir: OwnedFd,
}

/// Mounts a root filesystem where only the closure sees it.
///
/// `at` is an existing empty directory.
pub(super) async fn look<T: Send + 'static>(
    mounts: Vec<Mount>,
    at: PathBuf,
    body: impl FnOnce(&Root) -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    let (sender, receiver) = tokio::sync::oneshot::channel();
    // A thread of its own, not one of a pool: its mount namespace is not given back.
    let thread = std::thread::Builder::new().name("rootfs".to_owned());
    let spawned = thread.spawn(move || {
        // Nobody waits any more: then the result is not needed either.
        let _ = sender.send(enter(&mounts, &at).and_then(|root| body(&root)));
    });
    spawned.map_err(|error| Error::Temporary(format!("root filesystem: no thread: {error}")))?;
    receiver.await.unwrap_or_else(|_| {
        Err(Error::Fatal(
            "root filesystem: looking into it failed".to_owned(),
        ))
    })
}

fn enter(mounts: &[Mount], at: &Path) -> Result<Root, Error> {
    let failed = |what: &str, error: nix::Error| {
        Error::Fatal(format!("root filesystem: {what}: {}", error.desc()))
    };
    unshare(CloneFlags::CLONE_NEWNS).map_err(|error| failed("unshare", error))?;
    let none: Option<&str> = None;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)
        .map_err(|error| failed("make mounts private", error))?;
    for part in mounts {
        let (base, options_of_part) = relative(&part.options);
        if let Some(base) = base {
            // This thread's alone: its file system attributes are its own since `unshare`.
            nix::unistd::chdir(&base).map_err(|error| failed("enter snapshots", error))?;
        }
        let (flags, data) = options(&options_of_part);
        mount(
            Some(part.source.as_str()),
            at,
            Some(part.r#type.as_str()),
            flags,
            (!data.is_empty()).then_some(data.as_str()),
        )
        .map_err(|error| failed(&format!("mount {}", part.r#type), error))?;
    }
    let dir = nix::fcntl::open(
        at,
        OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC,
        Mode::empty(),
    )
    .map_err(|error| failed("open", error))?;
    Ok(Root { dir })
}

/// Lower directories relative to where all of them are, if there are several: mount(2) takes one
/// page of options, and with whole paths some fifty layers would fill it. runc gets the same from
/// containerd.
fn relative(options: &[String]) -> (Option<PathBuf>, Vec<String>) {
    const LOWER: &str = "lowerdir=";
    let lower = options.iter().find_map(|option| option.strip_prefix(LOWER));
    let dirs: Vec<&str> = lower
        .map(|dirs| dirs.split(':').collect())
        .unwrap_or_default();
    let base = match dirs.as_slice() {
        [first, second, ..] => common(Path::new(first), Path::new(second)),
        _ => PathBuf::new(),
    };
    let shorter = |dir: &&str| {
        Some(
            Path::new(dir)
                .strip_prefix(&base)
                .ok()?
                .to_str()?
                .to_owned(),
        )
    };
    let dirs: Option<Vec<String>> = dirs.iter().map(shorter).collect();
    match dirs {
        Some(dirs) if base.is_absolute() && dirs.iter().all(|dir| !dir.is_empty()) => {
            let lower = format!("{LOWER}{}", dirs.join(":"));
            let rest = options.iter().map(|option| {
                let option = if option.starts_with(LOWER) {
                    &lower
                } else {
                    option
                };
                option.clone()
            });
            (Some(base), rest.collect())
        }
        Some(_) | None => (None, options.to_vec()),
    }
}

/// The directory that two paths share.
fn common(one: &Path, other: &Path) -> PathBuf {
    let both = one.components().zip(other.components());
    both.take_while(|(one, other)| one == other)
        .map(|(one, _)| one)
        .collect()
}

/// containerd's mount options: flags by name, the rest is data for the filesystem.
fn options(options: &[String]) -> (MsFlags, String) {
    let mut flags = MsFlags::empty();
    let mut data = Vec::new();
    for option in options {
        match option.as_str() {
            "ro" => flags |= MsFlags::MS_RDONLY,
            "rw" => {}
            "bind" => flags |= MsFlags::MS_BIND,
            "rbind" => flags |= MsFlags::MS_BIND | MsFlags::MS_REC,
            other => data.push(other),
        }
    }
    (flags, data.join(","))
}

impl Root {
    /// Opens a path inside. `None` where there is nothing.
    fn open(&self, path: &str, flags: OFlag) -> Result<Option<OwnedFd>, Error> {
        let how = OpenHow::new()
            .flags(flags | OFlag::O_CLOEXEC)
            .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
        match nix::fcntl::openat2(self.dir.as_fd(), path, how) {
            Ok(fd) => Ok(Some(fd)),
            Err(nix::Error::ENOENT | nix::Error::ENOTDIR) => Ok(None),
            Err(error) => Err(Error::Fatal(format!(
                "root filesystem: {path}: {}",
                error.desc()
            ))),
        }
    }

    /// A small text file; empty where there is none.
    pub(super) fn text(&self, path: &str) -> Result<String, Error> {
        let Some(fd) = self.open(path, OFlag::O_RDONLY | OFlag::O_NONBLOCK)? else {
            return Ok(String::new());
        };
        let mut bytes = Vec::new();
        File::from(fd)
            .take(ACCOUNT_FILE_MAX)
            .read_to_end(&mut bytes)
            .map_err(|error| Error::Fatal(format!("root filesystem: {path}: {error}")))?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// Copies what the image has at `path` into an empty directory, with owners and modes.
    pub(super) fn copy_out(&self, path: &str, to: &Path) -> Result<(), Error> {
        let Some(fd) = self.open(path, OFlag::O_RDONLY | OFlag::O_DIRECTORY)? else {
            return Ok(());
        };
        // Below a directory file descriptor, names are taken one by one and symlinks copied.
        let from = PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd()));
        copy_directory(&from, to)
            .map_err(|error| Error::Fatal(format!("volume content from image {path}: {error}")))
    }
}

fn copy_directory(from: &Path, to: &Path) -> std::io::Result<()> {
    copy_attributes(&std::fs::metadata(from)?, to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        let metadata = entry.path().symlink_metadata()?;
        if metadata.is_dir() {
            std::fs::create_dir(&target)?;
            copy_directory(&entry.path(), &target)?;
        } else if metadata.is_symlink() {
            std::os::unix::fs::symlink(std::fs::read_link(entry.path())?, &target)?;
            std::os::unix::fs::lchown(&target, Some(metadata.uid()), Some(metadata.gid()))?;
        } else if metadata.is_file() {
            std::fs::copy(entry.path(), &target)?;
            copy_attributes(&metadata, &target)?;
        }
        // Sockets, pipes and devices of an image are not content.
    }
    Ok(())
}

/// Owner first: changing it clears set-id bits, which the mode then sets again.
fn copy_attributes(from: &std::fs::Metadata, to: &Path) -> std::io::Result<()> {
    std::os::unix::fs::chown(to, Some(from.uid()), Some(from.gid()))?;
    std::fs::set_permissions(to, std::fs::Permissions::from_mode(from.mode() & 0o7777))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_layers_fit_into_a_page() {
        let root = "/var/lib/containerd/io.containerd.snapshotter.v1.overlayfs/snapshots";
        let layers: Vec<String> = (100..600).map(|n| format!("{root}/{n}/fs")).collect();
        let given = vec![
            format!("workdir={root}/7/work"),
            format!("lowerdir={}", layers.join(":")),
        ];
        let (base, short) = relative(&given);
        assert_eq!(base.as_deref(), Some(Path::new(root)));
        assert_eq!(short[0], given[0], "other paths stay whole");
        assert!(short[1].starts_with("lowerdir=100/fs:101/fs:"));
        assert!(short.join(",").len() < 4096);
        // One layer, directories that share nothing but the root, none at all: as they are.
        for lower in ["lowerdir=/a/fs", "lowerdir=/a/fs:/a", "index=off"] {
            let given = [lower.to_owned()];
            assert_eq!(relative(&given), (None, given.to_vec()), "{lower}");
        }
    }

    #[test]
    fn reads_mount_options() {
        let given = ["index=off", "workdir=/w", "upperdir=/u", "lowerdir=/a:/b"].map(String::from);
        assert_eq!(options(&given), (MsFlags::empty(), given.join(",")));
        let given = ["ro", "rbind"].map(String::from);
        let flags = MsFlags::MS_RDONLY | MsFlags::MS_BIND | MsFlags::MS_REC;
        assert_eq!(options(&given), (flags, String::new()));
    }
}
