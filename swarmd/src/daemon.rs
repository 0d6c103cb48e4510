//! The process: settings, logs, signals, exit code.
//!
//! Exit codes: 0 stopped or left as asked, 1 failed, 2 wrong settings.

#![allow(
    clippy::print_stderr,
    reason = "the process speaks to its operator before logs are up"
)]

use std::io::{IsTerminal as _, Write as _};
use std::path::Path;
use std::process::ExitCode;

use clap::{CommandFactory as _, Parser as _};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

use crate::clock::Clock;
use crate::config::{Cli, Command, Config, RaftCommand, no_colour};
use crate::{control, doctor, dump, host, node, restore, service_manager};

/// Runs what the command line asks for.
pub fn run() -> ExitCode {
    let cli = Cli::parse();
    match &cli.command {
        Some(Command::Completion { shell }) => return completion(*shell),
        Some(Command::Man { dir }) => return manual(dir),
        Some(
            Command::Leave { .. }
            | Command::Doctor
            | Command::Healthcheck
            | Command::Restore { .. }
            | Command::Raft(_),
        )
        | None => {}
    }
    // Before there are other threads.
    host::tune_allocator();
    match cli.host_mounts {
        true => host::in_mounts_of_first(|| act(&cli)).unwrap_or_else(|error| {
            eprintln!("swarmd: {error}");
            ExitCode::FAILURE
        }),
        false => act(&cli),
    }
}

/// What needs the settings.
fn act(cli: &Cli) -> ExitCode {
    let config = match cli.config() {
        Ok(config) => config,
        Err(errors) => {
            for error in &errors.0 {
                eprintln!("swarmd: {error}");
            }
            eprintln!("swarmd: see `swarmd --help`");
            return ExitCode::from(2);
        }
    };
    if cli.check_config {
        eprintln!("swarmd: the settings are valid");
        return ExitCode::SUCCESS;
    }
    // One crypto provider for the whole process, also for libraries that ask for the default.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("swarmd: can't start: {error}");
            return ExitCode::FAILURE;
        }
    };
    let config_is_json = config.log_json;
    let result = match &cli.command {
        None => {
            start_logs(&config);
            runtime.block_on(serve(config))
        }
        Some(Command::Leave { force }) => runtime.block_on(leave(&config, *force)),
        Some(Command::Healthcheck) => runtime.block_on(health(&config)),
        Some(Command::Doctor) => match runtime.block_on(doctor::run(&config)) {
            true => Ok(()),
            false => return ExitCode::FAILURE,
        },
        Some(Command::Restore {
            file,
            check,
            show_unlock_key,
        }) => match (check, show_unlock_key) {
            (true, _) => restore::check(file).map(said).map_err(Into::into),
            (_, true) => restore::show_unlock_key(file).map(said).map_err(Into::into),
            (false, false) => runtime.block_on(restored(file, &config)),
        },
        Some(Command::Raft(RaftCommand::Dump(what))) => {
            match dump::run(&config.state_dir, config.unlock_key.as_ref(), what) {
                Ok(dump::Dumped { text, whole }) => {
                    said(text);
                    match whole {
                        true => Ok(()),
                        false => return ExitCode::FAILURE,
                    }
                }
                Err(error) => Err(error.into()),
            }
        }
        Some(Command::Completion { .. } | Command::Man { .. }) => Ok(()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Where logs are read by a program, the last line is one of them.
            match cli.command.is_none() && config_is_json {
                true => tracing::error!("{error}"),
                false => eprintln!("swarmd: {error}"),
            }
            ExitCode::FAILURE
        }
    }
}

fn completion(shell: clap_complete::Shell) -> ExitCode {
    // Into memory first: the generator stops the process when it can't write.
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "swarmd", &mut script);
    written(std::io::stdout().write_all(&script))
}

fn manual(dir: &Path) -> ExitCode {
    written(
        std::fs::create_dir_all(dir).and_then(|()| clap_mangen::generate_to(Cli::command(), dir)),
    )
}

fn written(result: std::io::Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("swarmd: can't write: {error}");
            ExitCode::FAILURE
        }
    }
}

fn start_logs(config: &Config) {
    // A bare level is about swarmd; its libraries speak from warnings on.
    let filter = match config.log_level.as_str() {
        level @ ("debug" | "trace") => {
            format!(
                "{level},h2=warn,hyper=warn,hyper_util=warn,tower=warn,openraft=warn,rustls=warn,tonic=warn"
            )
        }
        // What openraft calls an error is said again, in our words, where it is one.
        level => format!("{level},openraft=off"),
    };
    let filter = EnvFilter::try_new(filter).unwrap_or_else(|_| EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal() && !no_colour())
        .with_writer(std::io::stderr);
    // Fails only when a subscriber is set already: in-process tests do so.
    let _ = if config.log_json {
        builder.json().try_init()
    } else {
        builder.try_init()
    };
}

async fn serve(config: Config) -> Result<(), Box<dyn std::error::Error>> {
    let cancel = CancellationToken::new();
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut running = std::pin::pin!(node::run(config, cancel.clone()));
    let mut alive = std::pin::pin!(service_manager::keep_alive(Clock::real()));
    tokio::select! {
        biased;
        never = &mut alive => match never {},
        _ = terminate.recv() => tracing::info!("stopping on SIGTERM; containers keep running"),
        _ = interrupt.recv() => tracing::info!("stopping on SIGINT; containers keep running"),
        ended = &mut running => return Ok(ended?),
    }
    cancel.cancel();
    service_manager::stopping();
    tokio::select! {
        biased;
        never = alive => match never {},
        ended = &mut running => Ok(ended?),
        _ = terminate.recv() => Err("stopped at once, by a second signal".into()),
        _ = interrupt.recv() => Err("stopped at once, by a second signal".into()),
    }
}

async fn leave(config: &Config, force: bool) -> Result<(), Box<dyn std::error::Error>> {
    eprintln!(
        "{}",
        control::leave(&config.listen_control_api, force).await?
    );
    Ok(())
}

#[expect(
    clippy::print_stdout,
    reason = "the answer goes to who asked, such as a container engine"
)]
async fn health(config: &Config) -> Result<(), Box<dyn std::error::Error>> {
    println!("{}", control::health(&config.listen_control_api).await?);
    Ok(())
}

/// The answer to who asked. That it is not read to its end is the reader's choice.
fn said(text: String) {
    let _ = writeln!(std::io::stdout(), "{text}");
}

async fn restored(file: &Path, config: &Config) -> Result<(), Box<dyn std::error::Error>> {
    let availability = node::first_availability(config).await;
    let (file, config) = (file.to_owned(), config.clone());
    let work = tokio::task::spawn_blocking(move || {
        restore::restore(&file, &config, availability, &Clock::real())
    });
    said(work.await??);
    Ok(())
}
