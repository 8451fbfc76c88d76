//! A recorded run: the events of several disks under load, replayed onto their base images, give
//! the disks.

use crate::bench::*;
use crate::track;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use redoubt_log::{ByteRange, DiskIndex};
use redoubt_tracker::source::Operation;
use redoubt_tracker::{Array, CaptureMode};
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

const DISK_BYTES: u64 = 48 << 20;
const PARTITION_MEBIBYTES: u64 = 32;
const OPERATIONS: u32 = 120;
/// Kinds of operation by their weight; the first so many operations are one of each.
const KINDS: u32 = 20;
const SECTOR: u64 = 512;

/// What a replay makes of one disk, and which bytes were written.
struct Replay {
    image: Vec<u8>,
    written: Vec<ByteRange>,
    bytes_captured: u64,
    splits: usize,
    operations: [usize; 3],
    completed: u64,
}

impl Replay {
    fn apply(&mut self, event: Kept) {
        match event {
            Kept::Submitted { range, operation, data, .. } => {
                let place = &mut self.image[size(range.offset)..size(range.end())];
                match (operation, data) {
                    (Operation::Write, Some(data)) => {
                        place.copy_from_slice(&data);
                        self.bytes_captured += range.length;
                    }
                    // A loop disk over a file reads as zero where it was discarded.
                    (Operation::WriteZeroes | Operation::Discard, None) => place.fill(0),
                    (operation, data) => panic!("{operation:?} at {range} with {}", data.is_some()),
                }
                let kind = match operation {
                    Operation::Write => 0,
                    Operation::WriteZeroes => 1,
                    Operation::Discard => 2,
                };
                self.operations[kind] += 1;
                self.written.push(range);
            }
            Kept::Completed { failed, range, .. } => {
                assert!(!failed);
                self.completed += range.length;
            }
            Kept::Split { front, parent, range } => {
                assert!(front != parent && !range.is_empty());
                self.splits += 1;
            }
        }
    }
}

fn random_range(random: &mut StdRng, limit: u64, longest: u64) -> ByteRange {
    let length = random.random_range(1..=longest / SECTOR) * SECTOR;
    let offset = random.random_range(0..=(limit - length) / SECTOR) * SECTOR;
    ByteRange::new(offset, length)
}

/// One writer a disk, one write at a time: overlaps are never in flight at once, so the replay must
/// be exact.
fn write_much(path: &Path, limit: u64, seed: u64) {
    let mut random = StdRng::seed_from_u64(seed);
    let direct = open_direct(path);
    let mut buffered: File = OpenOptions::new().write(true).open(path).expect("a device");
    let name = path.to_str().expect("a path");
    for number in 0..OPERATIONS {
        let kind = if number < KINDS { number } else { random.random_range(0..KINDS) };
        match kind {
            0 => {
                let range = random_range(&mut random, limit, 4 << 20);
                discard(name, range, &["-f"]);
            }
            1 => {
                let range = random_range(&mut random, limit, 2 << 20);
                discard(name, range, &["-f", "--zeroout"]);
            }
            2 => {
                // Large, from memory that begins within a page: its vectors are no whole pages.
                let range = ByteRange::new(random_range(&mut random, limit, 512).offset, 4 << 20);
                let Some(range) = range.intersection(&ByteRange::new(0, limit)) else { continue };
                let mut memory = Aligned::new(size(range.length) + 512);
                random.fill(&mut memory.bytes()[512..]);
                direct.write_all_at(&memory.bytes()[512..], range.offset).expect("a write");
            }
            3..6 => {
                let range = random_range(&mut random, limit, 1 << 20);
                let mut bytes = vec![0; size(range.length)];
                random.fill(&mut bytes[..]);
                buffered.write_all_at(&bytes, range.offset).expect("a write");
                buffered.flush().and_then(|()| buffered.sync_all()).expect("a sync");
            }
            _ => {
                let longest = if random.random_bool(0.5) { 8192 } else { 256 << 10 };
                let range = random_range(&mut random, limit, longest);
                let mut memory = Aligned::new(size(range.length));
                random.fill(memory.bytes());
                direct.write_all_at(memory.bytes(), range.offset).expect("a write");
            }
        }
    }
    buffered.sync_all().expect("a sync");
}

