//! The two ways in which an apply touches replica disks: reading what will be overwritten, and
//! writing what won. It never decides when: the caller has sealed before it writes, and syncs
//! before it says so.

use super::error::{Result, StoreError};
use super::fold::Fold;
use super::journal_reader::JournalReader;
use super::retention::{PIECE_LIMIT, RetentionWriter};
use super::shared::Shared;
use crossbeam::channel::bounded;
use redoubt_engine::buffer::{AlignedBuffer, BLOCK_BYTES};
use redoubt_engine::storage::{BlockFile, Open, ReadRequest, WriteRequest};
use redoubt_log::frame::FRAME_PAYLOAD_LIMIT;
use redoubt_log::{ByteRange, DiskIndex, DiskSet, RangeSet, Sequence};
use std::collections::BTreeMap;
use std::sync::Arc;

const BLOCK: u64 = BLOCK_BYTES as u64;

/// Bytes read at once: a thousand blocks keep a disk's queue full, and are little in the budget.
const READ_BYTES: usize = 4 << 20;

/// Holes and ranges that wait at once: as many ranges as fit, each with a hole before it.
const WAITING_MOST: usize = 2 * READ_BYTES / BLOCK_BYTES;

/// The replica disks that were written.
pub(super) type Replicas = BTreeMap<DiskIndex, Arc<dyn BlockFile>>;

/// Writes what won of the `frames` frames after `from`. Nothing is durable yet.
pub(super) fn write(shared: &Shared, from: Sequence, frames: u32, fold: &Fold) -> Result<Replicas> {
    let mut replicas = Replicas::new();
    for disk in fold.disks().iter() {
        replicas.insert(disk, shared.replica(disk, Open::ReadWrite)?);
    }
    let source = Source { shared, from, frames, fold };
    if fold.extent(fold.disks()).0 <= source.window_bytes() as u64 {
        source.write_in_turns(&replicas)?;
    } else {
        source.write_while_reading(&replicas)?;
    }
    Ok(replicas)
}

/// Makes the written replica disks durable.
pub(super) fn sync(replicas: &Replicas) -> Result<()> {
    replicas.values().try_for_each(|file| Ok(file.sync()?))
}

/// The frames of an interval, and what won of them.
#[derive(Clone, Copy)]
struct Source<'a> {
    shared: &'a Shared,
    from: Sequence,
    frames: u32,
    fold: &'a Fold,
}

impl Source<'_> {
    /// Bytes of one window; every record fits.
    fn window_bytes(&self) -> usize {
        self.shared.options.write_bytes.max(FRAME_PAYLOAD_LIMIT + BLOCK_BYTES)
    }

    fn window(&self) -> Gathered {
        let extent = self.fold.extent(self.fold.disks());
        Gathered::new(memory_for(extent, self.window_bytes()))
    }

    /// One window, which is filled and written.
    fn write_in_turns(self, replicas: &Replicas) -> Result<()> {
        let mut written = Ok(());
        self.gather(self.window(), &mut |mut window| {
            written = window.write(replicas);
            written.is_ok().then_some(window)
        })?;
        written
    }

    /// Two windows: a thread of its own fills one while the other is written here.
    fn write_while_reading(self, replicas: &Replicas) -> Result<()> {
        let (filled, to_write) = bounded(1);
        let (emptied, to_fill) = bounded(1);
        std::thread::scope(|scope| {
            let read = move || {
                self.gather(self.window(), &mut |window| {
                    // The other side ends early only where a write has failed, and says so.
                    filled.send(window).ok()?;
                    to_fill.recv().ok()
                })
            };
            let thread = std::thread::Builder::new().name("apply-read".to_owned());
            let Ok(reading) = thread.spawn_scoped(scope, read) else {
                return self.write_in_turns(replicas);
            };
            let mut written = Ok(());
            let mut other = Some(self.window());
            for mut window in &to_write {
                // Both ends live as long as this loop: a failed send drops a window, no more.
                other.take().into_iter().for_each(|window| drop(emptied.send(window)));
                written = window.write(replicas);
                if written.is_err() {
                    break;
                }
                drop(emptied.send(window));
            }
            drop((to_write, emptied));
            let read = reading.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            written.and(read)
        })
    }

    /// Reads the frames and gathers what won. `pass_on` takes a window that is full, or the last
    /// one, and gives an empty one back, or none where the rest is of no use any more.
    fn gather(
        self,
        mut window: Gathered,
        pass_on: &mut dyn FnMut(Gathered) -> Option<Gathered>,
    ) -> Result<()> {
        let damaged = |what| StoreError::damaged(&self.shared.layout.journal(), 0, what);
        let mut reader = JournalReader::new(self.shared, self.from);
        let mut scratch = Vec::new();
        for number in 0..self.frames {
            let frame = reader.next()?.ok_or_else(|| damaged("frames are missing".to_owned()))?;
            let frame =
                frame.decode_body(&mut scratch).map_err(|error| damaged(error.to_string()))?;
            for (index, placed) in (0..).zip(frame.records()) {
                let Some((disk, range)) = placed.record.extent() else { continue };
                let payload = frame.payload_of(placed);
                for part in self.fold.won(number, index, disk, range) {
                    if payload.is_empty() {
                        window.zero(disk, part);
                        continue;
                    }
                    if !window.fits(disk, part) {
                        let Some(next) = pass_on(window) else { return Ok(()) };
                        window = next;
                    }
                    let start = index_of(part.offset - range.offset);
                    window.take(disk, part, &payload[start..start + index_of(part.length)]);
                }
            }
        }
        pass_on(window);
        Ok(())
    }
}

