//! Full disks, failing disks and flipped bits: each is named, stops what it must, and loses nothing
//! acknowledged.

use super::agent::{BLOCK, MACHINE, block_of, consistent, write};
use super::world::{World, disk_specs, options};
use crate::store::{
    Admitted, ApplyOutcome, JournalState, PointChoice, Store, StoreError, StoreOptions,
};
use redoubt_engine::lying::{Fault, Kind};
use redoubt_engine::storage::{Open, ReadRequest, Storage, WriteRequest};
use redoubt_log::{DiskIndex, DiskSet, Sequence, WallTime};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// A machine with two applied points: block 0 of disk 0 was 1 at the first, and is 2 at the second.
fn world_with_points() -> World {
    let mut world = World::new(1);
    apply_points(&mut world);
    world
}

fn apply_points(world: &mut World) {
    for value in [1, 2] {
        let marker = world.marker();
        world.send_records(vec![write(0, 0, value), consistent(0), consistent(1), marker]);
        world.deliver();
        assert!(matches!(apply(world), Ok(ApplyOutcome::Applied { point: Some(_), .. })));
    }
}

fn apply(world: &World) -> Result<ApplyOutcome, StoreError> {
    world.machine().apply_next(WallTime(world.now))
}

fn send_point(world: &mut World, value: u32) {
    let marker = world.marker();
    world.send_records(vec![write(0, 0, value), marker]);
}

/// Block 0 of disk 0 at the oldest point.
fn oldest_block(world: &World) -> Result<Vec<u8>, StoreError> {
    let machine = world.machine();
    let view = machine.view(DiskIndex(0), PointChoice::Id(machine.points()[0].id))?;
    let mut bytes = vec![0; BLOCK];
    view.read(0, &mut bytes).map(|()| bytes)
}

/// Flips a bit of a file, durably.
pub(super) fn flip(world: &World, path: &Path, position: u64) {
    let file = world.disk.open(path, Open::ReadWrite).unwrap();
    let mut byte = [0];
    file.read(&mut [ReadRequest { offset: position, buffer: &mut byte }]).unwrap();
    byte[0] ^= 0x10;
    file.write(&[WriteRequest { offset: position, data: &byte }]).unwrap();
    file.sync().unwrap();
}

fn files(world: &World, directory: &str) -> Vec<PathBuf> {
    let directory = PathBuf::from(format!("machines/{MACHINE}/{directory}"));
    let names = world.disk.list(&directory).unwrap();
    names.iter().map(|name| directory.join(name)).collect()
}

#[test]
fn a_full_journal_stops_acknowledgements_and_goes_on_when_there_is_room() {
    let mut world = world_with_points();
    world.disk.inject(Fault::enospc("journal").lasting());
    for value in 3..20 {
        send_point(&mut world, value);
    }
    world.append(world.agent.log.len() - world.appended);
    assert!(world.appended < world.agent.log.len());
    assert_eq!(world.machine().status().journal, JournalState::Full);
    let before = world.acknowledged;
    world.commit();
    assert!(world.acknowledged >= before && world.acknowledged < world.agent.last());
    world.disk.clear_faults();
    world.deliver();
    assert_eq!(world.machine().status().journal, JournalState::Ready);
    assert_eq!(world.acknowledged, world.agent.last());
    world.finish().unwrap();
}

/// Limits the disk to what is taken now and so much more.
fn leave_room(world: &World, bytes: u64) {
    let taken = (1 << 60) - world.disk.free_space().unwrap();
    world.disk.set_capacity(taken + bytes);
}

