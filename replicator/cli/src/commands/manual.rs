//! `redoubt manual`: the manual pages, made from the same words as `--help`.

use crate::arguments::Arguments;
use anyhow::Context;
use clap::{Args, CommandFactory};
use redoubt_control::ExitStatus;
use std::fs;
use std::path::PathBuf;

/// Write the manual pages of this command into a directory.
#[derive(Debug, Args)]
#[command(
    long_about = "Write the manual pages of this command into a directory: redoubt.1 and one page \
        a command, such as redoubt-status.1.\n\n\
        They say what --help says. The directory is made where it is missing; pages of an earlier \
        release are replaced.",
    after_long_help = "Examples:\n  \
        redoubt manual --to /usr/local/share/man/man1\n  \
        redoubt manual --to /tmp/man && man /tmp/man/redoubt-agent.1"
)]
pub struct Manual {
    /// The directory.
    #[arg(long, value_name = "DIR")]
    to: PathBuf,
}

/// Writes the pages.
pub fn run(command: &Manual) -> anyhow::Result<ExitStatus> {
    let directory = &command.to;
    fs::create_dir_all(directory)
        .with_context(|| format!("directory {} cannot be made", directory.display()))?;
    clap_mangen::generate_to(Arguments::command().disable_help_subcommand(true), directory)
        .with_context(|| format!("manual pages cannot be written to {}", directory.display()))?;
    Ok(ExitStatus::Done)
}
