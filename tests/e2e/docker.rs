//! The image of swarmd, built and run by Docker Engine as on any host, and built by Buildah.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use harness::lab::lab::available_with;
use harness::lab::{Lab, Machine, Output, binaries, eventually, http};

const LIMIT: Duration = Duration::from_secs(60);

/// What the image is built and run with, beside a lab.
const PROGRAMS: [(&str, &str); 4] = [
    ("dockerd", "docker.io"),
    ("docker", "docker.io"),
    ("buildah", "buildah"),
    ("strip", "binutils"),
];

/// What a worker's container gets: the host's namespaces and containerd, and what of --privileged it needs. (All of
/// it can't be had where root itself lacks a capability.)
const WORKER: [&str; 16] = [
    "--network",
    "host",
    "--pid",
    "host",
    "--cap-add",
    "SYS_ADMIN",
    "--cap-add",
    "NET_ADMIN",
    "--cap-add",
    "SYS_PTRACE",
    "--security-opt",
    "apparmor=unconfined",
    "--security-opt",
    "seccomp=unconfined",
    "--volume",
    "/run:/var/run",
];

/// A machine with Docker Engine on the containerd that tasks use as well.
pub(super) struct Host {
    pub(super) machine: Machine,
    // Beside the machine's own, not through them: it ends with the machine.
    _engine: std::process::Child,
}

impl Host {
    /// Starts both on a machine of this name, the engine with more arguments.
    pub(super) fn start(lab: &mut Lab, name: &str, more: &[&str]) -> Self {
        let machine = lab.machine(name).unwrap();
        machine
            .run(&["systemctl", "start", "containerd"])
            .unwrap()
            .ok();
        let parent = format!("/{}", machine.host.namespace);
        let line = [
            "dockerd",
            "--containerd",
            "/run/containerd/containerd.sock",
            "--cgroup-parent",
            &parent,
        ];
        let engine = machine.spawn(&[&line[..], more].concat()).unwrap();
        let host = Self {
            machine,
            _engine: engine,
        };
        eventually("answer of Docker Engine", LIMIT, || {
            let asked = host.docker(&["version"]);
            (asked.code == 0).then_some(()).ok_or(asked.stderr)
        });
        host
    }

    /// Runs the client; images are built by the engine itself, without BuildKit.
    pub(super) fn docker(&self, line: &[&str]) -> Output {
        let line = [&["env", "DOCKER_BUILDKIT=0", "docker"], line].concat();
        self.machine.run(&line).unwrap()
    }

    fn exec(&self, container: &str, line: &[&str]) -> Output {
        self.docker(&[&["exec", container], line].concat())
    }

    /// Starts the worker's container.
    fn run_worker(&self, more: &[&str]) {
        let namespace = &self.machine.host.namespace;
        let swarmd = ["swarmd", "swarmd", "--containerd-namespace", namespace];
        let line = [
            &["run", "--detach", "--name", "worker"],
            &WORKER[..],
            &swarmd,
            more,
        ]
        .concat();
        self.docker(&line).ok();
    }

