//! The command line as a whole: what is common to all commands, and the list of them. Each
//! command's own options stand in its file.

#[cfg(feature = "agent")]
use crate::commands::{agent, disks};
use crate::commands::{
    completions, copy_out, manual, mark, pause, place, points, status, unprotect, verify,
};
#[cfg(feature = "target")]
use crate::commands::{inspect, invite, master_target};
use clap::{Args, Parser, Subcommand, ValueEnum};
use redoubt_control::{Role, RuntimeDirectory};
use redoubt_log::Name;
use std::path::PathBuf;

/// Where the help of each command shows what all of them take, apart from its own.
const COMMON: &str = "Common options";

/// Replicates Linux disks, write by write, to a second site.
#[derive(Debug, Parser)]
#[command(
    name = "redoubt",
    version,
    max_term_width = 100,
    arg_required_else_help = true,
    long_about = "Replicates Linux disks, write by write, to a second site.\n\n\
        A master target at the second site keeps replica disks and recovery points; an agent on \
        each protected machine ships every write to it. All other commands talk to the role that \
        runs on this machine.",
    after_long_help = "Exit status:\n  \
        0  done\n  \
        1  failed; the message says why and what to do\n  \
        2  the command line or a configuration file is wrong\n  \
        3  done, and the answer is no: cannot be protected, differs, is damaged, lacks a disk\n  \
        4  timed out\n  \
        5  no role behind the runtime directory\n\n\
        Environment:\n  \
        REDOUBT_RUNTIME_DIR  as --runtime-dir\n  \
        REDOUBT_LOG          what is logged: error, warn, info (as without it), debug, trace\n\n\
        First steps:\n  \
        replica#  redoubt master-target --listen 10.0.0.7:7401\n  \
        replica#  redoubt invite --machine web-01\n  \
        web-01#   redoubt agent --token TOKEN --disk /dev/sda\n  \
        web-01#   redoubt status --watch"
)]
pub struct Arguments {
    /// How the log on standard error is written [default: text].
    #[arg(long, global = true, value_enum, value_name = "FORMAT", help_heading = COMMON)]
    pub log: Option<LogFormat>,

    /// Directory of the roles' sockets [default: /run/redoubt] [env: REDOUBT_RUNTIME_DIR].
    // The variable is read below: the parser would show the option as one that must be given.
    #[arg(long, global = true, value_name = "DIR", help_heading = COMMON)]
    pub runtime_dir: Option<PathBuf>,

    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// How the log is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// A line of text for people.
    Text,
    /// A JSON object a line for programs.
    Json,
}

impl From<redoubt_control::LogFormat> for LogFormat {
    fn from(format: redoubt_control::LogFormat) -> Self {
        match format {
            redoubt_control::LogFormat::Text => Self::Text,
            redoubt_control::LogFormat::Json => Self::Json,
        }
    }
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    #[cfg(feature = "target")]
    MasterTarget(master_target::MasterTarget),
    #[cfg(feature = "target")]
    Invite(invite::Invite),
    #[cfg(feature = "target")]
    Inspect(inspect::Inspect),
    #[cfg(feature = "agent")]
    Agent(agent::Agent),
    #[cfg(feature = "agent")]
    Disks(disks::Disks),
    Status(status::Status),
    Mark(mark::Mark),
    Points(points::Points),
    CopyOut(copy_out::CopyOut),
    Verify(verify::Verify),
    Pause(pause::Pause),
    Resume(pause::Resume),
    Unprotect(unprotect::Unprotect),
    Place(place::Place),
    Completions(completions::Completions),
    Manual(manual::Manual),
}

impl Command {
    /// Whether it runs a role, whose file has a word on the log.
    pub fn is_role(&self) -> bool {
        match self {
            #[cfg(feature = "target")]
            Self::MasterTarget(_) => true,
            #[cfg(feature = "agent")]
            Self::Agent(_) => true,
            _ => false,
        }
    }
}

/// Which role to ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Side {
    /// The agent of this machine.
    Agent,
    /// The master target.
    Target,
}

impl From<Side> for Role {
    fn from(side: Side) -> Self {
        match side {
            Side::Agent => Self::Agent,
            Side::Target => Self::Target,
        }
    }
}

/// Whom an acting command addresses.
#[derive(Debug, Args)]
pub struct Address {
    /// Which role to ask where both run [default: target].
    #[arg(long, value_enum, value_name = "SIDE")]
    pub side: Option<Side>,

    /// Which machine; may be left out where there is one.
    #[arg(long, value_name = "NAME")]
    pub machine: Option<Name>,
}

impl Arguments {
    /// The runtime directory by flag or variable, or by `file`, or the default.
    pub fn runtime(&self, file: Option<PathBuf>) -> RuntimeDirectory {
        let of_variable = || {
            let value = std::env::var_os(RuntimeDirectory::VARIABLE)?;
            (!value.is_empty()).then(|| value.into())
        };
        let chosen = self.runtime_dir.clone().or_else(of_variable).or(file);
        RuntimeDirectory::new(chosen.unwrap_or_else(|| RuntimeDirectory::DEFAULT.into()))
    }
}

#[cfg(test)]
mod contract;

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_holds_together() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn every_command_teaches_by_an_example() {
        let mut command = Arguments::command();
        command.build();
        let mut seen = 0;
        for sub in command.get_subcommands_mut().filter(|sub| sub.get_name() != "help") {
            let name = sub.get_name().to_owned();
            let help = sub.render_long_help().to_string();
            let (about, examples) = help.split_once("Example").expect(&name);
            assert!(examples.contains(&format!("redoubt {name}")), "{name} shows itself");
            assert!(
                about.lines().take_while(|line| !line.starts_with("Usage")).count() > 2,
                "{name}"
            );
            for argument in sub.get_arguments() {
                assert!(
                    argument.get_help().is_some(),
                    "{name}: {} is explained",
                    argument.get_id()
                );
            }
            seen += 1;
        }
        assert_eq!(
            seen,
            11 + 2 * usize::from(cfg!(feature = "agent"))
                + 3 * usize::from(cfg!(feature = "target"))
        );
    }
}
