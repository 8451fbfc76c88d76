//! Replicas on block devices: chosen before or after the disk is known, proven at every start, and
//! never written where the proof fails.

use super::agent::{BLOCK, MACHINE, block_of, consistent, entry_of, write};
use super::hooked::hooked;
use super::world::{BLOCKS, DISKS, World, admit, all_disks, disk_specs, judge, options};
use crate::store::{PlaceAt, PointChoice, Store, StoreError, StoreMachine};
use redoubt_engine::lying::{Fault, Kind, LyingStorage};
use redoubt_engine::storage::{Open, ReadRequest, Storage};
use redoubt_log::{DiskIndex, MachineId, Sequence, WallTime};
use std::path::Path;
use std::sync::Arc;

const DISK: DiskIndex = DiskIndex(0);
const DEVICE: &str = "/dev/replica";
const SIZE: u64 = (BLOCKS * BLOCK) as u64;
/// Room for the stamp behind the replica.
const ROOMY: u64 = 8192;

fn plug_in(storage: &LyingStorage, size: u64, identity: Option<&str>) {
    storage.plug_in(Path::new(DEVICE), size, identity);
}

fn store(storage: &LyingStorage) -> Store {
    let storage: Arc<dyn Storage> = Arc::new(storage.clone());
    Store::open(storage, options(), WallTime(0)).unwrap()
}

fn replicas(storage: &LyingStorage) -> Vec<String> {
    storage.list(Path::new(&format!("machines/{MACHINE}/disks"))).unwrap()
}

fn content(storage: &LyingStorage) -> Vec<u8> {
    let file = storage.open(Path::new(DEVICE), Open::ReadOnly).unwrap();
    let mut bytes = vec![0; usize::try_from(file.size()).unwrap()];
    file.read(&mut [ReadRequest { offset: 0, buffer: &mut bytes }]).unwrap();
    bytes
}

fn apply(world: &World) -> crate::store::Result<crate::store::ApplyOutcome> {
    world.machine().apply_next(WallTime(world.now))
}

fn send_point(world: &mut World, block: usize, value: u32) {
    let marker = world.marker();
    world.send_records(vec![write(0, block, value), consistent(0), consistent(1), marker]);
    world.deliver();
}

fn expect(world: &World, values: [u32; BLOCKS]) {
    let expected: Vec<u8> = values.into_iter().flat_map(block_of).collect();
    assert!(content(&world.disk)[..BLOCKS * BLOCK] == expected, "the device holds something else");
}

fn wrong(result: crate::store::Result<impl Sized>) -> String {
    match result.err().unwrap() {
        error @ StoreError::WrongDevice { .. } => error.to_string(),
        other => panic!("{other}"),
    }
}

#[test]
fn a_placed_disk_is_applied_viewed_and_found_again() {
    let mut world = World::new(1);
    plug_in(&world.disk, ROOMY, Some("wwid:1"));
    world.machine().place(DISK, Path::new(DEVICE)).unwrap();
    assert_eq!(replicas(&world.disk), ["1"]);
    assert_eq!(world.machine().status().disks[0].replica, Path::new(DEVICE));
    for (block, value) in [(0, 1), (3, 2), (0, 3)] {
        send_point(&mut world, block, value);
        apply(&world).unwrap();
        world.disk.crash();
        world.disk.restart();
        world.restart_quietly().unwrap();
    }
    expect(&world, [3, 0, 0, 2, 0, 0]);
    let points = world.machine().points();
    for point in &points {
        let view = world.machine().view(DISK, PointChoice::Id(point.id)).unwrap();
        let truth = world.agent.truth(DISK, BLOCKS, point.sequence);
        (0..BLOCKS).for_each(|block| judge(&view, &truth, block).unwrap());
        // A device does not say where it holds nothing.
        assert_eq!(view.next_data(0).unwrap().map(|range| range.length), Some(SIZE));
    }
    assert_eq!(points.len(), 3);
    // Too late, now that it has content.
    let late = world.machine().place(DISK, Path::new(DEVICE));
    assert!(matches!(late, Err(StoreError::HasData { .. })));
    assert!(matches!(
        world.machine().place(DiskIndex(9), Path::new(DEVICE)),
        Err(StoreError::UnknownDisk(_))
    ));
}

#[test]
fn a_disk_whose_data_comes_while_its_device_is_claimed_is_not_placed() {
    let mut world = World::new(1);
    plug_in(&world.disk, ROOMY, Some("wwid:1"));
    world.send_records(vec![write(0, 0, 1)]);
    let mut entry = entry_of(&world.agent.log[0].bytes);
    let machine = world.machine();
    // The journal takes what comes: it does not wait for the device.
    let arrives = move || {
        if machine.status().durable == Sequence(0) {
            assert_eq!(machine.append(&mut [entry.as_mut_slice()]).entries, 1);
            machine.commit().unwrap();
        }
    };
    let placed = hooked(arrives, || world.machine().place(DISK, Path::new(DEVICE)));
    assert!(matches!(placed, Err(StoreError::HasData { .. })), "{placed:?}");
    assert_ne!(world.machine().status().disks[0].replica, Path::new(DEVICE));
    // Nobody holds it any more.
    world.disk.open(Path::new(DEVICE), Open::Claim).unwrap();
}

