//! The same random operations on every storage: io_uring, blocking and lying must agree on every
//! byte, name and refusal. Prints the seed of a failing run.

#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "the helpers of a test may panic as the test itself may"
)]

use std::path::Path;
use std::sync::Arc;

use rand::rngs::StdRng;
use rand::seq::{IndexedRandom, SliceRandom};
use rand::{Rng, SeedableRng};
use redoubt_engine::buffer::AlignedBuffer;
use redoubt_engine::directory::DirectoryStorage;
use redoubt_engine::lying::LyingStorage;
use redoubt_engine::storage::{BlockFile, Open, ReadRequest, Storage, WriteRequest};
use redoubt_engine::uring_directory::{UringOptions, UringStorage};

const RUNS: u64 = 20;
const STEPS: usize = 60;
const NAMES: [&str; 4] = ["a", "b", "d/a", "d/b"];
const SIZES: [u64; 4] = [0, 8192 * 40, 100_000, 3 << 20];

struct Twins {
    storages: Vec<(&'static str, Box<dyn Storage>)>,
    _directories: Vec<tempfile::TempDir>,
}

impl Twins {
    fn new(seed: u64) -> Self {
        // Not the system's temporary directory: that may be in memory and refuse direct I/O.
        let directory = || tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let directories: Vec<_> = (0..3).map(|_| directory()).collect();
        let ring = |index: usize, direct, depth| {
            let root: &Path = directories[index].path();
            UringStorage::new(root, UringOptions { direct, depth }).unwrap()
        };
        let storages: Vec<(&str, Box<dyn Storage>)> = vec![
            ("blocking", Box::new(DirectoryStorage::new(directories[0].path()))),
            ("direct", Box::new(ring(1, true, 4))),
            ("buffered", Box::new(ring(2, false, 32))),
            ("lying", Box::new(LyingStorage::new(seed))),
        ];
        for (_, storage) in &storages {
            storage.create_directory(Path::new("d")).unwrap();
        }
        Twins { storages, _directories: directories }
    }

    /// Runs an operation on all and compares what they say; errors compare by kind.
    fn agree<T: PartialEq + std::fmt::Debug>(
        &self,
        what: &str,
        run: impl Fn(&dyn Storage) -> redoubt_engine::storage::Result<T>,
    ) {
        let outcomes: Vec<_> = self
            .storages
            .iter()
            .map(|(name, storage)| {
                (*name, run(storage.as_ref()).map_err(|error| error.source.kind()))
            })
            .collect();
        for (name, outcome) in &outcomes[1..] {
            assert!(outcome == &outcomes[0].1, "{what}: {name} differs from {}", outcomes[0].0);
        }
    }
}

#[test]
fn storages_agree() {
    for seed in 0..RUNS {
        println!("seed {seed}");
        let mut rng = StdRng::seed_from_u64(seed);
        let twins = Twins::new(seed);
        for step in 0..STEPS {
            let name = *NAMES.choose(&mut rng).unwrap();
            one_step(&twins, &mut rng, Path::new(name), &format!("seed {seed} step {step} {name}"));
        }
    }
}

fn one_step(twins: &Twins, rng: &mut StdRng, path: &Path, what: &str) {
    let size = *SIZES.choose(rng).unwrap();
    let other = Path::new(*NAMES.choose(rng).unwrap());
    let bytes: Vec<u8> = (0..rng.random_range(0..9000)).map(|_| rng.random()).collect();
    match rng.random_range(0..15) {
        0 => twins.agree(what, |s| s.open(path, Open::CreateSparse(size)).map(|f| f.size())),
        1 => twins.agree(what, |s| s.open(path, Open::CreateAllocated(size)).map(|f| f.size())),
        2 => twins.agree(what, |s| s.remove(path)),
        3 => twins.agree(what, |s| s.rename(path, other)),
        4 => twins.agree(what, |s| s.replace(path, &bytes)),
        5 => twins.agree(what, |s| s.load(path)),
        6 => twins.agree(what, |s| Ok((s.list(Path::new(""))?, s.list(Path::new("d"))?))),
        7 => twins.agree(what, |s| s.sync_directory(Path::new("d"))),
        8 => {
            twins.agree(what, |s| {
                s.create_directory(Path::new("e/f"))?;
                s.replace(Path::new("e/f/a"), &bytes)?;
                s.remove_tree(Path::new("e"))?;
                s.sync_directory(Path::new(""))?;
                Ok((s.list(Path::new(""))?, s.load(Path::new("e/f/a"))?))
            });
            twins.agree(what, |s| s.remove_tree(Path::new("e")));
        }
        _ => {
            let plan = Plan::random(rng);
            twins.agree(what, |s| plan.run(s, path));
        }
    }
}

/// Batches on one open file, drawn once and run on each storage.
struct Plan {
    /// Requests that do not overlap: where they begin as a share of the file, and their lengths.
    writes: Vec<(u64, Vec<u8>)>,
    zero: (u64, u64),
    reads: Vec<(u64, usize)>,
    aligned_memory: bool,
    read_only: bool,
}

impl Plan {
    fn random(rng: &mut StdRng) -> Self {
        let unit = *[1, 512, 4096].choose(rng).unwrap();
        let count: u64 = rng.random_range(0..20);
        let mut offset = rng.random_range(0..20) * unit;
        let mut writes = Vec::new();
        for _ in 0..count {
            let length = rng.random_range(0..9) * unit.max(300);
            let fill: u8 = rng.random();
            writes.push((offset, (0..length).map(|at| fill ^ (at % 251) as u8).collect()));
            offset += length + rng.random_range(0..3) * unit;
        }
        if rng.random_bool(0.2) {
            // Longer than a piece, and than the memory that unaligned requests are carried over.
            let length = rng.random_range(1..5 << 20);
            writes = vec![(rng.random_range(0..10_000), vec![rng.random(); length])];
        }
        let mut range = || (rng.random_range(0..400_000), rng.random_range(0..50_000));
        let zero = range();
        let reads = (0..5).map(|_| range()).map(|(offset, length)| (offset, length as usize));
        Plan {
            writes,
            zero,
            reads: reads.collect(),
            aligned_memory: rng.random(),
            read_only: rng.random_bool(0.1),
        }
    }

