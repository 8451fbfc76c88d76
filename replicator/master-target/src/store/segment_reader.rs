//! Reads a journal segment entry by entry, with read-ahead, checking chain and checksums as it
//! goes. It holds one window whatever the segment's size, and never looks behind the end that it
//! was given.

use super::error::Result;
use super::window::Window;
use redoubt_engine::storage::BlockFile;
use redoubt_log::segment::{
    Chain, ENTRY_ALIGNMENT, ENTRY_HEADER_SIZE, ENTRY_LIMIT, EntryHeader, Scan, entry_length,
    scan_entry,
};
use std::sync::Arc;

/// Bytes read at once: four of the largest entries keep a disk busy, and are little in the budget.
const READ_AHEAD: usize = 4 * ENTRY_LIMIT;

/// A window onto a segment.
pub(super) struct SegmentReader {
    file: Arc<dyn BlockFile>,
    window: Window,
}

impl SegmentReader {
    pub(super) fn new(file: Arc<dyn BlockFile>) -> Self {
        Self { file, window: Window::new(READ_AHEAD) }
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
    fn bytes(&mut self, offset: u64, end: u64, length: usize) -> Result<&[u8]> {
        let left = usize::try_from(end.saturating_sub(offset)).unwrap_or(usize::MAX);
        self.window.bytes(&*self.file, offset, length.min(left), end)
    }
}
