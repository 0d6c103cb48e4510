//! A lab for one test: hosts, containerd and registry of its own, removed when the value is dropped.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::thread;

use nix::unistd::geteuid;

use crate::containerd::Containerd;
use crate::image::Image;
use crate::machine::Machine;
use crate::network::{self, Host};
use crate::node::{Node, Options};
use crate::registry::Registry;
use crate::site::Site;
use crate::{Error, binaries, sweep};

/// Programs a lab needs, with the Debian package of each.
const PROGRAMS: [(&str, &str); 8] = [
    ("containerd", "containerd"),
    ("ctr", "containerd"),
    ("runc", "runc"),
    ("docker-registry", "docker-registry"),
    ("ip", "iproute2"),
    ("nft", "nftables"),
    ("nsenter", "util-linux"),
    ("setsid", "util-linux"),
];
/// Where programs are looked for beside the search path: a user's may lack the administrators' directories.
const SYSTEM_DIRECTORIES: [&str; 3] = ["/usr/sbin", "/sbin", "/usr/bin"];

/// What this machine lacks for a lab, as sentences; empty when nothing is missing.
pub fn missing() -> Vec<String> {
    missing_of(&PROGRAMS)
}

fn missing_of(programs: &[(&str, &str)]) -> Vec<String> {
    let mut missing = Vec::new();
    if !geteuid().is_root() {
        missing.push("root".to_owned());
    }
    #[expect(
        clippy::disallowed_methods,
        reason = "the search path is where programs are looked for"
    )]
    let path = std::env::var_os("PATH").unwrap_or_default();
    for (program, package) in programs {
        let mut directories = std::env::split_paths(&path)
            .chain(SYSTEM_DIRECTORIES.iter().map(std::path::PathBuf::from));
        if !directories.any(|directory| directory.join(program).is_file()) {
            missing.push(format!("{program} (Debian package {package})"));
        }
    }
    missing
}

/// True where a lab can be built; as [`available_with`].
pub fn available(test: &str) -> bool {
    available_with(test, &[])
}

/// True where a lab can be built and these programs are there too, each with its Debian package. Where it can't, says what a test leaves out; but where `CI=true`, or where nothing is
/// missing but the will (`SWARM_LAB=off`), a test is not silently passed: the first panics, the second is told.
#[expect(clippy::panic, reason = "fails the test that calls it")]
#[expect(
    clippy::disallowed_methods,
    reason = "tests are configured by the environment"
)]
pub fn available_with(test: &str, more: &[(&str, &str)]) -> bool {
    let mut reasons = missing_of(&[&PROGRAMS[..], more].concat());
    if std::env::var("SWARM_LAB").is_ok_and(|value| value == "off") {
        reasons = vec!["SWARM_LAB other than off".to_owned()];
    } else if !reasons.is_empty() && std::env::var("CI").is_ok_and(|value| value == "true") {
        panic!(
            "{test} needs {}; with CI=true nothing may be left out",
            reasons.join(", ")
        );
    }
    if reasons.is_empty() {
        return true;
    }
    // Not eprintln: the test runner hides that of a test that passes.
    let line = format!("left out: {test}, which needs {}\n", reasons.join(", "));
    let _unheard = std::io::stderr().write_all(line.as_bytes());
    false
}

/// Everything of one test. Dropping it removes it all, also when the test panics.
#[derive(Debug)]
pub struct Lab {
    /// Its names.
    pub site: Site,
    /// Its containerd.
    pub containerd: Containerd,
    /// Its registry.
    pub registry: Registry,
    hosts: BTreeMap<String, Host>,
}

impl Lab {
    /// Builds a lab without hosts.
    pub fn new() -> Result<Self, Error> {
        sweep::sweep_orphans()?;
        Self::at(Site::unique()?)
    }

    /// Builds the lab of a site.
    pub(crate) fn at(site: Site) -> Result<Self, Error> {
        let built = Self::build(&site);
        if built.is_err() {
            // The first error is the one to tell.
            let _swept = sweep::sweep(&site);
        }
        built
    }

    fn build(site: &Site) -> Result<Self, Error> {
        for path in [site.run(), site.state()] {
            fs::create_dir_all(&path).map_err(Error::file("create", path))?;
        }
        network::make_switch(site)?;
        Ok(Self {
            containerd: Containerd::start(site)?,
            registry: Registry::start(site)?,
            hosts: BTreeMap::new(),
            site: site.clone(),
        })
    }

