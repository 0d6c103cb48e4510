//! containerd's content store: blobs named by their digest.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use bytes::Bytes;
use containerd_client::services::v1::{
    AbortRequest, Info, ReadContentRequest, UpdateRequest, WriteAction, WriteContentRequest,
    content_client::ContentClient,
};
use containerd_client::types::Descriptor as ContentDescriptor;
use futures::{Stream, StreamExt as _};
use prost_types::FieldMask;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::client::{CALL_MAX, Client, Failure, or_absent};
use super::manifest::Manifest;
use crate::error::Error;
use crate::registry::Source;

/// A message to containerd carries this much: large enough to not count, far below its limit of 16 MiB.
const CHUNK: usize = 1 << 20;
/// Messages under way: the next bytes are read while containerd hashes and writes those before.
const AHEAD: usize = 4;
/// The commit verifies the digest of what was written.
const COMMIT_MAX: Duration = Duration::from_secs(120);

/// A blob by its digest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Blob {
    pub digest: String,
    pub size: u64,
}

/// What became of bytes for the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stored {
    /// They are there now.
    New,
    /// They were there.
    Present,
    /// They were not those that the digest names; nothing is kept.
    Wrong,
}

/// The content store of one namespace.
#[derive(Debug, Clone)]
pub(super) struct Content {
    client: Client,
}

impl Content {
    pub(super) fn new(client: Client) -> Self {
        Self { client }
    }

    fn rpc(&self) -> ContentClient<tonic::transport::Channel> {
        ContentClient::new(self.client.channel())
    }

    /// Reads a small blob whole (manifest, image config), at most `limit` bytes.
    pub(super) async fn read(&self, digest: &str, limit: usize) -> Result<Vec<u8>, Error> {
        let request = self.client.request(ReadContentRequest {
            digest: digest.to_owned(),
            offset: 0,
            size: 0,
        });
        let mut rpc = self.rpc();
        let mut stream = self
            .client
            .call("read content", CALL_MAX, rpc.read(request))
            .await?;
        let mut data = Vec::new();
        loop {
            let next = stream.message().await;
            match next.map_err(|status| self.client.failure("read content", &status))? {
                Some(part) => data.extend_from_slice(&part.data),
                None => return Ok(data),
            }
            if data.len() > limit {
                return Err(Error::Fatal(format!(
                    "content {digest} is larger than {limit} bytes, no manifest or image config is"
                )));
            }
        }
    }

    /// Describes a manifest that is there, as an image record names it.
    pub(super) async fn descriptor(
        &self,
        digest: &str,
        limit: usize,
    ) -> Result<ContentDescriptor, Error> {
        let body = self.read(digest, limit).await?;
        Ok(ContentDescriptor {
            media_type: Manifest::parse(&body)?.media_type().to_owned(),
            digest: digest.to_owned(),
            size: i64::try_from(body.len()).unwrap_or(i64::MAX),
            ..Default::default()
        })
    }

    /// Sets labels on a blob that is there.
    pub(super) async fn label(
        &self,
        digest: &str,
        labels: &BTreeMap<String, String>,
    ) -> Result<(), Failure> {
        if labels.is_empty() {
            return Ok(());
        }
        let request = self.client.request(UpdateRequest {
            info: Some(Info {
                digest: digest.to_owned(),
                labels: labels.clone().into_iter().collect(),
                ..Default::default()
            }),
            update_mask: Some(FieldMask {
                paths: labels.keys().map(|key| format!("labels.{key}")).collect(),
            }),
        });
        let mut rpc = self.rpc();
        self.client
            .call("label content", CALL_MAX, rpc.update(request))
            .await?;
        Ok(())
    }

    /// Puts a blob into the store, under a lease, with labels. `open` is called only when no
    /// namespace of this containerd has the blob.
    pub(super) async fn put(
        &self,
        lease: &str,
        blob: &Blob,
        labels: &BTreeMap<String, String>,
        open: impl FnOnce() -> Source + Send,
    ) -> Result<Stored, Error> {
        let ingest = format!("swarm-{}", blob.digest);
        // What an earlier swarmd left half-written is written anew.
        self.abort(&ingest).await?;
        let result = self.ingest(&ingest, lease, blob, open).await;
        if !matches!(result, Ok(Stored::New | Stored::Present))
            && let Err(failure) = self.abort(&ingest).await
        {
            tracing::debug!(?failure, "half-written content stays");
        }
        let stored = result?;
        if stored != Stored::Wrong {
            self.label(&blob.digest, labels).await?;
        }
        Ok(stored)
    }

