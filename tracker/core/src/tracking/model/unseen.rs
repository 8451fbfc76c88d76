//! Runs about ends of writes that nobody sees. What the tracker makes of them is judged at rest.

use super::{DISK, begin};
use crate::tracking::DiskProgress;

/// A run in which ends go unseen. No counter tells, so its points are not judged; but it must come
/// to rest, and then the log is the disk.
pub(in crate::tracking) fn run_unseen(seed: u64, steps: usize) -> Result<(), String> {
    let mut run = begin(seed, true);
    run.world.mix.unseen_end = 0.05;
    (0..steps).for_each(|_| run.anything());
    run.rest()
}

/// How many ends are taken for missed during a long pause, in which none is told.
pub(in crate::tracking) fn missed_in_a_pause(seed: u64) -> u64 {
    let mut run = begin(seed, true);
    (0..100).for_each(|_| run.anything());
    let Ok(()) = run.tracking.pause(&mut run.world, DISK);
    let before = run.tracking.progress(DISK).expect("a disk");
    for _ in 0..40 {
        run.world.step();
        let Ok(_) = run.tracking.pump(&mut run.world, &mut run.log);
        run.tracking.look_for_overdue(&mut run.world);
    }
    let after = run.tracking.progress(DISK).expect("a disk");
    let risen = |of: fn(&DiskProgress) -> u64| of(&after) - of(&before);
    // Submissions that nobody saw are counted with both.
    risen(|progress| progress.missed) - risen(|progress| progress.unmarked)
}
