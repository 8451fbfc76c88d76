//! A directory tree whose batches run through io_uring, around the page cache where they may. Must
//! never let a batch call end while the kernel still holds a slice of its caller.
//!
//! A file is read and written either wholly around the page cache or wholly through it, decided
//! when it is opened, so that no byte has two truths: around it where `direct` was asked for, the
//! file system agrees and the size is whole blocks (a last part of a block cannot be written
//! directly). Around the cache, requests at whole blocks from aligned memory go to the disk as they
//! are; others are carried over aligned memory, joined with their neighbours (`carry`). Blocks of
//! which a batch writes only parts are read, all at once, changed and written, all at once, alone
//! on that file handle. Two handles of one file must not write into the same block at once.
//!
//! Rings: each call takes an idle one, or builds one, and gives it back, so that threads neither
//! wait for each other nor own rings: as many exist as calls have ever run at once.

use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use nix::fcntl::{FcntlArg, OFlag, fcntl};

use crate::buffer::{AlignedBuffer, BLOCK_BYTES};
use crate::carry::{CARRY_BYTES, Copied, Extent, Group, PIECE_BYTES, Plan, Run};
use crate::directory::{DirectoryFile, DirectoryStorage};
use crate::ring::{EngineError, Piece, Queue};
use crate::storage::{BlockFile, Open, ReadRequest, Result, Storage, WriteRequest};

const BLOCK: u64 = BLOCK_BYTES as u64;

/// Idle rings kept for the next calls: more than the threads that a role runs I/O on.
const IDLE_LANES_MAX: usize = 16;

/// Idle rings that keep the memory over which requests are carried: the paths that matter bring
/// aligned memory, so few calls need it at once.
const IDLE_BOUNCES_MAX: usize = 2;

/// How batches are run.
#[derive(Clone, Copy, Debug)]
pub struct UringOptions {
    /// Around the page cache, where a file allows it.
    pub direct: bool,
    /// Submissions in flight per batch call.
    pub depth: usize,
}

impl Default for UringOptions {
    /// Direct, with as many submissions as keep a fast disk busy.
    fn default() -> Self {
        UringOptions { direct: true, depth: 64 }
    }
}

/// A directory tree on a mounted file system, through io_uring.
#[derive(Clone)]
pub struct UringStorage {
    plain: DirectoryStorage,
    direct: bool,
    lanes: Arc<Lanes>,
}

impl UringStorage {
    /// The tree below `root`. Fails where the kernel permits no ring.
    pub fn new(
        root: impl Into<PathBuf>,
        options: UringOptions,
    ) -> std::result::Result<Self, EngineError> {
        let lanes = Lanes { depth: options.depth, idle: Mutex::new(Vec::new()) };
        let first = lanes.build()?;
        lanes.idle().push(first);
        let plain = DirectoryStorage::new(root);
        Ok(UringStorage { plain, direct: options.direct, lanes: Arc::new(lanes) })
    }
}

/// The tree below `root` through io_uring, or by blocking calls where it is not permitted.
pub fn open_directory(root: &Path, options: UringOptions) -> Arc<dyn Storage> {
    match UringStorage::new(root, options) {
        Ok(storage) => Arc::new(storage),
        Err(error) => {
            tracing::warn!(root = %root.display(), %error, "blocking I/O instead of io_uring");
            Arc::new(DirectoryStorage::new(root))
        }
    }
}

impl Storage for UringStorage {
    fn open(&self, path: &Path, how: Open) -> Result<Arc<dyn BlockFile>> {
        let plain = self.plain.open_file(path, how)?;
        let direct = self.direct && plain.size().is_multiple_of(BLOCK) && set_direct(&plain)?;
        let lanes = self.lanes.clone();
        Ok(Arc::new(UringFile { plain, direct, lanes, parts: RwLock::new(()) }))
    }

    fn create_directory(&self, path: &Path) -> Result<()> {
        self.plain.create_directory(path)
    }

    fn list(&self, path: &Path) -> Result<Vec<String>> {
        self.plain.list(path)
    }

    fn remove(&self, path: &Path) -> Result<()> {
        self.plain.remove(path)
    }

