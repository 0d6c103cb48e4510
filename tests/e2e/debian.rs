//! The Debian package through its life: installed, upgraded, removed and purged on a machine that runs a container of its.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use harness::lab::lab::available_with;
use harness::lab::{Lab, Machine, Output, binaries, eventually, node};

const LIMIT: Duration = Duration::from_secs(60);

/// What building and installing the package needs beside a lab.
pub(super) const PROGRAMS: [(&str, &str); 3] = [
    ("dpkg-deb", "dpkg"),
    ("strip", "binutils"),
    ("deb-systemd-helper", "init-system-helpers"),
];

/// Builds the package from the binaries under test.
pub(super) fn build(dir: &Path, version: &str, compression: &str) -> PathBuf {
    let from = dir.join("binaries");
    std::fs::create_dir_all(&from).unwrap();
    for name in ["swarmd", "swarmctl"] {
        std::fs::copy(binaries::find(name).unwrap(), from.join(name)).unwrap();
    }
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/debian/build");
    let built = Command::new(script)
        .args([&from, dir])
        .arg(version)
        .envs([
            ("DEB_COMPRESSION", compression),
            ("SOURCE_DATE_EPOCH", "1700000000"),
        ])
        .output()
        .unwrap();
    assert!(built.status.success(), "{built:?}");
    dir.join(format!("swarmd_{version}_{}.deb", architecture()))
}

fn architecture() -> String {
    let told = Command::new("dpkg").arg("--print-architecture").output();
    String::from_utf8(told.unwrap().stdout)
        .unwrap()
        .trim()
        .to_owned()
}

/// A machine with the package's files at hand.
struct Host {
    machine: Machine,
    settings: String,
    image: String,
}

impl Host {
    fn run(&self, line: &[&str]) -> Output {
        self.machine.run(line).unwrap()
    }

    fn dpkg(&self, line: &[&str]) -> String {
        let ran = self.run(&[&["dpkg"], line].concat());
        let said = format!("{}{}", ran.stdout, ran.stderr);
        ran.ok();
        said
    }

    fn ctl(&self, line: &[&str]) -> Output {
        node::ctl(&self.machine.path("/run/swarmd.sock"), line).unwrap()
    }

    /// Changes the settings file as an operator would, and has swarmd take them.
    fn set_up(&self) {
        let file = "/etc/swarmd/swarmd.yaml";
        let shipped = std::fs::read_to_string(self.machine.path(file)).unwrap();
        self.machine
            .write(file, format!("{shipped}{}", self.settings))
            .unwrap();
        self.run(&["systemctl", "restart", "swarmd"]).ok();
    }

    fn wait_ready(&self) {
        eventually("the node READY", LIMIT, || {
            let shown = self.ctl(&["node", "ls", "--format", "{{.Name}} {{.Status}}"]);
            let ready = shown.stdout.trim_end().eq_ignore_ascii_case("n1 ready");
            ready.then_some(()).ok_or(format!("{shown:?}"))
        });
    }

    fn wait_task(&self) -> String {
        eventually("one running task", LIMIT, || {
            let shown = self.ctl(&["task", "ls", "--format", "{{.ID}} {{.State}}"]);
            let id = shown.stdout.trim_end().to_lowercase();
            let id = id.strip_suffix(" running").map(str::to_owned);
            id.ok_or(format!("{shown:?}"))
        })
    }

    fn swarmd(&self) -> Option<u32> {
        self.machine.main_pid("swarmd.service").unwrap()
    }

    /// Containers with their processes, as the machine counts.
    fn containers(&self) -> BTreeMap<String, String> {
        let namespace = &self.machine.host.namespace;
        self.machine.containers(namespace).unwrap()
    }

    fn exists(&self, path: &str) -> bool {
        self.machine.path(path).symlink_metadata().is_ok()
    }
}

fn start(lab: &mut Lab) -> Host {
    let machine = lab.machine("n1").unwrap();
    let settings = format!(
        "containerd-namespace: {}\ninsecure-registry: [\"{}\"]\n",
        machine.host.namespace,
        lab.registry.http()
    );
    let image = lab.push_web().unwrap();
    let host = Host {
        machine,
        settings,
        image,
    };
    host.run(&["systemctl", "start", "containerd"]).ok();
    host
}

