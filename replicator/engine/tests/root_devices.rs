//! Real block devices and a file system that is full. Needs root, losetup and mount.

#![allow(clippy::unwrap_used, reason = "the helpers of a test may panic as the test itself may")]

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use redoubt_engine::device::Device;
use redoubt_engine::directory::DirectoryStorage;
use redoubt_engine::storage::{Open, ReadRequest, Storage, WriteRequest};
use redoubt_engine::uring_directory::{UringOptions, UringStorage};

const DEVICE_BYTES: u64 = 8 << 20;

struct LoopDevice {
    path: PathBuf,
    _backing: tempfile::NamedTempFile,
}

impl LoopDevice {
    fn new(sector_bytes: u32) -> Self {
        let backing = tempfile::NamedTempFile::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        backing.as_file().set_len(DEVICE_BYTES).unwrap();
        let output = Command::new("losetup")
            .args(["--find", "--show", "--direct-io=on"])
            .arg(format!("--sector-size={sector_bytes}"))
            .arg(backing.path())
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let path = PathBuf::from(String::from_utf8(output.stdout).unwrap().trim());
        LoopDevice { path, _backing: backing }
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        Command::new("losetup").arg("--detach").arg(&self.path).status().unwrap();
    }
}

fn storages(root: &Path) -> Vec<(&'static str, Box<dyn Storage>)> {
    let ring = |direct| UringStorage::new(root, UringOptions { direct, depth: 16 }).unwrap();
    vec![
        ("blocking", Box::new(DirectoryStorage::new(root))),
        ("direct", Box::new(ring(true))),
        ("buffered", Box::new(ring(false))),
    ]
}

#[test]
fn block_devices_hold_what_a_map_of_their_bytes_holds() {
    for sector_bytes in [512, 4096] {
        let device = LoopDevice::new(sector_bytes);
        for (name, storage) in storages(Path::new("")) {
            for seed in 0..3 {
                println!("{name}, sectors of {sector_bytes}, seed {seed}");
                check_device(storage.as_ref(), &device.path, seed);
            }
        }
    }
}

fn check_device(storage: &dyn Storage, path: &Path, seed: u64) {
    let mut rng = StdRng::seed_from_u64(seed);
    let file = storage.open(path, Open::ReadWrite).unwrap();
    assert_eq!(file.size(), DEVICE_BYTES);
    assert_eq!(file.next_data(4096).unwrap(), Some((4096, DEVICE_BYTES - 4096)));
    assert_eq!(file.next_data(DEVICE_BYTES).unwrap(), None);
    let mut model = vec![0; usize::try_from(DEVICE_BYTES).unwrap()];
    file.read(&mut [ReadRequest { offset: 0, buffer: &mut model }]).unwrap();
    for _ in 0..40 {
        let unit = [1, 512, 4096][rng.random_range(0..3)];
        let from = rng.random_range(0..model.len() / 2 / unit) * unit;
        let to = from + rng.random_range(0..100_000 / unit) * unit;
        let offset = from as u64;
        if rng.random_bool(0.3) {
            model[from..to].fill(0);
            file.zero(offset, (to - from) as u64).unwrap();
        } else {
            rng.fill(&mut model[from..to]);
            file.write(&[WriteRequest { offset, data: &model[from..to] }]).unwrap();
        }
    }
    file.sync().unwrap();
    // Another handle, through the page cache: what the first wrote must be what everybody sees.
    assert!(std::fs::read(path).unwrap() == model, "the device differs from the map");
    let mut seen = vec![1; model.len() - 5];
    file.read(&mut [ReadRequest { offset: 3, buffer: &mut seen }]).unwrap();
    assert!(seen == model[3..model.len() - 2], "read back differently");
}

struct SmallMount(tempfile::TempDir);

impl SmallMount {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let options = Some("size=1m");
        mount(Some("none"), directory.path(), Some("tmpfs"), MsFlags::empty(), options).unwrap();
        SmallMount(directory)
    }
}

impl Drop for SmallMount {
    fn drop(&mut self) {
        umount2(self.0.path(), MntFlags::MNT_DETACH).unwrap();
    }
}

#[test]
fn a_full_file_system_is_an_error_and_leaves_no_half_made_file() {
    let small = SmallMount::new();
    for (name, storage) in storages(small.0.path()) {
        assert!(storage.free_space().unwrap() <= 1 << 20);
        let path = Path::new("large");
        let error = storage.open(path, Open::CreateAllocated(4 << 20)).err().unwrap();
        assert_eq!(error.source.kind(), ErrorKind::StorageFull, "{name}");
        assert!(storage.list(Path::new("")).unwrap().is_empty(), "{name}");

        let file = storage.open(path, Open::CreateSparse(4 << 20)).unwrap();
        let data = vec![1; 2 << 20];
        let error = file.write(&[WriteRequest { offset: 0, data: &data }]).unwrap_err();
        assert_eq!(error.source.kind(), ErrorKind::StorageFull, "{name}");
        storage.replace(Path::new("manifest"), &data).unwrap_err();
        assert_eq!(storage.list(Path::new("")).unwrap(), ["large"], "{name}");
        storage.remove(path).unwrap();
    }
}

#[test]
fn a_claimed_device_is_nobody_elses_and_is_known_again() {
    let device = LoopDevice::new(512);
    for (name, storage) in storages(Path::new("")) {
        let claimed = storage.open(&device.path, Open::Claim).unwrap();
        assert_eq!(claimed.size(), DEVICE_BYTES, "{name}");
        let backing = device._backing.path().canonicalize().unwrap();
        let known = claimed.identity().unwrap();
        assert_eq!(known, Some(format!("file:{}", backing.display())), "{name}");
        let second = storage.open(&device.path, Open::Claim).err().expect(name);
        assert_eq!(second.source.kind(), ErrorKind::ResourceBusy, "{name}");
        // Who only looks is not shut out.
        storage.open(&device.path, Open::ReadOnly).unwrap();
    }
    let examined = Device::examine(&device.path).unwrap();
    assert_eq!((examined.size, examined.start), (DEVICE_BYTES, 0));
    assert!(!examined.read_only && examined.users.is_empty(), "{examined:?}");
}

#[test]
fn only_a_block_device_is_claimed() {
    let file = tempfile::NamedTempFile::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    for (name, storage) in storages(Path::new("")) {
        let error = storage.open(file.path(), Open::Claim).err().expect(name);
        assert_eq!(error.source.kind(), ErrorKind::InvalidInput, "{name}");
    }
}