    fn remove_tree(&self, path: &Path) -> Result<()> {
        self.plain.remove_tree(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> Result<()> {
        self.plain.rename(from, to)
    }

    fn sync_directory(&self, path: &Path) -> Result<()> {
        self.plain.sync_directory(path)
    }

    fn load(&self, path: &Path) -> Result<Option<Vec<u8>>> {
        self.plain.load(path)
    }

    fn replace(&self, path: &Path, bytes: &[u8]) -> Result<()> {
        self.plain.replace(path, bytes)
    }

    fn free_space(&self) -> Result<u64> {
        self.plain.free_space()
    }
}

/// Switches the descriptor over; `false` where its file system cannot.
fn set_direct(plain: &DirectoryFile) -> Result<bool> {
    let flags = fcntl(plain.file(), FcntlArg::F_GETFL)
        .map(|bits| OFlag::from_bits_truncate(bits) | OFlag::O_DIRECT);
    match flags.and_then(|flags| fcntl(plain.file(), FcntlArg::F_SETFL(flags))) {
        Ok(_) => Ok(true),
        Err(nix::errno::Errno::EINVAL) => Ok(false),
        Err(error) => Err(plain.error("switch to direct I/O".into(), error.into())),
    }
}

/// The rings of one storage.
struct Lanes {
    depth: usize,
    idle: Mutex<Vec<Lane>>,
}

/// A ring, and memory to carry unaligned requests over.
struct Lane {
    queue: Queue,
    bounce: Option<AlignedBuffer>,
}

impl Lanes {
    fn build(&self) -> std::result::Result<Lane, EngineError> {
        let queue = Queue::new(self.depth)
            .map_err(|source| EngineError::Setup { depth: self.depth, source })?;
        Ok(Lane { queue, bounce: None })
    }

    fn idle(&self) -> std::sync::MutexGuard<'_, Vec<Lane>> {
        // Pushing and popping leave no half-made state behind.
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self) -> io::Result<Lane> {
        let idle = self.idle().pop();
        idle.map_or_else(|| self.build().map_err(io::Error::other), Ok)
    }

    fn give_back(&self, mut lane: Lane) {
        let mut idle = self.idle();
        if idle.iter().filter(|lane| lane.bounce.is_some()).count() >= IDLE_BOUNCES_MAX {
            lane.bounce = None;
        }
        if !lane.queue.is_broken() && idle.len() < IDLE_LANES_MAX {
            idle.push(lane);
        }
    }
}

struct UringFile {
    plain: DirectoryFile,
    direct: bool,
    lanes: Arc<Lanes>,
    /// Held alone while parts of blocks are written back, and together by all other writes.
    parts: RwLock<()>,
}

/// Held while a batch is written: with others, or alone.
type Turn<'a> = (Option<RwLockReadGuard<'a, ()>>, Option<RwLockWriteGuard<'a, ()>>);

impl UringFile {
    fn run(&self, verb: &str, lane: &mut Lane, pieces: Vec<Piece<'_>>) -> Result<()> {
        if pieces.is_empty() {
            return Ok(());
        }
        lane.queue.run(self.plain.file().as_fd(), pieces).map_err(|(offset, length, source)| {
            self.plain.error(format!("{verb} {length} bytes at {offset}"), source)
        })
    }

    fn with_lane<T>(&self, call: impl FnOnce(&mut Lane) -> Result<T>) -> Result<T> {
        let taken = self.lanes.take();
        let mut lane = taken.map_err(|source| self.plain.error("take a ring".into(), source))?;
        let result = call(&mut lane);
        self.lanes.give_back(lane);
        result
    }

    /// Lets a batch of writes begin: with parts of blocks alone, else beside others.
    fn turn(&self, has_parts: bool) -> Turn<'_> {
        if has_parts {
            return (None, Some(self.parts.write().unwrap_or_else(PoisonError::into_inner)));
        }
        (Some(self.parts.read().unwrap_or_else(PoisonError::into_inner)), None)
    }

    /// How a batch goes to the disk; around the page cache by whole blocks only.
    fn plan(&self, extents: impl Iterator<Item = (u64, *const u8, usize)>) -> Plan {
        let extents: Vec<Extent> = extents
            .map(|(offset, start, length)| {
                let aligned = start.addr().is_multiple_of(BLOCK_BYTES);
                Extent { offset, length, aligned }
            })
            .collect();
        if self.direct {
            return Plan::new(&extents);
        }
        Plan { plain: (0..extents.len()).collect(), groups: Vec::new() }
    }

