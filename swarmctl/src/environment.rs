//! What a run takes from the world besides its arguments and streams.

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::io::{self, BufRead as _, IsTerminal as _, Read as _};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tonic::transport::Channel;
use zeroize::Zeroizing;

use crate::clock::{Clock, SystemClock};

/// A manager that answers nothing for so long has no quorum or hangs; the operator hears of it.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// Bytes of a secret that is read from stdin; an unlock key has 52.
const SECRET_MAX: u64 = 4096;

/// Variables, clock, connection and interrupt of one run.
pub struct Environment {
    /// Environment variables: `SWARM_SOCKET`, `NO_COLOR`, and those that `--env NAME` copies.
    pub variables: BTreeMap<String, String>,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// How the manager is reached.
    pub connector: Connector,
    /// Ends when the operator presses Ctrl-C. Polled only while waiting for convergence.
    pub interrupt: Pin<Box<dyn Future<Output = ()> + Send>>,
    /// Where a secret comes from that is asked for.
    pub secret: Secret,
    /// How long one request may take; `None` waits forever (a simulation on virtual time).
    pub answer_timeout: Option<Duration>,
}

/// How the manager is reached.
#[derive(Clone, Debug)]
pub enum Connector {
    /// The UNIX socket named by `--socket`, `SWARM_SOCKET` or the default.
    Socket,
    /// A connection made by the caller; the socket options are not looked at.
    Channel(Channel),
}

/// Where a secret comes from that is asked for.
#[derive(Clone)]
pub enum Secret {
    /// The terminal, without an echo; where stdin is none, its first line.
    OfProcess,
    /// It is here.
    Given(Zeroizing<String>),
}

impl Secret {
    /// Reads it; blocks. `prompt` is what a person is asked.
    pub(crate) fn read(&self, prompt: &str) -> io::Result<Zeroizing<String>> {
        match self {
            Self::Given(secret) => Ok(secret.clone()),
            Self::OfProcess if io::stdin().is_terminal() => {
                let terminal = console::Term::stderr();
                terminal.write_str(prompt)?;
                terminal.read_secure_line().map(Zeroizing::new)
            }
            Self::OfProcess => {
                let mut line = Zeroizing::new(String::new());
                io::stdin().lock().take(SECRET_MAX).read_line(&mut line)?;
                Ok(line)
            }
        }
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::OfProcess => "OfProcess",
            Self::Given(_) => "Given(hidden)",
        })
    }
}

impl Environment {
    /// The environment of this process.
    #[must_use]
    pub fn of_process() -> Self {
        let variables = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .collect();
        Self {
            variables,
            clock: Arc::new(SystemClock),
            connector: Connector::Socket,
            interrupt: Box::pin(async {
                if tokio::signal::ctrl_c().await.is_err() {
                    // Without a handler the signal ends the process, as it does by default.
                    std::future::pending::<()>().await;
                }
            }),
            secret: Secret::OfProcess,
            answer_timeout: Some(ANSWER_TIMEOUT),
        }
    }

    /// An environment without variables over a connection of the caller's, that is never interrupted.
    #[must_use]
    pub fn over(channel: Channel, clock: Arc<dyn Clock>) -> Self {
        Self {
            variables: BTreeMap::new(),
            clock,
            connector: Connector::Channel(channel),
            interrupt: Box::pin(std::future::pending()),
            secret: Secret::Given(Zeroizing::default()),
            answer_timeout: None,
        }
    }

    /// False when the operator asked for no colours (<https://no-color.org>).
    pub(crate) fn wants_colour(&self) -> bool {
        self.variables.get("NO_COLOR").is_none_or(String::is_empty)
    }
}

impl fmt::Debug for Environment {
    /// Values of variables stay out: they may hold secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Environment")
            .field("variables", &self.variables.len())
            .field("clock", &self.clock)
            .field("connector", &self.connector)
            .field("answer_timeout", &self.answer_timeout)
            .finish_non_exhaustive()
    }
}
