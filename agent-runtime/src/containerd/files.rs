//! The files that swarmd keeps for a task: its output, and what it sees as `/etc/hosts`,
//! `/etc/resolv.conf` and `/etc/hostname`.
//!
//! ```text
//! STATE/tasks/<task>/<task>-json.log         output, written by the container's log writer
//! STATE/tasks/<task>/<task>-json.log.1 …     what was before, of a container that writes much
//! STATE/tasks/<task>/log.json                what the log writer is told
//! STATE/tasks/<task>/health.json             the health check, for those that have one
//! STATE/tasks/<task>/hosts resolv.conf hostname
//! STATE/tasks/<task>/volumes/<n>/data        anonymous volumes
//! STATE/volumes/<name>/data                  named volumes: stay when tasks go
//! ```
//!
//! Output and volumes may hold secrets: `tasks` and `volumes` are closed to everyone but root,
//! whoever made STATE and however open it is. What a container gets mounted is readable inside,
//! whatever the umask of swarmd.

use std::fmt::Write as _;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use swarm_proto::pb;

use super::support::Network;
use crate::error::Error;
use crate::health::Check;
use crate::output::Target;

/// Mode of directories that hold what only root is to see.
const CLOSED: u32 = 0o700;
/// Mode of a container's input: its user opens it both ways.
const PIPE: u32 = 0o666;
/// Mode of generated files: a container's user reads them.
const READABLE: u32 = 0o644;

/// Where one node keeps its tasks' files.
#[derive(Debug, Clone)]
pub(super) struct Files {
    state: PathBuf,
}

/// The files of one task.
#[derive(Debug, Clone)]
pub(super) struct TaskFiles {
    pub dir: PathBuf,
    /// The newest output, for drivers that keep it in files.
    pub log: PathBuf,
    pub log_config: PathBuf,
    /// A pipe that nobody writes to: an open standard input.
    pub stdin: PathBuf,
    pub health: PathBuf,
    /// What the health check under way writes.
    pub health_output: PathBuf,
    pub hosts: PathBuf,
    pub resolv: PathBuf,
    pub hostname: PathBuf,
    pub volumes: PathBuf,
    /// An empty directory to mount on.
    pub mountpoint: PathBuf,
}

impl Files {
    pub(super) fn new(state: PathBuf) -> Self {
        Self { state }
    }

    pub(super) fn named_volumes(&self) -> PathBuf {
        self.state.join("volumes")
    }

    fn all_tasks(&self) -> PathBuf {
        self.state.join("tasks")
    }

    /// Closes what is there already, which an earlier version left open to all users of the host.
    pub(super) fn close_to_others(&self) -> Result<(), Error> {
        for dir in [self.all_tasks(), self.named_volumes()] {
            if dir.is_dir() {
                make_closed(&dir).map_err(|error| {
                    failure(&format!("task files in {}", dir.display()), &error)
                })?;
            }
        }
        Ok(())
    }

    pub(super) fn of(&self, task_id: &str) -> TaskFiles {
        let dir = self.all_tasks().join(task_id);
        TaskFiles {
            log: dir.join(format!("{task_id}-json.log")),
            log_config: dir.join("log.json"),
            stdin: dir.join("stdin"),
            health: dir.join("health.json"),
            health_output: dir.join("health.out"),
            hosts: dir.join("hosts"),
            resolv: dir.join("resolv.conf"),
            hostname: dir.join("hostname"),
            volumes: dir.join("volumes"),
            mountpoint: dir.join("rootfs"),
            dir,
        }
    }

    /// Ids of the tasks that have files.
    pub(super) fn tasks(&self) -> io::Result<Vec<String>> {
        let entries = match std::fs::read_dir(self.all_tasks()) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let name = |entry: io::Result<std::fs::DirEntry>| {
            entry.map(|entry| entry.file_name().to_string_lossy().into_owned())
        };
        entries.map(name).collect()
    }

    /// Removes the directory of all tasks, if nothing is left in it.
    pub(super) fn remove_empty(&self) {
        for dir in [self.all_tasks(), self.named_volumes()] {
            if dir.is_dir()
                && let Err(error) = std::fs::remove_dir(&dir)
            {
                tracing::debug!(path = %dir.display(), %error, "directory stays");
            }
        }
    }
}

impl TaskFiles {
    /// Makes the directory.
    pub(super) fn create(&self) -> Result<(), Error> {
        let create = || -> io::Result<()> {
            if let Some(all_tasks) = self.dir.parent() {
                make_closed(all_tasks)?;
            }
            std::fs::create_dir_all(&self.mountpoint)
        };
        create().map_err(|error| self.failed(&error))
    }

    /// Writes hosts, resolv.conf and hostname.
    pub(super) fn write(&self, names: &Names<'_>) -> Result<(), Error> {
        let hosts = hosts(names)?;
        let write = || -> io::Result<()> {
            write_readable(&self.hosts, &hosts)?;
            write_readable(&self.resolv, &resolv(names))?;
            write_readable(&self.hostname, &format!("{}\n", names.hostname))
        };
        write().map_err(|error| self.failed(&error))
    }

