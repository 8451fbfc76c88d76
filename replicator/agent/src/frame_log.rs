//! The log as the tracker writes it: records gathered into frames, which leave only when it is
//! known that nothing was lost in them. It must never let a frame go whose batch was not looked
//! through for losses.

use crate::coverage::Time;
use crate::marks::Here;
use redoubt_log::frame::{FRAME_PAYLOAD_LIMIT, FrameBuilder, FrameLimits, FrameMeta, FramePool};
use redoubt_log::frame::{NotPushed, RawFrame};
use redoubt_log::{
    ByteRange, DiskIndex, GapReason, Generation, Incarnation, MachineId, PointId, PointKind,
    Record, RoleEpoch, Sequence, WallTime, is_zero,
};
use redoubt_protocol::message::Welcome;
use redoubt_tracker::{Gather, LogSink};
use std::collections::VecDeque;
use std::time::Instant;

/// Spare frame buffers: as many as a batch, the sealer's queue and the frame being sealed hold.
const SPARE_BUFFERS: usize = 12;

/// Frames that may wait here, growing or for the sealer, before a write finds no room: what a batch
/// and the backlog before it need, and as much again for a read that ends when the ring is fuller.
/// Each holds 1.2 MiB: with a read's worth of backfill on top, the sealer's queues and the window
/// they stay within the agent's 96 MiB.
pub(crate) const WAITING_FRAMES: usize = 16;

/// What is looked at as a whole when a disk's content is searched for zeros.
const ZERO_UNIT_BYTES: usize = 4096;

/// What every frame of a session carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Terms {
    pub machine: MachineId,
    pub generation: Generation,
    pub incarnation: Incarnation,
    pub role_epoch: RoleEpoch,
}

impl Terms {
    /// Those of a welcome.
    pub fn of(machine: MachineId, welcome: &Welcome) -> Self {
        Self {
            machine,
            generation: welcome.generation,
            incarnation: welcome.incarnation,
            role_epoch: welcome.role_epoch,
        }
    }
}

/// A frame that may be sealed.
pub(crate) struct Ready {
    pub frame: RawFrame,
    /// Nothing in it was written before this.
    pub since: Instant,
}

/// A frame that grows, or that waits for the end of its batch.
struct Draft {
    builder: FrameBuilder,
    earliest: WallTime,
    latest: WallTime,
    since: Instant,
    ends_at_write_boundary: bool,
    /// Whether it holds nothing but gaps, which stand before the batch.
    only_gaps: bool,
}

/// Bytes of one disk since the agent started.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct DiskBytes {
    /// Written by the machine.
    pub written: u64,
    /// Logged, as payload.
    pub logged: u64,
}

/// The log of one session of the agent.
pub(crate) struct FrameLog {
    terms: Terms,
    pool: FramePool,
    batch: VecDeque<Draft>,
    ready: VecDeque<Ready>,
    previous: Sequence,
    next: Sequence,
    now: Time,
    bytes: Vec<DiskBytes>,
}

impl FrameLog {
    /// A log whose first frame follows `resume` at the target, with numbers above those `used`.
    pub fn new(terms: Terms, resume: Sequence, used: Sequence, now: Time) -> Self {
        let first = Sequence::first_of(terms.incarnation).max(used.next());
        Self {
            terms,
            pool: FramePool::new(SPARE_BUFFERS),
            batch: VecDeque::new(),
            ready: VecDeque::new(),
            previous: resume,
            next: first.max(resume.next()),
            now,
            bytes: vec![DiskBytes::default(); usize::from(DiskIndex::LIMIT)],
        }
    }

    /// The time that records drained from here on carry, and the one after which what they tell
    /// was written.
    pub fn set_time(&mut self, now: WallTime, since: Instant) {
        self.now = (now, since);
    }

    /// Whether everything logged is known to be whole.
    pub fn is_checked(&self) -> bool {
        self.batch.is_empty()
    }

    /// Frames that wait to be sealed.
    pub fn backlog(&self) -> usize {
        self.ready.len()
    }

    /// The oldest frame that waits to be sealed.
    pub fn take(&mut self) -> Option<Ready> {
        self.ready.pop_front()
    }

    /// Puts a frame back that found no room.
    pub fn put_back(&mut self, frame: Ready) {
        self.ready.push_front(frame);
    }

