//! Packs static binaries into images, OCI's or Docker's, without any image-building tool.
//!
//! The same input gives the same digests, so pushing an unchanged image transfers nothing.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

pub use crate::tar::Entry;
use crate::{Error, command, tar};

/// Media types of an image's parts: whose documents they are is told by these alone.
#[derive(Debug, PartialEq, Eq)]
pub struct Format {
    index: &'static str,
    manifest: &'static str,
    config: &'static str,
    layer: &'static str,
    compressed_layer: &'static str,
    zstd_layer: &'static str,
}

/// The OCI image specification's.
pub const OCI: &Format = &Format {
    index: "application/vnd.oci.image.index.v1+json",
    manifest: "application/vnd.oci.image.manifest.v1+json",
    config: "application/vnd.oci.image.config.v1+json",
    layer: "application/vnd.oci.image.layer.v1.tar",
    compressed_layer: "application/vnd.oci.image.layer.v1.tar+gzip",
    zstd_layer: "application/vnd.oci.image.layer.v1.tar+zstd",
};

/// Docker's, schema 2.
pub const DOCKER: &Format = &Format {
    index: "application/vnd.docker.distribution.manifest.list.v2+json",
    manifest: "application/vnd.docker.distribution.manifest.v2+json",
    config: "application/vnd.docker.container.image.v1+json",
    layer: "application/vnd.docker.image.rootfs.diff.tar",
    compressed_layer: "application/vnd.docker.image.rootfs.diff.tar.gzip",
    zstd_layer: "application/vnd.docker.image.rootfs.diff.tar.zstd",
};

/// The user of the example image: nobody.
const NOBODY: &str = "65534:65534";

/// Content with its digest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blob {
    /// `sha256:` and 64 hexadecimal digits.
    pub digest: String,
    /// What it is.
    pub media_type: &'static str,
    /// The content.
    pub content: Vec<u8>,
}

impl Blob {
    fn new(media_type: &'static str, content: Vec<u8>) -> Self {
        Self {
            digest: digest(&content),
            media_type,
            content,
        }
    }

    fn descriptor(&self) -> Value {
        json!({"mediaType": self.media_type, "digest": self.digest, "size": self.content.len()})
    }
}

/// A layer as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layer {
    /// Digest of the archive, however it is stored.
    diff_id: String,
    content: Vec<u8>,
    stored: Stored,
}

/// How a layer is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stored {
    /// As the archive that it is.
    Plain,
    /// By gzip.
    Gzip,
    /// By zstd.
    Zstd,
}

impl Layer {
    /// A layer of an archive that somebody else wrote.
    pub fn of_tar(archive: Vec<u8>, stored: Stored) -> Result<Self, Error> {
        let diff_id = digest(&archive);
        let content = match stored {
            Stored::Plain => archive,
            Stored::Gzip => compress("gzip", "-n", &archive)?,
            Stored::Zstd => compress("zstd", "-q", &archive)?,
        };
        Ok(Self {
            diff_id,
            content,
            stored,
        })
    }

    /// A layer stored as the archive that it is.
    pub fn plain(entries: &[Entry]) -> Result<Self, Error> {
        let content = tar::archive(entries).ok_or_else(|| {
            Error::Refused("an image layer has a path of more than 100 bytes".to_owned())
        })?;
        Self::of_tar(content, Stored::Plain)
    }

    /// A layer stored compressed.
    pub fn compressed(entries: &[Entry]) -> Result<Self, Error> {
        let plain = Self::plain(entries)?;
        Ok(Self {
            content: compress("gzip", "-n", &plain.content)?,
            stored: Stored::Gzip,
            ..plain
        })
    }
}

/// A tar archive of entries; none where a path is too long for its header.
pub fn archive(entries: &[Entry]) -> Option<Vec<u8>> {
    tar::archive(entries)
}

/// What an image is made of.
#[derive(Debug)]
pub struct Recipe<'a> {
    /// Whose media types it has.
    pub format: &'static Format,
    /// In Go's words.
    pub architecture: &'a str,
    /// The `config` object of its configuration.
    pub config: &'a Value,
    /// Lowest first.
    pub layers: &'a [Layer],
}

/// An image of one platform, ready to be pushed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// Layers, then the configuration.
    pub blobs: Vec<Blob>,
    /// Names the blobs.
    pub manifest: Blob,
    architecture: String,
}

/// What names images of several platforms, ready to be pushed after them.
pub fn index(format: &'static Format, images: &[&Image]) -> Blob {
    let entry = |image: &&Image| {
        let Blob {
            digest,
            media_type,
            content,
        } = &image.manifest;
        json!({
            "mediaType": media_type,
            "digest": digest,
            "size": content.len(),
            "platform": {"os": "linux", "architecture": image.architecture},
        })
    };
    let index = json!({
        "schemaVersion": 2,
        "mediaType": format.index,
        "manifests": images.iter().map(entry).collect::<Vec<_>>(),
    });
    Blob::new(format.index, index.to_string().into_bytes())
}

