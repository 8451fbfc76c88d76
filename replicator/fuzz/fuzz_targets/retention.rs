//! A retention file from hostile bytes, with right checksums wherever there should be one: an
//! inspection, and a view that reads through it, are any answer but a panic.
#![no_main]

use libfuzzer_sys::arbitrary::{Result, Unstructured};
use libfuzzer_sys::fuzz_target;
use redoubt_engine::lying::LyingStorage;
use redoubt_engine::storage::{Open, Storage};
use redoubt_log::{DiskIndex, MachineId, WallTime};
use redoubt_master_target::store::inspect::inspect;
use redoubt_master_target::store::{PointChoice, Store, StoreOptions};
use std::path::Path;
use std::sync::Arc;

const MACHINE: MachineId = MachineId([7; 16]);
const SIZE: u64 = 8192;
const BLOCK: usize = 4096;

/// A machine with a disk, applied up to 9, whose point at 5 reads through the file.
const MANIFEST: &str = r#"{"machine":"07070707-0707-0707-0707-070707070707","name":"m",
"generation":"67e55044-10b1-426f-9247-bb680e5fe0c8","incarnation":1,"run":null,"role_epoch":0,
"disks":[{"index":0,"name":"sda","size":8192,"logical_block_size":512,"device":null,
"has_data":true,"has_points":true,"consistent_from":4,"ahead_of_point":false}],"applied":9,
"applied_generation":"67e55044-10b1-426f-9247-bb680e5fe0c8","applying":null,
"journal":{"segment":0,"after":9},"retention":[{"from":5,"to":9,"disks":1}],
"points":[{"id":"67e55044-10b1-426f-9247-bb680e5fe0c9","taken_at":1,"kind":"crash-consistent",
"label":"","sequence":5,"disks":1,"complete":true}]}"#;

/// A number that mostly lies within the file, and sometimes anywhere.
fn place(input: &mut Unstructured<'_>) -> Result<u64> {
    if input.ratio(1, 16)? {
        input.arbitrary()
    } else {
        Ok(u64::from(input.arbitrary::<u16>()? % 24_576))
    }
}

/// 32 bytes of an index page, whose checksum is right where its content lies within the file.
fn entry_of(input: &mut Unstructured<'_>, content: &[u8]) -> Result<Vec<u8>> {
    let disk = if input.ratio(1, 8)? { input.arbitrary()? } else { 0_u8 };
    let form = input.int_in_range(0..=3_u8)?;
    let offset = if input.ratio(1, 16)? {
        input.arbitrary()?
    } else {
        u64::from(input.arbitrary::<u16>()? % 9000)
    };
    let length = if input.ratio(1, 16)? {
        input.arbitrary()?
    } else {
        u32::from(input.arbitrary::<u16>()? % 5000)
    };
    let stored_length =
        if input.ratio(1, 4)? { length } else { u32::from(input.arbitrary::<u16>()? % 5000) };
    let stored_at = place(input)?;
    let stored = usize::try_from(stored_at)
        .ok()
        .and_then(|at| content.get(at..at.checked_add(stored_length as usize)?));
    let mut entry = vec![disk, form, 0, 0];
    entry.extend(stored.map_or(0, crc32c::crc32c).to_le_bytes());
    entry.extend(offset.to_le_bytes());
    entry.extend(length.to_le_bytes());
    entry.extend(stored_length.to_le_bytes());
    entry.extend(stored_at.to_le_bytes());
    Ok(entry)
}

fn page_of(input: &mut Unstructured<'_>, page_at: u64, content: &[u8]) -> Result<Vec<u8>> {
    let count = input.int_in_range(0..=6_u64)?;
    let mut page = b"RPAG".to_vec();
    page.extend([0; 4]);
    page.extend(page_at.to_le_bytes());
    page.extend(9_u64.to_le_bytes());
    page.extend(if input.ratio(1, 32)? { input.arbitrary()? } else { count }.to_le_bytes());
    for _ in 0..count {
        page.extend(entry_of(input, content)?);
    }
    page.resize(BLOCK, 0);
    let sum = crc32c::crc32c(&page[8..]);
    page[4..8].copy_from_slice(&sum.to_le_bytes());
    Ok(page)
}

/// The header, some content, index pages, and the top of the index, each as the input says.
fn file_of(input: &mut Unstructured<'_>) -> Result<Vec<u8>> {
    let mut file = vec![0; BLOCK];
    let noise: [u8; 64] = input.arbitrary()?;
    file.extend(noise.repeat(2 * BLOCK / noise.len()));
    let content = file.clone();
    let mut top = Vec::new();
    let pages = input.int_in_range(0..=3_u64)?;
    for _ in 0..pages {
        let page_at = file.len() as u64;
        let page = page_of(input, page_at, &content)?;
        let said = if input.ratio(1, 16)? { place(input)? } else { page_at };
        let key = if input.ratio(1, 4)? { place(input)? } else { u64::from(page[32 + 8]) };
        let disk = if input.ratio(1, 16)? { input.arbitrary()? } else { u64::from(page[32]) };
        [disk, key, said].iter().for_each(|field| top.extend(field.to_le_bytes()));
        file.extend(page);
    }
    let top_at = if input.ratio(1, 16)? { place(input)? } else { file.len() as u64 };
    let pages = if input.ratio(1, 16)? { input.arbitrary()? } else { pages };
    let disks = if input.ratio(1, 16)? { input.arbitrary()? } else { 1 };
    let mut header = b"RDBTRETN".to_vec();
    header.extend(1_u32.to_le_bytes());
    header.extend(crc32c::crc32c(&top).to_le_bytes());
    header.extend(MACHINE.0);
    for field in [5, disks, pages, top_at, 9, 0] {
        header.extend(field.to_le_bytes());
    }
    header.extend(crc32c::crc32c(&header).to_le_bytes());
    file[..header.len()].copy_from_slice(&header);
    file.extend(top);
    Ok(file)
}

fuzz_target!(|bytes: &[u8]| {
    let Ok(file) = file_of(&mut Unstructured::new(bytes)) else { return };
    let disk = LyingStorage::new(1);
    let machine = Path::new("machines").join(MACHINE.to_string());
    for part in ["journal", "disks", "retention"] {
        disk.create_directory(&machine.join(part)).expect("the disk is well");
    }
    let head = format!("redoubt-manifest 1 {:08x}\n", crc32c::crc32c(MANIFEST.as_bytes()));
    let manifest = [head.as_str(), MANIFEST, "\n"].concat();
    disk.replace(&machine.join("manifest"), manifest.as_bytes()).expect("the disk is well");
    disk.open(&machine.join("disks/0"), Open::CreateSparse(SIZE)).expect("the disk is well");
    let name = "retention/00000000000000000005-00000000000000000009";
    disk.replace(&machine.join(name), &file).expect("the disk is well");
    let seen = inspect(&disk, Path::new(""), &|| false, &mut |_, _| {});
    let seen = seen.expect("only a disk that cannot be read prevents it");
    assert!(seen.machines[0].log.is_some(), "the manifest is whole");
    let storage: Arc<dyn Storage> = Arc::new(disk);
    let store = Store::open(storage, StoreOptions::default(), WallTime(1)).expect("it opens");
    let machine = store.machine(MACHINE).expect("its manifest is whole");
    drop(machine.check_retention());
    if let Ok(view) = machine.view(DiskIndex(0), PointChoice::Latest) {
        let mut buffer = vec![0; 8192];
        let read = view.read(0, &mut buffer).and(view.next_data(0).map(drop));
        assert!(seen.damage.is_empty() <= read.is_ok(), "a reader meets what no look has found");
    }
});
