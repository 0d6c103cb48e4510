//! `swarmctl service …`.

mod change;
mod create;
mod inspect;
mod list;
mod painter;
mod spec;
mod wait;

use swarm_proto::pb;

use super::session::{Failures, Session, Target};
use super::task;
use crate::cli::{PsService, Service};
use crate::environment::Environment;
use crate::error::Error;
use crate::render::show::Format;
use crate::resolve::{self, service_name};
use crate::terminal::Terminal;

pub(super) use spec::spec_details;

pub(super) async fn run(
    service: Service,
    target: &Target,
    environment: Environment,
    terminal: &mut Terminal,
) -> Result<(), Error> {
    match service {
        Service::Create(flags) => {
            let (spec, patience) = create::check(&flags, &environment.variables)?;
            let mut session = Session::open(target, environment, terminal).await?;
            create::run(&mut session, spec, (&flags.image, &patience)).await
        }
        Service::Update(flags) => {
            let patience = change::check(&flags, &environment.variables)?;
            let mut session = Session::open(target, environment, terminal).await?;
            change::update(&mut session, &flags, &patience).await
        }
        Service::Scale(flags) => {
            let patience = wait::Patience::check(&flags.wait)?;
            let counts = change::counts(&flags.services)?;
            let mut session = Session::open(target, environment, terminal).await?;
            change::scale(&mut session, &counts, &patience).await
        }
        Service::Rollback { service, wait } => {
            let patience = wait::Patience::check(&wait)?;
            let mut session = Session::open(target, environment, terminal).await?;
            change::rollback(&mut session, &service, &patience).await
        }
        Service::Ls(flags) => {
            let list = list::List::check(&flags.listing)?;
            list.run(&mut Session::open(target, environment, terminal).await?)
                .await
        }
        Service::Inspect(flags) => {
            let format = Format::of(&flags.showing)?;
            let mut session = Session::open(target, environment, terminal).await?;
            inspect::run(&mut session, &flags, &format).await
        }
        Service::Ps(flags) => {
            let list = task::List::check(&flags.listing, task::Kept::All)?;
            let mut session = Session::open(target, environment, terminal).await?;
            tasks(&mut session, &flags, list).await
        }
        Service::Rm(names) => {
            let mut session = Session::open(target, environment, terminal).await?;
            remove(&mut session, &names.names).await
        }
    }
}

async fn tasks(
    session: &mut Session<'_>,
    flags: &PsService,
    list: task::List,
) -> Result<(), Error> {
    let (mut service_ids, mut failures) = (Vec::new(), Failures::default());
    for name in &flags.services {
        let found = resolve::service(&mut session.client, name).await;
        service_ids.extend(failures.note(found).map(|service| service.id));
    }
    // Without an id all tasks would be listed.
    if !service_ids.is_empty() {
        let filters = pb::list_tasks_request::Filters {
            service_ids,
            ..Default::default()
        };
        list.run(session, filters).await?;
    }
    failures.end()
}

async fn remove(session: &mut Session<'_>, names: &[String]) -> Result<(), Error> {
    let mut failures = Failures::default();
    for name in names {
        let removed = match resolve::service(&mut session.client, name).await {
            Ok(service) => {
                let name = service_name(&service);
                session
                    .client
                    .remove_service(&service.id, &name)
                    .await
                    .map(|()| service.id)
            }
            Err(error) => Err(error),
        };
        if let Some(id) = failures.note(removed) {
            session.print(&[id])?;
        }
    }
    failures.end()
}
