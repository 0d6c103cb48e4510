//! The log writer: a process beside one container, started by its shim.

#![expect(
    clippy::disallowed_methods,
    reason = "imperative shell: a process of its own that stamps lines with the time they came"
)]

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::path::Path;
use std::process::ExitCode;
use std::time::SystemTime;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};

use super::config::Target;
use super::file::Files;
use super::journal::Journal;
use super::lines::{Lines, Stream};

/// Where containerd puts the pipes, and the one that says that the writer is ready.
const STDOUT: &str = "/proc/self/fd/3";
const STDERR: &str = "/proc/self/fd/4";
const READY: &str = "/proc/self/fd/5";
/// Bytes read at once: what a pipe holds.
const READ: usize = 64 << 10;

/// Writes down what a container writes, until it has ended. `config` is the file with its
/// [`Target`], in JSON.
pub fn run(config: &Path) -> ExitCode {
    match write(config) {
        Ok(()) => ExitCode::SUCCESS,
        // The shim's own standard error is containerd's log; nobody else listens here.
        Err(_) => ExitCode::FAILURE,
    }
}

fn write(config: &Path) -> io::Result<()> {
    // The shim signals and waits; the end of both pipes comes at the same time, and until then
    // there may be something to write.
    let mut ignored = SigSet::empty();
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        ignored.add(signal);
    }
    ignored.thread_block()?;
    let mut sink = Sink::open(config);
    let mut sources = [
        Source::open(STDOUT, Stream::Stdout)?,
        Source::open(STDERR, Stream::Stderr)?,
    ];
    OpenOptions::new()
        .write(true)
        .open(READY)?
        .write_all(b"1")?;
    let mut buffer = vec![0; READ];
    while sources.iter().any(|source| source.pipe.is_some()) {
        wait(&sources)?;
        for source in &mut sources {
            source.read(&mut buffer, &mut sink)?;
        }
        sink.flush();
    }
    sink.end();
    Ok(())
}

/// One of the container's two pipes.
struct Source {
    /// None once it has ended.
    pipe: Option<File>,
    stream: Stream,
    lines: Lines,
}

impl Source {
    fn open(path: &str, stream: Stream) -> io::Result<Self> {
        Ok(Self {
            pipe: Some(File::open(path)?),
            stream,
            lines: Lines::default(),
        })
    }

    /// Reads what is there, once.
    fn read(&mut self, buffer: &mut [u8], sink: &mut Sink) -> io::Result<()> {
        let Some(pipe) = &mut self.pipe else {
            return Ok(());
        };
        let mut ready = [PollFd::new(pipe.as_fd(), PollFlags::POLLIN)];
        if poll(&mut ready, PollTimeout::ZERO)? == 0 {
            return Ok(());
        }
        let stream = self.stream;
        let time = now();
        match pipe.read(buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // One that can't be read any more has ended, as far as can be known here.
            Ok(0) | Err(_) => {
                self.lines.end(|entry| sink.add(stream, entry, &time));
                self.pipe = None;
            }
            Ok(length) => {
                let data = buffer.get(..length).unwrap_or_default();
                self.lines
                    .push(data, |entry| sink.add(stream, entry, &time));
            }
        }
        Ok(())
    }
}

/// Waits until one of them has something, or has ended.
fn wait(sources: &[Source]) -> io::Result<()> {
    let open = sources.iter().filter_map(|source| source.pipe.as_ref());
    let mut polled: Vec<PollFd<'_>> = open
        .map(|pipe| PollFd::new(pipe.as_fd(), PollFlags::POLLIN))
        .collect();
    match poll(&mut polled, PollTimeout::NONE) {
        Ok(_) | Err(Errno::EINTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Where entries go.
enum Sink {
    Files(Files),
    Journal(Journal),
    Nowhere,
}

impl Sink {
    /// What can't be opened takes nothing: the container must not end for its output.
    fn open(config: &Path) -> Self {
        let target = std::fs::read(config)
            .ok()
            .and_then(|text| serde_json::from_slice(&text).ok());
        match target {
            Some(Target::Files {
                path,
                size,
                files,
                attrs,
            }) => Self::Files(Files::open(&path, (size, files), attrs)),
            Some(Target::Journal { socket, fields }) => {
                Journal::open(&socket, &fields).map_or(Self::Nowhere, Self::Journal)
            }
            Some(Target::Nowhere) | None => Self::Nowhere,
        }
    }

    fn add(&mut self, stream: Stream, entry: &[u8], time: &str) {
        match self {
            Self::Files(files) => files.add(stream, entry, time),
            Self::Journal(journal) => journal.add(stream, entry),
            Self::Nowhere => {}
        }
    }

    fn flush(&mut self) {
        match self {
            Self::Files(files) => files.flush(),
            Self::Journal(_) | Self::Nowhere => {}
        }
    }

    fn end(&mut self) {
        match self {
            Self::Files(files) => files.end(&now()),
            Self::Journal(journal) => journal.tell(),
            Self::Nowhere => {}
        }
    }
}

/// The time, as an entry has it.
fn now() -> String {
    prost_types::Timestamp::from(SystemTime::now()).to_string()
}
