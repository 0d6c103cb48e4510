//! `swarmctl image …`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::Listing;

#[derive(Debug, Subcommand)]
pub(crate) enum Image {
    /// List the images of this node
    #[command(
        visible_alias = "list",
        after_help = "\
Filters: name.
Template fields: .ID (the digest) .Name .Digest .Size .Bytes .Created .Used .Tasks .TaskIDs

Examples:
  swarmctl image ls
  swarmctl image ls --format '{{.Name}} {{.Size}}'"
    )]
    Ls(Listing),
    /// Pull an image from its registry onto this node
    #[command(after_help = "\
Examples:
  swarmctl image pull nginx:1.27
  swarmctl image pull --with-registry-auth registry.example/team/web:5")]
    Pull(PullImage),
    /// Bring in the images of an archive: an OCI layout or the output of docker save, as a tar file
    #[command(after_help = "\
Examples:
  swarmctl image import web.tar
  docker save web:1 | swarmctl image import -
  swarmctl image import --name registry.example/web:1 layout.tar")]
    Import(ImportImages),
    /// Remove images from this node
    #[command(visible_alias = "remove")]
    Rm(RemoveImages),
}

#[derive(Args, Debug)]
pub(crate) struct PullImage {
    /// Image
    #[arg(value_name = "IMAGE")]
    pub(crate) image: String,
    /// Send the credentials of this host's Docker configuration, in place of the node's own
    #[arg(long)]
    pub(crate) with_registry_auth: bool,
    /// Show no progress
    #[arg(short, long)]
    pub(crate) quiet: bool,
}

#[derive(Args, Debug)]
pub(crate) struct ImportImages {
    /// The archive; - reads it from stdin
    #[arg(value_name = "FILE")]
    pub(crate) file: PathBuf,
    /// Name of the only image in it, in place of its own
    #[arg(long, value_name = "IMAGE")]
    pub(crate) name: Option<String>,
}

#[derive(Args, Debug)]
pub(crate) struct RemoveImages {
    /// Name, or a unique prefix of the digest
    #[arg(required = true, value_name = "IMAGE")]
    pub(crate) images: Vec<String>,
    /// Remove images that tasks use; the tasks go on
    #[arg(short, long)]
    pub(crate) force: bool,
}
