//! swarmd as one process on its host: what it says to systemd, of its settings, and of what the host lacks. No containers
//! and no root are needed.

use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use harness::lab::binaries;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Time for a message from a process that starts or stops.
const LIMIT: Duration = Duration::from_secs(30);

/// Ends with the test, however that ends.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn swarmd(arguments: &[&str]) -> Command {
    let mut command = Command::new(binaries::find("swarmd").unwrap());
    command.args(arguments).stdin(Stdio::null());
    command
}

fn text(output: &Output) -> (Option<i32>, String, String) {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    (
        output.status.code(),
        text(&output.stdout),
        text(&output.stderr),
    )
}

/// Flags of a node that is alone, in a directory.
fn alone(dir: &Path) -> Vec<String> {
    let socket = dir.join("swarm.sock");
    [
        "--state-dir",
        dir.to_str().unwrap(),
        "--listen-control-api",
        socket.to_str().unwrap(),
        "--listen-remote-api",
        "127.0.0.1:0",
        "--executor",
        "none",
    ]
    .map(str::to_owned)
    .to_vec()
}

/// What systemd was told, until a line begins so; the lines so far.
fn until(socket: &UnixDatagram, lines: &mut Vec<String>, begin: &str) {
    let mut buffer = [0; 4096];
    while !lines.iter().any(|line| line.starts_with(begin)) {
        let received = socket.recv(&mut buffer);
        assert!(received.is_ok(), "{begin}: {received:?}, after {lines:#?}");
        let message = String::from_utf8(buffer.iter().copied().take(received.unwrap()).collect());
        let message = message.unwrap();
        lines.extend(message.lines().map(str::to_owned));
    }
}

#[test]
fn systemd_is_told_ready_alive_and_stopping() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(LIMIT)).unwrap();
    let flags = alone(dir.path());
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let child = swarmd(&flags)
        .env("NOTIFY_SOCKET", &path)
        .env("WATCHDOG_USEC", "200000")
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut running = Running(child);
    let mut told = Vec::new();
    until(&socket, &mut told, "READY=1");
    until(
        &socket,
        &mut told,
        "STATUS=manager, connected to 127.0.0.1:",
    );
    told.clear();
    // Beats go on, for as long as the process's runtime does.
    for _ in 0..3 {
        told.retain(|line| line != "WATCHDOG=1");
        until(&socket, &mut told, "WATCHDOG=1");
    }
    let pid = Pid::from_raw(i32::try_from(running.0.id()).unwrap());
    kill(pid, Signal::SIGTERM).unwrap();
    until(&socket, &mut told, "STOPPING=1");
    assert_eq!(running.0.wait().unwrap().code(), Some(0));
}

#[test]
fn settings_are_checked_without_starting() {
    let dir = tempfile::tempdir().unwrap();
    let unit = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/systemd/swarmd.yaml");
    for flags in [
        vec!["--check-config"],
        vec!["--check-config", "--config", unit],
    ] {
        let (code, out, err) = text(&swarmd(&flags).output().unwrap());
        assert_eq!((code, out.as_str()), (Some(0), ""), "{err}");
        assert!(err.contains("the settings are valid"), "{err}");
    }
    let file = dir.path().join("swarmd.yaml");
    std::fs::write(&file, "listen-remote-api: here\nexecutor: docker\n").unwrap();
    let flags = [
        "--check-config",
        "--config",
        file.to_str().unwrap(),
        "--unlock-key=SWMKEY-1-x",
        "--listen-metrics=:9000",
    ];
    let (code, _, err) = text(&swarmd(&flags).output().unwrap());
    assert_eq!(code, Some(2), "{err}");
    for flag in [
        "listen-remote-api",
        "executor",
        "unlock-key",
        "listen-metrics",
    ] {
        assert!(err.contains(&format!("--{flag}")), "{flag}: {err}");
    }
}

#[test]
fn the_doctor_says_what_is_missing_and_the_way_out() {
    let dir = tempfile::tempdir().unwrap();
    let flags = alone(dir.path());
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let (code, out, err) = text(&swarmd(&flags).arg("doctor").output().unwrap());
    assert_eq!(code, Some(0), "{out}{err}");
    assert!(!out.contains("containerd"), "not needed here: {out}");
    assert!(out.contains("ok       control socket"), "{out}");

    let nowhere = format!("unix://{}/containerd.sock", dir.path().display());
    let containers = ["--executor", "containerd", "--engine-addr", &nowhere];
    let join = ["--join-addr", "127.0.0.1:1", "doctor"];
    let flags: Vec<&str> = flags
        .into_iter()
        .take(6)
        .chain(containers)
        .chain(join)
        .collect();
    let (code, out, _) = text(&swarmd(&flags).env("PATH", "/nowhere").output().unwrap());
    assert_eq!(code, Some(1), "{out}");
    for (what, remedy) in [
        ("containerd", "--engine-addr"),
        ("runc", "apt-get install runc"),
        ("nft", "apt-get install nftables"),
        ("manager", "firewalls"),
    ] {
        let line = out
            .lines()
            .find(|line| line.starts_with(&format!("missing  {what} ")));
        assert!(
            line.is_some_and(|line| line.contains(remedy)),
            "{what}: {out}"
        );
    }
    assert!(
        !dir.path().join("certificates").exists(),
        "it changes nothing"
    );
}

#[test]
fn the_unit_is_one_that_systemd_takes() {
    let unit = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/examples/systemd/swarmd.service"
    );
    let Ok(checked) = Command::new("systemd-analyze")
        .args(["verify", unit])
        .output()
    else {
        eprintln!("the unit's check is left out: no systemd-analyze");
        return;
    };
    let (_, _, err) = text(&checked);
    // That swarmd and the units beside it are not installed here is no fault of the unit's.
    let faults: Vec<&str> = err
        .lines()
        .filter(|line| line.contains("swarmd.service"))
        .filter(|line| !line.contains("is not executable") && !line.contains("Command 'man"))
        .collect();
    assert_eq!(faults, Vec::<&str>::new());
}

#[test]
fn manual_pages_and_completions_come_with_the_programs() {
    let dir = tempfile::tempdir().unwrap();
    for (name, page) in [
        ("swarmd", "swarmd-doctor.1"),
        ("swarmctl", "swarmctl-service-create.1"),
    ] {
        let program = binaries::find(name).unwrap();
        let made = Command::new(&program).arg("man").arg(dir.path()).output();
        assert_eq!(text(&made.unwrap()).0, Some(0));
        let written = std::fs::read_to_string(dir.path().join(page)).unwrap();
        assert!(written.contains(".SH SYNOPSIS"), "{written}");
        let script = Command::new(&program).args(["completion", "bash"]).output();
        let (code, script, _) = text(&script.unwrap());
        assert_eq!(code, Some(0));
        assert!(script.contains(&format!("_{name}()")), "{script}");
    }
}