#[test]
fn a_disk_too_full_for_a_second_segment_goes_on_with_the_room_of_the_first() {
    // Intervals are applied whole, however long.
    let segment_bytes = 15 * 4096;
    let (pending_limit, step_bytes) = (1 << 20, 1 << 20);
    let options = StoreOptions { segment_bytes, pending_limit, step_bytes, ..options() };
    for (with_points, marker_every) in [(false, 1), (false, 100), (true, 1), (true, 10)] {
        let mut world = World::with(1, options);
        if with_points {
            apply_points(&mut world);
            world.machine().drop_expired(WallTime(world.now), Duration::ZERO).unwrap();
        } else {
            world.send_records(vec![write(0, 0, 1)]);
            world.deliver();
        }
        // Manifests and the old content of a few blocks fit in, one more segment does not.
        leave_room(&world, segment_bytes - 4096);
        for value in 3..60 {
            let marker = world.marker();
            let mut records = vec![write(0, 0, value)];
            records.extend((value % marker_every == 0).then_some(marker));
            world.send_records(records);
        }
        let mut was_full = 0;
        for _ in 0..20 {
            world.deliver();
            was_full += usize::from(world.machine().status().journal == JournalState::Full);
            let now = WallTime(world.now);
            loop {
                match apply(&world) {
                    Ok(ApplyOutcome::Applied { .. }) => {}
                    Ok(ApplyOutcome::Idle) => break,
                    Err(error) if error.is_full() => break,
                    Err(error) => panic!("{error}"),
                }
                world.machine().drop_expired(now, Duration::ZERO).unwrap();
            }
            // However long segments are to be kept: they go first where there is no room.
            world.machine().free_segments(now, Duration::from_secs(3600)).unwrap();
        }
        assert_eq!(world.acknowledged, world.agent.last(), "it stands still");
        assert!(was_full > 3, "there was room: full {was_full} times");
        assert_eq!(world.machine().status().journal, JournalState::Ready);
        world.disk.set_capacity(1 << 60);
        world.finish().unwrap();
    }
}

#[test]
fn a_full_disk_under_apply_keeps_old_points_and_acknowledgements() {
    for place in ["retention", "disks", "manifest"] {
        for passing in 0..6 {
            let mut world = world_with_points();
            send_point(&mut world, 3);
            world.deliver();
            world.disk.inject(Fault::enospc(place).after(passing).lasting());
            let applied = apply(&world);
            assert!(!applied.is_err_and(|error| !error.is_full()), "{place}");
            assert_eq!(oldest_block(&world).unwrap(), block_of(1));
            send_point(&mut world, 4);
            world.deliver();
            assert_eq!(world.acknowledged, world.agent.last());
            world.disk.clear_faults();
            assert!(matches!(apply(&world), Ok(ApplyOutcome::Applied { .. })), "{place}");
            world.finish().unwrap();
        }
    }
}

#[test]
fn a_failed_journal_sync_acknowledges_nothing_until_the_store_is_opened_again() {
    let mut world = world_with_points();
    send_point(&mut world, 3);
    world.append(1);
    world.disk.inject(Fault::eio("journal").on(Kind::Sync));
    assert!(matches!(world.machine().commit(), Err(StoreError::Storage(_))));
    assert!(matches!(world.machine().commit(), Err(StoreError::JournalFailed { .. })));
    assert!(matches!(world.machine().status().journal, JournalState::Failed(_)));
    world.machine = None;
    world.disk.restart();
    world.restart_quietly().unwrap();
    world.finish().unwrap();
}

#[test]
fn a_failed_apply_is_taken_up_again() {
    for place in ["retention", "disks", "manifest", "journal"] {
        for kind in [Kind::Read, Kind::Write, Kind::Sync, Kind::Name, Kind::Look] {
            let mut world = world_with_points();
            send_point(&mut world, 3);
            world.deliver();
            world.disk.inject(Fault::eio(place).on(kind));
            drop(apply(&world));
            world.disk.clear_faults();
            assert_eq!(oldest_block(&world).unwrap(), block_of(1), "{place} {kind:?}");
            apply(&world).unwrap();
            world.finish().unwrap_or_else(|what| panic!("{place} {kind:?}: {what}"));
        }
    }
}

