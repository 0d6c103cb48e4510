//! The lab of the executor's tests: nodes on its containerd, images in its registry, and the search for what is left
//! behind.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use ::lab::lab::available_with;
use ::lab::{command, image, process, sweep};
use agent_runtime::containerd::{ContainerdConfig, ContainerdExecutor};
use agent_runtime::executor::{Executor, TaskOrder};
use nix::sys::signal::Signal;

use crate::images::{self, Images};
use crate::suite::{self, Program, Subject};

/// What the tests need beside a lab's programs, with its Debian package.
const NEEDED: [(&str, &str); 2] = [("busybox", "busybox-static"), ("crun", "crun")];
const WAIT_MAX: Duration = Duration::from_secs(60);

pub(crate) struct Lab {
    pub(crate) machine: ::lab::Lab,
    /// `address:port` of the registry, which containerd's clients speak HTTP to untold.
    registry: String,
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
        let bridge = bridge(&tag_of(&self.config.namespace));
        let ports = Path::new("/sys/class/net").join(bridge).join("brif");
        let ports = fs::read_dir(ports).unwrap().flatten();
        ports
            .map(|port| port.file_name().into_string().unwrap())
            .collect()
    }

    /// What a task's container wrote to standard output, as its log writer has it.
    pub(crate) fn stdout(&self, id: &str) -> String {
        self.output(id, "stdout")
    }

    /// What it wrote to one stream.
    pub(crate) fn output(&self, id: &str, stream: &str) -> String {
        let text = fs::read_to_string(self.log(id)).unwrap_or_default();
        // What is being written just now may be half a line.
        let lines = text
            .split_inclusive('\n')
            .filter(|line| line.ends_with('\n'));
        let entries = lines.map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
        let entries = entries.filter(|entry| entry["stream"] == stream);
        let logs = entries.map(|entry| entry["log"].as_str().unwrap().to_owned());
        logs.collect()
    }

    /// The file of a container's newest output.
    pub(crate) fn log(&self, id: &str) -> PathBuf {
        self.files(id).join(format!("{id}-json.log"))
    }

    /// The directory of a task.
    pub(crate) fn files(&self, id: &str) -> PathBuf {
        self.config.state_dir.join("tasks").join(id)
    }
}

impl Lab {
    /// Builds it; `None`, with a printed reason, where that can't be.
    pub(crate) fn start() -> Option<Self> {
        if !available_with("containerd under the executors' suite", &NEEDED) {
            return None;
        }
        let mut machine = ::lab::Lab::new().unwrap();
        let registry = machine.registry.start_loopback().unwrap();
        let images = Images::new();
        let test_digest = images.push(&machine.registry);
        Some(Self {
            machine,
            registry,
            images,
            test_digest,
        })
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.machine.site.state().join(name)
    }

    pub(crate) fn start_containerd(&mut self) {
        self.machine.containerd.start_again().unwrap();
    }

    pub(crate) fn kill_containerd(&mut self) {
        self.machine.containerd.stop(Signal::SIGKILL).unwrap();
    }

    pub(crate) fn start_registry(&mut self) {
        self.machine.registry.start_http().unwrap();
        self.machine.registry.start_loopback().unwrap();
    }

    pub(crate) fn stop_registry(&mut self) {
        self.machine.registry.stop().unwrap();
    }

    /// How often the registry was asked for a path with these words.
    pub(crate) fn registry_requests(&self, words: &str) -> usize {
        self.machine.registry.asked_on_loopback(words).unwrap()
    }

    pub(crate) fn image(&self, name: &str) -> String {
        format!("{}/{name}", self.registry)
    }

    pub(crate) fn subject(&self, name: &str) -> Node {
        let address = self.machine.containerd.engine_address();
        let state = self.path(&format!("node-{name}"));
        let mut config = ContainerdConfig::new(&address, &self.namespace(name), state);
        config.program = PathBuf::from(env!("CARGO_BIN_EXE_swarm-tool"));
        // A registry that is away is away for good here.
        config.registries.backoff.first = Duration::from_millis(10);
        Node {
            config,
            image: self.image("test:1"),
        }
    }

