//! One flipped bit, at random places of every kind of file: it is found, its place and meaning are
//! named, and what is unharmed is said to be so. The judges are the views and the recovery.

use super::agent::{BLOCK, MACHINE, block_of, consistent, write};
use super::inspect::{expect_clean, life, look};
use super::world::{BLOCKS, World, options};
use crate::store::inspect::StoreInspection;
use crate::store::retention::{HEADER_LENGTH, Header, PAGE_LENGTH, TOP_LENGTH, Top, decode_page};
use crate::store::shared::lock;
use crate::store::{DiskSpec, PointChoice, Store, StoreError};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, RngCore, SeedableRng};
use redoubt_control::inspection::{
    LostPositions, MachineInspection, SegmentInspection, SegmentTail,
};
use redoubt_engine::lying::{Fault, Kind};
use redoubt_engine::storage::{Open, ReadRequest, Storage, WriteRequest};
use redoubt_log::segment::{ENTRY_HEADER_SIZE, EntryHeader, SEGMENT_HEADER_SIZE, entry_length};
use redoubt_log::{DiskIndex, MachineId, WallTime};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

const OTHER: MachineId = MachineId([9; 16]);

/// A machine with a rich history, nothing waiting, and another machine beside it.
fn world(seed: u64) -> World {
    let mut world = World::new(seed);
    life(&mut world);
    let values = 100 + u32::try_from(seed).unwrap() * 50;
    for value in values..values + 20 {
        let block = world.rng.random_range(0..BLOCKS);
        let mut records = vec![write(0, block, value), consistent(0)];
        if value % 3 == 0 {
            records.push(write(1, 2, value));
        }
        records.push(world.marker());
        world.send_records(records);
        world.deliver();
        world.machine().apply_next(WallTime(world.now)).unwrap();
    }
    let storage: Arc<dyn Storage> = Arc::new(world.disk.clone());
    let store = Store::open(storage, options(), WallTime(1)).unwrap();
    let other = store.create_machine(OTHER, "other", WallTime(1)).unwrap();
    let spec = DiskSpec {
        index: DiskIndex(5),
        name: "vda".to_owned(),
        size: 4096,
        logical_block_size: 4096,
    };
    other.add_disk(&mut lock(&other.shared.journal), &spec).unwrap();
    drop(store);
    world.restart_quietly().unwrap();
    world
}

fn read(world: &World, path: &Path) -> Vec<u8> {
    let file = world.disk.open(path, Open::ReadOnly).unwrap();
    let mut bytes = vec![0; usize::try_from(file.size()).unwrap()];
    file.read(&mut [ReadRequest { offset: 0, buffer: &mut bytes }]).unwrap();
    bytes
}

fn overwrite(world: &World, path: &Path, offset: u64, data: &[u8]) {
    let file = world.disk.open(path, Open::ReadWrite).unwrap();
    file.write(&[WriteRequest { offset, data }]).unwrap();
    file.sync().unwrap();
}

fn flip(world: &World, path: &Path, (byte, bit): (u64, u8)) {
    let now = read(world, path)[usize::try_from(byte).unwrap()] ^ (1 << bit);
    overwrite(world, path, byte, &[now]);
}

fn random_in(rng: &mut StdRng, places: &[Range<u64>]) -> (u64, u8) {
    let bytes: u64 = places.iter().map(|place| place.end - place.start).sum();
    let mut at = rng.random_range(0..bytes);
    for place in places {
        let length = place.end - place.start;
        if at < length {
            return (place.start + at, rng.random_range(0..8));
        }
        at -= length;
    }
    unreachable!("the place lies within one of them")
}

fn machine(seen: &StoreInspection, id: MachineId) -> &MachineInspection {
    seen.machines.iter().find(|machine| MachineId::from(machine.id) == id).unwrap()
}

