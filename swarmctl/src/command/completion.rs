//! `swarmctl completion`.

use clap::CommandFactory as _;
use clap_complete::{Shell as Generator, generate};

use crate::cli::{Cli, Shell};
use crate::error::Error;
use crate::terminal::Terminal;

pub(super) fn run(shell: Shell, terminal: &mut Terminal) -> Result<(), Error> {
    let generator = match shell {
        Shell::Bash => Generator::Bash,
        Shell::Zsh => Generator::Zsh,
        Shell::Fish => Generator::Fish,
    };
    // Into memory first: the generator stops the process when it can't write.
    let mut script = Vec::new();
    generate(generator, &mut Cli::command(), "swarmctl", &mut script);
    let written = terminal.stdout.text(&String::from_utf8_lossy(&script));
    written.map_err(|source| Error::Local {
        what: "write to stdout",
        source,
    })
}
