//! The Ansible playbooks as an operator uses them: hosts reached by SSH, a cluster that grows, is upgraded, and shrinks.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use harness::lab::lab::available_with;
use harness::lab::{Lab, Machine, eventually, node};

use super::debian;

const LIMIT: Duration = Duration::from_secs(60);
/// Seconds that one playbook may take.
const PLAY_SECONDS: &str = "240";

const PROGRAMS: [(&str, &str); 4] = [
    ("ansible-playbook", "ansible-core"),
    ("sshd", "openssh-server"),
    ("ssh", "openssh-client"),
    ("ssh-keygen", "openssh-client"),
];

const MANAGERS: [&str; 3] = ["m1", "m2", "m3"];
const WORKERS: [&str; 2] = ["w1", "w2"];
/// This one gets no package, but the binaries.
const BY_BINARIES: &str = "w2";

const SSHD: &str = "HostKey /root/host_key\nAuthorizedKeysFile /root/authorized_keys\nPermitRootLogin prohibit-password\n\
                    PasswordAuthentication no\nUsePAM no\nSubsystem sftp internal-sftp\n";

/// Computers with SSH, and who runs Ansible against them.
struct Site {
    // The machines end before the lab is swept.
    machines: BTreeMap<String, Machine>,
    lab: Lab,
    /// Inventory, keys, what Ansible itself writes.
    dir: tempfile::TempDir,
}

/// What a playbook said of one host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Recap {
    ok: u32,
    changed: u32,
    failed: u32,
}

impl Site {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        for key in ["host_key", "user_key"] {
            let made = Command::new("ssh-keygen")
                .args(["-q", "-t", "ed25519", "-N", "", "-f"])
                .arg(dir.path().join(key))
                .status();
            assert!(made.unwrap().success());
        }
        let lab = Lab::new().unwrap();
        let mut site = Self {
            machines: BTreeMap::new(),
            lab,
            dir,
        };
        for name in MANAGERS.into_iter().chain(WORKERS) {
            let machine = site.lab.machine(name).unwrap();
            site.open(&machine);
            site.machines.insert(name.to_owned(), machine);
        }
        site
    }

    fn machine(&self, name: &str) -> &Machine {
        self.machines.get(name).unwrap()
    }

    /// A computer as it is handed over: with SSH, and containerd.
    fn open(&self, machine: &Machine) {
        for (file, inside) in [
            ("host_key", "/root/host_key"),
            ("user_key.pub", "/root/authorized_keys"),
        ] {
            machine.copy(&self.dir.path().join(file), inside).unwrap();
        }
        machine.write("/root/sshd_config", SSHD).unwrap();
        machine
            .spawn(&["/usr/sbin/sshd", "-e", "-f", "/root/sshd_config"])
            .unwrap()
            .wait()
            .unwrap();
        machine
            .run(&["systemctl", "start", "containerd"])
            .unwrap()
            .ok();
    }

    /// Makes binaries of a size to be copied: what the package was built from, without what only debuggers read.
    fn strip(&self) {
        let (from, to) = (
            self.dir.path().join("binaries"),
            self.dir.path().join("stripped"),
        );
        std::fs::create_dir(&to).unwrap();
        for name in ["swarmd", "swarmctl"] {
            let mut strip = Command::new("strip");
            let done = strip
                .arg("-o")
                .args([to.join(name), from.join(name)])
                .status();
            assert!(done.unwrap().success());
        }
    }

    /// Writes the inventory with these managers and workers.
    fn inventory(&self, managers: &[&str], workers: &[&str], package: &Path) {
        let path = |name: &str| self.dir.path().join(name);
        let (mut text, mut known) = (String::new(), String::new());
        let key = std::fs::read_to_string(path("host_key.pub")).unwrap();
        for (group, names) in [("managers", managers), ("workers", workers)] {
            writeln!(text, "[{group}]").unwrap();
            for name in names {
                let host = &self.machine(name).host;
                let (address, namespace) = (host.address, &host.namespace);
                let registry = self.lab.registry.http();
                let instead = match name == &BY_BINARIES {
                    true => format!(
                        " swarmd_package='' swarmd_binaries={}",
                        path("stripped").display()
                    ),
                    false => String::new(),
                };
                writeln!(
                    text,
                    "{name} ansible_host={address} swarmd_settings='{{\"containerd-namespace\": \"{namespace}\", \
                     \"insecure-registry\": [\"{registry}\"]}}'{instead}"
                )
                .unwrap();
                writeln!(known, "{address} {key}").unwrap();
            }
        }
        let (user_key, hosts) = (path("user_key"), path("known_hosts"));
        writeln!(
            text,
            "[all:vars]\nansible_user=root\nansible_ssh_private_key_file={}\nansible_ssh_common_args='-o \
             UserKnownHostsFile={} -o StrictHostKeyChecking=yes'\nswarmd_package={}",
            user_key.display(),
            hosts.display(),
            package.display()
        )
        .unwrap();
        std::fs::write(path("inventory.ini"), text).unwrap();
        std::fs::write(hosts, known).unwrap();
    }

    /// Runs a playbook; returns what it printed, and its count of each host.
    #[track_caller]
    fn play(&self, line: &[&str]) -> (String, BTreeMap<String, Recap>) {
        let dir = self.dir.path();
        let ran = Command::new("timeout")
            .args([PLAY_SECONDS, "ansible-playbook", "--inventory"])
            .arg(dir.join("inventory.ini"))
            .args(line)
            .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/examples/ansible"))
            .env("ANSIBLE_CONFIG", "ansible.cfg")
            .env("ANSIBLE_HOME", dir.join("home"))
            .env("ANSIBLE_LOCAL_TEMP", dir.join("home/tmp"))
            .env("ANSIBLE_SSH_CONTROL_PATH_DIR", dir.join("cp"))
            .env("ANSIBLE_NOCOLOR", "1")
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&ran.stdout).into_owned();
        let errors = String::from_utf8_lossy(&ran.stderr);
        assert!(
            ran.status.success(),
            "{line:?}: {}\n{said}\n{errors}",
            ran.status
        );
        let recap = said
            .lines()
            .skip_while(|line| !line.starts_with("PLAY RECAP"))
            .skip(1);
        let recap = recap.filter_map(parse).collect();
        (said, recap)
    }

    /// Asks a manager.
    fn ctl(&self, name: &str, line: &[&str]) -> node::Output {
        node::ctl(&self.machine(name).path("/run/swarmd.sock"), line).unwrap()
    }

    /// The nodes, as `name role`, in the order of names.
    fn nodes(&self) -> Vec<String> {
        let format = "{{.Name}} {{.Role}} {{.Status}}";
        let shown = self.ctl("m1", &["node", "ls", "--format", format]).ok();
        let mut nodes: Vec<String> = shown.lines().map(str::to_lowercase).collect();
        nodes.sort();
        nodes
    }

    /// Processes of the containers on each host that has any.
    fn containers(&self) -> BTreeMap<String, Vec<String>> {
        let found = self.machines.iter().map(|(name, machine)| {
            let containers = machine.containers(&machine.host.namespace).unwrap();
            (name.clone(), containers.into_values().collect::<Vec<_>>())
        });
        found.filter(|(_, pids)| !pids.is_empty()).collect()
    }

    fn swarmd(&self) -> BTreeMap<String, Option<u32>> {
        let pids = self.machines.iter();
        pids.map(|(name, machine)| (name.clone(), machine.main_pid("swarmd.service").unwrap()))
            .collect()
    }
}

