//! The daemon: parses its settings, runs, and says how it ended.

use std::process::ExitCode;

fn main() -> ExitCode {
    swarmd::run()
}
