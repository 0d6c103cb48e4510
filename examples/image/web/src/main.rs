//! The web server of the example image. It says who answered whom, and misbehaves on request.
//!
//! ```text
//! GET /             its task, node and hostname, and the client address it sees
//! GET /env          its environment, sorted
//! GET /bytes?n=N    N bytes
//! GET /health       200 while healthy, 503 otherwise
//! GET /healthy      turns healthy          GET /unhealthy    turns unhealthy
//! GET /crash?code=N exits at once with N   GET /hang         answers nothing any more, not even SIGTERM
//! web health        asks its own /health and exits with 0 or 1: a health check for an image without a shell
//! ```
//!
//! It is the only process of its container, so it runs as PID 1, where a signal that nobody handles is
//! lost: SIGTERM and SIGINT are blocked in every thread and taken by the main thread, which closes the
//! listener, lets the requests under way end and returns 0.
//!
//! Limits: [`WORKERS`] requests at a time and [`QUEUED`] accepted ones waiting; further connections wait in the
//! kernel. Each socket operation ends within [`SOCKET_TIMEOUT`].
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a program that logs to its container's output"
)]

mod http;
mod server;

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use nix::sys::signal::{SigSet, Signal};
use nix::sys::socket::{Shutdown, shutdown};

use crate::server::{Server, State};

/// Requests served at a time; each holds one thread.
pub(crate) const WORKERS: usize = 32;
/// Accepted connections that wait for a worker.
pub(crate) const QUEUED: usize = 32;
/// A client that neither sends nor takes anything for so long is dropped.
pub(crate) const SOCKET_TIMEOUT: Duration = Duration::from_secs(10);
/// How long requests under way may take after SIGTERM: less than the usual grace period of 10 s.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);
/// Where it listens unless PORT says otherwise; above 1023, so that it needs no privilege.
const DEFAULT_PORT: u16 = 8080;

fn main() -> ExitCode {
    let result = match std::env::args().nth(1).as_deref() {
        None => serve(),
        Some("health") => check_health(),
        Some(other) => Err(format!(
            "unknown argument {other}; run without arguments, or with: health"
        )),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("web: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Serves until SIGTERM or SIGINT.
fn serve() -> Result<(), String> {
    // Before the first thread, which inherits the mask.
    let signals = SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT]);
    signals
        .thread_block()
        .map_err(|error| format!("signals can't be blocked: {error}"))?;

    let listener = listen(port()?)?;
    let address = listener
        .local_addr()
        .map_err(|error| format!("no local address: {error}"))?;
    #[expect(
        clippy::disallowed_methods,
        reason = "this is where the environment is read"
    )]
    let state = Arc::new(State::new(std::env::vars().collect()));
    println!("listening on {address} as {}", state.identity());
    let descriptor = listener.as_raw_fd();
    let server = Server::start(listener, Arc::clone(&state))
        .map_err(|error| format!("a thread can't be started: {error}"))?;

    loop {
        let signal = signals
            .wait()
            .map_err(|error| format!("signals can't be awaited: {error}"))?;
        if state.is_hung() {
            println!("got {signal}, but it hangs as it was told to");
            continue;
        }
        println!("got {signal}, stopping");
        // Ends accept() in the acceptor, which owns the listener until it is joined below.
        shutdown(descriptor, Shutdown::Both)
            .map_err(|error| format!("the listener can't be closed: {error}"))?;
        let unfinished = server.drain(DRAIN_TIMEOUT);
        println!("stopped, {unfinished} requests unfinished");
        return Ok(());
    }
}

/// Listens on both address families where the kernel has IPv6, else on IPv4 alone.
fn listen(port: u16) -> Result<TcpListener, String> {
    TcpListener::bind(("::", port))
        .or_else(|_| TcpListener::bind(("0.0.0.0", port)))
        .map_err(|error| format!("can't listen on port {port}: {error}"))
}

fn port() -> Result<u16, String> {
    #[expect(
        clippy::disallowed_methods,
        reason = "this is where the configuration is read"
    )]
    match std::env::var("PORT") {
        Ok(text) => text
            .parse()
            .map_err(|_| format!("PORT={text} is not a port; give a number from 1 to 65535")),
        Err(_) => Ok(DEFAULT_PORT),
    }
}

/// Asks the server of this container how it is.
fn check_health() -> Result<(), String> {
    let address = SocketAddr::from(([127, 0, 0, 1], port()?));
    let stream = TcpStream::connect_timeout(&address, SOCKET_TIMEOUT)
        .map_err(|error| format!("{address} does not answer: {error}"))?;
    match http::ask(stream, "/health")
        .map_err(|error| format!("{address} does not answer: {error}"))?
    {
        200 => Ok(()),
        status => Err(format!("{address} answers {status}")),
    }
}
