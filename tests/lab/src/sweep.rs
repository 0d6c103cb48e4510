//! Removes everything of a site, found from the machine's state alone; and tells what is there.
//!
//! Each step does what it can and goes on; called again, it finds less. Nothing that isn't the site's is touched.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::mount::{MntFlags, umount2};
use nix::sys::signal::Signal;

use crate::site::Site;
use crate::{Error, network, process, wait};

/// Where the cgroup hierarchies are mounted.
const CGROUPS: &str = "/sys/fs/cgroup";
/// What swarmd calls the cgroup above those of all its nodes.
const CGROUP_PARENT: &str = "swarm";
/// Where runc keeps its state for containerd, a directory a containerd namespace.
const RUNC: &str = "/run/containerd/runc";
/// Depth to which cgroups are searched.
const CGROUP_DEPTH: usize = 6;
/// The kernel frees a killed process's cgroup and mounts within so long.
const LIMIT: Duration = Duration::from_secs(10);
/// How long swarmd may take after SIGTERM before it is killed.
const GRACE: Duration = Duration::from_secs(10);

/// Removes everything of the site.
pub fn sweep(site: &Site) -> Result<(), Error> {
    let directories = [site.run(), site.state()];
    let mut errors: Vec<Error> = Vec::new();
    errors.extend(stop_swarmd(&directories).err());
    errors.extend(process::kill_belonging_to(&directories).err());
    // Read before the bundles that name them go.
    for socket in shim_sockets(site) {
        errors.extend(gone(fs::remove_file(&socket), "remove", &socket).err());
    }
    errors.extend(unmount(&directories).err());
    errors.extend(network::remove(site).err());
    errors.extend(remove_cgroups(site).err());
    for path in runc_directories(site).into_iter().chain(directories) {
        errors.extend(gone(fs::remove_dir_all(&path), "remove", &path).err());
    }
    if errors.is_empty() {
        Ok(())
    } else {
        Err(Error::Several(errors))
    }
}

/// Sweeps the sites of tests whose process is gone.
pub fn sweep_orphans() -> Result<(), Error> {
    for site in Site::orphans()? {
        sweep(&site)?;
    }
    Ok(())
}

/// One line for each thing of the site that is on this machine; empty when nothing is left.
pub fn left(site: &Site) -> Result<Vec<String>, Error> {
    let directories = [site.run(), site.state()];
    let mut left = Vec::new();
    for process in process::belonging_to(&directories) {
        left.push(format!(
            "process {} {}",
            process.pid,
            process.arguments.join(" ")
        ));
    }
    left.extend(
        network::namespaces(site)?
            .into_iter()
            .map(|name| format!("network namespace {name}")),
    );
    left.extend(
        mounts(&directories)?
            .into_iter()
            .map(|path| format!("mount {}", path.display())),
    );
    left.extend(
        cgroups(site)
            .into_iter()
            .map(|path| format!("cgroup {}", path.display())),
    );
    let paths = runc_directories(site)
        .into_iter()
        .chain(directories)
        .filter(|path| path.exists());
    left.extend(paths.map(|path| format!("directory {}", path.display())));
    let uplink = Path::new("/sys/class/net").join(site.uplink());
    if uplink.exists() {
        left.push(format!("network link {}", site.uplink()));
    }
    Ok(left)
}

/// Lets swarmd end in its own way first, so that it is seen to be able to.
fn stop_swarmd(directories: &[PathBuf]) -> Result<(), Error> {
    let mut found = process::belonging_to(directories);
    // The writers of containers' output are the same program, and end with their containers only.
    let writes =
        |process: &process::Process| process.arguments.iter().any(|word| word == "task-log");
    found.retain(|process| {
        process::program(&process.arguments) == Some("swarmd") && !writes(process)
    });
    for process in &found {
        process::signal(process.pid, Signal::SIGTERM)?;
    }
    for process in &found {
        // Killed below, with the rest, where it takes longer.
        let _too_slow = process::wait_gone(process.pid, GRACE);
    }
    Ok(())
}

