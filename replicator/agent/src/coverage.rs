//! Up to which time the log holds every completed write: a point must not claim a later one. It
//! reads no clock.

use redoubt_log::WallTime;
use redoubt_tracker::RingPosition;
use std::collections::VecDeque;

/// Times that may wait for the ring to be drained up to them; beyond it the coverage is only known
/// later.
const WAITING_LIMIT: usize = 256;

/// Times, and the places of the ring behind which nothing older can come.
#[derive(Debug, Default)]
pub(crate) struct Coverage {
    waiting: VecDeque<(RingPosition, WallTime)>,
    covered: Option<WallTime>,
}

impl Coverage {
    /// At `now` the ring was filled up to `produced`: what had completed by then stands before it.
    pub fn observe(&mut self, produced: RingPosition, now: WallTime) {
        if let Some((position, time)) = self.waiting.back_mut()
            && *position == produced
        {
            *time = now;
        } else if self.waiting.len() < WAITING_LIMIT {
            self.waiting.push_back((produced, now));
        }
    }

    /// The ring was drained into the log up to here.
    pub fn drained(&mut self, position: RingPosition) {
        while self.waiting.front().is_some_and(|(place, _)| *place <= position) {
            self.covered = self.waiting.pop_front().map(|(_, time)| time);
        }
    }

    /// The time up to which the log holds every completed write.
    pub fn time(&self) -> Option<WallTime> {
        self.covered
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_covered_only_when_the_ring_is_drained_up_to_it() {
        let mut coverage = Coverage::default();
        coverage.observe(RingPosition(100), WallTime(1));
        coverage.observe(RingPosition(200), WallTime(2));
        coverage.drained(RingPosition(150));
        assert_eq!(coverage.time(), Some(WallTime(1)));
        coverage.drained(RingPosition(200));
        assert_eq!(coverage.time(), Some(WallTime(2)));
    }

    #[test]
    fn an_idle_ring_covers_the_newest_time() {
        let mut coverage = Coverage::default();
        coverage.observe(RingPosition(100), WallTime(1));
        coverage.observe(RingPosition(100), WallTime(9));
        coverage.drained(RingPosition(100));
        assert_eq!(coverage.time(), Some(WallTime(9)));
    }
}
