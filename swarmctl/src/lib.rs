//! swarmctl: the operator's tool, over a local UNIX socket.
//!
//! One way through the crate: `cli` (flags) -> `command` (one file per verb) -> `spec` (flags to
//! the wire) -> `client` (gRPC) -> `render` (tables, templates, JSON, progress). Nothing here
//! decides about the cluster: every rule that matters is the manager's, and is reported as it says it.
//!
//! Invariants:
//! - [`run`] reads nothing of the process: arguments, variables, streams, clock and connection are
//!   its inputs, so the same call gives the same output (the golden transcripts depend on it).
//! - Bad input is found before the first request, all of it at once.
//! - Results go to stdout; progress, warnings and errors go to stderr.

mod cli;
mod client;
mod clock;
mod command;
mod environment;
mod error;
mod registry_auth;
mod render;
mod resolve;
mod spec;
mod terminal;
#[cfg(test)]
mod tests;

use std::ffi::OsString;

use clap::error::ErrorKind;
use clap::{CommandFactory as _, FromArgMatches as _};

pub use clock::{Clock, SystemClock};
pub use environment::{Connector, Environment, Secret};
pub use error::ExitCode;
pub use terminal::{Capture, Stream, StreamKind, Terminal};

/// All commands and their flags, for those who walk them.
#[must_use]
pub fn command() -> clap::Command {
    cli::Cli::command()
}

/// Runs one command line; `args` starts with the program's name.
///
/// Everything is reported on `terminal`; the code says what kind of end it was.
pub async fn run(
    args: impl IntoIterator<Item = OsString>,
    environment: Environment,
    terminal: &mut Terminal,
) -> ExitCode {
    let command = cli::Cli::command().term_width(usize::from(terminal.stdout.columns()));
    let parsed = command
        .try_get_matches_from(args)
        .and_then(|matches| cli::Cli::from_arg_matches(&matches));
    let cli = match parsed {
        Ok(cli) => cli,
        Err(error) => return report_usage(&error, &environment, terminal),
    };
    match command::dispatch(cli, environment, terminal).await {
        Ok(()) => ExitCode::Ok,
        Err(error) => error.report(terminal),
    }
}

/// Help and version are answers (stdout, 0); everything else clap has to say is a usage error.
fn report_usage(
    error: &clap::Error,
    environment: &Environment,
    terminal: &mut Terminal,
) -> ExitCode {
    let rendered = error.render();
    let answer = matches!(
        error.kind(),
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion
    );
    let stream = if answer {
        &mut terminal.stdout
    } else {
        &mut terminal.stderr
    };
    let text = if environment.wants_colour() && stream.is_terminal() {
        rendered.ansi().to_string()
    } else {
        rendered.to_string()
    };
    stream.text(&text).map_or(ExitCode::Local, |()| {
        if answer {
            ExitCode::Ok
        } else {
            ExitCode::Usage
        }
    })
}