    fn run(
        &self,
        storage: &dyn Storage,
        path: &Path,
    ) -> redoubt_engine::storage::Result<Vec<Option<Vec<u8>>>> {
        let how = if self.read_only { Open::ReadOnly } else { Open::ReadWrite };
        let file = storage.open(path, how)?;
        let mut seen = Vec::new();
        if !self.read_only {
            // A refused batch may have happened in part, differently on each storage: only whole
            // ones are run, and the refusal is asked for alone.
            let ends = self.writes.iter().map(|(offset, data)| offset + data.len() as u64);
            let end = ends.max().unwrap_or(0);
            if end <= file.size() {
                self.write(file.as_ref())?;
            } else {
                let (offset, data) = self.writes.last().unwrap();
                let refused = file.write(&[WriteRequest { offset: *offset, data }]);
                assert!(refused.is_err(), "written past the end");
            }
            seen.push(file.zero(self.zero.0, self.zero.1).ok().map(|()| Vec::new()));
            file.sync()?;
        }
        for (offset, length) in &self.reads {
            seen.push(read(&file, *offset, *length, self.aligned_memory).ok());
        }
        let size = usize::try_from(file.size()).unwrap();
        let whole = read(&file, 0, size, self.aligned_memory)?;
        check_data_ranges(file.as_ref(), &whole)?;
        seen.push(Some(whole));
        Ok(seen)
    }

