//! A disk that does not stay what it was while it is protected: it stops being good before another
//! point is taken. It never takes a disk up again: that is for the next start.

use crate::error::AgentError;
use crate::owner::Owner;
use redoubt_log::{DiskIndex, GapReason};
use redoubt_tracker::LogSink;

impl Owner {
    /// Lets go of every disk whose device has another size than when it was taken; the others go
    /// on.
    pub fn look_at_sizes(&mut self) -> Result<(), AgentError> {
        for (index, error) in self.disks.changed() {
            self.lose(index, error)?;
        }
        Ok(())
    }

    /// No point has the disk from now on, in this log or another. What a smaller device has lost
    /// was never written, so the marks go as well: they do not say it.
    fn lose(&mut self, index: DiskIndex, error: AgentError) -> Result<(), AgentError> {
        self.disks.lose(index, error)?;
        self.verify.fail(&mut self.tracking, "a disk is not what it was: see `redoubt status`");
        self.tracking.remove(index);
        if self.source.disks().iter().any(|pinned| pinned.disk == index) {
            self.source.remove_disk(index)?;
        }
        if let Some(log) = &mut self.log {
            log.gap(index, GapReason::SizeChanged);
        }
        self.reader.close(index)
    }
}
