//! A half-done apply is finished without a target, after a cut at any of its steps, whatever stands
//! in the journal behind it; and what prevents it is told, and changes nothing.

use super::agent::{block_of, consistent, write};
use super::inspect::{expect_clean, life, look};
use super::world::{BLOCKS, DISKS, World};
use crate::store::inspect::finish;
use redoubt_control::inspection::{FinishedApply, SegmentTail};
use redoubt_engine::storage::{Open, ReadRequest, Storage, WriteRequest};
use redoubt_log::{DiskIndex, Sequence, WallTime};
use std::path::Path;
use std::sync::Arc;

fn finish_all(world: &World) -> Vec<FinishedApply> {
    let storage: Arc<dyn Storage> = Arc::new(world.disk.clone());
    finish(&storage, Path::new("/data"), WallTime(world.now)).unwrap()
}

/// A machine with points and a cut apply; more frames wait behind it.
fn half_applied(seed: u64) -> World {
    half_applied_after(seed, 0).0
}

/// The same; also the operation on which the cut fell, which is not before `first`.
fn half_applied_after(seed: u64, first: u64) -> (World, u64) {
    for operations in first.. {
        let mut world = World::new(seed);
        life(&mut world);
        let marker = world.marker();
        world.send_records(vec![write(0, 1, 70), write(1, 2, 71), marker]);
        for value in 80..90 {
            let marker = world.marker();
            world.send_records(vec![write(0, 3, value), marker]);
        }
        world.deliver();
        world.disk.crash_after(operations);
        world.machine().apply_next(WallTime(world.now)).ok();
        world.disk.restart();
        let seen = look(&world.disk, false);
        let log = seen.machines[0].log.as_ref().unwrap();
        if log.applying.is_some() {
            assert!(seen.machines[0].disks.iter().all(|disk| disk.mid_apply), "both are written");
            return (world, operations);
        }
    }
    unreachable!("some cut falls into the apply")
}

#[test]
fn a_cut_apply_is_finished_and_the_replica_is_at_the_point() {
    let mut finished_applies = 0;
    for seed in 0..4 {
        for operations in 0.. {
            let mut world = World::new(seed);
            world.disk.crash_after(operations);
            life(&mut world);
            if !world.disk.is_crashed() {
                break;
            }
            world.disk.restart();
            let half_done = applying(&world);
            let finished = finish_all(&world);
            assert_eq!(finished.len(), usize::from(half_done.is_some()));
            for apply in finished {
                finished_applies += 1;
                assert_eq!(Some(apply.to), half_done.map(|to| to.0));
                assert_eq!(apply.failed, None);
                for disk in 0..DISKS {
                    let path = format!("/data/machines/{}/disks/{disk}", super::agent::MACHINE);
                    let told = &apply.disks[usize::from(disk)];
                    assert_eq!(told.replica_path, Path::new(&path));
                    assert_eq!((told.last_point, told.ahead_of_point), (apply.point, false));
                    world.check_replica(DiskIndex(disk), Sequence(apply.to)).unwrap();
                }
            }
            assert_eq!(applying(&world), None);
            expect_clean(&world.disk, false).unwrap();
            // A second time there is nothing to do, and a cut now takes nothing back.
            assert!(finish_all(&world).is_empty());
            world.restart().unwrap();
            let verdict = world.finish();
            verdict.unwrap_or_else(|what| panic!("seed {seed}, cut at {operations}: {what}"));
        }
    }
    assert!(finished_applies > 30, "cuts fall into applies: {finished_applies}");
}

fn applying(world: &World) -> Option<Sequence> {
    let seen = look(&world.disk, false);
    let machine = seen.machines.first()?;
    machine.log.as_ref()?.applying.map(Sequence)
}

#[test]
fn a_cut_in_the_middle_of_finishing_is_finished_again() {
    for seed in 0..4 {
        let mut cut = 0;
        for operations in 0.. {
            let mut world;
            (world, cut) = half_applied_after(seed, cut);
            let to = applying(&world).unwrap();
            world.disk.crash_after(operations);
            let storage: Arc<dyn Storage> = Arc::new(world.disk.clone());
            let first = finish(&storage, Path::new(""), WallTime(1));
            let was_cut = world.disk.is_crashed();
            world.disk.restart();
            if was_cut {
                expect_clean(&world.disk, false).unwrap();
                assert!(finish_all(&world).len() <= 1);
            } else {
                assert_eq!(first.unwrap().len(), 1);
            }
            for disk in 0..DISKS {
                world.check_replica(DiskIndex(disk), to).unwrap();
            }
            world.restart().unwrap();
            world.finish().unwrap();
            if !was_cut {
                break;
            }
        }
    }
}

