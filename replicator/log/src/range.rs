//! A range of bytes on a disk; it never wraps and is never negative.

use std::fmt;

/// `length` bytes from `offset`; the end is exclusive and fits in 64 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ByteRange {
    /// First byte.
    pub offset: u64,
    /// Bytes; may be zero.
    pub length: u64,
}

impl ByteRange {
    /// The range from `offset` of `length` bytes, or `None` where its end would not fit in 64 bits.
    pub fn checked(offset: u64, length: u64) -> Option<Self> {
        offset.checked_add(length).map(|_| Self { offset, length })
    }

    /// The range from `offset` of `length` bytes.
    ///
    /// # Panics
    /// Where the end would not fit in 64 bits.
    pub fn new(offset: u64, length: u64) -> Self {
        Self::checked(offset, length).expect("a range ends within 64 bits")
    }

    /// The range between two positions, empty where `end` is not after `start`.
    pub fn between(start: u64, end: u64) -> Self {
        Self { offset: start, length: end.saturating_sub(start) }
    }

    /// One past the last byte.
    pub fn end(&self) -> u64 {
        self.offset + self.length
    }

    /// Whether it holds no byte.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Whether the two share a byte.
    pub fn overlaps(&self, other: &Self) -> bool {
        self.intersection(other).is_some()
    }

    /// What the two share, if anything.
    pub fn intersection(&self, other: &Self) -> Option<Self> {
        let shared = Self::between(self.offset.max(other.offset), self.end().min(other.end()));
        (!shared.is_empty()).then_some(shared)
    }

    /// Whether `other` lies within this range.
    pub fn contains(&self, other: &Self) -> bool {
        self.offset <= other.offset && other.end() <= self.end()
    }
}

impl fmt::Display for ByteRange {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}+{}", self.offset, self.length)
    }
}
