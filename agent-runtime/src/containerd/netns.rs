//! Work inside a network namespace, on a thread of its own.
//!
//! A namespace belongs to a thread, so the work gets one, with a small runtime for netlink; the
//! thread ends with the work, and no thread of the process's own runtime ever changes its namespace.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use nix::sched::{CloneFlags, setns, unshare};

use crate::error::Error;

/// Runs `body` in the network namespace at `path`.
pub(super) async fn within<T, F, Fut>(path: PathBuf, body: F) -> Result<T, Error>
where
    T: Send + 'static,
    F: FnOnce() -> Fut + Send + 'static,
    Fut: Future<Output = Result<T, Error>>,
{
    on_a_thread(move || enter(&path).and_then(|runtime| runtime.block_on(body()))).await
}

/// Runs `body` in a new network namespace, which it is given, and which ends with it.
pub(super) async fn scratch<T, F, Fut>(body: F) -> Result<T, Error>
where
    T: Send + 'static,
    F: FnOnce(OwnedFd) -> Fut + Send + 'static,
    Fut: Future<Output = Result<T, Error>>,
{
    on_a_thread(move || {
        let failed = |reason: &dyn std::fmt::Display| {
            Error::Fatal(format!("a new network namespace: {reason}"))
        };
        unshare(CloneFlags::CLONE_NEWNET).map_err(|error| failed(&error.desc()))?;
        let own = File::open("/proc/thread-self/ns/net").map_err(|error| failed(&error))?;
        runtime()
            .map_err(|error| failed(&error))?
            .block_on(body(own.into()))
    })
    .await
}

async fn on_a_thread<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    let (sender, receiver) = tokio::sync::oneshot::channel();
    let thread = std::thread::Builder::new().name("netns".to_owned());
    let spawned = thread.spawn(move || {
        // Nobody waits any more: then the result is not needed either.
        let _ = sender.send(work());
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
    runtime().map_err(|error| failed(&error))
}

fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()
}
