//! What applying costs: journalled frames brought onto a replica disk on real files, beside a plain
//! program that writes the same ranges and syncs them. Only the apply is timed, not the journal; at
//! the end both files must hold the same bytes.

use crate::report::{Cell, Column, Question, Table};
use crate::spread::Spread;
use crate::stop;
use anyhow::{Context, Result, ensure};
use rand::rngs::StdRng;
use rand::seq::index::sample;
use rand::{Rng, RngCore, SeedableRng};
use redoubt_engine::buffer::{AlignedBuffer, BLOCK_BYTES, BufferPool};
use redoubt_engine::ring::{BlockQueue, Direction, FileSlot, Operation, Priority, Ring};
use redoubt_engine::storage::{BlockFile, Open, ReadRequest, Storage};
use redoubt_engine::uring_directory::{UringOptions, UringStorage};
use redoubt_log::frame::{FrameBuilder, FrameKey, FrameLimits, FrameMeta, FramePool, SealBuffers};
use redoubt_log::segment::{ENTRY_HEADER_SIZE, entry_length};
use redoubt_log::{
    DiskIndex, DiskSet, Generation, Incarnation, MachineId, PointId, PointKind, Record, RoleEpoch,
    Sequence, WallTime,
};
use redoubt_master_target::store::{
    Admitted, ApplyOutcome, DiskSpec, Store, StoreMachine, StoreOptions,
};
use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

const MIB: u64 = 1 << 20;
const BLOCK: u64 = BLOCK_BYTES as u64;
const SECTOR: usize = 512;

/// A write of the sequential kind, as a file system merges them.
const LONG_BYTES: usize = 64 << 10;

/// Bytes of disk over which a byte of random writes is spread.
const SPREAD: u64 = 4;

/// Bytes that are compared at once.
const COMPARED_BYTES: usize = 1 << 20;

const MACHINE: MachineId = MachineId([1; 16]);
const DISK: DiskIndex = DiskIndex(0);

/// How much is applied, how often, and where.
#[derive(Debug, clap::Args)]
pub struct ApplyBench {
    /// MiB of writes in a round.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u64).range(1..=4096))]
    mebibytes: u64,
    /// Rounds; ours and the peer's take turns.
    #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u64).range(1..=100))]
    rounds: u64,
    /// Of the random places and content.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// What is written, and onto what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Long writes one behind the other, onto nothing.
    Sequential,
    /// Blocks anywhere, onto nothing.
    Random,
    /// Blocks and parts of blocks anywhere, onto what was written before.
    Parts,
    /// Blocks anywhere, onto what was written before and must be kept for a point.
    Kept,
}

/// What one kind of writes came to.
struct Compared {
    name: &'static str,
    /// Bytes of a round.
    bytes: u64,
    /// Bytes of journal that a byte of writes took.
    journal: f64,
    /// Our and the peer's time, a round each.
    rounds: Vec<(Duration, Duration)>,
}

const MEASURES: &str = "Speed of bringing journalled writes onto a replica disk, durably; the peer \
    is a plain program that writes the same ranges in its own order and syncs them. Long writes \
    and random blocks onto nothing, parts of blocks onto what was there, and random blocks whose \
    old content is kept for a point.";

impl ApplyBench {
    /// A row for each kind of writes.
    pub fn run(&self, directory: &Path) -> Result<Question> {
        let mut question = Question::new("apply", MEASURES);
        let columns = vec![
            Column::text("writes", "writes"),
            Column::number("journal", "journal", 1.0, 2),
            Column::number("bytes_per_second", "redoubt MB/s", 1e6, 0),
            Column::number("peer_bytes_per_second", "plain MB/s", 1e6, 0),
            Column::number("ratio", "ratio", 1.0, 2),
        ];
        let mut table = Table::new("applying", columns);
        for (name, kind) in [
            ("long", Kind::Sequential),
            ("random", Kind::Random),
            ("parts", Kind::Parts),
            ("kept", Kind::Kept),
        ] {
            let compared = self.compare(name, kind, directory).with_context(|| name.to_owned())?;
            let speed = |time: &Duration| compared.bytes as f64 / time.as_secs_f64();
            let over =
                |(ours, peer): &(Duration, Duration)| peer.as_secs_f64() / ours.as_secs_f64();
            let ratio = Spread::over(compared.rounds.iter().map(over));
            table.row(vec![
                compared.name.into(),
                Cell::over([compared.journal]),
                Cell::over(compared.rounds.iter().map(|(ours, _)| speed(ours))),
                Cell::over(compared.rounds.iter().map(|(_, peer)| speed(peer))),
                ratio.map_or(Cell::Nothing, Cell::Spread),
            ]);
            question.headline(format!("redoubt by a plain program, {name}"), ratio);
        }
        question.tables.push(table);
        question.notes.push(format!("rounds of {} MiB, seed {}", self.mebibytes, self.seed));
        Ok(question)
    }

