//! What is mounted into a container: the kernel's file systems, the files swarmd writes, and the
//! mounts of the spec: bind, volume (named, anonymous, of the image), tmpfs.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Component, Path, PathBuf};

use serde_json::{Value, json};
use swarm_proto::pb;
use swarm_proto::pb::mount::Type as MountType;
use swarm_proto::pb::mount::bind_options::Propagation;

use super::files::failure;
use super::template::Templates;
use crate::error::Error;

/// Docker's size of `/dev/shm`.
const SHM_BYTES: u64 = 64 << 20;
/// Docker's rule for volume names, and a file name's limit.
const VOLUME_NAME_MAX: usize = 255;
/// Mode of a volume's directory, until the image says another one.
const VOLUME_MODE: u32 = 0o755;

/// Where volumes are kept.
#[derive(Debug)]
pub(super) struct VolumeDirs<'a> {
    /// Named volumes of this node: `<name>/data`.
    pub named: &'a Path,
    /// Anonymous volumes of this task, removed with it.
    pub anonymous: &'a Path,
}

/// The mounts of a container, and what is to be done before.
#[derive(Debug, Default)]
pub(super) struct Mounts {
    /// OCI mounts, in order.
    pub oci: Vec<Value>,
    /// Volumes that were not there when they were looked for.
    pub new: Vec<NewVolume>,
}

/// A volume to be made. Its content is put in beside it and then renamed, so that a volume that
/// exists is a whole one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct NewVolume {
    /// Path in the image whose content the volume gets; none begins empty.
    pub from: Option<String>,
    /// The volume's directory.
    pub data: PathBuf,
}

impl NewVolume {
    /// Makes the volume, unless somebody else has by now. Only one may do so at a time.
    pub(super) fn make(
        &self,
        fill: impl FnOnce(&str, &Path) -> Result<(), Error>,
    ) -> Result<(), Error> {
        if self.data.exists() {
            return Ok(());
        }
        let failed =
            |error: std::io::Error| failure(&format!("volume {}", self.data.display()), &error);
        let incoming = self.data.with_file_name("incoming");
        // Somebody else's who did not finish.
        if incoming.exists() {
            std::fs::remove_dir_all(&incoming).map_err(failed)?;
        }
        std::fs::create_dir_all(&incoming).map_err(failed)?;
        // Whoever the container runs as may look into it, whatever the umask of swarmd.
        let mode = std::fs::Permissions::from_mode(VOLUME_MODE);
        std::fs::set_permissions(&incoming, mode).map_err(failed)?;
        if let Some(from) = &self.from {
            fill(from, &incoming)?;
        }
        std::fs::rename(&incoming, &self.data).map_err(failed)
    }
}

