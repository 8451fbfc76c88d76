//! A window onto a file that is read front to back: aligned, so that the disk fills it directly,
//! and of a fixed size.

use crate::store::error::Result;
use redoubt_engine::buffer::{AlignedBuffer, BLOCK_BYTES};
use redoubt_engine::storage::{BlockFile, ReadRequest};
use std::sync::Arc;

const BLOCK: u64 = BLOCK_BYTES as u64;

/// A window onto a file.
pub(super) struct Window {
    file: Arc<dyn BlockFile>,
    memory: AlignedBuffer,
    /// Where in the file the window begins, and how many of its bytes are filled.
    at: u64,
    filled: usize,
}

impl Window {
    /// A window that can show `length` bytes from any place.
    pub(super) fn new(file: Arc<dyn BlockFile>, length: usize) -> Self {
        let file_length = usize::try_from(file.size()).unwrap_or(length);
        // A block more, for the place need not begin one.
        let length = length.min(file_length).next_multiple_of(BLOCK_BYTES) + BLOCK_BYTES;
        let memory = AlignedBuffer::zeroed(length);
        Self { file, memory, at: 0, filled: 0 }
    }

    /// At least `length` bytes from `offset`, or all there are before the end of the file.
    pub(super) fn bytes(&mut self, offset: u64, length: usize) -> Result<&[u8]> {
        let left = self.file.size().saturating_sub(offset);
        let length = usize::try_from(left).map_or(length, |left| left.min(length));
        if length == 0 {
            return Ok(&[]);
        }
        let is_shown = self.at <= offset && offset + length as u64 <= self.at + self.filled as u64;
        if !is_shown {
            let start = offset - offset % BLOCK;
            let left = usize::try_from(self.file.size() - start).unwrap_or(usize::MAX);
            let count = left.min(self.memory.len());
            self.filled = 0;
            let request = ReadRequest { offset: start, buffer: &mut self.memory[..count] };
            self.file.read(&mut [request])?;
            (self.at, self.filled) = (start, count);
        }
        let start = usize::try_from(offset - self.at).expect("the place lies within the window");
        Ok(&self.memory[start..self.filled])
    }
}
