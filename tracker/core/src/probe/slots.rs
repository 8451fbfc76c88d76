//! The table of protected disks that the programs read and count in. Every field has one writer: us
//! for what a slot is, the programs for what they count; it must never write the latter while the
//! slot is present.

use super::disks::{DiskCounters, DiskIdentity};
use super::memory::Mapping;
use crate::source::CaptureMode;
use libbpf_rs::MapHandle;
use redoubt_ebpf::{Slot, numbers};
use redoubt_log::DiskIndex;
use std::mem::{offset_of, size_of};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

pub(super) struct Slots {
    memory: Mapping,
}

impl Slots {
    pub(super) fn map(map: &MapHandle) -> nix::Result<Self> {
        Ok(Self { memory: Mapping::of_array(map)? })
    }

    fn word(&self, disk: DiskIndex, field: usize) -> &AtomicU64 {
        self.memory.word(usize::from(disk.0) * size_of::<Slot>() + field)
    }

    fn half_word(&self, disk: DiskIndex, field: usize) -> &AtomicU32 {
        self.memory.half_word(usize::from(disk.0) * size_of::<Slot>() + field)
    }

    pub(super) fn present(&self, disk: DiskIndex) -> bool {
        self.half_word(disk, offset_of!(Slot, present)).load(Ordering::Acquire) != 0
    }

    pub(super) fn set_present(&self, disk: DiskIndex, present: bool) {
        let present = u32::from(present);
        self.half_word(disk, offset_of!(Slot, present)).store(present, Ordering::Release);
    }

    pub(super) fn set_mode(&self, disk: DiskIndex, mode: CaptureMode) {
        let mode = match mode {
            CaptureMode::Bitmap => numbers::MODE_BITMAP,
            CaptureMode::Metadata => numbers::MODE_METADATA,
            CaptureMode::Data => numbers::MODE_DATA,
        };
        self.half_word(disk, offset_of!(Slot, mode)).store(mode, Ordering::Release);
    }

    /// Writes a slot that is not present: its place, bitmap mode, counters at zero.
    pub(super) fn write(&self, disk: DiskIndex, identity: &DiskIdentity) {
        debug_assert!(!self.present(disk));
        for field in (0..size_of::<Slot>()).step_by(8) {
            self.word(disk, field).store(0, Ordering::Relaxed);
        }
        let put = |field, value| self.word(disk, field).store(value, Ordering::Relaxed);
        put(offset_of!(Slot, start), identity.start);
        put(offset_of!(Slot, length), identity.length);
        put(offset_of!(Slot, diskseq), identity.diskseq);
        put(offset_of!(Slot, device_bytes), identity.device_bytes);
        self.half_word(disk, offset_of!(Slot, device))
            .store(identity.device.kernel(), Ordering::Relaxed);
    }

    pub(super) fn identity(&self, disk: DiskIndex) -> DiskIdentity {
        let get = |field| self.word(disk, field).load(Ordering::Relaxed);
        let device = self.half_word(disk, offset_of!(Slot, device)).load(Ordering::Relaxed);
        DiskIdentity {
            device: crate::device::DeviceNumber::from_kernel(device),
            diskseq: get(offset_of!(Slot, diskseq)),
            device_bytes: get(offset_of!(Slot, device_bytes)),
            start: get(offset_of!(Slot, start)),
            length: get(offset_of!(Slot, length)),
        }
    }

    pub(super) fn counters(&self, disk: DiskIndex) -> DiskCounters {
        // SeqCst: a loss must not be read earlier than the events that were drained before this
        // call.
        let get = |field| self.word(disk, field).load(Ordering::SeqCst);
        DiskCounters {
            lost: get(offset_of!(Slot, lost)),
            unmarked: get(offset_of!(Slot, unmarked)),
            unreadable: get(offset_of!(Slot, unreadable)),
            submissions: get(offset_of!(Slot, submissions)),
            submitted_bytes: get(offset_of!(Slot, submitted_bytes)),
            completions: get(offset_of!(Slot, completions)),
        }
    }
}
