//! The operator's pause: capture and reads stop, the bitmap goes on. It is remembered before it is
//! acted upon, ends only by an operator's word, and takes no point.

use crate::error::AgentError;
use crate::owner::Owner;
use crate::session::Note;
use redoubt_log::{DiskIndex, GapReason};
use redoubt_protocol::{AgentMessage, PauseWord};
use redoubt_tracker::probe::Attached;
use redoubt_tracker::{CaptureMode, Tracking};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// What a mark is told while the machine is paused.
pub(crate) const PAUSED: &str = "replication is paused by the operator, and no point is taken \
                                 meanwhile: `redoubt resume` ends that";

/// What the audit log says of an order that was not given here.
pub(crate) const ORDERED_AT_TARGET: &str = "ordered at the target";

/// Who speaks of a pause.
#[derive(Clone, Copy, Debug)]
pub(crate) enum PauseOrder {
    /// The operator, here.
    Say(bool),
    /// The target, of what it was told.
    Heard(PauseWord),
}

/// Who hears what counts.
pub(crate) type PauseReply = Box<dyn FnOnce(Result<(), String>) + Send>;

impl Owner {
    /// Takes an order and answers it; one that cannot be remembered changes nothing.
    pub fn pause(&mut self, order: PauseOrder, reply: PauseReply) -> Result<(), AgentError> {
        match self.take_word(order) {
            Ok(was) => {
                let followed = self.follow(was);
                self.show_orders();
                reply(followed.as_ref().copied().map_err(ToString::to_string));
                followed
            }
            Err(error) => {
                tracing::error!(%error, "a pause or its end is not remembered");
                reply(Err(error.to_string()));
                Ok(())
            }
        }
    }

    /// Hears the target's word at the start of a session.
    pub fn hear_at_welcome(&mut self, word: PauseWord) -> Result<(), AgentError> {
        let was = self.take_word(PauseOrder::Heard(word))?;
        self.follow(was)
    }

    /// Remembers what counts now, and tells the target; returns what counted before.
    fn take_word(&mut self, order: PauseOrder) -> Result<PauseWord, AgentError> {
        let was = self.disks.state.pause;
        let word = match order {
            PauseOrder::Say(paused) => was.say(paused, self.time().0),
            PauseOrder::Heard(word) => was.merge(word),
        };
        self.disks.remember_pause(word)?;
        if word.paused != was.paused && matches!(order, PauseOrder::Heard(_)) {
            let action = if word.paused { "pause" } else { "resume" };
            let reason = Some(ORDERED_AT_TARGET.to_owned());
            self.audit.note(None, action, self.name.as_str(), "done", reason);
        }
        self.note(Note::Say(AgentMessage::Pause(word)));
        Ok(was)
    }

    /// Lets the status tell what was ordered before who ordered it is answered.
    pub fn show_orders(&self) {
        let mut snapshot = self.shared.snapshot.lock();
        snapshot.by_operator = self.disks.is_paused();
        let protected = &self.disks.state.disks;
        snapshot.disks.retain(|shown| protected.iter().any(|disk| disk.index == shown.index));
    }

    /// Does what was remembered.
    fn follow(&mut self, was: PauseWord) -> Result<(), AgentError> {
        let paused = self.disks.is_paused();
        if paused == was.paused {
            return Ok(());
        }
        tracing::info!(paused, "the operator's word");
        if paused {
            self.marks.fail_all(PAUSED);
            self.verify.fail(&mut self.tracking, "the operator pauses replication");
        }
        match (self.log.is_some(), paused) {
            (false, _) => Ok(()),
            (true, true) => self.pause_capture(),
            (true, false) => self.resume_capture(GapReason::Paused),
        }
    }
}

/// How often what a resume would have to read is counted: that walks the bitmaps.
const COUNT_EVERY: Duration = Duration::from_secs(1);

/// What has to be read of disks that are only marked.
#[derive(Debug, Default)]
pub(crate) struct ToCome {
    counted: Option<Instant>,
    bytes: BTreeMap<DiskIndex, u64>,
}

impl ToCome {
    /// Bytes by disk, of those whose writes are not captured.
    pub fn count(
        &mut self,
        tracking: &Tracking,
        source: &Attached,
        now: Instant,
    ) -> &BTreeMap<DiskIndex, u64> {
        let is_due = self.counted.is_none_or(|counted| now - counted >= COUNT_EVERY);
        let is_marked_only = |index: &DiskIndex| {
            let progress = tracking.progress(*index);
            progress.is_some_and(|progress| progress.mode == CaptureMode::Bitmap)
        };
        if is_due {
            let indexes = tracking.indexes().into_iter().filter(is_marked_only);
            let bytes = indexes.map(|index| (index, tracking.bytes_to_come(source, index)));
            self.bytes = bytes.collect();
            self.counted = Some(now);
        }
        self.bytes.retain(|index, _| is_marked_only(index));
        &self.bytes
    }
}
