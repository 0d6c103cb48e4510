//! Archives of images: OCI layouts, and what `docker save` writes, as a tar file.
//!
//! An archive is spooled to an unnamed file and never unpacked: its members are found by name, so
//! a name that leads elsewhere leads nowhere. Members are read in pieces; what they are is decided
//! by digests, which the content store verifies, as it does for what registries send.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Seek as _, SeekFrom};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt as _;
use futures::stream::BoxStream;
use serde::Deserialize;
use swarm_proto::reference::Reference;

use super::fetch::Origin;
use super::manifest::Descriptor;
use crate::error::Error;
use crate::registry::{Fetched, MANIFEST_MAX, Progress, Source, digest, matches, sha256_of};

/// Members of an archive: images have at most some hundred layers each.
const MEMBERS_MAX: usize = 20_000;
/// Bytes that are spooled: no image is as large.
const ARCHIVE_MAX: u64 = 256 << 30;
/// Silence of the sender for this long is the end.
const PIECE_MAX: Duration = Duration::from_secs(60);
/// Bytes read at a time.
const PIECE: usize = 1 << 20;
/// Images in one archive.
const IMAGES_MAX: usize = 1000;

static SPOOLED: AtomicU64 = AtomicU64::new(0);

/// Where a member's bytes are in the archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Region {
    offset: u64,
    size: u64,
}

/// An archive and what it has.
#[derive(Debug, Clone)]
pub(crate) struct Archive {
    file: Arc<File>,
    members: Arc<BTreeMap<String, Region>>,
}

/// One image of an archive.
#[derive(Debug)]
pub(super) struct Archived {
    pub names: Vec<String>,
    pub top: Fetched,
    pub origin: InArchive,
}

/// The parts of an image, in an archive.
#[derive(Debug)]
pub(super) struct InArchive {
    archive: Archive,
    /// Members by the digests that their image gives them.
    blobs: BTreeMap<String, Region>,
    progress: Progress,
}

#[derive(Deserialize)]
struct OciIndex {
    manifests: Vec<OciEntry>,
}

#[derive(Deserialize)]
struct OciEntry {
    digest: String,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerEntry {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    #[serde(default)]
    layers: Vec<String>,
}

fn bad(reason: impl std::fmt::Display) -> Error {
    Error::Fatal(format!("archive: {reason}"))
}

impl Archive {
    /// Writes what comes to a file without a name in `directory`, and reads its list of members.
    pub(super) async fn spool(
        directory: &Path,
        mut pieces: BoxStream<'static, Result<Bytes, Error>>,
    ) -> Result<Self, Error> {
        // Two at a time are told apart.
        let number = SPOOLED.fetch_add(1, Ordering::Relaxed);
        let path = directory.join(format!("import-{}-{number}", std::process::id()));
        let io = |error: std::io::Error| bad(format!("{}: {error}", directory.display()));
        // The first task would make it too.
        std::fs::create_dir_all(directory).map_err(io)?;
        let file = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&path)
            .map_err(io)?;
        // Gone with this process, however that ends.
        std::fs::remove_file(&path).map_err(io)?;
        let mut offset = 0;
        let file = Arc::new(file);
        loop {
            let piece = match tokio::time::timeout(PIECE_MAX, pieces.next()).await {
                Ok(Some(piece)) => piece?,
                Ok(None) => break,
                Err(_) => return Err(bad(format!("nothing came for {PIECE_MAX:?}"))),
            };
            let length = piece.len() as u64;
            if offset + length > ARCHIVE_MAX {
                return Err(bad(format!("it is larger than {ARCHIVE_MAX} bytes")));
            }
            let target = Arc::clone(&file);
            let write = move || target.write_all_at(&piece, offset);
            let written = tokio::task::spawn_blocking(write).await;
            written.map_err(bad)?.map_err(io)?;
            offset += length;
        }
        tokio::task::spawn_blocking(move || Self::read(file))
            .await
            .map_err(bad)?
    }

