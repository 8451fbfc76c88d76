//! One disk: what its log lacks (`D`), what is in flight, what is being read, which epoch waits.

use super::DiskProgress;
use super::checks::Checks;
use super::epoch::Epoch;
use super::reads::Read;
use crate::bitmap::Bitmap;
use crate::geometry::Granule;
use crate::matcher::{Matcher, Settle};
use crate::rules::{Rule, holds};
use crate::source::{Array, BioKey, CaptureMode, ChangeSource, RingPosition};
use redoubt_log::{ByteRange, DiskIndex, GapReason, Sequence};

/// The tracker's state of one disk.
#[derive(Debug)]
pub(super) struct Disk {
    pub index: DiskIndex,
    /// `D`: the content of these granules is not in the log.
    pub demand: Bitmap,
    pub matcher: Matcher,
    pub reads: Vec<Read>,
    pub checks: Checks,
    pub epoch: Epoch,
    pub seen_lost: u64,
    pub capturing: bool,
    /// Whether events in the ring are of no use: a gap follows that covers them.
    pub dropping: bool,
    pub cursor: Granule,
    missed: u64,
    answered: u64,
    seen_unmarked: u64,
    /// Submissions that were missed, since this run took the disk in.
    unmarked: u64,
    consistent: bool,
    gap: Option<GapReason>,
}

impl Disk {
    /// A disk with an empty `D`. Marks in the spare array are an epoch that nobody has dropped. Of
    /// its unmarked completions, so many were answered by an earlier run.
    pub fn new<S: ChangeSource>(index: DiskIndex, size: u64, answered: u64, source: &S) -> Self {
        let mut epoch = Epoch::default();
        let mut marked = false;
        source.marks(index, Array::Spare, &mut |_| marked = true);
        if marked {
            epoch.cut(source.produced());
        }
        Self {
            index,
            demand: Bitmap::new(size),
            matcher: Matcher::default(),
            reads: Vec::new(),
            checks: Checks::default(),
            epoch,
            seen_lost: source.lost(index),
            capturing: false,
            dropping: true,
            cursor: Granule(0),
            missed: 0,
            answered: 0,
            seen_unmarked: answered,
            unmarked: 0,
            consistent: false,
            gap: None,
        }
    }

    /// Puts a range into `D`; a read under way does not satisfy that.
    pub fn want(&mut self, range: ByteRange) {
        self.demand.mark(range);
        self.reads.iter_mut().for_each(|read| read.wanted(range));
        self.checks.wanted(range);
    }

    pub fn submitted(&mut self, bio: BioKey, range: ByteRange, captured: bool) {
        self.reads.iter_mut().for_each(|read| read.submitted(range, captured));
        self.checks.submitted(range);
        if self.matcher.submitted(bio, range, captured).is_some() {
            self.missed += 1;
        }
    }

    /// Whether completions were missed since this was last asked.
    pub fn missed_since(&mut self) -> bool {
        let news = self.missed != self.answered;
        if news {
            tracing::warn!(disk = %self.index, "a completion was missed: all is read again");
        }
        self.answered = self.missed;
        news
    }

    /// Reads again where a write has been in flight since before this was last asked. While nothing
    /// is captured no end is told, and all is read that was marked.
    pub fn look_for_overdue<S: ChangeSource>(&mut self, source: &mut S) {
        if !self.capturing {
            return;
        }
        let overdue = self.matcher.overdue();
        let ranges = overdue.settle.ranges;
        if !ranges.is_empty() {
            let (disk, ranges) = (self.index, ranges.len());
            tracing::warn!(%disk, ranges, "writes do not end: where they are is read again");
        }
        for range in ranges {
            source.mark(self.index, range);
            self.want(range);
        }
        self.missed += overdue.missed;
    }

    /// Whether submissions were missed since this was last asked. Their completions have marked
    /// what they wrote.
    pub fn unmarked_since<S: ChangeSource>(&mut self, source: &S) -> bool {
        let now = source.unmarked(self.index);
        let news = now.saturating_sub(self.seen_unmarked);
        if news > 0 {
            tracing::warn!(disk = %self.index, news, "submissions of writes were missed");
        }
        self.unmarked += news;
        self.seen_unmarked = now;
        news > 0
    }

