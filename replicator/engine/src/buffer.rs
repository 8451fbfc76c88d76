//! Memory that block devices take without copying: aligned, zeroed, owned; and a bounded pool of
//! it. Must never hand out memory that was not initialised, nor free any that a ring still holds.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::fmt;
use std::num::NonZeroUsize;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, PoisonError};

use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous, munmap};

/// Bytes to which memory, offsets and lengths are aligned for direct I/O: the largest logical block
/// of the disks that we know, and the page size.
pub const BLOCK_BYTES: usize = 4096;

/// Buffers of one pool: the kernel registers at most this many with a ring.
const POOL_COUNT_MAX: usize = 16_384;

/// Buffers from this length on are mapped by themselves, so that they go back to the system at
/// once: an allocator keeps what it has grown by, for each thread that ever needed it. Smaller ones
/// come and go so often that mapping them would cost more.
const MAPPED_LEAST: usize = 2 << 20;

/// Gives the empty buffer its alignment.
#[repr(align(4096))]
struct Block;

const _: () = assert!(align_of::<Block>() == BLOCK_BYTES);

/// Memory that starts at a multiple of [`BLOCK_BYTES`].
pub struct AlignedBuffer {
    start: NonNull<u8>,
    length: usize,
}

// SAFETY: the buffer owns its memory alone and has no interior mutability, as a `Box<[u8]>` has
// not.
unsafe impl Send for AlignedBuffer {}
// SAFETY: as above: shared references only read.
unsafe impl Sync for AlignedBuffer {}

impl AlignedBuffer {
    /// That many bytes, all zero.
    pub fn zeroed(length: usize) -> Self {
        if length == 0 {
            return AlignedBuffer { start: NonNull::<Block>::dangling().cast(), length };
        }
        let layout = Self::layout(length);
        let memory = if length >= MAPPED_LEAST {
            map(length)
        } else {
            // SAFETY: the layout's size is not zero.
            NonNull::new(unsafe { alloc_zeroed(layout) })
        };
        match memory {
            Some(start) => AlignedBuffer { start, length },
            None => handle_alloc_error(layout),
        }
    }

    fn layout(length: usize) -> Layout {
        Layout::from_size_align(length, BLOCK_BYTES).expect(
            "a buffer's length is far below the address space, the alignment a power of two",
        )
    }
}

impl Drop for AlignedBuffer {
    fn drop(&mut self) {
        if self.length >= MAPPED_LEAST {
            // SAFETY: `start` and this very length came from `map`, and are unmapped once: the
            // buffer owns the memory and is not cloned.
            let unmapped = unsafe { munmap(self.start.cast(), self.length) };
            // Only a wrong address or length is ever refused.
            debug_assert_eq!(unmapped, Ok(()));
        } else if self.length > 0 {
            // SAFETY: `start` came from `alloc_zeroed` with this very layout, and is freed once:
            // the buffer owns it and is not cloned.
            unsafe { dealloc(self.start.as_ptr(), Self::layout(self.length)) }
        }
    }
}

/// Fresh pages, all zero, if the system has any.
fn map(length: usize) -> Option<NonNull<u8>> {
    let length = NonZeroUsize::new(length)?;
    let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
    // SAFETY: the address is the kernel's choice, so that nothing that exists is mapped over.
    let memory = unsafe { mmap_anonymous(None, length, protection, MapFlags::MAP_PRIVATE) };
    memory.ok().map(NonNull::cast)
}

impl Deref for AlignedBuffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: `start` is valid for `length` initialised bytes (zeroed at first) while `self`
        // lives, or dangling and aligned with `length` zero; `&self` keeps writers away.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.length) }
    }
}