    /// Reads an archive's list of members.
    pub(crate) fn read(file: Arc<File>) -> Result<Self, Error> {
        let mut magic = [0; 6];
        let got = file.read_at(&mut magic, 0).map_err(bad)?;
        if magic.starts_with(&[0x1f, 0x8b]) || magic.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) {
            return Err(bad(
                "it is compressed; uncompress it first (gunzip, unzstd)",
            ));
        }
        if got == 0 {
            return Err(bad("it is empty"));
        }
        let mut members = BTreeMap::new();
        let mut reader: &File = &file;
        reader.seek(SeekFrom::Start(0)).map_err(bad)?;
        let mut archive = tar::Archive::new(reader);
        // Raw: names of images' parts are short, and long ones would be read into memory whole.
        let entries = archive.entries_with_seek().map_err(bad)?.raw(true);
        for entry in entries {
            let entry = entry.map_err(|error| bad(format!("it is no tar file: {error}")))?;
            if members.len() >= MEMBERS_MAX {
                return Err(bad(format!("it has more than {MEMBERS_MAX} members")));
            }
            if !entry.header().entry_type().is_file() {
                continue;
            }
            let name = entry.path_bytes();
            let name = String::from_utf8_lossy(&name);
            let name = name.strip_prefix("./").unwrap_or(&name).to_owned();
            if name.starts_with('/') || name.split('/').any(|part| part == "..") {
                return Err(bad(format!("its member {name:?} leads out of it")));
            }
            let region = Region {
                offset: entry.raw_file_position(),
                size: entry.size(),
            };
            members.insert(name, region);
        }
        Ok(Self {
            file,
            members: Arc::new(members),
        })
    }

    /// The images in it. `name` is for the only one, where it has none.
    pub(super) fn images(&self, name: Option<&str>) -> Result<Vec<Archived>, Error> {
        let mut images = if self.members.contains_key("index.json") {
            self.of_layout()?
        } else if self.members.contains_key("manifest.json") {
            self.of_docker()?
        } else {
            return Err(bad(
                "it has neither index.json nor manifest.json: it is no archive of images",
            ));
        };
        if let ([image], Some(name)) = (images.as_mut_slice(), name) {
            image.names = vec![full(name)?];
        } else if name.is_some() {
            let count = images.len();
            return Err(bad(format!("it has {count} images, a name is for one")));
        }
        if images.iter().any(|image| image.names.is_empty()) {
            return Err(bad("an image in it has no name; give one with --name"));
        }
        if images.is_empty() {
            return Err(bad("it has no image"));
        }
        Ok(images)
    }

    /// Everything that can be read of it without a content store, for tests with bad ones.
    pub(crate) fn inspect(&self) -> Result<usize, Error> {
        Ok(self.images(None)?.len())
    }

    fn of_layout(&self) -> Result<Vec<Archived>, Error> {
        let index: OciIndex = self.json("index.json")?;
        let mut images: BTreeMap<String, Archived> = BTreeMap::new();
        for entry in index.manifests.into_iter().take(IMAGES_MAX) {
            let name = entry.annotations.get("io.containerd.image.name");
            let name = name.or_else(|| {
                // By the specification it may be a tag alone, which says too little.
                let short = entry.annotations.get("org.opencontainers.image.ref.name");
                short.filter(|name| name.contains(['/', ':']))
            });
            let name = name.map(|name| full(name)).transpose()?;
            if let Some(image) = images.get_mut(&entry.digest) {
                image.names.extend(name);
                continue;
            }
            let origin = InArchive {
                archive: self.clone(),
                blobs: BTreeMap::new(),
                progress: Progress::default(),
            };
            let top = origin.fetched(&entry.digest)?;
            let names = name.into_iter().collect();
            images.insert(entry.digest, Archived { names, top, origin });
        }
        Ok(images.into_values().collect())
    }

    fn of_docker(&self) -> Result<Vec<Archived>, Error> {
        let entries: Vec<DockerEntry> = self.json("manifest.json")?;
        let mut images = Vec::new();
        for entry in entries.into_iter().take(IMAGES_MAX) {
            let mut blobs = BTreeMap::new();
            let config = self.described(&entry.config, CONFIG_TYPE, &mut blobs)?;
            let mut layers = Vec::new();
            for layer in &entry.layers {
                let media_type = self.layer_type(layer)?;
                layers.push(self.described(layer, media_type, &mut blobs)?);
            }
            let manifest = serde_json::json!({
                "schemaVersion": 2,
                "mediaType": "application/vnd.docker.distribution.manifest.v2+json",
                "config": config,
                "layers": layers,
            });
            let body = Bytes::from(manifest.to_string());
            let names = entry.repo_tags.unwrap_or_default();
            let names: Result<_, Error> = names.iter().map(|name| full(name)).collect();
            images.push(Archived {
                names: names?,
                top: Fetched {
                    digest: digest(&body),
                    body,
                },
                origin: InArchive {
                    archive: self.clone(),
                    blobs,
                    progress: Progress::default(),
                },
            });
        }
        Ok(images)
    }

    /// The descriptor of a member, by what it holds.
    fn described(
        &self,
        name: &str,
        media_type: &str,
        blobs: &mut BTreeMap<String, Region>,
    ) -> Result<serde_json::Value, Error> {
        let region = self.member(name)?;
        let digest = self.digest_of(region)?;
        // docker save names a config by its digest.
        let hex = name.strip_suffix(".json").filter(|hex| hex.len() == 64);
        if hex.is_some_and(|hex| digest != format!("sha256:{hex}")) {
            return Err(bad(format!("its member {name} does not match its digest")));
        }
        blobs.insert(digest.clone(), region);
        Ok(serde_json::json!({
            "mediaType": media_type, "digest": digest, "size": region.size,
        }))
    }

    fn layer_type(&self, name: &str) -> Result<&'static str, Error> {
        let mut magic = [0; 2];
        let region = self.member(name)?;
        self.file.read_at(&mut magic, region.offset).map_err(bad)?;
        match magic {
            [0x1f, 0x8b] => Ok("application/vnd.docker.image.rootfs.diff.tar.gzip"),
            _ => Ok("application/vnd.docker.image.rootfs.diff.tar"),
        }
    }

    fn member(&self, name: &str) -> Result<Region, Error> {
        let found = self.members.get(name).copied();
        found.ok_or_else(|| bad(format!("it has no member {name}")))
    }

    fn json<T: serde::de::DeserializeOwned>(&self, name: &str) -> Result<T, Error> {
        let body = self.small(name, self.member(name)?)?;
        serde_json::from_slice(&body)
            .map_err(|error| bad(format!("its member {name} can't be read: {error}")))
    }

    /// A member of a manifest's size.
    fn small(&self, name: &str, region: Region) -> Result<Vec<u8>, Error> {
        let size = usize::try_from(region.size).unwrap_or(usize::MAX);
        if size > MANIFEST_MAX {
            return Err(bad(format!(
                "its member {name} is larger than {MANIFEST_MAX} bytes"
            )));
        }
        let mut body = vec![0; size];
        self.file
            .read_exact_at(&mut body, region.offset)
            .map_err(|error| bad(format!("it is cut off in {name}: {error}")))?;
        Ok(body)
    }

    fn digest_of(&self, region: Region) -> Result<String, Error> {
        sha256_of(region.size, |at, piece| {
            self.file.read_exact_at(piece, region.offset + at)
        })
        .map_err(|error| bad(format!("it is cut off: {error}")))
    }
}