#[test]
fn another_device_in_its_place_is_never_written() {
    let impostors: [(&str, u64, Option<&str>); 4] = [
        ("was wwid:1, this is wwid:2", ROOMY, Some("wwid:2")),
        ("this is unknown", ROOMY, None),
        ("does not carry the stamp", ROOMY, Some("wwid:1")),
        ("has 4096 bytes", 4096, Some("wwid:1")),
    ];
    for (what, size, identity) in impostors {
        let mut world = World::new(1);
        plug_in(&world.disk, ROOMY, Some("wwid:1"));
        world.machine().place(DISK, Path::new(DEVICE)).unwrap();
        send_point(&mut world, 0, 1);
        apply(&world).unwrap();
        let elsewhere = Path::new("/dev/elsewhere");
        world.disk.plug_in(elsewhere, size, identity);
        world.disk.swap_devices(Path::new(DEVICE), elsewhere);
        world.restart_quietly().unwrap();
        assert!(wrong(world.machine().check_devices()).contains(what));
        send_point(&mut world, 1, 2);
        let said = wrong(apply(&world));
        assert!(said.contains(what) && said.contains(DEVICE) && said.contains("disk0"), "{said}");
        assert!(wrong(world.machine().view(DISK, PointChoice::Latest)).contains(what));
        assert!(content(&world.disk).iter().all(|byte| *byte == 0), "the wrong device was written");
        // What was received meanwhile stays, and is applied once the right one is there.
        world.disk.swap_devices(Path::new(DEVICE), elsewhere);
        world.machine().check_devices().unwrap();
        apply(&world).unwrap();
        expect(&world, [1, 2, 0, 0, 0, 0]);
    }
}

#[test]
fn a_device_that_a_view_reads_is_written_again_after_a_failure() {
    let mut world = World::new(1);
    plug_in(&world.disk, ROOMY, Some("wwid:1"));
    world.machine().place(DISK, Path::new(DEVICE)).unwrap();
    send_point(&mut world, 0, 1);
    apply(&world).unwrap();
    let view = world.machine().view(DISK, PointChoice::Latest).unwrap();
    send_point(&mut world, 0, 2);
    for _ in 0..2 {
        world.disk.inject(Fault::eio(DEVICE).on(Kind::Write));
        apply(&world).unwrap_err();
    }
    apply(&world).unwrap();
    expect(&world, [2, 0, 0, 0, 0, 0]);
    let truth = world.agent.truth(DISK, BLOCKS, view.point().sequence);
    (0..BLOCKS).for_each(|block| judge(&view, &truth, block).unwrap());
}

#[test]
fn a_device_without_room_for_a_stamp_needs_an_identity_and_a_small_one_is_refused() {
    for (size, identity, refused) in [
        (SIZE, Some("dm:LVM-1"), None),
        (SIZE, None, Some("no room for a stamp")),
        (ROOMY, None, None),
        (SIZE - 512, Some("dm:LVM-1"), Some("place it on a larger one")),
    ] {
        let world = World::new(1);
        plug_in(&world.disk, size, identity);
        let placed = world.machine().place(DISK, Path::new(DEVICE));
        match refused {
            Some(what) => {
                assert!(wrong(placed).contains(what));
                assert_eq!(replicas(&world.disk), ["0", "1"]);
            }
            None => {
                placed.unwrap();
                world.machine().check_devices().unwrap();
            }
        }
    }
}

fn chosen(machine: &str, disk: &str) -> (String, String) {
    (machine.to_owned(), disk.to_owned())
}

#[test]
fn a_device_that_was_chosen_before_its_disk_was_known_becomes_its_replica() {
    let disk = LyingStorage::new(1);
    let first = store(&disk);
    let at = PlaceAt { machine: "m", disk: "disk0", device: Path::new(DEVICE) };
    first.place_later(at).unwrap_err();
    plug_in(&disk, SIZE - 512, Some("wwid:1"));
    first.place_later(at).unwrap();
    drop(first);
    disk.crash();
    disk.restart();
    let store = store(&disk);
    let devices = store.devices();
    assert_eq!(chosen(&devices[0].machine, &devices[0].disk), chosen("m", "disk0"));
    let other = store.create_machine(MachineId([8; 16]), "other", WallTime(0)).unwrap();
    admit(&other, None).unwrap();
    let machine = store.create_machine(MACHINE, "m", WallTime(0)).unwrap();
    // It does not fit: the disk is not taken in rather than put elsewhere.
    assert!(wrong(admit(&machine, None)).contains("place it on a larger one"));
    assert!(machine.status().disks.is_empty());
    plug_in(&disk, ROOMY, Some("wwid:1"));
    admit(&machine, None).unwrap();
    assert_eq!(machine.status().disks[0].replica, Path::new(DEVICE));
    assert_eq!(replicas(&disk), ["1"]);
    let devices = store.devices();
    assert_eq!(devices.len(), 1, "the choice is made true: {devices:?}");
    assert_eq!(other.status().disks.len(), usize::from(DISKS));
}

