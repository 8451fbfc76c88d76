//! Ranges of bytes, each with a value, none overlapping: the last write wins. What the matcher and
//! apply fold with. Pieces of a split range keep the value of their place; neighbours are never
//! merged.

use crate::ByteRange;
use std::collections::BTreeMap;

/// A value of a range, as its later bytes see it.
pub trait Shift: Clone {
    /// The value of what remains when the first `bytes` of its range are cut off.
    #[must_use]
    fn shifted(&self, bytes: u64) -> Self;
}

/// A value that is the same for every byte of its range.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Uniform<V>(pub V);

impl<V: Clone> Shift for Uniform<V> {
    fn shifted(&self, _bytes: u64) -> Self {
        self.clone()
    }
}

/// The place of a range's content in some source: later bytes of the range are later bytes there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SourceOffset(pub u64);

impl Shift for SourceOffset {
    fn shifted(&self, bytes: u64) -> Self {
        Self(self.0 + bytes)
    }
}

/// Ordered ranges that do not overlap, each with a value.
#[derive(Clone, Debug)]
pub struct RangeMap<V> {
    /// First byte → (one past the last, value). No range is empty.
    ranges: BTreeMap<u64, (u64, V)>,
    total: u64,
}

impl<V> Default for RangeMap<V> {
    fn default() -> Self {
        Self { ranges: BTreeMap::new(), total: 0 }
    }
}

impl<V: Shift> RangeMap<V> {
    /// An empty map.
    pub fn new() -> Self {
        Self::default()
    }

    /// Gives the whole range this value, whatever it had before. An empty range changes nothing.
    pub fn insert(&mut self, range: ByteRange, value: V) {
        if range.is_empty() {
            return;
        }
        self.remove(range);
        self.total += range.length;
        self.ranges.insert(range.offset, (range.end(), value));
    }

    /// Takes the range out of all others.
    pub fn remove(&mut self, range: ByteRange) {
        if range.is_empty() {
            return;
        }
        self.trim_before(range);
        // What starts inside goes; of the one that reaches past the end, the rest stays.
        while let Some((&start, &(end, _))) = self.ranges.range(range.offset..range.end()).next() {
            let Some((_, value)) = self.ranges.remove(&start) else { break };
            self.total -= end - start;
            if end > range.end() {
                self.total += end - range.end();
                self.ranges.insert(range.end(), (end, value.shifted(range.end() - start)));
                break;
            }
        }
    }

    /// Cuts the one range that starts before `range` and reaches into it.
    fn trim_before(&mut self, range: ByteRange) {
        let Some((&start, entry)) = self.ranges.range_mut(..range.offset).next_back() else {
            return;
        };
        let end = entry.0;
        if end <= range.offset {
            return;
        }
        entry.0 = range.offset;
        let rest = (end > range.end()).then(|| entry.1.shifted(range.end() - start));
        self.total -= end.min(range.end()) - range.offset;
        if let Some(value) = rest {
            self.ranges.insert(range.end(), (end, value));
        }
    }

    /// The whole of `range` in ascending pieces: those with a value, which is shifted to the
    /// piece's first byte, and the gaps between them.
    pub fn get(&self, range: ByteRange) -> impl Iterator<Item = (ByteRange, Option<V>)> {
        let mut at = range.offset;
        let mut covered = self.overlapping(range).peekable();
        std::iter::from_fn(move || {
            let (piece, value) = match covered.peek() {
                Some((next, _)) if next.offset > at => (ByteRange::between(at, next.offset), None),
                Some(_) => covered.next().map(|(piece, value)| (piece, Some(value)))?,
                None if at < range.end() => (ByteRange::between(at, range.end()), None),
                None => return None,
            };
            at = piece.end();
            Some((piece, value))
        })
    }

    /// The parts of `range` that have a value, ascending, the value shifted to the part's first
    /// byte.
    pub fn overlapping(&self, range: ByteRange) -> impl Iterator<Item = (ByteRange, V)> {
        let before = self.ranges.range(..range.offset).next_back();
        let inside = self.ranges.range(range.offset..range.end().max(range.offset));
        before.into_iter().chain(inside).filter_map(move |(&start, (end, value))| {
            let part = ByteRange::between(start, *end).intersection(&range)?;
            Some((part, value.shifted(part.offset - start)))
        })
    }

    /// The parts of `range` that have no value, ascending.
    pub fn gaps(&self, range: ByteRange) -> impl Iterator<Item = ByteRange> {
        self.get(range).filter_map(|(piece, value)| value.is_none().then_some(piece))
    }
}

