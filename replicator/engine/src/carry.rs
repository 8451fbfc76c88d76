//! How a batch goes to the disk around the page cache: which requests as they are, and which over
//! aligned memory, joined with their neighbours into runs of whole blocks. Plans only; it must
//! never do I/O, nor give the same block to two runs, where requests do not
//! overlap.

use std::ops::Range;

use crate::buffer::BLOCK_BYTES;

const BLOCK: u64 = BLOCK_BYTES as u64;

/// Longest single submission: long ones are cut so that one request also keeps a disk's queue busy.
pub(crate) const PIECE_BYTES: usize = 1 << 20;

/// Memory over which requests are carried at a time: a thousand blocks keep a disk's queue full,
/// and four of the longest submissions fit.
pub(crate) const CARRY_BYTES: usize = 4 << 20;

/// Requests shorter than this are joined with such as stand right beside them on the disk: a copy
/// costs less than a submission up to about here.
const JOIN_BYTES: usize = 64 << 10;

const _: () = assert!(CARRY_BYTES >= PIECE_BYTES && JOIN_BYTES <= PIECE_BYTES);

/// A request, as far as planning needs it.
#[derive(Clone, Copy)]
pub(crate) struct Extent {
    pub(crate) offset: u64,
    pub(crate) length: usize,
    /// Whether its memory begins at a block's boundary.
    pub(crate) aligned: bool,
}

impl Extent {
    fn end(&self) -> u64 {
        self.offset + self.length as u64
    }

    /// Whether the disk takes it as it is.
    fn is_plain(&self) -> bool {
        self.aligned && self.offset.is_multiple_of(BLOCK) && self.length.is_multiple_of(BLOCK_BYTES)
    }
}

/// Whole blocks that go to the disk in one piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    /// First byte in the file.
    pub(crate) offset: u64,
    /// First byte in the aligned memory.
    pub(crate) place: usize,
    /// Bytes.
    pub(crate) length: usize,
}

impl Run {
    fn end(&self) -> u64 {
        self.offset + self.length as u64
    }
}

/// Bytes that are copied between a request and the aligned memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Copied {
    pub(crate) request: usize,
    /// Where in the request.
    pub(crate) from: Range<usize>,
    /// Where in the aligned memory.
    pub(crate) place: Range<usize>,
}

/// What fits into the aligned memory at once.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Group {
    /// Ascending, in the file and in the memory.
    pub(crate) runs: Vec<Run>,
    pub(crate) copies: Vec<Copied>,
    /// Blocks that the copies fill only in part: a write must read them first. Ascending.
    pub(crate) partial: Vec<Run>,
    /// Bytes of the memory in use.
    used: usize,
}

/// How a batch goes to the disk.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Plan {
    /// Requests that go as they are.
    pub(crate) plain: Vec<usize>,
    pub(crate) groups: Vec<Group>,
}

impl Plan {
    /// Plans a batch: in the order of the disk, whatever the order of the requests.
    pub(crate) fn new(extents: &[Extent]) -> Self {
        let filled = |index: &usize| extents[*index].length > 0;
        let mut order: Vec<usize> = (0..extents.len()).filter(filled).collect();
        order.sort_by_key(|index| extents[*index].offset);
        let mut plan = Self::default();
        for chain in order.chunk_by(|one, next| joined(&extents[*one], &extents[*next])) {
            match chain {
                [alone] if extents[*alone].is_plain() => plan.plain.push(*alone),
                _ => plan.carry(chain, extents),
            }
        }
        plan
    }

    /// Whether any block is written only in part.
    pub(crate) fn has_parts(&self) -> bool {
        self.groups.iter().any(|group| !group.partial.is_empty())
    }

    /// Gives neighbours in the order of the disk their places.
    fn carry(&mut self, chain: &[usize], extents: &[Extent]) {
        // Where the bytes that the chain fills so far end.
        let mut filled = None;
        for request in chain {
            let extent = extents[*request];
            let mut from = 0;
            while from < extent.length {
                let at = extent.offset + from as u64;
                let gap = filled != Some(at);
                if gap {
                    self.needs(filled);
                }
                let step = self.room_at(at).min(extent.length - from);
                if gap {
                    self.needs(Some(at));
                }
                self.copy(*request, from..from + step, at);
                let end = at + step as u64;
                filled = Some(filled.map_or(end, |before| before.max(end)));
                from += step;
            }
        }
        self.needs(filled);
    }

