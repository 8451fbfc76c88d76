//! How often the rare things happen in a simulated run. It decides nothing else.

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;

/// How often the rare things happen: every run has its own mix, so that each of them is common in
/// some.
pub(super) struct Mix {
    pub uncaptured: f64,
    pub split: f64,
    pub fails: f64,
    pub rotates: f64,
    pub loses_tail: f64,
    pub catches_up: f64,
    /// Of submissions that nobody sees.
    pub missed: f64,
    /// Of writes for which the log has no room.
    pub no_room: f64,
    /// Of looks for what is overdue.
    pub looks: f64,
    /// Of ends that nobody sees: none unless a run is about them.
    pub unseen_end: f64,
}

impl Mix {
    pub fn of(rng: &mut StdRng) -> Self {
        let mut pick = |mix: [f64; 3]| *mix.choose(rng).expect("three of them");
        Self {
            uncaptured: pick([0.0, 0.1, 0.5]),
            split: pick([0.0, 0.15, 0.5]),
            fails: pick([0.0, 0.05, 0.3]),
            rotates: pick([0.01, 0.05, 0.1]),
            loses_tail: pick([0.002, 0.01, 0.04]),
            catches_up: pick([0.0, 0.02, 0.1]),
            missed: pick([0.0, 0.0, 0.1]),
            no_room: pick([0.0, 0.0, 0.2]),
            looks: pick([0.0, 0.01, 0.05]),
            unseen_end: 0.0,
        }
    }
}
