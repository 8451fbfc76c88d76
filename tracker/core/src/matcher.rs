//! Submissions without completions: what is in flight on one disk, and where two writes overlapped
//! there. It only remembers; what to read again it tells its owner, who must do it.

use crate::rules::{Rule, holds};
use crate::source::BioKey;
use redoubt_log::range_map::Shift;
use redoubt_log::{ByteRange, RangeMap, RangeSet};
use std::collections::{BTreeSet, HashMap};

/// One submission among all of a disk: bio keys are used again, these are not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct SubmissionNumber(u64);

#[derive(Debug)]
struct InFlight {
    number: SubmissionNumber,
    range: ByteRange,
    ended: RangeSet,
    captured: bool,
    failed: bool,
    fronts: Vec<BioKey>,
}

/// Where two writes were in flight at once, and which one was queued last, if that is known and in
/// the log.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Overlap {
    newest: Option<(BioKey, SubmissionNumber)>,
}

impl Shift for Overlap {
    fn shifted(&self, _bytes: u64) -> Self {
        self.clone()
    }
}

/// The writes in flight on one disk.
#[derive(Debug, Default)]
pub(crate) struct Matcher {
    writes: HashMap<BioKey, InFlight>,
    by_start: BTreeSet<(u64, BioKey)>,
    /// No range in `by_start` is longer; falls back to zero whenever nothing is in flight.
    longest: u64,
    fronts: HashMap<BioKey, BioKey>,
    overlaps: RangeMap<Overlap>,
    submissions: u64,
    /// The newest submission when [`overdue`](Matcher::overdue) was last asked.
    looked_at: u64,
    /// Taken for ended without having been seen to end, and how often it was asked since.
    overdue: HashMap<BioKey, u32>,
}

/// After so many further looks at what is overdue a completion counts as missed for good.
const LOOKS_UNTIL_MISSED: u32 = 10;

/// What a completion asks for.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Settle {
    /// Ranges to be read again.
    pub ranges: Vec<ByteRange>,
}

/// What has been in flight for too long.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Overdue {
    /// Where: to be read again.
    pub settle: Settle,
    /// Writes that were overdue long ago and have not ended since.
    pub missed: u64,
}

impl Matcher {
    /// A write was queued. If an earlier one of the same key was in flight, its completion was
    /// missed: what to read.
    pub fn submitted(&mut self, bio: BioKey, range: ByteRange, captured: bool) -> Option<Settle> {
        self.fronts.remove(&bio);
        let was_overdue = self.overdue.remove(&bio).map(|_| Settle::default());
        let missed = self.remove(bio).map(|write| {
            let mut settle = Settle { ranges: vec![write.range] };
            self.settle_overlaps(write.range, &mut settle);
            settle
        });
        let missed = missed.or(was_overdue);
        self.submissions += 1;
        let number = SubmissionNumber(self.submissions);
        if holds(Rule::OverlapSettles) {
            for shared in self.shared_with(range) {
                self.overlaps.insert(shared, Overlap { newest: captured.then_some((bio, number)) });
            }
        }
        self.longest = self.longest.max(range.length);
        self.by_start.insert((range.offset, bio));
        let write = InFlight {
            number,
            range,
            ended: RangeSet::new(),
            captured,
            failed: false,
            fronts: Vec::new(),
        };
        self.writes.insert(bio, write);
        missed
    }

    /// The front of a write got a name of its own.
    pub fn split(&mut self, front: BioKey, parent: BioKey) {
        let owner = self.fronts.get(&parent).copied().unwrap_or(parent);
        if let Some(write) = self.writes.get_mut(&owner) {
            write.fronts.push(front);
            self.fronts.insert(front, owner);
        }
    }

    /// Whether a write is in flight of which this may be the end.
    pub fn knows(&self, bio: BioKey, range: ByteRange) -> bool {
        let owner = self.fronts.get(&bio).unwrap_or(&bio);
        self.writes.get(owner).is_some_and(|write| write.range.contains(&range))
    }

    /// A part or the whole of a write ended.
    pub fn completed(&mut self, bio: BioKey, range: ByteRange, failed: bool) -> Settle {
        let owner = self.fronts.get(&bio).copied().unwrap_or(bio);
        let Some(write) = self.writes.get_mut(&owner).filter(|write| write.range.contains(&range))
        else {
            self.overdue.remove(&bio);
            return self.unmatched(range);
        };
        write.ended.insert(range);
        write.failed |= failed;
        if write.ended.total_bytes() < write.range.length {
            return Settle::default();
        }
        let write = self.remove(owner).expect("it was there a moment ago");
        let mut settle = Settle::default();
        let unsure = write.failed && holds(Rule::FailedSettles)
            || !write.captured && holds(Rule::UncapturedSettles);
        if unsure {
            settle.ranges.push(write.range);
        }
        self.settle_overlaps(write.range, &mut settle);
        settle
    }

