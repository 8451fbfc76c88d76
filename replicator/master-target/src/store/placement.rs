//! Replica disks that are block devices: which device, by what it is known again, and devices that
//! were chosen before their disk was known. A device that is not proven to be the one that was
//! placed is neither written nor read.
//!
//! A device with room behind the replica carries a stamp in its last whole 4096 bytes:
//!
//! ```text
//! redoubt-replica 1 <crc32c of the body>\n<machine id> <disk index> <32 hex digits>\n, then zeros
//! ```
//!
//! One without room must be known to the system by an identity of its own.

use super::checked_text::Kind;
use super::error::{Result, StoreError};
use super::journal::Journal;
use super::machine::StoreMachine;
use super::manifest::{Disk, Manifest};
use super::shared::{Shared, lock};
use redoubt_engine::storage::{BlockFile, Open, ReadRequest, Storage, WriteRequest};
use redoubt_log::{DiskIndex, MachineId};
use serde::{Deserialize, Serialize};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, Weak};

/// Devices chosen for disks that no agent has announced yet, below the store's root.
pub(super) const FILE: &str = "placements";
const FILE_KIND: Kind = Kind { word: "redoubt-placements", version: 1, sums_version_from: 2 };

/// Choices that may wait: more than a site has disks to come.
const WAITING_LIMIT: usize = 1024;

const STAMP_KIND: Kind = Kind { word: "redoubt-replica", version: 1, sums_version_from: 2 };
const STAMP_BYTES: usize = 4096;

/// A block device that holds a replica disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Placed {
    /// Its path: one that survives a reboot where there is one.
    pub path: PathBuf,
    /// By what the system knows it again, where it does.
    pub identity: Option<String>,
    /// Its stamp, where there was room for one.
    pub stamp: Option<Stamp>,
}

/// Where a device carries its stamp, and the random part of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stamp {
    /// First byte.
    pub at: u64,
    /// Drawn when the device was placed.
    pub salt: [u8; 16],
}

/// The replica disk that a device is to hold.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place<'a> {
    pub(super) machine: MachineId,
    pub(super) disk: DiskIndex,
    pub(super) name: &'a str,
    pub(super) size: u64,
}

impl Place<'_> {
    /// Claims a device and stamps it; it is not this disk's replica before the manifest says so.
    pub(super) fn take(
        &self,
        storage: &dyn Storage,
        path: &Path,
    ) -> Result<(Placed, Arc<dyn BlockFile>)> {
        let wrong = |what: String| self.wrong(path, what);
        let file = storage.open(path, Open::Claim)?;
        if file.size() < self.size {
            let (size, needed) = (file.size(), self.size);
            let what = format!("has {size} bytes, the disk {needed}: place it on a larger one");
            return Err(wrong(what));
        }
        let identity = file.identity()?;
        let end = file.size() - file.size() % STAMP_BYTES as u64;
        let at = end.checked_sub(STAMP_BYTES as u64).filter(|at| *at >= self.size);
        let stamp = at.map(|at| Stamp { at, salt: MachineId::random().0 });
        if let Some(stamp) = stamp {
            file.write(&[WriteRequest { offset: stamp.at, data: &self.stamp_bytes(stamp) }])?;
            file.sync()?;
        } else if identity.is_none() {
            let what = "the system knows no identity of it, and there is no room for a stamp: \
                        make it at least 8192 bytes larger than the disk";
            return Err(wrong(what.to_owned()));
        }
        Ok((Placed { path: path.to_owned(), identity, stamp }, file))
    }

    /// Claims the device that the disk was placed on, and proves that it is that one.
    pub(super) fn find(
        &self,
        storage: &dyn Storage,
        placed: &Placed,
    ) -> Result<Arc<dyn BlockFile>> {
        let file = storage.open(&placed.path, Open::Claim)?;
        self.prove(&*file, placed)?;
        Ok(file)
    }

    /// Proves that a device is the one that the disk was placed on.
    pub(super) fn prove(&self, file: &dyn BlockFile, placed: &Placed) -> Result<()> {
        let wrong = |what: String| self.wrong(&placed.path, what);
        let end = placed.stamp.map_or(self.size, |stamp| stamp.at + STAMP_BYTES as u64);
        if file.size() < end {
            return Err(wrong(format!("has {} bytes, and had {end} at least", file.size())));
        }
        let identity = file.identity()?;
        if identity != placed.identity {
            let told = |identity: &Option<String>| identity.clone().unwrap_or("unknown".to_owned());
            let (was, is) = (told(&placed.identity), told(&identity));
            return Err(wrong(format!(
                "is not the device that was placed: that was {was}, this is {is}"
            )));
        }
        if let Some(stamp) = placed.stamp {
            let mut found = vec![0; STAMP_BYTES];
            file.read(&mut [ReadRequest { offset: stamp.at, buffer: &mut found }])?;
            if found != self.stamp_bytes(stamp) {
                return Err(wrong("does not carry the stamp of this disk's replica".to_owned()));
            }
        }
        Ok(())
    }

    fn stamp_bytes(&self, stamp: Stamp) -> Vec<u8> {
        let salt: String = stamp.salt.iter().map(|byte| format!("{byte:02x}")).collect();
        let mut bytes = STAMP_KIND.encode(&format!("{} {} {salt}", self.machine, self.disk));
        bytes.resize(STAMP_BYTES, 0);
        bytes
    }

    fn wrong(&self, path: &Path, what: String) -> StoreError {
        StoreError::WrongDevice { disk: self.name.to_owned(), path: path.to_owned(), what }
    }
}

