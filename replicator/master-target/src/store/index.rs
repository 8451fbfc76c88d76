//! The journal's index in memory: which sequences stand where. Small whatever the journal's size:
//! one mark a MiB. It states only what is durable, and is never locked during I/O.

use super::manifest::{JournalFloor, Point};
use super::suspicion::{self, Suspicion};
use redoubt_log::segment::Chain;
use redoubt_log::{Sequence, WallTime};
use std::collections::VecDeque;

/// Bytes between two marks: what a reader walks at most to find its place.
const MARK_DISTANCE: u64 = 1 << 20;

/// Points that are remembered while they wait to be applied: a day of one every five seconds, and
/// a few MiB. Of more the oldest are not listed until they are applied.
const WAITING_POINTS_LIMIT: usize = 17_280;

/// A place from which a segment can be read.
#[derive(Clone, Copy, Debug)]
pub(super) struct Mark {
    /// The last sequence before it.
    pub(super) after: Sequence,
    /// Where in the segment.
    pub(super) offset: u64,
    /// What the entry there follows.
    pub(super) chain: Chain,
}

/// A segment that recovery would still need.
#[derive(Clone, Debug)]
pub(super) struct Segment {
    pub(super) number: u64,
    /// The first is the segment's beginning.
    pub(super) marks: Vec<Mark>,
    /// Where its durable entries end.
    pub(super) end: u64,
    /// Its last durable sequence.
    pub(super) last: Sequence,
}

impl Segment {
    /// A segment without entries.
    pub(super) fn new(number: u64, start: Mark) -> Self {
        Self { number, marks: vec![start], end: start.offset, last: start.after }
    }

    fn after(&self) -> Sequence {
        self.marks[0].after
    }

    /// Takes an entry in that stands at `mark` and ends at `end`.
    pub(super) fn push(&mut self, mark: Mark, end: u64, last: Sequence) {
        let previous = self.marks.last().map_or(0, |mark| mark.offset);
        if mark.offset >= previous + MARK_DISTANCE {
            self.marks.push(mark);
        }
        (self.end, self.last) = (end, last);
    }

    /// The nearest mark at or before the position.
    fn mark_for(&self, after: Sequence) -> Mark {
        let count = self.marks.partition_point(|mark| mark.after <= after);
        self.marks[count.saturating_sub(1)]
    }

    fn bytes_from(&self, after: Sequence) -> u64 {
        if after >= self.last { 0 } else { self.end - self.mark_for(after).offset }
    }
}

/// All segments of a machine's journal.
#[derive(Debug, Default)]
pub(super) struct JournalIndex {
    /// Needed by recovery, in order.
    pub(super) segments: VecDeque<Segment>,
    /// No longer needed, but kept a while: number, and since when.
    pub(super) spent: Vec<(u64, WallTime)>,
    /// The newest durable marker.
    pub(super) last_marker: Sequence,
    /// Durable points that the replica disks have not come to, oldest first.
    waiting_points: VecDeque<Point>,
    /// Durable suspicions that the manifest does not have yet: one a disk.
    pub(super) suspicions: Vec<Suspicion>,
    /// Those that nobody was told of yet: one a disk.
    pub(super) untold: Vec<Suspicion>,
    /// There is no room for the frames that come next: what is here must go as soon as it can.
    pub(super) full: bool,
}

impl JournalIndex {
    /// The segment and the mark from which to read on after a position; `None` where nothing
    /// durable follows it.
    pub(super) fn find(&self, after: Sequence) -> Option<(u64, Mark)> {
        let segment = self.segments.iter().find(|segment| segment.last > after)?;
        Some((segment.number, segment.mark_for(after)))
    }

    /// Where a segment's durable entries end.
    pub(super) fn end_of(&self, number: u64) -> Option<u64> {
        self.segments.iter().find(|segment| segment.number == number).map(|segment| segment.end)
    }

    /// Bytes of entries after a position, to within the distance of two marks.
    pub(super) fn bytes_after(&self, after: Sequence) -> u64 {
        self.segments.iter().map(|segment| segment.bytes_from(after)).sum()
    }

    /// A durable point waits to be applied.
    pub(super) fn point_waits(&mut self, point: Point) {
        if self.waiting_points.len() >= WAITING_POINTS_LIMIT {
            self.waiting_points.pop_front();
        }
        self.waiting_points.push_back(point);
    }

    /// The replica disks have come to `applied`: what stands up to there waits no more.
    pub(super) fn points_applied(&mut self, applied: Sequence) {
        while self.waiting_points.front().is_some_and(|point| point.sequence <= applied) {
            self.waiting_points.pop_front();
        }
        self.suspicions.retain(|suspicion| suspicion.before > applied);
    }

    /// A suspicion is durable.
    pub(super) fn suspect(&mut self, suspicion: Suspicion) {
        suspicion::take(&mut self.suspicions, suspicion);
        suspicion::take(&mut self.untold, suspicion);
    }

    /// Points behind `applied` that wait for the replica disks, oldest first.
    pub(super) fn waiting_points(&self, applied: Sequence) -> impl Iterator<Item = &Point> {
        self.waiting_points.iter().filter(move |point| point.sequence > applied)
    }

    /// From where recovery must read when everything up to `applied` is on the replica disks.
    pub(super) fn floor(&self, applied: Sequence) -> Option<JournalFloor> {
        let segment = self.segments.iter().rev().find(|segment| segment.after() <= applied)?;
        Some(JournalFloor { segment: segment.number, after: segment.after() })
    }

    /// Moves the segments before the floor, which must stand in the manifest already, to the spent
    /// ones.
    pub(super) fn move_floor(&mut self, floor: JournalFloor, now: WallTime) {
        while self.segments.front().is_some_and(|segment| segment.number < floor.segment) {
            let segment = self.segments.pop_front();
            self.spent.extend(segment.map(|segment| (segment.number, now)));
        }
    }
}