    /// On one side of this position of the last run nothing is filled: its block is partial.
    fn needs(&mut self, position: Option<u64>) {
        let Some((position, group)) = position.zip(self.groups.last_mut()) else { return };
        let Some(run) = group.runs.last() else { return };
        let block = position - position % BLOCK;
        let known = group.partial.last().is_some_and(|last| block < last.end());
        if position == block || block < run.offset || known {
            return;
        }
        let place = run.place + index(block - run.offset);
        match group.partial.last_mut() {
            Some(last) if last.end() == block && last.place + last.length == place => {
                last.length += BLOCK_BYTES;
            }
            _ => group.partial.push(Run { offset: block, place, length: BLOCK_BYTES }),
        }
    }

    /// Bytes that the last run can take from `at` on; begins a run, and a group, where it must.
    fn room_at(&mut self, at: u64) -> usize {
        let block = at - at % BLOCK;
        let goes_on = self.groups.last().and_then(|group| {
            let run = group.runs.last()?;
            let most = PIECE_BYTES.min(CARRY_BYTES - run.place) as u64;
            let touches = run.offset <= block && block <= run.end();
            (touches && at < run.offset + most).then(|| run.offset + most - at)
        });
        let room = goes_on.unwrap_or_else(|| {
            let fits = self.groups.last().is_some_and(|group| group.used < CARRY_BYTES);
            if !fits {
                self.groups.push(Group::default());
            }
            let group = self.groups.last_mut().expect("one was pushed where there was none");
            group.runs.push(Run { offset: block, place: group.used, length: 0 });
            PIECE_BYTES.min(CARRY_BYTES - group.used) as u64 - at % BLOCK
        });
        usize::try_from(room).expect("at most the longest submission")
    }

    /// Copies a part of a request to `at`, within the last run.
    fn copy(&mut self, request: usize, from: Range<usize>, at: u64) {
        let group = self.groups.last_mut().expect("there is room");
        let run = group.runs.last_mut().expect("there is room");
        let skip = index(at - run.offset);
        let place = run.place + skip..run.place + skip + from.len();
        run.length = run.length.max((skip + from.len()).next_multiple_of(BLOCK_BYTES));
        group.used = run.place + run.length;
        group.copies.push(Copied { request, from, place });
    }
}

/// Whether two neighbours in the order of the disk must, or should, lie in one run: they share a
/// block, or their blocks touch and both are short.
fn joined(one: &Extent, next: &Extent) -> bool {
    let (end, start) = (one.end().next_multiple_of(BLOCK), next.offset - next.offset % BLOCK);
    start < end || (start == end && one.length.max(next.length) < JOIN_BYTES)
}

