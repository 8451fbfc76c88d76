//! Checks by hash: which granules of a range that is read still hold, at a later point of the log,
//! what the read saw. It compares nothing: it says what may be compared, and which finding is in
//! doubt.

use super::disk::Disk;
use super::{ReadId, ReadOrder, Tracking};
use crate::bitmap::Bitmap;
use crate::geometry::{GRANULE_BYTES, GranuleRange};
use crate::rules::{Rule, holds};
use redoubt_log::{ByteRange, DiskIndex, RangeSet};
use std::collections::BTreeMap;

/// What may be compared of a check's range, at a point of the log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Comparable {
    /// Whole granules, ascending: the log says of them, at this point, what the read saw.
    pub untouched: Vec<ByteRange>,
    /// Whole granules, ascending, that the machine has given up and not written again: what a read
    /// of them says is the device's choice.
    pub discarded: Vec<ByteRange>,
}

/// A check under way. A granule is touched if anything was in flight on it at any moment between
/// the read's start and the point, or if the log was found to lack it.
#[derive(Debug)]
struct Check {
    id: ReadId,
    range: ByteRange,
    touched: RangeSet,
    /// Whether its point has been taken.
    is_fixed: bool,
    /// Behind the point: writes ended there of whose beginning nobody knows.
    doubtful: RangeSet,
}

impl Check {
    fn touch(&mut self, range: ByteRange) {
        if let (false, Some(shared)) = (self.is_fixed, self.range.intersection(&range)) {
            self.touched.insert(granules_around(shared));
        }
    }

    fn doubt(&mut self, range: ByteRange) {
        if let (true, Some(shared)) = (self.is_fixed, self.range.intersection(&range)) {
            self.doubtful.insert(granules_around(shared));
        }
    }
}

/// The checks of one disk, and what the machine has given up there.
#[derive(Debug, Default)]
pub(super) struct Checks {
    /// By their first byte; no two share one.
    under_way: BTreeMap<u64, Check>,
    /// Made at the first discard.
    discarded: Option<Bitmap>,
    gaps: u64,
}

impl Checks {
    /// A write, or a discard, was queued.
    pub fn submitted(&mut self, range: ByteRange) {
        if holds(Rule::ChecksMaskDuring) {
            self.each(range, |check| check.touch(range));
        }
    }

    /// The log lacks the range: what it says of it proves nothing.
    pub fn wanted(&mut self, range: ByteRange) {
        if holds(Rule::DemandIsNotChecked) {
            self.each(range, |check| check.touch(range));
        }
    }

    /// A write has ended that nobody saw begin: it may have been in flight all the time, so that
    /// the disk held what the log does not have yet. Before the point it is wanted as well.
    pub fn unknown_end(&mut self, range: ByteRange) {
        if holds(Rule::UnknownEndDoubts) {
            self.each(range, |check| check.doubt(range));
        }
    }

    /// Events were lost: nothing is known of any range under way.
    pub fn gap(&mut self) {
        self.gaps += 1;
        if holds(Rule::GapVoidsChecks) {
            self.under_way.clear();
        }
    }

    /// Whether no range is watched.
    pub fn is_idle(&self) -> bool {
        self.under_way.is_empty()
    }

    /// The machine has given up the range of a disk of `size` bytes.
    pub fn discarded(&mut self, range: ByteRange, size: u64) {
        self.discarded.get_or_insert_with(|| Bitmap::new(size)).mark(range);
    }

    /// The machine has written the range: what it covers whole is given up no longer.
    pub fn written(&mut self, range: ByteRange) {
        if let Some(discarded) = &mut self.discarded {
            let end = if range.end() < discarded.size() {
                range.end() / GRANULE_BYTES * GRANULE_BYTES
            } else {
                range.end()
            };
            let start = range.offset.next_multiple_of(GRANULE_BYTES);
            discarded.clear(ByteRange::between(start, end));
        }
    }

    /// Calls `change` for every check that shares a byte with the range.
    fn each(&mut self, range: ByteRange, mut change: impl FnMut(&mut Check)) {
        let before = self.under_way.range_mut(..range.end()).rev();
        before
            .take_while(|(_, check)| check.range.end() > range.offset)
            .for_each(|(_, check)| change(check));
    }

    fn get_mut(&mut self, order: ReadOrder) -> Option<&mut Check> {
        self.under_way.get_mut(&order.range.offset).filter(|check| check.id == order.id)
    }

    /// Parts a range without touched granules into what is discarded and what is not.
    fn part(&self, range: ByteRange, into: &mut Comparable) {
        let Some(discarded) = &self.discarded else {
            into.untouched.push(range);
            return;
        };
        let mut at = range.offset;
        while at < range.end() {
            let first = GranuleRange::touching(ByteRange::new(at, 1)).first;
            let run = discarded.next_run(first, range.end() - at);
            let run = run.and_then(|run| run.bytes(discarded.size()).intersection(&range));
            let given_up = run.unwrap_or(ByteRange::between(range.end(), range.end()));
            let kept = ByteRange::between(at, given_up.offset);
            into.untouched.extend((!kept.is_empty()).then_some(kept));
            into.discarded.extend((!given_up.is_empty()).then_some(given_up));
            at = given_up.end();
        }
    }
}

impl Disk {
    fn start_check(&mut self, id: ReadId, range: ByteRange) {
        let (touched, doubtful) = Default::default();
        let mut check = Check { id, range, touched, is_fixed: false, doubtful };
        if holds(Rule::ChecksMaskBeforeStart) {
            self.matcher.overlapping(range).for_each(|(write, _)| check.touch(write));
        }
        let before = self.checks.under_way.insert(range.offset, check);
        debug_assert!(before.is_none(), "the checks of a disk do not share bytes");
    }

