//! The demo: a manager and five workers on this machine, and a service on them, left running.
//!
//! It is a lab whose site is always the same, and which outlives the process that made it: `up` forgets
//! what it has built, `down` finds it again from the names.
#![expect(clippy::print_stdout, reason = "it shows the user what happens")]

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::lab::{self, Lab};
use crate::node::{Node, REMOTE_API_PORT};
use crate::site::Site;
use crate::{Error, binaries, command, sweep, wait};

/// Workers beside the manager.
const WORKERS: usize = 5;
/// How long the workers may take to join.
const JOIN_LIMIT: Duration = Duration::from_secs(60);

/// Starts the cluster and the service. Refuses where it runs already; removes all it made where it fails.
pub fn up() -> Result<(), Error> {
    let missing = lab::missing();
    if !missing.is_empty() {
        return Err(Error::Refused(format!(
            "the demo needs {}",
            missing.join(", ")
        )));
    }
    let site = Site::demo();
    if !sweep::left(&site)?.is_empty() {
        return Err(Error::Refused(
            "it is already running, or was stopped half-way; remove it with: make demo-down"
                .to_owned(),
        ));
    }
    let result = build(&site);
    if result.is_err() {
        println!("==> it failed; its logs are lost with it, so here is their end");
        println!("{}", logs(&site));
        sweep::sweep(&site)?;
    }
    result
}

/// Removes the cluster, whatever is there of it, and checks that nothing is left.
pub fn down() -> Result<(), Error> {
    let site = Site::demo();
    if sweep::left(&site)?.is_empty() {
        println!("there is no demo to remove");
        return Ok(());
    }
    sweep::sweep(&site)?;
    let left = sweep::left(&site)?;
    if !left.is_empty() {
        return Err(Error::Refused(format!("not removed: {}", left.join("; "))));
    }
    println!(
        "the demo is gone: no process, network namespace, container, mount or directory of it is left"
    );
    Ok(())
}

fn build(site: &Site) -> Result<(), Error> {
    println!(
        "==> containerd, registry and network in {} and {}",
        site.run().display(),
        site.state().display()
    );
    let mut lab = Lab::at(site.clone())?;
    let image = lab.push_web()?;
    println!("==> pushed the example image as {image}");

    let mut manager = lab.node("n1", None)?;
    manager.wait_ready()?;
    println!(
        "==> n1 manages, at {}:{REMOTE_API_PORT}",
        manager.host.address
    );
    let token = worker_token(&manager)?;
    let mut nodes = Vec::new();
    for number in 2..WORKERS + 2 {
        let join = (
            format!("{}:{REMOTE_API_PORT}", manager.host.address),
            token.clone(),
        );
        nodes.push(lab.node(&format!("n{number}"), Some(join))?);
    }
    wait_for_workers(&manager)?;
    println!("==> n2 to n6 have joined");

    let socket = manager.socket();
    let task = "TASK={{.Task.Name}}";
    let environment = [
        "TASK_ID={{.Task.ID}}",
        "SERVICE={{.Service.Name}}",
        "NODE={{.Node.Hostname}}",
    ];
    let create = [
        "service",
        "create",
        "--name",
        "web",
        "--image",
        &image,
        "--replicas",
        "5",
        "--env",
        task,
    ];
    let create = [
        &create[..],
        &environment.map(|pair| ["--env", pair]).concat(),
    ]
    .concat();
    show(&socket, &create)?;
    for arguments in [["node", "ls"], ["service", "ls"], ["task", "ls"]] {
        show(&socket, &arguments)?;
    }
    explain(&socket)?;
    // From here on the cluster is nobody's child.
    nodes.push(manager);
    nodes.into_iter().for_each(std::mem::forget);
    std::mem::forget(lab);
    Ok(())
}

/// The token with which workers join.
fn worker_token(manager: &Node) -> Result<String, Error> {
    let shown = manager.ctl(&["cluster", "join-token", "--quiet", "worker"])?;
    match shown.code {
        0 => Ok(shown.stdout.trim().to_owned()),
        _ => Err(Error::Refused(shown.stderr)),
    }
}

fn wait_for_workers(manager: &Node) -> Result<(), Error> {
    wait::until("all workers READY", JOIN_LIMIT, || {
        let shown = manager
            .ctl(&["node", "ls"])
            .map_err(|error| error.to_string())?;
        let ready = shown
            .stdout
            .lines()
            .filter(|line| line.contains("READY"))
            .count();
        match ready == WORKERS + 1 {
            true => Ok(()),
            false => Err(format!("{}{}", shown.stdout, shown.stderr)),
        }
    })
}

/// Runs swarmctl as the user would, with its output on the terminal.
fn show(socket: &Path, arguments: &[&str]) -> Result<(), Error> {
    println!(
        "\n$ swarmctl {}",
        arguments
            .iter()
            .map(|word| quoted(word))
            .collect::<Vec<_>>()
            .join(" ")
    );
    let mut command = Command::new(binaries::find("swarmctl")?);
    command.arg("--socket").arg(socket).args(arguments);
    let status = command
        .status()
        .map_err(|error| command::not_started(&command, &error))?;
    match status.success() {
        true => Ok(()),
        false => Err(Error::Refused(format!(
            "swarmctl {}: {status}",
            arguments.join(" ")
        ))),
    }
}

fn quoted(word: &str) -> String {
    match word.contains(['{', ' ', '*', '$']) {
        true => format!("'{word}'"),
        false => word.to_owned(),
    }
}

fn explain(socket: &Path) -> Result<(), Error> {
    let swarmctl = binaries::find("swarmctl")?;
    let directory = swarmctl.parent().unwrap_or(Path::new("."));
    println!(
        "\nThe cluster runs on. Talk to it:\n  \
           export SWARM_SOCKET={} PATH={}:$PATH\n  \
           swarmctl service scale web=30\n  \
           swarmctl service ps web\n\
         Stop it, leaving nothing behind:\n  \
           make demo-down",
        socket.display(),
        directory.display(),
    );
    Ok(())
}

fn logs(site: &Site) -> String {
    let Ok(entries) = std::fs::read_dir(site.run()) else {
        return String::new();
    };
    let mut files: Vec<_> = entries
        .flatten()
        .map(|entry| entry.path().join("swarmd.log"))
        .collect();
    files.sort();
    let mut text = String::new();
    for file in files {
        let Ok(content) = std::fs::read(&file) else {
            continue;
        };
        let content = String::from_utf8_lossy(&content).into_owned();
        let all: Vec<&str> = content.lines().collect();
        let last = all
            .get(all.len().saturating_sub(20)..)
            .unwrap_or_default()
            .join("\n");
        text.push_str(&format!("--- {}\n{last}\n", file.display()));
    }
    text
}
