//! A bitmap over the granules of one disk: one bit each, whatever is set. It never grows after it
//! was made.

use crate::geometry::{GRANULE_BYTES, Granule, GranuleRange, granules_of};
use redoubt_log::ByteRange;

const WORD_BITS: u64 = u64::BITS as u64;

/// One bit for each granule of a disk, and how many are set.
#[derive(Clone, Debug)]
pub struct Bitmap {
    words: Vec<u64>,
    size: u64,
    set: u64,
}

impl Bitmap {
    /// A clear bitmap for a disk of `size` bytes.
    pub fn new(size: u64) -> Self {
        let words = usize::try_from(granules_of(size).div_ceil(WORD_BITS))
            .expect("a bitmap of 1/32768 of a disk fits in memory");
        Self { words: vec![0; words], size, set: 0 }
    }

    /// Bytes of the disk.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Whether no bit is set.
    pub fn is_empty(&self) -> bool {
        self.set == 0
    }

    /// Bytes of all granules that are set; a partial last granule counts whole.
    pub fn bytes_set(&self) -> u64 {
        self.set * GRANULE_BYTES
    }

    /// Sets every granule that the bytes touch; bytes beyond the disk are ignored.
    pub fn mark(&mut self, bytes: ByteRange) {
        self.each_word(bytes, |word, mask, set| {
            *set += u64::from((mask & !*word).count_ones());
            *word |= mask;
        });
    }

    /// Clears every granule that the bytes touch.
    pub fn clear(&mut self, bytes: ByteRange) {
        self.each_word(bytes, |word, mask, set| {
            *set -= u64::from((mask & *word).count_ones());
            *word &= !mask;
        });
    }

    /// The first run of set granules at or after `from`, at most `limit` bytes of it.
    pub fn next_run(&self, from: Granule, limit: u64) -> Option<GranuleRange> {
        let first = self.find(from.0, |word| word)?;
        let longest = first + (limit / GRANULE_BYTES).max(1);
        let end = self.find_below(first, longest, |word| !word).unwrap_or(longest);
        Some(GranuleRange {
            first: Granule(first),
            end: Granule(end.min(longest).min(granules_of(self.size))),
        })
    }

    /// Whether any granule that the bytes touch is set.
    pub fn touches(&self, bytes: ByteRange) -> bool {
        let range = GranuleRange::touching(bytes);
        !range.is_empty()
            && self
                .find_below(range.first.0, range.end.0, |word| word)
                .is_some_and(|at| at < range.end.0)
    }

    fn each_word(&mut self, bytes: ByteRange, mut each: impl FnMut(&mut u64, u64, &mut u64)) {
        let range = GranuleRange::touching(ByteRange::between(
            bytes.offset.min(self.size),
            bytes.end().min(self.size),
        ));
        let mut at = range.first.0;
        while at < range.end.0 {
            let bit = at % WORD_BITS;
            let count = (WORD_BITS - bit).min(range.end.0 - at);
            let mask = (u64::MAX >> (WORD_BITS - count)) << bit;
            each(&mut self.words[index_of(at)], mask, &mut self.set);
            at += count;
        }
    }

    fn find(&self, from: u64, select: impl Fn(u64) -> u64) -> Option<u64> {
        self.find_below(from, granules_of(self.size), select)
    }

    /// The first granule in `from..end` whose bit is set in `select(word)`; may look at the rest of
    /// end's word.
    fn find_below(&self, from: u64, end: u64, select: impl Fn(u64) -> u64) -> Option<u64> {
        let end = end.min(granules_of(self.size));
        let mut at = from;
        while at < end {
            let bit = at % WORD_BITS;
            let word = select(self.words[index_of(at)]) & (u64::MAX << bit);
            if word != 0 {
                let found = at - bit + u64::from(word.trailing_zeros());
                return (found < end).then_some(found);
            }
            at += WORD_BITS - bit;
        }
        None
    }
}

fn index_of(granule: u64) -> usize {
    usize::try_from(granule / WORD_BITS).expect("a word of a bitmap in memory")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn runs(map: &Bitmap, limit: u64) -> Vec<u64> {
        let (mut from, mut all) = (Granule(0), Vec::new());
        while let Some(run) = map.next_run(from, limit) {
            assert!(run.count() <= (limit / GRANULE_BYTES).max(1) && !run.is_empty());
            all.extend(run.first.0..run.end.0);
            from = run.end;
        }
        all
    }

    proptest! {
        #[test]
        fn agrees_with_a_set(
            granules in 1_u64..400,
            steps in proptest::collection::vec((any::<bool>(), 0_u64..400, 0_u64..200), 0..40),
            limit in 1_u64..300,
        ) {
            let size = granules * GRANULE_BYTES - 512;
            let mut map = Bitmap::new(size);
            let mut oracle = std::collections::BTreeSet::new();
            for (mark, first, count) in steps {
                let bytes = ByteRange::new(first * GRANULE_BYTES + 1, count * GRANULE_BYTES);
                let touched = GranuleRange::touching(bytes);
                for granule in touched.first.0..touched.end.0.min(granules) {
                    if mark { oracle.insert(granule); } else { oracle.remove(&granule); }
                }
                if mark { map.mark(bytes) } else { map.clear(bytes) }
            }
            let expected: Vec<_> = oracle.iter().copied().collect();
            prop_assert_eq!(runs(&map, limit * GRANULE_BYTES), expected);
            prop_assert_eq!(map.bytes_set(), oracle.len() as u64 * GRANULE_BYTES);
            for granule in 0..granules {
                let bytes = ByteRange::new(granule * GRANULE_BYTES, 1);
                prop_assert_eq!(map.touches(bytes), oracle.contains(&granule));
            }
        }
    }
}
