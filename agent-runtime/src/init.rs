//! The first process of a container with `--init`: starts the command, hands it every signal
//! (but real-time ones), and
//! takes up the children that the command leaves behind, which would stay as zombies else.
//!
//! And the one before it of a container with an open standard input and no terminal: containerd gives
//! such a container none, where its output goes to a log writer.
//!
//! As Docker's (tini): the command gets a process group of its own and, with a terminal, the
//! foreground; the container ends when the command does, with its exit code.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, IsTerminal as _, Write as _};
use std::os::unix::process::CommandExt as _;
use std::process::{Command, ExitCode};

use nix::errno::Errno;
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, getpgrp, tcsetpgrp};

use crate::tool::COMMAND;

/// What shells say of a command that can't be run, and of one that is not there.
const NOT_RUNNABLE: u8 = 126;
const NOT_FOUND: u8 = 127;
/// Added to the number of the signal that ended a command.
const SIGNALLED: i32 = 128;

/// Runs a command as the first process of a container does; returns how it ended.
pub(crate) fn run(program: &OsStr, args: &[OsString]) -> ExitCode {
    match start_and_wait(program, args) {
        Ok(code) => ExitCode::from(code),
        Err(error) => not_run(program, &error),
    }
}

/// Becomes the command, in the foreground of its terminal, with no signal blocked.
pub(crate) fn run_unblocked(program: &OsStr, args: &[OsString]) -> ExitCode {
    let stdin = io::stdin();
    if stdin.is_terminal() {
        // Before its first instruction: without the foreground it would be stopped for reading from
        // its terminal. Signals are blocked still, the one for taking it among them.
        let _ = tcsetpgrp(&stdin, getpgrp());
    }
    let error = match SigSet::all().thread_unblock() {
        Ok(()) => Command::new(program).args(args).exec(),
        Err(error) => error.into(),
    };
    not_run(program, &error)
}

/// Where a container sees the pipe that is its standard input.
pub(crate) const STDIN_PATH: &str = "/run/swarm-stdin";

/// Becomes the command, with the pipe as its standard input.
pub(crate) fn run_with_stdin(program: &OsStr, args: &[OsString]) -> ExitCode {
    // Open for writing too, so that it does not end when somebody who wrote to it closes it.
    let pipe = File::options().read(true).write(true).open(STDIN_PATH);
    let ready = pipe.and_then(|pipe| Ok(nix::unistd::dup2_stdin(pipe)?));
    let error = match ready {
        Ok(()) => Command::new(program).args(args).exec(),
        Err(error) => error,
    };
    not_run(program, &error)
}

fn not_run(program: &OsStr, error: &io::Error) -> ExitCode {
    // Standard error is the container's; there is nobody else to tell.
    let _ = writeln!(io::stderr(), "swarm-init: {}: {error}", program.display());
    let missing = error.kind() == io::ErrorKind::NotFound;
    ExitCode::from(if missing { NOT_FOUND } else { NOT_RUNNABLE })
}

fn start_and_wait(program: &OsStr, args: &[OsString]) -> io::Result<u8> {
    // Blocked from before the start on, so that none is missed. The command must begin with none
    // blocked, which is for its own process to do, before it becomes the command.
    let signals = SigSet::all();
    signals.thread_block()?;
    let child = Command::new("/proc/self/exe")
        .args([OsStr::new(COMMAND), OsStr::new("--"), program])
        .args(args)
        .process_group(0)
        .spawn()?;
    let pid = i32::try_from(child.id()).map_err(io::Error::other)?;
    let command = Pid::from_raw(pid);
    loop {
        let signal = match signals.wait() {
            Ok(signal) => signal,
            // A real-time signal: those are not handed on.
            Err(_) => continue,
        };
        if signal == Signal::SIGCHLD {
            if let Some(code) = reap(command) {
                return Ok(code);
            }
        } else if !matches!(signal, Signal::SIGTTIN | Signal::SIGTTOU) {
            // Those two this process brought upon itself by looking after the terminal. One that
            // has just ended can't be signalled: its end follows.
            let _ = kill(command, signal);
        }
    }
}

/// Takes up all children that have ended; the exit code if the command is among them.
fn reap(command: Pid) -> Option<u8> {
    let mut ended = None;
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(pid, code)) if pid == command => ended = Some(code),
            Ok(WaitStatus::Signaled(pid, signal, _)) if pid == command => {
                ended = Some(SIGNALLED + signal as i32);
            }
            Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => break,
            // Others, and those that only stopped or went on.
            Ok(_) | Err(_) => {}
        }
    }
    ended.map(|code| u8::try_from(code).unwrap_or(u8::MAX))
}
