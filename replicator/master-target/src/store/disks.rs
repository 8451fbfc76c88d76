//! Takes disks in as an agent announces them: each gets a replica, a sparse file or the device that
//! was chosen for it. A number is one disk's for ever, and a name is one protected disk's.

use super::error::{Result, StoreError};
use super::journal::Journal;
use super::machine::{DiskSpec, StoreMachine};
use super::manifest::{Disk, Manifest, Protection};
use super::placement::Place;
use super::shared::{Shared, create_anew, lock};
use redoubt_engine::storage::Open;
use redoubt_log::DiskIndex;

impl StoreMachine {
    /// Whether the disks of an agent that remembers of no session may have the numbers that they
    /// come with. One that has lost its state counts from 0 again: a new disk is not to be let go
    /// because another, of the same number, has ended here.
    pub fn check_first(&self, disks: &[DiskSpec]) -> Result<()> {
        let manifest = lock(&self.shared.manifest);
        let over = |spec: &DiskSpec| {
            let known = manifest.disk(spec.index)?;
            let is_same = known.name == spec.name && known.size == spec.size;
            (!known.protection.is_active() && !is_same).then_some(known)
        };
        let Some((spec, known)) = disks.iter().find_map(|spec| Some((spec, over(spec)?))) else {
            return Ok(());
        };
        let what = format!(
            "has the number {} of {}, whose protection has ended here: the agent has lost its \
             state.json; put it back, or join with a new state directory and a token of \
             `redoubt invite --machine OTHER`",
            known.index, known.name
        );
        Err(StoreError::DiskChanged { name: spec.name.clone(), what })
    }

    /// Takes a disk in; it is durable when this returns. One that is known must come with the same
    /// properties, but where its protection has ended: the answer says so, and the agent lets it
    /// go.
    pub(super) fn add_disk(&self, journal: &mut Journal, spec: &DiskSpec) -> Result<()> {
        let shared = &self.shared;
        let mut manifest = lock(&shared.manifest);
        if let Some(known) = manifest.disk(spec.index) {
            let is_over = !known.protection.is_active() || journal.removed.contains(spec.index);
            return if is_over { Ok(()) } else { check_known(known, spec) };
        }
        if spec.index.0 >= DiskIndex::LIMIT {
            return Err(StoreError::TooManyDisks { name: spec.name.clone() });
        }
        let mut next = manifest.clone();
        free_name(&mut next, &spec.name)?;
        let mut disk = Disk {
            index: spec.index,
            name: spec.name.clone(),
            size: spec.size,
            logical_block_size: spec.logical_block_size,
            device: None,
            protection: Protection::Active,
            has_data: false,
            has_points: false,
            consistent_from: None,
            ahead_of_point: false,
        };
        make_replica(shared, &manifest, &mut disk)?;
        next.disks.push(disk);
        next.disks.sort_by_key(|disk| disk.index);
        shared.save(&next)?;
        *manifest = next;
        journal.sizes.insert(spec.index, spec.size);
        let (machine, name) = (&manifest.name, &spec.name);
        shared.placements.forget(|known| (&known.machine, &known.disk) == (machine, name))
    }
}

/// A replica of which no manifest speaks yet, in the place of what an attempt that failed may have
/// left.
fn make_replica(shared: &Shared, manifest: &Manifest, disk: &mut Disk) -> Result<()> {
    let Some(device) = shared.placements.find(&manifest.name, &disk.name) else {
        let path = shared.layout.disk(disk.index);
        create_anew(&*shared.storage, &path, Open::CreateSparse(disk.size))?.sync()?;
        return Ok(shared.storage.sync_directory(&shared.layout.disks())?);
    };
    let place =
        Place { machine: shared.machine, disk: disk.index, name: &disk.name, size: disk.size };
    // An attempt whose manifest failed holds the device still.
    lock(&shared.devices).proven.remove(&disk.index);
    let (placed, file) = place.take(&*shared.storage, &device)?;
    disk.device = Some(placed);
    lock(&shared.devices).proven.insert(disk.index, file);
    Ok(())
}

/// A new number under a name that another disk has: the agent has ended the protection of that one,
/// though nobody said so yet. What is kept of it goes on under a name of its own.
fn free_name(manifest: &mut Manifest, name: &str) -> Result<()> {
    let holder = manifest.disks.iter().position(|disk| disk.is_kept() && disk.name == name);
    let Some(at) = holder else { return Ok(()) };
    let stem = &name[..name.floor_char_boundary(ENDED_STEM_LIMIT)];
    let renamed = format!("{stem}.ended-{}", manifest.disks[at].index);
    if manifest.disks.iter().any(|disk| disk.is_kept() && disk.name == renamed) {
        let what = format!("its name is that of a disk kept here, and so is {renamed}");
        return Err(StoreError::DiskChanged { name: name.to_owned(), what });
    }
    let disk = &mut manifest.disks[at];
    disk.name = renamed;
    if disk.protection.is_active() {
        disk.protection = Protection::EndedByAgent;
    }
    Ok(())
}

/// Bytes of a name that leave room for what is appended: `.ended-` and two digits of 63.
const ENDED_STEM_LIMIT: usize = 54;

fn check_known(known: &Disk, spec: &DiskSpec) -> Result<()> {
    let changed = |what: String| StoreError::DiskChanged { name: spec.name.clone(), what };
    if known.name != spec.name {
        return Err(changed(format!("index {} is disk {}", known.index, known.name)));
    }
    if (known.size, known.logical_block_size) != (spec.size, spec.logical_block_size) {
        return Err(changed(format!(
            "has {} bytes in blocks of {}, its replica {} in blocks of {}; \
             end its protection with `redoubt unprotect --disk {}` and protect it again",
            spec.size, spec.logical_block_size, known.size, known.logical_block_size, spec.name
        )));
    }
    Ok(())
}