fn discard(device: &str, range: ByteRange, how: &[&str]) {
    let (offset, length) = (range.offset.to_string(), range.length.to_string());
    run("blkdiscard", &[how, &["-o", &offset, "-l", &length, device]].concat());
}

#[test]
fn a_replay_onto_the_base_image_is_the_disk() {
    let seed: u64 = rand::random();
    println!("seed {seed}");
    let pins = PinDirectory::new("recorded");
    let disks = [LoopDisk::new(DISK_BYTES), LoopDisk::new(DISK_BYTES), LoopDisk::new(DISK_BYTES)];
    let partition = disks[2].partition(PARTITION_MEBIBYTES);
    let paths = [disks[0].path.clone(), disks[1].path.clone(), partition];
    let limits = [DISK_BYTES, DISK_BYTES, PARTITION_MEBIBYTES << 20];
    // A base that no write makes by itself.
    for (path, limit) in paths.iter().zip(limits) {
        write_direct(&open_direct(path), ByteRange::new(0, limit), 0xa5).expect("a base");
    }
    let mut replays = paths.each_ref().map(|path| Replay {
        image: content(path),
        written: Vec::new(),
        bytes_captured: 0,
        splits: 0,
        operations: [0; 3],
        completed: 0,
    });
    let mut attached = pins.attach(64 << 20);
    for (number, path) in (0..).zip(&paths) {
        track(&mut attached, DiskIndex(number), path, CaptureMode::Data);
    }
    // The whole third disk is watched too, in marks only: two slots on one device.
    track(&mut attached, DiskIndex(40), &disks[2].path, CaptureMode::Bitmap);
    let running = AtomicUsize::new(paths.len());
    std::thread::scope(|scope| {
        for ((path, limit), number) in paths.iter().zip(limits).zip(0..) {
            let running = &running;
            scope.spawn(move || {
                write_much(path, limit, seed ^ number);
                running.fetch_sub(1, Ordering::SeqCst);
            });
        }
        while running.load(Ordering::SeqCst) > 0 {
            replay(&mut attached, &mut replays);
        }
    });
    replay(&mut attached, &mut replays);
    check(&attached, &replays, &paths);
}

fn replay(attached: &mut redoubt_tracker::probe::Attached, replays: &mut [Replay; 3]) {
    for event in drain(attached) {
        let disk = match &event {
            Kept::Submitted { disk, .. } | Kept::Completed { disk, .. } => *disk,
            // Only counted.
            Kept::Split { .. } => DiskIndex(0),
        };
        replays[usize::from(disk.0)].apply(event);
    }
}

fn check(
    attached: &redoubt_tracker::probe::Attached,
    replays: &[Replay; 3],
    paths: &[std::path::PathBuf; 3],
) {
    let programs = attached.program_counters().expect("counters");
    println!("{programs:?}");
    assert!(programs.iter().all(|program| program.recursion_misses == 0));
    for ((number, replay), path) in (0..).zip(replays).zip(paths) {
        let disk = DiskIndex(number);
        let counters = attached.disk_counters(disk);
        println!(
            "disk {disk}: {counters:?}, {:?} operations, {} splits",
            replay.operations, replay.splits
        );
        assert_eq!((counters.lost, counters.unreadable, counters.unmarked), (0, 0, 0));
        assert!(replay.bytes_captured > 0 && replay.operations.iter().all(|count| *count > 0));
        let submitted: u64 = replay.written.iter().map(|range| range.length).sum();
        assert_eq!(submitted, replay.completed, "every byte submitted ends once");
        let is = content(path);
        let differs = is.iter().zip(&replay.image).position(|(is, replayed)| is != replayed);
        assert_eq!(differs, None, "disk {disk}: first byte that differs");
        let marked = marks(attached, disk, Array::Active);
        for range in &replay.written {
            assert!(is_marked(&marked, *range), "disk {disk}: {range} is not marked");
        }
    }
    let whole = marks(attached, DiskIndex(40), Array::Active);
    for range in &replays[2].written {
        let range = ByteRange::new(range.offset + (1 << 20), range.length);
        assert!(is_marked(&whole, range), "{range} is not marked on the whole disk");
    }
}
