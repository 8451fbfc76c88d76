//! What is left to compare of one disk, and in which portions it is tried: first in large ones,
//! then, for what is written all the time, in ever smaller and quicker ones. Pure: it reads
//! nothing.

use redoubt_log::ByteRange;
use redoubt_tracker::bitmap::Bitmap;
use redoubt_tracker::geometry::{GRANULE_BYTES, Granule, GranuleRange};

/// How a pass over what is left goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Effort {
    /// Most bytes between two points: their hashes are kept until the target has answered.
    pub batch_bytes: u64,
    /// Most bytes of one read.
    pub read_bytes: u64,
}

const MIB: u64 = 1 << 20;
const KIB: u64 = 1 << 10;

const fn effort(batch_bytes: u64, read_bytes: u64) -> Effort {
    Effort { batch_bytes, read_bytes }
}

/// The passes. What is in a batch must not be written from its read to the point behind the batch:
/// a second for the first pass, a few milliseconds for the last. What is hit in all of them is
/// written nearly without a pause.
const PASSES: [Effort; 12] = [
    effort(256 * MIB, MIB),
    effort(32 * MIB, MIB),
    effort(8 * MIB, 256 * KIB),
    effort(4 * MIB, 128 * KIB),
    effort(2 * MIB, 128 * KIB),
    effort(MIB, 64 * KIB),
    effort(256 * KIB, 64 * KIB),
    effort(256 * KIB, 64 * KIB),
    effort(256 * KIB, 64 * KIB),
    effort(256 * KIB, 64 * KIB),
    effort(128 * KIB, 64 * KIB),
    effort(64 * KIB, 64 * KIB),
];

/// What is left of one disk.
pub(super) struct Plan {
    /// Granules that were neither compared nor left out.
    left: Bitmap,
    pass: usize,
    cursor: Granule,
    compared_bytes: u64,
    discarded_bytes: u64,
}

impl Plan {
    /// All of a disk of this size.
    pub fn new(size: u64) -> Self {
        let mut left = Bitmap::new(size);
        left.mark(ByteRange::new(0, size));
        Self { left, pass: 0, cursor: Granule(0), compared_bytes: 0, discarded_bytes: 0 }
    }

    /// How the present pass goes.
    pub fn effort(&self) -> Effort {
        PASSES[self.pass]
    }

    /// The next range to read in this pass, if there is one: from one granule that is left to
    /// another, with those between them.
    pub fn next(&mut self, limit: u64) -> Option<ByteRange> {
        let limit = limit.min(self.effort().read_bytes).max(GRANULE_BYTES);
        let first = self.left.next_run(self.cursor, limit)?.first;
        let window = GranuleRange { first, end: Granule(first.0 + limit / GRANULE_BYTES) };
        let mut end = window.first;
        while let Some(run) = self.left.next_run(end, limit)
            && run.first < window.end
        {
            end = Granule(run.end.0.min(window.end.0));
        }
        self.cursor = end;
        Some(GranuleRange { first, end }.bytes(self.left.size()))
    }

    /// Whether [`next`](Self::next) has a range in this pass.
    pub fn has_next(&self) -> bool {
        self.left.next_run(self.cursor, GRANULE_BYTES).is_some()
    }

    /// Begins the next pass over what is still left. False where there is nothing left, or no pass.
    pub fn begin_pass(&mut self) -> bool {
        if self.left.is_empty() || self.pass + 1 == PASSES.len() {
            return false;
        }
        (self.pass, self.cursor) = (self.pass + 1, Granule(0));
        true
    }

    /// Whether nothing is left that would still be tried.
    pub fn is_over(&self) -> bool {
        self.left.is_empty() || self.pass + 1 == PASSES.len() && !self.has_next()
    }