#[test]
fn a_flipped_bit_in_a_retention_file_is_named_and_never_read_as_content() {
    let world = world_with_points();
    let [path] = &files(&world, "retention")[..] else { panic!("one retention file") };
    let size = world.disk.open(path, Open::ReadOnly).unwrap().size();
    let mut named = 0;
    for position in (0..84).chain((4096..size).step_by(61)) {
        flip(&world, path, position);
        let checked = world.machine().check_retention();
        if let Err(error) = &checked {
            let names = matches!(error, StoreError::Damaged { path: named, .. } if named == path)
                || matches!(error, StoreError::NewerVersion { .. });
            assert!(names, "byte {position}: {error}");
            named += 1;
        }
        assert!(checked.is_err() || position >= 4096, "byte {position} of the header");
        if let Ok(bytes) = oldest_block(&world) {
            assert_eq!(bytes, block_of(1), "byte {position}");
        }
        flip(&world, path, position);
    }
    assert!(named > 84 + 60, "a page of the index alone has 67 such places: {named}");
}

#[test]
fn a_flipped_bit_in_the_journal_is_named() {
    // Both while the store is open and when it opens: in a segment that is not the last one.
    for reopen in [false, true] {
        let mut world = world_with_points();
        for value in 3..20 {
            send_point(&mut world, value);
        }
        world.deliver();
        let segments = files(&world, "journal");
        let needed = &segments[1];
        for position in (4096..4096 + 400).step_by(7) {
            flip(&world, needed, position);
            let error = if reopen {
                world.machine = None;
                world.restart_quietly().err().unwrap_or_default()
            } else {
                let failed =
                    std::iter::repeat_with(|| apply(&world)).take(20).find_map(Result::err);
                failed.map_or(String::new(), |error| error.to_string())
            };
            // Bytes of an entry's padding are zeros that nothing depends on.
            let is_padding = error.is_empty();
            assert!(is_padding || error.contains("journal"), "byte {position}: {error}");
            assert!(!is_padding || position > 4096 + 250, "byte {position} went unnoticed");
            flip(&world, needed, position);
            if !reopen {
                break;
            }
        }
    }
}

#[test]
fn a_lost_segment_is_named() {
    let mut world = world_with_points();
    let path = files(&world, "journal").pop().unwrap();
    world.machine = None;
    world.disk.remove(&path).unwrap();
    world.disk.sync_directory(path.parent().unwrap()).unwrap();
    let error = world.restart_quietly().unwrap_err();
    assert!(error.contains("journal"), "{error}");
}

#[test]
fn a_lost_manifest_takes_no_other_file_with_it() {
    let mut world = world_with_points();
    let before = files(&world, "retention");
    world.machine = None;
    world.disk.remove(&PathBuf::from(format!("machines/{MACHINE}/manifest"))).unwrap();
    let storage: Arc<dyn Storage> = Arc::new(world.disk.clone());
    let store = Store::open(storage, options(), WallTime(1)).unwrap();
    let [(_, error)] = store.unopened() else { panic!("it is not opened") };
    assert!(error.to_string().contains("the manifest is missing"), "{error}");
    let made = store.create_machine(MACHINE, "m", WallTime(1));
    assert!(matches!(made, Err(StoreError::MachineExists(_))));
    assert!(before.len() == 1 && files(&world, "retention") == before);
}

#[test]
fn foreign_and_late_frames_are_refused() {
    let mut world = world_with_points();
    let before = world.machine().status().durable;
    send_point(&mut world, 3);
    let hello = super::world::admit(&world.machine(), None).unwrap();
    let late = world.agent.log.last().unwrap().bytes.clone();
    let mut entry = super::agent::entry_of(&late);
    let appended = world.machine().append(&mut [&mut entry]);
    assert!(matches!(appended.stopped, Some(StoreError::Refused { .. })), "{appended:?}");
    world.agent.truncate(hello.resume);
    world.agent.incarnation = hello.incarnation;
    world.agent.log.pop();
    send_point(&mut world, 4);
    let mut entry = super::agent::entry_of(&world.agent.log.last().unwrap().bytes);
    let appended = world.machine().append(&mut [&mut entry]);
    assert!(matches!(appended.stopped, Some(StoreError::Refused { .. })), "a frame is missing");
    assert_eq!(world.machine().commit().unwrap(), before);
    assert!(before > Sequence(0));
}

