//! Brings an image into this node: its parts into the content store, its layers into snapshots.
//!
//! Layers come in beside each other, and each is unpacked as soon as it and those below it are
//! there. Everything is kept by a lease until the image record keeps it.

use std::collections::BTreeMap;

use bytes::Bytes;
use containerd_client::types::Descriptor as ContentDescriptor;
use futures::stream::{StreamExt as _, TryStreamExt as _};
use tokio::sync::oneshot;

use super::content::{Blob, Stored};
use super::image::{Image, Inner};
use super::manifest::{Descriptor, ImageConfig, Manifest, chain_ids, choose};
use super::snapshot::{Layer, SNAPSHOTTER};
use crate::error::Error;
use crate::registry::{Fetched, MANIFEST_MAX, Progress, Session, Source};

/// Layers fetched at the same time for one image; Docker's figure.
const LAYERS_AT_ONCE: usize = 3;
/// Layers of one image; overlayfs takes 500 lower directories.
const LAYERS_MAX: usize = 500;

/// Where an image's parts come from.
#[tonic::async_trait]
pub(super) trait Origin: Send + Sync {
    /// A manifest that an index names.
    async fn manifest(&self, digest: &str) -> Result<Fetched, Error>;
    /// How many places may have a blob.
    fn places(&self) -> usize;
    /// The bytes of a blob, from a place.
    fn blob(&self, blob: &Descriptor, place: usize) -> Source;
    /// Told what is there.
    fn progress(&self) -> &Progress;
    /// As error texts name it.
    fn name(&self) -> String;
}

#[tonic::async_trait]
impl Origin for Session {
    async fn manifest(&self, digest: &str) -> Result<Fetched, Error> {
        self.manifest_by_digest(digest).await
    }

    fn places(&self) -> usize {
        Session::places(self)
    }

    fn blob(&self, blob: &Descriptor, place: usize) -> Source {
        Session::blob(self, &blob.digest, blob.size, place)
    }

    fn progress(&self) -> &Progress {
        Session::progress(self)
    }

    fn name(&self) -> String {
        format!("registry {}", self.registry())
    }
}

/// The parts of an image for this host.
struct Parts {
    index: Option<Fetched>,
    manifest: Fetched,
    config: Descriptor,
    layers: Vec<Descriptor>,
}

impl Inner {
    /// Brings in what a manifest or index names, for this host, and records it under the names.
    pub(super) async fn fetch(
        &self,
        origin: &dyn Origin,
        names: &[String],
        (lease, top): (&str, Fetched),
    ) -> Result<Image, Error> {
        let parsed = Manifest::parse(&top.body)?;
        let target = ContentDescriptor {
            media_type: parsed.media_type().to_owned(),
            digest: top.digest.clone(),
            size: i64::try_from(top.body.len()).unwrap_or(i64::MAX),
            ..Default::default()
        };
        let parts = parts(origin, top, parsed).await?;
        let wanted = parts.layers.iter().map(|layer| layer.size);
        let wanted = wanted.fold(parts.config.size, u64::saturating_add);
        origin.progress().expect(wanted);
        let ((config, chain), ()) = futures::future::try_join(
            self.put_root(origin, lease, &parts),
            self.put_manifests(lease, &parts),
        )
        .await?;
        for name in names {
            self.record(name, target.clone()).await?;
        }
        let name = names.first().cloned().unwrap_or_default();
        tracing::info!(image = name, layers = parts.layers.len(), "image is here");
        let image = Image {
            name,
            digest: target.digest,
            chain,
            config: std::sync::Arc::new(config),
            notice: None,
        };
        self.remember(&image);
        Ok(image)
    }

    /// Brings in the config and all layers; returns the config and the chain id of the top.
    async fn put_root(
        &self,
        origin: &dyn Origin,
        lease: &str,
        parts: &Parts,
    ) -> Result<(ImageConfig, String), Error> {
        let layers = parts.layers.as_slice();
        let (told, there): (Vec<_>, Vec<_>) = layers.iter().map(|_| oneshot::channel()).unzip();
        let mut fetches = Vec::with_capacity(layers.len());
        for (layer, told) in layers.iter().zip(told) {
            fetches.push(async move {
                self.put_blob(origin, lease, layer).await?;
                // Nobody listens where unpacking has failed.
                let _: Result<(), ()> = told.send(());
                Ok::<(), Error>(())
            });
        }
        let fetch = futures::stream::iter(fetches)
            .buffer_unordered(LAYERS_AT_ONCE)
            .try_collect::<()>();
        let unpack = async {
            self.put_blob(origin, lease, &parts.config).await?;
            let digest = &parts.config.digest;
            let config = self.content.read(digest, MANIFEST_MAX).await?;
            let config = ImageConfig::parse(&config)?;
            let chain = self.unpack(lease, (&config, layers), there).await?;
            self.content.label(digest, &snapshot_label(&chain)).await?;
            Ok((config, chain))
        };
        let ((), root) = futures::future::try_join(fetch, unpack).await?;
        Ok(root)
    }