/// A distance within a run.
fn index(bytes: u64) -> usize {
    usize::try_from(bytes).expect("a run is at most as long as the longest submission")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn extent(offset: u64, length: usize) -> Extent {
        Extent { offset, length, aligned: true }
    }

    fn run(offset: u64, place: usize, length: usize) -> Run {
        Run { offset, place, length }
    }

    #[test]
    fn whole_blocks_go_as_they_are_unless_neighbours_make_one_submission() {
        let plan = Plan::new(&[extent(8192, 4096), extent(0, 4096), extent(1 << 20, 1 << 20)]);
        assert_eq!((plan.plain, plan.groups.len()), (vec![1, 0, 2], 0));
        let plan = Plan::new(&[extent(8192, 4096), extent(4096, 4096), extent(0, 0)]);
        assert_eq!(plan.plain, [0_usize; 0]);
        assert_eq!(plan.groups[0].runs, [run(4096, 0, 8192)]);
        assert_eq!(plan.groups[0].partial, []);
        // A long one gains nothing by a copy, whatever stands beside it.
        let plan = Plan::new(&[extent(0, 1 << 20), extent(1 << 20, 4096)]);
        assert_eq!(plan.plain, [0, 1]);
    }

    #[test]
    fn parts_of_one_block_share_it_and_it_is_read_once() {
        let plan = Plan::new(&[extent(3072, 512), extent(512, 512), extent(20480, 1024)]);
        let [group] = &plan.groups[..] else { panic!("they fit at once: {plan:?}") };
        assert_eq!(group.runs, [run(0, 0, 4096), run(20480, 4096, 4096)]);
        assert_eq!(group.partial, group.runs);
        // Together they fill the block: nothing is read.
        let plan = Plan::new(&[extent(512, 3584), extent(0, 512)]);
        assert!(!plan.has_parts(), "{plan:?}");
    }

    #[test]
    fn unaligned_memory_is_carried_in_pieces_that_fit() {
        let whole = Extent { offset: 4096, length: 6 << 20, aligned: false };
        let plan = Plan::new(&[whole]);
        let lengths: Vec<usize> =
            plan.groups.iter().flat_map(|group| &group.runs).map(|run| run.length).collect();
        assert_eq!(lengths, [PIECE_BYTES; 6]);
        assert_eq!(plan.groups.len(), 2);
        assert!(!plan.has_parts());
    }

    /// Every byte of every request has one place, no block is in two runs, and exactly the blocks
    /// that requests fill in part are read.
    #[test]
    fn random_batches_are_planned_whole() {
        use rand::{Rng, SeedableRng};
        for seed in 0..300 {
            let mut random = rand::rngs::StdRng::seed_from_u64(seed);
            let mut extents = Vec::new();
            let mut at = 0;
            for _ in 0..random.random_range(1..60) {
                at += [0, 0, 512, 1024, 4096, 8192, 1][random.random_range(0..7)];
                let unit = [1, 512, 4096, 65536, 1 << 19][random.random_range(0..5)];
                let length = unit * random.random_range(1..9);
                extents.push(Extent { offset: at, length, aligned: random.random_bool(0.5) });
                at += length as u64;
            }
            check(&extents, &Plan::new(&extents), seed);
        }
    }

    fn check(extents: &[Extent], plan: &Plan, seed: u64) {
        let mut filled = vec![0_usize; extents.len()];
        let mut blocks = std::collections::BTreeMap::new();
        for request in &plan.plain {
            filled[*request] += extents[*request].length;
        }
        for group in &plan.groups {
            assert!(group.used <= CARRY_BYTES);
            for run in &group.runs {
                assert!(run.length <= PIECE_BYTES && run.offset.is_multiple_of(BLOCK));
                for block in (run.offset..run.end()).step_by(BLOCK_BYTES) {
                    let before = blocks.insert(block, 0_u64);
                    assert_eq!(before, None, "seed {seed}: block {block} is in two runs");
                }
            }
            for copied in &group.copies {
                filled[copied.request] += copied.from.len();
                assert_eq!(copied.from.len(), copied.place.len());
                let mut at = extents[copied.request].offset + copied.from.start as u64;
                let holds = |run: &&Run| {
                    run.place <= copied.place.start && copied.place.end <= run.place + run.length
                };
                let run = group.runs.iter().find(holds).expect("a copy lies within a run");
                assert_eq!(run.offset + (copied.place.start - run.place) as u64, at);
                let end = at + copied.from.len() as u64;
                while at < end {
                    let block = at - at % BLOCK;
                    let step = (block + BLOCK).min(end) - at;
                    *blocks.get_mut(&block).unwrap() += step;
                    at += step;
                }
            }
            for block in
                group.partial.iter().flat_map(|run| (run.offset..run.end()).step_by(BLOCK_BYTES))
            {
                let bytes = blocks.remove(&block).unwrap();
                assert!(0 < bytes && bytes < BLOCK, "seed {seed}: block {block} is read");
            }
        }
        assert!(blocks.values().all(|bytes| *bytes == BLOCK), "seed {seed}: {blocks:?}");
        let lengths: Vec<usize> = extents.iter().map(|extent| extent.length).collect();
        assert_eq!(filled, lengths, "seed {seed}");
    }
}
