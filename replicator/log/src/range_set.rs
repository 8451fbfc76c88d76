//! A set of bytes kept as ranges; ranges that touch are one. It knows nothing of what the bytes are
//! for.

use crate::ByteRange;
use std::collections::BTreeMap;

/// Ordered ranges, each as long as can be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RangeSet {
    /// First byte → one past the last. No range is empty, and none touches another.
    ranges: BTreeMap<u64, u64>,
    total: u64,
}

impl RangeSet {
    /// An empty set.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds the range.
    pub fn insert(&mut self, range: ByteRange) {
        if range.is_empty() {
            return;
        }
        let (mut start, mut end) = (range.offset, range.end());
        // All that overlaps or touches becomes one; found from the last backwards, each at most
        // once.
        while let Some((&other, &other_end)) = self.ranges.range(..=end).next_back() {
            if other_end < start {
                break;
            }
            self.ranges.remove(&other);
            self.total -= other_end - other;
            (start, end) = (start.min(other), end.max(other_end));
        }
        self.total += end - start;
        self.ranges.insert(start, end);
    }

    /// Takes the range out.
    pub fn remove(&mut self, range: ByteRange) {
        if range.is_empty() {
            return;
        }
        while let Some((&start, &end)) = self.ranges.range(..range.end()).next_back() {
            if end <= range.offset {
                break;
            }
            self.ranges.remove(&start);
            self.total -= end - start;
            for rest in
                [ByteRange::between(start, range.offset), ByteRange::between(range.end(), end)]
            {
                if !rest.is_empty() {
                    self.total += rest.length;
                    self.ranges.insert(rest.offset, rest.end());
                }
            }
            if start <= range.offset {
                break;
            }
        }
    }

    /// Whether it shares a byte with the range.
    pub fn intersects(&self, range: ByteRange) -> bool {
        self.overlapping(range).next().is_some()
    }

    /// Whether it has every byte of the range.
    pub fn contains(&self, range: ByteRange) -> bool {
        range.is_empty() || self.overlapping(range).next() == Some(range)
    }

    /// The parts of `range` that are in it, ascending.
    pub fn overlapping(&self, range: ByteRange) -> impl Iterator<Item = ByteRange> {
        let before = self.ranges.range(..range.offset).next_back();
        let inside = self.ranges.range(range.offset..range.end());
        before
            .into_iter()
            .chain(inside)
            .filter_map(move |(&start, &end)| ByteRange::between(start, end).intersection(&range))
    }

    /// The parts of `range` that are not in it, ascending.
    pub fn gaps(&self, range: ByteRange) -> impl Iterator<Item = ByteRange> {
        let mut at = range.offset;
        let end = range.end();
        self.overlapping(range).chain(std::iter::once(ByteRange::between(end, end))).filter_map(
            move |part| {
                let gap = ByteRange::between(at, part.offset);
                at = part.end();
                (!gap.is_empty()).then_some(gap)
            },
        )
    }

    /// All ranges, ascending.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = ByteRange> {
        self.ranges.iter().map(|(&start, &end)| ByteRange::between(start, end))
    }

    /// Ranges, not bytes.
    pub fn len(&self) -> usize {
        self.ranges.len()
    }

    /// Whether it has no byte.
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// Bytes in it.
    pub fn total_bytes(&self) -> u64 {
        self.total
    }

    /// Takes all out.
    pub fn clear(&mut self) {
        self.ranges.clear();
        self.total = 0;
    }
}

impl FromIterator<ByteRange> for RangeSet {
    fn from_iter<I: IntoIterator<Item = ByteRange>>(ranges: I) -> Self {
        let mut set = Self::new();
        for range in ranges {
            set.insert(range);
        }
        set
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SPACE: usize = 64;

    fn run(steps: &[(bool, usize, usize)]) -> (RangeSet, Vec<bool>) {
        let mut set = RangeSet::new();
        let mut naive = vec![false; SPACE];
        for &(insert, offset, length) in steps {
            let range = ByteRange::new(offset as u64, length as u64);
            if insert {
                set.insert(range);
            } else {
                set.remove(range);
            }
            naive[offset..offset + length].fill(insert);
        }
        (set, naive)
    }

    fn span() -> impl Strategy<Value = (usize, usize)> {
        (0..SPACE, 0..=SPACE / 3).prop_map(|(at, length)| (at, length.min(SPACE - at)))
    }

    fn steps() -> impl Strategy<Value = Vec<(bool, usize, usize)>> {
        let step = (proptest::bool::weighted(0.6), span())
            .prop_map(|(insert, (at, length))| (insert, at, length));
        proptest::collection::vec(step, 0..40)
    }

    /// Bytes of `ranges`, each at most once.
    fn bytes_of(ranges: impl Iterator<Item = ByteRange>) -> Vec<bool> {
        let mut bytes = vec![false; SPACE];
        for range in ranges {
            assert!(!range.is_empty());
            let start = usize::try_from(range.offset).unwrap();
            for byte in &mut bytes[start..start + usize::try_from(range.length).unwrap()] {
                assert!(!*byte, "a byte is in two ranges");
                *byte = true;
            }
        }
        bytes
    }

    proptest! {
        #[test]
        fn every_byte_is_as_in_a_naive_set(steps in steps()) {
            let (set, naive) = run(&steps);
            prop_assert_eq!(bytes_of(set.iter()), naive.clone());
            let runs = naive.chunk_by(|a, b| a == b).filter(|run| run[0]).count();
            prop_assert_eq!(set.len(), runs, "ranges that touch are one");
            prop_assert_eq!(set.total_bytes(), naive.iter().filter(|byte| **byte).count() as u64);
            prop_assert_eq!(set.iter().collect::<RangeSet>(), set);
        }

        #[test]
        fn queries_agree_with_a_naive_set(steps in steps(), (at, length) in span()) {
            let (set, naive) = run(&steps);
            let query = ByteRange::new(at as u64, length as u64);
            let asked = &naive[at..at + length];
            prop_assert_eq!(set.intersects(query), asked.contains(&true));
            prop_assert_eq!(set.contains(query), !asked.contains(&false));
            prop_assert_eq!(&bytes_of(set.overlapping(query))[at..at + length], asked);
            let inverse: Vec<bool> = asked.iter().map(|byte| !byte).collect();
            prop_assert_eq!(&bytes_of(set.gaps(query))[at..at + length], &inverse[..]);
        }
    }
}
