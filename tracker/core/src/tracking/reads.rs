//! Reads for `D`, from their issue to the log: what the stream already has is masked out of them.

use super::disk::Disk;
use crate::geometry::{Granule, GranuleRange};
use crate::rules::{Rule, holds};
use crate::sink::LogSink;
use redoubt_log::{ByteRange, DiskIndex, RangeSet};

/// Names a read under way; never used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ReadId(pub(super) u64);

/// A range of a disk to be read for `D`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadOrder {
    /// Names it.
    pub id: ReadId,
    /// The disk.
    pub disk: DiskIndex,
    /// The bytes: whole granules, or up to the end of the disk.
    pub range: ByteRange,
}

/// A read under way. A write in flight at any moment of it is masked: the stream has its data, and
/// maybe newer.
#[derive(Debug)]
pub(super) struct Read {
    id: ReadId,
    range: ByteRange,
    /// Of writes whose data the log has.
    streamed: RangeSet,
    /// Of writes whose data the log has not: they are read again when they have completed.
    uncaptured: RangeSet,
    /// Demanded again since the read began.
    renewed: RangeSet,
}

impl Read {
    fn new(id: ReadId, range: ByteRange) -> Self {
        let (streamed, uncaptured, renewed) = Default::default();
        Self { id, range, streamed, uncaptured, renewed }
    }

    fn mask(&mut self, write: ByteRange, captured: bool) {
        if let Some(shared) = self.range.intersection(&write) {
            if captured { &mut self.streamed } else { &mut self.uncaptured }.insert(shared);
        }
    }

    /// A write was queued while the read ran.
    pub fn submitted(&mut self, write: ByteRange, captured: bool) {
        if holds(Rule::MaskDuring) {
            self.mask(write, captured);
        }
    }

    /// The range was put into `D` while the read ran.
    pub fn wanted(&mut self, range: ByteRange) {
        if let Some(shared) = self.range.intersection(&range) {
            self.renewed.insert(shared);
        }
    }
}

impl Disk {
    /// Begins to read the next part of `D` that no read and no uncaptured write in flight touches.
    pub(super) fn start_read(&mut self, id: ReadId, limit: u64) -> Option<ByteRange> {
        let range = self.next_free_run(self.cursor, limit).or_else(|| {
            let again = self.next_free_run(Granule(0), limit);
            again.filter(|range| GranuleRange::touching(*range).first < self.cursor)
        })?;
        self.cursor = GranuleRange::touching(range).end;
        let mut read = Read::new(id, range);
        if holds(Rule::MaskBeforeStart) {
            for (write, captured) in self.matcher.overlapping(range) {
                read.mask(write, captured);
            }
        }
        self.reads.push(read);
        Some(range)
    }

    /// What is masked stands in the stream; what is left is logged as read. Nothing if a gap has
    /// voided the read.
    pub(super) fn finish_read(&mut self, order: ReadOrder, data: &[u8], sink: &mut impl LogSink) {
        assert_eq!(data.len() as u64, order.range.length, "a read is finished with all its bytes");
        let Some(at) = self.reads.iter().position(|read| read.id == order.id) else {
            return;
        };
        let read = self.reads.swap_remove(at);
        let mut left = RangeSet::new();
        left.insert(read.range);
        read.streamed.iter().chain(read.uncaptured.iter()).for_each(|masked| left.remove(masked));
        for part in left.iter() {
            let start = usize::try_from(part.offset - read.range.offset).expect("within a buffer");
            let length = usize::try_from(part.length).expect("within a buffer");
            sink.backfill(self.index, part, &data[start..start + length]);
        }
        self.demand.clear(read.range);
        if holds(Rule::NewerDemandStays) {
            read.renewed.iter().for_each(|range| self.demand.mark(range));
        }
        if holds(Rule::UncapturedKeepsDemand) {
            read.uncaptured.iter().for_each(|range| self.demand.mark(range));
        }
    }

    /// Forgets a read: its range stays in `D`.
    pub(super) fn void_read(&mut self, id: ReadId) {
        self.reads.retain(|read| read.id != id);
    }

    fn next_free_run(&self, mut from: Granule, limit: u64) -> Option<ByteRange> {
        loop {
            let run = self.demand.next_run(from, limit)?;
            match self.first_taken(run) {
                None => return Some(run.bytes(self.demand.size())),
                Some(taken) if taken.first > run.first => {
                    let free = GranuleRange { first: run.first, end: taken.first };
                    return Some(free.bytes(self.demand.size()));
                }
                Some(taken) => from = taken.end,
            }
        }
    }

    /// The first granules of `run` that a read or an uncaptured write in flight touches.
    fn first_taken(&self, run: GranuleRange) -> Option<GranuleRange> {
        let bytes = run.bytes(self.demand.size());
        let reading = self.reads.iter().map(|read| read.range);
        let flying = self.matcher.overlapping(bytes).filter(|(_, captured)| !captured);
        reading
            .chain(flying.map(|(range, _)| range))
            .filter_map(|range| range.intersection(&bytes))
            .map(GranuleRange::touching)
            .min_by_key(|taken| taken.first)
    }
}
