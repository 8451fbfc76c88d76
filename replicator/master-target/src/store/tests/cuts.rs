//! The power is cut after every single operation of one small life of a machine: nothing promised
//! is lost.

use super::agent::{consistent, write, zero};
use super::world::{Verdict, World, options};
use crate::store::JournalState;
use redoubt_log::WallTime;
use std::time::Duration;

/// Coins of the lying disk tried at each operation.
const SEEDS: u64 = 6;

/// Initial sync, three points, and the removal of the oldest. `true` where no cut came.
fn life(world: &mut World) -> Result<bool, String> {
    let mut whole = true;
    for step in 0..4 {
        let mut records = vec![write(0, step, 10 + u32::try_from(step).unwrap())];
        records.push(if step == 2 { zero(0, 0, 3) } else { write(1, 5, 20) });
        records.extend([consistent(0), consistent(1), world.marker()]);
        world.send_records(records);
        for action in 0..4 {
            match action {
                0 | 1 => world.deliver(),
                2 => drop(world.machine().apply_next(WallTime(world.now))),
                _ => {
                    let (now, keep) = (WallTime(world.now), Duration::from_nanos(1));
                    drop(world.machine().drop_expired(now, keep));
                    drop(world.machine().free_segments(now, Duration::ZERO));
                }
            }
            if world.disk.is_crashed() {
                whole = false;
                world.restart()?;
            }
        }
    }
    Ok(whole)
}

/// A journal that finds no room for a second segment, with points and without, goes on when its
/// first one is applied. `true` where no cut came.
fn life_on_a_full_disk(world: &mut World) -> Result<bool, String> {
    let (mut whole, mut full) = (true, false);
    // Beside a segment and the manifest a second one finds no room.
    world.disk.set_capacity(2 * options().segment_bytes + 1024);
    for step in 0..12 {
        let mut records = vec![write(0, step % 6, 30 + u32::try_from(step).unwrap())];
        if step % 4 == 2 {
            records.extend([consistent(0), consistent(1), world.marker()]);
        }
        world.send_records(records);
        for action in 0..4 {
            match action {
                0 | 3 => world.deliver(),
                1 => drop(world.machine().apply_next(WallTime(world.now))),
                _ => {
                    let (now, keep) = (WallTime(world.now), Duration::from_nanos(1));
                    drop(world.machine().drop_expired(now, keep));
                    drop(world.machine().free_segments(now, Duration::ZERO));
                }
            }
            full |= world.machine().status().journal == JournalState::Full;
            if world.disk.is_crashed() {
                whole = false;
                world.restart()?;
            }
        }
    }
    assert!(full || !whole, "there was room all the time");
    world.disk.set_capacity(1 << 60);
    Ok(whole)
}

type Life = fn(&mut World) -> Result<bool, String>;

fn cut_after(life: Life, seed: u64, operations: u64) -> Result<bool, String> {
    let mut world = World::new(seed);
    world.disk.crash_after(operations);
    let whole = life(&mut world)?;
    let verdict: Verdict = world.finish();
    verdict.map(|()| whole)
}

#[test]
fn a_cut_after_any_operation_loses_nothing_promised() {
    cut_everywhere(life);
}

#[test]
fn a_cut_on_a_full_disk_loses_nothing_promised() {
    cut_everywhere(life_on_a_full_disk);
}

fn cut_everywhere(life: Life) {
    for seed in 0..SEEDS {
        let mut operations = 0;
        loop {
            match cut_after(life, seed, operations) {
                Ok(true) => break,
                Ok(false) => operations += 1,
                Err(what) => panic!("seed {seed}, cut after {operations} operations: {what}"),
            }
        }
        assert!(operations > 100, "the life has many operations, not {operations}");
    }
}
