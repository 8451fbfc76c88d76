//! `redoubt copy-out`: a disk as it was at a recovery point, as a file. The role writes the file,
//! not the command.

use crate::arguments::Address;
use crate::progress::Progress;
use crate::{output, talk};
use anyhow::Context;
use clap::Args;
use redoubt_control::{CopiedOut, ExitStatus, PointSelector, Request, Response, RuntimeDirectory};
use redoubt_log::Name;
use std::path::PathBuf;

/// Write a disk as it was at a recovery point into a file.
#[derive(Debug, Args)]
#[command(
    long_about = "Write a disk as it was at a recovery point into a file: a raw image that can be \
        mounted.\n\n\
        The replica stays as it is and replication goes on. The role that is asked writes the \
        file on its own machine; from the agent's side the point is streamed back.",
    after_long_help = "Example: look into the newest point\n  \
        redoubt copy-out --machine web-01 --disk sda --to /tmp/sda.img\n  \
        mount -o ro,loop /tmp/sda.img /mnt"
)]
pub struct CopyOut {
    #[command(flatten)]
    address: Address,

    /// Which disk.
    #[arg(long, value_name = "NAME")]
    disk: Name,

    /// The recovery point: `latest`, or an id that `redoubt points` shows.
    #[arg(long, default_value = "latest", value_name = "POINT")]
    point: PointSelector,

    /// The file to write.
    #[arg(long, value_name = "FILE")]
    to: PathBuf,

    /// Overwrite the file if it exists.
    #[arg(long)]
    force: bool,

    /// Print the result as a JSON object.
    #[arg(long)]
    json: bool,
}

/// Copies the disk out.
pub fn run(command: &CopyOut, directory: &RuntimeDirectory) -> anyhow::Result<ExitStatus> {
    let to = std::path::absolute(&command.to).context("--to is no path")?;
    let request = Request::CopyOut {
        machine: command.address.machine.clone(),
        disk: command.disk.clone(),
        point: command.point,
        to: to.clone(),
        force: command.force,
    };
    let client = talk::connect(directory, command.address.side)?;
    let mut progress = Progress::new(format!("copy-out {}", command.disk));
    let response = talk::ask(client, &request, talk::PATIENCE, &mut |response| {
        if let Response::Progress { done_bytes, total_bytes } = response {
            progress.step(*done_bytes, *total_bytes);
        }
    });
    drop(progress);
    match response? {
        Response::CopiedOut { point, bytes } if command.json => {
            output::print_json(&CopiedOut { disk: command.disk.clone(), point, bytes, to })?;
        }
        Response::CopiedOut { point, bytes } => {
            let (disk, to) = (&command.disk, to.display());
            output::print(&format!("{disk} as of {point}: {} in {to}\n", output::bytes(bytes)))?;
        }
        other => return Err(talk::unexpected(&other)),
    }
    Ok(ExitStatus::Done)
}