    /// Writes down what the log writer is told.
    pub(super) fn write_log_config(&self, target: &Target) -> Result<(), Error> {
        self.write_json(&self.log_config, target)
    }

    /// Writes down how the container is checked, for whoever looks after it.
    pub(super) fn write_health(&self, check: &Check) -> Result<(), Error> {
        self.write_json(&self.health, check)
    }

    /// How the container is checked, if it is.
    pub(super) fn read_health(&self) -> Result<Option<Check>, Error> {
        let read = match std::fs::read(&self.health) {
            Ok(text) => serde_json::from_slice(&text).map_err(io::Error::from),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => Err(error),
        };
        read.map(Some)
            .map_err(|error| failure(&self.health.display().to_string(), &error))
    }

    fn write_json(&self, path: &Path, value: &impl serde::Serialize) -> Result<(), Error> {
        let text = serde_json::to_vec(value).map_err(io::Error::from);
        text.and_then(|text| std::fs::write(path, text))
            .map_err(|error| self.failed(&error))
    }

    /// Makes the pipe of an open standard input. Whoever the container runs as opens it.
    pub(super) fn open_stdin(&self) -> Result<(), Error> {
        let make = || -> io::Result<()> {
            match nix::unistd::mkfifo(&self.stdin, nix::sys::stat::Mode::S_IRUSR) {
                Ok(()) | Err(nix::errno::Errno::EEXIST) => {}
                Err(error) => return Err(error.into()),
            }
            std::fs::set_permissions(&self.stdin, std::fs::Permissions::from_mode(PIPE))
        };
        make().map_err(|error| self.failed(&error))
    }

    pub(super) fn exist(&self) -> bool {
        self.dir.exists()
    }

    /// Removes everything of the task.
    pub(super) fn remove(&self) -> Result<(), Error> {
        match std::fs::remove_dir_all(&self.dir) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(self.failed(&error)),
        }
    }

    fn failed(&self, error: &io::Error) -> Error {
        failure(&format!("task files in {}", self.dir.display()), error)
    }
}

/// What failed on disk, judged: the operator can make room, and the task is not at fault.
pub(super) fn failure(what: &str, error: &io::Error) -> Error {
    let text = format!("{what}: {error}");
    if matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
    ) {
        return Error::Temporary(text);
    }
    Error::Fatal(text)
}

/// Makes a directory that only root may enter, or makes one that is there so.
pub(super) fn make_closed(dir: &Path) -> io::Result<()> {
    let made = std::fs::DirBuilder::new()
        .recursive(true)
        .mode(CLOSED)
        .create(dir);
    made?;
    if std::fs::metadata(dir)?.permissions().mode() & 0o777 == CLOSED {
        return Ok(());
    }
    std::fs::set_permissions(dir, std::fs::Permissions::from_mode(CLOSED))
}

fn write_readable(path: &Path, text: &str) -> io::Result<()> {
    std::fs::write(path, text)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(READABLE))
}

/// What a container is to know of names.
#[derive(Debug)]
pub(super) struct Names<'a> {
    pub hostname: &'a str,
    pub container: &'a pb::ContainerSpec,
    pub network: Network,
    pub address: Option<Ipv4Addr>,
    /// The node's own files.
    pub node_hosts: &'a str,
    pub node_resolv: &'a str,
}

fn hosts(names: &Names<'_>) -> Result<String, Error> {
    let mut text = match names.network {
        // Who shares the node's network shares its names.
        Network::Host => names.node_hosts.to_owned(),
        Network::Isolated | Network::Bridged => "127.0.0.1\tlocalhost\n\
            ::1\tlocalhost ip6-localhost ip6-loopback\n\
            fe00::\tip6-localnet\nff00::\tip6-mcastprefix\n\
            ff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n"
            .to_owned(),
    };
    if !text.is_empty() && !text.ends_with('\n') {
        text.push('\n');
    }
    for entry in &names.container.hosts {
        let mut words = entry.split_whitespace();
        let address = words.next().and_then(|word| word.parse::<IpAddr>().ok());
        let rest: Vec<&str> = words.collect();
        let (Some(address), false) = (address, rest.is_empty()) else {
            return Err(Error::Fatal(format!(
                "host entry {entry:?}: give ADDRESS NAME"
            )));
        };
        // Writing to a string can't fail.
        let _ = writeln!(text, "{address}\t{}", rest.join(" "));
    }
    if let Some(address) = names.address {
        let _ = writeln!(text, "{address}\t{}", names.hostname);
    }
    Ok(text)
}

