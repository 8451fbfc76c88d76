//! The disks that the programs watch: their arrays, and the swap that ends an epoch. It must never
//! make a slot known to the programs before its arrays stand, nor free an array that a program may
//! still mark.

use super::memory::{Mapping, index};
use super::pins::Pins;
use super::{Attached, ProbeError};
use crate::device::DeviceNumber;
use crate::source::{Array, CaptureMode};
use libbpf_rs::{MapCore, MapFlags, MapHandle, MapType};
use redoubt_ebpf::{Device, numbers};
use redoubt_log::{ByteRange, DiskIndex};
use std::os::fd::{AsFd, AsRawFd};
use std::sync::atomic::Ordering;

const GRANULE_BYTES: u64 = 1 << numbers::GRANULE_SHIFT;
const WORD_GRANULES: u64 = 64;

/// What makes a tracked disk that disk: another under the same number differs in one of these.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskIdentity {
    /// The whole disk.
    pub device: DeviceNumber,
    /// The kernel's sequence number of the whole disk; never used again until the next boot.
    pub diskseq: u64,
    /// Bytes of the whole disk.
    pub device_bytes: u64,
    /// Where the tracked range begins on it, in bytes: not zero for a partition.
    pub start: u64,
    /// Bytes that are tracked.
    pub length: u64,
}

/// A disk that the programs watch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PinnedDisk {
    /// Its number.
    pub disk: DiskIndex,
    /// What it was when it was added.
    pub identity: DiskIdentity,
}

/// What the programs counted for one disk, since it was added.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DiskCounters {
    /// Events that found no room in the ring.
    pub lost: u64,
    /// Completions that found a granule of theirs unmarked: a submission was missed, or was made
    /// before the disk was added.
    pub unmarked: u64,
    /// Submissions of which a page could not be copied.
    pub unreadable: u64,
    /// Submissions in data or metadata mode.
    pub submissions: u64,
    /// Bytes of these.
    pub submitted_bytes: u64,
    /// Completions; a write has one for each part that ends by itself.
    pub completions: u64,
}

/// The two arrays of a disk.
pub(super) struct Disk {
    length: u64,
    maps: [MapHandle; 2],
    words: [Mapping; 2],
    active: usize,
}

impl Disk {
    fn of(maps: [MapHandle; 2], length: u64, active: usize) -> Result<Self, ProbeError> {
        let mapped = |source| ProbeError::Memory { what: "a bitmap", source };
        let words = [
            Mapping::of_array(&maps[0]).map_err(mapped)?,
            Mapping::of_array(&maps[1]).map_err(mapped)?,
        ];
        Ok(Self { length, maps, words, active })
    }

    fn side(&self, array: Array) -> &Mapping {
        match array {
            Array::Active => &self.words[self.active],
            Array::Spare => &self.words[1 - self.active],
        }
    }

    fn word_count(&self) -> u64 {
        words_for(self.length)
    }

    pub(super) fn marks(&self, array: Array, each: &mut dyn FnMut(ByteRange)) {
        let words = self.side(array);
        let mut run: Option<(u64, u64)> = None;
        let mut emit = |first: u64, end: u64| {
            let end = (end * GRANULE_BYTES).min(self.length);
            each(ByteRange::between(first * GRANULE_BYTES, end));
        };
        for number in 0..self.word_count() {
            let mut word = words.word(index(number) * 8).load(Ordering::Acquire);
            let base = number * WORD_GRANULES;
            while word != 0 {
                let first = u64::from(word.trailing_zeros());
                let length = u64::from((!(word >> first)).trailing_zeros());
                run = match run {
                    Some((start, end)) if end == base + first => Some((start, end + length)),
                    Some((start, end)) => {
                        emit(start, end);
                        Some((base + first, base + first + length))
                    }
                    None => Some((base + first, base + first + length)),
                };
                let end = first + length;
                word = if end == WORD_GRANULES { 0 } else { word >> end << end };
            }
        }
        if let Some((start, end)) = run {
            emit(start, end);
        }
    }

    /// Marks the granules of a range in the active array, as the programs do.
    pub(super) fn mark(&self, range: ByteRange) {
        if range.is_empty() || range.offset >= self.length {
            return;
        }
        let first = range.offset / GRANULE_BYTES;
        let end = range.end().min(self.length).div_ceil(GRANULE_BYTES);
        let words = self.side(Array::Active);
        for number in first / WORD_GRANULES..end.div_ceil(WORD_GRANULES) {
            let base = number * WORD_GRANULES;
            let from = first.saturating_sub(base);
            let unused = (base + WORD_GRANULES).saturating_sub(end);
            let mask = (u64::MAX << from) & (u64::MAX >> unused);
            words.word(index(number) * 8).fetch_or(mask, Ordering::AcqRel);
        }
    }