    /// After which time all was written that is not sealed yet.
    pub fn oldest(&self) -> Option<Instant> {
        let waiting = self.ready.front().map(|ready| ready.since);
        waiting.or(self.batch.front().map(|draft| draft.since))
    }

    /// A disk's bytes so far.
    pub fn bytes_of(&self, disk: DiskIndex) -> DiskBytes {
        self.bytes[usize::from(disk.0)]
    }

    /// Tells of a disk.
    pub fn disk_added(&mut self, disk: DiskIndex, name: &str, size: u64, block_bytes: u32) {
        let name = name.to_owned();
        self.push(Record::DiskAdded { disk, name, size, logical_block_size: block_bytes }, &[]);
    }

    /// Tells of a disk no more.
    pub fn disk_removed(&mut self, disk: DiskIndex) {
        self.push(Record::DiskRemoved { disk }, &[]);
    }

    /// Tells that older points of a disk are suspect.
    pub fn suspect(&mut self, record: Record) {
        self.push(record, &[]);
    }

    /// A recovery point behind everything that was checked; returns its place.
    pub fn marker(
        &mut self,
        point: PointId,
        kind: PointKind,
        label: String,
        here: &Here,
    ) -> Sequence {
        assert!(self.batch.is_empty(), "a marker stands behind a checkpoint");
        let Here { at, settled: disks, proven, .. } = *here;
        self.push(Record::Marker { point, kind, at, label, disks, proven }, &[]);
        self.checkpoint();
        self.previous
    }

    /// All that had completed by `at` has been told.
    pub fn until(&mut self, at: WallTime) {
        self.push(Record::Until { at }, &[]);
        self.checkpoint();
    }

    fn push(&mut self, record: Record, pieces: &[&[u8]]) {
        let mut record = record;
        for _ in 0..2 {
            if self.batch.is_empty() {
                self.open_draft();
            }
            let draft = self.batch.back_mut().expect("one was opened");
            match draft.builder.push(record, pieces) {
                Ok(()) => {
                    draft.ends_at_write_boundary = true;
                    draft.only_gaps = false;
                    draft.latest = draft.latest.max(self.now.0);
                    return;
                }
                Err(NotPushed::Full(back)) => {
                    record = back;
                    self.open_draft();
                }
                Err(NotPushed::Refused(reason)) => {
                    unreachable!("the tracker makes records within their limits: {reason}")
                }
            }
        }
        unreachable!("an empty frame has room for any record");
    }

    fn open_draft(&mut self) {
        self.batch.push_back(self.draft());
    }

    fn draft(&self) -> Draft {
        Draft {
            builder: FrameBuilder::new(FrameLimits::default(), &self.pool),
            earliest: self.now.0,
            latest: self.now.0,
            since: self.now.1,
            ends_at_write_boundary: true,
            only_gaps: false,
        }
    }

    /// Pushes payload in pieces of at most a frame; `record` makes the record of one piece.
    fn push_split(
        &mut self,
        range: ByteRange,
        pieces: &[&[u8]],
        record: impl Fn(u64, u32) -> Record,
    ) {
        let limit = FRAME_PAYLOAD_LIMIT as u64;
        if range.length <= limit {
            let length = u32::try_from(range.length).expect("at most a frame");
            return self.push(record(range.offset, length), pieces);
        }
        let mut rest = Pieces { pieces, first: 0, taken: 0 };
        let mut at = range.offset;
        while at < range.end() {
            let length = limit.min(range.end() - at);
            let part = rest.take(usize::try_from(length).expect("at most a frame"));
            self.push(record(at, u32::try_from(length).expect("at most a frame")), &part);
            at += length;
            let draft = self.batch.back_mut().expect("a record was pushed");
            draft.ends_at_write_boundary = at == range.end();
        }
    }

    fn finish(&mut self, mut draft: Draft) {
        let records = draft.builder.records() as u64;
        if records == 0 {
            return;
        }
        let meta = FrameMeta {
            machine: self.terms.machine,
            generation: self.terms.generation,
            incarnation: self.terms.incarnation,
            role_epoch: self.terms.role_epoch,
            first: self.next,
            previous: self.previous,
            earliest: draft.earliest,
            latest: draft.latest,
            ends_at_write_boundary: draft.ends_at_write_boundary,
        };
        self.previous = Sequence(self.next.0 + records - 1);
        self.next = self.previous.next();
        self.ready.push_back(Ready { frame: draft.builder.finish(&meta), since: draft.since });
    }

