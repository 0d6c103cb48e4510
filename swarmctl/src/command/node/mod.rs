//! `swarmctl node …`.

mod change;
mod inspect;
mod leave;
mod list;

use super::session::{Session, Target};
use crate::cli::Node;
use crate::environment::Environment;
use crate::error::Error;
use crate::terminal::Terminal;

pub(in crate::command) use inspect::generic;

pub(super) async fn run(
    node: Node,
    target: &Target,
    environment: Environment,
    terminal: &mut Terminal,
) -> Result<(), Error> {
    match node {
        Node::Ls(flags) => {
            let list = list::List::check(&flags.listing)?;
            list.run(&mut Session::open(target, environment, terminal).await?)
                .await
        }
        Node::Inspect(flags) => {
            let format = crate::render::show::Format::of(&flags.showing)?;
            let mut session = Session::open(target, environment, terminal).await?;
            inspect::run(&mut session, &flags, &format).await
        }
        Node::Ps { nodes, listing } => {
            let list = super::task::List::check(&listing, super::task::Kept::All)?;
            let mut session = Session::open(target, environment, terminal).await?;
            inspect::tasks(&mut session, &nodes, list).await
        }
        Node::Update(flags) => {
            let labels = change::Labels::check(&flags)?;
            let mut session = Session::open(target, environment, terminal).await?;
            change::update(&mut session, &flags, &labels).await
        }
        Node::SetAddr(flags) => {
            change::check_addresses(&flags.addresses)?;
            let mut session = Session::open(target, environment, terminal).await?;
            change::set_addresses(&mut session, &flags).await
        }
        Node::Leave { force } => {
            leave::run(
                &mut Session::open(target, environment, terminal).await?,
                force,
            )
            .await
        }
        Node::Rm(flags) => {
            let mut session = Session::open(target, environment, terminal).await?;
            change::remove(&mut session, &flags).await
        }
        Node::Activate(names) => {
            let mut session = Session::open(target, environment, terminal).await?;
            change::each(&mut session, &names.names, change::Wanted::Active).await
        }
        Node::Pause(names) => {
            let mut session = Session::open(target, environment, terminal).await?;
            change::each(&mut session, &names.names, change::Wanted::Pause).await
        }
        Node::Drain(names) => {
            let mut session = Session::open(target, environment, terminal).await?;
            change::each(&mut session, &names.names, change::Wanted::Drain).await
        }
        Node::Promote(names) => {
            let mut session = Session::open(target, environment, terminal).await?;
            change::each(&mut session, &names.names, change::Wanted::Manager).await
        }
        Node::Demote(flags) => {
            let mut session = Session::open(target, environment, terminal).await?;
            change::demote(&mut session, &flags).await
        }
    }
}
