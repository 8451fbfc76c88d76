//! One module a command: its options, what it asks, what it prints.

#[cfg(feature = "agent")]
pub mod agent;
pub mod completions;
pub mod copy_out;
#[cfg(feature = "agent")]
pub mod disks;
#[cfg(feature = "target")]
pub mod inspect;
#[cfg(feature = "target")]
pub mod invite;
pub mod manual;
pub mod mark;
#[cfg(feature = "target")]
pub mod master_target;
pub mod pause;
pub mod place;
pub mod points;
pub mod status;
pub mod unprotect;
pub mod verify;

use crate::arguments::{Arguments, Command};
use crate::logging::Log;
use redoubt_control::ExitStatus;

/// Runs the command that was given.
pub fn run(arguments: &Arguments, log: &Log) -> anyhow::Result<ExitStatus> {
    if !arguments.command.is_role() {
        log.start(None);
    }
    match &arguments.command {
        #[cfg(feature = "target")]
        Command::MasterTarget(command) => master_target::run(command, arguments, log),
        #[cfg(feature = "target")]
        Command::Invite(command) => invite::run(command),
        #[cfg(feature = "target")]
        Command::Inspect(command) => inspect::run(command),
        #[cfg(feature = "agent")]
        Command::Agent(command) => agent::run(command, arguments, log),
        #[cfg(feature = "agent")]
        Command::Disks(command) => disks::run(command),
        Command::Status(command) => status::run(command, &arguments.runtime(None)),
        Command::Mark(command) => mark::run(command, &arguments.runtime(None), log),
        Command::Points(command) => points::run(command, &arguments.runtime(None)),
        Command::CopyOut(command) => copy_out::run(command, &arguments.runtime(None)),
        Command::Verify(command) => verify::run(command, &arguments.runtime(None)),
        Command::Pause(command) => pause::pause(command, &arguments.runtime(None)),
        Command::Resume(command) => pause::resume(command, &arguments.runtime(None)),
        Command::Unprotect(command) => unprotect::run(command, &arguments.runtime(None)),
        Command::Place(command) => place::run(command, &arguments.runtime(None)),
        Command::Completions(command) => completions::run(command),
        Command::Manual(command) => manual::run(command),
    }
}
