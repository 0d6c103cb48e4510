//! A snapshot on its way between managers: in chunks, in bounded memory, complete or not at all.
//!
//! It travels in the clear inside TLS; the receiver seals it by its own key as it writes it.

use std::io::Write as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use swarm_proto::own;
use swarm_proto::own::raft_snapshot_chunk::Part;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::task::AbortOnDropHandle;
use tonic::{Status, Streaming};

use super::error::StorageError;
use super::snapshot::{SnapshotFile, SnapshotStore};
use super::snapshot_file::SnapshotWriter;
use super::types::SnapshotMeta;
use crate::process::{self, Stopped};

/// A transfer fails when nothing moves for this long. The receiver installs it within this time.
const IDLE: Duration = Duration::from_secs(30);
/// Chunks read ahead of the network.
const AHEAD: usize = 2;

/// A snapshot being sent.
pub(crate) struct Sending {
    pub(crate) chunks: ReceiverStream<own::RaftSnapshotChunk>,
    pub(crate) progress: Progress,
}

/// Notices that a transfer fails on this side or comes to a halt.
pub(crate) struct Progress {
    reading: AbortOnDropHandle<Result<(), SendError>>,
    taken: Arc<AtomicU64>,
}

/// Why sending ended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SendError {
    /// The file.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// Nobody reads any more.
    #[error(transparent)]
    Stopped(#[from] Stopped),
    /// The network or the receiver.
    #[error("the snapshot did not move for {IDLE:?}: the receiver or the network is stuck")]
    Stalled,
}

/// Starts to read a snapshot and offers its chunks.
pub(crate) fn send(header: own::RaftSnapshotHeader, snapshot: SnapshotFile) -> Sending {
    let (chunks, sending) = mpsc::channel(AHEAD);
    let taken = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&taken);
    let reading = process::spawn(async move {
        let send = async |part| {
            let chunk = own::RaftSnapshotChunk { part: Some(part) };
            count.fetch_add(1, Ordering::Relaxed);
            chunks.send(chunk).await.is_ok()
        };
        send_chunks(header, snapshot, send).await
    });
    Sending {
        chunks: ReceiverStream::new(sending),
        progress: Progress {
            reading: AbortOnDropHandle::new(reading),
            taken,
        },
    }
}

/// Ends early when `send` says that nobody takes the chunks.
async fn send_chunks<S: Future<Output = bool> + Send>(
    header: own::RaftSnapshotHeader,
    snapshot: SnapshotFile,
    send: impl Fn(Part) -> S,
) -> Result<(), SendError> {
    let mut reader = process::blocking(move || snapshot.read()).await??;
    let mut go_on = send(Part::Header(header)).await;
    let mut total = 0;
    while go_on {
        let (back, data) = process::blocking(move || {
            let data = reader.take_chunk();
            (reader, data)
        })
        .await?;
        reader = back;
        let Some(data) = data? else {
            send(Part::End(total)).await;
            return Ok(());
        };
        total += data.len() as u64;
        go_on = send(Part::Data(data.into())).await;
    }
    Ok(())
}

impl Progress {
    /// Ends when the transfer can't succeed any more.
    pub(crate) async fn failed(mut self) -> SendError {
        let mut read = false;
        loop {
            let before = self.taken.load(Ordering::Relaxed);
            tokio::select! {
                biased;
                ended = &mut self.reading, if !read => match ended {
                    Ok(Err(error)) => return error,
                    Ok(Ok(())) | Err(_) => read = true,
                },
                () = tokio::time::sleep(IDLE) => {
                    if self.taken.load(Ordering::Relaxed) == before {
                        return SendError::Stalled;
                    }
                }
            }
        }
    }
}

/// Writes the chunks to a temporary snapshot, sealed by this manager's own key.
pub(crate) async fn receive(
    snapshots: &Arc<SnapshotStore>,
    meta: SnapshotMeta,
    chunks: &mut Streaming<own::RaftSnapshotChunk>,
) -> Result<SnapshotFile, Status> {
    let about = meta.clone();
    let created = snapshots.work(move |snapshots| snapshots.create(&about));
    let mut writer = created.await.map_err(failed)?.map_err(failed)?;
    let mut unfinished = Unfinished::new(snapshots, &writer);
    let mut total = 0;
    loop {
        match next_part(chunks).await? {
            Some(Part::Data(data)) => {
                total += data.len() as u64;
                let written = snapshots.work(move |_| write(writer, &data));
                writer = written.await.map_err(failed)?.map_err(failed)?;
            }
            Some(Part::End(expected)) if expected == total => {
                let finished = snapshots.work(move |snapshots| snapshots.finish(writer, meta));
                let file = finished.await.map_err(failed)?.map_err(failed)?;
                unfinished.path = None;
                return Ok(file);
            }
            Some(Part::End(expected)) => {
                return Err(Status::data_loss(format!(
                    "snapshot of {expected} bytes arrived with {total}"
                )));
            }
            Some(Part::Header(_)) => {
                return Err(Status::invalid_argument("second snapshot header"));
            }
            None => return Err(Status::aborted("snapshot ended early")),
        }
    }
}

pub(crate) async fn next_part(
    chunks: &mut Streaming<own::RaftSnapshotChunk>,
) -> Result<Option<Part>, Status> {
    Ok(chunks.message().await?.and_then(|chunk| chunk.part))
}

fn write(mut writer: SnapshotWriter, data: &[u8]) -> Result<SnapshotWriter, StorageError> {
    match writer.write_all(data) {
        Ok(()) => Ok(writer),
        Err(error) => Err(StorageError::io("write", writer.path())(error)),
    }
}

fn failed(error: StorageError) -> Status {
    Status::internal(error.to_string())
}

/// Removes a file that does not become a snapshot, also when the sender goes away in the middle.
struct Unfinished {
    snapshots: Arc<SnapshotStore>,
    path: Option<PathBuf>,
}

impl Unfinished {
    fn new(snapshots: &Arc<SnapshotStore>, writer: &SnapshotWriter) -> Self {
        Self {
            snapshots: Arc::clone(snapshots),
            path: Some(writer.path().to_owned()),
        }
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        if let Some(path) = &self.path {
            self.snapshots.discard(path);
        }
    }
}