impl DerefMut for AlignedBuffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`; `&mut self` makes this the only reference.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.length) }
    }
}

impl fmt::Debug for AlignedBuffer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "AlignedBuffer({} bytes)", self.length)
    }
}

/// A fixed number of equal buffers, recycled. Clones are the same pool.
#[derive(Clone, Debug)]
pub struct BufferPool {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    buffer_bytes: usize,
    count: usize,
    /// Where each buffer lies, for registration; the memory itself is in `free` or in a `Buffer`,
    /// which gives it back, so that it lives as long as the pool.
    addresses: Vec<usize>,
    free: Mutex<Vec<(u16, AlignedBuffer)>>,
}

impl BufferPool {
    /// Allocates `count` buffers (at most 16,384) of `buffer_bytes`, rounded up to whole blocks.
    pub fn new(count: usize, buffer_bytes: usize) -> Self {
        assert!(count <= POOL_COUNT_MAX, "a ring registers at most {POOL_COUNT_MAX} buffers");
        let buffer_bytes = buffer_bytes.max(1).next_multiple_of(BLOCK_BYTES);
        let free: Vec<(u16, AlignedBuffer)> = (0..u16::MAX)
            .take(count)
            .map(|index| (index, AlignedBuffer::zeroed(buffer_bytes)))
            .collect();
        let addresses = free.iter().map(|(_, memory)| memory.as_ptr().addr()).collect();
        let shared = Shared { buffer_bytes, count, addresses, free: Mutex::new(free) };
        BufferPool { shared: Arc::new(shared) }
    }

    /// A buffer, or `None` while all are out: the bound is the caller's memory budget. It holds
    /// what its last user left.
    pub fn take(&self) -> Option<Buffer> {
        let (index, memory) = self.free().pop()?;
        Some(Buffer { memory, index, pool: self.clone() })
    }

    /// Buffers in the pool, taken or not.
    pub fn count(&self) -> usize {
        self.shared.count
    }

    /// Buffers that can be taken now.
    pub fn available(&self) -> usize {
        self.free().len()
    }

    /// Bytes of each buffer.
    pub fn buffer_bytes(&self) -> usize {
        self.shared.buffer_bytes
    }

    /// Addresses in order of the buffers' indexes.
    pub(crate) fn addresses(&self) -> &[usize] {
        &self.shared.addresses
    }

    /// Whether both are the same pool.
    pub(crate) fn is(&self, other: &BufferPool) -> bool {
        Arc::ptr_eq(&self.shared, &other.shared)
    }

    fn free(&self) -> std::sync::MutexGuard<'_, Vec<(u16, AlignedBuffer)>> {
        // Pushing and popping leave no half-made state behind.
        self.shared.free.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A buffer of a pool; goes back when dropped.
#[derive(Debug)]
pub struct Buffer {
    memory: AlignedBuffer,
    index: u16,
    pool: BufferPool,
}

impl Buffer {
    /// Its number in the pool, under which a ring registers it.
    pub(crate) fn index(&self) -> u16 {
        self.index
    }

    /// The pool to which it goes back.
    pub fn pool(&self) -> &BufferPool {
        &self.pool
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let memory = std::mem::replace(&mut self.memory, AlignedBuffer::zeroed(0));
        self.pool.free().push((self.index, memory));
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.memory
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.memory
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_aligned_zeroed_and_writable() {
        for length in [0, 1, 511, 4096, 1 << 20, MAPPED_LEAST, MAPPED_LEAST + 5] {
            let mut buffer = AlignedBuffer::zeroed(length);
            assert_eq!(buffer.as_ptr().addr() % BLOCK_BYTES, 0);
            assert!(buffer.iter().all(|byte| *byte == 0));
            buffer.fill(7);
            assert_eq!(buffer.iter().filter(|byte| **byte == 7).count(), length);
        }
    }

    #[test]
    fn a_pool_is_bounded_and_recycles() {
        let pool = BufferPool::new(2, 5000);
        assert_eq!(pool.buffer_bytes(), 8192);
        let (first, second) = (pool.take().unwrap(), pool.take().unwrap());
        assert!(pool.take().is_none());
        let (index, address) = (first.index(), first.as_ptr().addr());
        assert_eq!(pool.addresses()[usize::from(index)], address);
        drop(first);
        assert_eq!(pool.take().unwrap().as_ptr().addr(), address);
        drop(pool);
        assert_eq!(second.len(), 8192);
    }
}