    fn fix_check(&mut self, order: ReadOrder) -> Option<Comparable> {
        if !self.settled() || !self.is_consistent() {
            return None;
        }
        let check = self.checks.get_mut(order)?;
        check.is_fixed = true;
        let untouched: Vec<ByteRange> = check.touched.gaps(order.range).collect();
        let mut comparable = Comparable::default();
        untouched.into_iter().for_each(|range| self.checks.part(range, &mut comparable));
        Some(comparable)
    }

    fn end_check(&mut self, order: ReadOrder) -> Option<RangeSet> {
        self.checks.get_mut(order)?;
        self.checks.under_way.remove(&order.range.offset).map(|check| check.doubtful)
    }
}

impl Tracking {
    /// Begins to check a range of whole granules (or up to the end of the disk) that no other check
    /// has. The read may be issued any time after this call; when it has ended, the ring must be
    /// drained up to where it is filled then, before [`fix_check`](Self::fix_check). Nothing where
    /// the disk is not tracked any more.
    pub fn start_check(&mut self, index: DiskIndex, range: ByteRange) -> Option<ReadOrder> {
        let id = ReadId(self.next_read);
        self.disk_if_tracked(index)?.start_check(id, range);
        self.next_read += 1;
        Some(ReadOrder { id, disk: index, range })
    }

    /// A point stands in the log right behind everything drained, and nothing before it was lost:
    /// what may be compared with the disk as it is at that point. Nothing where a gap has voided
    /// the check, or the point is not good for the disk.
    pub fn fix_check(&mut self, order: ReadOrder) -> Option<Comparable> {
        self.disk_if_tracked(order.disk)?.fix_check(order)
    }

    /// Ends a check. A difference that was found in it counts, unless its granule is among those
    /// returned: there a write has ended that nobody saw begin, or nothing is returned since all is
    /// in doubt. To be called when the ring has been drained up to where it was filled when the
    /// difference became known.
    pub fn end_check(&mut self, order: ReadOrder) -> Option<RangeSet> {
        self.disk_if_tracked(order.disk)?.end_check(order)
    }

    fn disk_if_tracked(&mut self, index: DiskIndex) -> Option<&mut Disk> {
        self.disks.iter_mut().find(|disk| disk.index == index)
    }

    /// Ends all checks, whatever they would have found.
    pub fn forget_checks(&mut self) {
        self.disks.iter_mut().for_each(|disk| disk.checks.under_way.clear());
    }

    /// Bytes of a disk.
    pub fn size(&self, index: DiskIndex) -> Option<u64> {
        self.disks.iter().find(|disk| disk.index == index).map(|disk| disk.demand.size())
    }

    /// How often the log of a disk had a gap: writes in flight at one may be unknown until they
    /// end.
    pub fn gaps(&self, index: DiskIndex) -> u64 {
        self.disks.iter().find(|disk| disk.index == index).map_or(0, |disk| disk.checks.gaps)
    }
}

/// All granules that the bytes touch; the last may reach beyond the disk.
fn granules_around(bytes: ByteRange) -> ByteRange {
    let granules = GranuleRange::touching(bytes);
    ByteRange::between(granules.first.0 * GRANULE_BYTES, granules.end.0 * GRANULE_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: u64 = 10 * GRANULE_BYTES + 512;

    fn granules(first: u64, count: u64) -> ByteRange {
        ByteRange::new(first * GRANULE_BYTES, count * GRANULE_BYTES)
    }

    fn parted(checks: &Checks, range: ByteRange) -> Comparable {
        let mut comparable = Comparable::default();
        checks.part(range, &mut comparable);
        comparable
    }

    #[test]
    fn what_was_given_up_is_left_out_until_it_is_written_whole() {
        let mut checks = Checks::default();
        assert_eq!(parted(&checks, granules(0, 10)).untouched, [granules(0, 10)]);
        checks.discarded(granules(2, 3), SIZE);
        let comparable = parted(&checks, granules(0, 10));
        assert_eq!(comparable.untouched, [granules(0, 2), granules(5, 5)]);
        assert_eq!(comparable.discarded, [granules(2, 3)]);
        checks.written(ByteRange::new(2 * GRANULE_BYTES + 512, 2 * GRANULE_BYTES));
        let comparable = parted(&checks, granules(2, 3));
        assert_eq!(comparable.untouched, [granules(3, 1)]);
        assert_eq!(comparable.discarded, [granules(2, 1), granules(4, 1)]);
        assert_eq!(parted(&checks, granules(4, 1)).untouched, []);
    }

    #[test]
    fn a_part_of_a_granule_given_up_is_a_granule_given_up() {
        let mut checks = Checks::default();
        checks.discarded(ByteRange::new(GRANULE_BYTES - 512, 1024), SIZE);
        assert_eq!(parted(&checks, granules(0, 3)).discarded, [granules(0, 2)]);
    }

    #[test]
    fn the_last_granule_is_written_whole_where_the_disk_ends() {
        let mut checks = Checks::default();
        let last = ByteRange::between(10 * GRANULE_BYTES, SIZE);
        checks.discarded(last, SIZE);
        assert_eq!(parted(&checks, last).discarded, [last]);
        checks.written(last);
        assert_eq!(parted(&checks, last).untouched, [last]);
    }
}
