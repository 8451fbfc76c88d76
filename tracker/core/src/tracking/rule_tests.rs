//! Each rule of the tracker on trial: with all of them the judge finds nothing, without any single
//! one it does.

use super::model::{missed_in_a_pause, run, run_checks, run_unseen};
use crate::rules::{Rule, without};

const STEPS: usize = 600;
const SEEDS: u64 = 2_000;
/// The rarest counter-example stands far below this; the bound only ends a search that would be in
/// vain.
const MOST_SEEDS: u64 = 20_000;

#[test]
fn with_every_rule_no_seed_finds_anything() {
    for seed in 0..SEEDS {
        if let Err(seen) = run(seed, STEPS, true) {
            panic!("seed {seed}: {seen}");
        }
    }
}

fn needs(rule: Rule) {
    let found =
        (0..MOST_SEEDS).find(|&seed| without(Some(rule), || run(seed, STEPS, true)).is_err());
    let seed = found.unwrap_or_else(|| panic!("{rule:?} is not shown to matter"));
    println!("without {rule:?}: seed {seed} finds a counter-example");
}

macro_rules! each_rule_is_needed {
    ($($name:ident: $rule:ident,)*) => {
        $(#[test]
        fn $name() {
            needs(Rule::$rule);
        })*
    };
}

each_rule_is_needed! {
    mask_before_start: MaskBeforeStart,
    mask_during: MaskDuring,
    overlap_settles: OverlapSettles,
    unmatched_settles: UnmatchedSettles,
    unknown_overlap_settles: UnknownOverlapSettles,
    resume_then_cut: ResumeThenCut,
    forget_at_gap: ForgetAtGap,
    completion_first: CompletionFirst,
    failed_settles: FailedSettles,
    drain_before_forget: DrainBeforeForget,
    cut_needs_spare: CutNeedsSpare,
    gap_takes_all_epochs: GapTakesAllEpochs,
    drop_after_ack: DropAfterAck,
    drop_when_settled: DropWhenSettled,
    restart_voids_cover: RestartVoidsCover,
    newer_demand_stays: NewerDemandStays,
    uncaptured_settles: UncapturedSettles,
    uncaptured_keeps_demand: UncapturedKeepsDemand,
    overlap_holds_points: OverlapHoldsPoints,
    no_room_is_uncaptured: NoRoomIsUncaptured,
}

/// The programs' side of the contract: what the bitmap gets at completion is needed too.
#[test]
fn mark_at_completion() {
    let found = (0..MOST_SEEDS).find(|&seed| run(seed, STEPS, false).is_err());
    assert!(found.is_some(), "marks at completion are not shown to matter");
}

#[test]
fn ends_that_nobody_sees_keep_no_disk_from_settling() {
    for seed in 0..SEEDS {
        if let Err(seen) = run_unseen(seed, STEPS) {
            panic!("seed {seed}: {seen}");
        }
    }
}

#[test]
fn a_pause_makes_nothing_overdue() {
    for seed in 0..SEEDS {
        assert_eq!(missed_in_a_pause(seed), 0, "seed {seed}");
    }
}

#[test]
fn overdue_settles() {
    let breaks =
        |seed: &u64| without(Some(Rule::OverdueSettles), || run_unseen(*seed, STEPS)).is_err();
    assert!((0..MOST_SEEDS).any(|seed| breaks(&seed)), "it is not shown to matter");
}

#[test]
fn checks_find_what_was_garbled_and_nothing_else() {
    let (mut compared, mut found) = (0, 0);
    for seed in 0..SEEDS {
        match run_checks(seed, STEPS) {
            Ok(done) => (compared, found) = (compared + done.compared, found + done.found),
            Err(seen) => panic!("seed {seed}: {seen}"),
        }
    }
    println!("{compared} granules compared under load, {found} of them garbled");
    assert!(compared > 2_000 && found > 50, "checks hardly ever come to an end");
}

fn checks_need(rule: Rule) {
    let breaks = |seed: &u64| without(Some(rule), || run_checks(*seed, STEPS)).is_err();
    let found = (0..MOST_SEEDS).find(breaks);
    let seed = found.unwrap_or_else(|| panic!("{rule:?} is not shown to matter"));
    println!("without {rule:?}: seed {seed} finds a counter-example");
}

macro_rules! checks_need_each_rule {
    ($($name:ident: $rule:ident,)*) => {
        $(#[test]
        fn $name() {
            checks_need(Rule::$rule);
        })*
    };
}

checks_need_each_rule! {
    checks_mask_before_start: ChecksMaskBeforeStart,
    checks_mask_during: ChecksMaskDuring,
    demand_is_not_checked: DemandIsNotChecked,
    gap_voids_checks: GapVoidsChecks,
    unknown_end_doubts: UnknownEndDoubts,
}
