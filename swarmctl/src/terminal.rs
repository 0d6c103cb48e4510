//! The two output streams of a run, and what is known about each: a terminal of some width, or not.

use std::fmt;
use std::io::{self, IsTerminal as _, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use indicatif::TermLike;

/// Width of help texts and of cut columns where the stream has no width of its own.
const DEFAULT_COLUMNS: u16 = 100;
/// Lines of a terminal that does not say how many it has.
const DEFAULT_ROWS: u16 = 24;
/// A screen that claims to be narrower is not believed: no progress fits into it.
const COLUMNS_MIN: u16 = 20;

/// Where a run writes.
#[derive(Debug)]
pub struct Terminal {
    /// Answers.
    pub stdout: Stream,
    /// Progress, warnings and errors.
    pub stderr: Stream,
}

/// Shared with the progress that is drawn on the stream.
type Writer = Arc<Mutex<Box<dyn Write + Send>>>;

/// One output stream.
pub struct Stream {
    writer: Writer,
    kind: StreamKind,
}

/// What stands behind a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamKind {
    /// A file or a pipe: plain lines, no colours, nothing redrawn.
    Plain,
    /// A screen of this size.
    Terminal {
        /// Columns of the screen.
        columns: u16,
        /// Lines of the screen; what is redrawn never exceeds them.
        rows: u16,
    },
}

impl Terminal {
    /// The streams of this process.
    #[must_use]
    pub fn of_process() -> Self {
        let (stdout, stderr) = (io::stdout(), io::stderr());
        let out = kind(
            stdout.is_terminal(),
            terminal_size::terminal_size_of(&stdout),
        );
        let err = kind(
            stderr.is_terminal(),
            terminal_size::terminal_size_of(&stderr),
        );
        Self {
            stdout: Stream::new(stdout, out),
            stderr: Stream::new(stderr, err),
        }
    }

    /// Plain streams that keep what is written, for tests.
    #[must_use]
    pub fn captured() -> (Self, Capture, Capture) {
        let (stdout, stderr) = (Capture::default(), Capture::default());
        let terminal = Self {
            stdout: Stream::new(stdout.clone(), StreamKind::Plain),
            stderr: Stream::new(stderr.clone(), StreamKind::Plain),
        };
        (terminal, stdout, stderr)
    }
}

fn kind(
    is_terminal: bool,
    size: Option<(terminal_size::Width, terminal_size::Height)>,
) -> StreamKind {
    if !is_terminal {
        return StreamKind::Plain;
    }
    let (columns, rows) = size.map_or((DEFAULT_COLUMNS, DEFAULT_ROWS), |(width, height)| {
        (width.0, height.0)
    });
    StreamKind::Terminal { columns, rows }
}

impl Stream {
    /// A stream of `kind` that writes to `writer`.
    pub fn new(writer: impl Write + Send + 'static, kind: StreamKind) -> Self {
        Self {
            writer: Arc::new(Mutex::new(Box::new(writer))),
            kind,
        }
    }

    pub(crate) fn is_terminal(&self) -> bool {
        match self.kind {
            StreamKind::Plain => false,
            StreamKind::Terminal { .. } => true,
        }
    }

    /// Width to format for; a plain stream has a fixed one so that its output does not depend on the screen.
    pub(crate) fn columns(&self) -> u16 {
        match self.kind {
            StreamKind::Plain => DEFAULT_COLUMNS,
            StreamKind::Terminal { columns, .. } => columns.max(COLUMNS_MIN),
        }
    }

    /// The stream as a screen to redraw progress on; none where it is no terminal.
    pub(crate) fn screen(&self) -> Option<Screen> {
        match self.kind {
            StreamKind::Plain => None,
            StreamKind::Terminal { rows, .. } => Some(Screen {
                writer: self.writer.clone(),
                frame: Mutex::default(),
                columns: self.columns(),
                rows,
            }),
        }
    }

    /// Writes `text` as it is.
    pub(crate) fn text(&mut self, text: &str) -> io::Result<()> {
        written(&self.writer, text.as_bytes())
    }

    /// Writes what is no text.
    pub(crate) fn bytes(&mut self, bytes: &[u8]) -> io::Result<()> {
        written(&self.writer, bytes)
    }

    /// Writes `line` and a newline.
    pub(crate) fn line(&mut self, line: &str) -> io::Result<()> {
        self.text(&format!("{line}\n"))
    }
}

fn written(writer: &Writer, bytes: &[u8]) -> io::Result<()> {
    let mut writer = locked(writer);
    writer.write_all(bytes)?;
    writer.flush()
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A terminal stream as the progress library sees one. A frame is kept until it is complete, so that no
/// half of one is ever seen.
pub(crate) struct Screen {
    writer: Writer,
    frame: Mutex<String>,
    columns: u16,
    rows: u16,
}

impl Screen {
    fn push(&self, text: &str) -> io::Result<()> {
        locked(&self.frame).push_str(text);
        Ok(())
    }

    fn move_cursor(&self, steps: usize, direction: char) -> io::Result<()> {
        match steps {
            // To a terminal, no steps are one step.
            0 => Ok(()),
            steps => self.push(&format!("\u{1b}[{steps}{direction}")),
        }
    }
}

impl TermLike for Screen {
    fn width(&self) -> u16 {
        self.columns
    }

    fn height(&self) -> u16 {
        self.rows
    }

    fn move_cursor_up(&self, n: usize) -> io::Result<()> {
        self.move_cursor(n, 'A')
    }

    fn move_cursor_down(&self, n: usize) -> io::Result<()> {
        self.move_cursor(n, 'B')
    }

    fn move_cursor_right(&self, n: usize) -> io::Result<()> {
        self.move_cursor(n, 'C')
    }

    fn move_cursor_left(&self, n: usize) -> io::Result<()> {
        self.move_cursor(n, 'D')
    }

    fn write_line(&self, s: &str) -> io::Result<()> {
        self.push(&format!("{s}\n"))
    }

    fn write_str(&self, s: &str) -> io::Result<()> {
        self.push(s)
    }

    fn clear_line(&self) -> io::Result<()> {
        self.push("\r\u{1b}[2K")
    }

    fn flush(&self) -> io::Result<()> {
        let frame = std::mem::take(&mut *locked(&self.frame));
        written(&self.writer, frame.as_bytes())
    }
}

impl fmt::Debug for Screen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Screen")
            .field("columns", &self.columns)
            .field("rows", &self.rows)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stream")
            .field("kind", &self.kind)
            .finish_non_exhaustive()
    }
}

/// A writer whose clones share one buffer.
#[derive(Clone, Debug, Default)]
pub struct Capture(Arc<Mutex<Vec<u8>>>);

impl Capture {
    /// What was written since the last call.
    #[must_use]
    pub fn take(&self) -> String {
        String::from_utf8_lossy(&std::mem::take(&mut *locked(&self.0))).into_owned()
    }
}

impl Write for Capture {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        locked(&self.0).extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
