//! Puts the frames of several streams back in their order. It never holds more frames than the
//! window.

use crate::frame_place::FramePlace;
use redoubt_log::Sequence;
use std::collections::{BTreeMap, VecDeque};

/// The order of one session: where the log ends, and which frames of it are not durable yet.
pub(super) struct Reorder {
    end: Sequence,
    /// The last sequences of the frames that were appended and are not durable.
    undurable: VecDeque<Sequence>,
    most: usize,
}

/// Where a frame stands in relation to the log's end.
pub(super) enum Placed {
    /// It was appended before, or waits already.
    Seen,
    /// It continues the log.
    Next,
    /// Frames before it are missing.
    Early,
}

impl Reorder {
    pub(super) fn new(end: Sequence, window_frames: u32) -> Self {
        Self { end, undurable: VecDeque::new(), most: (window_frames as usize).max(1) }
    }

    pub(super) fn end(&self) -> Sequence {
        self.end
    }

    /// Where the frame stands; an error where an agent that keeps to the protocol cannot have sent
    /// it.
    pub(super) fn place<F>(
        &self,
        place: &FramePlace,
        waiting: &Waiting<F>,
    ) -> Result<Placed, String> {
        let (first, last, previous) = (place.first, place.last, place.previous);
        if first > last || previous >= first {
            return Err(format!("frame {first}..={last} after {previous} runs backwards"));
        }
        if last <= self.end || waiting.has(previous) {
            return Ok(Placed::Seen);
        }
        if previous < self.end {
            return Err(format!(
                "frame {first}..={last} follows {previous}, but the log ends at {}",
                self.end
            ));
        }
        if self.undurable.len() + waiting.len() >= self.most {
            return Err(format!("frame {first}..={last} is beyond the window of {}", self.most));
        }
        Ok(if previous == self.end { Placed::Next } else { Placed::Early })
    }

    /// A frame was appended.
    pub(super) fn advance(&mut self, last: Sequence) {
        self.end = last;
        self.undurable.push_back(last);
    }

    /// Everything up to here is durable.
    pub(super) fn release(&mut self, durable: Sequence) {
        while self.undurable.front().is_some_and(|last| *last <= durable) {
            self.undurable.pop_front();
        }
    }
}

/// Frames that came before their predecessor, by the sequence that they follow.
pub(super) struct Waiting<F>(BTreeMap<Sequence, (FramePlace, F)>);

impl<F> Default for Waiting<F> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<F> Waiting<F> {
    fn has(&self, previous: Sequence) -> bool {
        self.0.contains_key(&previous)
    }

    fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn keep(&mut self, place: FramePlace, frame: F) {
        self.0.insert(place.previous, (place, frame));
    }

    pub(super) fn take(&mut self, end: Sequence) -> Option<(FramePlace, F)> {
        self.0.remove(&end)
    }
}
