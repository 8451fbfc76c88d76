//! Replicas and machines that are deleted, the power cut after every single operation: either
//! nothing is gone, or all of it goes and nothing else does.

use super::agent::{MACHINE, consistent, write, zero};
use super::inspect::expect_clean;
use super::world::{BLOCKS, Verdict, World, all_disks, disk_specs, judge, options};
use crate::store::rules::{Rule, without};
use crate::store::{PointChoice, Protection, Store, StoreError, StoreMachine};
use redoubt_engine::storage::Storage;
use redoubt_log::{DiskIndex, MachineId, WallTime};
use std::path::{Path, PathBuf};
use std::sync::Arc;

const GONE: DiskIndex = DiskIndex(1);
const STAYS: DiskIndex = DiskIndex(0);
/// Coins of the lying disk tried at each operation.
const SEEDS: u64 = 6;

/// Three applied points of both disks, and a fourth that waits in the journal.
fn world(seed: u64) -> World {
    let mut world = World::new(seed);
    for step in 0..4 {
        let value = 10 + u32::try_from(step).unwrap();
        let mut records = vec![write(0, step, value), write(1, 5 - step, value + 10)];
        records.push(if step == 2 { zero(0, 0, 3) } else { write(1, 0, value + 20) });
        records.extend([consistent(0), consistent(1), world.marker()]);
        world.send_records(records);
        world.deliver();
        if step < 3 {
            world.machine().apply_next(WallTime(world.now)).unwrap();
        }
    }
    world
}

fn reopened(world: &mut World) -> Store {
    world.machine = None;
    world.disk.restart();
    let storage: Arc<dyn Storage> = Arc::new(world.disk.clone());
    Store::open(storage, options(), WallTime(world.now)).unwrap()
}

fn list(world: &World, directory: &str) -> Vec<String> {
    let root = PathBuf::from(format!("machines/{MACHINE}"));
    world.disk.list(&root.join(directory)).unwrap()
}

/// What stays reads at every point as the log says; the other disk is in no point and no file.
fn check_after_deletion(world: &World, machine: &StoreMachine) -> Verdict {
    for point in machine.points() {
        if point.disks.contains(GONE) || !point.disks.contains(STAYS) {
            return Err(format!("{point:?}"));
        }
        let view = machine.view(STAYS, PointChoice::Id(point.id)).map_err(|e| e.to_string())?;
        let truth = world.agent.truth(STAYS, BLOCKS, point.sequence);
        (0..BLOCKS).try_for_each(|block| judge(&view, &truth, block))?;
        let other = machine.view(GONE, PointChoice::Id(point.id));
        if !matches!(other, Err(StoreError::UnknownDisk(GONE))) {
            return Err("the deleted disk can be looked at".to_owned());
        }
    }
    machine.check_retention().map_err(|error| error.to_string())?;
    let (replicas, status) = (list(world, "disks"), machine.status());
    let named = status.disks.iter().any(|disk| disk.index == GONE);
    if replicas == ["0"] && !named { Ok(()) } else { Err(format!("{replicas:?} {status:?}")) }
}

/// Deletes a disk's replica, with a cut after so many operations; whether it came to its end.
fn delete_disk(seed: u64, operations: u64) -> Result<bool, String> {
    let mut world = world(seed);
    world.disk.crash_after(operations);
    let whole = world.machine().delete_replica(GONE).is_ok();
    assert!(whole || world.disk.is_crashed());
    world.machine = None;
    world.disk.restart();
    expect_clean(&world.disk, false)?;
    let store = reopened(&mut world);
    let machine = store.machine(MACHINE).map_err(|_| format!("{:?}", store.unopened()))?;
    let is_there = machine.status().disks.iter().any(|disk| disk.index == GONE);
    if whole && is_there {
        return Err("it came back".to_owned());
    }
    world.machine = Some(machine.clone());
    if is_there {
        world.check_all()?;
        machine.delete_replica(GONE).map_err(|error| error.to_string())?;
    }
    check_after_deletion(&world, &machine)?;
    expect_clean(&world.disk, false)?;
    // The agent has not heard of it: what it sends of the disk is skipped, and its points name it
    // no more.
    world.restart_quietly()?;
    let machine = world.machine();
    let marker = world.marker();
    world.send_records(vec![write(1, 2, 99), write(0, 2, 98), marker]);
    world.deliver();
    for _ in 0..2 {
        machine.apply_next(WallTime(world.now)).map_err(|error| error.to_string())?;
    }
    if machine.status().applied != world.agent.last() {
        return Err("apply stands still".to_owned());
    }
    check_after_deletion(&world, &machine)?;
    if !machine.points().last().is_some_and(|point| point.complete) {
        return Err("a point of all that is protected is not complete".to_owned());
    }
    Ok(whole)
}