impl Shared {
    /// Opens the replica disk: the sparse file, or the device, claimed and proven.
    pub(super) fn replica(&self, disk: DiskIndex, how: Open) -> Result<Arc<dyn BlockFile>> {
        let known = lock(&self.manifest).disk(disk).cloned();
        let known = known.filter(Disk::is_kept).ok_or(StoreError::UnknownDisk(disk))?;
        let Some(placed) = &known.device else {
            return self.replica_file(&known, how);
        };
        // Held while the device is claimed, for it can be claimed once only.
        let mut devices = lock(&self.devices);
        if let Some(file) = devices.proven.get(&disk) {
            return Ok(file.clone());
        }
        let place = Place { machine: self.machine, disk, name: &known.name, size: known.size };
        // One that a view reads still is ours, and is proven as one that is found.
        let ours = devices.let_go.get(&disk).and_then(Weak::upgrade);
        let ours = ours.filter(|file| place.prove(&**file, placed).is_ok());
        let file = ours.map_or_else(|| place.find(&*self.storage, placed), Ok)?;
        devices.proven.insert(disk, file.clone());
        Ok(file)
    }

    /// A file that is gone, or shorter than its disk, is no replica: made anew, or written beyond
    /// its end, it would read as zeros.
    fn replica_file(&self, disk: &Disk, how: Open) -> Result<Arc<dyn BlockFile>> {
        let path = self.layout.disk(disk.index);
        let name = disk.name.clone();
        let missing = |what| StoreError::ReplicaMissing { disk: name, path: path.clone(), what };
        match self.storage.open(&path, how) {
            Ok(file) if file.size() >= disk.size => Ok(file),
            Ok(file) => Err(missing(format!("has {} bytes of {}", file.size(), disk.size))),
            Err(error) if error.source.kind() == ErrorKind::NotFound => {
                Err(missing("is not there".to_owned()))
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Protected disks whose replica files are gone or too short.
    pub(super) fn missing_replicas(&self) -> Vec<(DiskIndex, StoreError)> {
        let mut disks = lock(&self.manifest).disks.clone();
        disks.retain(|disk| disk.protection.is_active() && disk.device.is_none());
        let missing = |disk: &Disk| match self.replica_file(disk, Open::ReadOnly) {
            Err(error @ StoreError::ReplicaMissing { .. }) => Some((disk.index, error)),
            // Another failure is told by what needs the file.
            _ => None,
        };
        disks.iter().filter_map(missing).collect()
    }

    /// Lets all devices go, so that they are proven anew before the next use.
    pub(super) fn let_devices_go(&self) {
        let mut devices = lock(&self.devices);
        let proven = std::mem::take(&mut devices.proven);
        let let_go = proven.iter().map(|(disk, file)| (*disk, Arc::downgrade(file)));
        devices.let_go.extend(let_go);
    }
}

impl StoreMachine {
    /// Makes a block device the replica of a disk of which nothing was sent yet; durable when this
    /// returns.
    pub fn place(&self, disk: DiskIndex, path: &Path) -> Result<()> {
        let shared = &self.shared;
        let (name, size) = {
            let journal = lock(&shared.journal);
            let manifest = lock(&shared.manifest);
            let known = without_data(&journal, &manifest, disk)?;
            (known.name.clone(), known.size)
        };
        // A device may be slow to open and to write: the machine's frames do not wait for it.
        let place = Place { machine: shared.machine, disk, name: &name, size };
        let (placed, file) = place.take(&*shared.storage, path)?;
        // Held from the second look on: no record of the disk comes in between.
        let journal = lock(&shared.journal);
        let mut manifest = lock(&shared.manifest);
        without_data(&journal, &manifest, disk)?;
        let mut next = manifest.clone();
        for known in next.disks.iter_mut().filter(|known| known.index == disk) {
            known.device = Some(placed.clone());
        }
        shared.save(&next)?;
        *manifest = next;
        lock(&shared.devices).proven.insert(disk, file);
        let machine = manifest.name.clone();
        drop((manifest, journal));
        shared.placements.forget(|known| (&known.machine, &known.disk) == (&machine, &name))?;
        shared.remove_stray_replicas()
    }

    /// Places a disk that is known by now; whether there is such a disk.
    pub(super) fn place_known(&self, at: PlaceAt<'_>) -> Result<bool> {
        // An admission, which takes disks in, has the journal from its begin to its end.
        let active = {
            let _journal = lock(&self.shared.journal);
            let manifest = lock(&self.shared.manifest);
            let named = |disk: &&Disk| disk.name == at.disk && disk.protection.is_active();
            manifest.disks.iter().find(named).cloned()
        };
        let Some(disk) = active else { return Ok(false) };
        let is_there = disk.device.as_ref().is_some_and(|placed| placed.path == at.device);
        if !is_there {
            self.place(disk.index, at.device)?;
        }
        Ok(true)
    }

    /// Block devices that wait for disks of this machine.
    pub fn waiting(&self) -> Vec<Placement> {
        let machine = lock(&self.shared.manifest).name.clone();
        let mut waiting = self.shared.placements.all();
        waiting.retain(|known| known.machine == machine);
        waiting
    }

    /// Whether a disk lies on the device that was chosen for it.
    pub(super) fn has_made(&self, choice: &Placement) -> bool {
        let manifest = lock(&self.shared.manifest);
        let is_there = |disk: &Disk| {
            let path = disk.device.as_ref().map(|placed| &placed.path);
            disk.name == choice.disk && path == Some(&choice.device)
        };
        manifest.name == choice.machine && manifest.disks.iter().any(is_there)
    }

    /// Protected disks whose replica files are gone or too short; while there are any, nothing of
    /// the machine is applied.
    pub fn missing_replicas(&self) -> Vec<(DiskIndex, StoreError)> {
        self.shared.missing_replicas()
    }

    /// Claims and proves every device, so that a wrong one is known before it is needed.
    pub fn check_devices(&self) -> Result<()> {
        let disks = lock(&self.shared.manifest).disks.clone();
        let mut placed = disks.iter().filter(|disk| disk.is_kept() && disk.device.is_some());
        placed.try_for_each(|disk| self.shared.replica(disk.index, Open::ReadWrite).map(drop))
    }
}

/// The disk, where it is protected and nothing of it was sent yet.
fn without_data<'a>(
    journal: &Journal,
    manifest: &'a Manifest,
    disk: DiskIndex,
) -> Result<&'a Disk> {
    let known = manifest.disk(disk).filter(|known| known.protection.is_active());
    let known = known.ok_or(StoreError::UnknownDisk(disk))?;
    if known.has_data || journal.written.contains(disk) {
        return Err(StoreError::HasData { disk: known.name.clone() });
    }
    Ok(known)
}

/// A device chosen for a disk that is not known yet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Placement {
    /// The machine's name.
    pub machine: String,
    /// The disk's name.
    pub disk: String,
    /// The device.
    pub device: PathBuf,
}

