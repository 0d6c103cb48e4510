//! A containerd and a registry of the test's own, and the search for what is left behind.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use agent_runtime::containerd::{ContainerdConfig, ContainerdExecutor};
use agent_runtime::executor::{Executor, TaskOrder};

use crate::images::{self, Images};
use crate::suite::{self, Program, Subject};

const NEEDED: [&str; 5] = ["containerd", "runc", "docker-registry", "nft", "busybox"];
const WAIT_MAX: Duration = Duration::from_secs(60);

pub(crate) struct Lab {
    dir: tempfile::TempDir,
    containerd: std::sync::Mutex<Option<Child>>,
    registry: std::sync::Mutex<Option<Child>>,
    port: u16,
    images: Images,
    /// Digest of the manifest of `test:1`.
    pub(crate) test_digest: String,
}

/// One node: a containerd namespace and a state directory.
pub(crate) struct Node {
    pub(crate) config: ContainerdConfig,
    pub(crate) image: String,
}

#[tonic::async_trait]
impl Subject for Node {
    async fn executor(&self) -> Arc<dyn Executor> {
        ContainerdExecutor::connect(self.config.clone())
            .await
            .unwrap()
    }

    fn order(&self, id: &str, program: Program) -> TaskOrder {
        let script = match program {
            Program::Forever => {
                "trap 'exit 0' TERM; echo ready; while :; do sleep 1000 & wait; done".to_owned()
            }
            Program::Stubborn => {
                "trap '' TERM; echo ready; while :; do sleep 1000; done".to_owned()
            }
            Program::Exit(code) => format!("exit {code}"),
            Program::NoImage => {
                let missing = self.image.replace("test:1", "no-such:1");
                return suite::order(id, &missing, &[], &[]);
            }
        };
        self.sh(id, &script)
    }

    fn await_handlers(&self, id: &str) {
        until("the program is ready", || self.stdout(id).contains("ready"));
    }
}

impl Node {
    /// An order for a shell script.
    pub(crate) fn sh(&self, id: &str, script: &str) -> TaskOrder {
        suite::order(id, &self.image, &["sh", "-c", script], &[])
    }

    /// The links that connect its containers.
    pub(crate) fn links(&self) -> Vec<String> {
        let bridge = format!("/sys/class/net/swb{}/brif", tag_of(&self.config.namespace));
        let ports = fs::read_dir(bridge).unwrap().flatten();
        ports
            .map(|port| port.file_name().into_string().unwrap())
            .collect()
    }

    pub(crate) fn stdout(&self, id: &str) -> String {
        fs::read_to_string(
            self.config
                .state_dir
                .join("tasks")
                .join(id)
                .join("stdout.log"),
        )
        .unwrap()
    }
}

fn installed(program: &str) -> bool {
    ["/usr/bin", "/usr/sbin", "/bin", "/sbin"]
        .iter()
        .any(|dir| Path::new(dir).join(program).exists())
}

impl Lab {
    /// Starts both; `None`, with a printed reason, where that can't be.
    pub(crate) async fn start() -> Option<Self> {
        let missing: Vec<&str> = NEEDED
            .into_iter()
            .filter(|program| !installed(program))
            .collect();
        let root = nix::unistd::Uid::effective().is_root();
        if std::env::var("SWARM_LAB").as_deref() == Ok("off") {
            eprintln!("containerd tests left out: SWARM_LAB=off");
            return None;
        }
        if !root || !missing.is_empty() {
            let reason = format!("containerd tests left out: root: {root}, missing: {missing:?}");
            assert!(std::env::var("CI").as_deref() != Ok("true"), "{reason}");
            eprintln!("{reason}");
            return None;
        }
        let dir = tempfile::Builder::new()
            .prefix("swarm-exec-")
            .tempdir()
            .unwrap();
        let port = std::net::TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let images = Images::new(&dir.path().join("images"), &format!("127.0.0.1:{port}"));
        let mut lab = Self {
            dir,
            images,
            test_digest: String::new(),
            containerd: Default::default(),
            registry: Default::default(),
            port,
        };
        lab.start_containerd();
        lab.start_registry();
        lab.test_digest = lab.images.push().await;
        Some(lab)
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.path("c.sock")
    }