/// All findings are at this file of the first machine, and the other machine is unharmed.
fn expect_found(seen: &StoreInspection, path: &Path, what: &str) {
    assert!(!seen.damage.is_empty(), "{what}: not found");
    for found in &seen.damage {
        assert_eq!((found.path.as_path(), found.machine), (path, Some(MACHINE.into())), "{what}");
        assert!(!found.what.is_empty() && !found.means.is_empty(), "{what}");
    }
    assert!(!machine(seen, MACHINE).unharmed && machine(seen, OTHER).unharmed, "{what}");
}

#[test]
fn of_a_manifest() {
    let mut rng = StdRng::seed_from_u64(1);
    let world = world(1);
    let path = PathBuf::from(format!("machines/{MACHINE}/manifest"));
    let length = read(&world, &path).len() as u64;
    for _ in 0..400 {
        // The last byte ends the last line, and is in no checksum.
        let place = random_in(&mut rng, std::slice::from_ref(&(0..length - 1)));
        flip(&world, &path, place);
        let seen = look(&world.disk, false);
        expect_found(&seen, &path, &format!("{place:?}"));
        let harmed = machine(&seen, MACHINE);
        if harmed.log.is_none() {
            assert!(harmed.points.is_empty() && harmed.disks.is_empty());
            // The other files are checked without it.
            assert!(!harmed.retention.is_empty());
            assert!(harmed.retention.iter().all(|file| file.unharmed && file.content_bytes > 0));
            assert!(harmed.journal.segments.iter().all(|one| one.tail == SegmentTail::Whole));
        }
        flip(&world, &path, place);
    }
    expect_clean(&world.disk, false).unwrap();
}

/// The header and the entries of a segment, without the zeros that fill them up.
fn entries(bytes: &[u8]) -> Vec<Range<u64>> {
    let mut places = Vec::new();
    let mut at = SEGMENT_HEADER_SIZE;
    while at < bytes.len() {
        let head = bytes[at..].first_chunk::<ENTRY_HEADER_SIZE>().unwrap();
        let Ok(entry) = EntryHeader::parse(head) else { break };
        let length = entry.frame_length as usize;
        places.push(at as u64..(at + ENTRY_HEADER_SIZE + length) as u64);
        at += entry_length(length);
    }
    places
}

#[test]
fn of_a_segment() {
    for seed in 0..4 {
        let mut rng = StdRng::seed_from_u64(seed);
        let world = world(seed);
        let seen = look(&world.disk, false);
        let segments = machine(&seen, MACHINE).journal.segments.clone();
        let points = machine(&seen, MACHINE).points.len();
        let whole: u64 = segments.iter().map(|segment| segment.entries).sum();
        for _ in 0..150 {
            let segment = segments.choose(&mut rng).unwrap();
            let entries = entries(&read(&world, &segment.path));
            assert_eq!(entries.len() as u64, segment.entries);
            let of_header = rng.random_bool(0.2) || entries.is_empty();
            let hit = if of_header {
                0..SEGMENT_HEADER_SIZE as u64
            } else {
                entries.choose(&mut rng).unwrap().clone()
            };
            let place = random_in(&mut rng, std::slice::from_ref(&hit));
            flip(&world, &segment.path, place);
            let what = format!("seed {seed}, segment {}, {place:?}", segment.number);
            let seen = look(&world.disk, false);
            if of_header && entries.is_empty() {
                // Nothing depends on a last segment that holds nothing.
                flip(&world, &segment.path, place);
                continue;
            }
            expect_found(&seen, &segment.path, &what);
            let [found] = &seen.damage[..] else { panic!("{what}: {:?}", seen.damage) };
            assert_eq!(found.byte, hit.start, "{what}");
            let harmed = machine(&seen, MACHINE);
            assert!(harmed.points.iter().all(|point| point.harmed_disks.is_empty()));
            assert_eq!(harmed.points.len(), points, "{what}");
            let left: u64 = harmed.journal.segments.iter().map(|one| one.entries).sum();
            let is_hit = |one: &&SegmentInspection| one.path == segment.path;
            assert!(
                harmed.journal.segments.iter().all(|one| one.unharmed != is_hit(&one)),
                "{what}"
            );
            let lost = if of_header { segment.entries } else { 1 };
            assert_eq!(left, whole - lost, "{what}: the other entries are whole");
            if !of_header {
                let unknown = LostPositions { first: None, last: None };
                let positions = found.positions.unwrap_or(unknown);
                let entry = &read(&world, &segment.path)[usize::try_from(hit.start).unwrap()..];
                let entry = EntryHeader::parse(entry.first_chunk().unwrap());
                let is_intact = place.0 >= hit.start + ENTRY_HEADER_SIZE as u64;
                if let (Ok(entry), true) = (entry, is_intact) {
                    let first = positions.first.unwrap_or(entry.first.0);
                    let last = positions.last.unwrap_or(entry.last.0);
                    assert!(first <= entry.first.0 && last == entry.last.0, "{what}");
                }
            }
            flip(&world, &segment.path, place);
        }
        expect_clean(&world.disk, false).unwrap();
    }
}

