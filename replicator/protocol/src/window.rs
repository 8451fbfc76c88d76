//! The sealed frames that are not yet durable at the target: what the agent sends, and sends again.
//! It never lets go of a frame before the target has it durably, unless the log they belong to is
//! over.

use crate::frame_place::FramePlace;
use redoubt_log::Sequence;
use std::collections::VecDeque;

/// Bytes of sealed frames that the agent keeps by default: a third of its memory budget, and over
/// 100 ms of a line of 2 Gbit/s.
pub const WINDOW_BYTES: usize = 32 << 20;

/// Frames that the agent keeps at most: small ones too cost bookkeeping at both ends.
pub const WINDOW_FRAMES: usize = 1024;

/// Bounds of the frames that the agent keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WindowLimits {
    /// All frames together; a single frame is taken whatever its size.
    pub bytes: usize,
    /// How many.
    pub frames: usize,
}

impl Default for WindowLimits {
    fn default() -> Self {
        Self { bytes: WINDOW_BYTES, frames: WINDOW_FRAMES }
    }
}

pub(crate) struct Window<F> {
    limits: WindowLimits,
    held: VecDeque<(FramePlace, F)>,
    bytes: usize,
    /// How many at the front were sent over the present connection.
    sent: usize,
    /// The end of the log as far as it is sealed.
    end: Sequence,
}

impl<F: Clone> Window<F> {
    pub(crate) fn new(limits: WindowLimits) -> Self {
        Self { limits, held: VecDeque::new(), bytes: 0, sent: 0, end: Sequence(0) }
    }

    pub(crate) fn end(&self) -> Sequence {
        self.end
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(crate) fn has_room(&self, bytes: usize) -> bool {
        self.held.is_empty()
            || (self.bytes.saturating_add(bytes) <= self.limits.bytes
                && self.held.len() < self.limits.frames)
    }

    /// Takes the frame that continues the log.
    pub(crate) fn push(&mut self, place: FramePlace, frame: F) {
        assert_eq!(place.previous, self.end, "a sealed frame continues the log");
        assert!(place.previous < place.first && place.first <= place.last, "a frame runs forward");
        self.bytes += place.bytes;
        self.end = place.last;
        self.held.push_back((place, frame));
    }

    /// Lets go of what is durable.
    pub(crate) fn release(&mut self, durable: Sequence) {
        while self.held.front().is_some_and(|(place, _)| place.last <= durable) {
            if let Some((place, _)) = self.held.pop_front() {
                self.bytes -= place.bytes;
                self.sent = self.sent.saturating_sub(1);
            }
        }
    }

    /// Whether a log that ends at `resume` is one that the frames can follow: one of them begins
    /// there, or it is their end.
    pub(crate) fn can_follow(&self, resume: Sequence) -> bool {
        self.end == resume || self.held.iter().any(|(place, _)| place.previous == resume)
    }

    /// The next frame to send, as long as fewer than `most` are on their way.
    pub(crate) fn send_next(&mut self, most: usize) -> Option<(FramePlace, F)> {
        let next = self.held.get(self.sent).filter(|_| self.sent < most)?.clone();
        self.sent += 1;
        Some(next)
    }

    /// A new connection has seen none of them.
    pub(crate) fn rewind(&mut self) {
        self.sent = 0;
    }

    /// The frames belong to a log that is over: a new one goes on from `end`.
    pub(crate) fn restart(&mut self, end: Sequence) {
        self.held.clear();
        self.bytes = 0;
        self.sent = 0;
        self.end = end;
    }
}
