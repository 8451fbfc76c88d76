//! The store on a real directory: apply, retention over many index pages, copy-out, and old
//! segments going.

use super::agent::{Agent, MACHINE, entry_of};
use crate::store::layout::MachineLayout;
use crate::store::retention::RetentionWriter;
use crate::store::{
    Admitted, ApplyOutcome, DiskSpec, PointChoice, Store, StoreMachine, StoreOptions, copy_out,
};
use rand::rngs::StdRng;
use rand::{Rng, RngCore, SeedableRng};
use redoubt_engine::directory::DirectoryStorage;
use redoubt_engine::lying::{Fault, Kind, LyingStorage};
use redoubt_engine::storage::{Open, ReadRequest, Storage};
use redoubt_engine::uring_directory::{UringOptions, UringStorage};
use redoubt_log::{DiskIndex, DiskSet, Incarnation, Record, Sequence, WallTime};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

const SIZE: usize = 8 << 20;
const ADMITTED: Admitted = Admitted { incarnation: Incarnation(1), run: [1; 16] };
const DISK: DiskIndex = DiskIndex(3);

fn deliver(machine: &StoreMachine, agent: &mut Agent, records: Vec<(Record, Vec<u8>)>, at: u64) {
    let mut entry = entry_of(&agent.send(records, 0, WallTime(at)).bytes);
    let appended = machine.append(&mut [&mut entry]);
    assert!(appended.stopped.is_none(), "{:?}", appended.stopped);
    assert_eq!(machine.commit().unwrap(), agent.last());
}

/// Random writes of odd places and sizes, in frames, onto the image as well.
fn churn(
    rng: &mut StdRng,
    machine: &StoreMachine,
    agent: &mut Agent,
    image: &mut [u8],
    writes: usize,
) {
    for _ in 0..writes / 50 {
        let mut records = Vec::new();
        for _ in 0..50 {
            let length = rng.random_range(1..16) * 512;
            let offset = rng.random_range(0..(SIZE - length) / 512) * 512;
            let mut payload = vec![0; length];
            if rng.random_bool(0.8) {
                rng.fill_bytes(&mut payload);
            }
            image[offset..offset + length].copy_from_slice(&payload);
            let (offset, length) = (offset as u64, u32::try_from(length).unwrap());
            records.push((Record::Write { disk: DISK, offset, length }, payload));
        }
        deliver(machine, agent, records, 1);
    }
}

fn deliver_point(machine: &StoreMachine, agent: &mut Agent, at: WallTime) {
    let mut disks = DiskSet::default();
    disks.insert(DISK);
    let end = vec![(Record::Consistent { disk: DISK }, vec![]), super::agent::marker(disks, at)];
    deliver(machine, agent, end, at.0);
}

/// A manifest of an earlier release may tell of disks of any size.
#[test]
fn old_content_of_which_no_file_can_have_all_is_an_error() {
    let directory = tempfile::tempdir().unwrap();
    let storage = DirectoryStorage::new(directory.path());
    let layout = MachineLayout::new(MACHINE);
    storage.create_directory(&layout.retention()).unwrap();
    let interval = (Sequence(0), Sequence(9));
    for content in [(u64::MAX, 2), ((1 << 63) - 4096, u64::MAX), (u64::MAX - 4096, 1 << 63)] {
        let made = RetentionWriter::create(&storage, &layout, MACHINE, interval, content);
        assert!(made.is_err(), "{content:?}");
    }
}

/// A machine of one disk. Its windows are so small that an interval needs several, of which one is
/// filled while another is written.
fn machine_on(storage: Arc<dyn Storage>) -> (StoreMachine, Agent) {
    let options = StoreOptions {
        segment_bytes: 2 << 20,
        ranges_limit: 1200,
        write_bytes: 0,
        ..Default::default()
    };
    let store = Store::open(storage, options, WallTime(0)).unwrap();
    let machine = store.create_machine(MACHINE, "m", WallTime(0)).unwrap();
    let spec = DiskSpec {
        index: DISK,
        name: "sda".to_owned(),
        size: SIZE as u64,
        logical_block_size: 512,
    };
    let hello = machine.hello(ADMITTED, false, std::slice::from_ref(&spec)).unwrap();
    (machine, Agent::new(hello.generation, hello.incarnation))
}

#[test]
fn every_point_copies_out_as_it_was() {
    let root = tempfile::tempdir().unwrap();
    let blocking = DirectoryStorage::new(root.path().join("blocking"));
    let ring = UringStorage::new(root.path().join("ring"), UringOptions::default()).unwrap();
    copies_out(Arc::new(blocking));
    copies_out(Arc::new(ring));
}

