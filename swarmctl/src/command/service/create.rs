//! `swarmctl service create`.

use std::collections::BTreeMap;

use swarm_proto::pb;

use super::super::session::Session;
use super::wait::{Patience, wait};
use crate::cli::Create;
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
    patience: &Patience,
) -> Result<(), Error> {
    resolve_networks(session, &mut spec).await?;
    let service = session.client.create_service(spec).await?;
    // The ID comes first, so that it is known whatever happens to the wait.
    session.print(std::slice::from_ref(&service.id))?;
    wait(session, &service, (Goal::Spec, patience)).await
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
