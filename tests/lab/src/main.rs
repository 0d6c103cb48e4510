//! `demo up` and `demo down`: a cluster of six hosts on this machine.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use lab::demo;

/// A cluster of six hosts on this machine.
#[derive(Debug, Parser)]
#[command(name = "demo")]
struct Arguments {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Starts the cluster, and a service on it.
    Up,
    /// Removes everything that `up` made.
    Down,
}

#[expect(clippy::print_stderr, reason = "where the user looks for errors")]
fn main() -> ExitCode {
    let result = match Arguments::parse().action {
        Action::Up => demo::up(),
        Action::Down => demo::down(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("demo: {}", error.chain());
            ExitCode::FAILURE
        }
    }
}
