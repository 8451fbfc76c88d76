//! A directory tree whose batches run through io_uring, around the page cache where they may. Must
//! never let a batch call end while the kernel still holds a slice of its caller.
//!
//! A file is read and written either wholly around the page cache or wholly through it, decided
//! when it is opened, so that no byte has two truths: around it where `direct` was asked for, the
//! file system agrees and the size is whole blocks (a last part of a block cannot be written
//! directly). Around the cache, requests at whole blocks from aligned memory go to the disk as they
//! are; others are carried over aligned memory, and parts of blocks are written by reading the
//! block and writing it back, alone on that file handle. Two handles of one file must not write
//! into the same block at once.
//!
//! Rings: each call takes an idle one, or builds one, and gives it back, so that threads neither
//! wait for each other nor own rings: as many exist as calls have ever run at once.

use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use nix::fcntl::{FcntlArg, OFlag, fcntl};

use crate::buffer::{AlignedBuffer, BLOCK_BYTES};
use crate::directory::{DirectoryFile, DirectoryStorage};
use crate::ring::{EngineError, Piece, Queue};
use crate::storage::{BlockFile, Open, ReadRequest, Result, Storage, WriteRequest};

const BLOCK: u64 = BLOCK_BYTES as u64;

/// Longest single submission: long ones are cut so that one request also keeps a disk's queue busy.
const PIECE_BYTES: usize = 1 << 20;

/// Memory per ring over which unaligned requests are carried, built when first needed.
const BOUNCE_BYTES: usize = 4 << 20;

