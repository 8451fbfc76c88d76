//! Disks whose protection has ended, whoever ended it: what is kept of them stays, their numbers
//! and names are nobody else's, and a pause outlives everything.

use super::agent::{BLOCK, MACHINE, consistent, marker, write};
use super::world::{BLOCKS, World, disk_specs, judge};
use crate::store::{
    Admitted, ApplyOutcome, DiskSpec, HelloAnswer, Point, PointChoice, Protection, StoreMachine,
};
use redoubt_engine::storage::Storage;
use redoubt_log::{DiskIndex, DiskSet, GapReason, Incarnation, Record, WallTime};
use redoubt_protocol::PauseWord;
use std::path::PathBuf;
use std::time::Duration;

const ENDED: DiskIndex = DiskIndex(1);
const GOES_ON: DiskIndex = DiskIndex(0);

fn only(disk: DiskIndex) -> DiskSet {
    DiskSet(1 << disk.0)
}

fn send_point(world: &mut World, block: usize, value: u32, disks: DiskSet) {
    let at = WallTime(world.now + 1);
    let mut records = vec![write(0, block, value), consistent(0)];
    if disks.contains(ENDED) {
        records.extend([write(1, block, value), consistent(1)]);
    }
    records.push(marker(disks, at));
    world.send_records(records);
    world.deliver();
}

fn apply_all(world: &World) {
    while world.machine().apply_next(WallTime(world.now)).unwrap() != ApplyOutcome::Idle {}
}

fn end_in_the_log(world: &mut World) {
    world.send_records(vec![(Record::DiskRemoved { disk: ENDED }, Vec::new())]);
    world.deliver();
}

fn protection(machine: &StoreMachine, disk: DiskIndex) -> Protection {
    machine.status().disks.iter().find(|known| known.index == disk).unwrap().protection
}

/// Every kept point reads what the log says.
fn check_points(world: &World) -> Vec<Point> {
    let machine = world.machine();
    let points = machine.points();
    for point in &points {
        for disk in point.disks.iter() {
            let view = machine.view(disk, PointChoice::Id(point.id)).unwrap();
            let truth = world.agent.truth(disk, BLOCKS, point.sequence);
            (0..BLOCKS).for_each(|block| judge(&view, &truth, block).unwrap());
        }
    }
    machine.check_retention().unwrap();
    points
}

#[test]
fn the_log_ends_a_disk_as_soon_as_that_is_durable_and_at_every_start_after() {
    let mut world = World::new(1);
    send_point(&mut world, 0, 1, DiskSet(3));
    world.send_records(vec![(Record::DiskRemoved { disk: ENDED }, Vec::new())]);
    world.append(1);
    assert_eq!(world.machine().let_go(), DiskSet::default(), "it may be lost yet");
    world.commit();
    assert_eq!(world.machine().let_go(), only(ENDED));
    assert_eq!(protection(&world.machine(), ENDED), Protection::EndedByAgent);
    world.disk.crash();
    world.disk.restart();
    world.restart_quietly().unwrap();
    assert_eq!(protection(&world.machine(), ENDED), Protection::EndedByAgent);
    send_point(&mut world, 1, 2, only(GOES_ON));
    apply_all(&world);
    let points = check_points(&world);
    assert_eq!(points[0].disks, DiskSet(3));
    // All that is still protected is in it.
    assert!(points[1].complete && points[1].disks == only(GOES_ON), "{points:?}");
    world.restart_quietly().unwrap();
    assert_eq!(protection(&world.machine(), ENDED), Protection::EndedByAgent);
    assert_eq!(protection(&world.machine(), GOES_ON), Protection::Active);
}

/// What keeps a disk out of the points of its machine.
fn check_that_nothing_melts_away(out: Record) {
    let mut world = World::new(1);
    for value in 1..6 {
        send_point(&mut world, 0, value, DiskSet(3));
    }
    world.send_records(vec![(out, Vec::new())]);
    world.deliver();
    apply_all(&world);
    for value in 10..40 {
        send_point(&mut world, usize::try_from(value).unwrap() % 3, value, only(GOES_ON));
        apply_all(&world);
        let keep = Duration::from_nanos(6);
        world.machine().drop_expired(WallTime(world.now), keep).unwrap();
        if value % 7 == 0 {
            world.restart_quietly().unwrap();
        }
    }
    let points = check_points(&world);
    let out: Vec<&Point> = points.iter().filter(|point| point.disks.contains(ENDED)).collect();
    // Of the disk that goes on they are long over; and so is what it overwrote since.
    assert_eq!(out.len(), 5, "{points:?}");
    assert!(out.iter().all(|point| point.disks == only(ENDED) && !point.complete));
    let live = points.iter().filter(|point| point.disks.contains(GOES_ON)).count();
    assert!(live < 10, "{points:?}");
    let directory = PathBuf::from(format!("machines/{MACHINE}/retention"));
    let retention = world.disk.list(&directory).unwrap().len();
    assert!(retention < 20, "{retention} files for {} points", points.len());
}

#[test]
fn what_was_kept_of_an_ended_disk_does_not_melt_away() {
    check_that_nothing_melts_away(Record::DiskRemoved { disk: ENDED });
}

#[test]
fn what_was_kept_of_a_disk_that_is_read_again_does_not_melt_away() {
    let reason = GapReason::PinsGone;
    check_that_nothing_melts_away(Record::Gap { disk: ENDED, reason });
}

