//! Where the tracker puts the log that it makes of events and reads. Order is the caller's: one
//! call, one record.

use crate::source::Gather;
use redoubt_log::GapReason;
use redoubt_log::{ByteRange, DiskIndex, Sequence};

/// Takes the log's records, in order.
pub trait LogSink {
    /// A write with its bytes.
    fn write(&mut self, disk: DiskIndex, range: ByteRange, data: Gather<'_>);
    /// The range became zero.
    fn zero(&mut self, disk: DiskIndex, range: ByteRange);
    /// The range's content was given up.
    fn discard(&mut self, disk: DiskIndex, range: ByteRange);
    /// Bytes read from the disk.
    fn backfill(&mut self, disk: DiskIndex, range: ByteRange, data: &[u8]);
    /// Everything logged so far is known to have lost nothing.
    fn checkpoint(&mut self);
    /// Events of this disk were lost after the last checkpoint: the record stands right behind that
    /// checkpoint.
    fn gap(&mut self, disk: DiskIndex, reason: GapReason);
    /// The log has the whole content of this disk from here on.
    fn consistent(&mut self, disk: DiskIndex);
    /// Whether a write of this many bytes may still be kept. Where not, it is read back later, as
    /// one without data: memory is bounded, the disk is not.
    fn has_room(&self, bytes: u64) -> bool;
    /// The newest record's sequence.
    fn position(&self) -> Sequence;
}