    /// The parts of `range` that are left, at most `limit` bytes each.
    pub fn left_in(&self, range: ByteRange, limit: u64) -> Vec<ByteRange> {
        let mut parts = Vec::new();
        let mut at = GranuleRange::touching(range).first;
        while let Some(run) = self.left.next_run(at, limit)
            && let Some(part) = run.bytes(self.left.size()).intersection(&range)
        {
            parts.push(part);
            at = run.end;
        }
        parts
    }

    /// The range, which was left, has been compared.
    pub fn compared(&mut self, range: ByteRange) {
        self.left.clear(range);
        self.compared_bytes += range.length;
    }

    /// Whatever is left of the range means nothing now: the machine has given it up.
    pub fn discarded(&mut self, range: ByteRange) {
        for part in self.left_in(range, range.length) {
            self.left.clear(part);
            self.discarded_bytes += part.length;
        }
    }

    /// Bytes of the disk.
    pub fn size(&self) -> u64 {
        self.left.size()
    }

    /// Bytes compared.
    pub fn compared_bytes(&self) -> u64 {
        self.compared_bytes
    }

    /// Bytes left out.
    pub fn discarded_bytes(&self) -> u64 {
        self.discarded_bytes
    }

    /// Bytes neither compared nor left out.
    pub fn left_bytes(&self) -> u64 {
        self.size() - self.compared_bytes - self.discarded_bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: u64 = 300 * MIB + 512;

    fn granule(at: u64) -> ByteRange {
        ByteRange::new(at * GRANULE_BYTES, GRANULE_BYTES)
    }

    fn rest_of_pass(plan: &mut Plan) -> Vec<ByteRange> {
        std::iter::from_fn(|| plan.next(u64::MAX)).collect()
    }

    #[test]
    fn the_first_pass_reads_everything_once() {
        let mut plan = Plan::new(SIZE);
        let ranges = rest_of_pass(&mut plan);
        assert!(!plan.has_next());
        assert_eq!(ranges.len(), 301);
        assert_eq!(ranges[300], ByteRange::new(300 * MIB, 512));
        ranges.into_iter().for_each(|range| plan.compared(range));
        assert_eq!((plan.compared_bytes(), plan.left_bytes()), (SIZE, 0));
        assert!(!plan.begin_pass());
    }

    #[test]
    fn later_passes_read_what_is_left_and_the_gaps_between() {
        let mut plan = Plan::new(SIZE);
        let all = plan.left_in(ByteRange::new(0, SIZE), u64::MAX);
        assert_eq!(all, [ByteRange::new(0, SIZE)]);
        plan.compared(ByteRange::new(0, 10 * GRANULE_BYTES));
        plan.compared(ByteRange::between(11 * GRANULE_BYTES, 14 * GRANULE_BYTES));
        plan.compared(ByteRange::between(15 * GRANULE_BYTES, SIZE));
        assert!(plan.begin_pass());
        assert_eq!(rest_of_pass(&mut plan), [ByteRange::new(granule(10).offset, 5 * 4096)]);
        assert_eq!(plan.left_in(ByteRange::new(0, SIZE), MIB), [granule(10), granule(14)]);
        plan.discarded(ByteRange::new(0, MIB));
        assert_eq!((plan.discarded_bytes(), plan.left_bytes()), (8192, 0));
    }

    #[test]
    fn what_is_never_compared_is_tried_a_bounded_number_of_times() {
        let mut plan = Plan::new(SIZE);
        let hot = granule(7);
        let mut tries = 0;
        loop {
            for range in rest_of_pass(&mut plan) {
                tries += u64::from(range.overlaps(&hot));
                for part in plan.left_in(range, MIB) {
                    for at in GranuleRange::touching(part).first.0.. {
                        let Some(part) = granule(at).intersection(&part) else { break };
                        if part != hot {
                            plan.compared(part);
                        }
                    }
                }
            }
            if !plan.begin_pass() {
                break;
            }
        }
        assert_eq!((tries, plan.left_bytes()), (PASSES.len() as u64, GRANULE_BYTES));
    }
}
