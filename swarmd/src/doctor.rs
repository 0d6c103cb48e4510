//! `swarmd doctor`: what this host lacks for the settings it is given, and how to get it.
//!
//! It looks, also beside a swarmd that runs. Its trial of the network leaves nothing but kernel modules that it loaded.

#![expect(
    clippy::print_stdout,
    reason = "the answer goes to the operator's terminal"
)]

use std::io::IsTerminal as _;
use std::net::TcpListener;
use std::path::Path;
use std::time::Duration;

use agent_runtime::containerd;
use agent_runtime::requirement::{Found, Requirement};
use tokio::net::{TcpStream, UnixStream};

use crate::config::{Config, ExecutorKind};

/// Space under the state dir below which images and logs soon fill it.
const FREE_MIN: u64 = 2 << 30;
/// A manager that has not answered by then is taken to be out of reach.
const REACH_MAX: Duration = Duration::from_secs(3);
/// What a service that keeps the clock right leaves while it runs: systemd-timesyncd, chrony, ntpd, NTPsec.
const CLOCK_KEEPERS: [&str; 5] = [
    "/run/systemd/timesync/synchronized",
    "/run/chrony/chronyd.pid",
    "/run/chronyd.pid",
    "/run/ntpd.pid",
    "/var/run/ntpd.pid",
];

/// Looks at everything, prints it, and says whether nothing is missing.
pub(crate) async fn run(config: &Config) -> bool {
    let mut all = Vec::new();
    if config.executor == ExecutorKind::Containerd {
        #[expect(
            clippy::disallowed_methods,
            reason = "programs are found by the process's own PATH"
        )]
        let path = std::env::var_os("PATH").unwrap_or_default();
        all.extend(containerd::requirements(&config.engine_addr, &path).await);
    }
    let runs = UnixStream::connect(&config.listen_control_api)
        .await
        .is_ok();
    all.push(state_dir(&config.state_dir));
    all.push(control_socket(&config.listen_control_api, runs));
    all.push(port(config, runs));
    for manager in &config.join_addrs {
        all.push(manager_reach(manager).await);
    }
    all.push(clock());
    let colours = std::io::stdout().is_terminal() && !crate::config::no_colour();
    for one in &all {
        println!("{}", line(one, colours));
    }
    let missing = all
        .iter()
        .filter(|one| matches!(one.found, Found::Missing { .. }));
    let missing = missing.count();
    if missing > 0 {
        println!(
            "{} missing: this node can't do its work yet",
            swarm_proto::amount::count(missing as u64, "thing")
        );
    }
    missing == 0
}

fn line(one: &Requirement, colours: bool) -> String {
    let (word, colour, text) = match &one.found {
        Found::Met(detail) => ("ok", "32", detail.clone()),
        Found::Poor { reason, remedy } => ("poor", "33", format!("{reason}: {remedy}")),
        Found::Missing { reason, remedy } => ("missing", "31", format!("{reason}: {remedy}")),
    };
    let word = match colours {
        true => format!("\x1b[{colour}m{word:<8}\x1b[0m"),
        false => format!("{word:<8}"),
    };
    format!("{word} {:<15} {text}", one.what)
}

/// The directory, or where it would be made.
fn state_dir(path: &Path) -> Requirement {
    const WHAT: &str = "state dir";
    let shown = path.display();
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let there = absolute.ancestors().find(|dir| dir.exists());
    let Some(there) = there.filter(|dir| dir.is_dir()) else {
        let reason = format!("{shown} can't be made: something above it is no directory");
        return Requirement::missing(WHAT, reason, "choose another with --state-dir");
    };
    if let Err(error) = nix::unistd::access(there, nix::unistd::AccessFlags::W_OK) {
        let reason = format!("{} can't be written: {}", there.display(), error.desc());
        return Requirement::missing(
            WHAT,
            reason,
            "run as root, or choose another with --state-dir",
        );
    }
    match nix::sys::statvfs::statvfs(there) {
        Ok(stat) => {
            let free = stat.blocks_available().saturating_mul(stat.fragment_size());
            let text = swarm_proto::amount::bytes(i64::try_from(free).unwrap_or(i64::MAX));
            if free < FREE_MIN {
                let reason = format!("{shown} has {text} left");
                return Requirement::poor(
                    WHAT,
                    reason,
                    "free some space: output and volumes are kept there",
                );
            }
            Requirement::met(WHAT, format!("{shown}, {text} free"))
        }
        Err(error) => Requirement::poor(
            WHAT,
            format!("{shown}: {}", error.desc()),
            "check its file system",
        ),
    }
}