/// The bytes of a retention file that a checksum covers.
fn covered(bytes: &[u8]) -> Vec<Range<u64>> {
    let header = Header::decode(Path::new(""), &bytes[..HEADER_LENGTH]).unwrap();
    let top = usize::try_from(header.top_at).unwrap();
    let top_end = top + usize::try_from(header.pages).unwrap() * TOP_LENGTH;
    let mut places = vec![0..84, top as u64..top_end as u64];
    for top in bytes[top..top_end].chunks(TOP_LENGTH) {
        let at = Top::decode(top).unwrap().page_at;
        places.push(at..at + PAGE_LENGTH as u64);
        let start = usize::try_from(at).unwrap();
        let page = decode_page(&bytes[start..start + PAGE_LENGTH], at, header.span.to).unwrap();
        let stored = page.iter().filter(|entry| entry.stored_length > 0);
        places.extend(
            stored.map(|entry| entry.stored_at..entry.stored_at + u64::from(entry.stored_length)),
        );
    }
    places
}

/// Whether a disk reads at a point as the log says; what it reads is never anything else.
fn reads_wholly(world: &World, point: redoubt_log::PointId, disk: DiskIndex) -> bool {
    let machine = world.machine();
    let Ok(view) = machine.view(disk, PointChoice::Id(point)) else { return false };
    let truth = world.agent.truth(disk, BLOCKS, view.point().sequence);
    (0..BLOCKS).all(|block| {
        let mut bytes = vec![0; BLOCK];
        let read = view.read((block * BLOCK) as u64, &mut bytes);
        assert!(read.is_err() || bytes == block_of(truth[block]));
        read.is_ok()
    })
}

#[test]
fn of_a_retention_file_names_the_points_that_views_cannot_read() {
    let (mut harmless, mut partly) = (0, 0);
    for seed in 0..4 {
        let mut rng = StdRng::seed_from_u64(seed);
        let world = world(seed);
        let seen = look(&world.disk, false);
        let files: Vec<PathBuf> =
            machine(&seen, MACHINE).retention.iter().map(|file| file.path.clone()).collect();
        for _ in 0..60 {
            let path = files.choose(&mut rng).unwrap();
            let place = random_in(&mut rng, &covered(&read(&world, path)));
            flip(&world, path, place);
            let what = format!("seed {seed}, {}, {place:?}", path.display());
            let seen = look(&world.disk, false);
            expect_found(&seen, path, &what);
            let harmed = machine(&seen, MACHINE);
            let mut count = 0;
            for (shown, point) in harmed.points.iter().zip(world.machine().points()) {
                for disk in [DiskIndex(0), DiskIndex(1)] {
                    let is_harmed = shown.harmed_disks.contains(&format!("disk{disk}"));
                    let reads = reads_wholly(&world, point.id, disk);
                    assert!(is_harmed || reads, "{what}: harm at {} is not told", shown.sequence);
                    // A whole file's damage may say more than a disk without content in it needs.
                    let is_piece = seen.damage[0].means.starts_with("bytes ");
                    assert!(!is_harmed || !reads || !is_piece, "{what}: {}", shown.sequence);
                    count += u64::from(is_harmed);
                }
            }
            let told = seen.damage[0].points.map_or(0, |points| points.count);
            assert!(told <= count && (told > 0) == (count > 0), "{what}");
            harmless += u64::from(count == 0);
            partly += u64::from(count > 0 && told < harmed.points.len() as u64);
            assert_eq!(harmed.retention.iter().filter(|file| !file.unharmed).count(), 1);
            assert!(harmed.journal.segments.iter().all(|one| one.tail != SegmentTail::Damaged));
            flip(&world, path, place);
        }
        expect_clean(&world.disk, false).unwrap();
    }
    assert!(partly > 50, "most damage leaves points unharmed: {partly}, {harmless}");
}