    fn wait_healthy(&self, container: &str) {
        eventually(&format!("a healthy {container}"), LIMIT, || {
            let shown = self.docker(&["inspect", "--format", "{{json .State.Health}}", container]);
            let healthy = shown.stdout.contains(r#""Status":"healthy""#);
            let logs = || self.docker(&["logs", container]);
            healthy
                .then_some(())
                .ok_or_else(|| format!("{shown:?} {:?}", logs()))
        });
    }

    fn containers(&self, count: usize) -> Vec<(String, String)> {
        eventually(&format!("{count} containers of tasks"), LIMIT, || {
            let found = self.machine.containers(&self.machine.host.namespace);
            let found: Vec<_> = found
                .map_err(|error| error.to_string())?
                .into_iter()
                .collect();
            (found.len() == count)
                .then_some(found.clone())
                .ok_or(format!("{found:?}"))
        })
    }
}

/// Puts the build context on the machine: binaries under test, without what only debuggers read. Whom the image trusts is
/// the lab's authority, in place of those of the host that builds it.
fn context(machine: &Machine, authority: &Path) {
    let dir = tempfile::tempdir().unwrap();
    let (from, to) = (dir.path().join("binaries"), dir.path().join("image"));
    std::fs::create_dir(&from).unwrap();
    for name in ["swarmd", "swarmctl"] {
        std::fs::copy(binaries::find(name).unwrap(), from.join(name)).unwrap();
    }
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/image/context");
    let made = |authority: &Path| {
        let mut command = Command::new(script);
        let command = command.args([&from, &to]).env("SSL_CERT_FILE", authority);
        command.output().unwrap()
    };
    let refused = made(Path::new("/nowhere"));
    let told = String::from_utf8_lossy(&refused.stderr);
    assert!(
        !refused.status.success() && told.contains("no CA certificates"),
        "{told}"
    );
    let made = made(authority);
    assert!(made.status.success(), "{made:?}");
    for name in ["swarmd", "swarmctl", "ca-certificates.crt"] {
        let inside = format!("/root/image/{name}");
        machine.copy(&to.join(name), &inside).unwrap();
        if name != "ca-certificates.crt" {
            machine.run(&["strip", &inside]).unwrap().ok();
        }
    }
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/image/Dockerfile");
    machine.copy(file.as_ref(), "/root/Dockerfile").unwrap();
}

#[test]
fn containerd_the_image_is_a_manager_without_privileges_and_a_worker_on_the_host_s_containerd() {
    if !available_with("the image in Docker Engine", &PROGRAMS) {
        return;
    }
    let mut lab = Lab::new().unwrap();
    let image = lab.push_web().unwrap();
    let registry = lab.registry.http();
    lab.registry.start_https().unwrap();
    let host = Host::start(&mut lab, "n1", &[]);
    context(&host.machine, &lab.registry.ca_certificate());
    host.docker(&[
        "build",
        "--tag",
        "swarmd",
        "--file",
        "/root/Dockerfile",
        "/root/image",
    ])
    .ok();

    let state = ["--volume", "swarm-state:/var/lib/swarmd"];
    let manager = [
        "run",
        "--detach",
        "--name",
        "manager",
        "--publish",
        "4242:4242",
    ];
    let swarmd = ["swarmd", "swarmd", "--listen-remote-api", "0.0.0.0:4242"];
    host.docker(&[&manager[..], &state, &swarmd].concat()).ok();
    host.wait_healthy("manager");
    let socket = ["swarmctl", "-s", "/var/run/swarmd.sock"];
    let token = [&socket[..], &["cluster", "join-token", "--quiet", "worker"]].concat();
    let token = host.exec("manager", &token).ok();

    // What the host has under the same name is not what runs in the image.
    host.machine
        .write("/usr/bin/swarmd", "another program")
        .unwrap();
    let address = host.machine.host.address;
    let join = format!("{address}:4242");
    let insecure = ["--insecure-registry", &registry];
    host.run_worker(
        &[
            &["--join-addr", &join, "--join-token", &token],
            &insecure[..],
        ]
        .concat(),
    );
    host.wait_healthy("worker");
    let create = ["service", "create", "--name", "web", "--image", &image];
    let reach = ["--publish", "published=8081,target=8080,mode=host"];
    let mount = ["--mount", "type=bind,source=/root/image,target=/host"];
    host.exec(
        "manager",
        &[&["swarmctl"], &create[..], &reach, &mount].concat(),
    )
    .ok();
    asks_over_https(&host, &image.replace(&registry, &lab.registry.https()));
    let running = host.containers(1);
    let published = SocketAddr::from((address, 8081));
    eventually("answer at the published port", LIMIT, || {
        http::get(published, "/").map_err(|error| error.to_string())
    });

    go_on(&host, &insecure, &running);
}

/// A manager in the image believes a registry by the certificates in it.
fn asks_over_https(host: &Host, image: &str) {
    let create = ["service", "create", "--name", "asked", "--replicas", "0"];
    let line = [&["swarmctl"], &create[..], &["--image", image]].concat();
    let told = host.exec("manager", &line);
    let inspect = [
        "service",
        "inspect",
        "--format",
        "{{.Spec.Task.Container.Image}}",
    ];
    let shown = [&["swarmctl"], &inspect[..], &["asked"]].concat();
    let shown = host.exec("manager", &shown).ok();
    assert!(shown.contains("@sha256:"), "{shown} {told:?}");
    let remove = ["swarmctl", "service", "rm", "asked"];
    host.exec("manager", &remove).ok();
}

/// Containers of swarmd come and go; what they started goes on.
fn go_on(host: &Host, insecure: &[&str], running: &[(String, String)]) {
    // Another container in its place takes up what runs: the state is the host's, and so is the socket.
    host.docker(&["rm", "--force", "worker"]).ok();
    host.run_worker(insecure);
    host.wait_healthy("worker");
    assert_eq!(host.containers(1), running);
    let told = host.exec("worker", &["swarmctl", "node", "ls"]).refused();
    assert!(
        told.contains("this node is a worker: ask a manager"),
        "{told}"
    );

    // A worker without a manager says so.
    host.docker(&["stop", "manager"]).ok();
    let told = eventually("a worker that is not well", LIMIT, || {
        let asked = host.exec("worker", &["swarmd", "healthcheck"]);
        (asked.code == 1)
            .then_some(asked.stderr)
            .ok_or(asked.stdout)
    });
    assert!(
        told.contains("this worker is not connected to a manager; 1 task go"),
        "{told}"
    );
    assert_eq!(host.containers(1), running);
    host.docker(&["start", "manager"]).ok();
    host.wait_healthy("manager");
    let names = ["swarmctl", "service", "ls", "--format", "{{.Name}}"];
    assert_eq!(host.exec("manager", &names).ok(), "web");
}

#[test]
fn containerd_buildah_builds_the_same_image_which_says_what_it_may_not_do() {
    if !available_with("the image by Buildah", &PROGRAMS) {
        return;
    }
    let mut lab = Lab::new().unwrap();
    lab.registry.start_https().unwrap();
    let host = Host::start(&mut lab, "n1", &[]);
    context(&host.machine, &lab.registry.ca_certificate());
    let buildah = [
        "buildah",
        "--storage-driver",
        "vfs",
        "--root",
        "/tmp/store",
        "--runroot",
        "/tmp/run",
    ];
    let bud = [
        "bud",
        "--isolation",
        "chroot",
        "--format",
        "docker",
        "--tag",
        "swarmd",
    ];
    let files = ["--file", "/root/Dockerfile", "/root/image"];
    let push = ["push", "swarmd", "docker-archive:/tmp/swarmd.tar:swarmd:1"];
    host.machine
        .run(&[&buildah[..], &bud, &files].concat())
        .unwrap()
        .ok();
    host.machine
        .run(&[&buildah[..], &push].concat())
        .unwrap()
        .ok();
    host.docker(&["load", "--input", "/tmp/swarmd.tar"]).ok();
    let test = [
        "inspect",
        "--format",
        "{{json .Config.Healthcheck.Test}}",
        "swarmd:1",
    ];
    assert_eq!(host.docker(&test).ok(), r#"["CMD","swarmd","healthcheck"]"#);
    let version = host
        .docker(&["run", "--rm", "swarmd:1", "swarmctl", "--version"])
        .ok();
    assert_eq!(version, format!("swarmctl {}", env!("CARGO_PKG_VERSION")));

    // The host's processes alone are not its mounts.
    let told = host
        .docker(&["run", "--rm", "--pid", "host", "swarmd:1"])
        .refused();
    assert!(
        told.contains("--host-mounts: can't enter the mounts of process 1"),
        "{told}"
    );
    let told = host
        .docker(&["run", "--rm", "swarmd:1", "swarmd", "healthcheck"])
        .refused();
    assert!(
        told.contains("can't reach swarmd at /var/run/swarmd.sock: start it"),
        "{told}"
    );
}
