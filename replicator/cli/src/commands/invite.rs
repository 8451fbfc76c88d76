//! `redoubt invite`: a token for one machine. The token is the last line of standard output.

use super::master_target;
use crate::{output, roles};
use clap::Args;
use redoubt_control::{ExitStatus, InviteOptions, Invited, TokenLife};
use redoubt_log::Name;
use std::path::PathBuf;

/// Make a token with which one machine joins this site.
#[derive(Debug, Args)]
#[command(
    long_about = "Make a token with which one machine joins this site.\n\n\
        Works beside a running target or without one. The token holds the target's address and \
        fingerprint and a secret that works once: treat it like a password. It is the last line \
        of standard output.",
    after_long_help = "Example: invite a machine without showing the token to anyone\n  \
        redoubt invite --machine web-01 | ssh web-01 redoubt agent --token-file - --disk /dev/sda"
)]
pub struct Invite {
    /// The target's data directory [default: what its configuration says, else
    /// /var/lib/redoubt/target].
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,

    /// The name that the machine gets; otherwise its host name.
    #[arg(long, value_name = "NAME")]
    machine: Option<Name>,

    /// How long the token can be used.
    #[arg(long, value_name = "TIME", default_value = "1h")]
    expires: TokenLife,

    /// The target's configuration file, of which only the data directory counts here [default:
    /// /etc/redoubt/target.toml].
    #[arg(long, value_name = "FILE", conflicts_with = "data")]
    config: Option<PathBuf>,

    /// Print the token as a JSON object.
    #[arg(long)]
    json: bool,
}

/// Makes the token.
pub fn run(command: &Invite) -> anyhow::Result<ExitStatus> {
    let data = match &command.data {
        Some(data) => data.clone(),
        None => master_target::data_of(None, master_target::load(command.config.as_deref())?.data),
    };
    let options = InviteOptions {
        data,
        machine: command.machine.clone(),
        expires: command.expires.duration(),
    };
    let token = roles::invite(&options)?;
    match command.json {
        true => output::print_json(&Invited { token: token.expose().to_owned() })?,
        false => output::print(&format!("{}\n", token.expose()))?,
    }
    Ok(ExitStatus::Done)
}
