//! One file per verb: ask the manager, hand the answer to `render`, write it.

mod cluster;
mod completion;
mod image;
mod man;
mod node;
mod service;
mod session;
mod task;
mod version;

use crate::cli::{Cli, Command, DEFAULT_SOCKET};
use crate::client::Reads;
use crate::environment::Environment;
use crate::error::Error;
use crate::terminal::Terminal;

/// Runs the command of a parsed command line.
pub(crate) async fn dispatch(
    cli: Cli,
    environment: Environment,
    terminal: &mut Terminal,
) -> Result<(), Error> {
    let socket = cli.global.socket.clone();
    let socket = socket.or_else(|| environment.variables.get("SWARM_SOCKET").cloned());
    let socket = socket
        .filter(|path| !path.is_empty())
        .unwrap_or_else(|| DEFAULT_SOCKET.to_owned());
    let target = session::Target {
        socket,
        no_resolve: cli.global.no_resolve,
        reads: if cli.global.stale {
            Reads::Stale
        } else {
            Reads::Newest
        },
    };
    match cli.command {
        Command::Completion { shell } => completion::run(shell, terminal),
        Command::Man { dir } => man::run(&dir),
        Command::Version => version::run(&target, environment, terminal).await,
        Command::Node(node) => node::run(node, &target, environment, terminal).await,
        Command::Service(service) => service::run(*service, &target, environment, terminal).await,
        Command::Image(image) => image::run(image, &target, environment, terminal).await,
        Command::Task(task) => task::run(task, &target, environment, terminal).await,
        Command::Cluster(cluster) => cluster::run(cluster, &target, environment, terminal).await,
    }
}
