//! Folds the records of an interval into one map of ranges for each disk: the last write wins.
//! It holds places, never payload, and says when it has grown large enough to end the step.

use redoubt_log::range_map::Uniform;
use redoubt_log::{ByteRange, DiskIndex, DiskSet, RangeMap, frame::PlacedRecord};
use std::collections::BTreeMap;

/// The most ranges of one step, over all disks: with some 64 bytes each the map stays below 16 MiB.
pub(super) const RANGES_LIMIT: usize = 1 << 17;

/// The record that wrote a range last: which frame of the interval, and which record of the frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Winner {
    frame: u32,
    record: u32,
}

/// The ranges that an interval writes.
#[derive(Default)]
pub(super) struct Fold {
    skipped: DiskSet,
    disks: BTreeMap<DiskIndex, RangeMap<Uniform<Winner>>>,
}

impl Fold {
    /// Nothing yet; records of these disks are skipped.
    pub(super) fn without(skipped: DiskSet) -> Self {
        Self { skipped, ..Self::default() }
    }

    /// Takes in the records of the interval's next frame.
    pub(super) fn add(&mut self, frame: u32, records: &[PlacedRecord]) {
        for (record, placed) in (0..).zip(records) {
            if let Some((disk, range)) = placed.record.extent()
                && !self.skipped.contains(disk)
            {
                self.disks
                    .entry(disk)
                    .or_default()
                    .insert(range, Uniform(Winner { frame, record }));
            }
        }
    }

    /// Whether the step must end with what it has.
    pub(super) fn is_large(&self, limit: usize) -> bool {
        self.disks.values().map(RangeMap::len).sum::<usize>() >= limit
    }

    /// The disks written.
    pub(super) fn disks(&self) -> DiskSet {
        let mut set = DiskSet::default();
        self.disks.keys().for_each(|disk| set.insert(*disk));
        set
    }

    /// The ranges of one disk, in order; neighbours are joined.
    pub(super) fn ranges(&self, disk: DiskIndex) -> impl Iterator<Item = ByteRange> {
        let mut pieces = self.disks.get(&disk).into_iter().flat_map(RangeMap::iter).peekable();
        std::iter::from_fn(move || {
            let (mut range, _) = pieces.next()?;
            while let Some((next, _)) = pieces.next_if(|(next, _)| next.offset == range.end()) {
                range.length += next.length;
            }
            Some(range)
        })
    }

    /// Bytes and pieces that the disks of the set have; a manifest may still tell of disks so large
    /// that they cannot be added up.
    pub(super) fn extent(&self, disks: DiskSet) -> (u64, u64) {
        let chosen = self.disks.iter().filter(|(disk, _)| disks.contains(**disk));
        chosen.fold((0, 0), |(bytes, pieces), (_, map)| {
            (bytes.saturating_add(map.total_bytes()), pieces + map.len() as u64)
        })
    }

    /// The parts of a record's range that no later record of the interval writes.
    pub(super) fn won(
        &self,
        frame: u32,
        record: u32,
        disk: DiskIndex,
        range: ByteRange,
    ) -> impl Iterator<Item = ByteRange> {
        let map = self.disks.get(&disk).into_iter();
        map.flat_map(move |map| map.overlapping(range)).filter_map(
            move |(part, Uniform(winner))| (winner == Winner { frame, record }).then_some(part),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use redoubt_log::Record;

    fn write(offset: u64, length: u32) -> PlacedRecord {
        let record = Record::Write { disk: DiskIndex(1), offset, length };
        PlacedRecord { record, payload_offset: 0 }
    }

    #[test]
    fn the_last_write_wins_each_byte() {
        let mut fold = Fold::default();
        fold.add(0, &[write(0, 100), write(50, 10)]);
        fold.add(1, &[write(90, 20)]);
        let won = |frame, record, offset, length| -> Vec<ByteRange> {
            fold.won(frame, record, DiskIndex(1), ByteRange::new(offset, length)).collect()
        };
        assert_eq!(won(0, 0, 0, 100), [ByteRange::new(0, 50), ByteRange::new(60, 30)]);
        assert_eq!(won(0, 1, 50, 10), [ByteRange::new(50, 10)]);
        assert_eq!(won(1, 0, 90, 20), [ByteRange::new(90, 20)]);
        assert_eq!(fold.ranges(DiskIndex(1)).collect::<Vec<_>>(), [ByteRange::new(0, 110)]);
        assert_eq!(fold.ranges(DiskIndex(0)).count(), 0);
    }

    #[test]
    fn disks_that_no_number_can_add_up_have_all_bytes_there_are() {
        let length = (1 << 63) - 4096;
        let zero = |disk| PlacedRecord {
            record: Record::Zero { disk: DiskIndex(disk), offset: 0, length },
            payload_offset: 0,
        };
        let mut fold = Fold::default();
        fold.add(0, &[zero(0), zero(1), zero(2)]);
        assert_eq!(fold.extent(fold.disks()), (u64::MAX, 3));
        assert_eq!(fold.extent(DiskSet(1)), (length, 1));
    }
}
