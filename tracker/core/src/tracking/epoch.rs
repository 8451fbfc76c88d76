//! The epochs of one disk's bitmap: the spare array holds the last one that was cut, until the
//! target has what covers it.

use crate::rules::{Rule, holds};
use crate::source::RingPosition;
use redoubt_log::Sequence;

/// The state of the spare array.
#[derive(Debug, Default)]
pub(super) struct Epoch {
    waiting: Option<Waiting>,
}

#[derive(Debug)]
struct Waiting {
    /// Everything that was marked in this epoch stands before this place of the ring.
    cut_at: RingPosition,
    /// The log position that covers it.
    cover: Option<Sequence>,
}

impl Epoch {
    /// Whether the spare array is clear.
    pub fn is_free(&self) -> bool {
        self.waiting.is_none()
    }

    /// The active array has just become the spare one; `cut_at` was read after that.
    pub fn cut(&mut self, cut_at: RingPosition) {
        self.waiting = Some(Waiting { cut_at, cover: None });
    }

    /// At log position `position`, with the ring drained to `drained`: it covers the epoch if `D`
    /// is empty.
    pub fn cover(&mut self, drained: RingPosition, settled: bool, position: Sequence) {
        if let Some(waiting) = &mut self.waiting {
            let covers = drained >= waiting.cut_at && settled || !holds(Rule::DropWhenSettled);
            if waiting.cover.is_none() && covers {
                waiting.cover = Some(position);
            }
        }
    }

    /// Whether the target's acknowledgement allows to drop it.
    pub fn may_drop(&self, acknowledged: Sequence) -> bool {
        self.waiting
            .as_ref()
            .and_then(|waiting| waiting.cover)
            .is_some_and(|cover| cover <= acknowledged || !holds(Rule::DropAfterAck))
    }

    /// It was dropped: the spare array is clear.
    pub fn drop_now(&mut self) {
        self.waiting = None;
    }

    /// The tail of the log that held the covering position is gone.
    pub fn void_cover(&mut self) {
        if holds(Rule::RestartVoidsCover)
            && let Some(waiting) = &mut self.waiting
        {
            waiting.cover = None;
        }
    }
}
