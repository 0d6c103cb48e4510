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

mod usage;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use containerd_client::services::v1::images_client::ImagesClient;
use containerd_client::services::v1::{
    CreateImageRequest, DeleteImageRequest, GetImageRequest, Image as ImageRecord,
    ListImagesRequest, UpdateImageRequest,
};
use containerd_client::types::Descriptor as ContentDescriptor;
use futures::future::{BoxFuture, FutureExt as _, WeakShared};
use prost_types::FieldMask;
use swarm_proto::reference::Reference;
use swarm_proto::registry_auth::Credentials;
use tokio::sync::watch;
use tokio::time::Instant;

use super::client::{CALL_MAX, Client, Failure, or_absent};
use super::content::Content;
use super::fetch::snapshot_label;
use super::label;
use super::lease::Leases;
use super::manifest::{ImageConfig, Manifest, chain_ids, choose};
use super::snapshot::Snapshots;
use crate::error::Error;
use crate::host;
use crate::image::PullState;
use crate::registry::{MANIFEST_MAX, Patience, Progress, Registries, digest};
use usage::Usage;

/// Images remembered; a node seldom runs more. Reading one again costs some milliseconds.
const WHOLE_MAX: usize = 256;
/// How often those who wait for a pull hear how far it is: each change of a task's status is an
/// entry of the managers' log.
const PROGRESS_EVERY: Duration = Duration::from_secs(2);
/// How often an operator who waits for a pull sees how far it is.
const SHOWN_EVERY: Duration = Duration::from_millis(100);
/// Begins what a task hears where the registry was not there.
const AS_PRESENT: &str = "prepared from the image present on this node: ";

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
type Pull = WeakShared<PullFuture>;
type PullFuture = BoxFuture<'static, Result<Image, Refusal>>;

/// One pull.
struct Request {
    reference: Reference,
    /// Canonical text of the reference.
    name: String,
    credentials: Credentials,
    progress: Arc<Progress>,
}

/// A pull that is under way.
#[derive(Debug)]
struct UnderWay {
    pull: Pull,
    name: String,
    progress: Arc<Progress>,
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
    pub(super) inner: Arc<Inner>,
}

#[derive(Debug)]
pub(super) struct Inner {
    pub(super) client: Client,
    pub(super) content: Content,
    pub(super) snapshots: Snapshots,
    pub(super) registries: Registries,
    pub(super) leases: Leases,
    pulls: Mutex<BTreeMap<String, UnderWay>>,
    /// Images that were found whole, by digest: spares reading them for every task.
    whole: Mutex<BTreeMap<String, Image>>,
    usage: Mutex<Usage>,
    /// One lock per digest that is being fetched, per chain id that is being unpacked: containerd
    /// takes one writer of each.
    locks: Mutex<BTreeMap<String, Weak<tokio::sync::Mutex<()>>>>,
}

impl Images {
    pub(super) fn new(client: Client, registries: Registries) -> Self {
        let leases = Leases::new(client.clone());
        Self {
            inner: Arc::new(Inner {
                content: Content::new(client.clone()),
                snapshots: Snapshots::new(client.clone()),
                client,
                registries,
                pulls: Mutex::default(),
                whole: Mutex::default(),
                usage: Mutex::default(),
                locks: Mutex::default(),
                leases,
            }),
        }
    }

    /// Makes the image ready: present as the registry has it now, or as it is here when the
    /// registry can't say. Meanwhile `told` hears how far that is.
    pub(super) async fn ensure(
        &self,
        image: &str,
        credentials: Credentials,
        told: &watch::Sender<String>,
    ) -> Result<Image, Error> {
        let reference: Reference = image
            .parse()
            .map_err(|error| Error::Fatal(format!("image {error}")))?;
        let (mut pull, progress) = self.shared(reference, credentials);
        let mut ticks = tokio::time::interval(PROGRESS_EVERY);
        // The first one is at once; nothing is known then.
        ticks.tick().await;
        loop {
            tokio::select! {
                biased;
                result = &mut pull => return result.map_err(Error::from),
                _ = ticks.tick() => {
                    let text = progress.text();
                    told.send_if_modified(|last| {
                        let news = *last != text;
                        *last = text;
                        news
                    });
                }
            }
        }
    }

