//! All rules on: nothing is found. Any one off: a counter-example within a stated number of seeds.

use super::world::World;
use crate::store::rules::{Rule, without};

const STEPS: usize = 120;
/// Seeds of the run with all rules on.
const SEEDS: u64 = 2000;

/// The first counter-example within so many seeds that says `what`; others do not count, so that a
/// rule is not credited with what another one's absence would show.
fn search(off: Option<Rule>, seeds: u64, readers: bool, what: &str) -> Option<(u64, String)> {
    (0..seeds).find_map(|seed| {
        let verdict = without(off, || {
            let mut world = World::new(seed);
            world.readers = readers;
            world.run(STEPS)
        });
        verdict.err().filter(|said| said.contains(what)).map(|said| (seed, said))
    })
}

#[test]
fn with_all_rules_nothing_is_found() {
    if let Some((seed, said)) = search(None, SEEDS, true, "") {
        panic!("seed {seed}: {said}");
    }
}

const AT_REST: bool = false;
const IN_THE_MIDDLE: bool = true;

macro_rules! each_rule_matters {
    ($($name:ident: $rule:ident, $readers:ident, $what:literal, within $seeds:literal;)*) => {$(
        #[test]
        fn $name() {
            let found = search(Some(Rule::$rule), $seeds, $readers, $what);
            let (seed, said) = found.expect("no counter-example: the rule is not shown to matter");
            println!("seed {seed}: {said}");
        }
    )*};
}

// At rest no reader looks while an apply runs: only a cut can show that the rule matters.
each_rule_matters! {
    without_seal_before_write: SealBeforeWrite, AT_REST, "view of", within 500;
    without_sealed_is_kept: SealedIsKept, AT_REST, "view of", within 500;
    without_sync_before_advance: SyncBeforeAdvance, AT_REST, "", within 500;
    without_publish_before_write: PublishBeforeWrite, IN_THE_MIDDLE, "view of", within 200;
    without_reader_looks_again: ReaderLooksAgain, IN_THE_MIDDLE, "view of", within 200;
    without_nearest_wins: NearestWins, AT_REST, "view of", within 200;
    without_erase_behind_tail: EraseBehindTail, AT_REST, "", within 2000;
    without_ack_after_sync: AckAfterSync, AT_REST, "acknowledged was", within 200;
    without_fence_durable: FenceDurable, AT_REST, "handed out twice", within 200;
}