/// Idle rings kept for the next calls: more than the threads that a role runs I/O on.
const IDLE_LANES_MAX: usize = 16;

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

    fn give_back(&self, lane: Lane) {
        let mut idle = self.idle();
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

/// A range of a request that is carried over aligned memory.
#[derive(Clone, Copy)]
struct Carried {
    request: usize,
    /// First byte in the request, and bytes.
    from: usize,
    length: usize,
    /// First byte in the file of the whole blocks around it, their bytes, and where they begin in
    /// the aligned memory.
    block_offset: u64,
    block_bytes: usize,
    place: usize,
}

impl Carried {
    /// Where the request's own bytes lie in the aligned memory.
    fn range(&self, request_offset: u64) -> std::ops::Range<usize> {
        let skip = length(request_offset + self.from as u64 - self.block_offset);
        self.place + skip..self.place + skip + self.length
    }
}

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

    /// Whether the disk takes the request as it is.
    fn is_plain(&self, offset: u64, memory: &[u8]) -> bool {
        let aligned = offset.is_multiple_of(BLOCK)
            && memory.len().is_multiple_of(BLOCK_BYTES)
            && memory.as_ptr().addr().is_multiple_of(BLOCK_BYTES);
        !self.direct || aligned
    }

    /// Reads what is not aligned over aligned memory, as much at a time as fits.
    fn read_carried(&self, lane: &mut Lane, batch: &mut [ReadRequest<'_>]) -> Result<()> {
        let mut carried = Vec::new();
        for (request, ReadRequest { offset, buffer }) in batch.iter().enumerate() {
            if !self.is_plain(*offset, buffer) {
                carry(&mut carried, request, *offset, 0, buffer.len());
            }
        }
        for group in groups(&mut carried) {
            let mut bounce = lane.bounce.take().unwrap_or_else(new_bounce);
            let result = self.run("read", lane, split(&mut bounce, group));
            if result.is_ok() {
                for part in group.iter() {
                    let ReadRequest { offset, buffer } = &mut batch[part.request];
                    buffer[part.from..part.from + part.length]
                        .copy_from_slice(&bounce[part.range(*offset)]);
                }
            }
            lane.bounce = Some(bounce);
            result?;
        }
        Ok(())
    }

    /// Writes the whole blocks of requests in unaligned memory or at unaligned offsets.
    fn write_carried(&self, lane: &mut Lane, batch: &[WriteRequest<'_>]) -> Result<()> {
        let mut carried = Vec::new();
        for (request, WriteRequest { offset, data }) in batch.iter().enumerate() {
            if !self.is_plain(*offset, data) {
                let (head, middle) = head_and_middle(*offset, data.len());
                carry(&mut carried, request, *offset, head, middle);
            }
        }
        for group in groups(&mut carried) {
            let mut bounce = lane.bounce.take().unwrap_or_else(new_bounce);
            for part in group.iter() {
                let WriteRequest { offset, data } = batch[part.request];
                bounce[part.range(offset)]
                    .copy_from_slice(&data[part.from..part.from + part.length]);
            }
            let pieces = group
                .iter()
                .map(|part| {
                    let blocks = &bounce[part.place..part.place + part.block_bytes];
                    Piece::write(part.block_offset, blocks)
                })
                .collect();
            let result = self.run("write", lane, pieces);
            lane.bounce = Some(bounce);
            result?;
        }
        Ok(())
    }

    /// Writes parts of blocks, one after the other: two of a batch may lie in the same block.
    fn write_parts(&self, lane: &mut Lane, batch: &[WriteRequest<'_>]) -> Result<()> {
        for WriteRequest { offset, data } in batch {
            if self.is_plain(*offset, data) {
                continue;
            }
            let (head, middle) = head_and_middle(*offset, data.len());
            self.write_part(lane, *offset, &data[..head])?;
            let tail = head + middle;
            self.write_part(lane, *offset + tail as u64, &data[tail..])?;
        }
        Ok(())
    }

    fn write_part(&self, lane: &mut Lane, offset: u64, data: &[u8]) -> Result<()> {
        if data.is_empty() {
            return Ok(());
        }
        let mut bounce = lane.bounce.take().unwrap_or_else(new_bounce);
        let block = &mut bounce[..BLOCK_BYTES];
        let block_offset = offset - offset % BLOCK;
        let from = length(offset % BLOCK);
        let mut result = self.run("read", lane, vec![Piece::read(block_offset, block)]);
        if result.is_ok() {
            block[from..from + data.len()].copy_from_slice(data);
            result = self.run("write", lane, vec![Piece::write(block_offset, block)]);
        }
        lane.bounce = Some(bounce);
        result
    }

    fn has_parts(&self, batch: &[WriteRequest<'_>]) -> bool {
        self.direct
            && batch.iter().any(|request| {
                !request.offset.is_multiple_of(BLOCK)
                    || !request.data.len().is_multiple_of(BLOCK_BYTES)
            })
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
        self.with_lane(|lane| {
            let mut pieces = Vec::with_capacity(batch.len());
            for ReadRequest { offset, buffer } in batch.iter_mut() {
                if self.is_plain(*offset, buffer) {
                    let offsets = (*offset..).step_by(PIECE_BYTES);
                    let parts = offsets.zip(buffer.chunks_mut(PIECE_BYTES));
                    pieces.extend(parts.map(|(offset, part)| Piece::read(offset, part)));
                }
            }
            self.run("read", lane, pieces)?;
            self.read_carried(lane, batch)
        })
    }

    fn write(&self, batch: &[WriteRequest<'_>]) -> Result<()> {
        for request in batch {
            self.plain.check("write", request.offset, request.data.len())?;
        }
        self.with_lane(|lane| {
            {
                let _shared = self.parts.read().unwrap_or_else(PoisonError::into_inner);
                let mut pieces = Vec::with_capacity(batch.len());
                for WriteRequest { offset, data } in batch {
                    if self.is_plain(*offset, data) {
                        let offsets = (*offset..).step_by(PIECE_BYTES);
                        let parts = offsets.zip(data.chunks(PIECE_BYTES));
                        pieces.extend(parts.map(|(offset, part)| Piece::write(offset, part)));
                    }
                }
                self.run("write", lane, pieces)?;
                self.write_carried(lane, batch)?;
            }
            if self.has_parts(batch) {
                let _alone = self.parts.write().unwrap_or_else(PoisonError::into_inner);
                self.write_parts(lane, batch)?;
            }
            Ok(())
        })
    }

    fn zero(&self, offset: u64, length: u64) -> Result<()> {
        let punch = |offset, length| {
            let _shared = self.parts.read().unwrap_or_else(PoisonError::into_inner);
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
}

fn new_bounce() -> AlignedBuffer {
    AlignedBuffer::zeroed(BOUNCE_BYTES)
}

/// Bytes before the first whole block of a range, and bytes of its whole blocks.
fn head_and_middle(offset: u64, bytes: usize) -> (usize, usize) {
    let head = length(offset.next_multiple_of(BLOCK) - offset).min(bytes);
    (head, (bytes - head) / BLOCK_BYTES * BLOCK_BYTES)
}

/// Cuts `bytes` of a request from `from` into parts of at most `PIECE_BYTES` of whole blocks.
fn carry(carried: &mut Vec<Carried>, request: usize, offset: u64, from: usize, bytes: usize) {
    let mut done = 0;
    while done < bytes {
        let start = offset + (from + done) as u64;
        let block_offset = start - start % BLOCK;
        let skip = length(start % BLOCK);
        let part = (PIECE_BYTES - skip).min(bytes - done);
        carried.push(Carried {
            request,
            from: from + done,
            length: part,
            block_offset,
            block_bytes: (skip + part).next_multiple_of(BLOCK_BYTES),
            place: 0,
        });
        done += part;
    }
}

/// Gives the parts places in the aligned memory, and groups them by what fits at once.
fn groups(carried: &mut [Carried]) -> impl Iterator<Item = &[Carried]> {
    let mut end = 0;
    for part in carried.iter_mut() {
        if end + part.block_bytes > BOUNCE_BYTES {
            end = 0;
        }
        part.place = end;
        end += part.block_bytes;
    }
    // Places grow within a group and begin again with the next.
    carried.chunk_by(|earlier, later| earlier.place < later.place)
}

/// The parts' shares of the aligned memory, to be read into.
fn split<'a>(mut bounce: &'a mut [u8], group: &[Carried]) -> Vec<Piece<'a>> {
    let mut pieces = Vec::with_capacity(group.len());
    for part in group {
        let (blocks, rest) = bounce.split_at_mut(part.block_bytes);
        pieces.push(Piece::read(part.block_offset, blocks));
        bounce = rest;
    }
    pieces
}

/// A length that a slice has bounded.
fn length(bytes: u64) -> usize {
    usize::try_from(bytes).expect("bounded by a slice's length")
}
