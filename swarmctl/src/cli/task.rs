//! `swarmctl task …`.

use clap::{Args, Subcommand};

use super::{Listing, Names, Showing};

#[derive(Debug, Subcommand)]
pub(crate) enum Task {
    /// List tasks
    #[command(
        visible_alias = "list",
        after_help = "\
Filters: id, service, node, desired-state, state, up-to-date=true.
Template fields: .ID .Service .Name .DesiredState .LastState .State .Since .Node .NodeID .ServiceID .Slot .Image .Error .Message .Ports .ContainerID

Examples:
  swarmctl task ls --filter service=web --filter state=failed -a
  swarmctl task ls -q"
    )]
    Ls(ListTasks),
    /// Show tasks in detail, with the earlier tasks of their slot
    Inspect(InspectTask),
    /// Say why a task is where it is, or why it is not placed
    #[command(after_help = "\
Examples:
  swarmctl task why web.3
  swarmctl task why 5qz2mp --format json")]
    Why(InspectTask),
    /// Remove tasks; the service replaces those it still wants
    #[command(visible_alias = "remove")]
    Rm(Names),
}

#[derive(Args, Debug)]
pub(crate) struct ListTasks {
    /// Show tasks that have ended too
    #[arg(short, long)]
    pub(crate) all: bool,
    #[command(flatten)]
    pub(crate) listing: Listing,
}

#[derive(Args, Debug)]
pub(crate) struct InspectTask {
    /// ID, unique ID prefix, or service.slot
    #[arg(required = true)]
    pub(crate) tasks: Vec<String>,
    #[command(flatten)]
    pub(crate) showing: Showing,
}
