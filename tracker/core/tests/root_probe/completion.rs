//! A write that is in flight across a cut: what the bitmap gets at completion is needed, since the
//! epoch that holds its mark at submission may be dropped before it lands.

use crate::bench::*;
use crate::{DISK, RING, track};
use redoubt_log::ByteRange;
use redoubt_tracker::{Array, CaptureMode, ChangeSource};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// A file system on a loop disk that can be frozen: writes to files on it then wait.
struct Freezable {
    mounted: PathBuf,
    is_frozen: bool,
    _disk: LoopDisk,
    _directory: tempfile::TempDir,
}

impl Freezable {
    fn new() -> Self {
        let disk = LoopDisk::new(64 << 20);
        run("mkfs.ext4", &["-q", disk.path.to_str().expect("a path of ours")]);
        let directory = tempfile::tempdir_in("/var/tmp").expect("a directory");
        let mounted = directory.path().join("mounted");
        std::fs::create_dir(&mounted).expect("a directory");
        let (device, place) = (disk.path.to_str(), mounted.to_str());
        run("mount", &[device.expect("a path"), place.expect("a path")]);
        Self { mounted, is_frozen: false, _disk: disk, _directory: directory }
    }

    fn freeze(&mut self, freeze: bool) {
        let flag = if freeze { "--freeze" } else { "--unfreeze" };
        run("fsfreeze", &[flag, self.mounted.to_str().expect("a path of ours")]);
        self.is_frozen = freeze;
    }
}

impl Drop for Freezable {
    fn drop(&mut self) {
        if self.is_frozen {
            self.freeze(false);
        }
        run("umount", &[self.mounted.to_str().expect("a path of ours")]);
    }
}

/// Drains until an event comes of which `is_it` is true.
fn wait_for(attached: &mut redoubt_tracker::probe::Attached, is_it: impl Fn(&Kept) -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !drain(attached).iter().any(&is_it) {
        assert!(Instant::now() < deadline, "the event does not come");
        attached.wait(Duration::from_millis(5)).expect("the ring");
    }
}

fn disk_over(directory: &Path) -> LoopDisk {
    let directory = tempfile::tempdir_in(directory).expect("a directory");
    LoopDisk::over(directory, 16 << 20, false)
}

#[test]
fn a_write_in_flight_across_a_cut_is_marked_when_it_completes() {
    let pins = PinDirectory::new("completion");
    let mut below = Freezable::new();
    let disk = disk_over(&below.mounted);
    let mut attached = pins.attach(RING);
    track(&mut attached, DISK, &disk.path, CaptureMode::Metadata);
    let range = ByteRange::new(1 << 20, 4096);
    let file = open_direct(&disk.path);
    below.freeze(true);
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| write_direct(&file, range, 9));
        wait_for(&mut attached, |event| matches!(event, Kept::Submitted { .. }));
        attached.cut(DISK).expect("the spare is clear");
        assert!(is_marked(&marks(&attached, DISK, Array::Spare), range));
        attached.clear_spare(DISK);
        assert!(marks(&attached, DISK, Array::Active).is_empty(), "it has not completed");
        assert_eq!(attached.disk_counters(DISK).unmarked, 0);
        below.freeze(false);
        writer.join().expect("no panic").expect("the write succeeds");
    });
    wait_for(&mut attached, |event| matches!(event, Kept::Completed { .. }));
    assert!(is_marked(&marks(&attached, DISK, Array::Active), range));
    // That is why the tracker drops an epoch only when its writes have ended.
    assert_eq!(attached.disk_counters(DISK).unmarked, 1);
}
