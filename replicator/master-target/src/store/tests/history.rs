//! Retention files that are lost or damaged cost the points that need them, and nothing else.

use super::agent::{BLOCK, MACHINE, block_of, consistent, write};
use super::faults::flip;
use super::world::World;
use crate::store::{ApplyOutcome, PointChoice, StoreError, harmed_disks};
use redoubt_engine::lying::{Fault, Kind};
use redoubt_engine::storage::{Open, ReadRequest, Storage, WriteRequest};
use redoubt_log::{DiskIndex, WallTime};
use std::path::{Path, PathBuf};
use std::time::Duration;

const DISK: DiskIndex = DiskIndex(0);

/// Block 0 of disk 0 is 1, 2, 3 and 4 at one point each, so that three files have what it was.
fn world() -> World {
    let mut world = World::new(1);
    for value in 1..=4 {
        let marker = world.marker();
        world.send_records(vec![write(0, 0, value), consistent(0), consistent(1), marker]);
        world.deliver();
        expect_point(&world);
    }
    world
}

fn expect_point(world: &World) {
    let applied = world.machine().apply_next(WallTime(world.now));
    assert!(matches!(applied, Ok(ApplyOutcome::Applied { point: Some(_), .. })), "{applied:?}");
}

fn files(world: &World) -> Vec<PathBuf> {
    let directory = PathBuf::from(format!("machines/{MACHINE}/retention"));
    let names = world.disk.list(&directory).unwrap();
    names.iter().map(|name| directory.join(name)).collect()
}

fn remove(world: &World, path: &Path) {
    world.disk.remove(path).unwrap();
    world.disk.sync_directory(path.parent().unwrap()).unwrap();
}

fn reopen(world: &mut World) {
    world.machine = None;
    world.restart_quietly().unwrap();
}

fn block_at(world: &World, point: PointChoice) -> Result<Vec<u8>, StoreError> {
    let view = world.machine().view(DISK, point)?;
    let mut bytes = vec![0; BLOCK];
    view.read(0, &mut bytes).map(|()| bytes)
}

/// The points up to this one are lost for disk 0, each other reads what it was.
fn expect_lost_up_to(world: &World, newest: usize, values: &[u32]) {
    let points = world.machine().points();
    let lost = world.machine().lost_points();
    assert_eq!(lost.len(), 1, "{lost:?}");
    assert_eq!((lost[0].disk, lost[0].newest), (DISK, points[newest].sequence));
    assert_eq!(points.len(), values.len());
    for (place, (point, value)) in points.iter().zip(values).enumerate() {
        let is_lost = harmed_disks(point, &lost).contains(DISK);
        assert_eq!(is_lost, place <= newest, "point {place}");
        match block_at(world, PointChoice::Id(point.id)) {
            Ok(bytes) => assert!(!is_lost && bytes == block_of(*value), "point {place}"),
            Err(error) => assert!(is_lost && error.to_string().contains("retention"), "{error}"),
        }
    }
}

#[test]
fn a_lost_retention_file_costs_the_points_that_need_it_and_nothing_else() {
    for gone in 0..3 {
        let mut world = world();
        let path = files(&world)[gone].clone();
        remove(&world, &path);
        reopen(&mut world);
        expect_lost_up_to(&world, gone, &[1, 2, 3, 4]);
        let lost = world.machine().lost_points();
        assert!(lost[0].why.contains(path.to_str().unwrap()), "{lost:?}");
        assert!(lost[0].why.contains("the retention file is missing"), "{lost:?}");
        // It goes on, and the new points are good.
        let marker = world.marker();
        world.send_records(vec![write(0, 0, 5), marker]);
        world.deliver();
        expect_point(&world);
        expect_lost_up_to(&world, gone, &[1, 2, 3, 4, 5]);
        assert_eq!(block_at(&world, PointChoice::Latest).unwrap(), block_of(5));
        // What is lost expires as the others do, and nothing is left of it.
        let now = WallTime(world.now);
        assert_eq!(world.machine().drop_expired(now, Duration::ZERO).unwrap(), 4);
        assert!(world.machine().lost_points().is_empty() && files(&world).is_empty());
        reopen(&mut world);
        world.finish().unwrap();
    }
}

