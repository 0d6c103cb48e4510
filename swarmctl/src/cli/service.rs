//! `swarmctl service …`.

use clap::{Args, Subcommand};

use super::{Edits, Listing, Names, ServiceFlags, Showing};

#[derive(Debug, Subcommand)]
pub(crate) enum Service {
    /// Create a service and wait until it runs
    #[command(after_help = "\
The image's tag is resolved once, by the manager, so that all tasks run the same image; without an answer of the registry
the service is created all the same, with a warning.

Examples:
  swarmctl service create --name web --image nginx --replicas 5
  swarmctl service create --name web --publish published=8080,target=80,mode=host --constraint node.labels.disk==ssd nginx
  swarmctl service create --name db --image db:5 --mount type=bind,source=/srv/db,target=/data \\
      --memory-reservation 512m --placement-pref spread=node.labels.rack --detach")]
    Create(Box<Create>),
    /// Change a service and wait until the change has rolled out
    #[command(after_help = "\
Lists given whole (--env, --label, --constraint, …) replace the old ones; --env-add, --env-rm and their like change one entry.

Examples:
  swarmctl service update web --image nginx:1.27 --update-parallelism 2
  swarmctl service update web --env-add LOG=debug --constraint-rm node.role==worker
  swarmctl service update web --force     (restarts all tasks)")]
    Update(Box<Update>),
    /// List services
    #[command(
        visible_alias = "list",
        after_help = "\
Filters: id, name, label, mode.
Template fields: .ID .Name .Mode .Replicas .Running .Desired .Image .Ports .UpdateState

Examples:
  swarmctl service ls --filter label=tier=front
  swarmctl service ls --format '{{.Name}} {{.Replicas}}'"
    )]
    Ls(ListServices),
    /// Show services in detail, with their tasks
    Inspect(InspectService),
    /// List the tasks of services, ended ones too, with their errors
    #[command(after_help = "\
Filters: id, node, desired-state, state, up-to-date=true. The Error column says why a task is not placed or has failed;
`swarmctl task why` says more.")]
    Ps(PsService),
    /// Set the number of replicas of services
    #[command(after_help = "\
Examples:
  swarmctl service scale web=30
  swarmctl service scale web=2 api=4 --detach")]
    Scale(Scale),
    /// Go back to the previous version of a service
    Rollback {
        /// ID, unique ID prefix, or name
        service: String,
        #[command(flatten, next_help_heading = "Waiting")]
        wait: Wait,
    },
    /// Remove services and their tasks
    #[command(visible_alias = "remove")]
    Rm(Names),
}

/// Whether and how long to wait for convergence.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct Wait {
    /// Don't wait until the service has converged
    #[arg(short, long)]
    pub(crate) detach: bool,
    /// Give up waiting after this time [default: wait as long as it can still converge]
    #[arg(long, value_name = "DURATION", conflicts_with = "detach")]
    pub(crate) timeout: Option<String>,
    /// Show no progress
    #[arg(short, long)]
    pub(crate) quiet: bool,
}

#[derive(Args, Debug)]
pub(crate) struct ListServices {
    #[command(flatten)]
    pub(crate) listing: Listing,
}

#[derive(Args, Debug)]
pub(crate) struct InspectService {
    /// ID, unique ID prefix, or name
    #[arg(required = true)]
    pub(crate) services: Vec<String>,
    /// Show tasks that have ended too
    #[arg(short, long)]
    pub(crate) all: bool,
    #[command(flatten)]
    pub(crate) showing: Showing,
}

#[derive(Args, Debug)]
pub(crate) struct PsService {
    /// ID, unique ID prefix, or name
    #[arg(required = true)]
    pub(crate) services: Vec<String>,
    #[command(flatten)]
    pub(crate) listing: Listing,
}

#[derive(Args, Debug)]
pub(crate) struct Scale {
    /// SERVICE=REPLICAS
    #[arg(required = true, value_name = "SERVICE=REPLICAS")]
    pub(crate) services: Vec<String>,
    #[command(flatten, next_help_heading = "Waiting")]
    pub(crate) wait: Wait,
}

/// How the image is found.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct ImageFlags {
    /// Don't ask the registry what the tag means now; each node finds out by itself
    #[arg(long)]
    pub(crate) no_resolve_image: bool,
    /// Send the registry credentials of this host's Docker configuration with the service
    #[arg(long)]
    pub(crate) with_registry_auth: bool,
}

#[derive(Args, Debug)]
pub(crate) struct Create {
    /// How many tasks there are: replicated, so many as --replicas says
    #[arg(long, default_value = "replicated", value_name = "MODE")]
    pub(crate) mode: String,
    #[command(flatten)]
    pub(crate) flags: ServiceFlags,
    #[command(flatten, next_help_heading = "Registry")]
    pub(crate) image: ImageFlags,
    #[command(flatten, next_help_heading = "Waiting")]
    pub(crate) wait: Wait,
    /// Image and arguments, as `docker service create` takes them, instead of --image and --args
    #[arg(value_name = "IMAGE [ARG]", trailing_var_arg = true)]
    pub(crate) positional: Vec<String>,
}

#[derive(Args, Debug)]
pub(crate) struct Update {
    /// ID, unique ID prefix, or name
    pub(crate) service: String,
    #[command(flatten)]
    pub(crate) flags: ServiceFlags,
    #[command(flatten)]
    pub(crate) edits: Edits,
    #[command(flatten, next_help_heading = "Registry")]
    pub(crate) image: ImageFlags,
    /// Restart all tasks even where nothing has changed
    #[arg(long)]
    pub(crate) force: bool,
    #[command(flatten, next_help_heading = "Waiting")]
    pub(crate) wait: Wait,
}
