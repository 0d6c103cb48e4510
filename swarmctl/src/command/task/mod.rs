//! `swarmctl task …`, and the lists of tasks that other commands show.

mod inspect;
mod list;
mod why;

use super::session::{Failures, Session, Target};
use crate::cli::Task;
use crate::environment::Environment;
use crate::error::Error;
use crate::render::show::Format;
use crate::resolve;
use crate::terminal::Terminal;

pub(super) use list::{Kept, List, below, ports_text};

pub(super) async fn run(
    task: Task,
    target: &Target,
    environment: Environment,
    terminal: &mut Terminal,
) -> Result<(), Error> {
    match task {
        Task::Ls(flags) => {
            let kept = if flags.all { Kept::All } else { Kept::Wanted };
            let list = List::check(&flags.listing, kept)?;
            let mut session = Session::open(target, environment, terminal).await?;
            list.run(&mut session, Default::default()).await
        }
        Task::Inspect(flags) => {
            let format = Format::of(&flags.showing)?;
            let mut session = Session::open(target, environment, terminal).await?;
            inspect::run(&mut session, &flags, &format).await
        }
        Task::Why(flags) => {
            let format = Format::of(&flags.showing)?;
            let mut session = Session::open(target, environment, terminal).await?;
            why::run(&mut session, &flags, &format).await
        }
        Task::Rm(names) => {
            let mut session = Session::open(target, environment, terminal).await?;
            remove(&mut session, &names.names).await
        }
    }
}

async fn remove(session: &mut Session<'_>, names: &[String]) -> Result<(), Error> {
    let mut failures = Failures::default();
    for name in names {
        let removed = match resolve::task(&mut session.client, name).await {
            Ok(task) => session.client.remove_task(&task.id).await.map(|()| task.id),
            Err(error) => Err(error),
        };
        if let Some(id) = failures.note(removed) {
            session.print(&[id])?;
        }
    }
    failures.end()
}