    fn compare(&self, name: &'static str, kind: Kind, place: &Path) -> Result<Compared> {
        let directory = tempfile::tempdir_in(place)
            .with_context(|| format!("no directory below {}", place.display()))?;
        let region = self.mebibytes * MIB * SPREAD;
        let mut random = StdRng::seed_from_u64(self.seed);
        let mut ours = Ours::new(&directory.path().join("ours"), region * self.rounds)?;
        let mut peer = Peer::new(&directory.path().join("peer"), kind, region * self.rounds)?;
        let mut content = AlignedBuffer::zeroed(usize::try_from(self.mebibytes * MIB)?);
        let (mut rounds, mut bytes, mut journalled) = (Vec::new(), 0, 0);
        for round in 0..self.rounds {
            stop::check()?;
            let start = round * region;
            if matches!(kind, Kind::Parts | Kind::Kept) {
                for at in (start..start + region).step_by(content.len()) {
                    let writes = long_writes(at, content.len());
                    fill(&mut random, &mut content, &writes);
                    ours.deliver(&writes, &content, kind == Kind::Kept)?;
                    ours.apply()?;
                    peer.write(&writes, &content)?;
                }
            }
            let writes = self.writes(&mut random, kind, start, region);
            fill(&mut random, &mut content, &writes);
            journalled += ours.deliver(&writes, &content, kind == Kind::Kept)?;
            bytes = writes.iter().map(|(_, length)| *length as u64).sum();
            let applied = timed(|| ours.apply())?;
            rounds.push((applied, timed(|| peer.write(&writes, &content))?));
            ours.machine.free_segments(WallTime(round), Duration::ZERO)?;
        }
        same(&*ours.replica()?, &peer.file)?;
        let journal = journalled as f64 / (bytes * self.rounds) as f64;
        Ok(Compared { name, bytes, journal, rounds })
    }

    /// Places and lengths of a round's writes; none overlap.
    fn writes(
        &self,
        random: &mut StdRng,
        kind: Kind,
        start: u64,
        region: u64,
    ) -> Vec<(u64, usize)> {
        let total = self.mebibytes * MIB;
        if kind == Kind::Sequential {
            return long_writes(start, usize::try_from(total).unwrap_or(usize::MAX));
        }
        let blocks = usize::try_from(region / BLOCK).unwrap_or(usize::MAX);
        let count = usize::try_from(total / BLOCK).unwrap_or(usize::MAX);
        let places = sample(random, blocks, count).into_vec();
        let sectors = BLOCK_BYTES / SECTOR;
        let write = |place: usize| {
            let at = start + place as u64 * BLOCK;
            if kind != Kind::Parts || random.random_bool(0.5) {
                return (at, BLOCK_BYTES);
            }
            let length = random.random_range(1..sectors);
            let skip = random.random_range(0..=sectors - length);
            (at + (skip * SECTOR) as u64, length * SECTOR)
        };
        places.into_iter().map(write).collect()
    }
}

fn long_writes(start: u64, bytes: usize) -> Vec<(u64, usize)> {
    let end = start + bytes as u64;
    let places = (start..end).step_by(LONG_BYTES);
    places
        .map(|at| (at, usize::try_from(end - at).map_or(LONG_BYTES, |l| l.min(LONG_BYTES))))
        .collect()
}

