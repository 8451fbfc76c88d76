//! Clocks that jump: points stay in the order of the log, none goes before its time, and none
//! stays for as long as a wrong clock was ahead.

use super::agent::{MACHINE, consistent, write};
use super::world::{World, options};
use crate::store::{ApplyOutcome, JournalState, StoreOptions};
use redoubt_engine::storage::Storage;
use redoubt_log::WallTime;
use std::path::Path;
use std::time::Duration;

const KEEP: Duration = Duration::from_nanos(100);
const YEAR: u64 = 1 << 40;
const SEGMENT_BYTES: u64 = 15 * 4096;

/// A machine with a point at each of these times of its clock.
fn world_with_points_at(times: &[u64]) -> World {
    let mut world = World::with(1, StoreOptions { segment_bytes: SEGMENT_BYTES, ..options() });
    for (value, now) in (1..).zip(times) {
        world.now = *now;
        let marker = world.marker();
        world.send_records(vec![write(0, 0, value), consistent(0), consistent(1), marker]);
        world.deliver();
        let applied = world.machine().apply_next(WallTime(world.now));
        assert!(matches!(applied, Ok(ApplyOutcome::Applied { point: Some(_), .. })));
    }
    world
}

/// The times of the points that are kept when the target's clock is at `now`.
fn kept(world: &World, now: u64) -> Vec<u64> {
    world.machine().drop_expired(WallTime(now), KEEP).unwrap();
    world.machine().points().iter().map(|point| point.taken_at.0).collect()
}

#[test]
fn a_clock_that_was_ahead_keeps_no_point_for_longer_than_the_others() {
    let times = [1000, 1050, YEAR, YEAR + 10, 1080, 1140, 1180, 1200];
    let mut world = world_with_points_at(&times);
    // Those of the jump are as old as the next point at the right time.
    assert_eq!(kept(&world, 1090), times, "nothing is old yet");
    assert_eq!(kept(&world, 1200), [1140, 1180, 1200]);
    world.finish().unwrap();
}

#[test]
fn while_a_clock_is_ahead_no_point_goes_before_its_time() {
    let times = [1000, 1050, YEAR, YEAR + 10];
    let mut world = world_with_points_at(&times);
    assert_eq!(kept(&world, 1090), times);
    assert_eq!(kept(&world, 1120), times[1..]);
    world.finish().unwrap();
}

#[test]
fn a_clock_that_goes_back_takes_no_point_away() {
    let times = [YEAR, YEAR + 50, 1000, 1050, YEAR + 80, YEAR + 120];
    let mut world = world_with_points_at(&times);
    assert_eq!(kept(&world, YEAR + 90), times);
    assert_eq!(kept(&world, 1000), times, "the target's went back, too");
    assert_eq!(kept(&world, YEAR + 125), times[1..]);
    world.finish().unwrap();
}

#[test]
fn segments_go_where_there_is_no_room_also_when_the_clock_has_gone_back() {
    let times: Vec<u64> = (0..40).map(|point| 1000 + point * 10).collect();
    let mut world = world_with_points_at(&times);
    let keep = Duration::from_secs(3600);
    assert_eq!(world.machine().free_segments(WallTime(500), keep).unwrap(), 0);
    // Manifests fit in, one more segment does not.
    let taken = (1 << 60) - world.disk.free_space().unwrap();
    world.disk.set_capacity(taken + SEGMENT_BYTES - 4096);
    while world.machine().status().journal != JournalState::Full {
        world.send_records(vec![write(0, 0, 99)]);
        world.deliver();
    }
    let journal = Path::new("machines").join(MACHINE.to_string()).join("journal");
    world.machine().free_segments(WallTime(500), keep).unwrap();
    assert_eq!(world.disk.list(&journal).unwrap().len(), 1, "only what is not applied stays");
    world.disk.set_capacity(1 << 60);
    world.finish().unwrap();
}
