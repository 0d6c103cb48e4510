//! What every command works with: the connection, the streams, the clock, and how to show things.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::SystemTime;

use serde_json::Value;

use crate::client::{Client, Reads};
use crate::clock::Clock;
use crate::environment::Environment;
use crate::error::Error;
use crate::registry_auth;
use crate::render::show::{self, Format};
use crate::render::table::Colour;
use crate::resolve::Naming;
use crate::terminal::{Stream, Terminal};

/// Which swarmd, and whether its answers are shown by name.
#[derive(Clone, Debug)]
pub(super) struct Target {
    pub(super) socket: String,
    pub(super) no_resolve: bool,
    pub(super) reads: Reads,
}

/// An open connection and where its answers go.
pub(super) struct Session<'a> {
    pub(super) client: Client,
    pub(super) terminal: &'a mut Terminal,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) interrupt: Pin<Box<dyn Future<Output = ()> + Send>>,
    pub(super) variables: BTreeMap<String, String>,
    pub(super) naming: Naming,
    coloured: bool,
}

impl<'a> Session<'a> {
    pub(super) async fn open(
        target: &Target,
        environment: Environment,
        terminal: &'a mut Terminal,
    ) -> Result<Self, Error> {
        let coloured = environment.wants_colour();
        let timeout = (environment.answer_timeout, target.reads);
        let client = Client::connect(environment.connector, &target.socket, timeout).await?;
        Ok(Self {
            client,
            terminal,
            clock: environment.clock,
            interrupt: environment.interrupt,
            variables: environment.variables,
            naming: if target.no_resolve {
                Naming::Ids
            } else {
                Naming::Names
            },
            coloured,
        })
    }

    pub(super) fn now(&self) -> SystemTime {
        self.clock.now()
    }

    /// Whether stdout takes colours.
    pub(super) fn colour(&self) -> Colour {
        self.colour_of(&self.terminal.stdout)
    }

    /// Whether a stream takes colours.
    pub(super) fn colour_of(&self, stream: &Stream) -> Colour {
        if self.coloured && stream.is_terminal() {
            Colour::On
        } else {
            Colour::Off
        }
    }

    /// Writes an answer.
    pub(super) fn print(&mut self, lines: &[String]) -> Result<(), Error> {
        if let Some(staleness) = self.client.take_staleness() {
            self.remark(&staleness.remark())?;
        }
        let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
        let written = self.terminal.stdout.text(&text);
        written.map_err(|source| Error::Local {
            what: "write to stdout",
            source,
        })
    }

    /// Writes objects as a program reads them: one array, or a line of the template for each. False
    /// where they are shown to people instead, which is the caller's.
    pub(super) fn print_values(
        &mut self,
        format: &Format,
        values: impl Iterator<Item = Value>,
    ) -> Result<bool, Error> {
        match format {
            Format::Details => return Ok(false),
            Format::Json => self.print(&[show::json(values.collect())])?,
            Format::Template(template) => {
                for value in values {
                    let line = template.render(&value).map_err(Error::Template)?;
                    self.print(&[line])?;
                }
            }
        }
        Ok(true)
    }

    /// What a request carries for a registry; empty, with a warning, where there is nothing.
    pub(super) async fn registry_auth(&mut self, registry: &str) -> Result<String, Error> {
        let found = registry_auth::find(registry, &self.variables).await?;
        if found.auth.is_empty() {
            self.remark(&format!("warning: {}", found.none_for(registry)))?;
        }
        Ok(found.auth)
    }

    /// Writes what is not the answer: progress and remarks.
    pub(super) fn remark(&mut self, line: &str) -> Result<(), Error> {
        let written = self.terminal.stderr.line(line);
        written.map_err(|source| Error::Local {
            what: "write to stderr",
            source,
        })
    }
}

/// Failures of a command over several objects: the others are still done.
#[derive(Debug, Default)]
pub(super) struct Failures(Vec<Error>);

impl Failures {
    pub(super) fn note<T>(&mut self, result: Result<T, Error>) -> Option<T> {
        match result {
            Ok(value) => Some(value),
            Err(error) => {
                self.0.push(error);
                None
            }
        }
    }

    pub(super) fn end(mut self) -> Result<(), Error> {
        match self.0.len() {
            0 => Ok(()),
            1 => self.0.pop().map_or(Ok(()), Err),
            _ => Err(Error::Many(self.0)),
        }
    }
}
