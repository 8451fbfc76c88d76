//! Reads a journal segment entry by entry, with read-ahead, checking chain and checksums as it
//! goes. It holds one buffer whatever the segment's size, and never looks behind the end that it
//! was given.

use super::error::Result;
use redoubt_engine::storage::{BlockFile, ReadRequest};
use redoubt_log::segment::{
    Chain, ENTRY_ALIGNMENT, ENTRY_HEADER_SIZE, ENTRY_LIMIT, EntryHeader, Scan, entry_length,
    scan_entry,
};
use std::sync::Arc;

/// Bytes read at once: two of the largest entries, so that reads stay large and the budget small.
const READ_AHEAD: usize = 2 * ENTRY_LIMIT;

/// A window onto a segment.
pub(super) struct SegmentReader {
    file: Arc<dyn BlockFile>,
    buffer: Vec<u8>,
    /// Where in the file the buffer begins, and how many of its bytes are filled.
    at: u64,
    filled: usize,
}

impl SegmentReader {
    pub(super) fn new(file: Arc<dyn BlockFile>) -> Self {
        Self { file, buffer: Vec::new(), at: 0, filled: 0 }
    }

    /// Bytes of the segment.
    pub(super) fn size(&self) -> u64 {
        self.file.size()
    }

    /// What stands at `offset` after `chain`; `end` is where the segment's entries end at the
    /// latest.
    pub(super) fn scan(&mut self, offset: u64, end: u64, chain: &Chain) -> Result<Scan<'_>> {
        let head = self.bytes(offset, end, ENTRY_ALIGNMENT)?;
        let length = head
            .first_chunk::<ENTRY_HEADER_SIZE>()
            .and_then(|head| EntryHeader::parse(head).ok())
            .map_or(ENTRY_ALIGNMENT, |header| entry_length(header.frame_length as usize));
        let bytes = self.bytes(offset, end, length.min(ENTRY_LIMIT))?;
        Ok(scan_entry(bytes, chain))
    }

    /// At least `length` bytes from `offset`, or all there are before `end`.
    pub(super) fn bytes(&mut self, offset: u64, end: u64, length: usize) -> Result<&[u8]> {
        let left = usize::try_from(end.saturating_sub(offset)).unwrap_or(usize::MAX);
        let length = length.min(left);
        let buffered = self.at <= offset && offset + length as u64 <= self.at + self.filled as u64;
        if !buffered {
            let count = READ_AHEAD.min(left).max(length);
            self.buffer.resize(READ_AHEAD.max(count), 0);
            self.filled = 0;
            let request = ReadRequest { offset, buffer: &mut self.buffer[..count] };
            self.file.read(&mut [request])?;
            (self.at, self.filled) = (offset, count);
        }
        let start = usize::try_from(offset - self.at).expect("the place lies within the buffer");
        Ok(&self.buffer[start..self.filled])
    }
}
