//! A batch of a verify: what was read between two points, its hashes, the questions to the target,
//! and what the answers say. Pure: it neither reads nor asks.

use super::plan::Effort;
use redoubt_log::{ByteRange, DiskIndex, PointId, RangeSet, Sequence};
use redoubt_protocol::verify::{
    CHECK_BYTES, CHECK_GRANULE_BYTES, Check, DifferentPiece, GranuleHash, PIECE_BYTES, Piece,
    granule_hashes, piece_hash,
};
use redoubt_tracker::geometry::GRANULE_BYTES;
use redoubt_tracker::{ReadOrder, RingPosition};
use std::collections::VecDeque;

const _: () = assert!(CHECK_GRANULE_BYTES == GRANULE_BYTES, "one hash stands for one granule");

/// A range that was read: whole granules, or up to the end of the disk.
pub(super) struct Hashed {
    range: ByteRange,
    hashes: Vec<GranuleHash>,
}

impl Hashed {
    /// Hashes what the read saw.
    pub fn new(range: ByteRange, data: &[u8]) -> Self {
        Self { range, hashes: granule_hashes(data).collect() }
    }

    /// The hashes of a part of it.
    fn hashes_of(&self, part: ByteRange) -> &[GranuleHash] {
        let granules = |bytes: u64| {
            usize::try_from(bytes.div_ceil(GRANULE_BYTES)).expect("a read fits in memory")
        };
        let first = granules(part.offset - self.range.offset);
        &self.hashes[first..first + granules(part.length)]
    }
}

/// A batch that is being read.
pub(super) struct Reading {
    pub disk: DiskIndex,
    pub read: Vec<(ReadOrder, Hashed)>,
    /// Reads that have not ended.
    pub under_way: Vec<ReadOrder>,
    /// Bytes and reads issued, ended or not.
    pub bytes: u64,
    pub reads: u64,
    /// All of it is read: the point may stand where the ring is drained up to here.
    pub behind: Option<RingPosition>,
}

impl Reading {
    /// An empty batch.
    pub fn new(disk: DiskIndex) -> Self {
        let (read, under_way) = Default::default();
        Self { disk, read, under_way, bytes: 0, reads: 0, behind: None }
    }

    /// Whether no more is read for it.
    pub fn is_full(&self, effort: Effort) -> bool {
        let most_reads = effort.batch_bytes / effort.read_bytes;
        self.bytes >= effort.batch_bytes || self.reads >= most_reads
    }
}

/// A batch behind which a point stands: the target is asked.
pub(super) struct Fixed {
    pub disk: DiskIndex,
    pub point: PointId,
    sequence: Sequence,
    /// The tracker's checks: they are ended with the batch.
    pub orders: Vec<ReadOrder>,
    questions: VecDeque<Question>,
    /// Compared, and equal.
    pub equal: RangeSet,
    /// Compared, and different.
    pub different: RangeSet,
    /// All questions are answered: what is different is judged when the ring is drained up to here.
    pub behind: Option<RingPosition>,
}

#[derive(Default)]
struct Question {
    pieces: Vec<Hashed>,
    bytes: u64,
}

/// The target's answer does not fit the question.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the target's answer to a check contradicts itself: are both sides of one release?")]
pub(super) struct Contradiction;

impl Fixed {
    /// A batch at its point, with nothing to ask yet.
    pub fn new(disk: DiskIndex, point: PointId, sequence: Sequence) -> Self {
        let (orders, questions) = Default::default();
        let (equal, different) = Default::default();
        Self { disk, point, sequence, orders, questions, equal, different, behind: None }
    }

    /// The target shall be asked of this part of what was read, at most a piece; parts come in
    /// ascending order.
    pub fn ask(&mut self, read: &Hashed, part: ByteRange) {
        debug_assert!(part.length <= PIECE_BYTES);
        let piece = Hashed { range: part, hashes: read.hashes_of(part).to_vec() };
        let has_room = |last: &Question| last.bytes + part.length <= CHECK_BYTES;
        if !self.questions.back().is_some_and(has_room) {
            self.questions.push_back(Question::default());
        }
        let last = self.questions.back_mut().expect("one was put there");
        last.bytes += part.length;
        last.pieces.push(piece);
    }

    /// The next question, if one is left.
    pub fn question(&self) -> Option<Check> {
        let piece = |piece: &Hashed| Piece {
            offset: piece.range.offset,
            length: u32::try_from(piece.range.length).expect("at most a MiB"),
            hash: piece_hash(&piece.hashes),
        };
        let pieces = self.questions.front()?.pieces.iter().map(piece).collect();
        Some(Check { disk: self.disk, point: self.point, sequence: self.sequence, pieces })
    }