    fn log(&self, name: &str) -> fs::File {
        fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.path(name))
            .unwrap()
    }

    pub(crate) fn start_containerd(&self) {
        let at = |name: &str| self.path(name).display().to_string();
        let config = format!(
            "version = 2\noom_score = -500\nroot = \"{}\"\nstate = \"{}\"\n\
             disabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n\
             [grpc]\naddress = \"{}\"\n[ttrpc]\naddress = \"{}\"\n",
            at("root"),
            at("state"),
            at("c.sock"),
            at("c.ttrpc")
        );
        fs::write(self.path("containerd.toml"), config).unwrap();
        let child = Command::new("containerd")
            .arg("-c")
            .arg(self.path("containerd.toml"))
            .stdout(self.log("containerd.log"))
            .stderr(self.log("containerd.log"))
            .spawn()
            .unwrap();
        *self.containerd.lock().unwrap() = Some(child);
        until("containerd", || {
            std::os::unix::net::UnixStream::connect(self.socket()).is_ok()
        });
    }

    pub(crate) fn kill_containerd(&self) {
        kill(&self.containerd);
    }

    pub(crate) fn start_registry(&self) {
        let config = format!(
            "version: 0.1\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: 0.0.0.0:{}\n",
            self.path("registry").display(),
            self.port
        );
        fs::write(self.path("registry.yml"), config).unwrap();
        let child = Command::new("docker-registry")
            .arg("serve")
            .arg(self.path("registry.yml"))
            .stdout(self.log("registry.log"))
            .stderr(self.log("registry.log"))
            .spawn()
            .unwrap();
        *self.registry.lock().unwrap() = Some(child);
        until("registry", || {
            std::net::TcpStream::connect(("127.0.0.1", self.port)).is_ok()
        });
    }

    pub(crate) fn stop_registry(&self) {
        kill(&self.registry);
    }

    /// What the registry was asked, one line a request.
    pub(crate) fn registry_requests(&self, pattern: &str) -> usize {
        let log = fs::read_to_string(self.path("registry.log")).unwrap();
        log.lines()
            .filter(|line| line.contains("\"GET ") && line.contains(pattern))
            .count()
    }

    pub(crate) fn image(&self, name: &str) -> String {
        format!("127.0.0.1:{}/{name}", self.port)
    }

    pub(crate) fn subject(&self, name: &str) -> Node {
        let address = format!("unix://{}", self.socket().display());
        let state = self.path(&format!("node-{name}"));
        let config = ContainerdConfig::new(&address, &namespace(name), state);
        Node {
            config,
            image: self.image("test:1"),
        }
    }

    /// An image with a layer that no other image has.
    pub(crate) async fn push_counted(&self) {
        self.images.push_counted(&self.path("images")).await;
    }

    /// One image that nobody has, under several tags.
    pub(crate) async fn push_twins(&self, count: usize) -> Vec<String> {
        let names = self.images.push_twins(&self.path("images"), count).await;
        names.iter().map(|name| self.image(name)).collect()
    }

    /// The test image with so many small layers on top, each with a file.
    pub(crate) async fn push_layered(&self, count: usize) -> String {
        self.images.push_layered(&self.path("images"), count).await;
        self.image("layered:1")
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// The same images over HTTPS, with a CA of its own, on all addresses.
    pub(crate) fn start_https_registry(&self, address: std::net::IpAddr) -> HttpsRegistry {
        let mut ca = rcgen::CertificateParams::new(Vec::new()).unwrap();
        ca.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let ca_key = rcgen::KeyPair::generate().unwrap();
        let ca_pem = ca.self_signed(&ca_key).unwrap().pem();
        let issuer = rcgen::Issuer::new(ca, ca_key);
        let key = rcgen::KeyPair::generate().unwrap();
        let leaf = rcgen::CertificateParams::new(vec![address.to_string()]).unwrap();
        let leaf = leaf.signed_by(&key, &issuer).unwrap();
        fs::write(self.path("ca.pem"), ca_pem).unwrap();
        fs::write(self.path("tls.pem"), leaf.pem()).unwrap();
        fs::write(self.path("tls.key"), key.serialize_pem()).unwrap();
        let port = std::net::TcpListener::bind("0.0.0.0:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let config = format!(
            "version: 0.1\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: 0.0.0.0:{port}\n  \
             tls:\n    certificate: {}\n    key: {}\n",
            self.path("registry").display(),
            self.path("tls.pem").display(),
            self.path("tls.key").display(),
        );
        fs::write(self.path("https.yml"), config).unwrap();
        let child = Command::new("docker-registry")
            .arg("serve")
            .arg(self.path("https.yml"))
            .stdout(self.log("https.log"))
            .stderr(self.log("https.log"))
            .spawn()
            .unwrap();
        until("https registry", || {
            std::net::TcpStream::connect((address, port)).is_ok()
        });
        HttpsRegistry {
            port,
            ca: self.path("ca.pem"),
            child: std::sync::Mutex::new(Some(child)),
        }
    }

    /// Starts a container the way `ctr` does.
    pub(crate) fn ctr_run(&self, node: &Node, id: &str) -> Child {
        let socket = self.socket().display().to_string();
        let mut command = Command::new("ctr");
        command.args([
            "-a",
            &socket,
            "-n",
            &node.config.namespace,
            "run",
            "-d",
            &node.image,
            id,
        ]);
        command
            .args(["/bin/sleep", "1000"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .unwrap()
    }

    pub(crate) fn ctr(&self, node: &Node, args: &[&str]) -> String {
        let socket = self.socket().display().to_string();
        run(Command::new("ctr")
            .args(["-a", &socket, "-n", &node.config.namespace])
            .args(args))
    }

    /// Looks for everything that should be gone, then stops both.
    pub(crate) fn finish(self) {
        let dir = self.dir.path().display().to_string();
        let mut left = Vec::new();
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        left.extend(
            mounts
                .lines()
                .filter(|line| line.contains(&dir))
                .map(str::to_owned),
        );
        for (pid, command) in processes() {
            if command.contains("containerd-shim") && command.contains(&dir) {
                left.push(format!("process {pid}: {command}"));
            }
        }
        let list = Command::new("ctr")
            .args([
                "-a",
                &self.socket().display().to_string(),
                "namespaces",
                "ls",
                "-q",
            ])
            .output()
            .unwrap();
        left.extend(
            String::from_utf8_lossy(&list.stdout)
                .lines()
                .map(|name| format!("namespace {name}")),
        );
        let snapshots =
            fs::read_dir(self.path("root/io.containerd.snapshotter.v1.overlayfs/snapshots"));
        // containerd collects what nothing names any more a moment later.
        let snapshots = snapshots.map(|entries| entries.count()).unwrap_or(0);
        if snapshots > 0 {
            left.push(format!("{snapshots} snapshots"));
        }
        for hierarchy in fs::read_dir("/sys/fs/cgroup").unwrap().flatten() {
            let path = hierarchy.path().join("swarm");
            for entry in fs::read_dir(path).into_iter().flatten().flatten() {
                let name = entry.file_name().to_string_lossy().into_owned();
                if NODES.iter().any(|node| name == namespace(node)) {
                    left.push(format!("cgroup {}", entry.path().display()));
                }
            }
        }
        for node in NODES {
            let runc = fs::read_dir(runc_state(node))
                .into_iter()
                .flatten()
                .flatten();
            left.extend(runc.map(|entry| format!("runc state {}", entry.path().display())));
            // The directory itself is runc's own habit.
            let _ = fs::remove_dir(runc_state(node));
            let state = self.path(&format!("node-{node}")).join("tasks");
            left.extend(state.exists().then(|| format!("{}", state.display())));
        }
        for tag in NODES.map(tag) {
            let link = Path::new("/sys/class/net").join(format!("swb{tag}"));
            left.extend(link.exists().then(|| format!("link {}", link.display())));
            let table = format!("swarm_{tag}");
            let listed = Command::new("nft")
                .args(["list", "table", "ip", &table])
                .output()
                .unwrap();
            left.extend(listed.status.success().then_some(table));
        }
        assert!(left.is_empty(), "left behind: {left:#?}");
    }
}

/// Of this run alone: runc keeps its state in one place for all containerds.
fn namespace(node: &str) -> String {
    format!("swarm-test-{}-{node}", std::process::id())
}

/// What the backend names a node's bridge and rules by.
fn tag(node: &str) -> String {
    tag_of(&namespace(node))
}

fn tag_of(namespace: &str) -> String {
    images::sha256(namespace.as_bytes())
        .chars()
        .take(10)
        .collect()
}

fn runc_state(node: &str) -> PathBuf {
    Path::new("/run/containerd/runc").join(namespace(node))
}

/// A network namespace for this run.
pub(crate) fn netns() -> String {
    format!("swexec{}", std::process::id())
}

/// Names of the nodes that tests use, for the leak check.
pub(crate) const NODES: [&str; 12] = [
    "suite", "pull", "process", "limits", "mounts", "restart", "crash", "ports", "hostnet",
    "proxy", "stale", "gone",
];

pub(crate) struct HttpsRegistry {
    pub(crate) port: u16,
    pub(crate) ca: PathBuf,
    child: std::sync::Mutex<Option<Child>>,
}

impl Drop for HttpsRegistry {
    fn drop(&mut self) {
        kill(&self.child);
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = fs::read_to_string(self.path("containerd.log")).unwrap_or_default();
            let tail: Vec<&str> = log.lines().rev().take(15).collect();
            eprintln!(
                "containerd's last words:\n{}",
                tail.into_iter().rev().collect::<Vec<_>>().join("\n")
            );
        }
        kill(&self.containerd);
        kill(&self.registry);
        let dir = self.dir.path().display().to_string();
        // Shims outlive containerd by design: those of this containerd are named by its directory.
        for (pid, command) in processes() {
            if command.contains("containerd-shim") && command.contains(&dir) {
                for child in children(pid).into_iter().chain([pid]) {
                    let _ = nix::sys::signal::kill(
                        nix::unistd::Pid::from_raw(child),
                        nix::sys::signal::Signal::SIGKILL,
                    );
                }
            }
        }
        for node in NODES {
            let _ = fs::remove_dir_all(runc_state(node));
            for hierarchy in fs::read_dir("/sys/fs/cgroup")
                .into_iter()
                .flatten()
                .flatten()
            {
                let cgroup = hierarchy.path().join("swarm").join(namespace(node));
                for task in fs::read_dir(&cgroup).into_iter().flatten().flatten() {
                    let _ = fs::remove_dir(task.path());
                }
                let _ = fs::remove_dir(cgroup);
            }
            let _ = Command::new("ip")
                .args(["link", "del", &format!("swb{}", tag(node))])
                .output();
            let table = format!("swarm_{}", tag(node));
            let _ = Command::new("nft")
                .args(["delete", "table", "ip", &table])
                .output();
        }
        let _ = Command::new("ip").args(["netns", "del", &netns()]).output();
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        for line in mounts.lines().rev().filter(|line| line.contains(&dir)) {
            if let Some(target) = line.split(' ').nth(4) {
                let _ = nix::mount::umount2(target, nix::mount::MntFlags::MNT_DETACH);
            }
        }
    }
}

fn kill(slot: &std::sync::Mutex<Option<Child>>) {
    if let Some(mut child) = slot.lock().unwrap().take() {
        let _ = child.kill();
        let _ = child.wait();
    }
}

pub(crate) fn processes() -> Vec<(i32, String)> {
    let entries = fs::read_dir("/proc").unwrap().flatten();
    entries
        .filter_map(|entry| {
            let pid: i32 = entry.file_name().to_str()?.parse().ok()?;
            let command = fs::read(entry.path().join("cmdline")).ok()?;
            Some((pid, String::from_utf8_lossy(&command).replace('\0', " ")))
        })
        .collect()
}

/// True while a process has exactly this command line.
pub(crate) fn runs(command: &str) -> bool {
    processes().iter().any(|(_, held)| held.trim() == command)
}

pub(crate) fn children(parent: i32) -> Vec<i32> {
    let of = |pid: i32| -> Option<i32> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        stat.rsplit(") ").next()?.split(' ').nth(1)?.parse().ok()
    };
    processes()
        .into_iter()
        .map(|(pid, _)| pid)
        .filter(|&pid| of(pid) == Some(parent))
        .collect()
}

pub(crate) fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !holds() {
        assert!(
            begin.elapsed() < WAIT_MAX,
            "{what}: not within {WAIT_MAX:?}"
        );
        std::thread::sleep(Duration::from_millis(20));
    }
}

pub(crate) fn run(command: &mut Command) -> String {
    let output = command.stdin(Stdio::null()).output().unwrap();
    assert!(
        output.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}