/// What waits to be written: ranges that do not overlap, of several frames.
struct Gathered {
    /// Content lies in it as far from a block's boundary as on its disk, so that the disk takes
    /// whole blocks as they are.
    memory: AlignedBuffer,
    used: usize,
    parts: BTreeMap<DiskIndex, Vec<Part>>,
    zeros: BTreeMap<DiskIndex, RangeSet>,
}

/// Content that waits, and its place in the memory.
struct Part {
    offset: u64,
    place: usize,
    length: usize,
}

impl Part {
    /// Whether content at `offset` with its place at `place` stands right behind, in both.
    fn goes_on_at(&self, offset: u64, place: usize) -> bool {
        self.offset + self.length as u64 == offset && self.place + self.length == place
    }
}

impl Gathered {
    fn new(memory: AlignedBuffer) -> Self {
        Self { memory, used: 0, parts: BTreeMap::new(), zeros: BTreeMap::new() }
    }

    fn fits(&self, disk: DiskIndex, range: ByteRange) -> bool {
        self.place_of(disk, range.offset) + index_of(range.length) <= self.memory.len()
    }

    /// Takes content that fits.
    fn take(&mut self, disk: DiskIndex, range: ByteRange, data: &[u8]) {
        let place = self.place_of(disk, range.offset);
        self.memory[place..place + data.len()].copy_from_slice(data);
        let parts = self.parts.entry(disk).or_default();
        match parts.last_mut().filter(|last| last.goes_on_at(range.offset, place)) {
            Some(last) => last.length += data.len(),
            None => parts.push(Part { offset: range.offset, place, length: data.len() }),
        }
        self.used = place + data.len();
    }

    /// Where content of this place of the disk goes: right behind the content before it, if it is
    /// that on the disk too, else into a block of its own.
    fn place_of(&self, disk: DiskIndex, offset: u64) -> usize {
        let last = self.parts.get(&disk).and_then(|parts| parts.last());
        if last.is_some_and(|last| last.goes_on_at(offset, self.used)) {
            return self.used;
        }
        self.used.next_multiple_of(BLOCK_BYTES) + index_of(offset % BLOCK)
    }

    fn zero(&mut self, disk: DiskIndex, range: ByteRange) {
        self.zeros.entry(disk).or_default().insert(range);
    }

    /// Writes all that waits, each disk in its own order; nothing waits then.
    fn write(&mut self, replicas: &Replicas) -> Result<()> {
        for (disk, zeros) in std::mem::take(&mut self.zeros) {
            for range in zeros.iter() {
                replicas[&disk].zero(range.offset, range.length)?;
            }
        }
        for (disk, mut parts) in std::mem::take(&mut self.parts) {
            parts.sort_unstable_by_key(|part| part.offset);
            let request = |part: &Part| WriteRequest {
                offset: part.offset,
                data: &self.memory[part.place..part.place + part.length],
            };
            let batch: Vec<WriteRequest<'_>> = parts.iter().map(request).collect();
            replicas[&disk].write(&batch)?;
        }
        self.used = 0;
        Ok(())
    }
}

