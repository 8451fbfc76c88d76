//! `redoubt place`: a block device of the target as a disk's replica. Nothing is decided here.

use super::pause::order;
use crate::talk;
use anyhow::Context;
use clap::Args;
use redoubt_control::{Client, ExitStatus, Request, Role, RuntimeDirectory};
use redoubt_log::Name;
use std::path::PathBuf;

/// Keep a disk's replica on a block device of the target.
#[derive(Debug, Args)]
#[command(
    long_about = "Keep a disk's replica on a block device of the target: a logical volume, a LUN, \
        a partition.\n\n\
        It must be done before the disk's first sync; the machine need not have connected yet, but \
        must be invited by name. The device must be at least as large as the disk, writable, and \
        used by nobody; all that is on it is overwritten. The target holds it exclusively while it \
        runs.\n\n\
        It is known again by what the system calls its identity (a volume's UUID, a disk's WWN or \
        serial number) and by a stamp behind the replica, where there is room (8 KiB more than the \
        disk are enough); a device that has neither is refused. Where a start of the target finds \
        another device under the path, or none, apply waits and the status says so: nothing is \
        ever written to it.",
    after_long_help = "Example: a machine whose data disk goes to a logical volume\n  \
        redoubt invite --machine web-01\n  \
        lvcreate -L 101G -n web-01-data vg0\n  \
        redoubt place --machine web-01 --disk data --on /dev/vg0/web-01-data\n  \
        web-01#  redoubt agent --token TOKEN --disk /dev/sdb=data"
)]
pub struct Place {
    /// Which machine; one that was invited by this name need not have connected yet.
    #[arg(long, value_name = "NAME")]
    machine: Name,

    /// Which disk, by the name that it has or will have.
    #[arg(long, value_name = "NAME")]
    disk: Name,

    /// The block device.
    #[arg(long, value_name = "DEV")]
    on: PathBuf,

    /// Print the result as a JSON object.
    #[arg(long)]
    json: bool,
}

/// Places the replica.
pub fn run(command: &Place, directory: &RuntimeDirectory) -> anyhow::Result<ExitStatus> {
    let on = std::path::absolute(&command.on).context("--on is no path")?;
    let (machine, disk) = (command.machine.clone(), command.disk.clone());
    let client = Client::connect(directory, Role::Target)?;
    order(client, &Request::Place { machine, disk, on }, talk::PATIENCE, command.json)
}
