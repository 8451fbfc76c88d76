//! `redoubt points`: what can be gone back to.

use crate::arguments::Address;
use crate::table::Table;
use crate::{output, talk};
use clap::Args;
use redoubt_control::status::PointStatus;
use redoubt_control::{Client, ExitStatus, Request, Response, Role, RuntimeDirectory};
use redoubt_log::Name;

/// List the recovery points of a machine, oldest first.
#[derive(Debug, Args)]
#[command(
    long_about = "List the recovery points of a machine, oldest first.\n\n\
        A point is good for the disks that it names, and complete when those are all of the \
        machine. It is proven when no loss, gap or unsettled write touches it. For the disks under \
         LOST it cannot be read any more: `redoubt status` says why.\n\n\
         A waiting one is safe in the target's journal, and can be copied out once the replica \
         disks have come to it: until then it is not shown as proven. A suspect \
         one is older than a difference that a verify has found, and may hold it, too.",
    after_long_help = "Examples:\n  \
        redoubt points --machine web-01\n  \
        redoubt points --json | jq -r '.[-1].id'"
)]
pub struct Points {
    #[command(flatten)]
    address: Address,

    /// Print a JSON array.
    #[arg(long)]
    json: bool,
}

/// Lists the points.
pub fn run(command: &Points, directory: &RuntimeDirectory) -> anyhow::Result<ExitStatus> {
    let role = talk::choose(directory, command.address.side)?;
    let request = Request::Points { machine: command.address.machine.clone() };
    let client = Client::connect(directory, role)?;
    // An agent has to ask its target, and tells itself when that one does not answer.
    let patience = match role {
        Role::Agent => talk::PATIENCE + talk::LOOK_PATIENCE,
        Role::Target => talk::LOOK_PATIENCE,
    };
    match talk::ask(client, &request, patience, &mut |_| {})? {
        Response::Points { points } if command.json => output::print_json(&points)?,
        Response::Points { points } => output::print(&render(&points))?,
        other => return Err(talk::unexpected(&other)),
    }
    Ok(ExitStatus::Done)
}

fn render(points: &[PointStatus]) -> String {
    let mut table = Table::new([
        "ID", "TAKEN AT", "KIND", "SEQUENCE", "DISKS", "LOST", "COMPLETE", "PROVEN", "STATE",
        "LABEL",
    ]);
    let yes = |is: bool| String::from(if is { "yes" } else { "no" });
    let names = |disks: &[Name]| {
        let names: Vec<&str> = disks.iter().map(Name::as_str).collect();
        names.join(",")
    };
    for point in points {
        let lost = Some(names(&point.harmed_disks)).filter(|names| !names.is_empty());
        table.row([
            point.id.to_string(),
            point.taken_at.to_string(),
            point.kind.to_string(),
            point.sequence.to_string(),
            names(&point.disks),
            output::or_dash(lost),
            yes(point.complete),
            yes(point.proven),
            if point.suspect.is_some() { "suspect".to_owned() } else { point.state.to_string() },
            output::or_dash(point.label.as_deref().map(output::harmless)),
        ]);
    }
    let mut reasons: Vec<&str> = points.iter().filter_map(|it| it.suspect.as_deref()).collect();
    reasons.dedup();
    let reasons = reasons.into_iter().map(|why| format!("suspect: {}\n", output::harmless(why)));
    table.render() + &reasons.collect::<String>()
}
