//! The lying storage's own promises: synced data survives every cut, unsynced data sometimes does
//! not, and tears at sectors.

use super::*;
use crate::storage::{BlockFile, Open, ReadRequest, Storage, WriteRequest};

const LENGTH: usize = 64 * 512;
const SIZE: u64 = LENGTH as u64;
const SEEDS: u64 = 100;

fn path() -> &'static Path {
    Path::new("file")
}

fn write(file: &Arc<dyn BlockFile>, offset: u64, data: &[u8]) -> Result<()> {
    file.write(&[WriteRequest { offset, data }])
}

fn content(storage: &LyingStorage) -> Option<Vec<u8>> {
    storage.load(path()).unwrap()
}

/// A durable file full of ones.
fn prepared(seed: u64) -> (LyingStorage, Arc<dyn BlockFile>) {
    let storage = LyingStorage::new(seed);
    let file = storage.open(path(), Open::CreateSparse(SIZE)).unwrap();
    write(&file, 0, &[1; LENGTH]).unwrap();
    file.sync().unwrap();
    storage.sync_directory(Path::new("")).unwrap();
    (storage, file)
}

#[test]
fn synced_data_survives_every_cut() {
    for seed in 0..SEEDS {
        let (storage, file) = prepared(seed);
        write(&file, 700, &[2; 900]).unwrap();
        file.zero(10_000, 5000).unwrap();
        file.sync().unwrap();
        let expected = content(&storage);
        for _ in 0..3 {
            storage.crash();
            storage.restart();
            assert_eq!(content(&storage), expected, "seed {seed}");
        }
    }
}

#[test]
fn unsynced_data_is_kept_lost_or_torn_at_sectors() {
    let (mut kept, mut lost, mut torn) = (0, 0, 0);
    for seed in 0..SEEDS {
        let (storage, file) = prepared(seed);
        write(&file, 0, &[2; LENGTH]).unwrap();
        assert_eq!(content(&storage).unwrap(), [2; LENGTH], "readers see what was written");
        storage.restart();
        let bytes = content(&storage).unwrap();
        for sector in bytes.chunks(512) {
            assert!(sector == [1; 512] || sector == [2; 512], "seed {seed}: torn inside a sector");
        }
        match bytes.iter().filter(|byte| **byte == 2).count() {
            0 => lost += 1,
            count if count == bytes.len() => kept += 1,
            _ => torn += 1,
        }
    }
    assert!(kept > 0 && lost > 0 && torn > 0, "kept {kept}, lost {lost}, torn {torn}");
}

#[test]
fn a_cut_may_bring_back_any_version_since_the_sync() {
    let mut seen = BTreeSet::new();
    for seed in 0..SEEDS {
        let (storage, file) = prepared(seed);
        for version in 2..5 {
            write(&file, 0, &[version; 512]).unwrap();
        }
        storage.restart();
        seen.insert(content(&storage).unwrap()[0]);
    }
    assert_eq!(seen, BTreeSet::from([1, 2, 3, 4]));
}

#[test]
fn names_need_their_directory_synced_and_data_its_file() {
    let (mut gone, mut empty, mut whole) = (0, 0, 0);
    for seed in 0..SEEDS {
        let storage = LyingStorage::new(seed);
        storage.open(path(), Open::CreateSparse(512)).unwrap().sync().unwrap();
        storage.restart();
        gone += usize::from(content(&storage).is_none());

        let storage = LyingStorage::new(seed);
        storage.open(path(), Open::CreateSparse(512)).unwrap();
        storage.sync_directory(Path::new("")).unwrap();
        storage.restart();
        let bytes = content(&storage).expect("the name is durable");
        empty += usize::from(bytes.is_empty());
        whole += usize::from(bytes.len() == 512);
    }
    assert!(gone > 0 && empty > 0 && whole > 0, "gone {gone}, empty {empty}, whole {whole}");
}

#[test]
fn a_replacement_is_whole_at_every_cut() {
    let (mut old, mut new) = (0, 0);
    for seed in 0..SEEDS {
        for cut in 0..8 {
            let storage = LyingStorage::new(seed);
            storage.replace(path(), &[1; 3000]).unwrap();
            storage.crash_after(cut);
            let outcome = storage.replace(path(), &[2; 2000]);
            storage.restart();
            let bytes = content(&storage).expect("one of the two");
            if bytes == [2; 2000] {
                new += 1;
            } else {
                assert_eq!(bytes, [1; 3000], "seed {seed} cut {cut}");
                assert!(outcome.is_err(), "seed {seed} cut {cut}: lost after it was durable");
                old += 1;
            }
            storage.replace(path(), b"again").unwrap();
        }
    }
    assert!(old > 0 && new > 0);
}