/// `m1 : ok=9 changed=0 unreachable=0 failed=0 …`
fn parse(line: &str) -> Option<(String, Recap)> {
    let (name, counts) = line.split_once(':')?;
    let count = |key: &str| {
        let word = counts
            .split_whitespace()
            .find_map(|word| word.strip_prefix(key))?;
        word.parse().ok()
    };
    let recap = Recap {
        ok: count("ok=")?,
        changed: count("changed=")?,
        failed: count("failed=")?,
    };
    Some((name.trim().to_owned(), recap))
}

fn ready(managers: &[&str], workers: &[&str]) -> Vec<String> {
    let managers = managers.iter().map(|name| format!("{name} manager ready"));
    managers
        .chain(workers.iter().map(|name| format!("{name} worker ready")))
        .collect()
}

#[track_caller]
fn assert_unchanged(recap: &BTreeMap<String, Recap>, hosts: usize) {
    assert_eq!(recap.len(), hosts, "{recap:?}");
    assert!(
        recap
            .values()
            .all(|one| one.ok > 0 && one.changed == 0 && one.failed == 0),
        "{recap:?}"
    );
}

#[test]
fn containerd_playbooks_make_a_cluster_upgrade_it_and_take_a_host_out() {
    if !available_with(
        "the Ansible playbooks",
        &[&PROGRAMS[..], &debian::PROGRAMS].concat(),
    ) {
        return;
    }
    let site = Site::start();
    let packages: [PathBuf; 2] =
        ["0.1.0-1", "0.1.0-2"].map(|version| debian::build(site.dir.path(), version, "zstd"));

    site.strip();

    // One manager; looked at first, which changes nothing.
    site.inventory(&["m1"], &[], &packages[0]);
    site.play(&["--check", "managers.yml"]);
    assert!(!site.machines["m1"].path("/etc/swarmd").exists());
    site.play(&["managers.yml"]);
    assert_eq!(site.nodes(), ready(&["m1"], &[]));
    // All the others.
    site.inventory(&MANAGERS, &WORKERS, &packages[0]);
    let (said, _) = site.play(&["--verbose", "--diff", "site.yml"]);
    assert!(!said.contains("SWMTKN"), "a join token is shown");
    eventually("five nodes", LIMIT, || {
        let nodes = site.nodes();
        (nodes == ready(&MANAGERS, &WORKERS))
            .then_some(())
            .ok_or(format!("{nodes:?}"))
    });
    assert_unchanged(&site.play(&["site.yml"]).1, 5);
    assert_unchanged(
        &site.play(&["--check", "--limit", "m2,w1", "site.yml"]).1,
        2,
    );
    takes_settings_that_a_run_left_behind(&site);
    upgrade_and_remove(&site, &packages[1]);
}

