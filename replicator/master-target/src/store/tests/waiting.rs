//! Points that are durable and not applied: they are listed as such, also after a cut, and nobody is
//! told that there is no such point.

use super::agent::{consistent, marker, write};
use super::world::{World, all_disks};
use crate::store::{PointChoice, StoreError};
use redoubt_log::{DiskIndex, PointId, WallTime};

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
