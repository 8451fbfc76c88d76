//! What a later release has written is refused by name, also by the target's start: it is neither
//! damage nor what a cut left, and is never removed.

use super::agent::MACHINE;
use super::inspect::{life, look};
use super::world::{World, options};
use crate::store::{PointChoice, Store, StoreError};
use redoubt_engine::storage::{Open, ReadRequest, Storage, WriteRequest};
use redoubt_log::segment::SEGMENT_HEADER_SIZE;
use redoubt_log::{DiskIndex, WallTime};
use std::path::{Path, PathBuf};
use std::sync::Arc;

fn whole() -> World {
    let mut world = World::new(1);
    life(&mut world);
    world.machine = None;
    world
}

fn read(world: &World, path: &Path) -> Vec<u8> {
    let file = world.disk.open(path, Open::ReadOnly).unwrap();
    let mut bytes = vec![0; usize::try_from(file.size()).unwrap()];
    file.read(&mut [ReadRequest { offset: 0, buffer: &mut bytes }]).unwrap();
    bytes
}

fn write(world: &World, path: &Path, offset: u64, data: &[u8]) {
    let file = world.disk.open(path, Open::ReadWrite).unwrap();
    file.write(&[WriteRequest { offset, data }]).unwrap();
    file.sync().unwrap();
}

fn files(world: &World, directory: &str) -> Vec<PathBuf> {
    let directory = PathBuf::from(format!("machines/{MACHINE}/{directory}"));
    let names = world.disk.list(&directory).unwrap();
    names.iter().map(|name| directory.join(name)).collect()
}

/// Why a target that starts leaves the machine alone.
fn unopened(world: &World) -> String {
    let storage: Arc<dyn Storage> = Arc::new(world.disk.clone());
    let store = Store::open(storage, options(), WallTime(1)).unwrap();
    let [(_, error)] = store.unopened() else { panic!("the machine was opened") };
    assert!(matches!(error, StoreError::NewerVersion { .. }), "{error}");
    assert!(error.to_string().contains("use a newer one"), "{error}");
    error.to_string()
}

fn expect_newer(world: &World, path: &Path, known: u32) {
    let seen = look(&world.disk, false);
    assert!(seen.damage.is_empty(), "{:?}", seen.damage);
    let [newer] = &seen.newer[..] else { panic!("{:?}", seen.newer) };
    assert_eq!((newer.path.as_path(), newer.version, newer.known), (path, 7, known));
    assert!(!seen.machines[0].unharmed);
}

/// The header of a segment with another version and a right checksum.
fn with_version(mut block: Vec<u8>, version: u16) -> Vec<u8> {
    block.truncate(SEGMENT_HEADER_SIZE);
    block[4..6].copy_from_slice(&version.to_le_bytes());
    block[80..84].fill(0);
    let sum = crc32c::crc32c(&block);
    block[80..84].copy_from_slice(&sum.to_le_bytes());
    block
}

#[test]
fn a_manifest() {
    let world = whole();
    let path = PathBuf::from(format!("machines/{MACHINE}/manifest"));
    let text = String::from_utf8(read(&world, &path)).unwrap();
    let (head, body) = text.split_once('\n').unwrap();
    let body = body.trim_end().replacen("\"applied\"", "\"reached\"", 1);
    let sum = crc32c::crc32c(body.as_bytes());
    assert!(head.starts_with("redoubt-manifest 4 "));
    let later = format!("redoubt-manifest 7 {sum:08x}\n{body}\n");
    world.disk.replace(&path, later.as_bytes()).unwrap();
    expect_newer(&world, &path, 4);
    assert!(unopened(&world).contains("manifest"));
}

#[test]
fn a_segment() {
    for is_last in [false, true] {
        let world = whole();
        let segments = files(&world, "journal");
        let path = if is_last { segments.last() } else { segments.first() }.unwrap();
        write(&world, path, 0, &with_version(read(&world, path), 7));
        expect_newer(&world, path, 1);
        assert!(unopened(&world).contains("journal"));
    }
}

#[test]
fn an_unused_segment_is_not_removed() {
    let world = whole();
    let last = files(&world, "journal").pop().unwrap();
    let header = with_version(read(&world, &last), 7);
    let size = world.disk.open(&last, Open::ReadOnly).unwrap().size();
    write(&world, &last, 0, &vec![0; usize::try_from(size).unwrap()]);
    write(&world, &last, 0, &header);
    unopened(&world);
    assert_eq!(read(&world, &last)[..SEGMENT_HEADER_SIZE], header);
}

#[test]
fn an_entry() {
    let world = whole();
    let last = files(&world, "journal").pop().unwrap();
    let bytes = read(&world, &last);
    let salt = &bytes[48..64];
    let mut entry = bytes[SEGMENT_HEADER_SIZE..SEGMENT_HEADER_SIZE + 208].to_vec();
    entry[4..6].copy_from_slice(&7_u16.to_le_bytes());
    let mut hasher = blake3::Hasher::new();
    hasher.update(salt).update(&entry[..48]).update(&entry[64..208]);
    entry[48..64].copy_from_slice(&hasher.finalize().as_bytes()[..16]);
    write(&world, &last, SEGMENT_HEADER_SIZE as u64, &entry);
    expect_newer(&world, &last, 1);
    assert!(unopened(&world).contains("journal"));
}

#[test]
fn a_retention_file() {
    let mut world = whole();
    let path = files(&world, "retention").pop().unwrap();
    let mut header = read(&world, &path)[..84].to_vec();
    header[8..12].copy_from_slice(&7_u32.to_le_bytes());
    let sum = crc32c::crc32c(&header[..80]);
    header[80..].copy_from_slice(&sum.to_le_bytes());
    write(&world, &path, 0, &header);
    expect_newer(&world, &path, 1);
    // It is read when a view needs it.
    world.restart_quietly().unwrap();
    let machine = world.machine();
    let oldest = machine.points()[0].id;
    let error = machine.view(DiskIndex(0), PointChoice::Id(oldest)).err().unwrap();
    assert!(matches!(error, StoreError::NewerVersion { version: 7, .. }), "{error}");
}
