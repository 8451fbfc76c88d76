//! A manifest from hostile bytes, with a right checksum: an inspection, and the opening of the
//! store, are any answer but a panic.
#![no_main]

use libfuzzer_sys::fuzz_target;
use redoubt_engine::lying::LyingStorage;
use redoubt_engine::storage::Storage;
use redoubt_log::WallTime;
use redoubt_master_target::store::inspect::inspect;
use redoubt_master_target::store::{Store, StoreOptions};
use std::path::Path;
use std::sync::Arc;

/// A manifest to begin with: noise alone would hardly ever be JSON of its shape.
const EXAMPLE: &str = r#"{"machine":"07070707-0707-0707-0707-070707070707","name":"m",
"generation":"67e55044-10b1-426f-9247-bb680e5fe0c8","incarnation":1,"run":null,"role_epoch":0,
"disks":[{"index":0,"name":"sda","size":4096,"logical_block_size":512,"device":null,
"has_data":true,"has_points":true,"consistent_from":4,"ahead_of_point":false}],"applied":9,
"applied_generation":"67e55044-10b1-426f-9247-bb680e5fe0c8","applying":null,
"journal":{"segment":0,"after":9},"retention":[{"from":5,"to":9,"disks":1}],
"points":[{"id":"67e55044-10b1-426f-9247-bb680e5fe0c9","taken_at":1,"kind":"crash-consistent",
"label":"","sequence":5,"disks":1,"complete":true}]}"#;

fn look(body: &[u8]) {
    let disk = LyingStorage::new(1);
    let machine = Path::new("machines/07070707-0707-0707-0707-070707070707");
    for part in ["journal", "disks", "retention"] {
        disk.create_directory(&machine.join(part)).expect("the disk is well");
    }
    let head = format!("redoubt-manifest 1 {:08x}\n", crc32c::crc32c(body));
    let bytes = [head.as_bytes(), body, b"\n"].concat();
    disk.replace(&machine.join("manifest"), &bytes).expect("the disk is well");
    let seen = inspect(&disk, Path::new(""), &|| false, &mut |_, _| {});
    let seen = seen.expect("only a disk that cannot be read prevents it");
    // One that is being deleted is a leftover.
    assert_eq!(seen.machines.len() + seen.leftovers.len(), 1);
    let storage: Arc<dyn Storage> = Arc::new(disk);
    let store = Store::open(storage, StoreOptions::default(), WallTime(1));
    for machine in store.expect("a damaged machine is left alone").machines() {
        machine.status();
    }
}

fuzz_target!(|bytes: &[u8]| {
    look(bytes);
    let mut body = EXAMPLE.as_bytes().to_vec();
    for edit in bytes.chunks_exact(3) {
        let at = usize::from(u16::from_le_bytes([edit[0], edit[1]])) % body.len();
        body[at] = edit[2];
    }
    look(&body);
});