/// Sockets of the shims, as containerd noted them beside each container.
fn shim_sockets(site: &Site) -> Vec<PathBuf> {
    let tasks = site
        .run()
        .join("containerd/state/io.containerd.runtime.v2.task");
    let mut sockets = Vec::new();
    for bundle in children(&tasks)
        .iter()
        .flat_map(|namespace| children(namespace))
    {
        let Ok(address) = fs::read_to_string(bundle.join("address")) else {
            continue;
        };
        sockets.extend(address.trim().strip_prefix("unix://").map(PathBuf::from));
    }
    sockets
}

fn children(directory: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(directory) else {
        return Vec::new();
    };
    entries.flatten().map(|entry| entry.path()).collect()
}

/// Mount points in the directories, innermost first.
pub(crate) fn mounts(directories: &[PathBuf]) -> Result<Vec<PathBuf>, Error> {
    let table = "/proc/self/mountinfo";
    let text = fs::read_to_string(table).map_err(Error::file("read", table))?;
    let mut points: Vec<PathBuf> = text
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(PathBuf::from)
        .filter(|point| {
            directories
                .iter()
                .any(|directory| point.starts_with(directory))
        })
        .collect();
    points.reverse();
    Ok(points)
}

fn unmount(directories: &[PathBuf]) -> Result<(), Error> {
    let mut errors = Vec::new();
    for point in mounts(directories)? {
        // Detached: what still holds it is being killed.
        if let Err(errno) = umount2(&point, MntFlags::MNT_DETACH) {
            errors.push(Error::file("unmount", point)(errno.into()));
        }
    }
    if errors.is_empty() {
        Ok(())
    } else {
        Err(Error::Several(errors))
    }
}

/// Where runc keeps its state for the site's hosts.
pub fn runc_directories(site: &Site) -> Vec<PathBuf> {
    children(Path::new(RUNC))
        .into_iter()
        .filter(|path| is_of(site, path))
        .collect()
}

/// True when the last part of the path is a name of the site's.
fn is_of(site: &Site, path: &Path) -> bool {
    let prefix = format!("{}-", site.prefix());
    path.file_name()
        .is_some_and(|name| name.to_string_lossy().starts_with(&prefix))
}

/// Cgroups called after the site's hosts, outermost only, in every hierarchy.
pub fn cgroups(site: &Site) -> Vec<PathBuf> {
    let mut found = Vec::new();
    search_cgroups(site, Path::new(CGROUPS), CGROUP_DEPTH, &mut found);
    found
}

fn search_cgroups(site: &Site, directory: &Path, depth: usize, found: &mut Vec<PathBuf>) {
    for path in children(directory) {
        // Some hierarchies have a second name, which is a link.
        if path.is_symlink() || !path.is_dir() {
            continue;
        }
        if is_of(site, &path) {
            found.push(path);
        } else if depth > 0 {
            search_cgroups(site, &path, depth - 1, found);
        }
    }
}

fn remove_cgroups(site: &Site) -> Result<(), Error> {
    for path in cgroups(site) {
        // Busy until the kernel has buried the last process.
        wait::until(
            &format!("removal of cgroup {}", path.display()),
            LIMIT,
            || remove_cgroup(&path).map_err(|error| error.to_string()),
        )?;
        if let Some(parent) = path
            .parent()
            .filter(|parent| parent.ends_with(CGROUP_PARENT))
        {
            // Stays where another cluster of this machine uses it.
            let _in_use = fs::remove_dir(parent);
        }
    }
    Ok(())
}

/// Ends what still runs in it, too: a container whose shim and files are gone is known by nothing else.
fn remove_cgroup(path: &Path) -> std::io::Result<()> {
    let processes = fs::read_to_string(path.join("cgroup.procs")).unwrap_or_default();
    for pid in processes.lines().filter_map(|line| line.parse().ok()) {
        // It may have ended meanwhile.
        let _gone = process::signal(pid, Signal::SIGKILL);
    }
    for child in children(path).into_iter().filter(|child| child.is_dir()) {
        remove_cgroup(&child)?;
    }
    match fs::remove_dir(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Takes "not there" for done.
fn gone(result: std::io::Result<()>, action: &'static str, path: &Path) -> Result<(), Error> {
    match result {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(Error::file(action, path)(error)),
        _ => Ok(()),
    }
}
