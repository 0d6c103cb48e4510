//! Benchmarks: `bench schedule`, `control-plane`, `commit`, `failover`, `catch-up`, `footprint`, `pull`, `start` and
//! `agent`, some with cases to run.
//!
//! `schedule` calls the pass, `pull` a node's images, on a containerd and a registry of its own; `start` (with stopping)
//! and `agent` run real containers on hosts of a lab; the others start release swarmd processes (the ones beside this
//! program) and measure them from outside. A bench ends with our figures beside the reference's and one JSON line a
//! case, which also goes to `target/bench/NAME.json`. All that a case started ends with it, also when it fails or is
//! interrupted.
#![expect(
    clippy::disallowed_methods,
    reason = "a bench reads the clock and its own arguments"
)]

mod cluster;
mod containers;
mod control_plane;
mod footprint;
mod load;
mod managers;
mod plain;
mod pull;
mod report;
mod schedule;

use std::process::ExitCode;

/// Anything that keeps a bench from its figure; it is only ever shown.
type Failure = Box<dyn std::error::Error + Send + Sync>;

fn main() -> ExitCode {
    // Our TLS names no provider of its own.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match run(&words) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            report::say(&format!("bench: {error}"));
            ExitCode::FAILURE
        }
    }
}

fn run(words: &[&str]) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    let work = async {
        match words {
            ["schedule", only @ ..] => schedule::run(only),
            ["control-plane", only @ ..] => control_plane::run(only).await,
            ["commit", only @ ..] => managers::commit(only).await,
            ["failover"] => managers::failover().await,
            ["catch-up"] => managers::catch_up().await,
            ["footprint", only @ ..] => footprint::run(only).await,
            ["pull", only @ ..] => pull::run(only).await,
            ["start"] => containers::run().await,
            ["agent"] => containers::agent().await,
            [load::COMMAND, addr, token, nodes] => load::run(addr, token, nodes.parse()?).await,
            _ => Err(
                "usage: bench schedule|control-plane|commit|footprint|pull [CASE…], bench failover|catch-up|start|agent"
                    .into(),
            ),
        }
    };
    runtime.block_on(async {
        tokio::select! {
            biased;
            // What the cases own is dropped with them.
            _ = tokio::signal::ctrl_c() => Err("interrupted".into()),
            ended = work => ended,
        }
    })
}