fn control_socket(path: &Path, runs: bool) -> Requirement {
    const WHAT: &str = "control socket";
    let shown = path.display();
    if runs {
        return Requirement::met(WHAT, format!("{shown}, a swarmd runs"));
    }
    // What is missing of the way to it is made.
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let parent = absolute.ancestors().skip(1).find(|dir| dir.exists());
    let parent = parent.unwrap_or(Path::new("/"));
    if !parent.is_dir() {
        let reason = format!("{} is no directory", parent.display());
        return Requirement::missing(WHAT, reason, "choose another with --listen-control-api");
    }
    match nix::unistd::access(parent, nix::unistd::AccessFlags::W_OK) {
        Ok(()) => Requirement::met(WHAT, format!("{shown} is free")),
        Err(error) => {
            let reason = format!("{} can't be written: {}", parent.display(), error.desc());
            Requirement::missing(WHAT, reason, "choose another with --listen-control-api")
        }
    }
}

fn port(config: &Config, runs: bool) -> Requirement {
    const WHAT: &str = "manager API";
    let addr = config.listen_remote_api;
    match TcpListener::bind(addr) {
        Ok(_) => Requirement::met(WHAT, format!("{addr} is free")),
        Err(_) if runs => Requirement::met(
            WHAT,
            format!("{addr} is in use, as by the swarmd that runs"),
        ),
        Err(error) => {
            let remedy =
                "free it, or choose another with --listen-remote-api; a worker does not need it";
            Requirement::poor(WHAT, format!("{addr}: {error}"), remedy)
        }
    }
}

async fn manager_reach(manager: &str) -> Requirement {
    const WHAT: &str = "manager";
    let remedy = "check its address, and open TCP to it in firewalls between";
    match tokio::time::timeout(REACH_MAX, TcpStream::connect(manager)).await {
        Ok(Ok(_)) => Requirement::met(WHAT, format!("{manager} takes connections")),
        Ok(Err(error)) => Requirement::missing(WHAT, format!("{manager}: {error}"), remedy),
        Err(_) => Requirement::missing(
            WHAT,
            format!("{manager}: no answer within {REACH_MAX:?}"),
            remedy,
        ),
    }
}

fn clock() -> Requirement {
    const WHAT: &str = "clock";
    match CLOCK_KEEPERS.iter().find(|file| Path::new(file).exists()) {
        Some(file) => Requirement::met(WHAT, format!("kept ({file})")),
        None => {
            let reason = "no service is known to keep it right; certificates need clocks that agree within minutes";
            Requirement::poor(WHAT, reason, "apt-get install systemd-timesyncd, or chrony")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_each() {
        let lines = [
            Requirement::met("runc", "/usr/sbin/runc"),
            Requirement::poor("clock", "not kept", "install chrony"),
            Requirement::missing("nft", "not in PATH", "apt-get install nftables"),
        ];
        let lines: Vec<String> = lines.iter().map(|one| line(one, false)).collect();
        assert_eq!(
            lines,
            [
                "ok       runc            /usr/sbin/runc",
                "poor     clock           not kept: install chrony",
                "missing  nft             not in PATH: apt-get install nftables",
            ]
        );
        let coloured = line(&Requirement::met("a", "b"), true);
        assert_eq!(coloured, "\x1b[32mok      \x1b[0m a               b");
    }

    #[test]
    fn a_state_dir_that_is_not_there_is_looked_for_above() {
        let dir = tempfile::tempdir().unwrap();
        let found = state_dir(&dir.path().join("a/b")).found;
        assert!(
            matches!(found, Found::Met(_) | Found::Poor { .. }),
            "{found:?}"
        );
        let file = dir.path().join("file");
        std::fs::write(&file, "").unwrap();
        assert!(matches!(
            control_socket(&file.join("s.sock"), false).found,
            Found::Missing { .. }
        ));
    }
}
