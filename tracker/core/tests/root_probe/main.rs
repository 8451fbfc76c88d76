//! The kernel side on real loop disks: what is written is marked, comes in order, and can be
//! replayed. Needs root.

mod bench;
mod completion;
mod missed;
mod recorded;

use bench::*;
use redoubt_log::{ByteRange, DiskIndex};
use redoubt_tracker::device::{BlockDevice, DeviceError, DeviceUse};
use redoubt_tracker::probe::{Attached, Capability, Probe, ProbeError, ProbeOptions};
use redoubt_tracker::source::Operation;
use redoubt_tracker::{Array, CaptureMode, ChangeSource};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

const DISK: DiskIndex = DiskIndex(0);
const GRANULE: u64 = 4096;
const RING: u32 = 16 << 20;

fn track(attached: &mut Attached, disk: DiskIndex, path: &Path, mode: CaptureMode) {
    let device = BlockDevice::resolve(path).expect("a device");
    attached.add_disk(disk, &device.identity()).expect("a free slot");
    attached.set_mode(disk, mode).expect("a known disk");
}

#[test]
fn the_canary_proves_data_capture_here() {
    let pins = PinDirectory::new("canary");
    let attached = pins.attach(RING);
    assert_eq!(*attached.capability(), Capability::Data);
    assert!(!attached.adopted());
    assert!(attached.disks().is_empty());
    let counters = attached.program_counters().expect("counters");
    assert_eq!(counters.len(), 6);
    assert!(counters.iter().all(|program| program.recursion_misses == 0), "{counters:?}");
}

#[test]
fn a_write_across_a_slots_edge_comes_clipped_and_without_data() {
    let pins = PinDirectory::new("edge");
    let disk = LoopDisk::new(16 << 20);
    let partition = disk.partition(8);
    let mut attached = pins.attach(RING);
    track(&mut attached, DISK, &partition, CaptureMode::Data);
    track(&mut attached, DiskIndex(1), &disk.path, CaptureMode::Metadata);
    let file = open_direct(&disk.path);
    write_direct(&file, ByteRange::new((1 << 20) - 4096, 8192), 5).expect("a write");
    let events: Vec<_> = drain(&mut attached)
        .into_iter()
        .filter_map(|event| match event {
            Kept::Submitted { disk, range, operation: Operation::Write, data } => {
                Some((disk.0, true, range, data))
            }
            Kept::Completed { disk, range, failed: false } => Some((disk.0, false, range, None)),
            _ => None,
        })
        .collect();
    let (part, whole) = (ByteRange::new(0, 4096), ByteRange::new((1 << 20) - 4096, 8192));
    let expected = [
        (0, true, part, None),
        (1, true, whole, None),
        (0, false, part, None),
        (1, false, whole, None),
    ];
    assert_eq!(events, expected);
    assert_eq!(marks(&attached, DISK, Array::Active), [part]);
    assert_eq!(marks(&attached, DiskIndex(1), Array::Active), [whole]);
}

#[test]
fn a_small_ring_loses_events_but_no_mark() {
    let pins = PinDirectory::new("small-ring");
    let disk = LoopDisk::new(64 << 20);
    let mut attached = pins.attach(ProbeOptions::RING_BYTES_MIN);
    track(&mut attached, DISK, &disk.path, CaptureMode::Data);
    let file = open_direct(&disk.path);
    for number in 0..512 {
        write_direct(&file, ByteRange::new(number * 3 * GRANULE, GRANULE), 7).expect("a write");
    }
    assert!(attached.lost(DISK) > 0);
    assert!(attached.wait(Duration::ZERO).expect("a wait"), "a full ring wakes its reader");
    let before_loss = drain(&mut attached).len();
    assert!(before_loss > 0 && before_loss < 1024, "{before_loss} events");
    let marked = marks(&attached, DISK, Array::Active);
    assert_eq!(marked.len(), 512);
    for number in 0..512 {
        assert!(is_marked(&marked, ByteRange::new(number * 3 * GRANULE, GRANULE)));
    }
    // Room again: what comes now comes whole. A bio above a sixteenth of the ring comes without its
    // data.
    let lost = attached.lost(DISK);
    attached.forget_partial(DISK);
    write_direct(&file, ByteRange::new(0, GRANULE), 9).expect("a write");
    write_direct(&file, ByteRange::new(0, 8192), 9).expect("a write");
    assert_eq!(attached.lost(DISK), lost);
    let sizes: Vec<_> = drain(&mut attached)
        .into_iter()
        .filter_map(|event| match event {
            Kept::Submitted { range, data, .. } => {
                Some((range.length, data.map(|data| data.len())))
            }
            _ => None,
        })
        .collect();
    assert_eq!(sizes, [(GRANULE, Some(4096)), (8192, None)]);
}

