//! Points as they are listed: those that are durable and not applied, and those that something was
//! found out of later; after a cut, too.

use super::agent::{consistent, marker, write};
use super::world::{World, all_disks};
use crate::store::{PointChoice, StoreError};
use redoubt_log::{DiskIndex, DiskSet, PointId, Record, WallTime};

const DISK: DiskIndex = DiskIndex(0);

/// Sends a point of both disks; durable, and not applied.
fn deliver_point(world: &mut World) -> PointId {
    let marker = marker(all_disks(), WallTime(world.now));
    world.send_records(vec![write(0, 0, 1), consistent(0), consistent(1), marker]);
    world.deliver();
    world.agent.log.last().unwrap().point.unwrap()
}

/// What is listed: each point, and whether it waits.
fn listed(world: &World) -> Vec<(PointId, bool)> {
    let points = world.machine().listed_points();
    points.into_iter().map(|listed| (listed.point.id, listed.waits)).collect()
}

#[test]
fn a_point_waits_from_its_acknowledgement_until_it_is_applied() {
    let mut world = World::new(1);
    let marker = world.marker();
    world.send_records(vec![write(0, 0, 1), marker]);
    world.deliver();
    assert_eq!(listed(&world), [], "no disk was whole");
    world.machine().apply_next(WallTime(world.now)).unwrap();
    let no_point = world.machine().view(DISK, PointChoice::Latest).map(drop);
    assert!(matches!(no_point, Err(StoreError::NoPoint(DISK))), "{no_point:?}");
    let first = deliver_point(&mut world);
    let second = deliver_point(&mut world);
    for _ in 0..2 {
        assert_eq!(listed(&world), [(first, true), (second, true)]);
        let complete = world.machine().listed_points()[0].point.complete;
        assert!(complete, "both disks are in it");
        for (choice, waits) in [(PointChoice::Id(second), second), (PointChoice::Latest, first)] {
            match world.machine().view(DISK, choice).map(drop) {
                Err(StoreError::PointWaits(point)) => assert_eq!(point, waits),
                other => panic!("{other:?}"),
            }
        }
        world.disk.crash();
        world.disk.restart();
        world.restart_quietly().unwrap();
    }
    world.machine().apply_next(WallTime(world.now)).unwrap();
    assert_eq!(listed(&world), [(first, false), (second, true)]);
    world.machine().view(DISK, PointChoice::Latest).unwrap();
    world.machine().apply_next(WallTime(world.now)).unwrap();
    assert_eq!(listed(&world), [(first, false), (second, false)]);
    world.machine().view(DISK, PointChoice::Id(second)).unwrap();
    let unknown = world.machine().view(DISK, PointChoice::Id(PointId([9; 16]))).map(drop);
    assert!(matches!(unknown, Err(StoreError::UnknownPoint(_))), "{unknown:?}");
}

#[test]
fn a_deleted_disk_is_in_no_point_that_waits() {
    let mut world = World::new(1);
    let point = deliver_point(&mut world);
    world.machine().delete_replica(DISK).unwrap();
    assert_eq!(listed(&world), [(point, true)]);
    assert!(!world.machine().listed_points()[0].point.disks.contains(DISK));
}

fn suspect(at: u64) -> (Record, Vec<u8>) {
    let at = WallTime(at);
    (Record::Suspect { disk: DISK, at, bytes: 512, ranges: 1, offset: 1024 }, Vec::new())
}

/// Of each listed point: when what makes it suspect was found, and whether it is proven.
fn suspicions(world: &World) -> Vec<(Option<u64>, bool)> {
    let points = world.machine().listed_points().into_iter();
    points.map(|it| (it.suspicion.map(|found| found.at.0), it.is_proven())).collect()
}

#[test]
fn points_before_a_difference_are_suspect_from_when_it_is_durable() {
    let mut world = World::new(1);
    deliver_point(&mut world);
    world.machine().apply_next(WallTime(world.now)).unwrap();
    deliver_point(&mut world);
    // A point of the other disk alone, and one whose frame tells of the difference first.
    let other = marker(DiskSet(2), WallTime(world.now));
    world.send_records(vec![other]);
    let behind = world.marker();
    world.send_records(vec![suspect(5), write(0, 2, 3), behind]);
    world.append(2);
    assert_eq!(suspicions(&world).len(), 2, "not durable");
    assert_eq!(suspicions(&world), [(None, true), (None, false)]);
    world.commit();
    let waiting = [(Some(5), false), (Some(5), false), (None, false), (None, false)];
    assert_eq!(suspicions(&world), waiting);
    assert_eq!(world.machine().take_suspicions().len(), 1);
    assert_eq!(world.machine().take_suspicions(), []);
    for _ in 0..4 {
        world.disk.crash();
        world.disk.restart();
        world.restart_quietly().unwrap();
        let suspects = suspicions(&world).into_iter().map(|(found, _)| found);
        assert!(suspects.eq([Some(5), Some(5), None, None]));
        world.machine().apply_next(WallTime(world.now)).unwrap();
    }
    let applied = [(Some(5), false), (Some(5), false), (None, true), (None, true)];
    assert_eq!(suspicions(&world), applied);
    // What is found later counts for all that is older.
    world.send_records(vec![suspect(9)]);
    deliver_point(&mut world);
    while world.machine().status().applied < world.machine().status().durable {
        world.machine().apply_next(WallTime(world.now)).unwrap();
    }
    let later = [Some(9), Some(9), None, Some(9), None];
    assert!(suspicions(&world).into_iter().map(|(found, _)| found).eq(later));
}