    /// A completion without a submission: whatever is in flight there overlapped it.
    fn unmatched(&mut self, range: ByteRange) -> Settle {
        let mut settle = Settle::default();
        if !holds(Rule::UnmatchedSettles) {
            return settle;
        }
        settle.ranges.push(range);
        if holds(Rule::UnknownOverlapSettles) {
            for shared in self.shared_with(range) {
                self.overlaps.insert(shared, Overlap { newest: None });
            }
        }
        self.settle_overlaps(range, &mut settle);
        settle
    }

    /// Lets go of what was in flight already when this was last asked: its completion was missed,
    /// or the device takes long, and until it ends nothing that overlaps it could settle. Should it
    /// end yet, that is a completion without a submission, which puts the range into `D` again.
    pub fn overdue(&mut self) -> Overdue {
        let mut overdue = Overdue::default();
        self.overdue.retain(|_, looks| {
            *looks += 1;
            overdue.missed += u64::from(*looks > LOOKS_UNTIL_MISSED);
            *looks <= LOOKS_UNTIL_MISSED
        });
        let is_old = |write: &InFlight| write.number.0 <= self.looked_at;
        let old = self.writes.iter().filter(|(_, write)| is_old(write));
        for bio in old.map(|(bio, _)| *bio).collect::<Vec<_>>() {
            let Some(write) = self.remove(bio) else { continue };
            if holds(Rule::OverdueSettles) {
                overdue.settle.ranges.push(write.range);
            }
            self.settle_overlaps(write.range, &mut overdue.settle);
            self.overdue.insert(bio, 0);
        }
        self.looked_at = self.submissions;
        overdue
    }

    /// Moves every part of an overlap on which nothing is in flight any more to `settle`.
    fn settle_overlaps(&mut self, range: ByteRange, settle: &mut Settle) {
        if self.overlaps.is_empty() {
            return;
        }
        let mut quiet = RangeSet::new();
        for (shared, _) in self.overlaps.overlapping(range) {
            quiet.insert(shared);
        }
        for (_, flying) in self.in_flight(range) {
            quiet.remove(flying.range);
        }
        for part in quiet.iter() {
            self.overlaps.remove(part);
            settle.ranges.push(part);
        }
    }

    /// Every write in flight that overlaps `range`: its range, and whether the log has its data.
    pub fn overlapping(&self, range: ByteRange) -> impl Iterator<Item = (ByteRange, bool)> {
        self.in_flight(range).map(|(_, write)| (write.range, write.captured))
    }

    /// Whether an overlap waits that the log may show wrongly: one whose newest write is not in
    /// flight any more.
    pub fn holds_points(&self) -> bool {
        holds(Rule::OverlapHoldsPoints)
            && self.overlaps.iter().any(|(_, overlap)| match overlap.newest {
                None => true,
                Some((bio, number)) => {
                    self.writes.get(&bio).is_none_or(|write| write.number != number)
                }
            })
    }

    /// The newest submission.
    pub fn newest(&self) -> SubmissionNumber {
        SubmissionNumber(self.submissions)
    }

    /// *Quiet*: whether no submission up to this one is in flight any more.
    pub fn is_quiet(&self, up_to: SubmissionNumber) -> bool {
        self.writes.values().all(|write| write.number > up_to)
    }

    /// Forgets all: after a loss nothing of it can be believed.
    pub fn forget(&mut self) {
        *self = Self { submissions: self.submissions, ..Self::default() };
    }

    /// Forgets where writes overlapped.
    pub fn forget_overlaps(&mut self) {
        self.overlaps.clear();
    }

    /// Writes in flight.
    pub fn count(&self) -> usize {
        self.writes.len()
    }

    fn remove(&mut self, bio: BioKey) -> Option<InFlight> {
        let write = self.writes.remove(&bio)?;
        self.by_start.remove(&(write.range.offset, bio));
        for front in &write.fronts {
            if self.fronts.get(front) == Some(&bio) {
                self.fronts.remove(front);
            }
        }
        if self.writes.is_empty() {
            self.longest = 0;
        }
        Some(write)
    }