    pub(super) fn clear_spare(&self) {
        let words = self.side(Array::Spare);
        for number in 0..self.word_count() {
            let word = words.word(index(number) * 8);
            // A page never marked stays a page never touched.
            if word.load(Ordering::Relaxed) != 0 {
                word.store(0, Ordering::Release);
            }
        }
    }

    fn spare_is_clear(&self) -> bool {
        let words = self.side(Array::Spare);
        (0..self.word_count())
            .all(|number| words.word(index(number) * 8).load(Ordering::Acquire) == 0)
    }
}

fn words_for(length: u64) -> u64 {
    length.div_ceil(GRANULE_BYTES).div_ceil(WORD_GRANULES)
}

fn create_array(length: u64) -> Result<MapHandle, ProbeError> {
    let words = u32::try_from(words_for(length))
        .ok()
        .filter(|words| *words > 0)
        .ok_or(ProbeError::DiskSize { bytes: length })?;
    let options = libbpf_sys::bpf_map_create_opts {
        sz: size_of::<libbpf_sys::bpf_map_create_opts>() as libbpf_sys::size_t,
        map_flags: libbpf_sys::BPF_F_MMAPABLE | libbpf_sys::BPF_F_INNER_MAP,
        ..Default::default()
    };
    MapHandle::create(MapType::Array, Some("redoubt_marks"), 4, 8, words, &options)
        .map_err(|source| ProbeError::Map { map: "marks", source })
}

impl Attached {
    /// Begins to mark a disk's writes, in bitmap mode.
    pub fn add_disk(&mut self, disk: DiskIndex, identity: &DiskIdentity) -> Result<(), ProbeError> {
        if disk.0 >= DiskIndex::LIMIT || self.disks.contains_key(&disk) {
            return Err(ProbeError::DiskTaken { disk });
        }
        let slots = self.device_slots(identity.device)?;
        if slots.count >= numbers::SLOTS_PER_DEVICE {
            return Err(ProbeError::DeviceFull { device: identity.device.to_string() });
        }
        self.remove_array_pins(disk)?;
        let mut maps = [create_array(identity.length)?, create_array(identity.length)?];
        for (side, map) in maps.iter_mut().enumerate() {
            let path = self.pins.array(disk, side);
            map.pin(&path).map_err(|source| ProbeError::Pin {
                path,
                source: std::io::Error::other(source),
            })?;
            let key = u32::from(disk.0) * 2 + u32::from(side != 0);
            put_inner("arrays", &self.arrays, key, map)?;
        }
        put_inner("active", &self.active, u32::from(disk.0), &maps[0])?;
        self.slots.write(disk, identity);
        self.slots.set_present(disk, true);
        self.disks.insert(disk, Disk::of(maps, identity.length, 0)?);
        self.write_device(identity.device, slots, |slots| {
            let count = index(u64::from(slots.count));
            slots.slots[count] = u32::from(disk.0);
            slots.count += 1;
        })
    }

    /// Ends the tracking of a disk and drops its marks.
    pub fn remove_disk(&mut self, disk: DiskIndex) -> Result<(), ProbeError> {
        if self.disks.remove(&disk).is_none() {
            return Err(ProbeError::DiskUnknown { disk });
        }
        self.forget_disk(disk)
    }

    /// The disks that are watched, with what they were when they were added: compare before
    /// trusting their marks.
    pub fn disks(&self) -> Vec<PinnedDisk> {
        let known =
            |disk: &DiskIndex| PinnedDisk { disk: *disk, identity: self.slots.identity(*disk) };
        self.disks.keys().map(known).collect()
    }

    /// What the programs counted for a disk.
    pub fn disk_counters(&self, disk: DiskIndex) -> DiskCounters {
        self.slots.counters(disk)
    }

    fn forget_disk(&mut self, disk: DiskIndex) -> Result<(), ProbeError> {
        let device = self.slots.identity(disk).device;
        let slots = self.device_slots(device)?;
        self.write_device(device, slots, |slots| {
            let mut kept = Device::default();
            for slot in slots.slots.iter().take(index(u64::from(slots.count))) {
                if *slot != u32::from(disk.0) {
                    kept.slots[index(u64::from(kept.count))] = *slot;
                    kept.count += 1;
                }
            }
            *slots = kept;
        })?;
        self.slots.set_present(disk, false);
        for (name, map, key) in [
            ("active", &self.active, u32::from(disk.0)),
            ("arrays", &self.arrays, u32::from(disk.0) * 2),
            ("arrays", &self.arrays, u32::from(disk.0) * 2 + 1),
        ] {
            match map.delete(&key.to_ne_bytes()) {
                Err(source) if source.kind() != libbpf_rs::ErrorKind::NotFound => {
                    return Err(ProbeError::Map { map: name, source });
                }
                _ => {}
            }
        }
        self.ring.forget_partial(disk);
        self.remove_array_pins(disk)
    }