#[test]
fn the_points_from_before_a_gap_go_once_the_disk_is_in_points_again() {
    let mut world = World::new(1);
    (1..6).for_each(|value| send_point(&mut world, 0, value, DiskSet(3)));
    let reason = GapReason::PinsGone;
    world.send_records(vec![(Record::Gap { disk: ENDED, reason }, Vec::new())]);
    (10..30).for_each(|value| send_point(&mut world, 1, value, only(GOES_ON)));
    send_point(&mut world, 2, 30, DiskSet(3));
    apply_all(&world);
    let keep = Duration::from_nanos(6);
    assert!(world.machine().drop_expired(WallTime(world.now), keep).unwrap() > 15);
    let points = check_points(&world);
    let again = points.iter().filter(|point| point.disks.contains(ENDED)).count();
    assert_eq!((again, points.last().unwrap().complete), (1, true), "{points:?}");
}

#[test]
fn what_ends_here_is_told_at_the_next_hello_and_size_does_not_matter_any_more() {
    let mut world = World::new(1);
    send_point(&mut world, 0, 1, DiskSet(3));
    world.machine().end_protection(only(ENDED)).unwrap();
    world.restart_quietly().unwrap();
    let mut specs = disk_specs();
    let answer = hello(&world.machine(), 2, &specs);
    let ended = answer.disks.iter().filter(|disk| !disk.protection.is_active());
    assert_eq!(ended.map(|disk| disk.index).collect::<Vec<_>>(), [ENDED]);
    specs[1].size *= 2;
    hello(&world.machine(), 3, &specs);
    // A disk that is protected must come as it was.
    specs[0].size *= 2;
    let refused = world.machine().hello(admitted(4), false, &specs).unwrap_err().to_string();
    assert!(refused.contains("redoubt unprotect --disk disk0"), "{refused}");
}

#[test]
fn a_new_disk_of_an_agent_that_has_lost_its_state_is_not_let_go_for_one_that_ended() {
    let mut world = World::new(1);
    send_point(&mut world, 0, 1, DiskSet(3));
    world.machine().end_protection(only(ENDED)).unwrap();
    let mut specs = disk_specs();
    world.machine().check_first(&specs).unwrap();
    specs[1].name = "other".to_owned();
    let refused = world.machine().check_first(&specs).unwrap_err().to_string();
    assert!(refused.contains("disk other") && refused.contains("state.json"), "{refused}");
    specs = disk_specs();
    specs[1].size *= 2;
    world.machine().check_first(&specs).unwrap_err();
    assert!(hello(&world.machine(), 2, &specs).disks.len() == 2);
}

#[test]
fn a_disk_that_is_protected_again_has_a_number_of_its_own_and_the_old_one_is_kept_beside() {
    for is_told in [false, true] {
        let mut world = World::new(1);
        send_point(&mut world, 0, 1, DiskSet(3));
        apply_all(&world);
        if is_told {
            end_in_the_log(&mut world);
        }
        let again = DiskSpec {
            index: DiskIndex(2),
            name: "disk1".to_owned(),
            size: (2 * BLOCKS * BLOCK) as u64,
            logical_block_size: 512,
        };
        let specs = [disk_specs()[0].clone(), again];
        hello(&world.machine(), 2, &specs);
        let named = |machine: &StoreMachine| {
            let disks = machine.status().disks;
            disks.iter().map(|disk| (disk.name.clone(), disk.protection)).collect::<Vec<_>>()
        };
        let expected = [
            ("disk0".to_owned(), Protection::Active),
            ("disk1.ended-1".to_owned(), Protection::EndedByAgent),
            ("disk1".to_owned(), Protection::Active),
        ];
        assert_eq!(named(&world.machine()), expected);
        let view = world.machine().view(ENDED, PointChoice::Latest).unwrap();
        let truth = world.agent.truth(ENDED, BLOCKS, view.point().sequence);
        (0..BLOCKS).for_each(|block| judge(&view, &truth, block).unwrap());
        assert!(world.machine().view(DiskIndex(2), PointChoice::Latest).is_err());
        drop(view);
        // The agent says in the log what the target has concluded.
        world.agent.incarnation = Incarnation(2);
        if !is_told {
            end_in_the_log(&mut world);
        }
        let at = WallTime(world.now + 1);
        let records = vec![write(2, 7, 9), consistent(2), marker(DiskSet(0b101), at)];
        world.send_records(records);
        world.deliver();
        apply_all(&world);
        assert_eq!(named(&world.machine()), expected);
        let last = world.machine().points().pop().unwrap();
        assert!(last.complete && last.disks == DiskSet(0b101), "{last:?}");
    }
}

#[test]
fn a_pause_outlives_cuts_and_new_runs_and_the_later_word_counts() {
    let mut world = World::new(1);
    let pause = PauseWord::default().say(true, WallTime(5));
    assert_eq!(world.machine().pause(pause).unwrap(), pause);
    world.disk.crash();
    world.disk.restart();
    world.restart_quietly().unwrap();
    assert_eq!(world.machine().status().pause, pause);
    assert_eq!(hello(&world.machine(), 2, &disk_specs()).pause, pause);
    let resume = pause.say(false, WallTime(1));
    assert_eq!(world.machine().pause(resume).unwrap(), resume);
    assert_eq!(world.machine().pause(pause).unwrap(), resume);
}

fn admitted(incarnation: u64) -> Admitted {
    let run = u128::from(incarnation).to_le_bytes();
    Admitted { incarnation: Incarnation(incarnation), run }
}

fn hello(machine: &StoreMachine, incarnation: u64, disks: &[DiskSpec]) -> HelloAnswer {
    machine.hello(admitted(incarnation), false, disks).unwrap()
}
