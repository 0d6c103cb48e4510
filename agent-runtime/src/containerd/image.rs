//! Images: from a reference to a root filesystem that is unpacked and a config that says how to run it.
//!
//! ```text
//! reference -> registry manifest -> layers, config, manifest into the content store (under a lease)
//!           -> layers unpacked into snapshots by chain id -> image record -> lease dropped
//! ```
//!
//! Invariants: tasks that want the same image at the same time share one pull; a layer that two
//! images share is fetched and unpacked once; whatever the image record names is whole, because
//! the record is written last; labels (`containerd.io/gc.ref.*`) keep exactly that from collection.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use containerd_client::services::v1::images_client::ImagesClient;
use containerd_client::services::v1::{
    CreateImageRequest, DeleteImageRequest, GetImageRequest, Image as ImageRecord,
    ListImagesRequest, UpdateImageRequest,
};
use containerd_client::types::Descriptor as ContentDescriptor;
use futures::future::{BoxFuture, FutureExt as _, WeakShared};
use futures::stream::{StreamExt as _, TryStreamExt as _};
use oci_client::Reference;
use oci_client::secrets::RegistryAuth;

use super::client::{CALL_MAX, Client, or_absent};
use super::content::{Blob, Content};
use super::lease::Leases;
use super::manifest::{Descriptor, ImageConfig, MANIFEST_MAX, Manifest, chain_ids, choose, digest};
use super::registry::{Fetched, RegistryRules, Session};
use super::snapshot::{Layer, SNAPSHOTTER, Snapshots};
use crate::error::Error;

/// Layers fetched at the same time for one image; Docker's figure.
const LAYERS_AT_ONCE: usize = 3;
/// Images remembered; a node seldom runs more. Reading one again costs some milliseconds.
const WHOLE_MAX: usize = 256;
/// Layers of one image; overlayfs takes 500 lower directories.
const LAYERS_MAX: usize = 500;

/// An image that is ready to run.
#[derive(Debug, Clone)]
pub(super) struct Image {
    /// Canonical reference; the name of the image record.
    pub name: String,
    /// Digest of what the image record names.
    pub digest: String,
    /// Chain id of the top layer.
    pub chain: String,
    /// How to run it.
    pub config: Arc<ImageConfig>,
    /// Worth telling the operator: the registry was not there, what is present is used.
    pub notice: Option<String>,
}

/// A pull that several tasks may wait for. The error is text, because it is shared.
/// Held weakly: a pull that nobody waits for any more ends.
type Pull = WeakShared<BoxFuture<'static, Result<Image, Refusal>>>;

/// One pull.
struct Request {
    reference: Reference,
    /// Canonical text of the reference.
    name: String,
    auth: RegistryAuth,
}

/// An [`Error`] that can be given to several waiting tasks.
#[derive(Debug, Clone)]
enum Refusal {
    Fatal(String),
    Temporary(String),
    Unavailable { runtime: String, reason: String },
}

/// The images of one namespace.
#[derive(Debug, Clone)]
pub(super) struct Images {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    client: Client,
    content: Content,
    snapshots: Snapshots,
    rules: RegistryRules,
    leases: Leases,
    pulls: Mutex<BTreeMap<String, Pull>>,
    /// Images that were found whole, by digest: spares reading them for every task.
    whole: Mutex<BTreeMap<String, Image>>,
    /// One lock per digest that is being fetched, per chain id that is being unpacked: containerd
    /// takes one writer of each.
    locks: Mutex<BTreeMap<String, Weak<tokio::sync::Mutex<()>>>>,
}

impl Images {
    pub(super) fn new(client: Client, rules: RegistryRules) -> Self {
        let leases = Leases::new(client.clone());
        Self {
            inner: Arc::new(Inner {
                content: Content::new(client.clone()),
                snapshots: Snapshots::new(client.clone()),
                client,
                rules,
                pulls: Mutex::default(),
                whole: Mutex::default(),
                locks: Mutex::default(),
                leases,
            }),
        }
    }