    fn remove_array_pins(&self, disk: DiskIndex) -> Result<(), ProbeError> {
        Pins::remove(&self.pins.array(disk, 0))?;
        Pins::remove(&self.pins.array(disk, 1))
    }

    /// Takes hold of the disks of an earlier run; one whose adding was interrupted was never
    /// promised, and goes.
    pub(super) fn adopt_disks(&mut self) -> Result<(), ProbeError> {
        for number in 0..DiskIndex::LIMIT {
            let disk = DiskIndex(number);
            if !self.slots.present(disk) {
                self.remove_array_pins(disk)?;
                continue;
            }
            let identity = self.slots.identity(disk);
            let slots = self.device_slots(identity.device)?;
            let known = slots.slots.iter().take(index(u64::from(slots.count)));
            if !known.into_iter().any(|slot| *slot == u32::from(number)) {
                self.forget_disk(disk)?;
                continue;
            }
            let open = |side| {
                MapHandle::from_pinned_path(self.pins.array(disk, side))
                    .map_err(|source| ProbeError::Map { map: "marks", source })
            };
            let maps = [open(0)?, open(1)?];
            let active = usize::from(self.active_id(disk)? != map_id(&maps[0])?);
            self.disks.insert(disk, Disk::of(maps, identity.length, active)?);
        }
        Ok(())
    }

    pub(super) fn change_mode(
        &mut self,
        disk: DiskIndex,
        mode: CaptureMode,
    ) -> Result<(), ProbeError> {
        let known = self.disks.get(&disk).ok_or(ProbeError::DiskUnknown { disk })?;
        self.slots.set_mode(disk, mode);
        // Putting the same array in its place again makes the kernel wait for the running programs.
        put_inner("active", &self.active, u32::from(disk.0), &known.maps[known.active])
    }

    pub(super) fn swap_arrays(&mut self, disk: DiskIndex) -> Result<(), ProbeError> {
        let known = self.disks.get_mut(&disk).ok_or(ProbeError::DiskUnknown { disk })?;
        if !known.spare_is_clear() {
            return Err(ProbeError::SpareNotClear { disk });
        }
        // The kernel returns from this once no running program holds the old array
        // (maybe_wait_bpf_programs).
        put_inner("active", &self.active, u32::from(disk.0), &known.maps[1 - known.active])?;
        known.active = 1 - known.active;
        Ok(())
    }

    fn active_id(&self, disk: DiskIndex) -> Result<u32, ProbeError> {
        let failed = |source| ProbeError::Map { map: "active", source };
        let key = u32::from(disk.0).to_ne_bytes();
        let id = self.active.lookup(&key, MapFlags::ANY).map_err(failed)?.unwrap_or_default();
        Ok(id.try_into().map_or(0, u32::from_ne_bytes))
    }

    fn device_slots(&self, device: DeviceNumber) -> Result<Device, ProbeError> {
        let failed = |source| ProbeError::Map { map: "devices", source };
        let key = device.kernel().to_ne_bytes();
        let found = self.devices.lookup(&key, MapFlags::ANY).map_err(failed)?;
        Ok(found.map(|bytes| Device::from_bytes(&bytes)).unwrap_or_default())
    }

    fn write_device(
        &self,
        device: DeviceNumber,
        mut slots: Device,
        change: impl FnOnce(&mut Device),
    ) -> Result<(), ProbeError> {
        change(&mut slots);
        let key = device.kernel().to_ne_bytes();
        let result = if slots.count == 0 {
            match self.devices.delete(&key) {
                Err(error) if error.kind() == libbpf_rs::ErrorKind::NotFound => Ok(()),
                result => result,
            }
        } else {
            self.devices.update(&key, &slots.to_bytes(), MapFlags::ANY)
        };
        result.map_err(|source| ProbeError::Map { map: "devices", source })
    }
}

fn map_id(map: &MapHandle) -> Result<u32, ProbeError> {
    let info = libbpf_rs::MapInfo::new(map.as_fd());
    info.map(|info| info.info.id).map_err(|source| ProbeError::Map { map: "marks", source })
}

fn put_inner(
    name: &'static str,
    outer: &MapHandle,
    key: u32,
    inner: &MapHandle,
) -> Result<(), ProbeError> {
    let descriptor = inner.as_fd().as_raw_fd().to_ne_bytes();
    outer
        .update(&key.to_ne_bytes(), &descriptor, MapFlags::ANY)
        .map_err(|source| ProbeError::Map { map: name, source })
}
