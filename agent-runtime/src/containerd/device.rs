//! Devices of the node that a container may use.

use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use swarm_proto::pb::container_spec::Device as Asked;

use crate::error::Error;

/// Docker's default: read, write, make.
const ALL: &str = "rwm";
/// Most devices below one directory.
const DEVICES_MAX: usize = 1000;
/// Most directory entries that are looked at, and how deep, for one task: `/dev` has some hundreds, two or three deep.
const ENTRIES_MAX: usize = 20_000;
const DEPTH_MAX: usize = 16;

/// `null`, `zero`, `random`, `urandom`, `tty`: files that every container has. Docker's list, but for
/// `console`, which is the node's; a container's own is a terminal of its `/dev/pts`.
const ALWAYS: [(u64, u64); 5] = [(1, 3), (1, 5), (1, 8), (1, 9), (5, 0)];

/// One device, as the kernel knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Device {
    /// Where the container has it.
    pub path: PathBuf,
    /// `c` or `b`.
    pub kind: char,
    pub major: u64,
    pub minor: u64,
    /// Mode of the file, and who owns it.
    pub mode: u32,
    pub owner: (u32, u32),
    pub permissions: String,
}

impl Device {
    /// Its file in the container.
    pub(super) fn node(&self) -> Value {
        json!({ "path": self.path, "type": self.kind, "major": self.major, "minor": self.minor,
            "fileMode": self.mode, "uid": self.owner.0, "gid": self.owner.1 })
    }

    /// What the cgroup lets the container do with it.
    pub(super) fn rule(&self) -> Value {
        json!({ "allow": true, "type": self.kind, "major": self.major, "minor": self.minor,
            "access": self.permissions })
    }
}

/// What the cgroup lets every container do.
pub(super) fn default_rules() -> impl Iterator<Item = Value> {
    ALWAYS.into_iter().map(|(major, minor)| {
        json!({ "allow": true, "type": "c", "major": major, "minor": minor, "access": ALL })
    })
}

/// Looks up what was asked for on this node; of a directory, all devices below.
pub(super) fn resolve(asked: &[Asked]) -> Result<Vec<Device>, Error> {
    let mut search = Search::default();
    for asked in asked {
        let host = Path::new(&asked.path_on_host);
        let inside = match asked.path_in_container.as_str() {
            "" => host,
            path => Path::new(path),
        };
        let permissions = match asked.permissions.as_str() {
            "" => ALL,
            given => given,
        };
        let before = search.found.len();
        search
            .add((host, inside), permissions, 0)
            .map_err(|reason| Error::Fatal(format!("device {}: {reason}", host.display())))?;
        if search.found.len() == before {
            let host = host.display();
            return Err(Error::Fatal(format!(
                "device {host}: there is none in this directory"
            )));
        }
    }
    Ok(search.found)
}

#[derive(Default)]
struct Search {
    found: Vec<Device>,
    /// Directory entries looked at.
    entries: usize,
}

impl Search {
    fn add(
        &mut self,
        (host, inside): (&Path, &Path),
        permissions: &str,
        depth: usize,
    ) -> Result<(), String> {
        // What a link leads to is the device.
        let metadata = std::fs::metadata(host).map_err(|error| error.to_string())?;
        let kind = metadata.file_type();
        if kind.is_dir() {
            return self.add_all((host, inside), permissions, depth);
        }
        let kind = match (kind.is_char_device(), kind.is_block_device()) {
            (true, _) => 'c',
            (_, true) => 'b',
            (false, false) => return Err("it is no device".to_owned()),
        };
        if self.found.len() >= DEVICES_MAX {
            return Err(format!("there are more than {DEVICES_MAX} devices"));
        }
        self.found.push(Device {
            path: inside.to_owned(),
            kind,
            major: nix::sys::stat::major(metadata.rdev()),
            minor: nix::sys::stat::minor(metadata.rdev()),
            mode: metadata.mode() & 0o777,
            owner: (metadata.uid(), metadata.gid()),
            permissions: permissions.to_owned(),
        });
        Ok(())
    }

    /// All below a directory, without following links.
    fn add_all(
        &mut self,
        (host, inside): (&Path, &Path),
        permissions: &str,
        depth: usize,
    ) -> Result<(), String> {
        if depth >= DEPTH_MAX {
            return Err(format!("it is more than {DEPTH_MAX} directories deep"));
        }
        for entry in std::fs::read_dir(host).map_err(|error| error.to_string())? {
            let entry = entry.map_err(|error| error.to_string())?;
            self.entries += 1;
            if self.entries > ENTRIES_MAX {
                return Err(format!(
                    "there are more than {ENTRIES_MAX} files in it; name the devices, or their directory"
                ));
            }
            let plain = entry.file_type().map_err(|error| error.to_string())?;
            let device = plain.is_char_device() || plain.is_block_device();
            if device || plain.is_dir() {
                let inside = inside.join(entry.file_name());
                self.add((&entry.path(), &inside), permissions, depth + 1)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(host: &str, inside: &str, permissions: &str) -> Result<Vec<Device>, Error> {
        resolve(&[Asked {
            path_on_host: host.to_owned(),
            path_in_container: inside.to_owned(),
            permissions: permissions.to_owned(),
        }])
    }

    #[test]
    fn devices_are_found_by_what_they_are() {
        let null = asked("/dev/null", "", "").unwrap();
        assert_eq!(
            null[0].rule(),
            json!({ "allow": true, "type": "c", "major": 1, "minor": 3, "access": "rwm" })
        );
        let renamed = asked("/dev/zero", "/dev/other", "r").unwrap();
        assert_eq!(renamed[0].node()["path"], "/dev/other");
        assert_eq!(renamed[0].permissions, "r");
        for (path, words) in [
            ("/no/such", "No such file"),
            ("/etc/passwd", "no device"),
            ("/proc/self/fdinfo", "none in this directory"),
        ] {
            let error = asked(path, "", "").unwrap_err().to_string();
            assert!(error.contains(words) && error.contains(path), "{error}");
        }
    }

    #[test]
    fn a_search_has_an_end() {
        let dir = tempfile::tempdir().unwrap();
        let mut deep = dir.path().to_owned();
        deep.extend(vec!["d"; DEPTH_MAX]);
        std::fs::create_dir_all(&deep).unwrap();
        let error = asked(dir.path().to_str().unwrap(), "", "").unwrap_err();
        assert!(error.to_string().contains("directories deep"), "{error}");
        let dir = tempfile::tempdir().unwrap();
        for name in 0..=ENTRIES_MAX {
            std::fs::write(dir.path().join(name.to_string()), "").unwrap();
        }
        let error = asked(dir.path().to_str().unwrap(), "", "").unwrap_err();
        assert!(error.to_string().contains("name the devices"), "{error}");
    }
}