    /// Writes the runs of a group: what they fill only in part is read first, all in one go.
    fn write_group(
        &self,
        lane: &mut Lane,
        group: &Group,
        batch: &[WriteRequest<'_>],
    ) -> Result<()> {
        let mut bounce = lane.bounce.take().unwrap_or_else(new_bounce);
        let mut result = self.run("read", lane, split(&mut bounce, &group.partial));
        if result.is_ok() {
            for Copied { request, from, place } in &group.copies {
                bounce[place.clone()].copy_from_slice(&batch[*request].data[from.clone()]);
            }
            let write = |run: &Run| Piece::write(run.offset, &bounce[run.place..][..run.length]);
            result = self.run("write", lane, group.runs.iter().map(write).collect());
        }
        lane.bounce = Some(bounce);
        result
    }

    fn read_group(
        &self,
        lane: &mut Lane,
        group: &Group,
        batch: &mut [ReadRequest<'_>],
    ) -> Result<()> {
        let mut bounce = lane.bounce.take().unwrap_or_else(new_bounce);
        let result = self.run("read", lane, split(&mut bounce, &group.runs));
        if result.is_ok() {
            for Copied { request, from, place } in &group.copies {
                batch[*request].buffer[from.clone()].copy_from_slice(&bounce[place.clone()]);
            }
        }
        lane.bounce = Some(bounce);
        result
    }
}

impl BlockFile for UringFile {
    fn size(&self) -> u64 {
        self.plain.size()
    }

    fn read(&self, batch: &mut [ReadRequest<'_>]) -> Result<()> {
        for request in batch.iter() {
            self.plain.check("read", request.offset, request.buffer.len())?;
        }
        let plan = self.plan(
            batch
                .iter()
                .map(|ReadRequest { offset, buffer }| (*offset, buffer.as_ptr(), buffer.len())),
        );
        let mut plain = vec![false; batch.len()];
        plan.plain.iter().for_each(|request| plain[*request] = true);
        self.with_lane(|lane| {
            let mut pieces = Vec::with_capacity(plan.plain.len());
            let requests = batch.iter_mut().zip(&plain).filter(|(_, plain)| **plain);
            for (ReadRequest { offset, buffer }, _) in requests {
                let parts = (*offset..).step_by(PIECE_BYTES).zip(buffer.chunks_mut(PIECE_BYTES));
                pieces.extend(parts.map(|(offset, part)| Piece::read(offset, part)));
            }
            self.run("read", lane, pieces)?;
            plan.groups.iter().try_for_each(|group| self.read_group(lane, group, batch))
        })
    }

    fn write(&self, batch: &[WriteRequest<'_>]) -> Result<()> {
        for request in batch {
            self.plain.check("write", request.offset, request.data.len())?;
        }
        let plan = self.plan(
            batch.iter().map(|WriteRequest { offset, data }| (*offset, data.as_ptr(), data.len())),
        );
        let _turn = self.turn(plan.has_parts());
        self.with_lane(|lane| {
            let mut pieces = Vec::with_capacity(plan.plain.len());
            for WriteRequest { offset, data } in plan.plain.iter().map(|index| &batch[*index]) {
                let parts = (*offset..).step_by(PIECE_BYTES).zip(data.chunks(PIECE_BYTES));
                pieces.extend(parts.map(|(offset, part)| Piece::write(offset, part)));
            }
            self.run("write", lane, pieces)?;
            plan.groups.iter().try_for_each(|group| self.write_group(lane, group, batch))
        })
    }

    fn zero(&self, offset: u64, length: u64) -> Result<()> {
        let punch = |offset, length| {
            let _turn = self.turn(false);
            self.plain.punch(offset, length)
        };
        self.plain.zero_by(offset, length, punch, |batch| self.write(batch))
    }

    fn next_data(&self, offset: u64) -> Result<Option<(u64, u64)>> {
        self.plain.next_data(offset)
    }

    fn sync(&self) -> Result<()> {
        self.plain.sync()
    }

    fn identity(&self) -> Result<Option<String>> {
        self.plain.identity()
    }
}

fn new_bounce() -> AlignedBuffer {
    AlignedBuffer::zeroed(CARRY_BYTES)
}

/// The places of runs in the aligned memory, to be read into.
fn split<'a>(mut bounce: &'a mut [u8], runs: &[Run]) -> Vec<Piece<'a>> {
    let mut pieces = Vec::with_capacity(runs.len());
    let mut at = 0;
    for run in runs {
        let (blocks, rest) = bounce.split_at_mut(run.place - at).1.split_at_mut(run.length);
        pieces.push(Piece::read(run.offset, blocks));
        (bounce, at) = (rest, run.place + run.length);
    }
    pieces
}
