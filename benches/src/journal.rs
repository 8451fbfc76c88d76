//! How long a frame waits for its acknowledgement in the journal, and what the same bytes cost on
//! the same file system by fio. It must never time a frame that the journal did not bring back.

use crate::fio::Fio;
use crate::place::Place;
use crate::process::missing;
use crate::report::{Cell, Column, Question, Table};
use crate::spread::{Spread, percentile};
use crate::stop;
use anyhow::{Context, Result, ensure};
use rand::rngs::StdRng;
use rand::{RngCore, SeedableRng};
use redoubt_engine::buffer::AlignedBuffer;
use redoubt_engine::uring_directory::{UringOptions, UringStorage};
use redoubt_log::frame::{FrameBuilder, FrameKey, FrameLimits, FrameMeta, FramePool, SealBuffers};
use redoubt_log::segment::{ENTRY_HEADER_SIZE, entry_length};
use redoubt_log::{DiskIndex, Incarnation, MachineId, Record, Sequence, WallTime};
use redoubt_master_target::store::{Admitted, DiskSpec, HelloAnswer, Store, StoreOptions};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Payload of a frame: one write of a quiet machine, a handful, and the most there may be.
const PAYLOADS: [usize; 3] = [4 << 10, 64 << 10, 1 << 20];

/// One write, a page as file systems and databases write it.
const WRITE_BYTES: u32 = 4096;

/// The disk that the frames write to, on paper only: nothing is applied here.
const DISK_BYTES: u64 = 1 << 30;

const MACHINE: MachineId = MachineId([1; 16]);

/// The acknowledgement's latency: a frame appended and committed, against fio.
#[derive(Clone, Debug, clap::Args)]
pub struct JournalBench {
    /// Frames of each size in a round.
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub frames: u32,
    /// Rounds; the contenders take turns, and another one begins each.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub rounds: u32,
    /// Of the random content.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
}

/// Who makes bytes durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Contender {
    /// The master target's store.
    Redoubt,
    /// A write, then fdatasync, in allocated space.
    Fdatasync,
    /// A write with O_DSYNC in allocated space.
    Dsync,
    /// The same over blocks that were written before.
    DsyncOver,
}

const CONTENDERS: [Contender; 4] =
    [Contender::Redoubt, Contender::Fdatasync, Contender::Dsync, Contender::DsyncOver];

const MEASURES: &str = "Latency of one frame of incompressible 4-KiB writes through the master \
    target's store: append and commit (io_uring, O_DIRECT, one fdatasync), each frame alone; \
    under load up to 32 share a sync. An entry is its payload, a header, and padding to 4096 \
    bytes. New segments, one for 64 MiB, are in it. The journal was opened again and had all of \
    it. fio writes blocks of the payload's size with O_DIRECT: with fdatasync after each (the sum \
    of both percentiles), with O_DSYNC into allocated space as a segment is, and with O_DSYNC over \
    blocks that were written before, which no allocation has to follow.";

/// The percentiles of one round, in seconds.
#[derive(Clone, Copy, Debug)]
struct Sample {
    p50: f64,
    p99: f64,
}

impl JournalBench {
    /// A row for each size and contender.
    pub fn run(&self, under: &Path) -> Result<Question> {
        let mut question = Question::new("journal", MEASURES);
        question.not_run.extend(missing("fio's syncs", &[("fio", "fio")]));
        let has_fio = question.not_run.is_empty();
        let contenders = if has_fio { &CONTENDERS[..] } else { &CONTENDERS[..1] };
        let place = Place::new(under, u64::from(self.frames) * (4 << 20) + (1 << 30))?;
        let microseconds = |key, title| Column::number(key, title, 1e-6, 0);
        let mut table = Table::new(
            "one frame until it is durable",
            vec![
                Column::text("payload", "payload"),
                Column::text("contender", "contender"),
                microseconds("p50_seconds", "p50 us"),
                microseconds("p99_seconds", "p99 us"),
                Column::number("p50_ratio", "p50 by fdatasync", 1.0, 2),
                Column::number("p99_ratio", "p99 by fdatasync", 1.0, 2),
            ],
        );
        for payload in PAYLOADS {
            let samples = self.rounds(payload, contenders, &place)?;
            self.add(&mut question, &mut table, payload, contenders, &samples);
        }
        question.tables.push(table);
        question.note_rounds(self.rounds);
        question.notes.push(format!("{} frames a round, seed {}", self.frames, self.seed));
        Ok(question)
    }