    fn logged(&mut self, disk: DiskIndex) -> &mut DiskBytes {
        &mut self.bytes[usize::from(disk.0)]
    }
}

impl LogSink for FrameLog {
    fn write(&mut self, disk: DiskIndex, range: ByteRange, data: Gather<'_>) {
        self.logged(disk).written += range.length;
        self.logged(disk).logged += range.length;
        self.push_split(range, data, |offset, length| Record::Write { disk, offset, length });
    }

    fn zero(&mut self, disk: DiskIndex, range: ByteRange) {
        self.push(Record::Zero { disk, offset: range.offset, length: range.length }, &[]);
    }

    fn discard(&mut self, disk: DiskIndex, range: ByteRange) {
        self.push(Record::Discard { disk, offset: range.offset, length: range.length }, &[]);
    }

    fn backfill(&mut self, disk: DiskIndex, range: ByteRange, data: &[u8]) {
        for (run, zero) in zero_runs(data) {
            let part = ByteRange::new(range.offset + run.start as u64, run.len() as u64);
            if zero {
                self.zero(disk, part);
            } else {
                self.logged(disk).logged += part.length;
                self.push_split(part, &[&data[run]], |offset, length| Record::Backfill {
                    disk,
                    offset,
                    length,
                });
            }
        }
    }

    fn checkpoint(&mut self) {
        while let Some(draft) = self.batch.pop_front() {
            self.finish(draft);
        }
    }

    fn gap(&mut self, disk: DiskIndex, reason: GapReason) {
        let gap = Record::Gap { disk, reason };
        // A buffer for each of many disks would be memory that nobody has counted.
        let front = self.batch.front_mut().filter(|draft| draft.only_gaps);
        if front.is_some_and(|draft| draft.builder.push(gap.clone(), &[]).is_ok()) {
            return;
        }
        let mut draft = Draft { only_gaps: true, ..self.draft() };
        let pushed = draft.builder.push(gap, &[]);
        assert_eq!(pushed, Ok(()), "an empty frame has room for any record");
        self.batch.push_front(draft);
    }

    fn consistent(&mut self, disk: DiskIndex) {
        self.push(Record::Consistent { disk }, &[]);
    }

    fn has_room(&self, bytes: u64) -> bool {
        let frames = bytes.div_ceil(FRAME_PAYLOAD_LIMIT as u64);
        let waiting = self.batch.len() + self.ready.len();
        usize::try_from(frames).is_ok_and(|frames| waiting + frames.max(1) <= WAITING_FRAMES)
    }

    fn position(&self) -> Sequence {
        let waiting: usize = self.batch.iter().map(|draft| draft.builder.records()).sum();
        match waiting {
            0 => self.previous,
            waiting => Sequence(self.next.0 + waiting as u64 - 1),
        }
    }
}

/// Pieces of payload, taken from the front.
struct Pieces<'a> {
    pieces: &'a [&'a [u8]],
    first: usize,
    taken: usize,
}

impl<'a> Pieces<'a> {
    fn take(&mut self, mut length: usize) -> Vec<&'a [u8]> {
        let mut part = Vec::new();
        while length > 0 {
            let rest = &self.pieces[self.first][self.taken..];
            let piece = &rest[..rest.len().min(length)];
            part.push(piece);
            length -= piece.len();
            self.taken += piece.len();
            if piece.len() == rest.len() {
                (self.first, self.taken) = (self.first + 1, 0);
            }
        }
        part
    }
}

/// The runs of `data` that are zero throughout, and those that are not, in turn.
fn zero_runs(data: &[u8]) -> impl Iterator<Item = (std::ops::Range<usize>, bool)> {
    let unit_is_zero =
        |at: usize| is_zero(&data[at..data.len().min(at.saturating_add(ZERO_UNIT_BYTES))]);
    let mut at = 0;
    std::iter::from_fn(move || {
        let start = at;
        let zero = (start < data.len()).then(|| unit_is_zero(start))?;
        while at < data.len() && unit_is_zero(at) == zero {
            at = data.len().min(at + ZERO_UNIT_BYTES);
        }
        Some((start..at, zero))
    })
}

#[cfg(test)]
mod tests;
