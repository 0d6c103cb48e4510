//! A blob's bytes, as one stream over as many connections as it takes.
//!
//! A connection that breaks, or that ends early, is followed by one that asks for the rest
//! (`Range`). A registry that sends the whole again instead is read past what is there already.
//! Who gets the stream verifies the digest: the content store does when it commits.

use std::io;

use bytes::{Buf as _, Bytes};
use futures::StreamExt as _;
use futures::stream::BoxStream;
use reqwest::StatusCode;
use reqwest::header::CONTENT_RANGE;

use super::is_digest;
use super::open::Session;
use super::trouble::{Trouble, Verdict, cause};

/// Which bytes a blob is made of.
pub(crate) type Source = BoxStream<'static, io::Result<Bytes>>;

/// A connection that gave this much counts as a new beginning: a large blob over a poor line is
/// not given up for the number of its breaks. Bytes.
const GOOD_RUN: u64 = 4 << 20;

/// A blob that is being read.
struct Reading {
    session: Session,
    digest: String,
    /// Bytes in all; none where the manifest does not say.
    size: Option<u64>,
    /// Bytes that were given on.
    offset: u64,
    /// Which connection of the session is asked.
    at: usize,
    /// Tries since the last good run.
    attempt: u32,
    /// Bytes since the last break.
    run: u64,
    open: Option<BoxStream<'static, reqwest::Result<Bytes>>>,
    /// Bytes that come again although they were not asked for.
    skip: u64,
    ended: bool,
}

impl Session {
    /// How many places may have the image's blobs.
    pub(crate) fn places(&self) -> usize {
        self.connections.len()
    }

    /// The bytes of a blob, from the `at`th place on. `size` is what the manifest says; zero where
    /// it says nothing.
    pub(crate) fn blob(&self, digest: &str, size: u64, at: usize) -> Source {
        let reading = Reading {
            session: self.clone(),
            digest: digest.to_owned(),
            size: (size > 0).then_some(size),
            offset: 0,
            at,
            attempt: 1,
            run: 0,
            open: None,
            skip: 0,
            ended: false,
        };
        futures::stream::unfold(reading, |mut reading| async move {
            let part = reading.next().await?;
            Some((part, reading))
        })
        .boxed()
    }
}

impl Reading {
    /// The next bytes; none at the end and after an error.
    async fn next(&mut self) -> Option<io::Result<Bytes>> {
        if self.ended {
            return None;
        }
        if !is_digest(&self.digest) {
            return Some(self.fail("its digest is none"));
        }
        loop {
            let trouble = match self.part().await {
                Ok(Some(bytes)) => return Some(Ok(bytes)),
                Ok(None) => {
                    self.ended = true;
                    return None;
                }
                Err(trouble) => trouble,
            };
            if self.run >= GOOD_RUN {
                self.attempt = 1;
            }
            (self.run, self.open, self.skip) = (0, None, 0);
            match self.session.backoff.verdict(&trouble, self.attempt) {
                Verdict::Again(pause) => {
                    self.session.pause(&trouble, pause, self.attempt).await;
                    self.attempt += 1;
                }
                // The bytes are the same everywhere: the next place goes on from here.
                Verdict::Over if self.at + 1 < self.session.places() => {
                    let reason = trouble.reason();
                    tracing::info!(digest = self.digest, reason, "asking the next endpoint");
                    (self.at, self.attempt) = (self.at + 1, 1);
                }
                Verdict::Over => {
                    let words = self.session.backoff.last_words(&trouble, self.attempt);
                    return Some(self.fail(&words));
                }
            }
        }
    }

    fn fail(&mut self, reason: &str) -> io::Result<Bytes> {
        self.ended = true;
        Err(io::Error::other(format!(
            "registry {}: blob {}: {reason}",
            self.session.registry, self.digest
        )))
    }

    /// Some bytes that were not given on yet.
    async fn part(&mut self) -> Result<Option<Bytes>, Trouble> {
        loop {
            if self.size == Some(self.offset) {
                return Ok(None);
            }
            let stream = match &mut self.open {
                Some(stream) => stream,
                None => self.open().await?,
            };
            let mut bytes = match stream.next().await {
                Some(Ok(bytes)) => bytes,
                Some(Err(error)) => return Err(Trouble::Connection(cause(&error))),
                None => return self.end(),
            };
            let skipped = self.skip.min(bytes.len() as u64);
            self.skip -= skipped;
            bytes.advance(usize::try_from(skipped).unwrap_or(usize::MAX));
            if bytes.is_empty() {
                continue;
            }
            let length = bytes.len() as u64;
            if self.size.is_some_and(|size| self.offset + length > size) {
                return Err(Trouble::Wrong(
                    "it sends more bytes than the manifest says".to_owned(),
                ));
            }
            self.offset += length;
            self.run += length;
            self.session.progress.add(length);
            return Ok(Some(bytes));
        }
    }

    /// The connection has ended: fine where nothing was promised.
    fn end(&self) -> Result<Option<Bytes>, Trouble> {
        match self.size {
            None => Ok(None),
            Some(size) => Err(Trouble::Connection(format!(
                "the connection ended after {} of {size} bytes",
                self.offset
            ))),
        }
    }

    async fn open(&mut self) -> Result<&mut BoxStream<'static, reqwest::Result<Bytes>>, Trouble> {
        let connections = self.session.connections.as_slice();
        let connection = connections
            .get(self.at)
            .ok_or_else(|| Trouble::Wrong("no endpoint to ask".to_owned()))?;
        let response = connection.blob(&self.digest, self.offset).await?;
        self.skip = match response.status() {
            StatusCode::PARTIAL_CONTENT => {
                let range = response.headers().get(CONTENT_RANGE);
                let from = range.and_then(|range| range_start(range.to_str().ok()?));
                if from != Some(self.offset) {
                    return Err(Trouble::Wrong(
                        "it sends another range than it was asked for".to_owned(),
                    ));
                }
                0
            }
            _ => self.offset,
        };
        Ok(self.open.insert(response.bytes_stream().boxed()))
    }
}

/// `bytes 5-9/10` begins at 5.
fn range_start(text: &str) -> Option<u64> {
    let (start, _) = text.trim().strip_prefix("bytes ")?.split_once('-')?;
    start.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::range_start;

    #[test]
    fn a_range_begins_where_it_says() {
        assert_eq!(range_start("bytes 5-9/10"), Some(5));
        assert_eq!(range_start("bytes */10"), None);
        assert_eq!(range_start("items 5-9/10"), None);
    }
}
