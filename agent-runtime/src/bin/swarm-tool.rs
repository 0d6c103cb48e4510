//! The processes beside a container, alone: what the tests of the executor run in the place of swarmd, which is each
//! of them too.

use std::process::ExitCode;

fn main() -> ExitCode {
    agent_runtime::tool::run(std::env::args_os()).unwrap_or(ExitCode::FAILURE)
}
