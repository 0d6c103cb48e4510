//! Parsers of what others write, for tests that feed them nonsense. Each must end without a panic.

use std::fs::File;
use std::sync::Arc;

use crate::containerd::archive::Archive;
use crate::containerd::manifest::{ImageConfig, Manifest, chain_ids, choose};

/// A manifest or an index from a registry.
pub fn manifest(data: &[u8]) {
    if let Ok(Manifest::Index { entries, .. }) = Manifest::parse(data) {
        let _ = choose(&entries, "amd64");
    }
}

/// The configuration of an image.
pub fn image_config(data: &[u8]) {
    if let Ok(config) = ImageConfig::parse(data) {
        chain_ids(&config.rootfs.diff_ids);
    }
}

/// An archive of images: the tar file and what it holds.
pub fn archive(file: File) {
    if let Ok(archive) = Archive::read(Arc::new(file)) {
        let _ = archive.inspect();
    }
}