/// One write in two is noise, the other compresses: what databases and file systems mix.
fn fill(random: &mut StdRng, content: &mut [u8], writes: &[(u64, usize)]) {
    let mut rest = content;
    for (number, (_, length)) in writes.iter().enumerate() {
        let (piece, behind) = rest.split_at_mut(*length);
        match number % 2 {
            0 => random.fill_bytes(piece),
            _ => piece.fill(random.random_range(1..=255)),
        }
        rest = behind;
    }
}

fn timed(work: impl FnOnce() -> Result<()>) -> Result<Duration> {
    let began = Instant::now();
    work()?;
    Ok(began.elapsed())
}

/// The product's way: a store with one machine of one disk.
struct Ours {
    storage: Arc<dyn Storage>,
    machine: StoreMachine,
    generation: Generation,
    last: Sequence,
    builder: FrameBuilder,
    buffers: SealBuffers,
}

impl Ours {
    fn new(root: &Path, disk_bytes: u64) -> Result<Self> {
        let storage: Arc<dyn Storage> = Arc::new(UringStorage::new(root, UringOptions::default())?);
        let store = Store::open(storage.clone(), StoreOptions::default(), WallTime(0))?;
        let machine = store.create_machine(MACHINE, "bench", WallTime(0))?;
        let disk = DiskSpec {
            index: DISK,
            name: "disk".to_owned(),
            size: disk_bytes,
            logical_block_size: 512,
        };
        let admitted = Admitted { incarnation: Incarnation(1), run: [1; 16] };
        let hello = machine.hello(admitted, false, &[disk])?;
        Ok(Self {
            storage,
            machine,
            generation: hello.generation,
            last: hello.resume,
            builder: FrameBuilder::new(FrameLimits::default(), &FramePool::new(4)),
            buffers: SealBuffers::default(),
        })
    }

    /// Journals the writes, durably, up to a marker; returns the bytes of their frames.
    fn deliver(&mut self, writes: &[(u64, usize)], content: &[u8], point: bool) -> Result<u64> {
        let (mut stored, mut rest) = (0, content);
        for (offset, length) in writes {
            let (payload, behind) = rest.split_at(*length);
            rest = behind;
            if self.builder.room() < *length {
                stored += self.append()?;
            }
            let record =
                Record::Write { disk: DISK, offset: *offset, length: u32::try_from(*length)? };
            self.push(record, payload)?;
        }
        stored += self.append()?;
        if point {
            self.push(Record::Consistent { disk: DISK }, &[])?;
        }
        let mut disks = DiskSet::default();
        disks.insert(DISK);
        self.push(
            Record::Marker {
                point: PointId::random(),
                kind: PointKind::CrashConsistent,
                at: WallTime(self.last.0),
                label: String::new(),
                disks,
                proven: true,
            },
            &[],
        )?;
        stored += self.append()?;
        self.machine.commit()?;
        Ok(stored)
    }

    fn push(&mut self, record: Record, payload: &[u8]) -> Result<()> {
        let pushed = self.builder.push(record, &[payload]);
        ensure!(pushed.is_ok(), "a frame does not take its record: {pushed:?}");
        Ok(())
    }

    /// Seals what was gathered and hands it to the journal.
    fn append(&mut self) -> Result<u64> {
        let records = self.builder.records() as u64;
        if records == 0 {
            return Ok(0);
        }
        let meta = FrameMeta {
            machine: MACHINE,
            generation: self.generation,
            incarnation: Incarnation(1),
            role_epoch: RoleEpoch(0),
            first: self.last.next(),
            previous: self.last,
            earliest: WallTime(1),
            latest: WallTime(2),
            ends_at_write_boundary: true,
        };
        let sealed = self.builder.finish(&meta).seal(&FrameKey::new([7; 32]), &mut self.buffers);
        self.last = Sequence(self.last.0 + records);
        let bytes = sealed.bytes();
        let mut entry = AlignedBuffer::zeroed(entry_length(bytes.len()));
        entry[ENTRY_HEADER_SIZE..ENTRY_HEADER_SIZE + bytes.len()].copy_from_slice(bytes);
        match self.machine.append(&mut [&mut entry]).stopped {
            Some(error) => Err(error.into()),
            None => Ok(bytes.len() as u64),
        }
    }

