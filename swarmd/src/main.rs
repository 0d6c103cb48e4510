//! The daemon: parses its settings, runs, and says how it ended.

use std::process::ExitCode;

fn main() -> ExitCode {
    // Under other words this is one of the small processes of a container: before anything is started.
    agent_runtime::tool::run(std::env::args_os()).unwrap_or_else(swarmd::run)
}