#[test]
fn a_file_that_is_put_back_gives_the_points_back() {
    let mut world = world();
    let path = files(&world)[1].clone();
    let aside = path.with_file_name("aside");
    world.disk.rename(&path, &aside).unwrap();
    let kept = world.disk.open(&aside, Open::ReadOnly).unwrap();
    let mut bytes = vec![0; usize::try_from(kept.size()).unwrap()];
    kept.read(&mut [ReadRequest { offset: 0, buffer: &mut bytes }]).unwrap();
    reopen(&mut world);
    expect_lost_up_to(&world, 1, &[1, 2, 3, 4]);
    let back = world.disk.open(&path, Open::CreateSparse(bytes.len() as u64)).unwrap();
    back.write(&[WriteRequest { offset: 0, data: &bytes }]).unwrap();
    back.sync().unwrap();
    world.disk.sync_directory(path.parent().unwrap()).unwrap();
    reopen(&mut world);
    assert!(world.machine().lost_points().is_empty());
    world.finish().unwrap();
}

#[test]
fn damage_where_a_file_begins_is_found_before_anybody_reads_it() {
    let mut world = world();
    let path = files(&world)[2].clone();
    flip(&world, &path, 40);
    reopen(&mut world);
    assert!(world.machine().lost_points().is_empty(), "nobody has looked");
    world.machine().look_at_history();
    expect_lost_up_to(&world, 2, &[1, 2, 3, 4]);
    let why = world.machine().lost_points()[0].why.clone();
    assert!(why.contains("the header's checksum does not match"), "{why}");
}

#[test]
fn damage_inside_a_file_is_told_once_a_reader_has_met_it() {
    let world = world();
    // The only piece of the first file stands behind its header.
    flip(&world, &files(&world)[0], 4096);
    world.machine().look_at_history();
    assert!(world.machine().lost_points().is_empty());
    let oldest = PointChoice::Id(world.machine().points()[0].id);
    let error = block_at(&world, oldest).unwrap_err();
    assert!(matches!(error, StoreError::Damaged { .. }), "{error}");
    expect_lost_up_to(&world, 0, &[1, 2, 3, 4]);
}

#[test]
fn a_failure_that_passes_is_no_loss() {
    let mut world = world();
    reopen(&mut world);
    // Without power nothing can be opened, and nothing is known of what it holds.
    world.disk.crash();
    world.machine().look_at_history();
    assert!(world.machine().lost_points().is_empty());
    world.disk.restart();
    // It was not forgotten to look.
    flip(&world, &files(&world)[1], 40);
    world.machine().look_at_history();
    expect_lost_up_to(&world, 1, &[1, 2, 3, 4]);
}

#[test]
fn an_apply_that_was_cut_is_finished_without_its_retention_file() {
    let mut world = world();
    let marker = world.marker();
    world.send_records(vec![write(0, 0, 5), marker]);
    world.deliver();
    world.disk.inject(Fault::eio("disks").on(Kind::Write));
    assert!(world.machine().apply_next(WallTime(world.now)).is_err());
    world.disk.clear_faults();
    assert!(world.machine().status().applying.is_some());
    let path = files(&world).pop().unwrap();
    remove(&world, &path);
    reopen(&mut world);
    // The replica may hold anything of the interval now: no point is good until it is finished.
    expect_lost_up_to(&world, 3, &[1, 2, 3, 4]);
    assert!(block_at(&world, PointChoice::Latest).is_err());
    expect_point(&world);
    expect_lost_up_to(&world, 3, &[1, 2, 3, 4, 5]);
    world.check_replica(DISK, world.machine().status().applied).unwrap();
}
