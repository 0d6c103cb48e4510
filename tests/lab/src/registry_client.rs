//! Pushes images over the OCI distribution API: a HEAD, a POST and a PUT a blob, and a PUT for the manifest.
//!
//! Plain HTTP only: it talks to a registry of the same lab.

use std::net::SocketAddr;

use crate::Error;
use crate::http::Request;
use crate::image::{Blob, Image};

/// Pushes `image` as `repository:tag`; blobs that are there already are not sent again.
pub(crate) fn push(
    address: SocketAddr,
    repository: &str,
    tag: &str,
    image: &Image,
) -> Result<(), Error> {
    for blob in &image.blobs {
        push_blob(address, repository, blob)?;
    }
    push_manifest(address, repository, tag, &image.manifest)
}

/// Pushes what names blobs or images that are there already.
pub(crate) fn push_manifest(
    address: SocketAddr,
    repository: &str,
    tag: &str,
    manifest: &Blob,
) -> Result<(), Error> {
    let path = format!("/v2/{repository}/manifests/{tag}");
    let request = Request {
        method: "PUT",
        path: &path,
        content_type: manifest.media_type,
    };
    request
        .send(address, &manifest.content)?
        .expect(address, &request, 201)
        .map(drop)
}

fn push_blob(address: SocketAddr, repository: &str, blob: &Blob) -> Result<(), Error> {
    let path = format!("/v2/{repository}/blobs/{}", blob.digest);
    let probe = Request {
        method: "HEAD",
        path: &path,
        content_type: "",
    };
    if probe.send(address, &[])?.status == 200 {
        return Ok(());
    }
    let path = format!("/v2/{repository}/blobs/uploads/");
    let begin = Request {
        method: "POST",
        path: &path,
        content_type: "",
    };
    let answer = begin.send(address, &[])?.expect(address, &begin, 202)?;
    let location = answer
        .location
        .ok_or_else(|| begin.error(address, "the answer has no location"))?;
    // The location may be a whole address; its host is the one just talked to.
    let path = match location
        .strip_prefix("http://")
        .and_then(|rest| rest.find('/').and_then(|at| rest.get(at..)))
    {
        Some(path) => path.to_owned(),
        None => location.clone(),
    };
    let separator = if path.contains('?') { '&' } else { '?' };
    let path = format!("{path}{separator}digest={}", blob.digest);
    let end = Request {
        method: "PUT",
        path: &path,
        content_type: "application/octet-stream",
    };
    end.send(address, &blob.content)?
        .expect(address, &end, 201)
        .map(drop)
}
