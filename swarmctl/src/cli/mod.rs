//! The command line: clap definitions and nothing else. Values stay text here where their form is
//! ours to explain (`spec` parses them), so that all that is wrong is said at once.

mod cluster;
mod image;
mod node;
mod service;
mod service_flags;
mod task;

use clap::{Args, Parser, Subcommand, ValueEnum};

pub(crate) use cluster::{Backup, Ca, Cluster, JoinRole, JoinToken, UnlockKey, UpdateCluster};
pub(crate) use image::{Image, PullImage, RemoveImages};
pub(crate) use node::{
    Availability, DemoteNodes, InspectNode, Node, RemoveNode, Role, SetAddr, UpdateNode,
};
pub(crate) use service::{Create, ImageFlags, InspectService, PsService, Service, Update, Wait};
pub(crate) use service_flags::{
    ContainerFlags, Edits, PlaceFlags, ReachFlags, RestartFlags, RolloutFlags, ServiceFlags,
};
pub(crate) use task::{InspectTask, Task};

/// Where swarmd listens unless told otherwise.
pub(crate) const DEFAULT_SOCKET: &str = "/var/run/swarmd.sock";

const AFTER_HELP: &str = "\
Examples:
  swarmctl node ls
  swarmctl service create --name web --image nginx --replicas 5
  swarmctl service ps web
  swarmctl task why web.3

A node, service, task or cluster is named by its ID, a unique prefix of its ID, or its name
(a task by service.slot).

Environment:
  SWARM_SOCKET  control socket, where --socket is not given
  NO_COLOR      no colours, where not empty

Exit codes:
  0    done
  1    the manager refused the request
  2    the command line is wrong; nothing was sent
  3    no object, or more than one, has the given name
  4    the manager can't be reached or does not answer
  5    the service was changed but did not converge
  6    reading or writing failed on this side
  130  interrupted while waiting; the change itself stands";

/// Control a cluster through the swarmd of this host.
#[derive(Debug, Parser)]
#[command(name = "swarmctl", version, after_help = AFTER_HELP, max_term_width = 120)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Options of every command.
#[derive(Args, Debug)]
pub(crate) struct Global {
    /// Control socket of swarmd [default: $SWARM_SOCKET, else /var/run/swarmd.sock]
    #[arg(short, long, global = true, value_name = "PATH")]
    pub(crate) socket: Option<String>,
    /// Print IDs, not names
    #[arg(short, long, global = true)]
    pub(crate) no_resolve: bool,
    /// Read what the local manager has, without asking the leader; says how old it may be
    #[arg(long, global = true)]
    pub(crate) stale: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Nodes: the hosts of the cluster
    #[command(subcommand)]
    Node(Node),
    /// Services: what should run
    #[command(subcommand, visible_alias = "svc")]
    Service(Box<Service>),
    /// Tasks: one container each, on one node
    #[command(subcommand)]
    Task(Task),
    /// Images: those of this node
    #[command(subcommand)]
    Image(Image),
    /// The cluster: settings and join tokens
    #[command(subcommand)]
    Cluster(Cluster),
    /// Print the versions of swarmctl and of the local swarmd
    Version,
    /// Print a completion script for a shell
    #[command(after_help = "\
Examples:
  swarmctl completion bash > /etc/bash_completion.d/swarmctl
  swarmctl completion zsh > \"${fpath[1]}/_swarmctl\"
  swarmctl completion fish > ~/.config/fish/completions/swarmctl.fish")]
    Completion {
        /// The shell
        shell: Shell,
    },
    /// Write the manual pages, one a command, into a directory
    Man {
        /// The directory; made where it is not there
        dir: std::path::PathBuf,
    },
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum Shell {
    Bash,
    Zsh,
    Fish,
}

/// How a list is shown.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct Listing {
    /// Print only IDs
    #[arg(short, long)]
    pub(crate) quiet: bool,
    /// table, json (one object a line), or a template like '{{.ID}}\t{{.Name}}'
    #[arg(long, value_name = "FORMAT")]
    pub(crate) format: Option<String>,
    /// Show only what matches, as KEY=VALUE; repeated keys are alternatives
    #[arg(short, long = "filter", value_name = "KEY=VALUE")]
    pub(crate) filters: Vec<String>,
    /// Don't shorten IDs and messages
    #[arg(long)]
    pub(crate) no_trunc: bool,
}

/// How an object is shown.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct Showing {
    /// json, or a template over the object like '{{.Spec.Annotations.Name}}'
    #[arg(long, value_name = "FORMAT")]
    pub(crate) format: Option<String>,
    /// Don't shorten IDs and messages
    #[arg(long)]
    pub(crate) no_trunc: bool,
}

/// Objects to remove.
#[derive(Args, Debug)]
pub(crate) struct Names {
    /// ID, unique ID prefix, or name
    #[arg(required = true, value_name = "NAME")]
    pub(crate) names: Vec<String>,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    #[test]
    fn definitions_are_consistent() {
        super::Cli::command().debug_assert();
    }
}
