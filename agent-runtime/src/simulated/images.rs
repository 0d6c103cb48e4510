//! The images of a simulated host: whatever is pulled is there, and nothing takes time.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use futures::StreamExt as _;
use futures::stream::BoxStream;
use swarm_proto::reference::Reference;
use swarm_proto::registry_auth::Credentials;
use tokio::sync::watch;

use crate::error::Error;
use crate::image::{ImageStore, LocalImage, PullState};
use crate::registry::digest;

/// Bytes of each image.
const SIZE: u64 = 25 << 20;

/// Images that exist by name only.
#[derive(Debug, Default)]
pub struct SimulatedImages {
    images: Mutex<BTreeMap<String, LocalImage>>,
}

impl SimulatedImages {
    fn images(&self) -> MutexGuard<'_, BTreeMap<String, LocalImage>> {
        self.images.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn put(&self, name: &str, size: u64) -> Result<LocalImage, Error> {
        let reference: Reference = name
            .parse()
            .map_err(|error| Error::Fatal(format!("image {error}")))?;
        let image = LocalImage {
            name: reference.to_string(),
            digest: digest(name.as_bytes()),
            size,
            ..LocalImage::default()
        };
        self.images().insert(image.name.clone(), image.clone());
        Ok(image)
    }
}

#[tonic::async_trait]
impl ImageStore for SimulatedImages {
    async fn list(&self) -> Result<Vec<LocalImage>, Error> {
        Ok(self.images().values().cloned().collect())
    }

    async fn pull(
        &self,
        name: &str,
        _: Credentials,
        told: watch::Sender<PullState>,
    ) -> Result<LocalImage, Error> {
        told.send_replace(PullState {
            done: SIZE,
            total: SIZE,
            text: "pulling: 25 of 25 MiB".to_owned(),
        });
        self.put(name, SIZE)
    }

    async fn import(
        &self,
        mut archive: BoxStream<'static, Result<Bytes, Error>>,
        name: Option<&str>,
    ) -> Result<Vec<LocalImage>, Error> {
        let mut size = 0;
        while let Some(piece) = archive.next().await {
            size += piece?.len() as u64;
        }
        let name = name.ok_or_else(|| {
            Error::Fatal("archive: an image in it has no name; give one with --name".to_owned())
        })?;
        Ok(vec![self.put(name, size)?])
    }

    async fn remove(&self, name: &str, _: bool) -> Result<(), Error> {
        match self.images().remove(name) {
            Some(_) => Ok(()),
            None => Err(Error::Fatal(format!(
                "image {name}: it is not on this node"
            ))),
        }
    }
}
