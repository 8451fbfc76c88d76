//! Rates over the last moments, and when it is time again. Numbers for people; nothing is decided
//! by them.

use std::time::{Duration, Instant};

/// Weight of the newest measurement: rates follow a change within a second or two, and do not
/// flicker.
const NEWEST_WEIGHT: f64 = 0.3;

/// When something was last done.
pub(crate) struct Pace {
    last: Instant,
    before: Instant,
}

impl Pace {
    /// It was done now.
    pub fn new(now: Instant) -> Self {
        Self { last: now, before: now }
    }

    /// Whether it is time again; if so, it counts as done.
    pub fn due(&mut self, now: Instant, every: Duration) -> bool {
        let due = now - self.last >= every;
        if due {
            (self.before, self.last) = (self.last, now);
        }
        due
    }

    /// Between the last two times.
    pub fn elapsed(&self, now: Instant) -> Duration {
        now - self.before
    }
}

/// A counter's growth a second, smoothed.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Rate {
    seen: u64,
    per_second: f64,
}

impl Rate {
    /// The counter stands at `total` now, `elapsed` after the last time. A counter that began anew
    /// counts from zero.
    pub fn over(&mut self, total: u64, elapsed: Duration) -> u64 {
        let grown = if total >= self.seen { total - self.seen } else { total };
        self.seen = total;
        let seconds = elapsed.as_secs_f64();
        if seconds > 0.0 {
            let newest = grown as f64 / seconds;
            self.per_second += (newest - self.per_second) * NEWEST_WEIGHT;
        }
        // A saturating cast is what a display wants.
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        let rounded = self.per_second as u64;
        rounded
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_steady_counter_has_its_rate_and_a_still_one_none() {
        let mut rate = Rate::default();
        let mut total = 0;
        let last = (0..50).map(|_| {
            total += 500;
            rate.over(total, Duration::from_millis(500))
        });
        assert!((990..=1000).contains(&last.last().unwrap()));
        assert!((0..60).map(|_| rate.over(total, Duration::from_secs(1))).last().unwrap() == 0);
    }
}
