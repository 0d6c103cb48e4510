//! `swarmctl image pull` and `swarmctl image import`.

use std::os::fd::AsFd as _;
use std::path::Path;

use swarm_proto::own;
use swarm_proto::reference::Reference;
use tokio::fs::File;
use tokio::io::AsyncReadExt as _;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::super::session::Session;
use super::familiar;
use crate::cli::PullImage;
use crate::error::Error;
use crate::spec::Problems;

/// Bytes of a piece of an archive.
const PIECE: usize = 1 << 20;
/// Pieces under way.
const PIECES: usize = 4;

/// The full name of an image.
pub(super) fn check(name: &str) -> Result<Reference, Error> {
    name.parse::<Reference>().map_err(|error| {
        let mut problems = Problems::default();
        problems.push(error.to_string());
        Error::Usage(problems)
    })
}

pub(super) async fn pull(
    session: &mut Session<'_>,
    flags: &PullImage,
    image: &Reference,
) -> Result<(), Error> {
    let auth = match flags.with_registry_auth {
        true => session.registry_auth(&image.registry).await?,
        false => String::new(),
    };
    let what = || format!("pull {}", image.familiar());
    let refused = |status| Error::refused_here(what(), status);
    // As long as it takes: what holds it up is told.
    let request = tonic::Request::new(own::PullImageRequest {
        name: image.to_string(),
        registry_auth: auth,
    });
    let answer = session.client.images().pull_image(request).await;
    let mut answers = answer.map_err(refused)?.into_inner();
    let mut shown = String::new();
    while let Some(answer) = answers.message().await.map_err(refused)? {
        if let Some(image) = answer.image {
            return session.print(&[format!("{}@{}", familiar(&image.name), image.digest)]);
        }
        if !flags.quiet && answer.text != shown && !answer.text.is_empty() {
            session.remark(&answer.text)?;
            shown = answer.text;
        }
    }
    Err(Error::Rejected {
        what: what(),
        reason: "swarmd ended without an answer".to_owned(),
    })
}

pub(super) async fn import(
    session: &mut Session<'_>,
    file: &Path,
    name: Option<Reference>,
) -> Result<(), Error> {
    let what = "read the archive";
    let local = |source| Error::Local { what, source };
    let mut reader = match file.to_str() {
        Some("-") => {
            let stdin = std::io::stdin().as_fd().try_clone_to_owned();
            File::from(std::fs::File::from(stdin.map_err(local)?))
        }
        Some(_) | None => File::open(file).await.map_err(local)?,
    };
    let (sender, receiver) = mpsc::channel(PIECES);
    let request = tonic::Request::new(ReceiverStream::new(receiver));
    let mut client = session.client.images().clone();
    let send = async move {
        let mut name = name.map(|name| name.to_string()).unwrap_or_default();
        loop {
            let mut data = Vec::with_capacity(PIECE);
            let mut part = (&mut reader).take(PIECE as u64);
            let read = part.read_to_end(&mut data).await?;
            if read == 0 && name.is_empty() {
                return Ok(());
            }
            let piece = own::ImportImagesRequest {
                name: std::mem::take(&mut name),
                data: data.into(),
            };
            // swarmd says itself why it reads no more.
            if sender.send(piece).await.is_err() {
                return Ok(());
            }
        }
    };
    let (sent, answer) = tokio::join!(send, client.import_images(request));
    sent.map_err(local)?;
    let answer = answer.map_err(|status| Error::refused_here("import images", status))?;
    let images = answer.into_inner().images;
    let lines: Vec<String> = images
        .iter()
        .map(|image| format!("{}@{}", familiar(&image.name), image.digest))
        .collect();
    session.print(&lines)
}