/// A run that broke off has written settings, and has not restarted swarmd.
fn takes_settings_that_a_run_left_behind(site: &Site) {
    let pid = || site.swarmd().remove("w1").flatten();
    let before = pid();
    let touch = ["touch", "/etc/swarmd/swarmd.yaml"];
    site.machine("w1").run(&touch).unwrap().ok();
    site.play(&["--limit", "w1", "workers.yml"]);
    assert_ne!(pid(), before);
    assert_unchanged(&site.play(&["--limit", "w1", "workers.yml"]).1, 1);
    eventually("five nodes again", LIMIT, || {
        let nodes = site.nodes();
        (nodes == ready(&MANAGERS, &WORKERS))
            .then_some(())
            .ok_or(format!("{nodes:?}"))
    });
}

/// What may be before a host is taken out: a worker was promoted, or an earlier run broke off when the node had left.
fn before_removal(site: &Site, name: &str) {
    if name == "w2" {
        site.ctl("m1", &["node", "promote", name]).ok();
        return;
    }
    for line in [["node", "drain", name], ["node", "demote", name]] {
        site.ctl("m1", &line).ok();
    }
    eventually("the end of a node that leaves", LIMIT, || {
        let left = site.ctl(name, &["node", "leave"]);
        let running = site.swarmd().remove(name).flatten();
        running.map_or(Ok(()), |pid| Err(format!("{left:?}: {pid}")))
    });
}

fn upgrade_and_remove(site: &Site, package: &Path) {
    let image = site.lab.push_web().unwrap();
    let create = [
        "service",
        "create",
        "--name",
        "web",
        "--image",
        &image,
        "--replicas",
        "4",
    ];
    let place = ["--constraint", "node.role==worker"];
    site.ctl("m1", &[&create[..], &place].concat()).ok();
    let (containers, before) = (site.containers(), site.swarmd());
    assert_eq!(
        containers.values().map(Vec::len).sum::<usize>(),
        4,
        "{containers:?}"
    );

    let given = format!("swarmd_package={}", package.display());
    let (_, recap) = site.play(&[
        "upgrade.yml",
        "--limit",
        "managers:w1",
        "--extra-vars",
        &given,
    ]);
    assert!(recap.values().all(|one| one.changed > 0), "{recap:?}");
    assert_eq!(site.containers(), containers);
    let mut after = site.swarmd();
    assert_eq!(after.remove(BY_BINARIES), before.get(BY_BINARIES).copied());
    assert!(
        after
            .iter()
            .all(|(name, pid)| pid.is_some() && before.get(name) != Some(pid)),
        "{after:?}"
    );
    assert_eq!(site.nodes(), ready(&MANAGERS, &WORKERS));

    for (gone, workers, managers) in [
        ("w2", &["w1"][..], &MANAGERS[..]),
        ("m3", &["w1"], &["m1", "m2"]),
    ] {
        before_removal(site, gone);
        let node = format!("node={gone}");
        site.play(&["remove.yml", "--extra-vars", &node]);
        assert_eq!(site.nodes(), ready(managers, workers));
        let machine = site.machine(gone);
        for path in [
            "/usr/bin/swarmd",
            "/usr/local/bin/swarmd",
            "/etc/swarmd",
            "/var/cache/swarmd.deb",
        ] {
            assert!(!machine.path(path).exists(), "{path} is left on {gone}");
        }
        assert_eq!(site.swarmd().remove(gone), Some(None));
        if gone == "w2" {
            assert_unchanged(&site.play(&["remove.yml", "--extra-vars", &node]).1, 1);
        }
    }
    let running = site.containers();
    assert_eq!(running.get("w1").map(Vec::len), Some(4), "{running:?}");
}
