//! The image of a service: what its tag means, asked once where a spec arrives, so that all its tasks
//! run the same; and the credentials for its registry, which operators send and do not get back.
//!
//! A registry that gives no answer stops nobody: the service is stored with the tag, and the operator is
//! told that each node finds out by itself.

use std::time::Duration;

use swarm_proto::pb;
use swarm_proto::reference::Reference;
use swarm_proto::service::ServiceSpec;

use super::error::Error;
use super::{ControlApi, support};

/// A registry that takes longer is taken to be away. Operators wait for it.
const RESOLVE_MAX: Duration = Duration::from_secs(10);

/// Asks a registry.
#[tonic::async_trait]
pub trait ImageResolver: Send + Sync + std::fmt::Debug {
    /// The digest that a reference has now.
    ///
    /// # Errors
    /// Why not, in words that name the registry.
    async fn digest(&self, image: &Reference, registry_auth: &str) -> Result<String, String>;
}

impl ControlApi {
    /// The spec with its image's digest, as `name:tag@digest`; or as it is, and why.
    pub(super) async fn resolve_image(
        &self,
        spec: ServiceSpec,
    ) -> Result<(ServiceSpec, Vec<String>), Error> {
        let Some(resolver) = &self.resolver else {
            return Ok((spec, Vec::new()));
        };
        let reference = image_of(&spec.wire).and_then(|image| image.parse::<Reference>().ok());
        let Some(mut reference) = reference.filter(|reference| reference.digest.is_none()) else {
            return Ok((spec, Vec::new()));
        };
        let auth = container_of(&spec.wire).and_then(|c| c.pull_options.as_ref());
        let auth = auth.map_or("", |options| options.registry_auth.as_str());
        let answer = self
            .clock
            .timeout(RESOLVE_MAX, resolver.digest(&reference, auth))
            .await;
        let reason = match answer {
            Ok(Ok(digest)) => {
                reference.digest = Some(digest);
                let mut wire = spec.wire.as_ref().clone();
                if let Some(container) = container_of_mut(&mut wire) {
                    container.image = reference.familiar();
                }
                return Ok((support::parse(wire)?, Vec::new()));
            }
            Ok(Err(reason)) => reason,
            Err(_) => format!("no answer within {RESOLVE_MAX:?}"),
        };
        let image = reference.familiar();
        let warning = format!(
            "image {image} could not be resolved to a digest: {reason}; each node asks for the tag itself, and may get \
             another version"
        );
        tracing::warn!(image, reason, "image not resolved");
        Ok((spec, vec![warning]))
    }
}

/// Credentials that an update leaves out stay as they are, since operators don't get them to send back;
/// but never for another registry.
pub(super) fn keep_credentials(wire: &mut pb::ServiceSpec, stored: &pb::ServiceSpec) {
    let registry = |spec: &pb::ServiceSpec| {
        let image = image_of(spec)?.parse::<Reference>().ok()?;
        Some(image.registry)
    };
    let same = registry(wire).is_some() && registry(wire) == registry(stored);
    let kept = container_of(stored).and_then(|container| container.pull_options.clone());
    if let Some(container) = container_of_mut(wire)
        && same
        && container
            .pull_options
            .as_ref()
            .is_none_or(|options| options.registry_auth.is_empty())
    {
        container.pull_options = kept;
    }
}

/// The image that a spec names.
pub(super) fn image_of(spec: &pb::ServiceSpec) -> Option<&str> {
    container_of(spec).map(|container| container.image.as_str())
}

fn container_of(spec: &pb::ServiceSpec) -> Option<&pb::ContainerSpec> {
    match spec.task.as_ref()?.runtime.as_ref()? {
        pb::task_spec::Runtime::Container(container) => Some(container),
        pb::task_spec::Runtime::Attachment(_) | pb::task_spec::Runtime::Generic(_) => None,
    }
}

fn container_of_mut(spec: &mut pb::ServiceSpec) -> Option<&mut pb::ContainerSpec> {
    match spec.task.as_mut()?.runtime.as_mut()? {
        pb::task_spec::Runtime::Container(container) => Some(container),
        pb::task_spec::Runtime::Attachment(_) | pb::task_spec::Runtime::Generic(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(image: &str, auth: Option<&str>) -> pb::ServiceSpec {
        let pull_options = auth.map(|auth| pb::container_spec::PullOptions {
            registry_auth: auth.to_owned(),
        });
        let container = pb::ContainerSpec {
            image: image.to_owned(),
            pull_options,
            ..Default::default()
        };
        pb::ServiceSpec {
            task: Some(pb::TaskSpec {
                runtime: Some(pb::task_spec::Runtime::Container(container)),
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    #[test]
    fn credentials_stay_with_their_registry() {
        let stored = spec("reg.test/a:1", Some("secret"));
        let kept = |mut wire: pb::ServiceSpec| {
            keep_credentials(&mut wire, &stored);
            let options = container_of(&wire).unwrap().pull_options.clone();
            options.map(|options| options.registry_auth)
        };
        assert_eq!(kept(spec("reg.test/a:2", None)).as_deref(), Some("secret"));
        assert_eq!(
            kept(spec("reg.test/b", Some(""))).as_deref(),
            Some("secret")
        );
        assert_eq!(
            kept(spec("reg.test/a:2", Some("new"))).as_deref(),
            Some("new")
        );
        assert_eq!(kept(spec("other.test/a:2", None)), None);
        assert_eq!(kept(spec("a:2", None)), None);
    }
}
