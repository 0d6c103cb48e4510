//! `swarmctl image …`: the images of the node behind the socket.

mod bring;
mod list;

use swarm_proto::own;
use swarm_proto::reference::{Reference, without_digest};

use super::session::{Failures, Session, Target};
use crate::cli::{Image, RemoveImages};
use crate::environment::Environment;
use crate::error::{Error, Kind};
use crate::terminal::Terminal;

pub(super) async fn run(
    image: Image,
    target: &Target,
    environment: Environment,
    terminal: &mut Terminal,
) -> Result<(), Error> {
    match image {
        Image::Ls(listing) => {
            let list = list::List::check(&listing)?;
            list.run(&mut Session::open(target, environment, terminal).await?)
                .await
        }
        Image::Pull(flags) => {
            let name = bring::check(&flags.image)?;
            let mut session = Session::open(target, environment, terminal).await?;
            bring::pull(&mut session, &flags, &name).await
        }
        Image::Import(flags) => {
            let name = flags.name.as_deref().map(bring::check).transpose()?;
            let mut session = Session::open(target, environment, terminal).await?;
            bring::import(&mut session, &flags.file, name).await
        }
        Image::Rm(flags) => {
            let mut session = Session::open(target, environment, terminal).await?;
            remove(&mut session, &flags).await
        }
    }
}

/// Every image of the node.
async fn all(session: &mut Session<'_>) -> Result<Vec<own::LocalImage>, Error> {
    let request = session.client.request(own::ListImagesRequest {});
    let answer = session.client.images().list_images(request).await;
    let answer = answer.map_err(|status| Error::refused_here("list images", status))?;
    Ok(answer.into_inner().images)
}

/// An image's name as people write it.
fn familiar(name: &str) -> String {
    let parsed = name.parse::<Reference>();
    parsed.map_or_else(|_| name.to_owned(), |reference| reference.familiar())
}

async fn remove(session: &mut Session<'_>, flags: &RemoveImages) -> Result<(), Error> {
    let images = all(session).await?;
    let mut failures = Failures::default();
    for name in &flags.images {
        let removed = match find(&images, name) {
            Ok(image) => {
                let request = removal(&image.name, flags.force);
                let removed = session.client.images().remove_image(request).await;
                removed
                    .map(|_| familiar(&image.name))
                    .map_err(|status| Error::refused_here("remove image", status))
            }
            Err(error) => Err(error),
        };
        if let Some(name) = failures.note(removed) {
            session.print(&[name])?;
        }
    }
    failures.end()
}

/// As long as it takes: the deletion of layers, with which it ends, is swarmd's to bound.
fn removal(name: &str, force: bool) -> tonic::Request<own::RemoveImageRequest> {
    tonic::Request::new(own::RemoveImageRequest {
        name: name.to_owned(),
        force,
    })
}

/// The image that a word names: by name, or by a prefix of its digest.
fn find<'a>(images: &'a [own::LocalImage], word: &str) -> Result<&'a own::LocalImage, Error> {
    let full = word.parse::<Reference>().map(|r| r.to_string());
    // By tag and digest, as services name it, too.
    let named = |image: &own::LocalImage, full: &str| {
        let tagged = without_digest(full);
        image.name == full
            || (image.name == tagged && full.ends_with(&format!("@{}", image.digest)))
    };
    if let Ok(full) = full
        && let Some(image) = images.iter().find(|image| named(image, &full))
    {
        return Ok(image);
    }
    let hex = word.strip_prefix("sha256:").unwrap_or(word);
    let by_digest = |image: &&own::LocalImage| {
        let digest = image.digest.strip_prefix("sha256:");
        !hex.is_empty() && digest.is_some_and(|digest| digest.starts_with(hex))
    };
    let found: Vec<_> = images.iter().filter(by_digest).collect();
    match found.as_slice() {
        [image] => Ok(image),
        [] => Err(Error::NotFound {
            kind: Kind::Image,
            name: word.to_owned(),
        }),
        several => Err(Error::Ambiguous {
            kind: Kind::Image,
            name: word.to_owned(),
            candidates: several.iter().map(|image| familiar(&image.name)).collect(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(name: &str, digest: &str) -> own::LocalImage {
        own::LocalImage {
            name: name.to_owned(),
            digest: format!("sha256:{digest}"),
            ..Default::default()
        }
    }

    #[test]
    fn a_removal_has_the_time_that_it_takes() {
        let request = removal("reg.test/web:2", false);
        assert!(request.metadata().get("grpc-timeout").is_none());
    }

    #[test]
    fn an_image_is_found_by_name_and_digest() {
        let images = [
            image("docker.io/library/nginx:1", "abc1"),
            image("reg.test/web:2", "abd2"),
        ];
        let name = |word: &str| find(&images, word).map(|image| image.name.clone());
        assert_eq!(name("nginx:1").unwrap(), "docker.io/library/nginx:1");
        assert_eq!(name("abd").unwrap(), "reg.test/web:2");
        let hex = "a".repeat(64);
        let both = [image("reg.test/web:2", &hex)];
        let word = format!("reg.test/web:2@sha256:{hex}");
        assert!(find(&both, &word).is_ok());
        assert_eq!(name("sha256:abc1").unwrap(), "docker.io/library/nginx:1");
        assert!(matches!(name("ab"), Err(Error::Ambiguous { .. })));
        assert!(matches!(name("nginx:2"), Err(Error::NotFound { .. })));
    }
}