/// What the kernel offers: `/proc`, `/dev`, `/sys` and what is below.
pub(super) fn kernel(shm_bytes: i64) -> Vec<Value> {
    let named = |target: &str, kind: &str, source: &str, options: &[&str]| json!({ "destination": target, "type": kind, "source": source, "options": options });
    let mount = |target: &str, kind: &str, options: &[&str]| named(target, kind, kind, options);
    let shm_bytes = u64::try_from(shm_bytes).unwrap_or(0);
    let shm_bytes = if shm_bytes == 0 { SHM_BYTES } else { shm_bytes };
    let shm = format!("size={shm_bytes}");
    vec![
        mount("/proc", "proc", &["nosuid", "noexec", "nodev"]),
        mount(
            "/dev",
            "tmpfs",
            &["nosuid", "strictatime", "mode=755", "size=65536k"],
        ),
        mount(
            "/dev/pts",
            "devpts",
            &[
                "nosuid",
                "noexec",
                "newinstance",
                "ptmxmode=0666",
                "mode=0620",
                "gid=5",
            ],
        ),
        mount("/sys", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
        mount(
            "/sys/fs/cgroup",
            "cgroup",
            &["ro", "nosuid", "noexec", "nodev"],
        ),
        mount("/dev/mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
        named(
            "/dev/shm",
            "tmpfs",
            "shm",
            &["nosuid", "noexec", "nodev", "mode=1777", &shm],
        ),
    ]
}

/// A file of swarmd's (hosts, resolv.conf, hostname) at a path in the container.
pub(super) fn file(source: &Path, target: &str) -> Value {
    json!({ "destination": target, "type": "bind", "source": source,
        "options": ["rbind", "rprivate"] })
}

/// Files of swarmd's that are part of the root file system, as far as its container is concerned.
const FILES: [&str; 3] = ["/etc/hosts", "/etc/resolv.conf", "/etc/hostname"];

/// Makes swarmd's files read-only. A mount of the spec at the same path comes after them, and stays.
pub(super) fn close_files(mounts: &mut [Value]) {
    for target in FILES {
        let mut at_target = mounts
            .iter_mut()
            .filter(|mount| mount.get("destination").is_some_and(|at| at == target));
        let options = at_target.next().and_then(|mount| mount.get_mut("options"));
        if let Some(options) = options.and_then(Value::as_array_mut) {
            options.push(Value::from("ro"));
        }
    }
}

/// Plans the mounts of the spec and of the image. Volumes that are not there are named, not made.
pub(super) fn plan(
    container: &pb::ContainerSpec,
    image_volumes: &[&str],
    templates: &Templates<'_>,
    dirs: &VolumeDirs<'_>,
) -> Result<Mounts, Error> {
    let mut mounts = Mounts::default();
    let mut targets = Vec::new();
    for mount in &container.mounts {
        let target = templates.expand("mount target", &mount.target)?;
        let target = absolute(&target)?;
        let source = templates.expand("mount source", &mount.source)?;
        let request = Request {
            mount,
            source,
            target: target.clone(),
        };
        match mount.r#type() {
            MountType::Bind => mounts.oci.push(bind(&request)?),
            MountType::Volume => volume(&request, dirs, &mut mounts)?,
            MountType::Tmpfs => mounts.oci.push(tmpfs(&request)?),
            MountType::Npipe | MountType::Cluster => {
                return Err(Error::Fatal(format!(
                    "mount {target}: {} mounts are not supported on this node",
                    mount.r#type().as_str_name().to_lowercase()
                )));
            }
        }
        targets.push(target);
    }
    for target in image_volumes {
        let target = absolute(target)?;
        if targets.contains(&target) {
            continue;
        }
        let mount = pb::Mount {
            r#type: MountType::Volume.into(),
            ..Default::default()
        };
        let request = Request {
            mount: &mount,
            source: String::new(),
            target,
        };
        volume(&request, dirs, &mut mounts)?;
    }
    // A mount below another one comes after it.
    mounts.oci.sort_by_key(|mount| {
        mount
            .get("destination")
            .and_then(Value::as_str)
            .map_or(0, |at| at.split('/').count())
    });
    Ok(mounts)
}

struct Request<'a> {
    mount: &'a pb::Mount,
    source: String,
    target: String,
}

impl Request<'_> {
    fn refuse(&self, reason: &str) -> Error {
        Error::Fatal(format!("mount {}: {reason}", self.target))
    }
}

fn absolute(target: &str) -> Result<String, Error> {
    let path = Path::new(target);
    let plain = path
        .components()
        .all(|part| !matches!(part, Component::ParentDir));
    if !path.is_absolute() || !plain || path == Path::new("/") {
        return Err(Error::Fatal(format!(
            "mount target {target:?}: give an absolute path below the root, without .."
        )));
    }
    Ok(target.to_owned())
}

fn bind(request: &Request<'_>) -> Result<Value, Error> {
    let options = request.mount.bind_options.unwrap_or_default();
    let source = Path::new(&request.source);
    if !source.is_absolute() {
        return Err(request.refuse("the source of a bind mount is an absolute path of the node"));
    }
    if !source.exists() {
        if !options.createmountpoint {
            return Err(request.refuse(&format!(
                "bind source path does not exist on this node: {}",
                source.display()
            )));
        }
        std::fs::create_dir_all(source).map_err(|error| {
            request.refuse(&format!("bind source {}: {error}", source.display()))
        })?;
    }
    let propagation = match options.propagation() {
        Propagation::Rprivate => "rprivate",
        Propagation::Private => "private",
        Propagation::Rshared => "rshared",
        Propagation::Shared => "shared",
        Propagation::Rslave => "rslave",
        Propagation::Slave => "slave",
    };
    let mut flags = vec![
        if options.nonrecursive {
            "bind"
        } else {
            "rbind"
        },
        propagation,
    ];
    if request.mount.readonly {
        flags.push(if options.readonlyforcerecursive {
            "rro"
        } else {
            "ro"
        });
    }
    Ok(json!({ "destination": request.target, "type": "bind", "source": source, "options": flags }))
}

