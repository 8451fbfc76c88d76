//! The agent's audit log: what an operator ordered here or at the target, how it ended, and what a
//! verify has found. Where it cannot be written the action stands, and the log on standard error
//! says so.

use redoubt_control::audit::{AuditEntry, AuditLog};
use redoubt_control::units::UtcTime;
use std::path::Path;

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
