//! The contract between what watches the disks and what makes a log of it. It never interprets a
//! write.

use redoubt_log::{ByteRange, DiskIndex};

/// A place in the ring, in bytes since it was made; it only grows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RingPosition(pub u64);

/// The kernel address of a bio: names a write from its submission to its completion, and is used
/// again after that.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BioKey(pub u64);

/// What a write does to its range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Writes bytes.
    Write,
    /// Makes the range zero.
    WriteZeroes,
    /// Gives the range's content up: it reads as anything until it is written again.
    Discard,
}

/// What the capture of one disk pays for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CaptureMode {
    /// The bitmap is marked, nothing goes to the ring.
    Bitmap,
    /// Submissions and completions go to the ring without data.
    Metadata,
    /// Submissions go to the ring with their data.
    Data,
}

/// The data of one write: pieces in the ring's memory that together are its range, in order.
pub type Gather<'a> = &'a [&'a [u8]];

/// One event of the ring, in the ring's order. Ranges are relative to the start of the tracked disk
/// or partition.
#[derive(Debug)]
pub enum Event<'a> {
    /// A write was queued.
    Submitted {
        /// The disk.
        disk: DiskIndex,
        /// Its name until it completes.
        bio: BioKey,
        /// Where.
        range: ByteRange,
        /// What it does.
        operation: Operation,
        /// Its bytes, complete; `None` where they were not captured (or the operation has none).
        data: Option<Gather<'a>>,
        /// Kernel monotonic time, nanoseconds.
        at: u64,
    },
    /// A part, or the whole, of a write ended.
    Completed {
        /// The disk.
        disk: DiskIndex,
        /// The submission's name, or that of a split part.
        bio: BioKey,
        /// What ended.
        range: ByteRange,
        /// Whether it failed: the range may hold anything.
        failed: bool,
    },
    /// The front of a queued write got a name of its own; the rest keeps the old one.
    Split {
        /// The disk.
        disk: DiskIndex,
        /// The new name of the front part.
        front: BioKey,
        /// The name that was queued.
        parent: BioKey,
        /// The front part.
        range: ByteRange,
    },
}

/// Which of a disk's two bitmap arrays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Array {
    /// The one that writes mark now.
    Active,
    /// The other: the last epoch that was cut, or zeros once that is dropped.
    Spare,
}

/// Something that watches disks: the eBPF programs, the simulated world of the tests.
///
/// The promise: a write is marked in the active array when it is submitted, and again when it
/// completes; a record that finds no room raises `lost` before any later event can be drained.
pub trait ChangeSource {
    /// Why an operation on the kernel side failed.
    type Error: std::error::Error + Send + Sync + 'static;

    /// How far the ring has been filled.
    fn produced(&self) -> RingPosition;
    /// Hands every event before `until` to `sink`, in order, and frees its room. A write whose
    /// pieces are not all in the ring yet is handed out with its last piece. Returns the
    /// position up to which all events were handed out: never before `until` unless a piece is
    /// still being written by another processor.
    fn drain(&mut self, until: RingPosition, sink: &mut dyn FnMut(Event<'_>)) -> RingPosition;
    /// Forgets writes of this disk of which only some pieces were seen (after a loss they may never
    /// be whole).
    fn forget_partial(&mut self, disk: DiskIndex);
    /// Events of this disk that found no room, ever.
    fn lost(&self, disk: DiskIndex) -> u64;
    /// Completions of this disk that found a granule of theirs unmarked, ever: their submission
    /// was missed. Rises only once they have marked it themselves.
    fn unmarked(&self, disk: DiskIndex) -> u64;
    /// Changes what capture pays for; returns when no running program uses the old mode any more.
    fn set_mode(&mut self, disk: DiskIndex, mode: CaptureMode) -> Result<(), Self::Error>;
    /// Swaps the arrays; returns when nobody marks the old one any more. The spare must be clear.
    fn cut(&mut self, disk: DiskIndex) -> Result<(), Self::Error>;
    /// Calls `each` for every marked run of bytes of the array, ascending, whole granules, clipped
    /// to the disk.
    fn marks(&self, disk: DiskIndex, array: Array, each: &mut dyn FnMut(ByteRange));
    /// Marks a range in the active array, so that a demand of ours outlives this process as a write
    /// does.
    fn mark(&mut self, disk: DiskIndex, range: ByteRange);
    /// Zeroes the spare array.
    fn clear_spare(&mut self, disk: DiskIndex);
}
