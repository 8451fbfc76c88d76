//! The price of a frame: what gathering records, checksum and signature cost beside the compression
//! that they are built around. The peer is lz4_flex itself, with its table and buffer kept.

use crate::report::{Cell, Column, Question, Table};
use crate::spread::Spread;
use crate::stop;
use anyhow::{Context, Result, ensure};
use lz4_flex::block::{CompressTable, compress_into_with_table, get_maximum_output_size};
use rand::rngs::StdRng;
use rand::{Rng, RngCore, SeedableRng};
use redoubt_log::frame::{FrameBuilder, FrameKey, FrameLimits, FrameMeta, FramePool, SealBuffers};
use redoubt_log::{DiskIndex, Generation, Incarnation, MachineId, Record, RoleEpoch};
use redoubt_log::{Sequence, WallTime};
use std::hint::black_box;
use std::time::{Duration, Instant};

/// One frame's payload.
const FRAME_BYTES: usize = 1 << 20;

const MEASURES: &str = "Speed of making one frame of 1 MiB after the other in one thread: records \
    and pages gathered, compressed, summed and signed; the peer is lz4_flex alone on bytes that \
    stand together already. `size` is what a byte of content becomes.";

/// One write, a page as filesystems and databases write it.
const WRITE_BYTES: u32 = 4096;

/// A row of a table: some bytes of its own, the rest as in every row.
const ROW_BYTES: usize = 64;
const OWN_BYTES: usize = 16;

/// Gathering and sealing frames, against lz4_flex alone on the same bytes.
#[derive(Clone, Debug, clap::Args)]
pub struct SealBench {
    /// Frames (of 1 MiB) in a round.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u64).range(1..=4096))]
    pub frames: u64,
    /// Rounds; ours and the peer's take turns.
    #[arg(long, default_value_t = 15, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub rounds: u32,
    /// Of the random content.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
}

/// What one kind of content came to.
struct Compared {
    content: &'static str,
    /// Bytes that a byte of content became.
    size: f64,
    /// Our and the peer's time, a round each.
    rounds: Vec<(Duration, Duration)>,
}

impl SealBench {
    /// A row for each kind of content.
    pub fn run(&self) -> Result<Question> {
        let mut question = Question::new("seal", MEASURES);
        let columns = vec![
            Column::text("content", "content"),
            Column::number("size", "size", 1.0, 2),
            Column::number("bytes_per_second", "redoubt MB/s", 1e6, 0),
            Column::number("peer_bytes_per_second", "lz4_flex MB/s", 1e6, 0),
            Column::number("ratio", "ratio", 1.0, 2),
        ];
        let mut table = Table::new("sealing frames", columns);
        let bytes = (self.frames * FRAME_BYTES as u64) as f64;
        for compared in self.compare_all()? {
            let speed = |time: &Duration| bytes / time.as_secs_f64();
            let ratio = Spread::over(compared.ratios());
            table.row(vec![
                compared.content.into(),
                Cell::over([compared.size]),
                Cell::over(compared.rounds.iter().map(|(ours, _)| speed(ours))),
                Cell::over(compared.rounds.iter().map(|(_, peer)| speed(peer))),
                ratio.map_or(Cell::Nothing, Cell::Spread),
            ]);
            question.headline(format!("redoubt by lz4_flex, {}", compared.content), ratio);
        }
        question.tables.push(table);
        question.note_rounds(self.rounds);
        question.notes.push(format!("rounds of {} frames, seed {}", self.frames, self.seed));
        Ok(question)
    }

    fn compare_all(&self) -> Result<Vec<Compared>> {
        // One page in `noisy` does not compress.
        [("rows", None), ("mixed", Some(2)), ("noise", Some(1))]
            .into_iter()
            .map(|(name, noisy)| self.compare(name, &content(self.seed, noisy)))
            .collect()
    }

    fn compare(&self, name: &'static str, content: &[u8]) -> Result<Compared> {
        let (mut ours, mut peer) = (Ours::new(), Peer::new());
        // The first of each warms up the buffers and does not count.
        let size = ours.seal(content)? as f64 / FRAME_BYTES as f64;
        let alone = peer.compress(content)? as f64 / FRAME_BYTES as f64;
        ensure!(size < alone + 0.02, "{name}: ours keeps {size}, lz4 alone {alone}: not one work");
        let mut rounds = Vec::new();
        for _ in 0..self.rounds {
            stop::check()?;
            let sealed = self.timed(|| ours.seal(content))?;
            rounds.push((sealed, self.timed(|| peer.compress(content))?));
        }
        Ok(Compared { content: name, size, rounds })
    }

