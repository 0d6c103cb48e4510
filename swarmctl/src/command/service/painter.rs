//! Shows progress on stderr: a bar that is redrawn on a terminal, a line for each change elsewhere.
//!
//! The bar is indicatif's. It stays on the screen however the wait ends.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressFinish, ProgressStyle};
use swarm_proto::pb;

use super::super::session::Session;
use crate::error::Error;
use crate::render::progress::{Seen, details, headline, reasons, share};
use crate::render::table::Colour;
use crate::resolve::service_name;
use crate::terminal::Stream;

/// The headline follows the bar; the lines of the tasks follow both.
const TEMPLATE: &str = "[{bar:20}] {msg}";
/// Done, under way, to do.
const BAR_CHARS: &str = "#>-";
/// Columns of the bar, its brackets and the space after it.
const BAR_COLUMNS: usize = 23;

pub(super) enum Painter {
    Silent,
    Lines(Lines),
    Bar(Bar),
}

/// What was already said: the headline, and each reason once.
#[derive(Default)]
pub(super) struct Lines {
    headline: String,
    reasons: Vec<String>,
}

pub(super) struct Bar {
    bar: ProgressBar,
    columns: usize,
    colour: Colour,
}

impl Painter {
    pub(super) fn new(session: &Session<'_>, quiet: bool) -> Self {
        let stderr = &session.terminal.stderr;
        if quiet {
            return Self::Silent;
        }
        Bar::on(stderr, session.colour_of(stderr))
            .map_or_else(|| Self::Lines(Lines::default()), Self::Bar)
    }

    pub(super) fn show(
        &mut self,
        session: &mut Session<'_>,
        seen: &Seen,
        tasks: &[pb::Task],
    ) -> Result<(), Error> {
        match self {
            Self::Silent => Ok(()),
            Self::Lines(lines) => lines.show(session, seen, tasks),
            Self::Bar(bar) => {
                bar.show(seen, tasks);
                Ok(())
            }
        }
    }

    /// Says something that is no progress, above the bar where there is one.
    pub(super) fn remark(&self, session: &mut Session<'_>, line: &str) -> Result<(), Error> {
        match self {
            Self::Silent | Self::Lines(_) => session.remark(line),
            Self::Bar(bar) => {
                bar.bar.println(line);
                Ok(())
            }
        }
    }

    pub(super) fn end(self, session: &mut Session<'_>, seen: &Seen) -> Result<(), Error> {
        match self {
            Self::Silent => return Ok(()),
            Self::Lines(_) => {}
            Self::Bar(bar) => drop(bar),
        }
        session.remark(&format!("{}: converged", service_name(&seen.service)))
    }
}

impl Lines {
    fn show(
        &mut self,
        session: &mut Session<'_>,
        seen: &Seen,
        tasks: &[pb::Task],
    ) -> Result<(), Error> {
        let head = headline(seen);
        if self.headline != head {
            session.remark(&head)?;
            self.headline = head;
        }
        for reason in reasons(tasks) {
            if !self.reasons.contains(&reason) {
                session.remark(&format!("  {reason}"))?;
                self.reasons.push(reason);
            }
        }
        Ok(())
    }
}

impl Bar {
    /// None where the stream is no terminal.
    fn on(stream: &Stream, colour: Colour) -> Option<Self> {
        let target = ProgressDrawTarget::term_like(Box::new(stream.screen()?));
        let style = ProgressStyle::with_template(TEMPLATE)
            .unwrap_or_else(|_| ProgressStyle::default_bar())
            .progress_chars(BAR_CHARS);
        let bar = ProgressBar::with_draw_target(None, target)
            .with_style(style)
            .with_finish(ProgressFinish::Abandon);
        let columns = usize::from(stream.columns());
        Some(Self {
            bar,
            columns,
            colour,
        })
    }

    fn show(&self, seen: &Seen, tasks: &[pb::Task]) {
        let cut = |text: &str, columns| console::truncate_str(text, columns, "…").into_owned();
        let room = self.columns.saturating_sub(BAR_COLUMNS);
        let mut message = cut(&headline(seen), room);
        for line in details(seen, tasks, self.colour) {
            message.push('\n');
            message.push_str(&cut(&line, self.columns));
        }
        let (done, all) = share(seen);
        self.bar.update(|state| {
            state.set_len(all);
            state.set_pos(done.min(all));
        });
        self.bar.set_message(message);
    }
}
