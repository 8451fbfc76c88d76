//! Which role a command talks to, and what becomes of a failure that it reports.

use crate::arguments::Side;
use crate::failure::{Failure, exit_status, explain};
use redoubt_control::socket::answering_roles;
use redoubt_control::{Client, ExitStatus, Request, Response, Role, RuntimeDirectory, SocketError};
use std::time::Duration;

/// A role that works sends progress every few seconds; one that does not for so long hangs.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// A role looks up what it knows at once: who waits for that wants to hear soon that it hangs.
pub const LOOK_PATIENCE: Duration = Duration::from_secs(5);

/// The role to ask: the chosen one, else the target, else the agent.
pub fn choose(directory: &RuntimeDirectory, side: Option<Side>) -> anyhow::Result<Role> {
    if let Some(side) = side {
        return Ok(side.into());
    }
    answering_roles(directory)?.last().copied().ok_or_else(|| nobody(directory))
}

/// A connection to the role to ask.
pub fn connect(directory: &RuntimeDirectory, side: Option<Side>) -> anyhow::Result<Client> {
    Ok(Client::connect(directory, choose(directory, side)?)?)
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

/// Whether the error says that the role does not run.
pub fn is_no_role(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref(), Some(SocketError::NoRole { .. }))
}

/// Whether the error says that the role does not answer.
pub fn is_hanging(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref(), Some(SocketError::Hangs { .. }))
}

/// Two failures as one, of the first one's class.
pub fn both(first: Option<anyhow::Error>, second: anyhow::Error) -> anyhow::Error {
    let Some(first) = first else { return second };
    let message = format!("{}; {}", explain(&first), explain(&second));
    Failure { status: exit_status(&first), message }.into()
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
