//! A snapshot on its way between managers: in chunks, in bounded memory, complete or not at all.
//!
//! It travels in the clear inside TLS; the receiver seals it by its own key as it writes it.

use std::io::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use swarm_proto::own;
use swarm_proto::own::raft_snapshot_chunk::Part;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use super::error::StorageError;
use super::snapshot::{SnapshotFile, SnapshotStore};
use super::types::SnapshotMeta;

/// A transfer fails when nothing moves for this long. The receiver installs it within this time.
const IDLE: Duration = Duration::from_secs(30);
/// Chunks read ahead of the network, and received ahead of the disk.
const AHEAD: usize = 2;

/// A snapshot being sent.
pub(crate) struct Sending {
    pub(crate) chunks: ReceiverStream<own::RaftSnapshotChunk>,
    pub(crate) progress: Progress,
}

/// Notices that a transfer fails on this side or comes to a halt.
pub(crate) struct Progress {
    reading: JoinHandle<Result<(), StorageError>>,
    taken: Arc<AtomicU64>,
}

/// Why sending ended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SendError {
    /// The file.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// The network or the receiver.
    #[error("the snapshot did not move for {IDLE:?}: the receiver or the network is stuck")]
    Stalled,
}

/// Starts to read a snapshot and offers its chunks.
pub(crate) fn send(header: own::RaftSnapshotHeader, snapshot: SnapshotFile) -> Sending {
    let (chunks, sending) = mpsc::channel(AHEAD);
    let taken = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&taken);
    let reading = tokio::task::spawn_blocking(move || {
        send_chunks(header, &snapshot, |part| {
            let chunk = own::RaftSnapshotChunk { part: Some(part) };
            count.fetch_add(1, Ordering::Relaxed);
            chunks.blocking_send(chunk).is_ok()
        })
    });
    Sending {
        chunks: ReceiverStream::new(sending),
        progress: Progress { reading, taken },
    }
}

/// Ends early when `send` says that nobody takes the chunks.
fn send_chunks(
    header: own::RaftSnapshotHeader,
    snapshot: &SnapshotFile,
    mut send: impl FnMut(Part) -> bool,
) -> Result<(), StorageError> {
    let mut reader = snapshot.read()?;
    let mut go_on = send(Part::Header(header));
    let mut total = 0;
    while go_on && let Some(data) = reader.take_chunk()? {
        total += data.len() as u64;
        go_on = send(Part::Data(data.into()));
    }
    if go_on {
        send(Part::End(total));
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
                    Ok(Err(error)) => return error.into(),
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
    let (data, received) = mpsc::channel(AHEAD);
    let work = snapshots.work(move |snapshots| write(snapshots, meta, received));
    let (written, ended) = tokio::join!(work, forward(chunks, data));
    ended?;
    match written {
        Ok(Ok(Some(file))) => Ok(file),
        Ok(Ok(None)) => Err(Status::aborted("snapshot ended early")),
        Ok(Err(error)) | Err(error) => Err(Status::internal(error.to_string())),
    }
}

/// What goes to the writer: data, and that it was complete.
enum Piece {
    Data(Bytes),
    Complete,
}

/// Passes the data on until the end that was announced.
async fn forward(
    chunks: &mut Streaming<own::RaftSnapshotChunk>,
    data: mpsc::Sender<Piece>,
) -> Result<(), Status> {
    let mut total = 0;
    loop {
        let piece = match next_part(chunks).await? {
            Some(Part::Data(bytes)) => {
                total += bytes.len() as u64;
                Piece::Data(bytes)
            }
            Some(Part::End(expected)) if expected == total => Piece::Complete,
            Some(Part::End(expected)) => {
                return Err(Status::data_loss(format!(
                    "snapshot of {expected} bytes arrived with {total}"
                )));
            }
            Some(Part::Header(_)) => {
                return Err(Status::invalid_argument("second snapshot header"));
            }
            None => return Err(Status::aborted("snapshot ended early")),
        };
        let complete = matches!(piece, Piece::Complete);
        // A writer that is gone has an error to tell.
        if data.send(piece).await.is_err() || complete {
            return Ok(());
        }
    }
}

pub(crate) async fn next_part(
    chunks: &mut Streaming<own::RaftSnapshotChunk>,
) -> Result<Option<Part>, Status> {
    Ok(chunks.message().await?.and_then(|chunk| chunk.part))
}

/// Writes what arrives; `None` when it stopped before it was complete.
fn write(
    snapshots: &SnapshotStore,
    meta: SnapshotMeta,
    mut pieces: mpsc::Receiver<Piece>,
) -> Result<Option<SnapshotFile>, StorageError> {
    let mut writer = snapshots.create(&meta)?;
    let path = writer.path().to_owned();
    loop {
        match pieces.blocking_recv() {
            Some(Piece::Data(bytes)) => {
                if let Err(error) = writer.write_all(&bytes) {
                    snapshots.discard(&path);
                    return Err(StorageError::io("write", &path)(error));
                }
            }
            Some(Piece::Complete) => return snapshots.finish(writer, meta).map(Some),
            None => {
                snapshots.discard(&path);
                return Ok(None);
            }
        }
    }
}