    /// An image with a layer that no other image has.
    pub(crate) fn push_counted(&self) {
        images::push_counted(&self.machine.registry);
    }

    /// One image that nobody has, under several tags.
    pub(crate) fn push_twins(&self, count: usize) -> Vec<String> {
        let names = images::push_twins(&self.machine.registry, count);
        names.iter().map(|name| self.image(name)).collect()
    }

    /// The test image with so many small layers on top, each with a file.
    pub(crate) fn push_layered(&self, count: usize) -> String {
        self.images.push_layered(&self.machine.registry, count);
        self.image("layered:1")
    }

    /// Starts a container the way `ctr` does.
    pub(crate) fn ctr_run(&self, node: &Node, id: &str) -> Child {
        let mut command = Command::new("ctr");
        command
            .arg("--address")
            .arg(self.machine.containerd.socket());
        command.args(["--namespace", &node.config.namespace]);
        command.args(["run", "-d", &node.image, id, "/bin/sleep", "1000"]);
        let command = command.stdin(Stdio::null()).stdout(Stdio::null());
        command.spawn().unwrap()
    }

    pub(crate) fn ctr(&self, node: &Node, args: &[&str]) -> String {
        let containerd = &self.machine.containerd;
        containerd.ctr(&node.config.namespace, args).unwrap()
    }

    /// Starts a container's shim as containerd would, and leaves it alone.
    pub(crate) fn start_shim(&self, node: &Node, id: &str) {
        let bundle = self.path(&format!("bundle-{id}"));
        fs::create_dir_all(&bundle).unwrap();
        fs::write(bundle.join("config.json"), "{}").unwrap();
        let log = bundle.join("log");
        nix::unistd::mkfifo(&log, nix::sys::stat::Mode::S_IRWXU).unwrap();
        // The shim goes on only when somebody can read what it has to say; a FIFO open for both waits for nobody.
        let open = fs::File::options().read(true).write(true).open(&log);
        let _log = open.unwrap();
        let mut command = Command::new("containerd-shim-runc-v2");
        command.current_dir(&bundle);
        command.args(["-namespace", &node.config.namespace, "-id", id]);
        let socket = self.machine.containerd.socket();
        command.arg("-address").arg(socket);
        command.args(["-publish-binary", "containerd", "start"]);
        run(&mut command);
        until("the shim is there", || shims(id).len() == 1);
    }

    /// A name of this lab's alone for a network namespace, which goes with it.
    pub(crate) fn netns(&self) -> String {
        self.machine.site.host_name("netns")
    }

    /// Of this lab alone: runc keeps its state in one place for all containerds.
    fn namespace(&self, node: &str) -> String {
        self.machine.site.host_name(node)
    }

    /// What the backend names the nodes' bridges and rules by.
    fn tags(&self) -> [String; NODES.len()] {
        NODES.map(|node| tag_of(&self.namespace(node)))
    }

    /// Looks for everything that should be gone, then stops both.
    pub(crate) fn finish(self) {
        let left = [
            self.left_running(),
            self.left_in_containerd(),
            self.left_in_directories(),
            self.left_in_the_network(),
        ]
        .concat();
        assert!(left.is_empty(), "left behind: {left:#?}");
    }

    fn left_running(&self) -> Vec<String> {
        let site = &self.machine.site;
        let directories = [site.run(), site.state()];
        let mut shims = process::belonging_to(&directories);
        shims.retain(|process| {
            process::program(&process.arguments)
                .is_some_and(|name| name.starts_with("containerd-shim"))
        });
        let shims = shims.into_iter().map(|shim| format!("{shim:?}"));
        // Those that are not below `swarm` are ctr's.
        let cgroups = sweep::cgroups(site).into_iter();
        let cgroups = cgroups
            .filter(|path| {
                path.parent()
                    .is_some_and(|parent| parent.ends_with("swarm"))
            })
            .map(|path| format!("cgroup {}", path.display()));
        shims.chain(cgroups).collect()
    }