    /// Brings the image in as the registry has it now, which has to answer; `told` hears how far
    /// that is.
    pub(super) async fn pull_now(
        &self,
        image: &str,
        credentials: Credentials,
        told: &watch::Sender<PullState>,
    ) -> Result<Image, Error> {
        let reference: Reference = image
            .parse()
            .map_err(|error| Error::Fatal(format!("image {error}")))?;
        let (mut pull, progress) = self.shared(reference, credentials);
        let mut ticks = tokio::time::interval(SHOWN_EVERY);
        loop {
            tokio::select! {
                biased;
                result = &mut pull => {
                    let image = result.map_err(Error::from)?;
                    told.send_replace(progress.state());
                    return match image.notice {
                        Some(notice) => Err(not_as_there_now(&image.name, &notice)),
                        None => Ok(image),
                    };
                }
                _ = ticks.tick() => drop(told.send_replace(progress.state())),
            }
        }
    }

    /// The pull under way for the same image by the same caller, or a new one.
    fn shared(
        &self,
        reference: Reference,
        credentials: Credentials,
    ) -> (futures::future::Shared<PullFuture>, Arc<Progress>) {
        // Other credentials may see another image: such pulls are not shared.
        let secret = credentials.encode(&reference.registry);
        let key = digest(format!("{reference} {secret}").as_bytes());
        let mut pulls = self.inner.pulls();
        pulls.retain(|_, way| way.pull.upgrade().is_some_and(|pull| pull.peek().is_none()));
        if let Some(way) = pulls.get(&key)
            && let Some(pull) = way.pull.upgrade()
        {
            return (pull, Arc::clone(&way.progress));
        }
        let inner = Arc::clone(&self.inner);
        let progress = Arc::<Progress>::default();
        let request = Request {
            name: reference.to_string(),
            reference,
            credentials,
            progress: Arc::clone(&progress),
        };
        let name = request.name.clone();
        let pull = async move { inner.resolve(&request).await.map_err(Refusal::from) };
        let pull = pull.boxed().shared();
        if let Some(weak) = pull.downgrade() {
            let way = UnderWay {
                pull: weak,
                name,
                progress: Arc::clone(&progress),
            };
            pulls.insert(key, way);
        }
        (pull, progress)
    }

    /// The image turned out not to be whole: looks again the next time.
    pub(super) fn forget(&self, image: &Image) {
        self.inner.whole().remove(&image.digest);
    }

    /// Removes every image record of the namespace; with the last one, what only they kept.
    pub(super) async fn remove_all(&self) -> Result<(), Error> {
        for image in self.inner.records().await? {
            self.inner.delete(&image.name).await?;
        }
        Ok(())
    }
}

impl Inner {
    async fn resolve(&self, pull: &Request) -> Result<Image, Error> {
        let name = pull.name.as_str();
        let local = self.local(name).await?;
        // A digest names one content for ever: what is here is what the registry has, under
        // whatever name it came.
        if let Some(digest) = &pull.reference.digest {
            let present = match local {
                Some(_) => self.take(pull, digest).await,
                None => self.adopt(pull, digest).await,
            };
            match present {
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
                image.notice = Some(format!("{AS_PRESENT}{error}"));
                tracing::warn!(image = name, %error, "using the image present");
                self.touch(name).await;
                Ok(image)
            }
            Err(_) => Err(named(name, error)),
        }
    }

    /// The image of a digest whose name has a record.
    async fn take(&self, pull: &Request, digest: &str) -> Result<Image, Error> {
        let image = self.load(pull, digest).await?;
        self.touch(&pull.name).await;
        Ok(image)
    }