    /// Whether nothing was lost or missed that is not answered yet.
    pub fn counters_stand<S: ChangeSource>(&self, source: &S) -> bool {
        source.lost(self.index) == self.seen_lost
            && source.unmarked(self.index) == self.seen_unmarked
            && self.missed == self.answered
    }

    /// Puts every mark into `D`, without a gap: what is in flight and being read is still known.
    pub fn want_marked<S: ChangeSource>(&mut self, source: &S, reason: GapReason) {
        self.gap = Some(reason);
        for array in [Array::Spare, Array::Active] {
            source.marks(self.index, array, &mut |range| self.want(range));
        }
    }

    pub fn split(&mut self, front: BioKey, parent: BioKey) {
        self.matcher.split(front, parent);
    }

    /// What was queued gives the range's content up, or writes it anew.
    pub fn given_up(&mut self, range: ByteRange, is_discard: bool) {
        if is_discard {
            self.checks.discarded(range, self.demand.size());
        } else {
            self.checks.written(range);
        }
    }

    pub fn completed(&mut self, bio: BioKey, range: ByteRange, failed: bool) {
        if !self.checks.is_idle() && !self.matcher.knows(bio, range) {
            self.checks.unknown_end(range);
        }
        let Settle { ranges } = self.matcher.completed(bio, range, failed);
        ranges.into_iter().for_each(|range| self.want(range));
    }

    /// Events were lost, or never captured: the bitmap says where. Reads under way are void.
    pub fn gap<S: ChangeSource>(
        &mut self,
        source: &mut S,
        reason: GapReason,
    ) -> Result<(), S::Error> {
        self.gap = Some(reason);
        self.consistent = false;
        if holds(Rule::ForgetAtGap) {
            self.matcher.forget();
        }
        self.matcher.forget_overlaps();
        self.reads.clear();
        self.checks.gap();
        source.forget_partial(self.index);
        if !self.epoch.is_free() {
            if holds(Rule::GapTakesAllEpochs) {
                self.collect(source, Array::Spare);
            }
            if holds(Rule::CutNeedsSpare) {
                self.collect(source, Array::Active);
                return Ok(());
            }
            source.clear_spare(self.index);
        }
        source.cut(self.index)?;
        self.epoch.cut(source.produced());
        self.collect(source, Array::Spare);
        Ok(())
    }

    /// Puts every mark of an array into `D`. Only at a gap: no read is under way that could have to
    /// know.
    fn collect<S: ChangeSource>(&mut self, source: &S, array: Array) {
        debug_assert!(self.reads.is_empty());
        source.marks(self.index, array, &mut |range| self.demand.mark(range));
    }

    /// At log position `position`, with the ring drained to `drained`.
    pub fn cover(&mut self, drained: RingPosition, position: Sequence) {
        let settled = self.settled();
        self.epoch.cover(drained, settled, &self.matcher, position);
    }

    /// Nothing is left to be read: the log has the whole disk.
    pub fn settled(&self) -> bool {
        self.capturing
            && self.demand.is_empty()
            && self.reads.is_empty()
            && !self.matcher.holds_points()
            && self.missed == self.answered
    }

    /// Whether the log has said that it has the whole disk, since the last gap.
    pub fn is_consistent(&self) -> bool {
        self.consistent
    }

    /// Whether the disk is settled for the first time since its last gap.
    pub fn became_consistent(&mut self) -> bool {
        let now = self.settled() && !self.consistent;
        self.consistent |= now;
        now
    }

    /// What the next gap would put into `D`.
    pub fn bytes_to_come<S: ChangeSource>(&self, source: &S) -> u64 {
        let mut all = self.demand.clone();
        for array in [Array::Active, Array::Spare] {
            source.marks(self.index, array, &mut |range| all.mark(range));
        }
        all.bytes_set().min(all.size())
    }

    pub fn progress(&self, mode: CaptureMode) -> DiskProgress {
        DiskProgress {
            mode: if self.capturing { mode } else { CaptureMode::Bitmap },
            demand_bytes: self.demand.bytes_set().min(self.demand.size()),
            reads: self.reads.len(),
            in_flight: self.matcher.count(),
            settled: self.settled(),
            lost: self.seen_lost,
            missed: self.missed + self.unmarked,
            unmarked: self.seen_unmarked,
            gap: self.gap,
        }
    }
}
