//! Up to which time the log holds every completed write: a point must not claim a later one. It
//! reads no clock.

use redoubt_log::WallTime;
use redoubt_tracker::RingPosition;
use std::collections::VecDeque;
use std::time::Instant;

/// Times that may wait for the ring to be drained up to them; beyond it the coverage is only known
/// later.
const WAITING_LIMIT: usize = 256;

/// A time by the machine's wall clock, and by the clock that never jumps.
pub(crate) type Time = (WallTime, Instant);

/// Times, and the places of the ring behind which nothing older can come.
#[derive(Debug, Default)]
pub(crate) struct Coverage {
    waiting: VecDeque<(RingPosition, Time)>,
    covered: Option<Time>,
}

impl Coverage {
    /// At `now` the ring was filled up to `produced`: what had completed by then stands before it.
    pub fn observe(&mut self, produced: RingPosition, now: Time) {
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
        self.covered.map(|(time, _)| time)
    }

    /// The same by the other clock: what is drained from now on was written after it.
    pub fn since(&self) -> Option<Instant> {
        self.covered.map(|(_, since)| since)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_covered_only_when_the_ring_is_drained_up_to_it() {
        let mut coverage = Coverage::default();
        let now = Instant::now();
        coverage.observe(RingPosition(100), (WallTime(1), now));
        coverage.observe(RingPosition(200), (WallTime(2), now));
        assert_eq!((coverage.time(), coverage.since()), (None, None));
        coverage.drained(RingPosition(150));
        assert_eq!((coverage.time(), coverage.since()), (Some(WallTime(1)), Some(now)));
        coverage.drained(RingPosition(200));
        assert_eq!(coverage.time(), Some(WallTime(2)));
    }

    #[test]
    fn an_idle_ring_covers_the_newest_time() {
        let mut coverage = Coverage::default();
        coverage.observe(RingPosition(100), (WallTime(1), Instant::now()));
        coverage.observe(RingPosition(100), (WallTime(9), Instant::now()));
        coverage.drained(RingPosition(100));
        assert_eq!(coverage.time(), Some(WallTime(9)));
    }
}