#[test]
fn a_device_chosen_for_a_disk_that_was_announced_meanwhile_does_not_wait_for_it() {
    let disk = LyingStorage::new(1);
    let store = store(&disk);
    let machine = store.create_machine(MACHINE, "m", WallTime(0)).unwrap();
    admit(&machine, None).unwrap();
    plug_in(&disk, SIZE - 512, Some("wwid:1"));
    let at = PlaceAt { machine: "m", disk: "disk0", device: Path::new(DEVICE) };
    let refused = store.place_later(at).map(drop);
    assert!(wrong(refused).contains("place it on a larger one"));
    assert!(store.waiting().is_empty(), "what failed waits for nothing");
    plug_in(&disk, ROOMY, Some("wwid:1"));
    assert!(store.place_later(at).unwrap());
    assert_eq!(machine.status().disks[0].replica, Path::new(DEVICE));
    assert!(store.waiting().is_empty());
    disk.plug_in(Path::new("/dev/second"), ROOMY, None);
    let later = PlaceAt { disk: "disk9", device: Path::new("/dev/second"), ..at };
    assert!(!store.place_later(later).unwrap());
}

/// Places a disk with a cut after so many operations; whether it came to its end.
fn place_cut(seed: u64, operations: u64, is_known: bool) -> Result<bool, String> {
    let disk = LyingStorage::new(seed);
    plug_in(&disk, ROOMY, Some("wwid:1"));
    let first = store(&disk);
    let machine = first.create_machine(MACHINE, "m", WallTime(0)).unwrap();
    let at = PlaceAt { machine: "m", disk: "disk0", device: Path::new(DEVICE) };
    let whole = if is_known {
        admit(&machine, None).unwrap();
        disk.crash_after(operations);
        machine.place(DISK, Path::new(DEVICE)).is_ok()
    } else {
        disk.crash_after(operations);
        first.place_later(at).and_then(|_| admit(&machine, None)).is_ok()
    };
    assert!(whole || disk.is_crashed());
    drop((first, machine));
    disk.restart();
    let store = store(&disk);
    let machine = store.machine(MACHINE).map_err(|_| format!("{:?}", store.unopened()))?;
    machine.check_devices().map_err(|error| error.to_string())?;
    let chosen = store.devices().len();
    admit(&machine, None).map_err(|error| error.to_string())?;
    let on_device = machine.status().disks[0].replica == Path::new(DEVICE);
    if (whole || chosen > 0) && !on_device {
        return Err("it is not where it was placed".to_owned());
    }
    if on_device != (replicas(&disk) == ["1"]) {
        return Err(format!("replicas: {:?}", replicas(&disk)));
    }
    check_both_ways(&disk, &machine, &store).map(|()| whole)
}

/// However it ended, it can be placed (again), as long as nothing was sent.
fn check_both_ways(
    disk: &LyingStorage,
    machine: &StoreMachine,
    store: &Store,
) -> Result<(), String> {
    disk.plug_in(Path::new("/dev/second"), ROOMY, None);
    machine.place(DISK, Path::new("/dev/second")).map_err(|error| error.to_string())?;
    machine.check_devices().map_err(|error| error.to_string())?;
    let devices = store.devices();
    let is_second = |device: &Path| device == Path::new("/dev/second");
    match devices.as_slice() {
        [only] if is_second(&only.device) => Ok(()),
        _ => Err(format!("{devices:?}")),
    }
}

#[test]
fn a_placement_that_is_cut_has_happened_or_not() {
    for is_known in [true, false] {
        for seed in 0..6 {
            let mut operations = 0;
            loop {
                match place_cut(seed, operations, is_known) {
                    Ok(true) => break,
                    Ok(false) => operations += 1,
                    Err(what) => {
                        panic!("seed {seed}, known {is_known}, cut after {operations}: {what}")
                    }
                }
            }
            assert!(operations > 5, "{operations}");
        }
    }
}

#[test]
fn a_deleted_replica_lets_its_device_go_as_it_is() {
    let mut world = World::new(1);
    plug_in(&world.disk, ROOMY, Some("wwid:1"));
    world.machine().place(DISK, Path::new(DEVICE)).unwrap();
    send_point(&mut world, 0, 1);
    apply(&world).unwrap();
    world.machine().delete_replica(DISK).unwrap();
    expect(&world, [1, 0, 0, 0, 0, 0]);
    world.restart_quietly().unwrap();
    world.machine().check_devices().unwrap();
    assert_eq!(disk_specs().len(), usize::from(DISKS));
    assert!(world.machine().points().iter().all(|point| point.disks != all_disks()));
}