#[test]
fn of_an_acknowledged_entry_that_waits_is_no_torn_tail() {
    // Written whole and not applied yet: neither the manifest nor distance proves it, its sectors
    // do.
    let mut rng = StdRng::seed_from_u64(5);
    let mut world = world(5);
    for value in 900..903 {
        let marker = world.marker();
        world.send_records(vec![write(0, 1, value), marker]);
    }
    world.deliver();
    let seen = look(&world.disk, false);
    let last = machine(&seen, MACHINE).journal.segments.last().unwrap().clone();
    assert_eq!(last.last, Some(world.agent.last().0));
    let hit = entries(&read(&world, &last.path)).pop().unwrap();
    for _ in 0..100 {
        let place = random_in(&mut rng, std::slice::from_ref(&hit));
        flip(&world, &last.path, place);
        let seen = look(&world.disk, false);
        expect_found(&seen, &last.path, &format!("{place:?}"));
        let journal = &machine(&seen, MACHINE).journal;
        assert_eq!(journal.segments.last().unwrap().tail, SegmentTail::Damaged);
        assert!(seen.damage[0].means.contains("not applied"), "{}", seen.damage[0].means);
        // Beside a running target the end moves: it is not judged.
        expect_clean(&world.disk, true).unwrap();
        flip(&world, &last.path, place);
    }
}

#[test]
fn what_is_missing_is_named() {
    for name in ["journal", "retention", "disks", "manifest"] {
        let world = world(2);
        let before = look(&world.disk, false);
        let before = machine(&before, MACHINE);
        let path = match name {
            "journal" => {
                let mut segments = before.journal.segments.iter();
                segments.find(|segment| segment.needed).unwrap().path.clone()
            }
            "retention" => before.retention[0].path.clone(),
            "disks" => before.disks[0].replica_path.clone(),
            _ => PathBuf::from(format!("machines/{MACHINE}/manifest")),
        };
        world.disk.remove(&path).unwrap();
        let seen = look(&world.disk, false);
        expect_found(&seen, &path, name);
        assert!(seen.damage[0].what.contains("missing"), "{:?}", seen.damage);
        let points = &machine(&seen, MACHINE).points;
        let harmed = points.iter().filter(|point| !point.harmed_disks.is_empty()).count();
        match name {
            // Only what the oldest file holds of the oldest points.
            "retention" => assert_eq!(harmed, 1),
            "disks" => assert_eq!(harmed, points.len()),
            _ => assert_eq!(harmed, 0),
        }
    }
}

