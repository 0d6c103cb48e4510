//! The `swarmctl` binary: the process's arguments, environment and streams go into [`swarmctl::run`].

use std::process::ExitCode;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let mut terminal = swarmctl::Terminal::of_process();
    let environment = swarmctl::Environment::of_process();
    swarmctl::run(std::env::args_os(), environment, &mut terminal)
        .await
        .into()
}
