//! Buffers of a frame's largest size that go round: once warm, sealing allocates nothing.
//! It bounds what it keeps in spare, never what is in use: that is the budget of who holds the
//! frames.

use super::{FRAME_HEADER_SIZE, FRAME_PAYLOAD_LIMIT, FRAME_TABLE_LIMIT};
use std::mem;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Where the payload starts in a buffer: before it there is room for any header and record table,
/// so that these are put in front of a payload that stays where it was gathered.
pub(super) const HEADROOM: usize = FRAME_HEADER_SIZE + FRAME_TABLE_LIMIT;

/// Room for a payload at its worst after a header and table at their largest.
const BUFFER_LENGTH: usize =
    HEADROOM + lz4_flex::block::get_maximum_output_size(FRAME_PAYLOAD_LIMIT);

/// A frame that fills less than this part of its buffer moves to memory of its own size when
/// sealed: else a backlog of small frames would hold a megabyte each.
const FILLED_LEAST: usize = 4;

/// Spare frame buffers, shared by builders and by the frames that give theirs back when dropped.
#[derive(Clone, Debug)]
pub struct FramePool {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    spares: Mutex<Vec<Vec<u8>>>,
    limit: usize,
}

impl FramePool {
    /// Keeps at most `limit` buffers, of 1.2 MiB each, that no frame uses.
    pub fn new(limit: usize) -> Self {
        Self { shared: Arc::new(Shared { spares: Mutex::new(Vec::with_capacity(limit)), limit }) }
    }

    /// Buffers that wait for use.
    pub fn spares(&self) -> usize {
        self.lock().len()
    }

    pub(super) fn take(&self) -> FrameBuffer {
        let spare = self.lock().pop();
        let bytes = spare.unwrap_or_else(|| vec![0; BUFFER_LENGTH]);
        FrameBuffer { bytes, pool: self.clone() }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Vec<u8>>> {
        // No code that can panic runs under the lock, and a list of spare buffers cannot be half
        // changed.
        self.shared.spares.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A buffer that goes back to its pool, unless it has another size than the pool's.
#[derive(Debug)]
pub(super) struct FrameBuffer {
    bytes: Vec<u8>,
    pool: FramePool,
}

impl FrameBuffer {
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.bytes
    }

    pub(super) fn memory(&self) -> usize {
        self.bytes.capacity()
    }

    pub(super) fn pool(&self) -> &FramePool {
        &self.pool
    }

    /// The buffer, and where the range stands in it: moved to memory of its own size where it fills
    /// little of this.
    pub(super) fn trimmed(self, start: usize, length: usize) -> (Self, usize) {
        if length >= self.bytes.len() / FILLED_LEAST {
            return (self, start);
        }
        let bytes = self.bytes[start..start + length].to_vec();
        (Self { bytes, pool: self.pool.clone() }, 0)
    }
}

impl Drop for FrameBuffer {
    fn drop(&mut self) {
        if self.bytes.len() != BUFFER_LENGTH {
            return;
        }
        let mut spares = self.pool.lock();
        if spares.len() < self.pool.shared.limit {
            spares.push(mem::take(&mut self.bytes));
        }
    }
}
