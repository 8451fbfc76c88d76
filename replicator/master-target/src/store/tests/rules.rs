//! All rules on: nothing is found. Any one off: a counter-example within a stated number of seeds.

use super::world::World;
use crate::store::rules::{Rule, without};

const STEPS: usize = 120;
/// Seeds of the run with all rules on.
const SEEDS: u64 = 2000;

/// The first counter-example within so many seeds.
fn search(off: Option<Rule>, seeds: u64) -> Option<(u64, String)> {
    (0..seeds).find_map(|seed| {
        let verdict = without(off, || World::new(seed).run(STEPS));
        verdict.err().map(|what| (seed, what))
    })
}

#[test]
fn with_all_rules_nothing_is_found() {
    if let Some((seed, what)) = search(None, SEEDS) {
        panic!("seed {seed}: {what}");
    }
}

macro_rules! each_rule_matters {
    ($($name:ident: $rule:ident within $seeds:literal;)*) => {$(
        #[test]
        fn $name() {
            let found = search(Some(Rule::$rule), $seeds);
            let (seed, what) = found.expect("no counter-example: the rule is not shown to matter");
            println!("seed {seed}: {what}");
        }
    )*};
}

each_rule_matters! {
    without_seal_before_write: SealBeforeWrite within 200;
    without_sealed_is_kept: SealedIsKept within 200;
    without_sync_before_advance: SyncBeforeAdvance within 200;
    without_publish_before_write: PublishBeforeWrite within 200;
    without_reader_looks_again: ReaderLooksAgain within 200;
    without_nearest_wins: NearestWins within 200;
    without_erase_behind_tail: EraseBehindTail within 2000;
    without_ack_after_sync: AckAfterSync within 200;
    without_fence_durable: FenceDurable within 200;
}
