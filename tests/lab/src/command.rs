//! Runs the machine's tools (ip, ctr, …) to their end and reports what they said.

use std::io;
use std::process::{Command, Stdio};

use crate::Error;

/// Runs `program` and returns its stdout; stdin is empty.
pub fn run(program: &str, arguments: &[&str]) -> Result<String, Error> {
    let mut command = Command::new(program);
    command.args(arguments);
    output(&mut command)
}

/// Runs a line of words without spaces in them: `run_line("ip netns add n1")`.
pub(crate) fn run_line(line: &str) -> Result<String, Error> {
    let mut words = line.split_whitespace();
    let program = words.next().unwrap_or_default();
    run(program, &words.collect::<Vec<_>>())
}

/// Runs a prepared command and returns its stdout.
pub fn output(command: &mut Command) -> Result<String, Error> {
    let result = command
        .stdin(Stdio::null())
        .output()
        .map_err(|error| not_started(command, &error))?;
    let stdout = String::from_utf8_lossy(&result.stdout).into_owned();
    if result.status.success() {
        return Ok(stdout);
    }
    let stderr = String::from_utf8_lossy(&result.stderr);
    Err(Error::Command {
        line: line(command),
        status: result.status.to_string(),
        output: format!("{}{}", stderr.trim(), stdout.trim()),
    })
}

/// The error of a program that could not be started.
pub(crate) fn not_started(command: &Command, error: &io::Error) -> Error {
    if error.kind() == io::ErrorKind::NotFound {
        return Error::Missing {
            program: command.get_program().to_string_lossy().into_owned(),
        };
    }
    Error::Command {
        line: line(command),
        status: "not started".to_owned(),
        output: error.to_string(),
    }
}

fn line(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words
        .map(|word| word.to_string_lossy())
        .collect::<Vec<_>>()
        .join(" ")
}
