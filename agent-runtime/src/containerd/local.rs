//! The images that are here: told to the operator, and collected when nobody uses them.
//!
//! One image may have two records, by its tag and by tag and digest; it is shown and removed as
//! one. What a task uses is what its container's record names, and whatever has the same digest.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use containerd_client::services::v1::introspection_client::IntrospectionClient;
use containerd_client::services::v1::{Image as ImageRecord, PluginsRequest};
use futures::stream::BoxStream;
use swarm_proto::reference::Reference;
use swarm_proto::registry_auth::Credentials;
use tokio::sync::watch;
use tokio::time::Instant;

use super::archive::Archive;
use super::client::CALL_MAX;
use super::collect::{Disk, Outcome, Pass, Unused};
use super::label;
use super::manifest::{ImageConfig, Manifest, choose};
use super::node::Node;
use super::snapshot::SNAPSHOTTER;
use crate::error::Error;
use crate::host;
use crate::image::{Collection, ImageStore, LocalImage, PullState};
use crate::registry::MANIFEST_MAX;

/// Looks for images to collect; kubelet's period. More often where images go sooner.
const COLLECT_EVERY: Duration = Duration::from_mins(5);
const COLLECT_AT_MOST_EVERY: Duration = Duration::from_secs(1);
/// Between the moment a task takes an image and that of its container's record there are some
/// milliseconds, or a second where a thousand come at once.
const TAKEN: Duration = Duration::from_secs(5);

/// The images of a node.
#[derive(Debug)]
pub(super) struct LocalImages {
    pub node: Arc<Node>,
    /// Where archives are put while they are read.
    pub spool: PathBuf,
}

/// An image with all its names.
#[derive(Debug)]
struct Present {
    names: Vec<String>,
    digest: String,
    used_s: Option<u64>,
    tasks: Vec<String>,
}

impl LocalImages {
    /// Every image once, by its shortest name.
    async fn present(&self) -> Result<Vec<Present>, Error> {
        let records = self.node.images.inner.records().await?;
        let mut users: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for container in self.node.containers.list().await? {
            users.entry(container.image).or_default().push(container.id);
        }
        let mut found: BTreeMap<(String, String), Present> = BTreeMap::new();
        for record in records {
            let digest = digest_of(&record);
            let key = (tagged(&record.name), digest.clone());
            let used_s = record.labels.get(label::IMAGE_USED);
            let used_s = used_s.and_then(|text| text.parse().ok());
            let present = found.entry(key).or_insert_with(|| Present {
                names: Vec::new(),
                digest,
                used_s: None,
                tasks: Vec::new(),
            });
            present.used_s = present.used_s.max(used_s);
            let tasks = users.get(&record.name).into_iter().flatten();
            present.tasks.extend(tasks.cloned());
            present.names.push(record.name);
        }
        // By length, so that the first is what people write.
        for present in found.values_mut() {
            present.names.sort_by_key(|name| (name.len(), name.clone()));
            present.tasks.sort();
        }
        Ok(found.into_values().collect())
    }

    async fn shown(&self, present: Present) -> LocalImage {
        let mut image = LocalImage {
            name: present.names.first().cloned().unwrap_or_default(),
            digest: present.digest,
            used_s: present.used_s.unwrap_or(0),
            tasks: present.tasks,
            ..LocalImage::default()
        };
        // One that is damaged is listed all the same: it can be removed.
        if let Ok((size, created)) = self.contents(&image.digest).await {
            (image.size, image.created) = (size, created);
        }
        image
    }

    /// Size and age of an image.
    async fn contents(&self, digest: &str) -> Result<(u64, String), Error> {
        let content = &self.node.images.inner.content;
        let body = content.read(digest, MANIFEST_MAX).await?;
        let mut size = body.len() as u64;
        let mut parsed = Manifest::parse(&body)?;
        if let Manifest::Index { entries, .. } = &parsed {
            let entry = choose(entries, host::architecture())?;
            let body = content.read(&entry.digest, MANIFEST_MAX).await?;
            size += body.len() as u64;
            parsed = Manifest::parse(&body)?;
        }
        let Manifest::Image { config, layers, .. } = parsed else {
            return Ok((size, String::new()));
        };
        let parts = layers.iter().map(|layer| layer.size);
        size = parts.fold(size + config.size, u64::saturating_add);
        let config = ImageConfig::parse(&content.read(&config.digest, MANIFEST_MAX).await?)?;
        Ok((size, config.created.unwrap_or_default()))
    }

    async fn named(&self, name: &str) -> Result<LocalImage, Error> {
        let present = self.present().await?.into_iter();
        let mut found = present.filter(|image| image.names.iter().any(|n| n == name));
        match found.next() {
            Some(image) => Ok(self.shown(image).await),
            None => Err(Error::Fatal(format!(
                "image {name}: it is not on this node"
            ))),
        }
    }

    /// Removes what the policy says; returns what went.
    pub(super) async fn collect(&self, policy: &Collection) -> Result<Vec<String>, Error> {
        // What is taken from here on may be missing in the lists.
        let begin = Instant::now();
        let begin = begin.checked_sub(TAKEN).unwrap_or(begin);
        let unused = self.unused().await?;
        let mut pass = Pass::new(unused, self.disk().await, policy, host::now_s());
        while let Some(image) = pass.next(self.disk().await) {
            let outcome = self.remove_unused(&image, begin).await;
            pass.note(&image, outcome)?;
        }
        Ok(pass.gone())
    }

