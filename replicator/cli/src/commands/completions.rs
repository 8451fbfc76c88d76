//! `redoubt completions`: a script with which a shell completes this command line.

use crate::arguments::Arguments;
use crate::output;
use clap::{Args, CommandFactory};
use clap_complete::{Shell, generate};
use redoubt_control::ExitStatus;

/// Print a script that teaches a shell to complete this command line.
#[derive(Debug, Args)]
#[command(
    long_about = "Print a script that teaches a shell to complete this command line.\n\n\
        Commands, options and their fixed values are completed; packages install the scripts \
        where the shells look for them.",
    after_long_help = "Examples:\n  \
        redoubt completions bash > /etc/bash_completion.d/redoubt\n  \
        redoubt completions zsh > /usr/local/share/zsh/site-functions/_redoubt\n  \
        redoubt completions fish > ~/.config/fish/completions/redoubt.fish"
)]
pub struct Completions {
    /// Which shell.
    #[arg(value_enum)]
    shell: Shell,
}

/// Prints the script.
pub fn run(command: &Completions) -> anyhow::Result<ExitStatus> {
    let mut script = Vec::new();
    generate(command.shell, &mut Arguments::command(), "redoubt", &mut script);
    output::print(&String::from_utf8_lossy(&script))?;
    Ok(ExitStatus::Done)
}
