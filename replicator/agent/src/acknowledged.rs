//! How far the target has the log: what is dropped because of it, and what is remembered of it from
//! run to run, so that a target that was restored to an earlier state is noticed also when both
//! sides have been restarted. Nothing is dropped before it is remembered.

use crate::error::AgentError;
use crate::owner::Owner;
use redoubt_log::Sequence;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// How often it is written down where nothing is dropped: twice the time between two cuts of the
/// bitmap, so that where those go on it costs nothing. What the state file causes must not be the
/// load of a machine that rests, where it lies on a protected disk.
const REMEMBER_EVERY: Duration = Duration::from_secs(10);

impl Owner {
    /// Takes in what the target has acknowledged since the last look.
    pub fn acknowledge(&mut self, now: Instant) -> Result<(), AgentError> {
        let acknowledged = self.acknowledged();
        if acknowledged > self.seen_acknowledged {
            self.seen_acknowledged = acknowledged;
            self.unacknowledged.acknowledged(acknowledged);
            self.ends_acknowledged(acknowledged)?;
            self.suspects.acknowledged(acknowledged);
            if self.tracking.may_drop(acknowledged) {
                self.disks.remember_acknowledged(acknowledged)?;
                self.remembered = now;
                self.tracking.acknowledged(&mut self.source, acknowledged);
            }
        }
        if now - self.remembered >= REMEMBER_EVERY {
            self.remembered = now;
            self.remember(self.seen_acknowledged);
        }
        Ok(())
    }

    /// The last word of the target is remembered, where it is of this log.
    pub fn remember_at_end(&mut self) {
        if self.log.is_some() {
            self.remember(self.acknowledged());
        }
    }

    fn acknowledged(&self) -> Sequence {
        Sequence(self.shared.acknowledged.load(Ordering::Acquire))
    }

    /// Nothing rests on this but that a target which was restored is told from one which was not:
    /// where it fails the agent goes on.
    fn remember(&mut self, acknowledged: Sequence) {
        if acknowledged.0 <= self.disks.state.acknowledged {
            return;
        }
        if let Err(error) = self.disks.remember_acknowledged(acknowledged) {
            tracing::warn!(%error, "how far the target has the log is not written down");
        }
    }
}