/// Hands what the replica disk holds of the disk's ranges to the retention file, in order; holes
/// are not read.
pub(super) fn copy_old_content(
    file: &dyn BlockFile,
    disk: DiskIndex,
    fold: &Fold,
    writer: &mut RetentionWriter,
) -> Result<()> {
    let mut set = DiskSet::default();
    set.insert(disk);
    let memory = memory_for(fold.extent(set), READ_BYTES);
    let mut batch = OldContent { file, disk, memory, used: 0, waiting: Vec::new() };
    let mut data = ByteRange::new(0, 0);
    for range in fold.ranges(disk) {
        let mut at = range.offset;
        while at < range.end() {
            if data.end() <= at {
                let next = file.next_data(at)?.unwrap_or((u64::MAX, 0));
                data = ByteRange::new(next.0, next.1);
            }
            let hole = ByteRange::between(at, data.offset.min(range.end()));
            if !hole.is_empty() {
                batch.hole(hole, writer)?;
            }
            let part = ByteRange::between(at.max(hole.end()), data.end().min(range.end()));
            at = part.end().max(part.offset);
            batch.read(part, writer)?;
        }
    }
    batch.flush(writer)
}

/// Ranges that wait to be read together, and holes between them.
struct OldContent<'a> {
    file: &'a dyn BlockFile,
    disk: DiskIndex,
    memory: AlignedBuffer,
    used: usize,
    /// In order; the place in the memory of what is read, none for a hole.
    waiting: Vec<(ByteRange, Option<usize>)>,
}

impl OldContent<'_> {
    fn hole(&mut self, range: ByteRange, writer: &mut RetentionWriter) -> Result<()> {
        if self.waiting.len() >= WAITING_MOST {
            self.flush(writer)?;
        }
        self.waiting.push((range, None));
        Ok(())
    }

    /// Lines a range up; whole blocks are read, so each begins in a block of its own.
    fn read(&mut self, range: ByteRange, writer: &mut RetentionWriter) -> Result<()> {
        let mut at = range.offset;
        while at < range.end() {
            if self.used == self.memory.len() {
                self.flush(writer)?;
            }
            let skip = at % BLOCK;
            let room = (self.memory.len() - self.used) as u64 - skip;
            let part = ByteRange::new(at, (range.end() - at).min(room));
            let place = self.used + index_of(skip);
            self.waiting.push((part, Some(place)));
            self.used = (place + index_of(part.length)).next_multiple_of(BLOCK_BYTES);
            at = part.end();
        }
        Ok(())
    }

    /// Reads what waits, and hands all of it on in order.
    fn flush(&mut self, writer: &mut RetentionWriter) -> Result<()> {
        let mut requests = Vec::with_capacity(self.waiting.len());
        let (mut rest, mut begin) = (&mut self.memory[..], 0);
        for (range, place) in &self.waiting {
            let Some(place) = place else { continue };
            let offset = range.offset - range.offset % BLOCK;
            let end = range.end().next_multiple_of(BLOCK).min(self.file.size());
            let start = place - place % BLOCK_BYTES;
            let length = index_of(end - offset);
            let (buffer, behind) = rest.split_at_mut(start - begin).1.split_at_mut(length);
            requests.push(ReadRequest { offset, buffer });
            (rest, begin) = (behind, start + length);
        }
        self.file.read(&mut requests)?;
        for (range, place) in self.waiting.drain(..) {
            let Some(place) = place else {
                writer.push_zeros(self.disk, range)?;
                continue;
            };
            let content = &self.memory[place..place + index_of(range.length)];
            let offsets = (range.offset..).step_by(index_of(PIECE_LIMIT));
            for (offset, piece) in offsets.zip(content.chunks(index_of(PIECE_LIMIT))) {
                writer.push(self.disk, offset, piece)?;
            }
        }
        self.used = 0;
        Ok(())
    }
}

/// Memory for ranges of which each begins in a block of its own: all of them, or `most` bytes.
fn memory_for((bytes, ranges): (u64, u64), most: usize) -> AlignedBuffer {
    let all = bytes.saturating_add(ranges.saturating_mul(2 * BLOCK));
    let length = usize::try_from(all).map_or(most, |all| all.min(most));
    AlignedBuffer::zeroed(length.next_multiple_of(BLOCK_BYTES))
}

fn index_of(bytes: u64) -> usize {
    usize::try_from(bytes).expect("a batch fits in memory")
}