#[test]
fn containerd_the_package_installs_upgrades_and_goes_without_stopping_a_container() {
    if !available_with("the Debian package", &PROGRAMS) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut lab = Lab::new().unwrap();
    let host = start(&mut lab);
    for version in ["0.1.0-1", "0.1.0-2"] {
        let package = build(dir.path(), version, "none");
        host.machine
            .copy(&package, &format!("/root/{version}.deb"))
            .unwrap();
    }

    let again = tempfile::tempdir().unwrap();
    let again = build(again.path(), "0.1.0-2", "none");
    let two = [&again, &dir.path().join(again.file_name().unwrap())]
        .map(|file| std::fs::read(file).unwrap());
    assert!(two[0] == two[1], "two builds of the package differ");

    host.dpkg(&["--install", "/root/0.1.0-1.deb"]);
    host.wait_ready();
    assert!(host.exists("/etc/systemd/system/multi-user.target.wants/swarmd.service"));
    host.set_up();
    host.wait_ready();
    host.ctl(&["service", "create", "--name", "web", "--image", &host.image])
        .ok();
    let task = host.wait_task();
    let (containers, first) = (host.containers(), host.swarmd());
    assert_eq!(containers.len(), 1);
    assert!(first.is_some());

    host.dpkg(&["--install", "/root/0.1.0-2.deb"]);
    host.wait_ready();
    let second = host.swarmd();
    assert!(
        second.is_some() && second != first,
        "{second:?} after {first:?}"
    );
    assert_eq!(
        (host.wait_task(), host.containers()),
        (task.clone(), containers.clone())
    );

    let files = host.dpkg(&["--listfiles", "swarmd"]);
    let said = host.dpkg(&["--remove", "swarmd"]);
    assert!(said.contains("containers run on without it"), "{said}");
    assert_eq!(
        (host.swarmd(), host.containers()),
        (None, containers.clone())
    );
    let left: Vec<&str> = files
        .lines()
        .filter(|path| !host.machine.path(path).is_dir() && host.exists(path))
        .collect();
    assert_eq!(left, ["/etc/swarmd/swarmd.yaml"]);

    // Installed again it goes on where it was, with its settings.
    host.dpkg(&["--install", "/root/0.1.0-2.deb"]);
    host.wait_ready();
    assert_eq!(
        (host.wait_task(), host.containers()),
        (task, containers.clone())
    );
    purge(&host, &containers);
}

/// Runs the script that says the package's version, in a tree of its own.
fn version(tree: &Path) -> String {
    let output = Command::new(tree.join("examples/debian/version")).output();
    let output = output.unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

#[test]
fn the_version_grows_with_each_commit() {
    if [&["git", "--version"], &["dpkg", "--version"]]
        .iter()
        .any(|line| Command::new(line[0]).arg(line[1]).output().is_err())
    {
        eprintln!("left out, for want of git and dpkg: the package's version");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let tree = dir.path();
    let scripts = tree.join("examples/debian");
    std::fs::create_dir_all(&scripts).unwrap();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/debian/version");
    std::fs::copy(script, scripts.join("version")).unwrap();
    let manifest = "[workspace.package]\nversion = \"0.1.0\"\n";
    std::fs::write(tree.join("Cargo.toml"), manifest).unwrap();
    assert_eq!(version(tree), "0.1.0-1");

    let git = |line: &[&str]| {
        let who = ["-c", "user.name=test", "-c", "user.email=test@localhost"];
        let mut command = Command::new("git");
        let ran = command.arg("-C").arg(tree).args(who).args(line).output();
        assert!(ran.as_ref().unwrap().status.success(), "{ran:?}");
    };
    git(&["init", "--quiet"]);
    let mut versions = vec!["0.1.0-1".to_owned()];
    // Ten is more than nine.
    versions.extend((0..11).map(|_| {
        git(&["commit", "--quiet", "--allow-empty", "--message", "more"]);
        version(tree)
    }));
    versions.push("0.1.1-1".to_owned());
    for pair in versions.windows(2) {
        let mut dpkg = Command::new("dpkg");
        let compare = ["--compare-versions", &pair[0], "lt", &pair[1]];
        assert!(dpkg.args(compare).status().unwrap().success(), "{pair:?}");
    }
}

/// Purged with a container that runs, the node's state stays; purged empty, nothing does.
fn purge(host: &Host, containers: &BTreeMap<String, String>) {
    let said = host.dpkg(&["--purge", "swarmd"]);
    assert!(
        said.contains("their state stays in /var/lib/swarmd"),
        "{said}"
    );
    assert_eq!(&host.containers(), containers);
    assert!(!host.exists("/etc/swarmd"));
    host.dpkg(&["--install", "/root/0.1.0-2.deb"]);
    host.set_up();
    host.wait_ready();
    host.ctl(&["node", "leave", "--force"]).ok();
    eventually("end of swarmd, which has left", LIMIT, || {
        host.swarmd()
            .map_or(Ok(()), |pid| Err(format!("it runs as {pid}")))
    });
    assert_eq!(host.containers(), BTreeMap::new());
    host.dpkg(&["--purge", "swarmd"]);
    for path in [
        "/etc/swarmd",
        "/var/lib/swarmd",
        "/usr/bin/swarmd",
        "/usr/share/doc/swarmd",
        "/etc/systemd/system/multi-user.target.wants/swarmd.service",
        "/etc/systemd/system/swarmd.service",
        "/run/swarmd.sock",
    ] {
        assert!(!host.exists(path), "{path} is left");
    }
}
