//! A kernel map as memory of ours. The only place that maps it; whoever reads it here reads
//! atomics, for the kernel writes at the same time. It must never hand out a plain reference into
//! such memory.

use libbpf_rs::{MapCore, MapHandle, MapType};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
use std::num::NonZeroUsize;
use std::os::fd::AsFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64};

/// Pages of this machine; the ring's two control pages and the arrays are whole pages.
pub(crate) fn page_bytes() -> usize {
    nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE)
        .ok()
        .flatten()
        .and_then(|bytes| usize::try_from(bytes).ok())
        .expect("every Linux tells its page size")
}

/// A 64-bit count as an index into memory.
pub(crate) fn index(count: u64) -> usize {
    usize::try_from(count).expect("the tracker is built for 64-bit machines only")
}

/// Memory shared with the kernel, unmapped when dropped.
#[derive(Debug)]
pub(crate) struct Mapping {
    start: NonNull<u8>,
    bytes: usize,
}

// SAFETY: the mapping is owned by this value alone until it is unmapped in drop, is not tied to a
// thread, and is read and written through atomics only.
unsafe impl Send for Mapping {}
// SAFETY: as above; all access through a shared reference is atomic or to parts that the kernel no
// longer writes.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps `bytes` from `offset` of something the kernel shares.
    pub(crate) fn new(
        file: impl AsFd,
        offset: usize,
        bytes: usize,
        writable: bool,
    ) -> nix::Result<Self> {
        let length = NonZeroUsize::new(bytes).ok_or(nix::Error::EINVAL)?;
        let protection = if writable {
            ProtFlags::PROT_READ | ProtFlags::PROT_WRITE
        } else {
            ProtFlags::PROT_READ
        };
        let offset = i64::try_from(offset).map_err(|_| nix::Error::EINVAL)?;
        // SAFETY: no address is asked for, so nothing of ours is mapped over; the length is not
        // zero.
        let start = unsafe { mmap(None, length, protection, MapFlags::MAP_SHARED, file, offset)? };
        Ok(Self { start: start.cast(), bytes })
    }

    /// Maps all values of an array that was made mmapable.
    pub(crate) fn of_array(map: &MapHandle) -> nix::Result<Self> {
        debug_assert_eq!(map.map_type(), MapType::Array);
        let values = u64::from(map.value_size().next_multiple_of(8)) * u64::from(map.max_entries());
        Self::new(map, 0, index(values).next_multiple_of(page_bytes()), true)
    }

    /// The 64-bit word at a byte offset.
    pub(crate) fn word(&self, offset: usize) -> &AtomicU64 {
        assert!(offset.is_multiple_of(8) && offset + 8 <= self.bytes, "a word within the mapping");
        // SAFETY: the word is aligned and lies within the mapping, which lives as long as `self`;
        // atomics may be shared with the kernel, which writes words of this size with atomic
        // instructions.
        unsafe { AtomicU64::from_ptr(self.start.as_ptr().add(offset).cast()) }
    }

    /// The 32-bit word at a byte offset.
    pub(crate) fn half_word(&self, offset: usize) -> &AtomicU32 {
        assert!(offset.is_multiple_of(4) && offset + 4 <= self.bytes, "a word within the mapping");
        // SAFETY: as in `word`.
        unsafe { AtomicU32::from_ptr(self.start.as_ptr().add(offset).cast()) }
    }

    /// Bytes that the kernel has finished writing.
    ///
    /// # Safety
    /// The kernel must not write these bytes while the slice lives.
    pub(crate) unsafe fn bytes(&self, offset: usize, length: usize) -> &[u8] {
        assert!(
            offset.checked_add(length).is_some_and(|end| end <= self.bytes),
            "a slice within the mapping"
        );
        // SAFETY: within the mapping, which lives as long as `self`; the caller holds the kernel
        // off.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr().add(offset), length) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: mapped by `new` with this length; every reference into it borrowed `self` and is
        // gone.
        let unmapped = unsafe { munmap(self.start.cast(), self.bytes) };
        debug_assert!(unmapped.is_ok());
    }
}