#[test]
fn what_cannot_be_read_is_named_and_the_rest_is_looked_at() {
    let world = world(2);
    let seen = look(&world.disk, false);
    let before = machine(&seen, MACHINE);
    let paths = [
        PathBuf::from(format!("machines/{MACHINE}/manifest")),
        before.journal.segments.last().unwrap().path.clone(),
        before.retention[0].path.clone(),
    ];
    for path in paths {
        world.disk.inject(Fault::eio(path.to_str().unwrap()).on(Kind::Read).lasting());
        let seen = look(&world.disk, false);
        world.disk.clear_faults();
        expect_found(&seen, &path, "an unreadable file");
        assert!(seen.damage[0].what.contains("cannot be read"), "{:?}", seen.damage);
        assert_eq!(machine(&seen, MACHINE).retention.len(), before.retention.len());
    }
    for name in ["journal", "retention", "disks"] {
        let path = PathBuf::from(format!("machines/{MACHINE}/{name}"));
        world.disk.inject(Fault::eio(path.to_str().unwrap()).on(Kind::Look).lasting());
        let seen = look(&world.disk, false);
        world.disk.clear_faults();
        assert!(seen.damage.iter().all(|found| found.path.starts_with(&path)), "{name}");
        assert!(seen.damage.iter().any(|found| found.path == path), "{name}: {:?}", seen.damage);
        assert!(!machine(&seen, MACHINE).unharmed && machine(&seen, OTHER).unharmed, "{name}");
    }
    expect_clean(&world.disk, false).unwrap();
}

#[test]
fn a_replica_of_another_size_is_named() {
    let world = world(2);
    let path = PathBuf::from(format!("machines/{MACHINE}/disks/1"));
    world.disk.remove(&path).unwrap();
    world.disk.open(&path, Open::CreateSparse(512)).unwrap();
    let seen = look(&world.disk, false);
    expect_found(&seen, &path, "a short replica");
    assert_eq!((seen.damage[0].byte, &seen.damage[0].disks[..]), (512, &["disk1".to_owned()][..]));
    let machine = machine(&seen, MACHINE);
    assert!(machine.disks[0].present && !machine.disks[1].present);
    assert!(machine.points.iter().all(|point| point.harmed_disks == ["disk1"]));
}

#[test]
fn a_file_that_is_damaged_all_over_does_not_fill_the_memory() {
    let world = world(3);
    let seen = look(&world.disk, false);
    let segment = machine(&seen, MACHINE).journal.segments[0].path.clone();
    let entries = entries(&read(&world, &segment));
    entries.iter().for_each(|entry| overwrite(&world, &segment, entry.end - 1, &[0x55]));
    let seen = look(&world.disk, false);
    expect_found(&seen, &segment, "all over");
    assert!(seen.damage.len() <= entries.len() + 1);
}

#[test]
fn pieces_out_of_order_are_refused_by_readers_too() {
    let mut world = World::new(6);
    life(&mut world);
    let many = vec![write(0, 0, 50), write(0, 2, 51), write(0, 4, 52), world.marker()];
    world.send_records(many);
    world.deliver();
    world.machine().apply_next(WallTime(world.now)).unwrap();
    let seen = look(&world.disk, false);
    let file = seen.machines[0].retention.last().unwrap();
    assert!(file.pieces >= 3);
    let bytes = read(&world, &file.path);
    let header = Header::decode(Path::new(""), &bytes[..HEADER_LENGTH]).unwrap();
    let top = Top::decode(&bytes[usize::try_from(header.top_at).unwrap()..]).unwrap();
    let start = usize::try_from(top.page_at).unwrap();
    let mut page = bytes[start..start + PAGE_LENGTH].to_vec();
    // The second and the third entry change places, and the checksum says that this is right.
    page[64..128].rotate_left(32);
    let sum = crc32c::crc32c(&page[8..]);
    page[4..8].copy_from_slice(&sum.to_le_bytes());
    overwrite(&world, &file.path, top.page_at, &page);
    let found = look(&world.disk, false).damage;
    assert_eq!((found.len(), found[0].byte), (1, top.page_at));
    let points = world.machine().points();
    let point = points[points.len() - 2].id;
    let view = world.machine().view(DiskIndex(0), PointChoice::Id(point)).unwrap();
    let error = view.read(0, &mut [0; BLOCKS * BLOCK]).unwrap_err();
    assert!(matches!(error, StoreError::Damaged { .. }), "{error}");
}