    /// Makes the image ready: present as the registry has it now, or as it is here when the
    /// registry can't say.
    pub(super) async fn ensure(&self, image: &str, auth: RegistryAuth) -> Result<Image, Error> {
        let reference: Reference = image
            .parse()
            .map_err(|error| Error::Fatal(format!("image {image:?}: {error}")))?;
        // Other credentials may see another image: such pulls are not shared.
        let key = digest(format!("{reference} {:?}", Secret(&auth)).as_bytes());
        let pull = {
            let mut pulls = self
                .inner
                .pulls
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            pulls.retain(|_, pull| pull.upgrade().is_some_and(|pull| pull.peek().is_none()));
            match pulls.get(&key).and_then(WeakShared::upgrade) {
                Some(pull) => pull,
                None => {
                    let inner = Arc::clone(&self.inner);
                    let pull = async move {
                        let pull = Request {
                            name: reference.whole(),
                            reference,
                            auth,
                        };
                        inner.resolve(&pull).await.map_err(Refusal::from)
                    };
                    let pull = pull.boxed().shared();
                    if let Some(weak) = pull.downgrade() {
                        pulls.insert(key, weak);
                    }
                    pull
                }
            }
        };
        pull.await.map_err(Error::from)
    }

    /// The image turned out not to be whole: looks again the next time.
    pub(super) fn forget(&self, image: &Image) {
        self.inner.whole().remove(&image.digest);
    }

    /// Removes every image record of the namespace; with the last one, what only they kept.
    pub(super) async fn remove_all(&self) -> Result<(), Error> {
        self.inner.whole().clear();
        let client = &self.inner.client;
        let mut rpc = ImagesClient::new(client.channel());
        let request = client.request(ListImagesRequest {
            filters: Vec::new(),
        });
        let images = client
            .call("list images", CALL_MAX, rpc.list(request))
            .await?
            .images;
        for image in images {
            let request = client.request(DeleteImageRequest {
                name: image.name,
                sync: true,
                target: None,
            });
            or_absent(
                client
                    .call("delete image", super::client::RUNC_MAX, rpc.delete(request))
                    .await,
            )?;
        }
        Ok(())
    }
}

/// What distinguishes credentials, for the key of a pull; only its hash is kept.
struct Secret<'a>(&'a RegistryAuth);

impl std::fmt::Debug for Secret<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            RegistryAuth::Anonymous => f.write_str("anonymous"),
            RegistryAuth::Basic(user, password) => write!(f, "basic {user}:{password}"),
            RegistryAuth::Bearer(token) => write!(f, "bearer {token}"),
        }
    }
}

impl Inner {
    async fn resolve(&self, pull: &Request) -> Result<Image, Error> {
        let name = pull.name.as_str();
        let local = self.local(name).await?;
        // A digest names one content for ever: what is here is what the registry has.
        if let (Some(local), Some(_)) = (&local, pull.reference.digest()) {
            match self.load(pull, local).await {
                Ok(image) => return Ok(image),
                Err(error) => tracing::debug!(image = name, %error, "image here is not whole"),
            }
        }
        let pulled = self.pull(pull, local.as_deref()).await;
        let (error, local) = match (pulled, local) {
            (Ok(image), _) => return Ok(image),
            (Err(error @ Error::Unavailable { .. }), _) => return Err(error),
            (Err(error), None) => return Err(named(name, error)),
            (Err(error), Some(local)) => (error, local),
        };
        match self.load(pull, &local).await {
            Ok(mut image) => {
                image.notice = Some(format!(
                    "prepared from the image present on this node: {error}"
                ));
                tracing::warn!(image = name, %error, "using the image present");
                Ok(image)
            }
            Err(_) => Err(named(name, error)),
        }
    }

    /// The digest that the image record names, if there is a record.
    async fn local(&self, name: &str) -> Result<Option<String>, Error> {
        let request = self.client.request(GetImageRequest {
            name: name.to_owned(),
        });
        let mut rpc = ImagesClient::new(self.client.channel());
        let found = or_absent(
            self.client
                .call("get image", CALL_MAX, rpc.get(request))
                .await,
        )?;
        let target = found
            .and_then(|response| response.image)
            .and_then(|image| image.target);
        Ok(target.map(|target| target.digest))
    }