impl Image {
    /// The example image: the web server alone, in two layers, as nobody.
    pub fn web(binary: &Path) -> Result<Self, Error> {
        let content = fs::read(binary).map_err(Error::file("read", binary))?;
        let base = [
            Entry::directory("etc", 0o755),
            Entry::file(
                "etc/passwd",
                0o644,
                "root:x:0:0:root:/:/none\nnobody:x:65534:65534:nobody:/:/none\n",
            ),
            Entry::file("etc/group", 0o644, "root:x:0:\nnogroup:x:65534:\n"),
            Entry::directory("tmp", 0o1777),
        ];
        let config = json!({
            "Entrypoint": ["/web"],
            "User": NOBODY,
            "WorkingDir": "/",
            "Env": ["PATH=/", "PORT=8080"],
            "ExposedPorts": {"8080/tcp": {}},
            "StopSignal": "SIGTERM",
        });
        Self::new(
            &config,
            &[base.to_vec(), vec![Entry::file("web", 0o755, content)]],
        )
    }

    /// An OCI image for this machine, of layers, lowest first; `config` is the `config` object of its configuration.
    pub fn new(config: &Value, layers: &[Vec<Entry>]) -> Result<Self, Error> {
        let layers: Vec<Layer> = layers
            .iter()
            .map(|entries| Layer::compressed(entries))
            .collect::<Result<_, Error>>()?;
        Ok(Self::of(&Recipe {
            format: OCI,
            architecture: architecture(),
            config,
            layers: &layers,
        }))
    }

    /// An image made after a recipe.
    pub fn of(recipe: &Recipe<'_>) -> Self {
        let format = recipe.format;
        let mut blobs: Vec<Blob> = recipe
            .layers
            .iter()
            .map(|layer| {
                let media_type = match layer.stored {
                    Stored::Gzip => format.compressed_layer,
                    Stored::Zstd => format.zstd_layer,
                    Stored::Plain => format.layer,
                };
                Blob::new(media_type, layer.content.clone())
            })
            .collect();
        let diff_ids: Vec<&str> = recipe
            .layers
            .iter()
            .map(|layer| layer.diff_id.as_str())
            .collect();
        let configuration = json!({
            "architecture": recipe.architecture,
            "os": "linux",
            "config": recipe.config,
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        });
        let configuration = Blob::new(format.config, configuration.to_string().into_bytes());
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": format.manifest,
            "config": configuration.descriptor(),
            "layers": blobs.iter().map(Blob::descriptor).collect::<Vec<_>>(),
        });
        blobs.push(configuration);
        Self {
            blobs,
            manifest: Blob::new(format.manifest, manifest.to_string().into_bytes()),
            architecture: recipe.architecture.to_owned(),
        }
    }
}

/// This machine's architecture in Go's words, as images name it.
pub fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// As images name content: `sha256:` and 64 hexadecimal digits.
pub fn digest(content: &[u8]) -> String {
    let sum = ring::digest::digest(&ring::digest::SHA256, content);
    let hexadecimal: String = sum
        .as_ref()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    format!("sha256:{hexadecimal}")
}

/// Compresses with the system's gzip, which every Debian has, or zstd; gzip without name and time, so that it repeats.
fn compress(program: &str, flag: &str, content: &[u8]) -> Result<Vec<u8>, Error> {
    let mut command = Command::new(program);
    command
        .arg(flag)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    let mut child = command
        .spawn()
        .map_err(|error| command::not_started(&command, &error))?;
    let input = child.stdin.take();
    // Written beside the reading: either pipe alone would fill up and stop both.
    let output = std::thread::scope(|scope| {
        let writer =
            scope.spawn(move || input.map_or(Ok(()), |mut input| input.write_all(content)));
        let output = child.wait_with_output();
        writer
            .join()
            .map_err(|_| std::io::Error::other("the writing thread panicked"))
            .and_then(|written| written)?;
        output
    });
    match output {
        Ok(output) if output.status.success() => Ok(output.stdout),
        Ok(output) => Err(Error::Refused(format!("{program}: {}", output.status))),
        Err(error) => Err(command::not_started(&command, &error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_repeats_and_names_its_blobs() {
        let layers = [vec![Entry::file("web", 0o755, "binary")]];
        let image = Image::new(&json!({"Entrypoint": ["/web"]}), &layers).unwrap();
        assert_eq!(
            image,
            Image::new(&json!({"Entrypoint": ["/web"]}), &layers).unwrap()
        );
        let manifest: Value = serde_json::from_slice(&image.manifest.content).unwrap();
        assert_eq!(
            manifest["layers"][0]["digest"],
            image.blobs[0].digest.as_str()
        );
        assert_eq!(manifest["config"]["digest"], image.blobs[1].digest.as_str());
    }

    #[test]
    fn a_digest_is_sha256_in_hexadecimal() {
        assert_eq!(
            digest(b""),
            "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
        );
    }

    #[test]
    fn compressing_more_than_a_pipe_holds_does_not_block() {
        let content = vec![1_u8; 4 << 20];
        assert!(compress("gzip", "-n", &content).unwrap().len() < content.len());
    }
}