const CONFIG_TYPE: &str = "application/vnd.docker.container.image.v1+json";

fn full(name: &str) -> Result<String, Error> {
    let reference = name.parse::<Reference>().map_err(bad)?;
    Ok(reference.to_string())
}

impl InArchive {
    fn region(&self, digest: &str) -> Option<Region> {
        let known = self.blobs.get(digest).copied();
        known.or_else(|| {
            let (algorithm, hex) = digest.split_once(':')?;
            let name = format!("blobs/{algorithm}/{hex}");
            self.archive.members.get(&name).copied()
        })
    }

    fn fetched(&self, digest: &str) -> Result<Fetched, Error> {
        let region = self.region(digest);
        let region = region.ok_or_else(|| bad(format!("it has no blob {digest}")))?;
        let body = self.archive.small(digest, region)?;
        if !matches(digest, &body) {
            return Err(bad(format!("its blob {digest} does not match its digest")));
        }
        Ok(Fetched {
            digest: digest.to_owned(),
            body: Bytes::from(body),
        })
    }
}

#[tonic::async_trait]
impl Origin for InArchive {
    async fn manifest(&self, digest: &str) -> Result<Fetched, Error> {
        self.fetched(digest)
    }

    fn places(&self) -> usize {
        1
    }

    fn blob(&self, blob: &Descriptor, _: usize) -> Source {
        let file = Arc::clone(&self.archive.file);
        let region = self.region(&blob.digest);
        let missing = format!("archive: it has no blob {}", blob.digest);
        let state = region.ok_or(std::io::Error::other(missing));
        futures::stream::try_unfold(Some(state), move |state| {
            let file = Arc::clone(&file);
            async move {
                let Some(region) = state.transpose()? else {
                    return Ok(None);
                };
                if region.size == 0 {
                    return Ok(None);
                }
                let length = PIECE.min(usize::try_from(region.size).unwrap_or(PIECE));
                let read = move || {
                    let mut piece = vec![0; length];
                    file.read_exact_at(&mut piece, region.offset)?;
                    Ok::<_, std::io::Error>(Bytes::from(piece))
                };
                let piece = tokio::task::spawn_blocking(read).await;
                let piece = piece.map_err(std::io::Error::other)??;
                let rest = Region {
                    offset: region.offset + length as u64,
                    size: region.size - length as u64,
                };
                Ok(Some((piece, Some(Ok(rest)))))
            }
        })
        .boxed()
    }

    fn progress(&self) -> &Progress {
        &self.progress
    }

    fn name(&self) -> String {
        "archive".to_owned()
    }
}
