//! `swarmctl service update|scale|rollback`.

use std::collections::BTreeMap;

use swarm_proto::pb;
use swarm_proto::pb::service_spec::Mode;

use super::super::session::{Failures, Session};
use super::create::{registry_auth, resolve_networks, resolve_of, set_registry_auth};
use super::wait::{Patience, wait};
use crate::cli::Update;
use crate::client::{Resolve, Target};
use crate::error::Error;
use crate::render::progress::Goal;
use crate::resolve::{self, service_name};
use crate::spec::{self, Problems, UNSIGNED};

/// Finds bad values before the manager is asked.
pub(super) fn check(
    flags: &Update,
    variables: &BTreeMap<String, String>,
) -> Result<Patience, Error> {
    let ((), patience) = Error::both(
        spec::check_update(flags, variables),
        Patience::check(&flags.wait),
    )?;
    Ok(patience)
}

pub(super) async fn update(
    session: &mut Session<'_>,
    flags: &Update,
    patience: &Patience,
) -> Result<(), Error> {
    let service = resolve::service(&mut session.client, &flags.service).await?;
    let id = service.id.clone();
    // Networks are looked up once, before the change: the change itself may run again and can't ask.
    let mut wanted = service.spec.clone().unwrap_or_default();
    spec::update(flags, &mut wanted, &session.variables)?;
    let mut resolved = wanted.clone();
    resolve_networks(session, &mut resolved).await?;
    let named = spec::networks(&mut wanted).map(|network| network.target.clone());
    let ids = spec::networks(&mut resolved).map(|network| network.target.clone());
    let networks: BTreeMap<String, String> = named.zip(ids).collect();

    let variables = session.variables.clone();
    let auth = registry_auth(session, &flags.image, &wanted).await?;
    let change = |spec: &mut pb::ServiceSpec| {
        spec::update(flags, spec, &variables)?;
        if let Some(auth) = &auth {
            set_registry_auth(spec, auth);
        }
        for network in spec::networks(spec) {
            if let Some(id) = networks.get(&network.target) {
                network.target.clone_from(id);
            }
        }
        Ok(())
    };
    let changed = session
        .client
        .update_service(service, (Target::Spec, resolve_of(&flags.image)), change)
        .await?;
    session.print(&[id])?;
    match changed {
        Some((service, warnings)) => {
            for warning in warnings {
                session.remark(&format!("warning: {warning}"))?;
            }
            wait(session, &service, (Goal::Spec, patience)).await
        }
        None => session.remark("no changes detected"),
    }
}

/// Parses `SERVICE=REPLICAS`.
pub(super) fn counts(texts: &[String]) -> Result<Vec<(String, u64)>, Error> {
    let mut problems = Problems::default();
    let mut counts = Vec::new();
    for text in texts {
        match text.split_once('=') {
            Some((name, count)) if !name.is_empty() => match (UNSIGNED.parse)(count) {
                Ok(count) => counts.push((name.to_owned(), count)),
                Err(reason) => {
                    problems.push(format!("{text}: {reason}; give {}", UNSIGNED.accepted))
                }
            },
            Some(_) | None => {
                problems.push(format!("{text:?}: not SERVICE=REPLICAS; give it as web=5"));
            }
        }
    }
    problems.unless_any(counts)
}

/// All are changed first, then waited for one after the other: they converge side by side.
pub(super) async fn scale(
    session: &mut Session<'_>,
    counts: &[(String, u64)],
    patience: &Patience,
) -> Result<(), Error> {
    let mut failures = Failures::default();
    let mut changed = Vec::new();
    for (name, replicas) in counts {
        let scaled = scale_one(session, name, *replicas).await;
        if let Some(service) = failures.note(scaled) {
            session.print(&[format!("{name} scaled to {replicas}")])?;
            changed.extend(service);
        }
    }
    for service in changed {
        failures.note(wait(session, &service, (Goal::Spec, patience)).await);
    }
    failures.end()
}

async fn scale_one(
    session: &mut Session<'_>,
    name: &str,
    replicas: u64,
) -> Result<Option<pb::Service>, Error> {
    let service = resolve::service(&mut session.client, name).await?;
    let full_name = service_name(&service);
    let same = service.clone();
    let change = |spec: &mut pb::ServiceSpec| match &mut spec.mode {
        Some(Mode::Replicated(replicated)) => {
            replicated.replicas = replicas;
            Ok(())
        }
        Some(Mode::Global(_) | Mode::GlobalJob(_) | Mode::ReplicatedJob(_)) | None => {
            Err(Error::Rejected {
                what: format!("scale service {full_name}"),
                reason: "only replicated services can be scaled".to_owned(),
            })
        }
    };
    let changed = session
        .client
        .update_service(service, (Target::Spec, Resolve::Never), change)
        .await
        .map(|changed| changed.map(|(service, _)| service))?;
    // Nothing to change is still something to wait for: it may not have converged yet.
    Ok(Some(changed.unwrap_or(same)))
}

pub(super) async fn rollback(
    session: &mut Session<'_>,
    name: &str,
    patience: &Patience,
) -> Result<(), Error> {
    let service = resolve::service(&mut session.client, name).await?;
    let id = service.id.clone();
    if service.previous_spec.is_none() {
        return Err(Error::Rejected {
            what: format!("roll back service {}", service_name(&service)),
            reason: "it has no previous version".to_owned(),
        });
    }
    let changed = session
        .client
        .update_service(service, (Target::Previous, Resolve::Never), |_| Ok(()))
        .await?;
    session.print(&[id])?;
    match changed {
        Some((service, _)) => wait(session, &service, (Goal::Rollback, patience)).await,
        None => Ok(()),
    }
}