    /// The host of this name, which is made at the first call.
    pub fn host(&mut self, name: &str) -> Result<Host, Error> {
        if let Some(host) = self.hosts.get(name) {
            return Ok(host.clone());
        }
        let number = u8::try_from(self.hosts.len() + 1)
            .map_err(|_| Error::Refused("a lab has at most 240 hosts".to_owned()))?;
        let host = network::make_host(&self.site, name, number)?;
        self.hosts.insert(name.to_owned(), host.clone());
        Ok(host)
    }

    /// Starts swarmd on a host, on the lab's containerd and with its registry.
    pub fn node(&mut self, name: &str, join: Option<(String, String)>) -> Result<Node, Error> {
        self.node_with(
            name,
            Options {
                join,
                ..self.options()
            },
        )
    }

    /// Starts swarmd on a host.
    pub fn node_with(&mut self, name: &str, options: Options) -> Result<Node, Error> {
        let host = self.host(name)?;
        Node::start(&self.site, &host, &options)
    }

    /// Starts a machine: a host with files and processes of its own.
    pub fn machine(&mut self, name: &str) -> Result<Machine, Error> {
        let host = self.host(name)?;
        Machine::start(&self.site, &host)
    }

    /// Options for a swarmd on the lab's containerd and with its registry, of a cluster of its own.
    pub fn options(&self) -> Options {
        Options {
            engine: Some(self.containerd.engine_address()),
            insecure_registries: vec![self.registry.http()],
            ..Options::default()
        }
    }

    /// Pushes the example image and returns its name.
    pub fn push_web(&self) -> Result<String, Error> {
        let image = Image::web(&binaries::find("web")?)?;
        self.registry.push("example/web", "1", &image)
    }

    /// What containerd holds of a host: containers, their processes and their snapshots. Images are not listed.
    pub fn held(&self, host: &Host) -> Result<Vec<String>, Error> {
        let mut held = Vec::new();
        let namespaces = self
            .containerd
            .ctr("default", &["namespaces", "ls", "-q"])?;
        if !namespaces.lines().any(|line| line == host.namespace) {
            return Ok(held);
        }
        for (kind, arguments) in [
            ("container", ["containers", "ls", "-q"]),
            ("task", ["tasks", "ls", "-q"]),
        ] {
            let listed = self.containerd.ctr(&host.namespace, &arguments)?;
            held.extend(listed.lines().map(|name| format!("{kind} {name}")));
        }
        let snapshots = self.containerd.ctr(&host.namespace, &["snapshots", "ls"])?;
        held.extend(
            snapshots
                .lines()
                .filter(|line| line.trim_end().ends_with("Active"))
                .map(|line| format!("snapshot {line}")),
        );
        let marker = format!("/{}/", host.namespace);
        let mounts = sweep::mounts(&[self.site.run(), self.site.state()])?;
        held.extend(
            mounts
                .iter()
                .map(|path| path.to_string_lossy())
                .filter(|path| path.contains(&marker))
                .map(|path| format!("mount {path}")),
        );
        Ok(held)
    }

    /// Logs of every swarmd and of containerd, each cut to its last lines.
    pub fn logs(&self, lines: usize) -> String {
        let mut text = String::new();
        let names = self.hosts.keys().map(|name| format!("{name}/swarmd.log"));
        for file in names.chain(["containerd/log".to_owned()]) {
            let Ok(content) = fs::read(self.site.run().join(&file)) else {
                continue;
            };
            let content = String::from_utf8_lossy(&content).into_owned();
            let all: Vec<&str> = content.lines().collect();
            let last = all
                .get(all.len().saturating_sub(lines)..)
                .unwrap_or_default()
                .join("\n");
            text.push_str(&format!("--- {file}\n{last}\n"));
        }
        text
    }
}

/// Lines of each log shown for a test that fails.
const LOG_LINES: usize = 60;

impl Drop for Lab {
    #[expect(clippy::print_stderr, reason = "what a failing test leaves to read")]
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("{}", self.logs(LOG_LINES));
        }
        if let Err(error) = sweep::sweep(&self.site) {
            eprintln!("lab {}: {}", self.site.name(), error.chain());
        }
    }
}