#[test]
fn a_rename_never_makes_two_names_and_never_none() {
    let mut seen = BTreeSet::new();
    for seed in 0..SEEDS {
        let (storage, _) = prepared(seed);
        storage.create_directory(Path::new("d")).unwrap();
        let (second, third) = (Path::new("d/second"), Path::new("third"));
        storage.rename(path(), second).unwrap();
        storage.rename(second, third).unwrap();
        if seed % 2 == 0 {
            storage.sync_directory(Path::new("d")).unwrap();
        }
        storage.restart();
        let names = [storage.list(Path::new("")).unwrap(), storage.list(Path::new("d")).unwrap()];
        let names: Vec<String> = names.concat().into_iter().filter(|name| name != "d").collect();
        assert_eq!(names.len(), 1, "seed {seed}: {names:?}");
        assert!(seed % 2 == 1 || names[0] == "third", "seed {seed}: synced, but {names:?}");
        seen.extend(names);
    }
    assert_eq!(seen.len(), 3, "{seen:?}");
}

#[test]
fn after_a_cut_everything_fails_until_the_restart_and_old_handles_for_ever() {
    let (storage, file) = prepared(7);
    storage.crash_after(1);
    write(&file, 0, &[3; 512]).unwrap();
    assert!(is_power_cut(&file.sync().unwrap_err()));
    assert!(storage.is_crashed());
    assert!(is_power_cut(&storage.load(path()).unwrap_err()));
    storage.restart();
    assert!(is_power_cut(&file.sync().unwrap_err()));
    storage.open(path(), Open::ReadWrite).unwrap().sync().unwrap();
}

#[test]
fn a_cut_may_fall_inside_a_batch() {
    let (storage, file) = prepared(3);
    let batch = [0, 512, 1024].map(|offset| WriteRequest { offset, data: &[5; 512] });
    let before = storage.operations();
    file.write(&batch).unwrap();
    assert_eq!(storage.operations() - before, 3);
    storage.crash_after(1);
    assert!(is_power_cut(&file.write(&batch).unwrap_err()));
}

#[test]
fn faults_fire_where_when_and_as_often_as_ordered() {
    let (storage, file) = prepared(4);
    storage.inject(Fault::eio("file").on(Kind::Write).after(1));
    storage.inject(Fault::eio("elsewhere").lasting());
    write(&file, 0, &[9; 10]).unwrap();
    let error = write(&file, 0, &[9; 10]).unwrap_err();
    assert_eq!(error.source.raw_os_error(), Some(libc::EIO));
    assert!(!is_power_cut(&error));
    write(&file, 0, &[9; 10]).unwrap();
    storage.inject(Fault::enospc("").lasting());
    file.read(&mut [ReadRequest { offset: 0, buffer: &mut [0; 10] }]).unwrap();
    for _ in 0..2 {
        let error = write(&file, 0, &[9; 10]).unwrap_err();
        assert_eq!(error.source.kind(), io::ErrorKind::StorageFull);
    }
    storage.clear_faults();
    write(&file, 0, &[9; 10]).unwrap();
}

#[test]
fn a_bit_flips_once_and_stays() {
    let (storage, _) = prepared(5);
    storage.inject(Fault::bit_flip("file"));
    let flipped = content(&storage).unwrap();
    let differing: u32 = flipped.iter().map(|byte| (byte ^ 1).count_ones()).sum();
    assert_eq!(differing, 1);
    storage.restart();
    assert_eq!(content(&storage).unwrap(), flipped);
}

#[test]
fn a_failed_sync_gives_its_writes_up_silently() {
    let mut lost = 0;
    for seed in 0..SEEDS {
        let (storage, file) = prepared(seed);
        write(&file, 0, &[2; 512]).unwrap();
        storage.inject(Fault::eio("file").on(Kind::Sync));
        file.sync().unwrap_err();
        file.sync().unwrap();
        storage.restart();
        lost += usize::from(content(&storage).unwrap()[0] == 1);
    }
    assert!(lost > 0);
}

