//! The agent's audit log: what an operator ordered here or at the target, how it ended, what a
//! verify has found, and how the state changed. Where it cannot be written the action stands, and
//! the log on standard error says so.

use crate::error::AgentError;
use crate::owner::Shared;
use redoubt_control::audit::{AuditEntry, AuditLog};
use redoubt_control::chronicle::Chronicler;
use redoubt_control::units::UtcTime;
use redoubt_log::Name;
use std::path::Path;
use std::time::Instant;

/// Writes entries. Clones write to the same log.
#[derive(Clone)]
pub(crate) struct Audit {
    log: AuditLog,
}

impl Audit {
    /// The log of a state directory.
    pub fn new(state: &Path) -> Self {
        Self { log: AuditLog::new(state) }
    }

    /// Writes down what changes in what the status shows, until the result is dropped.
    pub fn follow(&self, name: Name, shared: &Shared) -> Result<Chronicler, AgentError> {
        let (snapshot, link) = (shared.snapshot.clone(), shared.link.clone());
        let see = move || vec![snapshot.lock().seen(&name, &link.get(), Instant::now())];
        Chronicler::start(self.log.clone(), see)
            .map_err(|source| AgentError::Start { what: "the audit log's thread", source })
    }

    /// What the target ordered was done; what it means.
    pub fn done(&self, action: &str, object: &str, told: String) {
        self.write(None, action, object, "done", Some(told));
    }

    /// Somebody (`None`: the target, or the agent itself) did something; the outcome has its
    /// reason, or what it means.
    pub fn write(
        &self,
        actor: Option<u32>,
        action: &str,
        object: &str,
        outcome: &str,
        reason: Option<String>,
    ) {
        let entry = AuditEntry {
            time: UtcTime::now(),
            actor,
            action: action.to_owned(),
            object: object.to_owned(),
            outcome: outcome.to_owned(),
            reason,
        };
        if let Err(error) = self.log.append(&entry) {
            tracing::error!(%error, "an entry is missing from the audit log");
        }
    }
}
