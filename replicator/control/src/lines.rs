//! Bounds the lines that somebody else may cause to be written: the audit log has an end, and what
//! operators did must not be pushed out of it. It counts, and writes nothing.

use std::time::{Duration, Instant};

/// So many lines one after the other, and another whenever some time has passed.
#[derive(Debug)]
pub struct Lines {
    most: u32,
    every: Duration,
    left: u32,
    since: Instant,
    unwritten: u64,
}

impl Lines {
    /// All of `most` may be written now, and one more comes back `every` so often.
    pub fn new(most: u32, every: Duration, now: Instant) -> Self {
        Self { most, every, left: most, since: now, unwritten: 0 }
    }

    /// Whether there may be a line now, and how many there were not before it.
    pub fn next(&mut self, now: Instant) -> Option<u64> {
        while self.left < self.most && now.saturating_duration_since(self.since) >= self.every {
            (self.left, self.since) = (self.left + 1, self.since + self.every);
        }
        if self.left == self.most {
            self.since = now;
        }
        if self.left == 0 {
            self.unwritten += 1;
            return None;
        }
        self.left -= 1;
        Some(std::mem::take(&mut self.unwritten))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_causes_lines_all_the_time_does_not_fill_the_log() {
        let start = Instant::now();
        let mut lines = Lines::new(16, Duration::from_secs(10), start);
        let at = |tenths: u32| start + Duration::from_millis(100) * tenths;
        let written = (0..1000).filter(|tenths| lines.next(at(*tenths)).is_some()).count();
        assert!((16..=26).contains(&written), "{written}");
        // Those that are missing are told of.
        assert!(lines.next(at(2000)).unwrap() > 0);
        assert_eq!(lines.next(at(2001)), Some(0));
    }
}
