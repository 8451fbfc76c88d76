//! `redoubt pause` and `redoubt resume`: the operator's word on one machine. Nothing is decided
//! here.

use crate::arguments::Address;
use crate::{output, talk};
use clap::Args;
use redoubt_control::{Client, ExitStatus, Request, Response, RuntimeDirectory, Told};
use std::time::Duration;

/// Track a machine's writes, but send nothing until `redoubt resume`.
#[derive(Debug, Args)]
#[command(
    long_about = "Track a machine's writes, but send nothing until `redoubt resume`.\n\n\
        Writes are only marked meanwhile: REMAINING of `redoubt status` says how much a resume \
        will have to read and send. No recovery point is taken, and `redoubt mark` fails; earlier \
        points stay. A machine has one pause, which may be ordered at its agent or at the target \
        and outlives restarts of both. Where the other side cannot be reached, it hears of the \
        order when it can: of a pause and a resume the later one counts, wherever it was ordered.",
    after_long_help = "Example: keep the line free over the day\n  \
        redoubt pause --machine web-01\n  \
        redoubt status        # paused, by-operator\n  \
        redoubt resume --machine web-01"
)]
pub struct Pause {
    #[command(flatten)]
    address: Address,

    /// Print the result as a JSON object.
    #[arg(long)]
    json: bool,
}

/// End a pause, whoever ordered it, and catch up.
#[derive(Debug, Args)]
#[command(
    long_about = "End a pause, whoever ordered it, and catch up.\n\n\
        What was written meanwhile is read from the disks and sent; points are taken again once \
        all of it is there. A machine has one pause: it does not matter at which side it was \
        ordered and at which it ends. Where the other side cannot be reached, it hears of the \
        order when it can: of a pause and a resume the later one counts.",
    after_long_help = "Example: go on and watch it catch up\n  \
        redoubt resume --machine web-01 && redoubt status --watch"
)]
pub struct Resume {
    #[command(flatten)]
    address: Address,

    /// Print the result as a JSON object.
    #[arg(long)]
    json: bool,
}

/// Pauses the machine.
pub fn pause(command: &Pause, directory: &RuntimeDirectory) -> anyhow::Result<ExitStatus> {
    let machine = command.address.machine.clone();
    let client = talk::connect(directory, command.address.side)?;
    order(client, &Request::Pause { machine }, talk::PATIENCE, command.json)
}

/// Ends the pause.
pub fn resume(command: &Resume, directory: &RuntimeDirectory) -> anyhow::Result<ExitStatus> {
    let machine = command.address.machine.clone();
    let client = talk::connect(directory, command.address.side)?;
    order(client, &Request::Resume { machine }, talk::PATIENCE, command.json)
}

/// Gives an order and prints what it means now.
pub fn order(
    client: Client,
    request: &Request,
    patience: Duration,
    json: bool,
) -> anyhow::Result<ExitStatus> {
    match talk::ask(client, request, patience, &mut |_| {})? {
        Response::Told { message } if json => output::print_json(&Told { message })?,
        Response::Told { message } => output::print(&format!("{}\n", output::harmless(&message)))?,
        other => return Err(talk::unexpected(&other)),
    }
    Ok(ExitStatus::Done)
}
