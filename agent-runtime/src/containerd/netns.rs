//! Work inside a network namespace, on a thread of its own.
//!
//! A namespace belongs to a thread, so the work gets one, with a small runtime for netlink; the
//! thread ends with the work, and no thread of the process's own runtime ever changes its namespace.

use std::fs::File;
use std::path::PathBuf;

use nix::sched::{CloneFlags, setns};

use crate::error::Error;

/// Runs `body` in the network namespace at `path`.
pub(super) async fn within<T, F, Fut>(path: PathBuf, body: F) -> Result<T, Error>
where
    T: Send + 'static,
    F: FnOnce() -> Fut + Send + 'static,
    Fut: Future<Output = Result<T, Error>>,
{
    let (sender, receiver) = tokio::sync::oneshot::channel();
    let thread = std::thread::Builder::new().name("netns".to_owned());
    let spawned = thread.spawn(move || {
        // Nobody waits any more: then the result is not needed either.
        let _ = sender.send(enter(&path).and_then(|runtime| runtime.block_on(body())));
    });
    spawned.map_err(|error| Error::Temporary(format!("network namespace: no thread: {error}")))?;
    receiver.await.unwrap_or_else(|_| {
        Err(Error::Fatal(
            "network namespace: the work failed".to_owned(),
        ))
    })
}

fn enter(path: &PathBuf) -> Result<tokio::runtime::Runtime, Error> {
    let failed = |reason: &dyn std::fmt::Display| {
        Error::Fatal(format!("network namespace {}: {reason}", path.display()))
    };
    let file = File::open(path).map_err(|error| failed(&error))?;
    setns(file, CloneFlags::CLONE_NEWNET).map_err(|error| failed(&error.desc()))?;
    tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()
        .map_err(|error| failed(&error))
}
