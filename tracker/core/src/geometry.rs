//! Granules: the unit of the dirty bitmap, and the only conversions between them and bytes.

use redoubt_log::ByteRange;

/// Bytes of a disk that one bit of the bitmap stands for.
pub const GRANULE_BYTES: u64 = 4096;

/// The number of a granule on its disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Granule(pub u64);

/// Granules from `first` up to, not including, `end`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GranuleRange {
    /// The first.
    pub first: Granule,
    /// One past the last.
    pub end: Granule,
}

impl GranuleRange {
    /// Every granule that the bytes touch.
    pub fn touching(bytes: ByteRange) -> Self {
        if bytes.is_empty() {
            let at = Granule(bytes.offset / GRANULE_BYTES);
            return Self { first: at, end: at };
        }
        Self {
            first: Granule(bytes.offset / GRANULE_BYTES),
            end: Granule(bytes.end().div_ceil(GRANULE_BYTES)),
        }
    }

    /// The bytes of these granules, clipped to a disk of `size` bytes.
    pub fn bytes(self, size: u64) -> ByteRange {
        let start = (self.first.0 * GRANULE_BYTES).min(size);
        ByteRange::between(start, (self.end.0.saturating_mul(GRANULE_BYTES)).min(size))
    }

    /// How many granules.
    pub fn count(self) -> u64 {
        self.end.0 - self.first.0
    }

    /// Whether there are none.
    pub fn is_empty(self) -> bool {
        self.first == self.end
    }
}

/// Granules of a disk of `size` bytes; the last one may be partial.
pub fn granules_of(size: u64) -> u64 {
    size.div_ceil(GRANULE_BYTES)
}