fn copies_out(storage: Arc<dyn Storage>) {
    let seed = 7;
    let mut rng = StdRng::seed_from_u64(seed);
    let (machine, mut agent) = machine_on(storage.clone());
    let mut image = vec![0; SIZE];
    let mut images = Vec::new();
    for point in 1..5_u64 {
        churn(&mut rng, &machine, &mut agent, &mut image, 600);
        let at = WallTime(point * 1000);
        deliver_point(&machine, &mut agent, at);
        while machine.apply_next(at).unwrap() != ApplyOutcome::Idle {}
        images.push(image.clone());
    }
    assert_eq!(machine.points().len(), images.len());
    for (number, (point, image)) in machine.points().iter().zip(&images).enumerate() {
        let view = machine.view(DISK, PointChoice::Id(point.id)).unwrap();
        let to = storage.open(Path::new(&number.to_string()), Open::CreateSparse(SIZE as u64));
        let to = to.unwrap();
        assert!(copy_out(&view, &*to, &mut |_| true).unwrap());
        let mut copy = vec![0; SIZE];
        to.read(&mut [ReadRequest { offset: 0, buffer: &mut copy }]).unwrap();
        assert!(copy == *image, "point {number} (seed {seed}) differs");
    }
    drops_what_is_old(&machine, &images);
}

#[test]
fn a_fault_while_one_window_is_filled_and_another_written_is_taken_up_again() {
    let faults = [
        Fault::enospc("disks").on(Kind::Write),
        Fault::eio("disks").on(Kind::Write),
        Fault::eio("journal").on(Kind::Read),
    ];
    for fault in faults {
        let mut failed = 0;
        for passing in [0, 1, 2, 3, 4, 300, 900] {
            let mut rng = StdRng::seed_from_u64(passing);
            let disk = LyingStorage::new(passing);
            let (machine, mut agent) = machine_on(Arc::new(disk.clone()));
            let (mut image, mut images) = (vec![0; SIZE], Vec::new());
            for at in [WallTime(1), WallTime(2)] {
                churn(&mut rng, &machine, &mut agent, &mut image, 600);
                deliver_point(&machine, &mut agent, at);
                disk.inject(fault.clone().after(passing));
                failed += usize::from(machine.apply_next(at).is_err());
                disk.clear_faults();
                while machine.apply_next(at).unwrap() != ApplyOutcome::Idle {}
                images.push(image.clone());
            }
            for (point, image) in machine.points().iter().zip(&images) {
                let view = machine.view(DISK, PointChoice::Id(point.id)).unwrap();
                let mut held = vec![0; SIZE];
                view.read(0, &mut held).unwrap();
                assert!(held == *image, "{fault:?} after {passing}");
            }
        }
        assert!(failed > 3, "{fault:?} was met {failed} times");
    }
}

fn drops_what_is_old(machine: &StoreMachine, images: &[Vec<u8>]) {
    let second = machine.points()[1].clone();
    let view = machine.view(DISK, PointChoice::Id(second.id)).unwrap();
    let far = WallTime(1 << 40);
    // The view holds the second point; only the first may go.
    assert_eq!(machine.drop_expired(far, Duration::ZERO).unwrap(), 1);
    let mut bytes = vec![0; 4096];
    view.read(8192, &mut bytes).unwrap();
    assert_eq!(bytes, images[1][8192..8192 + 4096]);
    drop(view);
    assert_eq!(machine.drop_expired(far, Duration::ZERO).unwrap(), images.len() - 2);
    assert_eq!(machine.points().len(), 1, "the newest stays");
    assert!(machine.free_segments(far, Duration::from_secs(1)).unwrap() > 0);
    assert_eq!(machine.free_segments(far, Duration::ZERO).unwrap(), 0);
}

#[test]
fn journal_apply_and_readers_go_on_at_once() {
    let root = tempfile::tempdir().unwrap();
    let storage: Arc<dyn Storage> = Arc::new(DirectoryStorage::new(root.path()));
    let options = StoreOptions { segment_bytes: 1 << 20, ..Default::default() };
    let store = Store::open(storage, options, WallTime(0)).unwrap();
    let machine = store.create_machine(MACHINE, "m", WallTime(0)).unwrap();
    let hello = super::world::admit(&machine, None).unwrap();
    let mut agent = Agent::new(hello.generation, hello.incarnation);
    let (blocks, points) = (super::world::BLOCKS, 60);
    std::thread::scope(|scope| {
        let applier = scope.spawn(|| {
            while machine.points().len() < points {
                machine.apply_next(WallTime(1)).unwrap();
                machine.free_segments(WallTime(1), Duration::ZERO).unwrap();
            }
        });
        let reader = scope.spawn(|| {
            while machine.points().len() < points {
                // Block 0 is rewritten before each point with the point's own number.
                for (number, point) in (1..).zip(machine.points()) {
                    let view = machine.view(DiskIndex(0), PointChoice::Id(point.id)).unwrap();
                    let mut bytes = vec![0; super::agent::BLOCK];
                    view.read(0, &mut bytes).unwrap();
                    assert_eq!(bytes, super::agent::block_of(number));
                }
            }
        });
        for number in 1..=u32::try_from(points).unwrap() {
            let mut records = vec![super::agent::write(0, 0, number)];
            records.push(super::agent::write(1, number as usize % blocks, number));
            records.extend([super::agent::consistent(0), super::agent::consistent(1)]);
            records.push(super::agent::marker(super::world::all_disks(), WallTime(1)));
            deliver(&machine, &mut agent, records, 1);
        }
        applier.join().unwrap();
        reader.join().unwrap();
    });
    assert_eq!(machine.status().applied, agent.last());
}