    /// The image of a digest that is here under another name, which gets this name too.
    async fn adopt(&self, pull: &Request, digest: &str) -> Result<Image, Error> {
        // What is remembered may be gone with the last name of it: others may remove images too.
        self.whole().remove(digest);
        let target = self.content.descriptor(digest, MANIFEST_MAX).await?;
        let lease = self.leases.take().await?;
        lease.keep(digest).await?;
        let image = self.load(pull, digest).await?;
        self.record(&pull.name, target).await?;
        lease.end().await?;
        Ok(image)
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
        // Where the image is here a task need not wait for a registry that is away.
        let patience = match local {
            Some(_) => Patience::Once,
            None => Patience::Patient,
        };
        let told = (patience, Arc::clone(&pull.progress));
        let (session, top) = self
            .registries
            .open(&pull.reference, &pull.credentials, told)
            .await?;
        if local == Some(top.digest.as_str())
            && let Ok(image) = self.load(pull, &top.digest).await
        {
            self.touch(&pull.name).await;
            return Ok(image);
        }
        let mut names = vec![pull.name.clone()];
        if let (Some(_), Some(_)) = (&pull.reference.tag, &pull.reference.digest) {
            // The tag alone finds it too, should a later task have nothing else to go by.
            let tagged = Reference {
                digest: None,
                ..pull.reference.clone()
            };
            names.push(tagged.to_string());
        }
        // Keeps what is pulled until the image record does.
        let lease = self.leases.take().await?;
        let image = self.fetch(&session, &names, (lease.id(), top)).await?;
        lease.end().await?;
        Ok(image)
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

    fn pulls(&self) -> MutexGuard<'_, BTreeMap<String, UnderWay>> {
        self.pulls.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Names of the images that are being pulled.
    pub(super) fn pulling(&self) -> Vec<String> {
        let pulls = self.pulls();
        let under_way = pulls
            .values()
            .filter(|way| way.pull.upgrade().is_some_and(|pull| pull.peek().is_none()));
        under_way.map(|way| way.name.clone()).collect()
    }

    pub(super) fn remember(&self, image: &Image) {
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
            let chain = self
                .unpack(lease.id(), (&image_config, &layers), Vec::new())
                .await?;
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

    /// Names what is here; from now on the record keeps it.
    pub(super) async fn record(&self, name: &str, target: ContentDescriptor) -> Result<(), Error> {
        let image = ImageRecord {
            name: name.to_owned(),
            labels: used_now(),
            target: Some(target),
            ..Default::default()
        };
        self.usage().write(name, Instant::now());
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
        self.update(image, None).await?;
        Ok(())
    }

    async fn update(&self, image: ImageRecord, mask: Option<FieldMask>) -> Result<(), Failure> {
        let request = self.client.request(UpdateImageRequest {
            image: Some(image),
            update_mask: mask,
            source_date_epoch: None,
        });
        let mut rpc = ImagesClient::new(self.client.channel());
        self.client
            .call("update image", CALL_MAX, rpc.update(request))
            .await?;
        Ok(())
    }

    /// Writes down that an image is used now, where that was not done lately: its collection
    /// counts from its last use, also after a restart of swarmd.
    pub(super) async fn touch(&self, name: &str) {
        if !self.usage().take(name, Instant::now()) {
            return;
        }
        let image = ImageRecord {
            name: name.to_owned(),
            labels: used_now(),
            ..Default::default()
        };
        let mask = FieldMask {
            paths: vec![format!("labels.{}", label::IMAGE_USED)],
        };
        if let Err(failure) = self.update(image, Some(mask)).await {
            tracing::debug!(image = name, ?failure, "its last use is not written down");
        }
    }

    fn usage(&self) -> MutexGuard<'_, Usage> {
        self.usage.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// True where the image was taken since then, or is being brought in.
    pub(super) fn taken_since(&self, name: &str, since: Instant) -> bool {
        self.usage().taken_since(name, since) || self.pulling().iter().any(|other| other == name)
    }

    /// All image records of the namespace.
    pub(super) async fn records(&self) -> Result<Vec<ImageRecord>, Failure> {
        let request = self.client.request(ListImagesRequest {
            filters: Vec::new(),
        });
        let mut rpc = ImagesClient::new(self.client.channel());
        let listed = self
            .client
            .call("list images", CALL_MAX, rpc.list(request))
            .await?;
        Ok(listed.images)
    }

    /// Removes an image record, and what only it kept.
    pub(super) async fn delete(&self, name: &str) -> Result<(), Failure> {
        // It may be the last that keeps what is remembered as whole.
        self.whole().clear();
        let request = self.client.request(DeleteImageRequest {
            name: name.to_owned(),
            sync: true,
            target: None,
        });
        let mut rpc = ImagesClient::new(self.client.channel());
        or_absent(
            self.client
                .call("delete image", super::client::RUNC_MAX, rpc.delete(request))
                .await,
        )?;
        Ok(())
    }

    pub(super) fn lock_of(&self, key: &str) -> Arc<tokio::sync::Mutex<()>> {
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

fn used_now() -> HashMap<String, String> {
    HashMap::from([(label::IMAGE_USED.to_owned(), host::now_s().to_string())])
}

/// The words for an operator who asks for what the registry has now, from those for a task.
fn not_as_there_now(image: &str, notice: &str) -> Error {
    let reason = notice.strip_prefix(AS_PRESENT).unwrap_or(notice);
    Error::Fatal(format!(
        "image {image}: {reason}; the image present on this node stays as it is"
    ))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_operator_reads_why_nothing_came() {
        let notice = format!("{AS_PRESENT}registry r: refused");
        let error = not_as_there_now("r/web:1", &notice).to_string();
        assert!(
            error.starts_with("image r/web:1: registry r: refused;"),
            "{error}"
        );
        assert!(!error.contains("prepared"), "{error}");
    }
}