    async fn pull(&self, pull: &Request, local: Option<&str>) -> Result<Image, Error> {
        let (session, top) = self.rules.open(&pull.reference, &pull.auth).await?;
        if local == Some(top.digest.as_str())
            && let Ok(image) = self.load(pull, &top.digest).await
        {
            return Ok(image);
        }
        // Keeps what is pulled until the image record does.
        let lease = self.leases.take().await?;
        let image = self.fetch(&session, &pull.name, lease.id(), top).await?;
        lease.end().await?;
        Ok(image)
    }

    async fn fetch(
        &self,
        session: &Session,
        name: &str,
        lease: &str,
        top: Fetched,
    ) -> Result<Image, Error> {
        let top_digest = top.digest.clone();
        let parsed = Manifest::parse(&top.body)?;
        let top_type = parsed.media_type().to_owned();
        let top_size = top.body.len();
        let (index, manifest, parsed) = match parsed {
            Manifest::Image { .. } => (None, top, parsed),
            Manifest::Index { entries, .. } => {
                let entry = choose(&entries, crate::host::architecture())?;
                let fetched = session.manifest_by_digest(&entry.digest).await?;
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
        let mut fetches = Vec::with_capacity(layers.len());
        for layer in &layers {
            fetches.push(self.put_blob(session, lease, layer));
        }
        futures::stream::iter(fetches)
            .buffer_unordered(LAYERS_AT_ONCE)
            .try_collect::<()>()
            .await?;
        self.put_blob(session, lease, &config).await?;
        let image_config =
            ImageConfig::parse(&self.content.read(&config.digest, MANIFEST_MAX).await?)?;
        let chain = self.unpack(lease, &image_config, &layers).await?;
        self.content
            .label(&config.digest, &snapshot_label(&chain))
            .await?;
        self.put_bytes(lease, &manifest, &image_labels(&config, &layers))
            .await?;
        if let Some(index) = index {
            let labels = BTreeMap::from([(
                "containerd.io/gc.ref.content.m.0".to_owned(),
                manifest.digest.clone(),
            )]);
            self.put_bytes(lease, &index, &labels).await?;
        }
        let target = ContentDescriptor {
            media_type: top_type,
            digest: top_digest.clone(),
            size: i64::try_from(top_size).unwrap_or(i64::MAX),
            ..Default::default()
        };
        self.record(name, target).await?;
        tracing::info!(image = name, layers = layers.len(), "image pulled");
        let image = Image {
            name: name.to_owned(),
            digest: top_digest,
            chain,
            config: Arc::new(image_config),
            notice: None,
        };
        self.remember(&image);
        Ok(image)
    }

    async fn put_blob(
        &self,
        session: &Session,
        lease: &str,
        descriptor: &Descriptor,
    ) -> Result<(), Error> {
        let lock = self.lock_of(&descriptor.digest);
        let _held = lock.lock().await;
        let blob = Blob {
            digest: descriptor.digest.clone(),
            size: descriptor.size,
        };
        self.content
            .put(lease, &blob, &BTreeMap::new(), async || {
                session.blob(descriptor).await
            })
            .await
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
        let open = async || Ok(futures::stream::once(async move { Ok(body) }).boxed());
        self.content.put(lease, &blob, labels, open).await
    }

    /// Unpacks what is not unpacked yet and returns the chain id of the top.
    async fn unpack(
        &self,
        lease: &str,
        config: &ImageConfig,
        layers: &[Descriptor],
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
        let mut parent = "";
        for ((chain, diff_id), blob) in chains.iter().zip(diff_ids).zip(layers) {
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

    /// The image as it is here, unpacked again where that was lost.
    async fn load(&self, pull: &Request, top: &str) -> Result<Image, Error> {
        if let Some(image) = self.whole().get(top) {
            return Ok(Image {
                name: pull.name.clone(),
                ..image.clone()
            });
        }
        let image = self.read(pull, top).await?;
        self.remember(&image);
        Ok(image)
    }

    fn whole(&self) -> MutexGuard<'_, BTreeMap<String, Image>> {
        self.whole.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn remember(&self, image: &Image) {
        let mut whole = self.whole();
        if whole.len() >= WHOLE_MAX {
            whole.clear();
        }
        whole.insert(
            image.digest.clone(),
            Image {
                notice: None,
                ..image.clone()
            },
        );
    }

    async fn read(&self, pull: &Request, top: &str) -> Result<Image, Error> {
        let mut parsed = Manifest::parse(&self.content.read(top, MANIFEST_MAX).await?)?;
        if let Manifest::Index { entries, .. } = &parsed {
            let entry = choose(entries, crate::host::architecture())?;
            parsed = Manifest::parse(&self.content.read(&entry.digest, MANIFEST_MAX).await?)?;
        }
        let Manifest::Image { config, layers, .. } = parsed else {
            return Err(Error::Fatal("its index names another index".to_owned()));
        };
        let image_config =
            ImageConfig::parse(&self.content.read(&config.digest, MANIFEST_MAX).await?)?;
        let chains = chain_ids(&image_config.rootfs.diff_ids);
        let whole = match chains.last() {
            Some(chain) => self.snapshots.has(chain).await?,
            None => true,
        };
        let chain = if whole {
            chains.last().cloned().unwrap_or_default()
        } else {
            let lease = self.leases.take().await?;
            let chain = self.unpack(lease.id(), &image_config, &layers).await?;
            self.content
                .label(&config.digest, &snapshot_label(&chain))
                .await?;
            lease.end().await?;
            chain
        };
        Ok(Image {
            name: pull.name.clone(),
            digest: top.to_owned(),
            chain,
            config: Arc::new(image_config),
            notice: None,
        })
    }

    async fn record(&self, name: &str, target: ContentDescriptor) -> Result<(), Error> {
        let image = ImageRecord {
            name: name.to_owned(),
            labels: HashMap::new(),
            target: Some(target),
            ..Default::default()
        };
        let mut rpc = ImagesClient::new(self.client.channel());
        let request = self.client.request(CreateImageRequest {
            image: Some(image.clone()),
            source_date_epoch: None,
        });
        match self
            .client
            .call("create image", CALL_MAX, rpc.create(request))
            .await
        {
            Ok(_) => return Ok(()),
            Err(failure) if failure.is_present() => {}
            Err(failure) => return Err(failure.into()),
        }
        let request = self.client.request(UpdateImageRequest {
            image: Some(image),
            update_mask: None,
            source_date_epoch: None,
        });
        self.client
            .call("update image", CALL_MAX, rpc.update(request))
            .await?;
        Ok(())
    }

    fn lock_of(&self, key: &str) -> Arc<tokio::sync::Mutex<()>> {
        let mut locks = self.locks.lock().unwrap_or_else(PoisonError::into_inner);
        locks.retain(|_, lock| lock.strong_count() > 0);
        if let Some(lock) = locks.get(key).and_then(Weak::upgrade) {
            return lock;
        }
        let lock = Arc::default();
        locks.insert(key.to_owned(), Arc::downgrade(&lock));
        lock
    }
}

fn snapshot_label(chain: &str) -> BTreeMap<String, String> {
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

fn named(image: &str, error: Error) -> Error {
    match error {
        Error::Fatal(reason) => Error::Fatal(format!("image {image}: {reason}")),
        Error::Temporary(reason) => Error::Temporary(format!("image {image}: {reason}")),
        error @ Error::Unavailable { .. } => error,
    }
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        match error {
            Error::Fatal(text) => Self::Fatal(text),
            Error::Temporary(text) => Self::Temporary(text),
            Error::Unavailable { runtime, reason } => Self::Unavailable { runtime, reason },
        }
    }
}

impl From<Refusal> for Error {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Fatal(text) => Self::Fatal(text),
            Refusal::Temporary(text) => Self::Temporary(text),
            Refusal::Unavailable { runtime, reason } => Self::Unavailable { runtime, reason },
        }
    }
}