fn volume(request: &Request<'_>, dirs: &VolumeDirs<'_>, mounts: &mut Mounts) -> Result<(), Error> {
    let options = request.mount.volume_options.clone().unwrap_or_default();
    let driver = options.driver_config.unwrap_or_default();
    if !matches!(driver.name.as_str(), "" | "local") {
        return Err(request.refuse(&format!("no volume driver {} on this node", driver.name)));
    }
    if !driver.options.is_empty() {
        return Err(request.refuse("options of the local volume driver are not supported"));
    }
    let data = if request.source.is_empty() {
        dirs.anonymous
            .join(mounts.oci.len().to_string())
            .join("data")
    } else {
        check_volume_name(request)?;
        dirs.named.join(&request.source).join("data")
    };
    if !options.subpath.is_empty() {
        // Containers that share the volume could put a symlink there between check and mount.
        return Err(request
            .refuse("subpaths of volumes are not supported on this node; mount the whole volume"));
    }
    let source = data.clone();
    if !data.exists() {
        mounts.new.push(NewVolume {
            from: (!options.nocopy).then(|| request.target.clone()),
            data,
        });
    }
    let mut flags = vec!["rbind", "rprivate"];
    if request.mount.readonly {
        flags.push("ro");
    }
    mounts.oci.push(
        json!({ "destination": request.target, "type": "bind", "source": source, "options": flags }),
    );
    Ok(())
}

fn check_volume_name(request: &Request<'_>) -> Result<(), Error> {
    let name = &request.source;
    let fine = name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.len() <= VOLUME_NAME_MAX
        && name
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-'));
    if fine {
        return Ok(());
    }
    Err(request.refuse(&format!(
        "volume name {name:?}: use letters, digits, _ . - (or a bind mount for a path)"
    )))
}

fn tmpfs(request: &Request<'_>) -> Result<Value, Error> {
    let options = request.mount.tmpfs_options.clone().unwrap_or_default();
    let mut flags: Vec<String> = ["nosuid", "nodev", "noexec"].map(String::from).into();
    if options.size_bytes > 0 {
        flags.push(format!("size={}", options.size_bytes));
    }
    if options.mode != 0 {
        flags.push(format!("mode={:o}", options.mode));
    }
    for option in tmpfs_words(&options.options) {
        let opposite = match option.as_str() {
            "exec" | "suid" | "dev" => format!("no{option}"),
            _ => String::new(),
        };
        flags.retain(|flag| *flag != opposite && *flag != option);
        flags.push(option);
    }
    if request.mount.readonly {
        flags.push("ro".to_owned());
    }
    Ok(
        json!({ "destination": request.target, "type": "tmpfs", "source": "tmpfs", "options": flags }),
    )
}

