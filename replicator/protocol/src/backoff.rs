//! How long to wait before the next attempt: longer each time, and never in step with other
//! machines. It has no randomness of its own: the seed is given.

use std::time::Duration;

/// First wait: short, since most cuts are.
pub const RETRY_FIRST: Duration = Duration::from_millis(200);

/// Longest wait: a target that is back is found within it, and a thousand machines that wait for it
/// ask a hundred times a second.
pub const RETRY_LONGEST: Duration = Duration::from_secs(10);

pub(crate) struct Backoff {
    attempts: u32,
    random: u64,
}

impl Backoff {
    pub(crate) fn new(seed: u64) -> Self {
        Self { attempts: 0, random: seed }
    }

    pub(crate) fn reset(&mut self) {
        self.attempts = 0;
    }

    /// Goes to the longest wait at once: nothing will change soon.
    pub(crate) fn give_time(&mut self) {
        self.attempts = u32::MAX;
    }

    /// The next wait: between half of the step and all of it.
    pub(crate) fn next(&mut self) -> Duration {
        let doubled = RETRY_FIRST.saturating_mul(1 << self.attempts.min(16));
        self.attempts = self.attempts.saturating_add(1);
        let step = doubled.min(RETRY_LONGEST);
        let half = step / 2;
        let spread = u64::try_from(half.as_nanos()).unwrap_or(u64::MAX).max(1);
        half + Duration::from_nanos(self.draw() % spread)
    }

    /// SplitMix64 (Steele, Lea, Flood 2014): jitter needs no more.
    fn draw(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.random;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grows_to_the_longest_and_stays() {
        let mut backoff = Backoff::new(7);
        let first = backoff.next();
        assert!(first >= RETRY_FIRST / 2 && first <= RETRY_FIRST, "{first:?}");
        let later: Vec<_> = (0..100).map(|_| backoff.next()).collect();
        assert!(later[10..].iter().all(|wait| *wait >= RETRY_LONGEST / 2));
        assert!(later.iter().all(|wait| *wait <= RETRY_LONGEST));
        backoff.reset();
        assert!(backoff.next() <= RETRY_FIRST);
        backoff.give_time();
        assert!(backoff.next() >= RETRY_LONGEST / 2);
    }

    #[test]
    fn two_machines_do_not_keep_step() {
        let (mut one, mut two) = (Backoff::new(1), Backoff::new(2));
        assert!((0..8).any(|_| one.next() != two.next()));
    }
}
