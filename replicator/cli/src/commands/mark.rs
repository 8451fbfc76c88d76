//! `redoubt mark`: a recovery point now. Prints its id and nothing else.

use crate::arguments::Address;
use crate::failure::{Failure, explain};
use crate::logging::Log;
use crate::{output, talk};
use clap::Args;
use redoubt_control::{ExitStatus, Request, Response, RuntimeDirectory, Span};

/// Take a recovery point that holds every write completed so far.
#[derive(Debug, Args)]
#[command(
    long_about = "Take a recovery point that holds every write completed before the call.\n\n\
        Waits until the point is durable at the target and prints its id alone. At the timeout \
        the exit status is 4; the point may still come to be.\n\n\
        A disk that cannot be protected now (absent, of another size) is not waited for: the id of \
        the point that lacks it is printed all the same, standard error names the disk, and the \
        exit status is 3. So it is where the point is not proven.",
    after_long_help = "Example: a point before an upgrade, to be copied out if it goes wrong\n  \
        POINT=$(redoubt mark --label before-upgrade) && apt-get upgrade"
)]
pub struct Mark {
    #[command(flatten)]
    address: Address,

    /// What to call the point.
    #[arg(long, value_name = "TEXT")]
    label: Option<String>,

    /// How long to wait, as in 500ms, 60s or 5m.
    #[arg(long, default_value = "60s", value_name = "TIME")]
    timeout: Span,

    /// Wait until the replica disks hold the point, too.
    #[arg(long)]
    applied: bool,

    /// Print the result as a JSON object.
    #[arg(long)]
    json: bool,
}

/// Takes the point.
pub fn run(command: &Mark, directory: &RuntimeDirectory, log: &Log) -> anyhow::Result<ExitStatus> {
    let request = Request::Mark {
        machine: command.address.machine.clone(),
        label: command.label.clone(),
        timeout: command.timeout,
        applied: command.applied,
    };
    let client = talk::connect(directory, command.address.side)?;
    // The role watches the timeout itself; ours is for a role that hangs.
    let patience = command.timeout.0.saturating_add(talk::LOOK_PATIENCE);
    match talk::ask(client, &request, patience, &mut |_| {}) {
        Ok(Response::Marked { marked }) => {
            match command.json {
                true => output::print_json(&marked)?,
                false => output::print(&format!("{}\n", marked.point))?,
            }
            if let Some(shortcoming) = marked.shortcoming() {
                log.report(&shortcoming);
            }
            Ok(marked.exit_status())
        }
        Ok(other) => Err(talk::unexpected(&other)),
        // Its time is over all the same, and the point may still come to be.
        Err(error) if talk::is_hanging(&error) => {
            let message = explain(&error);
            Err(Failure { status: ExitStatus::TimedOut, message }.into())
        }
        Err(error) => Err(error),
    }
}
