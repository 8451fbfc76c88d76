//! When a recovery point is taken: by the interval, and when somebody asks. It never says that a
//! disk is settled.

use crate::frame_log::FrameLog;
use redoubt_log::{DiskSet, PointId, PointKind, Sequence, WallTime};
use redoubt_protocol::message::MarkedPoint;
use redoubt_tracker::{LogSink, RingPosition};
use std::time::{Duration, Instant};

/// Bytes of a label that a marker holds.
const LABEL_BYTES: usize = redoubt_log::record::LABEL_LIMIT;

/// Requests that may wait at once; an operator's script that loops gets an error, not the agent's
/// memory.
const WAITING_LIMIT: usize = 64;

/// Who hears of a mark.
pub(crate) type MarkReply = Box<dyn FnOnce(Result<MarkedPoint, String>) + Send>;

/// A point that somebody asked for.
pub(crate) struct MarkRequest {
    pub label: String,
    pub kind: PointKind,
    pub deadline: Instant,
    pub reply: MarkReply,
}

struct Waiting {
    request: MarkRequest,
    /// Every write completed before the request stands before this place of the ring.
    behind: RingPosition,
}

/// Where the log stands.
pub(crate) struct Here {
    pub drained: RingPosition,
    /// Every write completed before this time is in the log.
    pub at: WallTime,
    /// The disks for which a point here is good, of all.
    pub settled: DiskSet,
    pub all: DiskSet,
    /// Those that are protected, be they there or not.
    pub protected: DiskSet,
    /// Whether the tracker can prove that it missed nothing.
    pub proven: bool,
}

/// The points to come.
pub(crate) struct Marks {
    interval: Option<Duration>,
    last: Instant,
    last_position: Option<Sequence>,
    waiting: Vec<Waiting>,
}

impl Marks {
    /// No point yet.
    pub fn new(now: Instant) -> Self {
        Self { interval: None, last: now, last_position: None, waiting: Vec::new() }
    }

    /// How often a point is taken unasked; `None` means never.
    pub fn set_interval(&mut self, interval: Option<Duration>) {
        self.interval = interval;
    }

    /// Whether a point would be taken now, if the disks allow it.
    pub fn is_due(&self, now: Instant) -> bool {
        let interval = self.interval.is_some_and(|interval| now - self.last >= interval);
        interval || !self.waiting.is_empty()
    }

    /// A point of all settled disks was taken for another reason: it serves the interval, too.
    pub fn taken(&mut self, position: Sequence, now: Instant) {
        (self.last, self.last_position) = (now, Some(position));
    }

    /// Somebody asks for a point; every write completed by now stands before `behind`.
    pub fn ask(&mut self, request: MarkRequest, behind: RingPosition) {
        if self.waiting.len() >= WAITING_LIMIT {
            (request.reply)(Err("too many marks wait already: see `redoubt status`".to_owned()));
            return;
        }
        self.waiting.push(Waiting { request, behind });
    }

    /// Gives up what has waited too long.
    pub fn expire(&mut self, now: Instant) {
        let late = self.waiting.extract_if(.., |waiting| waiting.request.deadline <= now);
        for waiting in late {
            let why = "not every disk was settled in time: `redoubt status` says what is missing";
            (waiting.request.reply)(Err(why.to_owned()));
        }
    }

    /// Fails everything that waits.
    pub fn fail_all(&mut self, why: &str) {
        self.waiting.drain(..).for_each(|waiting| (waiting.request.reply)(Err(why.to_owned())));
    }

    /// The log has lost nothing up to here: takes what is due.
    pub fn take(&mut self, log: &mut FrameLog, here: &Here, now: Instant) {
        if here.settled == here.all && !here.all.is_empty() {
            let due = self.waiting.extract_if(.., |waiting| waiting.behind <= here.drained);
            let mut marked = None;
            for Waiting { request, .. } in due {
                let point = PointId::random();
                let label = clean(&request.label);
                let sequence = log.marker(point, request.kind, label, here);
                let lacking = here.protected.without(here.settled);
                let proven = here.proven;
                (request.reply)(Ok(MarkedPoint { point, sequence, lacking, proven }));
                marked = Some(sequence);
            }
            if marked.is_some() {
                (self.last, self.last_position) = (now, marked);
            }
        }
        let due = self.interval.is_some_and(|interval| now - self.last >= interval);
        if due && !here.settled.is_empty() {
            self.last = now;
            if self.last_position == Some(log.position()) {
                log.until(here.at);
            } else {
                let kind = PointKind::CrashConsistent;
                log.marker(PointId::random(), kind, String::new(), here);
            }
            self.last_position = Some(log.position());
        }
    }
}

/// A label as a marker may hold it: no control characters, cut at a character's boundary.
fn clean(label: &str) -> String {
    let mut clean: String = label.chars().filter(|c| !c.is_control()).collect();
    clean.truncate(clean.floor_char_boundary(LABEL_BYTES));
    clean
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_made_fit_for_a_marker() {
        assert_eq!(clean("before\nupgrade\t"), "beforeupgrade");
        assert_eq!(clean(&"ä".repeat(200)).len(), 254);
    }
}
