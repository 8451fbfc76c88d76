//! Agent and target in virtual time, over a network that delays, reorders between streams and cuts,
//! with restarts of either side: what is appended is the agent's log, whole and in order, whatever
//! happens.

mod site;

use site::{Site, Story};

/// Seeds of each story; `REDOUBT_SEED` runs one alone.
const SEEDS: u64 = 1500;

fn run(story: Story) {
    let only = std::env::var("REDOUBT_SEED")
        .ok()
        .map(|seed| seed.parse::<u64>().expect("REDOUBT_SEED is a number"));
    let seeds = only.map_or(0..SEEDS, |seed| seed..seed + 1);
    let mut appended = 0;
    for seed in seeds {
        let outcome = std::panic::catch_unwind(|| Site::new(seed, story).run());
        match outcome {
            Ok(frames) => appended += frames,
            Err(panic) => {
                eprintln!("failed with REDOUBT_SEED={seed}");
                std::panic::resume_unwind(panic);
            }
        }
    }
    assert!(appended > 0, "nothing was tested");
}

#[test]
fn cuts_alone_lose_and_repeat_nothing() {
    run(Story { cuts: true, ..Story::default() });
}

#[test]
fn restarts_of_both_sides_lose_nothing_acknowledged() {
    run(Story { cuts: true, agent_restarts: true, target_restarts: true, ..Story::default() });
}

#[test]
fn a_restored_target_is_noticed_and_begins_a_new_log() {
    run(Story { cuts: true, restore: true, agent_restarts: true, ..Story::default() });
}