    fn shared_with(&self, range: ByteRange) -> Vec<ByteRange> {
        self.in_flight(range).filter_map(|(_, write)| write.range.intersection(&range)).collect()
    }

    fn in_flight(&self, range: ByteRange) -> impl Iterator<Item = (BioKey, &InFlight)> {
        let from = range.offset.saturating_sub(self.longest);
        self.by_start
            .range((from, BioKey(0))..(range.end(), BioKey(0)))
            .map(|&(_, bio)| (bio, &self.writes[&bio]))
            .filter(move |(_, write)| write.range.overlaps(&range))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: BioKey = BioKey(0xa000);
    const B: BioKey = BioKey(0xb000);
    const FRONT: BioKey = BioKey(0xf000);

    fn range(offset: u64, length: u64) -> ByteRange {
        ByteRange::new(offset, length)
    }

    #[test]
    fn what_does_not_end_is_let_go_and_read_again() {
        let mut matcher = Matcher::default();
        matcher.submitted(A, range(0, 4096), true);
        assert_eq!(matcher.overdue(), Overdue::default());
        matcher.submitted(B, range(0, 4096), true);
        matcher.completed(B, range(0, 4096), false);
        assert!(matcher.holds_points(), "the older one may still land");
        let overdue = matcher.overdue();
        assert!(overdue.settle.ranges.contains(&range(0, 4096)));
        assert_eq!((matcher.count(), matcher.holds_points()), (0, false));
    }

    #[test]
    fn what_was_only_slow_is_read_again_at_its_end_and_not_missed() {
        let mut matcher = Matcher::default();
        matcher.submitted(A, range(0, 4096), true);
        (0..2).for_each(|_| drop(matcher.overdue()));
        assert_eq!(matcher.completed(A, range(0, 4096), false).ranges, [range(0, 4096)]);
        assert!((0..=LOOKS_UNTIL_MISSED).all(|_| matcher.overdue().missed == 0));
        assert_eq!(matcher.submitted(A, range(0, 4096), true), None);
    }

    #[test]
    fn what_stays_overdue_was_missed() {
        let mut matcher = Matcher::default();
        matcher.submitted(A, range(0, 4096), true);
        matcher.submitted(B, range(8192, 4096), true);
        (0..2).for_each(|_| drop(matcher.overdue()));
        assert!(matcher.submitted(A, range(0, 4096), true).is_some(), "its key is queued again");
        matcher.completed(A, range(0, 4096), false);
        let missed: u64 = (0..=LOOKS_UNTIL_MISSED).map(|_| matcher.overdue().missed).sum();
        assert_eq!(missed, 1, "the other one is given up in time, and once");
    }

    #[test]
    fn a_split_write_ends_with_its_last_part() {
        let mut matcher = Matcher::default();
        matcher.submitted(A, range(0, 8192), true);
        matcher.split(FRONT, A);
        assert_eq!(matcher.completed(A, range(4096, 4096), false), Settle::default());
        assert_eq!(matcher.count(), 1);
        matcher.completed(FRONT, range(0, 4096), false);
        assert_eq!(matcher.count(), 0);
    }

    #[test]
    fn a_failed_part_makes_the_whole_write_unsure() {
        let mut matcher = Matcher::default();
        matcher.submitted(A, range(0, 8192), true);
        matcher.completed(A, range(0, 4096), true);
        assert_eq!(matcher.completed(A, range(4096, 4096), false).ranges, [range(0, 8192)]);
    }

    #[test]
    fn a_key_queued_again_in_flight_names_what_was_missed() {
        let mut matcher = Matcher::default();
        assert_eq!(matcher.submitted(A, range(0, 512), true), None);
        let missed = matcher.submitted(A, range(512, 512), true);
        assert_eq!(missed, Some(Settle { ranges: vec![range(0, 512)] }));
    }

    #[test]
    fn an_overlap_holds_points_only_once_its_newest_write_has_ended() {
        let mut matcher = Matcher::default();
        matcher.submitted(A, range(0, 4096), true);
        matcher.submitted(B, range(2048, 4096), true);
        assert!(!matcher.holds_points());
        matcher.completed(B, range(2048, 4096), false);
        assert!(matcher.holds_points());
        assert_eq!(matcher.completed(A, range(0, 4096), false).ranges, [range(2048, 2048)]);
        assert!(!matcher.holds_points());
    }
}