#[test]
fn pins_go_on_marking_without_us_and_are_adopted() {
    let pins = PinDirectory::new("adopt");
    let disk = LoopDisk::new(16 << 20);
    let mut attached = pins.attach(RING);
    track(&mut attached, DISK, &disk.path, CaptureMode::Data);
    let file = open_direct(&disk.path);
    write_direct(&file, ByteRange::new(0, GRANULE), 1).expect("a write");
    attached.cut(DISK).expect("a clear spare");
    let identity = attached.disks()[0].identity;
    drop(attached);

    write_direct(&file, ByteRange::new(10 * GRANULE, GRANULE), 2).expect("a write");
    let mut attached = pins.attach(ProbeOptions::default().ring_bytes);
    assert!(attached.adopted() && attached.refused().is_none());
    assert_eq!(attached.ring_bytes(), u64::from(RING));
    assert_eq!(*attached.capability(), Capability::Data);
    assert_eq!(attached.disks().len(), 1);
    assert_eq!(attached.disks()[0].identity, identity);
    assert_eq!(identity, BlockDevice::resolve(&disk.path).expect("a device").identity());
    assert_eq!(marks(&attached, DISK, Array::Spare), [ByteRange::new(0, GRANULE)]);
    let expected = [ByteRange::new(10 * GRANULE, GRANULE)];
    assert_eq!(marks(&attached, DISK, Array::Active), expected);
    assert!(matches!(attached.cut(DISK), Err(ProbeError::SpareNotClear { disk: DISK })));

    // Half a set is no set.
    attached.remove_disk(DISK).expect("a known disk");
    drop(attached);
    std::fs::remove_file(pins.0.join("link_split")).expect("a pin");
    let attached = pins.attach(RING);
    assert!(!attached.adopted() && attached.refused().is_some() && attached.disks().is_empty());
    attached.detach().expect("to detach");
    assert!(!pins.0.exists());
    Probe::detach(&pins.0).expect("nothing to detach is fine");
}

#[test]
fn failed_writes_come_as_failed() {
    let pins = PinDirectory::new("failing");
    let full = Tmpfs::new("size=1m");
    let directory = tempfile::tempdir_in(&full.0).expect("a directory");
    let disk = LoopDisk::over(directory, 8 << 20, false);
    let mut attached = pins.attach(RING);
    track(&mut attached, DISK, &disk.path, CaptureMode::Data);
    let file = open_direct(&disk.path);
    write_direct(&file, ByteRange::new(0, 65_536), 1).expect("room for a little");
    write_direct(&file, ByteRange::new(4 << 20, 2 << 20), 1).expect_err("no room for that");
    let (mut good, mut bad) = (0, 0);
    for event in drain(&mut attached) {
        if let Kept::Completed { range, failed, .. } = event {
            *(if failed { &mut bad } else { &mut good }) += range.length;
        }
    }
    assert!(good >= 65_536 && bad > 0, "{good} bytes written, {bad} failed");
    assert_eq!(good + bad, 65_536 + (2 << 20));
}

/// A memory file system of a bounded size.
struct Tmpfs(std::path::PathBuf);

impl Tmpfs {
    fn new(options: &str) -> Self {
        let path = tempfile::tempdir().expect("a directory").keep();
        run("mount", &["-t", "tmpfs", "-o", options, "tmpfs", path.to_str().expect("a path")]);
        Self(path)
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        // Lazily: the loop disk over it may still be closing.
        let path = self.0.to_str().expect("a path");
        run("umount", &["-l", path]);
        std::fs::remove_dir(path).expect("an empty mount point");
    }
}