/// A device for a disk that is not known yet.
#[derive(Clone, Copy, Debug)]
pub struct PlaceAt<'a> {
    /// The machine's name.
    pub machine: &'a str,
    /// The disk's name.
    pub disk: &'a str,
    /// The device.
    pub device: &'a Path,
}

impl PlaceAt<'_> {
    /// Whether this is the choice.
    pub(super) fn is(&self, choice: &Placement) -> bool {
        (self.machine, self.disk, self.device) == (&*choice.machine, &*choice.disk, &*choice.device)
    }
}

/// All devices chosen for disks that are not known yet.
pub(super) struct Placements {
    storage: Arc<dyn Storage>,
    waiting: Mutex<Vec<Placement>>,
}

impl Placements {
    pub(super) fn load(storage: &Arc<dyn Storage>) -> Result<Self> {
        let (waiting, _) = waiting(&**storage)?;
        Ok(Self { storage: storage.clone(), waiting: Mutex::new(waiting) })
    }

    /// For a store that takes no disks in.
    pub(super) fn none(storage: &Arc<dyn Storage>) -> Self {
        Self { storage: storage.clone(), waiting: Mutex::default() }
    }

    pub(super) fn all(&self) -> Vec<Placement> {
        lock(&self.waiting).clone()
    }

    pub(super) fn find(&self, machine: &str, disk: &str) -> Option<PathBuf> {
        let waiting = lock(&self.waiting);
        let found = waiting.iter().find(|known| known.machine == machine && known.disk == disk);
        found.map(|found| found.device.clone())
    }