    fn timed(&self, mut frame: impl FnMut() -> Result<usize>) -> Result<Duration> {
        let began = Instant::now();
        for _ in 0..self.frames {
            black_box(frame()?);
        }
        Ok(began.elapsed())
    }
}

impl Compared {
    /// Our speed by the peer's, round by round.
    fn ratios(&self) -> Vec<f64> {
        let rounds = self.rounds.iter();
        rounds.map(|(ours, peer)| peer.as_secs_f64() / ours.as_secs_f64()).collect()
    }
}

/// The product's way: records and payload into a frame, compressed, summed and signed.
struct Ours {
    builder: FrameBuilder,
    key: FrameKey,
    buffers: SealBuffers,
    next: u64,
}

impl Ours {
    fn new() -> Self {
        let builder = FrameBuilder::new(FrameLimits::default(), &FramePool::new(4));
        Self { builder, key: FrameKey::new([7; 32]), buffers: SealBuffers::default(), next: 1 }
    }

    fn seal(&mut self, content: &[u8]) -> Result<usize> {
        let first = self.next;
        for page in black_box(content).chunks_exact(WRITE_BYTES as usize) {
            let offset = self.next * u64::from(WRITE_BYTES);
            let record = Record::Write { disk: DiskIndex(0), offset, length: WRITE_BYTES };
            let pushed = self.builder.push(record, &[page]);
            ensure!(pushed.is_ok(), "a frame does not take its pages: {pushed:?}");
            self.next += 1;
        }
        let meta = FrameMeta {
            machine: MachineId([1; 16]),
            generation: Generation([2; 16]),
            incarnation: Incarnation(1),
            role_epoch: RoleEpoch(1),
            first: Sequence(first),
            previous: Sequence(first - 1),
            earliest: WallTime(1),
            latest: WallTime(2),
            ends_at_write_boundary: true,
        };
        let sealed = self.builder.finish(&meta).seal(&self.key, &mut self.buffers);
        Ok(black_box(sealed.bytes()).len())
    }
}

/// Compression alone, of bytes that stand together already.
struct Peer {
    table: CompressTable,
    room: Vec<u8>,
}

impl Peer {
    fn new() -> Self {
        let room = vec![0; get_maximum_output_size(FRAME_BYTES)];
        Self { table: CompressTable::large(), room }
    }

    fn compress(&mut self, content: &[u8]) -> Result<usize> {
        let length = compress_into_with_table(black_box(content), &mut self.room, &mut self.table)
            .context("lz4 found no room")?;
        Ok(black_box(&self.room[..length]).len())
    }
}

/// A frame's worth of pages with rows of a table; one page in `noisy` is random.
fn content(seed: u64, noisy: Option<usize>) -> Vec<u8> {
    let mut random = StdRng::seed_from_u64(seed);
    let common: [u8; ROW_BYTES] = random.random();
    let mut content = common.repeat(FRAME_BYTES / ROW_BYTES);
    for (index, page) in content.chunks_exact_mut(WRITE_BYTES as usize).enumerate() {
        if noisy.is_some_and(|noisy| index % noisy == 0) {
            random.fill_bytes(page);
        } else {
            for row in page.chunks_exact_mut(ROW_BYTES) {
                random.fill_bytes(&mut row[..OWN_BYTES]);
            }
        }
    }
    content
}

#[test]
fn each_content_compresses_as_it_should() {
    let compared = SealBench { frames: 1, rounds: 2, seed: 3 }.compare_all().unwrap();
    let mut ratios = compared.iter().flat_map(Compared::ratios);
    assert!(ratios.all(|ratio| ratio > 0.0 && ratio.is_finite()));
    let sizes: Vec<f64> = compared.iter().map(|compared| compared.size).collect();
    // Rows compress, noise does not, and a frame of noise is little more than the noise.
    assert!(sizes[0] < 0.5 && sizes[0] < sizes[1] && sizes[1] < 0.8, "{sizes:?}");
    assert!(sizes[2] > 1.0 && sizes[2] < 1.01, "{sizes:?}");
}