fn resolv(names: &Names<'_>) -> String {
    let config = names.container.dns_config.clone().unwrap_or_default();
    let of_node = |keyword: &str| -> Vec<String> {
        let lines = names.node_resolv.lines().filter_map(|line| {
            line.trim()
                .strip_prefix(keyword)
                .filter(|rest| rest.starts_with([' ', '\t']))
        });
        lines.map(|rest| rest.trim().to_owned()).collect()
    };
    // A resolver on the node's loopback is out of reach from another network namespace.
    let reachable = |server: &String| {
        names.network == Network::Host
            || !server
                .parse::<IpAddr>()
                .is_ok_and(|address| address.is_loopback())
    };
    let or =
        |given: Vec<String>, of_node: Vec<String>| if given.is_empty() { of_node } else { given };
    let servers = or(
        config.nameservers,
        of_node("nameserver")
            .into_iter()
            .filter(reachable)
            .collect(),
    );
    let search = or(config.search, of_node("search"));
    let options = or(config.options, of_node("options"));
    let mut text = String::new();
    for server in servers {
        let _ = writeln!(text, "nameserver {server}");
    }
    if !search.is_empty() {
        let _ = writeln!(text, "search {}", search.join(" "));
    }
    if !options.is_empty() {
        let _ = writeln!(text, "options {}", options.join(" "));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_as_the_task_sees_them() {
        let container = pb::ContainerSpec {
            hosts: vec!["10.0.0.9 db db.test".to_owned()],
            ..Default::default()
        };
        let mut names = Names {
            hostname: "box",
            container: &container,
            network: Network::Bridged,
            address: Some(Ipv4Addr::new(172, 30, 0, 2)),
            node_hosts: "1.2.3.4 node",
            node_resolv: "# c\nnameserver 127.0.0.53\nnameserver 9.9.9.9\nsearch a b\n",
        };
        let text = hosts(&names).unwrap();
        assert!(text.contains("127.0.0.1\tlocalhost\n"), "{text}");
        assert!(
            text.ends_with("10.0.0.9\tdb db.test\n172.30.0.2\tbox\n"),
            "{text}"
        );
        assert_eq!(resolv(&names), "nameserver 9.9.9.9\nsearch a b\n");
        names.network = Network::Host;
        assert!(hosts(&names).unwrap().starts_with("1.2.3.4 node\n"));
        assert!(resolv(&names).starts_with("nameserver 127.0.0.53\n"));
    }

    #[test]
    fn dns_settings_replace_the_nodes() {
        let container = pb::ContainerSpec {
            dns_config: Some(pb::container_spec::DnsConfig {
                nameservers: vec!["1.1.1.1".to_owned()],
                search: vec!["x".to_owned()],
                options: vec!["ndots:2".to_owned()],
            }),
            hosts: vec!["nonsense".to_owned()],
            ..Default::default()
        };
        let names = Names {
            hostname: "box",
            container: &container,
            network: Network::Isolated,
            address: None,
            node_hosts: "",
            node_resolv: "nameserver 9.9.9.9\n",
        };
        assert_eq!(
            resolv(&names),
            "nameserver 1.1.1.1\nsearch x\noptions ndots:2\n"
        );
        assert!(hosts(&names).is_err());
    }

    #[test]
    fn others_on_the_host_see_nothing_and_the_containers_user_its_files() {
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        let dir = tempfile::tempdir().unwrap();
        let open = std::fs::Permissions::from_mode(0o755);
        for name in ["tasks", "volumes"] {
            std::fs::create_dir(dir.path().join(name)).unwrap();
            std::fs::set_permissions(dir.path().join(name), open.clone()).unwrap();
        }
        let files = Files::new(dir.path().to_owned());
        files.close_to_others().unwrap();
        assert_eq!(mode(&files.named_volumes()), 0o700);
        assert_eq!(mode(&files.all_tasks()), 0o700);
        // Made by the first task.
        std::fs::remove_dir(files.all_tasks()).unwrap();
        let task = files.of("t1");
        task.create().unwrap();
        assert_eq!(mode(&files.all_tasks()), 0o700);
        let names = Names {
            hostname: "box",
            container: &pb::ContainerSpec::default(),
            network: Network::Isolated,
            address: None,
            node_hosts: "",
            node_resolv: "",
        };
        // As a file looks that was written under umask 077.
        std::fs::write(&task.hosts, "").unwrap();
        std::fs::set_permissions(&task.hosts, std::fs::Permissions::from_mode(0o600)).unwrap();
        task.write(&names).unwrap();
        for path in [&task.hosts, &task.resolv, &task.hostname] {
            assert_eq!(mode(path), 0o644, "{}", path.display());
        }
    }

    #[test]
    fn files_come_and_go() {
        let dir = tempfile::tempdir().unwrap();
        let files = Files::new(dir.path().to_owned());
        assert!(files.tasks().unwrap().is_empty());
        let task = files.of("t1");
        task.create().unwrap();
        assert_eq!(files.tasks().unwrap(), ["t1"]);
        task.remove().unwrap();
        task.remove().unwrap();
        assert!(files.tasks().unwrap().is_empty());
    }
}