/// `exec,uid=7`, or Docker's JSON form `[["exec"],["uid","7"]]`.
fn tmpfs_words(options: &str) -> Vec<String> {
    if let Ok(pairs) = serde_json::from_str::<Vec<Vec<String>>>(options) {
        return pairs.into_iter().map(|pair| pair.join("=")).collect();
    }
    options
        .split(',')
        .filter(|word| !word.is_empty())
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::executor::NodeFacts;

    fn planned(mounts: Vec<pb::Mount>, image: &[&str], dir: &Path) -> Result<Mounts, String> {
        let task = pb::Task {
            id: "t1".to_owned(),
            ..Default::default()
        };
        let node = NodeFacts::default();
        let container = pb::ContainerSpec {
            mounts,
            ..Default::default()
        };
        let dirs = VolumeDirs {
            named: &dir.join("volumes"),
            anonymous: &dir.join("task"),
        };
        plan(
            &container,
            image,
            &Templates {
                task: &task,
                node: &node,
            },
            &dirs,
        )
        .map_err(|error| error.to_string())
    }

    fn mount(kind: MountType, source: &str, target: &str) -> pb::Mount {
        pb::Mount {
            r#type: kind.into(),
            source: source.to_owned(),
            target: target.to_owned(),
            ..Default::default()
        }
    }

    #[test]
    fn volumes_are_directories_and_are_filled_once() {
        let dir = tempfile::tempdir().unwrap();
        let wanted = vec![
            mount(MountType::Volume, "data-{{.Task.ID}}", "/data"),
            mount(MountType::Volume, "", "/anon/below"),
        ];
        let first = planned(wanted.clone(), &["/data", "/image"], dir.path()).unwrap();
        assert_eq!(first.oci.len(), 3);
        assert_eq!(first.new.len(), 3);
        assert!(
            !dir.path().join("volumes").exists(),
            "a plan makes nothing: others may be making the same volume"
        );
        // A try that did not finish left this.
        let left = dir.path().join("volumes/data-t1/incoming/half");
        std::fs::create_dir_all(left).unwrap();
        for volume in &first.new {
            let filled = volume.make(|from, at| {
                std::fs::write(at.join("from"), from).unwrap();
                Ok(())
            });
            filled.unwrap();
        }
        let data = dir.path().join("volumes/data-t1/data");
        assert_eq!(std::fs::read_dir(&data).unwrap().count(), 1);
        assert_eq!(std::fs::read_to_string(data.join("from")).unwrap(), "/data");
        // Who planned it at the same time comes too late, and touches nothing.
        let late = first.new[0].make(|_, _| panic!("a volume is filled once"));
        late.unwrap();
        assert_eq!(first.oci.last().unwrap()["destination"], "/anon/below");
        let again = planned(wanted, &["/data"], dir.path()).unwrap();
        assert!(again.new.is_empty());
    }

    #[test]
    fn a_volume_without_copy_begins_empty() {
        let dir = tempfile::tempdir().unwrap();
        let mut empty = mount(MountType::Volume, "empty", "/data");
        empty.volume_options.get_or_insert_default().nocopy = true;
        let planned = planned(vec![empty], &[], dir.path()).unwrap();
        assert_eq!(planned.new[0].from, None);
        let made = planned.new[0].make(|_, _| panic!("nothing is copied"));
        made.unwrap();
        assert!(dir.path().join("volumes/empty/data").is_dir());
    }

    #[test]
    fn refuses_what_leads_astray() {
        let dir = tempfile::tempdir().unwrap();
        let mut below = mount(MountType::Volume, "data", "/x");
        below.volume_options.get_or_insert_default().subpath = "a".to_owned();
        for (bad, reason) in [
            (
                mount(MountType::Bind, "relative", "/x"),
                "absolute path of the node",
            ),
            (
                mount(MountType::Bind, "/no/such/path", "/x"),
                "does not exist",
            ),
            (mount(MountType::Bind, "/", "x"), "absolute path"),
            (mount(MountType::Bind, "/", "/a/../etc"), "without .."),
            (mount(MountType::Volume, "../up", "/x"), "volume name"),
            (mount(MountType::Npipe, "a", "/x"), "npipe mounts"),
            (below, "subpaths of volumes are not supported"),
        ] {
            let error = planned(vec![bad], &[], dir.path()).unwrap_err();
            assert!(error.contains(reason), "{error}");
        }
    }

    #[test]
    fn tmpfs_options_in_both_forms() {
        let dir = tempfile::tempdir().unwrap();
        let mut wanted = mount(MountType::Tmpfs, "", "/tmp");
        wanted.tmpfs_options = Some(pb::mount::TmpfsOptions {
            size_bytes: 1024,
            mode: 0o1777,
            options: "exec,uid=7".to_owned(),
        });
        let expected = json!(["nosuid", "nodev", "size=1024", "mode=1777", "exec", "uid=7"]);
        let first = planned(vec![wanted.clone()], &[], dir.path()).unwrap();
        assert_eq!(first.oci[0]["options"], expected);
        wanted.tmpfs_options.as_mut().unwrap().options = r#"[["exec"],["uid","7"]]"#.to_owned();
        let second = planned(vec![wanted], &[], dir.path()).unwrap();
        assert_eq!(second.oci[0]["options"], expected);
    }
}
