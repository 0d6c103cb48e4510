//! `swarmctl man`.

use std::path::Path;

use clap::CommandFactory as _;

use crate::cli::Cli;
use crate::error::Error;

pub(super) fn run(dir: &Path) -> Result<(), Error> {
    let made = std::fs::create_dir_all(dir);
    made.and_then(|()| clap_mangen::generate_to(Cli::command(), dir))
        .map_err(|source| Error::Local {
            what: "write the manual pages",
            source,
        })
}
