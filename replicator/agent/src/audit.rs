//! What the agent's audit log follows: every change of what its status shows. Orders are written
//! down where they are carried out.

use crate::error::AgentError;
use crate::owner::Shared;
use redoubt_control::audit::AuditLog;
use redoubt_control::chronicle::Chronicler;
use redoubt_log::Name;
use std::time::Instant;

/// Writes down what changes in what the status shows, until the result is dropped.
pub(crate) fn follow(log: AuditLog, name: Name, shared: &Shared) -> Result<Chronicler, AgentError> {
    let (snapshot, link) = (shared.snapshot.clone(), shared.link.clone());
    let see = move || vec![snapshot.lock().seen(&name, &link.get(), Instant::now())];
    Chronicler::start(log, see)
        .map_err(|source| AgentError::Start { what: "the audit log's thread", source })
}