    async fn ingest(
        &self,
        ingest: &str,
        lease: &str,
        blob: &Blob,
        open: impl FnOnce() -> Source + Send,
    ) -> Result<Stored, Error> {
        let total = i64::try_from(blob.size).unwrap_or(i64::MAX);
        let message = |action: WriteAction, offset: u64, data: Vec<u8>| WriteContentRequest {
            action: action.into(),
            r#ref: ingest.to_owned(),
            total,
            expected: blob.digest.clone(),
            offset: i64::try_from(offset).unwrap_or(i64::MAX),
            data,
            labels: HashMap::new(),
        };
        let (sender, receiver) = mpsc::channel(AHEAD);
        let ended = || {
            Error::Temporary(format!(
                "content {}: containerd ended the write",
                blob.digest
            ))
        };
        sender
            .send(message(WriteAction::Stat, 0, Vec::new()))
            .await
            .map_err(|_| ended())?;
        let request = self.client.leased(ReceiverStream::new(receiver), lease);
        let mut rpc = self.rpc();
        let opened = self
            .client
            .call("write content", CALL_MAX, rpc.write(request))
            .await;
        let mut replies = match opened {
            Ok(replies) => replies,
            Err(failure) if failure.is_present() => return Ok(Stored::Present),
            Err(failure) => return Err(failure.into()),
        };
        match self.reply(&mut replies).await {
            Ok(()) => {}
            Err(failure) if failure.is_present() => return Ok(Stored::Present),
            Err(failure) => return Err(failure.into()),
        }
        let mut source = chunks(open(), blob.size);
        let (mut offset, mut ahead) = (0, 0);
        while let Some(chunk) = source.next().await {
            // Its own words name the registry and the blob.
            let chunk = chunk.map_err(|error| Error::Fatal(error.to_string()))?;
            let length = chunk.len() as u64;
            let write = message(WriteAction::Write, offset, chunk);
            sender.send(write).await.map_err(|_| ended())?;
            offset += length;
            if ahead == AHEAD {
                self.reply(&mut replies).await?;
            } else {
                ahead += 1;
            }
        }
        for _ in 0..ahead {
            self.reply(&mut replies).await?;
        }
        let commit = message(WriteAction::Commit, offset, Vec::new());
        sender.send(commit).await.map_err(|_| ended())?;
        match self.reply(&mut replies).await {
            Ok(()) => {}
            Err(failure) if failure.is_present() => return Ok(Stored::Present),
            // It compares size and digest with what was announced.
            Err(failure) if failure.is_precondition() => return Ok(Stored::Wrong),
            Err(failure) => return Err(failure.into()),
        }
        // Ended in order, the call is not a cancelled one in containerd's log.
        drop(sender);
        let _ = tokio::time::timeout(CALL_MAX, replies.message()).await;
        Ok(Stored::New)
    }

    async fn reply(
        &self,
        replies: &mut tonic::Streaming<containerd_client::services::v1::WriteContentResponse>,
    ) -> Result<(), Failure> {
        match tokio::time::timeout(COMMIT_MAX, replies.message()).await {
            Ok(Ok(Some(_))) => Ok(()),
            Ok(Ok(None)) => Err(Failure::Refused {
                what: "write content",
                code: tonic::Code::Aborted,
                message: "containerd ended the write without a reply".to_owned(),
            }),
            Ok(Err(status)) => Err(self.client.failure("write content", &status)),
            Err(_) => Err(Failure::Late {
                what: "write content",
                limit: COMMIT_MAX,
            }),
        }
    }

    async fn abort(&self, ingest: &str) -> Result<(), Failure> {
        let request = self.client.request(AbortRequest {
            r#ref: ingest.to_owned(),
        });
        let mut rpc = self.rpc();
        or_absent(
            self.client
                .call("abort write", CALL_MAX, rpc.abort(request))
                .await,
        )?;
        Ok(())
    }
}

/// Joins small pieces and splits large ones, so that a message carries [`CHUNK`] bytes, the last one
/// of a blob of `size` bytes the rest.
fn chunks(source: Source, size: u64) -> impl Stream<Item = std::io::Result<Vec<u8>>> + Unpin {
    // A chunk of a small blob takes no more memory than the blob.
    let room = usize::try_from(size).map_or(CHUNK, |size| size.min(CHUNK));
    // Fused: a verifying source checks its digest again when it is asked after its end.
    let state = (source.fuse(), Bytes::new());
    Box::pin(futures::stream::unfold(
        state,
        move |(mut source, mut piece)| async move {
            let mut chunk = Vec::with_capacity(room);
            while chunk.len() < CHUNK {
                if piece.is_empty() {
                    match source.next().await {
                        Some(Ok(next)) => piece = next,
                        Some(Err(error)) => return Some((Err(error), (source, piece))),
                        None => break,
                    }
                }
                let part = piece.split_to(piece.len().min(CHUNK - chunk.len()));
                chunk.extend_from_slice(&part);
            }
            if chunk.is_empty() {
                return None;
            }
            Some((Ok(chunk), (source, piece)))
        },
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn chunks_keep_the_bytes() {
        let pieces: Vec<Bytes> = [1, 100, CHUNK, 3 * CHUNK + 5, 7]
            .map(|n| Bytes::from(vec![7; n]))
            .into();
        let total: usize = pieces.iter().map(Bytes::len).sum();
        let source: Source = futures::stream::iter(pieces.into_iter().map(Ok)).boxed();
        let sizes: Vec<usize> = chunks(source, total as u64)
            .map(|chunk| chunk.expect("no error in it").len())
            .collect()
            .await;
        assert!(sizes.iter().all(|&size| size <= CHUNK));
        assert_eq!(sizes.iter().sum::<usize>(), total);
        assert_eq!(sizes.len(), total.div_ceil(CHUNK));
    }
}