    /// The batch's questions cannot be answered: nothing more will be known of it.
    pub fn skip(&mut self) {
        self.questions.clear();
    }

    /// The question is answered.
    pub fn answer(&mut self, answer: &[DifferentPiece]) -> Result<(), Contradiction> {
        let question = self.questions.pop_front().unwrap_or_default();
        let mut answer = answer.iter().peekable();
        for (number, piece) in (0..).zip(&question.pieces) {
            match answer.next_if(|different| different.piece == number) {
                None => self.equal.insert(piece.range),
                Some(theirs) => self.compare(piece, &theirs.granules)?,
            }
        }
        if answer.next().is_some() { Err(Contradiction) } else { Ok(()) }
    }

    fn compare(&mut self, piece: &Hashed, theirs: &[GranuleHash]) -> Result<(), Contradiction> {
        if theirs.len() != piece.hashes.len() || theirs == piece.hashes {
            return Err(Contradiction);
        }
        let mut at = piece.range.offset;
        for (ours, theirs) in piece.hashes.iter().zip(theirs) {
            let end = piece.range.end().min(at + GRANULE_BYTES);
            let into = if ours == theirs { &mut self.equal } else { &mut self.different };
            into.insert(ByteRange::between(at, end));
            at = end;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn fixed() -> Fixed {
        Fixed::new(DiskIndex(2), PointId([7; 16]), Sequence(9))
    }

    fn ranges(set: &RangeSet) -> Vec<ByteRange> {
        set.iter().collect()
    }

    #[test]
    fn exactly_the_granules_that_differ_are_named() {
        let mut data: Vec<u8> = (1..=9).flat_map(|granule| [granule; 4096]).collect();
        data.truncate(8 * 4096 + 512);
        let range = ByteRange::new(MIB, data.len() as u64);
        let read = Hashed::new(range, &data);
        let mut fixed = fixed();
        let first = ByteRange::new(MIB, 4096);
        let second = ByteRange::between(MIB + 2 * 4096, range.end());
        fixed.ask(&read, first);
        fixed.ask(&read, second);
        let check = fixed.question().unwrap();
        assert!(check.fits(range.end()));
        // The last, which is short, and one in the middle.
        data[8 * 4096] ^= 1;
        data[5 * 4096 + 17] ^= 1;
        let granules = granule_hashes(&data[2 * 4096..]).collect();
        fixed.answer(&[DifferentPiece { piece: 1, granules }]).unwrap();
        let different = [ByteRange::new(MIB + 5 * 4096, 4096), ByteRange::new(MIB + 8 * 4096, 512)];
        assert_eq!(ranges(&fixed.different), different);
        let compared = first.length + second.length;
        assert_eq!(fixed.equal.total_bytes() + fixed.different.total_bytes(), compared);
        assert!(fixed.question().is_none());
    }

    #[test]
    fn a_large_batch_has_several_questions_which_fit_each() {
        let mut fixed = fixed();
        let data = vec![0; 1 << 20];
        for at in 0..100 {
            let range = ByteRange::new(at * MIB, MIB);
            fixed.ask(&Hashed::new(range, &data), range);
        }
        let mut asked = Vec::new();
        while let Some(check) = fixed.question() {
            assert!(check.fits(1 << 30));
            asked.push(check.pieces.len());
            fixed.answer(&[]).unwrap();
        }
        assert_eq!(asked, [64, 36]);
        assert_eq!(ranges(&fixed.equal), [ByteRange::new(0, 100 * MIB)]);
    }

    #[test]
    fn an_answer_that_does_not_fit_is_refused() {
        let data = [0; 8192];
        let range = ByteRange::new(0, 8192);
        let read = Hashed::new(range, &data);
        let ours: Vec<GranuleHash> = granule_hashes(&data).collect();
        for (piece, granules) in
            [(0, ours.clone()), (0, ours[..1].to_vec()), (1, vec![GranuleHash([1; 16]); 2])]
        {
            let mut fixed = fixed();
            fixed.ask(&read, range);
            assert_eq!(fixed.answer(&[DifferentPiece { piece, granules }]), Err(Contradiction));
        }
    }

    #[test]
    fn what_is_skipped_is_neither_equal_nor_different() {
        let range = ByteRange::new(0, 4096);
        let mut fixed = fixed();
        fixed.ask(&Hashed::new(range, &[0; 4096]), range);
        fixed.skip();
        assert!(fixed.question().is_none());
        assert!(fixed.equal.is_empty() && fixed.different.is_empty());
    }
}