    fn rounds(
        &self,
        payload: usize,
        contenders: &[Contender],
        place: &Place,
    ) -> Result<Vec<Vec<Sample>>> {
        let mut samples: Vec<Vec<Sample>> = contenders.iter().map(|_| Vec::new()).collect();
        for round in 0..self.rounds as usize {
            for turn in 0..contenders.len() {
                let turn = (round + turn) % contenders.len();
                let room = place.room()?;
                let sample = match contenders[turn] {
                    Contender::Redoubt => self.ours(payload, room.path())?,
                    peer => self.fio(payload, peer, room.path())?,
                };
                samples[turn].push(sample);
            }
        }
        eprintln!("journal: {} KiB done", payload >> 10);
        Ok(samples)
    }

    fn add(
        &self,
        question: &mut Question,
        table: &mut Table,
        payload: usize,
        contenders: &[Contender],
        samples: &[Vec<Sample>],
    ) {
        let size = format!("{} KiB", payload >> 10);
        let peer = contenders.iter().position(|contender| *contender == Contender::Fdatasync);
        for (contender, own) in contenders.iter().zip(samples) {
            let ratio = |value: fn(&Sample) -> f64| {
                let peer = peer.and_then(|peer| samples.get(peer))?;
                Spread::over(own.iter().zip(peer).map(|(own, peer)| value(own) / value(peer)))
            };
            let cell = |spread: Option<Spread>| spread.map_or(Cell::Nothing, Cell::Spread);
            let median = ratio(|sample| sample.p50);
            table.row(vec![
                size.as_str().into(),
                contender.name().into(),
                Cell::over(own.iter().map(|sample| sample.p50)),
                Cell::over(own.iter().map(|sample| sample.p99)),
                cell(median),
                cell(ratio(|sample| sample.p99)),
            ]);
            if *contender == Contender::Redoubt {
                question.headline(format!("p50 of {size} by fio's fdatasync"), median);
            }
        }
    }

    fn ours(&self, payload: usize, room: &Path) -> Result<Sample> {
        let open = || -> Result<Store> {
            let storage = Arc::new(UringStorage::new(room, UringOptions::default())?);
            Ok(Store::open(storage, StoreOptions::default(), WallTime(1))?)
        };
        let store = open()?;
        let machine = store.create_machine(MACHINE, "bench", WallTime(1))?;
        let disk = DiskSpec {
            index: DiskIndex(0),
            name: "disk".to_owned(),
            size: DISK_BYTES,
            logical_block_size: 4096,
        };
        let admitted = Admitted { incarnation: Incarnation(1), run: [2; 16] };
        let answer = machine.hello(admitted, false, &[disk])?;
        let (mut entries, last) = self.entries(payload, &answer)?;
        let mut times = Vec::new();
        for entry in &mut entries {
            stop::check()?;
            let began = Instant::now();
            let appended = machine.append(&mut [&mut **entry]);
            let durable = machine.commit();
            times.push(began.elapsed().as_secs_f64());
            ensure!(appended.entries == 1, "not appended: {:?}", appended.stopped);
            durable?;
        }
        drop((machine, store));
        let found = open()?.machine(MACHINE)?.status().durable;
        ensure!(found == last, "the journal ends at {found}, {last} was acknowledged");
        let sample = percentile(&times, 0.5).zip(percentile(&times, 0.99));
        let (p50, p99) = sample.context("no frame was timed")?;
        Ok(Sample { p50, p99 })
    }

