//! `redoubt unprotect`: the end of a disk's or a machine's protection. Nothing is decided here.

use super::pause::order;
use crate::arguments::Address;
use crate::talk;
use clap::Args;
use redoubt_control::{ExitStatus, Request, RuntimeDirectory};
use redoubt_log::Name;
use std::time::Duration;

/// End the protection of a disk, or of all disks of a machine.
#[derive(Debug, Args)]
#[command(
    long_about = "End the protection of a disk, or of all disks of a machine.\n\n\
        The agent lets the disk go: its tracking and its lock end. Replica and points stay at the \
        target and can be copied out. With its last disk an agent ends, too. At the agent this \
        works also while the target cannot be reached; at the target also while the agent cannot: \
        it learns it when it comes.\n\n\
        A disk that is protected again (`redoubt agent --disk`) is a new one to the target, with a \
        full sync; what was kept of the old one is then called NAME.ended-N. So a disk that grew \
        or shrank is protected again.\n\n\
        --delete-replica, at the target only, deletes the disk's replica and takes the disk out of \
        every point; without --disk all that is kept of the machine is deleted, and its agent is \
        shut out until it is invited anew. A replica on a block device is let go as it is. This \
        cannot be undone.",
    after_long_help = "Examples:\n  \
        redoubt unprotect --disk sdb\n  \
        redoubt unprotect                                   # on the machine: all of it\n  \
        redoubt unprotect --machine web-01 --delete-replica # on the target: forget it"
)]
pub struct Unprotect {
    #[command(flatten)]
    address: Address,

    /// Which disk; without it all disks of the machine.
    #[arg(long, value_name = "NAME")]
    disk: Option<Name>,

    /// Delete replica and points, too; without --disk it needs --machine.
    #[arg(long)]
    delete_replica: bool,

    /// Print the result as a JSON object.
    #[arg(long)]
    json: bool,
}

/// The agent is waited for, and a file system takes its time to free a large file.
const PATIENCE: Duration = Duration::from_secs(600);

/// Ends the protection.
pub fn run(command: &Unprotect, directory: &RuntimeDirectory) -> anyhow::Result<ExitStatus> {
    let request = Request::Unprotect {
        machine: command.address.machine.clone(),
        disk: command.disk.clone(),
        delete_replica: command.delete_replica,
    };
    order(talk::connect(directory, command.address.side)?, &request, PATIENCE, command.json)
}