#[test]
fn a_new_generation_goes_on_but_offers_no_point_before_it_is_consistent() {
    let mut world = world_with_points();
    let newest = world.machine().admitted().unwrap();
    let admitted = Admitted { incarnation: newest.incarnation.next(), run: [9; 16] };
    let hello = world.machine().hello(admitted, true, &disk_specs()).unwrap();
    assert_ne!(hello.generation, world.agent.generation);
    assert_eq!(hello.resume, world.agent.last());
    assert!(hello.disks.iter().all(|disk| !disk.consistent && disk.name.starts_with("disk")));
    assert!(hello.disks[0].has_data && !hello.disks[1].has_data);
    assert!(world.machine().hello(newest, false, &[]).is_err(), "the older run is fenced");
    (world.agent.generation, world.agent.incarnation) = (hello.generation, hello.incarnation);
    world.agent.consistent = DiskSet::default();
    send_point(&mut world, 3);
    world.deliver();
    assert!(matches!(apply(&world), Ok(ApplyOutcome::Applied { point: None, .. })));
    assert!(world.machine().status().disks[0].ahead_of_point);
    assert_eq!(oldest_block(&world).unwrap(), block_of(1));
    let marker = world.marker();
    world.send_records(vec![consistent(0), marker]);
    world.deliver();
    let Ok(ApplyOutcome::Applied { point: Some(point), .. }) = apply(&world) else {
        panic!("disk 0 is consistent again")
    };
    assert!(!point.complete && point.disks.contains(DiskIndex(0)));
    assert!(!world.machine().status().disks[0].ahead_of_point);
    world.finish().unwrap();
}

#[test]
fn a_replica_file_that_is_gone_or_cut_short_stops_the_apply_and_is_not_filled_with_zeros() {
    for short in [false, true] {
        let mut world = world_with_points();
        let path = PathBuf::from(format!("machines/{MACHINE}/disks/1"));
        world.disk.remove(&path).unwrap();
        if short {
            let file = world.disk.open(&path, Open::CreateSparse(BLOCK as u64)).unwrap();
            file.sync().unwrap();
        }
        world.disk.sync_directory(&path.with_file_name("")).unwrap();
        world.restart_quietly().unwrap();
        let missing = world.machine().missing_replicas();
        assert_eq!(missing.len(), 1, "{missing:?}");
        assert_eq!(missing[0].0, DiskIndex(1));
        // The interval does not even write to it.
        send_point(&mut world, 3);
        world.deliver();
        let applied = world.machine().status().applied;
        for _ in 0..2 {
            let Err(error @ StoreError::ReplicaMissing { .. }) = apply(&world) else {
                panic!("it was applied");
            };
            let what = if short { "has 512 bytes of 3072" } else { "is not there" };
            assert!(error.to_string().contains(what), "{error}");
            assert!(error.to_string().contains("--delete-replica"), "{error}");
        }
        assert_eq!(world.machine().status().applied, applied);
        let left = world.disk.open(&path, Open::ReadOnly).map(|file| file.size());
        assert_eq!(left.ok(), short.then_some(BLOCK as u64));
        // What the remedy says lets the other disk go on.
        world.machine().end_protection(DiskSet(2)).unwrap();
        world.machine().delete_replica(DiskIndex(1)).unwrap();
        assert!(matches!(apply(&world), Ok(ApplyOutcome::Applied { point: Some(_), .. })));
    }
}
