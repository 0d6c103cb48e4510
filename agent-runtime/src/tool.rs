//! What the running program can also be: the small processes that belong to a container.
//!
//! | words | what |
//! |---|---|
//! | `task-log CONFIG` | the writer of a container's output ([`crate::output`]) |
//! | `task-init -- COMMAND…` | the first process of a container with `--init` |
//! | `task-command -- COMMAND…` | its child, which becomes the command |
//! | `task-stdin -- COMMAND…` | opens a pipe as standard input, and becomes the command |
//!
//! They are this program under other words, not programs of their own: there is nothing more to
//! install, and they are there wherever it is.

use std::ffi::{OsStr, OsString};
use std::path::Path;
use std::process::ExitCode;

use crate::init;

/// The first word of a log writer's command line.
pub(crate) const LOG: &str = "task-log";
/// The first word of an init process's command line.
pub(crate) const INIT: &str = "task-init";
/// The first word of what an init process starts, which becomes the command.
pub(crate) const COMMAND: &str = "task-command";
/// The first word of what opens an input.
pub(crate) const STDIN: &str = "task-stdin";
/// Exit code of a command line that makes no sense, as of other commands.
const USAGE: u8 = 2;

/// Runs what the words ask for, if they are for one of these; `None` if the program is meant itself.
/// To be called first, before any thread is started.
pub fn run(args: impl IntoIterator<Item = OsString>) -> Option<ExitCode> {
    let mut args = args.into_iter().skip(1);
    let word = args.next()?;
    if word == LOG {
        return Some(match (args.next(), args.next()) {
            (Some(config), None) => crate::output::run(Path::new(&config)),
            (Some(_) | None, _) => ExitCode::from(USAGE),
        });
    }
    let wrapped = [
        (INIT, init::run as Wrapper),
        (COMMAND, init::run_unblocked),
        (STDIN, init::run_with_stdin),
    ];
    let (_, wrapper) = wrapped.into_iter().find(|(name, _)| word == *name)?;
    Some(match (args.next(), args.next()) {
        (Some(dashes), Some(program)) if dashes == "--" => {
            let args: Vec<OsString> = args.collect();
            wrapper(&program, &args)
        }
        (Some(_) | None, _) => ExitCode::from(USAGE),
    })
}

/// Runs a command in its own way.
type Wrapper = fn(&OsStr, &[OsString]) -> ExitCode;