#[test]
fn a_cut_loses_no_mark_of_a_busy_writer() {
    let pins = PinDirectory::new("cut");
    let disk = LoopDisk::new(64 << 20);
    let mut attached = pins.attach(RING);
    track(&mut attached, DISK, &disk.path, CaptureMode::Bitmap);
    let file = open_direct(&disk.path);
    let (stop, begun, ended) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    let granules = (64 << 20) / GRANULE;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for number in 0..granules {
                begun.store(number + 1, Ordering::SeqCst);
                write_direct(&file, ByteRange::new(number * GRANULE, GRANULE), 3).expect("a write");
                ended.store(number + 1, Ordering::SeqCst);
                if stop.load(Ordering::SeqCst) {
                    break;
                }
            }
        });
        let mut covered = 0;
        for _ in 0..12 {
            let whole = ended.load(Ordering::SeqCst);
            attached.cut(DISK).expect("a clear spare");
            let later = begun.load(Ordering::SeqCst);
            let old = marks(&attached, DISK, Array::Spare);
            if covered < whole {
                // All that ended before the cut began, since the last one, is in the spare.
                assert!(is_marked(&old, ByteRange::between(covered * GRANULE, whole * GRANULE)));
            }
            // Nothing that began after the cut returned is.
            assert!(old.iter().all(|range| range.end() <= later * GRANULE), "{old:?} {later}");
            covered = old.last().map_or(covered, |range| (range.end() / GRANULE).max(covered));
            attached.clear_spare(DISK);
            assert!(marks(&attached, DISK, Array::Spare).is_empty());
        }
        stop.store(true, Ordering::SeqCst);
    });
    let counters = attached.disk_counters(DISK);
    assert_eq!((counters.lost, counters.submissions), (0, 0));
    assert!(counters.completions > 0);
}

#[test]
fn devices_say_what_they_are() {
    let disk = LoopDisk::new(16 << 20);
    let partition = disk.partition(8);
    let whole = BlockDevice::resolve(&disk.path).expect("a device");
    let part = BlockDevice::resolve(&partition).expect("a partition");
    assert_eq!((whole.start, whole.length, whole.whole), (0, 16 << 20, part.whole));
    assert_eq!((part.start, part.length, part.device_bytes), (1 << 20, 8 << 20, 16 << 20));
    assert_eq!((whole.logical_block_bytes, whole.diskseq), (512, part.diskseq));
    assert!(whole.request_based && whole.uses.is_empty());
    run("mkfs.ext4", &["-q", partition.to_str().expect("a path")]);
    let point = tempfile::tempdir().expect("a directory");
    let target = point.path().to_str().expect("a path");
    run("mount", &[partition.to_str().expect("a path"), target]);
    let uses = BlockDevice::resolve(&disk.path).map(|device| device.uses);
    run("umount", &[target]);
    assert_eq!(uses.expect("a device"), [DeviceUse::Mounted(point.path().to_owned())]);
    run("blockdev", &["--setro", disk.path.to_str().expect("a path")]);
    let refused = BlockDevice::resolve(&disk.path);
    // The kernel keeps this for whoever uses the loop device next.
    run("blockdev", &["--setrw", disk.path.to_str().expect("a path")]);
    assert!(matches!(refused, Err(DeviceError::ReadOnly { .. })));
}

#[test]
fn marks_of_ours_are_marks() {
    let pins = PinDirectory::new("marks");
    let disk = LoopDisk::new((1 << 20) + 512);
    let mut attached = pins.attach(RING);
    track(&mut attached, DISK, &disk.path, CaptureMode::Bitmap);
    attached.mark(DISK, ByteRange::new(4095, 2));
    attached.mark(DISK, ByteRange::new(60 * GRANULE, 10 * GRANULE));
    attached.mark(DISK, ByteRange::new(1 << 20, 1 << 20));
    let expected = [
        ByteRange::new(0, 2 * GRANULE),
        ByteRange::new(60 * GRANULE, 10 * GRANULE),
        ByteRange::new(1 << 20, 512),
    ];
    assert_eq!(marks(&attached, DISK, Array::Active), expected);
    let second = BlockDevice::resolve(&disk.path).expect("a device").identity();
    let taken = attached.add_disk(DISK, &second);
    assert!(matches!(taken, Err(ProbeError::DiskTaken { disk: DISK })));
    for number in 1..8 {
        attached.add_disk(DiskIndex(number), &second).expect("eight fit");
    }
    let full = attached.add_disk(DiskIndex(8), &second);
    assert!(matches!(full, Err(ProbeError::DeviceFull { .. })));
}
