//! Which role a command talks to, and what becomes of a failure that it reports.

use crate::arguments::Side;
use crate::failure::Failure;
use redoubt_control::socket::answering_roles;
use redoubt_control::{Client, ExitStatus, Request, Response, Role, RuntimeDirectory};
use std::time::Duration;

/// A role answers at once, or sends progress every few seconds; one that does neither hangs.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// The role to ask: the chosen one, else the target, else the agent.
pub fn choose(directory: &RuntimeDirectory, side: Option<Side>) -> anyhow::Result<Role> {
    if let Some(side) = side {
        return Ok(side.into());
    }
    answering_roles(directory)?.last().copied().ok_or_else(|| nobody(directory))
}

/// The error that neither role runs.
pub fn nobody(directory: &RuntimeDirectory) -> anyhow::Error {
    let message = format!(
        "no role behind {}: is the agent or the master target running? (start it, or give its \
         --runtime-dir)",
        directory.path().display()
    );
    Failure { status: ExitStatus::NoRole, message }.into()
}

/// Asks and waits for the last response; what the role reports as failed becomes an error of its
/// class.
pub fn ask(
    client: Client,
    request: &Request,
    patience: Duration,
    progress: &mut dyn FnMut(&Response),
) -> anyhow::Result<Response> {
    match client.call(request, patience, progress)? {
        Response::Failed { status, message } => Err(Failure { status, message }.into()),
        response => Ok(response),
    }
}

/// The error that the role answered something else than what was asked.
pub fn unexpected(response: &Response) -> anyhow::Error {
    anyhow::anyhow!("the role answered {response:?}: are command and role of one version?")
}
