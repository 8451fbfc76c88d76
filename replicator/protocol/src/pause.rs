//! The operator's word on whether a machine is paused. Both ends of a session keep it, each may be
//! told, and the later word counts wherever it was said. It reads no clock.

use redoubt_log::WallTime;
use serde::{Deserialize, Serialize};

/// Paused or not, and when that was said. The default is what holds before anybody said anything.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(deny_unknown_fields)]
pub struct PauseWord {
    /// When, by the clock of the side that was told; always after every word that side knew.
    pub said_at: WallTime,
    /// Whether the machine is paused. Of two words of one instant the pause counts: an operator
    /// who wanted quiet gets it, and the status shows it.
    pub paused: bool,
}

impl PauseWord {
    /// An operator speaks: later than what was known, also where the clock was set back.
    pub fn say(self, paused: bool, now: WallTime) -> Self {
        Self { said_at: now.max(WallTime(self.said_at.0.saturating_add(1))), paused }
    }

    /// Whether a later word can follow, as one can of every clock in use: one from the end of time
    /// would count for ever.
    pub fn can_be_followed(self) -> bool {
        self.said_at.0 < u64::MAX / 2
    }

    /// Which of two words counts; the order in which they are heard makes no difference.
    pub fn merge(self, other: Self) -> Self {
        self.max(other)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_later_word_counts_wherever_it_is_heard_first() {
        let nothing = PauseWord::default();
        let pause = nothing.say(true, WallTime(10));
        let resume = pause.say(false, WallTime(20));
        for words in [[nothing, pause, resume], [resume, nothing, pause], [pause, resume, nothing]]
        {
            let heard = words.into_iter().fold(nothing, PauseWord::merge);
            assert_eq!(heard, resume);
        }
    }

    #[test]
    fn a_clock_that_was_set_back_does_not_silence_the_operator() {
        let pause = PauseWord::default().say(true, WallTime(1000));
        let resume = pause.say(false, WallTime(3));
        assert_eq!(pause.merge(resume), resume);
    }

    #[test]
    fn a_word_that_nothing_could_follow_is_known_as_such() {
        let end = PauseWord { said_at: WallTime(u64::MAX), paused: true };
        assert!(!end.can_be_followed());
        assert_eq!(end.merge(end.say(false, WallTime(3))), end);
        let ahead = PauseWord { said_at: WallTime(4_000_000_000_000_000_000), paused: true };
        assert!(ahead.can_be_followed());
        assert!(!ahead.merge(ahead.say(false, WallTime(3))).paused);
    }

    #[test]
    fn at_one_instant_the_pause_counts() {
        let pause = PauseWord { said_at: WallTime(5), paused: true };
        let resume = PauseWord { said_at: WallTime(5), paused: false };
        assert_eq!(pause.merge(resume), pause);
        assert_eq!(resume.merge(pause), pause);
    }
}