#[test]
fn damage_behind_the_apply_does_not_prevent_it() {
    let world = half_applied(1);
    let to = applying(&world).unwrap();
    // The last segment loses its header and an entry: a target would not open the machine.
    let seen = look(&world.disk, false);
    let last = seen.machines[0].journal.segments.last().unwrap();
    assert!(last.first.unwrap() > to.0, "the apply ends in an earlier segment");
    let file = world.disk.open(&last.path, Open::ReadWrite).unwrap();
    file.write(&[WriteRequest { offset: 0, data: &[0xff; 8192] }]).unwrap();
    file.sync().unwrap();
    let [apply] = &finish_all(&world)[..] else { panic!("one half-done apply") };
    assert_eq!((apply.to, apply.failed.as_ref()), (to.0, None));
    for disk in 0..DISKS {
        world.check_replica(DiskIndex(disk), to).unwrap();
    }
    let seen = look(&world.disk, false);
    assert!(!seen.damage.is_empty() && seen.damage.iter().all(|found| found.path == last.path));
    assert!(seen.machines[0].points.iter().all(|point| point.harmed_disks.is_empty()));
    assert!(seen.machines[0].disks.iter().all(|disk| !disk.mid_apply));
}

#[test]
fn damage_in_the_way_is_told_and_nothing_is_written() {
    let world = half_applied(2);
    let to = applying(&world).unwrap();
    let seen = look(&world.disk, false);
    let machine = &seen.machines[0];
    let holds = |segment: &&redoubt_control::inspection::SegmentInspection| {
        segment.first.is_some_and(|first| first <= to.0) && segment.last >= Some(to.0)
    };
    let segment = machine.journal.segments.iter().find(holds).unwrap();
    let file = world.disk.open(&segment.path, Open::ReadWrite).unwrap();
    for offset in (4096..segment.end_byte).step_by(4096) {
        file.write(&[WriteRequest { offset: offset + 100, data: &[0xee; 8] }]).unwrap();
    }
    file.sync().unwrap();
    let replicas = || -> Vec<Vec<u8>> {
        let read = |disk: &redoubt_control::inspection::DiskInspection| {
            let file = world.disk.open(&disk.replica_path, Open::ReadOnly).unwrap();
            let mut bytes = vec![0; BLOCKS * block_of(0).len()];
            file.read(&mut [ReadRequest { offset: 0, buffer: &mut bytes }]).unwrap();
            bytes
        };
        machine.disks.iter().map(read).collect()
    };
    let before = replicas();
    let [apply] = &finish_all(&world)[..] else { panic!("one half-done apply") };
    let failed = apply.failed.as_ref().unwrap();
    assert!(failed.contains("journal/") && failed.contains("damaged at byte"), "{failed}");
    assert!(replicas() == before);
    assert_eq!(applying(&world), Some(to));
    let seen = look(&world.disk, false);
    let means = &seen.damage[0].means;
    assert!(means.contains("cannot be finished"), "{means}");
    assert!(seen.machines[0].disks.iter().all(|disk| disk.mid_apply));
    assert!(seen.machines[0].points.iter().all(|point| point.harmed_disks.is_empty()));
    assert_eq!(seen.machines[0].journal.segments.last().unwrap().tail, SegmentTail::Whole);
}

#[test]
fn a_finished_step_says_that_it_is_ahead_of_the_point() {
    // Without a marker the journal outgrows its limit, so that it is applied in steps.
    for operations in 0.. {
        let mut world = World::new(5);
        life(&mut world);
        for value in 0..12 {
            world.send_records(vec![write(0, 4, 200 + value), consistent(1)]);
        }
        world.deliver();
        world.disk.crash_after(operations);
        world.machine().apply_next(WallTime(world.now)).ok();
        world.disk.restart();
        if applying(&world).is_none() {
            continue;
        }
        let [apply] = &finish_all(&world)[..] else { panic!("one half-done apply") };
        assert_eq!(apply.point, None);
        assert!(apply.disks[0].ahead_of_point && !apply.disks[1].ahead_of_point);
        assert!(apply.disks.iter().all(|disk| disk.last_point.is_some()));
        world.check_replica(DiskIndex(0), Sequence(apply.to)).unwrap();
        let seen = look(&world.disk, false);
        assert!(seen.machines[0].disks[0].ahead_of_point);
        return;
    }
}

#[test]
fn frames_that_came_after_the_cut_do_not_change_what_is_finished() {
    // As `half_applied` leaves them; they are told as waiting.
    let world = half_applied(3);
    let seen = look(&world.disk, false);
    let waiting = seen.machines[0].journal.waiting_points;
    assert!(waiting >= 11, "{waiting}");
    assert_eq!(finish_all(&world).len(), 1);
    let seen = look(&world.disk, false);
    assert_eq!(seen.machines[0].journal.waiting_points, waiting - 1);
}