/// Deletes a machine, with a cut after so many operations; whether it came to its end.
fn delete_machine(seed: u64, operations: u64) -> Result<bool, String> {
    let mut world = world(seed);
    let store = reopened(&mut world);
    let machine = store.machine(MACHINE).unwrap();
    store.place_later(place("/dev/x")).unwrap_err();
    world.disk.plug_in(Path::new("/dev/x"), 1 << 20, None);
    store.place_later(place("/dev/x")).unwrap();
    world.disk.crash_after(operations);
    let whole = machine.begin_removal().and_then(|()| store.finish_removal(MACHINE)).is_ok();
    assert!(whole || world.disk.is_crashed());
    drop((machine, store));
    world.machine = None;
    world.disk.restart();
    expect_clean(&world.disk, false)?;
    let store = reopened(&mut world);
    match (store.machine(MACHINE), store.removing().as_slice()) {
        (Ok(machine), []) if !whole => {
            world.machine = Some(machine.clone());
            world.check_all()?;
            machine.begin_removal().unwrap();
            store.finish_removal(MACHINE).unwrap();
        }
        (Err(_), [MACHINE]) if !whole => store.finish_removal(MACHINE).unwrap(),
        (Err(_), []) => {}
        other => return Err(format!("{:?} {:?}", other.1, store.unopened())),
    }
    let left = (world.disk.list(Path::new("machines")).unwrap(), store.devices());
    if !left.0.is_empty() || !left.1.is_empty() {
        return Err(format!("left: {left:?}"));
    }
    // The same name may come again, as another machine.
    store.create_machine(MachineId([8; 16]), "m", WallTime(1)).map_err(|e| e.to_string())?;
    Ok(whole)
}

fn place(device: &str) -> crate::store::PlaceAt<'_> {
    crate::store::PlaceAt { machine: "m", disk: "later", device: Path::new(device) }
}

fn cut_everywhere(what: impl Fn(u64, u64) -> Result<bool, String>) {
    for seed in 0..SEEDS {
        let mut operations = 0;
        loop {
            match what(seed, operations) {
                Ok(true) => break,
                Ok(false) => operations += 1,
                Err(found) => panic!("seed {seed}, cut after {operations} operations: {found}"),
            }
        }
        assert!(operations > 5, "a deletion has many operations, not {operations}");
    }
}

#[test]
fn a_replica_is_deleted_whole_or_not_at_all() {
    cut_everywhere(delete_disk);
}

#[test]
fn a_machine_is_deleted_whole_or_not_at_all() {
    cut_everywhere(delete_machine);
}

#[test]
fn without_forget_first() {
    let found = without(Some(Rule::ForgetFirst), || {
        (0..SEEDS).find_map(|seed| (0..40).find_map(|cut| delete_disk(seed, cut).err()))
    });
    println!("{}", found.expect("no counter-example: the rule is not shown to matter"));
}

#[test]
fn what_is_being_read_is_not_deleted() {
    let world = world(1);
    let machine = world.machine();
    let view = machine.view(GONE, PointChoice::Latest).unwrap();
    assert!(matches!(machine.delete_replica(GONE), Err(StoreError::BeingRead { .. })));
    assert!(matches!(machine.begin_removal(), Err(StoreError::BeingRead { .. })));
    world.check_all().unwrap();
    drop(view);
    machine.delete_replica(GONE).unwrap();
    check_after_deletion(&world, &machine).unwrap();
    assert!(matches!(machine.delete_replica(GONE), Err(StoreError::UnknownDisk(GONE))));
    machine.begin_removal().unwrap();
    // From here on nothing of it is read.
    assert!(machine.view(STAYS, PointChoice::Latest).is_err());
}

/// A number is one disk's for ever: also where its replica was deleted.
#[test]
fn a_deleted_disk_is_told_as_ended_to_an_agent_that_still_has_it() {
    let mut world = world(1);
    world.machine().delete_replica(GONE).unwrap();
    world.restart_quietly().unwrap();
    let answer = super::world::admit(&world.machine(), None).unwrap();
    assert_eq!(answer.disks.len(), disk_specs().len());
    let deleted = |disk: &&crate::store::DiskStatus| disk.protection == Protection::Deleted;
    let deleted: Vec<DiskIndex> = answer.disks.iter().filter(deleted).map(|d| d.index).collect();
    assert_eq!(deleted, [GONE]);
    assert_eq!(world.machine().status().disks.len(), 1);
    assert!(world.machine().points().iter().all(|point| point.disks != all_disks()));
}
