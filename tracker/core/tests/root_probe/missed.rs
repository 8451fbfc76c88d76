//! A submission that nobody saw: its completion says so, marks what it wrote, and the tracker reads
//! that again.

use crate::bench::*;
use crate::{DISK, GRANULE, RING, track};
use redoubt_log::{ByteRange, DiskIndex, GapReason, Sequence};
use redoubt_tracker::probe::Attached;
use redoubt_tracker::{Array, CaptureMode, ChangeSource, Gather, LogSink, Tracking};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

/// From the last name of a program to its end; the kernel detaches it in the background.
const DETACHED_WITHIN: Duration = Duration::from_secs(30);

/// Takes the program away that sees submissions, and waits until it sees none: a write to the last
/// granule of the file's device is not captured any more.
fn detach_submissions(pins: &PinDirectory, attached: &Attached, file: &File, end: u64) {
    std::fs::remove_file(pins.0.join("link_submitted")).expect("a pin");
    let deadline = Instant::now() + DETACHED_WITHIN;
    loop {
        let before = attached.disk_counters(DISK).submissions;
        write_direct(file, ByteRange::new(end - GRANULE, GRANULE), 1).expect("a write");
        if attached.disk_counters(DISK).submissions == before {
            return;
        }
        assert!(Instant::now() < deadline, "submissions are still seen");
    }
}

#[test]
fn a_completion_counts_once_its_range_was_marked_by_nobody() {
    let pins = PinDirectory::new("unmarked");
    let disk = LoopDisk::new(16 << 20);
    let mut attached = pins.attach(RING);
    track(&mut attached, DISK, &disk.path, CaptureMode::Metadata);
    let file = open_direct(&disk.path);
    write_direct(&file, ByteRange::new(0, 4 * GRANULE), 1).expect("a write");
    detach_submissions(&pins, &attached, &file, 16 << 20);
    let unmarked = |attached: &Attached| attached.disk_counters(DISK).unmarked;
    let before = unmarked(&attached);
    // Marked already, in this epoch or the one before.
    write_direct(&file, ByteRange::new(GRANULE, 2 * GRANULE), 2).expect("a write");
    attached.cut(DISK).expect("a clear spare");
    write_direct(&file, ByteRange::new(GRANULE, GRANULE), 2).expect("a write");
    assert_eq!(unmarked(&attached), before);
    // Its ends were marked, its middle was not.
    attached.mark(DISK, ByteRange::new(100 * GRANULE, GRANULE));
    attached.mark(DISK, ByteRange::new(199 * GRANULE, GRANULE));
    let range = ByteRange::new(100 * GRANULE, 100 * GRANULE);
    write_direct(&file, range, 3).expect("a write");
    assert!(unmarked(&attached) > before);
    assert!(is_marked(&marks(&attached, DISK, Array::Active), range));
}

/// The content that the log has of a disk.
struct Content {
    bytes: Vec<u8>,
    records: u64,
}

impl LogSink for Content {
    fn write(&mut self, disk: DiskIndex, range: ByteRange, data: Gather<'_>) {
        self.backfill(disk, range, &data.concat());
    }
    fn zero(&mut self, disk: DiskIndex, range: ByteRange) {
        self.backfill(disk, range, &vec![0; size(range.length)]);
    }
    fn discard(&mut self, _disk: DiskIndex, _range: ByteRange) {
        panic!("nothing was discarded");
    }
    fn backfill(&mut self, _disk: DiskIndex, range: ByteRange, data: &[u8]) {
        self.bytes[size(range.offset)..size(range.end())].copy_from_slice(data);
        self.records += 1;
    }
    fn checkpoint(&mut self) {}
    fn gap(&mut self, _disk: DiskIndex, _reason: GapReason) {}
    fn consistent(&mut self, _disk: DiskIndex) {}
    fn has_room(&self, _bytes: u64) -> bool {
        true
    }
    fn position(&self) -> Sequence {
        Sequence(self.records)
    }
}

/// Reads all that the log lacks.
fn catch_up(tracking: &mut Tracking, attached: &mut Attached, log: &mut Content, file: &File) {
    while let Some(order) = tracking.next_read(DISK, 1 << 20) {
        let mut memory = Aligned::new(size(order.range.length));
        file.read_exact_at(memory.bytes(), order.range.offset).expect("a read");
        tracking.finish_read(attached, order, memory.bytes(), log).expect("the tracker");
    }
    tracking.pump(attached, log).expect("the tracker");
}

#[test]
fn what_a_missed_submission_wrote_is_read_again_and_no_point_is_good_before() {
    const BYTES: u64 = 16 << 20;
    let pins = PinDirectory::new("missed");
    let disk = LoopDisk::new(BYTES);
    let mut attached = pins.attach(RING);
    track(&mut attached, DISK, &disk.path, CaptureMode::Bitmap);
    let file = open_direct(&disk.path);
    let mut log = Content { bytes: vec![0xee; size(BYTES)], records: 0 };
    let mut tracking = Tracking::new(CaptureMode::Data);
    tracking.add_whole(&mut attached, DISK, BYTES, GapReason::FirstSync, &mut log).expect("a disk");
    catch_up(&mut tracking, &mut attached, &mut log, &file);
    // What was marked by the first sync would hide what is missed.
    tracking.acknowledged(&mut attached, log.position());
    write_direct(&file, ByteRange::new(0, GRANULE), 1).expect("a write");
    tracking.pump(&mut attached, &mut log).expect("the tracker");
    let before = tracking.progress(DISK).expect("a disk");
    assert!(before.settled && before.missed == 0, "{before:?}");
    assert_eq!(before.mode, CaptureMode::Data);

    detach_submissions(&pins, &attached, &file, BYTES);
    write_direct(&file, ByteRange::new(8 << 20, 64 * GRANULE), 9).expect("a write");
    tracking.pump(&mut attached, &mut log).expect("the tracker");
    let missed = tracking.progress(DISK).expect("a disk");
    assert!(!missed.settled && missed.missed > 0, "{missed:?}");
    assert_eq!(missed.gap, Some(GapReason::MissedEvents));
    assert_eq!(missed.unmarked, attached.disk_counters(DISK).unmarked);
    catch_up(&mut tracking, &mut attached, &mut log, &file);
    assert!(tracking.settled().contains(DISK));
    assert!(log.bytes == content(&disk.path), "the log is the disk");

    // While nobody looks: the next run finds the count risen.
    let answered = tracking.progress(DISK).expect("a disk").unmarked;
    tracking.pause(&mut attached, DISK).expect("the tracker");
    let range = ByteRange::new(12 << 20, GRANULE);
    write_direct(&file, range, 7).expect("a write");
    let mut tracking = Tracking::new(CaptureMode::Metadata);
    let reason = GapReason::AgentRestarted;
    tracking.adopt(&mut attached, DISK, BYTES, answered, reason, &mut log).expect("a disk");
    let found = tracking.progress(DISK).expect("a disk");
    assert_eq!((found.missed, found.mode), (1, CaptureMode::Metadata));
    assert_eq!(found.gap, Some(GapReason::MissedEvents));
    catch_up(&mut tracking, &mut attached, &mut log, &file);
    assert!(log.bytes == content(&disk.path), "the log is the disk");
}