#[test]
fn space_is_limited_and_comes_back() {
    let storage = LyingStorage::new(6);
    storage.set_capacity(4096);
    let reserved = storage.open(path(), Open::CreateAllocated(3072)).unwrap();
    assert_eq!(storage.free_space().unwrap(), 1024);
    let other = storage.open(Path::new("other"), Open::CreateSparse(1 << 40)).unwrap();
    write(&other, 1 << 39, &[1; 1024]).unwrap();
    let full = write(&other, 0, &[1]).unwrap_err();
    assert_eq!(full.source.kind(), io::ErrorKind::StorageFull);
    write(&reserved, 0, &[1; 3072]).unwrap();
    other.zero(1 << 39, 512).unwrap();
    write(&other, 0, &[1]).unwrap();
    storage.remove(path()).unwrap();
    assert_eq!(storage.free_space().unwrap(), 0, "still open");
    drop(reserved);
    assert_eq!(storage.free_space().unwrap(), 3072);
}

#[test]
fn the_same_seed_tells_the_same_lies() {
    let run = |seed| {
        let (storage, file) = prepared(seed);
        write(&file, 100, &[2; 20_000]).unwrap();
        storage.restart();
        content(&storage)
    };
    assert_eq!(run(11), run(11));
    assert!((0..20).any(|seed| run(seed) != run(seed + 1)));
}

#[test]
fn a_removed_tree_may_come_back_in_parts_until_its_parent_is_synced() {
    let mut came_back = 0;
    for seed in 0..SEEDS {
        for is_synced in [true, false] {
            let storage = LyingStorage::new(seed);
            for name in ["t/a", "t/u/b"] {
                storage.create_directory(Path::new("t/u")).unwrap();
                storage.replace(Path::new(name), b"content").unwrap();
            }
            storage.remove_tree(Path::new("t")).unwrap();
            assert_eq!(storage.load(Path::new("t/a")).unwrap(), None);
            assert!(storage.list(Path::new("")).unwrap().is_empty());
            if is_synced {
                storage.sync_directory(Path::new("")).unwrap();
            }
            storage.crash();
            storage.restart();
            let left = ["t/a", "t/u/b"].map(|name| storage.load(Path::new(name)).unwrap());
            let count = left.iter().flatten().count();
            assert!(!is_synced || count == 0, "seed {seed}");
            assert_eq!(storage.list(Path::new("")).unwrap().is_empty(), count == 0);
            came_back += count;
        }
    }
    assert!(came_back > 0, "what was not synced comes back at times");
}

#[test]
fn a_device_is_claimed_once_at_a_time() {
    let storage = LyingStorage::new(1);
    let path = Path::new("/dev/first");
    storage.plug_in(path, SIZE, None);
    let claim = || storage.open(path, Open::Claim);
    let held = claim().unwrap();
    assert_eq!(claim().err().unwrap().source.kind(), std::io::ErrorKind::ResourceBusy);
    storage.open(path, Open::ReadOnly).unwrap();
    drop(held);
    let _held = claim().unwrap();
    // A claim ends with its run.
    storage.restart();
    claim().unwrap();
}

#[test]
fn a_device_outlives_cuts_and_can_be_another_one() {
    let storage = LyingStorage::new(1);
    let path = Path::new("/dev/first");
    storage.plug_in(path, SIZE, Some("wwid:1"));
    let file = storage.open(path, Open::Claim).unwrap();
    assert_eq!(file.identity().unwrap().as_deref(), Some("wwid:1"));
    write(&file, 0, &[7; 512]).unwrap();
    file.sync().unwrap();
    storage.crash();
    storage.restart();
    let mut byte = [0];
    let file = storage.open(path, Open::ReadWrite).unwrap();
    file.read(&mut [ReadRequest { offset: 0, buffer: &mut byte }]).unwrap();
    assert_eq!(byte, [7]);
    let other = Path::new("/dev/second");
    storage.plug_in(other, SIZE, None);
    storage.swap_devices(path, other);
    let known = |path| storage.open(path, Open::Claim).unwrap().identity().unwrap();
    assert_eq!((known(path), known(other)), (None, Some("wwid:1".to_owned())));
    // A handle stays with its device.
    file.read(&mut [ReadRequest { offset: 0, buffer: &mut byte }]).unwrap();
    assert_eq!(byte, [7]);
}