/// Bytes of a kind that a disk may give instead of ours.
fn hostile(rng: &mut StdRng, before: &[u8]) -> Vec<u8> {
    let mut bytes = before.to_vec();
    match rng.random_range(0..5) {
        0 => rng.fill_bytes(&mut bytes),
        1 => bytes.fill(0xff),
        2 => bytes.truncate(rng.random_range(0..before.len())),
        3 => {
            let at = rng.random_range(0..before.len());
            let count = (before.len() - at).min(rng.random_range(1..64));
            rng.fill_bytes(&mut bytes[at..at + count]);
        }
        _ => {
            // Blocks that changed their places.
            let blocks = before.len() / 4096;
            let (from, to) =
                (rng.random_range(0..blocks.max(1)), rng.random_range(0..blocks.max(1)));
            let block = before[from * 4096..before.len().min((from + 1) * 4096)].to_vec();
            bytes.splice(to * 4096..before.len().min((to + 1) * 4096), block);
        }
    }
    bytes
}

/// Puts right the checksums that a hostile hand would put right.
fn forge(rng: &mut StdRng, path: &Path, bytes: &mut [u8]) {
    if path.ends_with("manifest") {
        let text = String::from_utf8_lossy(bytes).into_owned();
        if let Some((_, body)) = text.split_once('\n') {
            let body = body.trim_end_matches('\n').as_bytes();
            let sum = format!("{:08x}", crc32c::crc32c_append(crc32c::crc32c(b"3"), body));
            if let Some(place) = bytes.get_mut(19..27) {
                place.copy_from_slice(sum.as_bytes());
            }
        }
    } else if bytes.len() > HEADER_LENGTH && bytes[..4] == *b"RDBT" {
        for field in [40, 48, 56] {
            if rng.random_bool(0.3) {
                let value = rng.next_u64() >> rng.random_range(0..64);
                bytes[field..field + 8].copy_from_slice(&value.to_le_bytes());
            }
        }
        let sum = crc32c::crc32c(&bytes[..80]);
        bytes[80..84].copy_from_slice(&sum.to_le_bytes());
    }
}

#[test]
fn hostile_bytes_are_an_answer_and_never_a_panic() {
    let mut rng = StdRng::seed_from_u64(11);
    let world = world(4);
    let mut files = vec![PathBuf::from(format!("machines/{MACHINE}/manifest"))];
    for directory in ["journal", "retention"] {
        let directory = PathBuf::from(format!("machines/{MACHINE}/{directory}"));
        let names = world.disk.list(&directory).unwrap();
        files.extend(names.iter().map(|name| directory.join(name)));
    }
    let points = world.machine().points();
    for _ in 0..1500 {
        let path = files.choose(&mut rng).unwrap();
        let before = read(&world, path);
        let mut bytes = hostile(&mut rng, &before);
        if rng.random_bool(0.7) {
            forge(&mut rng, path, &mut bytes);
        }
        world.disk.replace(path, &bytes).unwrap();
        let seen = look(&world.disk, rng.random_bool(0.5));
        assert!(machine(&seen, OTHER).unharmed);
        let storage: Arc<dyn Storage> = Arc::new(world.disk.clone());
        match crate::store::inspect::finish(&storage, Path::new(""), WallTime(1)) {
            Ok(_) | Err(StoreError::Damaged { .. } | StoreError::NewerVersion { .. }) => {}
            Err(error) => panic!("{error}"),
        }
        if path.to_str().unwrap().contains("retention") {
            let point = points.choose(&mut rng).unwrap();
            if let Ok(view) = world.machine().view(DiskIndex(0), PointChoice::Id(point.id)) {
                // What a hostile hand has signed may read as anything; it must only be an answer.
                view.read(0, &mut [0; BLOCKS * BLOCK]).ok();
                view.next_data(0).ok();
            }
        }
        world.disk.replace(path, &before).unwrap();
    }
    expect_clean(&world.disk, false).unwrap();
}
