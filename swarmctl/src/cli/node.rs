//! `swarmctl node …`.

use clap::{Args, Subcommand, ValueEnum};

use super::{Listing, Names, Showing};

#[derive(Debug, Subcommand)]
pub(crate) enum Node {
    /// List nodes
    #[command(
        visible_alias = "list",
        after_help = "\
Filters: id, name, label (of the node's engine), node.label, membership, role, status, availability.
Template fields: .ID .Name .Membership .Status .Availability .ManagerStatus .Role .Address .Version .Message

Examples:
  swarmctl node ls --filter role=manager
  swarmctl node ls --format '{{.Name}}\\t{{.Address}}'"
    )]
    Ls(ListNodes),
    /// Show nodes in detail, with their tasks
    Inspect(InspectNode),
    /// Let the scheduler give tasks to nodes again
    Activate(Names),
    /// Give nodes no new tasks; what runs goes on
    Pause(Names),
    /// Give nodes no tasks, and move those they run elsewhere
    Drain(Names),
    /// Make nodes managers
    Promote(Names),
    /// Make nodes workers
    #[command(after_help = "\
A manager goes only where a majority of those that are left is up. Where others are down, --force gives these up as voters
first: they join again by themselves when they are back.")]
    Demote(DemoteNodes),
    /// Remove nodes that are down from the cluster
    #[command(visible_alias = "remove")]
    Rm(RemoveNode),
    /// Change labels, availability and role of a node
    #[command(after_help = "\
Examples:
  swarmctl node update worker-1 --label-add disk=ssd --label-add rack=r7
  swarmctl node update worker-1 --label disk=ssd     (replaces all labels)")]
    Update(UpdateNode),
    /// Say where a manager is reached, instead of what it says itself
    #[command(after_help = "\
A manager that starts on another address says so to the others, and is found again by itself. This is for where that does not
lead to it: behind a router, or for a name in place of an address. A DNS name is looked up at each connection.

Where no majority of managers finds the others there is nobody to take the command: start them with --join-addr, which then
says where one of the others is.

Examples:
  swarmctl node set-addr manager-2 10.1.0.2:4242
  swarmctl node set-addr manager-2 manager-2.example.com:4242 198.51.100.7:4242     (tried in this order)
  swarmctl node set-addr manager-2 --auto                                            (as it says itself)")]
    SetAddr(SetAddr),
    /// List the tasks of nodes
    Ps {
        /// ID, unique ID prefix, hostname, or self [default: self]
        nodes: Vec<String>,
        #[command(flatten)]
        listing: Listing,
    },
    /// Empty this host and leave the cluster
    #[command(after_help = "\
Stops and removes the tasks of the node behind the socket and tells the managers, which run them elsewhere.
Stopping swarmd without leaving keeps its containers running.")]
    Leave {
        /// Leave even where no manager can be told, or as the last manager
        #[arg(short, long)]
        force: bool,
    },
}

#[derive(Args, Debug)]
pub(crate) struct ListNodes {
    #[command(flatten)]
    pub(crate) listing: Listing,
}

#[derive(Args, Debug)]
pub(crate) struct InspectNode {
    /// ID, unique ID prefix, hostname, or self
    #[arg(required = true)]
    pub(crate) nodes: Vec<String>,
    /// Show tasks that have ended too
    #[arg(short, long)]
    pub(crate) all: bool,
    #[command(flatten)]
    pub(crate) showing: Showing,
}

#[derive(Args, Debug)]
pub(crate) struct DemoteNodes {
    #[command(flatten)]
    pub(crate) names: Names,
    /// Give managers that are down up as voters, where the others have no majority otherwise
    #[arg(short, long)]
    pub(crate) force: bool,
}

#[derive(Args, Debug)]
pub(crate) struct RemoveNode {
    #[command(flatten)]
    pub(crate) names: Names,
    /// Remove nodes that are not down
    #[arg(short, long)]
    pub(crate) force: bool,
}

#[derive(Args, Debug)]
pub(crate) struct SetAddr {
    /// ID, unique ID prefix, hostname, or self
    pub(crate) node: String,
    /// Addresses (host:port), best first
    #[arg(value_name = "ADDR", required_unless_present = "auto")]
    pub(crate) addresses: Vec<String>,
    /// Leave it to what the manager says itself
    #[arg(long, conflicts_with = "addresses")]
    pub(crate) auto: bool,
}

#[derive(Args, Debug)]
pub(crate) struct UpdateNode {
    /// ID, unique ID prefix, hostname, or self
    pub(crate) node: String,
    /// Replace all labels by these
    #[arg(long = "label", value_name = "KEY=VALUE", conflicts_with_all = ["labels_add", "labels_rm"])]
    pub(crate) labels: Vec<String>,
    /// Set a label
    #[arg(long = "label-add", value_name = "KEY=VALUE")]
    pub(crate) labels_add: Vec<String>,
    /// Remove a label
    #[arg(long = "label-rm", value_name = "KEY")]
    pub(crate) labels_rm: Vec<String>,
    /// Set the availability
    #[arg(long)]
    pub(crate) availability: Option<Availability>,
    /// Set the role
    #[arg(long)]
    pub(crate) role: Option<Role>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Availability {
    Active,
    Pause,
    Drain,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Role {
    Worker,
    Manager,
}