    async fn remove_unused(&self, image: &Unused, begin: Instant) -> Result<Outcome, Error> {
        let inner = &self.node.images.inner;
        if image
            .names
            .iter()
            .any(|name| inner.taken_since(name, begin))
        {
            return Ok(Outcome::Spared);
        }
        for name in &image.names {
            inner.delete(name).await?;
        }
        Ok(Outcome::Removed)
    }

    /// The images that nobody uses.
    async fn unused(&self) -> Result<Vec<Unused>, Error> {
        let inner = &self.node.images.inner;
        let present = self.present().await?;
        let pulling = inner.pulling();
        let used: BTreeSet<String> = present
            .iter()
            .filter(|image| {
                !image.tasks.is_empty() || image.names.iter().any(|name| pulling.contains(name))
            })
            .map(|image| image.digest.clone())
            .collect();
        let mut unused = Vec::new();
        for image in present {
            let Some(used_s) = image.used_s.filter(|_| !used.contains(&image.digest)) else {
                // In use, or of unknown age: its time begins now.
                for name in &image.names {
                    inner.touch(name).await;
                }
                continue;
            };
            unused.push(Unused {
                names: image.names,
                used_s,
            });
        }
        Ok(unused)
    }

    /// The disk that snapshots are on, where containerd says which it is and it can be seen here.
    async fn disk(&self) -> Option<Disk> {
        let client = &self.node.client;
        let request = client.request(PluginsRequest {
            filters: vec![format!("id=={SNAPSHOTTER}")],
        });
        let mut rpc = IntrospectionClient::new(client.channel());
        let plugins = client
            .call("list plugins", CALL_MAX, rpc.plugins(request))
            .await;
        let plugins = plugins.ok()?.plugins;
        let root = plugins
            .iter()
            .find_map(|plugin| plugin.exports.get("root"))?;
        let found = nix::sys::statvfs::statvfs(root.as_str()).ok()?;
        let unit = found.fragment_size();
        Some(Disk {
            total: found.blocks().saturating_mul(unit),
            available: found.blocks_available().saturating_mul(unit),
        })
    }
}

/// Collects for as long as it is polled.
pub(super) async fn run(images: LocalImages, policy: Collection) {
    let every = policy.age.map_or(COLLECT_EVERY, |age| {
        age.clamp(COLLECT_AT_MOST_EVERY, COLLECT_EVERY)
    });
    loop {
        tokio::time::sleep(every).await;
        match images.collect(&policy).await {
            Ok(_) => {}
            // The connection's own watch tells that.
            Err(error @ Error::Unavailable { .. }) => {
                tracing::debug!(%error, "images are not collected");
            }
            Err(error @ (Error::Fatal(_) | Error::Temporary(_))) => {
                tracing::warn!(%error, "images are not collected");
            }
        }
    }
}

fn digest_of(record: &ImageRecord) -> String {
    let target = record.target.as_ref();
    target
        .map(|target| target.digest.clone())
        .unwrap_or_default()
}

/// The name without the digest, where it has a tag too.
fn tagged(name: &str) -> String {
    match name.parse::<Reference>() {
        Ok(reference) if reference.tag.is_some() => Reference {
            digest: None,
            ..reference
        }
        .to_string(),
        Ok(_) | Err(_) => name.to_owned(),
    }
}

#[tonic::async_trait]
impl ImageStore for LocalImages {
    async fn list(&self) -> Result<Vec<LocalImage>, Error> {
        let mut images = Vec::new();
        for present in self.present().await? {
            images.push(self.shown(present).await);
        }
        images.sort_by(|a, b| (&a.name, &a.digest).cmp(&(&b.name, &b.digest)));
        Ok(images)
    }

    async fn pull(
        &self,
        name: &str,
        credentials: Credentials,
        told: watch::Sender<PullState>,
    ) -> Result<LocalImage, Error> {
        let image = self.node.images.pull_now(name, credentials, &told).await?;
        self.named(&image.name).await
    }

    async fn import(
        &self,
        archive: BoxStream<'static, Result<Bytes, Error>>,
        name: Option<&str>,
    ) -> Result<Vec<LocalImage>, Error> {
        let archive = Archive::spool(&self.spool, archive).await?;
        let mut images = Vec::new();
        for image in archive.found(name).await? {
            let inner = &self.node.images.inner;
            let lease = inner.leases.take().await?;
            let top = (lease.id(), image.top.clone());
            inner.fetch(&image.origin, &image.names, top).await?;
            lease.end().await?;
            for name in &image.names {
                images.push(self.named(name).await?);
            }
        }
        Ok(images)
    }

    async fn remove(&self, name: &str, force: bool) -> Result<(), Error> {
        let present = self.present().await?.into_iter();
        let mut found = present.filter(|image| image.names.iter().any(|n| n == name));
        let image = found
            .next()
            .ok_or_else(|| Error::Fatal(format!("image {name}: it is not on this node")))?;
        if !force && !image.tasks.is_empty() {
            return Err(Error::Fatal(format!(
                "image {name}: used by {} of this node: {}; say --force to remove its name all the same",
                swarm_proto::amount::count(image.tasks.len() as u64, "task"),
                image.tasks.join(", ")
            )));
        }
        if image
            .names
            .iter()
            .any(|n| self.node.images.inner.pulling().contains(n))
        {
            return Err(Error::Fatal(format!(
                "image {name}: it is being pulled; try again when that has ended"
            )));
        }
        for name in &image.names {
            self.node.images.inner.delete(name).await?;
        }
        Ok(())
    }
}