    fn left_in_containerd(&self) -> Vec<String> {
        let containerd = &self.machine.containerd;
        let namespaces = containerd.ctr("default", &["namespaces", "ls", "-q"]);
        let mut left: Vec<String> = namespaces
            .unwrap()
            .lines()
            .map(|name| format!("namespace {name}"))
            .collect();
        let snapshots = containerd
            .state()
            .join("root/io.containerd.snapshotter.v1.overlayfs/snapshots");
        let snapshots = fs::read_dir(snapshots).map(|entries| entries.count());
        match snapshots {
            Ok(0) | Err(_) => {}
            Ok(count) => left.push(format!("{count} snapshots")),
        }
        left
    }

    fn left_in_directories(&self) -> Vec<String> {
        let site = &self.machine.site;
        let directories = [site.run(), site.state()].map(|path| path.display().to_string());
        // Also those elsewhere whose layers are in the directories.
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let mut left: Vec<String> = mounts
            .lines()
            .filter(|line| directories.iter().any(|directory| line.contains(directory)))
            .map(str::to_owned)
            .collect();
        for path in sweep::runc_directories(site) {
            let states = fs::read_dir(&path).into_iter().flatten().flatten();
            left.extend(states.map(|state| format!("runc state {}", state.path().display())));
            // The directory itself is runc's own habit.
            let _ = fs::remove_dir(path);
        }
        for node in NODES {
            let tasks = self.path(&format!("node-{node}")).join("tasks");
            left.extend(tasks.exists().then(|| format!("{}", tasks.display())));
        }
        left
    }

    fn left_in_the_network(&self) -> Vec<String> {
        let mut left = Vec::new();
        for tag in self.tags() {
            let link = Path::new("/sys/class/net").join(bridge(&tag));
            left.extend(link.exists().then(|| format!("link {}", link.display())));
            let table = table(&tag);
            let listed = command::run("nft", &["list", "table", "ip", &table]);
            left.extend(listed.is_ok().then_some(table));
        }
        left
    }
}

fn tag_of(namespace: &str) -> String {
    let digest = image::digest(namespace.as_bytes());
    digest.chars().skip("sha256:".len()).take(10).collect()
}

fn bridge(tag: &str) -> String {
    format!("swb{tag}")
}

fn table(tag: &str) -> String {
    format!("swarm_{tag}")
}

/// Names of the nodes that tests use, for the leak check.
pub(crate) const NODES: [&str; 16] = [
    "leaks", "options", "suite", "pull", "process", "limits", "mounts", "restart", "crash",
    "ports", "hostnet", "proxy", "stale", "gone", "faults", "matrix",
];

/// What the backend makes on the machine itself, where no other swarmd of a lab runs; the rest goes with the lab.
impl Drop for Lab {
    fn drop(&mut self) {
        for tag in self.tags() {
            // There is none, but after a failure.
            let _ = command::run("ip", &["link", "del", &bridge(&tag)]);
            let _ = command::run("nft", &["delete", "table", "ip", &table(&tag)]);
        }
    }
}

/// The shims of a container.
pub(crate) fn shims(id: &str) -> Vec<u32> {
    let option = format!("-id {id} ");
    let shims = process::all().into_iter().filter(|process| {
        let command = process.arguments.join(" ");
        command.contains("containerd-shim") && command.contains(&option)
    });
    shims.map(|process| process.pid).collect()
}

/// True while a process has exactly this command line.
pub(crate) fn runs(command: &str) -> bool {
    process::all()
        .iter()
        .any(|process| process.arguments.join(" ") == command)
}

pub(crate) fn until(what: &str, mut holds: impl FnMut() -> bool) {
    ::lab::eventually(what, WAIT_MAX, || {
        holds()
            .then_some(())
            .ok_or_else(|| "it does not hold".to_owned())
    });
}

pub(crate) fn run(command: &mut Command) -> String {
    command::output(command).unwrap()
}