    /// Puts in the manifest, and the index that names it.
    async fn put_manifests(&self, lease: &str, parts: &Parts) -> Result<(), Error> {
        let labels = image_labels(&parts.config, &parts.layers);
        self.put_bytes(lease, &parts.manifest, &labels).await?;
        if let Some(index) = &parts.index {
            let labels = BTreeMap::from([(
                "containerd.io/gc.ref.content.m.0".to_owned(),
                parts.manifest.digest.clone(),
            )]);
            self.put_bytes(lease, index, &labels).await?;
        }
        Ok(())
    }

    async fn put_blob(
        &self,
        origin: &dyn Origin,
        lease: &str,
        descriptor: &Descriptor,
    ) -> Result<(), Error> {
        let lock = self.lock_of(&descriptor.digest);
        let _held = lock.lock().await;
        let blob = Blob {
            digest: descriptor.digest.clone(),
            size: descriptor.size,
        };
        let none = BTreeMap::new();
        for place in 0..origin.places() {
            let open = || origin.blob(descriptor, place);
            match self.content.put(lease, &blob, &none, open).await? {
                Stored::New => return Ok(()),
                Stored::Present => {
                    origin.progress().add(descriptor.size);
                    return Ok(());
                }
                Stored::Wrong => {
                    tracing::warn!(digest = blob.digest, place, "its bytes are others");
                }
            }
        }
        Err(Error::Fatal(format!(
            "{}: blob {}: its content does not match its digest or size",
            origin.name(),
            blob.digest
        )))
    }

    async fn put_bytes(
        &self,
        lease: &str,
        fetched: &Fetched,
        labels: &BTreeMap<String, String>,
    ) -> Result<(), Error> {
        // Two tags of one image have all of this in common.
        let lock = self.lock_of(&fetched.digest);
        let _held = lock.lock().await;
        let blob = Blob {
            digest: fetched.digest.clone(),
            size: fetched.body.len() as u64,
        };
        let body = fetched.body.clone();
        let open = || futures::stream::once(async move { Ok::<Bytes, _>(body) }).boxed();
        match self.content.put(lease, &blob, labels, open).await? {
            Stored::New | Stored::Present => Ok(()),
            Stored::Wrong => Err(Error::Fatal(format!(
                "{}: containerd reads other bytes from it; it takes sha256 digests",
                fetched.digest
            ))),
        }
    }

    /// Unpacks what is not unpacked yet, each layer once it is `there`, and returns the chain id of
    /// the top.
    pub(super) async fn unpack(
        &self,
        lease: &str,
        (config, layers): (&ImageConfig, &[Descriptor]),
        there: Vec<oneshot::Receiver<()>>,
    ) -> Result<String, Error> {
        let diff_ids = &config.rootfs.diff_ids;
        if diff_ids.len() != layers.len() {
            return Err(Error::Fatal(format!(
                "its config names {} layers, its manifest {}",
                diff_ids.len(),
                layers.len()
            )));
        }
        let chains = chain_ids(diff_ids);
        let top = chains.last().cloned().unwrap_or_default();
        if !top.is_empty() && self.snapshots.has(&top).await? {
            return Ok(top);
        }
        let mut there = there.into_iter();
        let mut parent = "";
        for ((chain, diff_id), blob) in chains.iter().zip(diff_ids).zip(layers) {
            if let Some(there) = there.next()
                && there.await.is_err()
            {
                // It could not be fetched: whoever fetches says why, and ends this.
                return std::future::pending().await;
            }
            let lock = self.lock_of(chain);
            let _held = lock.lock().await;
            if !self.snapshots.has(chain).await? {
                self.snapshots
                    .unpack(
                        lease,
                        &Layer {
                            parent,
                            chain,
                            diff_id,
                            blob,
                        },
                    )
                    .await?;
            }
            parent = chain;
        }
        Ok(top)
    }
}

async fn parts(origin: &dyn Origin, top: Fetched, parsed: Manifest) -> Result<Parts, Error> {
    let (index, manifest, parsed) = match parsed {
        Manifest::Image { .. } => (None, top, parsed),
        Manifest::Index { entries, .. } => {
            let entry = choose(&entries, crate::host::architecture())?;
            let fetched = origin.manifest(&entry.digest).await?;
            let parsed = Manifest::parse(&fetched.body)?;
            (Some(top), fetched, parsed)
        }
    };
    let Manifest::Image { config, layers, .. } = parsed else {
        return Err(Error::Fatal("its index names another index".to_owned()));
    };
    if layers.len() > LAYERS_MAX {
        return Err(Error::Fatal(format!(
            "it has {} layers, at most {LAYERS_MAX} can be mounted",
            layers.len()
        )));
    }
    Ok(Parts {
        index,
        manifest,
        config,
        layers,
    })
}

pub(super) fn snapshot_label(chain: &str) -> BTreeMap<String, String> {
    if chain.is_empty() {
        return BTreeMap::new();
    }
    BTreeMap::from([(
        format!("containerd.io/gc.ref.snapshot.{SNAPSHOTTER}"),
        chain.to_owned(),
    )])
}

fn image_labels(config: &Descriptor, layers: &[Descriptor]) -> BTreeMap<String, String> {
    let mut labels = BTreeMap::from([(
        "containerd.io/gc.ref.content.config".to_owned(),
        config.digest.clone(),
    )]);
    for (number, layer) in layers.iter().enumerate() {
        labels.insert(
            format!("containerd.io/gc.ref.content.l.{number}"),
            layer.digest.clone(),
        );
    }
    labels
}
