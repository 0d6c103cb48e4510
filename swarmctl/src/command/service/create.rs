//! `swarmctl service create`.

use std::collections::BTreeMap;

use swarm_proto::pb;
use swarm_proto::reference::Reference;

use super::super::session::Session;
use super::wait::{Patience, wait};
use crate::cli::{Create, ImageFlags};
use crate::client::Resolve;
use crate::error::Error;
use crate::render::progress::Goal;
use crate::resolve;
use crate::spec;

/// Everything that can be wrong without asking the manager.
pub(super) fn check(
    flags: &Create,
    variables: &BTreeMap<String, String>,
) -> Result<(pb::ServiceSpec, Patience), Error> {
    Error::both(spec::create(flags, variables), Patience::check(&flags.wait))
}

pub(super) async fn run(
    session: &mut Session<'_>,
    mut spec: pb::ServiceSpec,
    (image, patience): (&ImageFlags, &Patience),
) -> Result<(), Error> {
    resolve_networks(session, &mut spec).await?;
    if let Some(auth) = registry_auth(session, image, &spec).await? {
        set_registry_auth(&mut spec, &auth);
    }
    let created = session
        .client
        .create_service(spec, resolve_of(image))
        .await?;
    let (service, warnings) = created;
    for warning in warnings {
        session.remark(&format!("warning: {warning}"))?;
    }
    // The ID comes first, so that it is known whatever happens to the wait.
    session.print(std::slice::from_ref(&service.id))?;
    wait(session, &service, (Goal::Spec, patience)).await
}

pub(super) fn resolve_of(image: &ImageFlags) -> Resolve {
    match image.no_resolve_image {
        true => Resolve::Never,
        false => Resolve::Digest,
    }
}

/// The credentials for the registry of a spec's image, where they are to be sent.
pub(super) async fn registry_auth(
    session: &mut Session<'_>,
    image: &ImageFlags,
    spec: &pb::ServiceSpec,
) -> Result<Option<String>, Error> {
    if !image.with_registry_auth {
        return Ok(None);
    }
    let runtime = spec.task.as_ref().and_then(|task| task.runtime.as_ref());
    let Some(pb::task_spec::Runtime::Container(container)) = runtime else {
        return Ok(None);
    };
    // Of a name that is none the manager says what is wrong with it.
    let Ok(reference) = container.image.parse::<Reference>() else {
        return Ok(None);
    };
    let auth = session.registry_auth(&reference.registry).await?;
    Ok(Some(auth).filter(|auth| !auth.is_empty()))
}

pub(super) fn set_registry_auth(spec: &mut pb::ServiceSpec, auth: &str) {
    let runtime = spec.task.as_mut().and_then(|task| task.runtime.as_mut());
    if let Some(pb::task_spec::Runtime::Container(container)) = runtime {
        container.pull_options = Some(pb::container_spec::PullOptions {
            registry_auth: auth.to_owned(),
        });
    }
}

/// The wire names networks by ID.
pub(super) async fn resolve_networks(
    session: &mut Session<'_>,
    spec: &mut pb::ServiceSpec,
) -> Result<(), Error> {
    for network in spec::networks(spec) {
        network.target = resolve::network(&mut session.client, &network.target).await?;
    }
    Ok(())
}