impl<V> RangeMap<V> {
    /// All ranges with their values, ascending.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = (ByteRange, &V)> {
        self.ranges.iter().map(|(&start, (end, value))| (ByteRange::between(start, *end), value))
    }

    /// Ranges, not bytes.
    pub fn len(&self) -> usize {
        self.ranges.len()
    }

    /// Whether no byte has a value.
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// Bytes that have a value.
    pub fn total_bytes(&self) -> u64 {
        self.total
    }

    /// Forgets all.
    pub fn clear(&mut self) {
        self.ranges.clear();
        self.total = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SPACE: u64 = 64;

    /// The oracle: for each byte, which insert wrote it and which byte of that insert it is.
    type Naive = Vec<Option<u64>>;

    fn model(map: &RangeMap<SourceOffset>) -> Naive {
        let mut bytes = vec![None; usize::try_from(SPACE).unwrap()];
        for (range, value) in map.iter() {
            for at in range.offset..range.end() {
                let place = &mut bytes[usize::try_from(at).unwrap()];
                assert_eq!(*place, None, "byte {at} is in two ranges");
                *place = Some(value.0 + at - range.offset);
            }
        }
        bytes
    }

    fn steps() -> impl Strategy<Value = Vec<(bool, u64, u64)>> {
        let step = (proptest::bool::weighted(0.8), 0..SPACE, 0..=SPACE / 3)
            .prop_map(|(insert, offset, length)| (insert, offset, length.min(SPACE - offset)));
        proptest::collection::vec(step, 0..40)
    }

    fn run(steps: &[(bool, u64, u64)]) -> (RangeMap<SourceOffset>, Naive) {
        let mut map = RangeMap::new();
        let mut naive = vec![None; usize::try_from(SPACE).unwrap()];
        for (index, &(insert, offset, length)) in steps.iter().enumerate() {
            let range = ByteRange::new(offset, length);
            let source = 1000 * index as u64;
            if insert {
                map.insert(range, SourceOffset(source));
            } else {
                map.remove(range);
            }
            for at in offset..range.end() {
                naive[usize::try_from(at).unwrap()] = insert.then_some(source + at - offset);
            }
        }
        (map, naive)
    }

    proptest! {
        #[test]
        fn every_byte_is_as_in_a_naive_map(steps in steps()) {
            let (map, naive) = run(&steps);
            prop_assert_eq!(model(&map), naive.clone());
            prop_assert_eq!(map.total_bytes(), naive.iter().flatten().count() as u64);
            prop_assert!(map.iter().all(|(range, _)| !range.is_empty()));
        }

        #[test]
        fn a_query_tells_every_byte_once(steps in steps(), from in 0..SPACE, length in 0..SPACE) {
            let (map, naive) = run(&steps);
            let query = ByteRange::new(from, length.min(SPACE - from));
            let mut at = query.offset;
            for (piece, value) in map.get(query) {
                prop_assert_eq!(piece.offset, at);
                for byte in piece.offset..piece.end() {
                    let told = value.map(|value| value.0 + byte - piece.offset);
                    prop_assert_eq!(told, naive[usize::try_from(byte).unwrap()]);
                }
                at = piece.end();
            }
            prop_assert_eq!(at, query.end());
            let gaps = map.gaps(query).map(|gap| gap.length).sum::<u64>();
            let covered = map.overlapping(query).map(|(part, _)| part.length).sum::<u64>();
            prop_assert_eq!(gaps + covered, query.length);
        }
    }

    #[test]
    fn a_write_in_the_middle_leaves_both_ends() {
        let mut map = RangeMap::new();
        map.insert(ByteRange::new(0, 100), SourceOffset(1000));
        map.insert(ByteRange::new(40, 10), SourceOffset(5));
        let told: Vec<_> =
            map.iter().map(|(range, value)| (range.offset, range.length, value.0)).collect();
        assert_eq!(told, [(0, 40, 1000), (40, 10, 5), (50, 50, 1050)]);
        map.clear();
        assert!(map.is_empty() && map.total_bytes() == 0);
    }

    #[test]
    fn the_last_bytes_of_the_number_space_are_as_good_as_others() {
        let mut map = RangeMap::new();
        map.insert(ByteRange::new(u64::MAX - 10, 10), Uniform('a'));
        map.insert(ByteRange::new(u64::MAX - 5, 5), Uniform('b'));
        let told: Vec<_> = map.iter().map(|(range, value)| (range.length, value.0)).collect();
        assert_eq!(told, [(5, 'a'), (5, 'b')]);
        assert_eq!(map.gaps(ByteRange::new(0, u64::MAX)).count(), 1);
    }
}
