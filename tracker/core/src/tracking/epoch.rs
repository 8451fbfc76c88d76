//! The epochs of one disk's bitmap: the spare array holds the last one that was cut, until the
//! target has what covers it.

use crate::matcher::{Matcher, SubmissionNumber};
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
    /// The newest write that can have been marked in it, once the ring is drained to `cut_at`.
    newest: Option<SubmissionNumber>,
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
        self.waiting = Some(Waiting { cut_at, newest: None, cover: None });
    }

    /// At log position `position`, with the ring drained to `drained`: it covers the epoch if `D`
    /// is empty, and no write that was marked in it is in flight. For such a write would find its
    /// mark gone when it completes, as if its submission had been missed.
    pub fn cover(
        &mut self,
        drained: RingPosition,
        settled: bool,
        matcher: &Matcher,
        position: Sequence,
    ) {
        let Some(waiting) = self.waiting.as_mut().filter(|waiting| waiting.cover.is_none()) else {
            return;
        };
        let reached = drained >= waiting.cut_at;
        if reached && waiting.newest.is_none() {
            waiting.newest = Some(matcher.newest());
        }
        let is_quiet = || waiting.newest.is_some_and(|newest| matcher.is_quiet(newest));
        if reached && settled && is_quiet() || !holds(Rule::DropWhenSettled) {
            waiting.cover = Some(position);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::BioKey;
    use redoubt_log::ByteRange;

    #[test]
    fn an_epoch_is_covered_only_when_no_write_of_it_is_in_flight() {
        let (before, after) = (BioKey(1), BioKey(2));
        let range = ByteRange::new(0, 4096);
        let mut matcher = Matcher::default();
        let mut epoch = Epoch::default();
        matcher.submitted(before, range, true);
        epoch.cut(RingPosition(10));
        epoch.cover(RingPosition(10), true, &matcher, Sequence(1));
        assert!(!epoch.may_drop(Sequence(9)), "its mark may be the only one");
        // Marked in the array that is active now.
        matcher.submitted(after, range, true);
        matcher.completed(before, range, false);
        epoch.cover(RingPosition(20), true, &matcher, Sequence(2));
        assert!(!epoch.may_drop(Sequence(1)));
        assert!(epoch.may_drop(Sequence(2)));
    }
}