    /// Chooses a device, in the place of an earlier choice; durable when this returns.
    pub(super) fn choose(&self, placement: Placement) -> Result<()> {
        self.change(|waiting| {
            waiting.retain(|known| {
                (&known.machine, &known.disk) != (&placement.machine, &placement.disk)
            });
            waiting.push(placement);
        })
    }

    /// Forgets choices: they were made true, or their machine is gone.
    pub(super) fn forget(&self, is_over: impl Fn(&Placement) -> bool) -> Result<()> {
        if !lock(&self.waiting).iter().any(&is_over) {
            return Ok(());
        }
        self.change(|waiting| waiting.retain(|known| !is_over(known)))
    }

    fn change(&self, change: impl FnOnce(&mut Vec<Placement>)) -> Result<()> {
        let mut waiting = lock(&self.waiting);
        let mut next = waiting.clone();
        change(&mut next);
        if next.len() > WAITING_LIMIT {
            return Err(StoreError::TooManyPlacements { limit: WAITING_LIMIT });
        }
        let body = serde_json::to_string_pretty(&next)
            .expect("a list of names and paths has only string keys");
        self.storage.replace(Path::new(FILE), &FILE_KIND.encode(&body))?;
        *waiting = next;
        Ok(())
    }
}

/// The choices that wait, and the bytes of the file that holds them.
pub(super) fn waiting(storage: &dyn Storage) -> Result<(Vec<Placement>, u64)> {
    let path = Path::new(FILE);
    let Some(bytes) = storage.load(path)? else { return Ok((Vec::new(), 0)) };
    let (body, at) = FILE_KIND.decode(path, &bytes)?;
    let waiting = serde_json::from_str(body)
        .map_err(|error| StoreError::damaged(path, at, error.to_string()))?;
    Ok((waiting, bytes.len() as u64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stamp_is_frozen() {
        let machine = MachineId([0x11; 16]);
        let place = Place { machine, disk: DiskIndex(2), name: "sda", size: 1 << 20 };
        let bytes = place.stamp_bytes(Stamp { at: 1 << 20, salt: [0x22; 16] });
        assert_eq!(bytes.len(), 4096);
        let text = String::from_utf8(bytes).unwrap();
        let salt = "22".repeat(16);
        let body = format!("11111111-1111-1111-1111-111111111111 2 {salt}");
        let golden = format!("redoubt-replica 1 {:08x}\n{body}\n", crc32c::crc32c(body.as_bytes()));
        assert_eq!(text.trim_end_matches('\0'), golden);
    }
}