    fn write(&self, file: &dyn BlockFile) -> redoubt_engine::storage::Result<()> {
        let aligned: Vec<AlignedBuffer> = self
            .writes
            .iter()
            .map(|(_, data)| {
                let mut buffer = AlignedBuffer::zeroed(data.len());
                buffer.copy_from_slice(data);
                buffer
            })
            .collect();
        let batch: Vec<WriteRequest<'_>> = self
            .writes
            .iter()
            .zip(&aligned)
            .map(|((offset, data), aligned)| WriteRequest {
                offset: *offset,
                data: if self.aligned_memory { aligned } else { data },
            })
            .collect();
        file.write(&batch)
    }
}

fn read(
    file: &Arc<dyn BlockFile>,
    offset: u64,
    length: usize,
    aligned: bool,
) -> redoubt_engine::storage::Result<Vec<u8>> {
    let mut memory = AlignedBuffer::zeroed(length + 1);
    let from = usize::from(!aligned);
    let (first, second) = memory[from..from + length].split_at_mut(length / 8192 * 4096);
    let middle = offset + first.len() as u64;
    file.read(&mut [
        ReadRequest { offset: middle, buffer: second },
        ReadRequest { offset, buffer: first },
    ])?;
    Ok(memory[from..from + length].to_vec())
}

/// Granularities differ, so the ranges are not compared: but they must cover every byte not zero.
fn check_data_ranges(file: &dyn BlockFile, whole: &[u8]) -> redoubt_engine::storage::Result<()> {
    let mut position = 0;
    while let Some((offset, length)) = file.next_data(position)? {
        assert!(offset >= position && length > 0 && offset + length <= file.size());
        let skipped = &whole[position as usize..offset as usize];
        assert!(skipped.iter().all(|byte| *byte == 0), "data in a hole");
        position = offset + length;
    }
    assert!(whole[position as usize..].iter().all(|byte| *byte == 0), "data in the last hole");
    Ok(())
}

/// More parts of blocks than are carried at once, several in one block, in any order.
#[test]
fn storages_agree_on_a_batch_of_thousands_of_parts() {
    for seed in 0..3 {
        println!("seed {seed}");
        let mut rng = StdRng::seed_from_u64(seed);
        let twins = Twins::new(seed);
        let path = Path::new("parts");
        let size = 12 << 20;
        twins.agree("create", |s| s.open(path, Open::CreateSparse(size)).map(|f| f.size()));
        for _ in 0..2 {
            let mut plan = Plan::random(&mut rng);
            plan.read_only = false;
            plan.writes.clear();
            let mut offset = rng.random_range(0..16) * 512;
            while plan.writes.len() < 4000 {
                let data = vec![rng.random(); rng.random_range(1..12) * 512];
                let end = offset + data.len() as u64;
                if end > size {
                    break;
                }
                plan.writes.push((offset, data));
                offset = end + rng.random_range(0..4) * 512;
            }
            plan.writes.shuffle(&mut rng);
            twins.agree("parts", |s| plan.run(s, path));
        }
    }
}

#[test]
fn reading_and_writing_past_the_end_is_an_error_that_names_the_file() {
    let twins = Twins::new(1);
    for (name, storage) in &twins.storages {
        let file = storage.open(Path::new("d/short"), Open::CreateSparse(8192)).unwrap();
        let mut memory = AlignedBuffer::zeroed(8192);
        for offset in [4096, 8192, u64::MAX - 100] {
            let read = file.read(&mut [ReadRequest { offset, buffer: &mut memory }]);
            let error = read.expect_err(name).to_string();
            assert!(error.contains("short") && error.contains("8192 bytes"), "{name}: {error}");
            file.write(&[WriteRequest { offset, data: &memory }]).expect_err(name);
            file.zero(offset, 8192).expect_err(name);
        }
    }
}

#[test]
fn threads_share_a_file_without_losing_parts_of_blocks() {
    let twins = Twins::new(1);
    for (name, storage) in &twins.storages {
        let file = storage.open(Path::new("shared"), Open::CreateSparse(64 * 1024)).unwrap();
        std::thread::scope(|scope| {
            for thread in 0..4u8 {
                let file = file.clone();
                scope.spawn(move || {
                    for at in 0..256 {
                        let data = [thread + 1; 50];
                        let offset = at * 200 + u64::from(thread) * 50;
                        file.write(&[WriteRequest { offset, data: &data }]).unwrap();
                    }
                });
            }
        });
        let whole = read(&file, 0, 256 * 200, true).unwrap();
        for (at, byte) in whole.iter().enumerate() {
            assert_eq!(usize::from(*byte), at / 50 % 4 + 1, "{name} at {at}");
        }
    }
}

#[test]
fn a_climbing_path_is_refused() {
    for (name, storage) in &Twins::new(1).storages {
        storage.load(Path::new("d/../../secret")).expect_err(name);
        storage.replace(Path::new("../secret"), b"x").expect_err(name);
    }
}

#[test]
fn what_a_cut_replacement_left_is_not_listed_and_goes_with_the_next() {
    for (name, storage) in &Twins::new(1).storages {
        storage.open(Path::new("d/manifest.replacing"), Open::CreateSparse(5)).unwrap();
        assert!(storage.list(Path::new("d")).unwrap().is_empty(), "{name}");
        storage.replace(Path::new("d/manifest"), b"new").unwrap();
        assert_eq!(storage.load(Path::new("d/manifest")).unwrap().unwrap(), b"new");
        assert!(storage.open(Path::new("d/manifest.replacing"), Open::ReadOnly).is_err());
    }
}