    /// Sealed frames in their entries' buffers, and the sequence of the last record.
    fn entries(
        &self,
        payload: usize,
        answer: &HelloAnswer,
    ) -> Result<(Vec<AlignedBuffer>, Sequence)> {
        let mut random = StdRng::seed_from_u64(self.seed);
        let mut builder = FrameBuilder::new(FrameLimits::default(), &FramePool::new(4));
        let (key, mut scratch) = (FrameKey::new([7; 32]), SealBuffers::default());
        let mut page = vec![0; WRITE_BYTES as usize];
        let mut previous = answer.resume;
        let mut entries = Vec::new();
        for _ in 0..self.frames {
            let writes = (payload / WRITE_BYTES as usize) as u64;
            for write in 0..writes {
                random.fill_bytes(&mut page);
                let block = (previous.0 + write) * 7919 % (DISK_BYTES / u64::from(WRITE_BYTES));
                let offset = block * u64::from(WRITE_BYTES);
                let record = Record::Write { disk: DiskIndex(0), offset, length: WRITE_BYTES };
                let pushed = builder.push(record, &[&page]);
                ensure!(pushed.is_ok(), "a frame does not take its writes: {pushed:?}");
            }
            let meta = FrameMeta {
                machine: MACHINE,
                generation: answer.generation,
                incarnation: answer.incarnation,
                role_epoch: answer.role_epoch,
                first: Sequence(previous.0 + 1),
                previous,
                earliest: WallTime(1),
                latest: WallTime(2),
                ends_at_write_boundary: true,
            };
            let sealed = builder.finish(&meta).seal(&key, &mut scratch);
            let frame = sealed.bytes();
            let mut entry = AlignedBuffer::zeroed(entry_length(frame.len()));
            entry[ENTRY_HEADER_SIZE..ENTRY_HEADER_SIZE + frame.len()].copy_from_slice(frame);
            entries.push(entry);
            previous = Sequence(previous.0 + writes);
        }
        Ok((entries, previous))
    }

    fn fio(&self, payload: usize, peer: Contender, room: &Path) -> Result<Sample> {
        let mut options = vec![format!("--filename={}", room.join("written").display())];
        options.push(format!("--bs={payload}"));
        options.push(format!("--size={}", payload as u64 * u64::from(self.frames)));
        let common = ["--rw=write", "--ioengine=psync", "--direct=1", "--refill_buffers"];
        let own: &[&str] = match peer {
            Contender::Fdatasync => &["--fdatasync=1", "--fallocate=posix"],
            Contender::DsyncOver => &["--sync=dsync", "--overwrite=1"],
            Contender::Dsync | Contender::Redoubt => &["--sync=dsync", "--fallocate=posix"],
        };
        options.extend(common.iter().chain(own).map(|option| (*option).to_owned()));
        let written = Fio::start(&options, Duration::ZERO, room)?.finish()?;
        let write = written.write;
        if peer != Contender::Fdatasync {
            return Ok(Sample { p50: write.p50, p99: write.p99 });
        }
        let sync = written.sync.context("fio made no fdatasync")?;
        Ok(Sample { p50: write.p50 + sync.p50, p99: write.p99 + sync.p99 })
    }
}

impl Contender {
    fn name(self) -> &'static str {
        match self {
            Self::Redoubt => "redoubt",
            Self::Fdatasync => "fio, fdatasync",
            Self::Dsync => "fio, O_DSYNC",
            Self::DsyncOver => "fio, O_DSYNC, written before",
        }
    }
}

/// The store takes the frames that are made here, of each size, and has them afterwards.
#[test]
fn the_journal_brings_every_timed_frame_back() {
    let bench = JournalBench { frames: 3, rounds: 1, seed: 1 };
    for payload in PAYLOADS {
        let room = tempfile::tempdir_in("/var/tmp").unwrap();
        let sample = bench.ours(payload, room.path()).unwrap();
        assert!(sample.p50 > 0.0 && sample.p50 <= sample.p99, "{sample:?}");
    }
}