    fn apply(&mut self) -> Result<()> {
        while self.machine.apply_next(WallTime(1))? != ApplyOutcome::Idle {}
        ensure!(self.machine.status().applied == self.last, "not all was applied");
        Ok(())
    }

    fn replica(&self) -> Result<Arc<dyn BlockFile>> {
        let disks = self.machine.status().disks;
        let disk = disks.first().context("the machine has no disk")?;
        Ok(self.storage.open(&disk.replica, Open::ReadOnly)?)
    }
}

/// A plain program: the writes in the order given, as many in flight as the store has, around the
/// page cache; where parts of blocks are written, one by one through it.
struct Peer {
    file: File,
    in_flight: Option<(Ring, BufferPool)>,
}

impl Peer {
    fn new(path: &Path, kind: Kind, bytes: u64) -> Result<Self> {
        File::create_new(path)?.set_len(bytes)?;
        let open = |flags| OpenOptions::new().read(true).write(true).custom_flags(flags).open(path);
        if kind == Kind::Parts {
            return Ok(Self { file: open(0)?, in_flight: None });
        }
        // A file system in memory has no way around the cache.
        let file = open(libc::O_DIRECT).or_else(|_| open(0))?;
        let depth = UringOptions::default().depth;
        let (mut ring, pool) = (Ring::new(depth)?, BufferPool::new(depth, LONG_BYTES));
        ring.register_files(&[file.try_clone()?])?;
        ring.register_buffers(&pool)?;
        Ok(Self { file, in_flight: Some((ring, pool)) })
    }

    fn write(&mut self, writes: &[(u64, usize)], content: &[u8]) -> Result<()> {
        let mut rest = content;
        for (offset, length) in writes {
            let (data, behind) = rest.split_at(*length);
            rest = behind;
            match &mut self.in_flight {
                None => self.file.write_all_at(data, *offset)?,
                Some((ring, pool)) => submit(ring, pool, *offset, data)?,
            }
        }
        if let Some((ring, _)) = &mut self.in_flight {
            reap(ring, usize::MAX)?;
        }
        Ok(self.file.sync_data()?)
    }
}

fn submit(ring: &mut Ring, pool: &BufferPool, offset: u64, data: &[u8]) -> Result<()> {
    let mut taken = pool.take();
    while taken.is_none() {
        reap(ring, 1)?;
        taken = pool.take();
    }
    let mut buffer = taken.context("a buffer is free")?;
    buffer[..data.len()].copy_from_slice(data);
    let (file, length, direction) = (FileSlot(0), data.len(), Direction::Write);
    let priority = Priority::Normal;
    let operation = Operation { token: 0, file, offset, length, direction, priority, buffer };
    ring.submit(operation).map_err(|(_, error)| error)?;
    Ok(())
}

fn reap(ring: &mut Ring, wait: usize) -> Result<()> {
    let mut ended = Vec::new();
    ring.reap(wait, &mut ended)?;
    ended.into_iter().try_for_each(|completion| completion.result.map(drop))?;
    Ok(())
}

/// Refuses to state a speed at which something else was written.
fn same(ours: &dyn BlockFile, peer: &File) -> Result<()> {
    ensure!(ours.size() == peer.metadata()?.len(), "the files have different sizes");
    let mut windows =
        [AlignedBuffer::zeroed(COMPARED_BYTES), AlignedBuffer::zeroed(COMPARED_BYTES)];
    let mut at = 0;
    while at < ours.size() {
        let length = usize::try_from(ours.size() - at)
            .map_or(COMPARED_BYTES, |left| left.min(COMPARED_BYTES));
        ours.read(&mut [ReadRequest { offset: at, buffer: &mut windows[0][..length] }])?;
        peer.read_exact_at(&mut windows[1][..length], at)?;
        ensure!(windows[0][..length] == windows[1][..length], "the replica differs near {at}");
        at += length as u64;
    }
    Ok(())
}

#[test]
fn each_kind_is_applied_as_it_was_written() {
    let temporary = tempfile::tempdir().unwrap();
    let bench = ApplyBench { mebibytes: 2, rounds: 2, seed: 3 };
    let question = bench.run(temporary.path()).unwrap();
    assert_eq!(question.headlines.len(), 4, "a ratio for each kind");
}
