//! Archives of images: OCI layouts, and what `docker save` writes, as a tar file.
//!
//! An archive is spooled to an unnamed file and never unpacked: its members are found by name, so
//! a name that leads elsewhere leads nowhere. Members are read in pieces; what they are is decided
//! by digests, which the content store verifies, as it does for what registries send.

mod members;

use std::collections::BTreeMap;
use std::fs::File;
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
use members::Region;

/// Bytes that are spooled: no image is as large.
const ARCHIVE_MAX: u64 = 256 << 30;
/// Silence of the sender for this long is the end.
const PIECE_MAX: Duration = Duration::from_secs(60);
/// Bytes read at a time.
const PIECE: usize = 1 << 20;
/// Images in one archive.
const IMAGES_MAX: usize = 1000;
/// Layers of one image; overlayfs takes 500 lower directories.
const LAYERS_MAX: usize = 500;

static SPOOLED: AtomicU64 = AtomicU64::new(0);

/// An archive and what it has.
#[derive(Debug, Clone)]
pub(crate) struct Archive {
    file: Arc<File>,
    members: Arc<BTreeMap<String, Region>>,
}

/// Digests of members that are known by their content alone, as images may share them.
type Digests = BTreeMap<Region, String>;

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

/// The parts of one image that were described so far.
struct Parts<'a> {
    blobs: BTreeMap<String, Region>,
    /// Of all images.
    digests: &'a mut Digests,
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
        let members = members::read(&file)?;
        Ok(Self {
            file,
            members: Arc::new(members),
        })
    }

    /// The images in it. `name` is for the only one, where it has none. Reads layers whole, which
    /// may take minutes.
    pub(super) async fn found(&self, name: Option<&str>) -> Result<Vec<Archived>, Error> {
        let (archive, name) = (self.clone(), name.map(str::to_owned));
        tokio::task::spawn_blocking(move || archive.images(name.as_deref()))
            .await
            .map_err(bad)?
    }

    fn images(&self, name: Option<&str>) -> Result<Vec<Archived>, Error> {
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
        limit(index.manifests.len(), (IMAGES_MAX, "images"), "it")?;
        let mut images: BTreeMap<String, Archived> = BTreeMap::new();
        for entry in index.manifests {
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
        limit(entries.len(), (IMAGES_MAX, "images"), "it")?;
        for entry in &entries {
            let whose = format!("its image {}", entry.config);
            limit(entry.layers.len(), (LAYERS_MAX, "layers"), &whose)?;
        }
        let mut digests = Digests::new();
        let mut images = Vec::new();
        for entry in entries {
            let mut parts = Parts {
                blobs: BTreeMap::new(),
                digests: &mut digests,
            };
            let config = self.described(&entry.config, CONFIG_TYPE, &mut parts)?;
            let mut layers = Vec::new();
            for layer in &entry.layers {
                let media_type = self.layer_type(layer)?;
                layers.push(self.described(layer, media_type, &mut parts)?);
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
                    blobs: parts.blobs,
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
        parts: &mut Parts<'_>,
    ) -> Result<serde_json::Value, Error> {
        let region = self.member(name)?;
        let digest = match parts.digests.get(&region) {
            Some(digest) => digest.clone(),
            None => self.digest_of(region)?,
        };
        parts.digests.insert(region, digest.clone());
        // docker save names a config by its digest.
        let hex = name.strip_suffix(".json").filter(|hex| hex.len() == 64);
        if hex.is_some_and(|hex| digest != format!("sha256:{hex}")) {
            return Err(bad(format!("its member {name} does not match its digest")));
        }
        parts.blobs.insert(digest.clone(), region);
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

fn limit(count: usize, (most, what): (usize, &str), whose: &str) -> Result<(), Error> {
    match count > most {
        true => Err(bad(format!(
            "{whose} has {count} {what}, at most {most} are taken"
        ))),
        false => Ok(()),
    }
}

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

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    /// An archive of members with contents; a content that begins with `->` is a link.
    fn archive(members: &[(&str, &str)]) -> Archive {
        let mut builder = tar::Builder::new(tempfile::tempfile().unwrap());
        for (name, content) in members {
            let mut header = tar::Header::new_gnu();
            header.set_size(0);
            if let Some(target) = content.strip_prefix("->") {
                header.set_entry_type(tar::EntryType::Symlink);
                builder.append_link(&mut header, name, target).unwrap();
                continue;
            }
            header.set_size(content.len() as u64);
            builder
                .append_data(&mut header, name, content.as_bytes())
                .unwrap();
        }
        let mut file = builder.into_inner().unwrap();
        file.flush().unwrap();
        Archive::read(Arc::new(file)).unwrap()
    }

    #[tokio::test]
    async fn a_layer_that_docker_saved_as_a_link_is_the_layer() {
        let manifest = r#"[{"Config":"c.json","RepoTags":["a:1"],"Layers":["x/layer.tar"]},
            {"Config":"d.json","RepoTags":["b:1"],"Layers":["x/layer.tar","y/layer.tar"]}]"#;
        let archive = archive(&[
            ("c.json", "{}"),
            ("d.json", "{ }"),
            ("x/layer.tar", "layer"),
            ("y/layer.tar", "->../x/layer.tar"),
            ("manifest.json", manifest),
        ]);
        let images = archive.found(None).await.unwrap();
        let [_, second] = images.as_slice() else {
            panic!("{images:?}");
        };
        let body: serde_json::Value = serde_json::from_slice(&second.top.body).unwrap();
        let of = |at: usize| body["layers"][at]["digest"].as_str().unwrap().to_owned();
        assert_eq!(of(0), digest(b"layer"));
        assert_eq!(of(1), digest(b"layer"));
    }

    #[test]
    fn a_member_is_hashed_once() {
        let manifest = r#"[{"Config":"c.json","RepoTags":["a:1"],"Layers":["x"]}]"#;
        let archive = archive(&[("x", "layer"), ("manifest.json", manifest)]);
        let mut digests = Digests::from([(archive.member("x").unwrap(), "known".to_owned())]);
        let mut parts = Parts {
            blobs: BTreeMap::new(),
            digests: &mut digests,
        };
        let described = archive.described("x", "", &mut parts).unwrap();
        assert_eq!(described["digest"], "known");
    }

    #[test]
    fn what_is_too_much_is_refused_before_it_is_read() {
        let layers = vec!["\"none\""; LAYERS_MAX + 1].join(",");
        let manifest = format!(r#"[{{"Config":"c.json","RepoTags":["a:1"],"Layers":[{layers}]}}]"#);
        let error = archive(&[("manifest.json", &manifest)]).images(None);
        let error = error.unwrap_err().to_string();
        assert!(error.contains("has 501 layers, at most 500"), "{error}");
        let entry = r#"{"Config":"c.json","RepoTags":["a:1"],"Layers":[]}"#;
        let manifest = format!("[{}]", vec![entry; IMAGES_MAX + 1].join(","));
        let error = archive(&[("manifest.json", &manifest)]).images(None);
        let error = error.unwrap_err().to_string();
        assert!(error.contains("has 1001 images"), "{error}");
        let entry = r#"{"digest":"sha256:1"}"#;
        let index = format!(
            r#"{{"manifests":[{}]}}"#,
            vec![entry; IMAGES_MAX + 1].join(",")
        );
        let error = archive(&[("index.json", &index)]).images(None);
        let error = error.unwrap_err().to_string();
        assert!(error.contains("has 1001 images"), "{error}");
    }
}
